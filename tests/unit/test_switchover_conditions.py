# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a switchover unless an option says otherwise, and whether all members could follow the candidate."""

from __future__ import annotations

import re

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.model import Cluster, Node
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.switchover import (
    Archive,
    PoolerView,
    Surroundings,
    Transaction,
    conditions,
    endless_commits,
    follower_problems,
    foreign_slots,
    sessions_without_a_name,
)

SETTINGS = {
    name: {"now": "10", "then": "10"}
    for name in ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction")
}


def node(name, recovering, **state):
    known = {
        "in_recovery": recovering, "slots": [], "senders": [], "version_number": 150004, "synchronous_standby_names": "", "synchronous_commit": "on",
        "max_replication_slots": 10, "standby_settings": SETTINGS,
    }  # fmt: skip
    return Node(name, name, 5432, state={**known, **state})


def cluster(candidate=None, **primary):
    return Cluster([node("db1", False, **primary), candidate or node("db2", True), node("db3", True)])


def transaction(seconds, application="batch"):
    return Transaction(42, seconds, application, "app", "2026-01-01 00:00:00+00")


def found(poolers=(), **around):
    it = cluster()
    return {option: texts for option, texts in conditions(it, it.nodes[1], poolers, Surroundings(**around), 5, 16).items() if texts}


def test_nothing_speaks_against_it():
    assert found([PoolerView("p1", affected=["app"])], transactions=[transaction(5.0)], archive=Archive(16)) == {}


@pytest.mark.parametrize(
    ("arguments", "option", "expected"),
    [
        (
            {"transactions": [transaction(1), transaction(6)]},
            "long_transactions",
            r"open longer than 5 s.*: pid 42 \(user app, application batch\) open since 2026.*, 6\.0 s$",
        ),
        ({"transactions": [transaction(6, "")]}, "long_transactions", r"application without a name"),
        ({"poolers": [PoolerView("p1", affected=["app"], session_pools=["app"])]}, "session_pools", r"^pooler p1 pools by session for app:"),
        ({"archive": Archive(17)}, "archive_behind", r"^17 files of WAL wait to be archived, the limit is 16"),
        ({"archive": Archive(1, "00000001")}, "archive_behind", r"^archiving fails at 00000001, 1 files of WAL wait"),
    ],
)
def test_each_condition_alone_has_its_option(arguments, option, expected):
    seen = found(**arguments)
    assert list(seen) == [option] and len(seen[option]) == 1
    assert re.search(expected, seen[option][0])


def test_sessions_that_cannot_be_ended():
    """Those of "*" have no entry that could be named."""
    views = [
        PoolerView("p1", affected=["app"], session_pools=["app"]),
        PoolerView("p2", affected=["*"], session_pools=["*"]),
        PoolerView("p3", affected=["*"]),
    ]
    (text,) = sessions_without_a_name(views)
    assert "pooler p2 pools by session" in text and '"*"' in text


@pytest.mark.parametrize(
    ("setting", "followers", "hangs"),
    [
        ("", [], False),
        ("*", ["db1"], False),
        ("*", [], True),
        ("db1", ["db1"], False),
        ("DB1", ["db1"], False),
        ("db9", ["db1", "db3"], True),
        ('ANY 1 (db9, "db 3")', ["db1", "db 3"], False),
        ("ANY 2 (db1, db2, db3)", ["db1", "db3"], False),
        ("ANY 2 (db1, db2)", ["db1", "db3"], True),  # the candidate cannot be its own standby
        ("FIRST 2 (db1, db2, db3)", ["db1"], True),
        ("FIRST 2 (*)", ["db1", "db3"], False),
        ("2 (walreceiver)", ["walreceiver", "walreceiver"], False),
    ],
)
def test_commits_that_would_wait_for_ever(setting, followers, hangs):
    candidate = node("db2", True, synchronous_standby_names=setting)
    assert bool(endless_commits(candidate, followers)) is hangs
    for commit in ("off", "local"):
        assert endless_commits(node("db2", True, synchronous_standby_names=setting, synchronous_commit=commit), followers) == []


def test_what_is_said_of_endless_commits():
    text = "; ".join(endless_commits(node("db2", True, synchronous_standby_names="ANY 2 (db1, db2)"), ["db1", "db3"]))
    assert "db2 would wait for ever" in text and "wants 2 of db1, db2" in text and "(db1, db3) only db1 is among them" in text


def slot(name, kind="logical", **changes):
    logical = kind == "logical"
    return {
        "name": name, "type": kind, "plugin": "pgoutput" if logical else None, "database": "app" if logical else None, "active": False, "temporary": False,
        "wal_status": "reserved", "retained_bytes": 4096, "synced": False, "failover": False, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "on_primary", "on_candidate", "named"),
    [
        (150004, [slot("db2", "physical"), slot("db3", "physical", active=True)], [], []),
        (150004, [slot("barman", "physical")], [], ["barman"]),
        (150004, [slot("barman", "physical")], [slot("barman", "physical")], []),
        (150004, [slot("orders")], [], ["orders"]),
        (150004, [slot("db2")], [], ["db2"]),  # a logical slot that is named as a member's
        (150004, [slot("orders")], [slot("orders")], []),
        (150004, [slot("orders")], [slot("orders", database="other")], ["orders"]),
        (170000, [slot("orders", failover=True)], [slot("orders", failover=True, synced=True)], []),
        (170000, [slot("orders", failover=True)], [slot("orders", failover=True, synced=True, temporary=True)], ["orders"]),
        (170000, [slot("orders")], [slot("orders")], ["orders"]),
        (150004, [slot("backup", "physical", temporary=True), slot("gone", wal_status="lost")], [], []),
    ],
)
def test_slots_that_the_candidate_lacks(version, on_primary, on_candidate, named):
    it = cluster(node("db2", True, slots=on_candidate, version_number=version), slots=on_primary)
    texts = foreign_slots(it, it.nodes[1], {"db1", "db2", "db3"})
    assert [text.split()[2] for text in texts] == named


def test_what_is_said_of_a_slot():
    it = cluster(slots=[slot("orders", active=True), slot("barman", "physical")])
    orders, barman = foreign_slots(it, it.nodes[1], ())
    assert "orders (logical, plugin pgoutput, database app, in use, holds 4096 bytes of WAL) is not on the candidate db2" in orders
    assert "barman (physical, not in use, " in barman


def test_a_candidate_with_room_for_all():
    it = cluster()
    assert follower_problems(it, it.nodes[1], Surroundings(followers={"db1": "db1", "db3": "db3"}, new_slots=["db1", "db3"])) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"standby_settings": {**SETTINGS, "max_wal_senders": {"now": "1", "then": "10"}}}, r"^2 standbys will stream from the candidate db2, .* is 1$"),
        ({"max_replication_slots": 2, "slots": [slot("other", "physical")]}, r"^the candidate db2 needs 3 replication slots, .* is 2$"),
        ({"standby_settings": {**SETTINGS, "max_connections": {"now": "20", "then": "10"}}}, r"^db[13] cannot follow db2: its max_connections is 10 "),
    ],
)
def test_a_candidate_that_not_all_could_follow(changes, expected):
    it = cluster(node("db2", True, **changes))
    texts = follower_problems(it, it.nodes[1], Surroundings(followers={"db1": "db1", "db3": "db3"}, new_slots=["db1", "db3"]))
    assert texts and all(re.search(expected, text) for text in texts)


def test_the_old_primary_is_judged_by_what_its_restart_brings():
    more = {**SETTINGS, "max_connections": {"now": "20", "then": "20"}}
    waits = {**SETTINGS, "max_connections": {"now": "20", "then": "10"}}
    it = Cluster([node("db1", False, standby_settings=waits), node("db2", True, standby_settings=more)])
    (text,) = follower_problems(it, it.nodes[1], Surroundings(followers={"db1": "db1"}))
    assert text == "db1 cannot follow db2: its max_connections is 10 after a restart, and that of db2 is 20 now"
