# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""state=absent of powa_archivist: what goes, what stays, and what stands in the way, with both generations."""

from __future__ import annotations

import pytest
from lab import PRELOAD, call_module, four_steps

EXTENSIONS = ["pg_stat_kcache", "pg_qualstats", "pg_track_settings"]


@pytest.fixture(scope="module")
def server(lab, generation):
    return lab.postgres("absent-" + generation.name, settings={"shared_preload_libraries": PRELOAD}, system=generation.system).init().start()


@pytest.fixture
def database(server, request):
    """A database of the test's own with powa and statistics extensions."""
    name = request.node.originalname[:60]
    server.sql('DROP DATABASE IF EXISTS "%s" WITH (FORCE)' % name)
    server.sql('CREATE DATABASE "%s"' % name)
    server.sql("CREATE EXTENSION powa CASCADE; CREATE EXTENSION pg_stat_kcache; CREATE EXTENSION pg_qualstats; CREATE EXTENSION pg_track_settings", dbname=name)
    return name


def options(server, database, **more):
    return {**server.login, "side": "remote", "database": database, "state": "absent", **more}


def installed(server, database):
    return {name for (name,) in server.sql("SELECT extname FROM pg_extension WHERE extname <> 'plpgsql'", dbname=database)}


def register(server, database, alias):
    return server.value("SELECT powa_register_server('10.0.0.1', alias => '%s', password => 'not-to-be-seen')" % alias, dbname=database)


def test_the_named_extensions_go_and_nothing_else(server, database, generation):
    result = four_steps("powa_archivist", options(server, database, extensions=["pg_stat_kcache", "pg_qualstats", "hypopg"]))
    assert result["plan"] == ["drop extension powa, pg_stat_kcache, pg_qualstats"]
    assert result["diff"][0]["before"].startswith("powa %s\npg_stat_kcache 2." % generation.powa)
    assert "0 registered servers, 0 rows of history" in result["diff"][0]["before"] and result["diff"][0]["after"] == ""
    assert result["version"] is None and result["restart_required"] is False
    assert installed(server, database) == {"pg_stat_statements", "btree_gist", "pg_track_settings"}
    # The rest goes with or without powa, and a database that is not there has none.
    rest = four_steps("powa_archivist", options(server, database, extensions=["pg_stat_statements", "pg_track_settings", "btree_gist"]))
    assert rest["plan"] == ["drop extension pg_stat_statements, pg_track_settings, btree_gist"] and installed(server, database) == set()
    assert call_module("powa_archivist", options(server, "no_such_database"))["changed"] is False


def test_servers_and_history_only_on_purpose(server, database):
    register(server, database, "prod1")
    server.sql("SELECT pg_track_settings_snapshot()", dbname=database)
    rows = server.value("SELECT count(*) FROM pg_track_settings_history", dbname=database)
    refused = call_module("powa_archivist", options(server, database, extensions=EXTENSIONS))
    assert refused["failed"] and refused["error"] == "Refused" and refused["performed"] == [] and rows > 100
    assert "deletes 1 registered servers, %d rows of history" % rows in refused["msg"] and "The servers are: prod1" in refused["msg"]
    assert "powa" in installed(server, database)
    result = four_steps("powa_archivist", options(server, database, extensions=EXTENSIONS, purge=True))
    assert "registered server prod1\n" in result["diff"][0]["before"] and "not-to-be-seen" not in str(result)
    assert result["removed"]["servers"] == ["prod1"] and result["removed"]["rows"] == rows and result["removed"]["bytes"] > 8192
    assert installed(server, database) == {"pg_stat_statements", "btree_gist"}


def test_objects_of_others_are_named_and_stay(server, database):
    server.sql(
        "CREATE TABLE my_history (srvid integer REFERENCES powa_servers (id) ON DELETE CASCADE, value integer);"
        "CREATE VIEW my_view AS SELECT hostname FROM powa_servers;"
        "CREATE FUNCTION my_top() RETURNS SETOF pg_qualstats LANGUAGE sql AS 'SELECT * FROM pg_qualstats'",
        dbname=database,
    )
    refused = call_module("powa_archivist", options(server, database, extensions=EXTENSIONS, purge=True))
    assert refused["failed"] and refused["error"] == "Refused" and refused["performed"] == []
    assert refused["dependents"] == ["public.my_history", "function public.my_top()", "view public.my_view"]
    assert "the table public.my_history of a datasource" in refused["msg"]
    server.sql("DROP TABLE my_history; DROP VIEW my_view", dbname=database)
    # Nothing of powa itself depends on pg_qualstats, which is not in this list.
    assert four_steps("powa_archivist", options(server, database))["plan"] == ["drop extension powa"]
    wrong = call_module("powa_archivist", options(server, database, extensions=["pg_stat_statements"]))
    assert wrong["failed"] and wrong["dependents"] == ["extension pg_stat_kcache"]


def test_a_collector_is_not_cut_off(server, database):
    with server.connect(database, application_name="PoWA collector - worker on 10.0.0.1"):
        refused = call_module("powa_archivist", options(server, database))
    assert refused["failed"] and refused["error"] == "Refused" and "Stop powa-collector" in refused["msg"]
    assert refused["collectors"] == ["PoWA collector - worker on 10.0.0.1 (client backend)"]
    with server.connect(database) as other:
        other.execute("BEGIN; SELECT count(*) FROM powa_servers")
        waited = call_module("powa_archivist", options(server, database, timeout=0.5))
    assert waited["failed"] and waited["error"] == "QueryFailed" and "lock timeout" in waited["msg"] and "powa" in installed(server, database)
    assert four_steps("powa_archivist", options(server, database))["changed"] is True


def test_what_does_not_go_with_absent(server):
    result = call_module("powa_archivist", options(server, "any", update=True, grant_to=[{"role": "postgres"}]))
    assert result["failed"] and result["error"] == "InvalidInput" and "with which these mean nothing: grant_to, update" in result["msg"]
