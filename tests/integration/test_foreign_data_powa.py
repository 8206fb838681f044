# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PoWA collects the history of tables whose rows come from a class in Python."""

from __future__ import annotations

import pathlib

import pytest
from fdw_packages import install_packages
from lab import GENERATIONS, SUPERUSER_PASSWORD, call_module
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
    remote.environment = {"PYTHONPATH": str(install_packages(lab))}
    remote.stop()
    remote.start()
    login = {**remote.login, "login_db": "powa"}
    site.must("fdw_wrapper", {**login, "name": "fleet"})
    nodes = "one=127.0.0.1:%d, two=127.0.0.1:%d, gone=127.0.0.1:1" % (remote.port, site.remotes["two"].port)
    mapping = {"role": "PUBLIC", "options": {"user": "postgres"}, "secrets": {"password": SUPERUSER_PASSWORD}}
    options = {"wrapper": "pgfleet_fdw.cluster.Cluster", "nodes": nodes}
    site.must("fdw_server", {**login, "name": "cluster", "wrapper": "fleet", "options": options, "mappings": [mapping]})
    tables = {**login, "server": "cluster", "schema": "fleet", "create_schema": True, "import_schema": "cluster"}
    site.must("fdw_table", tables)
    remote.sql("GRANT USAGE ON SCHEMA fleet TO monitor", dbname="powa")
    remote.sql("GRANT SELECT ON fleet.nodes TO monitor", dbname="powa")
    site.must("fdw_table", tables)
    return site


def test_powa_collects_what_a_class_yields(site):
    site.must("powa_datasource", site.remote(DECLARED, "one"))
    site.must("powa_datasource", site.store(DECLARED, servers=["one"]))
    snapshot(site, "one")
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
