# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret that the filter makes is one that a server takes as it is, clients log in with and PgBouncer logs in with, too."""

from __future__ import annotations

import psycopg
import pytest
from ansible_collections.pgfleet.ops.plugins.filter.scram_secret import scram_secret
from lab import SUPERUSER_PASSWORD
from psycopg import sql


@pytest.fixture(scope="module")
def primary(lab):
    return lab.postgres("primary").init().start()


@pytest.fixture(scope="module")
def pooler(lab, primary):
    return lab.pgbouncer("pooler", {"app": "host=127.0.0.1 port=%d dbname=postgres" % primary.port}).start()


def who_is(password, port, dbname):
    """Who one is that logs in as app."""
    login = {"host": "127.0.0.1", "user": "app", "password": password, "connect_timeout": 5, "prepare_threshold": None}
    with psycopg.connect(port=port, dbname=dbname, **login) as client:
        return client.execute("SELECT session_user").fetchone()[0]


@pytest.mark.parametrize("iterations", [4096, 1000])
@pytest.mark.parametrize(
    "password",
    ["plain ASCII, 'quoted'", "p\u00e4ss\u00a0w\u00f6rd", "\u2168\u00ad\u200b.", "\u06271 is forbidden", "\U0001f512 came after the tables"],
    ids=["ascii", "accents", "mapped", "forbidden", "unassigned"],
)
def test_a_client_and_a_pooler_log_in(primary, pooler, password, iterations):
    secret = scram_secret(password, "lab app", iterations)
    with primary.connect() as server, pooler.console() as console:
        console.execute("KILL app")
        console.execute("RESUME app")
        server.execute("DROP ROLE IF EXISTS app")
        server.execute(sql.SQL("CREATE ROLE app LOGIN PASSWORD {}").format(sql.Literal(secret)))
        assert server.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'").fetchone() == (secret,)
        pooler.write_users(SUPERUSER_PASSWORD, app=secret)
        console.execute("RELOAD")
    for port, dbname in ((primary.port, "postgres"), (pooler.port, "app")):
        assert who_is(password, port, dbname) == "app"
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            who_is(password + ".", port, dbname)
