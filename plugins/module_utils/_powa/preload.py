# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What shared_preload_libraries has to hold for the statistics extensions, and the packages they come in. Without I/O."""

from __future__ import annotations

import dataclasses
import posixpath
import typing as t

from .._sql.values import split_names

# In this order: PostgreSQL does not start with pg_stat_kcache before pg_stat_statements. powa itself is for local mode only.
PRELOADED = ("pg_stat_statements", "pg_stat_kcache", "pg_qualstats", "pg_wait_sampling", "powa")
# CREATE EXTENSION fails while the library is not loaded; the others can be created before.
FAILS_UNLOADED = ("pg_stat_kcache",)

_PACKAGES = {
    "powa": "postgresql-%d-powa",
    "pg_qualstats": "postgresql-%d-pg-qualstats",
    "pg_stat_kcache": "postgresql-%d-pg-stat-kcache",
    "pg_wait_sampling": "postgresql-%d-pg-wait-sampling",
    "pg_track_settings": "postgresql-%d-pg-track-settings",
    "hypopg": "postgresql-%d-hypopg",
}


def debian_package(extension: str, major: int) -> str:
    """The package of Debian and of PostgreSQL's own archive with an extension, for a major version of PostgreSQL."""
    return _PACKAGES.get(extension, "postgresql-%d") % major


def parse_libraries(setting: str) -> list[str]:
    """Names in shared_preload_libraries, without directory and file suffix."""
    return [posixpath.basename(name[:-3] if name.endswith(".so") else name) for name in split_names(setting) if name]


@dataclasses.dataclass(frozen=True)
class Preload:
    """``missing`` libraries are not loaded; ``expected`` is the value that the setting should have."""

    missing: tuple[str, ...]
    expected: str


def judge_preload(setting: str, extensions: t.Iterable[str]) -> Preload:
    """Which libraries of the wanted extensions are not in the running server's shared_preload_libraries."""
    loaded = parse_libraries(setting)
    wanted = set(extensions)
    if wanted & set(PRELOADED):
        # pg_stat_kcache and PoWA itself stand on it.
        wanted.add("pg_stat_statements")
    missing = tuple(name for name in PRELOADED if name in wanted and name not in loaded)
    return Preload(missing, ",".join([*loaded, *missing]))
