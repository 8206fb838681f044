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
HOOKS = """
import json

from multicorn import ForeignDataWrapper, TransactionAwareForeignDataWrapper

class Constant(ForeignDataWrapper):

    def __init__(self, options, columns):
        super(Constant, self).__init__(options, columns)
        self.columns = columns

    def execute(self, quals, columns):
        for index in range(20):
            line = {}
            for column_name in self.columns:
                line[column_name] = '%s %s' % (column_name, index)
            yield line

class Told(TransactionAwareForeignDataWrapper):
    # Writes down what it is told, and in pre_commit what it has collected.

    rowid_column = "n"

    def __init__(self, options, columns):
        super().__init__(options, columns)
        self.file = options["file"]

    def _tell(self, *what):
        with open(self.file, "a") as stream:
            stream.write(json.dumps(what) + "\\n")

    def execute(self, quals, columns):
        self._tell("execute", [[qual.field_name, qual.operator, qual.value] for qual in quals])
        return [{"n": 1}]

    def insert(self, values):
        if values["word"] == "bad":
            raise ValueError("no bad words")
        super().insert(values)

    def begin(self, serializable):
        self._tell("begin", serializable)

    def end_modify(self):
        self._tell("end_modify")

    def pre_commit(self):
        self._tell("pre_commit", [values["n"] for _insert, values in self.current_transaction_state])

    def commit(self):
        self._tell("commit")
        self._init_transaction_state()
        raise ValueError("too late")

    def rollback(self):
        self._tell("rollback")
        super().rollback()

class Batches(Told):
    modify_batch_size = 10

    def bulk_insert(self, all_values):
        self._tell("bulk_insert", [values["n"] for values in all_values])
"""
COLUMNS = [{"name": "n", "type": "int"}, {"name": "word", "type": "varchar"}, {"name": "more", "type": "jsonb"}]


@pytest.fixture(scope="module")
def server(lab):
    packages = install_packages(lab, shop_fdw=SHOP, odd_fdw=ODD, hooks_fdw=HOOKS)
    server = lab.postgres("tables", environment={"PYTHONPATH": str(packages)}).init().start()
    server.sql("CREATE EXTENSION postgres_fdw")
    server.sql("CREATE SCHEMA there")
    server.sql("CREATE TABLE there.stock (item bigint NOT NULL, amount numeric(12,3), note text)")
    server.sql("CREATE TABLE there.prices (item bigint, price money)")
    server.sql("INSERT INTO there.stock VALUES (1, 2.5, 'x')")
    server.sql("CREATE ROLE reader LOGIN PASSWORD 'reads a lot'")
    made = [call_module("fdw_wrapper", {**server.login, "name": "fleet", "packages": ["shop_fdw", "odd_fdw", "hooks_fdw"]})]
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


@pytest.fixture
def told(server, numbers, request):
    """A table of a class that writes down what it is told, and the function that tells what that was since the last time."""
    file = server.base / "told"
    kind = getattr(request, "param", "Told")
    options = {"wrapper": "hooks_fdw.%s" % kind, "file": str(file)}
    assert not call_module("fdw_server", {**server.login, "name": kind, "wrapper": "fleet", "options": options})["failed"]
    assert not call_module("fdw_table", {**numbers, "server": kind, "name": "told", "columns": COLUMNS, "writable": True})["failed"]

    def since():
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    yield since
    file.unlink(missing_ok=True)


def login(server, user="postgres", password=None):
    return psycopg.connect(host="127.0.0.1", port=server.port, user=user, password=password or server.login["login_password"], dbname="postgres")


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
        ({"schema": "no_such_schema"}, ['no schema "no_such_schema"', "create_schema=true"]),
        ({"options": {"table_name": ["stock"]}}, ['"table_name"', "is a list"]),
        ({"columns": [{"name": "a", "type": "int", "options": {"column_name": ["b"]}}]}, ['"column_name"', "is a list"]),
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


def test_a_class_written_for_multicorn_answers(server, numbers):
    """As it is in the documentation of that, with nothing changed and without its package."""
    assert not call_module("fdw_server", {**server.login, "name": "constant", "wrapper": "fleet", "options": {"wrapper": "hooks_fdw.Constant"}})["failed"]
    columns = [{"name": "test", "type": "character varying"}, {"name": "test2", "type": "character varying"}]
    four_steps("fdw_table", {**numbers, "server": "constant", "name": "constant", "columns": columns})
    rows = server.sql("SELECT * FROM here.constant")
    assert len(rows) == 20 and rows[19] == ("test 19", "test2 19")
    assert server.sql("SELECT test2 FROM here.constant WHERE test LIKE '%%7' ORDER BY 1") == [("test2 17",), ("test2 7",)]


def test_a_class_is_told_of_its_transactions(server, told):
    """Of the end of one it hears in the next, as nobody is called at the end; an error of it there ends nothing."""
    with login(server) as session:
        notices = []
        session.add_notice_handler(lambda message: notices.append(message.message_primary))
        session.execute("INSERT INTO here.told VALUES (1, 'a'), (2, 'b')")
        assert told() == [["begin", 0]]
        session.commit()
        assert told() == [["end_modify"], ["pre_commit", [1, 2]]]
        session.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        session.execute("SELECT * FROM here.told")
        session.execute("SELECT * FROM here.told")
        assert told() == [["commit"], ["begin", 1], ["execute", []], ["execute", []]]
        assert notices == ["commit of Told failed, after the transaction had ended: too late"]
        session.rollback()
        session.execute("SELECT * FROM here.told")
        assert told() == [["rollback"], ["begin", 0], ["execute", []]]


def test_what_was_taken_back_is_not_applied_later(server, told):
    with login(server) as session:
        session.execute("INSERT INTO here.told VALUES (1, 'collected and taken back'), (2, 'bad')")
        with pytest.raises(psycopg.Error, match="no bad words"):
            session.commit()
        session.execute("INSERT INTO here.told VALUES (3, 'kept')")
        session.commit()
    assert told() == [["begin", 0], ["rollback"], ["begin", 0], ["end_modify"], ["pre_commit", [3]]]


@pytest.mark.parametrize("told", ["Batches"], indirect=True)
def test_a_class_that_takes_batches_gets_them(server, told):
    server.sql("INSERT INTO here.told VALUES (1), (2)")
    assert told() == [["begin", 0], ["bulk_insert", [1]], ["bulk_insert", [2]], ["end_modify"], ["pre_commit", []]]


def test_conditions_for_a_scan(server, told):
    server.sql("""SELECT * FROM here.told_scan('{"n": 1, "word": ["a", 2, true, null], "more": null}')""")
    assert told()[1] == ["execute", [["n", "=", 1], ["more", "=", None], ["word", ["=", True], ["a", "2", "t", None]]]]
    for asked, words in (
        ('{"m": 1}', 'no column "m"'), ('{"n": {"<": 3}}', "neither a value nor a list"), ('{"n": [[1]]}', "neither a value nor a list"),
        ("[1]", "no JSON object"), ("1", "no JSON object"),
    ):  # fmt: skip
        with pytest.raises(psycopg.Error, match=words) as caught:
            server.sql("SELECT * FROM here.told_scan('%s')" % asked)
        assert caught.value.diag.message_hint and told() == [["begin", 0]]


def test_an_option_is_taken_only_where_it_belongs(server, numbers):
    """Whoever may use a server can have a mapping of his own: with that he must not say which file is read, or where a password goes."""
    call_module("fdw_table", {**numbers, "name": "numbers", "columns": COLUMNS})
    server.sql("CREATE USER MAPPING FOR PUBLIC SERVER numbers OPTIONS (file '/etc/passwd')")
    try:
        with pytest.raises(psycopg.Error, match='"file" is set for the user mapping') as caught:
            server.sql("SELECT * FROM here.numbers")
        assert caught.value.diag.message_hint == "It belongs to the server"
        refused(call_module("fdw_table", {**numbers, "import_schema": "x"}), '"file" is set for the user mapping')
        (problem,) = call_module("fdw_info", {**server.login, "wrappers": ["fleet"]})["problems"]
        assert problem == 'here.numbers: the option "file" is set for the user mapping'
    finally:
        server.sql("DROP USER MAPPING FOR PUBLIC SERVER numbers")


def test_whose_mapping_counts(server, numbers):
    """That of the role which asks, also when it was set: not that of the function's owner."""
    call_module("fdw_table", {**numbers, "name": "numbers", "columns": COLUMNS})
    server.sql("GRANT SELECT ON here.numbers TO reader")
    server.sql("GRANT USAGE ON SCHEMA here TO reader")
    call_module("fdw_table", {**numbers, "name": "numbers", "columns": COLUMNS})
    (server.base / "numbers.json").write_text('{"7": "seven"}')
    try:
        server.sql("CREATE USER MAPPING FOR reader SERVER numbers OPTIONS (short 'true')")
        with login(server) as session:
            for _again in range(2):
                assert session.execute("SELECT word FROM here.numbers").fetchall() == [("seven",)]
                session.execute("SET ROLE reader")
                assert session.execute("SELECT word FROM here.numbers").fetchall() == [(None,)]
                session.execute("RESET ROLE")
        with login(server, "reader", "reads a lot") as session:
            assert session.execute("SELECT word FROM here.numbers").fetchall() == [(None,)]
    finally:
        server.sql("DROP USER MAPPING FOR reader SERVER numbers")


def test_odd_values_are_written_as_they_are(server, numbers):
    call_module("fdw_table", {**numbers, "name": "numbers", "columns": COLUMNS, "writable": True})
    for n, word in enumerate(["'; DROP TABLE x; -- \" $$ \\ %s {} \n\té", "", "x" * 5000000]):
        server.sql("INSERT INTO here.numbers VALUES (%s, %s)", [n, word])
        assert server.sql("SELECT word FROM here.numbers WHERE n = %s", [n]) == [(word,)]
        server.sql("UPDATE here.numbers SET word = word || '!' WHERE n = %s", [n])
        assert server.sql("SELECT word = %s || '!' FROM here.numbers WHERE n = %s", [word, n]) == [(True,)]
    server.sql("INSERT INTO here.numbers SELECT n, 'w' FROM generate_series(10, 60) n")
    assert server.value("SELECT count(*) FROM here.numbers") == 54


def test_drift_is_shown_and_mended(server, numbers):
    wanted = {**numbers, "name": "numbers", "columns": COLUMNS, "options": {"short": "false"}}
    call_module("fdw_table", wanted)
    server.sql("ALTER FOREIGN TABLE here.numbers_ft OPTIONS (SET short 'true', ADD fail 'true'), ALTER COLUMN word SET NOT NULL")
    result = four_steps("fdw_table", wanted)
    assert result["plan"] == ["change here.numbers: word NULL, DROP fail, SET short"]
    (diff,) = result["diff"]
    assert "word character varying not null" in diff["before"] and "short: true" in diff["before"] and "fail: true" in diff["before"]
    assert "not null" not in diff["after"] and "short: false" in diff["after"] and "fail" not in diff["after"]
