# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake executor calls what an emulation of multicorn2 3.2 on PostgreSQL 15 calls, in its order and with what that hands over.

The class has no base class, as Multicorn wants none.
"""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "roles" / "fdw_host" / "files"))

from pgfleet_fdw.testing import ForeignTable

COLUMNS = {"id": "int", "big": "bigint", "name": "text", "ok": "bool"}
NEW = {"id": 7, "big": 70, "name": "x", "ok": True}
PASSED = {"id": 7, "big": "70", "name": "x", "ok": "t"}


class Traced:
    rowid_column = "id"
    _startup_cost = 20

    def __init__(self, options, columns):
        self.options, self.calls = options, []
        self._tell("__init__", type(options).__name__, type(columns).__name__, list(columns))

    def _tell(self, name, *arguments):
        self.calls.append((name, *arguments))

    @property
    def modify_batch_size(self):
        return int(self.options.get("batch", "1"))

    def get_rel_size(self, quals, columns):
        self._tell("get_rel_size", _plain(quals), type(columns).__name__, sorted(columns))
        return 1000, 40

    def get_path_keys(self):
        self._tell("get_path_keys")
        return [(("id",), 1)]

    def can_sort(self, sortkeys):
        self._tell("can_sort", _plain(sortkeys))
        return sortkeys if "sort" in self.options else []

    def can_limit(self, limit, offset):
        self._tell("can_limit", limit, offset)
        return "limit" in self.options

    def explain(self, quals, columns, sortkeys=None, verbose=False, limit=None, offset=None):
        self._tell("explain", _plain(quals), sorted(columns), sortkeys, verbose, limit, offset)
        return ["a line"]

    def execute(self, quals, columns, **pushed):
        given = {key: _plain(value) if isinstance(value, list) else value for key, value in pushed.items()}
        self._tell("execute", _plain(quals), type(columns).__name__, sorted(columns), given)
        return [{"id": 1, "big": 10, "name": "n1", "ok": True}, {"id": 2, "big": 20, "name": "n2", "ok": False}]

    def insert(self, values):
        self._tell("insert", values)
        return values

    def bulk_insert(self, all_values):
        self._tell("bulk_insert", len(all_values), all_values[0])
        return all_values

    def update(self, rowid, values):
        self._tell("update", rowid, values)
        return values

    def delete(self, rowid):
        self._tell("delete", rowid)

    def pre_commit(self):
        self._tell("pre_commit")
        if "refuse" in self.options:
            raise RuntimeError("no")

    def __getattr__(self, name):
        """begin, commit, rollback, sub_begin, sub_commit, sub_rollback, end_scan and end_modify."""
        return lambda *arguments: self._tell(name, *arguments)


def _plain(given):
    return [tuple(one) if isinstance(one, tuple) else (one.field_name, one.operator, one.value) for one in given]


def calls(options, do):
    table = ForeignTable(Traced, options, COLUMNS)
    do(table)
    return table._instance.calls


FIRST = [("__init__", "dict", "OrderedDict", ["id", "big", "name", "ok"]), ("begin", 0)]
LAST = [("pre_commit",), ("commit",)]


def planned(quals, columns):
    return [("get_rel_size", quals, "set", columns), ("get_path_keys",)]


def executed(quals, columns, before=(), **pushed):
    return [*planned(quals, columns), *before, ("execute", quals, "set", columns, pushed)]


def scan(*arguments, **pushed):
    return [*executed(*arguments, **pushed), ("end_scan",)]


DOWN, UP = ("id", 1, True, True, None), ("id", 1, False, False, None)
ALL = ["big", "id", "name", "ok"]
STATEMENTS = {
    "all": ({}, lambda one: one.select(), scan([], ALL)),
    "int4": ({}, lambda one: one.select(["name"], [("id", "=", 1)]), scan([("id", "=", 1)], ["id", "name"])),
    "int8": ({}, lambda one: one.select(["id"], [("big", "=", 10)]), scan([("big", "=", "10")], ["big", "id"])),
    "bool": ({}, lambda one: one.select(["id"], [("ok", "=", True)]), scan([("ok", "=", "t")], ["id", "ok"])),
    "in": ({}, lambda one: one.select(["id"], [("name", "IN", ["a", "b"])]), scan([("name", ("=", True), ["a", "b"])], ["id", "name"])),
    "null": ({}, lambda one: one.select(["id"], [("name", "IS NULL")]), scan([("name", "=", None)], ["id", "name"])),
    "not null": ({}, lambda one: one.select(["id"], [("name", "IS NOT NULL")]), scan([("name", "<>", None)], ["id", "name"])),
    "like": ({}, lambda one: one.select(["id"], [("name", "~~", "n%")]), scan([("name", "~~", "n%")], ["id", "name"])),
    # A limit is not for whom the sort is not.
    "sort not taken": ({"limit": "1"}, lambda one: one.select(["id"], order=[("id", True)], limit=1), scan([], ["id"], [("can_sort", [DOWN])])),
    "sort and limit": (
        {"sort": "1", "limit": "1"},
        lambda one: one.select(["id"], order=[("id", True)], limit=1, offset=2),
        scan([], ["id"], [("can_sort", [DOWN]), ("can_limit", 1, 2)], sortkeys=[DOWN], limit=1, offset=2),
    ),
    "no limit with a condition": (
        {"sort": "1", "limit": "1"},
        lambda one: one.select(["id"], [("id", ">", 0)], order=[("id", False)], limit=1),
        scan([("id", ">", 0)], ["id"], [("can_sort", [UP])], sortkeys=[UP]),
    ),
    "limit": ({"limit": "1"}, lambda one: one.select(["id"], limit=5), scan([], ["id"], [("can_limit", 5, None)], limit=5)),
    "explain": (
        {},
        lambda one: one.explain(["id"], [("id", "=", 1)]),
        [*planned([("id", "=", 1)], ["id"]), ("explain", [("id", "=", 1)], ["id"], None, False, None, None), ("end_scan",)],
    ),
    "insert": ({}, lambda one: one.insert(NEW, NEW), [("insert", PASSED), ("insert", PASSED), ("end_modify",)]),
    "batches": (
        {"batch": "3"},
        lambda one: one.insert(*[NEW] * 7),
        [("bulk_insert", 3, PASSED), ("bulk_insert", 3, PASSED), ("bulk_insert", 1, PASSED), ("end_modify",)],
    ),
    "update": (
        {},
        lambda one: one.update([("id", "=", 1)], lambda row: {"name": "new"}),
        [*executed([("id", "=", 1)], ALL), ("update", 1, {"id": 1, "big": "10", "name": "new", "ok": "t"}), ("end_modify",), ("end_scan",)],
    ),
    "delete": (
        {},
        lambda one: one.delete([("name", "=", "n2")]),
        [*executed([("name", "=", "n2")], ["id", "name"]), ("delete", 2), ("end_modify",), ("end_scan",)],
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_that_is_a_transaction_of_its_own(name):
    options, do, expected = STATEMENTS[name]
    assert calls(options, do) == FIRST + expected + LAST


def test_a_savepoint_that_is_taken_back():
    def do(one):
        one.begin()
        one.select(["id"])
        one.savepoint()
        one.insert(NEW)
        one.rollback_to()
        one.select(["id"])
        one.commit()

    back = [("sub_begin", 2), ("insert", PASSED), ("end_modify",), ("sub_rollback", 2)]
    # The savepoint is still there, so that the class is told of it anew.
    again = [("sub_begin", 2), *scan([], ["id"]), ("sub_commit", 2)]
    assert calls({}, do) == FIRST + scan([], ["id"]) + back + again + LAST


def test_savepoints_within_each_other():
    def do(one):
        one.begin()
        one.savepoint()
        one.savepoint()
        one.insert(NEW)
        one.release()
        one.release()
        one.rollback()

    levels = [("sub_begin", 2), ("sub_begin", 3), ("insert", PASSED), ("end_modify",), ("sub_commit", 3), ("sub_commit", 2)]
    assert calls({}, do) == [*FIRST, *levels, ("rollback",)]


def test_an_error_in_pre_commit():
    def do(one):
        with pytest.raises(RuntimeError):
            one.select(["id"])

    assert calls({"refuse": "1"}, do) == [*FIRST, *scan([], ["id"]), ("pre_commit",), ("rollback",)]


def test_after_an_error_a_scan_has_no_end():
    def do(one):
        one._meet().execute = None
        with pytest.raises(TypeError):
            one.select(["id"])

    assert calls({}, do) == [*FIRST, *planned([], ["id"]), ("rollback",)]
