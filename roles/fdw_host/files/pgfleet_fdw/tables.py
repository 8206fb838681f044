# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables that a wrapper offers to IMPORT FOREIGN SCHEMA."""

from __future__ import annotations

import dataclasses
import typing as t

from .errors import WrapperError


@dataclasses.dataclass(frozen=True)
class Table:
    """Name, columns (name and SQL type, in order) and options of a foreign table."""

    name: str
    columns: t.Sequence[tuple[str, str]]
    options: t.Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def table_name(self) -> str:
        """As Multicorn calls it."""
        return self.name

    def to_statement(self, schema: str, server: str) -> str:
        """CREATE FOREIGN TABLE, as Multicorn asks for it. The types are the wrapper's own words and stand as they are."""
        columns = ", ".join("%s %s" % (identifier(name), kind) for name, kind in self.columns)
        options = ", ".join("%s %s" % (identifier(name), literal(value)) for name, value in sorted(self.options.items()))
        return "CREATE FOREIGN TABLE %s.%s (%s) SERVER %s%s" % (
            identifier(schema), identifier(self.name), columns, identifier(server), " OPTIONS (%s)" % options if options else "",
        )  # fmt: skip


def check_width(row: t.Sequence[t.Any], columns: t.Collection[str]) -> None:
    """Raises WrapperError where a row is no sequence, or has not all columns."""
    if isinstance(row, (str, bytes)) or not hasattr(row, "__len__"):
        raise WrapperError(
            "the wrapper yielded %s in place of a row" % type(row).__name__, hint="A row is a mapping by column, or a sequence of the values of all columns"
        )
    if len(row) != len(columns):
        raise WrapperError("the wrapper yielded a row of %d values for %d columns" % (len(row), len(columns)))


def select_tables(tables: t.Iterable[Table], restriction: str | None, names: t.Collection[str]) -> list[Table]:
    """Those that LIMIT TO (``limit``) or EXCEPT (``except``) of IMPORT FOREIGN SCHEMA leave."""
    return [table for table in tables if restriction is None or (table.name in names) == (restriction == "limit")]


def identifier(name: str) -> str:
    return '"%s"' % name.replace('"', '""')


def literal(text: str) -> str:
    quoted = "'%s'" % text.replace("'", "''")
    # Whatever standard_conforming_strings says.
    return "E%s" % quoted.replace("\\", "\\\\") if "\\" in text else quoted
