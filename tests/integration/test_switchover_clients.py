# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients of every kind see of a switchover: many of them, with long-winded transactions, sessions of their own, prepared statements, or no pooler."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading

import psycopg
import pytest
from lab import debian, wait_until
from switchover_site import Sites
from test_switchover_accidents import run_driver
from test_switchover_conditions import ARCHIVING, Switching, candidate_of, committed, done, refused, setting, switch, transaction, unchanged
from test_switchover_hazards import result_of, stopped

NUMBERS = itertools.count()
INSERT = "INSERT INTO public.load VALUES (%s, %s, %s)"


@pytest.fixture(scope="module")
def sites():
    with Sites() as sites:
        yield sites


@pytest.fixture
def site(sites):
    return sites.sound()


@pytest.fixture(scope="module")
def archiving_sites():
    with Sites(settings=ARCHIVING) as sites:
        yield sites


@pytest.fixture(scope="module")
def session_sites():
    with Sites(pool_mode="session") as sites:
        yield sites


def one_row(connection, row):
    connection.execute(INSERT, row)


def several_statements(connection, row):
    run, client, sequence = row
    with connection.transaction():
        connection.execute(INSERT, (run, client, sequence))
        connection.execute("SELECT pg_sleep(0.01)")
        connection.execute(INSERT, (run, client, -sequence))
        connection.execute("SELECT pg_sleep(0.01)")


class Client(threading.Thread):
    """Works on one connection as long as it lasts, remembers what it was told is committed, and connects again after an error."""

    def __init__(self, run, number, connect, work):
        super().__init__()
        self.run_name, self.number, self.connect, self.work = run, number, connect, work
        self.acknowledged, self.errors, self.connections = [], [], 0
        self.stop = threading.Event()

    def run(self):
        connection = None
        for sequence in itertools.count(1):
            if self.stop.wait(0.02):
                break
            try:
                if connection is None:
                    connection = self.connect()
                    self.connections += 1
                self.work(connection, (self.run_name, self.number, sequence))
                self.acknowledged.append(sequence)
            except psycopg.Error as error:
                self.errors.append("%s: %s" % (type(error).__name__, error))
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()


class Clients:
    """Some clients, as a context; each has committed something when it is entered, and again before it is left."""

    def __init__(self, site, places, work=one_row, dbname="app", **keywords):
        self.site = site
        self.run = "clients-%d" % next(NUMBERS)
        self.all = [Client(self.run, n, lambda place=place: place.connect(dbname, **keywords), work) for n, place in enumerate(places)]

    def go_on(self):
        """Until each has committed once more."""
        before = [len(client.acknowledged) for client in self.all]
        wait_until(lambda: all(len(client.acknowledged) > n for client, n in zip(self.all, before)), 60)

    def __enter__(self):
        for client in self.all:
            client.start()
        self.go_on()
        return self

    def __exit__(self, kind, *exc):
        try:
            if kind is None:
                self.go_on()
        finally:
            for client in self.all:
                client.stop.set()
            for client in self.all:
                client.join(60)

    @property
    def errors(self):
        return [client.errors for client in self.all]

    @property
    def lost(self):
        # In this order: the clients may be at work meanwhile.
        acknowledged = {(client.number, sequence) for client in self.all for sequence in client.acknowledged}
        return acknowledged - set(self.site.primary.sql("SELECT client, sequence FROM public.load WHERE run = %s", [self.run], dbname="app"))

    @property
    def halves(self):
        """Transactions of which only a part is there."""
        return self.site.primary.value(
            "SELECT count(*) FROM (SELECT FROM public.load WHERE run = %s GROUP BY client, abs(sequence) HAVING count(*) <> 2) AS h", [self.run], dbname="app"
        )


# -- through poolers that pool by transaction ------------------------------------------------------------------------


def test_a_hundred_clients_of_two_poolers(site):
    candidate = candidate_of(site)
    with site.load(clients=100, interval=0.2) as load:
        result = switch(site, candidate)
    done(site, result, candidate)
    assert load.report["ready"] and load.report["unfinished_clients"] == 0
    assert load.report["errors"] == 0 and load.lost == set(), load.report["error_texts"]


def test_transactions_of_several_statements(site):
    """The pause waits for the end of each; none is cut, none is there by half."""
    candidate = candidate_of(site)
    with Clients(site, site.poolers * 8, several_statements) as clients:
        done(site, switch(site, candidate), candidate)
    assert not any(clients.errors), clients.errors
    assert clients.lost == set() and clients.halves == 0


def server_connections(pooler):
    (pool,) = (row for row in pooler.show("POOLS") if row["database"] == "app")
    return sum(pool[kind] for kind in ("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login")), pool["cl_active"] + pool["cl_waiting"]


def test_no_pool_opens_connections_when_it_is_about_to_be_paused(site):
    """A login that meets a PAUSE makes PgBouncer refuse whoever comes right after the RESUME, so none may begin between the look for logins and the PAUSE."""
    candidate, pooler = candidate_of(site), site.poolers[0]
    before = pooler.show("CONFIG")
    with pooler.console() as console:
        console.execute("RECONNECT app")
    with pooler.connect("app") as connection:
        connection.execute("SELECT 1")
    wait_until(lambda: server_connections(pooler)[0] == 1, 20)
    process = run_driver(site, candidate.name, "stop", "console.start_pause.before", pause_timeout=20, timeout=60)
    wait_until(lambda: stopped(process), 60)
    errors, seen = [], []

    def work():
        try:
            with pooler.connect("app") as connection:
                connection.execute("SELECT pg_sleep(1)")
        except psycopg.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _number in range(6)]
    try:
        for thread in threads:
            thread.start()

        def all_are_there():
            seen.append(server_connections(pooler))
            return seen[-1][1] >= 4

        wait_until(all_are_there, 20)
        assert {servers for servers, _clients in seen} == {1}, seen
    finally:
        os.kill(process.pid, signal.SIGCONT)
        for thread in threads:
            thread.join()
    done(site, result_of(process), candidate)
    assert errors == [] and pooler.show("CONFIG") == before


def test_the_old_primary_does_not_wait_for_sessions_that_nobody_needs(site):
    """Those that a peak has left in a pool, and those of the switchover itself, have ended before; one stays in each pool."""
    candidate, old, pooler = candidate_of(site), site.primary, site.poolers[0]
    before, log = pooler.show("CONFIG"), pooler.log.read_text()
    with contextlib.ExitStack() as peak:
        for _number in range(12):
            peak.enter_context(peak.enter_context(pooler.connect("app")).transaction())
    assert server_connections(pooler)[0] == 12
    process = run_driver(site, candidate.name, "stop", "console.start_pause.before", pause_timeout=20, timeout=60)
    wait_until(lambda: stopped(process), 60)
    try:
        assert server_connections(pooler)[0] == 1
        # Only at its own pace does PgBouncer close them otherwise, 600 s after their last work.
        assert pooler.log.read_text()[len(log) :].count("server idle timeout") >= 11
        theirs = {int(row["remote_pid"]) for one in site.poolers for row in one.show("SERVERS")}
        assert {row[0] for row in old.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")} <= theirs
    finally:
        os.kill(process.pid, signal.SIGCONT)
    done(site, result_of(process), candidate)
    assert pooler.show("CONFIG") == before


def test_a_writer_beside_the_poolers(site):
    """It has its one error when the old primary stops; those of the poolers have none, and nobody loses what was acknowledged."""
    candidate, old = candidate_of(site), site.primary
    with Clients(site, site.poolers * 4) as clients:
        direct = Client(clients.run, 99, lambda: old.connect("app"), one_row)
        direct.start()
        wait_until(lambda: direct.acknowledged, 20)
        result = done(site, switch(site, candidate), candidate)
        # The old primary is a standby now, and refuses what it is told to write.
        wait_until(lambda: any("read-only transaction" in text for text in direct.errors), 30)
        direct.stop.set()
        direct.join(30)
        assert direct.connections >= 2
        clients.all.append(direct)
        assert clients.lost == set()
        clients.all.remove(direct)
    assert any("do not come through the poolers" in text and "without a name (1)" in text for text in result["warnings_found"])
    assert not any(clients.errors), clients.errors
    assert clients.lost == set()


def test_synchronous_commits_do_not_wait_for_the_old_primary(archiving_sites):
    """Its process ends only when its archiver has; the commits that need a standby get the other one meanwhile."""
    site = archiving_sites.sound()
    candidate, old = candidate_of(site), site.primary
    go = site.lab.path / "go"
    endless = "until test -e %s; do sleep 0.1; done" % go
    synchronous = setting(site.nodes, synchronous_standby_names="ANY 1 (db1, db2, db3)")
    archiving = setting([old], archive_command=endless)
    with synchronous, archiving, Clients(site, site.poolers * 3) as clients, Switching(site, candidate=candidate, timeout=120) as switching:
        try:
            pid = old.pid
            wait_until(lambda: not candidate.in_recovery, 30)
            clients.go_on()
            assert old.pid == pid
        finally:
            go.touch()
        switching.join()
    done(site, switching.result, candidate)
    assert not any(clients.errors), clients.errors
    assert clients.lost == set()
    go.unlink()


# -- through poolers that pool by session ------------------------------------------------------------------------------


def test_sessions_are_refused_by_default(session_sites):
    site = session_sites.sound()
    with Clients(site, site.poolers * 2) as clients, unchanged(site):
        result = refused(switch(site), "option session_pools", "pooler1 pools by session for app, app_ro", "pooler2 pools by session")
        assert "nothing was changed" in result["msg"]
    assert not any(clients.errors)


def test_sessions_that_are_ended(session_sites):
    """One error for each, not more: who connects again waits until there is a primary. Nothing acknowledged is lost."""
    site = session_sites.sound()
    candidate = candidate_of(site)
    with Clients(site, site.poolers * 5) as clients:
        check = switch(site, candidate, check=True, session_pools="terminate")
        result = switch(site, candidate, session_pools="terminate")
    done(site, result, candidate)
    assert check["plan"] == result["plan"] == result["performed"]
    assert "end the sessions of app, app_ro on pooler1 and app, app_ro on pooler2, whose clients pool by session" in result["performed"]
    assert [len(errors) for errors in clients.errors] == [1] * 10, clients.errors
    assert [client.connections for client in clients.all] == [2] * 10
    assert clients.lost == set()
    assert result["terminated_sessions"] == {"pooler1": {"app": 5, "app_ro": 0}, "pooler2": {"app": 5, "app_ro": 0}}
    assert site.paused() == []


def test_sessions_that_come_back_wait_until_there_is_a_primary(session_sites):
    """However long the promotion takes: between the two primaries nobody is sent to a server that refuses to write."""
    site = session_sites.sound()
    candidate = candidate_of(site)
    with Clients(site, site.poolers * 3) as clients:
        process = run_driver(site, candidate.name, "stop", "step.promote.before", session_pools="terminate", timeout=60)
        wait_until(lambda: stopped(process), 30)
        assert {("pooler1", "app"), ("pooler2", "app")} <= set(site.paused())
        wait_until(lambda: all(clients.errors), 20)
        os.kill(process.pid, signal.SIGCONT)
        result = result_of(process)
    done(site, result, candidate)
    assert [len(errors) for errors in clients.errors] == [1] * 6, clients.errors
    assert clients.lost == set()


def test_sessions_are_not_ended_for_a_switchover_that_is_rolled_back(site):
    """What pools by transaction is paused first; where that takes too long, the sessions of the others are still there."""
    pooler = site.poolers[0]
    before = pooler.databases_file.read_text()
    pooler._write(pooler.databases_file, before + "app_session = host=127.0.0.1 port=%d dbname=app pool_mode=session\n" % site.primary.port)
    with pooler.console() as console:
        console.execute("RELOAD")
    with Clients(site, [pooler] * 3, dbname="app_session") as sessions, Clients(site, [pooler] * 3) as clients, unchanged(site):
        candidate = candidate_of(site)
        with site.poolers[1].connect("app") as connection, transaction(connection) as held:
            result = switch(site, candidate, session_pools="terminate", pause_timeout=1)
            assert result["failed"] and result["error"] == "RolledBack" and "terminated_sessions" not in result, result
        assert committed(site, held) == 1
    assert not any(sessions.errors) and not any(clients.errors)
    with Clients(site, [pooler] * 3, dbname="app_session") as sessions, Clients(site, site.poolers * 3) as clients:
        result = done(site, switch(site, candidate, session_pools="terminate"), candidate)
    assert result["terminated_sessions"] == {"pooler1": {"app_session": 3}}
    assert [len(errors) for errors in sessions.errors] == [1, 1, 1], sessions.errors
    assert not any(clients.errors), clients.errors
    assert clients.lost == set() and sessions.lost == set()
    pooler._write(pooler.databases_file, "".join(line for line in pooler.databases_file.read_text().splitlines(True) if "app_session" not in line))
    with pooler.console() as console:
        console.execute("RELOAD")


# -- prepared statements -----------------------------------------------------------------------------------------------


def prepare(connection, query, parameters=None):
    """By the protocol, under a name, as drivers do after a while."""
    connection.prepare_threshold = 0
    return connection.execute(query, parameters, prepare=True)


def test_prepared_statements_of_a_pooler_that_carries_them():
    """From 1.21 on PgBouncer prepares a statement again wherever it is needed, also at a new primary."""
    with Sites(nodes=2, poolers=1, pooler_system=debian(13), pooler_settings={"max_prepared_statements": "100"}) as sites:
        site = sites.sound()
        candidate = candidate_of(site)
        with Clients(site, site.poolers * 8, lambda connection, row: prepare(connection, INSERT, row)) as clients:
            on_server = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'INSERT INTO public.load%'"
            with site.poolers[0].connect("app") as connection:
                # Any of the server connections may answer, also one that was just opened.
                wait_until(lambda: connection.execute(on_server).fetchone()[0] > 0, 20)
            done(site, switch(site, candidate), candidate)
        assert not any(clients.errors), clients.errors
        assert clients.lost == set()


def test_prepared_statements_of_a_pooler_that_knows_none(site):
    """Older ones break them: another server connection does not have the statement. So it is without a switchover, and so it is after one."""
    with site.poolers[0].connect("app") as client, site.poolers[0].connect("app") as other:
        prepare(client, "SELECT 1 AS lonely")
        with other.transaction():
            # The server connection that has the statement is in use now.
            other.execute("SELECT 2")
            with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                for _attempt in range(2):
                    prepare(client, "SELECT 1 AS lonely")
    candidate = candidate_of(site)
    # On the other pooler: the first one's server connection still has a statement of that name, and would refuse a second.
    with site.poolers[1].connect("app") as client:
        prepare(client, "SELECT 1 AS prepared_before")
        assert prepare(client, "SELECT 1 AS prepared_before").fetchone() == (1,)
        done(site, switch(site, candidate), candidate)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            prepare(client, "SELECT 1 AS prepared_before")
        # Whoever prepares nothing has not noticed.
        assert client.execute("SELECT 1 AS never_prepared", prepare=False).fetchone() == (1,)
