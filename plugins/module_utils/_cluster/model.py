# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A cluster as its nodes describe it, judged without any I/O: roles, topology, lag, status, candidates."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from .._sql.values import int_to_lsn, lsn_to_int, parse_conninfo

# HandyRep's numbers, so that monitoring built on them goes on working.
STATUS_NUMBERS = {"unknown": 0, "healthy": 1, "lagged": 2, "warning": 3, "unavailable": 4, "down": 5}

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclasses.dataclass(frozen=True)
class Node:
    """One PostgreSQL instance. ``state`` is what it answered (see _sql/node_state.py), or None with a ``problem``."""

    name: str
    host: str
    port: int
    priority: int = 100
    address: str | None = None
    """Where other nodes and the poolers reach it, if that is not ``host``."""
    state: t.Optional[t.Mapping[str, t.Any]] = None
    problem: str | None = None
    problem_kind: str | None = None
    """Class of the error: NotReachable, Rejecting, AuthenticationFailed, WaitTimeout, ..."""

    @property
    def reachable(self) -> bool:
        return self.state is not None

    @property
    def role(self) -> str | None:
        """``primary``, ``standby``, or None when it did not answer."""
        if self.state is None:
            return None
        return "standby" if self.state["in_recovery"] else "primary"

    @property
    def timeline(self) -> int | None:
        return self.state["timeline"] if self.state else None

    @property
    def system_identifier(self) -> str | None:
        return self.state["system_identifier"] if self.state else None

    def position(self, key: str) -> int | None:
        """An LSN of the node (``current_lsn``, ``received_lsn``, ``replayed_lsn``) in bytes."""
        value = self.state.get(key) if self.state else None
        return lsn_to_int(value) if value else None

    @property
    def received(self) -> int | None:
        """The last position (bytes) that the standby holds. After a restart nothing counts as received until it streams; then replay counts."""
        positions = [p for p in (self.position("received_lsn"), self.position("replayed_lsn")) if p is not None]
        return max(positions) if positions else None

    @property
    def upstream_address(self) -> t.Optional[tuple[str, int]]:
        """Host and port that the standby receives from, or is told to."""
        if self.role != "standby" or self.state is None:
            return None
        receiver = self.state.get("receiver") or {}
        if receiver.get("host"):
            return receiver["host"], int(receiver["port"])
        try:
            keywords = parse_conninfo(self.state.get("primary_conninfo") or "")
        except ValueError:
            return None
        return (keywords["host"], int(keywords.get("port") or 5432)) if keywords.get("host") else None

    @property
    def streaming(self) -> bool:
        receiver = (self.state or {}).get("receiver") or {}
        return receiver.get("status") == "streaming"

    def listens_at(self, host: str, port: int) -> bool:
        """Whether an address of a connection string is this node's."""
        return port == self.port and any(host == known or {host, known} <= _LOOPBACK for known in (self.host, self.address) if known)

    @property
    def peer_address(self) -> str:
        """The host that standbys and poolers are given to reach this node."""
        return self.address or self.host


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A status with HandyRep's label and why."""

    label: str
    reasons: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        return STATUS_NUMBERS[self.label]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A standby judged as a promotion target; ``refusals`` are the reasons against it, empty when it is eligible."""

    name: str
    refusals: tuple[str, ...]
    synchronous: bool
    priority: int
    received_lsn: str | None
    lag_bytes: int | None

    @property
    def eligible(self) -> bool:
        return not self.refusals


class Cluster:
    """The nodes of one cluster and what follows from their answers."""

    def __init__(self, nodes: t.Sequence[Node]) -> None:
        self.nodes = list(nodes)

    def node(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)

    @property
    def primaries(self) -> list[Node]:
        return [node for node in self.nodes if node.role == "primary"]

    @property
    def primary(self) -> Node | None:
        """The one primary; None when there is none or more than one."""
        return self.primaries[0] if len(self.primaries) == 1 else None

    @property
    def standbys(self) -> list[Node]:
        return [node for node in self.nodes if node.role == "standby"]

    @property
    def system_identifiers(self) -> set[str]:
        return {node.system_identifier for node in self.nodes if node.system_identifier}

    def upstream(self, node: Node) -> Node | None:
        """The member that a standby follows, if it is one of the nodes."""
        address = node.upstream_address
        return next((other for other in self.nodes if address and other is not node and other.listens_at(*address)), None)

    def sender_of(self, standby: Node) -> t.Optional[t.Mapping[str, t.Any]]:
        """The walsender on the primary that serves a standby: by its slot's or its application's name."""
        if self.primary is None or self.primary.state is None:
            return None
        names = {standby.name, (standby.state or {}).get("cluster_name")}
        with contextlib.suppress(ValueError):
            names.add(parse_conninfo((standby.state or {}).get("primary_conninfo") or "").get("application_name"))
        return next((s for s in self.primary.state["senders"] if s["application_name"] in names), None)

    def lag_bytes(self, node: Node) -> int | None:
        """Bytes of WAL between the primary's current position and what the standby has replayed."""
        head = self.primary.position("current_lsn") if self.primary else None
        replayed = node.position("replayed_lsn")
        return max(0, head - replayed) if head is not None and replayed is not None and node.role == "standby" else None

    def verdict(self, node: Node, lag_limit_bytes: int) -> Verdict:
        """The status of one node."""
        if node.state is None:
            kind = node.problem_kind
            label = "unavailable" if kind in ("AuthenticationFailed", "Rejecting", "DatabaseMissing", "QueryFailed") else "down"
            return Verdict(label, (node.problem or "it did not answer",))
        reasons: list[str] = []
        if len(self.system_identifiers) > 1 and self.primary and node.system_identifier != self.primary.system_identifier:
            reasons.append("its system identifier %s is not the primary's" % node.system_identifier)
        if node.role == "primary" and len(self.primaries) > 1:
            reasons.append("it is one of %d primaries" % len(self.primaries))
        if node.role == "standby" and not node.streaming:
            reasons.append("it does not stream from an upstream")
        if node.state["replay_paused"]:
            reasons.append("replay is paused")
        if node.state["archiver"]["failing"]:
            reasons.append("archiving fails at %s" % node.state["archiver"]["last_failed_wal"])
        lost = [slot["name"] for slot in node.state["slots"] if slot["wal_status"] == "lost"]
        if lost:
            reasons.append("slots lost their WAL: %s" % ", ".join(lost))
        if reasons:
            return Verdict("warning", tuple(reasons))
        lag = self.lag_bytes(node)
        if lag is not None and lag > lag_limit_bytes:
            return Verdict("lagged", ("it is %d bytes behind, the limit is %d" % (lag, lag_limit_bytes),))
        return Verdict("healthy")

    def status(self, lag_limit_bytes: int) -> Verdict:
        """The status of the whole cluster, by HandyRep's rules."""
        if not self.primaries:
            return Verdict("down", ("no node that answers is a primary",))
        if len(self.primaries) > 1:
            return Verdict("down", ("more than one primary: %s" % ", ".join(node.name for node in self.primaries),))
        verdicts = {node.name: self.verdict(node, lag_limit_bytes) for node in self.nodes}
        reasons = tuple("%s: %s" % (name, "; ".join(v.reasons)) for name, v in verdicts.items() if v.number >= STATUS_NUMBERS["warning"])
        if reasons:
            return Verdict("warning", reasons)
        if len(self.nodes) > 1 and not self.standbys:
            return Verdict("warning", ("no standby",))
        return Verdict("healthy", tuple("%s: %s" % (name, v.reasons[0]) for name, v in verdicts.items() if v.label == "lagged"))

    def judge(self, node: Node, lag_limit_bytes: int, exclude: t.Collection[str] = ()) -> Candidate:
        """One node as a promotion target."""
        refusals: list[str] = []
        lag = self.lag_bytes(node)
        sender = self.sender_of(node)
        if node.state is None:
            refusals.append("it does not answer: %s" % node.problem)
        elif node.role == "primary":
            refusals.append("it is a primary")
        else:
            reference = self.primary
            if reference and node.system_identifier != reference.system_identifier:
                refusals.append(
                    "it belongs to another cluster: its system identifier is %s, that of %s is %s"
                    % (node.system_identifier, reference.name, reference.system_identifier)
                )
            newest = max(other.timeline or 0 for other in self.nodes)
            if (node.timeline or 0) < newest:
                refusals.append("it is on timeline %s, older than %d" % (node.timeline, newest))
            if reference and not node.streaming:
                refusals.append("it does not stream from an upstream")
            if node.state["replay_paused"]:
                refusals.append("replay is paused")
            if node.state["apply_delay_seconds"]:
                refusals.append("it replays with a delay of %g s (recovery_min_apply_delay)" % node.state["apply_delay_seconds"])
            if lag is not None and lag > lag_limit_bytes:
                refusals.append("it is %d bytes behind, the limit is %d" % (lag, lag_limit_bytes))
        if node.name in exclude:
            refusals.append("it is excluded")
        return Candidate(
            name=node.name,
            refusals=tuple(refusals),
            synchronous=bool(sender and sender["sync_state"] in ("sync", "quorum")),
            priority=node.priority,
            received_lsn=int_to_lsn(node.received) if node.received is not None else None,
            lag_bytes=lag,
        )

    def candidates(self, strategy: str, lag_limit_bytes: int, exclude: t.Collection[str] = ()) -> list[Candidate]:
        """All nodes but the primary, the best first. ``strategy`` is ``priority``, ``lsn`` or ``synchronous``."""
        judged = [self.judge(node, lag_limit_bytes, exclude) for node in self.nodes if node.role != "primary"]

        def rank(candidate: Candidate) -> tuple[t.Any, ...]:
            position = -lsn_to_int(candidate.received_lsn) if candidate.received_lsn else 0
            keys: dict[str, tuple[t.Any, ...]] = {
                "priority": (candidate.priority, position),
                "lsn": (position, candidate.priority),
                "synchronous": (not candidate.synchronous, position, candidate.priority),
            }
            return (not candidate.eligible, *keys[strategy], candidate.name)

        return sorted(judged, key=rank)
