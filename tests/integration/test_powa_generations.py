# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PoWA with the least rights, from nothing to snapshots and through an update, and what is known to go wrong, with both generations."""

from __future__ import annotations

import functools

import psycopg
import pytest
from lab import PRELOAD, call_module, four_steps, wait_until

EXTENSIONS = ["pg_stat_kcache", "pg_qualstats", "pg_wait_sampling", "pg_track_settings"]
# What registration itself activates.
BASE = {"powa4": ["pg_stat_bgwriter", "pg_stat_statements", "powa_stat_all_relations", "powa_stat_user_functions"], "powa5": ["pg_stat_statements"]}
# Only PoWA 5 can live in a schema of its own.
SCHEMAS = {"powa4": (None, None), "powa5": ("stats", "Own schema")}
# The function for relations of PoWA 4 finds none on PostgreSQL 15.
HISTORY = {
    "powa4": ["powa_statements_history_current", "powa_kcache_metrics_current", "powa_wait_sampling_history_current", "powa_qualstats_quals",
              "powa_databases", "powa_stat_bgwriter_history_current", "pg_track_settings_history"],
    "powa5": ["powa_statements_history_current", "powa_kcache_metrics_current", "powa_wait_sampling_history_current", "powa_qualstats_quals",
              "powa_all_tables_history_current", "powa_stat_bgwriter_history_current", "powa_stat_io_history_current", "powa_catalog_class",
              "pg_track_settings_history"],
}  # fmt: skip
PASSWORDS = {name: "secret-of-%s-1" % name for name in ("collector", "monitor", "manager", "reader", "nobody")}


@pytest.fixture(scope="module")
def repository(lab, generation):
    """Not the first PoWA of its cluster, so that on PoWA 5 the roles are there already and have no rights in a new database."""
    server = lab.postgres("repository-" + generation.name, system=generation.system).init().start()
    server.sql("CREATE DATABASE first")
    server.sql("CREATE EXTENSION powa CASCADE", dbname="first")
    for name in ("collector", "manager", "reader", "nobody"):
        login(server, name)
    return server


@pytest.fixture(scope="module")
def remote(lab, generation):
    server = lab.postgres("remote-" + generation.name, settings={"shared_preload_libraries": PRELOAD}, system=generation.system).init().start()
    login(server, "monitor")
    # A database that keeps others out, and something to see in it.
    server.sql("CREATE DATABASE app")
    server.sql("REVOKE CONNECT ON DATABASE app FROM PUBLIC")
    server.sql("CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 1000) AS i", dbname="app")
    # A setting of a role, without which pg_track_settings has no row of this kind.
    server.sql("ALTER ROLE monitor SET statement_timeout = '1min'")
    server.sql("ALTER ROLE monitor SET search_path = pg_catalog")
    server.sql("ALTER SYSTEM SET pg_qualstats.sample_rate = 1")
    server.sql("SELECT pg_reload_conf()")
    return server


def login(server, name):
    server.sql(psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(psycopg.sql.Identifier(name), psycopg.sql.Literal(PASSWORDS[name])))


def as_role(server, role):
    return {**server.login, "login_user": role, "login_password": PASSWORDS[role], "login_db": "powa"}


def ask_as(server, role, query):
    with psycopg.connect(host="127.0.0.1", port=server.port, user=role, password=PASSWORDS[role], dbname="powa", autocommit=True) as connection:
        return connection.execute(query).fetchall()


def qualified(server, relation):
    """Relations of PoWA and of pg_track_settings with their schemas, by LIKE."""
    found = "SELECT c.oid::regclass::text FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND c.relname LIKE %s ORDER BY 1"
    with server.connect("powa", options="-c search_path=pg_catalog") as connection:
        return [name for (name,) in connection.execute(found, [relation]).fetchall()]


@pytest.mark.long_with("powa4")
def test_without_a_superuser_from_nothing_to_snapshots_of_all_sources(lab, generation, repository, remote):
    here, there = SCHEMAS[generation.name]
    stored = {
        **repository.login, "side": "repository", "schema": here, "extensions": ["pg_track_settings"],
        "grant_to": [{"role": "collector"}, {"role": "manager", "access": "manager"}, {"role": "reader", "access": "reader"}],
    }  # fmt: skip
    result = four_steps("powa_archivist", stored)
    assert result["version"] == generation.powa and result["schema"] == (here or "public")
    watched = {**remote.login, "side": "remote", "schema": there, "extensions": EXTENSIONS, "grant_to": [{"role": "monitor"}]}
    result = four_steps("powa_archivist", watched)
    assert result["version"] == generation.powa and result["schema"] == (there or "public") and result["restart_required"] is False

    # All rights were there before the first snapshot: PoWA 5 does not get over a first one that failed half way.
    entry = {"alias": "prod1", "host": "127.0.0.1", "port": remote.port, "user": "monitor", "frequency": 5, "extensions": EXTENSIONS}
    registered = four_steps("powa_server", {**as_role(repository, "manager"), "servers": [entry]})
    assert registered["servers"][0]["extensions"] == sorted({*EXTENSIONS, *BASE[generation.name]})
    collector = lab.collector(repository, PASSWORDS, name="collector-" + generation.name).start()
    for kind in ("any", "new"):
        result = call_module("powa_collector", {**as_role(repository, "collector"), "wait_snapshot": kind, "timeout": 60})
        assert not result["failed"] and result["collector_version"] == generation.collector, result
        assert [(server["alias"], server["worker"], server["errors"]) for server in result["servers"]] == [("prod1", "running", [])]

    def stored(table):
        remote.sql("SELECT count(*) FROM orders WHERE id = 7", dbname="app")
        return repository.value("SELECT count(*) FROM %s WHERE srvid > 0" % table, dbname="powa")

    for relation in HISTORY[generation.name]:
        (table,) = qualified(repository, relation)
        # The predicates of a query come with a snapshot after it.
        wait_until(functools.partial(stored, table), 60, 1)
    collector.stop()
    assert not [line for line in collector.log.read_text().splitlines() if "ERROR" in line or "denied" in line or "Traceback" in line]
    # Each snapshot has emptied its transient tables.
    for table in qualified(repository, "powa\\_%src_tmp"):
        assert repository.value("SELECT count(*) FROM %s" % table, dbname="powa") == 0, table
    # The collector may write what it learns about a server.
    noted = repository.value("SELECT version FROM %s WHERE id > 0" % qualified(repository, "powa_servers")[0], dbname="powa")
    assert noted.startswith("%d." % generation.system.major)
    assert repository.sql("SELECT rolname FROM pg_roles WHERE rolsuper") == remote.sql("SELECT rolname FROM pg_roles WHERE rolsuper") == [("postgres",)]
    # What was granted is enough for nothing else.
    for table in qualified(repository, "powa\\_%history%") + qualified(repository, "powa\\_servers"):
        ask_as(repository, "reader", "SELECT count(*) FROM %s" % table)
    for role, query in (("reader", "DELETE FROM %s RETURNING 1"), ("nobody", "SELECT 1 FROM %s")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask_as(repository, role, query % qualified(repository, "powa_servers")[0])


def test_an_update_keeps_servers_and_renews_rights_and_modules(repository, generation):
    older = {"powa4": "4.1.0", "powa5": "5.0.0"}[generation.name]
    options = {**repository.login, "side": "repository", "database": "older", "grant_to": [{"role": "collector"}, {"role": "manager", "access": "manager"}]}
    assert four_steps("powa_archivist", {**options, "version": older})["version"] == older
    manager = {**as_role(repository, "manager"), "login_db": "older"}
    entry = {"alias": "prod1", "host": "10.0.0.1", "extensions": ["pg_qualstats"]}
    before = call_module("powa_server", {**manager, "servers": [entry]})
    assert not before["failed"], before
    if generation.name == "powa5":
        # As after an update that brings a new module and a new table, which no version of the packages has.
        repository.sql("DELETE FROM powa_module_config WHERE srvid > 0 AND module = 'pg_stat_io'", dbname="older")
        repository.sql("REVOKE ALL ON powa_stat_io_history FROM powa_write_all_data, powa_admin", dbname="older")
    kept = call_module("powa_archivist", options)
    assert kept["changed"] is False and kept["updates_available"] == {"powa": generation.powa}
    result = four_steps("powa_archivist", {**options, "update": True})
    assert result["plan"][0] == "update extension powa from %s to %s" % (older, generation.powa) and result["version"] == generation.powa
    after = call_module("powa_server", {**manager, "servers": [entry]})
    assert after["changed"] is False and after["servers"][0]["extensions"] == before["servers"][0]["extensions"]
    if generation.name == "powa5":
        assert repository.value("SELECT enabled FROM powa_module_config WHERE srvid > 0 AND module = 'pg_stat_io'", dbname="older") is True
        assert repository.value("SELECT has_table_privilege('collector', 'powa_stat_io_history', 'INSERT')", dbname="older") is True


def test_the_order_of_libraries_that_it_says_is_one_that_starts(own_lab, generation):
    server = own_lab.postgres("order", system=generation.system).init().start()
    said = call_module("powa_archivist", {**server.login, "side": "remote", "extensions": ["pg_wait_sampling", "pg_stat_kcache", "pg_qualstats"]})
    assert said["preload_expected"] == PRELOAD and said["deferred"] == ["pg_stat_kcache"] and said["restart_required"] is True
    server.stop()
    server.write_config({"shared_preload_libraries": ",".join(["pg_stat_kcache", "pg_stat_statements"])})
    with pytest.raises(AssertionError):
        server.start()
    server.write_config({"shared_preload_libraries": said["preload_expected"]})
    server.start()
    done = four_steps("powa_archivist", {**server.login, "side": "remote", "extensions": ["pg_wait_sampling", "pg_stat_kcache", "pg_qualstats"]})
    assert done["deferred"] == [] and done["restart_required"] is False and len(done["plan"]) == 1


def test_powa_itself_that_collects_is_not_dropped(own_lab, generation):
    server = own_lab.postgres("local", settings={"shared_preload_libraries": "pg_stat_statements,powa"}, system=generation.system).init().start()
    options = {**server.login, "side": "remote"}
    assert not call_module("powa_archivist", options)["failed"]
    server.stop()
    server.start()
    wait_until(lambda: server.value("SELECT count(*) FROM pg_stat_activity WHERE datname = 'powa'"), 20)
    refused = call_module("powa_archivist", {**options, "state": "absent", "purge": True})
    assert refused["failed"] and refused["error"] == "Refused" and "take it out of shared_preload_libraries" in refused["msg"], refused
