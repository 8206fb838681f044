# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A cluster as its nodes describe it, judged without any I/O: roles, topology, lag, status, candidates."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing as t

from .._sql.values import int_to_lsn, lsn_to_int, parse_conninfo

# HandyRep's numbers, so that monitoring built on them goes on working.
STATUS_NUMBERS = {"unknown": 0, "healthy": 1, "lagged": 2, "warning": 3, "unavailable": 4, "down": 5}

# Bytes of WAL that a slot nobody uses may hold before it is worth a warning.
SLOT_LIMIT_BYTES = 1073741824

_SYNCHRONOUS = re.compile(r"\s*(?:(first|any)\s+)?([0-9]+)\s*\((.*)\)\s*", re.I | re.S)
_SYNCHRONOUS_NAME = re.compile(r'"(?:[^"]|"")*"|[^\s,"]+')

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
    refused: bool = False
    """Whether its host answered that nothing listens there."""

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
class Synchronous:
    """What a primary's commits wait for: ``required`` of the ``names``, and who streams as one of them now."""

    method: str
    required: int
    names: tuple[str, ...]
    standbys: tuple[str, ...]

    @property
    def satisfied(self) -> bool:
        return len(self.standbys) >= self.required


def parse_synchronous(setting: str) -> t.Optional[tuple[str, int, tuple[str, ...]]]:
    """Method (``first`` or ``any``), number and names of a setting synchronous_standby_names; None when it is empty."""
    if not setting.strip():
        return None
    found = _SYNCHRONOUS.fullmatch(setting)
    method, number, text = found.groups() if found else (None, "1", setting)
    names = (name[1:-1].replace('""', '"') if name.startswith('"') else name for name in _SYNCHRONOUS_NAME.findall(text))
    return (method or "first").lower(), int(number), tuple(names)


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

    def lag_seconds(self, node: Node) -> float | None:
        """How old the standby's data is. One that has replayed all that its upstream sent is as old as that upstream."""
        chain: list[Node] = []
        while node not in chain:
            chain.append(node)
            node = self.upstream(node) or node
        ages = [one.state["seconds_since_replay"] for one in chain if one.state and one.role == "standby"]
        known = [age for age in ages if age is not None]
        return max(known) if known and ages[0] is not None else None

    def topology(self) -> list[dict[str, t.Any]]:
        """Who follows whom, as a tree: first the primaries, then nodes whose upstream is no member, or is not known."""
        left = sorted(self.nodes, key=lambda node: (node.role != "primary", node.role is None))

        def take(node: Node) -> dict[str, t.Any]:
            left.remove(node)
            followers = [take(other) for other in self.nodes if other in left and self.upstream(other) is node]
            return {"name": node.name, "role": node.role, "streaming": node.streaming if node.role == "standby" else None, "standbys": followers}

        roots = [take(node) for node in list(left) if self.upstream(node) is None]
        # Whoever is left follows in a circle.
        while left:
            roots.append(take(left[0]))
        return roots

    @staticmethod
    def synchronous(node: Node) -> Synchronous | None:
        """What the commits of a primary wait for, None when it is nothing."""
        state = node.state or {}
        wanted = parse_synchronous(state.get("synchronous_standby_names") or "")
        if wanted is None or node.role != "primary":
            return None
        standbys = tuple(sender["application_name"] for sender in state["senders"] if sender["sync_state"] in ("sync", "quorum"))
        return Synchronous(*wanted, standbys)

    def verdict(self, node: Node, lag_limit_bytes: int, slot_limit_bytes: int = SLOT_LIMIT_BYTES) -> Verdict:
        """The status of one node. ``down`` takes the word of its host that nothing listens there; silence is ``unavailable``."""
        if node.state is None:
            return Verdict("down" if node.refused else "unavailable", (node.problem or "it did not answer",))
        reasons: list[str] = []
        if len(self.system_identifiers) > 1 and self.primary and node.system_identifier != self.primary.system_identifier:
            reasons.append("its system identifier %s is not the primary's" % node.system_identifier)
        if node.role == "primary" and len(self.primaries) > 1:
            reasons.append("it is one of %d primaries" % len(self.primaries))
        if node.role == "standby" and not node.streaming:
            reasons.append("it does not stream from an upstream")
        if node.state["replay_paused"]:
            reasons.append("replay is paused")
        if node.role == "primary" and node.state.get("read_only_default"):
            reasons.append("default_transaction_read_only is on")
        wanted = self.synchronous(node)
        if wanted and not wanted.satisfied and node.state.get("synchronous_commit") not in ("off", "local"):
            reasons.append(
                "its commits wait for ever: synchronous_standby_names wants %d of %s, and %s"
                % (wanted.required, ", ".join(wanted.names), "only %s streams" % ", ".join(wanted.standbys) if wanted.standbys else "none of them streams")
            )
        if node.state["archiver"]["failing"]:
            reasons.append("archiving fails at %s" % node.state["archiver"]["last_failed_wal"])
        reasons.extend(_slot_reasons(node.state["slots"], slot_limit_bytes))
        if reasons:
            return Verdict("warning", tuple(reasons))
        lag = self.lag_bytes(node)
        if lag is not None and lag > lag_limit_bytes:
            return Verdict("lagged", ("it is %d bytes behind, the limit is %d" % (lag, lag_limit_bytes),))
        return Verdict("healthy")

    def status(self, lag_limit_bytes: int, slot_limit_bytes: int = SLOT_LIMIT_BYTES) -> Verdict:
        """The status of the whole cluster, by HandyRep's rules."""
        if not self.primaries:
            return Verdict("down", ("no node that answers is a primary",))
        if len(self.primaries) > 1:
            return Verdict("down", ("more than one primary: %s" % ", ".join(node.name for node in self.primaries),))
        verdicts = {node.name: self.verdict(node, lag_limit_bytes, slot_limit_bytes) for node in self.nodes}
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
            if not self.primaries:
                # What no standby has got is lost anyway; what another one has got need not be.
                furthest = max((other for other in self.standbys if (other.timeline or 0) == newest), key=lambda other: other.received or 0, default=node)
                missing = (furthest.received or 0) - (node.received or 0)
                if missing > lag_limit_bytes:
                    refusals.append("it has received %d bytes less than %s, the limit is %d" % (missing, furthest.name, lag_limit_bytes))
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


def _slot_reasons(slots: t.Sequence[t.Mapping[str, t.Any]], limit_bytes: int) -> t.Iterator[str]:
    lost = [slot["name"] for slot in slots if slot["wal_status"] == "lost"]
    if lost:
        yield "slots lost their WAL: %s" % ", ".join(lost)
    losing = [slot["name"] for slot in slots if slot["wal_status"] == "unreserved"]
    if losing:
        yield "slots are about to lose their WAL: %s" % ", ".join(losing)
    for slot in slots:
        if not slot.get("active") and slot["wal_status"] != "lost" and (slot.get("retained_bytes") or 0) > limit_bytes:
            yield "slot %s is not in use and holds %d MB of WAL" % (slot["name"], slot["retained_bytes"] // 1048576)
