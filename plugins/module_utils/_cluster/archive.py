# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Which files of a WAL archive nobody needs any more. Without I/O.

A position in WAL belongs to a segment of the same number on every timeline. Whoever starts at a position needs the segments from there on, of his
timeline and of those that it came from, and none with a smaller number. So numbers are compared and timelines are not, as pg_archivecleanup does.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._sql.values import lsn_to_int

_NAME = re.compile(
    r"(?P<timeline>[0-9A-F]{8})(?P<log>[0-9A-F]{8})(?P<segment>[0-9A-F]{8})"
    r"(?P<kind>\.partial|\.[0-9A-F]{8}\.backup)?(?P<compression>\.(?:gz|zst|lz4|xz|bz2))?\Z"
)
_HISTORY = re.compile(r"(?P<timeline>[0-9A-F]{8})\.history(?P<compression>\.(?:gz|zst|lz4|xz|bz2))?\Z")
_LOCATION = re.compile(r"([0-9A-F]+/[0-9A-F]+)")


@dataclasses.dataclass(frozen=True)
class WalName:
    """The name of a WAL segment (whole or partial) or of a backup's history file. ``number`` is the segment's, the same on every timeline."""

    name: str
    timeline: int
    number: int
    kind: str
    compression: str


def parse_wal_name(name: str, segment_size: int) -> WalName | None:
    """None for a name that is none of these, or of no segment of this size in bytes."""
    found = _NAME.match(name)
    if found is None:
        return None
    in_log = 0x100000000 // segment_size
    log, segment, timeline = int(found["log"], 16), int(found["segment"], 16), int(found["timeline"], 16)
    if segment >= in_log or timeline == 0:
        return None
    kind = "segment" if not found["kind"] else "partial" if found["kind"] == ".partial" else "backup"
    return WalName(name, timeline, log * in_log + segment, kind, (found["compression"] or "")[1:])


def segment_name(timeline: int, number: int, segment_size: int) -> str:
    in_log = 0x100000000 // segment_size
    return "%08X%08X%08X" % (timeline, number // in_log, number % in_log)


def timeline_of_history(name: str) -> int | None:
    """The timeline of a timeline history file, by its name, or None."""
    found = _HISTORY.match(name)
    return int(found["timeline"], 16) if found else None


def compression_of(name: str) -> str:
    """The suffix of a compressed file without its dot, or an empty text."""
    found = _NAME.match(name) or _HISTORY.match(name)
    return (found["compression"] or "")[1:] if found else ""


def parse_history(text: str) -> list[tuple[int, int]]:
    """A timeline history file: each earlier timeline and the position at which it was left. Raises ValueError."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            found.append((int(words[0]), lsn_to_int(words[1])))
    return found


@dataclasses.dataclass(frozen=True)
class Backup:
    """A base backup, as its history file in the archive tells. Positions are in bytes."""

    file: str
    label: str
    timeline: int
    start: int
    stop: int
    stopped_at: str


def parse_backup(file: str, timeline: int, text: str) -> Backup:
    """Raises ValueError for a file that is not one of a finished backup."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    places = []
    for key in ("START WAL LOCATION", "STOP WAL LOCATION"):
        match = _LOCATION.match(fields.get(key, ""))
        if match is None:
            raise ValueError("%s has no %s" % (file, key))
        places.append(lsn_to_int(match[1]))
    return Backup(file, fields.get("LABEL", ""), timeline, places[0], places[1], fields.get("STOP TIME", ""))


@dataclasses.dataclass(frozen=True)
class JudgedBackup:
    """A backup and why it does not count as one that can be restored (None: it counts)."""

    backup: Backup
    problem: str | None


def judge_backups(
    backups: t.Iterable[Backup],
    present: t.Container[tuple[int, int]],
    timeline: int,
    history: t.Sequence[tuple[int, int]],
    segment_size: int,
    is_ignored: t.Callable[[str], bool],
) -> list[JudgedBackup]:
    """The backups, the newest of those that count first. ``present`` has timeline and number of every whole segment in the archive.

    What counts is a backup from which the cluster's own past leads to the present: on its timeline, or on an earlier one before that was left.
    Positions only grow along this way, so the newest is the one that starts last.
    """
    left_at = dict(history)
    found = []
    for backup in backups:
        # The end of a backup may be the very end of a segment.
        numbers = range(backup.start // segment_size, max(backup.stop - 1, backup.start) // segment_size + 1)
        missing = [segment_name(backup.timeline, number, segment_size) for number in numbers if (backup.timeline, number) not in present]
        problem = None
        if is_ignored(backup.label):
            problem = "its label is one of ignore_labels"
        elif backup.timeline != timeline and not history:
            problem = "the archive has no history file of timeline %d, which says what its past is" % timeline
        elif backup.timeline != timeline and backup.stop > left_at.get(backup.timeline, -1):
            problem = "it is not of the past of timeline %d" % timeline
        elif missing:
            problem = "%s, which it needs, is not in the archive" % missing[0]
        found.append(JudgedBackup(backup, problem))
    return sorted(found, key=lambda one: (one.problem is not None, -one.backup.start, one.backup.file))


@dataclasses.dataclass(frozen=True)
class Need:
    """Somebody starts in the segment of this number."""

    number: int
    timeline: int
    what: str


@dataclasses.dataclass(frozen=True)
class ArchivedFile:
    """A segment or a backup's history file in the archive; ``age`` in seconds since it was written, ``bytes`` as it is on disk."""

    wal: WalName
    bytes: int
    age: float


@dataclasses.dataclass(frozen=True)
class Decision:
    """``oldest`` are the needs that reach back farthest; all of them start in the same segment."""

    removable: tuple[ArchivedFile, ...]
    oldest: tuple[Need, ...]
    too_young: int
    unknown_timeline: int


def decide(files: t.Iterable[ArchivedFile], needs: t.Sequence[Need], timeline: int, keep_seconds: float) -> Decision:
    """What can go, oldest first. ``timeline`` is the cluster's: files of a later one belong to a server that nobody asked, and stay.

    Raises ValueError without any need: then nothing is known.
    """
    if not needs:
        raise ValueError("no need is known")
    limit = min(need.number for need in needs)
    before = [file for file in files if file.wal.number < limit]
    known = [file for file in before if file.wal.timeline <= timeline]
    removable = [file for file in known if file.age >= keep_seconds]
    return Decision(
        tuple(sorted(removable, key=lambda file: (file.wal.number, file.wal.timeline, file.wal.name))),
        tuple(need for need in needs if need.number == limit),
        len(known) - len(removable),
        len(before) - len(known),
    )


def first_hole(files: t.Iterable[ArchivedFile], start: int) -> int | None:
    """The first number from ``start`` on that no whole segment has although a later one is there, or None."""
    numbers = {file.wal.number for file in files if file.wal.kind == "segment"}
    last = max(numbers, default=start)
    return next((number for number in range(start, last) if number not in numbers), None)
