# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PoWA collects the history of tables whose rows come from a class in Python."""

from __future__ import annotations

import json
import pathlib

import pytest
import yaml
from datasource_site import declaration
from fdw_packages import install_packages
from lab import GENERATIONS, SUPERUSER_PASSWORD, call_module
from test_foreign_data import blocks, service
from test_powa_datasource import Site, snapshot

DECLARED = {
    # One of the names that snapshot() looks after.
    "name": "counted",
    "columns": [
        {"name": "node", "type": "text", "kind": "label"},
        {"name": "role", "type": "text", "kind": "gauge"},
        {"name": "clients", "type": "integer", "kind": "gauge"},
        {"name": "error", "type": "text", "kind": "gauge"},
    ],
    "query": "SELECT node, role, clients, error FROM fleet.nodes",
}


@pytest.fixture(scope="module")
def site(lab):
    # PL/Python is installed on this machine only.
    release = pathlib.Path("/etc/os-release").read_text()
    site = Site(lab, next(one for one in GENERATIONS if 'VERSION_ID="%d"' % one.release in release))
    remote = site.remotes["one"]
    remote.environment = {"PYTHONPATH": str(install_packages(lab, shop_fdw=blocks("python")[0]))}
    remote.stop()
    remote.start()
    login = {**remote.login, "login_db": "powa"}
    site.must("fdw_wrapper", {**login, "name": "fleet", "packages": ["pgfleet_fdw", "shop_fdw"]})
    nodes = "one=127.0.0.1:%d, two=127.0.0.1:%d, gone=127.0.0.1:1" % (remote.port, site.remotes["two"].port)
    mapping = {"role": "PUBLIC", "options": {"user": "postgres"}, "secrets": {"password": SUPERUSER_PASSWORD}}
    options = {"wrapper": "pgfleet_fdw.cluster.Cluster", "nodes": nodes}
    site.must("fdw_server", {**login, "name": "cluster", "wrapper": "fleet", "options": options, "mappings": [mapping]})
    readable(site, {**login, "server": "cluster", "schema": "fleet", "create_schema": True, "import_schema": "cluster"})
    return site


def readable(site, tables):
    """Tables that who collects may read."""
    site.must("fdw_table", tables)
    remote = site.remotes["one"]
    remote.sql("GRANT USAGE ON SCHEMA %s TO monitor" % tables["schema"], dbname="powa")
    remote.sql("GRANT SELECT ON ALL TABLES IN SCHEMA %s TO monitor" % tables["schema"], dbname="powa")
    site.must("fdw_table", tables)


def collect(site, declared):
    site.must("powa_datasource", site.remote(declared, "one"))
    site.must("powa_datasource", site.store(declared, servers=["one"]))
    snapshot(site, "one")


def shipped(name, alias, query):
    """A shipped datasource with rows from elsewhere; ``alias`` begins with a name that snapshot() looks after."""
    kept = {key: value for key, value in declaration(name).items() if key not in ("extensions", "security_definer")}
    return {**kept, "name": alias, "language": "sql", "query": query}


def test_powa_collects_what_a_class_yields(site):
    collect(site, DECLARED)
    rows = site.rows("SELECT node, role, clients > 0, error IS NULL FROM powa_counted_samples(%s) ORDER BY 1", site.srvid("one"))
    assert rows == [("gone", None, None, False), ("one", "primary", True, True), ("two", "primary", True, True)]


def test_a_source_that_would_fail_is_found_before(site):
    remote = site.remotes["one"]
    remote.sql("ALTER FOREIGN TABLE fleet.nodes_ft OPTIONS (ADD colour 'red')", dbname="powa")
    try:
        result = call_module("fdw_info", {**remote.login, "login_db": "powa"})
        assert result["problems"] == ['fleet.nodes: there is no option "colour"']
    finally:
        remote.sql("ALTER FOREIGN TABLE fleet.nodes_ft OPTIONS (DROP colour)", dbname="powa")


def test_the_cluster_feeds_the_shipped_datasource(site):
    collect(site, shipped("replication", "counted_nodes", blocks("sql")[0]))
    rows = site.rows("SELECT what, name, state, healthy FROM powa_counted_nodes_samples(%s) ORDER BY 2", site.srvid("one"))
    assert rows == [("node", "gone", "unreachable", 0), ("node", "one", "primary", 1), ("node", "two", "primary", 1)]


def test_the_poolers_feed_the_shipped_datasource(site, lab):
    remote = site.remotes["one"]
    login = {**remote.login, "login_db": "powa"}
    pooler = lab.pgbouncer("fed", {"app": "host=127.0.0.1 port=%d dbname=postgres" % remote.port}).start()
    mapping = {"role": "PUBLIC", "options": {"user": "pooler_admin"}, "secrets": {"password": SUPERUSER_PASSWORD}}
    options = {"wrapper": "pgfleet_fdw.pgbouncer.PgBouncer", "poolers": "p1=127.0.0.1:%d, gone=127.0.0.1:1" % pooler.port}
    site.must("fdw_server", {**login, "name": "poolers", "wrapper": "fleet", "options": options, "mappings": [mapping]})
    readable(site, {**login, "server": "poolers", "schema": "poolers", "create_schema": True, "import_schema": "pgbouncer"})
    with pooler.connect("app") as client:
        client.execute("SELECT 1")
        collect(site, shipped("pgbouncer", "counted_pools", blocks("sql")[1]))
    rows = site.rows("SELECT what, pooler, database, up, cl_active FROM powa_counted_pools_samples(%s)", site.srvid("one"))
    assert ("pooler", "p1", "", 1, None) in rows and ("pooler", "gone", "", 0, None) in rows and ("pool", "p1", "app", None, 1) in rows


def test_the_guide_s_wrapper_has_a_history(site):
    login = {**site.remotes["one"].login, "login_db": "powa"}
    with service() as url:
        _wrapper, server, table = ({key.removeprefix("pgfleet.ops."): value for key, value in task.items()} for task in yaml.safe_load(blocks("yaml")[0]))
        site.must("fdw_server", {**login, **json.loads(json.dumps(server["fdw_server"]).replace("http://127.0.0.1:8000", url))})
        readable(site, {**login, **table["fdw_table"]})
        collect(site, {**yaml.safe_load(blocks("yaml")[1]), "name": "counted_shelves"})
    assert site.rows("SELECT shelf, items FROM powa_counted_shelves_samples(%s) ORDER BY 1", site.srvid("one")) == [("a", 2), ("b", 1)]
