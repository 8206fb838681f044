# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Archiving of one server: on, paused without loss, off, and whether it works."""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from .._cluster.archive_command import check_archive_command, hide_secrets, unproved
from .._errors import InvalidInput, NotConfirmed, Refused, Unhealthy, WaitTimeout
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._plan import Plan
from .._sql.connection import Session, Target, connect
from .._sql.settings import Change, Settings, read_settings, reload_settings, write
from .._wait import Deadline, wait_for

PG_ARCHIVING = CONNECTION.merge(
    ArgumentSpec(
        {
            "state": {"type": "str", "choices": ["enabled", "paused", "disabled", "healthy"], "default": "healthy"},
            "command": {"type": "str"},
            "library": {"type": "str"},
            "always": {"type": "bool", "default": False},
            "verify": {"type": "bool", "default": True},
            "max_ready_segments": {"type": "int", "default": 16},
            "max_age": {"type": "int", "default": 600},
            "timeout": {"type": "int", "default": 90},
        },
        mutually_exclusive=[("command", "library")],
    )
)


@dataclasses.dataclass(frozen=True)
class Archiver:
    """pg_stat_archiver and what waits in pg_wal. Moments are ISO 8601 text, ages seconds."""

    archived_count: int
    last_archived_wal: str | None
    last_archived_time: str | None
    failed_count: int
    last_failed_wal: str | None
    last_failed_time: str | None
    failing: bool
    archived_since_start: bool
    ready_segments: int
    oldest_ready_age: float | None


@dataclasses.dataclass(frozen=True)
class ArchivingState:
    """One server as it was found. ``mode``, ``command`` and ``library`` are those in force."""

    version: int
    in_recovery: bool
    mode: str
    command: str
    library: str
    wal_level: str
    segment_size: int
    streaming_standbys: int
    archiver: Archiver
    settings: Settings = dataclasses.field(default_factory=lambda: Settings({}, {}, {}, ()))

    @property
    def archives(self) -> bool:
        """Whether this server hands segments over now, or would if it could."""
        return bool(self.mode == "always" or (self.mode == "on" and not self.in_recovery)) and bool(self.command or self.library)


_STATE = """
SELECT pg_is_in_recovery() AS in_recovery, current_setting('archive_mode') AS mode, current_setting('archive_command') AS command,
  coalesce(current_setting('archive_library', true), '') AS library, current_setting('wal_level') AS wal_level,
  (SELECT bytes_per_wal_segment FROM pg_control_init()) AS segment_size,
  (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming') AS streaming_standbys
"""

_ARCHIVER = """
SELECT archived_count, last_archived_wal, last_archived_time::text, failed_count, last_failed_wal, last_failed_time::text,
  last_failed_time IS NOT NULL AND (last_archived_time IS NULL OR last_failed_time > last_archived_time) AS failing,
  coalesce(last_archived_time >= pg_postmaster_start_time(), false) AS archived_since_start,
  ready_segments, oldest_ready_age
FROM pg_stat_archiver, (SELECT count(*) AS ready_segments, extract(epoch FROM clock_timestamp() - min(modification))::float8 AS oldest_ready_age
                        FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS waiting
"""


def read_archiver(session: Session) -> Archiver:
    """The archiver's own numbers. Needs membership in pg_monitor."""
    return Archiver(**(session.row(_ARCHIVER) or {}))


def problems_of(seen: ArchivingState, max_ready_segments: int, max_age: int) -> list[str]:
    """Why archiving is not healthy, a sentence each."""
    archiver = seen.archiver
    if seen.mode == "off":
        return ["archive_mode is off"]
    found = []
    if not seen.command and not seen.library:
        found.append("archiving is paused: neither archive_command nor archive_library is set")
    elif seen.command and not seen.library:
        try:
            check_archive_command(seen.command)
        except InvalidInput as error:
            found.append(error.message)
    if seen.in_recovery and seen.mode == "on":
        return found
    if archiver.failing:
        found.append("the archiver fails on %s, last at %s (%d failures)" % (archiver.last_failed_wal, archiver.last_failed_time, archiver.failed_count))
    if archiver.ready_segments > max_ready_segments:
        found.append("%d segments wait to be archived, more than %d" % (archiver.ready_segments, max_ready_segments))
    if (archiver.oldest_ready_age or 0) > max_age:
        found.append("the oldest segment has waited %d s, more than %d" % (archiver.oldest_ready_age or 0, max_age))
    return found


class Archiving(Operation):
    """The operation of pg_archiving."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.state: str = params["state"]
        self.before: dict[str, t.Any] | None = None
        self.verified = False
        self._session: Session | None = None
        self._check_options()

    def _check_options(self) -> None:
        useless = [name for name in ("command", "library", "always") if self.params.get(name)]
        if self.state != "enabled" and useless:
            raise InvalidInput("state is %s, with which these mean nothing: %s" % (self.state, ", ".join(useless)), expected="them with state enabled only")
        if self.params.get("command"):
            check_archive_command(self.params["command"])
            reason = unproved(self.params["command"])
            if reason:
                self.context.warn("Whether the archive command fails when it has archived nothing was not proved: %s" % reason)
            if hide_secrets(self.params["command"]) != self.params["command"]:
                self.context.warn("The archive command seems to hold a secret, which every user of the host can see while it runs; keep it in a file")
        if "\n" in (self.params.get("library") or ""):
            raise InvalidInput("library has more than one line")
        for name in ("max_ready_segments", "max_age", "timeout"):
            if self.params[name] < 0:
                raise InvalidInput("%s is %d" % (name, self.params[name]), expected="0 or more")

    def session(self) -> Session:
        if self._session is None:
            read_only = self.context.check_mode or self.state == "healthy"
            self._session = connect(Target.from_params(self.params), read_only=read_only)
        return self._session

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    # What is there

    def observe(self) -> ArchivingState:
        session = self.session()
        row = session.row(_STATE) or {}
        if row["mode"] == "off":
            row["command"] = ""  # shown as "(disabled)", whatever it is
        seen = ArchivingState(version=session.server_version, archiver=read_archiver(session), **row)
        if self.state != "healthy":
            every = ["archive_mode", "archive_command", *(["archive_library"] if seen.version >= 150000 else []), "wal_level"]
            files = read_settings(session, dict.fromkeys(every))
            seen = dataclasses.replace(seen, settings=read_settings(session, self._wanted(seen, files)))
            if self.before is None:
                self.before = self._shown(seen, files)
        return seen

    def _wanted(self, seen: ArchivingState, files: Settings) -> dict[str, str | None]:
        """The parameters to be set; None takes a line out of the server's own file."""
        if self.state == "disabled":
            return {"archive_mode": "off"}
        if self.state == "paused":
            return {"archive_command": "", **({"archive_library": ""} if "archive_library" in files.parameters else {})}
        wanted: dict[str, str | None] = {"archive_mode": "always" if self.params["always"] else "on"}
        if _in_files(files, "wal_level") == "minimal":
            raise Refused(
                "wal_level is minimal, with which PostgreSQL does not start once archive_mode is on",
                expected="wal_level replica or logical",
                action="Set it first where the server's configuration is kept",
            )
        if self.params.get("library"):
            if "archive_library" not in files.parameters:
                raise InvalidInput("library is set, and this server is version %d" % (seen.version // 10000), expected="PostgreSQL 15 or later; or command")
            return {**wanted, "archive_library": self.params["library"], "archive_command": ""}
        if self.params.get("command"):
            return {**wanted, "archive_command": self.params["command"], **({"archive_library": ""} if _in_files(files, "archive_library") else {})}
        return {**wanted, **self._kept(files)}

    @staticmethod
    def _kept(files: Settings) -> dict[str, str | None]:
        """Neither command nor library was given: what the files have, or have below the lines that a pause has written."""
        own = [name for name in ("archive_command", "archive_library") if any(line.own for line in files.lines.get(name, ()))]
        for reset in ({}, dict.fromkeys(own)):
            rest = dataclasses.replace(files, wanted=reset)
            command, library = (rest.target(name) if name in reset else _in_files(files, name) for name in ("archive_command", "archive_library"))
            if command and not library:
                check_archive_command(command)
            if command or library:
                return reset
        raise InvalidInput(
            "neither command nor library is set, and the server's configuration files have none either",
            expected="one of them",
            action="A command that state paused has taken away is in the result of that run",
        )

    # What to do

    def plan(self, seen: ArchivingState) -> Plan:
        plan = Plan()
        if self.state == "healthy":
            return plan
        if self.state == "paused" and seen.mode == "off":
            raise Refused(
                "archive_mode is off, so nothing is archived and no WAL is kept for it",
                expected="archive_mode on, with which PostgreSQL keeps what is not archived",
                action="Use state enabled, and restart the server",
            )
        changes = seen.settings.changes()
        for change in changes:
            plan.add(
                "%s %s" % ("reset" if change.value is None else "set", change.name),
                functools.partial(self._write, change),
                subject="setting %s" % change.name,
                before="%s = %s\n" % (change.name, hide_secrets(change.before) or ""),
                after="%s = %s\n" % (change.name, hide_secrets(seen.settings.target(change.name)) or ""),
            )
        # Also for a parameter that needs a restart: only then does the server know that it waits for one.
        if changes or seen.settings.awaiting_reload():
            plan.add("reload the configuration", functools.partial(self._reload, seen.settings.wanted))
        if self._to_verify(seen, plan.changed):
            plan.add("see that a segment is archived, which takes a WAL switch if none waits", self._verify)
        return plan

    def _to_verify(self, seen: ArchivingState, changed: bool) -> bool:
        # Before a restart there is no archiver, and a standby writes no WAL of its own.
        if self.state != "enabled" or not self.params["verify"] or seen.in_recovery or seen.mode == "off":
            return False
        return changed or seen.archiver.failing or not seen.archiver.archived_since_start

    # Doing it

    def _write(self, change: Change) -> None:
        write(self.session(), change)

    def _reload(self, wanted: t.Mapping[str, str | None]) -> None:
        reload_settings(self.session(), wanted)

    def _verify(self) -> None:
        """Have a segment archived with the settings now in force. Raises NotConfirmed with what the archiver says."""
        session = self.session()
        first = read_archiver(session)
        # One may be under way with the settings of before; the second then is not.
        wanted = first.archived_count + 2
        if first.ready_segments < 2:
            self._switch(session)
            wanted = first.archived_count + first.ready_segments + 1

        def ended(archiver: Archiver) -> bool:
            return archiver.archived_count >= wanted or (archiver.failing and archiver.failed_count >= first.failed_count + 2)

        try:
            last = wait_for("archiving a segment", functools.partial(read_archiver, session), ended, Deadline(self.params["timeout"]))
        except WaitTimeout as error:
            raise self._not_archived(error.facts["last_seen"], "no segment was archived within %d s" % self.params["timeout"]) from error
        if last.archived_count < wanted:
            raise self._not_archived(last, "the archiver fails")
        self.verified = True

    @staticmethod
    def _switch(session: Session) -> None:
        # A record of no meaning, as without any there is nothing to switch.
        session.execute("SELECT pg_logical_emit_message(false, 'pgfleet.ops', 'archiving is being verified')")
        session.execute("SELECT pg_switch_wal()")

    def _not_archived(self, archiver: Archiver, what: str) -> NotConfirmed:
        detail = ", %s at %s" % (archiver.last_failed_wal, archiver.last_failed_time) if archiver.failing else ""
        return NotConfirmed(
            "%s%s" % (what, detail),
            expected="the segment in the archive",
            action="What the command printed is in the server's log. Correct it and run this again; PostgreSQL keeps the WAL until then",
            archiver=dataclasses.asdict(archiver),
        )

    # What is said

    def report(self, seen: ArchivingState) -> dict[str, t.Any]:
        result = self._result(seen)
        if self.state == "healthy":
            problems = problems_of(seen, self.params["max_ready_segments"], self.params["max_age"])
            if problems:
                raise Unhealthy("%s: %s" % (self.session().target, "; ".join(problems)), problems=problems, **result)
        self._warn(seen, result)
        return {**result, "problems": []}

    def _result(self, seen: ArchivingState) -> dict[str, t.Any]:
        waiting = seen.settings.awaiting_restart()
        return {
            "state": self.state,
            "mode": seen.mode,
            "command": hide_secrets(seen.command),
            "library": seen.library,
            "in_recovery": seen.in_recovery,
            "archives": seen.archives,
            "restart_required": bool(waiting),
            "verified": self.verified,
            "before": self.before,
            "archiver": dataclasses.asdict(seen.archiver),
            "ready_segments": seen.archiver.ready_segments,
            "ready_bytes": seen.archiver.ready_segments * seen.segment_size,
        }

    def _warn(self, seen: ArchivingState, result: t.Mapping[str, t.Any]) -> None:
        warn, target = self.context.warn, self.session().target
        if result["restart_required"]:
            warn("%s must be restarted for archive_mode = %s" % (target, seen.settings.target("archive_mode")))
        if seen.in_recovery and seen.mode == "on":
            warn("%s is a standby, which archives nothing with archive_mode = on; it will once it is promoted" % target)
        if self.state == "paused":
            warn(
                "%s keeps all WAL until archiving is enabled again; %d segments (%d bytes) wait now. How much room is left cannot be asked by SQL: watch pg_wal"
                % (target, seen.archiver.ready_segments, result["ready_bytes"])
            )
        if self.state == "disabled" and seen.mode != "off":
            last = seen.archiver.last_archived_wal
            warn(
                "Once %s has been restarted its WAL is archived no more: base backups taken until then cannot be recovered past %s,"
                " and %d streaming standbys have no archive to fall back to" % (target, last or "the last archived segment", seen.streaming_standbys)
            )

    @staticmethod
    def _shown(seen: ArchivingState, files: Settings) -> dict[str, t.Any]:
        """What the files had before; the command is what one gives to come back from a pause."""
        return {
            "archive_mode": _in_files(files, "archive_mode"),
            "archive_command": hide_secrets(_in_files(files, "archive_command")),
            "archive_library": _in_files(files, "archive_library"),
        }


def _in_files(files: Settings, name: str) -> str | None:
    """The value that a parameter has after a restart."""
    lines = files.lines.get(name, ())
    if lines:
        return lines[-1].setting
    return files.parameters[name].boot_val if name in files.parameters else None
