# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same cluster run by Patroni with etcd, behind HAProxy and PgBouncer, or behind PgBouncer that Patroni's callbacks turn around.

Patroni's and HAProxy's defaults are those of their documented example. Everything is an ordinary process of the lab, started as user postgres.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing as t
import urllib.error
import urllib.request

import by_hand
from bench_site import SETTINGS, BenchSite, fill
from lab import BIN, HOST, SUPERUSER_PASSWORD, free_port, wait_until
from report import version

# The first of each in PATH, so that another version than Debian's can be measured.
PROGRAMS = {name: shutil.which(name, path=os.environ.get("PATH", "/usr/bin") + ":/usr/sbin") for name in ("patroni", "etcd", "haproxy")}


@functools.lru_cache
def has_before_stop():
    """Whether this Patroni runs a script right before it stops the server; 3.0.3 was the first."""
    return tuple(int(part) for part in version(PROGRAMS["patroni"], "--version").split(".")) >= (3, 0, 3)


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One way to run Patroni: the cluster's settings, HAProxy's checks (None: no HAProxy), and whether callbacks turn the poolers around."""

    dcs: dict[str, t.Any]
    checks: str | None


DEFAULT = Configuration({"ttl": 30, "loop_wait": 10, "retry_timeout": 10}, "inter 3s fall 3 rise 2")
# 20 s is the least ttl that Patroni takes.
TUNED = Configuration({"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0, "master_start_timeout": 0},
                      "inter 500ms fastinter 100ms fall 1 rise 1")  # fmt: skip
CALLBACKS = Configuration(TUNED.dcs, None)


class Daemon:
    """A program in the foreground as user postgres, with its log; a part of the lab, which ends it."""

    def __init__(self, lab, name, argv):
        self.argv = argv
        self.log = lab.path / (name + ".log")
        self.process = None
        lab.parts.append(self)

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(HOST.argv(self.argv, "postgres"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        return self

    def stop(self, _mode=None):
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None


def http(url, method="GET", body=None, timeout=120):
    """Status and answer of a REST call; (None, reason) where there is no answer."""
    request = urllib.request.Request(url, method=method, data=None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return None, str(error)


class Etcd:
    def __init__(self, lab):
        self.port, peer = free_port(), free_port()
        client, peer = ("http://127.0.0.1:%d" % port for port in (self.port, peer))
        self.url = client
        data = lab.path / "etcd"
        self.daemon = Daemon(lab, "etcd", [
            PROGRAMS["etcd"], "--name", "etcd1", "--data-dir", data, "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "etcd1=" + peer,
        ]).start()  # fmt: skip
        wait_until(lambda: http(client + "/health")[0] == 200, 60)


class PatroniSite(BenchSite):
    """Two nodes of one Patroni cluster and two poolers."""

    def __init__(self, lab, name, etcd, configuration):
        self.lab, self.name, self.etcd, self.configuration = lab, name, etcd, configuration
        self.nodes = [lab.postgres("%s%d" % (name, number), settings=SETTINGS) for number in (1, 2)]
        self.rest = {node.name: free_port() for node in self.nodes}
        self.base = lab.path / name
        self.base.mkdir(mode=0o755)
        port = self.haproxy() if configuration.checks else self.nodes[0].port
        self.poolers = [lab.pgbouncer("%s-pooler%d" % (name, number), {"app": "host=127.0.0.1 port=%d dbname=app" % port}).start() for number in (1, 2)]
        self.daemons = {}
        for node in self.nodes:
            configuration_file = self.base / (node.name + ".yml")
            node.write(configuration_file, json.dumps(self.patroni(node), indent=2))
            self.daemons[node.name] = Daemon(lab, node.name, [PROGRAMS["patroni"], configuration_file])
        first, second = self.nodes
        self.daemons[first.name].start()
        wait_until(lambda: http(self.url(first) + "/primary")[0] == 200, 120)
        first.sql("CREATE DATABASE app")
        first.sql("CREATE TABLE public.load (run text, client int, sequence int, PRIMARY KEY (run, client, sequence))", dbname="app")
        fill(first)
        self.give_verifiers()
        self.daemons[second.name].start()
        self.settle()

    def url(self, node):
        return "http://127.0.0.1:%d" % self.rest[node.name]

    def patroni(self, node):
        """Patroni's configuration of a node; JSON is YAML."""
        # The very settings that the other clusters run with, but for those that are Patroni's own to set.
        own = {"listen_addresses", "port", "hba_file", "ident_file", "data_directory", "cluster_name"}
        parameters = {name: value for name, value in re.findall(r"^(\w+) = '(.*)'$", node.config_file.read_text(), re.M) if name not in own}
        more = {}
        if not self.configuration.checks:
            more["callbacks"] = {"on_role_change": self.on_role_change(node)}
            if has_before_stop():
                more["before_stop"] = self.before_stop(node)
        return {
            "scope": self.name, "name": node.name, "etcd3": {"host": "127.0.0.1:%d" % self.etcd.port},
            "restapi": {"listen": "127.0.0.1:%d" % self.rest[node.name], "connect_address": "127.0.0.1:%d" % self.rest[node.name]},
            "bootstrap": {
                "dcs": {**self.configuration.dcs, "maximum_lag_on_failover": 1048576, "postgresql": {"use_pg_rewind": True, "parameters": parameters}},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": "127.0.0.1:%d" % node.port, "connect_address": "127.0.0.1:%d" % node.port, "data_dir": str(node.data), "bin_dir": str(BIN),
                "pgpass": str(node.base / "pgpass"), "basebackup": [{"checkpoint": "fast"}],
                "authentication": {
                    "superuser": {"username": "postgres", "password": SUPERUSER_PASSWORD},
                    "replication": {"username": "replicator", "password": "replicator"},
                },
                "pg_hba": ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"],
                **more,
            },
        }  # fmt: skip

    def haproxy(self):
        port = free_port()
        servers = "".join(
            "    server %s 127.0.0.1:%d maxconn 100 check port %d\n" % (node.name, node.port, self.rest[node.name]) for node in self.nodes
        )  # fmt: skip
        path = self.base / "haproxy.cfg"
        path.write_text(
            "global\n    maxconn 500\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout connect 4s\n    timeout server 30m\n"
            "    timeout check 5s\nlisten primary\n    bind 127.0.0.1:%d\n    option httpchk OPTIONS /primary\n    http-check expect status 200\n"
            "    default-server %s on-marked-down shutdown-sessions\n%s" % (port, self.configuration.checks, servers)
        )
        Daemon(self.lab, self.name + "-haproxy", [PROGRAMS["haproxy"], "-db", "-f", path]).start()
        return port

    def _script(self, name, node, lines):
        """A script on a node, which runs psql on the console of each pooler."""
        path = self.base / name
        text = "#!/bin/sh\nexport PGPASSFILE=%s\n" % shlex.quote(str(node.passfile)) + "\n".join(lines) + "\nwait\nexit 0\n"
        node.write(path, text, 0o755)
        return str(path)

    @staticmethod
    def _psql(port, user, dbname, *more):
        return shlex.join(map(str, [BIN / "psql", "-qX", "-h", "127.0.0.1", "-p", port, "-U", user, *more, dbname]))

    def _console(self, pooler, *more):
        return self._psql(pooler.port, "pooler_admin", "pgbouncer", *more)

    def before_stop(self, node):
        return self._script("before_stop_" + node.name, node, [self._console(pooler, "-c", "PAUSE app") + " &" for pooler in self.poolers])

    def on_role_change(self, node):
        """Patroni gives action, role and cluster; the node that has become the primary leads the poolers to itself.

        Patroni calls it when it has asked for the promotion, not when that has ended, so the script waits for the end before it resumes.
        """
        lines = ['case "$2" in master|primary|promoted) ;; *) exit 0 ;; esac']
        promoted = self._psql(node.port, "postgres", "postgres", "-c", by_hand.WAIT_FOR_PROMOTION)
        for pooler in self.poolers:
            text = "[databases]\napp = host=127.0.0.1 port=%d dbname=app\n" % node.port
            lines.append("(printf '%%s' %s >%s.new && mv %s.new %s && { echo 'RELOAD;'; %s && echo 'RESUME app;'; } | %s) &" % (
                shlex.quote(text), *[shlex.quote(str(pooler.databases_file))] * 3, promoted, self._console(pooler),
            ))  # fmt: skip
        return self._script("on_role_change_" + node.name, node, lines)

    def sound(self):
        """Patroni says so too: two members, one leads, the other replicates."""
        for node in self.nodes:
            status, answer = http(self.url(node) + "/cluster", timeout=5)
            if status == 200:
                roles = sorted((member["role"], member["state"] in ("running", "streaming")) for member in json.loads(answer)["members"])
                return roles == [("leader", True), ("replica", True)] and super().sound()
        return False

    def switch(self, candidate):
        """The switchover by Patroni's REST API, as patronictl asks for it.

        Where the poolers are to be paused and Patroni cannot do it, this does right before, after the checkpoint that else would be written in the pause.
        """
        leader = self.primary
        if not self.configuration.checks and not has_before_stop():
            for node in (leader, leader, self.node(candidate)):
                node.sql("CHECKPOINT")
            with contextlib.ExitStack() as stack:
                by_hand.pause([stack.enter_context(contextlib.closing(pooler.console())) for pooler in self.poolers])
        status, answer = http(self.url(leader) + "/switchover", "POST", {"leader": leader.name, "candidate": candidate})
        if status != 200:
            raise RuntimeError("Patroni did not switch over to %s: %s %s" % (candidate, status, answer))

    def leave(self):
        """Patroni and its servers go; it looks after them each second, which would cost whatever is measured meanwhile. etcd and HAProxy stay."""
        self.settle()
        for node in (self.candidate, self.primary):
            self.daemons[node.name].stop()

    def come_back(self):
        for node in self.nodes:
            self.bring_back(node)

    def bring_back(self, node):
        """Patroni of a node that was killed, if it was killed as well; it does the rest."""
        if self.daemons[node.name].process is None:
            self.daemons[node.name].start()


def peers(lab, configurations):
    """Name -> cluster, for each configuration by its name. Exits where the programs are not there."""
    if not configurations:
        return {}
    missing = [name for name, program in PROGRAMS.items() if program is None]
    if missing:
        sys.exit("not there: %s. Run tools/install_bench_packages.sh, or choose other methods" % ", ".join(missing))
    etcd = Etcd(lab)
    return {name: PatroniSite(lab, "patroni%d" % number, etcd, configuration) for number, (name, configuration) in enumerate(configurations.items(), 1)}
