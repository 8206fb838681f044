# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook promote_node on a cluster that has lost its primary."""

from __future__ import annotations

import pytest
from cluster_play import play
from lab import Lab
from switchover_site import Site
from test_pg_promote import caught_up, crash


@pytest.fixture
def site():
    lab = Lab()
    yield Site(lab, poolers=0)
    lab.close()


def run(site, *arguments, **options):
    return play(site, "promote_node", *arguments, **options)


def test_a_lost_primary_and_a_standby_that_follows(site):
    db1, db2, db3 = site.nodes
    output, _changes = run(site, candidate="db2", fails=True)
    assert "db1 is a primary and accepts writes" in output and "pg_switchover" in output
    caught_up(db1, db2, db3)
    crash(db1)
    output, changes = run(site, "--check", candidate="db2")
    assert sum(changes.values()) > 0 and site.primaries == [] and not (db1.data / "standby.signal").exists()
    output, changes = run(site, candidate="db2")
    assert "primary: db2" in output and "db1: no server works in its data directory" in output
    assert [node.name for node in site.primaries] == ["db2"]
    db2.wait_for_standbys(1)
    assert db3.value("SELECT received_tli FROM pg_stat_wal_receiver") == 2
    _output, changes = run(site, candidate="db2")
    assert sum(changes.values()) == 0
    db1.start()
    assert db1.in_recovery


def test_a_host_that_does_not_answer(site):
    """Two of three hosts give the lock, and the third one is vouched for."""
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    db1.stop()
    gone = {"db1": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9, "pgfleet_shell": ["false"]}}
    shell = ["env", "PATH=/usr/bin:/bin", "setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]
    hosts = {**gone, **{name: {"pgfleet_shell": shell} for name in ("db2", "db3")}}
    output, _changes = run(site, candidate="db2", fails=True, hosts=hosts)
    assert "is no proof that it is down" in output, output
    assert site.primaries == []
    output, _changes = run(site, candidate="db2", fenced="db1", hosts=hosts)
    assert "db1: the option fenced names it" in output
    assert [node.name for node in site.primaries] == ["db2"]
    db2.wait_for_standbys(1)


def test_a_method_of_ones_own(site):
    """It gets no further than ours would, and what it says is looked after."""
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    liar, method = site.lab.path / "liar.yml", site.lab.path / "method.yml"
    liar.write_text("- ansible.builtin.set_fact: {method_result: {changed: true, msg: promoted}}\n")
    method.write_text(
        """
- ansible.builtin.command:
    argv: ["{{ method_input.target.bin_directory }}/pg_ctl", -D, "{{ method_input.target.data_directory }}", promote]
  become: true
  become_user: "{{ method_input.target.user }}"
  when: not ansible_check_mode
- ansible.builtin.set_fact: {method_result: {changed: true, msg: promoted}}
"""
    )
    output, _changes = run(site, candidate="db2", promotion_method=str(method), fails=True)
    assert "db1 is a primary and accepts writes" in output
    db1.stop()
    output, _changes = run(site, candidate="db2", promotion_method=str(method), fails=True)
    assert "db1 is down and would come back as a primary" in output and site.primaries == []
    (db1.data / "standby.signal").touch()
    output, _changes = run(site, candidate="db2", promotion_method=str(liar), fails=True)
    assert "says that it has promoted db2, and the primary is none" in output
    run(site, candidate="db2", promotion_method=str(method))
    assert [node.name for node in site.primaries] == ["db2"]
    db2.wait_for_standbys(1)
