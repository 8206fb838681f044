# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks fail_over and check_failover on a cluster that loses its primary."""

from __future__ import annotations

import contextlib

import pytest
from cluster_play import play
from lab import Lab
from switchover_site import Site
from test_pg_promote import caught_up, crash


@pytest.fixture
def site():
    with contextlib.closing(Lab()) as lab:
        yield Site(lab)


def run(site, playbook, *arguments, variables=None, **options):
    return play(site, playbook, *arguments, variables={"pgfleet_lock_directory": str(site.lab.path / "lock"), **(variables or {})}, **options)


def test_a_scheduler_that_looks_and_replaces_what_is_lost(site):
    db1, db2, db3 = site.nodes
    before = site.fingerprint()
    output, changes = run(site, "check_failover")
    assert sum(changes.values()) == 0 and "primary: db1" in output and site.fingerprint() == before, output
    assert not list((site.lab.path / "lock").glob("*"))
    output, _changes = run(site, "fail_over", fails=True)
    assert "db1 is the primary and answers, nothing was changed" in output
    caught_up(db1, db2, db3)
    crash(db1)
    output, changes = run(site, "check_failover", "--check")
    assert sum(changes.values()) > 0 and site.primaries == [] and not (db1.data / "standby.signal").exists(), output
    output, changes = run(site, "check_failover")
    new = site.primary
    assert "primary: %s" % new.name in output and "may be lost: 0 bytes" in output and "bring back with clone_standby: db1" in output, output
    assert site.paused() == [] and new is not db1
    for pooler in site.poolers:
        with pooler.connect("app") as connection:
            assert connection.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,)
    output, changes = run(site, "check_failover")
    assert sum(changes.values()) == 0, output
    db1.start()
    assert db1.in_recovery and site.primaries == [new]


def test_a_host_that_does_not_answer(site):
    """Its pooler and the other hosts give the lock; the primary is vouched for."""
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    db1.stop()
    gone = {"db1": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9, "pgfleet_shell": ["false"]}}
    shell = ["env", "PATH=/usr/bin:/bin", "setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]
    hosts = {**gone, **{name: {"pgfleet_shell": shell} for name in ("db2", "db3", "pooler1", "pooler2")}}
    output, _changes = run(site, "fail_over", fails=True, hosts=hosts)
    assert "is no proof that it is down" in output and site.primaries == [], output
    output, _changes = run(site, "fail_over", fenced="db1", hosts=hosts, candidate="db3")
    assert "primary: db3" in output and site.primaries == [db3] and site.paused() == [], output
    db3.wait_for_standbys(1)
