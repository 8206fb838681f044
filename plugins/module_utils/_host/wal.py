# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The WAL in a data directory that is down: how far it goes, and what it says at a position. Nothing is written."""

from __future__ import annotations

import os
import re
import struct
import typing as t

from .._errors import OperationError
from .._sql.values import int_to_lsn, lsn_to_int
from .command import run_command

_SEGMENT = re.compile(r"[0-9A-F]{24}\Z")
_RECORD = re.compile(r"len \(rec/tot\):\s*\d+/\s*(\d+),.*? lsn: ([0-9A-F]+/[0-9A-F]+),.*? desc: (\w+)")
# The head of each page: magic, flags, timeline, its position.
_PAGE = struct.Struct("=HHIQ")
_LONGEST_PAGE_HEAD = 40
_RECORD_HEAD = 24
_PAGE_SIZE = 8192
# A segment that begins with a record, up to and with what that record says of the one before: the head of its first page, two numbers, a position.
_BEFORE = struct.Struct("=%dx8xQ" % _LONGEST_PAGE_HEAD)
SEGMENT_HEAD = _BEFORE.size


class Record(t.NamedTuple):
    """A WAL record's place, in bytes, and where the next one begins. ``end`` counts no page heads and may be a few bytes short."""

    begin: int
    end: int
    next: int


def segments(data_directory: str) -> list[str]:
    """The names of the WAL files, also of those that wait to be used again."""
    try:
        return sorted(name for name in os.listdir(os.path.join(data_directory, "pg_wal")) if _SEGMENT.match(name))
    except OSError as error:
        raise OperationError("%s/pg_wal cannot be looked into: %s" % (data_directory, error.strerror)) from error


def segment_name(timeline: int, position: int, segment_size: int) -> str:
    """The name of the WAL file of a timeline that a position (bytes) is in."""
    number = position // segment_size
    in_a_log = 0x100000000 // segment_size
    return "%08X%08X%08X" % (timeline, number // in_a_log, number % in_a_log)


def _begin(name: str, segment_size: int) -> int:
    return (int(name[8:16], 16) << 32) + int(name[16:], 16) * segment_size


def last_record(program: str, data_directory: str, timeline: int, start: int, segment_size: int) -> Record | None:
    """The last whole record of a timeline that begins at ``start`` (bytes, where a record begins or would) or behind it; None if there is none.

    ``program`` is pg_waldump.
    """
    place = os.path.join(data_directory, "pg_wal")
    first = segment_name(timeline, start, segment_size)
    for name in reversed([name for name in segments(data_directory) if name[:8] == first[:8] and name >= first]):
        begin = _begin(name, segment_size)
        # A file that waits to be used again still holds what it held under its former name.
        if not _is_in_use(os.path.join(place, name), begin):
            continue
        # It ends with an error where the WAL ends.
        argv = [program, "--path=%s" % place, "--timeline=%d" % timeline, "--start=%s" % int_to_lsn(max(begin, start)), name]
        found = _RECORD.findall(run_command(argv, timeout=600, accept=(0, 1)).stdout)
        if found:
            length, lsn, what = found[-1]
            end = lsn_to_int(lsn) + (int(length) + 7) // 8 * 8
            # What is left of a segment after it was switched is not used.
            return Record(lsn_to_int(lsn), end, begin + segment_size if what == "SWITCH" else end)
        if begin > start:
            # Nothing but the middle of a record that began before.
            return Record(begin, begin, begin)
    return None


def _is_in_use(path: str, begin: int) -> bool:
    with open(path, "rb") as file:
        head = file.read(_PAGE.size)
    return len(head) == _PAGE.size and _PAGE.unpack(head)[3] == begin


def record_before(head: bytes) -> int:
    """Where the last record before a segment begins, by the first SEGMENT_HEAD bytes of a segment that begins with a record (XLogRecord.xl_prev)."""
    return int(_BEFORE.unpack(head)[0])


def before_and_at(data_directory: str, timeline: int, position: int, segment_size: int) -> tuple[int, bytes]:
    """What is written on the page of a record, up to and with the record's head: the offset in its file, and the bytes.

    The head holds a check sum and the place of the record before, so that two servers with the same bytes here have the same WAL up to here.
    """
    offset = position % segment_size
    page = offset - offset % _PAGE_SIZE
    low = min(offset, page + _LONGEST_PAGE_HEAD)
    high = min(offset + _RECORD_HEAD, page + _PAGE_SIZE)
    with open(os.path.join(data_directory, "pg_wal", segment_name(timeline, position, segment_size)), "rb") as file:
        file.seek(low)
        return low, file.read(high - low)
