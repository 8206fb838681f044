# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asking many servers at once, within one time limit, in one thread.

A process of PostgreSQL must have no other threads, which could catch its signals. Names are resolved one after the other by the system's resolver, which
knows no time limit: give addresses where that matters.
"""

from __future__ import annotations

import dataclasses
import select
import time
import typing as t

from psycopg import conninfo, pq

from .errors import WrapperError


@dataclasses.dataclass
class Answer:
    """What one server said: ``rows`` with all values as text, ``columns`` (name, type oid), or an ``error``."""

    name: str
    rows: list[list[str | None]] = dataclasses.field(default_factory=list)
    columns: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    error: str | None = None
    milliseconds: float | None = None

    def dicts(self) -> t.Iterator[dict[str, str | None]]:
        names = [name for name, _type in self.columns]
        for row in self.rows:
            yield dict(zip(names, row))


def parse_targets(text: str, default_port: int) -> dict[str, dict[str, t.Any]]:
    """``name=host:port, name=host`` as libpq keywords by name; an IPv6 address stands in brackets. For the type of an Option: raises ValueError."""
    found: dict[str, dict[str, t.Any]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, address = (word.strip() for word in part.partition("="))
        host, colon, port = address.rpartition(":") if not address.endswith("]") else (address, "", "")
        if not colon:
            host, port = address, ""
        if not (equals and name and host) or (colon and not port.isdigit()) or (":" in host and not host.startswith("[")):
            raise ValueError('"%s" is not name=host:port' % part)
        if name in found:
            raise ValueError('the name "%s" is there twice' % name)
        found[name] = {"host": host.strip("[]"), "port": int(port or default_port)}
    if not found:
        raise ValueError("it names nobody")
    return found


class _Conversation:
    """One connection and one statement, whose progress is asked for by ``go_on``."""

    def __init__(self, name: str, keywords: t.Mapping[str, t.Any], statement: str) -> None:
        self.answer = Answer(name)
        self._statement = statement.encode()
        self._began = time.monotonic()
        self._asked = False
        self._waits_for = pq.PollingStatus.WRITING
        given = {key: value for key, value in keywords.items() if value not in (None, "")}
        self._connection = pq.PGconn.connect_start(conninfo.make_conninfo(**given).encode())

    def go_on(self) -> bool:
        """Whether the answer is complete."""
        if not self._asked:
            self._waits_for = self._connection.connect_poll()
            if self._waits_for == pq.PollingStatus.FAILED:
                return self._fail(self._connection.error_message)
            if self._waits_for != pq.PollingStatus.OK:
                return False
            self._connection.nonblocking = 1
            self._connection.send_query(self._statement)
            self._asked = True
        self._waits_for = pq.PollingStatus.WRITING if self._connection.flush() else pq.PollingStatus.READING
        self._connection.consume_input()
        while not self._connection.is_busy():
            result = self._connection.get_result()
            if result is None:
                self.answer.milliseconds = round((time.monotonic() - self._began) * 1000, 3)
                return True
            if result.status == pq.ExecStatus.FATAL_ERROR:
                self._fail(result.error_message)
            elif result.status == pq.ExecStatus.TUPLES_OK:
                self._read(result)
        return False

    def _read(self, result: t.Any) -> None:
        width = range(result.nfields)
        self.answer.columns = [((result.fname(n) or b"").decode(), result.ftype(n)) for n in width]
        for row in range(result.ntuples):
            cells = (result.get_value(row, n) for n in width)
            self.answer.rows.append([None if cell is None else cell.decode("utf-8", "replace") for cell in cells])

    def _fail(self, message: bytes) -> bool:
        lines = message.decode("utf-8", "replace").strip().splitlines()
        self.answer.error = lines[0].strip() if lines else "it ended the connection"
        return True

    @property
    def socket(self) -> int:
        return self._connection.socket

    @property
    def writes(self) -> bool:
        return self._waits_for == pq.PollingStatus.WRITING

    def close(self) -> None:
        self._connection.finish()


def ask_all(targets: t.Mapping[str, t.Mapping[str, t.Any]], statement: str, seconds: float) -> list[Answer]:
    """Send one statement to every server, by the simple protocol. One that has not answered after ``seconds`` has an error; order as in ``targets``."""
    end = time.monotonic() + seconds
    answers: dict[str, Answer] = {}
    under_way: list[_Conversation] = []
    try:
        for name, keywords in targets.items():
            try:
                under_way.append(_Conversation(name, keywords, statement))
            except Exception as error:  # psycopg's own and those of a wrong keyword
                answers[name] = Answer(name, error=str(error).strip() or type(error).__name__)
        while under_way:
            for one in list(under_way):
                try:
                    ended = one.go_on()
                except Exception as error:
                    one.answer.error, ended = str(error).strip() or type(error).__name__, True
                if ended:
                    answers[one.answer.name] = one.answer
                    under_way.remove(one)
                    one.close()
            left = end - time.monotonic()
            if not under_way:
                break
            if left <= 0:
                for one in under_way:
                    one.answer.error = "no answer within %g s" % seconds
                    answers[one.answer.name] = one.answer
                break
            reads = [one.socket for one in under_way if not one.writes]
            writes = [one.socket for one in under_way if one.writes]
            select.select(reads, writes, [], left)
    finally:
        for one in under_way:
            one.close()
    return [answers[name] for name in targets]


def login(opt: t.Mapping[str, t.Any], targets: t.Mapping[str, t.Mapping[str, t.Any]], names: t.Collection[str] | None = None) -> dict[str, dict[str, t.Any]]:
    """The targets named, all without ``names``, with the login that the options say. Raises WrapperError."""
    if opt["password"] and opt["passfile"]:
        raise WrapperError('the options "password" and "passfile" do not go together')
    shared = {key: opt[key] for key in ("user", "password", "passfile", "dbname", "sslmode")}
    return {name: {**shared, **target, "application_name": "pgfleet_fdw"} for name, target in targets.items() if names is None or name in names}
