# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Whether a repository collects what it should, judged from what was seen. Without I/O."""

from __future__ import annotations

import dataclasses
import typing as t

from .collector import ALIVE, NO_WORKER, RUNNING
from .repository import Registered

OK, WARNING, CRITICAL = LEVELS = ("ok", "warning", "critical")
_ERROR_LENGTH = 300


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why something is not ``ok``: a level and a sentence without a full stop."""

    level: str
    text: str


def worst(reasons: t.Iterable[Reason]) -> str:
    """The level of the worst reason, ``ok`` without any."""
    return max((reason.level for reason in reasons), key=LEVELS.index, default=OK)


def texts(reasons: t.Iterable[Reason]) -> list[str]:
    """The sentences, the worst first."""
    return [reason.text for reason in sorted(reasons, key=lambda reason: -LEVELS.index(reason.level))]


@dataclasses.dataclass(frozen=True)
class AgeLimit:
    """How old a snapshot may be: ``seconds``, else ``factor`` x the server's frequency."""

    factor: float
    seconds: float | None = None

    def of(self, server: Registered) -> float:
        return self.seconds if self.seconds is not None else self.factor * server.frequency


def join_errors(errors: t.Iterable[str]) -> str:
    """What PoWA noted, as one line of bounded length."""
    text = " / ".join(" ".join(error.split()) for error in errors)
    return text if len(text) <= _ERROR_LENGTH else text[:_ERROR_LENGTH] + " ..."


def judge_server(server: Registered, snapshot: t.Mapping[str, t.Any], worker: str | None, limit: float) -> list[Reason]:
    """Reasons about one server. ``worker`` is None where the collector was not asked or did not answer."""
    if not server.active:
        return []
    reasons = []
    age = snapshot.get("snapshot_age_seconds")
    if worker is not None and worker not in ALIVE:
        state = "no worker collects from it" if worker == NO_WORKER else "its worker has ended (%s)" % worker
        reasons.append(Reason(CRITICAL, "%s: look into the collector's log and reload the collector" % state))
    elif worker is not None and worker != RUNNING:
        reasons.append(Reason(CRITICAL, "its worker has %s" % worker if worker.startswith("no ") else "its worker is %s" % worker))
    if age is None:
        reasons.append(Reason(WARNING, "it has no snapshot yet"))
    elif age > limit:
        reasons.append(Reason(CRITICAL, "its last snapshot is %d s old, which is more than %d s" % (age, limit)))
    if snapshot.get("errors"):
        reasons.append(Reason(WARNING, "PoWA noted errors: %s" % join_errors(snapshot["errors"])))
    return reasons


@dataclasses.dataclass(frozen=True)
class CollectorSeen:
    """``versions`` of the connected collectors; ``workers`` by server id, None if nobody asked or answered; ``problem`` says why."""

    versions: t.Sequence[str]
    workers: t.Mapping[int, str] | None = None
    problem: str | None = None

    def worker(self, server: Registered) -> str | None:
        return None if self.workers is None else self.workers.get(server.id, NO_WORKER)

    def strays(self, servers: t.Iterable[Registered]) -> list[int]:
        """Ids that have a live worker and should have none."""
        wanted = {server.id for server in servers if server.active}
        return sorted(srvid for srvid, status in (self.workers or {}).items() if status in ALIVE and srvid not in wanted)


def judge_collector(seen: CollectorSeen, servers: t.Sequence[Registered], mismatch: str | None) -> list[Reason]:
    """Reasons about the collector itself; ``mismatch`` says that its version does not fit the repository's."""
    reasons = []
    if not seen.versions and any(server.active for server in servers):
        reasons.append(Reason(CRITICAL, "no powa-collector is connected to the repository"))
    if len(seen.versions) > 1:
        reasons.append(Reason(WARNING, "%d collectors are connected to the repository, and each takes every snapshot: stop all but one" % len(seen.versions)))
    if mismatch:
        reasons.append(Reason(CRITICAL, mismatch))
    if seen.problem:
        reasons.append(Reason(CRITICAL, seen.problem))
    strays = seen.strays(servers)
    if strays:
        reasons.append(
            Reason(WARNING, "the collector still works on servers that are not active or not registered (id %s): restart it" % ", ".join(map(str, strays)))
        )
    return reasons


@dataclasses.dataclass(frozen=True)
class Node:
    """A server that should be watched. ``host`` may be missing: then only the alias counts."""

    name: str
    host: str | None = None
    port: int = 5432

    def __str__(self) -> str:
        return "%s (%s:%s)" % (self.name, self.host, self.port) if self.host else self.name


@dataclasses.dataclass(frozen=True)
class Coverage:
    """``unwatched`` nodes with the reason, and registered servers that no node expects."""

    unwatched: t.Sequence[tuple[Node, str]]
    unexpected: t.Sequence[Registered]

    @property
    def reasons(self) -> list[Reason]:
        nodes = [Reason(WARNING, "nobody watches %s: %s" % (node, why)) for node, why in self.unwatched]
        servers = [Reason(WARNING, 'the server "%s" (%s:%s) is registered and not expected' % (one.label, *one.endpoint)) for one in self.unexpected]
        return nodes + servers


def cover(nodes: t.Iterable[Node], servers: t.Sequence[Registered]) -> Coverage:
    """Which nodes nobody watches. A node is the server with its host and port, else the one with its name as alias."""
    unwatched, met = [], set()
    for node in nodes:
        found = [one for one in servers if node.host and one.endpoint == (node.host, node.port)] or [one for one in servers if one.alias == node.name]
        met.update(one.id for one in found)
        if not found:
            unwatched.append((node, "it is not registered"))
        elif not found[0].active:
            unwatched.append((node, 'it is registered as "%s", which is inactive' % found[0].label))
    return Coverage(unwatched, [one for one in servers if one.id not in met])
