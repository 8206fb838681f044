# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option check_servers of powa_server: what would keep the collector from a server is said before the server is registered."""

from __future__ import annotations

import json
import socket

import pytest
from lab import PRELOAD, call_module, four_steps, free_port

SECRET = "monitor-secret-1"
EXTENSIONS = ["pg_qualstats", "pg_stat_kcache", "pg_wait_sampling"]


@pytest.fixture(scope="module")
def site(lab, generation):
    """A repository, a server that can be collected from and one without libraries."""
    repository = lab.postgres("repository-" + generation.name, system=generation.system).init().start()
    good = lab.postgres("good-" + generation.name, settings={"shared_preload_libraries": PRELOAD}, system=generation.system).init().start()
    bare = lab.postgres("bare-" + generation.name, system=generation.system).init().start()
    for server in (good, bare):
        server.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % SECRET)
        server.sql("CREATE ROLE powerless LOGIN PASSWORD '%s'" % SECRET)
        for name in ("powa", "without", "older"):
            server.sql("CREATE DATABASE %s" % name)
        server.sql("CREATE EXTENSION powa CASCADE", dbname="powa")
    for name in EXTENSIONS:
        good.sql("CREATE EXTENSION %s" % name, dbname="powa")
    grants = call_module("powa_archivist", {**good.login, "side": "remote", "extensions": EXTENSIONS, "grant_to": [{"role": "monitor"}]})
    assert not grants["failed"], grants
    good.sql("CREATE EXTENSION powa CASCADE", dbname="older")
    good.sql("UPDATE pg_extension SET extversion = '3.2.0' WHERE extname = 'powa'", dbname="older")
    passfile = repository.base / "collector-passfile"
    repository.write(passfile, "127.0.0.1:*:*:*:%s\n" % SECRET)
    return repository, good, bare, passfile


@pytest.fixture
def repository(site):
    """The repository without servers."""
    server = site[0]
    server.sql("DROP DATABASE IF EXISTS powa WITH (FORCE)")
    server.sql("CREATE DATABASE powa")
    server.sql("CREATE EXTENSION powa CASCADE", dbname="powa")
    return server


def entry(server, **more):
    return {"alias": "prod1", "host": "127.0.0.1", "port": server.port, "user": "monitor", "extensions": EXTENSIONS, **more}


def options(site, *entries, **more):
    return {**site[0].login, "servers": list(entries), "check_servers": True, "server_connect_params": {"passfile": str(site[3])}, **more}


def registered(repository):
    return repository.value("SELECT count(*) FROM powa_servers WHERE id > 0", dbname="powa")


def test_a_good_server_is_asked_once(site, repository):
    good = site[1]
    before = good.value("SELECT sessions FROM pg_stat_database WHERE datname = 'powa'")
    result = four_steps("powa_server", options(site, entry(good)))
    assert result["servers_checked"] == ["prod1"] and registered(repository) == 1
    # Check mode and the real run ask; nothing changes afterwards, so nobody is asked, also if it is down by now.
    again = call_module("powa_server", options(site, entry(good), server_connect_params={"passfile": "/nonexistent"}))
    assert again["changed"] is False and again["servers_checked"] == [] and not again["failed"]
    assert good.value("SELECT sessions FROM pg_stat_database WHERE datname = 'powa'") - before <= 2


def test_what_changes_is_asked_with_what_is_registered(site, repository):
    good = site[1]
    call_module("powa_server", options(site, entry(good, extensions=[], password=SECRET), check_servers=False))
    # Extensions added: asked with the password that is in the repository, which no passfile has.
    more = call_module("powa_server", options(site, entry(good), server_connect_params={}))
    assert not more["failed"] and more["servers_checked"] == ["prod1"] and more["changed"] is True, more
    wrong = call_module("powa_server", options(site, entry(good, password="stale-secret-1"), server_connect_params={}))
    assert wrong["failed"] and "password authentication failed" in wrong["msg"]
    silent = call_module("powa_server", options(site, entry(good, retention="3 days"), server_connect_params={}))
    assert silent["servers_checked"] == [] and silent["changed"] is True
    gone = call_module("powa_server", options(site, entry(good, clear_password=True), server_connect_params={}))
    assert gone["failed"] and "no password supplied" in gone["msg"]
    inactive = call_module("powa_server", options(site, {"alias": "prod1", "state": "inactive"}, {"alias": "new", "host": "127.0.0.1", "state": "inactive"}))
    assert inactive["servers_checked"] == [] and not inactive["failed"]
    secrets = json.dumps([more, wrong, silent, gone])
    assert SECRET not in secrets and "stale-secret-1" not in secrets


FAULTS = {
    "no password": ({}, "no password supplied"),
    "wrong password": ({"password": "wrong-secret-1"}, "password authentication failed"),
    "no such role": ({"user": "nobody", "password": "wrong-secret-1"}, "password authentication failed"),
    "no such database": ({"dbname": "nowhere"}, 'has no database "nowhere"'),
    "extension on the wrong side": ({"dbname": "without"}, 'its database "without" has no extension powa'),
    "another version": ({"dbname": "older"}, "it has powa 3.2.0, and the repository has"),
    "an extension is missing": ({"extensions": ["pg_track_settings_not"]}, "does not know the extension"),
    "no rights": ({"user": "powerless"}, 'its role "powerless" lacks: member of pg_read_all_stats'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_with_a_fault_is_not_registered(site, repository, fault):
    more, words = FAULTS[fault]
    params = {} if fault == "no password" else {"passfile": str(site[3])}
    result = call_module("powa_server", options(site, entry(site[1], **more), server_connect_params=params))
    assert result["failed"] and result["error"] == "Refused" and words in result["msg"], result
    assert result["performed"] == [] and registered(repository) == 0
    assert SECRET not in json.dumps(result) and "wrong-secret-1" not in json.dumps(result)
    unasked = call_module("powa_server", options(site, entry(site[1], **more), check_servers=False), check=True)
    assert unasked["failed"] is (fault == "an extension is missing")


def test_libraries_and_extensions_that_are_missing(site, repository):
    result = call_module("powa_server", options(site, entry(site[2])))
    assert 'its database "powa" has no extension pg_qualstats, pg_stat_kcache, pg_wait_sampling' in result["msg"]
    assert "its shared_preload_libraries has no pg_stat_statements, pg_stat_kcache, pg_qualstats, pg_wait_sampling" in result["msg"]
    assert 'its role "monitor" lacks: member of pg_read_all_stats' in result["msg"] and result["failed"] and registered(repository) == 0


def test_all_faults_are_said_at_once_and_a_dead_server_holds_nobody(site, repository):
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        # Accepts connections and never says a word.
        hung.listen(100)
        many = [entry(site[1], alias="hung%d" % number, port=hung.getsockname()[1], host="127.0.0.%d" % number) for number in range(1, 41)]
        entries = [entry(site[1]), entry(site[1], alias="prod2", host="localhost", dbname="without"), entry(site[1], alias="dead", port=free_port()), *many]
        result = call_module("powa_server", options(site, *entries, check_timeout=2, server_connect_params={"password": SECRET}))
    assert result["failed"] and "42 of 43 servers that were asked cannot be collected from" in result["msg"] and registered(repository) == 0
    assert "prod1" not in result["faults"] and 'has no extension powa' in result["faults"]["prod2"][0]
    assert "does not answer" in result["faults"]["dead"][0] and len(result["faults"]) == 42
    assert SECRET not in json.dumps(result)


def test_what_a_collector_connects_with_is_no_parameter_for_all(site, repository):
    result = call_module("powa_server", options(site, entry(site[1]), server_connect_params={"host": "elsewhere", "passfile": "x"}))
    assert result["failed"] and result["error"] == "InvalidInput" and "server_connect_params has host" in result["msg"] and registered(repository) == 0
