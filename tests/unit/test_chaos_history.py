# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For each rule a history that keeps it, and histories that are broken in one place."""

from __future__ import annotations

import dataclasses

import pytest
from history import (
    REFUSED,
    UNKNOWN,
    Commit,
    DataLoss,
    NodeState,
    PauseSample,
    PoolerState,
    lost,
    paused_too_long,
    phantoms,
    too_little,
    two_writers,
    unsound,
)


def commit(sequence, sent, ended, node="db1", timeline=1, outcome="acknowledged", **more):
    return Commit("c", sequence, sent, ended, outcome, node, timeline, **more)


SWITCHOVER = [
    commit(1, 1.0, 1.1), commit(2, 1.2, 1.3), commit(3, 1.35, 1.9, outcome=UNKNOWN), commit(4, 2.0, 2.1, "db2", 2), commit(5, 2.2, 2.3, "db2", 2),
]  # fmt: skip


def keys(*numbers):
    return {("c", number) for number in numbers}


# -- no acknowledged commit is lost ------------------------------------------------------------------------------------


def test_nothing_lost():
    assert lost(SWITCHOVER, keys(1, 2, 4, 5)) == []
    # What nobody was told may be there or not.
    assert lost(SWITCHOVER, keys(1, 2, 3, 4, 5)) == []


def test_a_lost_commit():
    (violation,) = lost(SWITCHOVER, keys(1, 4, 5))
    assert "1 acknowledged commits" in violation and "c 2, acknowledged by db1 on timeline 1" in violation


ALLOWED = DataLoss("db1", end=4.5, fork=1000, max_bytes=500)


def test_a_failover_may_lose_the_stated_bytes_of_the_lost_primary():
    history = [commit(1, 1, 2, position=900), commit(2, 3, 4, position=1400), commit(3, 5, 6, "db2", 2, position=1200)]
    assert lost(history, keys(1, 3), ALLOWED) == []


@pytest.mark.parametrize(
    "what",
    [
        commit(2, 3, 4, position=1501), commit(2, 3, 4, "db2", 2, position=1100), commit(2, 3, 4, "db3", 1, position=1100),
        commit(2, 4.6, 4.7, position=1100), commit(2, 3, 5, position=1100, executed=4.9),
    ],
)  # fmt: skip
def test_a_failover_must_not_lose_more_nor_of_another_node(what):
    assert len(lost([commit(1, 1, 2, position=900), what], keys(1), ALLOWED)) == 1


def test_a_refused_commit_that_is_there():
    history = [*SWITCHOVER, commit(6, 2.4, 2.5, outcome=REFUSED)]
    assert phantoms(history, keys(1, 2, 4, 5)) == []
    assert len(phantoms(history, keys(1, 2, 4, 5, 6))) == 1


# -- never two writers -------------------------------------------------------------------------------------------------


def test_one_writer_after_the_other():
    assert two_writers(SWITCHOVER) == []


def test_back_and_forth_on_new_timelines():
    assert two_writers([commit(1, 1, 2), commit(2, 3, 4, "db2", 2), commit(3, 5, 6, "db1", 3)]) == []


def test_the_old_primary_accepts_a_write_after_the_new_one():
    (violation,) = two_writers([*SWITCHOVER, commit(6, 2.15, 2.2)])
    assert "db1 accepted a write on timeline 1 0.050 s after db2" in violation


def test_a_slow_answer_is_no_second_writer():
    """Sent before the switchover, answered after it: the commit itself may have been long before."""
    assert two_writers([*SWITCHOVER, commit(6, 1.4, 9.0)]) == []


def test_a_commit_that_a_server_makes_when_it_wakes_up():
    """The same times for its client, but the server says when it was at work."""
    assert len(two_writers([*SWITCHOVER, commit(6, 1.4, 9.0, executed=8.9)])) == 1


def test_two_primaries_on_one_timeline_at_whatever_time():
    assert len(two_writers([commit(1, 1, 2), commit(2, 3, 4, "db2", 1)])) == 1
    assert len(two_writers([commit(1, 1, 2), commit(2, 3, 4, "db2", 2), commit(3, 5, 6, "db3", 2)])) == 1


def test_a_timeline_that_is_gone_for_two_promotions():
    assert len(two_writers([commit(1, 1, 2), commit(2, 3, 4, "db2", 2), commit(3, 5, 6, "db3", 3), commit(4, 7, 8)])) == 2


@pytest.mark.parametrize("outcome", [REFUSED, UNKNOWN])
def test_what_nobody_acknowledged_proves_nothing(outcome):
    assert two_writers([*SWITCHOVER, commit(6, 2.15, 2.2, outcome=outcome)]) == []


# -- pauses ------------------------------------------------------------------------------------------------------------


def pauses(*paused, pooler="p"):
    """One sample a second, which takes 0.1 s."""
    return [PauseSample(pooler, n, n + 0.1, None if names is None else frozenset(names.split())) for n, names in enumerate(paused)]


def test_a_pause_within_the_limit():
    assert paused_too_long(pauses("", "app", "app", "app", "", ""), 2) == []


@pytest.mark.parametrize(
    ("samples", "limit", "text"),
    [
        (pauses("", "app", "app", "app", "app", ""), 2, "for at least 2.9 s"),
        # No answer is no resume.
        (pauses("", "app", None, None, "app", ""), 2, "for at least 2.9 s"),
        (pauses("", "app app_ro", "app_ro", "app_ro", "app_ro", ""), 2, "app_ro paused for"),
        (pauses("", "app", "app"), 5, "at the end"),
        (pauses("", "app", None, None), 5, "at the end"),
        (pauses("", "", pooler="q") + pauses("", "app"), 5, "p still has app"),
    ],
)
def test_a_pause_that_is_too_long_or_stays(samples, limit, text):
    violations = paused_too_long(samples, limit)
    assert len(violations) == 1 and text in violations[0], violations


def test_two_pauses_are_not_one():
    assert paused_too_long(pauses("app", "app", "", "app", "app", ""), 1) == []


# -- a history that says nothing ---------------------------------------------------------------------------------------


def test_a_history_that_tells_enough():
    assert too_little(SWITCHOVER, pauses("", "", "", ""), ["c"], ["p"], fault=1.5) == []


@pytest.mark.parametrize(
    ("commits", "samples", "clients", "poolers"),
    [
        (SWITCHOVER[:2], pauses("", "", ""), ["c"], ["p"]),
        (SWITCHOVER[3:], pauses("", "", ""), ["c"], ["p"]),
        (SWITCHOVER, pauses("", None, None), ["c"], ["p"]),
        (SWITCHOVER, [], ["c"], ["p"]),
        (SWITCHOVER, pauses("", "", ""), ["c", "d"], ["p"]),
        (SWITCHOVER, pauses("", "", ""), ["c"], ["p", "q"]),
    ],
)
def test_a_history_that_tells_too_little(commits, samples, clients, poolers):
    assert len(too_little(commits, samples, clients, poolers, fault=1.5)) == 1


# -- the end -----------------------------------------------------------------------------------------------------------

NODES = [
    NodeState("db1", False, 2, "db2", standby_signal=True, settings=("primary_conninfo",)),
    NodeState("db2", True, 2, slots=(("db1", True), ("db3", True))),
    NodeState("db3", False, 2, "db2", standby_signal=True),
]
POOLERS = [PoolerState("p", {"app": "db2", "app_ro": "db1"}, {"app": "db2", "app_ro": "db1"}, settings={"server_login_retry": "1"})]


def judge(nodes=None, poolers=None):
    return unsound(NODES if nodes is None else nodes, POOLERS if poolers is None else poolers, "db2", {"primary_conninfo"}, {"server_login_retry": {"1"}})


def test_a_sound_site():
    assert judge() == []


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        (0, {"primary": True}), (1, {"primary": False}), (0, {"upstream": "db3"}), (0, {"upstream": ""}), (2, {"timeline": 1}), (2, {"standby_signal": False}),
        (1, {"standby_signal": True}), (0, {"slots": (("db3", False),)}), (1, {"slots": (("db1", True), ("db2", False))}),
        (1, {"settings": ("wal_retrieve_retry_interval",)}), (2, {"files": ("promote",)}),
    ],
)  # fmt: skip
def test_a_node_that_is_not_as_it_should_be(node, changes):
    nodes = list(NODES)
    nodes[node] = dataclasses.replace(nodes[node], **changes)
    assert len(judge(nodes=nodes)) == 1


def test_the_lost_primary_is_left_outside_and_fenced():
    alone = NodeState("db1", False, 1, standby_signal=True, slots=(("db3", False),))
    assert unsound([alone, *NODES[1:]], POOLERS, "db2", set(), {"server_login_retry": {"1"}}, outside=["db1"]) == []
    assert len(unsound([alone, *NODES[1:]], POOLERS, "db2", set(), {"server_login_retry": {"1"}})) == 3
    loose = dataclasses.replace(alone, standby_signal=False)
    assert len(unsound([loose, *NODES[1:]], POOLERS, "db2", set(), {"server_login_retry": {"1"}}, outside=["db1"])) == 1
    assert len(unsound([dataclasses.replace(alone, primary=True), *NODES[1:]], POOLERS, "db2", set(), {"server_login_retry": {"1"}}, outside=["db1"])) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"file": {"app": "db1", "app_ro": "db1"}, "running": {"app": "db1", "app_ro": "db1"}},
        {"file": {"app": "db2", "app_ro": "db2"}, "running": {"app": "db2", "app_ro": "db2"}},
        {"running": {"app": "db1", "app_ro": "db1"}}, {"running": {"app": "db2", "app_ro": "db3"}}, {"paused": ("app",)}, {"disabled": ("app",)},
        {"settings": {"server_login_retry": "0.1"}},
        {"files": ("databases.ini.pgfleet-7",)},
    ],
)  # fmt: skip
def test_a_pooler_that_is_not_as_it_should_be(changes):
    assert judge(poolers=[dataclasses.replace(POOLERS[0], **changes)])
