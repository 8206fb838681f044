# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Whether a primary is lost, who takes its place, and what that may cost. Without I/O.

One opinion is never enough: whoever can be asked says whether it reaches the node. That nobody does is no proof that the node is down, and
promotion.py asks for that proof; that somebody does is a reason to leave it alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from .._sql.values import int_to_lsn, parse_conninfo
from .model import Cluster, Node, parse_synchronous
from .promotion import Member

# Without a synchronous standby some loss has been accepted beforehand.
ASYNCHRONOUS_LOSS_BYTES = 1048576

_ANSWERS = {
    "answers": "it answers there",
    "refused": "its host says that nothing listens there",
    "silent": "nothing answers",
    "active": "data still comes from it",
}


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What one observer (controller, a node, a pooler) says about one node. ``answer`` is answers, active, refused, silent or unknown."""

    observer: str
    about: str
    answer: str
    text: str = ""

    @property
    def reaches(self) -> bool:
        return self.answer in ("answers", "active")

    def __str__(self) -> str:
        return "%s: %s" % (self.observer, self.text or _ANSWERS.get(self.answer, self.answer))


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the promotion of a candidate may lose: ``bytes`` of WAL that somebody is known to have and the candidate has not.

    ``known`` is whether there can be no more than that.
    """

    bytes: int
    known: bool
    text: str


def lost_node(cluster: Cluster, members: t.Sequence[Member]) -> Node | None:
    """Which of the nodes that do not answer as a standby was the primary; None where nothing tells.

    The standbys know whom they follow; a host knows whether its server was one.
    """
    silent = [node for node in cluster.nodes if not node.reachable]
    followed = [cluster.upstream(node) for node in cluster.standbys]
    for node in silent:
        if node in followed:
            return node
    was_primary = [member.node.name for member in members if not member.node.reachable and member.host and not member.host["standby_signal"]]
    return next((node for node in silent if node.name in was_primary), silent[0] if len(silent) == 1 else None)


def choose(cluster: Cluster, exclude: t.Collection[str]) -> tuple[Node | None, list[str]]:
    """The standby that has received most, by priority where several have the same; and why the others are none."""
    judged = cluster.candidates("lsn", 2**63, exclude)
    eligible = [candidate for candidate in judged if candidate.eligible]
    refusals = ["%s (%s)" % (candidate.name, ", ".join(candidate.refusals)) for candidate in judged if not candidate.eligible]
    return (cluster.node(eligible[0].name) if eligible else None), refusals


def furthest(cluster: Cluster, candidate: Node) -> Node:
    """The standby on the candidate's timeline that has received most; the candidate itself if nobody has more."""
    others = [node for node in cluster.standbys if node.timeline == candidate.timeline and node.received is not None]
    return max([candidate, *(node for node in others if node is not candidate)], key=lambda node: node.received or 0)


def standby_names(node: Node) -> set[str]:
    """What a standby may be called in synchronous_standby_names."""
    state = node.state or {}
    names = {node.name, state.get("cluster_name") or node.name}
    with contextlib.suppress(ValueError):
        name = parse_conninfo(state.get("primary_conninfo") or "").get("application_name")
        if name:
            names = {name}
    return names


def confirmed_by_a_standby(cluster: Cluster, candidate: Node, lost: Node | None) -> bool:
    """Whether every commit that waited for its synchronous standbys is on a node that answers.

    It is where fewer of the standbys that count are silent than a commit waits for. The lost primary's own setting cannot be asked: that of the
    candidate has to be the same.
    """
    wanted = parse_synchronous((candidate.state or {}).get("synchronous_standby_names") or "")
    if wanted is None:
        return False
    _method, required, names = wanted
    everyone = "*" in names
    answering = [node for node in cluster.standbys if everyone or standby_names(node) & set(names)]
    if everyone:
        # The lost primary is one of those that are silent, and no standby.
        silent = len([node for node in cluster.nodes if not node.reachable]) - 1
    else:
        # A list that is the same on all nodes names the primary, too.
        silent = len(set(names) - ({lost.name} if lost else set())) - len(answering)
    return bool(answering) and silent < required


def judge_loss(cluster: Cluster, candidate: Node, members: t.Sequence[Member], lost: Node | None, beyond: int | None) -> Loss:
    """``beyond``: bytes of valid WAL in the lost primary's own files that no standby has, None where they cannot be read.

    A server that still runs may write more until it is ended.
    """
    # What another standby has the candidate gets.
    ahead = furthest(cluster, candidate)
    held = ahead.received or 0
    found = next((member for member in members if lost and member.name == lost.name), None)
    running = found is not None and found.host is not None and (found.host["pid"] is not None or bool(found.host["orphans"]))
    if beyond is not None and lost is not None and not running:
        text = "%s has %d bytes of WAL in its directory that %s has not received" % (lost.name, beyond, ahead.name)
        return Loss(beyond, True, text)
    if found is not None and found.host is not None and not found.host["crashed"] and not running:
        return Loss(max(0, (found.position or 0) - held), True, "%s was shut down at %s" % (found.name, int_to_lsn(found.position or 0)))
    if confirmed_by_a_standby(cluster, candidate, lost):
        return Loss(0, True, "every commit has waited for a standby that answers")
    if beyond is not None and lost is not None:
        return Loss(
            beyond, False, "%s has %d bytes of WAL in its directory that %s has not received, and is still to be ended" % (lost.name, beyond, ahead.name)
        )
    known = max(0, (found.position or 0) - held) if found is not None and found.host is not None else 0
    return Loss(
        known,
        False,
        "what %s has written and sent to nobody is not known: its WAL cannot be read, and no synchronous standby has confirmed it"
        % (lost.name if lost else "the primary"),
    )


def still_reached(opinions: t.Sequence[Opinion], may_fence: t.Collection[str], if_reached: str) -> dict[str, str]:
    """Nodes that somebody reaches, by name, with the reason against the failover. ``may_fence``: nodes that can be stopped from here."""
    found = {}
    for about in dict.fromkeys(opinion.about for opinion in opinions):
        reached = [opinion for opinion in opinions if opinion.about == about and opinion.reaches]
        if reached and not (if_reached == "fence" and about in may_fence):
            found[about] = "%s is reached still (%s), so it is not lost: mend the way to it, or move it with pgfleet.ops.pg_switchover%s" % (
                about,
                "; ".join(map(str, reached)),
                ", or set if_reached to fence, which stops it first" if about in may_fence else "",
            )
    return found


def too_much_lost(loss: Loss, max_data_loss_bytes: int, candidate: Node) -> list[str]:
    """The reason against the failover in what it loses, or none."""
    if loss.bytes > max_data_loss_bytes:
        return ["%d bytes of WAL would be lost with %s, max_data_loss_bytes is %d: %s" % (loss.bytes, candidate.name, max_data_loss_bytes, loss.text)]
    if not loss.known and max_data_loss_bytes == 0:
        return ["max_data_loss_bytes is 0, and %s. Set it to what you are ready to lose" % loss.text]
    return []


Samples = t.Mapping[tuple[str, str, str], tuple[str, str]]
"""By pooler, node and address in PgBouncer's memory: what SHOW SERVERS says of a server connection, its state and the time of its last request."""


def count_answered(before: Samples, after: Samples) -> dict[tuple[str, str], int]:
    """By pooler and node, how many server connections have got an answer between two looks.

    Only one that waits for its next request has: the place of a connection that was given up is soon that of a new one, which tries to log in to a host
    that may be gone.
    """
    found: dict[tuple[str, str], int] = {}
    for key, (state, when) in after.items():
        if key in before and state in ("idle", "used") and before[key][1] != when:
            found[key[:2]] = found.get(key[:2], 0) + 1
    return found
