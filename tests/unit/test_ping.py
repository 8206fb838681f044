# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a server is up: what has no server to provoke it, as other languages, words of other versions and missing tools."""

from __future__ import annotations

import psycopg
import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import AuthenticationFailed, InvalidInput, NotReachable, Unhealthy
from ansible_collections.pgfleet.ops.plugins.module_utils._module import Context
from ansible_collections.pgfleet.ops.plugins.module_utils._operations import ping
from ansible_collections.pgfleet.ops.plugins.module_utils._sql import connection
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import DatabaseMissing, Rejecting, Target
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline

TARGET = Target("db1", 5432, "monitor", "postgres", password="geheim-4711")
PARAMS = {"login_host": "db1", "method": "auto", "expect": ["up"], "expect_role": "any", "retries": 0, "delay": 0, "timeout": 5, "connect_params": {}}


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        ("FATAL:  the database system is starting up", Rejecting, "starting up"),
        ("FATAL:  the database system is not yet accepting connections\nDETAIL:  Consistent recovery state has not been yet reached.", Rejecting, "Consistent"),
        ("FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.", Rejecting, "accepting connections; Hot standby"),
        ("FATAL:  the database system is in recovery mode", Rejecting, "recovery mode"),
        ("FATAL:  sorry, too many clients already", Rejecting, "too many"),
        ('FATAL:  too many connections for role "app"', Rejecting, "too many"),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", Rejecting, "slots"),
        ('FATAL:  role "x" is not permitted to log in', AuthenticationFailed, "not permitted"),
        ('FATAL:  database "x" is not currently accepting connections', AuthenticationFailed, "not currently"),
        ('FATAL:  permission denied for database "x"\nDETAIL:  User does not have CONNECT privilege.', AuthenticationFailed, "CONNECT privilege"),
        ("SSL error: certificate verify failed", AuthenticationFailed, "certificate"),
        ('FATAL:  database "x" does not exist', DatabaseMissing, "no database"),
        ("timeout expired", NotReachable, "timeout expired"),
    ],
)
def test_what_the_words_of_a_server_mean(words, kind, told):
    found = connection._failure(psycopg.OperationalError("connection failed: " + words), TARGET)
    assert found.__class__ is kind and told in found.message


@pytest.mark.parametrize(("pinged", "status"), [("up", "authentication_failed"), ("rejecting", "rejecting"), ("no_answer", "no_answer")])
def test_a_server_that_speaks_another_language_is_told_by_its_sqlstate(monkeypatch, pinged, status):
    def refuse(*_arguments, **_options):
        raise NotReachable("db1:5432 does not answer: FATAL: das Datenbanksystem startet")

    monkeypatch.setattr(ping, "connect", refuse)
    monkeypatch.setattr(ping, "ping", lambda target, timeout: pinged)
    answer = ping.ask_server(TARGET, Deadline(5))
    assert answer.status == status and "das Datenbanksystem" in answer.answer


def asked(**params):
    operation = ping.Ping({**PARAMS, **params}, Context(False, print))
    return operation, operation.observe()


def test_neither_psycopg_nor_pg_isready(monkeypatch):
    monkeypatch.setattr(ping, "psycopg_problem", lambda: "psycopg 3 is missing")
    monkeypatch.setattr(ping, "find_pg_isready", lambda: None)
    operation, seen = asked(retries=5)
    with pytest.raises(Unhealthy, match="tool missing: psycopg 3 is missing and pg_isready is missing on the host") as caught:
        operation.report(seen)
    assert caught.value.facts["status"] == "tool_missing" and caught.value.facts["attempts"] == 1
    operation, seen = asked(expect=["up", "tool_missing"])
    assert operation.report(seen)["status"] == "tool_missing"


def test_pg_isready_that_cannot_run_is_a_missing_tool(monkeypatch, tmp_path):
    broken = tmp_path / "pg_isready"
    broken.write_text("#!/bin/sh\necho libpq is missing; exit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(ping, "find_pg_isready", lambda: str(broken))
    operation, seen = asked(method="pg_isready", expect=["any"])
    assert operation.report(seen)["status"] == "tool_missing" and "libpq is missing" in seen.answer.answer
    broken.write_text("#!/bin/sh\necho bad option; exit 3\n")
    with pytest.raises(InvalidInput, match="bad option"):
        asked(method="pg_isready")


def test_pg_isready_gets_no_secret(monkeypatch, tmp_path):
    shown = tmp_path / "pg_isready"
    shown.write_text('#!/bin/sh\necho "$@" > %s/arguments\n' % tmp_path)
    shown.chmod(0o755)
    monkeypatch.setattr(ping, "find_pg_isready", lambda: str(shown))
    _operation, seen = asked(method="pg_isready", login_password="geheim-4711", connect_params={"sslpassword": "geheim-4712", "hostaddr": "127.0.0.1"})
    arguments = (tmp_path / "arguments").read_text()
    assert seen.answer.status == "up" and "hostaddr=127.0.0.1" in arguments and "geheim" not in arguments


@pytest.mark.parametrize(
    ("expect", "role", "answer", "problem"),
    [
        (["up"], "any", ("up", "standby"), None),
        (["up"], "primary", ("up", "standby"), "it is a standby"),
        (["up"], "primary", ("up", None), "whether it is a primary could not be asked"),
        (["up"], "any", ("no_answer", None), "it is no answer"),
        (["up", "rejecting"], "primary", ("rejecting", None), None),
        (["any"], "any", ("authentication_failed", None), None),
        (["any"], "standby", ("up", "primary"), "it is a primary"),
    ],
)
def test_what_is_expected(expect, role, answer, problem):
    operation = ping.Ping({**PARAMS, "expect": expect, "expect_role": role}, Context(False, print))
    assert operation.problem(ping.Answer(answer[0], "", None, answer[1])) == problem
