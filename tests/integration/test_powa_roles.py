# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles of PoWA in the method process, on a throwaway site."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from lab import ansible_environment, free_port
from psycopg import sql

PRELOAD = "pg_stat_statements,pg_stat_kcache,pg_qualstats,pg_wait_sampling"
MONITOR = "mon:it'or \\ secret"
COLLECTOR = "coll:ector ' secret"
READER = "reader-secret"

PLAY = """
- hosts: db
  gather_facts: false
  roles: [pgfleet.ops.powa_remote]
- hosts: monitoring
  gather_facts: false
  roles: [pgfleet.ops.powa_repository, pgfleet.ops.powa_collector]
"""
WEB_PLAY = """
- hosts: monitoring
  gather_facts: false
  roles: [pgfleet.ops.powa_web]
"""


class Site:
    """Two remote servers, one with a standby, and a repository, as inventory hosts on this machine."""

    def __init__(self, lab):
        self.lab = lab
        self.repository = lab.postgres("repository").init().start()
        self.remotes = [lab.postgres(name, settings={"shared_preload_libraries": PRELOAD}).init().start() for name in ("prod1", "prod2")]
        self.standby = lab.postgres("prod1standby", settings={"shared_preload_libraries": PRELOAD}).clone(self.remotes[0])
        self.directory = pathlib.Path(lab.path) / "collector"
        self.web_directory = pathlib.Path(lab.path) / "web"
        self.web_port = free_port()
        logins = [(self.repository, "coll", COLLECTOR), (self.repository, "reader", READER), *((one, "mon", MONITOR) for one in self.remotes)]
        for server, name, password in logins:
            server.sql(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password)))
        self.servers = [self.entry(remote) for remote in self.remotes]

    @staticmethod
    def entry(remote, **more):
        return {"alias": remote.name, "host": "127.0.0.1", "port": remote.port, "user": "mon", "frequency": 5, "extensions": ["pg_qualstats"], **more}

    def inventory(self):
        login = self.repository.login
        common = {"ansible_connection": "local", "powa_remote_manage_packages": False, "powa_repository_manage_packages": False,
                  "powa_collector_manage_packages": False, "powa_web_manage_packages": False}  # fmt: skip
        db = {
            one.name: {**{"powa_remote_" + key: value for key, value in one.login.items()}, "powa_remote_monitor_roles": ["mon"],
                       "powa_remote_settings": {"track_io_timing": True, "pg_qualstats.sample_rate": None}}
            for one in (self.standby, *self.remotes)
        }  # fmt: skip
        monitoring = {
            **{"powa_repository_" + key: value for key, value in login.items()},
            "powa_repository_collector_roles": ["coll"], "powa_repository_reader_roles": ["reader"], "powa_repository_servers": self.servers,
            "powa_collector_method": "process", "powa_collector_directory": str(self.directory), "powa_collector_login_port": self.repository.port,
            "powa_collector_login_user": "coll", "powa_collector_login_password": COLLECTOR, "powa_collector_wait_snapshot": "any",
            "powa_collector_passfile_entries": [{"user": "mon", "password": MONITOR}],
            "powa_web_method": "process", "powa_web_directory": str(self.web_directory), "powa_web_port": self.web_port,
            "powa_web_servers": {"main": {"host": "127.0.0.1", "port": self.repository.port, "database": "powa"}},
            "powa_web_login_check": {"user": "reader", "password": READER},
        }  # fmt: skip
        return {"all": {"vars": common, "children": {"db": {"hosts": db}, "monitoring": {"hosts": {"monitor": monitoring}}}}}

    def play(self, text, *options):
        """Run a playbook; returns its output and the number of changes by host."""
        base = pathlib.Path(self.lab.path)
        (base / "inventory.json").write_text(json.dumps(self.inventory()))
        (base / "play.yml").write_text(text)
        done = subprocess.run(
            [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", base / "inventory.json", base / "play.yml", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False, cwd="/", env=ansible_environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        for secret in (MONITOR, COLLECTOR, READER):
            assert secret not in done.stdout
        return done.stdout, {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.M)}

    def changes_nothing(self, text):
        """A second run and check mode: no host reports a change."""
        for options in ((), ("--check", "--diff")):
            output, changes = self.play(text, *options)
            assert set(changes.values()) == {0}, re.findall(r"^TASK.*\n(?:.*\n)?changed:.*", output, re.M)
        return True

    @property
    def collector_pid(self):
        return int((self.directory / "pid").read_text())

    def close(self):
        for pidfile in (self.directory / "pid", self.web_directory / "run" / "pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pidfile.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def site(lab):
    made = Site(lab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def deployed(site):
    """The site after its first deployment, whichever test comes first, with the changes by host."""
    return site.play(PLAY)[1]


def test_deploy_again_and_check(site, deployed):
    changes = deployed
    assert changes["prod1"] and changes["prod2"] and changes["monitor"]
    # The standby got all from its primary but the parameters, which are its own.
    assert changes["prod1standby"] == 1 and site.standby.value("SHOW track_io_timing") == "on"
    assert site.repository.value("SELECT count(*) FROM powa_snapshot_metas WHERE srvid > 0 AND isfinite(snapts) AND errors IS NULL", dbname="powa") == 2
    for name, mode in (("passfile", 0o600), ("powa-collector.conf", 0o640)):
        assert (site.directory / name).stat().st_mode & 0o777 == mode
    assert (site.directory / "passfile").owner() == "postgres" and (site.directory / "powa-collector.conf").owner() == "root"
    assert "secret" not in (site.directory / "powa-collector.conf").read_text()
    pid = site.collector_pid
    assert site.changes_nothing(PLAY) and site.collector_pid == pid


def test_a_server_that_goes_restarts_the_collector_and_a_dead_one_is_started(site, deployed):
    pid = site.collector_pid
    site.servers = [site.entry(site.remotes[0]), {"alias": "prod2", "state": "inactive"}]
    output, _changes = site.play(PLAY)
    assert site.collector_pid != pid and "servers have gone or moved" in output
    os.kill(site.collector_pid, signal.SIGKILL)
    pid = site.collector_pid
    assert deployed and site.play(PLAY)[1] == {"prod1": 0, "prod2": 0, "prod1standby": 0, "monitor": 1}
    assert site.collector_pid != pid


@pytest.mark.long
def test_web(site, deployed):
    assert deployed and site.play(WEB_PLAY)[1]["monitor"] > 0
    assert site.changes_nothing(WEB_PLAY)
    secret = site.web_directory / "cookie-secret"
    assert len(secret.read_text()) == 64 and secret.stat().st_mode & 0o777 == 0o600
    config = site.web_directory / "powa-web.conf"
    assert config.owner() == "root" and config.group() == "postgres" and config.stat().st_mode & 0o777 == 0o640
    os.kill(int((site.web_directory / "run" / "pid").read_text()), signal.SIGKILL)
    assert site.play(WEB_PLAY)[1] == {"monitor": 1}
