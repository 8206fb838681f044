# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_archivist on a real repository, a real remote server and its standby."""

from __future__ import annotations

import psycopg
import pytest
from lab import PRELOAD, call_module, four_steps

EXTENSIONS = ["pg_stat_kcache", "pg_qualstats", "pg_wait_sampling", "pg_track_settings", "hypopg"]
PASSWORD = "login's secret"


@pytest.fixture(scope="module")
def repository(lab):
    return lab.postgres("repository").init().start()


@pytest.fixture(scope="module")
def remote(lab):
    server = lab.postgres("remote", settings={"shared_preload_libraries": PRELOAD})
    return server.init().start()


def login(server, name, password=PASSWORD):
    server.sql(psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(psycopg.sql.Identifier(name), psycopg.sql.Literal(password)))


def as_role(server, role, query, dbname="powa"):
    with psycopg.connect(host="127.0.0.1", port=server.port, user=role, password=PASSWORD, dbname=dbname, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def test_a_repository_with_the_rights_of_its_logins(repository):
    for name in ("coll", "web", "boss"):
        login(repository, name)
    options = {
        **repository.login, "side": "repository", "extensions": ["pg_track_settings"],
        "grant_to": [{"role": "coll"}, {"role": "web", "access": "reader"}, {"role": "boss", "access": "manager"}],
    }  # fmt: skip
    result = four_steps("powa_archivist", options)
    assert result["version"] == "4.1.4" and result["schema"] == "public" and result["in_recovery"] is False
    assert set(result["extensions"]) == {"powa", "pg_stat_statements", "btree_gist", "pg_track_settings"}
    # A repository needs nothing preloaded.
    assert result["restart_required"] is False and result["preload_missing"] == [] and result["restart_reason"] == ""
    assert as_role(repository, "web", "SELECT count(*) FROM powa_servers") == [(1,)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(repository, "web", "DELETE FROM powa_servers")
    as_role(repository, "coll", "DELETE FROM powa_statements_src_tmp; DELETE FROM pg_track_settings_history")
    assert as_role(repository, "boss", "SELECT powa_register_server('rights.example.org')") == [(True,)]
    assert as_role(repository, "boss", "SELECT powa_delete_and_purge_server(max(id)) FROM powa_servers") == [(True,)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_role(repository, "coll", "SELECT powa_register_server('rights.example.org')")


def test_a_remote_server_with_a_monitor(remote):
    login(remote, "monitor")
    remote.sql("ALTER ROLE monitor SET search_path = pg_catalog")
    result = four_steps("powa_archivist", {**remote.login, "side": "remote", "extensions": EXTENSIONS, "grant_to": [{"role": "monitor"}]})
    assert set(result["extensions"]) == {"powa", "pg_stat_statements", "btree_gist", *EXTENSIONS}
    assert result["restart_required"] is False and result["deferred"] == [] and result["preload_expected"] == PRELOAD
    for source in ("powa_statements_src", "powa_databases_src", "powa_kcache_src", "powa_qualstats_src", "powa_wait_sampling_src", "powa_stat_bgwriter_src",
                   "powa_all_relations_src", "powa_user_functions_src", "pg_track_settings_settings_src", "pg_track_settings_rds_src"):  # fmt: skip
        as_role(remote, "monitor", "SELECT * FROM public.%s(0)" % source)
    as_role(remote, "monitor", "SELECT pg_qualstats_reset()")
    assert as_role(remote, "monitor", "SHOW search_path") == [('"$user", public',)]
    # Statements of others can be read, which is what pg_read_all_stats is for.
    assert as_role(remote, "monitor", "SELECT count(*) FROM pg_stat_statements WHERE query = '<insufficient privilege>'") == [(0,)]


def test_what_is_not_preloaded_is_said_and_the_rest_is_done(own_lab):
    server = own_lab.postgres("unloaded", settings={"shared_preload_libraries": "auto_explain"}).init().start()
    started = server.value("SELECT pg_postmaster_start_time()")
    options = {**server.login, "side": "remote", "database": "monitoring", "extensions": EXTENSIONS}
    result = four_steps("powa_archivist", options)
    assert result["restart_required"] is True and result["deferred"] == ["pg_stat_kcache"]
    assert result["preload_missing"] == PRELOAD.split(",") and result["preload_expected"] == "auto_explain," + PRELOAD
    assert "in this order" in result["restart_reason"]
    assert server.value("SELECT pg_postmaster_start_time()") == started
    server.write_config({"shared_preload_libraries": result["preload_expected"]})
    server.sql("SELECT pg_reload_conf()")
    waiting = call_module("powa_archivist", options)
    assert waiting["restart_required"] is True and waiting["changed"] is False and "since the server started" in waiting["restart_reason"]
    server.stop()
    server.start()
    after = four_steps("powa_archivist", options)
    assert after["plan"] == ["create extension pg_stat_kcache 2.2.1"] and after["restart_required"] is False and after["deferred"] == []


def test_updates_only_when_asked(remote):
    options = {**remote.login, "side": "remote", "database": "older"}
    assert four_steps("powa_archivist", {**options, "version": "4.1.3"})["version"] == "4.1.3"
    kept = call_module("powa_archivist", options)
    assert kept["changed"] is False and kept["version"] == "4.1.3" and kept["updates_available"] == {"powa": "4.1.4"}
    updated = four_steps("powa_archivist", {**options, "update": True})
    assert updated["plan"] == ["update extension powa from 4.1.3 to 4.1.4"] and updated["version"] == "4.1.4"
    assert updated["diff"][0]["before"] == "powa 4.1.3\n" and updated["diff"][0]["after"] == "powa 4.1.4\n"


@pytest.mark.parametrize(
    "more, error, words",
    [
        ({"update": True, "version": "4.1.0"}, "Refused", "no update path from 4.1.4 to 4.1.0"),
        ({"update": True, "version": "5.0.2"}, "Refused", "Drop the extension, which loses all"),
        ({"database": "new", "version": "3.2.0"}, "Refused", "3.2.0 of the extension powa is not supported"),
        ({"extensions": ["no_such"]}, "Refused", "the files of no_such are not installed"),
        ({"extensions": ["a; b"]}, "InvalidInput", "is no name of an extension"),
        ({"grant_to": [{"role": "nobody_here"}]}, "Refused", "there is no role nobody_here"),
        ({"grant_to": [{"role": "postgres", "access": "reader"}]}, "InvalidInput", "Expected: monitor"),
        ({"schema": "stats"}, "InvalidInput", "works in the schema public only"),
        ({"login_password": "not this one"}, "AuthenticationFailed", "password authentication failed"),
    ],
)
def test_refusals(remote, more, error, words):
    # The server of the other tests has powa 4.1.4 in this database, or it does now.
    assert not call_module("powa_archivist", {**remote.login, "side": "remote", "database": "refusals"})["failed"]
    result = call_module("powa_archivist", {**remote.login, "side": "remote", "database": "refusals", **more})
    assert result["failed"] and result["error"] == error and words in result["msg"], result
    assert result["performed"] == [] and "not this one" not in str(result)


def test_the_package_of_missing_files_is_named(remote):
    result = call_module("powa_archivist", {**remote.login, "side": "remote", "extensions": ["no_such"]})
    assert result["missing_extensions"] == ["no_such"] and result["missing_packages"] == ["postgresql-15"]


def test_an_extension_in_another_schema_is_refused(remote):
    remote.sql("CREATE DATABASE elsewhere")
    remote.sql("CREATE SCHEMA stats; CREATE EXTENSION pg_stat_statements SCHEMA stats", dbname="elsewhere")
    result = call_module("powa_archivist", {**remote.login, "side": "remote", "database": "elsewhere", "extensions": ["pg_stat_statements"]})
    assert result["failed"] and 'in the schema "stats"' in result["msg"] and result["performed"] == []


def test_a_standby_is_only_verified(own_lab):
    primary = own_lab.postgres("primary", settings={"shared_preload_libraries": PRELOAD}).init().start()
    standby = own_lab.postgres("standby", settings={"shared_preload_libraries": PRELOAD}).clone(primary)
    options = {"side": "remote", "extensions": ["pg_qualstats"]}
    early = call_module("powa_archivist", {**standby.login, **options, "timeout": 0.5})
    assert early["failed"] and early["error"] == "Refused" and "Run this task on the primary" in early["msg"] and early["in_recovery"] is True
    skipped = call_module("powa_archivist", {**standby.login, **options, "on_standby": "skip"})
    assert not skipped["failed"] and not skipped["changed"] and skipped["in_recovery"] is True and skipped["version"] is None
    assert call_module("powa_archivist", {**primary.login, **options})["changed"] is True
    late = call_module("powa_archivist", {**standby.login, **options, "timeout": 20})
    assert not late["failed"] and late["changed"] is False and late["version"] == "4.1.4"


def test_a_login_database_that_is_not_there(remote):
    result = call_module("powa_archivist", {**remote.login, "side": "remote", "login_db": "nowhere"})
    assert result["failed"] and result["error"] == "DatabaseMissing"
