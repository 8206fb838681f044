# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Whether a standby may be promoted: for every other member a proof that it is, and stays, no primary. Without I/O.

No answer is no proof. What proves it: it answers as a standby and is held; its own host says that no server works there
and whatever starts one starts a standby; or the user vouches that it is fenced.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._sql.values import int_to_lsn
from .model import Node


@dataclasses.dataclass(frozen=True)
class Member:
    """A node with what it says of itself and what its host says of it. Positions are bytes."""

    node: Node
    server: t.Optional[t.Mapping[str, t.Any]] = None
    """postmaster_pid, standby_signal, being_promoted, ends_recovery (settings); None where the server does not answer."""
    host: t.Optional[t.Mapping[str, t.Any]] = None
    """What the guardian's look_for_proof says; None where the host cannot be asked."""
    host_problem: str = ""
    vouched: bool = False
    """The user says that it is fenced."""

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def timeline(self) -> int:
        return self.node.timeline or (self.host or {}).get("timeline") or 0

    @property
    def position(self) -> int | None:
        """The last position that it is known to have WAL of."""
        if self.node.reachable:
            return self.node.received
        return self.host["position"] if self.host else None


@dataclasses.dataclass(frozen=True)
class Proof:
    """Why a member is no primary. ``kind`` is standby, running (and to be stopped), down (and not fenced yet), fenced_down or vouched."""

    kind: str
    text: str


@dataclasses.dataclass
class Judgement:
    """``reasons`` against the promotion and what is missing for want of a proof (``unproven``, by node), a sentence each."""

    proof: dict[str, Proof] = dataclasses.field(default_factory=dict)
    reasons: list[str] = dataclasses.field(default_factory=list)
    unproven: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    missing_bytes: int = 0
    """What the candidate lacks of the WAL that other members are known to have."""

    @property
    def refusals(self) -> list[str]:
        return [*self.reasons, *self.unproven.values()]

    @property
    def to_fence(self) -> list[str]:
        return [name for name, proof in self.proof.items() if proof.kind == "down"]

    @property
    def to_stop(self) -> list[str]:
        return [name for name, proof in self.proof.items() if proof.kind == "running"]


def judge(members: t.Sequence[Member], candidate: Member, max_data_loss_bytes: int, may_stop: bool = False) -> Judgement:
    """None of the members answers as a primary; that is another matter than missing proof.

    ``may_stop``: a server that answers nobody and runs on a host that can be asked is stopped before the promotion.
    """
    found = Judgement()
    refuse = found.reasons.append
    _judge_candidate(candidate, refuse)
    places: dict[str, str] = {}
    for member in members:
        place = (member.host or {}).get("place")
        if place and places.setdefault(place, member.name) != member.name:
            refuse("the hosts of %s and %s are one and the same, with one data directory: correct data_directory or shell" % (places[place], member.name))
        identifier = member.node.system_identifier or (member.host or {}).get("system_identifier")
        if identifier and candidate.node.system_identifier and identifier != candidate.node.system_identifier:
            refuse("%s belongs to another cluster: its system identifier is %s, that of %s is %s" % (
                member.name, identifier, candidate.name, candidate.node.system_identifier))  # fmt: skip
        if member.name == candidate.name:
            continue
        if member.node.reachable:
            _judge_standby(member, found)
        else:
            _judge_silent(member, found, may_stop)
        if candidate.node.reachable:
            _compare(member, candidate, max_data_loss_bytes, found)
    return found


def _judge_candidate(candidate: Member, refuse: t.Callable[[str], None]) -> None:
    node, name = candidate.node, candidate.name
    if not node.reachable:
        refuse("the candidate %s does not answer: %s" % (name, node.problem))
        return
    if (node.state or {})["replay_paused"]:
        refuse("replay is paused on the candidate %s: SELECT pg_wal_replay_resume() there" % name)
    _judge_held(candidate, refuse)


def _judge_held(member: Member, refuse: t.Callable[[str], None]) -> None:
    """A server that answers must be the one in the directory that is held."""
    if member.host is None:
        refuse("%s cannot be held, so that it could be promoted in the same moment by somebody else: %s" % (member.name, member.host_problem))
    elif member.server and member.host["pid"] != member.server["postmaster_pid"]:
        refuse(
            "the server that answers for %s has process id %s, the one in its data directory %s: data_directory or shell is of another node"
            % (member.name, member.server["postmaster_pid"], member.host["pid"])
        )


def _judge_standby(member: Member, found: Judgement) -> None:
    """A member that answers, in recovery."""
    name, server, refuse = member.name, member.server or {}, found.reasons.append
    if server.get("being_promoted"):
        refuse("%s is being promoted (%s): wait until it is the primary, or prove that it is not promoted, before anything else is" % (
            name, server["being_promoted"]))  # fmt: skip
    if not server.get("standby_signal"):
        refuse("%s is in recovery without standby.signal: it becomes a primary where its recovery ends" % name)
    if server.get("ends_recovery"):
        refuse("%s has settings of a point-in-time recovery, with which it can promote itself: reset %s" % (name, ", ".join(server["ends_recovery"])))
    _judge_held(member, refuse)
    if member.vouched:
        found.warnings.append("the option fenced names %s, which answers" % name)
    found.proof[name] = Proof("standby", "it answers as a standby, on timeline %d, and is held" % member.timeline)


def _judge_silent(member: Member, found: Judgement, may_stop: bool) -> None:
    """A member that does not answer."""
    name, node, host, refuse = member.name, member.node, member.host, found.reasons.append
    silence = "%s (%s:%d) does not answer (%s)" % (name, node.host, node.port, node.problem)
    proofs = (
        "Proof would be that its host says that no server works there (options data_directory and shell),"
        " or that you have fenced it for good (powered off, or cut off from all clients) and name it in the option fenced"
    )
    if host is not None and may_stop and (host["pid"] is not None or host["orphans"]):
        working = sorted({host["pid"], *host["orphans"]} - {None})
        found.proof[name] = Proof("running", "its server runs (process %s) and is stopped and fenced before the promotion" % ", ".join(map(str, working)))
    elif host is not None and host["pid"] is not None:
        refuse("%s, and on its host the server runs (process %d): stop it with pgfleet.ops.pg_instance" % (silence, host["pid"]))
    elif host is not None and host["orphans"]:
        refuse("%s, and on its host server processes go on without their postmaster (%s): end them" % (silence, ", ".join(map(str, host["orphans"]))))
    elif host is not None:
        kind = "fenced_down" if host["standby_signal"] else "down"
        text = "no server works in its data directory, and %s" % (
            "standby.signal is there" if host["standby_signal"] else "standby.signal is put there before the promotion"
        )
        found.proof[name] = Proof(kind, text)
        if host["crashed"]:
            found.warnings.append("%s was not shut down: it may hold commits that no other member has, beyond %s" % (name, int_to_lsn(host["position"])))
    elif member.vouched:
        found.proof[name] = Proof("vouched", "the option fenced names it; nothing else is known of it")
        found.warnings.append("%s does not answer and counts as fenced because the option fenced names it: if it comes back as a primary, there are two" % name)
    else:
        problem = member.host_problem.rstrip(".")
        found.unproven[name] = "%s, which is no proof that it is down, and its host cannot be asked: %s. %s" % (silence, problem, proofs)


def _compare(member: Member, candidate: Member, max_data_loss_bytes: int, found: Judgement) -> None:
    """Nobody may have a newer timeline, or more WAL of the same one."""
    if member.timeline > candidate.timeline:
        found.reasons.append("the candidate %s is on timeline %d, older than timeline %d of %s" % (
            candidate.name, candidate.timeline, member.timeline, member.name))  # fmt: skip
    elif member.timeline == candidate.timeline and member.position is not None:
        missing = max(0, member.position - (candidate.position or 0))
        found.missing_bytes = max(found.missing_bytes, missing)
        if missing > max_data_loss_bytes:
            found.reasons.append(
                "%s has WAL up to %s, the candidate %s only up to %s: %d bytes would be lost, max_data_loss_bytes is %d"
                % (member.name, int_to_lsn(member.position), candidate.name, int_to_lsn(candidate.position or 0), missing, max_data_loss_bytes)
            )
