# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Waiting with a bound, on the monotonic clock."""

from __future__ import annotations

import time
import typing as t

from ._errors import WaitTimeout

T = t.TypeVar("T")


class Deadline:
    """A moment in the future, in seconds of the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that remain, never below 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def within(self, seconds: float) -> Deadline:
        """A deadline that ends after ``seconds``, but not after this one."""
        return Deadline(min(seconds, self.left))


def wait_for(
    what: str,
    observe: t.Callable[[], T],
    accept: t.Callable[[T], bool],
    deadline: Deadline,
    interval: float = 0.2,
    action: str | None = None,
) -> T:
    """Observe until ``accept`` holds and return what was observed.

    Raises WaitTimeout, which carries the last observation, once the deadline has passed.
    """
    while True:
        seen = observe()
        if accept(seen):
            return seen
        if deadline.passed:
            raise WaitTimeout("%s did not happen within %g s; last seen: %s" % (what, deadline.seconds, seen), action=action, last_seen=seen)
        time.sleep(min(interval, deadline.left))
