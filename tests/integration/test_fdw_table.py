# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign tables on a real PostgreSQL: of postgres_fdw, and of classes in Python with PL/Python."""

from __future__ import annotations

import json

import psycopg
import pytest
from fdw_packages import install_packages
from lab import call_module, four_steps

SHOP = '''
import datetime
import json
import os

from pgfleet_fdw import Option, Table, Wrapper, WrapperError

class Numbers(Wrapper):
    """Keeps its rows in a file, so that all sessions see them."""

    options = {"file": Option(required=True, scope=("server",)), "fail": Option(bool, default=False, scope=("table",)), "short": Option(bool, default=False)}
    rowid_column = "n"

    def _load(self):
        return json.load(open(self.opt["file"])) if os.path.exists(self.opt["file"]) else {}

    def _save(self, rows):
        with open(self.opt["file"], "w") as stream:
            json.dump(rows, stream)

    def scan(self, quals, columns):
        if self.opt["fail"]:
            raise WrapperError("nothing works today", hint="Come back tomorrow")
        for n, word in sorted(self._load().items()):
            yield {"n": n} if self.opt["short"] else {"n": n, "word": word, "more": {"of": word}}

    def insert(self, values):
        if values["word"] == "bad":
            raise WrapperError("no bad words")
        rows = self._load()
        rows[str(values["n"])] = values["word"]
        self._save(rows)

    def update(self, rowid, values):
        self.insert(values)

    def delete(self, rowid):
        rows = self._load()
        del rows[str(rowid)]
        self._save(rows)

    @classmethod
    def tables(cls, options, schema):
        return [Table("numbers", [("n", "integer"), ("word", "text")]), Table("of " + schema, [("n", "numeric(10,2)")], {"short": "true"})]
'''
ODD = """
import time

from pgfleet_fdw import Option, Wrapper

class Odd(Wrapper):
    options = {"kind": Option(scope=("table",)), "text": Option(default="", scope=("table",))}

    def scan(self, quals, columns):
        kind = self.opt["kind"]
        if kind == "hangs":
            for _n in range(100):
                time.sleep(0.1)
                yield {"n": 1}
        elif kind == "raises late":
            yield {"n": 1}
            raise KeyError("it's \\ odd")
        elif kind == "exits":
            raise SystemExit(3)
        elif kind == "nothing":
            return None
        else:
            yield {"short": (1,), "long": (1, "a", None, 4), "wrong": {"n": "no number"}, "other": {"m": 1}, "huge": {"n": 1, "word": "x" * 5000000},
                   "echo": {"n": 1, "word": self.opt["text"]}}[kind]
"""
COLUMNS = [{"name": "n", "type": "int"}, {"name": "word", "type": "varchar"}, {"name": "more", "type": "jsonb"}]


@pytest.fixture(scope="module")
def server(lab):
    packages = install_packages(lab, shop_fdw=SHOP, odd_fdw=ODD)
    server = lab.postgres("tables", environment={"PYTHONPATH": str(packages)}).init().start()
    server.sql("CREATE EXTENSION postgres_fdw")
    server.sql("CREATE SCHEMA there")
    server.sql("CREATE TABLE there.stock (item bigint NOT NULL, amount numeric(12,3), note text)")
    server.sql("CREATE TABLE there.prices (item bigint, price money)")
    server.sql("INSERT INTO there.stock VALUES (1, 2.5, 'x')")
    server.sql("CREATE ROLE reader LOGIN PASSWORD 'reads a lot'")
    made = [call_module("fdw_wrapper", {**server.login, "name": "fleet", "packages": ["shop_fdw", "odd_fdw"]})]
    here = {"host": "127.0.0.1", "port": server.port, "dbname": "postgres"}
    mapping = {"role": "PUBLIC", "options": {"user": "postgres"}, "secrets": {"password": server.login["login_password"]}}
    made.append(call_module("fdw_server", {**server.login, "name": "back", "wrapper": "postgres_fdw", "options": here, "mappings": [mapping]}))
    assert not any(result["failed"] for result in made), made
    return server


@pytest.fixture
def back(server):
    """Options of a schema of its own for tables of postgres_fdw."""
    server.sql("CREATE SCHEMA here")
    yield {**server.login, "schema": "here", "server": "back"}
    server.sql("DROP SCHEMA here CASCADE")


@pytest.fixture
def numbers(server, tmp_path):
    """The same for tables of the class above."""
    tmp_path.chmod(0o777)
    file = server.base / "numbers.json"
    options = {"wrapper": "shop_fdw.Numbers", "file": str(file)}
    assert not call_module("fdw_server", {**server.login, "name": "numbers", "wrapper": "fleet", "options": options})["failed"]
    server.sql("CREATE SCHEMA here")
    yield {**server.login, "schema": "here", "server": "numbers"}
    server.sql("DROP SCHEMA here CASCADE")
    file.unlink(missing_ok=True)


def refused(result, *words):
    assert result["failed"] and result["changed"] is False, result
    for word in words:
        assert word in result["msg"], result["msg"]


# -- any wrapper ---------------------------------------------------------------------------------------------------------


def test_a_table_by_its_columns(server, back):
    wanted = {
        **back, "name": "stock", "options": {"schema_name": "there", "table_name": "stock"},
        "columns": [{"name": "item", "type": "int8", "not_null": True}, {"name": "much", "type": "decimal(12, 3)", "options": {"column_name": "amount"}}],
    }  # fmt: skip
    result = four_steps("fdw_table", wanted)
    assert result["runtime"] is None
    assert result["tables"][0]["columns"][1] == {"name": "much", "type": "numeric(12,3)", "not_null": False, "options": {"column_name": "amount"}}
    assert server.sql("SELECT * FROM here.stock") == [(1, pytest.approx(2.5))] or server.sql("SELECT item, much::float FROM here.stock") == [(1, 2.5)]
    server.sql("GRANT SELECT ON here.stock TO reader")
    before = server.value("SELECT 'here.stock'::regclass::oid")
    wanted["columns"] = [{"name": "item", "type": "bigint"}, {"name": "amount", "type": "float8"}, {"name": "note", "type": "text"}]
    wanted["options"] = {"table_name": "stock", "schema_name": "there", "updatable": False}
    result = four_steps("fdw_table", wanted)
    assert result["plan"] == ["change here.stock: DROP much, item NULL, ADD amount, ADD note, ADD updatable"]
    assert server.sql("SELECT * FROM here.stock") == [(1, 2.5, "x")]
    assert server.value("SELECT 'here.stock'::regclass::oid") == before and server.value("SELECT has_table_privilege('reader', 'here.stock', 'SELECT')") is True
    four_steps("fdw_table", {**server.login, "schema": "here", "name": "stock", "state": "absent"})


def test_an_import_is_the_same_a_second_time(server, back):
    result = four_steps("fdw_table", {**back, "import_schema": "there"})
    assert [table["name"] for table in result["tables"]] == ["prices", "stock"]
    server.sql("ALTER TABLE there.stock ADD COLUMN extra int")
    try:
        result = four_steps("fdw_table", {**back, "import_schema": "there"})
        assert result["plan"] == ["change here.stock: ADD extra"]
    finally:
        server.sql("ALTER TABLE there.stock DROP COLUMN extra")
    result = call_module("fdw_table", {**back, "import_schema": "there", "limit_to": ["stock"]})
    assert result["plan"] == ["change here.stock: DROP extra"]
    assert call_module("fdw_table", {**back, "import_schema": "there", "exclude": ["stock"], "import_options": {"import_default": True}})["changed"] is False
    refused(call_module("fdw_table", {**back, "import_schema": "there", "limit_to": ["stock", "nothing"]}), "offers no nothing")
    refused(call_module("fdw_table", {**back, "import_schema": "nowhere"}), "nowhere")
    assert server.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgfleet_import%'") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": [{"name": "a", "type": "no_such_type"}]}, ["no_such_type", "column a"]),
        ({"columns": [{"name": "a", "type": "int; DROP TABLE there.stock"}]}, ["a type as in CREATE TABLE"]),
        ({"columns": [{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]}, ["a twice"]),
        ({"columns": []}, ["columns is empty"]),
        ({"server": "no_such_server"}, ["no_such_server", "fdw_server"]),
        ({"options": {"no_such_option": "1"}}, ["no_such_option"]),
        ({"rows": 0}, ["rows is 0"]),
        ({"name": "t" * 60}, ["60 bytes"]),
        ({"schema": "no_such_schema"}, ["no_such_schema"]),
    ],
)
def test_bad_options_change_nothing(server, back, changes, words):
    refused(call_module("fdw_table", {**back, "name": "stock", "columns": [{"name": "item", "type": "int"}], **changes}), *words)
    assert server.value("SELECT to_regclass('here.stock')") is None and server.value("SELECT to_regclass('there.stock')") is not None


def test_what_is_there_already_is_left_alone(server, back):
    server.sql("CREATE TABLE here.stock (mine int)")
    refused(call_module("fdw_table", {**back, "name": "stock", "columns": [{"name": "item", "type": "int"}]}), "here.stock is there already and is a table")


# -- classes in Python ---------------------------------------------------------------------------------------------------


def test_a_class_behind_a_view(server, numbers):
    wanted = {**numbers, "name": "numbers", "columns": COLUMNS, "writable": True}
    result = four_steps("fdw_table", wanted)
    assert result["runtime"] == "plpython" and result["tables"][0]["foreign_table"] == "numbers_ft"
    assert server.sql("SELECT * FROM here.numbers") == []
    assert server.sql("INSERT INTO here.numbers VALUES (1, 'one'), (2, 'two')") == []
    assert server.sql("SELECT n, word, more->>'of' FROM here.numbers ORDER BY n") == [(1, "one", "one"), (2, "two", "two")]
    server.sql("UPDATE here.numbers SET word = 'II' WHERE n = 2")
    server.sql("DELETE FROM here.numbers WHERE n = 1")
    assert server.sql("SELECT n, word FROM here.numbers") == [(2, "II")]
    assert server.sql("SELECT count(*) FROM pgfleet_fdw.outbox") == [(0,)]


def test_writes_wait_for_the_end_of_their_transaction(server, numbers):
    call_module("fdw_table", {**numbers, "name": "numbers", "columns": COLUMNS, "writable": True})
    with psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", password=server.login["login_password"], dbname="postgres") as session:
        session.execute("INSERT INTO here.numbers VALUES (1, 'kept')")
        with pytest.raises(ZeroDivisionError), session.transaction():
            session.execute("INSERT INTO here.numbers VALUES (2, 'taken back')")
            raise ZeroDivisionError
        session.execute("INSERT INTO here.numbers VALUES (3, 'kept as well')")
        assert server.sql("SELECT * FROM here.numbers") == []
        session.commit()
        assert server.sql("SELECT n FROM here.numbers ORDER BY n") == [(1,), (3,)]
        session.execute("CREATE TABLE here.own (a int)")
        session.execute("INSERT INTO here.numbers VALUES (4, 'bad')")
        with pytest.raises(psycopg.Error, match="no bad words"):
            session.commit()
    assert server.value("SELECT to_regclass('here.own')") is None and server.sql("SELECT count(*) FROM pgfleet_fdw.outbox") == [(0,)]


def test_columns_come_and_go_and_rights_stay(server, numbers):
    wanted = {**numbers, "name": "numbers", "columns": COLUMNS[:2]}
    call_module("fdw_table", wanted)
    server.sql("GRANT SELECT ON here.numbers TO reader")
    server.sql("GRANT USAGE ON SCHEMA here TO reader")
    result = four_steps("fdw_table", wanted)
    assert result["plan"] == ["let reader, who may read here.numbers, have it read"]
    server.sql("CREATE VIEW here.above AS SELECT n FROM here.numbers")
    result = four_steps("fdw_table", {**wanted, "columns": COLUMNS})
    assert result["plan"] == ["change here.numbers: ADD more", "let plpython read here.numbers"]
    refused(call_module("fdw_table", {**wanted, "columns": COLUMNS[:1]}), "here.above", "in use")
    refused(call_module("fdw_table", {**server.login, "schema": "here", "name": "numbers", "state": "absent"}), "here.above", "cascade")
    server.sql("DROP VIEW here.above")
    four_steps("fdw_table", {**wanted, "columns": [{"name": "n", "type": "text"}]})
    (server.base / "numbers.json").write_text('{"7": "seven"}')
    with psycopg.connect(host="127.0.0.1", port=server.port, user="reader", password="reads a lot", dbname="postgres") as session:
        assert session.execute("SELECT * FROM here.numbers").fetchall() == [("7",)]
        with pytest.raises(psycopg.Error, match=r"permission denied|no handler"):
            session.execute("SELECT * FROM here.numbers_ft")
    four_steps("fdw_table", {**server.login, "schema": "here", "name": "numbers", "state": "absent"})
    assert server.sql("SELECT proname FROM pg_proc WHERE pronamespace = 'here'::regnamespace") == []


def test_an_import_from_a_class(server, numbers):
    result = four_steps("fdw_table", {**numbers, "import_schema": "it's"})
    assert [table["name"] for table in result["tables"]] == ["numbers", "of it's"]
    assert result["tables"][1]["columns"][0]["type"] == "numeric(10,2)" and result["tables"][1]["options"] == {"short": "true"}
    server.sql("INSERT INTO there.stock VALUES (9, 9, '9')")
    (server.base / "numbers.json").write_text('{"7": "seven"}')
    assert server.sql("SELECT n::int FROM here.\"of it's\"") == [(7,)]
    assert call_module("fdw_table", {**numbers, "import_schema": "it's", "limit_to": ["numbers"]})["changed"] is False


def test_what_goes_wrong_in_a_class_is_an_error_and_no_more(server, numbers):
    call_module("fdw_table", {**numbers, "name": "failing", "columns": COLUMNS, "options": {"fail": True}})
    with pytest.raises(psycopg.Error, match="nothing works today") as caught:
        server.sql("SELECT * FROM here.failing")
    assert caught.value.diag.message_hint == "Come back tomorrow"
    call_module("fdw_table", {**numbers, "name": "unknown", "columns": COLUMNS, "options": {"colour": "red"}})
    with pytest.raises(psycopg.Error, match='there is no option "colour"'):
        server.sql("SELECT * FROM here.unknown")
    with pytest.raises(psycopg.Error, match=r"cannot be written|cannot insert"):
        server.sql("INSERT INTO here.failing VALUES (1)")
    assert server.value("SELECT 1") == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("short", "a row of 1 values for 3 columns"), ("long", "a row of 4 values for 3 columns"), ("wrong", "invalid input syntax for type integer"),
        ("raises late", "odd"), ("hangs", "statement timeout"), ("exits", "SystemExit"),
    ],
)  # fmt: skip
def test_a_class_that_misbehaves_leaves_the_session_alive(server, numbers, kind, words):
    assert not call_module("fdw_server", {**server.login, "name": "odd", "wrapper": "fleet", "options": {"wrapper": "odd_fdw.Odd"}})["failed"]
    wanted = {**numbers, "server": "odd", "name": "odd", "columns": COLUMNS, "options": {"kind": kind}}
    assert not call_module("fdw_table", wanted)["failed"]
    with server.connect() as session:
        session.execute("SET statement_timeout = '1s'")
        for _time in range(2):
            with pytest.raises(psycopg.Error, match=words):
                session.execute("SELECT * FROM here.odd").fetchall()
            assert session.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("kind", ["nothing", "other", "huge", "echo"])
def test_odd_rows_are_rows(server, numbers, kind):
    assert not call_module("fdw_server", {**server.login, "name": "odd", "wrapper": "fleet", "options": {"wrapper": "odd_fdw.Odd"}})["failed"]
    hostile = "'; DROP TABLE x; -- \" $$ \\ %s {} \n\té" + "y" * 100000
    four_steps("fdw_table", {**numbers, "server": "odd", "name": "odd", "columns": COLUMNS, "options": {"kind": kind, "text": hostile}})
    rows = server.sql("SELECT n, word FROM here.odd")
    assert rows == {"nothing": [], "other": [(None, None)], "huge": [(1, "x" * 5000000)], "echo": [(1, hostile)]}[kind]


def test_a_name_full_of_quotes(server, numbers):
    name = 'it\'s "quoted" $$ %s'
    columns = [{"name": "n", "type": "int"}, {"name": 'wo"rd\'', "type": "text"}]
    four_steps("fdw_table", {**numbers, "name": name, "columns": columns, "options": {"short": "true"}})
    (server.base / "numbers.json").write_text(json.dumps({"7": "x"}))
    quoted = '"%s"' % name.replace('"', '""')
    with server.connect() as session:
        assert session.execute(("SELECT * FROM here.%s" % quoted).encode()).fetchall() == [(7, None)]
    four_steps("fdw_table", {**server.login, "schema": "here", "name": name, "state": "absent"})
