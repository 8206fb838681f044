# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a declaration may be, what is generated from it, and what is said about functions, without servers."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput, Refused
from ansible_collections.pgfleet.ops.plugins.module_utils._plan import Plan
from ansible_collections.pgfleet.ops.plugins.module_utils._powa import datasource as d
from ansible_collections.pgfleet.ops.plugins.module_utils._powa import datasource_check as check
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.datasource_catalog import FoundTable
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.datasource_history import Layout, describe_changes, plan_tables
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.values import split_names

LABEL = {"name": "what", "type": "text", "kind": "label"}
GAUGE = {"name": "level", "type": "integer", "kind": "gauge"}
COUNTER = {"name": "n", "type": "bigint", "kind": "counter"}


def declaration(*columns, **more):
    return d.Declaration("x", d.parse_columns(columns or (LABEL, GAUGE, COUNTER)), **{"query": "SELECT 1", **more})


@pytest.mark.parametrize("name", ["", "X", "1x", "a-b", 'a"b', "a b", "_a", "ä", "a" * 41])
def test_names_that_the_collector_could_not_write_are_refused(name):
    with pytest.raises(InvalidInput):
        d.check_name(name)


def test_the_longest_name_leaves_every_object_below_the_limit():
    names = d.Names(d.check_name("a" * 40))
    assert max(len(name) for name in (*names.functions, *names.tables, names.record)) <= 63
    assert len(names.transient) <= 63 and len(names.source) <= check.SOURCE_LENGTH


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ([LABEL], "nothing but labels"),
        ([], "columns is empty"),
        ([{**LABEL, "name": "records"}, GAUGE], "is taken"),
        ([COUNTER, {**GAUGE, "name": "n_per_second"}], "and also"),
        ([GAUGE, GAUGE], "is there twice"),
        ([{**GAUGE, "name": "ts"}], "is taken"),
        ([{**GAUGE, "name": "srvid"}], "is taken"),
        ([{**GAUGE, "name": "_srvid"}], "no usable name"),
        ([{**GAUGE, "name": "a" * 51}], "no usable name"),
        ([{**GAUGE, "type": " "}], "has no type"),
    ],
)
def test_columns_that_cannot_be(columns, said):
    with pytest.raises(InvalidInput, match=said):
        d.parse_columns(columns)


@pytest.mark.parametrize(("category", "said"), [(None, "does not know"), ("domain", "a domain"), ("money", "is a counter")])
def test_types_that_cannot_be(category, said):
    with pytest.raises(InvalidInput, match=said):
        d.check_types(declaration(COUNTER).columns, {"bigint": category})


def test_a_label_whose_values_cannot_be_compared():
    with pytest.raises(InvalidInput, match="cannot be grouped"):
        d.check_types(declaration({**LABEL, "type": "json"}, GAUGE).columns, {"json": "unequal", "integer": "integer"})


def test_rights_of_the_definer_and_schemas_in_which_others_create():
    assert d.source_function(declaration(security_definer=True), "public", {}).search_path == ("pg_catalog", "pg_temp")


def test_a_body_has_the_order_of_the_declaration():
    found = d.source_function(declaration(language="plpgsql", query="BEGIN END"), "public", {})
    assert [word for word in found.arguments.split('"') if word in ("what", "level", "n")] == ["what", "level", "n"]


def test_the_source_takes_columns_by_name_and_knows_schemas_of_extensions():
    found = d.source_function(declaration(query="SELECT 1 FROM @extschema@.a, @extschema:dblink@.b;\n"), 'My "S"', {"dblink": "ext"})
    assert found.body.strip() == (
        'SELECT pg_catalog.now(), q."level"::integer, q."n"::bigint, q."what"::text\nFROM (\nSELECT 1 FROM "My ""S""".a, "ext".b\n) AS q'
    )
    assert found.search_path == ("pg_catalog", 'My "S"', "pg_temp") and found.volatility == "STABLE"
    with pytest.raises(InvalidInput, match="@extschema:hstore@"):
        d.source_function(declaration(query="SELECT @extschema:hstore@.x()"), "public", {"dblink": "ext"})


def test_functions_of_the_repository_name_all_with_their_schema():
    functions = {one.name: one for one in d.repository_functions(declaration(), "s", "DELETE FROM x")}
    assert list(functions) == d.Names("x").functions
    assert 'DELETE FROM "s"."powa_x_src_tmp" WHERE srvid = _srvid' in functions["powa_x_snapshot"].body
    assert 'GROUP BY srvid, "what"' in functions["powa_x_aggregate"].body
    assert "s.retention" in functions["powa_x_purge"].body
    assert '"n_per_second" double precision' in functions["powa_x_rates"].returns and '"level" integer' in functions["powa_x_rates"].returns


def test_braces_of_a_cleanup():
    assert check.check_cleanup("SELECT {pg_qualstats}.f('{{a}}')", braces=True) == []
    assert check.check_cleanup("SELECT '{'", braces=False) == []
    for bad in ("SELECT '{'", "SELECT '{0}'", "SELECT '{a b}'", "SELECT '}'", "SELECT '{}'"):
        assert [fault.check for fault in check.check_cleanup(bad, braces=True)] == ["query_cleanup"], bad


def test_all_faults_are_in_one_error():
    faults = [check.Fault("a", "First", "Do this"), check.Fault("b", "Second.", "Do that.")]
    with pytest.raises(Refused) as caught:
        check.refuse("x", faults)
    assert str(caught.value) == 'the datasource "x" has 2 faults: (1) First. Do this. (2) Second. Do that.'
    assert caught.value.facts["faults"][1] == {"check": "b", "found": "Second.", "action": "Do that."}
    check.refuse("x", [])


def test_errors_of_a_source_are_told_apart_by_their_code():
    codes = {"42501": "source_privilege", "25006": "source_writes", "57014": "source_slow", "42883": "source_unqualified", "42702": "source_ambiguous"}
    for code, name in codes.items():
        assert check.failed_call("s", "f", "public", "text", code, 5).check == name
    assert check.failed_call("s", "f", "public", "text", "22012", 5).check == "source_fails"


def test_columns_are_compared_by_position():
    table = FoundTable("x_tmp", False, True, (("srvid", "integer", True), ("ts", "timestamp with time zone", True), ("n", "bigint", False)), "")
    assert check.check_columns("one", "x_tmp", table, [("ts", "timestamp with time zone"), ("other_name", "bigint")]) == []
    for yielded in ([("ts", "timestamp with time zone")], [("n", "bigint"), ("ts", "timestamp with time zone")], [*table.columns[1:], ("m", "text")]):
        assert check.check_columns("one", "x_tmp", table, [one[:2] for one in yielded])


def test_search_paths_as_the_catalogs_show_them():
    assert split_names('pg_catalog, "My ""S""", pg_temp') == ["pg_catalog", 'My "S"', "pg_temp"]


def tables(labels, metrics):
    names = d.Names("x")
    history = [("srvid", "integer", True), *((*one, False) for one in labels), ("coalesce_range", "tstzrange", True), ("records", "r[]", True)]
    record = [("ts", "timestamp with time zone", False), *((*one, False) for one in metrics)]
    return {
        names.history: FoundTable(names.history, False, False, tuple(history), d.MARK),
        names.current: FoundTable(names.current, False, False, (), d.MARK),
        names.record: FoundTable(names.record, True, False, tuple(record), d.MARK),
    }


def planned(found, wanted, convertible=None, purge=False):
    plan = Plan()
    plan_tables(plan, None, "public", wanted, found, convertible or {}, purge)
    return [name for name in plan.names if "transient" not in name]


SAME = {("text", "text"): True, ("integer", "integer"): True, ("bigint", "bigint"): True}


def test_what_a_change_of_the_declaration_does_to_the_history():
    found = tables([("what", "text")], [("level", "integer"), ("n", "bigint")])
    assert planned({}, declaration()) == ["create the tables of x"]
    assert planned(found, declaration(), SAME) == []
    # Another order changes nothing, on neither side.
    assert planned(found, declaration(COUNTER, GAUGE, LABEL), SAME) == []
    assert d.source_function(declaration(COUNTER, GAUGE, LABEL), "s", {}) == d.source_function(declaration(), "s", {})
    with pytest.raises(Refused, match="no longer has n, whose history would be lost"):
        planned(found, declaration(LABEL, GAUGE), SAME)
    assert planned(found, declaration(LABEL, GAUGE), SAME, purge=True) == ["migrate the history of x: drop n"]
    with pytest.raises(Refused, match='column "n" of x has a history of type bigint, which cannot become inet'):
        planned(found, declaration(LABEL, GAUGE, {**GAUGE, "name": "n", "type": "inet"}), {**SAME, ("bigint", "inet"): False}, purge=True)


def test_changes_in_words():
    live = Layout({"what": "text"}, {"level": "integer"})
    assert describe_changes(live, Layout({"level": "bigint"}, {"what": "text", "m": "text"})) == [
        "add m text", "change level from integer to bigint", "make level a label", "make what a metric",
    ]  # fmt: skip
