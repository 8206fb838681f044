# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each fault of cases.py does to its victim on a ChaosSite, and how it is taken back.

========== ==============================================================================================================================
kill       SIGKILL: the controlling process, or the guardian on the host of a node or pooler
freeze     SIGSTOP for longer than the operation's time limit, then SIGCONT: a process, or all of a server
raise      the step fails
crash      SIGKILL to the postmaster; its children end by themselves
lose       SIGKILL to all of a server or pooler and to its guardian in the same moment, as if its host had lost its power
restart    SIGKILL to a pooler, which is started again at once with the file on its disk
cut        the connections of a link are closed: the shell to a guardian, SQL of the operation and its guardians to a node, the console of
           a pooler, replication from the old primary
partition  the same links let nothing through for longer than the time limit, old connections and new ones, and close nothing
full       no byte is free where the pooler's file is, or where the candidate's WAL is
fail       pg_ctl ends with an error each time
hang       pg_ctl never ends
start      the old primary comes back: an init system starts it, if it is down in that moment, or what has kept it away ends (see losses.py)
========== ==============================================================================================================================
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from chaos_site import end
from lab import wait_until


def send(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Faults:
    """The faults of one case. ``roles`` has the nodes old, candidate and other, and the pooler; ``hold`` is how long a fault lasts that ends, in seconds."""

    def __init__(self, site, roles, hold):
        self.site, self.roles, self.hold = site, roles, hold
        self.controller = None
        self.loss = None
        self._undo = []
        self._timers = []
        self._lock = threading.Lock()

    def inject(self, fault, victim):
        getattr(self, "_" + fault)(*victim.split("-"))

    def heal(self):
        """Take back all that can be. What was killed stays dead."""
        for timer in self._timers:
            timer.cancel()
        with self._lock:
            while self._undo:
                self._undo.pop()()

    def _lasts(self, undo):
        """Until healed."""
        with self._lock:
            self._undo.append(undo)

    def _lasts_a_while(self, undo):
        self._lasts(undo)
        timer = threading.Timer(self.hold, self.heal)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    # -- victims -------------------------------------------------------------------------------------------------------

    def _part(self, role):
        return ("pooler" if role == "pooler" else "node"), self.roles[role].name

    def _guardian(self, role):
        """Process ids of the shell and of the guardian; nothing where a fault comes after the operation's end."""
        # One that has just been started makes itself known in a moment.
        wait_until(lambda: self.site.guardians(*self._part(role)) or self.controller.process.poll() is not None, 10)
        found = self.site.guardians(*self._part(role))
        return found[-1] if found else ()

    def _pids(self, kind, role=None):
        if kind == "controller":
            return [self.controller.pid]
        if kind == "guardian":
            return self._guardian(role)[1:]
        if kind == "pooler":
            return [self.roles["pooler"].pid]
        return self.site.server_processes(self.roles[role])

    def _link(self, kind, role):
        """The proxy and the name of a link."""
        if kind == "console":
            return self.site.consoles, "console-" + self.roles["pooler"].name
        if kind == "replication":
            return self.site.proxies, "%s-replication" % self.roles["old"].name
        return self.site.proxies, "sql-" + self.roles[role].name

    # -- faults --------------------------------------------------------------------------------------------------------

    def _kill(self, kind, role=None):
        end(self._pids(kind, role))

    def _freeze(self, kind, role=None):
        pids = self._pids(kind, role)
        send(pids, signal.SIGSTOP)
        self._lasts_a_while(lambda: send(pids, signal.SIGCONT))

    def _crash(self, _kind, role):
        pid = self.roles[role].pid
        if pid:
            end([pid])

    def _lose(self, _kind, role):
        pids = [self.roles["pooler"].pid] if role == "pooler" else self.site.server_processes(self.roles[role])
        end([pid for pid in (*pids, *self._guardian(role)) if pid])

    def _restart(self, _kind):
        end(self._pids("pooler"))
        self.site.start_pooler(self.roles["pooler"])

    def _cut(self, kind, role=None):
        if kind == "shell":
            end(self._guardian(role)[:1])
        else:
            proxies, link = self._link(kind, role)
            proxies.tell("cut", link)

    def _partition(self, kind, role=None):
        if kind == "shell":
            pids = self._guardian(role)[:1]
            send(pids, signal.SIGSTOP)
            self._lasts_a_while(lambda: send(pids, signal.SIGCONT))
        else:
            proxies, link = self._link(kind, role)
            proxies.tell("partition", link)
            self._lasts_a_while(lambda: proxies.tell("heal", link))

    def _full(self, kind, role=None):
        disk = self.site.wal_disks[self.roles[role].name] if kind == "wal" else self.site.disks[self.roles["pooler"].name]
        disk.fill()
        self._lasts(disk.clear)

    def _fail(self, _kind, role):
        self._command(role, "fail")

    def _hang(self, _kind, role):
        self._command(role, "hang")

    def _start(self, _kind, role):
        if self.loss:
            self.loss.take_back()
        if self.roles[role].pid is None:
            # It may be down because the operation is about to start it: whoever is second finds a server at work, and that is no fault.
            self.roles[role].start(check=False)

    def _command(self, role, what):
        flag = self.site.flag(self.roles[role])
        flag.write_text(what)
        flag.chmod(0o644)
        self._lasts(flag.unlink)
