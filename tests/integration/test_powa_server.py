# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_server on a real repository: what is the same with every PoWA."""

from __future__ import annotations

import json

import pytest
from lab import GENERATIONS, call_module, four_steps

PASSWORD = "remote-secret-%d"


@pytest.fixture(scope="module")
def server(lab):
    return lab.postgres("repository", system=GENERATIONS[0].system).init().start()


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


def test_changes_only_what_is_named(repository):
    call_module("powa_server", options(repository, prod(1, password=PASSWORD % 1, user="monitor", extensions=["pg_qualstats"])))
    result = four_steps("powa_server", options(repository, {"alias": "prod1", "retention": "3 days", "powa_coalesce": 7, "frequency": 30}))
    assert result["diff"] == [
        {
            "before_header": "server prod1 (before)", "after_header": "server prod1 (after)",
            "before": {"powa_coalesce": 100, "retention": "1 day", "frequency": 60}, "after": {"powa_coalesce": 7, "retention": "3 days", "frequency": 30},
        }
    ]  # fmt: skip
    assert rows(repository, "username, password, powa_coalesce, retention::text, frequency") == [("monitor", PASSWORD % 1, 7, "3 days", 30)]
    assert "pg_qualstats" in result["servers"][0]["extensions"]
    assert result["collector_reasons"] == ['frequency of server "prod1" changes'] and result["collector_reload_required"] is True


def test_a_password_is_set_anew_and_removed_without_being_shown(repository):
    call_module("powa_server", options(repository, prod(1, password=PASSWORD % 1)))
    changed = four_steps("powa_server", options(repository, prod(1, password=PASSWORD % 2)))
    assert rows(repository, "password") == [(PASSWORD % 2,)] and "remote-secret" not in json.dumps(changed)
    assert changed["diff"][0]["before"] == {"password": "(set)"} and changed["diff"][0]["after"] == {"password": "(set anew)"}
    removed = four_steps("powa_server", options(repository, prod(1, clear_password=True)))
    assert rows(repository, "password") == [(None,)] and removed["servers"][0]["has_password"] is False


def test_found_by_address_when_the_alias_is_new_and_moved_when_it_is_known(repository):
    repository.sql("SELECT powa_register_server('10.0.0.1')", dbname="powa")
    named = four_steps("powa_server", options(repository, {"alias": "prod1", "host": "10.0.0.1"}))
    assert rows(repository) == [("prod1", "10.0.0.1", 5432, 300)] and named["collector_reasons"] == []
    moved = four_steps("powa_server", options(repository, {"alias": "prod1", "host": "10.0.0.9", "port": 6000}))
    assert rows(repository) == [("prod1", "10.0.0.9", 6000, 300)]
    assert moved["collector_restart_required"] is True and moved["collector_reload_required"] is False


def test_inactive_and_active_again(repository):
    call_module("powa_server", options(repository, prod(1)))
    stopped = four_steps("powa_server", options(repository, {"alias": "prod1", "state": "inactive"}))
    assert rows(repository, "frequency") == [(-1,)] and stopped["collector_restart_required"] is True
    assert four_steps("powa_server", options(repository, {"alias": "prod1", "frequency": -1}), expect_change=False)["servers"][0]["state"] == "inactive"
    again = four_steps("powa_server", options(repository, prod(1)))
    assert rows(repository, "frequency") == [(60,)] and again["collector_reload_required"] is True and again["collector_restart_required"] is False


def test_an_address_can_pass_to_another_alias_in_one_call(repository):
    call_module("powa_server", options(repository, prod(1)))
    entries = [{"alias": "successor", "host": "10.0.0.7"}, {"alias": "prod1", "state": "absent", "purge": True}]
    result = four_steps("powa_server", options(repository, *entries))
    assert result["plan"] == ['delete server "prod1" and its data', 'register server "successor" (10.0.0.7:5432)']


def test_all_or_nothing(repository):
    # A constraint of our own makes the second registration fail inside PostgreSQL, after the first was done.
    repository.sql("ALTER TABLE powa_servers ADD CONSTRAINT test CHECK (username <> 'forbidden')", dbname="powa")
    entries = [prod(1, password=PASSWORD % 1), prod(2, password=PASSWORD % 2, user="forbidden")]
    result = call_module("powa_server", options(repository, *entries))
    assert result["failed"] and result["error"] == "QueryFailed" and result["phase"] == "execute" and result["performed"] == [] and result["changed"] is False
    assert rows(repository) == [] and "remote-secret" not in json.dumps(result)


def test_an_empty_list_reads_all(repository):
    call_module("powa_server", options(repository, prod(1), prod(2)))
    result = call_module("powa_server", options(repository))
    assert result["changed"] is False and [server["alias"] for server in result["servers"]] == ["prod1", "prod2"]


@pytest.mark.parametrize(
    "entries, error, words",
    [
        ([prod(1, frequency=4)], "InvalidInput", "frequency is 4"),
        ([prod(1, retention="soon")], "InvalidInput", 'invalid input syntax for type interval: "soon"'),
        ([prod(1, retention="-1 day")], "InvalidInput", 'retention is "-1 day"'),
        ([prod(1, extensions=["pg_nonsense"])], "Refused", "PoWA does not know the extension pg_nonsense"),
        ([prod(1), prod(2, host="10.0.0.1")], "InvalidInput", "same host and port twice: 10.0.0.1:5432"),
        ([{"alias": "prod9"}], "InvalidInput", "names no host"),
    ],
)
def test_bad_input_changes_nothing_and_tells_no_password(repository, entries, error, words):
    entries = [{"password": PASSWORD % 3, **entry} for entry in entries]
    result = call_module("powa_server", options(repository, *entries))
    assert result["failed"] and result["error"] == error and words in result["msg"], result
    assert rows(repository) == [] and "remote-secret" not in json.dumps(result)


def test_two_servers_for_one_entry(repository):
    call_module("powa_server", options(repository, prod(1), prod(2)))
    result = call_module("powa_server", options(repository, {"alias": "prod1", "host": "10.0.0.2"}))
    assert result["failed"] and 'is registered as "prod2"' in result["msg"] and rows(repository, "hostname") == [("10.0.0.1",), ("10.0.0.2",)]
    wrong = call_module("powa_server", options(repository, {"alias": "prod1", "host": "10.0.0.2", "state": "absent", "purge": True}))
    assert wrong["failed"] and "Correct host and port" in wrong["msg"] and len(rows(repository)) == 2


def test_no_repository_and_no_entrance(repository):
    missing = call_module("powa_server", options(repository, prod(1), login_db="postgres"))
    assert missing["failed"] and missing["error"] == "Refused" and "has no extension powa" in missing["msg"]
    nowhere = call_module("powa_server", options(repository, prod(1), login_db="not_there"))
    assert nowhere["failed"] and nowhere["error"] == "DatabaseMissing"
    outside = call_module("powa_server", options(repository, prod(1), login_password="wrong-but-secret"))
    assert outside["failed"] and outside["error"] == "AuthenticationFailed" and "wrong-but-secret" not in json.dumps(outside)
