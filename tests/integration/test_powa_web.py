# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What looks into a repository must fit it: the roles powa_web and powa_collector with repositories of both generations."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
from lab import HOST, Lab, ansible_environment, call_module, free_port

READER = "reader-secret-1"
COLLECTOR = "collector-secret-1"
WRONG = "wrong-secret-1"
PLAY = "- {hosts: all, gather_facts: false, roles: [pgfleet.ops.%s]}\n"
# The page asks for these with JavaScript.
SERVERS_URL = "server/all_servers/?" + urllib.parse.urlencode({"from": "2020-01-01 00:00:00+0000", "to": "2100-01-01 00:00:00+0000"})


class Site:
    """One server with two repositories, "powa" and "berlin", each with servers of its own."""

    def __init__(self, lab, generation):
        self.lab, self.generation = lab, generation
        self.server = lab.postgres("repository", system=generation.system).init().start()
        self.server.sql("CREATE ROLE reader LOGIN PASSWORD '%s'" % READER)
        self.server.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % COLLECTOR)
        grants = [{"role": "reader", "access": "reader"}, {"role": "collector"}]
        for database, alias in (("powa", "orders"), ("berlin", "stock")):
            entry = {"alias": alias, "host": "10.0.0.1", "state": "inactive"}
            for module, options in (
                ("powa_archivist", {"database": database, "side": "repository", "extensions": ["pg_track_settings"], "grant_to": grants}),
                ("powa_server", {"login_db": database, "servers": [entry, {**entry, "alias": "shared", "host": "10.0.0.2"}]}),
            ):
                result = call_module(module, {**self.server.login, **options})
                assert not result["failed"], result
        self.web = pathlib.Path(lab.path) / "web"
        self.collector = pathlib.Path(lab.path) / "collector"
        self.port = free_port()

    def play(self, role, *options, **variables):
        """Run a role; returns the exit code, the output and the number of changes."""
        base = pathlib.Path(self.lab.path)
        common = {
            "ansible_connection": "local", "powa_collector_manage_packages": False, "powa_web_manage_packages": False,
            "powa_collector_method": "process", "powa_collector_directory": str(self.collector), "powa_collector_login_port": self.server.port,
            "powa_collector_login_user": "collector", "powa_collector_login_password": COLLECTOR,
            "powa_web_method": "process", "powa_web_directory": str(self.web), "powa_web_port": self.port, "powa_web_version": self.generation.powa,
            "powa_web_servers": {name: {"host": "127.0.0.1", "port": self.server.port, "database": name} for name in ("powa", "berlin")},
            "powa_web_login_check": {"user": "reader", "password": READER},
        }  # fmt: skip
        (base / "inventory.json").write_text(json.dumps({"all": {"hosts": {"monitor": {**common, **variables}}}}))
        (base / "play.yml").write_text(PLAY % role)
        done = subprocess.run(
            [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", base / "inventory.json", base / "play.yml", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False, cwd="/", env=ansible_environment(),
        )  # fmt: skip
        assert not [secret for secret in (READER, COLLECTOR, WRONG) if secret in done.stdout]
        found = re.search(r"changed=(\d+)", done.stdout)
        return done.returncode, done.stdout, int(found.group(1)) if found else None

    def shown(self, repository):
        """Aliases on the page of all servers, after a login to this repository."""
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        base = "http://127.0.0.1:%d/" % self.port
        field = "user" if self.generation.powa >= "5" else "username"
        opener.open(base + "login/", urllib.parse.urlencode({field: "reader", "password": READER, "server": repository}).encode(), timeout=20).close()
        with opener.open(base + "server/", timeout=20) as page:
            assert page.url == base + "server/" and b"All servers" in page.read()
        with opener.open(base + SERVERS_URL, timeout=20) as answer:
            return {one["alias"] for one in json.load(answer)["data"] if one["srvid"]}

    def close(self):
        for pidfile in (self.web / "run" / "pid", self.collector / "pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pidfile.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def site(generation):
    lab = Lab()
    made = Site(lab, generation)
    yield made
    made.close()
    lab.close()


@pytest.mark.long_with("powa4")
def test_web_shows_the_servers_of_every_repository(site):
    code, output, changes = site.play("powa_web")
    assert code == 0 and changes, output[-4000:]
    assert site.shown("powa") == {"orders", "shared"} and site.shown("berlin") == {"stock", "shared"}
    for options in ((), ("--check", "--diff")):
        code, output, changes = site.play("powa_web", *options)
        assert (code, changes) == (0, 0), output[-4000:]
    one = {"powa_web_login_check": {"user": "reader", "password": READER, "server": "berlin"}}
    assert site.play("powa_web", **one)[0::2] == (0, 0)


def test_web_of_another_version_is_refused_before_anything_is_written(site):
    other = "5.0.2" if site.generation.powa.startswith("4") else "4.1.4"
    directory = pathlib.Path(site.lab.path) / "other_web"
    code, output, _changes = site.play("powa_web", powa_web_version=other, powa_web_directory=str(directory))
    series = ".".join(site.generation.powa.split(".")[:2])
    assert code != 0 and 'powa-web %s cannot show the repository \\"powa\\", which has PoWA %s' % (other, site.generation.powa) in output, output[-3000:]
    assert "Set powa_web_version to a release of %s" % series in output and not directory.exists()


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"powa_web_login_check": {"user": "reader", "password": WRONG}}, 'does not let user \\"reader\\" in'),
        ({"powa_web_login_check": {"user": "reader", "password": READER, "server": "nowhere"}}, "powa_web_servers has powa, berlin"),
    ],
)
def test_web_that_nobody_could_log_in_to(site, variables, words):
    directory = pathlib.Path(site.lab.path) / "other_web"
    code, output, _changes = site.play("powa_web", powa_web_directory=str(directory), **variables)
    assert code != 0 and words in output and not directory.exists(), output[-3000:]


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"powa_collector_login_password": WRONG}, 'does not let user \\"collector\\" in'),
        ({"powa_collector_login_db": "postgres"}, 'the database \\"postgres\\" on 127.0.0.1'),
        ({"powa_collector_login_db": "nowhere"}, 'has no database \\"nowhere\\"'),
    ],
)
def test_a_collector_that_could_not_log_in_is_not_configured(site, variables, words):
    directory = pathlib.Path(site.lab.path) / "other_collector"
    code, output, _changes = site.play("powa_collector", powa_collector_directory=str(directory), **variables)
    assert code != 0 and words in output and not directory.exists(), output[-3000:]


@pytest.mark.long_with("powa4")
def test_a_collector_that_does_not_fit_the_repository_is_not_configured(site):
    installed = HOST.run(["powa-collector", "--version"]).split()[-1]
    code, output, _changes = site.play("powa_collector", powa_collector_use_server_alias=True)
    if installed.startswith("1.2") and site.generation.powa.startswith("5"):
        assert code != 0 and "powa-collector %s works with PoWA 4 only" % installed in output, output[-3000:]
        assert "has PoWA %s" % site.generation.powa in output and "Install powa-collector 1.3" in output and not site.collector.exists()
    else:
        assert code == 0 and json.loads((site.collector / "powa-collector.conf").read_text())["use_server_alias"] is True, output[-3000:]
