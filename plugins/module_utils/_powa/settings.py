# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The option ``settings``: parameters of PoWA, of the statistics extensions and of PostgreSQL's own statistics."""

from __future__ import annotations

import math
import re
import typing as t

from .._errors import InvalidInput
from .preload import PRELOADED

CORE = (
    "compute_query_id",
    "track_activities",
    "track_activity_query_size",
    "track_cost_delay_timing",
    "track_counts",
    "track_functions",
    "track_io_timing",
    "track_wal_io_timing",
)
_ALLOWED = "%s, or one of %s" % (", ".join("%s.*" % name for name in PRELOADED), ", ".join(CORE))


def parse_settings(option: t.Mapping[str, t.Any] | None) -> dict[str, str | None]:
    """The option ``settings`` as names and texts. Raises InvalidInput."""
    found: dict[str, str | None] = {}
    for given, value in (option or {}).items():
        name = str(given).strip().lower()
        library, _dot, own = name.partition(".")
        if name not in CORE and not (library in PRELOADED and re.fullmatch(r"[a-z_][a-z0-9_]*", own)):
            raise InvalidInput("settings names %s" % given, expected=_ALLOWED, action="Other parameters are set where the server's configuration is kept")
        if name in found:
            raise InvalidInput("settings names %s twice" % name)
        if isinstance(value, bool):
            value = "on" if value else "off"
        if (isinstance(value, float) and not math.isfinite(value)) or not (value is None or isinstance(value, (str, int, float))):
            raise InvalidInput("settings gives %s a value of the type %s" % (name, type(value).__name__), expected="a text, a number, true, false or null")
        found[name] = None if value is None else str(value)
        if "\n" in (found[name] or "") or "\0" in (found[name] or ""):
            raise InvalidInput("the value of %s in settings has more than one line" % name)
    return found
