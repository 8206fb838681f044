# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks fail_over and check_failover on a cluster that loses its primary."""

from __future__ import annotations

import contextlib

import pytest
from cluster_play import play
from lab import REPOSITORY, Lab
from switchover_site import Site
from test_pg_promote import caught_up, crash
from test_switchover_hazards import frozen, processes_of


@pytest.fixture
def site():
    with contextlib.closing(Lab()) as lab:
        yield Site(lab)


def test_a_scheduler_that_looks_and_replaces_what_is_lost(site):
    db1, db2, db3 = site.nodes
    before = site.fingerprint()
    output, changes = play(site, "check_failover")
    assert sum(changes.values()) == 0 and "primary: db1" in output and site.fingerprint() == before, output
    assert not list((site.lab.path / "lock").glob("*"))
    output, _changes = play(site, "fail_over", fails=True)
    assert "db1 is the primary and answers, nothing was changed" in output
    caught_up(db1, db2, db3)
    crash(db1)
    output, changes = play(site, "check_failover", "--check")
    assert sum(changes.values()) > 0 and site.primaries == [] and not (db1.data / "standby.signal").exists(), output
    output, changes = play(site, "check_failover")
    new = site.primary
    assert "primary: %s" % new.name in output and "may be lost: 0 bytes" in output and "bring back with clone_standby: db1" in output, output
    assert site.paused() == [] and new is not db1
    for pooler in site.poolers:
        with pooler.connect("app") as connection:
            assert connection.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,)
    output, changes = play(site, "check_failover")
    assert sum(changes.values()) == 0, output
    db1.start()
    assert db1.in_recovery and site.primaries == [new]


@pytest.mark.long
def test_a_host_that_does_not_answer(site):
    """Its pooler and the other hosts give the lock; the primary is vouched for."""
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    db1.stop()
    gone = {"db1": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9, "pgfleet_shell": ["false"]}}
    shell = ["env", "PATH=/usr/bin:/bin", "setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]
    hosts = {**gone, **{name: {"pgfleet_shell": shell} for name in ("db2", "db3", "pooler1", "pooler2")}}
    output, _changes = play(site, "fail_over", fails=True, hosts=hosts)
    assert "is no proof that it is down" in output and site.primaries == [], output
    output, _changes = play(site, "fail_over", fenced="db1", hosts=hosts, candidate="db3")
    assert "primary: db3" in output and site.primaries == [db3] and site.paused() == [], output
    db3.wait_for_standbys(1)


FENCING = {"fencing_method": str(REPOSITORY / "docs" / "methods" / "fence_by_command.yml")}


def out_of_reach(fencing):
    """The inventory where nothing leads to the host of db1, which the command ``fencing`` fences."""
    shell = ["env", "PATH=/usr/bin:/bin", "setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9, "pgfleet_shell": ["false"], "fencing_command": fencing}
    return {"db1": gone, **{name: {"pgfleet_shell": shell} for name in ("db2", "db3", "pooler1", "pooler2")}}


def test_a_fencing_method_makes_the_proof(site, tmp_path):
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    done = tmp_path / "fenced"
    hosts = out_of_reach(["sh", "-c", 'touch %s; kill -9 "$@"' % done, "fence", *map(str, processes_of(db1))])
    with frozen(processes_of(db1)):
        output, _changes = play(site, "fail_over", "--check", hosts=hosts, **FENCING)
        assert "fence db1 by" in output and not done.exists(), output
        output, changes = play(site, "check_failover", hosts=hosts, **FENCING, rejoin=True)
        assert done.exists() and "the hosts of db1 do not answer; bring them back later" in output and sum(changes.values()) > 0, output
    assert site.primary in (db2, db3) and site.paused() == []
    site.primary.wait_for_standbys(1)


def test_a_fencing_method_that_only_says_so_is_found_out(site):
    """It lets the primary go on instead."""
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    with frozen(processes_of(db1)):
        hosts = out_of_reach(["kill", "-CONT", *map(str, processes_of(db1))])
        output, _changes = play(site, "fail_over", fails=True, hosts=hosts, **FENCING)
    assert "is the primary and answers" in output or "which is reached" in output or "is reached still" in output, output
    assert site.primary is db1 and site.paused() == []


def test_the_old_primary_is_brought_back_at_once(site):
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    crash(db1)
    output, _changes = play(site, "fail_over", rejoin=True)
    assert "to be brought back: db1" in output, output
    new = site.primary
    assert new is not db1 and db1.in_recovery
    new.wait_for_standbys(2)
    assert not list((site.lab.path / "lock").glob("**/*.json"))
