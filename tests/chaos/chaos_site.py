# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site of which every part can be broken: networks that can be cut, shells that can die, a disk that can be full, a pg_ctl that can fail.

All of it is on one machine. The network is three sets of loopback addresses behind proxy.py: 127.0.1.N leads operations and their guardians to node N,
127.0.2.N leads standbys and poolers to it, 127.0.3.N leads operations and guardians to the console of pooler N.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import psycopg
from history import NodeState, PoolerState, unsound
from lab import BIN, lives, wait_until
from switchover_site import Site

HERE = pathlib.Path(__file__).resolve().parent
USUAL_SETTINGS = {"primary_conninfo", "primary_slot_name"}
SETTINGS = {"server_login_retry": "0.2", "default_pool_size": "20", "server_idle_timeout": "600", "min_pool_size": "0"}
BORROWED = {"server_login_retry": "0.005", "default_pool_size": "1", "server_idle_timeout": "0.2", "min_pool_size": "1"}
"""What operations set for their own time."""

PG_CTL = """#!/bin/sh
# Fails or hangs while the file beside it says so.
case "$(cat '%(flag)s' 2>/dev/null)" in
  fail) echo "pg_ctl: could not start server: no space left on device" >&2; exit 1;;
  hang) exec sleep 60;;
esac
exec '%(bin)s/pg_ctl' "$@"
"""


@functools.lru_cache
def own_mounts():
    """What this process mounts is seen by nobody but its children, and ends with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private_recursive = 0x20000, (1 << 18) | (1 << 14)
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private_recursive, None):
        raise RuntimeError(
            "these tests fill a file system of their own: run them as root, in a container with CAP_SYS_ADMIN (%s)" % os.strerror(ctypes.get_errno())
        )


class Proxies:
    """See proxy.py. A part of the lab."""

    def __init__(self, links):
        argv = [sys.executable, str(HERE / "proxy.py"), json.dumps(links)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", start_new_session=True)
        self._answer("ready")

    def _answer(self, expected):
        line = self.process.stdout.readline().strip()
        assert line == expected, "the proxy says %r" % line

    def tell(self, command, link):
        self.process.stdin.write("%s %s\n" % (command, link))
        self.process.stdin.flush()
        self._answer("done")

    def stop(self, _mode=None):
        self.process.kill()
        self.process.wait(10)


class Mount:
    """A small file system. A part of the lab."""

    def __init__(self, path, size):
        own_mounts()
        self.path = path
        path.mkdir(mode=0o700)
        argv = ["mount", "-t", "tmpfs", "-o", "size=%s,mode=0700" % size, "tmpfs", str(path)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError("this machine does not let root mount a tmpfs, which the tests fill: %s" % done.stdout.strip())
        shutil.chown(path, "postgres", "postgres")
        self.ballast = path / "ballast"

    def fill(self):
        with self.ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            free = os.statvfs(self.path)
            os.posix_fallocate(stream.fileno(), 0, max(1, free.f_bavail * free.f_bsize))
            stream.seek(0, os.SEEK_END)
            while True:
                stream.write(b"x" * 512)

    def clear(self):
        self.ballast.unlink(missing_ok=True)

    def stop(self, _mode=None):
        subprocess.run(["umount", "-l", str(self.path)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


class ChaosSite(Site):
    """A Site with three nodes and two poolers in which things break."""

    def __init__(self, lab):
        self.disks = {}
        self.wal_disks = {}
        settings = {"wal_retrieve_retry_interval": "500ms", "wal_receiver_timeout": "10s", "wal_sender_timeout": "10s"}
        super().__init__(lab, settings=settings, pooler_settings=SETTINGS)
        self.nodes[0].sql(
            "CREATE TABLE public.chaos (run text, client text, sequence int, PRIMARY KEY (run, client, sequence))",
            dbname="app",
        )
        lab.parts.append(Proxies([["console-" + p.name, self.console_address(n), p.port, "127.0.0.1", p.port] for n, p in enumerate(self.poolers, 1)]))
        self.consoles = lab.parts[-1]
        self.usual_files = {part.name: self._files(part) for part in (*self.nodes, *self.poolers)}

    # -- how it is made ------------------------------------------------------------------------------------------------

    def connect(self):
        self.run_directory = self.lab.path / "run"
        self.run_directory.mkdir()
        shutil.chown(self.run_directory, "postgres", "postgres")
        self.relay = pathlib.Path(shutil.copy(HERE / "relay.py", self.run_directory))
        self.relay.chmod(0o755)
        links = []
        for n, node in enumerate(self.nodes, 1):
            node.address = "127.0.2.%d" % n
            links += [
                ["sql-" + node.name, "127.0.1.%d" % n, node.port, "127.0.0.1", node.port],
                [node.name, node.address, node.port, "127.0.0.1", node.port],
            ]
            self._programs(node)
        self.proxies = Proxies(links)
        self.lab.parts.append(self.proxies)

    def _programs(self, node):
        directory = self.programs(node)
        directory.mkdir()
        for program in BIN.iterdir():
            if program.name != "pg_ctl":
                (directory / program.name).symlink_to(program)
        wrapper = directory / "pg_ctl"
        wrapper.write_text(PG_CTL % {"flag": self.flag(node), "bin": BIN})
        wrapper.chmod(0o755)

    def programs(self, node):
        return node.base / "bin"

    def flag(self, node):
        return self.run_directory / ("pg_ctl-%s" % node.name)

    def pooler(self, name, entries, **options):
        pooler = super().pooler(name, entries, **options)
        # Before the pooler among the parts, so that it is unmounted after the pooler's end.
        disk = Mount(pooler.base / "conf", "64k")
        self.lab.parts.insert(self.lab.parts.index(pooler), disk)
        self.disks[name] = disk
        moved = disk.path / "databases.ini"
        pooler._write(pooler.ini, pooler.ini.read_text().replace(str(pooler.databases_file), str(moved)))
        pooler._write(moved, pooler.databases_file.read_text())
        pooler.databases_file.unlink()
        pooler.databases_file = moved
        return pooler

    @staticmethod
    def console_address(n):
        return "127.0.3.%d" % n

    def options(self, candidate, **changes):
        options = super().options(candidate, **changes)
        for n, (entry, node) in enumerate(zip(options["nodes"], self.nodes), 1):
            entry.update(
                host="127.0.1.%d" % n, address=node.address, method="pg_ctl", bin_directory=str(self.programs(node)),
                shell=["/usr/bin/python3", str(self.relay), str(self.relays("node", node.name))],
            )  # fmt: skip
        for n, entry in enumerate(options["poolers"], 1):
            entry.update(host=self.console_address(n), shell=["/usr/bin/python3", str(self.relay), str(self.relays("pooler", entry["name"]))])
        return options

    def relays(self, part, name):
        return self.run_directory / ("relays-%s-%s" % (part, name))

    # -- processes -----------------------------------------------------------------------------------------------------

    def guardians(self, part=None, name=None):
        """Process ids of relays and guardians that live, the oldest first."""
        found = []
        for path in sorted(self.run_directory.glob("relays-*") if name is None else [self.relays(part, name)]):
            with contextlib.suppress(FileNotFoundError):
                for line in path.read_text().splitlines():
                    relay, guardian = map(int, line.split())
                    if lives(relay) or lives(guardian):
                        found.append((relay, guardian))
        return found

    def forget_guardians(self):
        for path in self.run_directory.glob("relays-*"):
            path.unlink()

    def server_processes(self, node):
        """All server processes that work in the data directory."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.path.samefile("/proc/%s/cwd" % entry, node.data) and lives(int(entry)):
                    with open("/proc/%s/comm" % entry, encoding="utf-8") as stream:
                        if stream.read().startswith("postgres"):
                            found.append(int(entry))
        return found

    def start_again(self, nodes):
        """What a machine's init system does: start what is down, whatever the files say that it is."""
        for node in nodes:
            if node.pid is None:
                wait_until(lambda node=node: not self.server_processes(node), 30)
                node.start()
        for pooler in self.poolers:
            if pooler.pid is None:
                self.start_pooler(pooler)

    @staticmethod
    def start_pooler(pooler):
        # A new process would take what was killed, and that nobody has waited for yet, for another instance.
        (pooler.base / "pid").unlink(missing_ok=True)
        pooler.start()

    def give_wal_a_disk(self, node):
        """The node's pg_wal moves to a small file system of its own, until the next ``take_wal_back``."""
        disk = Mount(node.base / "wal", "600m")
        self.lab.parts.insert(self.lab.parts.index(node), disk)
        self._move_wal(node, disk.path, lambda wal: wal.symlink_to(disk.path))
        self.wal_disks[node.name] = disk

    def take_wal_back(self, node):
        disk = self.wal_disks.pop(node.name)
        directory = node.data / "pg_wal"
        moved = node.base / "moved"
        moved.mkdir(mode=0o700)
        shutil.chown(moved, "postgres", "postgres")

        def swap(wal):
            wal.unlink(missing_ok=True)
            moved.rename(directory)

        self._move_wal(node, moved, swap)
        disk.stop()
        self.lab.parts.remove(disk)
        disk.path.rmdir()

    @staticmethod
    def _move_wal(node, target, swap):
        node.stop()
        wal = node.data / "pg_wal"
        subprocess.run(["cp", "-a", "%s/." % wal, str(target)], check=True)
        if not wal.is_symlink():
            shutil.rmtree(wal)
        swap(wal)
        node.start()

    def clone_again(self, node):
        """What a user would do with a lost primary: a standby is made of it."""
        primary = self.primary
        node.stop("immediate")
        wait_until(lambda: not self.server_processes(node), 30)
        shutil.rmtree(node.data)
        primary.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [node.name])
        node.clone(primary)

    def fork(self, node, timeline):
        """Where a primary has left an earlier timeline, in bytes."""
        history = (node.data / "pg_wal" / ("%08X.history" % self.node_state(node).timeline)).read_text()
        high, low = next(words[1] for words in map(str.split, history.splitlines()) if words and words[0] == str(timeline)).split("/")
        return (int(high, 16) << 32) + int(low, 16)

    def has_left(self, node, primary):
        """Whether a standby has WAL of an earlier timeline from behind the place where the primary has left that."""
        timeline, received = node.sql(
            "SELECT greatest(timeline_id, min_recovery_end_timeline), greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn"
            " FROM pg_control_checkpoint(), pg_control_recovery()"
        )[0]
        return timeline < self.node_state(primary).timeline and received > self.fork(primary, timeline)

    # -- what it is like -----------------------------------------------------------------------------------------------

    def _files(self, part):
        directories = [part.data] if hasattr(part, "data") else [part.base, self.disks[part.name].path]
        return {path.name for directory in directories for path in directory.iterdir()}

    def strange_files(self, part):
        known = self.usual_files[part.name] | {"backup_label.old", "backup_manifest", "standby.signal", "postmaster.pid", "postmaster.opts", "pid", "ballast"}
        return tuple(sorted(self._files(part) - known))

    def at(self, host, port):
        """The node that listens at an address, by name."""
        return next((node.name for node in self.nodes if node.port == int(port)), "%s:%s" % (host, port))

    def node_state(self, node):
        with contextlib.suppress(psycopg.Error):
            recovery, slots, files = node.sql(
                "SELECT pg_is_in_recovery(), (SELECT json_agg(json_build_array(slot_name, active)) FROM pg_replication_slots),"
                " (SELECT json_agg(split_part(name, '.', 1)) FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf')"
            )[0]
            if recovery:
                rows = node.sql("SELECT received_tli, sender_host, sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'")
                timeline, upstream = (rows[0][0], self.at(*rows[0][1:])) if rows else (0, "")
            else:
                timeline, upstream = int(node.value("SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"), 16), ""
            return NodeState(
                node.name, not recovery, timeline, upstream, (node.data / "standby.signal").exists(),
                tuple((name, active) for name, active in slots or ()), tuple(files or ()), self.strange_files(node),
            )  # fmt: skip
        return NodeState(node.name, False, 0, standby_signal=(node.data / "standby.signal").exists())

    def pooler_state(self, pooler):
        rows = [row for row in pooler.show("DATABASES") if row["name"] != "pgbouncer"]
        file = {}
        for line in pooler.databases_file.read_text().splitlines():
            name, equals, rest = line.partition(" = ")
            if equals and not line.startswith(";"):
                words = dict(word.split("=", 1) for word in rest.split())
                file[name] = self.at(words["host"], words["port"])
        paused, disabled = (tuple(row["name"] for row in rows if row[what]) for what in ("paused", "disabled"))
        settings = {row["key"]: row["value"] for row in pooler.show("CONFIG") if row["key"] in SETTINGS}
        running = {row["name"]: self.at(row["host"], row["port"]) for row in rows}
        return PoolerState(pooler.name, file, running, paused, disabled, settings, self.strange_files(pooler))

    def unsound_parts(self, primary, outside, gone, pooler_settings):
        nodes, poolers = [self.node_state(node) for node in self.nodes if node.name not in gone], [self.pooler_state(pooler) for pooler in self.poolers]
        return unsound(nodes, poolers, primary, USUAL_SETTINGS, pooler_settings, outside)

    def last_words(self, lines=12):
        """The ends of the servers' logs."""
        parts = [*self.nodes, *self.poolers]
        return "\n".join("-- %s\n%s" % (p.name, "\n".join(p.log.read_text(errors="replace").splitlines()[-lines:])) for p in parts if p.log.exists())


def end(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
