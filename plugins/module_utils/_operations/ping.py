# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Whether one server is up: five different answers, asked again until the wanted one comes."""

from __future__ import annotations

import dataclasses
import glob
import shutil
import time
import typing as t

from .._errors import AuthenticationFailed, CommandFailed, InvalidInput, NotReachable, QueryFailed, Unhealthy, WaitTimeout
from .._host.command import run_command
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._parallel import ask_all
from .._sql.connection import DatabaseMissing, Rejecting, Target, connect, ping, psycopg_problem
from .._sql.values import build_conninfo
from .._wait import Deadline

STATUSES = ("up", "rejecting", "no_answer", "authentication_failed", "tool_missing")

PG_PING = CONNECTION.merge(
    ArgumentSpec(
        {
            "method": {"type": "str", "choices": ["auto", "psycopg", "pg_isready"], "default": "auto"},
            "expect": {"type": "list", "elements": "str", "choices": [*STATUSES, "any"], "default": ["up"]},
            "expect_role": {"type": "str", "choices": ["any", "primary", "standby"], "default": "any"},
            "retries": {"type": "int", "default": 0},
            "delay": {"type": "float", "default": 1},
            "timeout": {"type": "float", "default": 5},
        }
    )
)

# Neither heals while one waits, and many failed logins may lock an account.
_FINAL = ("authentication_failed", "tool_missing")
# What pg_isready needs to know; it logs in to nothing, so no secret is among them.
_PG_ISREADY_KEYWORDS = ("host", "hostaddr", "port", "user", "dbname", "sslmode", "sslrootcert")
_PG_ISREADY = {0: ("up", "accepts connections"), 1: ("rejecting", "rejects connections"), 2: ("no_answer", "does not answer")}


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer. ``role`` and ``version`` are None where nobody could be asked."""

    status: str
    answer: str
    method: str | None
    role: str | None = None
    version: str | None = None


@dataclasses.dataclass(frozen=True)
class Pinged:
    """The last answer, how many there were, and the milliseconds that it and all of them took."""

    answer: Answer
    attempts: int
    answer_ms: float
    elapsed_ms: float


class Ping(Operation):
    """Ask one server. Changes nothing."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.target = Target.from_params(params)
        for option, least in (("retries", 0), ("delay", 0), ("timeout", 0.1)):
            if params[option] < least:
                raise InvalidInput("%s is %g" % (option, params[option]), expected="at least %g" % least)
        if not params["expect"]:
            raise InvalidInput("the option expect is an empty list", expected="some of %s, or any" % ", ".join(STATUSES))

    def observe(self) -> Pinged:
        began = time.monotonic()
        attempts = 0
        while True:
            attempts += 1
            asked = time.monotonic()
            answer = self._ask()
            now = time.monotonic()
            if self.problem(answer) is None or answer.status in _FINAL or attempts > self.params["retries"]:
                return Pinged(answer, attempts, round((now - asked) * 1000, 1), round((now - began) * 1000, 1))
            time.sleep(self.params["delay"])

    def problem(self, answer: Answer) -> str | None:
        """Why an answer is not the expected one, or None."""
        expected, role = self.params["expect"], self.params["expect_role"]
        if "any" not in expected and answer.status not in expected:
            return "it is %s" % answer.status.replace("_", " ")
        if answer.status == "up" and role not in ("any", answer.role):
            return "it is a %s" % answer.role if answer.role else "whether it is a %s could not be asked" % role
        return None

    def _ask(self) -> Answer:
        method = self.params["method"]
        missing = psycopg_problem() if method != "pg_isready" else None
        if method == "psycopg" or (method == "auto" and missing is None):
            return self._ask_by_session() if missing is None else Answer("tool_missing", "%s on the host that runs this module" % missing, None)
        program = find_pg_isready()
        if program is None:
            reason = "pg_isready is missing" if missing is None else "%s and pg_isready is missing" % missing
            return Answer("tool_missing", "%s on the host that runs this module" % reason, None)
        return self._ask_pg_isready(program, missing)

    def _ask_by_session(self) -> Answer:
        deadline = Deadline(self.params["timeout"])
        # In a thread, as neither the resolver nor a name with many addresses keeps to libpq's limit.
        (found,) = ask_all([self.target], lambda target: ask_server(target, deadline), deadline)
        if isinstance(found, Answer):
            return found
        return Answer("no_answer", found.message, "psycopg")

    def _ask_pg_isready(self, program: str, missing: str | None) -> Answer:
        keywords = self.target.keywords()
        conninfo = build_conninfo({key: keywords.get(key) for key in _PG_ISREADY_KEYWORDS})
        deadline = Deadline(self.params["timeout"])
        try:
            done = run_command([program, "-t", str(max(1, round(deadline.seconds))), "-d", conninfo], timeout=deadline.seconds, accept=(0, 1, 2, 3))
        except CommandFailed as error:
            # Killed at its limit, or not able to run at all.
            return Answer("no_answer" if deadline.passed else "tool_missing", error.message, "pg_isready")
        if done.returncode == 3:
            raise InvalidInput("pg_isready does not understand the connection options: %s" % done.stdout.strip())
        status, words = _PG_ISREADY[done.returncode]
        note = " (%s, so pg_isready was asked)" % missing if missing else ""
        return Answer(status, "%s %s%s" % (self.target, words, note), "pg_isready")

    def report(self, seen: Pinged) -> dict[str, t.Any]:
        answer = seen.answer
        result: dict[str, t.Any] = {
            **dataclasses.asdict(answer),
            "in_recovery": None if answer.role is None else answer.role == "standby",
            "attempts": seen.attempts,
            "answer_ms": seen.answer_ms,
            "elapsed_ms": seen.elapsed_ms,
        }
        problem = self.problem(answer)
        if problem:
            raise Unhealthy("%s is not as expected, %s: %s" % (self.target, problem, answer.answer.rstrip(".")), expected=self._wanted(), **result)
        return result

    def _wanted(self) -> str:
        role = self.params["expect_role"]
        statuses = " or ".join(status.replace("_", " ") for status in self.params["expect"])
        return statuses if role == "any" else "%s, and a %s" % (statuses, role)


def ask_server(target: Target, deadline: Deadline) -> Answer:
    """Log in and ask for the role. Never raises for what the server or the network does."""
    try:
        # Like to a console: a pooler may be in between, which takes no start-up options.
        session = connect(target, timeout=deadline.left, console=True)
    except (AuthenticationFailed, DatabaseMissing) as error:
        return Answer("authentication_failed", error.message, "psycopg")
    except Rejecting as error:
        return Answer("rejecting", error.message, "psycopg")
    except NotReachable as error:
        # Words of ours fail with a server that speaks another language.
        status = "no_answer" if deadline.passed else ping(target, deadline.left)
        return Answer("authentication_failed" if status == "up" else status, error.message, "psycopg")
    try:
        in_recovery = session.ask_value("SELECT pg_catalog.pg_is_in_recovery()", deadline) == "t"
        version = session.ask_value("SHOW server_version", deadline)
    except QueryFailed as error:
        # It began to shut down meanwhile, or a pooler has no server.
        return Answer("rejecting", error.message, "psycopg")
    except (NotReachable, WaitTimeout) as error:
        return Answer("no_answer", error.message, "psycopg")
    finally:
        session.close()
    role = "standby" if in_recovery else "primary"
    return Answer("up", "%s is up: PostgreSQL %s, %s" % (target, version, role), "psycopg", role, version)


def find_pg_isready() -> str | None:
    """The program, from the search path or where the packages of the server put it."""
    packaged = glob.glob("/usr/lib/postgresql/*/bin/pg_isready") + glob.glob("/usr/pgsql-*/bin/pg_isready")
    return shutil.which("pg_isready") or next(iter(sorted(packaged, reverse=True)), None)
