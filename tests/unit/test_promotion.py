# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which proof a promotion asks for, without a server."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.model import Node
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.promotion import Member, judge
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import NotReachable, Refused, SplitBrainRisk
from ansible_collections.pgfleet.ops.plugins.module_utils._host.guardian import GuardianFailed
from ansible_collections.pgfleet.ops.plugins.module_utils._operations import promotion

SERVER = {"postmaster_pid": 1, "standby_signal": True, "being_promoted": None, "ends_recovery": []}
HOST = {
    "pid": 1,
    "orphans": [],
    "system_identifier": "7",
    "crashed": False,
    "standby_signal": True,
    "place": "here",
    "here": True,
    "timeline": 1,
    "position": 100,
}
DOWN = {**HOST, "pid": None}


def member(name, server=None, host=None, vouched=False, **state):
    """One that answers as a standby, by SQL and by its host; {} for what does not answer."""
    server, host = SERVER if server is None else server, HOST if host is None else host
    answer = {"in_recovery": True, "system_identifier": "7", "timeline": 1, "replay_paused": False, "received_lsn": "0/64", "replayed_lsn": "0/64", **state}
    return Member(Node(name, name, 5432, state=answer), server or None, {**host, "place": name} if host else None, "" if host else "no route", vouched)


def silent(name, host=None, vouched=False):
    return Member(Node(name, name, 5432, problem="no answer within 10 s"), None, {**host, "place": name} if host else None, "no route", vouched)


def judged(*others, candidate=None, loss=0):
    candidate = candidate or member("db2")
    return judge([candidate, *others], candidate, loss)


def test_every_kind_of_proof():
    found = judged(member("db3"), silent("db1", DOWN), silent("db4", vouched=True), silent("db5", {**DOWN, "standby_signal": False}))
    assert found.refusals == []
    assert {name: proof.kind for name, proof in found.proof.items()} == {"db3": "standby", "db1": "fenced_down", "db4": "vouched", "db5": "down"}
    assert found.to_fence == ["db5"]
    assert len(found.warnings) == 1 and "db4" in found.warnings[0]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (silent("db1"), "no proof that it is down"),
        (silent("db1", HOST), "on its host the server runs"),
        (silent("db1", HOST, vouched=True), "on its host the server runs"),
        (silent("db1", {**DOWN, "orphans": [9]}), "go on without their postmaster"),
        (silent("db1", {**DOWN, "system_identifier": "8"}), "another cluster"),
        (silent("db1", {**DOWN, "timeline": 2}), "older than timeline 2"),
        (silent("db1", {**DOWN, "position": 101}), "1 bytes would be lost"),
        (member("db3", timeline=2), "older than timeline 2"),
        (member("db3", received_lsn="0/65"), "1 bytes would be lost"),
        (member("db3", replayed_lsn="0/65"), "1 bytes would be lost"),
        (member("db3", system_identifier="8"), "another cluster"),
        (member("db3", host={}), "cannot be held"),
        (member("db3", host={**HOST, "pid": 2}), "is of another node"),
        (member("db3", server={**SERVER, "being_promoted": "x"}), "is being promoted"),
        (member("db3", server={**SERVER, "standby_signal": False}), "without standby.signal"),
        (member("db3", server={**SERVER, "ends_recovery": ["recovery_target"]}), "reset recovery_target"),
    ],
)
def test_what_is_no_proof(other, words):
    assert any(words in text for text in judged(other).refusals), judged(other).refusals


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (member("db2", replay_paused=True), "replay is paused"),
        (member("db2", host={}), "cannot be held"),
        (member("db2", host={**HOST, "pid": 2}), "is of another node"),
        (silent("db2", HOST), "does not answer"),
    ],
)
def test_a_candidate_that_is_none(candidate, words):
    assert any(words in text for text in judged(member("db3"), candidate=candidate).refusals)


def test_one_directory_under_two_names():
    first, second = member("db2"), member("db3")
    second = dataclasses.replace(second, host={**second.host, "place": "db2"})
    assert any("one and the same" in text for text in judge([first, second], first, 0).refusals)


def test_loss_is_counted_on_one_timeline_only():
    found = judged(silent("db1", {**DOWN, "position": 150}), member("db3", received_lsn="0/70"), loss=50)
    assert found.refusals == [] and found.missing_bytes == 50
    # What the old timeline had beyond the fork was given up when it was left.
    newer = member("db2", timeline=2)
    assert judged(silent("db1", {**DOWN, "position": 10**9}), candidate=newer).missing_bytes == 0


def test_no_combination_of_a_silent_member_passes_without_proof():
    """Whatever its host says: the server must be gone, with all its processes, and be fenced or vouched for."""
    for pid, orphans, fenced, vouched, known in itertools.product((None, 1), ([], [9]), (True, False), (True, False), (True, False)):
        host = {**DOWN, "pid": pid, "orphans": orphans, "standby_signal": fenced} if known else None
        found = judged(silent("db1", host, vouched))
        passes = not found.refusals
        assert passes == ((known and pid is None and not orphans) or (not known and vouched))
        if passes and known and not fenced:
            assert found.to_fence == ["db1"]


class FakeRun:
    """A cluster whose members answer as they are told to, and guardians that write down what they are asked."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.asked = []
        self.guardians = {("node", name): FakeGuardian(self, name) for name in ("db1", "db2", "db3")}
        self.warnings = []

    def hold(self, nodes, what):
        self.asked.append(("hold", [node.name for node in nodes]))

    def describe(self, cluster):
        return {}

    def warn(self, text):
        self.warnings.append(text)

    def session(self, node):
        return FakeSession()


class FakeSession:
    def ask_value(self, statement, deadline):
        return "f"


class FakeGuardian:
    def __init__(self, run, name):
        self.run, self.name = run, name
        self.failures = []

    def call(self, request, deadline, **arguments):
        self.run.asked.append((request, self.name))
        for failure in self.failures if request == "promote" else ():
            raise failure


def arranged(monkeypatch, run):
    it = promotion.Promotion(run, "db2")

    def look():
        members = run.looks.pop(0)
        candidate = next(one for one in members if one.name == "db2")
        cluster = promotion.Cluster([one.node for one in members])
        run.asked.append(("look", None))
        return promotion.Looked(cluster, members, judge(members, candidate, 0))

    monkeypatch.setattr(it, "look", look)
    return it


GOOD = [silent("db1", DOWN), member("db2"), member("db3")]


def test_the_last_look_is_behind_the_lock(monkeypatch):
    run = FakeRun(GOOD, GOOD)
    arranged(monkeypatch, run).promote(1)
    assert run.asked == [
        ("look", None), ("hold", ["db1", "db2", "db3"]), ("arm", "db2"), ("look", None), ("promote", "db2"), ("disarm", "db2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("last", "error"),
    [
        ([silent("db1", HOST), *GOOD[1:]], Refused),
        ([silent("db1", {**DOWN, "standby_signal": False}), *GOOD[1:]], Refused),
        ([GOOD[0], GOOD[1], member("db3", in_recovery=False, current_lsn="0/64")], SplitBrainRisk),
        ([GOOD[0], GOOD[1], silent("db3")], Refused),
    ],
)
def test_what_changed_between_the_looks(monkeypatch, last, error):
    run = FakeRun(GOOD, last)
    with pytest.raises(error):
        arranged(monkeypatch, run).promote(1)
    assert ("promote", "db2") not in run.asked


def test_a_member_that_was_not_held(monkeypatch):
    run = FakeRun([silent("db1", vouched=True), *GOOD[1:]], GOOD)
    with pytest.raises(Refused, match="has changed"):
        arranged(monkeypatch, run).promote(1)
    assert ("promote", "db2") not in run.asked


def test_an_answer_that_never_came(monkeypatch):
    """The guardian may have promoted it; only where it says that it did not it is known."""
    run = FakeRun(GOOD, GOOD)
    run.guardians["node", "db2"].failures = [NotReachable("gone")]
    with pytest.raises(promotion.NotConfirmed, match="is not known"):
        arranged(monkeypatch, run).promote(1)
    run = FakeRun(GOOD, GOOD)
    run.guardians["node", "db2"].failures = [GuardianFailed("no server runs")]
    with pytest.raises(GuardianFailed):
        arranged(monkeypatch, run).promote(1)
