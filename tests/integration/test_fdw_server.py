# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign servers on a real PostgreSQL: postgres_fdw, and a wrapper without a handler as Python wrappers have it where Multicorn is not installed."""

from __future__ import annotations

import json

import pytest
from lab import call_module, four_steps

SECRET = "it's a \\secret\\ = word"


@pytest.fixture(scope="module")
def server(lab):
    server = lab.postgres("foreign").init().start()
    server.sql("CREATE EXTENSION postgres_fdw")
    server.sql("CREATE FOREIGN DATA WRAPPER bare NO HANDLER")
    for role in ("reader", "writer", '"odd Role"'):
        server.sql("CREATE ROLE %s" % role)
    return server


@pytest.fixture
def options(server, request):
    """The options of a server of its own for each test."""
    name = "s_" + request.node.name[-40:]
    yield {**server.login, "name": name, "wrapper": "bare"}
    server.sql('DROP SERVER IF EXISTS "%s" CASCADE' % name)


def refused(result, *words):
    assert result["failed"] and result["changed"] is False, result
    for word in words:
        assert word in result["msg"], result["msg"]


def test_from_nothing_to_a_server_with_mappings(server, options):
    wanted = {
        **options, "wrapper": "postgres_fdw", "type": "warehouse", "version": "1.0", "owner": "writer", "usage": ["reader", "odd Role"],
        "options": {"host": "it's here", "port": 5433, "fetch_size": "1000", "updatable": False},
        "mappings": [{"role": "reader", "options": {"user": "r"}, "secrets": {"password": SECRET}}, {"role": "PUBLIC", "options": {"user": "p"}}],
    }  # fmt: skip
    result = four_steps("fdw_server", wanted)
    assert SECRET not in json.dumps(result) and json.dumps(SECRET)[1:-1] not in json.dumps(result)
    assert result["server"]["options"] == {"host": "it's here", "port": "5433", "fetch_size": "1000", "updatable": "false"}
    assert result["server"]["owner"] == "writer" and result["server"]["usage"] == ["odd Role", "reader"] and result["mappings"] == ["PUBLIC", "reader"]
    row = server.sql("SELECT umoptions FROM pg_user_mappings WHERE srvname = %s AND usename = 'reader'", [options["name"]])
    assert row == [(["user=r", "password=" + SECRET],)]


def test_options_change_one_by_one_and_what_uses_the_server_stays(server, options):
    name = options["name"]
    call_module("fdw_server", {**options, "options": {"one": "1", "two": "2"}})
    server.sql('CREATE FOREIGN TABLE kept (a int) SERVER "%s"' % name)
    server.sql("GRANT SELECT ON kept TO reader")
    before = server.value("SELECT oid FROM pg_foreign_server WHERE srvname = %s", [name])
    result = four_steps("fdw_server", {**options, "options": {"two": "22", "three": "x=y"}})
    assert result["plan"] == ["change options of server %s: DROP one, SET two, ADD three" % name]
    assert result["server"]["options"] == {"two": "22", "three": "x=y"}
    assert server.value("SELECT oid FROM pg_foreign_server WHERE srvname = %s", [name]) == before
    assert server.value("SELECT has_table_privilege('reader', 'kept', 'SELECT')") is True
    result = call_module("fdw_server", {**options, "options": {"four": "4", "three": None}, "options_exact": False})
    assert result["server"]["options"] == {"two": "22", "four": "4"}


def test_what_is_not_named_is_left_alone(server, options):
    call_module("fdw_server", options)
    assert server.value("SELECT has_server_privilege('reader', %s, 'USAGE')", [options["name"]]) is False
    call_module("fdw_server", {**options, "owner": "writer", "usage": ["reader"], "mappings": [{"role": "reader", "options": {"a": "b"}}]})
    assert call_module("fdw_server", options)["changed"] is False
    result = call_module("fdw_server", {**options, "usage": [], "mappings_exact": True})
    assert result["server"]["usage"] == [] and result["mappings"] == [] and result["server"]["owner"] == "writer"


def test_a_changed_secret_is_set_and_shown_nowhere(server, options):
    def wanted(password):
        return {**options, "mappings": [{"role": "reader", "options": {"user": "r"}, "secrets": {"password": password}}]}

    call_module("fdw_server", wanted("first word"))
    result = call_module("fdw_server", wanted("second word"), diff=True)
    assert result["plan"] == ["change the mapping of reader on server %s: SET password" % options["name"]]
    assert "password: (hidden, new)" in json.dumps(result["diff"]) and "second word" not in json.dumps(result) and "first word" not in json.dumps(result)


def test_dropping(server, options):
    name = options["name"]
    call_module("fdw_server", {**options, "mappings": [{"role": "reader"}]})
    server.sql('CREATE FOREIGN TABLE in_the_way (a int) SERVER "%s"' % name)
    gone = {**server.login, "name": name, "state": "absent"}
    refused(call_module("fdw_server", gone), "foreign table public.in_the_way", "cascade")
    result = four_steps("fdw_server", {**gone, "cascade": True})
    assert result["server"] is None and server.value("SELECT to_regclass('in_the_way')") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrapper": "missing_fdw"}, ["missing_fdw", "extension"]),
        ({"options": {"password": "x"}}, ["password", "everybody", "mappings"]),
        ({"owner": "nobody_here"}, ["nobody_here", "owner"]),
        ({"owner": "PUBLIC"}, ["owner is PUBLIC"]),
        ({"usage": ["public"]}, ["no role public", "PUBLIC for everybody"]),
        ({"options": {"nodes": ["a", "b"]}}, ['"nodes"', "is a list", "text"]),
        ({"options": {"nodes": {"a": "b"}}}, ['"nodes"', "is a mapping"]),
        ({"options": {"a=b": "c"}}, ['"a=b" is no name of an option']),
        ({"mappings": [{"role": "reader", "secrets": {"token": ["x"]}}]}, ['"token"', "is a list"]),
        ({"mappings": [{"role": "reader"}, {"role": "reader"}]}, ["reader", "mappings"]),
        ({"mappings": [{"role": "reader", "options": {"wrapper": "os.getcwd"}}]}, ["wrapper", "any class"]),
        ({"mappings": [{"role": "reader", "options": {"password": "x"}}]}, ["password", "secrets"]),
        ({"mappings": [{"role": "reader", "options": {"a": "x"}, "secrets": {"a": "y"}}]}, ["a among its options and its secrets"]),
    ],
)
def test_bad_options_change_nothing(server, options, changes, words):
    refused(call_module("fdw_server", {**options, **changes}), *words)
    assert server.sql("SELECT 1 FROM pg_foreign_server WHERE srvname = %s", [options["name"]]) == []


def test_what_cannot_be_changed_is_said(server, options):
    call_module("fdw_server", {**options, "type": "old"})
    refused(call_module("fdw_server", {**options, "wrapper": "postgres_fdw"}), "belongs to the foreign-data wrapper bare")
    refused(call_module("fdw_server", {**options, "type": "new"}), "type old", "cannot be changed")


def test_all_or_nothing(server, options):
    """postgres_fdw knows its options: one that is wrong takes the rest back."""
    result = call_module("fdw_server", {**options, "wrapper": "postgres_fdw", "mappings": [{"role": "reader", "options": {"usr": "xyz"}}]})
    assert result["failed"] and "usr" in result["msg"] and result["changed"] is False, result
    assert server.sql("SELECT 1 FROM pg_foreign_server WHERE srvname = %s", [options["name"]]) == []


def test_one_who_may_not_see_the_mappings_is_told_so(server, options):
    server.sql("CREATE ROLE small LOGIN PASSWORD 'not that big'")
    try:
        call_module("fdw_server", {**options, "mappings": [{"role": "reader", "options": {"user": "r"}}], "usage": ["small"]})
        wanted = {**options, "mappings": [{"role": "reader", "options": {"user": "other"}}], "login_user": "small", "login_password": "not that big"}
        refused(call_module("fdw_server", wanted), "cannot be seen by small", "superuser")
    finally:
        server.sql('DROP SERVER "%s" CASCADE' % options["name"])
        server.sql("DROP ROLE small")
