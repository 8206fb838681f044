# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A data directory that is down, and the server that it is to follow: is all of its WAL in that server's history, and if not, can it be rewound?

Timelines tell where two servers parted only when both of them began one. So the WAL itself is compared too, at the last record of the directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._cluster.fork import Past, find_fork
from .._cluster.timeline import history_file, parse_history
from .._errors import CommandFailed, OperationError, QueryFailed, Refused
from .._host import datadir
from .._host.controldata import ControlData
from .._host.instance import Instance
from .._host.wal import SEGMENT_HEAD, Record, before_and_at, last_record, record_before, segment_name, segments
from .._sql.connection import Session
from .._sql.values import int_to_lsn, lsn_to_int

WAYS = ("auto", "rewind", "basebackup")

REWIND_FUNCTIONS = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)
"""What pg_rewind calls on the source."""

_PRIMARY_STATES = ("shut down", "shutting down", "in production", "in crash recovery")


@dataclasses.dataclass(frozen=True)
class SourcePast:
    """What the source says of its history. ``position`` is the end (bytes) of its WAL."""

    past: Past
    position: int
    in_recovery: bool
    major_version: int
    control_timeline: int
    """The timeline of its last checkpoint, which lags behind ``past.timeline`` after a promotion."""
    reads_files: bool
    rewindable: bool
    """Whether the login may call what pg_rewind calls."""
    tablespaces: tuple[int, ...] = ()
    segments: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The WAL files that it has, and their sizes in bytes; empty when it does not tell."""


@dataclasses.dataclass(frozen=True)
class Relation:
    """How the WAL of a directory that is down relates to the source's history.

    ``verdict`` is ``within`` (all of it is in the source's history), ``diverged``, ``ahead`` (of a source that has not come so far) or ``unknown``.
    """

    verdict: str
    reason: str = ""
    was_primary: bool = False
    """Whether it would start, or last ran, as a primary."""
    source_goes_on: bool = True
    """Whether the source has been on a timeline that the directory does not know."""
    lost_bytes: int | None = None
    """The WAL that is in the directory only, about."""
    rejoin_problem: str | None = None
    rewind_problem: str | None = None
    crashed: bool = False
    needs_checkpoint: bool = False
    """Whether the source's last checkpoint was before its promotion: pg_rewind before version 16 takes the timeline from there."""
    restore: bool = False
    """Whether WAL that the directory no longer has may come from its restore_command."""


def choose_way(relation: Relation, method: str, reclone: bool, path: str, source: str) -> tuple[str, str | None]:
    """How a directory that is down becomes a standby: ``rejoin``, ``rewind`` or ``basebackup``, and why it is not rewound. Raises Refused."""
    if relation.was_primary and not relation.source_goes_on:
        raise Refused(
            "%s is the data directory of a primary, and the source %s has not been promoted since" % (path, source),
            expected="a source that is the primary, or a standby of it",
            action="Start the server in %s with pgfleet.ops.pg_instance; if its data is to be given up, promote %s first" % (path, source),
        )
    if relation.verdict == "within" and relation.rejoin_problem is None and method != "basebackup":
        return "rejoin", None
    problem = relation.rewind_problem if relation.verdict == "diverged" else relation.rejoin_problem or relation.reason
    if not reclone:
        what = {"within": "a copy of the source replaces it", "diverged": "what only %s has is lost then" % path}.get(
            relation.verdict, "a copy of the source replaces it"
        )
        raise Refused(
            "%s holds a server that is down, and %s" % (path, relation.rejoin_problem or relation.reason or "copy_method is basebackup"),
            action="Set reclone to make it a standby of %s all the same; %s" % (source, what),
            lost_bytes=relation.lost_bytes,
        )
    if method == "basebackup":
        return "basebackup", None
    if relation.verdict == "diverged" and problem is None:
        return "rewind", None
    if method == "rewind":
        raise Refused(
            "%s cannot be rewound to %s: %s" % (path, source, problem), action="Correct that, or set copy_method to auto or basebackup to make a new copy"
        )
    return "basebackup", problem


def no_rewind(kind: str, running: bool) -> str | None:
    """Why there is nothing that could be rewound."""
    if kind not in ("standby", "primary"):
        return "it is no data directory of a server"
    return "a server runs in it; stop it first" if running else None


def ask_past(session: Session, identified: t.Mapping[str, t.Any], history: str, row: t.Mapping[str, t.Any], major_version: int) -> SourcePast:
    """The source's history. ``identified`` is the answer to IDENTIFY_SYSTEM, ``history`` the text of its timeline's history file, ``row`` has what
    the source says by SQL.
    """
    timeline = int(identified["timeline"])
    files = []
    # Not knowing costs a worse message later, no more.
    with contextlib.suppress(QueryFailed):
        files = session.rows("SELECT name, size FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'")
    return SourcePast(
        past=_parse(timeline, history),
        position=lsn_to_int(identified["xlogpos"]),
        in_recovery=row["in_recovery"],
        major_version=major_version,
        control_timeline=row["timeline"],
        reads_files=row["reads_files"],
        rewindable=row["rewindable"],
        tablespaces=tuple(row["tablespaces"]),
        segments={file["name"]: file["size"] for file in files},
    )


def _parse(timeline: int, text: str) -> Past:
    try:
        return Past(timeline, parse_history(text))
    except ValueError as error:
        raise OperationError(str(error)) from error


class Judge:
    """Compares a directory that is down with its source. Reads only."""

    def __init__(self, instance: Instance, session: Session, source: SourcePast, is_standby: bool) -> None:
        self.instance = instance
        self.session = session
        self.source = source
        self.control: ControlData = instance.controldata()
        self.was_primary = not is_standby and self.control.state in _PRIMARY_STATES
        self.crashed = not self.control.shut_down

    def relation(self) -> Relation:
        """Raises OperationError, CommandFailed."""
        source, control = self.source, self.control
        # One that was rewound has such a file too, and its control file says how far its data has come.
        if os.path.exists(self.instance.path("backup_label")) and not lsn_to_int(control.min_recovery_end_lsn):
            return self._unknown("it holds a base backup that was never started (backup_label)")
        own = self._own_past()
        if own is None:
            return self._unknown("the history of its timeline is missing")
        fork = find_fork(own, source.past)
        if fork is None:
            return self._unknown("its timeline %d has nothing in common with the source's timeline %d" % (own.timeline, source.past.timeline))
        found = Relation(
            "within", was_primary=self.was_primary, source_goes_on=not source.in_recovery or fork.other_left, crashed=self.crashed,
            needs_checkpoint=not source.in_recovery and source.control_timeline != source.past.timeline,
        )  # fmt: skip
        if fork.one_left:
            last = self._last_record(own.timeline, own.left_at[max(own.left_at)])
            position = t.cast(int, fork.position)
            end = max(last.end if last else 0, lsn_to_int(control.min_recovery_end_lsn), lsn_to_int(control.checkpoint_lsn), position)
            reason = "it has gone on to timeline %d, which is no part of the history of the source's timeline %d; they parted at %s" % (
                own.timeline,
                source.past.timeline,
                int_to_lsn(position),
            )
            problem = None if fork.other_left else "the source is on the older timeline %d, so that it may be the outdated server" % source.past.timeline
            return self._diverged(found, reason, end - position, problem)
        if fork.position is not None:
            last = self._last_record(fork.timeline, fork.position)
            end = max(last.end if last else 0, self._control_position(fork.position))
            if end > fork.position:
                reason = "its WAL goes to %s on timeline %d, which the source's timeline %d left at %s" % (
                    int_to_lsn(end),
                    fork.timeline,
                    source.past.timeline,
                    int_to_lsn(fork.position),
                )
                return self._diverged(found, reason, end - fork.position, self._only_wal(fork.position))
        # What it holds is at the end of its own WAL, which is not beyond the fork.
        last = self._last_record(own.timeline, lsn_to_int(control.checkpoint_lsn))
        if last and fork.position is None and last.begin >= source.position:
            reason = "its WAL goes to %s on timeline %d, and the source has come to %s only" % (
                int_to_lsn(last.end),
                own.timeline,
                int_to_lsn(source.position),
            )
            return dataclasses.replace(found, verdict="ahead", reason=reason, lost_bytes=last.end - source.position)
        end = last.next if last else max(lsn_to_int(control.checkpoint_lsn), lsn_to_int(control.min_recovery_end_lsn))
        if last and not self._same_wal(own.timeline, last):
            reason = "its WAL before %s on timeline %d is not the source's: both have written on that timeline" % (int_to_lsn(last.end), own.timeline)
            problem = "pg_rewind goes by timelines, which do not show this"
            return dataclasses.replace(found, verdict="diverged", reason=reason, rewind_problem=problem)
        return dataclasses.replace(found, rejoin_problem=self._rejoin_problem(end, own.timeline))

    def _unknown(self, reason: str) -> Relation:
        return Relation("unknown", reason, was_primary=self.was_primary, crashed=self.crashed)

    def _own_past(self) -> Past | None:
        """The directory's timelines, of which the last one may be later than its control file knows."""
        names = segments(self.instance.data_directory)
        timeline = max([self.control.timeline, self.control.min_recovery_end_timeline, *(int(name[:8], 16) for name in names)])
        if timeline == 1:
            return Past(1)
        try:
            with open(self.instance.path("pg_wal", history_file(timeline)), encoding="utf-8", errors="replace") as file:
                return _parse(timeline, file.read())
        except FileNotFoundError:
            return self.source.past.until(timeline)

    def _last_record(self, timeline: int, start: int) -> Record | None:
        return last_record(self.instance.program("pg_waldump"), self.instance.data_directory, timeline, start, self.control.wal_segment_size)

    def _control_position(self, fork: int) -> int:
        """How far the data files have come, as the control file knows it; 0 when not beyond the fork."""
        checkpoint, replayed = lsn_to_int(self.control.checkpoint_lsn), lsn_to_int(self.control.min_recovery_end_lsn)
        # A checkpoint record that begins at the fork is behind it, a replay that ended there is not.
        return max(checkpoint + 1 if checkpoint >= fork else 0, replayed if replayed > fork else 0)

    def _only_wal(self, fork: int) -> str | None:
        """A standby that has received and not replayed what is beyond the fork."""
        if self.control.state == "shut down in recovery" and not self._control_position(fork):
            return "its data files have not passed the fork, only its WAL has, and pg_rewind would leave that"
        return None

    def _setting(self, name: str) -> str:
        try:
            return self.instance.setting(name)
        except CommandFailed as error:
            raise OperationError(
                "the configuration of the server in %s cannot be read: %s" % (self.instance.data_directory, error.message),
                action="Correct it, or set config_file",
            ) from error

    def _same_wal(self, timeline: int, last: Record) -> bool:
        """Whether the source has the same bytes where the directory's last record is. True where that cannot be asked."""
        if not self.source.reads_files:
            return True
        size = self.control.wal_segment_size
        offset, here = before_and_at(self.instance.data_directory, timeline, last.begin, size)
        there = self._read_source(timeline, last.begin, offset, len(here))
        if there:
            return there == here
        # The segment is gone there. The next one begins with the place of the record before, which is what PostgreSQL itself would go by.
        head = self._read_source(timeline, last.next, 0, SEGMENT_HEAD) if last.next > last.begin and last.next % size == 0 else b""
        return not head or record_before(head) == last.begin

    def _read_source(self, timeline: int, position: int, offset: int, length: int) -> bytes:
        """What the source has at an offset of the segment of a position; empty where it has none."""
        # A promotion copies the beginning of its segment to a file of the new timeline.
        for later, _begin, _end in self.source.past.spans():
            if later >= timeline:
                name = segment_name(later, position, self.control.wal_segment_size)
                there = self.session.value("SELECT pg_read_binary_file('pg_wal/' || %s::text, %s, %s, true)", [name, offset, length])
                if there is not None and len(there) == length:
                    return bytes(there)
        return b""

    def _rejoin_problem(self, end: int, timeline: int) -> str | None:
        first = min((name[8:] for name in self.source.segments), default=None)
        needed = segment_name(1, end, self.control.wal_segment_size)[8:]
        if first and first > needed and not self._setting("restore_command"):
            return "the source no longer has the WAL from %s on that it needs to catch up" % int_to_lsn(end)
        if timeline != self.source.past.timeline and self._setting("recovery_target_timeline") != "latest":
            return "its recovery_target_timeline is not latest, so that it would stay on timeline %d" % timeline
        return None

    def _diverged(self, found: Relation, reason: str, lost: int, problem: str | None) -> Relation:
        problem = problem or self._rewind_problem()
        reason += ": about %d bytes are in this directory only" % lost
        restore = bool(self._setting("restore_command"))
        return dataclasses.replace(found, verdict="diverged", reason=reason, lost_bytes=lost, rewind_problem=problem, restore=restore)

    def _wal_problem(self) -> str | None:
        """Whether there is room for the WAL: pg_rewind copies all of the source, and removes what only the target has at last."""
        place = self.instance.path("pg_wal")
        sizes = {name: os.path.getsize(os.path.join(place, name)) for name in segments(self.instance.data_directory)}
        # A crash recovery before it may begin a segment.
        more = self.control.wal_segment_size + sum(max(0, size - sizes.get(name, 0)) for name, size in self.source.segments.items())
        free = datadir.free_bytes(place)
        if more > free:
            megabytes = (-(-more // 1048576), os.path.realpath(place), free // 1048576)
            return "pg_rewind would copy all WAL of the source, which takes %d MB more in %s, where %d MB are free" % megabytes
        return None

    def _rewind_problem(self) -> str | None:
        """What can be known without pg_rewind itself."""
        source, control = self.source, self.control
        if not control.data_checksums and not control.wal_log_hints:
            return "it has neither data checksums nor wal_log_hints"
        if not control.full_page_writes:
            return "its full_page_writes is off"
        if source.in_recovery and source.major_version < 14:
            return "the source is a standby, from which pg_rewind of PostgreSQL %d cannot copy" % source.major_version
        if source.in_recovery and source.control_timeline != source.past.timeline:
            return "the source is a standby that has made no restartpoint on its timeline %d yet" % source.past.timeline
        if not source.rewindable:
            return "the login may not call %s on the source" % ", ".join(REWIND_FUNCTIONS)
        if self.crashed and control.state == "in archive recovery":
            return "it is a standby that was not shut down cleanly"
        missing = [oid for oid in source.tablespaces if not os.path.lexists(self.instance.path("pg_tblspc", str(oid)))]
        if missing:
            # pg_rewind would make it where the source has it: on one host that is the source's own.
            return "the source has a tablespace that it does not have (%s)" % ", ".join(map(str, missing))
        problem = self._wal_problem()
        if problem:
            return problem
        if not os.path.exists(self.instance.program("pg_rewind")):
            return "there is no program %s" % self.instance.program("pg_rewind")
        return None
