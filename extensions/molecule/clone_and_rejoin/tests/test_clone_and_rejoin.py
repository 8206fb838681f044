# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""clone_standby on servers that systemd keeps: data that is gone, and old primaries that have gone their own way. These run in this order."""

from __future__ import annotations

import contextlib

import pytest
from conftest import (
    CLUSTER,
    NODES,
    POOLERS,
    Load,
    address,
    ask,
    changes,
    cluster_is_whole,
    connect,
    cut,
    data_directory,
    in_network_of,
    machine,
    make_whole,
    must_play,
    must_refuse,
    service,
    streams_from,
    unit,
    wait_for,
)


def others(*names):
    return [node for node in NODES if node not in names]


def systemctl(verb, node):
    machine(node).check_output("systemctl %s %s", verb, unit(node))


def inode(node):
    """Another one where another directory has taken its place."""
    return machine(node).check_output("stat --format %%i %s", data_directory(node))


def beside(node):
    """What is in the directory that its data directory is in."""
    return machine(node).check_output("ls -A %s/..", data_directory(node))


def state():
    """What a refusal leaves as it was."""
    return {node: (service(node)["MainPID"], inode(node), beside(node)) for node in NODES}


@contextlib.contextmanager
def alone(node):
    """A node that no other host of its cluster reaches. The controller does."""
    cut(node, [name for name in (*NODES, *POOLERS) if name != node])
    try:
        yield
    finally:
        for chain in ("INPUT", "OUTPUT"):
            in_network_of(node, "iptables", "--wait", "--flush", chain)


def promoted_beside(old, new, loss, change):
    """Stop the primary, let it come back alone as a primary and change something, stop it again; then let `new` take its place without that."""
    systemctl("stop", old)
    with alone(old):
        systemctl("start", old)
        with wait_for(lambda: connect(old, dbname="app"), old) as session:
            change(session)
        systemctl("stop", old)
    must_refuse("max_data_loss_bytes", "promote_node", cluster=CLUSTER, candidate=new)
    assert [ask(node, "SELECT pg_is_in_recovery()") for node in others(old)] == [[(True,)]] * 2
    must_play("promote_node", cluster=CLUSTER, candidate=new, max_data_loss_bytes=loss)
    must_play("redirect_pgbouncer", cluster=CLUSTER)
    wait_for(lambda: streams_from(new, others(old, new)), "the other standby follows")


def standby_is_well(node, primary):
    """By systemd, by its directory, by what the primary says, and to clients."""
    wait_for(lambda: cluster_is_whole(primary), "both standbys stream from " + primary)
    seen, host = service(node), machine(node)
    assert (seen["ActiveState"], seen["SubState"], seen["Result"], seen["NRestarts"]) == ("active", "running", "success", "0")
    assert seen["MainPID"] == host.check_output("head -n 1 %s/postmaster.pid", data_directory(node))
    # Debian's generator enables instances at each boot anew.
    assert host.check_output("systemctl is-enabled %s", unit(node)) == "enabled-runtime"
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
    data = host.file(data_directory(node))
    assert (data.user, data.group, data.mode) == ("postgres", "postgres", 0o700)
    assert host.check_output("find %s -not -user postgres", data_directory(node)) == ""
    # No old directory, no half of a new one, no note of a clone.
    assert beside(node) == node
    assert host.check_output("find %s -maxdepth 1 -name 'pgfleet*'", data_directory(node)) == ""
    assert host.file(data_directory(node) + "/standby.signal").exists
    assert sorted(ask(primary, "SELECT slot_name, active FROM pg_replication_slots")) == [(name, True) for name in others(primary)]
    assert ask(node, "SELECT slot_name FROM pg_replication_slots") == []
    assert ask(node, "SELECT status, sender_host, slot_name FROM pg_stat_wal_receiver") == [("streaming", address(primary), node)]
    for pooler in POOLERS:
        assert ask(pooler, "SELECT host(inet_server_addr())", port=6432, user="app", dbname="app") == [(address(primary),)]
        assert ask(pooler, "SELECT pg_is_in_recovery()", port=6432, user="app", dbname="app_ro") == [(True,)]


def changes_nothing(node):
    before = state()
    printed = must_play("clone_standby", cluster=CLUSTER, standby=node)
    assert not any(changes(printed).values()) and "nothing to do" in printed
    assert state() == before


@pytest.fixture(scope="module", autouse=True)
def whole():
    """The cluster before and after, with db1 as the primary."""
    make_whole()
    yield
    make_whole()


@pytest.mark.parametrize(
    "variables, reason",
    [
        ({"standby": "db1"}, "it is the primary"),
        ({"standby": "db1", "source": "db2", "reclone": True}, "a primary runs in"),
        ({"standby": "db3", "source": "db3", "reclone": True}, "another node as the source"),
    ],
)
def test_what_is_refused_changes_nothing(variables, reason):
    before = state()
    must_refuse(reason, "clone_standby", cluster=CLUSTER, **variables)
    assert state() == before and cluster_is_whole("db1")


def test_a_standby_without_data_comes_back_while_clients_write(tmp_path):
    systemctl("stop", "db3")
    machine("db3").check_output("find %s -mindepth 1 -delete", data_directory("db3"))
    with Load(tmp_path) as load:
        printed = must_play("clone_standby", cluster=CLUSTER, standby="db3")
    assert "db3 is a standby of db1, by a new copy" in printed
    report = load.report
    assert (report["errors"], report["error_texts"], report["unfinished_clients"], load.lost("db1")) == (0, [], 0, 0)
    assert report["commits"] > 100
    standby_is_well("db3", "db1")
    rows = "SELECT count(*) FROM public.lab WHERE run = '%s'" % report["run"]
    wait_for(lambda: ask("db3", rows, dbname="app") == [(report["commits"],)], "the clients' rows on db3")
    changes_nothing("db3")


def test_an_old_primary_that_has_written_alone_is_rewound():
    def write(session):
        session.execute("DROP TABLE IF EXISTS only_here")
        session.execute("CREATE TABLE only_here AS SELECT generate_series(1, 1000)")

    promoted_beside("db1", "db2", 16 << 20, write)
    before, kept = state(), inode("db1")
    must_refuse("Set reclone", "clone_standby", cluster=CLUSTER, standby="db1")
    assert state() == before and not machine("db1").service(unit("db1")).is_running
    printed = must_play("clone_standby", cluster=CLUSTER, standby="db1", reclone=True)
    assert "db1 is a standby of db2, rewound" in printed and inode("db1") == kept
    standby_is_well("db1", "db2")
    assert ask("db1", "SELECT to_regclass('public.only_here') IS NULL", dbname="app") == [(True,)]
    changes_nothing("db1")


def test_one_that_no_longer_has_the_wal_to_be_rewound_is_copied():
    def write(session):
        session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        parted = session.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()[0]
        session.execute("CREATE TABLE only_here AS SELECT generate_series(1, 1000)")
        for _round in range(3):
            session.execute("SELECT pg_switch_wal()")
            session.execute("CHECKPOINT")
        assert session.execute("SELECT count(*) FROM pg_ls_waldir() WHERE name = %s", [parted]).fetchone() == (0,)

    promoted_beside("db2", "db1", 256 << 20, write)
    before = state()
    must_refuse("cannot be rewound", "clone_standby", cluster=CLUSTER, standby="db2", reclone=True, clone_method="rewind")
    assert state() == before
    printed = must_play("clone_standby", cluster=CLUSTER, standby="db2", reclone=True)
    assert "db2 is a standby of db1, by a new copy" in printed and "could not be rewound" in printed
    assert inode("db2") != before["db2"][1]
    standby_is_well("db2", "db1")
    assert ask("db2", "SELECT to_regclass('public.only_here') IS NULL", dbname="app") == [(True,)]
    changes_nothing("db2")
