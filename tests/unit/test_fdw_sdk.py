# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wrapper SDK, driven as Multicorn drives a wrapper."""

from __future__ import annotations

import datetime
import json
import pathlib
import re
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "roles" / "fdw_host" / "files"))

from pgfleet_fdw import Deadline, Option, Table, Wrapper, WrapperError, allowed_values, errors, multicorn_names, positive_seconds, safe_quals
from pgfleet_fdw.options import check_scopes
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
    for one in (option, Option(positive_seconds, secret=True), Option(choices=("a",), secret=True)):
        with pytest.raises(WrapperError) as caught:
            one.parse("password", "hidden")
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


@pytest.mark.parametrize(("row", "word"), [("abcd", "str"), (5, "int"), (b"abcd", "bytes"), (None, "NoneType")])
def test_what_is_no_row(row, word):
    class NoRow(Wrapper):
        def scan(self, quals, columns):
            yield row

    with pytest.raises(WrapperError, match="yielded %s in place of a row" % word):
        ForeignTable(NoRow, {}, COLUMNS).select()


def test_a_hook_that_fails_late_is_only_told_in_subclasses_as_well(monkeypatch):
    told = []
    monkeypatch.setattr(errors, "_sinks", [lambda *message: told.append(message)])

    class Failing(Spy):
        def rollback(self):
            raise RuntimeError("too late")

        def scan(self, quals, columns):
            raise WrapperError("nothing works today")

    class More(Failing):
        pass

    with pytest.raises(WrapperError, match="nothing works"):
        ForeignTable(More, {"key": "k"}, COLUMNS).select()
    assert [message[:2] for message in told] == [("warning", "rollback of More failed, after the transaction had ended: too late")]


def test_estimates_are_sane_without_a_word_from_the_wrapper():
    class Plain(Wrapper):
        pass

    class Empty(Wrapper):
        rows = 0

    assert Plain({}, {}).get_rel_size([], set()) == (100, 100) and Empty({}, {}).get_rel_size([], set()) == (1, 100)
    assert Plain({}, {}).get_path_keys() == [] and Plain({}, {}).can_sort([]) == [] and Plain({}, {}).can_limit(1, 0) is False


def test_conditions_that_a_wrapper_may_rely_on():
    kinds = {"n": 23, "at": 1114, "price": 1700, "ratio": 701, "name": 25}
    columns = {name: multicorn_names.ColumnDefinition(name, oid) for name, oid in kinds.items()}
    good = [("n", "=", 1), ("name", ("=", True), ["a"]), ("name", "=", None), ("name", "<>", None)]
    bad = [("at", "<", "x"), ("price", "=", 1.0), ("ratio", ">", "1"), ("n", ("=", True), 94021333), ("n", "<", None), ("other", "=", 1)]
    quals = [multicorn_names.Qual(*one) for one in bad + good]
    assert [(one.field_name, one.operator, one.value) for one in safe_quals(quals, columns)] == good


def test_a_deadline_is_one_for_all(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("pgfleet_fdw.deadline.time.monotonic", lambda: now[0])
    deadline = Deadline(3)
    now[0] += 2
    assert deadline.left == 1
    now[0] += 1
    with pytest.raises(WrapperError, match="no answer within 3 s"):
        _none_left = deadline.left


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "soon", ""])
def test_seconds_that_are_none(text):
    with pytest.raises(WrapperError, match=r"is not accepted, (expected seconds|could not convert)"):
        Option(positive_seconds).parse("timeout", text)


def test_where_an_option_may_be_set():
    declared = {"url": Option(scope=("server",)), "password": Option(scope=("mapping",)), "size": Option()}
    check_scopes(declared, {"server": {"url": "x", "size": "1", "other": "1"}, "mapping": {"password": "x"}, "table": {"size": "2"}})
    for part, name, words in (
        ("mapping", "url", 'the option "url" is set for the user mapping'), ("table", "url", 'the option "url" is set for the table'),
        ("server", "password", 'the option "password" is set for the server'),
    ):  # fmt: skip
        with pytest.raises(WrapperError, match=words) as caught:
            check_scopes(declared, {part: {name: "hidden"}})
        assert "hidden" not in str(vars(caught.value))


@pytest.mark.parametrize(
    ("kind", "value", "passed"),
    [
        ("int", 1, 1), ("bigint", 1, "1"), ("smallint", 1, "1"), ("float8", 1.5, "1.5"), ("numeric", "1.50", 1.5), ("bool", True, "t"), ("bool", False, "f"),
        ("text", "a", "a"), ("date", datetime.date(2026, 1, 2), datetime.date(2026, 1, 2)),
        ("timestamp", datetime.datetime(2026, 1, 2, 3, 4, 5, 6), datetime.datetime(2026, 1, 2, 3, 4, 5)),
        ("timestamptz", datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc), "2026-01-02 03:00:00+00:00"),
        ("bytea", b"a", b"a"), ("uuid", "a-b", "a-b"), ("jsonb", "{}", "{}"), ("int[]", [1, 2], [1, 2]), ("bigint[]", [1, None], ["1", None]),
        ("text", None, None),
    ],
)  # fmt: skip
def test_how_constants_arrive(kind, value, passed):
    class Asked(Wrapper):
        def scan(self, quals, columns):
            self.asked = [one.value for one in quals]
            self.types = {name: (type(self.columns[name]).__name__, self.columns[name].type_oid > 0) for name in columns}
            yield {"c": value}

    one = ForeignTable(Asked, {}, {"c": kind})
    one.select(where=[("c", "=", value)])
    (found,) = spy(one).asked
    assert found == passed and type(found) is type(passed) and spy(one).types == {"c": ("ColumnDefinition", True)}


def test_nothing_of_the_package_imports_multicorn():
    """The only mention is that of the names which a host gives to wrappers that do."""
    for path in sorted(pathlib.Path(errors.__file__).parent.glob("*.py")):
        found = [line for line in path.read_text().splitlines() if re.search(r"^\s*(from|import) multicorn\b|import_module\(.multicorn", line)]
        assert found == (['        module = importlib.import_module("multicorn")'] if path.name == "multicorn_names.py" else []), path
    code = "import sys, pgfleet_fdw, pgfleet_fdw.testing, pgfleet_fdw.plpython, pgfleet_fdw.cluster, pgfleet_fdw.pgbouncer; print('multicorn' in sys.modules)"
    path = str(pathlib.Path(errors.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True).stdout == "False\n"


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
