# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Connections to PostgreSQL and to PgBouncer's console: the only place that knows psycopg."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import select
import traceback
import typing as t

from .._errors import AuthenticationFailed, NotReachable, OperationError, QueryFailed, WaitTimeout
from .._wait import Deadline
from .values import build_conninfo

try:
    import psycopg
    from psycopg import sql  # pylint: disable=unused-import
    from psycopg.rows import dict_row
    from psycopg.types.json import Jsonb  # pylint: disable=unused-import

    PSYCOPG_IMPORT_ERROR = None
except ImportError:
    psycopg = sql = dict_row = Jsonb = None  # type: ignore[assignment]
    PSYCOPG_IMPORT_ERROR = traceback.format_exc()

PSYCOPG_MINIMUM = (3, 1)

# libpq words these in the server's language; the flags of the connection (see _failure) do not depend on it.
_AUTHENTICATION = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role .* does not exist|not allowed|SASL|no such user|not authorized"
    r"|not permitted to log in|permission denied|not currently accepting|does not support SSL|certificate",
    re.I,
)
_DATABASE_MISSING = re.compile(r'database ".*" does not exist|no such database', re.I)
_REJECTING = re.compile(
    r"starting up|shutting down|system is not (yet )?accepting|recovery mode|too many (clients|connections)|remaining connection slots", re.I
)
# The host itself answers that no process listens there.
_NOBODY_LISTENS = re.compile(r"Connection refused|No such file or directory", re.I)


class DatabaseMissing(OperationError):
    """The server answers and the database does not exist."""


class Rejecting(NotReachable):
    """The server runs and does not accept connections now."""


def psycopg_problem() -> str | None:
    """Why psycopg cannot be used here, or None."""
    if psycopg is None:
        return "psycopg 3 is missing"
    version = tuple(int(part) for part in re.findall(r"\d+", psycopg.__version__)[:2])
    if version < PSYCOPG_MINIMUM:
        return "psycopg %s is too old" % psycopg.__version__
    return None


@dataclasses.dataclass(frozen=True)
class Target:
    """Where and as whom to connect. ``host`` is a name, an address or a socket directory."""

    host: str
    port: int
    user: str
    dbname: str
    password: str | None = dataclasses.field(default=None, repr=False)
    extra: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return "%s:%s" % (self.host or "local socket", self.port)

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any], **overrides: t.Any) -> Target:
        """The target that a module's connection options name; ``overrides`` (host, port, user, password, dbname) win."""
        extra = {
            "sslmode": params.get("ssl_mode"),
            "sslrootcert": params.get("ca_cert"),
            "sslcert": params.get("ssl_cert"),
            "sslkey": params.get("ssl_key"),
            **(params.get("connect_params") or {}),
        }
        given = {key: value for key, value in overrides.items() if value not in (None, "")}
        return cls(
            host=str(given.get("host") or params.get("login_unix_socket") or params.get("login_host") or ""),
            port=int(given.get("port") or params.get("login_port") or 5432),
            user=str(given.get("user") or params.get("login_user") or "postgres"),
            dbname=str(given.get("dbname") or params.get("login_db") or "postgres"),
            password=given.get("password") or params.get("login_password") or None,
            extra={key: value for key, value in extra.items() if value not in (None, "")},
        )

    def to(self, **changes: t.Any) -> Target:
        """The same target with some fields changed."""
        return dataclasses.replace(self, **changes)

    def keywords(self) -> dict[str, t.Any]:
        """libpq keywords, the password among them: never put these into a result or a message."""
        keywords = {"host": self.host, "port": self.port, "user": self.user, "dbname": self.dbname, "password": self.password}
        return {**{key: value for key, value in keywords.items() if value not in (None, "")}, **self.extra}


class Session:
    """One connection in autocommit mode.

    ``rows``, ``row``, ``value`` and ``execute`` bind parameters on the server. ``ask``, ``start`` and ``finish`` speak
    the simple protocol with a bound in time: PgBouncer's console knows no other, and a server that hangs cannot hold
    the caller longer than it wants.
    """

    def __init__(self, connection: t.Any, target: Target) -> None:
        self._connection = connection
        self._started: str | None = None
        self.target = target

    @property
    def server_version(self) -> int:
        """As PostgreSQL counts: 150004 is 15.4. For a console, PgBouncer's own number."""
        return self._connection.info.server_version

    @property
    def connection(self) -> t.Any:
        return self._connection

    def rows(self, query: t.Any, parameters: t.Any = None) -> list[dict[str, t.Any]]:
        try:
            with self._connection.cursor(row_factory=dict_row) as cursor:
                cursor.execute(query, parameters)
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise self._query_failure(error) from error

    def row(self, query: t.Any, parameters: t.Any = None) -> dict[str, t.Any] | None:
        found = self.rows(query, parameters)
        return found[0] if found else None

    def value(self, query: t.Any, parameters: t.Any = None) -> t.Any:
        found = self.row(query, parameters)
        return next(iter(found.values())) if found else None

    def execute(self, query: t.Any, parameters: t.Any = None) -> None:
        self.rows(query, parameters)

    @contextlib.contextmanager
    def transaction(self) -> t.Iterator[None]:
        with self._connection.transaction():
            yield

    @contextlib.contextmanager
    def rehearsal(self) -> t.Iterator[None]:
        """A transaction, or a part of one, that is rolled back in any case."""
        with self._connection.transaction(force_rollback=True):
            yield

    def copy_out(self, statement: t.Any) -> bytes:
        """What COPY ... TO STDOUT sends."""
        try:
            with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
                return b"".join(bytes(block) for block in copy)
        except psycopg.Error as error:
            raise self._query_failure(error) from error

    def copy_in(self, statement: t.Any, data: bytes) -> None:
        """Feed COPY ... FROM STDIN."""
        try:
            with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
                copy.write(data)
        except psycopg.Error as error:
            raise self._query_failure(error) from error

    def columns(self, query: t.Any, parameters: t.Any = None) -> list[tuple[str, int]]:
        """Names and type oids of the columns that a query yields. Runs it."""
        return [(name, oid) for name, oid, _modifier in self.describe(query, parameters)]

    def describe(self, query: t.Any, parameters: t.Any = None) -> list[tuple[str, int, int]]:
        """Names, type oids and type modifiers of the columns that a query yields. Runs it."""
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(query, parameters)
                return [(column.name, column.type_code, cursor.pgresult.fmod(n)) for n, column in enumerate(cursor.description or ())]
        except psycopg.Error as error:
            raise self._query_failure(error) from error

    def start(self, statement: str) -> None:
        """Send one statement by the simple protocol and do not wait for the answer."""
        pgconn = self._connection.pgconn
        try:
            pgconn.send_query(statement.encode())
            while pgconn.flush():
                select.select([], [pgconn.socket], [], 1.0)
        except psycopg.Error as error:
            raise NotReachable("the connection to %s was lost: %s" % (self.target, _first_line(error))) from error
        self._started = statement

    @property
    def fileno(self) -> int:
        return self._connection.pgconn.socket

    def finished(self) -> bool:
        """Whether the answer to the started statement has arrived. Never blocks."""
        pgconn = self._connection.pgconn
        try:
            pgconn.consume_input()
        except psycopg.Error as error:
            raise NotReachable("the connection to %s was lost: %s" % (self.target, _first_line(error))) from error
        return not pgconn.is_busy()

    def finish(self, deadline: Deadline) -> list[dict[str, str | None]]:
        """The rows of the started statement, every value as text.

        Raises WaitTimeout once the deadline has passed; the statement then still runs and the session is of no more use.
        """
        pgconn = self._connection.pgconn
        rows: list[dict[str, str | None]] = []
        failure: str | None = None
        while True:
            while not self.finished():
                readable, _w, _x = select.select([pgconn.socket], [], [], deadline.left)
                if not readable and deadline.passed:
                    raise WaitTimeout("%s did not answer %s within %g s" % (self.target, self._started, deadline.seconds))
            result = pgconn.get_result()
            if result is None:
                break
            if result.status in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.EMPTY_QUERY):
                continue
            if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
                failure = (result.error_message or b"").decode("utf-8", "replace").strip()
                continue
            names = [(result.fname(i) or b"").decode() for i in range(result.nfields)]
            for n in range(result.ntuples):
                cells = (result.get_value(n, i) for i in range(result.nfields))
                rows.append({name: None if cell is None else cell.decode("utf-8", "replace") for name, cell in zip(names, cells)})
        statement, self._started = self._started, None
        if failure is not None:
            raise QueryFailed("%s refused %s: %s" % (self.target, statement, failure))
        return rows

    def ask(self, statement: str, deadline: Deadline) -> list[dict[str, str | None]]:
        """Run one statement by the simple protocol within the deadline."""
        self.start(statement)
        return self.finish(deadline)

    def ask_value(self, statement: str, deadline: Deadline) -> str | None:
        rows = self.ask(statement, deadline)
        return next(iter(rows[0].values())) if rows else None

    def close(self) -> None:
        self._connection.close()

    def _query_failure(self, error: t.Any) -> OperationError:
        if self._connection.closed:
            return NotReachable("the connection to %s was lost: %s" % (self.target, _first_line(error)))
        # Only the primary message: the detail of a constraint error prints whole rows, passwords among them.
        message = error.diag.message_primary or _first_line(error)
        return QueryFailed("%s answered: %s" % (self.target, message), sqlstate=error.sqlstate)


def connect(target: Target, timeout: float = 10, read_only: bool = False, console: bool = False) -> Session:
    """Open a session.

    ``timeout`` is in seconds, whole ones (libpq rounds up to 2). ``read_only`` makes the server refuse writes, which is
    how check mode is kept honest. ``console`` is for PgBouncer's admin console, which takes no start-up options.

    Raises AuthenticationFailed, DatabaseMissing, Rejecting or NotReachable.
    """
    keywords: dict[str, t.Any] = {"application_name": "pgfleet.ops", **target.keywords()}
    if not console:
        options = [str(keywords.get("options") or ""), "-c search_path=pg_catalog"]
        if read_only:
            options.append("-c default_transaction_read_only=on")
        keywords["options"] = " ".join(options).strip()
    try:
        keywords.update(connect_timeout=max(2, int(timeout + 0.5)), autocommit=True, prepare_threshold=None)
        connection = psycopg.connect(**keywords)
    except psycopg.Error as error:
        raise _failure(error, target) from error
    return Session(connection, target)


def ping(target: Target, timeout: float = 10) -> str:
    """What libpq makes of a server that lets nobody in: ``up``, ``rejecting`` or ``no_answer``; in any language, as it goes by the SQLSTATE.

    ``timeout`` as in ``connect``.
    """
    keywords = {**target.keywords(), "connect_timeout": max(2, int(timeout + 0.5))}
    answer = psycopg.pq.PGconn.ping(build_conninfo(keywords).encode())
    return {psycopg.pq.Ping.OK: "up", psycopg.pq.Ping.REJECT: "rejecting"}.get(answer, "no_answer")


def _failure(error: t.Any, target: Target) -> OperationError:
    text = _first_line(error)
    pgconn = getattr(error, "pgconn", None)
    if _DATABASE_MISSING.search(text):
        return DatabaseMissing('%s has no database "%s"' % (target, target.dbname))
    if _REJECTING.search(text):
        return Rejecting("%s rejects connections: %s" % (target, text))
    if _AUTHENTICATION.search(text) or (pgconn is not None and (pgconn.needs_password or pgconn.used_password)):
        return AuthenticationFailed(
            '%s does not let user "%s" in: %s' % (target, target.user, text),
            action="Check the login options (user, password or passfile) and the server's pg_hba.conf or the pooler's auth file",
        )
    return NotReachable(
        "%s does not answer: %s" % (target, text),
        action="Check that it runs, that host and port are right and that nothing filters between",
        refused=bool(_NOBODY_LISTENS.search(text)),
    )


# Lines that libpq adds behind the server's own words.
_HINT = re.compile(r"Is the server running|password retrieved from file")
# What the server adds to its words.
_DETAIL = re.compile(r"\s*\n(DETAIL|HINT):\s*")


def _first_line(error: t.Any) -> str:
    text = _DETAIL.sub("; ", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _HINT.match(line.strip())]
    # With several addresses psycopg lists each attempt; the last line is the most telling one.
    text = lines[-1] if lines else type(error).__name__
    return re.sub(r"^connection (failed|to server .*? failed): ", "", text)
