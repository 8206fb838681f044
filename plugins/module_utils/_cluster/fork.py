# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Where the histories of two servers part. Without I/O."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Past:
    """The timelines that a server has been on: its last one, and for each earlier one the position (bytes) where the next one began."""

    timeline: int
    left_at: t.Mapping[int, int] = dataclasses.field(default_factory=dict)

    def spans(self) -> list[tuple[int, int, int | None]]:
        """Timeline, begin and end (bytes) of each, the oldest first. The last one has no end."""
        found: list[tuple[int, int, int | None]] = []
        begin = 0
        for timeline, end in sorted(self.left_at.items()):
            found.append((timeline, begin, end))
            begin = end
        return [*found, (self.timeline, begin, None)]

    def until(self, timeline: int) -> Past | None:
        """The same past as it was on an earlier timeline; None where that is no part of it."""
        if timeline != self.timeline and timeline not in self.left_at:
            return None
        return Past(timeline, {one: end for one, end in self.left_at.items() if one < timeline})


@dataclasses.dataclass(frozen=True)
class Fork:
    """Where two pasts part. ``one`` and ``other`` are in the order in which ``find_fork`` took them."""

    timeline: int
    """The last timeline that both have been on."""
    position: int | None
    """Where the first of the two left it, in bytes; None while neither has."""
    one_left: bool
    other_left: bool


def find_fork(one: Past, other: Past) -> Fork | None:
    """Where two pasts part, or None when they have nothing in common. A timeline is the same only if it began at the same place."""
    common = None
    for here, there in zip(one.spans(), other.spans()):
        if here[:2] != there[:2]:
            break
        common = (here, there)
    if common is None:
        return None
    here, there = common
    ends = [end for end in (here[2], there[2]) if end is not None]
    return Fork(here[0], min(ends) if ends else None, here[2] is not None, there[2] is not None)
