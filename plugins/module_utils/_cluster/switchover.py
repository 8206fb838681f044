# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Whether a switchover may begin, judged from what was observed. Without I/O: every reason against it is found at once."""

from __future__ import annotations

import dataclasses
import typing as t

from .._sql.values import parse_conninfo
from .model import Cluster, Node, parse_synchronous
from .restart import STANDBY_SETTINGS, too_low


@dataclasses.dataclass(frozen=True)
class PoolerView:
    """What one pooler is seen to do. ``problem`` is set when it could not be asked, then all else is empty."""

    name: str
    problem: str | None = None
    affected: t.Sequence[str] = ()
    """Entries that lead to a node whose role will change."""
    session_pools: t.Sequence[str] = ()
    """Those of them that pool by session: a PAUSE of such a pool waits until its clients leave."""
    stale: t.Sequence[str] = ()
    """Those of them that lead elsewhere at run time than on disk."""
    disabled: t.Sequence[str] = ()
    paused: t.Sequence[str] = ()
    ahead: t.Sequence[str] = ()
    """Read-write entries that lead to the candidate already: a pooler whose host was lost in a switchover comes up so."""


@dataclasses.dataclass(frozen=True)
class Transaction:
    """A transaction that is open on the primary."""

    pid: int
    seconds: float
    application_name: str
    user: str
    started_at: str

    def __str__(self) -> str:
        return "pid %d (user %s, application %s) open since %s, %.1f s" % (
            self.pid,
            self.user,
            self.application_name or "without a name",
            self.started_at,
            self.seconds,
        )


@dataclasses.dataclass(frozen=True)
class Archive:
    """What the primary has still to archive: files of WAL that wait for it, and the one at which it fails, if it does."""

    waiting: int
    failing_at: str | None = None


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What is seen beside the state of the nodes and the poolers."""

    transactions: t.Sequence[Transaction] = ()
    archive: Archive | None = None
    """None where the primary does not archive."""
    followers: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The application_name of each standby that will stream from the candidate, by the name of the node or its own."""
    member_slots: t.Collection[str] = ()
    """Replication slots that belong to members, wherever they are."""
    new_slots: t.Collection[str] = ()
    """Those of them that the candidate has to have for its followers."""


def refusals(
    cluster: Cluster,
    candidate: Node,
    lag_limit_bytes: int,
    poolers: t.Sequence[PoolerView],
) -> list[str]:
    """Why the candidate cannot become the primary now, whatever the options say, a sentence each; empty when it can."""
    found: list[str] = []
    for node in cluster.nodes:
        if not node.reachable:
            # It could be a second primary; no answer is no proof that it is none.
            found.append("node %s (%s:%d) does not answer: %s" % (node.name, node.host, node.port, node.problem))
        try:
            if "password" in parse_conninfo((node.state or {}).get("primary_conninfo") or ""):
                # ALTER SYSTEM would print it to the logs of two servers.
                found.append("the primary_conninfo of node %s holds a password: put it into a passfile and name that instead" % node.name)
        except ValueError as error:
            # Found out later, it would leave a node behind that nobody has led to the new primary.
            found.append("the primary_conninfo of node %s cannot be led to another primary, only its form keyword=value can, no URI: %s" % (node.name, error))
    identifiers = {node.system_identifier for node in cluster.nodes if node.reachable}
    if len(identifiers) > 1:
        found.append(
            "the nodes belong to different clusters, their system identifiers are %s"
            % ", ".join("%s: %s" % (node.name, node.system_identifier) for node in cluster.nodes if node.reachable)
        )
    if len(cluster.primaries) > 1:
        found.append("more than one node is a primary: %s" % ", ".join(node.name for node in cluster.primaries))
    if not cluster.primaries:
        found.append("no node that answers is a primary: a switchover moves a primary that is well, a lost one needs a failover")
    primary = cluster.primary
    for node in cluster.nodes:
        state = node.state or {}
        if node is not candidate and state.get("recovery_target_timeline", "latest") != "latest":
            found.append("node %s could not follow to a new timeline: set its recovery_target_timeline to latest" % node.name)
    if candidate.reachable and len(identifiers) == 1 and candidate.role == "standby":
        judged = cluster.judge(candidate, lag_limit_bytes)
        found.extend("the candidate %s cannot be promoted: %s" % (candidate.name, reason) for reason in judged.refusals)
        upstream = cluster.upstream(candidate)
        if primary and candidate.streaming and upstream is not primary:
            found.append(
                "the candidate %s does not stream from the primary %s but from %s"
                % (candidate.name, primary.name, upstream.name if upstream else "%s:%d" % (candidate.upstream_address or ("?", 0)))
            )
    for pooler in poolers:
        if pooler.problem:
            found.append("pooler %s: %s" % (pooler.name, pooler.problem))
        for names, what in ((pooler.stale, "leads elsewhere than its file says (RELOAD it first)"), (pooler.disabled, "is disabled")):
            if names:
                found.append("pooler %s: the entry %s %s" % (pooler.name, ", ".join(names), what))
        if pooler.paused:
            found.append("pooler %s: %s is paused already; RESUME it first if nothing else pauses it" % (pooler.name, ", ".join(pooler.paused)))
        if not (pooler.problem or pooler.affected or pooler.ahead):
            found.append(
                "pooler %s has no entry that leads to the primary: it is listed here by mistake, or its addresses are not those of the nodes" % pooler.name
            )
    return found


def conditions(
    cluster: Cluster, candidate: Node, poolers: t.Sequence[PoolerView], around: Surroundings, transaction_limit: float, archive_lag_limit: int
) -> dict[str, list[str]]:
    """What speaks against a switchover unless an option says otherwise: sentences by the name of that option."""
    return {
        "long_transactions": long_transactions(around.transactions, transaction_limit),
        "session_pools": [
            "pooler %s pools by session for %s: clients keep their connection to the old primary and would get errors"
            % (pooler.name, ", ".join(pooler.session_pools))
            for pooler in poolers
            if pooler.session_pools
        ],
        "synchronous": endless_commits(candidate, list(around.followers.values())),
        "archive_behind": archive_behind(around.archive, archive_lag_limit),
        "foreign_slots": foreign_slots(cluster, candidate, around.member_slots),
    }


def sessions_without_a_name(poolers: t.Sequence[PoolerView]) -> list[str]:
    """Sessions are ended entry by entry, and those of the entry "*" have no entry of their own."""
    return [
        'pooler %s pools by session and serves its databases by the entry "*", whose sessions cannot be ended: give each database an entry of its own'
        % pooler.name
        for pooler in poolers
        if pooler.session_pools and "*" in pooler.affected
    ]


def too_old(transactions: t.Iterable[Transaction], limit: float) -> list[Transaction]:
    return [transaction for transaction in transactions if transaction.seconds > limit]


def long_transactions(transactions: t.Iterable[Transaction], limit: float) -> list[str]:
    """Transactions that every client would wait for: a pause ends when the last transaction has."""
    found = too_old(transactions, limit)
    return ["transactions are open longer than %g s, every client would wait for them: %s" % (limit, "; ".join(map(str, found)))] if found else []


def commits_wait(node: Node) -> bool:
    """Whether commits wait for standbys where the node is the primary."""
    state = node.state or {}
    return bool((state.get("synchronous_standby_names") or "").strip()) and state.get("synchronous_commit") not in ("off", "local")


def endless_commits(candidate: Node, followers: t.Sequence[str]) -> list[str]:
    """A candidate whose commits would wait for standbys that will not be there; ``followers`` are the application names of those that will."""
    if not commits_wait(candidate):
        return []
    _method, required, names = t.cast("tuple[str, int, tuple[str, ...]]", parse_synchronous((candidate.state or {})["synchronous_standby_names"]))
    # PostgreSQL compares them without regard to case; "*" is any name.
    known = {name.lower() for name in names}
    able = [follower for follower in followers if "*" in known or follower.lower() in known]
    if len(able) >= required:
        return []
    return [
        "every commit on %s would wait for ever: its synchronous_standby_names wants %d of %s, and of those that will stream from it (%s) %s"
        % (
            candidate.name,
            required,
            ", ".join(names),
            ", ".join(followers) or "nobody",
            "only %s is among them" % ", ".join(able) if able else "none is among them",
        )
    ]


def archive_behind(archive: Archive | None, limit: int) -> list[str]:
    """What the primary has not archived when it stops is archived by nobody, and its process ends only when the archiver has."""
    if archive is None:
        return []
    if archive.failing_at:
        return ["archiving fails at %s, %d files of WAL wait for it: what is not archived before the primary stops will be missing in the archive" % (
            archive.failing_at, archive.waiting)]  # fmt: skip
    if archive.waiting > limit:
        return ["%d files of WAL wait to be archived, the limit is %d: what is not archived before the primary stops will be missing in the archive" % (
            archive.waiting, limit)]  # fmt: skip
    return []


def foreign_slots(cluster: Cluster, candidate: Node, member_slots: t.Collection[str]) -> list[str]:
    """Slots of the primary that are no member's and that the candidate does not have: whoever uses them loses its place."""
    held = {slot["name"]: slot for slot in (candidate.state or {}).get("slots", ())}
    found = []
    primary = cluster.primary
    for slot in primary.state["slots"] if primary and primary.state else ():
        there = held.get(slot["name"])
        if slot["temporary"] or slot["wal_status"] == "lost" or (slot["type"] == "physical" and slot["name"] in member_slots):
            continue
        # From PostgreSQL 17 on the server itself says whether it keeps a logical slot in step; before, only a tool can have made it.
        told = slot["type"] == "physical" or (candidate.state or {})["version_number"] < 170000
        if there and not there["temporary"] and (told or there["synced"]) and all(there[key] == slot[key] for key in ("type", "plugin", "database")):
            continue
        kind = "physical" if slot["type"] == "physical" else "logical, plugin %s, database %s" % (slot["plugin"], slot["database"])
        use = "in use" if slot["active"] else "not in use"
        found.append("the slot %s (%s, %s, holds %d bytes of WAL) is not on the candidate %s: whoever uses it loses its place" % (
            slot["name"], kind, use, slot["retained_bytes"] or 0, candidate.name))  # fmt: skip
    return found


def follower_problems(cluster: Cluster, candidate: Node, around: Surroundings) -> list[str]:
    """Why not all members could follow the candidate: walsenders, slots, and settings that a standby may not have lower than its primary."""
    state = candidate.state or {}
    settings = state.get("standby_settings") or {}
    found = []
    if settings and len(around.followers) > int(settings["max_wal_senders"]["now"]):
        found.append("%d standbys will stream from the candidate %s, its max_wal_senders is %s" % (
            len(around.followers), candidate.name, settings["max_wal_senders"]["now"]))  # fmt: skip
    slots = {slot["name"] for slot in state.get("slots", ())} | set(around.new_slots)
    if "max_replication_slots" in state and len(slots) > state["max_replication_slots"]:
        found.append("the candidate %s needs %d replication slots, its max_replication_slots is %d" % (
            candidate.name, len(slots), state["max_replication_slots"]))  # fmt: skip
    for node in cluster.nodes:
        if node is not candidate and settings and (node.state or {}).get("standby_settings"):
            # The old primary is started again, the others are not.
            its_time = "then" if node is cluster.primary else "now"
            for name in STANDBY_SETTINGS:
                found += too_low(name, node, its_time, candidate, "now")
    return found


def read_only_target(cluster: Cluster, candidate: Node) -> Node | None:
    """Where read-only entries that led to the candidate go: another standby if there is one, else the old primary."""
    # Without a primary none streams, and each is about to follow the new one.
    others = [node for node in cluster.standbys if node is not candidate and (node.streaming or not cluster.primaries)]
    return min(others, key=lambda node: (node.priority, node.name)) if others else cluster.primary


def slot_name(node_name: str) -> str:
    """A replication slot's name made of a node's: lower case letters, digits and underscores, at most 63."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in node_name.lower())[:63]
