# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_server with a fleet: one statement for each new server, and a number of them that does not grow where nothing changes."""

from __future__ import annotations

import pytest
from lab import call_module

FLEET = 200
# What looking at a repository takes, twice in a run that changes something; setting up the session is in it.
LOOKING = 12


@pytest.fixture(scope="module")
def repository(lab, generation):
    settings = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "top"}
    server = lab.postgres("repository-" + generation.name, settings=settings, system=generation.system).init().start()
    server.sql("CREATE DATABASE powa")
    server.sql("CREATE EXTENSION powa CASCADE", dbname="powa")
    return server


def entries(count, **more):
    return [
        {"alias": "prod%d" % number, "host": "10.0.%d.%d" % divmod(number, 256), "frequency": 300, "retention": "2 days",
         "extensions": ["pg_qualstats", "pg_stat_kcache", "pg_wait_sampling"], **more}
        for number in range(1, count + 1)
    ]  # fmt: skip


def run(repository, servers, **more):
    """The result, and the number of statements that the server was sent for it."""
    repository.sql("SELECT pg_stat_statements_reset()", dbname="powa")
    result = call_module("powa_server", {**repository.login, "servers": servers, **more})
    assert not result["failed"], result
    return result, repository.value("SELECT sum(calls)::integer - 1 FROM pg_stat_statements WHERE toplevel", dbname="powa")


def test_a_fleet_in_one_task(repository, generation):
    result, statements = run(repository, entries(FLEET))
    assert len(result["performed"]) == FLEET and [one["alias"] for one in result["servers"]] == [one["alias"] for one in entries(FLEET)]
    assert repository.value("SELECT count(DISTINCT hostname) FROM powa_servers WHERE id > 0 AND retention = '2 days'", dbname="powa") == FLEET
    functions = {"powa4": "SELECT count(DISTINCT srvid) FROM powa_functions WHERE enabled AND module = 'pg_wait_sampling' AND srvid > 0",
                 "powa5": "SELECT count(DISTINCT srvid) FROM powa_extension_config WHERE enabled AND extname = 'pg_wait_sampling' AND srvid > 0"}  # fmt: skip
    assert repository.value(functions[generation.name], dbname="powa") == FLEET
    assert FLEET <= statements <= FLEET + 2 * LOOKING, statements
    # The same again: nothing to do, and no more to ask than for one server.
    again, many = run(repository, entries(FLEET))
    one, few = run(repository, entries(1))
    assert again["changed"] is one["changed"] is False and many == few <= LOOKING
    # A column of all of them.
    changed, statements = run(repository, entries(FLEET, retention="3 days"))
    assert len(changed["performed"]) == FLEET and statements <= FLEET + 2 * LOOKING, statements
