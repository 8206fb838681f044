# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster as its nodes describe it: roles, topology, lag, status, candidates, and what speaks against a switchover."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.model import STATUS_NUMBERS, Cluster, Node, Verdict, parse_synchronous
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.switchover import PoolerView, read_only_target, refusals, slot_name
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.values import int_to_lsn
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 1000
HEAD = 0x100000000
COMMON = {
    "system_identifier": "7001", "timeline": 1, "replay_paused": False, "apply_delay_seconds": 0, "archiver": {"failing": False, "last_failed_wal": None},
    "slots": [], "senders": [], "cluster_name": "", "primary_conninfo": "", "receiver": None,
    "seconds_since_replay": None,
}  # fmt: skip


def primary(name="db1", options=None, **state):
    return Node(name, name + ".example", 5432, state={**COMMON, "in_recovery": False, "current_lsn": int_to_lsn(HEAD), **state}, **(options or {}))


def standby(name, behind=0, options=None, upstream="db1.example", **state):
    """A standby that streams; ``behind`` bytes are received and not replayed."""
    answers = {
        **COMMON, "in_recovery": True, "received_lsn": int_to_lsn(HEAD), "replayed_lsn": int_to_lsn(HEAD - behind),
        "receiver": {"status": "streaming", "host": upstream, "port": 5432},
    }  # fmt: skip
    return Node(name, name + ".example", 5432, state={**answers, **state}, **(options or {}))


def dead(name, kind="NotReachable", problem="connection refused", refused=None):
    return Node(name, name + ".example", 5432, problem=problem, problem_kind=kind, refused=kind == "NotReachable" if refused is None else refused)


def slot(name, wal_status="reserved"):
    return {"name": name, "wal_status": wal_status}


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_the_role_is_what_the_node_says():
    assert [node.role for node in (primary(), standby("db2"), dead("db3"))] == ["primary", "standby", None]
    assert [node.reachable for node in (primary(), standby("db2"), dead("db3"))] == [True, True, False]


def test_a_node_without_an_answer_has_no_facts():
    node = dead("db3")
    assert (node.timeline, node.system_identifier, node.received, node.upstream_address, node.streaming) == (None, None, None, None, False)


@pytest.mark.parametrize(
    ("received", "replayed", "expected"),
    [("0/20", "0/10", 0x20), (None, "0/10", 0x10), ("0/20", None, 0x20), ("0/10", "0/20", 0x20), (None, None, None)],
)
def test_what_a_standby_holds(received, replayed, expected):
    assert standby("db2", received_lsn=received, replayed_lsn=replayed).received == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"receiver": {"status": "streaming", "host": "db1.example", "port": 5433}, "primary_conninfo": "host=elsewhere"}, ("db1.example", 5433)),
        ({"receiver": None, "primary_conninfo": "user=x host=db1.example port=5433"}, ("db1.example", 5433)),
        ({"receiver": {"status": "waiting", "host": None, "port": None}, "primary_conninfo": "host=db1.example"}, ("db1.example", 5432)),
        ({"receiver": None, "primary_conninfo": "user=x"}, None),
        ({"receiver": None, "primary_conninfo": "no conninfo"}, None),
        ({"receiver": None, "primary_conninfo": None}, None),
    ],
)
def test_where_a_standby_receives_from(state, expected):
    assert standby("db2", **state).upstream_address == expected
    assert primary(**state).upstream_address is None


@pytest.mark.parametrize(
    ("host", "address", "asked", "port", "expected"),
    [
        ("db1", None, "db1", 5432, True),
        ("db1", None, "db1", 5433, False),
        ("db1", None, "db2", 5432, False),
        ("db1", "10.0.0.1", "10.0.0.1", 5432, True),
        ("db1", "10.0.0.1", "db1", 5432, True),
        ("localhost", None, "127.0.0.1", 5432, True),
        ("127.0.0.1", None, "::1", 5432, True),
        ("10.0.0.1", None, "127.0.0.1", 5432, False),
        ("db1", "127.0.0.1", "localhost", 5432, True),
        ("db1", None, "", 5432, False),
    ],
)
def test_whose_address_it_is(host, address, asked, port, expected):
    assert Node("x", host, 5432, address=address).listens_at(asked, port) is expected


def test_peers_get_the_address_if_there_is_one():
    assert Node("x", "db1", 5432).peer_address == "db1"
    assert Node("x", "db1", 5432, address="10.0.0.1").peer_address == "10.0.0.1"


# -- topology and lag --------------------------------------------------------------------------------------------------


def test_one_primary_is_the_primary_and_two_are_none():
    one, two, follower = primary("db1"), primary("db2"), standby("db3")
    assert Cluster([follower, one]).primary is one
    assert Cluster([one, two, follower]).primary is None
    assert Cluster([one, two, follower]).primaries == [one, two]
    assert Cluster([follower]).primary is None
    assert Cluster([one, follower]).standbys == [follower]
    assert (Cluster([one]).node("db1"), Cluster([one]).node("db9")) == (one, None)


def test_the_upstream_is_the_member_at_that_address():
    first, second = primary(), standby("db2")
    cascaded, foreign = standby("db3", upstream="db2.example"), standby("db4", upstream="db9.example")
    cluster = Cluster([first, second, cascaded, foreign])
    assert [cluster.upstream(node) for node in cluster.nodes] == [None, first, second, None]


def test_on_one_machine_the_port_tells_members_apart_and_none_follows_itself():
    nodes = [dataclasses.replace(node, host="127.0.0.1", port=port) for node, port in ((primary(), 5001), (standby("db2"), 5002), (standby("db3"), 5003))]
    receivers = [None, {"status": "streaming", "host": "localhost", "port": 5001}, {"status": "streaming", "host": "localhost", "port": 5003}]
    nodes = [dataclasses.replace(node, state={**node.state, "receiver": receiver}) for node, receiver in zip(nodes, receivers)]
    cluster = Cluster(nodes)
    assert [cluster.upstream(node) for node in nodes] == [None, nodes[0], None]


def test_the_sender_is_found_by_name_cluster_name_or_application_name():
    senders = [{"application_name": name, "sync_state": "async"} for name in ("db2", "three", "four")]
    first = primary(senders=senders)
    nodes = [standby("db2"), standby("db3", cluster_name="three"), standby("db4", primary_conninfo="application_name=four"), standby("db5")]
    assert [Cluster([first, *nodes]).sender_of(node) for node in nodes] == [*senders, None]
    assert Cluster(nodes).sender_of(nodes[0]) is None


@pytest.mark.parametrize(("behind", "lag"), [(0, 0), (5, 5), (-7, 0)])
def test_lag_is_what_is_not_replayed_and_never_below_zero(behind, lag):
    node = standby("db2", behind)
    assert Cluster([primary(), node]).lag_bytes(node) == lag


def test_lag_is_unknown_without_one_primary_or_without_an_answer():
    node = standby("db2", 5)
    assert Cluster([node]).lag_bytes(node) is None
    assert Cluster([primary("a"), primary("b"), node]).lag_bytes(node) is None
    assert Cluster([primary(), dead("db3")]).lag_bytes(dead("db3")) is None
    first = primary()
    assert Cluster([first, node]).lag_bytes(first) is None


# -- status ------------------------------------------------------------------------------------------------------------


def test_numbers_are_handyreps():
    assert STATUS_NUMBERS == {"unknown": 0, "healthy": 1, "lagged": 2, "warning": 3, "unavailable": 4, "down": 5}
    assert [Verdict(label).number for label in STATUS_NUMBERS] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("node", "label", "reason"),
    [
        (standby("db2"), "healthy", None),
        (standby("db2", LIMIT), "healthy", None),
        (standby("db2", LIMIT + 1), "lagged", "1001 bytes behind, the limit is 1000"),
        (standby("db2", receiver=None), "warning", "does not stream"),
        (standby("db2", receiver={"status": "waiting", "host": "db1.example", "port": 5432}), "warning", "does not stream"),
        (standby("db2", replay_paused=True), "warning", "replay is paused"),
        (standby("db2", archiver={"failing": True, "last_failed_wal": "0001"}), "warning", "archiving fails at 0001"),
        (standby("db2", slots=[slot("a"), slot("b", "lost"), slot("c", "lost")]), "warning", "slots lost their WAL: b, c"),
        (standby("db2", slots=[slot("a", "unreserved")]), "warning", "slots are about to lose their WAL: a"),
        (standby("db2", slots=[{**slot("a"), "active": False, "retained_bytes": 1074 << 20}]), "warning", "slot a is not in use and holds 1074 MB of WAL"),
        (standby("db2", slots=[{**slot("a"), "active": True, "retained_bytes": 1074 << 20}]), "healthy", None),
        (standby("db2", slots=[{**slot("a"), "active": False, "retained_bytes": 1 << 30}]), "healthy", None),
        (standby("db2", read_only_default=True), "healthy", None),
        (standby("db2", synchronous_standby_names="db9"), "healthy", None),
        (standby("db2", system_identifier="7002"), "warning", "system identifier 7002 is not the primary's"),
        (dead("db2"), "down", "connection refused"),
        (dead("db2", "NotReachable", "timeout expired", refused=False), "unavailable", "timeout expired"),
        (dead("db2", "WaitTimeout", None), "unavailable", "did not answer"),
        (dead("db2", "AuthenticationFailed"), "unavailable", "connection refused"),
        (dead("db2", "Rejecting"), "unavailable", "connection refused"),
        (dead("db2", "DatabaseMissing"), "unavailable", "connection refused"),
        (dead("db2", "QueryFailed"), "unavailable", "connection refused"),
    ],
)
def test_the_verdict_on_one_node(node, label, reason):
    verdict = Cluster([primary(), node]).verdict(node, LIMIT)
    assert verdict.label == label
    assert verdict.reasons == () if reason is None else reason in verdict.reasons[0]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", None),
        ("  ", None),
        ("db2", ("first", 1, ("db2",))),
        ("db2, db3", ("first", 1, ("db2", "db3"))),
        ("*", ("first", 1, ("*",))),
        ("2 (db2, db3 ,db4)", ("first", 2, ("db2", "db3", "db4"))),
        ("FIRST 2(db2,db3)", ("first", 2, ("db2", "db3"))),
        ("any 1 (db2, db3)", ("any", 1, ("db2", "db3"))),
        (' ANY 1 ("node, ""two""", db3)', ("any", 1, ('node, "two"', "db3"))),
        ("first, any", ("first", 1, ("first", "any"))),
    ],
)
def test_what_a_setting_of_synchronous_standbys_means(setting, expected):
    assert parse_synchronous(setting) == expected


def senders(**states):
    return [{"application_name": name, "sync_state": state} for name, state in states.items()]


@pytest.mark.parametrize(
    ("setting", "states", "commit", "reason"),
    [
        ("db2", {"db2": "sync"}, "on", None),
        ("db2", {"db2": "async"}, "on", "wants 1 of db2, and none of them streams"),
        ("FIRST 2 (db2, db3)", {"db2": "sync", "db3": "potential"}, "on", "wants 2 of db2, db3, and only db2 streams"),
        ("FIRST 2 (db2, db3)", {"db2": "sync", "db3": "sync", "db4": "potential"}, "remote_apply", None),
        ("ANY 1 (db2, db3)", {"db2": "quorum", "db3": "quorum"}, "on", None),
        ("db2", {}, "local", None),
        ("db2", {}, "off", None),
        ("db2", {}, "remote_write", "none of them streams"),
    ],
)
def test_a_primary_whose_commits_wait_is_a_warning(setting, states, commit, reason):
    node = primary(synchronous_standby_names=setting, synchronous_commit=commit, senders=senders(**states))
    verdict = Cluster([node]).verdict(node, LIMIT)
    assert verdict.label == ("warning" if reason else "healthy")
    assert not reason or reason in verdict.reasons[0]
    assert Cluster.synchronous(node).satisfied is (len([s for s in states.values() if s in ("sync", "quorum")]) >= Cluster.synchronous(node).required)
    assert Cluster.synchronous(standby("db2", synchronous_standby_names=setting)) is None and Cluster.synchronous(dead("db2")) is None


def test_a_primary_that_takes_no_writes_is_a_warning():
    node = primary(read_only_default=True)
    assert Cluster([node]).verdict(node, LIMIT) == Verdict("warning", ("default_transaction_read_only is on",))


def test_the_limit_of_slots_is_the_callers():
    node = primary(slots=[{**slot("a"), "active": False, "retained_bytes": 3 << 20}])
    assert Cluster([node]).verdict(node, LIMIT, 2 << 20).label == Cluster([node]).status(LIMIT, 2 << 20).label == "warning"
    assert Cluster([node]).verdict(node, LIMIT, 3 << 20).label == "healthy"


def tree(entries):
    return [(one["name"], tree(one["standbys"])) for one in entries]


def test_the_topology_is_a_tree():
    first, second = primary(), standby("db2")
    cascaded, foreign = standby("db3", upstream="db2.example"), standby("db4", upstream="db9.example")
    cluster = Cluster([dead("db5"), cascaded, foreign, second, first])
    assert tree(cluster.topology()) == [("db1", [("db2", [("db3", [])])]), ("db4", []), ("db5", [])]
    assert cluster.topology()[0]["standbys"][0] == {
        "name": "db2", "role": "standby", "streaming": True, "standbys": [{"name": "db3", "role": "standby", "streaming": True, "standbys": []}],
    }  # fmt: skip


def test_nodes_that_follow_in_a_circle_are_all_shown_once():
    cluster = Cluster([standby("a", upstream="b.example"), standby("b", upstream="c.example"), standby("c", upstream="a.example"), primary("p")])
    assert tree(cluster.topology()) == [("p", []), ("a", [("c", [("b", [])])])]
    assert cluster.lag_seconds(cluster.node("a")) is None


def test_a_standby_is_as_old_as_what_it_gets():
    def aged(name, seconds, upstream):
        return standby(name, upstream=upstream, seconds_since_replay=seconds)

    first = primary(seconds_since_replay=None)
    second, third, fourth = aged("db2", 100, "db1.example"), aged("db3", 0, "db2.example"), aged("db4", None, "db2.example")
    cluster = Cluster([first, second, third, fourth])
    assert [cluster.lag_seconds(node) for node in cluster.nodes] == [None, 100, 100, None]


def test_all_that_is_wrong_with_a_node_is_told():
    node = standby("db2", 5000, receiver=None, replay_paused=True, slots=[slot("a", "lost")])
    verdict = Cluster([primary(), node]).verdict(node, LIMIT)
    assert (verdict.label, len(verdict.reasons)) == ("warning", 3)


@pytest.mark.parametrize(
    ("nodes", "label", "reason"),
    [
        ([primary(), standby("db2")], "healthy", None),
        ([primary()], "healthy", None),
        ([primary(), standby("db2"), standby("db3", LIMIT + 1)], "healthy", "db3: it is 1001 bytes behind"),
        ([primary(), standby("db2", replay_paused=True)], "warning", "db2: replay is paused"),
        ([primary(), standby("db2"), dead("db3")], "warning", "db3: connection refused"),
        ([primary(), standby("db2"), dead("db3", "AuthenticationFailed")], "warning", "db3: connection refused"),
        ([primary(), dead("db2")], "warning", "db2: connection refused"),
        ([primary(archiver={"failing": True, "last_failed_wal": "0001"}), standby("db2")], "warning", "db1: archiving fails"),
        ([standby("db2"), standby("db3")], "down", "no node that answers is a primary"),
        ([dead("db1"), standby("db2")], "down", "no node that answers is a primary"),
        ([primary("db1"), primary("db2"), standby("db3")], "down", "more than one primary: db1, db2"),
        ([], "down", "no node that answers is a primary"),
    ],
)
def test_the_status_of_a_cluster(nodes, label, reason):
    verdict = Cluster(nodes).status(LIMIT)
    assert verdict.label == label
    assert verdict.reasons == () if reason is None else reason in verdict.reasons[0]


def test_each_of_two_primaries_says_so():
    nodes = [primary("db1"), primary("db2")]
    assert [Cluster(nodes).verdict(node, LIMIT).reasons for node in nodes] == [("it is one of 2 primaries",)] * 2


# -- candidates --------------------------------------------------------------------------------------------------------

AGAINST = {
    "it does not answer: connection refused": lambda: dead("db2"),
    "it is a primary": lambda: primary("db2"),
    "it belongs to another cluster": lambda: standby("db2", system_identifier="7002"),
    "it is on timeline 1, older than 2": lambda: standby("db2", timeline=1),
    "it does not stream from an upstream": lambda: standby("db2", timeline=2, receiver=None),
    "replay is paused": lambda: standby("db2", timeline=2, replay_paused=True),
    "it replays with a delay of 2.5 s": lambda: standby("db2", timeline=2, apply_delay_seconds=2.5),
    "it is 1001 bytes behind": lambda: standby("db2", LIMIT + 1, timeline=2),
}


@pytest.mark.parametrize("reason", AGAINST)
def test_each_reason_against_a_candidate_alone(reason):
    node = AGAINST[reason]()
    first = primary(timeline=1 if "another cluster" in reason else 2)
    candidate = Cluster([first, node]).judge(node, LIMIT)
    assert not candidate.eligible and len(candidate.refusals) == 1
    assert candidate.refusals[0].startswith(reason)


def test_excluded_is_a_reason_too():
    node = standby("db2")
    assert Cluster([primary(), node]).judge(node, LIMIT, ["db2"]).refusals == ("it is excluded",)
    assert Cluster([primary(), node]).judge(node, LIMIT, ["db3"]).eligible


def test_all_reasons_against_a_candidate_together():
    node = standby("db2", 9999, system_identifier="7002", receiver=None, replay_paused=True, apply_delay_seconds=1)
    found = Cluster([primary(timeline=2), node]).judge(node, LIMIT, ["db2"]).refusals
    starts = [
        "it belongs to another",
        "it is on timeline",
        "it does not stream",
        "replay is paused",
        "it replays with a delay",
        "it is 9999 bytes",
        "it is excluded",
    ]
    assert [text.startswith(start) for text, start in zip(found, starts)] == [True] * 7 and len(found) == 7


def test_what_a_candidate_is_told_to_have():
    node = standby("db2", 5, options={"priority": 3}, received_lsn="0/AB", replayed_lsn="0/A0")
    candidate = Cluster([primary(current_lsn="0/AC", senders=[{"application_name": "db2", "sync_state": "quorum"}]), node]).judge(node, LIMIT)
    assert (candidate.name, candidate.priority, candidate.received_lsn, candidate.lag_bytes, candidate.synchronous) == ("db2", 3, "0/AB", 12, True)


def test_without_a_primary_a_standby_that_no_longer_streams_can_still_be_chosen():
    nodes = [standby("db2", receiver=None), standby("db3", receiver=None, timeline=2)]
    assert [Cluster(nodes).judge(node, LIMIT).eligible for node in nodes] == [False, True]


def test_without_a_primary_who_has_received_less_than_another_is_refused():
    nodes = [dead("db1"), standby("db2", LIMIT + 1, received_lsn=None, options={"priority": 1}), standby("db3"), standby("db4", timeline=0)]
    found = {node.name: Cluster(nodes).judge(node, LIMIT).refusals for node in nodes}
    assert found["db2"] == ("it has received 1001 bytes less than db3, the limit is 1000",) and found["db3"] == ()
    assert found["db4"] == ("it is on timeline 0, older than 1",)
    assert ranked("priority", nodes)[0] == ranked("lsn", nodes)[0] == "db3"


def ranked(strategy, nodes, **options):
    return [candidate.name for candidate in Cluster(nodes).candidates(strategy, LIMIT, **options)]


def some_nodes():
    senders = [{"application_name": name, "sync_state": state} for name, state in (("db2", "async"), ("db3", "async"), ("db4", "sync"), ("db5", "potential"))]
    return [
        primary(senders=senders),
        standby("db2", options={"priority": 1}, received_lsn=int_to_lsn(HEAD - 30), replayed_lsn=int_to_lsn(HEAD - 30)),
        standby("db3", options={"priority": 3}, received_lsn=int_to_lsn(HEAD)),
        standby("db4", options={"priority": 3}, received_lsn=int_to_lsn(HEAD - 20), replayed_lsn=int_to_lsn(HEAD - 20)),
        standby("db5", options={"priority": 2}, received_lsn=int_to_lsn(HEAD - 10), replayed_lsn=int_to_lsn(HEAD - 10)),
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_the_three_strategies_in_whatever_order_nodes_are_listed(order):
    nodes = [some_nodes()[n] for n in order]
    assert ranked("priority", nodes) == ["db2", "db5", "db3", "db4"]
    assert ranked("lsn", nodes) == ["db3", "db5", "db4", "db2"]
    assert ranked("synchronous", nodes) == ["db4", "db3", "db5", "db2"]


@pytest.mark.parametrize("strategy", ["priority", "lsn", "synchronous"])
def test_who_is_not_eligible_comes_last_and_equals_go_by_name(strategy):
    nodes = [primary(), standby("db5"), standby("db4"), dead("db3"), standby("db2", replay_paused=True, options={"priority": 1})]
    assert ranked(strategy, nodes)[:2] == ["db4", "db5"]
    assert ranked(strategy, nodes, exclude=["db4"])[0] == "db5"
    assert sorted(ranked(strategy, nodes)) == ["db2", "db3", "db4", "db5"]


# -- may a switchover begin? -------------------------------------------------------------------------------------------


def why_not(nodes=None, candidate=None, poolers=()):
    nodes = nodes or [primary(), standby("db2"), standby("db3")]
    return refusals(Cluster(nodes), candidate or nodes[1], LIMIT, poolers)


GOOD = PoolerView("p1", affected=["app"])


def test_nothing_speaks_against_it():
    assert why_not(poolers=[GOOD]) == []
    # Its host was lost in a switchover that was rolled back, and it came up with the file that leads to the candidate.
    assert why_not(poolers=[GOOD, PoolerView("p2", ahead=["app"])]) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"nodes": [primary(), standby("db2"), dead("db3")]}, r"node db3 \(db3.example:5432\) does not answer: connection refused"),
        ({"nodes": [primary(), standby("db2"), standby("db3", system_identifier="7002")]}, r"different clusters.*db1: 7001, db2: 7001, db3: 7002"),
        ({"nodes": [primary(), standby("db2"), primary("db3")]}, r"more than one node is a primary: db1, db3"),
        ({"nodes": [standby("db1"), standby("db2")]}, r"no node that answers is a primary.*failover"),
        ({"nodes": [primary(), standby("db2", replay_paused=True)]}, r"the candidate db2 cannot be promoted: replay is paused"),
        ({"nodes": [primary(), standby("db2", upstream="db3.example"), standby("db3")]}, r"does not stream from the primary db1 but from db3$"),
        ({"nodes": [primary(), standby("db2", upstream="db9.example"), standby("db3")]}, r"does not stream from the primary db1 but from db9.example:5432$"),
        ({"nodes": [primary(), standby("db2"), standby("db3", primary_conninfo="postgresql://db1/x")]}, r"the primary_conninfo of node db3 .*URI"),
        (
            {"nodes": [primary(), standby("db2", primary_conninfo="host=db1.example password=hidden")]},
            r"^the primary_conninfo of node db2 holds a password: put it into a passfile",
        ),
        (
            {"nodes": [primary(), standby("db2"), standby("db3", recovery_target_timeline="current")]},
            r"^node db3 could not follow to a new timeline: set its recovery_target_timeline to latest",
        ),
        ({"nodes": [primary(recovery_target_timeline="1"), standby("db2")]}, r"^node db1 could not follow to a new timeline"),
        ({"poolers": [PoolerView("p1", problem="no console")]}, r"pooler p1: no console"),
        ({"poolers": [PoolerView("p1", affected=["app"], stale=["app"])]}, r"pooler p1: the entry app leads elsewhere.*RELOAD"),
        ({"poolers": [PoolerView("p1", affected=["app"], disabled=["app"])]}, r"pooler p1: the entry app is disabled"),
        ({"poolers": [PoolerView("p1", affected=["app"], paused=["app"])]}, r"pooler p1: app is paused already"),
        ({"poolers": [GOOD, PoolerView("p2")]}, r"pooler p2 has no entry that leads to the primary"),
    ],
)
def test_each_reason_against_a_switchover_alone(arguments, expected):
    found = why_not(**arguments)
    assert len(found) == 1
    assert re.search(expected, found[0])


def test_a_passfile_the_latest_timeline_and_the_candidate_s_own_target_are_no_reasons():
    nodes = [
        primary(recovery_target_timeline="latest"),
        standby("db2", primary_conninfo="host=db1.example passfile=/etc/pass", recovery_target_timeline="current"),
        standby("db3", recovery_target_timeline="latest"),
    ]
    assert why_not(nodes) == []


def test_a_reason_never_shows_the_password():
    for conninfo in ("host=db1.example password=hidden", "postgresql://app:hidden@db1.example/x"):
        found = why_not([primary(), standby("db2", primary_conninfo=conninfo)])
        assert len(found) == 1 and "hidden" not in found[0]


def test_all_reasons_are_found_at_once():
    nodes = [
        primary(timeline=2),
        standby("db2", 9999, upstream="db3.example", replay_paused=True, apply_delay_seconds=1),
        standby("db3", timeline=2, primary_conninfo="postgresql://db1"),
        dead("db4"),
    ]
    worst = PoolerView("p1", affected=["app"], stale=["app"], disabled=["app"], paused=["app"])
    found = why_not(nodes, poolers=[worst, PoolerView("p2"), PoolerView("p3", problem="no console")])
    assert len(found) == len(set(found)) == 12
    everything = "\n".join(found)
    for part in (
        "db4",
        "timeline",
        "replay is paused",
        "delay",
        "9999 bytes",
        "but from db3",
        "URI",
        "RELOAD it first",
        "disabled",
        "paused already",
    ):
        assert part in everything
    assert "pooler p2" in everything and "pooler p3: no console" in everything


def test_a_candidate_that_does_not_answer_is_named_once():
    nodes = [primary(), dead("db2")]
    assert len(why_not(nodes)) == 1


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([primary(), standby("db2")], "db1"),
        ([primary(), standby("db2"), standby("db3")], "db3"),
        ([primary(), standby("db2"), standby("db3", receiver=None)], "db1"),
        ([primary(), standby("db2"), standby("db4"), standby("db3")], "db3"),
        ([primary(), standby("db2"), standby("db3"), standby("db4", options={"priority": 1})], "db4"),
        ([standby("db1", receiver=None), standby("db2")], "db1"),
    ],
)
def test_where_read_only_entries_go(nodes, expected):
    target = read_only_target(Cluster(nodes), nodes[1])
    assert (target.name if target else None) == expected


@given(st.text(min_size=1))
def test_a_slot_name_is_always_one_that_postgresql_takes(name):
    assert re.fullmatch(r"[a-z0-9_]{1,63}", slot_name(name), re.ASCII)
    assert slot_name(slot_name(name)) == slot_name(name)


@pytest.mark.parametrize(("name", "expected"), [("db2", "db2"), ("DB-2.example", "db_2_example"), ("a" * 70, "a" * 63), ("é", "_")])
def test_slot_names_that_are_known(name, expected):
    assert slot_name(name) == expected
