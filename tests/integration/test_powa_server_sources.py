# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_server with each PoWA: what is collected from a server, and how a damaged repository is mended."""

from __future__ import annotations

import json

import pytest
from lab import call_module, four_steps

PASSWORD = "remote-secret-%d"
# What registration itself activates.
BASES = {"powa4": ["pg_stat_bgwriter", "pg_stat_statements", "powa_stat_all_relations", "powa_stat_user_functions"], "powa5": ["pg_stat_statements"]}
DB_MODULES = ["pg_stat_all_indexes", "pg_stat_all_tables", "pg_stat_user_functions"]


@pytest.fixture(scope="module")
def server(lab, generation):
    return lab.postgres("repository-" + generation.name, system=generation.system).init().start()


@pytest.fixture
def base(generation):
    return BASES[generation.name]


@pytest.fixture
def repository(server):
    """A repository without servers."""
    server.sql("DROP DATABASE IF EXISTS powa WITH (FORCE)")
    server.sql("CREATE DATABASE powa")
    server.sql("CREATE EXTENSION powa CASCADE; CREATE EXTENSION pg_track_settings", dbname="powa")
    return server


def options(repository, *servers, **more):
    return {**repository.login, "servers": list(servers), **more}


def rows(repository, columns="alias, hostname, port, frequency"):
    return repository.sql("SELECT %s FROM powa_servers WHERE id > 0 ORDER BY id" % columns, dbname="powa")


def prod(number, **more):
    return {"alias": "prod%d" % number, "host": "10.0.0.%d" % number, "frequency": 60, **more}


def test_registers_many_at_once(repository, generation, base):
    result = four_steps(
        "powa_server",
        options(
            repository,
            prod(1, password=PASSWORD % 1, retention="24 hours", extensions=["pg_wait_sampling", "pg_qualstats", "hypopg"]),
            prod(2, port=5433, user="monitor", dbname="stats", powa_coalesce=10, retention="2 days", allow_ui_connection=False),
            {"alias": "quiet", "host": "10.0.0.3", "state": "inactive"},
        ),
    )
    first, second, quiet = result["servers"]
    assert first["has_password"] is True and first["extensions"] == sorted([*base, "pg_wait_sampling", "pg_qualstats"]) and first["state"] == "present"
    assert {key: second[key] for key in ("host", "port", "user", "dbname", "powa_coalesce", "retention", "allow_ui_connection", "has_password")} == {
        "host": "10.0.0.2", "port": 5433, "user": "monitor", "dbname": "stats", "powa_coalesce": 10, "retention": "2 days", "allow_ui_connection": False,
        "has_password": False,
    }  # fmt: skip
    assert quiet["state"] == "inactive" and quiet["frequency"] == -1
    assert rows(repository) == [("prod1", "10.0.0.1", 5432, 60), ("prod2", "10.0.0.2", 5433, 60), ("quiet", "10.0.0.3", 5432, -1)]
    assert rows(repository, "password")[0] == (PASSWORD % 1,)
    assert result["collector_reload_required"] is True and result["collector_restart_required"] is False and result["collector_running"] is False
    assert result["collector_reasons"] == ['server "prod1" is new', 'server "prod2" is new'] and result["repository_version"] == generation.powa
    assert "remote-secret" not in json.dumps(result) and result["diff"][0]["after"]["password"] == "(set)"


def test_extensions_are_a_set(repository, base):
    call_module("powa_server", options(repository, prod(1, extensions=["pg_qualstats", "pg_stat_kcache"])))
    four_steps("powa_server", options(repository, prod(1, extensions=["pg_stat_kcache", "pg_qualstats"])), expect_change=False)
    more = four_steps("powa_server", options(repository, prod(1, extensions=["pg_wait_sampling"])))
    assert more["servers"][0]["extensions"] == sorted([*base, "pg_qualstats", "pg_stat_kcache", "pg_wait_sampling"])
    exact = four_steps("powa_server", options(repository, prod(1, extensions=["pg_wait_sampling"]), extensions_exact=True))
    assert exact["servers"][0]["extensions"] == sorted([*base, "pg_wait_sampling"])
    assert exact["plan"] == ['deactivate pg_qualstats, deactivate pg_stat_kcache on server "prod1"']
    back = four_steps("powa_server", options(repository, prod(1, extensions=["pg_qualstats"])))
    assert "pg_qualstats" in back["servers"][0]["extensions"] and back["collector_reasons"] == []
    none = four_steps("powa_server", options(repository, prod(1, extensions=[]), extensions_exact=True))
    assert none["servers"][0]["extensions"] == base


def count(repository, statement):
    return repository.value("SELECT count(*) FROM " + statement, dbname="powa")


def restore_a_dump(repository, generation):
    """What pg_dump and pg_restore leave of the servers: rows of powa_functions or of modules are lost, and the sequence begins anew."""
    if generation.name == "powa4":
        repository.sql("DELETE FROM powa_functions WHERE srvid > 0; DELETE FROM powa_extensions WHERE srvid > 0", dbname="powa")
    else:
        repository.sql("DELETE FROM powa_module_config WHERE srvid > 0", dbname="powa")
    repository.sql("SELECT setval('powa_servers_id_seq', 1, false)", dbname="powa")


def test_what_a_restored_dump_has_lost_comes_back(repository, generation):
    entries = [prod(1, extensions=["pg_qualstats"]), prod(2)]
    before = call_module("powa_server", options(repository, *entries))
    rows_before = count(repository, "powa_functions WHERE srvid > 0 AND enabled")
    restore_a_dump(repository, generation)
    assert count(repository, "powa_functions WHERE srvid > 0 AND enabled") < rows_before
    result = four_steps("powa_server", options(repository, *entries, prod(3)))
    assert result["plan"][0] == "move the sequence of server ids, which is 2 behind" and result["plan"][-1] == 'register server "prod3" (10.0.0.3:5432)'
    assert len(result["plan"]) == 4 and result["servers"][2]["id"] == 3
    assert [one["extensions"] for one in result["servers"][:2]] == [one["extensions"] for one in before["servers"]]
    assert count(repository, "powa_functions WHERE srvid IN (1, 2) AND enabled") == rows_before


def test_rows_of_an_extension_that_were_lost_in_part_come_back(repository, generation):
    if generation.name == "powa5":
        pytest.skip("an activation of PoWA 5 is one row")
    call_module("powa_server", options(repository, prod(1, extensions=["pg_qualstats"])))
    # Once of an extension, which is not even named, and once of what is always on.
    for module, operation in (("pg_qualstats", "aggregate"), ("powa_stat_all_relations", "snapshot")):
        repository.sql("DELETE FROM powa_functions WHERE srvid > 0 AND module = %s AND operation = %s", [module, operation], dbname="powa")
    result = four_steps("powa_server", options(repository, prod(1)))
    assert result["plan"] == ['activate pg_qualstats, activate powa_stat_all_relations on server "prod1"']
    counts = repository.sql("SELECT operation, count(*) FROM powa_functions WHERE srvid > 0 AND module = 'pg_qualstats' GROUP BY 1 ORDER BY 1", dbname="powa")
    assert counts == [("aggregate", 1), ("purge", 1), ("reset", 1), ("snapshot", 1), ("unregister", 1)]


def add_datasource(repository, generation, srvid=1):
    """A datasource of somebody's own, active on one server. Its functions need not exist for that."""
    if generation.name == "powa4":
        repository.sql(
            "INSERT INTO powa_functions (srvid, module, operation, function_name, query_source) VALUES (%s, 'mine', 'snapshot', 'mine_snapshot', 'mine_src')",
            [srvid], dbname="powa",
        )  # fmt: skip
    else:
        repository.sql("INSERT INTO powa_extensions (extname, external, added_manually) VALUES ('mine', false, true)", dbname="powa")
        repository.sql("SELECT powa_activate_extension(%s, 'mine')", [srvid], dbname="powa")


def test_datasources_of_ones_own_are_left_alone(repository, generation, base):
    call_module("powa_server", options(repository, prod(1, extensions=["pg_qualstats"])))
    add_datasource(repository, generation)
    result = four_steps("powa_server", options(repository, prod(1, extensions=[]), extensions_exact=True))
    assert result["plan"] == ['deactivate pg_qualstats on server "prod1"'] and result["servers"][0]["extensions"] == sorted([*base, "mine"])


def test_what_belongs_to_powa_itself_is_refused_and_stays(repository, generation):
    call_module("powa_server", options(repository, prod(1)))
    before = count(repository, "powa_functions WHERE srvid = 1")
    for name in ("powa", "powa_kcache"):
        refused = call_module("powa_server", options(repository, prod(1, extensions=[name])))
        assert refused["failed"] and refused["error"] == "InvalidInput" and "cannot be activated as an extension" in refused["msg"]
    assert count(repository, "powa_functions WHERE srvid = 1") == before > 10


def test_an_extension_that_the_repository_lacks_too(repository):
    repository.sql("DROP EXTENSION pg_track_settings", dbname="powa")
    refused = call_module("powa_server", options(repository, prod(1, extensions=["pg_track_settings"])))
    assert refused["failed"] and refused["error"] == "Refused" and "the repository itself lacks it" in refused["msg"] and rows(repository) == []


def test_versions_as_the_collector_noted_them(repository, generation):
    call_module("powa_server", options(repository, prod(1, extensions=["pg_qualstats"])))
    table = "powa_extensions" if generation.name == "powa4" else "powa_extension_config"
    repository.sql("UPDATE %s SET version = '2.0.4' WHERE srvid = 1 AND extname = 'pg_qualstats'" % table, dbname="powa")
    versions = call_module("powa_server", options(repository))["servers"][0]["extension_versions"]
    assert versions["pg_qualstats"] == "2.0.4" and versions["pg_stat_statements"] is None


def test_modules(repository, generation):
    entry = prod(1, modules=["pg_role", "pg_stat_io"], db_modules=[{"name": "pg_stat_all_tables", "databases": ["web", "app"]},
                                                                   {"name": "pg_stat_user_functions", "state": "absent"}])  # fmt: skip
    if generation.name == "powa4":
        refused = call_module("powa_server", options(repository, entry))
        assert refused["failed"] and refused["error"] == "Refused" and "On PoWA 4 the extensions pg_stat_bgwriter" in refused["msg"] and rows(repository) == []
        return
    new = four_steps("powa_server", options(repository, entry, modules_exact=True))
    tables, functions, indexes = ({"name": "pg_stat_all_tables", "databases": ["app", "web"]}, {"name": "pg_stat_user_functions", "databases": None},
                                  {"name": "pg_stat_all_indexes", "databases": None})  # fmt: skip
    assert new["servers"][0]["modules"] == ["pg_role", "pg_stat_io"] and new["servers"][0]["db_modules"] == [indexes, tables]
    assert new["diff"][0]["after"]["db_modules"] == {"pg_stat_all_indexes": "all", "pg_stat_all_tables": ["app", "web"]}
    # What is not named stays, and the order of databases is of no importance.
    entry["db_modules"] = [{"name": "pg_stat_all_tables", "databases": ["app", "web", "app"]}]
    four_steps("powa_server", options(repository, entry, modules_exact=True), expect_change=False)
    four_steps("powa_server", options(repository, prod(1)), expect_change=False)
    more = four_steps("powa_server", options(repository, prod(1, modules=["pg_stat_wal"], db_modules=[{"name": one} for one in DB_MODULES])))
    assert more["plan"] == [
        "activate module pg_stat_wal, activate pg_stat_all_tables in all databases, activate pg_stat_user_functions in all databases"
        ' on server "prod1"'
    ]
    assert more["servers"][0]["modules"] == ["pg_role", "pg_stat_io", "pg_stat_wal"]
    assert more["servers"][0]["db_modules"] == [indexes, {**tables, "databases": None}, functions]
    for wrong, words in (({"modules": ["pg_nonsense"]}, "does not know the module pg_nonsense"),
                         ({"db_modules": [{"name": "pg_nonsense"}]}, "does not know the db module pg_nonsense")):  # fmt: skip
        refused = call_module("powa_server", options(repository, prod(1, **wrong)))
        assert refused["failed"] and words in refused["msg"]


def test_a_db_module_that_is_off_leaves_nothing_behind(repository, generation):
    if generation.name == "powa4":
        pytest.skip("PoWA 4 has no modules")
    call_module("powa_server", options(repository, prod(1)))
    repository.sql("SELECT powa_deactivate_db_module(1, 'pg_stat_all_indexes')", dbname="powa")
    columns = "srvid, ts, dbid, relid, indexrelid, idx_size"
    repository.sql("INSERT INTO powa_all_indexes_src_tmp (%s) VALUES (1, now(), 1, 1, 1, 1), (9, now(), 1, 1, 1, 1)" % columns, dbname="powa")
    # PoWA's own switch is one that the collector does not look at: this is said, and mended.
    warned = call_module("powa_server", options(repository, prod(1)))
    assert "pg_stat_all_indexes was switched off with powa_deactivate_db_module" in warned["printed"] and warned["changed"] is False
    off = four_steps("powa_server", options(repository, prod(1, db_modules=[{"name": "pg_stat_all_indexes", "state": "absent"}])))
    assert off["plan"] == ['deactivate pg_stat_all_indexes in all databases on server "prod1"']
    assert [one["name"] for one in off["servers"][0]["db_modules"]] == ["pg_stat_all_tables", "pg_stat_user_functions"]
    assert repository.sql("SELECT srvid FROM powa_all_indexes_src_tmp", dbname="powa") == [(9,)]
    back = four_steps("powa_server", options(repository, prod(1, db_modules=[{"name": "pg_stat_all_indexes"}])))
    assert len(back["servers"][0]["db_modules"]) == 3


def test_absent_needs_purge_and_then_leaves_nothing(repository):
    call_module("powa_server", options(repository, prod(1), prod(2)))
    first = repository.value("SELECT id FROM powa_servers WHERE alias = 'prod1'", dbname="powa")
    repository.sql("INSERT INTO powa_databases_src_tmp (srvid, oid, datname) VALUES (%s, 1, 'left')", [first], dbname="powa")
    refused = call_module("powa_server", options(repository, {"alias": "prod1", "state": "absent"}))
    assert refused["failed"] and refused["error"] == "Refused" and "Set purge to true" in refused["msg"] and len(rows(repository)) == 2
    gone = four_steps("powa_server", options(repository, {"alias": "prod1", "state": "absent", "purge": True}))
    assert rows(repository, "alias") == [("prod2",)] and gone["collector_restart_required"] is True and gone["servers"] == []
    assert repository.value("SELECT count(*) FROM powa_functions WHERE srvid = %s", [first], dbname="powa") == 0
    assert repository.value("SELECT count(*) FROM powa_databases_src_tmp", dbname="powa") == 0
    nothing = four_steps("powa_server", options(repository, {"alias": "never", "state": "absent"}), expect_change=False)
    assert nothing["servers"] == []


def test_addresses_pass_on_in_a_circle(repository):
    call_module("powa_server", options(repository, prod(1, password=PASSWORD % 1), prod(2), prod(3)))
    turned = [prod(1, host="10.0.0.2"), prod(2, host="10.0.0.3"), prod(3, host="10.0.0.1", port=5432)]
    result = four_steps("powa_server", options(repository, *turned))
    assert result["plan"] == ['change host of server "prod%d"' % number for number in (1, 2, 3)] and result["collector_restart_required"] is True
    # Everybody keeps the data, which belong to the number.
    assert rows(repository, "id, alias, hostname, port") == [(1, "prod1", "10.0.0.2", 5432), (2, "prod2", "10.0.0.3", 5432), (3, "prod3", "10.0.0.1", 5432)]
    # The same by ports, where a newcomer takes what has become free.
    call_module("powa_server", options(repository, {"alias": "prod2", "host": "10.0.0.2", "port": 6432}))
    ports = [prod(1, host="10.0.0.2", port=6432), prod(2, host="10.0.0.2", port=7432), {"alias": "new", "host": "10.0.0.2", "port": 5432}]
    four_steps("powa_server", options(repository, *ports))
    assert rows(repository, "alias, hostname, port")[0:2] == [("prod1", "10.0.0.2", 6432), ("prod2", "10.0.0.2", 7432)]
    assert rows(repository, "alias, hostname, port")[3] == ("new", "10.0.0.2", 5432)
