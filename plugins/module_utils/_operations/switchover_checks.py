# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What a switchover asks of the primary beside its state: open transactions, the archive, sessions that no pooler holds.

It is asked once to judge, and again where an option says to wait for it or to end it.
"""

from __future__ import annotations

import typing as t

from .._cluster.model import Node
from .._cluster.switchover import Archive, Transaction, archive_behind, long_transactions, too_old
from .._errors import Refused, WaitTimeout
from .._sql.connection import Session
from .._wait import Deadline, wait_for
from .members import Run

# Walsenders and the server's own processes are no client backends.
_TRANSACTIONS = (
    "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, application_name, usename::text AS user,"
    " xact_start::text AS started_at FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start"
)
# Looks and ends in one statement, so that nothing is ended that has not just been seen to be too old.
_TERMINATE = """
WITH old AS MATERIALIZED (
  SELECT pid, backend_start, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, application_name, usename::text AS user,
         xact_start::text AS started_at FROM pg_stat_activity
  WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND clock_timestamp() - xact_start > make_interval(secs => %s)
)
SELECT pid, seconds, application_name, "user", started_at FROM old WHERE pg_terminate_backend(pid) ORDER BY started_at
"""
_SESSIONS = "SELECT pid, backend_start::text AS since, application_name FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"

# How long a backend may take to end after it was told to, in seconds.
_TERMINATION_LIMIT = 10.0


def transactions(session: Session) -> list[Transaction]:
    """Open transactions of clients, the oldest first."""
    return [Transaction(**row) for row in session.rows(_TRANSACTIONS)]


def archive(session: Session) -> Archive | None:
    """What waits to be archived; None where nothing is archived."""
    if session.value("SELECT current_setting('archive_mode')") == "off":
        return None
    row = session.row(
        "SELECT (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS waiting,"
        " CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN last_failed_wal END AS failing_at FROM pg_stat_archiver"
    )
    return Archive(**t.cast("dict[str, t.Any]", row))


def sessions(session: Session) -> dict[tuple[int, str], str]:
    """The application_name of each client's session, by its process and when it began."""
    return {(row["pid"], row["since"]): row["application_name"] for row in session.rows(_SESSIONS)}


class Conditions:
    """Waits for, or ends, what speaks against a switchover, as the options say. Its methods are steps before the first pause."""

    def __init__(self, run: Run, primary: Node, candidate: Node) -> None:
        self._run = run
        self._primary = primary
        self._candidate = candidate
        self._limit: float = run.params["transaction_limit"]
        self._budget: float = run.params["wait_timeout"]
        """What is left of it, in seconds."""

    def _unmet(self, session: Session, modes: t.Collection[str], options: t.Collection[str]) -> list[str]:
        params, found = self._run.params, []
        if "long_transactions" in options and params["long_transactions"] in modes:
            found += long_transactions(transactions(session), self._limit)
        if "archive_behind" in options and params["archive_behind"] in modes:
            found += archive_behind(archive(session), params["archive_lag_limit"])
        return found

    def _refuse(self, found: list[str], action: str | None = None) -> Refused:
        return Refused(
            "the switchover to %s was not begun, nothing was changed: %s" % (self._candidate.name, "; ".join(found)),
            action=action,
            findings=found,
            changed=False,
        )

    def wait(self, *options: str) -> None:
        """Until what these options are about is as wanted; all waits together take ``wait_timeout``. Raises Refused."""
        session = self._run.session(self._primary, read_only=True)
        deadline = Deadline(self._budget)
        try:
            wait_for("an end of what is waited for", lambda: self._unmet(session, ["wait"], options), lambda found: not found, deadline)
        except WaitTimeout as error:
            raise self._refuse(error.facts["last_seen"], "That was still so after %g s, the option wait_timeout" % self._run.params["wait_timeout"]) from error
        finally:
            self._budget = deadline.left
            session.close()

    def look_again(self, session: Session) -> None:
        """Transactions that have grown old while the switchover was prepared. Raises Refused, while there is nothing to take back for clients."""
        found = self._unmet(session, ["refuse"], ["long_transactions"])
        if found:
            raise self._refuse(found)
        self.wait("long_transactions")

    def terminate(self) -> None:
        """End the sessions whose transaction is too old in this moment. Raises Refused where one does not end."""
        session = self._run.session(self._primary)
        ended = session.rows(_TERMINATE, [self._limit])
        self._run.result["terminated"] = ended
        pids = [row["pid"] for row in ended]
        try:
            wait_for(
                "the end of the sessions %s" % ", ".join(map(str, pids)),
                lambda: [one for one in too_old(transactions(session), self._limit) if one.pid in pids],
                lambda left: not left,
                Deadline(_TERMINATION_LIMIT),
                interval=0.05,
            )
        except WaitTimeout as error:
            raise Refused(
                "the switchover to %s was not begun: these transactions were to be ended and are still open after %g s: %s"
                % (self._candidate.name, _TERMINATION_LIMIT, "; ".join(map(str, error.facts["last_seen"]))),
                terminated=ended,
            ) from error
        finally:
            session.close()
