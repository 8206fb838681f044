# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Timelines: where one left another, and whether a standby can go over to it. Without I/O."""

from __future__ import annotations

import re
import typing as t

from .._sql.values import int_to_lsn, lsn_to_int

_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(\s|$)")


def parse_history(text: str) -> dict[int, int]:
    """A timeline's history file: for each earlier timeline, the position (bytes) where the next one began.

    Raises ValueError where a line cannot be read.
    """
    found: dict[int, int] = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if not match:
            raise ValueError("the line %r of a timeline's history cannot be read" % line)
        found[int(match.group(1))] = lsn_to_int(match.group(2))
    return found


def history_file(timeline: int) -> str:
    """The name of a timeline's history file in pg_wal."""
    return "%08X.history" % timeline


def why_diverged(timeline: int, position: int, upstream_timeline: int, history: t.Mapping[int, int]) -> str | None:
    """Why WAL up to ``position`` (bytes) on a timeline is no part of the upstream's history, or None where it is.

    ``history`` is that of the upstream's timeline.
    """
    if timeline == upstream_timeline:
        return None
    if timeline not in history:
        return "its timeline %d is no part of the history of timeline %d" % (timeline, upstream_timeline)
    if position > history[timeline]:
        return "it has WAL of timeline %d up to %s, and timeline %d left that one at %s: %d bytes are not in the upstream's history" % (
            timeline,
            int_to_lsn(position),
            upstream_timeline,
            int_to_lsn(history[timeline]),
            position - history[timeline],
        )
    return None


def segment_key(position: int, segment_size: int) -> str:
    """The part of a WAL file's name that says which segment it is, whatever its timeline. ``segment_size`` in bytes."""
    number = position // segment_size
    in_a_log = 0x100000000 // segment_size
    return "%08X%08X" % (number // in_a_log, number % in_a_log)
