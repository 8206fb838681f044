# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster of two behind two poolers that every method is measured on, with the same settings, and how one round is measured."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import psycopg
from lab import SUPERUSER_PASSWORD, call_module, wait_until
from switchover_site import Site

# The lab's own settings are for quick tests; these are for the benchmark, the same for all methods.
SETTINGS = {"fsync": "on", "shared_buffers": "256MB", "max_wal_size": "2GB", "min_wal_size": "256MB", "wal_keep_size": "512MB", "max_connections": "100"}
DIRTY_ROWS = 100000
CLIENTS = 20
INTERVAL = 0.04
"""Seconds between two rows of one client: together one commit each 2 ms."""


def fill(primary):
    """What the load writes to, and what is changed before each round, so that checkpoints have something to do."""
    primary.sql("CREATE TABLE public.work AS SELECT g AS i, 0 AS n, repeat('x', 300) AS filler FROM generate_series(1, %s) g" % DIRTY_ROWS, dbname="app")


class BenchSite(Site):
    """Ours, and by hand: plain PostgreSQL behind PgBouncer."""

    def __init__(self, lab, name="own", **pooler_settings):
        sockets = lab.path / (name + "-sockets")
        # pgbouncer -R takes the sockets over by one of these.
        sockets.mkdir(mode=0o777)
        sockets.chmod(0o777)
        super().__init__(lab, nodes=2, poolers=2, pooler_settings={"unix_socket_dir": sockets, **pooler_settings}, settings=SETTINGS)
        fill(self.primary)
        self.give_verifiers()

    def give_verifiers(self):
        """The poolers get the password as PostgreSQL stores it. From a plain one PgBouncer derives keys at each login, which takes it some milliseconds."""
        verifier = self.primary.value("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
        for pooler in self.poolers:
            pooler.write_users(verifier)
            with pooler.console() as console:
                console.execute("RELOAD")

    def leave(self):
        """Do nothing while others are measured. Servers and poolers without clients do nothing."""

    def come_back(self):
        """Be there again after leave()."""

    @property
    def candidate(self):
        return next(node for node in self.nodes if node.pid and node.in_recovery)

    def settle(self):
        """Until the cluster is as it was before the first round."""
        wait_until(self.sound, 180)

    def sound(self):
        """One primary, a standby that streams from it and has replayed all, and poolers that lead to the primary."""
        with contextlib.suppress(psycopg.Error, ValueError):
            primary = self.primary
            query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn >= pg_current_wal_flush_lsn()"
            return primary.value(query) == len(self.nodes) - 1 and all(self.leads(pooler, primary) for pooler in self.poolers)
        return False

    def bring_back(self, node):
        """A primary that was killed, as a standby of the new one."""
        options = {
            "data_directory": node.data, "config_file": node.config_file, "log_file": node.log, "method": "pg_ctl", "source_host": "127.0.0.1",
            "source_port": self.primary.port, "login_password": SUPERUSER_PASSWORD, "replication_user": "postgres", "replication_passfile": node.passfile,
            "slot_name": node.name, "application_name": node.name, "reclone": True,
        }  # fmt: skip
        result = call_module("pg_clone", options)
        if result["failed"]:
            sys.exit("pg_clone failed: %s" % result["msg"])

    @staticmethod
    def leads(pooler, node):
        with pooler.connect("app") as session:
            return session.execute("SELECT current_setting('port')::int, pg_is_in_recovery()").fetchone() == (node.port, False)

    def rows(self):
        """Rows of the load on the primary; None while there is none that answers."""
        with contextlib.suppress(psycopg.Error, ValueError):
            return self.primary.value("SELECT count(*) FROM public.load", dbname="app")


def measure(site, act, evaluate, method):
    """One round: load, then ``act``, until commits flow again. ``evaluate`` is figures.of_switchover or figures.of_failover.

    ``act`` returns the moment that counts as the beginning and what is to be called after the load, or None.
    """
    site.settle()
    # What the round before has left to be written, maybe another method's, would be written by this one's syncs.
    os.sync()
    site.primary.sql("TRUNCATE public.load", dbname="app")
    # Or autovacuum begins with it after a few rounds, in the middle of one.
    site.primary.sql("VACUUM public.work", dbname="app")
    site.primary.sql("UPDATE public.work SET n = n + 1", dbname="app")
    site.settle()
    with site.load(clients=CLIENTS, interval=INTERVAL, duration=180, moments=True) as load:
        time.sleep(1)
        began, afterwards = act()
        held = []

        def commits_flow():
            held.append(site.rows())
            known = [count for count in held if count is not None]
            return held[-1] is not None and held[-1] >= known[0] + 200

        wait_until(commits_flow, 120)
        time.sleep(1)
    if afterwards:
        afterwards()
    if load.report["unfinished_clients"]:
        sys.exit("%s: %d clients of the load hang" % (method, load.report["unfinished_clients"]))
    wait_until(lambda: site.rows() is not None, 60)
    return evaluate(method, load.report, len(load.lost), began)
