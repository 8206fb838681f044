# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A bound for what a wrapper waits for: PostgreSQL can cancel a query only between two rows."""

from __future__ import annotations

import time

from .errors import WrapperError


def positive_seconds(text: str) -> float:
    """For the type of an Option."""
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise ValueError("expected seconds, more than 0 and at most 3600")
    return seconds


class Deadline:
    """One limit for a whole scan, however many others it asks. Give ``left`` to whatever takes a timeout."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, more than 0. Raises WrapperError when none are left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise WrapperError("no answer within %g s" % self.seconds)
        return left
