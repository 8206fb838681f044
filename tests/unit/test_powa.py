# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PoWA without a server: what is wanted, which statements a version gets, preloading, the collector's answers."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput, QueryFailed, Refused
from ansible_collections.pgfleet.ops.plugins.module_utils._powa import collector, preload, servers
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.datasources import Datasource
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.repository import (
    Activation,
    DbModule,
    Installed,
    Known,
    Registered,
    Repository4,
    Repository5,
    repository_class,
    version_tuple,
)


def render(query):
    """A statement as text; identifiers in double quotes."""
    if isinstance(query, str):
        return query
    name = type(query).__name__
    if name == "Composed":
        return "".join(render(part) for part in query)
    if name == "Identifier":
        return ".".join('"%s"' % part for part in query._obj)
    if name == "SQL":
        return query._obj
    return repr(query._obj)


class FakeSession:
    """Answers by the first rule whose text is in the statement, and writes down what was asked."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def rows(self, query, parameters=None):
        text = render(query)
        self.asked.append((text, parameters))
        return next((rows for key, rows in self.answers.items() if key in text), [])

    def row(self, query, parameters=None):
        found = self.rows(query, parameters)
        return found[0] if found else None

    def value(self, query, parameters=None):
        row = self.row(query, parameters)
        return next(iter(row.values())) if row else None

    execute = rows

    @property
    def texts(self):
        return [text for text, _parameters in self.asked]


def four(**answers):
    session = FakeSession(**answers)
    return Repository4(session, Installed("4.1.4", "public")), session


def five(**answers):
    session = FakeSession(**answers)
    return Repository5(session, Installed("5.0.2", "Stats")), session


def registered(**more):
    return Registered(
        **{
            "id": 7, "alias": "prod1", "host": "10.0.0.1", "port": 5432, "user": "powa", "dbname": "powa", "frequency": 60, "powa_coalesce": 100,
            "retention": "1 day", "allow_ui_connection": True, "has_password": False, "version": None, **more,
        }
    )  # fmt: skip


@pytest.mark.parametrize("version, cls", [("4.1.4", Repository4), ("4.2.2", Repository4), ("5.0.2", Repository5), ("5.2.0devel", Repository5)])
def test_supported_versions(version, cls):
    assert repository_class(version) is cls


@pytest.mark.parametrize("version", ["3.2.0", "4.0.1", "6.0.0"])
def test_other_versions_are_refused(version):
    with pytest.raises(Refused, match="not supported"):
        repository_class(version)


def test_version_numbers():
    assert version_tuple("4.1.4") == (4, 1, 4) and version_tuple("5.2.0devel") == (5, 2, 0) and version_tuple("x") == (0,)


def test_only_version_4_sets_a_search_path():
    assert four()[1].texts == ["SET search_path = pg_catalog, public"] and five()[1].texts == []


def test_schema_is_quoted_everywhere():
    repository, session = five()
    repository.servers()
    assert '"Stats"."powa_servers"' in session.texts[0] and '"Stats"."powa_extension_config"' in session.texts[1]
    repository, session = four()
    repository.servers()
    assert '"public"."powa_servers"' in session.texts[1] and '"public"."powa_functions"' in session.texts[2]


def test_coalesce_goes_by_update_and_the_rest_by_the_function():
    repository, session = five(powa_configure_server=[{"done": True}])
    repository.configure(3, {"host": "b", "user": "u", "powa_coalesce": 9, "password": None})
    assert session.asked[0] == ('UPDATE "Stats"."powa_servers" SET powa_coalesce = %s WHERE id = %s', [9, 3])
    assert session.asked[1][1] == [3, '{"hostname": "b", "username": "u", "password": null}']
    repository, session = five()
    repository.configure(3, {"powa_coalesce": 9})
    assert len(session.asked) == 1


def test_a_server_that_is_gone_is_noticed():
    repository, _session = five(powa_configure_server=[{"done": False}])
    with pytest.raises(QueryFailed, match="did not change the server with id 3"):
        repository.configure(3, {"host": "b"})


def test_purge_does_not_believe_the_function_and_empties_what_4_forgets():
    repository, session = four(**{"f.query_source": [{"name": "powa_x_src_tmp"}], "powa_delete_and_purge_server": [{"r": False}], "count(*)": [{"count": 0}]})
    repository.purge(5)
    assert 'DELETE FROM "public"."powa_x_src_tmp" WHERE srvid = %s' in session.texts
    repository, session = five(**{"count(*)": [{"count": 1}]})
    with pytest.raises(QueryFailed, match="did not delete"):
        repository.purge(5)
    assert not [text for text in session.texts if text.startswith("DELETE")]


def test_damaged_rows_are_removed_before_activation_on_4_only():
    repository, session = four(powa_activate_extension=[{"name": "pg_qualstats", "done": True}])
    repository.activate(5, ["pg_qualstats"], ["pg_qualstats"])
    assert [text.split(" WHERE")[0].split(" AS done")[0] for text in session.texts[1:]] == [
        'DELETE FROM "public"."powa_functions"', 'SELECT name, "public"."powa_activate_extension"(%s::integer, name)'
    ]  # fmt: skip
    repository, session = four(powa_activate_extension=[{"name": "pg_qualstats", "done": True}])
    repository.activate(5, ["pg_qualstats"])
    assert len(session.texts) == 2
    repository, session = five(powa_activate_extension=[{"name": "pg_qualstats", "done": True}])
    repository.activate(5, ["pg_qualstats"], ["pg_qualstats"])
    assert len(session.texts) == 1
    repository, session = four(powa_activate_extension=[{"name": "a", "done": True}, {"name": "pg_qualstats", "done": False}])
    with pytest.raises(QueryFailed, match="activate pg_qualstats on"):
        repository.activate(5, ["a", "pg_qualstats"])


def test_activations_of_4_are_judged_by_their_operations():
    rows = [
        {"srvid": 1, "module": "pg_qualstats", "enabled": True, "operations": ["snapshot", "purge", "reset"]},
        {"srvid": 1, "module": "pg_track_settings", "enabled": True, "operations": ["snapshot", "reset"]},
        {"srvid": 1, "module": "my_datasource", "enabled": False, "operations": ["snapshot"]},
    ]
    repository, _session = four(powa_functions=rows)
    assert repository.activations() == [
        (1, "pg_qualstats", Activation(True, False)), (1, "pg_track_settings", Activation(True, True)),
        (1, "my_datasource", Activation(False, True, custom=True))
    ]  # fmt: skip


def test_datasources_of_4_are_put_together_from_the_rows_of_each_server():
    row = {"name": "mine", "srvid": 2, "operation": "snapshot", "function_name": "mine_snapshot", "query_source": "mine_src", "enabled": True}
    rows = [
        row,
        {**row, "function_name": "mine_second", "query_source": "mine_second_src"},
        {**row, "operation": "purge", "function_name": "mine_purge", "query_source": None, "enabled": False},
        {**row, "srvid": 1},
        {**row, "name": "pg_qualstats", "function_name": "powa_qualstats_snapshot", "query_source": "powa_qualstats_src"},
    ]
    mine, built_in = four(powa_functions=rows)[0].datasources()
    assert mine == Datasource("mine", {"snapshot": "mine_snapshot", "purge": "mine_purge"}, "mine_src", True, {1: True, 2: False})
    assert built_in.name == "pg_qualstats" and built_in.custom is False and built_in.servers == {2: True}


def test_datasources_of_5_are_there_without_a_server():
    row = {"name": "mine", "custom": True, "operation": "snapshot", "function_name": "mine_snapshot", "query_source": "mine_src"}
    repository, _session = five(powa_extension_functions=[row, {**row, "name": "pg_qualstats", "custom": False}],
                                powa_extension_config=[{"srvid": 3, "extname": "pg_qualstats", "enabled": False, "custom": False}])  # fmt: skip
    mine, built_in = repository.datasources()
    assert mine == Datasource("mine", {"snapshot": "mine_snapshot"}, "mine_src", True, {})
    assert built_in.custom is False and built_in.servers == {3: False}


def test_rights_of_5_come_from_its_group_roles():
    groups = [{"powa_role": name, "rolname": name + "_x"} for name in ("powa_write_all_data", "powa_read_all_data", "powa_admin")]
    for access, group in (("collector", "powa_write_all_data_x"), ("reader", "powa_read_all_data_x"), ("manager", "powa_admin_x")):
        repository, _session = five(has_database_privilege=[{"has": True}], powa_roles=groups, pg_has_role=[{"has": False}])
        rights = repository.missing_rights("login", access)
        assert [right.text for right in rights] == ["member of %s" % group]
        assert render(rights[0].statement) == 'GRANT "%s" TO "login"' % group
    repository, _session = five(has_database_privilege=[{"has": True}], powa_roles=groups, pg_has_role=[{"has": True}])
    assert repository.missing_rights("login", "collector") == []


def test_roles_of_5_that_belong_to_another_database_are_taken_over():
    repository, _session = five(powa_roles=[{"powa_role": "powa_admin", "rolname": None}])
    assert [render(right.statement) for right in repository.after_creation()] == ['SELECT "Stats"."setup_powa_roles"(reuse_existing_role => true)']
    repository, _session = five(powa_roles=[{"powa_role": "powa_admin", "rolname": "powa_admin"}])
    assert repository.after_creation() == []


def test_update_of_5_renews_rights_and_adds_modules():
    repository, session = five()
    repository.after_update()
    assert session.texts[0] == 'SELECT "Stats"."powa_grant"()' and "powa_activate_module" in session.texts[1]
    repository, session = four()
    repository.after_update()
    assert len(session.texts) == 1


def test_a_monitor_of_5_may_connect_everywhere():
    repository, _session = five(**{"datallowconn": [{"datname": "app"}], "current_database(), 'CONNECT'": [{"has": True}], "pg_has_role": [{"has": True}]})
    assert [render(right.statement) for right in repository.missing_rights("mon", "monitor")] == ['GRANT CONNECT ON DATABASE "app" TO "mon"']


@pytest.mark.parametrize("path, right", [("public", 0), ('"$user", public', 0), ("pg_catalog", 1), ("public_other", 1)])
def test_a_search_path_without_public_is_mended_on_4(path, right):
    repository, _session = four(
        **{
            "current_database(), 'CONNECT'": [{"has": True}],
            "pg_has_role": [{"has": True}],
            "setconfig": [{"path": path}],
            "SELECT current_database()": [{"d": "powa"}],
        }
    )
    assert len(repository.missing_rights("mon", "monitor")) == right


# What is wanted


def wanted(**more):
    return servers.parse_wanted([{"alias": "prod1", "host": "10.0.0.1", **more}])[0]


@pytest.mark.parametrize(
    "more, words",
    [
        ({"frequency": 4}, "frequency is 4"),
        ({"frequency": 0}, "frequency is 0"),
        ({"frequency": 2**31}, "frequency is"),
        ({"frequency": -1, "state": "absent"}, "to be absent"),
        ({"powa_coalesce": 4}, "powa_coalesce is 4"),
        ({"port": 0}, "port is 0"),
        ({"host": "", "port": 1}, "port and no host"),
        ({"host": "a b"}, "white space"),
        ({"alias": ""}, "no alias"),
        ({"extensions": ["powa"]}, "cannot be activated"),
        ({"extensions": ["powa_kcache"]}, "cannot be activated"),
        ({"extensions": ["Bad-Name"]}, "no name of an extension"),
        ({"password": "hidden", "clear_password": True}, "both password"),
        ({"db_modules": [{"name": "a"}, {"name": "a"}]}, "twice"),
        ({"db_modules": [{"name": "a", "state": "absent", "databases": ["b"]}]}, "to be absent and has databases"),
        ({"db_modules": [{"name": "a", "databases": []}]}, "empty list"),
    ],
)
def test_bad_entries(more, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        wanted(**more)
    assert "hidden" not in str(caught.value)


def test_a_password_is_in_no_representation():
    assert "hidden" not in repr(wanted(password="hidden"))


def test_entries_are_normalised():
    assert wanted(frequency=-1).state == "inactive" and wanted(frequency=-1).frequency is None
    assert wanted(extensions=["pg_qualstats", "hypopg", "pg_qualstats", "powa_stat_all_relations"]).extensions == ("pg_qualstats", "powa_stat_all_relations")
    assert wanted().endpoint == ("10.0.0.1", 5432) and wanted(extensions=[]).extensions == () and wanted().extensions is None


def test_columns_that_are_not_named_stay():
    assert servers.column_changes(wanted(), registered(user="other", dbname="d", powa_coalesce=5), {"password": True, "retention": True}) == {}
    assert servers.column_changes(wanted(retention="24 hours", password="p"), registered(), {"password": True, "retention": False}) == {"password": "p"}
    assert servers.column_changes(wanted(port=6432, allow_ui_connection=False), registered(), {}) == {"port": 6432, "allow_ui_connection": False}


def test_activity():
    inactive = registered(frequency=-1)
    assert servers.column_changes(wanted(), inactive, {}) == {"frequency": 300}
    assert servers.column_changes(wanted(frequency=60), inactive, {}) == {"frequency": 60}
    assert servers.column_changes(wanted(state="inactive"), registered(), {}) == {}


def resolve(*entries):
    """Ids of the registered servers that entries mean, of prod1 at 10.0.0.1, a nameless one at 10.0.0.2 and other at 10.0.0.3."""
    register = servers.Register([registered(), registered(id=8, alias=None, host="10.0.0.2"), registered(id=9, alias="other", host="10.0.0.3")])
    parsed = servers.parse_wanted(entries)
    found = servers.resolve(parsed, register)
    return [server and server.id for server in found], servers.in_the_way(parsed, found)


@pytest.mark.parametrize(
    "entries, found, moving",
    [
        ([{"alias": "prod1", "host": "10.0.0.1"}], [7], []),
        ([{"alias": "prod1"}], [7], []),
        ([{"alias": "prod1", "host": "10.0.0.9"}], [7], []),
        ([{"alias": "new", "host": "10.0.0.2"}], [8], []),
        ([{"alias": "new", "host": "10.0.0.9"}], [None], []),
        # Addresses that are passed on, in a row and in a circle.
        ([{"alias": "prod1", "host": "10.0.0.3"}, {"alias": "other", "host": "10.0.0.9"}], [7, 9], [9]),
        ([{"alias": "prod1", "host": "10.0.0.3"}, {"alias": "other", "host": "10.0.0.1"}], [7, 9], [7, 9]),
        ([{"alias": "prod1", "host": "10.0.0.9"}, {"alias": "new", "host": "10.0.0.1"}], [7, None], [7]),
        ([{"alias": "prod1", "state": "absent"}, {"alias": "new", "host": "10.0.0.1"}], [7, None], []),
        ([{"alias": "prod1", "state": "absent"}, {"alias": "other", "host": "10.0.0.1"}], [7, 9], []),
        # To be absent, only the alias counts.
        ([{"alias": "new", "host": "10.0.0.2", "state": "absent"}], [None], []),
    ],
)
def test_which_servers_are_meant(entries, found, moving):
    assert resolve(*entries) == (found, moving)


@pytest.mark.parametrize(
    "entries, words",
    [
        ([{"alias": "prod1", "host": "10.0.0.2"}], 'alias "prod1" is registered with 10.0.0.1:5432, and 10.0.0.2:5432 is registered as "10.0.0.2:5432"'),
        ([{"alias": "prod1", "host": "10.0.0.3"}], "Expected: one server"),
        ([{"alias": "prod1", "host": "10.0.0.3"}, {"alias": "other"}], "Expected: one server"),
        ([{"alias": "prod1"}, {"alias": "new", "host": "10.0.0.1"}], '^10.0.0.1:5432 is registered as "prod1"'),
        ([{"alias": "prod1", "host": "10.0.0.2", "state": "absent"}], "Correct host and port"),
    ],
)
def test_an_address_of_two_servers(entries, words):
    with pytest.raises(Refused, match=words):
        resolve(*entries)


KNOWN4 = Known(("pg_stat_statements",), frozenset({"pg_stat_statements", "pg_qualstats", "pg_stat_kcache", "pg_wait_sampling", "pg_track_settings"}),
               frozenset({"pg_track_settings"}))  # fmt: skip
KNOWN5 = dataclasses.replace(
    KNOWN4, modules=frozenset({"pg_role", "pg_stat_io"}), db_modules=frozenset({"tables", "mine"}), default_db_modules=frozenset({"tables"})
)


def changes(entry, known=KNOWN4, exact=False, **found):
    return servers.source_changes(entry, registered(**found), known, exact, exact)


def test_extensions_of_a_server():
    on = Activation(enabled=True)
    active = {"pg_qualstats": on, "pg_stat_kcache": Activation(False), "mine": Activation(True, custom=True), "pg_stat_statements": on}
    one = wanted(extensions=["pg_qualstats", "pg_stat_kcache", "pg_wait_sampling"])
    assert changes(one, extensions=active).activate == ["pg_stat_kcache", "pg_wait_sampling"] and changes(one, extensions=active).deactivate == []
    only = wanted(extensions=["pg_wait_sampling"])
    # A datasource of one's own is not a matter of this list.
    assert changes(only, exact=True, extensions=active).deactivate == ["pg_qualstats"]
    assert changes(wanted(), exact=True, extensions=active).words == []
    assert changes(wanted(extensions=["mine"]), extensions=active).words == []
    with pytest.raises(Refused, match="does not know the extension other"):
        changes(wanted(extensions=["other"]))
    with pytest.raises(Refused, match="repository itself lacks it"):
        changes(wanted(extensions=["pg_track_settings"]))
    both = dataclasses.replace(KNOWN4, here=frozenset({"pg_track_settings"}))
    assert changes(wanted(extensions=["pg_track_settings"]), both).activate[0] == "pg_track_settings"


def test_what_was_lost_is_put_back():
    assert changes(wanted()).activate == ["pg_stat_statements"] and changes(wanted()).damaged == []
    broken = {"pg_stat_statements": Activation(True, complete=False), "pg_qualstats": Activation(False, complete=False)}
    assert changes(wanted(), extensions=broken).activate == changes(wanted(), extensions=broken).damaged == ["pg_stat_statements"]
    both = changes(wanted(extensions=["pg_qualstats"]), extensions=broken)
    assert both.activate == both.damaged == ["pg_qualstats", "pg_stat_statements"]
    whole = {"pg_stat_statements": Activation(True)}
    assert changes(wanted(), KNOWN5, extensions=whole, modules={"pg_role": False}).words == ["activate module pg_stat_io"]


def test_modules_of_a_server():
    there = {"extensions": {"pg_stat_statements": Activation(True)}, "modules": {"pg_role": True, "pg_stat_io": True},
             "db_modules": {"tables": DbModule("tables")}}  # fmt: skip
    assert changes(wanted(modules=["pg_role"]), KNOWN5, **there).words == []
    assert changes(wanted(modules=["pg_role"]), KNOWN5, True, **there).words == ["deactivate module pg_stat_io"]
    assert changes(wanted(modules=["pg_stat_io"]), KNOWN5, **{**there, "modules": {"pg_role": False}}).modules_on == ["pg_stat_io"]
    assert changes(wanted(), KNOWN5, True, **there).words == []
    limited = wanted(db_modules=[{"name": "tables", "databases": ["b", "a", "b"]}, {"name": "mine", "state": "absent"}])
    assert changes(limited, KNOWN5, **there).words == ["activate tables in a, b"]
    assert changes(limited, KNOWN5, **{**there, "db_modules": {"tables": DbModule("tables", ("a", "b"))}}).words == []
    # The collector does not look at the flag, so a row that is switched off still counts.
    ignored = {**there, "db_modules": {"tables": DbModule("tables", None, enabled=False)}}
    assert changes(wanted(db_modules=[{"name": "tables", "state": "absent"}]), KNOWN5, **ignored).words == ["deactivate tables in all databases"]
    assert changes(wanted(db_modules=[{"name": "tables"}]), KNOWN5, **ignored).words == ["activate tables in all databases"]
    for entry, words in (
        (wanted(modules=["x"]), "does not know the module x"),
        (wanted(db_modules=[{"name": "x"}]), "does not know the db module x"),
        (wanted(extensions=["pg_stat_bgwriter"]), "On PoWA 5 bgwriter is one of its modules"),
    ):
        with pytest.raises(Refused, match=words):
            changes(entry, KNOWN5, **there)
    with pytest.raises(Refused, match=r"Expected: PoWA 5\. On PoWA 4 the extensions pg_stat_bgwriter"):
        changes(wanted(modules=[]), KNOWN4)


def test_modules_of_a_new_server():
    new = servers.fresh(wanted(modules=["pg_role"], extensions=["pg_qualstats"]), KNOWN5)
    assert (new.user, new.dbname, new.port, new.frequency) == ("powa", "powa", 5432, 300)
    sources = servers.source_changes(wanted(modules=["pg_role"], extensions=["pg_qualstats"]), new, KNOWN5, True, True)
    assert sources.words == ["activate pg_qualstats", "deactivate module pg_stat_io"]


@pytest.mark.parametrize(
    "changes, active, deactivated, version, reload, restart",
    [
        ({}, True, False, (1, 2, 0), 0, 0),
        ({"retention": "1 day", "powa_coalesce": 5}, True, False, (1, 2, 0), 0, 0),
        ({"password": "x"}, True, False, (1, 3, 1), 1, 0),
        ({"frequency": 60}, True, False, (1, 2, 0), 1, 0),
        ({"frequency": 60}, True, False, (1, 3, 1), 0, 1),
        ({"host": "b"}, True, False, None, 0, 1),
        ({}, True, True, None, 0, 1),
        ({"frequency": 60, "host": "b"}, False, False, (1, 3, 1), 1, 0),
        ({"host": "b"}, False, False, (1, 3, 1), 0, 0),
    ],
)
def test_what_a_collector_needs(changes, active, deactivated, version, reload, restart):
    needs = servers.collector_needs("prod1", changes, active, deactivated, version)
    assert (len(needs.reload), len(needs.restart)) == (reload, restart)


def test_an_extension_that_a_worker_of_5_may_not_find_yet():
    def needs(known, **found):
        server = registered(extensions={"pg_stat_statements": Activation(True)}, modules=dict.fromkeys(known.modules, True), **found)
        here = dataclasses.replace(known, here=known.both_sides)
        sources = servers.source_changes(wanted(extensions=["pg_stat_kcache", "pg_qualstats", "pg_track_settings"]), server, here, False, False)
        return servers.source_needs("prod1", sources, server, here).restart

    assert needs(KNOWN5) == ('a worker that was there before pg_qualstats, pg_track_settings was created on server "prod1" does not find it',)
    assert needs(KNOWN4) == needs(KNOWN5, frequency=-1) == ()


# Preloading


@pytest.mark.parametrize(
    "setting, names",
    [
        ("", []),
        ("pg_stat_statements, auto_explain", ["pg_stat_statements", "auto_explain"]),
        ('"$libdir/pg_qualstats", /usr/lib/x/pg_stat_kcache.so', ["pg_qualstats", "pg_stat_kcache"]),
    ],
)
def test_libraries(setting, names):
    assert preload.parse_libraries(setting) == names


def test_order_of_libraries():
    judged = preload.judge_preload("auto_explain", ["pg_wait_sampling", "pg_stat_kcache", "hypopg"])
    assert judged.missing == ("pg_stat_statements", "pg_stat_kcache", "pg_wait_sampling")
    assert judged.expected == "auto_explain,pg_stat_statements,pg_stat_kcache,pg_wait_sampling"
    assert preload.judge_preload("pg_stat_statements", ["pg_stat_statements"]).missing == ()
    assert preload.judge_preload("", ["pg_track_settings", "hypopg"]) == preload.Preload((), "")


def test_packages():
    assert preload.debian_package("pg_qualstats", 15) == "postgresql-15-pg-qualstats"
    assert preload.debian_package("powa", 17) == "postgresql-17-powa" and preload.debian_package("btree_gist", 16) == "postgresql-16"


# The collector


def test_answers():
    assert collector.parse_answer('WORKERS_STATUS OK {"1": "running"}') == ("WORKERS_STATUS", "OK", '{"1": "running"}')
    assert collector.parse_answer("RELOAD OK OK") == ("RELOAD", "OK", "OK") and collector.parse_answer("X UNKNOWN ") == ("X", "UNKNOWN", "")
    assert collector.parse_workers('{"1": "running", "12": "no connection to remote server"}') == {1: "running", 12: "no connection to remote server"}
    assert collector.parse_workers("") == {}
    with pytest.raises(QueryFailed):
        collector.parse_workers("ANSWER TOO LONG")


def test_versions_of_connected_collectors():
    names = ["PoWA collector - main thread (1.2.0)", "PoWA collector - main thread (1.3.1)", "PoWA collector - main thread"]
    assert collector.collector_versions(FakeSession(pg_stat_activity=[{"name": name} for name in names])) == ["1.2.0", "1.3.1", ""]


class Answering(collector.Collector):
    """A collector that answers what it is told to."""

    def __init__(self, *payloads):
        self.payloads = list(payloads)

    def _exchange(self, command, arguments):
        return [collector.parse_answer(self.payloads.pop(0))[1:] for _argument in arguments]


@pytest.mark.parametrize(
    "payload, waits",
    [
        ("FORCE_SNAPSHOT OK Snapshot in progress", None),
        ("FORCE_SNAPSHOT OK Snapshot wil begin shortly", None),
        ("FORCE_SNAPSHOT ERROR Last snapshot was less than 10s. ago", "Last snapshot was less than 10s. ago"),
        ("FORCE_SNAPSHOT ERROR A snapshot is already in progress", "A snapshot is already in progress"),
        ("FORCE_SNAPSHOT ERROR A forced snapshot is already scheduled", "A forced snapshot is already scheduled"),
    ],
)
def test_a_forced_snapshot_is_taken_or_has_to_wait(payload, waits):
    assert Answering(payload).force_snapshot(7) == waits


@pytest.mark.parametrize(
    "payload, action",
    [
        ("FORCE_SNAPSHOT ERROR Server id 7 not found", "Restart the collector"),
        ('FORCE_SNAPSHOT UNKNOWN Message "FORCE_SNAPSHOT" invalid, command ignored', "Restart the collector"),
        ("FORCE_SNAPSHOT ERROR Permission denied", "powa_signal_backend"),
    ],
)
def test_a_forced_snapshot_that_is_never_taken(payload, action):
    with pytest.raises(Refused, match=action):
        Answering(payload).force_snapshot(7)


def test_an_answer_that_is_not_ok_asks_for_a_restart():
    with pytest.raises(Refused, match="answered KO to WORKERS_STATUS") as caught:
        Answering("WORKERS_STATUS KO {ANSWER TOO LONG}").ask("WORKERS_STATUS")
    assert caught.value.facts == {"restart_required": True}
