# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_datasource with both generations of PoWA, their real collectors and two remote servers each."""

from __future__ import annotations

import pytest
from lab import PRELOAD, call_module, four_steps, wait_until

PASSWORDS = {"collector": "collector-secret-1", "monitor": "remote-secret-1"}
COLUMNS = [
    {"name": "datname", "type": "text", "kind": "label"},
    {"name": "size", "type": "bigint", "kind": "gauge", "description": "bytes"},
    {"name": "commits", "type": "bigint", "kind": "counter"},
]
QUERY = """
SELECT s.xact_commit AS commits, d.datname, pg_database_size(d.oid) AS size -- not in the order of the columns
FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid;
"""
DECLARED = {"name": "sizes", "columns": COLUMNS, "query": QUERY}


class Site:
    """A repository, two remote servers registered as one and two, and a collector."""

    def __init__(self, lab, generation):
        self.generation = generation
        self.repository = lab.postgres("repository-" + generation.name, system=generation.system).init().start()
        settings = {"shared_preload_libraries": PRELOAD}
        self.remotes = {}
        for name in ("one", "two"):
            self.remotes[name] = lab.postgres(name + "-" + generation.name, settings=settings, system=generation.system).init().start()
        self.repository.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % PASSWORDS["collector"])
        self.must("powa_archivist", {**self.repository.login, "side": "repository", "grant_to": [{"role": "collector"}]})
        for remote in self.remotes.values():
            remote.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % PASSWORDS["monitor"])
            self.must("powa_archivist", {**remote.login, "side": "remote", "grant_to": [{"role": "monitor"}]})
        self.must("powa_server", {**self.repository.login, "servers": [self.entry(name) for name in self.remotes]})
        self.collector = lab.collector(self.repository, PASSWORDS, name="collector-" + generation.name)

    @staticmethod
    def must(name, options, **kwargs):
        result = call_module(name, options, **kwargs)
        assert not result["failed"], result
        return result

    def entry(self, name):
        return {"alias": name, "host": "127.0.0.1", "port": self.remotes[name].port, "user": "monitor", "frequency": 5, "powa_coalesce": 5}

    def remote(self, declared, name="one", **more):
        return {**self.remotes[name].login, "side": "remote", **declared, **more}

    def store(self, declared, **more):
        return {**self.repository.login, "side": "repository", "source_connect_params": {"passfile": str(self.collector.passfile)}, **declared, **more}

    def value(self, query, *parameters):
        return self.repository.value(query, parameters or None, dbname="powa")

    def rows(self, query, *parameters):
        return self.repository.sql(query, parameters or None, dbname="powa")

    def srvid(self, name):
        return self.value("SELECT id FROM powa_servers WHERE alias = %s", name)


@pytest.fixture(scope="module")
def site(lab, generation):
    return Site(lab, generation)


def test_from_a_declaration_to_history(site):
    for name in site.remotes:
        result = four_steps("powa_datasource", site.remote(DECLARED, name))
        assert result["plan"] == ["create function powa_sizes_src"] and result["query_source"] == "powa_sizes_src"
    result = four_steps("powa_datasource", site.store(DECLARED))
    print(result)
    assert result["servers"] == [{"alias": "one", "active": True}, {"alias": "two", "active": True}]
