# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The names that wrappers written for Multicorn import, for hosts without it.

Written from what multicorn2 3.2 does when it is run; where that package is installed its own names are used.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
import typing as t

from .errors import LEVELS, WrapperError, log
from .tables import Table

ANY, ALL, UNBOUND = object(), object(), object()


class SortKey(t.NamedTuple):
    attname: str
    attnum: int
    is_reversed: bool
    nulls_first: bool
    collate: str | None


class Qual:
    """A condition. ``operator`` is text, or a pair with True for ANY and False for ALL."""

    def __init__(self, field_name: str, operator: t.Any, value: t.Any) -> None:
        self.field_name, self.operator, self.value = field_name, operator, value

    @property
    def is_list_operator(self) -> bool:
        return isinstance(self.operator, tuple)

    @property
    def list_any_or_all(self) -> t.Any:
        return (ANY if self.operator[1] else ALL) if self.is_list_operator else None

    def __repr__(self) -> str:
        if self.is_list_operator:
            return "%s %s %s(%s)" % (self.field_name, self.operator[0], "ANY" if self.operator[1] else "ALL", self.value)
        return "%s %s %s" % (self.field_name, self.operator, self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Qual) and (self.field_name, self.operator, self.value) == (other.field_name, other.operator, other.value)

    def __hash__(self) -> int:
        return hash((self.field_name, self.operator, str(self.value)))


class ColumnDefinition:
    def __init__(
        self, column_name: str, type_oid: int = 0, typmod: int = 0, type_name: str = "", base_type_name: str = "", options: t.Mapping[str, str] | None = None
    ) -> None:
        self.column_name, self.type_oid, self.typmod = column_name, type_oid, typmod
        self.type_name, self.base_type_name, self.options = type_name, base_type_name, dict(options or {})

    def __repr__(self) -> str:
        return "ColumnDefinition(%s, %i, %s)" % (self.column_name, self.type_oid, self.type_name)


class TableDefinition:
    def __init__(
        self, table_name: str, schema: str | None = None, columns: t.Sequence[ColumnDefinition] | None = None, options: t.Mapping[str, str] | None = None
    ) -> None:
        self.table_name, self.columns, self.options = table_name, list(columns or []), dict(options or {})

    def to_statement(self, schema: str, server: str) -> str:
        return Table(self.table_name, [(column.column_name, column.type_name) for column in self.columns], self.options).to_statement(schema, server)


class ForeignDataWrapper:
    """What Multicorn's base class does, which has a guess of its own about sizes."""

    _startup_cost = 20
    modify_batch_size = 1

    def __init__(self, fdw_options: t.Mapping[str, str], fdw_columns: t.Mapping[str, ColumnDefinition]) -> None:
        pass

    @property
    def rowid_column(self) -> str:
        raise NotImplementedError("This wrapper cannot write")

    def _cannot_write(self, *_arguments: t.Any) -> t.NoReturn:
        raise NotImplementedError("This wrapper cannot write")

    insert = bulk_insert = update = delete = _cannot_write

    def get_rel_size(self, quals: t.Any, columns: t.Collection[str]) -> tuple[int, int]:
        return 100000000, len(columns) * 100

    def get_path_keys(self) -> list[t.Any]:
        return []

    def can_sort(self, sortkeys: t.Any) -> list[t.Any]:
        return []

    def can_limit(self, limit: t.Any, offset: t.Any) -> bool:
        return False

    def explain(self, quals: t.Any, columns: t.Any, sortkeys: t.Any = None, verbose: bool = False, limit: t.Any = None, offset: t.Any = None) -> list[str]:
        return []

    def execute(self, quals: t.Any, columns: t.Any, sortkeys: t.Any = None, limit: t.Any = None, offset: t.Any = None) -> t.Any:
        return ()

    def _nothing(self, *_arguments: t.Any) -> None:
        return None

    begin = sub_begin = sub_commit = sub_rollback = pre_commit = commit = rollback = end_scan = end_modify = _nothing

    @classmethod
    def import_schema(cls, *_arguments: t.Any) -> list[t.Any]:
        raise NotImplementedError("This wrapper offers no tables to import")


class TransactionAwareForeignDataWrapper(ForeignDataWrapper):
    """Collects what is written; a subclass applies it in pre_commit."""

    def __init__(self, fdw_options: t.Mapping[str, str], fdw_columns: t.Mapping[str, ColumnDefinition]) -> None:
        super().__init__(fdw_options, fdw_columns)
        self._init_transaction_state()

    def _init_transaction_state(self) -> None:
        self.current_transaction_state: list[tuple[str, t.Any]] = []

    def insert(self, values: t.Any) -> None:
        self.current_transaction_state.append(("insert", values))

    def update(self, oldvalues: t.Any, newvalues: t.Any) -> None:
        self.current_transaction_state.append(("update", (oldvalues, newvalues)))

    def delete(self, oldvalues: t.Any) -> None:
        self.current_transaction_state.append(("delete", oldvalues))

    def rollback(self) -> None:
        self._init_transaction_state()


def _log_to_postgres(message: str, level: int = logging.INFO, hint: str | None = None, detail: str | None = None) -> None:
    if level not in LEVELS:
        raise WrapperError(message, hint, detail)
    log(message, level, hint, detail)


def provide() -> types.ModuleType:
    """Let ``import multicorn`` work. Returns the module, which is the real one where that is installed."""
    try:
        module = importlib.import_module("multicorn")
    except ImportError:
        module = None
    # Another project has that name, too.
    if module is not None and hasattr(module, "ForeignDataWrapper"):
        return module
    module, utils = types.ModuleType("multicorn"), types.ModuleType("multicorn.utils")
    for thing in (SortKey, Qual, ColumnDefinition, TableDefinition, ForeignDataWrapper, TransactionAwareForeignDataWrapper):
        setattr(module, thing.__name__, thing)
    for name, value in (("ANY", ANY), ("ALL", ALL), ("UNBOUND", UNBOUND), ("utils", utils), ("__path__", [])):
        setattr(module, name, value)
    for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        setattr(utils, name, getattr(logging, name))
    for name, value in (("log_to_postgres", _log_to_postgres), ("MulticornException", WrapperError), ("check_interrupts", lambda: None)):
        setattr(utils, name, value)
    sys.modules.update({"multicorn": module, "multicorn.utils": utils})
    return module
