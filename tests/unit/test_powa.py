# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PoWA without a server: what is wanted, which statements a version gets, preloading, the collector's answers."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput, QueryFailed, Refused
from ansible_collections.pgfleet.ops.plugins.module_utils._powa import collector, preload, servers
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.datasources import Datasource
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.repository import (
    Activation,
    Installed,
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
    repository, session = four(powa_activate_extension=[{"done": True}])
    repository.activate(5, "pg_qualstats", Activation(enabled=True, complete=False))
    assert session.texts[1:] == [
        'DELETE FROM "public"."powa_functions" WHERE srvid = %s AND module = %s', 'SELECT "public"."powa_activate_extension"(%s::integer, %s::text)'
    ]  # fmt: skip
    repository, session = four(powa_activate_extension=[{"done": True}])
    repository.activate(5, "pg_qualstats", Activation(enabled=False))
    assert len(session.texts) == 2
    repository, session = four(powa_activate_extension=[{"done": False}])
    with pytest.raises(QueryFailed, match="activate pg_qualstats"):
        repository.activate(5, "pg_qualstats")


def test_activations_of_4_are_judged_by_their_operations():
    rows = [
        {"srvid": 1, "module": "pg_qualstats", "enabled": True, "operations": ["snapshot", "purge", "reset"]},
        {"srvid": 1, "module": "pg_track_settings", "enabled": True, "operations": ["snapshot", "reset"]},
        {"srvid": 1, "module": "my_datasource", "enabled": False, "operations": ["snapshot"]},
    ]
    repository, _session = four(powa_functions=rows)
    assert repository.activations() == [
        (1, "pg_qualstats", Activation(True, False)), (1, "pg_track_settings", Activation(True, True)), (1, "my_datasource", Activation(False, True))
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
                                powa_extension_config=[{"srvid": 3, "extname": "pg_qualstats", "enabled": False}])  # fmt: skip
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


def test_match():
    register = servers.Register([registered(), registered(id=8, alias=None, host="10.0.0.2")])
    assert servers.match(wanted(), register).id == 7
    assert servers.match(wanted(alias="new", host="10.0.0.2"), register).id == 8
    assert servers.match(wanted(host="10.0.0.3"), register).id == 7
    assert servers.match(wanted(alias="new", host="10.0.0.9"), register) is None
    with pytest.raises(Refused, match="Expected: one server"):
        servers.match(wanted(host="10.0.0.2"), register)
    # To be absent, only the alias counts, and an address must be the registered one.
    assert servers.match(wanted(alias="new", host="10.0.0.2", state="absent"), register) is None
    with pytest.raises(Refused, match="Correct host and port"):
        servers.match(wanted(host="10.0.0.2", state="absent"), register)


def test_extension_changes():
    active = {"pg_qualstats": Activation(True), "pg_stat_kcache": Activation(False), "mine": Activation(True), "pg_stat_statements": Activation(True)}
    known = {"pg_qualstats", "pg_stat_kcache", "pg_wait_sampling"}
    one = wanted(extensions=["pg_qualstats", "pg_stat_kcache", "pg_wait_sampling"])
    assert servers.extension_changes(one, active, known, ("pg_stat_statements",), False) == (["pg_stat_kcache", "pg_wait_sampling"], [])
    assert servers.extension_changes(one, active, known, ("pg_stat_statements",), True)[1] == ["mine"]
    assert servers.extension_changes(wanted(), active, known, (), True) == ([], [])
    assert servers.extension_changes(wanted(extensions=["mine"]), active, known, (), False) == ([], [])
    with pytest.raises(Refused, match="does not know other"):
        servers.extension_changes(wanted(extensions=["other"]), active, known, (), False)


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
