# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Datasources: what a snapshot asks a remote server for, and the functions that keep the answers. Without I/O."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Datasource:
    """A datasource as the repository holds it. ``servers`` say by id where it is enabled.

    ``functions`` go by operation; PoWA's own datasources have several functions for some, and then it is the first that runs.
    ``query_source`` is the one of that function.
    """

    name: str
    functions: t.Mapping[str, str]
    query_source: str | None
    custom: bool
    servers: t.Mapping[int, bool]


def gather(rows: t.Iterable[t.Mapping[str, t.Any]], servers: t.Mapping[str, t.Mapping[int, bool]]) -> list[Datasource]:
    """Datasources from one row for each function (name, custom, operation, function_name, query_source), in the order in which they run."""
    found: dict[str, dict[str, t.Any]] = {}
    for row in rows:
        one = found.setdefault(row["name"], {"custom": row["custom"], "functions": {}, "query_source": None})
        one["functions"].setdefault(row["operation"], row["function_name"])
        one["query_source"] = one["query_source"] or row["query_source"]
    return [Datasource(name=name, servers=servers.get(name, {}), **one) for name, one in found.items()]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered function of a datasource. ``priority`` orders functions of a snapshot, the lowest first."""

    operation: str
    function: str
    query_source: str | None = None
    query_cleanup: str | None = None
    priority: float = 10


@dataclasses.dataclass(frozen=True)
class Registration:
    """What the repository holds under one datasource's name.

    PoWA 4 keeps the functions of each server apart (``entries`` by server id); PoWA 5 has one list for all (id None).
    ``foreign`` is true where the name is one of PoWA's own; ``external`` where PoWA 5 looks for an extension of that name.
    """

    entries: t.Mapping[t.Optional[int], tuple[Entry, ...]]
    enabled: t.Mapping[int, bool]
    foreign: bool = False
    external: bool = False
