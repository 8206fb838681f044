# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wrapper SDK, driven as Multicorn drives a wrapper."""

from __future__ import annotations

import datetime
import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "roles" / "fdw_host" / "files"))

from pgfleet_fdw import Option, Table, Wrapper, WrapperError, allowed_values, errors, multicorn_names
from pgfleet_fdw.testing import ForeignTable

COLUMNS = {"id": "int", "name": "text", "at": "timestamp", "more": "jsonb"}


class Spy(Wrapper):
    """A wrapper on a dictionary, which tells what was called."""

    options = {"key": Option(required=True), "size": Option(int, default=3), "kind": Option(choices=("a", "b"), default="a", scope=("table",))}
    rowid_column = "id"

    def setup(self):
        self.calls = []
        numbers = range(1, self.opt["size"] + 1)
        self.stored = {n: {"id": n, "name": "n%d" % n, "at": datetime.datetime(2026, 1, n, microsecond=5), "more": {"n": n}} for n in numbers}

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name in ("begin", "pre_commit", "commit", "rollback", "sub_begin", "sub_commit", "sub_rollback", "end_scan", "end_modify", "scan", "get_rel_size"):

            def told(*arguments):
                self.calls.append(name)
                return found(*arguments)

            return told
        return found

    def scan(self, quals, columns):
        self.asked = [(qual.field_name, qual.operator, qual.value) for qual in quals]
        names = allowed_values(quals, self.columns, "name")
        for row in list(self.stored.values()):
            if names is None or row["name"] in names:
                yield row

    def insert(self, values):
        self.stored[values["id"]] = values
        return {**values, "name": values["name"].upper()}

    def update(self, rowid, values):
        self.stored[rowid] = values

    def delete(self, rowid):
        del self.stored[rowid]

    @classmethod
    def tables(cls, options, schema):
        return [Table(name, [("id", "integer")], {"key": options["key"], "kind": "b"}) for name in ("one", 'o"ther')]


def table(**options):
    return ForeignTable(Spy, {"key": "k", **options}, COLUMNS)


def spy(one):
    return one._meet()


def test_the_order_of_the_calls_of_a_scan():
    one = table()
    rows = one.select()
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert spy(one).calls == ["begin", "get_rel_size", "scan", "end_scan", "pre_commit", "commit", "begin"]


def test_values_go_as_text_where_hosts_are_slow_or_wrong():
    row = table().select()[0]
    assert row["at"] == "2026-01-01T00:00:00.000005" and json.loads(row["more"]) == {"n": 1} and row["id"] == 1


def test_conditions_arrive_as_multicorn_passes_them():
    one = table()
    assert [row["id"] for row in one.select(where=[("name", "IN", ["n1", "n3"])])] == [1, 3]
    assert spy(one).asked == [("name", ("=", True), ["n1", "n3"])]
    one.select(where=[("id", "=", 2), ("name", "IS NOT NULL")])
    assert spy(one).asked == [("id", "=", 2), ("name", "<>", None)]
    # The trap: microseconds are gone, so that a wrapper that believed this condition would find nothing.
    one.select(where=[("at", "=", datetime.datetime(2026, 1, 1, microsecond=5))])
    assert spy(one).asked == [("at", "=", datetime.datetime(2026, 1, 1))]


@pytest.mark.parametrize(
    ("quals", "found"),
    [
        ([], None),
        ([("name", "=", "x")], {"x"}),
        ([("name", "=", None)], set()),
        ([("name", ("=", True), ["x", None, "y"])], {"x", "y"}),
        ([("name", ("=", True), 94021333)], None),
        ([("name", ("<>", False), ["x"])], None),
        ([("name", "<", "x"), ("id", "=", "1")], None),
        ([("name", "=", "x"), ("name", ("=", True), ["y"])], set()),
    ],
)
def test_which_values_a_column_may_have(quals, found):
    columns = {name: multicorn_names.ColumnDefinition(name, 25) for name in ("name", "id")}
    assert allowed_values([multicorn_names.Qual(*qual) for qual in quals], columns, "name") == found


def test_writing_and_what_returning_sees():
    one = table(size="1")
    assert one.insert({"id": 7, "name": "new", "more": None, "at": None}) == [{"id": 7, "name": "NEW", "at": None, "more": None}]
    assert one.update([("id", "=", 7)], lambda row: {"name": "changed"})[0]["name"] == "changed"
    assert one.delete([("id", "=", 1)]) == 1
    assert [(row["id"], row["name"]) for row in one.select()] == [(7, "changed")]


def test_savepoints():
    one = table()
    one.begin()
    one.select()
    one.savepoint()
    one.select()
    one.rollback_to()
    one.commit()
    calls = [call for call in spy(one).calls if call not in ("get_rel_size", "scan", "end_scan")]
    assert calls[:6] == ["begin", "sub_begin", "sub_rollback", "pre_commit", "commit", "begin"]


def test_an_error_before_the_commit_takes_everything_back():
    class Refusing(Spy):
        def pre_commit(self):
            raise WrapperError("the other side said no")

    one = ForeignTable(Refusing, {"key": "k"}, COLUMNS)
    with pytest.raises(WrapperError, match="said no"):
        one.select()
    assert spy(one).calls[-2:] == ["rollback", "begin"] and "commit" not in spy(one).calls


def test_an_error_after_the_commit_is_only_told(monkeypatch):
    """Multicorn would end the whole server."""
    told = []
    monkeypatch.setattr(errors, "_sinks", [lambda *message: told.append(message)])

    class Failing(Spy):
        def commit(self):
            raise RuntimeError("too late")

    ForeignTable(Failing, {"key": "k"}, COLUMNS).select()
    assert told[0][0] == "warning" and "too late" in told[0][1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, 'option "key" is required'),
        ({"key": "k", "sise": "1"}, 'no option "sise"'),
        ({"key": "k", "size": "many"}, '"many" is no int'),
        ({"key": "k", "kind": "c"}, '"c" is not allowed'),
    ],
)
def test_options_are_checked_when_a_table_is_first_met(options, words):
    with pytest.raises(WrapperError, match=words):
        ForeignTable(Spy, options, COLUMNS).select()


def test_a_secret_is_in_no_message():
    option = Option(int, secret=True)
    with pytest.raises(WrapperError) as caught:
        option.parse("password", "hidden")
    assert "hidden" not in str(vars(caught.value)) + str(caught.value)


def test_import_of_a_schema():
    found = Spy.import_schema("remote", {"key": "it's", "wrapper": "a.b"}, {}, None, [])
    assert [one.to_statement("here", "there") for one in found] == [
        """CREATE FOREIGN TABLE "here"."one" ("id" integer) SERVER "there" OPTIONS ("key" 'it''s', "kind" 'b')""",
        """CREATE FOREIGN TABLE "here"."o""ther" ("id" integer) SERVER "there" OPTIONS ("key" 'it''s', "kind" 'b')""",
    ]
    assert [one.table_name for one in Spy.import_schema("remote", {"key": "k"}, {}, "limit", ["one"])] == ["one"]
    assert [one.table_name for one in Spy.import_schema("remote", {"key": "k"}, {}, "except", ["one"])] == ['o"ther']
    with pytest.raises(WrapperError, match='"key" is required'):
        Spy.import_schema("remote", {}, {}, None, [])


def test_a_table_that_cannot_be_written():
    class ReadOnly(Wrapper):
        def scan(self, quals, columns):
            return [[1, "a", None, None]]

    one = ForeignTable(ReadOnly, {}, COLUMNS)
    assert one.select() == [{"id": 1, "name": "a", "at": None, "more": None}]
    with pytest.raises(AssertionError, match="rowid_column"):
        one.insert({"id": 1})
    with pytest.raises(WrapperError, match="cannot be written"):
        spy(one).insert({})


def test_a_row_with_too_few_values():
    class Short(Wrapper):
        def scan(self, quals, columns):
            return [[1]]

    with pytest.raises(WrapperError, match="1 values for 4 columns"):
        ForeignTable(Short, {}, COLUMNS).select()


def test_a_wrapper_written_for_multicorn(monkeypatch):
    """It imports multicorn and takes what that hands over; nothing of it is changed."""
    for name in ("multicorn", "multicorn.utils"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    multicorn_names.provide()
    space = {}
    exec(
        "from multicorn import ForeignDataWrapper\n"
        "class Constant(ForeignDataWrapper):\n"
        "    def __init__(self, options, columns):\n"
        "        super().__init__(options, columns)\n"
        "        self.columns = columns\n"
        "    def execute(self, quals, columns):\n"
        "        for index in range(20):\n"
        "            yield {name: '%s %s' % (name, index) for name in self.columns}\n",
        space,
    )
    rows = ForeignTable(space["Constant"], {}, {"test": "text", "test2": "text"}).select()
    assert len(rows) == 20 and rows[19] == {"test": "test 19", "test2": "test2 19"}
    for name in ("multicorn", "multicorn.utils"):
        sys.modules.pop(name, None)
