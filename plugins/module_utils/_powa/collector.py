# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The LISTEN/NOTIFY protocol of powa-collector, spoken through a connection to the repository.

A request is ``COMMAND channel arguments`` on the channel powa_collector; the answer is ``COMMAND STATUS data`` on the
channel that the request names.
"""

from __future__ import annotations

import json
import re
import secrets
import select
import typing as t

from .._errors import NotReachable, QueryFailed, Refused
from .._sql.connection import Session, sql
from .._wait import Deadline
from .repository import version_tuple

# The collector looks for requests at least every 10 s.
ANSWER_SECONDS = 15
# An answer of 8000 bytes or more kills collector 1.2.0; a server takes less than 50 of them.
ASK_ONE_BY_ONE_ABOVE = 100

RUNNING = "running"
# Our word for a server that the collector does not name.
NO_WORKER = "none"
# A server without one of these has no worker thread, and only RELOAD makes one.
ALIVE = (RUNNING, "no connection to remote server", "no connection to repository server", "stopping", "Unknown")

# The versions that take a snapshot on request.
FORCES_SNAPSHOTS = (1, 3)
_LATER = re.compile("less than 10s|already in progress|already scheduled")

_MAIN_THREAD = re.compile(r"PoWA collector - main thread \((?P<version>[0-9][^)]*)\)")


def collector_versions(session: Session) -> list[str]:
    """Versions of the collectors that are connected to the session's database, one for each of them."""
    rows = session.rows(
        "SELECT application_name AS name FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'PoWA collector - main thread%%'"
        " ORDER BY backend_start",
        [],
    )
    found = [_MAIN_THREAD.match(row["name"]) for row in rows]
    return [one.group("version") if one else "" for one in found]


def mismatch(collector: str, repository: str) -> str | None:
    """Why a version of the collector cannot work with a version of the extension, or None."""
    if collector and version_tuple(collector) < (1, 3) and version_tuple(repository) >= (5,):
        return "powa-collector %s cannot work with PoWA %s: every worker ends at once. Install powa-collector 1.3 or later" % (collector, repository)
    return None


def parse_answer(payload: str) -> tuple[str, str, str]:
    """``COMMAND STATUS data`` of an answer; the data may be empty and may contain blanks."""
    words = [*payload.split(" ", 2), "", ""]
    return words[0], words[1], words[2].strip()


def parse_workers(data: str) -> dict[int, str]:
    """Status text by server id."""
    try:
        return {int(srvid): str(status) for srvid, status in json.loads(data or "{}").items()}
    except (ValueError, AttributeError) as error:
        raise QueryFailed("the collector answered what is no list of workers: %.200s" % data) from error


class Collector:
    """Asks the collector of a repository. Writes nothing: NOTIFY needs no right on 1.2."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.channel = "pgfleet_" + secrets.token_hex(8)
        self._received: list[str] = []
        session.connection.add_notify_handler(self._receive)
        session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self.channel)))

    def _receive(self, notification: t.Any) -> None:
        if notification.channel == self.channel:
            self._received.append(notification.payload)

    def ask(self, command: str, arguments: t.Sequence[str] = ("",)) -> list[str]:
        """Send the command once for each of ``arguments`` and return the data of the answers.

        Raises NotReachable if an answer fails to come and Refused if the collector says anything but OK.
        """
        answers = self._exchange(command, arguments)
        for status, data in answers:
            if status != "OK":
                raise self._refusal(command, status, data)
        return [data for _status, data in answers]

    def _exchange(self, command: str, arguments: t.Sequence[str]) -> list[tuple[str, str]]:
        self._received.clear()
        for argument in arguments:
            self.session.execute("SELECT pg_notify('powa_collector', %s)", [" ".join(filter(None, (command, self.channel, argument)))])
        return [parse_answer(payload)[1:] for payload in self._wait(command, len(arguments))]

    @staticmethod
    def _refusal(command: str, status: str, data: str) -> Refused:
        text = "the collector answered %s to %s: %s" % (status, command, data or "no reason given")
        if data == "Permission denied":
            return Refused(
                text,
                action="Since 1.3 the sender must be a superuser or a member of pg_signal_backend, powa_signal_backend,"
                " powa_write_all_data or powa_admin: see login_user",
            )
        # So 1.3 answers once it was reloaded while it had a worker of a server that is gone.
        return Refused(text, action="Restart the collector and look into its log", restart_required=True)

    def _wait(self, command: str, count: int) -> list[str]:
        deadline = Deadline(ANSWER_SECONDS)
        connection = self.session.connection
        while len(self._received) < count:
            readable, _w, _x = select.select([connection.pgconn.socket], [], [], deadline.left)
            if readable:
                # Any statement makes psycopg hand over the notifications that have arrived.
                self.session.execute("SELECT 1")
            elif deadline.passed:
                raise NotReachable(
                    "the collector did not answer %s within %d s" % (command, ANSWER_SECONDS),
                    action="Its process may live on without its main thread, after the repository was restarted or a server was removed or moved:"
                    " restart the collector and look into its log",
                )
        return self._received[:count]

    def reload(self) -> None:
        """Make it read powa_servers anew and start workers for servers that have none."""
        self.ask("RELOAD")

    def force_snapshot(self, srvid: int) -> str | None:
        """Ask for a snapshot of a server at once. Returns why it has to wait, None if it is taken. Raises Refused if it never will be."""
        ((status, data),) = self._exchange("FORCE_SNAPSHOT", [str(srvid)])
        if status == "OK":
            return None
        if status == "ERROR" and _LATER.search(data):
            return data
        raise self._refusal("FORCE_SNAPSHOT", status, data)

    def workers(self, srvids: t.Collection[int]) -> dict[int, str]:
        """Status of the worker threads by server id; ``srvids`` are those of all servers that may have one."""
        if len(srvids) <= ASK_ONE_BY_ONE_ABOVE:
            return parse_workers(self.ask("WORKERS_STATUS")[0])
        found: dict[int, str] = {}
        for data in self.ask("WORKERS_STATUS", [str(srvid) for srvid in sorted(srvids)]):
            found.update(parse_workers(data))
        return found
