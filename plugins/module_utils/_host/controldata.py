# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The control file of a data directory: what a server that is down says about itself."""

from __future__ import annotations

import dataclasses
import os
import struct
import typing as t

from .._errors import CommandFailed, OperationError
from .._sql.values import int_to_lsn
from .command import run_command

STATES = (
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
)
"""As pg_controldata words them, in the order of the server's own numbers (0 to 6)."""

CLEAN = ("shut down", "shut down in recovery")

# PostgreSQL 13 to 16, 17 and 18. The fields read here have kept their places in all of them; another number may mean another layout.
KNOWN_VERSIONS = (1300, 1700, 1800)

# system identifier, control version, catalog version, state, (padding), time, last checkpoint, its redo position
_HEAD = struct.Struct("=QIIi4xqQQ")


@dataclasses.dataclass(frozen=True)
class ControlHead:
    """The first 48 bytes of pg_control: one read, no process started."""

    system_identifier: str
    control_version: int
    state: str
    modified: int
    checkpoint_lsn: str
    redo_lsn: str

    @property
    def shut_down(self) -> bool:
        """Whether the server was shut down cleanly and has not been started since."""
        return self.state in CLEAN


@dataclasses.dataclass(frozen=True)
class ControlData:
    """What pg_controldata says. Sizes are in bytes; the system identifier is text, as it exceeds what JSON numbers hold."""

    system_identifier: str
    state: str
    checkpoint_lsn: str
    redo_lsn: str
    timeline: int
    data_checksums: bool
    wal_log_hints: bool
    full_page_writes: bool
    wal_segment_size: int
    min_recovery_end_lsn: str
    min_recovery_end_timeline: int
    modified: str

    @property
    def shut_down(self) -> bool:
        """Whether the server was shut down cleanly and has not been started since."""
        return self.state in CLEAN


def parse_head(data: bytes) -> ControlHead:
    """The head of a control file. Raises OperationError for a layout that is not known here."""
    if len(data) < _HEAD.size:
        raise OperationError("the control file has %d bytes" % len(data), expected="at least %d" % _HEAD.size)
    identifier, version, _catalog, state, modified, checkpoint, redo = _HEAD.unpack_from(data)
    if version not in KNOWN_VERSIONS or not 0 <= state < len(STATES):
        raise OperationError(
            "the control file has version %d and state %d" % (version, state),
            expected="a version of %s (PostgreSQL 13 to 18), written on a host of the same byte order" % ", ".join(map(str, KNOWN_VERSIONS)),
        )
    return ControlHead(str(identifier), version, STATES[state], modified, int_to_lsn(checkpoint), int_to_lsn(redo))


def read_head(data_directory: str) -> ControlHead:
    """State and last checkpoint by one direct read. Raises OperationError where there is no readable control file."""
    path = os.path.join(data_directory, "global", "pg_control")
    try:
        with open(path, "rb", buffering=0) as file:
            return parse_head(file.read(_HEAD.size))
    except OSError as error:
        raise OperationError("%s cannot be read: %s" % (path, error.strerror)) from error


def parse_controldata(output: str) -> ControlData:
    """What pg_controldata printed in the C locale. Raises CommandFailed when a field is missing."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()

    def field(name: str) -> t.Any:
        if name not in found:
            raise CommandFailed('pg_controldata printed no "%s"' % name, expected="a program of the data directory's own version")
        return found[name]

    return ControlData(
        system_identifier=field("Database system identifier"),
        state=field("Database cluster state"),
        checkpoint_lsn=field("Latest checkpoint location"),
        redo_lsn=field("Latest checkpoint's REDO location"),
        timeline=int(field("Latest checkpoint's TimeLineID")),
        data_checksums=int(field("Data page checksum version")) > 0,
        wal_log_hints=field("wal_log_hints setting") == "on",
        full_page_writes=field("Latest checkpoint's full_page_writes") == "on",
        wal_segment_size=int(field("Bytes per WAL segment")),
        min_recovery_end_lsn=field("Minimum recovery ending location"),
        min_recovery_end_timeline=int(field("Min recovery ending loc's timeline")),
        modified=field("pg_control last modified"),
    )


def read_controldata(bin_directory: str, data_directory: str) -> ControlData:
    """Ask pg_controldata. Raises CommandFailed."""
    return parse_controldata(run_command([os.path.join(bin_directory, "pg_controldata"), "-D", data_directory], timeout=30).stdout)
