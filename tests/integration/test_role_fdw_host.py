# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role fdw_host and the playbook deploy_foreign_data on a primary and its standby: packages, objects, a new version of a package, a switchover."""

from __future__ import annotations

import pathlib
import re

import cluster_play
import psycopg
import pytest
import yaml
from lab import REPOSITORY, wait_until

SHOP = """
from pgfleet_fdw import Wrapper

class Items(Wrapper):
    def scan(self, quals, columns):
        yield {"n": %d}
"""


# What the guide says to write into an inventory.
DEPLOY = re.search(r"## Deploy\n.*?```yaml\n(.*?)```", (REPOSITORY / "docs" / "foreign_data.md").read_text(), re.S).group(1)
MONITOR_PASSWORD = "it's a 'monitor'"


class Site:
    poolers = ()

    def __init__(self, lab):
        self.lab = lab
        # Where the Python of these servers finds packages, and no other server of the machine.
        self.directory, self.source = lab.path / "site" / "packages", lab.path / "shop_fdw.py"
        self.directory.parent.mkdir()
        self.directory.parent.chmod(0o755)
        environment = {"PYTHONPATH": str(self.directory)}
        self.primary = lab.postgres("db1", environment=environment).init().start()
        self.standby = lab.postgres("db2", environment=environment).clone(self.primary)
        self.primary.wait_for_standbys(1)
        self.nodes = [self.primary, self.standby]
        self.primary.sql("CREATE DATABASE shop")
        self.primary.sql("CREATE ROLE monitor LOGIN PASSWORD '%s' IN ROLE pg_monitor" % MONITOR_PASSWORD.replace("'", "''"))
        self.write(1)

    def write(self, number):
        self.source.write_text(SHOP % number)

    def play(self, *arguments, without=(), **more):
        nodes = {"10.0.0.%s:5432" % node.name[-1]: "127.0.0.1:%d" % node.port for node in self.nodes}
        guide = yaml.safe_load(re.sub("|".join(map(re.escape, nodes)), lambda found: nodes[found.group()], DEPLOY))
        roles = guide.pop("pgfleet_roles")
        hosts = {node.name: {"pgfleet_roles": [role for role in roles if role != "fdw_host" or node.name not in without]} for node in self.nodes}
        variables = {
            **guide, "monitor_password": MONITOR_PASSWORD,
            "fdw_host_directory": str(self.directory), "fdw_host_manage_packages": False, "pgfleet_package_throttle": 1, "fdw_host_runtime": "plpython",
            "fdw_host_packages": [{"name": "shop_fdw", "src": str(self.source)}],
            "fdw_host_servers": [*guide["fdw_host_servers"], {"name": "shop", "options": {"wrapper": "shop_fdw.Items"}}],
            "fdw_host_tables": [*guide["fdw_host_tables"], {"server": "shop", "name": "items", "columns": [{"name": "n", "type": "int"}]}],
        }  # fmt: skip
        return cluster_play.play(self, "deploy_foreign_data", *arguments, hosts=hosts, variables={**variables, **more.pop("variables", {})}, **more)


@pytest.fixture(scope="module")
def site(lab):
    site = Site(lab)
    changes = site.play()[1]
    assert changes["db1"] > 3, changes
    return site


@pytest.mark.long
def test_a_second_run_and_check_mode_find_nothing_to_do(site):
    for arguments in ((), ("--check", "--diff")):
        output, changes = site.play(*arguments)
        assert set(changes.values()) == {0}, output
    assert site.primary.sql("SELECT node, role FROM fleet.nodes ORDER BY 1", dbname="shop") == [("db1", "primary"), ("db2", "standby")]
    wait_until(lambda: site.standby.value("SELECT to_regclass('items')", dbname="shop") is not None, 20)
    assert site.standby.sql("SELECT n FROM items", dbname="shop") == [(1,)]


def test_every_node_of_a_cluster_must_have_the_packages(site):
    for arguments, without in (((), ("db2",)), (("--limit", "db1"), ())):
        output, changes = site.play(*arguments, without=without, fails=True)
        assert "also has db2, without fdw_host in pgfleet_roles or left out by --limit" in " ".join(output.split()), output
        assert not any(changes.values())
    output, _changes = site.play(without=("db1", "db2"), fails=True)
    assert "has fdw_host among its pgfleet_roles" in output


def test_a_new_version_is_told_to_those_who_hold_the_old_one(site):
    with site.primary.connect("shop", application_name="old one") as old:
        assert old.execute("SELECT n FROM items").fetchall() == [(1,)]
        old.commit()
        site.write(2)
        output, changes = site.play()
        assert changes["db1"] + changes["db2"] == 1, output
        assert "may run the old code" in output and str(old.info.backend_pid) in output
        assert old.execute("SELECT n FROM items").fetchall() == [(1,)] and site.primary.sql("SELECT n FROM items", dbname="shop") == [(2,)]
        old.commit()
        site.play(variables={"fdw_host_stale_sessions": "terminate"})
        with pytest.raises(psycopg.OperationalError):
            old.execute("SELECT 1")


def test_what_is_missing_on_the_standby_is_found_before_a_switchover(site):
    """By hand, or by a machine that was set up anew: the playbook mends it, and where it cannot the standby is named."""
    installed = pathlib.Path(site.directory) / "shop_fdw.py"
    kept = installed.read_text()
    installed.write_text("raise ImportError('half of it is missing')\n")
    wrong = [{"name": "shop_fdw", "src": str(installed)}]
    try:
        output, _changes = site.play(variables={"fdw_host_packages": wrong}, fails=True)
        assert "half of it is missing" in output and "every node" in output
    finally:
        installed.write_text(kept)
    site.play()
    # After it the tables answer as before, by the other node.
    site.primary.stop()
    site.standby.sql("SELECT pg_promote(wait => true)")
    assert site.standby.sql("SELECT n FROM items", dbname="shop") == [(2,)]
    assert site.standby.sql("SELECT node, coalesce(role, 'gone') FROM fleet.nodes ORDER BY 1", dbname="shop") == [("db1", "gone"), ("db2", "primary")]
