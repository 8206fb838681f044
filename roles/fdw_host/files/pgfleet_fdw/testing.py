# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A wrapper without PostgreSQL: calls a class as multicorn2 3.2 does on PostgreSQL 15, for unit tests of wrappers.

Order of the calls, containers and types of the values are those that were traced there. The traps are kept, too: microseconds are cut off, many types
come as text, and every condition is checked again on the rows.
"""

from __future__ import annotations

import collections
import datetime
import operator
import re
import typing as t

from .multicorn_names import ColumnDefinition, Qual, SortKey

# Name -> oid and the name that format_type gives.
TYPES = {
    "int": (23, "integer"), "bigint": (20, "bigint"), "smallint": (21, "smallint"), "text": (25, "text"), "varchar": (1043, "character varying"),
    "bool": (16, "boolean"), "date": (1082, "date"), "timestamp": (1114, "timestamp without time zone"),
    "timestamptz": (1184, "timestamp with time zone"), "numeric": (1700, "numeric"), "float8": (701, "double precision"), "bytea": (17, "bytea"),
    "json": (114, "json"), "jsonb": (3802, "jsonb"), "uuid": (2950, "uuid"), "inet": (869, "inet"), "pg_lsn": (3220, "pg_lsn"),
}  # fmt: skip
_ARRAYS = {
    "int": 1007, "bigint": 1016, "smallint": 1005, "text": 1009, "varchar": 1015, "bool": 1000, "date": 1182, "timestamp": 1115, "timestamptz": 1185,
    "numeric": 1231, "float8": 1022, "bytea": 1001, "json": 199, "jsonb": 3807, "uuid": 2951, "inet": 1041, "pg_lsn": 3221,
}  # fmt: skip
_COMPARE = {"=": operator.eq, "<>": operator.ne, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
Condition = t.Sequence[t.Any]


def as_passed(value: t.Any, kind: str) -> t.Any:
    """A constant of a type as a wrapper gets it."""
    if value is None:
        return None
    if kind.endswith("[]"):
        return [as_passed(item, kind[:-2]) for item in value]
    if kind == "int":
        return int(value)
    if kind == "numeric":
        return float(value)
    if kind == "timestamp":
        return value.replace(microsecond=0)
    if kind == "date":
        return value
    if kind == "bool":
        return "t" if value else "f"
    if kind == "bytea":
        return bytes(value)
    return value.isoformat(" ") if isinstance(value, datetime.datetime) else str(value)


def _definition(name: str, kind: str) -> ColumnDefinition:
    base = kind.removesuffix("[]")
    oid, written = TYPES[base]
    if base != kind:
        oid, written = _ARRAYS[base], written + "[]"
    return ColumnDefinition(name, oid, -1, written, written, {})


class ForeignTable:
    """A foreign table of a wrapper class. ``columns``: name -> type, one of TYPES or an array of it (``text[]``).

    ``where`` is a list of conditions: (column, operator, value), (column, "IN", values), (column, "IS NULL"), (column, "IS NOT NULL"). Every statement is a
    transaction of its own unless ``begin`` was called.
    """

    def __init__(self, wrapper: type, options: t.Mapping[str, str], columns: t.Mapping[str, str]) -> None:
        self._class, self._options, self._columns = wrapper, dict(options), dict(columns)
        self._instance: t.Any = None
        self._met = 0
        self._level = 1
        self._in_transaction = False

    # -- transactions ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._in_transaction, self._level = True, 1

    def savepoint(self) -> None:
        self._level += 1

    def release(self) -> None:
        self._leave("sub_commit")
        self._level -= 1

    def rollback_to(self) -> None:
        self._leave("sub_rollback")

    def commit(self) -> None:
        while self._level > 1:
            self.release()
        self._in_transaction = False
        self._end()

    def rollback(self) -> None:
        self._in_transaction, self._level = False, 1
        self._end(committed=False)

    def _leave(self, how: str) -> None:
        if self._met >= self._level:
            getattr(self._instance, how)(self._level)
            self._met -= 1

    def _meet(self) -> t.Any:
        """The instance, told of the transaction and its savepoints when it is first met there."""
        if self._instance is None:
            self._instance = self._class(
                dict(self._options),
                collections.OrderedDict((name, _definition(name, kind)) for name, kind in self._columns.items()),
            )
        if not self._met:
            self._instance.begin(0)
            self._met = 1
        while self._met < self._level:
            self._met += 1
            self._instance.sub_begin(self._met)
        return self._instance

    def _end(self, committed: bool = True) -> None:
        if self._in_transaction or not self._met:
            return
        met, self._met = self._met, 0
        if not committed:
            self._instance.rollback()
            return
        try:
            self._instance.pre_commit()
        except BaseException:
            self._instance.rollback()
            raise
        if met:
            self._instance.commit()

    # -- statements ------------------------------------------------------------------------------------------------

    def select(
        self, columns: t.Collection[str] | None = None, where: t.Sequence[Condition] = (), order: t.Sequence[tuple[str, bool]] | None = None,
        limit: int | None = None, offset: int | None = None,
    ) -> list[dict[str, t.Any]]:  # fmt: skip
        """The rows, with all columns; values are what the wrapper has given. ``order``: (column, whether descending)."""
        with self._statement():
            instance, quals, needed, pushed = self._plan(where, self._columns if columns is None else columns, order, limit, offset)
            rows = self._rows(instance, quals, needed, pushed, where)
            instance.end_scan()
        return rows

    def explain(
        self, columns: t.Collection[str] | None = None, where: t.Sequence[Condition] = (), verbose: bool = False,
        order: t.Sequence[tuple[str, bool]] | None = None, limit: int | None = None, offset: int | None = None,
    ) -> list[str]:  # fmt: skip
        """The lines that the wrapper adds to EXPLAIN."""
        with self._statement():
            instance, quals, needed, pushed = self._plan(where, self._columns if columns is None else columns, order, limit, offset)
            lines = [str(line) for line in instance.explain(quals, needed, verbose=verbose, **pushed)]
            instance.end_scan()
        return lines

    def insert(self, *rows: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
        """Returns what RETURNING would."""
        returned: list[dict[str, t.Any]] = []
        with self._statement():
            instance = self._writable()
            values = [{name: as_passed(row.get(name), kind) for name, kind in self._columns.items()} for row in rows]
            size = instance.modify_batch_size
            if size > 1:
                for first in range(0, len(values), size):
                    instance.bulk_insert(values[first : first + size])
            else:
                returned = [dict(instance.insert(row) or row) for row in values]
            instance.end_modify()
        return returned

    def update(self, where: t.Sequence[Condition], change: t.Callable[[dict[str, t.Any]], t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
        """``change`` makes of a row the columns that are set."""
        returned = []
        with self._statement():
            rowid = self._writable().rowid_column
            instance, quals, needed, pushed = self._plan(where, self._columns, modifies=True)
            for row in self._rows(instance, quals, needed, pushed, where):
                values = {name: as_passed({**row, **change(row)}[name], kind) for name, kind in self._columns.items()}
                returned.append(dict(instance.update(as_passed(row[rowid], self._columns[rowid]), values) or values))
            instance.end_modify()
            instance.end_scan()
        return returned

    def delete(self, where: t.Sequence[Condition]) -> int:
        with self._statement():
            rowid = self._writable().rowid_column
            instance, quals, needed, pushed = self._plan(where, {rowid}, modifies=True)
            rows = self._rows(instance, quals, needed, pushed, where)
            for row in rows:
                instance.delete(as_passed(row[rowid], self._columns[rowid]))
            instance.end_modify()
            instance.end_scan()
        return len(rows)

    def _statement(self) -> _Statement:
        return _Statement(self)

    def _writable(self) -> t.Any:
        instance = self._meet()
        if instance.rowid_column is None:
            raise AssertionError("the wrapper names no rowid_column, PostgreSQL would refuse to write")
        return instance

    def _plan(
        self, where: t.Sequence[Condition], columns: t.Collection[str], order: t.Any = None, limit: int | None = None, offset: int | None = None,
        modifies: bool = False,
    ) -> tuple[t.Any, list[Qual], set[str], dict[str, t.Any]]:  # fmt: skip
        instance, quals = self._meet(), [self._qual(condition) for condition in where]
        needed = {*columns, *(condition[0] for condition in where)}
        size = instance.get_rel_size(list(quals), set(needed))
        if not (isinstance(size, tuple) and len(size) == 2):
            raise AssertionError("get_rel_size returned %r instead of (rows, width)" % (size,))
        for keys, _rows in instance.get_path_keys():
            if isinstance(keys, str) or not set(keys) <= set(self._columns):
                raise AssertionError("get_path_keys returned %r instead of [((column, ...), rows)]" % (keys,))
        pushed: dict[str, t.Any] = {}
        sorts = [SortKey(name, list(self._columns).index(name) + 1, down, down, None) for name, down in order or ()]
        taken = [key for key in instance.can_sort(list(sorts)) if key.attnum in {one.attnum for one in sorts}] if sorts else []
        if taken:
            pushed["sortkeys"] = taken
        bounded = limit is not None or offset is not None
        if bounded and len(taken) == len(sorts) and not where and not modifies and instance.can_limit(limit, offset):
            pushed.update({name: value for name, value in (("limit", limit), ("offset", offset)) if value is not None})
        return instance, quals, needed, pushed

    def _qual(self, condition: Condition) -> Qual:
        name, how = condition[:2]
        if how in ("IS NULL", "IS NOT NULL"):
            return Qual(name, "=" if how == "IS NULL" else "<>", None)
        if how == "IN":
            return Qual(name, ("=", True), [as_passed(value, self._columns[name]) for value in condition[2]])
        return Qual(name, how, as_passed(condition[2], self._columns[name]))

    def _rows(
        self, instance: t.Any, quals: list[Qual], needed: set[str], pushed: dict[str, t.Any], where: t.Sequence[Condition]
    ) -> list[dict[str, t.Any]]:
        found = []
        for row in instance.execute(quals, needed, **pushed) or ():
            if row is None:
                # Multicorn takes it for the end.
                break
            whole = {name: row.get(name) for name in self._columns} if hasattr(row, "keys") else dict(zip(self._columns, row))
            if set(whole) != set(self._columns):
                raise AssertionError("a row has %d values for %d columns" % (len(whole), len(self._columns)))
            if all(_holds(whole[condition[0]], condition) for condition in where):
                found.append(whole)
        return found


class _Statement:
    """The end of a statement, with or without an error, as a context."""

    def __init__(self, table: ForeignTable) -> None:
        self._table = table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: t.Any, *_rest: t.Any) -> None:
        self._table._end(committed=kind is None)


def _holds(value: t.Any, condition: Condition) -> bool:
    how = condition[1]
    if how in ("IS NULL", "IS NOT NULL"):
        return (value is None) == (how == "IS NULL")
    if value is None:
        return False
    if how == "IN":
        return value in condition[2]
    if how == "~~":
        return re.fullmatch(re.escape(condition[2]).replace("%", ".*").replace("_", "."), str(value), re.S) is not None
    return bool(_COMPARE[how](value, condition[2]))


__all__ = ["TYPES", "ForeignTable", "as_passed"]
