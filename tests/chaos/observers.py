# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who writes the history: clients behind the poolers, clients that write to each node directly, and somebody who watches what is paused."""

from __future__ import annotations

import contextlib
import threading
import time

import psycopg
from history import ACKNOWLEDGED, REFUSED, UNKNOWN, Commit, PauseSample

INSERT = """
INSERT INTO public.chaos (run, client, sequence) VALUES (%s, %s, %s)
RETURNING current_setting('cluster_name'), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
  (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8, extract(epoch FROM clock_timestamp())::float8
"""
# A server that is a standby; whatever else it says, the commit may have been made.
READ_ONLY = "25006"


class Client(threading.Thread):
    """Writes one row after the other and remembers what it was told. ``connect`` opens a connection."""

    def __init__(self, run, name, connect, interval, stop):
        super().__init__(daemon=True)
        self.run_name, self.name, self.connect, self.interval, self.ending = run, name, connect, interval, stop
        self.commits = []
        self._asking = None

    def run(self):
        connection, sequence = None, 0
        while not self.ending.is_set():
            try:
                if connection is None:
                    connection = self.connect()
            except psycopg.Error:
                time.sleep(max(self.interval, 0.05))
                continue
            sequence += 1
            sent = time.monotonic()
            self._asking = (sequence, sent)
            try:
                node, timeline, position, executed = connection.execute(INSERT, (self.run_name, self.name, sequence)).fetchone()
            except psycopg.Error as error:
                refused = error.sqlstate == READ_ONLY
                self.commits.append(Commit(self.name, sequence, sent, time.monotonic(), REFUSED if refused else UNKNOWN))
                if not refused or connection.closed:
                    with contextlib.suppress(psycopg.Error):
                        connection.close()
                    connection = None
            else:
                ended = time.monotonic()
                # Of the same machine's clock; taken anew each time, as that clock may be set meanwhile.
                executed += ended - time.time()
                self.commits.append(Commit(self.name, sequence, sent, ended, ACKNOWLEDGED, node, int(timeline, 16), position, executed))
            self._asking = None
            time.sleep(self.interval)
        if connection is not None:
            connection.close()

    def history(self):
        asking = self._asking
        rest = [Commit(self.name, asking[0], asking[1], time.monotonic(), UNKNOWN)] if asking and self.is_alive() else []
        return [*self.commits, *rest]


class Watcher(threading.Thread):
    """Asks one pooler what is paused, on a console of its own."""

    def __init__(self, pooler, interval, stop):
        super().__init__(daemon=True)
        self.pooler, self.interval, self.ending = pooler, interval, stop
        self.samples = []

    def run(self):
        console = None
        while not self.ending.is_set():
            sent = time.monotonic()
            try:
                if console is None:
                    console = self.pooler.console()
                cursor = console.execute("SHOW DATABASES")
                names = [column.name for column in cursor.description]
                paused = frozenset(row[names.index("name")] for row in cursor.fetchall() if row[names.index("paused")])
            except psycopg.Error:
                paused, console = None, None
            self.samples.append(PauseSample(self.pooler.name, sent, time.monotonic(), paused))
            time.sleep(self.interval)
        if console is not None:
            console.close()


class Observers:
    """All of them; use as a context, then read ``commits`` and ``samples``."""

    def __init__(self, site, run, clients=4):
        self.stop = threading.Event()
        self.names = ["client-%d" % n for n in range(clients)]
        pairs = zip(self.names, site.poolers * clients)
        self.clients = [Client(run, name, lambda p=pooler: p.connect("app"), 0.03, self.stop) for name, pooler in pairs]
        self.clients += [Client(run, "probe-" + node.name, lambda n=node: n.connect("app"), 0.02, self.stop) for node in site.nodes]
        self.watchers = [Watcher(pooler, 0.02, self.stop) for pooler in site.poolers]

    def __enter__(self):
        for thread in (*self.clients, *self.watchers):
            thread.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        end = time.monotonic() + 15
        for thread in (*self.clients, *self.watchers):
            thread.join(max(0.0, end - time.monotonic()))
        self.commits = [commit for client in self.clients for commit in client.history()]
        self.samples = [sample for watcher in self.watchers for sample in watcher.samples]

    def acknowledged(self, name, after=0.0):
        """Whether a client has had anything acknowledged that it sent after a moment."""
        client = next(client for client in self.clients if client.name == name)
        return any(commit.outcome == ACKNOWLEDGED and commit.sent > after for commit in reversed(client.commits))
