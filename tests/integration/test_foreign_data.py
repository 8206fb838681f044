# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wrappers of this collection and the one of the guide, on a real cluster with a real pooler; in PL/Python, and in Multicorn where that is installed."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import threading
import time

import psycopg
import pytest
import yaml
from fdw_packages import install_packages
from lab import REPOSITORY, SUPERUSER_PASSWORD, call_module, four_steps, wait_until

GUIDE = (REPOSITORY / "docs" / "foreign_data.md").read_text()
WRITING = GUIDE[GUIDE.index("## Writing a wrapper") : GUIDE.index("## What each runtime can do")]
SHELVES = {"a": [{"name": "apple", "amount": 3}, {"name": "it's a pear", "amount": 0}], "b": [{"name": "bread", "amount": 1}]}

EXTENSIONS = {"plpython": "plpython3u", "multicorn": "multicorn"}


def blocks(language):
    return re.findall(r"```%s\n(.*?)```" % language, WRITING, re.S)


@pytest.fixture(scope="module")
def packages(lab):
    return install_packages(lab, shop_fdw=blocks("python")[0])


@pytest.fixture(scope="module", params=["plpython", "multicorn"])
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def cluster(lab, packages, runtime):
    """A primary with a standby, and a pooler."""
    environment = {"PYTHONPATH": str(packages)}
    primary = lab.postgres("%s1" % runtime, environment=environment).init().start()
    if not primary.sql("SELECT 1 FROM pg_available_extensions WHERE name = %s", [EXTENSIONS[runtime]]):
        primary.stop()
        pytest.skip("pg_available_extensions has no %s" % EXTENSIONS[runtime])
    standby = lab.postgres("%s2" % runtime, environment=environment).clone(primary)
    primary.wait_for_standbys(1)
    primary.sql("CREATE DATABASE app")
    pooler = lab.pgbouncer("%s_pooler" % runtime, {"app": "host=127.0.0.1 port=%d dbname=app" % primary.port}).start()
    made = call_module("fdw_wrapper", {**primary.login, "name": "fleet", "packages": ["pgfleet_fdw", "shop_fdw"], "runtime": runtime})
    assert not made["failed"], made
    return primary, standby, pooler


@pytest.fixture(scope="module")
def nodes(cluster):
    primary, standby, _pooler = cluster
    mapping = {"role": "PUBLIC", "options": {"user": "postgres"}, "secrets": {"password": SUPERUSER_PASSWORD}}
    addresses = "db1=127.0.0.1:%d, db2=127.0.0.1:%d, gone=127.0.0.1:1" % (primary.port, standby.port)
    options = {"wrapper": "pgfleet_fdw.cluster.Cluster", "nodes": addresses, "timeout": "5"}
    four_steps("fdw_server", {**primary.login, "name": "cluster", "wrapper": "fleet", "options": options, "mappings": [mapping]})
    four_steps("fdw_table", {**primary.login, "server": "cluster", "schema": "fleet", "create_schema": True, "import_schema": "cluster"})
    return primary


@pytest.fixture(scope="module")
def poolers(cluster):
    primary, _standby, pooler = cluster
    mapping = {"role": "PUBLIC", "options": {"user": "pooler_admin"}, "secrets": {"password": SUPERUSER_PASSWORD}}
    options = {"wrapper": "pgfleet_fdw.pgbouncer.PgBouncer", "poolers": "p1=127.0.0.1:%d, gone=127.0.0.1:1" % pooler.port}
    four_steps("fdw_server", {**primary.login, "name": "poolers", "wrapper": "fleet", "options": options, "mappings": [mapping]})
    table = {**primary.login, "server": "poolers", "schema": "poolers", "create_schema": True, "import_schema": "pgbouncer", "writable": True}
    result = four_steps("fdw_table", table)
    assert {"status", "pools", "databases", "servers", "stats"} <= {one["name"] for one in result["tables"]}
    return primary


def test_a_cluster_as_tables(nodes, cluster):
    _primary, standby, _pooler = cluster
    rows = dict((row[0], row[1:]) for row in nodes.sql("SELECT node, reachable, role, timeline, lag_bytes, error FROM fleet.nodes"))
    assert rows["db1"][:4] == (True, "primary", 1, None) and rows["db2"][:3] == (True, "standby", 1) and rows["db2"][3] < 10**7
    assert rows["gone"][:2] == (False, None) and "refused" in rows["gone"][4]
    joined = nodes.sql("SELECT r.node, a.application_name FROM fleet.replication r JOIN pg_stat_activity a USING (pid) WHERE r.node = 'db1'")
    assert joined == [("db1", cluster[1].name)]
    slots = nodes.sql("SELECT node, slot_name, active, retained_bytes >= 0 FROM fleet.slots")
    assert slots == [("db1", cluster[1].name, True, True)]
    # Also the standby answers, with what was replicated.
    wait_until(lambda: standby.value("SELECT to_regclass('fleet.nodes')") is not None, 20)
    assert standby.value("SELECT count(*) FROM fleet.nodes WHERE reachable") == 2


def test_hung_nodes_take_no_longer_than_the_limit(nodes, lab):
    """One thread asks all: two that take the connection and say nothing cost the limit once."""
    with contextlib.ExitStack() as stack:
        hung = []
        for _n in range(2):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            hung.append(listener.getsockname()[1])
        members = ", ".join("%s=127.0.0.1:%d" % member for member in zip(("h1", "h2", "db1"), (*hung, nodes.port)))
        options = {"wrapper": "pgfleet_fdw.cluster.Cluster", "timeout": "3", "user": "postgres", "nodes": members}
        mapping = {"role": "PUBLIC", "secrets": {"password": SUPERUSER_PASSWORD}}
        call_module("fdw_server", {**nodes.login, "name": "hung", "wrapper": "fleet", "options": options, "mappings": [mapping]})
        call_module("fdw_table", {**nodes.login, "server": "hung", "schema": "hung", "create_schema": True, "import_schema": "x", "limit_to": ["nodes"]})
        began = time.monotonic()
        rows = dict(nodes.sql("SELECT node, reachable FROM hung.nodes"))
        took = time.monotonic() - began
        assert rows == {"h1": False, "h2": False, "db1": True} and 3 <= took < 6


def test_poolers_as_tables(poolers, cluster):
    _primary, _standby, pooler = cluster
    status = dict((row[0], row[1:]) for row in poolers.sql("SELECT pooler, reachable, version, error FROM poolers.status"))
    assert status["p1"][0] is True and status["p1"][1].startswith("PgBouncer 1.") and status["gone"][0] is False
    with pooler.connect("app") as client:
        client.execute("SELECT 1")
        query = (
            "SELECT s.pooler, a.datname, a.backend_type FROM poolers.servers s JOIN pg_stat_activity a ON a.pid = s.remote_pid WHERE s.database = 'app'"
        )
        assert poolers.sql(query) == [("p1", "app", "client backend")]
        assert poolers.sql("SELECT pooler, cl_active FROM poolers.pools WHERE database = 'app'") == [("p1", 1)]


def test_an_update_pauses_and_resumes(poolers, cluster):
    _primary, _standby, pooler = cluster
    paused = "SELECT paused FROM poolers.databases WHERE name = 'app' AND pooler = 'p1'"
    assert poolers.value(paused) == 0
    poolers.sql("UPDATE poolers.databases SET paused = 1 WHERE name = 'app' AND pooler = 'p1'")
    try:
        assert poolers.value(paused) == 1
        assert {row["name"]: row["paused"] for row in pooler.show("DATABASES")}["app"] == 1
    finally:
        poolers.sql("UPDATE poolers.databases SET paused = 0 WHERE name = 'app' AND pooler = 'p1'")
    assert poolers.value(paused) == 0
    with pytest.raises(psycopg.Error, match="paused is 2"):
        poolers.sql("UPDATE poolers.databases SET paused = 2 WHERE name = 'app' AND pooler = 'p1'")
    with pytest.raises(psycopg.Error, match="there is no pooler"):
        poolers.sql("UPDATE poolers.databases SET paused = 1, pooler = 'p9' WHERE name = 'app' AND pooler = 'p1'")
    with pytest.raises(psycopg.Error, match="cannot be written"):
        poolers.sql("UPDATE poolers.pools SET cl_active = 0 WHERE pooler = 'p1'")


def test_a_pooler_that_is_gone_is_warned_of(poolers):
    with poolers.connect() as session:
        told = []
        session.add_notice_handler(lambda message: told.append(message.message_primary))
        assert session.execute("SELECT count(*) FROM poolers.pools WHERE pooler <> 'p1'").fetchone() == (0,)
    assert any(text.startswith("pooler gone is left out") for text in told)


def test_a_standby_without_the_packages(lab, cluster, runtime):
    primary, _standby, _pooler = cluster
    options = {"wrapper": "shop_fdw.Items", "url": "http://127.0.0.1:1"}
    made = [call_module("fdw_server", {**primary.login, "name": "left", "wrapper": "fleet", "options": options})]
    table = {"server": "left", "schema": "left_behind", "create_schema": True, "name": "items", "columns": [{"name": "shelf", "type": "text"}]}
    made.append(call_module("fdw_table", {**primary.login, **table}))
    assert not any(result["failed"] for result in made), made
    bare = lab.postgres("%s3" % runtime, environment={"PYTHONPATH": str(install_packages(lab))}).clone(primary)
    try:
        wait_until(lambda: bare.value("SELECT to_regclass('left_behind.items')") is not None, 20)
        options = {**bare.login, "name": "fleet", "packages": ["pgfleet_fdw", "shop_fdw"], "runtime": runtime}
        result = call_module("fdw_wrapper", options)
        assert result["failed"] and "shop_fdw (ModuleNotFoundError" in result["msg"] and "every node" in result["msg"]
        info = call_module("fdw_info", {**bare.login, "packages": ["shop_fdw"]})
        assert any("the package shop_fdw cannot be imported" in problem for problem in info["problems"])
        assert any(problem.startswith("left_behind.items: ") and "No module named 'shop_fdw'" in problem for problem in info["problems"])
        # Nobody has heeded that, and it becomes the primary.
        bare.sql("SELECT pg_promote(wait => true)")
        with bare.connect() as session:
            for _again in range(2):
                with pytest.raises(psycopg.Error, match="No module named 'shop_fdw'") as caught:
                    session.execute("SELECT * FROM left_behind.items")
                assert runtime == "multicorn" or caught.value.diag.message_hint == "Install its package on every node of the cluster"
                assert session.execute("SELECT 1").fetchone() == (1,)
        if runtime == "plpython":
            without_any(lab, bare)
    finally:
        bare.stop()
        primary.sql("SELECT pg_drop_replication_slot(%s)", [bare.name])


def without_any(lab, server):
    """Also the package that hosts the classes is missing. It may be on the machine, where a demo leaves it: something else has its name."""
    directory = lab.path / "none"
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "pgfleet_fdw.py").write_text("raise ImportError('it is gone')\n")
    server.environment = {"PYTHONPATH": str(directory)}
    server.stop()
    server.start()
    with server.connect() as session:
        with pytest.raises(psycopg.Error, match="cannot import the package pgfleet_fdw: it is gone") as caught:
            session.execute("SELECT * FROM left_behind.items")
        assert caught.value.diag.message_hint == "Install it on every node of the cluster"
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_standby_with_the_packages_is_looked_at_only(cluster, runtime):
    _primary, standby, _pooler = cluster
    result = call_module("fdw_wrapper", {**standby.login, "name": "fleet", "packages": ["pgfleet_fdw", "shop_fdw"], "runtime": runtime})
    assert not result["failed"] and not result["changed"] and result["standby"] is True
    missing = call_module("fdw_wrapper", {**standby.login, "name": "not_there", "packages": ["pgfleet_fdw"]})
    assert missing["failed"] and "Run the task on the primary first" in missing["msg"]


def test_the_state_of_it_all(nodes, poolers, runtime):
    result = call_module("fdw_info", {**nodes.login, "packages": ["pgfleet_fdw", "no_such_fdw"], "wrappers": ["fleet", "other"]})
    (wrapper,) = result["wrappers"]
    assert wrapper["runtime"] == runtime and {"cluster", "poolers"} <= {server["name"] for server in wrapper["servers"]}
    server = next(server for server in wrapper["servers"] if server["name"] == "cluster")
    assert server["mappings"] == ["PUBLIC"] and {table["name"] for table in server["tables"]} == {"nodes", "replication", "slots"}
    assert SUPERUSER_PASSWORD not in json.dumps(result)
    assert sorted(problem.split(":")[0] for problem in result["problems"]) == [
        "the package no_such_fdw cannot be imported", "there is no foreign-data wrapper other",
    ]  # fmt: skip
    nodes.sql("ALTER FOREIGN TABLE fleet.nodes_ft OPTIONS (ADD colour 'red')")
    try:
        result = call_module("fdw_info", {**nodes.login, "fail_on_problems": True})
        assert result["failed"] and 'fleet.nodes: there is no option "colour"' in result["msg"]
    finally:
        nodes.sql("ALTER FOREIGN TABLE fleet.nodes_ft OPTIONS (DROP colour)")


# -- the guide -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service():
    """What the guide's wrapper asks."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            shelf = self.path.strip("/").removesuffix(".json")
            self.send_response(200 if shelf in SHELVES else 404)
            self.end_headers()
            self.wfile.write(json.dumps(SHELVES.get(shelf)).encode())

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield "http://127.0.0.1:%d" % server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_guide_takes_a_reader_to_a_table_that_answers(cluster, runtime):
    primary = cluster[0]
    with service() as url:
        for task in yaml.safe_load(blocks("yaml")[0]):
            (module,) = [key for key in task if key.startswith("pgfleet.ops.")]
            options = json.loads(json.dumps(task[module]).replace("http://127.0.0.1:8000", url))
            if "packages" in options:
                options["runtime"] = runtime
            result = call_module(module.removeprefix("pgfleet.ops."), {**primary.login, **options})
            assert not result["failed"], result
        (query,) = re.findall(r"`(SELECT [^`]+ FROM shop.items [^`]+)`", WRITING)
        assert primary.sql(query) == [("apple", 3), ("it's a pear", 0)]
        assert primary.sql("SELECT shelf, more->>'name' FROM shop.items WHERE amount > 0 ORDER BY 1") == [("a", "apple"), ("b", "bread")]
        if runtime == "plpython":
            assert primary.sql("SELECT name FROM shop.items_scan('{\"shelf\": [\"b\"]}')") == [("bread",)]
    with pytest.raises(psycopg.Error, match="shelf a cannot be read") as caught:
        primary.sql("SELECT * FROM shop.items")
    assert caught.value.diag.message_hint == "Is %s up?" % url


def test_the_guide_s_test_without_postgresql(packages, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(packages))
    with service() as url:
        exec(compile(blocks("python")[1].replace("http://127.0.0.1:8000", url), "guide", "exec"), {})
    assert "it's a pear" in capsys.readouterr().out
