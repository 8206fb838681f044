# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The base class of wrappers."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import logging
import typing as t

from .errors import WrapperError, log
from .options import Option, parse_options
from .quals import Qual
from .tables import Table, check_width

Row = t.Union[t.Mapping[str, t.Any], t.Sequence[t.Any]]
# json and jsonb.
_JSON_TYPES = frozenset({114, 3802})
# date, time, timestamp, timestamptz, interval, timetz: with objects of Python hosts are slow, or take them wrongly.
_TIME_TYPES = frozenset({1082, 1083, 1114, 1184, 1186, 1266})
# They are called when nothing can be taken back any more.
_TOO_LATE_TO_FAIL = ("commit", "rollback")


class Wrapper:
    """A foreign data wrapper. Declare ``options``, and write ``scan``; for tables that can be written also ``rowid_column`` and insert, update, delete.

    A process of the server makes one object for each foreign table, at the first plan that meets it, and again after its options or columns have
    changed. All methods not listed here may be left as they are.
    """

    options: t.Mapping[str, Option] = {}

    rows = 100
    """How many rows a scan yields, about. Multicorn's own guess, a hundred million, makes PostgreSQL compile every query."""

    width = 100
    """How many bytes a row has, about."""

    rowid_column: str | None = None
    """The column that names a row in update and delete; None where the table cannot be written."""

    modify_batch_size = 1
    """Above 1 rows are inserted in batches by bulk_insert. RETURNING gets nothing then."""

    _startup_cost = 20

    def __init_subclass__(cls, **keywords: t.Any) -> None:
        super().__init_subclass__(**keywords)
        for name in _TOO_LATE_TO_FAIL:
            if name in vars(cls):
                setattr(cls, name, _never_raising(vars(cls)[name]))

    def __init__(self, fdw_options: t.Mapping[str, str], fdw_columns: t.Mapping[str, t.Any]) -> None:
        self.columns = dict(fdw_columns)
        """Definition of each column by its name: column_name, type_oid, typmod, type_name, base_type_name, options."""
        self.opt = parse_options(self.options, fdw_options)
        """The value of every declared option."""
        self._encoded = [
            (number, name, column.type_oid in _JSON_TYPES)
            for number, (name, column) in enumerate(self.columns.items())
            if column.type_oid in _JSON_TYPES | _TIME_TYPES
        ]
        self.setup()

    # -- what a wrapper writes -------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Called once, after ``opt`` and ``columns`` are there. Raise WrapperError for options that do not go together."""

    def scan(self, quals: t.Sequence[Qual], columns: t.Collection[str]) -> t.Iterable[Row]:
        """The rows, as mappings by column or as sequences of all columns; values of any type.

        ``quals`` may be ignored, see pgfleet_fdw.quals; of the ``columns`` not named the values are not needed. Yield often: between two rows a query
        can be cancelled, within one not.
        """
        raise NotImplementedError

    def explain_scan(self, quals: t.Sequence[Qual], columns: t.Collection[str]) -> t.Iterable[str]:
        """Lines for EXPLAIN."""
        return ()

    @classmethod
    def tables(cls, options: t.Mapping[str, t.Any], schema: str) -> t.Iterable[Table]:
        """What IMPORT FOREIGN SCHEMA makes. ``options`` are those of the server and of the statement, parsed."""
        raise WrapperError("%s offers no tables to import" % cls.__name__, hint="Create the foreign tables one by one")

    def insert(self, values: dict[str, t.Any]) -> Row | None:
        """Returns what RETURNING shall see, or None for the values themselves."""
        raise self._read_only()

    def bulk_insert(self, all_values: t.Sequence[dict[str, t.Any]]) -> t.Sequence[Row]:
        return [self.insert(values) or values for values in all_values]

    def update(self, rowid: t.Any, values: dict[str, t.Any]) -> Row | None:
        """``values`` has every column, changed or not."""
        raise self._read_only()

    def delete(self, rowid: t.Any) -> None:
        raise self._read_only()

    @staticmethod
    def _read_only() -> WrapperError:
        return WrapperError("this foreign table cannot be written")

    # -- how a host calls it ---------------------------------------------------------------------------------------

    def execute(
        self, quals: t.Sequence[Qual], columns: t.Collection[str], sortkeys: t.Any = None, limit: int | None = None, offset: int | None = None
    ) -> t.Iterator[Row]:
        for row in self.scan(quals, columns):
            yield self.encode(row)

    def encode(self, row: Row) -> Row:
        """Values as text where a host is slow with them or takes them wrongly: dates and times, and what is in JSON columns."""
        named = isinstance(row, t.Mapping)
        if not named:
            check_width(row, self.columns)
        copied: t.Any = None
        for number, name, is_json in self._encoded:
            key = name if named else number
            value = row.get(name) if named else row[number]
            text = _encoded(value, is_json)
            if text is not value:
                # The row is the wrapper's own.
                copied = copied or (dict(row) if named else list(row))
                copied[key] = text
        return row if copied is None else copied

    def explain(
        self, quals: t.Sequence[Qual], columns: t.Collection[str], sortkeys: t.Any = None, verbose: bool = False, limit: int | None = None,
        offset: int | None = None,
    ) -> t.Iterable[str]:  # fmt: skip
        return self.explain_scan(quals, columns)

    def get_rel_size(self, quals: t.Sequence[Qual], columns: t.Collection[str]) -> tuple[int, int]:
        return max(1, int(self.rows)), max(1, int(self.width))

    def get_path_keys(self) -> list[tuple[tuple[str, ...], int]]:
        return []

    def can_sort(self, sortkeys: t.Sequence[t.Any]) -> list[t.Any]:
        return []

    def can_limit(self, limit: int | None, offset: int | None) -> bool:
        return False

    @classmethod
    def import_schema(
        cls, schema: str, srv_options: t.Mapping[str, str], options: t.Mapping[str, str], restriction_type: str | None, restricts: t.Collection[str]
    ) -> list[Table]:
        from .tables import select_tables

        given = {**srv_options, **options}
        # A table sets the others.
        declared = {name: option for name, option in cls.options.items() if name in given or "server" in option.scope}
        found = cls.tables(parse_options({name: _optional(option) for name, option in declared.items()}, given), schema)
        return select_tables(found, restriction_type, restricts)

    # -- transactions; what must be able to fail belongs into pre_commit ---------------------------------------------

    def begin(self, serializable: t.Any) -> None:
        """A transaction has met this table, perhaps only to plan."""

    def pre_commit(self) -> None:
        """The last moment in which raising an error takes the transaction back."""

    def commit(self) -> None:
        """An error here is only logged: Multicorn would bring the server down with it."""

    def rollback(self) -> None:
        """As for commit."""

    def sub_begin(self, level: int) -> None:
        """A savepoint; the first has level 2."""

    def sub_commit(self, level: int) -> None:
        pass

    def sub_rollback(self, level: int) -> None:
        pass

    def end_scan(self) -> None:
        """Not called after an error."""

    def end_modify(self) -> None:
        """Not called after an error."""


def _never_raising(method: t.Callable[..., t.Any]) -> t.Callable[..., None]:
    @functools.wraps(method)
    def guarded(self: Wrapper) -> None:
        try:
            method(self)
        except Exception as error:  # whatever it is, the transaction has ended
            log("%s of %s failed, after the transaction had ended: %s" % (method.__name__, type(self).__name__, error), logging.WARNING)

    return guarded


def _optional(option: Option) -> Option:
    """The same option where a table's own are not known yet."""
    return option if tuple(option.scope) == ("server",) else dataclasses.replace(option, required="server" in option.scope and option.required)


def _encoded(value: t.Any, is_json: bool) -> t.Any:
    if value is None or isinstance(value, str):
        return value
    if is_json:
        return json.dumps(value, default=str)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return "%d days %d seconds %d microseconds" % (value.days, value.seconds, value.microseconds)
    return value
