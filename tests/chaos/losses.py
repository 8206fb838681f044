# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a failover comes to its lost primary; the name of the case's operation says which one.

================= ====================================================================================================================
failover          all of the server is killed at once, its host works
failover-behind   the same, and the candidate lacks WAL that the other standby has
failover-stuck    the same, and no byte is free where the file of one pooler is
failover-gone     the same with its host, which can be asked nothing any more; it is named in the option fenced and never comes back
failover-frozen   SIGSTOP to all of the server, which goes on when the operation has ended, if it still lives then
failover-isolated nothing comes through between the primary and everybody else until the operation has ended; a client beside it writes on
failover-reached  only the operation itself does not reach the primary, and is told to replace it all the same
failover-refused  only the operation itself does not reach the primary: it has to leave it alone
================= ====================================================================================================================
"""

from __future__ import annotations

import contextlib
import math
import os
import signal

from chaos_site import end
from lab import wait_until


class Loss:
    """``failover``; the others differ from it."""

    lives = False
    """Whether the server may go on committing."""
    comes_back = True

    def __init__(self, site, roles):
        self.site, self.roles, self.old = site, roles, roles["old"]

    def begin(self):
        end(self.site.server_processes(self.old))

    def take_back(self):
        """Once the operation has ended. What was killed stays dead."""

    def change(self, options):
        """The options of every run."""

    def change_first(self, options):
        """Those of the run with the fault only."""

    def end_of_commits(self, now):
        """When the lost primary made its last commit, in seconds."""
        return math.inf if self.lives else now


class Behind(Loss):
    def begin(self):
        candidate, other = self.roles["candidate"], self.roles["other"]
        candidate.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'")
        candidate.sql("SELECT pg_reload_conf()")
        wait_until(lambda: candidate.value("SELECT count(*) FROM pg_stat_wal_receiver") == 0, 20)
        position = candidate.value("SELECT pg_last_wal_receive_lsn()::text")
        wait_until(lambda: other.value("SELECT pg_last_wal_receive_lsn() > %s::pg_lsn + 1000", [position]), 20)
        super().begin()


class Stuck(Loss):
    @property
    def _disk(self):
        return self.site.disks[self.roles["pooler"].name]

    def begin(self):
        self._disk.fill()
        super().begin()

    def take_back(self):
        self._disk.clear()


class Gone(Loss):
    comes_back = False

    def change(self, options):
        options["fenced"] = [self.old.name]
        next(entry for entry in options["nodes"] if entry["name"] == self.old.name)["shell"] = ["/bin/false"]


class Frozen(Loss):
    lives = True

    def begin(self):
        self._send(signal.SIGSTOP)

    def take_back(self):
        self._send(signal.SIGCONT)

    def _send(self, number):
        for pid in self.site.server_processes(self.old):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Partitioned(Loss):
    lives = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._links = self._find_links()

    def _find_links(self):
        return ["sql-" + self.old.name]

    def begin(self):
        for link in self._links:
            self.site.proxies.tell("partition", link)

    def take_back(self):
        for link in self._links:
            self.site.proxies.tell("heal", link)


class Isolated(Partitioned):
    def _find_links(self):
        return ["sql-" + self.old.name, self.old.name, "%s-replication" % self.old.name]


class Reached(Partitioned):
    def change_first(self, options):
        options["if_reached"] = "fence"


LOSSES = {
    "failover": Loss, "failover-behind": Behind, "failover-stuck": Stuck, "failover-gone": Gone, "failover-frozen": Frozen,
    "failover-isolated": Isolated, "failover-reached": Reached, "failover-refused": Partitioned,
}  # fmt: skip
