# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The datasource pgbouncer with the PgBouncer, PostgreSQL and PoWA of both Debian releases: what is stored is what SHOW says.

Also the playbook deploy_datasource with wrong variables, and consoles of other versions, which a small program plays.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import struct
import threading
import time

import pytest
import yaml
from datasource_site import DatasourceSite, ask, declaration
from lab import SUPERUSER_PASSWORD, Lab, wait_until

STATS_PASSWORD = "st:at\\s secret"
GAUGES = ("cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login", "pool_mode")
COUNTERS = [column["name"] for column in declaration("pgbouncer")["columns"] if column["kind"] == "counter"]


class Site(DatasourceSite):
    """With two poolers in front of db1 that let one client at a time work."""

    def __init__(self, lab, generation):
        super().__init__(lab, generation)
        self.poolers = []
        for name in ("pooler1", "pooler2"):
            pooler = lab.pgbouncer(
                name, {"app": "host=127.0.0.1 port=%d dbname=postgres" % self.db1.port}, system=generation.system,
                settings={"default_pool_size": 1, "stats_users": "looker"},
            )  # fmt: skip
            with pooler.users_file.open("a") as users:
                users.write('"looker" "%s"\n' % STATS_PASSWORD)
            self.poolers.append(pooler.start())
        self.variables = {
            "pgbouncer_source_poolers": [{"name": one.name, "host": "127.0.0.1", "port": one.port} for one in self.poolers],
            "pgbouncer_source_user": "looker",
            "powa_remote_passfile": str(lab.path / "sources.pgpass"),
            "powa_remote_passfile_entries": [
                {"user": "looker", "password": STATS_PASSWORD},
                {"host": "127.0.0.1", "user": "postgres", "password": SUPERUSER_PASSWORD},
            ],
            # The servers of this test have no sockets.
            "pgbouncer_source_session": {"host": "127.0.0.1", "user": "postgres", "passfile": str(lab.path / "sources.pgpass")},
        }

    def pooler_row(self, rows, name):
        (row,) = [row for row in rows if row["what"] == "pooler" and row["pooler"] == name]
        return row


@pytest.fixture(scope="module")
def site(generation):
    with contextlib.closing(Lab()) as lab:
        yield Site(lab, generation)


@pytest.fixture(scope="module")
def deployed(site):
    site.deploy("pgbouncer")
    return site


def test_the_numbers_are_those_of_the_console(deployed):
    site = deployed
    pooler = site.poolers[0]
    with contextlib.ExitStack() as clients:
        working = clients.enter_context(pooler.connect("app"))
        working.execute("BEGIN")
        working.execute("SELECT 1")
        waiting = [threading.Thread(target=pooler_query, args=(pooler,)) for _two in range(2)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: [row["cl_waiting"] for row in pooler.show("POOLS") if row["database"] == "app"] == [2], 20)
        for alias in ("db1", "db2"):
            rows = site.new_samples("pgbouncer", alias)
            (shown,) = [row for row in pooler.show("POOLS") if row["database"] == "app"]
            (stored,) = [row for row in rows if (row["what"], row["pooler"], row["database"]) == ("pool", "pooler1", "app")]
            assert stored["username"] == shown["user"] == "postgres"
            assert {name: stored[name] for name in GAUGES} == {name: shown[name] for name in GAUGES}
            assert 0 < stored["maxwait"] <= shown["maxwait"] + shown["maxwait_us"] / 1e6
            assert (stored["cl_waiting"], stored["sv_active"]) == (2, 1)
            assert site.pooler_row(rows, "pooler1")["up"] == site.pooler_row(rows, "pooler2")["up"] == 1
            assert len({row["ts"] for row in ask(site.nodes[alias], "pgbouncer")}) == 1
        working.execute("COMMIT")
        for thread in waiting:
            thread.join()
    rows = site.new_samples("pgbouncer", "db1")
    (shown,) = [row for row in pooler.show("STATS") if row["database"] == "app"]
    (stored,) = [row for row in rows if row["what"] == "database" and row["pooler"] == "pooler1" and row["database"] == "app"]
    assert {name: stored[name] for name in COUNTERS} == {name: shown[name] for name in COUNTERS}
    assert stored["total_query_count"] >= 4 and stored["total_wait_time"] > 1000000 and stored["total_sent"] > 0
    version = pooler.show("VERSION")[0]["version"].split()[1].split(".")
    assert site.pooler_row(rows, "pooler1")["version_number"] == int("%s%02d%02d" % tuple(map(int, version)))
    rates = site.repository.sql(
        "SELECT r.total_query_count_per_second FROM powa_servers s, powa_pgbouncer_rates(s.id) r WHERE s.alias = 'db1' AND r.what = 'database' AND"
        " r.database = 'app' AND r.pooler = 'pooler1' AND r.total_query_count_per_second > 0",
        dbname="powa",
    )
    assert rates and site.errors() == {}


def pooler_query(pooler):
    with pooler.connect("app") as client:
        client.execute("SELECT 2")


def test_poolers_that_do_not_answer_are_rows(deployed):
    site = deployed
    frozen, stopped = site.poolers
    stopped.stop()
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        for node in (site.db1, site.db2):
            began = time.monotonic()
            rows = ask(node, "pgbouncer")
            assert time.monotonic() - began < 8
            assert [(row["what"], row["pooler"], row["up"]) for row in rows] == [("pooler", "pooler1", 0), ("pooler", "pooler2", 0)]
            assert "no answer" in rows[0]["problem"] or "timeout expired" in rows[0]["problem"]
            assert "Connection refused" in rows[1]["problem"] and rows[1]["version_number"] is None
        # The snapshot goes on with everything else.
        assert site.pooler_row(site.new_samples("pgbouncer", "db1"), "pooler1")["up"] == 0
        assert site.errors() == {}
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    stopped.start()
    rows = ask(site.db1, "pgbouncer")
    assert [site.pooler_row(rows, name)["up"] for name in ("pooler1", "pooler2")] == [1, 1]
    # Nothing is left of the poolers' connections.
    wait_until(lambda: [row["cl_active"] for row in frozen.show("POOLS") if row["database"] == "pgbouncer"] == [1], 10)


def test_a_pooler_that_freezes_between_two_questions(deployed):
    """What connect_timeout does not cover: it accepts, lets in, and then says nothing more."""
    answers = {"SHOW VERSION": (["version"], [["PgBouncer 1.24.1"]])}
    with console(answers) as port, poolers(deployed, {"name": "silent", "host": "127.0.0.1", "port": port}):
        began = time.monotonic()
        rows = ask(deployed.db1, "pgbouncer")
        assert time.monotonic() - began < 6
    assert [(row["what"], row["up"]) for row in rows] == [("pooler", 0)] and "no answer" in rows[0]["problem"]


def test_no_password_is_to_be_seen(deployed):
    texts = deployed.db1.sql("SELECT prosrc FROM pg_proc WHERE proname LIKE 'powa_pgbouncer%'", dbname="powa")
    assert texts and "looker" in str(texts) and STATS_PASSWORD not in str(texts) and SUPERUSER_PASSWORD not in str(texts)
    passfile = deployed.lab.path / "sources.pgpass"
    assert passfile.stat().st_mode & 0o777 == 0o600 and passfile.owner() == "postgres"
    # A password that is wrong is a problem of the pooler, and says so without it.
    pooler = deployed.poolers[1]
    text = pooler.users_file.read_text()
    pooler._write(pooler.users_file, text.replace(STATS_PASSWORD, "another"))
    with pooler.console() as admin:
        admin.execute("RELOAD")
    row = deployed.pooler_row(ask(deployed.db1, "pgbouncer"), "pooler2")
    assert row["up"] == 0 and "failed" in row["problem"] and STATS_PASSWORD not in row["problem"]
    pooler._write(pooler.users_file, text)
    with pooler.console() as admin:
        admin.execute("RELOAD")
    assert deployed.pooler_row(ask(deployed.db1, "pgbouncer"), "pooler2")["up"] == 1
    # Only the collector's login may call what acts with the rights of a superuser.
    deployed.db1.sql("CREATE ROLE nobody_else")
    privilege = "SELECT has_function_privilege(%s, 'powa_pgbouncer_src(integer)', 'EXECUTE')"
    assert [deployed.db1.value(privilege, [role], dbname="powa") for role in ("monitor", "nobody_else")] == [True, False]


TOTALS = ["xact_count", "query_count", "client_bytes", "server_bytes", "xact_time", "query_time", "wait_time"]
SHAPES = {
    "1.18.0": (TOTALS, []),
    "1.23.1": (["server_assignment_count", *TOTALS], []),
    "1.25.2": (["server_assignment_count", *TOTALS, "ps_client_parse_count", "ps_server_parse_count", "ps_bind_count"], ["load_balance_hosts"]),
    # What may come: one more figure, two more columns.
    "1.31.0": (["server_assignment_count", *TOTALS, "ps_client_parse_count", "ps_server_parse_count", "ps_bind_count", "client_login_count"], ["a", "b", "c"]),
}


@pytest.mark.parametrize("version", SHAPES)
def test_consoles_of_other_versions(deployed, version):
    totals, more = SHAPES[version]
    figures = {name: str(100 + number) for number, name in enumerate(totals)}
    pools = ["database", "user", "cl_active", "cl_waiting", "cl_active_cancel_req", "cl_waiting_cancel_req", "sv_active", "sv_active_cancel",
             "sv_being_canceled", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait", "maxwait_us", "pool_mode", *more]  # fmt: skip
    answers = {
        "SHOW VERSION": (["version"], [["PgBouncer " + version]]),
        "SHOW TOTALS": (["name", "value"], [[kind + name, figures[name]] for kind in ("total_", "avg_") for name in totals]),
        "SHOW STATS": (["database", *totals, *totals], [["app", *figures.values(), *(["7"] * len(totals))]]),
        "SHOW POOLS": (pools, [["app", "joe", *map(str, range(3, 14)), "14", "500000", "transaction", *[None for _one in more]]]),
    }
    with console(answers) as port, poolers(deployed, {"name": "played", "host": "127.0.0.1", "port": port}):
        rows = {row["what"]: row for row in ask(deployed.db1, "pgbouncer")}
    assert rows["pooler"]["up"] == 1, rows
    assert rows["pooler"]["version_number"] == int("%s%02d%02d" % tuple(map(int, version.split("."))))
    names = {"total_received": "client_bytes", "total_sent": "server_bytes"}
    assert {name: str(rows["database"][name]) for name in COUNTERS} == {name: figures[names.get(name, name[6:])] for name in COUNTERS}
    assert {name: rows["pool"][name] for name in GAUGES} == {
        "cl_active": 3, "cl_waiting": 4, "sv_active": 7, "sv_idle": 10, "sv_used": 11, "sv_tested": 12, "sv_login": 13, "pool_mode": "transaction"
    }  # fmt: skip
    assert (rows["pool"]["maxwait"], rows["pool"]["username"]) == (14.5, "joe")


def test_a_console_that_makes_no_sense_is_a_problem(deployed):
    answers = {
        "SHOW VERSION": (["version"], [["PgBouncer 1.40.0"]]),
        "SHOW TOTALS": (["name", "value"], []),
        "SHOW STATS": (["database"], []),
        "SHOW POOLS": (["c%d" % number for number in range(18)], [["x"] * 18]),
    }
    with console(answers) as port, poolers(deployed, {"name": "strange", "host": "127.0.0.1", "port": port}):
        rows = ask(deployed.db1, "pgbouncer")
    assert [(row["what"], row["up"], row["problem"]) for row in rows] == [("pooler", 0, "the answer to SHOW POOLS has its columns in an unknown order")]


@contextlib.contextmanager
def poolers(site, *entries):
    """Let the source on db1 ask other poolers; what was deployed comes back afterwards."""
    before = site.db1.value("SELECT pg_get_functiondef('powa_pgbouncer_src'::regproc)", dbname="powa")
    deployed = json.dumps(site.variables["pgbouncer_source_poolers"])
    assert deployed in before
    try:
        site.db1.sql(before.replace(deployed, json.dumps(entries)).replace("%", "%%"), [], dbname="powa")
        yield
    finally:
        site.db1.sql(before.replace("%", "%%"), [], dbname="powa")


@contextlib.contextmanager
def console(answers):
    """A program that speaks as much of PostgreSQL's protocol as dblink needs; yields its port. A question without an answer gets none."""

    def message(kind, body):
        return kind + struct.pack("!i", len(body) + 4) + body

    def text(value):
        return struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value.encode()

    class Client(socketserver.StreamRequestHandler):
        def read(self, count):
            data = self.rfile.read(count)
            if len(data) < count:
                raise ConnectionResetError
            return data

        def handle(self):
            with contextlib.suppress(ConnectionError):
                while True:
                    (length,) = struct.unpack("!i", self.read(4))
                    (code,) = struct.unpack("!i", self.read(length - 4)[:4])
                    if code not in (80877103, 80877104):
                        break
                    self.wfile.write(b"N")  # neither TLS nor GSSAPI
                ready = message(b"Z", b"I")
                self.wfile.write(message(b"R", struct.pack("!i", 0)) + message(b"S", b"client_encoding\0UTF8\0") + ready)
                while True:
                    kind = self.read(1)
                    body = self.read(struct.unpack("!i", self.read(4))[0] - 4)
                    if kind != b"Q":
                        return
                    if body[:-1].decode() not in answers:
                        continue
                    names, rows = answers[body[:-1].decode()]
                    columns = b"".join(name.encode() + b"\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0) for name in names)
                    self.wfile.write(message(b"T", struct.pack("!h", len(names)) + columns))
                    for row in rows:
                        self.wfile.write(message(b"D", struct.pack("!h", len(row)) + b"".join(map(text, row))))
                    self.wfile.write(message(b"C", b"SHOW\0") + ready)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Client) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


# -- the playbook ------------------------------------------------------------------------------------------------------


def test_the_playbook_says_what_is_wrong(site, tmp_path):
    own = tmp_path / "own.yml"
    own.write_text(yaml.safe_dump({"name": "own", "colums": []}))
    for options, words in (
        ((), "Name the datasource: -e datasource=NAME, one of pgbouncer, replication"),
        (("-e", "datasource=nope"), "There is no datasource nope: shipped are pgbouncer, replication"),
        (("-e", "datasource=%s" % own), "lacks columns, query and has the unknown keys colums"),
        (("-e", "datasource=replication", "-e", "state=gone"), "state is present or absent"),
        (("-e", "datasource=replication", "--limit", "db1,monitor"), "missing: db2"),
        (("-e", "datasource=replication", "--limit", "db1,db2"), "missing: monitor"),
    ):
        output, _changes = site.play(*options, succeeds=False)
        assert words in " ".join(output.split()), (options, output[-3000:])
    assert site.db1.sql("SELECT 1 FROM pg_proc WHERE proname IN ('powa_own_src', 'powa_replication_src')", dbname="powa") == []


@pytest.mark.long_with("powa4")
def test_a_declaration_of_ones_own_comes_and_goes(site, tmp_path):
    own = tmp_path / "own.yml"
    declared = {"name": "own", "columns": [{"name": "answer", "type": "integer", "kind": "gauge"}], "query": "SELECT {{ own_answer | int }} AS answer"}
    own.write_text(yaml.safe_dump(declared))
    own.chmod(0o644)
    site.variables["own_answer"] = 42
    site.deploy(str(own))
    assert [row["answer"] for row in site.new_samples("own", "db2")] == [42]
    # What the repository refuses has changed no node.
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump({**declared, "columns": [{"name": "other", "type": "integer", "kind": "gauge"}], "query": "SELECT 1 AS other"}))
    other.chmod(0o644)
    output, changes = site.play("-e", "datasource=%s" % other, succeeds=False)
    assert "no longer has answer, whose history would be lost" in " ".join(output.split()) and set(changes.values()) == {0}, output[-3000:]
    assert "answer" in site.db1.value("SELECT prosrc FROM pg_proc WHERE proname = 'powa_own_src'", dbname="powa")
    _output, changes = site.play("-e", "datasource=%s" % own, "-e", "state=absent", "-e", "purge=true")
    assert changes["db1"] == 1 and changes["db2"] == 0 and changes["monitor"] == 1
    assert site.repository.sql("SELECT relname FROM pg_class WHERE relname LIKE 'powa_own%'", dbname="powa") == []
    assert site.db1.sql("SELECT 1 FROM pg_proc WHERE proname = 'powa_own_src'", dbname="powa") == []
    assert site.play("-e", "datasource=%s" % own, "-e", "state=absent")[1] == {"db1": 0, "db2": 0, "monitor": 0}


def test_a_cluster_without_poolers_is_told_so(site):
    kept = site.variables
    site.variables = {}
    try:
        output, _changes = site.play("-e", "datasource=pgbouncer", succeeds=False)
        assert "pgbouncer_source_poolers" in output and "stats_users" in output
    finally:
        site.variables = kept
