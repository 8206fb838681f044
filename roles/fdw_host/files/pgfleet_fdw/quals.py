# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a query's conditions a wrapper may rely on.

PostgreSQL checks every condition again on the rows that it gets, so that leaving one out is always right and applying a wrong one loses rows.
"""

from __future__ import annotations

import typing as t

# Multicorn drops the microseconds of times, and hands numeric, real and double precision over as float: a comparison may be wrong by the last digit.
INEXACT_TYPES = frozenset({700, 701, 1083, 1114, 1184, 1266, 1700})


class Qual(t.Protocol):
    """A condition as the hosts hand it over: ``operator`` is text, or (text, True for ANY and False for ALL) with a list as ``value``."""

    field_name: str
    operator: t.Any
    value: t.Any


def safe_quals(quals: t.Iterable[Qual], columns: t.Mapping[str, t.Any]) -> list[Qual]:
    """The conditions whose values are what the query says."""
    return [qual for qual in quals if qual.field_name in columns and columns[qual.field_name].type_oid not in INEXACT_TYPES and _is_whole(qual)]


def _is_whole(qual: Qual) -> bool:
    if isinstance(qual.operator, tuple):
        # Where the array is no constant the value is the number of an address in memory.
        return isinstance(qual.value, (list, tuple))
    # IS NULL and IS NOT NULL.
    return qual.value is not None or qual.operator in ("=", "<>")


def allowed_values(quals: t.Iterable[Qual], columns: t.Mapping[str, t.Any], name: str) -> set[str] | None:
    """The values, as text, that a column may have in the result; None where all are asked for. For columns that say where to look."""
    allowed: set[str] | None = None
    for qual in safe_quals(quals, columns):
        if qual.field_name != name:
            continue
        if qual.operator == "=":
            # Nothing to look at is called NULL.
            values = set() if qual.value is None else {str(qual.value)}
        elif qual.operator == ("=", True):
            values = {str(value) for value in qual.value if value is not None}
        else:
            continue
        allowed = values if allowed is None else allowed & values
    return allowed
