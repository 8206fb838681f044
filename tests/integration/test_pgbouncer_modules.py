# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgbouncer_info, pgbouncer_databases and what the ini editor writes, on the real PgBouncer."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput, QueryFailed, WaitTimeout
from ansible_collections.pgfleet.ops.plugins.module_utils._pgbouncer.console import Console
from ansible_collections.pgfleet.ops.plugins.module_utils._pgbouncer.ini import Ini
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import Target
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline
from lab import SUPERUSER_PASSWORD, call_module, four_steps, free_port, run

NASTY = 'o\'clock "x"=y; #z [s] %include ä\\'


@pytest.fixture(scope="module")
def primary(lab):
    server = lab.postgres("primary").init().start()
    server.sql("CREATE DATABASE app")
    server.sql('CREATE DATABASE "%s"' % NASTY.replace('"', '""'))
    return server


@pytest.fixture(scope="module")
def standby(lab, primary):
    server = lab.postgres("standby").clone(primary)
    primary.wait_for_standbys(1)
    return server


@pytest.fixture
def pooler(own_lab, primary):
    return own_lab.pgbouncer("pooler", {"app": "host=127.0.0.1 port=%d dbname=app" % primary.port}).start()


@contextlib.contextmanager
def silent_server():
    """Accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        kept = []
        threading.Thread(target=lambda: [kept.append(server.accept()) for _n in range(16)], daemon=True).start()
        yield server.getsockname()[1]


def console(pooler):
    return Console.open(Target("127.0.0.1", pooler.port, "pooler_admin", "pgbouncer", SUPERUSER_PASSWORD))


def edit(pooler, *changes):
    ini = Ini.parse(pooler.databases_file.read_text())
    for name, params in changes:
        ini.set_database(name, params)
    pooler.databases_file.write_text(ini.text())
    return ini


# -- the editor


def test_pgbouncer_reads_what_the_editor_writes(pooler, primary):
    here = {"host": "127.0.0.1", "port": primary.port}
    ini = edit(
        pooler,
        ("nasty", {**here, "dbname": NASTY}),
        ("spaces", {"host": " leading, trailing ", "dbname": "''"}),
        ("tab", {"dbname": "a\tb "}),
        ("-._*odd", {**here, "dbname": "app"}),
        ("x" * 63, {**here, "dbname": "app", "pool_mode": "statement"}),
        ("query", {**here, "dbname": "app", "connect_query": "SET application_name = 'it''s; me'", "pool_size": 3, "password": "x 'y' z"}),
    )
    before = {**ini.databases()}
    with contextlib.closing(console(pooler)) as admin:
        admin.reload()
        seen = admin.databases()
        assert {name: (row["host"], row["port"], row["database"]) for name, row in seen.items()} == {
            name: (params.get("host"), int(params.get("port", 5432)), params.get("dbname", name)) for name, params in before.items()
        }
        assert (seen["query"]["pool_size"], seen["x" * 63]["pool_mode"]) == (3, "statement")
        # Quoting in the console: each database of a name that the file can hold can be paused and resumed.
        for name in ("-._*odd", "x" * 63, "nasty"):
            admin.pause(name)
            assert admin.databases()[name]["paused"] is True
            assert admin.resume(name) is True
            assert admin.databases()[name]["paused"] is False
    with pooler.connect("nasty") as client:
        assert client.execute("SELECT current_database()").fetchone() == (NASTY,)
    with pooler.connect("query") as client:
        assert client.execute("SHOW application_name").fetchone() == ("it's; me",)


@pytest.mark.parametrize("line", ['"a b" = host=x', "ä = host=x", "a = host=''", "a = host=x ; comment", "a = host='x", "a"])
def test_pgbouncer_refuses_what_the_editor_refuses(own_lab, line):
    pooler = own_lab.pgbouncer("refusing", {"app": "host=127.0.0.1"})
    text = "[databases]\n%s\n" % line
    with pytest.raises(InvalidInput):
        Ini.parse(text)
    pooler.databases_file.write_text(text)
    out = run(["/usr/sbin/pgbouncer", pooler.ini], user="postgres", check=False)
    assert "ERROR syntax error" in out or "ERROR invalid value" in out
    assert "cannot load config file" in out
    pooler.databases_file.write_text("[databases]\na = host=x\n")
    pooler.start()


def test_names_too_long_for_pgbouncer(own_lab):
    pooler = own_lab.pgbouncer("long", {"app": "host=127.0.0.1"}).start()
    pooler.databases_file.write_text("[databases]\n%s = host=x\n" % ("x" * 64))
    with contextlib.closing(console(pooler)) as admin:
        admin.reload()
        assert "x" * 64 not in admin.databases()
    with pytest.raises(InvalidInput):
        Ini.parse("[databases]\n").set_database("x" * 64, {})


# -- the console


def test_the_console(pooler):
    with contextlib.closing(console(pooler)) as admin, contextlib.closing(console(pooler)) as second:
        assert admin.version_text.startswith("PgBouncer ") and admin.version >= (1, 18)
        row = admin.databases()["app"]
        assert isinstance(row["port"], int) and row["paused"] is False and row["disabled"] is False and isinstance(row["reserve_pool_size"], int)
        assert admin.config()["pool_mode"] == "transaction"
        admin.set("server_idle_timeout", "77")
        assert admin.config()["server_idle_timeout"] == "77"
        assert admin.resume(missing_ok=True) is False
        assert admin.resume("app", missing_ok=True) is False
        with pytest.raises(QueryFailed):
            admin.resume()
        with pooler.connect("app") as client:
            client.execute("BEGIN")
            client.execute("SELECT 1")
            assert [(pool["database"], pool["sv_active"]) for pool in admin.pools() if pool["user"] == "postgres"] == [("app", 1)]
            admin.start_pause()
            with pytest.raises(WaitTimeout):
                admin.finish_pause(Deadline(0.3))
            assert admin.pause_finished() is False
            assert second.resume() is True
            client.execute("COMMIT")
        second.pause()
        assert second.resume(missing_ok=True) is True


# -- pgbouncer_info


def test_info_of_one_pooler(pooler, primary):
    result = call_module("pgbouncer_info", {**pooler.login, "gather_subset": ["all"]})
    assert not result["failed"] and result["changed"] is False and result["all_reachable"] is True
    (facts,) = result["poolers"]
    assert (facts["name"], facts["host"], facts["port"]) == ("127.0.0.1:%d" % pooler.port, "127.0.0.1", pooler.port)
    assert facts["reachable"] is True and facts["error"] is None and facts["reason"] is None
    assert facts["version"].startswith("1.")
    (database,) = facts["databases"]
    assert (database["name"], database["port"], database["paused"]) == ("app", primary.port, False)
    assert facts["config"]["listen_port"] == str(pooler.port)
    assert {"pools", "stats", "lists", "users", "servers", "clients", "totals", "mem", "state"} <= set(facts)
    assert facts["paused_databases"] == []
    with contextlib.closing(console(pooler)) as admin:
        admin.pause("app")
        facts = call_module("pgbouncer_info", {**pooler.login, "gather_subset": ["min"]})["poolers"][0]
        assert facts["paused_databases"] == ["app"]
        assert not {"databases", "pools", "config"} & set(facts)
    assert SUPERUSER_PASSWORD not in json.dumps(result)


def test_info_of_many_poolers_within_one_limit(pooler, own_lab, primary):
    dead = free_port()
    with silent_server() as silent:
        entries = [
            {"name": "alive"},
            {"name": "dead", "login_port": dead},
            {"name": "hung1", "login_port": silent},
            {"name": "hung2", "login_port": silent},
            {"name": "hung3", "login_port": silent},
            {"name": "wrong", "login_password": "not it"},
            {"name": "postgres", "login_port": primary.port, "login_user": "postgres"},
            {"name": "nobody", "login_user": "postgres"},
        ]
        options = {**pooler.login, "poolers": entries, "timeout": 2}
        start = time.monotonic()
        result = call_module("pgbouncer_info", options)
        took = time.monotonic() - start
        failing = call_module("pgbouncer_info", {**options, "unreachable": "fail"})
        start = time.monotonic()
        call_module("pgbouncer_info", {**options, "timeout": 20, "poolers": entries[:2]})
        base = time.monotonic() - start
    assert not result["failed"], result
    found = {facts["name"]: facts for facts in result["poolers"]}
    assert [facts["name"] for facts in result["poolers"]] == [entry["name"] for entry in entries]
    assert found["alive"]["reachable"] is True and found["alive"]["databases"][0]["name"] == "app"
    expected = {"dead": "NotReachable", "wrong": "AuthenticationFailed", "postgres": "DatabaseMissing", "nobody": "AuthenticationFailed"}
    for name, error in expected.items():
        assert (name, found[name]["reachable"], found[name]["error"]) == (name, False, error)
        assert found[name]["reason"] and "databases" not in found[name]
    assert {found[name]["error"] for name in ("hung1", "hung2", "hung3")} <= {"NotReachable", "WaitTimeout"}
    # Three hung poolers cost one limit, not three.
    assert took - base < 4, (took, base)
    assert result["all_reachable"] is False
    assert failing["failed"] and failing["error"] == "NotReachable" and "7 of 8 poolers" in failing["msg"]
    assert failing["poolers"] == result["poolers"] or [facts["name"] for facts in failing["poolers"]] == [entry["name"] for entry in entries]
    assert SUPERUSER_PASSWORD not in json.dumps(result) + json.dumps(failing)


def test_info_refuses_a_list_that_cannot_be_meant(pooler):
    assert "empty list" in call_module("pgbouncer_info", {**pooler.login, "poolers": []})["msg"]
    twice = call_module("pgbouncer_info", {**pooler.login, "poolers": [{"name": "a"}, {"name": "a"}]})
    assert twice["failed"] and twice["error"] == "InvalidInput" and twice["phase"] == "observe"


# -- pgbouncer_databases


def options_of(pooler, *databases, **more):
    return {**pooler.login, "config_file": str(pooler.databases_file), "databases": list(databases), **more}


def runtime(pooler):
    return {row["name"]: (row["host"], row["port"], row["database"]) for row in pooler.show("DATABASES") if row["name"] != "pgbouncer"}


def test_add_change_and_remove(pooler, primary, standby):
    pid = pooler.pid
    text = "; kept\n[databases]\n; kept too\n  app = host=127.0.0.1 port=%d dbname=app   pool_size=7\n\n# end\n" % primary.port
    pooler.databases_file.write_text(text)
    pooler.databases_file.chmod(0o640)
    real = four_steps(
        "pgbouncer_databases",
        options_of(
            pooler, {"name": "app_ro", "host": "127.0.0.1", "port": standby.port, "dbname": "app", "pool_size": 5, "params": {"application_name": "a b"}}
        ),
    )
    line = "  app_ro = host=127.0.0.1 port=%d dbname=app pool_size=5 application_name='a b'\n" % standby.port
    assert pooler.databases_file.read_text() == text.replace("pool_size=7\n", "pool_size=7\n" + line)
    assert runtime(pooler)["app_ro"] == ("127.0.0.1", standby.port, "app")
    assert real["plan"] == ["write %s: add app_ro" % pooler.databases_file, "reload 127.0.0.1:%d" % pooler.port]
    assert real["reloaded"] is True and real["reachable"] is True and real["databases"]["app"]["pool_size"] == "7"
    assert real["diff"][0]["before"] == {} and real["diff"][0]["after"]["app_ro"]["pool_size"] == "5"

    real = four_steps(
        "pgbouncer_databases",
        options_of(pooler, {"name": "app", "port": standby.port, "params": {"pool_size": None}}, {"name": "app_ro", "connect_query": "SELECT 'x'"}),
    )
    assert ("  app = host=127.0.0.1 port=%d dbname=app\n" % standby.port) in pooler.databases_file.read_text()
    assert runtime(pooler)["app"] == ("127.0.0.1", standby.port, "app")
    assert real["plan"][0].endswith(": change app, change app_ro")

    four_steps("pgbouncer_databases", options_of(pooler, {"name": "app_ro", "state": "absent"}, {"name": "never", "state": "absent"}))
    assert set(runtime(pooler)) == {"app"}

    four_steps("pgbouncer_databases", options_of(pooler, {"name": "other", "host": "127.0.0.1", "port": primary.port}, exclusive=True))
    assert set(runtime(pooler)) == {"other"}
    assert pooler.databases_file.read_text() == "; kept\n[databases]\n; kept too\n  other = host=127.0.0.1 port=%d\n\n# end\n" % primary.port
    assert pooler.databases_file.stat().st_mode & 0o777 == 0o640
    assert pooler.databases_file.owner() == "postgres"
    assert pooler.pid == pid, "the pooler was restarted"


def test_an_entry_of_the_main_file(own_lab, primary):
    pooler = own_lab.pgbouncer("single", {"app": "host=127.0.0.1"})
    text = pooler.ini.read_text().replace("%%include %s\n" % pooler.databases_file, "") + "\n[databases]\napp = host=127.0.0.1 port=1\n"
    pooler.ini.write_text(text)
    pooler.start()
    four_steps("pgbouncer_databases", {**pooler.login, "config_file": str(pooler.ini), "databases": [{"name": "app", "port": primary.port}]})
    assert pooler.ini.read_text() == text.replace("port=1\n", "port=%d\n" % primary.port)
    with pooler.connect("app") as client:
        assert client.execute("SELECT inet_server_port()").fetchone() == (primary.port,)


def test_a_stale_run_time_is_reloaded(pooler, primary, standby):
    text = "[databases]\napp = host=127.0.0.1 port=%d\n" % standby.port
    pooler.databases_file.write_text(text)
    real = four_steps("pgbouncer_databases", options_of(pooler, {"name": "app", "port": standby.port}))
    assert real["plan"] == ["reload 127.0.0.1:%d" % pooler.port]
    assert real["diff"][0]["before"]["app"]["port"] == primary.port and real["diff"][0]["after"]["app"]["port"] == standby.port
    assert pooler.databases_file.read_text() == text
    assert runtime(pooler) == {"app": ("127.0.0.1", standby.port, "app")}
    # An entry that was taken out of the file by hand is still there at run time.
    pooler.databases_file.write_text("[databases]\n")
    four_steps("pgbouncer_databases", options_of(pooler, {"name": "app", "state": "absent"}))
    assert runtime(pooler) == {}


def test_a_pooler_with_a_database_for_all_others(pooler, primary):
    options = options_of(pooler, {"name": "app", "state": "absent"}, {"name": "*", "host": "127.0.0.1", "port": primary.port})
    four_steps("pgbouncer_databases", options)
    with pooler.connect("app") as client:
        assert client.execute("SELECT current_database()").fetchone() == ("app",)
    # It came to be through "*", so it is not a stale entry.
    assert "app" in runtime(pooler)
    assert call_module("pgbouncer_databases", options)["changed"] is False


def test_passwords_show_nowhere(pooler):
    options = options_of(pooler, {"name": "app", "user": "someone", "password": "geheim' 1"})
    real = four_steps("pgbouncer_databases", options)
    assert Ini.parse(pooler.databases_file.read_text()).databases()["app"]["password"] == "geheim' 1"
    assert "geheim" not in json.dumps(real)
    options["databases"][0]["password"] = "geheim 2"
    real = four_steps("pgbouncer_databases", options)
    assert "geheim" not in json.dumps(real) and real["diff"][0]["before"]["app"]["password"] == "******** (differs)"
    # PgBouncer keeps a user until it is restarted; that is no reason to reload for ever.
    gone = call_module("pgbouncer_databases", options_of(pooler, {"name": "app", "params": {"user": None, "password": None}}))
    assert not gone["failed"] and gone["changed"] and "geheim" not in json.dumps(gone)
    again = call_module("pgbouncer_databases", options_of(pooler, {"name": "app", "params": {"user": None}}))
    assert not again["failed"] and again["changed"] is False and "PgBouncer lets go of one only when it is restarted" in again["printed"]


def test_a_dead_pooler(own_lab, primary):
    pooler = own_lab.pgbouncer("dead", {"app": "host=127.0.0.1 port=1"})
    options = options_of(pooler, {"name": "app", "port": primary.port})
    text = pooler.databases_file.read_text()
    failed = call_module("pgbouncer_databases", options)
    assert failed["failed"] and failed["error"] == "NotReachable" and "unreachable=skip" in failed["msg"] and failed["performed"] == []
    assert pooler.databases_file.read_text() == text
    real = four_steps("pgbouncer_databases", {**options, "unreachable": "skip"})
    assert real["reachable"] is False and real["runtime"] is None and real["reloaded"] is False
    assert len(real["plan"]) == 1 and "the pooler reads it when it starts" in real["printed"]
    assert "port=%d" % primary.port in pooler.databases_file.read_text()
    pooler.start()
    # What was written is what the pooler starts from.
    assert runtime(pooler) == {"app": ("127.0.0.1", primary.port, "app")}
    wrong = call_module("pgbouncer_databases", {**options, "unreachable": "skip", "login_password": "wrong"})
    assert wrong["failed"] and wrong["error"] == "AuthenticationFailed"


def test_a_hung_pooler_is_bounded(own_lab):
    pooler = own_lab.pgbouncer("hung", {"app": "host=127.0.0.1 port=1"})
    with silent_server() as port:
        start = time.monotonic()
        result = call_module("pgbouncer_databases", {**options_of(pooler, {"name": "app", "port": 2}), "login_port": port, "timeout": 2})
        assert result["failed"] and result["error"] == "NotReachable"
        assert time.monotonic() - start < 10


def test_roles_behind_the_aliases(pooler, primary, standby):
    writer = {"name": "app", "host": "127.0.0.1", "port": primary.port, "verify_role": "primary"}
    reader = {"name": "app_ro", "host": "127.0.0.1", "port": standby.port, "dbname": "app", "verify_role": "standby"}
    login = {"verify_user": "postgres", "verify_password": SUPERUSER_PASSWORD}
    real = four_steps("pgbouncer_databases", options_of(pooler, writer, reader, **login))
    assert real["verified"] == {
        "app": {"role": "primary", "server_address": "127.0.0.1", "server_port": primary.port},
        "app_ro": {"role": "standby", "server_address": "127.0.0.1", "server_port": standby.port},
    }
    # Connections of the old target must not answer for the new one.
    with pooler.connect("app") as client:
        client.execute("SELECT 1")
        swapped = options_of(pooler, {**writer, "port": standby.port, "verify_role": "standby"}, **login)
        result = call_module("pgbouncer_databases", swapped)
        assert not result["failed"] and result["verified"]["app"]["server_port"] == standby.port
    wrong = call_module("pgbouncer_databases", options_of(pooler, {**writer, "port": standby.port}, reader, **login))
    assert wrong["failed"] and wrong["error"] == "NotConfirmed"
    assert '"app" leads to a standby (127.0.0.1:%d)' % standby.port in wrong["msg"] and '"app_ro" leads to a primary' not in wrong["msg"]
    assert set(wrong["verified"]) == {"app", "app_ro"}
    stranger = call_module("pgbouncer_databases", options_of(pooler, writer, verify_user="nobody", verify_password="geheim"))
    assert stranger["failed"] and '"app" cannot be asked' in stranger["msg"] and "geheim" not in json.dumps(stranger)


@pytest.mark.parametrize(
    ("databases", "expected"),
    [
        ([{"name": "a b", "host": "x"}], "cannot be written"),
        ([{"name": "pgbouncer", "host": "x"}], "reserved"),
        ([{"name": "a"}, {"name": "a"}], "twice"),
        ([{"name": "a", "params": {"hots": "x"}}], 'no parameter "hots"'),
        ([{"name": "a", "params": {"load_balance_hosts": "disable"}}], "came with 1.24"),
        ([{"name": "a", "params": {"password": "x"}}], "option password"),
        ([{"name": "a", "host": "x", "params": {"host": "y"}}], "as an option and in params"),
        ([{"name": "a", "port": 70000}], "not between 1 and 65535"),
        ([{"name": "*", "verify_role": "primary"}], "verify_role"),
    ],
)
def test_what_cannot_be_is_refused(lab, request, databases, expected):
    if not hasattr(request.module, "_steady"):
        request.module._steady = lab.pgbouncer("steady", {"app": "host=127.0.0.1 port=1"}).start()
    pooler = request.module._steady
    text = pooler.databases_file.read_text()
    if expected == "came with 1.24":
        with contextlib.closing(console(pooler)) as admin:
            assert admin.version < (1, 24), "this case needs an old PgBouncer"
    result = call_module("pgbouncer_databases", options_of(pooler, *databases))
    assert result["failed"] and result["error"] == "InvalidInput" and expected in result["msg"], result
    assert pooler.databases_file.read_text() == text


def test_a_file_that_the_pooler_does_not_read_is_not_touched(pooler, own_lab):
    other = own_lab.pgbouncer("other", {"app": "host=127.0.0.1 port=1"})
    text = other.databases_file.read_text()
    result = call_module("pgbouncer_databases", {**options_of(pooler, {"name": "app", "port": 2}), "config_file": str(other.databases_file)})
    assert result["failed"] and result["error"] == "Refused" and str(pooler.databases_file) in result["msg"]
    assert other.databases_file.read_text() == text
    missing = call_module("pgbouncer_databases", {**options_of(pooler, {"name": "app"}), "config_file": str(pooler.base / "nothing.ini")})
    assert missing["failed"] and "does not exist" in missing["msg"]


def test_an_entry_that_another_file_has_too(pooler):
    pooler.ini.write_text(pooler.ini.read_text() + "[databases]\nsecond = host=127.0.0.1 port=1\n")
    result = call_module("pgbouncer_databases", options_of(pooler, {"name": "second", "port": 2}))
    assert result["failed"] and result["error"] == "Refused" and str(pooler.ini) in result["msg"]


def test_a_reload_that_pgbouncer_does_not_follow_is_noticed(pooler, primary):
    # PgBouncer answers RELOAD with success and keeps the old entries when it cannot read a file.
    pooler.ini.write_text("[pgbouncer]\nno_such_setting = 1\n" + pooler.ini.read_text())
    # It has gone back to its defaults by then, and lets no administrator in any more: only an open console can tell.
    with contextlib.closing(console(pooler)) as admin:
        result = call_module("pgbouncer_databases", options_of(pooler, {"name": "new", "host": "127.0.0.1", "port": 2}))
        assert [(row["name"], row["port"]) for row in admin.databases().values()] == [("app", primary.port)]
    assert result["failed"] and result["changed"] is True and len(result["performed"]) == 2
    assert result["error"] == "NotConfirmed" and result["phase"] == "confirm" and '"new" is None' in result["msg"] and "log" in result["msg"]
