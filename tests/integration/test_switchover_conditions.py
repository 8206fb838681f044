# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a switchover refuses unless an option says otherwise: each is refused, waited for, ended or gone over, on real servers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import threading

import psycopg
import pytest
from lab import call_module, wait_until
from switchover_site import Sites
from test_switchover_accidents import run_driver
from test_switchover_hazards import result_of, stopped

NUMBERS = itertools.count()
ARCHIVING = {"wal_level": "logical", "archive_mode": "on", "archive_command": "true"}


@pytest.fixture(scope="module")
def sites():
    with Sites(settings=ARCHIVING) as sites:
        yield sites


@pytest.fixture
def site(sites):
    return sites.sound()


def candidate_of(site):
    return next(node for node in site.nodes if node.in_recovery)


def switch(site, candidate=None, check=False, **changes):
    return call_module("pg_switchover", site.options((candidate or candidate_of(site)).name, **changes), check=check)


class Switching(threading.Thread):
    """A switchover beside the test; use as a context, then read ``result``."""

    def __init__(self, site, **changes):
        super().__init__()
        self.result = None
        self._do = lambda: switch(site, **changes)

    def run(self):
        self.result = self._do()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.join()


@contextlib.contextmanager
def unchanged(site):
    site.primary.wait_for_standbys(2)
    before, primary = site.fingerprint(), site.primary.name
    yield
    site.primary.wait_for_standbys(2)
    assert site.fingerprint() == before and site.primary.name == primary


def refused(result, option, *words):
    assert result["failed"] and result["error"] == "Refused" and not result["changed"] and result["performed"] == [], result
    findings = " ".join(result["findings"])
    for word in (option, *words):
        assert word in findings, (word, findings)
    return result


def done(site, result, candidate):
    assert not result["failed"], result["msg"]
    assert site.primary is candidate
    return result


def until_asked_again(node, text):
    """Until a switchover asks such a question again and again, which it does on one session."""
    seen = set()

    def is_asked_again():
        seen.update(node.sql("SELECT pid, query_start FROM pg_stat_activity WHERE application_name = 'pgfleet.ops' AND strpos(query, %s) > 0", [text]))
        return len(seen) > len({pid for pid, _moment in seen})

    wait_until(is_asked_again, 30)


@contextlib.contextmanager
def setting(nodes, **values):
    """By ALTER SYSTEM and reload, and back."""
    nodes = list(nodes)
    for node in nodes:
        for name, value in values.items():
            node.sql("ALTER SYSTEM SET %s = '%s'" % (name, value.replace("'", "''")))
            node.sql("SELECT pg_reload_conf()")
            wait_until(lambda node=node, name=name, value=value: node.value("SELECT setting FROM pg_settings WHERE name = %s", [name]) == value, 10)
    try:
        yield
    finally:
        for node in nodes:
            for name in values:
                node.sql("ALTER SYSTEM RESET %s" % name)
            node.sql("SELECT pg_reload_conf()")


@dataclasses.dataclass
class Held:
    """A transaction that a test holds open."""

    run: str
    pid: int


@contextlib.contextmanager
def transaction(connection, seconds=1.0):
    """One that is open for longer than that, and has written; committed at the end unless the server has ended it."""
    held = Held("held-%d" % next(NUMBERS), 0)
    connection.execute("BEGIN")
    connection.execute("INSERT INTO public.load VALUES (%s, 1, 1)", [held.run])
    wait_until(lambda: connection.execute("SELECT clock_timestamp() - now() > make_interval(secs => %s)", [seconds]).fetchone()[0], 20)
    held.pid = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
    yield held
    with contextlib.suppress(psycopg.Error):
        connection.execute("COMMIT")


def committed(site, held):
    return site.primary.value("SELECT count(*) FROM public.load WHERE run = %s", [held.run], dbname="app")


# -- long transactions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_the_pooler", [True, False])
def test_a_long_transaction_is_refused(site, through_the_pooler):
    place = site.poolers[0] if through_the_pooler else site.primary
    with unchanged(site), place.connect("app", application_name="nightly") as connection, transaction(connection) as held:
        for check in (True, False):
            result = switch(site, check=check, transaction_limit=0.5)
            refused(result, "option long_transactions", "pid %d (user postgres, application nightly) open since 20" % held.pid, "open longer than 0.5 s")


def test_a_long_transaction_is_waited_for(site):
    candidate, old = candidate_of(site), site.primary
    options = {"candidate": candidate, "transaction_limit": 0.5, "long_transactions": "wait"}
    with site.poolers[0].connect("app") as connection, site.load(clients=10) as load, transaction(connection) as held:
        check = switch(site, check=True, **options)
        assert check["changed"], check
        assert check["plan"][0] == "wait at most 60 s until on %s no transaction is open longer than 0.5 s (now pid %d)" % (old.name, held.pid)
        with Switching(site, **options) as switching:
            # It looks again and again, and begins nothing.
            until_asked_again(old, "xact_start")
            assert not old.in_recovery and not site.paused()
            connection.execute("COMMIT")
    result = done(site, switching.result, candidate)
    assert result["plan"] == check["plan"] == result["performed"]
    assert committed(site, held) == 1
    assert load.report["errors"] == 0 and load.lost == set(), load.report["error_texts"]


def test_a_wait_that_is_in_vain(site):
    with unchanged(site), site.poolers[0].connect("app") as connection, transaction(connection) as held:
        result = switch(site, transaction_limit=0.5, long_transactions="wait", wait_timeout=1)
        refused(result, "pid %d" % held.pid)
        assert "after 1 s, the option wait_timeout" in result["msg"] and "nothing was changed" in result["msg"]
    assert committed(site, held) == 1


def test_a_transaction_that_grows_old_while_everything_is_prepared(site):
    """As beside a checkpoint of minutes. It is looked for again before the first pause, and what was prepared is taken back."""
    candidate = candidate_of(site)
    with unchanged(site):
        process = run_driver(site, candidate.name, "stop", "step.prepare.before", transaction_limit=1)
        wait_until(lambda: stopped(process), 30)
        with site.poolers[0].connect("app") as connection, transaction(connection, 1.1) as held:
            os.kill(process.pid, signal.SIGCONT)
            result = result_of(process)
        assert result["failed"] and result["error"] == "Refused" and "pid %d" % held.pid in result["msg"], result
    assert committed(site, held) == 1


def test_a_long_transaction_is_ended(site):
    """That one, and no other: not a short one, not a session without any, and no walsender."""
    candidate = candidate_of(site)
    limits = {"candidate": candidate, "transaction_limit": 3, "long_transactions": "terminate"}
    stuck, short = site.poolers[0].connect("app", application_name="stuck"), site.poolers[1].connect("app")
    with stuck, short, site.load(clients=10) as load, transaction(stuck, 3.2) as held:
        check = switch(site, check=True, **limits)
        with Switching(site, **limits) as switching:
            while switching.is_alive():
                with short.transaction():
                    short.execute("SELECT pg_sleep(0.05)")
        with pytest.raises(psycopg.Error):
            stuck.execute("SELECT 1")
    result = done(site, switching.result, candidate)
    assert result["plan"] == check["plan"]
    assert [(row["pid"], row["application_name"], row["user"]) for row in result["terminated"]] == [(held.pid, "stuck", "postgres")]
    assert any("end the sessions" in step and "pid %d, application stuck" % held.pid in step for step in result["performed"])
    assert committed(site, held) == 0
    assert load.report["errors"] == 0 and load.lost == set(), load.report["error_texts"]


def test_a_long_transaction_that_is_ignored(site):
    """In a pooler it outlasts the pause: everything is rolled back, and it commits."""
    with unchanged(site), site.load(clients=10) as load, site.poolers[0].connect("app") as connection, transaction(connection) as held:
        result = switch(site, transaction_limit=0.5, long_transactions="ignore", pause_timeout=1)
        assert result["failed"] and result["error"] == "RolledBack" and "PAUSE did not end within 1 s" in result["msg"], result
        connection.execute("COMMIT")
    assert committed(site, held) == 1
    assert load.report["errors"] == 0 and load.lost == set(), load.report["error_texts"]


def test_a_long_transaction_beside_the_poolers_that_is_ignored(site):
    """Nobody waits for it; the stop ends it, nothing of it is left."""
    candidate = candidate_of(site)
    with site.primary.connect("app", application_name="by the way") as connection, transaction(connection) as held:
        result = done(site, switch(site, candidate, transaction_limit=0.5, long_transactions="ignore"), candidate)
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1")
    assert any("pid %d" % held.pid in text for text in result["warnings_found"])
    assert committed(site, held) == 0


def test_sessions_that_no_pooler_holds_are_named(site):
    candidate = candidate_of(site)
    with site.primary.connect(application_name="exporter"), site.primary.connect(application_name="exporter"), site.primary.connect() as nameless:
        with site.load(clients=10):
            result = switch(site, candidate, check=True)
        assert not result["failed"], result["msg"]
        (warning,) = [text for text in result["warnings_found"] if "do not come through the poolers" in text]
        # Those of the load do.
        assert warning.endswith("by application: without a name (1), exporter (2)"), warning
        assert nameless.execute("SELECT 1").fetchone()
    assert not [text for text in switch(site, candidate, check=True)["warnings_found"] if "poolers" in text]


# -- synchronous commit ----------------------------------------------------------------------------------------------


def test_commits_that_would_wait_for_ever(site):
    """Refused; and where it is ignored they do wait, until somebody changes the setting."""
    candidate = candidate_of(site)
    with setting([candidate], synchronous_standby_names="ANY 1 (nobody)"):
        with unchanged(site):
            refused(switch(site, candidate), "option synchronous", "every commit on %s would wait for ever" % candidate.name)
        result = done(site, switch(site, candidate, synchronous="ignore"), candidate)
        assert any("would wait for ever" in text for text in result["warnings_found"])
        writer = threading.Thread(target=lambda: candidate.sql("CREATE TABLE public.waits ()"))
        writer.start()
        wait_until(lambda: candidate.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == 1, 20)
        assert writer.is_alive()
    writer.join(30)
    assert not writer.is_alive()
    candidate.sql("DROP TABLE public.waits")


@pytest.mark.parametrize("names", ["ANY 1 (db1, db2, db3)", "FIRST 1 (*)", "FIRST 2 (*)"])
def test_a_synchronous_cluster_switches_over_without_an_error(site, names):
    candidate = candidate_of(site)
    with setting(site.nodes, synchronous_standby_names=names):
        required = int(names.split()[1])
        wait_until(lambda: site.primary.value("SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')") >= required, 20)
        with site.load(clients=20) as load:
            result = switch(site, candidate)
        done(site, result, candidate)
    assert load.report["errors"] == 0 and load.lost == set(), load.report["error_texts"]


# -- the archive -----------------------------------------------------------------------------------------------------


def write_segments(node, count):
    for _number in range(count):
        node.sql("SELECT pg_logical_emit_message(true, 'test', 'x')")
        node.sql("SELECT pg_switch_wal()")


def archived(node):
    return node.value("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'") == 0


def test_an_archiver_that_fails(site):
    candidate = candidate_of(site)
    failing = "SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver"
    with setting([site.primary], archive_command="false"):
        write_segments(site.primary, 1)
        wait_until(lambda: site.primary.value(failing), 30)
        with unchanged(site):
            refused(switch(site, candidate), "option archive_behind", "archiving fails at 0")
            refused(switch(site, candidate, archive_behind="wait", wait_timeout=1), "archiving fails at 0")
        check = switch(site, candidate, check=True, archive_behind="ignore")
        assert check["changed"] and any("archiving fails" in text for text in check["warnings_found"])
    wait_until(lambda: archived(site.primary), 60)


def test_an_archiver_that_is_behind_is_waited_for(site):
    candidate, old = candidate_of(site), site.primary
    with setting([old], archive_command=""):
        write_segments(old, 4)
        with unchanged(site):
            refused(switch(site, candidate, archive_lag_limit=3), "option archive_behind", "files of WAL wait to be archived, the limit is 3")
        assert not switch(site, candidate, check=True, archive_lag_limit=50)["failed"]
        with Switching(site, candidate=candidate, archive_lag_limit=3, archive_behind="wait") as switching:
            until_asked_again(old, "pg_ls_archive_statusdir")
            assert not old.in_recovery
            old.sql("ALTER SYSTEM RESET archive_command")
            old.sql("SELECT pg_reload_conf()")
    result = done(site, switching.result, candidate)
    assert "at most 3 files of WAL wait to be archived" in result["performed"][0]


# -- slots -----------------------------------------------------------------------------------------------------------


def test_slots_that_the_candidate_lacks(site):
    candidate, old = candidate_of(site), site.primary
    old.sql("SELECT pg_create_logical_replication_slot('orders', 'test_decoding')", dbname="app")
    old.sql("SELECT pg_create_physical_replication_slot('barman', true)")
    try:
        with unchanged(site):
            result = refused(switch(site, candidate), "option foreign_slots", "orders (logical, plugin test_decoding, database app, not in use, holds ")
            assert len(result["findings"]) == 2 and "barman (physical, not in use" in " ".join(result["findings"])
        result = done(site, switch(site, candidate, foreign_slots="ignore"), candidate)
        assert sum("is not on the candidate" in text for text in result["warnings_found"]) == 2
        assert {row[0] for row in old.sql("SELECT slot_name FROM pg_replication_slots")} == {"orders", "barman"}
    finally:
        old.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN ('orders', 'barman')")


# -- a candidate that not all could follow -----------------------------------------------------------------------------


def test_a_candidate_with_larger_settings(site):
    """Its WAL would stop every standby that has less."""
    candidate = candidate_of(site)
    candidate.stop()
    candidate.start("max_connections=90")
    try:
        site.primary.wait_for_standbys(2)
        with unchanged(site):
            result = refused(switch(site, candidate), "cannot follow %s: its max_connections is 60" % candidate.name)
        assert len(result["findings"]) == 2
    finally:
        candidate.stop()
        candidate.start()


def test_a_candidate_without_slots_for_all(site):
    candidate = candidate_of(site)
    candidate.stop()
    candidate.start("max_replication_slots=3")
    try:
        site.primary.wait_for_standbys(2)
        candidate.sql("SELECT pg_create_physical_replication_slot(name) FROM unnest(ARRAY['one', 'two']) AS name")
        with unchanged(site):
            refused(switch(site, candidate), "the candidate %s needs 4 replication slots, its max_replication_slots is 3" % candidate.name)
    finally:
        candidate.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN ('one', 'two')")
        candidate.stop()
        candidate.start()
