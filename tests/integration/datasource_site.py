# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster of two nodes that a repository with a real collector watches, and the playbook that deploys datasources on it."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import psycopg
import yaml
from lab import PRELOAD, REPOSITORY, ansible_environment, call_module, wait_until
from psycopg import sql
from psycopg.rows import dict_row

PASSWORDS = {"collector": "collector-secret-1", "monitor": "remote-secret-1"}


def declaration(name):
    """A shipped declaration, as options of the module."""
    text = (REPOSITORY / "playbooks" / "datasources" / (name + ".yml")).read_text()
    return {key: value for key, value in yaml.safe_load(text).items() if key != "description"}


def ask(node, name):
    """The rows that the collector would get of a source now, as it asks for them."""
    login = {"host": "127.0.0.1", "port": node.port, "user": "monitor", "password": PASSWORDS["monitor"], "dbname": "powa"}
    with psycopg.connect(**login, row_factory=dict_row) as connection:
        return connection.execute(sql.SQL("SELECT * FROM {}(0)").format(sql.Identifier("powa_%s_src" % name))).fetchall()


class DatasourceSite:
    """Primary db1 and standby db2, registered by these names; the collector runs. ``variables`` are the nodes' further ones for the inventory."""

    def __init__(self, lab, generation, settings=None):
        self.lab, self.generation, self.variables = lab, generation, {}
        system = generation.system
        self.repository = lab.postgres("repository", system=system).init().start()
        settings = {"shared_preload_libraries": PRELOAD, **(settings or {})}
        self.db1 = lab.postgres("db1", settings=settings, system=system).init().start()
        self.repository.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % PASSWORDS["collector"])
        self.db1.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % PASSWORDS["monitor"])
        self.must("powa_archivist", {**self.repository.login, "side": "repository", "grant_to": [{"role": "collector"}]})
        self.must("powa_archivist", {**self.db1.login, "side": "remote", "grant_to": [{"role": "monitor"}]})
        self.db2 = lab.postgres("db2", settings=settings, system=system).clone(self.db1)
        self.db1.wait_for_standbys(1)
        self.nodes = {"db1": self.db1, "db2": self.db2}
        entries = [{"alias": name, "host": "127.0.0.1", "port": one.port, "user": "monitor", "frequency": 5} for name, one in self.nodes.items()]
        self.must("powa_server", {**self.repository.login, "servers": entries})
        self.collector = lab.collector(self.repository, PASSWORDS).start()

    @staticmethod
    def must(name, options):
        result = call_module(name, options)
        assert not result["failed"], result
        return result

    # The playbook

    def inventory(self):
        nodes = {
            name: {
                **{"powa_remote_" + key: value for key, value in one.login.items()}, "powa_remote_monitor_roles": ["monitor"],
                "pgfleet_cluster": "shop", "pgfleet_roles": ["powa_remote"], **self.variables,
            }
            for name, one in self.nodes.items()
        }  # fmt: skip
        watcher = {
            **{"powa_repository_" + key: value for key, value in self.repository.login.items()}, "pgfleet_cluster": "watch",
            "pgfleet_roles": ["powa_repository", "powa_collector"], "powa_collector_user": "postgres", "powa_collector_directory": str(self.collector.base),
        }  # fmt: skip
        children = {"shop": {"hosts": nodes}, "watch": {"hosts": {"monitor": watcher}}}
        return {"all": {"vars": {"ansible_connection": "local"}, "children": children}}

    def play(self, *options, succeeds=True):
        """Run deploy_datasource; returns its output and the number of changes by host."""
        path = pathlib.Path(self.lab.path) / "inventory.json"
        path.write_text(json.dumps(self.inventory()))
        done = subprocess.run(
            [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", path, "pgfleet.ops.deploy_datasource", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False, cwd="/", env=ansible_environment(),
        )  # fmt: skip
        assert (done.returncode == 0) is succeeds, done.stdout[-6000:]
        return done.stdout, {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.M)}

    def deploy(self, name):
        """Deploy a datasource, and see that a second run and check mode find nothing to do."""
        changes = self.play("-e", "datasource=" + name)[1]
        assert changes["db1"] and changes["monitor"], changes
        for options in ((), ("--check", "--diff")):
            output, changes = self.play("-e", "datasource=" + name, *options)
            assert set(changes.values()) == {0}, output[-6000:]

    # What there is to see

    def samples(self, name, alias):
        """The newest stored sample of a node, as rows."""
        query = """
            SELECT s.* FROM powa_servers AS v, powa_%s_samples(v.id) AS s
            WHERE v.alias = %%s AND s.ts = (SELECT max(n.ts) FROM powa_%s_samples(v.id) AS n)""" % (name, name)
        with self.repository.connect("powa", row_factory=dict_row) as connection:
            return connection.execute(query, [alias]).fetchall()

    def new_samples(self, name, alias, timeout=90):
        """A stored sample that is newer than this call."""
        since = self.repository.value("SELECT clock_timestamp()")
        found = []

        def arrived():
            found[:] = self.samples(name, alias)
            return bool(found) and found[0]["ts"] > since

        wait_until(arrived, timeout, interval=0.5)
        return found

    def errors(self):
        """What PoWA has noted at the last snapshot of each node, by alias."""
        query = "SELECT s.alias, array_to_string(m.errors, '; ') FROM powa_servers s JOIN powa_snapshot_metas m ON m.srvid = s.id WHERE m.errors <> '{}'"
        return dict(self.repository.sql(query, dbname="powa"))
