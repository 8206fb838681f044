# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients and observers saw of an operation, and the rules that it must keep. No I/O.

Every rule returns a list of violations in words; an empty one means that it was kept. Times are seconds of one machine's monotonic clock.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

ACKNOWLEDGED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"


@dataclasses.dataclass(frozen=True)
class Commit:
    """One row that a client wrote, or tried to."""

    client: str
    sequence: int
    sent: float
    ended: float
    outcome: str
    """``refused``: the server said no. ``unknown``: it said nothing."""
    node: str = ""
    """Who acknowledged it, in its own words; so are the following."""
    timeline: int = 0
    position: int = 0
    """Of the WAL, in bytes, just before the commit."""
    executed: float = 0.0
    """By the server's clock, just before the commit."""

    @property
    def key(self) -> tuple[str, int]:
        return self.client, self.sequence

    @property
    def not_before(self) -> float:
        """The commit itself came later than this: a server that was frozen may answer long after it was asked."""
        return max(self.sent, self.executed)


@dataclasses.dataclass(frozen=True)
class PauseSample:
    """What one pooler said of its databases; ``paused`` is None where it did not answer."""

    pooler: str
    sent: float
    ended: float
    paused: frozenset[str] | None


@dataclasses.dataclass(frozen=True)
class DataLoss:
    """What a failover is allowed to lose: commits of the lost primary before its end that are at most so many bytes of WAL behind the fork."""

    node: str
    end: float
    fork: int
    max_bytes: int

    def allows(self, commit: Commit) -> bool:
        return commit.node == self.node and commit.not_before <= self.end and commit.position - self.fork <= self.max_bytes


def acknowledged(commits: t.Iterable[Commit]) -> list[Commit]:
    return [commit for commit in commits if commit.outcome == ACKNOWLEDGED]


def lost(commits: t.Sequence[Commit], held: t.AbstractSet[tuple[str, int]], allowed: DataLoss | None = None) -> list[str]:
    """Every acknowledged commit is on the final primary."""
    missing = [commit for commit in acknowledged(commits) if commit.key not in held]
    if allowed is not None:
        missing = [commit for commit in missing if not allowed.allows(commit)]
    if not missing:
        return []
    first = min(missing, key=lambda commit: commit.ended)
    return [
        "%d acknowledged commits are not on the primary; the first is %s %d, acknowledged by %s on timeline %d at %.3f"
        % (len(missing), first.client, first.sequence, first.node, first.timeline, first.ended)
    ]


def phantoms(commits: t.Sequence[Commit], held: t.AbstractSet[tuple[str, int]]) -> list[str]:
    """What a server refused to commit is nowhere."""
    found = [commit for commit in commits if commit.outcome == REFUSED and commit.key in held]
    return ["%d refused commits are on the primary, for example %s %d" % (len(found), found[0].client, found[0].sequence)] if found else []


def two_writers(commits: t.Sequence[Commit]) -> list[str]:
    """No two nodes accept writes at the same moment.

    A primary that was followed by another one has the lower timeline: once the later one has acknowledged a commit, none may begin on the earlier
    one. Two nodes that write on the same timeline are two primaries whatever the time.
    """
    violations = []
    by_timeline: dict[int, list[Commit]] = {}
    for commit in acknowledged(commits):
        by_timeline.setdefault(commit.timeline, []).append(commit)
    for timeline, found in sorted(by_timeline.items()):
        nodes = sorted({commit.node for commit in found})
        if len(nodes) > 1:
            violations.append("%s accepted writes on the same timeline %d" % (" and ".join(nodes), timeline))
    for earlier, later in itertools.combinations(sorted(by_timeline), 2):
        last = max(by_timeline[earlier], key=lambda commit: commit.not_before)
        first = min(by_timeline[later], key=lambda commit: commit.ended)
        if last.not_before > first.ended:
            violations.append(
                "%s accepted a write on timeline %d %.3f s after %s had accepted one on timeline %d"
                % (last.node, earlier, last.not_before - first.ended, first.node, later)
            )
    return violations


def paused_too_long(samples: t.Iterable[PauseSample], limit: float) -> list[str]:
    """No database of a pooler is paused longer than the limit (seconds), and none at the end.

    A sample without an answer neither begins nor ends a pause; a pause lasts at least from the answer to the first question that saw it to the last
    such question.
    """
    violations = []
    by_pooler: dict[str, list[PauseSample]] = {}
    for sample in samples:
        if sample.paused is not None:
            by_pooler.setdefault(sample.pooler, []).append(sample)
    for pooler, found in sorted(by_pooler.items()):
        found.sort(key=lambda sample: sample.sent)
        began: dict[str, float] = {}
        longest: dict[str, float] = {}
        for sample in found:
            for name in list(began):
                if name not in sample.paused:
                    del began[name]
            for name in sample.paused:
                began.setdefault(name, sample.ended)
                longest[name] = max(longest.get(name, 0.0), sample.sent - began[name])
        for name, seconds in sorted(longest.items()):
            if seconds > limit:
                violations.append("%s had %s paused for at least %.1f s, the limit is %.1f s" % (pooler, name, seconds, limit))
        if found[-1].paused:
            violations.append("%s still has %s paused at the end" % (pooler, ", ".join(sorted(found[-1].paused))))
    return violations


def too_little(commits: t.Sequence[Commit], samples: t.Sequence[PauseSample], clients: t.Iterable[str], poolers: t.Iterable[str], fault: float) -> list[str]:
    """The history tells something: every client had commits acknowledged before the fault and after it, every pooler answered then."""
    violations = []
    for client in clients:
        own = [commit for commit in acknowledged(commits) if commit.client == client]
        if not any(commit.ended < fault for commit in own) or not any(commit.sent > fault for commit in own):
            violations.append("client %s had nothing acknowledged before or after the fault" % client)
    for pooler in poolers:
        own = [sample for sample in samples if sample.pooler == pooler and sample.paused is not None]
        if not any(sample.ended < fault for sample in own) or not any(sample.sent > fault for sample in own):
            violations.append("pooler %s was never asked before or after the fault" % pooler)
    return violations


# -- the end -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NodeState:
    name: str
    primary: bool
    timeline: int
    """Of what it writes or receives."""
    upstream: str = ""
    """The node that it streams from; empty where it does not."""
    standby_signal: bool = False
    slots: tuple[tuple[str, bool], ...] = ()
    """Name and whether somebody uses it."""
    settings: tuple[str, ...] = ()
    """Names of what ALTER SYSTEM has set."""
    files: tuple[str, ...] = ()
    """Of the data directory, beyond what is always there."""


@dataclasses.dataclass(frozen=True)
class PoolerState:
    name: str
    file: t.Mapping[str, str]
    """Node by database."""
    running: t.Mapping[str, str]
    paused: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    settings: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of those that operations set for their own time, by SHOW CONFIG."""
    files: tuple[str, ...] = ()


def unsound(
    nodes: t.Sequence[NodeState],
    poolers: t.Sequence[PoolerState],
    primary: str,
    usual_settings: t.AbstractSet[str],
    usual_of_poolers: t.Mapping[str, t.Container[str]],
    outside: t.Collection[str] = (),
    readonly_suffix: str = "_ro",
) -> list[str]:
    """After the run that repairs: one primary, everything behind it, nothing left over.

    ``outside`` are the lost primary of a failover, and who has got from it what nobody else has: they are left for a rejoin, and have to be fenced.
    """
    violations = []
    primaries = [node.name for node in nodes if node.primary]
    if primaries != [primary]:
        return ["the primary is %s, expected %s" % (" and ".join(primaries) or "nobody", primary)]
    (first,) = [node for node in nodes if node.primary]
    for node in nodes:
        if node.primary:
            if node.standby_signal:
                violations.append("%s is the primary and its data directory holds a standby.signal" % node.name)
        else:
            if not node.standby_signal:
                violations.append("%s is no primary and its data directory holds no standby.signal" % node.name)
            if node.name in outside:
                continue
            if node.upstream != primary:
                violations.append("%s streams from %s, expected %s" % (node.name, node.upstream or "nobody", primary))
            if node.timeline != first.timeline:
                violations.append("%s is on timeline %d, its primary on %d" % (node.name, node.timeline, first.timeline))
            if node.slots:
                violations.append("%s is a standby and has slots: %s" % (node.name, ", ".join(name for name, _active in node.slots)))
        idle = [name for name, active in node.slots if not active]
        if idle and node.primary:
            violations.append("slots that nobody uses on %s: %s" % (node.name, ", ".join(idle)))
        strange = sorted(set(node.settings) - usual_settings)
        if strange:
            violations.append("settings left on %s: %s" % (node.name, ", ".join(strange)))
        if node.files:
            violations.append("files left on %s: %s" % (node.name, ", ".join(node.files)))
    for pooler in poolers:
        for where, entries in (("file", pooler.file), ("run time", pooler.running)):
            for name, node in entries.items():
                right = node != primary if name.endswith(readonly_suffix) else node == primary
                if not right:
                    violations.append("%s leads %s to %s by its %s, the primary is %s" % (pooler.name, name, node, where, primary))
        if dict(pooler.file) != dict(pooler.running):
            violations.append("%s: file and run time differ" % pooler.name)
        if pooler.paused:
            violations.append("%s has %s paused" % (pooler.name, ", ".join(pooler.paused)))
        if pooler.disabled:
            violations.append("%s has %s disabled" % (pooler.name, ", ".join(pooler.disabled)))
        for name, value in pooler.settings.items():
            if value not in usual_of_poolers[name]:
                violations.append("%s has %s %s, which is not its own" % (pooler.name, name, value))
        if pooler.files:
            violations.append("files left on %s: %s" % (pooler.name, ", ".join(pooler.files)))
    return violations
