# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role postgresql_node: a cluster of three inventory hosts on one machine, each an instance of its own."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import subprocess
import sys

import psycopg
import pytest
from lab import REPOSITORY, Lab, ansible_environment, call_module, free_port, wait_until

SUPERUSER = "root of: all\\evil's"
REPLICATION = "repl:ica\\tion"
NODES = ("db1", "db2", "db3")


class Site:
    """Three nodes below one lab directory, deployed by the role."""

    def __init__(self, lab):
        self.lab = lab
        self.base = lab.path / "site"
        self.base.mkdir()
        self.ports = {node: free_port() for node in NODES}
        self.variables = {}
        self.install = True
        (self.base / "play.yml").write_text("- hosts: all\n  gather_facts: true\n  roles:\n    - role: pgfleet.ops.postgresql_node\n")

    def inventory(self):
        hosts = {
            node: {
                "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "postgresql_node_method": "pg_ctl",
                "postgresql_node_address": "127.0.0.1",
                "postgresql_node_port": self.ports[node], "postgresql_node_directory": "%s/%s" % (self.base, node),
                "postgresql_node_cluster_nodes": list(NODES),
                "postgresql_node_superuser_password": SUPERUSER, "postgresql_node_replication_password": REPLICATION,
                "postgresql_node_settings": {"fsync": False, "shared_buffers": "16MB", **self.variables},
                "postgresql_node_users": [{"name": "app", "password": "app: 'password'", "role_attr_flags": "CREATEDB"}],
                "postgresql_node_install": self.install, "postgresql_node_databases": [{"name": "shop", "owner": "app"}],
            }
            for node in NODES
        }  # fmt: skip
        path = self.base / "hosts.json"
        path.write_text(json.dumps({"all": {"hosts": hosts}}))
        return path

    def play(self, *arguments, fails=False):
        """Play the role; returns the output and the recap by host."""
        argv = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.inventory()), str(self.base / "play.yml"), *arguments]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False, cwd=REPOSITORY, env=ansible_environment()
        )
        output = done.stdout + done.stderr
        assert bool(done.returncode) is fails, output
        recap = {host: {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", rest)} for host, rest in re.findall(r"^(\w+)\s+: (ok=.*)$", done.stdout, re.M)}
        assert set(recap) <= set(NODES) and recap, output
        for secret in (SUPERUSER, REPLICATION, "app: 'password'"):
            assert secret not in output
        return output, recap

    def sql(self, node, query, user="postgres", password=SUPERUSER, dbname="postgres"):
        with psycopg.connect(
            host="127.0.0.1", port=self.ports[node], user=user, password=password, dbname=dbname, autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def primary(self):
        found = []
        for node in NODES:
            with contextlib.suppress(psycopg.OperationalError):
                found += [node] * (not self.sql(node, "SELECT pg_is_in_recovery()")[0][0])
        assert len(found) == 1, found
        return found[0]

    def source(self, node):
        return {
            "source_host": "127.0.0.1", "source_port": self.ports[node], "login_user": "postgres", "login_password": SUPERUSER,
            "replication_user": "replication",
        }  # fmt: skip

    def streaming(self, primary):
        return sorted(row[0] for row in self.sql(primary, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"))

    def options(self, node):
        directory = self.base / node
        return {
            "data_directory": directory / "data", "config_file": directory / "config" / "postgresql.conf", "method": "pg_ctl",
            "log_file": directory / "postgresql.log",
        }  # fmt: skip


@pytest.fixture(scope="module")
def site():
    lab = Lab()
    try:
        made = Site(lab)
        made.play()
        # The packages are there; looking at them again and again takes most of the time.
        made.install = False
        yield made
    finally:
        lab.close()


def unchanged(recap):
    return all(host["changed"] == 0 and host["failed"] == 0 and host["unreachable"] == 0 for host in recap.values()) and set(recap) == set(NODES)


def test_one_primary_and_two_standbys_stream(site):
    primary = site.primary()
    standbys = [node for node in NODES if node != primary]
    wait_until(lambda: site.streaming(primary) == standbys, 20)
    assert [row for row in site.sql(primary, "SELECT slot_name, active FROM pg_replication_slots ORDER BY 1") if row[1]] == [(node, True) for node in standbys]
    assert site.sql(primary, "SHOW data_checksums") == [("on",)] and site.sql("db3", "SHOW cluster_name") == [("db3",)]
    login = {"user": "app", "password": "app: 'password'", "dbname": "shop"}
    assert site.sql(primary, "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'app'") == [(True,)]
    site.sql(primary, "CREATE TABLE IF NOT EXISTS here AS SELECT 1 AS i", **login)
    wait_until(lambda: all(site.sql(node, "SELECT to_regclass('here')::text", **login) == [("here",)] for node in standbys), 10)
    for node in NODES:
        assert (site.base / node / "passfile").stat().st_mode & 0o777 == 0o600
        assert not list((site.base / node).glob("*.initdb"))


@pytest.mark.long
def test_second_run_and_check_mode_change_nothing(site):
    site.install = True
    try:
        output, recap = site.play("--check", "--diff")
        assert unchanged(recap), output
        output, recap = site.play()
        assert unchanged(recap), output
    finally:
        site.install = False


def test_settings_reload_and_only_say_that_a_restart_is_needed(site):
    started = {node: site.sql(node, "SELECT pg_postmaster_start_time()") for node in NODES}
    site.variables = {"work_mem": "9MB", "max_connections": 90}
    output, recap = site.play()
    assert all(recap[node]["failed"] == 0 for node in NODES) and "must be restarted for max_connections" in output, output
    for node in NODES:
        assert site.sql(node, "SHOW work_mem") == [("9MB",)] and site.sql(node, "SHOW max_connections") == [("100",)]
        assert site.sql(node, "SELECT pg_postmaster_start_time()") == started[node]
    # PostgreSQL forgets that a restart was needed only when the file names the value that it has.
    site.variables = {"max_connections": 100}
    assert "must be restarted" not in site.play()[0]
    site.variables = {}
    for node in NODES:
        assert site.sql(node, "SHOW work_mem") == [("4MB",)]
        assert site.sql(node, "SELECT pg_postmaster_start_time()") == started[node]
    site.play()


@pytest.mark.long
def test_after_a_switchover_nothing_changes(site):
    """The role follows the live state: another node is the primary, and the old one its standby."""
    old = site.primary()
    new, other = (node for node in NODES if node != old)
    assert not call_module("pg_instance", {**site.options(old), "state": "stopped"})["failed"]
    site.sql(new, "SELECT pg_promote()")
    wait_until(lambda: site.primary() == new, 20)
    # The old primary's data would start as a second primary.
    output, recap = site.play(fails=True)
    assert recap[old]["failed"] == 1 and "would start as a second primary" in output, output
    assert site.sql(new, "SELECT pg_is_in_recovery()") == [(False,)]
    with pytest.raises(psycopg.OperationalError):
        site.sql(old, "SELECT 1")
    for node in (old, other):
        result = call_module("pg_clone", {**site.options(node), **site.source(new), "slot_name": node, "application_name": node, "reclone": True,
                                          "replication_passfile": site.base / node / "passfile"})  # fmt: skip
        assert not result["failed"], result
    assert site.streaming(new) == sorted([old, other])
    output, recap = site.play()
    assert unchanged(recap), output
    assert site.primary() == new and site.streaming(new) == sorted([old, other])


def test_a_lost_standby_is_made_again(site):
    """A node without data while a primary exists, also when only that node is played."""
    lost = next(node for node in NODES if node != site.primary())
    assert not call_module("pg_instance", {**site.options(lost), "state": "stopped"})["failed"]
    (site.base / lost / "data").rename(site.base / lost / "lost")
    output, recap = site.play("--limit", lost, "--check")
    assert recap[lost]["changed"] == 1 and not (site.base / lost / "data").exists(), output
    output, recap = site.play("--limit", lost)
    assert recap[lost]["changed"] == 1 and lost in site.streaming(site.primary()), output


def test_a_standby_that_is_down_is_started(site):
    down = next(node for node in NODES if node != site.primary())
    assert not call_module("pg_instance", {**site.options(down), "state": "stopped"})["failed"]
    output, recap = site.play()
    assert recap[down]["changed"] == 1 and all(recap[node]["changed"] == 0 for node in NODES if node != down), output
    wait_until(lambda: down in site.streaming(site.primary()), 20)


def test_two_primaries_stop_the_play(site):
    second = next(node for node in NODES if node != site.primary())
    site.sql(second, "SELECT pg_promote()")
    wait_until(lambda: site.sql(second, "SELECT pg_is_in_recovery()") == [(False,)], 20)
    site.variables = {"work_mem": "11MB"}
    try:
        output, recap = site.play(fails=True)
    finally:
        site.variables = {}
    assert all(recap[node]["failed"] == 1 and recap[node]["changed"] == 0 for node in NODES) and "More than one node" in output, output
    assert "11MB" not in (site.base / second / "config" / "postgresql.conf").read_text()
    first = next(node for node in NODES if node != second and site.sql(node, "SELECT pg_is_in_recovery()") == [(False,)])
    assert not call_module("pg_instance", {**site.options(second), "state": "stopped"})["failed"]
    result = call_module("pg_clone", {**site.options(second), **site.source(first), "slot_name": second, "application_name": second, "reclone": True,
                                      "replication_passfile": site.base / second / "passfile"})  # fmt: skip
    assert not result["failed"], result


def stop_primary_and_a_standby(site):
    """Returns the names of both."""
    primary = site.primary()
    standby = next(node for node in NODES if node != primary)
    for node in (primary, standby):
        assert not call_module("pg_instance", {**site.options(node), "state": "stopped"})["failed"]
    return primary, standby


def test_two_nodes_that_may_have_been_the_primary_stop_the_play(site):
    """Both are down and neither is fenced: which one was it?"""
    primary, standby = stop_primary_and_a_standby(site)
    signal_file = pathlib.Path(site.options(standby)["data_directory"]) / "standby.signal"
    kept = signal_file.with_name("standby.signal.kept")
    signal_file.rename(kept)
    output, recap = site.play(fails=True)
    kept.rename(signal_file)
    assert "No primary answers" in output and all(recap[node]["changed"] == 0 for node in NODES), output
    with pytest.raises(psycopg.OperationalError):
        site.sql(standby, "SELECT 1")
    for node in (primary, standby):
        assert not call_module("pg_instance", {**site.options(node), "state": "started"})["failed"]
    wait_until(lambda: len(site.streaming(primary)) == 2, 30)


def test_a_primary_that_is_only_down_is_started(site):
    """All other members are standbys or would start as one, so no other can be the primary."""
    primary, _standby = stop_primary_and_a_standby(site)
    site.play()
    assert site.primary() == primary
    wait_until(lambda: len(site.streaming(primary)) == 2, 30)
