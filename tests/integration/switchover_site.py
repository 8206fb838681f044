# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A three-node cluster behind two poolers, and clients that write through them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import psycopg
from lab import HOST, REPOSITORY, SUPERUSER_PASSWORD, Lab, call_module, collections_path, wait_until

HERE = pathlib.Path(__file__).resolve().parent


class Site:
    """db1 is the primary, db2 and db3 stream from it; pooler1 and pooler2 serve app (primary) and app_ro (standby db2)."""

    def __init__(self, lab: Lab, nodes=3, poolers=2, pool_mode="transaction", pooler_settings=None, settings=None, pooler_system=HOST):
        self.lab = lab
        self.processes = []
        """What a test has started and must not outlive it."""
        self.nodes = [lab.postgres("db%d" % n, settings=settings) for n in range(1, nodes + 1)]
        self.connect()
        first = self.nodes[0].init().start()
        first.sql("CREATE DATABASE app")
        first.sql("CREATE TABLE public.load (run text, client int, sequence int, PRIMARY KEY (run, client, sequence))", dbname="app")
        for standby in self.nodes[1:]:
            standby.clone(first)
        first.wait_for_standbys(nodes - 1)
        entries = {"app": "host=%s port=%d dbname=app" % (first.address, first.port)}
        if nodes > 1:
            entries["app_ro"] = "host=%s port=%d dbname=app" % (self.nodes[1].address, self.nodes[1].port)
        self.poolers = [
            self.pooler("pooler%d" % n, entries, pool_mode=pool_mode, settings=pooler_settings, system=pooler_system).start()
            for n in range(1, poolers + 1)
        ]

    def connect(self):
        """How the nodes reach each other, before any of them is started; by themselves on loopback."""

    def pooler(self, name, entries, **options):
        return self.lab.pgbouncer(name, entries, **options)

    def node(self, name):
        return next(node for node in self.nodes if node.name == name)

    def answers(self, name):
        """Whether a node takes connections; one that just starts does not yet."""
        try:
            return bool(self.node(name).value("SELECT 1"))
        except psycopg.Error:
            return False

    @property
    def primaries(self):
        """Those that answer and are not in recovery."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psycopg.OperationalError):
                if node.pid and not node.in_recovery:
                    found.append(node)
        return found

    @property
    def primary(self):
        (found,) = self.primaries
        return found

    def options(self, candidate, **changes):
        return {
            "candidate": candidate, "login_user": "postgres", "login_password": SUPERUSER_PASSWORD,
            "pooler_user": "pooler_admin", "pooler_password": SUPERUSER_PASSWORD,
            "nodes": [
                {"name": node.name, "host": "127.0.0.1", "port": node.port, "log_file": str(node.log), "data_directory": str(node.data),
                 "config_file": str(node.config_file), "conninfo": {"passfile": str(node.passfile)}}
                for node in self.nodes
            ],
            "poolers": [
                {"name": pooler.name, "host": "127.0.0.1", "port": pooler.port, "config_file": str(pooler.databases_file)} for pooler in self.poolers
            ],
            **changes,
        }  # fmt: skip

    def switch(self, candidate, check=False, diff=False, **changes):
        return call_module("pg_switchover", self.options(candidate, **changes), check=check, diff=diff, ansible=not check)

    def load(self, **options):
        return Load(self, **options)

    def fingerprint(self):
        """All that a refused or rolled-back switchover must leave as it was."""
        found = {}
        for node in self.nodes:
            found[node.name] = {
                "in_recovery": node.in_recovery,
                "history": sorted(path.name for path in (node.data / "pg_wal").glob("*.history")),
                "files": sorted(path.name for path in node.data.iterdir() if path.name != "postmaster.opts"),
                "auto.conf": "".join(line for line in (node.data / "postgresql.auto.conf").read_text().splitlines(True) if not line.startswith("#")),
                "slots": node.sql("SELECT slot_name, active FROM pg_replication_slots ORDER BY 1"),
            }
        for pooler in self.poolers:
            rows = [{k: row[k] for k in ("name", "host", "port", "paused", "disabled")} for row in pooler.show("DATABASES")]
            found[pooler.name] = {
                "file": pooler.databases_file.read_text(), "files": sorted(p.name for p in pooler.base.iterdir()), "databases": rows,
                "settings": pooler.show("CONFIG"),
            }  # fmt: skip
        return found

    def paused(self):
        return [(pooler.name, row["name"]) for pooler in self.poolers for row in pooler.show("DATABASES") if row["paused"]]


@contextlib.contextmanager
def waiting_failover(site, options):
    """A process that has all connections open; the yielded function lets it look at the cluster and returns what came out."""
    path = site.lab.path / "failover.json"
    path.write_text(json.dumps(options))
    process = subprocess.Popen(
        [sys.executable, str(HERE / "operation_driver.py"), "failover", str(path), "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd="/", env={**os.environ, "PYTHONPATH": str(collections_path())},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "READY\n"
        yield lambda: json.loads(process.communicate("go\n", timeout=120)[0].splitlines()[-1])
    finally:
        process.kill()
        process.wait(30)


class Sites:
    """One site for many tests; one that a test leaves other than sound is replaced, so that no test fails for another's fault."""

    def __init__(self, kind=Site, **options):
        self.kind = kind
        self.options = options
        self.lab = self.site = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.lab:
            for process in self.site.processes if self.site else ():
                process.kill()
                process.wait(10)
            self.lab.close()
        self.lab = self.site = None

    def sound(self):
        if self.site and any(process.poll() is None for process in self.site.processes):
            # The test before has failed, and what it started may be about to do anything.
            self.__exit__()
        if self.site is None:
            self.lab = Lab()
            self.site = self.kind(self.lab, **self.options)
        with contextlib.suppress(Exception):
            self.site.primary.wait_for_standbys(len(self.site.nodes) - 1)
            if all(node.pid for node in self.site.nodes) and not self.site.paused():
                return self.site
        self.__exit__()
        return self.sound()


class Load:
    """The demo's clients, as a process of their own; use as a context, then read ``report``."""

    def __init__(self, site, clients=20, interval=0.05, duration=60, dbname="app", moments=False, rows_per_connection=None):
        self.site = site
        base = site.lab.path / "load"
        base.mkdir(exist_ok=True)
        base.chmod(0o755)
        self.stop_file = base / "stop"
        self.ready_file = base / "ready"
        self.report_file = base / "report.json"
        for path in (self.stop_file, self.ready_file, self.report_file):
            path.unlink(missing_ok=True)
        passfile = base / "passfile"
        escaped = SUPERUSER_PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
        passfile.touch(mode=0o600)
        passfile.write_text("*:*:*:*:%s\n" % escaped)
        self.options_file = base / "options.json"
        self.options_file.write_text(json.dumps({
            "poolers": [["127.0.0.1", pooler.port] for pooler in site.poolers], "dbname": dbname, "user": "postgres", "passfile": str(passfile),
            "table": "public.load", "clients": clients, "interval": interval, "duration": duration, "ready": str(self.ready_file),
            "stop": str(self.stop_file), "report": str(self.report_file), "moments": moments,
            "rows_per_connection": rows_per_connection,
        }))  # fmt: skip
        self.report = None

    def __enter__(self):
        self.process = subprocess.Popen(["/usr/bin/python3", str(REPOSITORY / "playbooks" / "files" / "load.py"), str(self.options_file)])
        wait_until(self.ready_file.exists, 30)
        return self

    def __exit__(self, kind, *exc):
        self.stop_file.touch()
        if kind:
            # Clients of a broken site may hang, and the failure is to be seen.
            self.process.kill()
            self.process.wait()
            return
        self.process.wait(90)
        self.report = json.loads(self.report_file.read_text())

    @property
    def lost(self):
        """Acknowledged rows that the primary does not hold."""
        held = set(self.site.primary.sql("SELECT client, sequence FROM public.load WHERE run = %s", [self.report["run"]], dbname="app"))
        return {(int(client), sequence) for client, numbers in self.report["acknowledged"].items() for sequence in numbers} - held
