# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role pgbouncer in process mode: first run, second run, check mode, a port that is taken, a switchover in between."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import psycopg
import pytest
from lab import SUPERUSER_PASSWORD, ansible_environment, call_module, free_port, wait_until

ADMIN_PASSWORD = "admin \"quoted\" 'secret'"


class Deployment:
    """One inventory host with a pooler in process mode."""

    def __init__(self, lab, name, **variables):
        self.base = lab.path / "base"
        self.directory = self.base / (name + "-pgbouncer")
        self.port = free_port()
        self.name = name
        self.variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "pgbouncer_method": "process",
            "pgbouncer_base": str(self.base),
            "pgbouncer_port": self.port,
            "pgbouncer_admin_password": ADMIN_PASSWORD,
            "pgbouncer_users": [{"name": "postgres", "password": SUPERUSER_PASSWORD}],
            **variables,
        }
        self.work = lab.path / ("play-" + name)
        self.work.mkdir()

    def play(self, check=False, **variables):
        inventory = {"all": {"hosts": {self.name: {**self.variables, **variables}}}}
        (self.work / "inventory.json").write_text(json.dumps(inventory))
        (self.work / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": ["pgfleet.ops.pgbouncer"]}]))
        argv = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", self.work / "inventory.json", "--diff", self.work / "play.json"]
        done = subprocess.run(
            [str(word) for word in argv + ["--check"] * check],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
            cwd="/",
            env=ansible_environment(),
        )
        recap = re.search(r"ok=(\d+)\s+changed=(\d+)\s+unreachable=0\s+failed=(\d+)", done.stdout)
        assert recap, done.stdout
        assert SUPERUSER_PASSWORD not in done.stdout and ADMIN_PASSWORD not in done.stdout
        return int(recap.group(2)), int(recap.group(3)), done.stdout

    @property
    def pid(self):
        try:
            pid = int((self.directory / "pgbouncer.pid").read_text())
            os.kill(pid, 0)
            return pid
        except (OSError, ValueError):
            return None

    def stop(self):
        if self.pid:
            os.kill(self.pid, signal.SIGQUIT)
            wait_until(lambda: self.pid is None, 10)

    @property
    def login(self):
        return {"login_host": "127.0.0.1", "login_port": self.port, "login_user": "pgbouncer_admin", "login_password": ADMIN_PASSWORD}

    def config(self):
        return call_module("pgbouncer_info", {**self.login, "gather_subset": ["config"]})["poolers"][0]["config"]

    def connect(self, dbname, user="postgres", password=SUPERUSER_PASSWORD, **kwargs):
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, dbname=dbname, autocommit=True, prepare_threshold=None, connect_timeout=5,
            **kwargs,
        )  # fmt: skip


def machine_files():
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in pathlib.Path("/etc/pgbouncer").glob("*")}


@pytest.fixture
def deployment(own_lab):
    made = []

    def deploy(name, **variables):
        made.append(Deployment(own_lab, name, **variables))
        return made[-1]

    yield deploy
    for part in made:
        part.stop()


def test_the_whole_life_of_a_deployment(deployment, own_lab):
    primary = own_lab.postgres("primary").init().start()
    other = own_lab.postgres("other").init().start()
    machine = machine_files()
    pool = deployment("pool1")
    databases = [{"name": "app", "host": "127.0.0.1", "port": primary.port, "dbname": "postgres", "verify_role": "primary"}]
    verify = {"pgbouncer_verify_user": "postgres", "pgbouncer_verify_password": SUPERUSER_PASSWORD}

    # Check mode on a machine that has nothing of it: a change is told and nothing is done.
    changed, failed, output = pool.play(check=True, pgbouncer_databases=databases, **verify)
    assert changed > 0 and failed == 0, output
    assert not pool.base.exists()

    changed, failed, output = pool.play(pgbouncer_databases=databases, **verify)
    assert changed > 0 and failed == 0, output
    pid = pool.pid
    assert pid and pathlib.Path("/proc/%d" % pid).owner() == "postgres"
    assert {path.name: (path.owner(), oct(path.stat().st_mode & 0o777)) for path in pool.directory.glob("*.*") if path.suffix in (".ini", ".txt")} == {
        "pgbouncer.ini": ("postgres", "0o640"),
        "databases.ini": ("postgres", "0o640"),
        "userlist.txt": ("postgres", "0o600"),
    }
    with pool.connect("app") as client:
        assert client.execute("SELECT inet_server_port()").fetchone() == (primary.port,)
    config = pool.config()
    assert (config["pool_mode"], config["server_login_retry"], config["auth_type"], config["listen_addr"]) == (
        "transaction",
        "0.1",
        "scram-sha-256",
        "127.0.0.1",
    )

    for check in (False, True):
        changed, failed, output = pool.play(check=check, pgbouncer_databases=databases, **verify)
        assert (changed, failed) == (0, 0), output

    # A switchover edits the file of the databases; a later deployment without a word about targets leaves that alone.
    moved = call_module(
        "pgbouncer_databases",
        {**pool.login, "config_file": str(pool.directory / "databases.ini"), "databases": [{"name": "app", "port": other.port}]},
    )
    assert moved["changed"], moved
    changed, failed, output = pool.play()
    assert (changed, failed) == (0, 0), output
    with pool.connect("app") as client:
        assert client.execute("SELECT inet_server_port()").fetchone() == (other.port,)

    # Settings and users reach the running pooler, without a restart.
    variables = {
        "pgbouncer_settings": {"default_pool_size": 7, "log_connections": False},
        "pgbouncer_users": [{"name": "postgres", "password": SUPERUSER_PASSWORD}, {"name": 'a "b"', "password": 'c "d"'}],
        "pgbouncer_stats_users": [{"name": "looker", "password": "may-look"}],
    }
    changed, failed, output = pool.play(check=True, **variables)
    assert changed == 2 and failed == 0, output
    assert pool.config()["default_pool_size"] == "20"
    changed, failed, output = pool.play(**variables)
    assert changed == 3 and failed == 0, output
    assert (pool.config()["default_pool_size"], pool.config()["log_connections"]) == ("7", "0")
    with pytest.raises(psycopg.OperationalError) as refused:
        pool.connect("app", user='a "b"', password='c "d"')
    # The pooler knows the user; it is the server that does not.
    assert "password authentication failed" in str(refused.value) or "server login failed" in str(refused.value)
    with pool.connect("pgbouncer", user="looker", password="may-look", cursor_factory=psycopg.ClientCursor) as looker:
        assert looker.execute("SHOW POOLS").fetchall()
        with pytest.raises(psycopg.Error, match="admin access needed"):
            looker.execute("PAUSE")
    changed, failed, output = pool.play(**variables)
    assert (changed, failed) == (0, 0), output
    assert pool.pid == pid
    assert machine_files() == machine

    # Another port needs a restart, which the role leaves to its user.
    changed, failed, output = pool.play(pgbouncer_port=free_port(), **variables)
    assert (changed, failed) == (0, 1) and "pgbouncer_port" in output and "stop it first" in output


def test_a_port_that_is_taken_is_noticed_before_anything_changes(deployment):
    pool = deployment("pool2")
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", pool.port))
        taker.listen(5)
        for check in (True, False):
            changed, failed, output = pool.play(check=check)
            assert (changed, failed) == (0, 1), output
            assert "Port %d of 127.0.0.1 is taken" % pool.port in output and "pgbouncer_port" in output
    assert not pool.base.exists()


def test_two_poolers_on_one_machine(deployment):
    first, second = deployment("pool3"), deployment("pool4")
    for pool in (first, second):
        changed, failed, output = pool.play()
        assert changed > 0 and failed == 0, output
    assert first.pid and second.pid and first.pid != second.pid
    assert (first.config()["listen_port"], second.config()["listen_port"]) == (str(first.port), str(second.port))


@pytest.mark.parametrize(
    "variables",
    [
        {"pgbouncer_admin_password": ""},
        {"pgbouncer_settings": {"listen_port": 1}},
        {"pgbouncer_settings": {"admin_users": "somebody"}},
        {"pgbouncer_stats_users": [{"name": "postgres", "password": "may-look"}]},
    ],
)
def test_options_that_do_not_fit_together(deployment, variables):
    pool = deployment("pool5")
    changed, failed, output = pool.play(**variables)
    assert (changed, failed) == (0, 1), output
    assert not pool.base.exists()
