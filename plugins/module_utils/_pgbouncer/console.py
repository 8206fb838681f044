# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""PgBouncer's admin console: the simple protocol only, every statement with a bound in time."""

from __future__ import annotations

import re
import time
import typing as t

from .._errors import InvalidInput, NotReachable, QueryFailed
from .._sql.connection import Session, Target, connect
from .._wait import Deadline

ADMIN_DATABASE = "pgbouncer"
DEFAULT_PORT = 6432

# The console keeps an argument, with its quotes, in 64 bytes.
_MAX_ARGUMENT_BYTES = 63
_PLAIN_NAME = re.compile(r"[0-9A-Za-z_]+")
_WORDS = re.compile(r"[A-Za-z_]+")
_INTEGER = re.compile(r"-?[0-9]+")
_BOOLEANS = {"paused": {"1": True, "0": False}, "disabled": {"1": True, "0": False}, "changeable": {"yes": True, "no": False}}

# Columns that are text even where a value looks like a number.
_TEXT = frozenset(
    {
        "name", "host", "database", "user", "force_user", "pool_mode", "load_balance_hosts", "type", "state", "addr", "local_addr", "connect_time",
        "request_time", "ptr", "link", "tls", "application_name", "key", "value", "default", "hostname", "zonename", "version", "id",
    }
)  # fmt: skip

Row = dict[str, t.Any]


def identifier(name: str) -> str:
    """A database name as an argument of a console command. Raises InvalidInput if the console cannot take it."""
    text = name if _PLAIN_NAME.fullmatch(name) else '"%s"' % name.replace('"', '""')
    if not name or "\0" in name or len(text.encode("utf-8", "surrogateescape")) > _MAX_ARGUMENT_BYTES:
        raise InvalidInput('PgBouncer\'s console cannot take the database name "%s"' % name, expected="1 to 61 bytes where quotes are needed, else 63")
    return text


def console_target(params: t.Mapping[str, t.Any], **overrides: t.Any) -> Target:
    """The console that a module's connection options name; the port is 6432 where none is given."""
    target = Target.from_params(params, **overrides)
    given = overrides.get("port") or params.get("login_port")
    return target.to(port=int(given or DEFAULT_PORT), dbname=ADMIN_DATABASE)


class Console:
    """One session on the admin console.

    A PAUSE can take forever and blocks its console, so it comes in two parts: several poolers are paused at once under
    one deadline, and whoever pauses keeps a second console for the RESUME. Errors are those of Session.
    """

    def __init__(self, session: Session, timeout: float = 5) -> None:
        self.session = session
        self._timeout = timeout
        self._version: str | None = None

    @classmethod
    def open(cls, target: Target, timeout: float = 5) -> Console:
        """Connect to the console of a pooler. ``timeout`` in seconds, for the connection and for statements without a deadline.

        Raises AuthenticationFailed, Rejecting or NotReachable.
        """
        return cls(connect(target.to(dbname=ADMIN_DATABASE), timeout=timeout, console=True), timeout)

    @property
    def target(self) -> Target:
        return self.session.target

    def close(self) -> None:
        self.session.close()

    def ask(self, statement: str, deadline: Deadline | None = None) -> list[dict[str, str | None]]:
        """Run one command; the rows as text."""
        return self.session.ask(statement, deadline or Deadline(self._timeout))

    @property
    def version_text(self) -> str:
        """As SHOW VERSION says it, "PgBouncer 1.18.0"."""
        if self._version is None:
            rows = self.ask("SHOW VERSION")
            if not rows:
                raise NotReachable("%s is no PgBouncer console: SHOW VERSION gave no row" % self.target)
            self._version = str(next(iter(rows[0].values())))
        return self._version

    @property
    def version(self) -> tuple[int, ...]:
        """The numbers of the version, (1, 18, 0)."""
        numbers = re.search(r"\d+(?:\.\d+)+", self.version_text)
        if not numbers:
            raise NotReachable('%s is no PgBouncer console: it calls itself "%s"' % (self.target, self.version_text))
        return tuple(int(part) for part in numbers.group().split("."))

    def show(self, what: str, deadline: Deadline | None = None) -> list[Row]:
        """The rows of SHOW ``what``, numbers as int, paused and disabled as bool."""
        if not _WORDS.fullmatch(what):
            raise InvalidInput('"%s" is nothing that the console can SHOW' % what)
        return [{key: _typed(key, value) for key, value in row.items()} for row in self.ask("SHOW " + what.upper(), deadline)]

    def databases(self, deadline: Deadline | None = None) -> dict[str, Row]:
        """SHOW DATABASES by name, without the console's own entry."""
        found = {}
        for row in self.show("DATABASES", deadline):
            if row["name"] != ADMIN_DATABASE:
                # Called reserve_pool before 1.24.
                row.setdefault("reserve_pool_size", row.get("reserve_pool"))
                found[row["name"]] = row
        return found

    def pools(self, deadline: Deadline | None = None) -> list[Row]:
        """SHOW POOLS without the console's own pool."""
        return [row for row in self.show("POOLS", deadline) if row["database"] != ADMIN_DATABASE]

    def config(self, deadline: Deadline | None = None) -> dict[str, str | None]:
        """SHOW CONFIG: each setting's text."""
        return {str(row["key"]): row["value"] for row in self.show("CONFIG", deadline)}

    def reload(self, deadline: Deadline | None = None) -> None:
        """Have the configuration read again. Before 1.25 this succeeds also when the file is faulty: look at the result."""
        self.start_reload()
        self.finish(deadline or Deadline(self._timeout))

    def start_reload(self) -> None:
        """Begin a reload, and do not wait for the answer."""
        self.session.start("RELOAD")

    def finish(self, deadline: Deadline) -> None:
        """Wait for the answer to what was begun."""
        self.session.finish(deadline)

    def is_paused(self, deadline: Deadline | None = None) -> bool | None:
        """Whether the pooler as a whole is paused or suspended; None where a login that is no admin cannot know."""
        # PgBouncer 1.18 has no SHOW STATE. No version pauses the console's own database, and the reason of that refusal tells.
        for question in ("SHOW STATE", "PAUSE " + ADMIN_DATABASE):
            try:
                rows = self.ask(question, deadline)
            except QueryFailed as error:
                if "already" in error.message:
                    return True
                if "cannot pause" in error.message:
                    return False
            else:
                return any(row["value"] == "yes" for row in rows if row["key"] in ("paused", "suspended"))
        return None

    def wait_for_logins(self, deadline: Deadline) -> None:
        """Until no server connection is in login, or the deadline has passed: a PAUSE or RELOAD that meets one makes PgBouncer take the pool for failed."""
        while any(row["sv_login"] for row in self.pools()) and not deadline.passed:
            time.sleep(0.005)

    def start_pause(self, name: str | None = None) -> None:
        """Begin to pause one database or all, and do not wait until every transaction has ended."""
        self.session.start("PAUSE" + _argument(name))

    def pause_finished(self) -> bool:
        """Whether the answer to the pause is there. Never blocks."""
        return self.session.finished()

    def finish_pause(self, deadline: Deadline) -> None:
        """Wait for a pause that was begun.

        Raises WaitTimeout; the pause then goes on, this console is of no more use, and a RESUME needs another one.
        """
        self.session.finish(deadline)

    def pause(self, name: str | None = None, deadline: Deadline | None = None) -> None:
        """Pause one database or all and wait until the last transaction has ended; errors as of ``finish_pause``."""
        self.start_pause(name)
        self.finish_pause(deadline or Deadline(self._timeout))

    def resume(self, name: str | None = None, deadline: Deadline | None = None, missing_ok: bool = False) -> bool:
        """End a pause; with ``missing_ok`` it is no error that there is none. Returns whether there was one."""
        self.start_resume(name)
        return self.finish_resume(deadline or Deadline(self._timeout), missing_ok)

    def start_resume(self, name: str | None = None) -> None:
        """Begin to end a pause, and do not wait for the answer."""
        self.session.start("RESUME" + _argument(name))

    def finish_resume(self, deadline: Deadline, missing_ok: bool = False) -> bool:
        """Wait for a resume that was begun; as ``resume``."""
        try:
            self.session.finish(deadline)
        except QueryFailed as error:
            if missing_ok and "is not paused" in error.message:
                return False
            raise
        return True

    def enable(self, name: str, deadline: Deadline | None = None) -> None:
        """Let new clients of a database in again."""
        self.ask("ENABLE" + _argument(name), deadline)

    def disable(self, name: str, deadline: Deadline | None = None) -> None:
        """Refuse new clients of a database; those that are in stay."""
        self.ask("DISABLE" + _argument(name), deadline)

    def reconnect(self, name: str | None = None, deadline: Deadline | None = None) -> None:
        """Have every server connection of one database or of all closed as soon as it is free."""
        self.ask("RECONNECT" + _argument(name), deadline)

    def kill(self, name: str, deadline: Deadline | None = None) -> None:
        """End all connections of a database and leave it paused. A PAUSE under way is never answered then."""
        self.ask("KILL" + _argument(name), deadline)

    def set(self, key: str, value: str, deadline: Deadline | None = None) -> None:
        """Change a setting at run time; it lasts until the next RELOAD or restart at most."""
        if not _WORDS.fullmatch(key):
            raise InvalidInput('"%s" is no name of a PgBouncer setting' % key)
        if "\0" in value:
            raise InvalidInput("the value of %s has a NUL character" % key)
        self.ask("SET %s = '%s'" % (key, value.replace("'", "''")), deadline)


def _argument(name: str | None) -> str:
    return "" if name is None else " " + identifier(name)


def _typed(column: str, value: str | None) -> t.Any:
    if value is None or column in _TEXT:
        return value
    if column in _BOOLEANS:
        return _BOOLEANS[column].get(value, value)
    return int(value) if _INTEGER.fullmatch(value) else value
