# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_ping: its five answers, each from a real server that is in that state."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading

import psycopg
import pytest
from lab import SUPERUSER_PASSWORD, call_module, free_port, wait_until


@pytest.fixture(scope="module")
def server(lab):
    made = lab.postgres("db1").init().start()
    rules = "host trusting all 127.0.0.1/32 trust\nhost missing all 127.0.0.1/32 trust\nhost postgres all 127.0.0.1/32 scram-sha-256\n"
    made.write(made.config / "pg_hba.conf", rules + "host replication all 127.0.0.1/32 scram-sha-256\n")
    for statement in ("CREATE DATABASE trusting", "CREATE DATABASE closed ALLOW_CONNECTIONS false", "CREATE ROLE nologin", "SELECT pg_reload_conf()"):
        made.sql(statement)
    wait_until(lambda: made.value("SELECT count(*) FROM pg_hba_file_rules WHERE database = '{missing}'") == 1, 20)
    return made


@pytest.fixture(scope="module")
def standby(lab, server):
    return lab.postgres("db2").clone(server)


@pytest.fixture(scope="module")
def bare_python(lab):
    """A Python that has no psycopg."""
    path = lab.path / "bare"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(path)], check=True)
    return {"ANSIBLE_PYTHON_INTERPRETER": str(path / "bin" / "python3")}


def ask(server, **options):
    environment = options.pop("environment", None)
    return call_module("pg_ping", {**server.login, **options}, environment=environment)


def failed(result, status, *words):
    assert result["failed"] and (result["error"], result["status"], result["changed"]) == ("Unhealthy", status, False), result
    for word in words:
        assert word in result["msg"], result
    assert SUPERUSER_PASSWORD not in str(result)


def test_a_primary_that_is_up(server):
    result = ask(server)
    assert not result["failed"] and not result["changed"] and result["plan"] == [], result
    assert (result["status"], result["role"], result["in_recovery"], result["attempts"], result["method"]) == ("up", "primary", False, 1, "psycopg")
    assert result["version"] == server.value("SHOW server_version") and 0 < result["answer_ms"] <= result["elapsed_ms"]


def test_the_role_is_asked_of_the_server(server, standby):
    assert ask(standby, expect_role="standby")["role"] == "standby"
    failed(ask(standby, expect_role="primary"), "up", "it is a standby", "up, and a primary")
    assert not ask(server, expect_role="primary")["failed"]
    failed(ask(server, expect_role="standby", retries=1, delay=0), "up", "it is a primary")


def test_it_waits_for_the_role(own_lab):
    primary = own_lab.postgres("first").init().start()
    second = own_lab.postgres("second", settings={"log_statement": "all"}).clone(primary)
    result = {}
    asking = threading.Thread(target=lambda: result.update(ask(second, expect_role="primary", retries=300, delay=0.1)))
    asking.start()
    # Promoted only after it was asked at least once.
    wait_until(lambda: "SELECT pg_catalog.pg_is_in_recovery()" in second.log.read_text(), 30)
    second.sql("SELECT pg_promote()")
    asking.join(60)
    assert result["role"] == "primary", result


def test_no_server_at_all(server):
    result = ask(server, login_port=free_port(), retries=2, delay=0)
    failed(result, "no_answer", "Connection refused")
    assert result["attempts"] == 3 and result["role"] is result["version"] is result["in_recovery"] is None
    assert not ask(server, login_port=free_port(), expect=["no_answer"])["failed"]
    assert not ask(server, login_port=free_port(), expect=["any"], retries=5)["failed"]


@pytest.mark.parametrize("method", ["psycopg", "pg_isready"])
def test_a_server_that_hangs_costs_no_more_than_the_timeout(own_lab, method):
    hung = own_lab.postgres("hung").init().start()
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        result = ask(hung, timeout=1.5, method=method)
        failed(result, "no_answer")
        assert 1400 <= result["elapsed_ms"] < 15000
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    assert ask(hung, method=method, retries=100)["status"] == "up"


def test_a_server_that_stops_answering_after_the_login_is_no_answer(server):
    """Somebody who locks the table that each login reads."""
    with server.connect() as connection, connection.transaction():
        connection.execute("LOCK pg_catalog.pg_authid")
        failed(ask(server, timeout=2), "no_answer")
    assert ask(server)["status"] == "up"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"login_password": "not this"}, "password authentication failed"),
        ({"login_db": "elsewhere"}, "no pg_hba.conf entry"),
        ({"login_db": "trusting", "login_user": "nobody_here"}, 'role "nobody_here" does not exist'),
        ({"login_db": "trusting", "login_user": "nologin"}, "not permitted to log in"),
        ({"login_db": "missing"}, 'no database "missing"'),
        ({"ssl_mode": "require"}, "does not support SSL"),
    ],
)
def test_a_login_that_the_server_refuses(server, options, word):
    result = ask(server, retries=5, delay=0, **options)
    failed(result, "authentication_failed", word)
    # Five more wrong passwords could lock the account.
    assert result["attempts"] == 1
    assert "not this" not in str(result)


def test_a_full_server_rejects(own_lab):
    full = own_lab.postgres("full").init().start("max_connections=4", "superuser_reserved_connections=0", "max_wal_senders=0")
    with contextlib.ExitStack() as stack:
        with pytest.raises(psycopg.OperationalError):
            while True:
                stack.enter_context(full.connect())
        failed(ask(full), "rejecting", "too many clients")
        assert ask(full, expect=["up", "rejecting"])["status"] == "rejecting"
    assert ask(full, retries=100, delay=0.1)["status"] == "up"


def test_a_server_that_waits_for_its_clients_to_shut_down_rejects(own_lab):
    ending = own_lab.postgres("ending").init().start()
    with ending.connect():
        os.kill(ending.pid, signal.SIGTERM)
        wait_until(lambda: "smart shutdown" in ending.log.read_text(), 20)
        failed(ask(ending), "rejecting", "shutting down")
        assert ask(ending, method="pg_isready", expect=["rejecting"])["answer"].startswith("127.0.0.1:%d rejects" % ending.port)
    wait_until(lambda: ending.pid is None, 30)
    failed(ask(ending), "no_answer")


def test_a_server_that_starts_rejects_and_is_waited_for(own_lab):
    """A standby without the WAL of its base backup, whose upstream is away: it starts as long as that is so."""
    primary = own_lab.postgres("upstream").init().start()
    starting = own_lab.postgres("starting")
    environment = {**os.environ, "PGPASSWORD": SUPERUSER_PASSWORD}
    login = ("-h", "127.0.0.1", "-p", primary.port, "-U", "postgres")
    starting._run("pg_basebackup", "-D", starting.data, *login, "-c", "fast", "-X", "none", "-N", env=environment)
    starting.follow(primary, slot=False)
    primary.stop()
    starting._run("pg_ctl", "-D", starting.data, "-l", starting.log, "-o", "-c config_file='%s'" % starting.config_file, "-W", "-s", "start")
    wait_until(lambda: ask(starting, expect=["any"])["status"] == "rejecting", 30)
    failed(ask(starting, retries=1, delay=0), "rejecting", "starting up")
    failed(ask(starting, method="pg_isready"), "rejecting")
    result = {}
    waiting = threading.Thread(target=lambda: result.update(ask(starting, retries=300, delay=0.1, expect_role="standby")))
    waiting.start()
    primary.start()
    waiting.join(90)
    assert result["status"] == "up" and result["role"] == "standby", result


def test_a_standby_that_serves_nobody_rejects(own_lab):
    primary = own_lab.postgres("upstream").init().start()
    warm = own_lab.postgres("warm").clone(primary)
    warm.stop()
    warm.start("hot_standby=off")
    failed(ask(warm), "rejecting", "not accepting connections", "Hot standby mode is disabled")


def test_pg_isready_by_choice_and_its_limits(server):
    result = ask(server, method="pg_isready", login_password="not this")
    assert not result["failed"] and (result["status"], result["method"], result["role"], result["version"]) == ("up", "pg_isready", None, None), result
    failed(ask(server, method="pg_isready", expect_role="primary"), "up", "whether it is a primary could not be asked")
    failed(ask(server, method="pg_isready", login_port=free_port()), "no_answer")
    assert ask(server, method="pg_isready", login_db="no = connection 'string'")["status"] == "up"


def test_without_psycopg(server, bare_python):
    failed(ask(server, method="psycopg", environment=bare_python, retries=3), "tool_missing", "psycopg 3 is missing")
    assert ask(server, method="psycopg", environment=bare_python, expect=["any"])["attempts"] == 1
    result = ask(server, environment=bare_python)
    assert not result["failed"] and result["method"] == "pg_isready" and "psycopg 3 is missing" in result["answer"], result


def test_through_a_pooler(lab, server):
    pooler = lab.pgbouncer("pooler", {"app": "host=127.0.0.1 port=%d dbname=postgres" % server.port}).start()
    options = {**server.login, "login_port": pooler.port, "login_db": "app", "timeout": 3}
    assert call_module("pg_ping", {**options, "expect_role": "primary"})["role"] == "primary"
    with pooler.console() as console:
        console.execute("PAUSE app")
        failed(call_module("pg_ping", options), "no_answer")
        console.execute("RESUME app")
    assert call_module("pg_ping", options)["status"] == "up"


def test_check_mode_and_empty_answers_of_a_survey(server):
    result = call_module("pg_ping", {**server.login, "timeout": "", "expect_role": "", "retries": "", "login_db": ""}, check=True)
    assert not result["failed"] and not result["changed"] and result["status"] == "up"


@pytest.mark.parametrize(("option", "value"), [("retries", -1), ("delay", -1), ("timeout", 0), ("expect", [])])
def test_bad_input(server, option, value):
    result = ask(server, **{option: value})
    assert result["failed"] and result["error"] == "InvalidInput" and option in result["msg"], result
