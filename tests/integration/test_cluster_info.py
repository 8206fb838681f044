# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_cluster_info on real nodes, living, dead and hung."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import Target, connect
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.node_state import fetch_node_state
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.standby import receiver
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline
from cluster_play import play
from lab import BIN, SUPERUSER_PASSWORD, Lab, call_module, free_port, wait_until
from switchover_site import Site


@pytest.fixture(scope="module")
def cluster():
    lab = Lab()
    first = lab.postgres("db1").init().start()
    nodes = [first, lab.postgres("db2").clone(first), lab.postgres("db3").clone(first)]
    first.wait_for_standbys(2)
    yield lab, nodes
    lab.close()


def ask(members, **options):
    arguments = {
        "login_user": "postgres", "login_password": SUPERUSER_PASSWORD,
        "nodes": [{"name": node.name, "host": "127.0.0.1", "port": node.port} for node in members], **options,
    }  # fmt: skip
    return call_module("pg_cluster_info", arguments)


def test_a_healthy_cluster(cluster):
    _lab, nodes = cluster
    result = ask(nodes)
    assert not result["failed"] and not result["changed"]
    assert (result["status"], result["status_number"], result["primary"], result["reasons"]) == ("healthy", 1, "db1", [])
    assert {name: (node["role"], node["upstream"], node["timeline"]) for name, node in result["nodes"].items()} == {
        "db1": ("primary", None, 1), "db2": ("standby", "db1", 1), "db3": ("standby", "db1", 1),
    }  # fmt: skip
    assert [(candidate["name"], candidate["eligible"], candidate["refusals"]) for candidate in result["candidates"]] == [("db2", True, []), ("db3", True, [])]
    slots = {slot["name"]: slot["active"] for slot in result["nodes"]["db1"]["slots"]}
    assert slots == {"db2": True, "db3": True}
    assert result["system_identifiers"] == [nodes[0].value("SELECT system_identifier::text FROM pg_control_system()")]
    assert "primary_conninfo" not in json.dumps(result["nodes"]) and SUPERUSER_PASSWORD not in json.dumps(result)


def test_lag_is_counted_against_the_primary(cluster):
    _lab, nodes = cluster
    nodes[1].sql("SELECT pg_wal_replay_pause()")
    try:
        nodes[0].sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 3000000))")
        written = nodes[0].value("SELECT pg_current_wal_insert_lsn()")
        # Both have it, and only the one that is not paused has replayed it.
        wait_until(lambda: nodes[1].value("SELECT pg_last_wal_receive_lsn() >= %s", [written]), 20)
        wait_until(lambda: nodes[2].value("SELECT pg_last_wal_replay_lsn() >= %s", [written]), 20)
        result = ask(nodes, lag_limit_bytes=1000000)
        lagged = result["nodes"]["db2"]
        assert lagged["lag_bytes"] >= 3000000 and lagged["lag_mb"] == pytest.approx(lagged["lag_bytes"] / 1048576, abs=0.001)
        assert lagged["status"] == "warning" and lagged["reasons"] == ["replay is paused"]
        refusals = next(candidate for candidate in result["candidates"] if candidate["name"] == "db2")["refusals"]
        assert refusals[0] == "replay is paused" and "bytes behind, the limit is 1000000" in refusals[1]
        assert [candidate["name"] for candidate in result["candidates"]] == ["db3", "db2"]
        assert result["status"] == "warning"
    finally:
        nodes[1].sql("SELECT pg_wal_replay_resume()")
    wait_until(lambda: ask(nodes, lag_limit_bytes=1000000)["status"] == "healthy", 10)


def test_a_base_backup_that_runs_is_shown_with_its_progress(cluster):
    lab, nodes = cluster
    assert ask(nodes)["nodes"]["db1"]["base_backups"] == []
    copy = lab.path / "slow_copy"
    process = subprocess.Popen(
        [BIN / "pg_basebackup", "--pgdata=%s" % copy, "--dbname=host=127.0.0.1 port=%d user=postgres passfile=%s" % (nodes[0].port, nodes[0].passfile),
         "--max-rate=1M", "--checkpoint=fast", "--wal-method=none"], user="postgres", group="postgres", cwd="/",
    )  # fmt: skip
    try:
        shown = []

        def under_way():
            shown[:] = ask(nodes)["nodes"]["db1"]["base_backups"]
            return shown and (shown[0]["streamed_bytes"] or 0) > 0

        wait_until(under_way, 60)
        (backup,) = shown
        assert backup["phase"] == "streaming database files" and backup["client"] == "127.0.0.1" and backup["application_name"] == "pg_basebackup"
        assert 0 < backup["streamed_bytes"] < backup["total_bytes"] and backup["pid"]
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: ask(nodes)["nodes"]["db1"]["base_backups"] == [], 30)


def test_nodes_that_are_dead_hung_or_closed_are_data(cluster):
    """Two nodes that accept and never answer cost one time limit together, and the others are still reported."""
    _lab, nodes = cluster
    with socket.socket() as one, socket.socket() as two:
        for listener in (one, two):
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        entries = [{"name": node.name, "host": "127.0.0.1", "port": node.port} for node in nodes]
        entries += [{"name": "hung%d" % n, "host": "127.0.0.1", "port": s.getsockname()[1]} for n, s in enumerate((one, two))]
        entries += [{"name": "dead", "host": "127.0.0.1", "port": free_port()}]
        began = time.monotonic()
        result = ask([], nodes=entries, timeout=3)
        took = time.monotonic() - began
    assert not result["failed"]
    assert took < 2 * 3 + 4
    assert result["primary"] == "db1" and result["status"] == "warning"
    # Of one of them the host says that nothing listens there; silence says nothing.
    for name, status in (("hung0", "unavailable"), ("hung1", "unavailable"), ("dead", "down")):
        assert result["nodes"][name]["reachable"] is False and result["nodes"][name]["status"] == status
    assert "Connection refused" in result["nodes"]["dead"]["problem"]


def test_two_nodes_that_hang_cost_one_time_limit(cluster):
    _lab, nodes = cluster
    pids = [node.pid for node in nodes[1:]]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        result = ask(nodes, timeout=5)
        took = time.monotonic() - began
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert not result["failed"] and result["primary"] == "db1" and result["status"] == "warning", result
    assert {result["nodes"][name]["status"] for name in ("db2", "db3")} == {"unavailable"}
    assert took < 2 * 5
    wait_until(lambda: ask(nodes)["status"] == "healthy", 30)


def test_an_idle_cluster_has_no_lag_in_time(cluster):
    """A record that is only flushed to the end of a page is received by half: then more is received than can be replayed."""
    _lab, nodes = cluster
    nodes[0].sql("SELECT pg_current_xact_id()")
    with nodes[0].connect() as connection, connection.transaction():
        # Without a commit nothing flushes this but the WAL writer, which goes by whole pages.
        connection.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 30000))")
        halves = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn() FROM pg_stat_activity WHERE wait_event = 'RecoveryWalStream'"
        wait_until(lambda: nodes[1].value(halves), 30)
        found = ask(nodes)["nodes"]["db2"]
        assert found["received_lsn"] != found["replayed_lsn"] and found["lag_seconds"] == 0 and found["status"] == "healthy", found


def test_lag_in_time_while_replay_is_paused_and_below_a_standby_that_pauses(own_lab):
    first = own_lab.postgres("db1").init().start()
    second = own_lab.postgres("db2").clone(first)
    third = own_lab.postgres("db3").clone(second)
    nodes = [third, second, first]
    second.wait_for_standbys(1)
    first.sql("CREATE TABLE t AS SELECT 1 AS n")
    wait_until(lambda: third.value("SELECT to_regclass('t') IS NOT NULL"), 30)
    result = ask(nodes)
    below = {"name": "db3", "role": "standby", "streaming": True, "standbys": []}
    assert result["topology"] == [
        {"name": "db1", "role": "primary", "streaming": None, "standbys": [{"name": "db2", "role": "standby", "streaming": True, "standbys": [below]}]}
    ]
    second.sql("SELECT pg_wal_replay_pause()")
    first.sql("INSERT INTO t VALUES (2)")
    written = first.value("SELECT pg_current_wal_lsn()")
    wait_until(lambda: third.value("SELECT pg_last_wal_replay_lsn() >= %s", [written]), 30)
    result = ask(nodes)
    # db3 has it: a standby sends what it has received, replayed or not.
    assert result["nodes"]["db2"]["lag_seconds"] > 0 and result["nodes"]["db2"]["lag_bytes"] > 0 and result["nodes"]["db3"]["lag_bytes"] == 0
    candidates = {candidate["name"]: candidate["refusals"] for candidate in result["candidates"]}
    assert candidates == {"db2": ["replay is paused"], "db3": []}
    # Without a primary the standbys are judged among themselves.
    first.stop("immediate")
    second.sql("SELECT pg_wal_replay_resume()")
    wait_until(lambda: second.value("SELECT pg_last_wal_replay_lsn() >= %s", [written]), 30)
    result = ask(nodes, strategy="lsn")
    assert result["primary"] is None and result["status"] == "down" and result["reasons"] == ["no node that answers is a primary"]
    assert result["nodes"]["db1"]["status"] == "down" and "Connection refused" in result["nodes"]["db1"]["problem"]
    assert [(one["name"], one["eligible"]) for one in result["candidates"]] == [("db2", True), ("db3", True), ("db1", False)]
    assert "does not answer" in result["candidates"][2]["refusals"][0]
    assert [root["name"] for root in result["topology"]] == ["db2", "db1"] or [root["name"] for root in result["topology"]] == ["db1"]


def test_what_endangers_a_primary(own_lab):
    """Commits that wait for ever, slots that hold WAL, settings that wait for a restart, an archive that fails."""
    settings = {"archive_mode": "on", "archive_command": "test ! -f %s/broken" % own_lab.path}
    first = own_lab.postgres("db1", settings=settings).init().start()
    second = own_lab.postgres("db2").clone(first)
    first.wait_for_standbys(1)
    nodes = [first, second]
    assert ask(nodes)["status"] == "healthy" and ask(nodes)["nodes"]["db1"]["synchronous"] is None

    first.sql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (db2, db9)'")
    first.sql("SELECT pg_reload_conf()")
    wait_until(lambda: (ask(nodes)["nodes"]["db1"]["synchronous"] or {}).get("satisfied"), 20)
    result = ask(nodes)
    assert result["nodes"]["db1"]["synchronous"] == {
        "method": "first", "required": 1, "names": ["db2", "db9"], "standbys": ["db2"], "satisfied": True,
    }  # fmt: skip
    assert result["status"] == "healthy" and result["nodes"]["db2"]["sync_state"] == "sync" and result["candidates"][0]["synchronous"] is True
    second.stop()
    wait_until(lambda: not ask(nodes)["nodes"]["db1"]["synchronous"]["satisfied"], 20)
    reasons = ask(nodes)["nodes"]["db1"]["reasons"]
    assert reasons == ["its commits wait for ever: synchronous_standby_names wants 1 of db2, db9, and none of them streams"]
    first.sql("ALTER SYSTEM RESET synchronous_standby_names")
    first.sql("SELECT pg_reload_conf()")
    second.start()
    first.wait_for_standbys(1)

    first.sql("SELECT pg_create_physical_replication_slot('lazy', true)")
    first.sql("SELECT pg_logical_emit_message(true, 'test', repeat('x', 3000000))")
    result = ask(nodes, slot_limit_mb=2)
    assert result["nodes"]["db1"]["reasons"][0].startswith("slot lazy is not in use and holds ") and result["status"] == "warning"
    assert not ask(nodes, slot_limit_mb=1000)["nodes"]["db1"]["reasons"]
    first.sql("SELECT pg_drop_replication_slot('lazy')")

    first.sql("ALTER SYSTEM SET max_connections = 71")
    first.sql("ALTER SYSTEM SET shared_buffers = '24MB'")
    first.sql("SELECT pg_reload_conf()")
    wait_until(lambda: len(ask(nodes)["nodes"]["db1"]["pending_restart"]) == 2, 20)
    node = ask(nodes)["nodes"]["db1"]
    assert node["pending_values"] == {"max_connections": {"now": "60", "then": "71"}, "shared_buffers": {"now": "2048", "then": "24MB"}}
    first.sql("CREATE ROLE looks LOGIN PASSWORD 'looks' IN ROLE pg_monitor")
    first.sql("GRANT EXECUTE ON FUNCTION pg_show_all_file_settings() TO looks")
    node = ask([first], login_user="looks", login_password="looks")["nodes"]["db1"]
    assert node["pending_restart"] == ["max_connections", "shared_buffers"] and node["pending_values"] is None

    (own_lab.path / "broken").touch()
    first.sql("SELECT pg_switch_wal()")
    wait_until(lambda: ask(nodes)["nodes"]["db1"]["archiver"]["failing"], 60)
    result = ask(nodes)
    assert result["nodes"]["db1"]["reasons"][0].startswith("archiving fails at 0000") and result["status"] == "warning"


def test_it_fails_only_for_what_it_was_asked_to(own_lab):
    first = own_lab.postgres("db1").init().start()
    second = own_lab.postgres("db2").clone(first)
    first.wait_for_standbys(1)
    nodes = [first, second]
    wait_until(lambda: ask(nodes, lag_limit_mb=1)["nodes"]["db2"]["status"] == "healthy", 20)
    assert not ask(nodes, fail_on="lagged")["failed"]

    def failing(**options):
        return {threshold: ask(nodes, fail_on=threshold, **options)["failed"] for threshold in ("none", "down", "warning", "lagged")}

    # Paused, it would be a warning.
    second.sql("ALTER SYSTEM SET recovery_min_apply_delay = '1h'")
    second.sql("SELECT pg_reload_conf()")
    # What is delayed is the first commit, and all that comes after it.
    first.sql("CREATE TABLE first_commit AS SELECT 1")
    first.sql("CREATE TABLE filler AS SELECT generate_series(1, 50000)")
    wait_until(lambda: ask(nodes, lag_limit_mb=1)["nodes"]["db2"]["status"] == "lagged", 20)
    assert failing(lag_limit_mb=1) == {"none": False, "down": False, "warning": False, "lagged": True}
    result = ask(nodes, lag_limit_mb=1, lag_limit_bytes=1 << 40, fail_on="lagged")
    assert result["error"] == "Unhealthy" and "db2: it is " in result["msg"] and result["status"] == "healthy" and result["nodes"]["db2"]["lag_mb"] > 1
    assert "it replays with a delay of 3600 s" in result["candidates"][0]["refusals"][0]
    assert failing(lag_limit_mb=1000)["lagged"] is False
    second.stop()
    assert failing() == {"none": False, "down": False, "warning": True, "lagged": True}
    first.stop()
    assert failing() == {"none": False, "down": True, "warning": True, "lagged": True}


def test_a_wrong_password_is_not_taken_for_a_dead_server(cluster):
    _lab, nodes = cluster
    result = ask(nodes, login_password="not this")
    assert not result["failed"]
    assert result["primary"] is None and result["status"] == "down"
    for node in result["nodes"].values():
        assert node["problem_kind"] == "AuthenticationFailed" and node["status"] == "unavailable"
    assert "not this" not in json.dumps(result["nodes"])


def test_two_primaries_are_reported_as_such(own_lab):
    first = own_lab.postgres("db1").init().start()
    second = own_lab.postgres("db2").clone(first)
    first.wait_for_standbys(1)
    second.sql("SELECT pg_promote()")
    result = ask([first, second])
    assert result["primary"] is None and result["primaries"] == ["db1", "db2"]
    assert result["status"] == "down" and "more than one primary: db1, db2" in result["reasons"]


def test_the_timeline_of_a_standby_whose_new_primary_is_gone(own_lab):
    """Before its next restart point pg_control knows nothing of the new timeline, and the receiver that did is gone."""
    first = own_lab.postgres("db1").init().start()
    second, third = (own_lab.postgres(name).clone(first) for name in ("db2", "db3"))
    first.wait_for_standbys(2)
    first.stop()
    second.sql("SELECT pg_promote()")
    second.sql("SELECT pg_create_physical_replication_slot('db3', true)")
    third.sql(
        "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=%d user=postgres application_name=db3 passfile=%s'" % (second.port, third.passfile)
    )
    third.sql("SELECT pg_reload_conf()")
    second.wait_for_standbys(1)
    wait_until(lambda: third.value("SELECT received_tli FROM pg_stat_wal_receiver") == 2, 20)
    second.stop("immediate")
    wait_until(lambda: third.value("SELECT count(*) FROM pg_stat_wal_receiver") == 0, 20)
    assert third.value("SELECT timeline_id FROM pg_control_checkpoint()") == 1
    assert ask([second, third])["nodes"]["db3"]["timeline"] == 2
    third.stop()
    third.start()
    assert ask([second, third])["nodes"]["db3"]["timeline"] == 2


def test_a_standby_that_is_refused_does_not_count_as_streaming(own_lab):
    """Its walreceiver says so in each of its attempts, from the login until its upstream has refused what it asks for."""
    primary = own_lab.postgres("r1").init().start()
    standby = own_lab.postgres("r2").clone(primary)
    primary.wait_for_standbys(1)
    session = connect(Target(host="127.0.0.1", port=standby.port, user="postgres", dbname="postgres", password=SUPERUSER_PASSWORD))
    try:
        assert receiver(session)["status"] == "streaming" and fetch_node_state(session, Deadline(10))["receiver"]["status"] == "streaming"
        # As a standby that was told to follow a node before that has a slot for it.
        standby.sql("ALTER SYSTEM SET primary_slot_name = 'missing'")
        standby.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = 1")
        standby.sql("SELECT pg_reload_conf()")
        wait_until(lambda: 'slot "missing" does not exist' in standby.log.read_text(), 20)
        said, told, attempts = set(), set(), standby.log.read_text().count('"missing" does not exist')
        for _n in range(3000):
            said |= {row["status"] for row in session.rows("SELECT status FROM pg_stat_wal_receiver")}
            told.add(receiver(session).get("status"))
        told |= {(fetch_node_state(session, Deadline(10))["receiver"] or {}).get("status") for _n in range(100)}
        # The server does say it, so that this test tries what it is about.
        assert standby.log.read_text().count('"missing" does not exist') > attempts + 10 and "streaming" in said
        assert "streaming" not in told
        # One whose upstream has nothing to say streams.
        standby.sql("ALTER SYSTEM RESET ALL")
        standby.follow(primary)
        standby.stop()
        primary.sql("SELECT pg_switch_wal()")
        standby.start()
        wait_until(lambda: receiver_of(standby).get("status") == "streaming", 20)
    finally:
        session.close()


def receiver_of(standby):
    session = connect(Target(host="127.0.0.1", port=standby.port, user="postgres", dbname="postgres", password=SUPERUSER_PASSWORD))
    try:
        return receiver(session)
    finally:
        session.close()


def test_bad_input(cluster):
    _lab, nodes = cluster
    assert "same name: db1" in ask([nodes[0], nodes[0]])["msg"]
    assert "empty list" in ask([])["msg"]
    assert "lag_limit_mb is -1" in ask(nodes, lag_limit_mb=-1)["msg"] and "timeout is 0" in ask(nodes, timeout=0)["msg"]
    assert "not in the option nodes: db7" in ask(nodes, exclude=["db7"])["msg"]


def test_an_empty_string_counts_as_unset(cluster):
    """As AWX surveys send it, for text and for numbers."""
    _lab, nodes = cluster
    result = ask(nodes, ssl_mode="", ca_cert="", login_db="", timeout="", lag_limit_bytes="")
    assert not result["failed"] and result["primary"] == "db1"


def test_the_playbook_that_shows_a_cluster(own_lab):
    site = Site(own_lab, nodes=2, poolers=0)
    first, second = site.nodes
    first.sql("ALTER SYSTEM SET max_connections = 71")
    first.sql("SELECT pg_reload_conf()")
    wait_until(lambda: first.value("SELECT count(*) FROM pg_settings WHERE pending_restart") == 1, 20)
    output, changed = play(site, "show_cluster", fail_on="lagged")
    text = " ".join(output.split())
    assert "cluster orders: healthy (1)" in text and "restart of db1 pending: max_connections from 60 to 71" in text, output
    assert re.search(r"db1 +127\.0\.0\.1:%d +primary +healthy +1 " % first.port, output) and "slot db2 on db1: in use, reserved, holds" in text
    assert re.search(r"db2 +127\.0\.0\.1:%d +standby +healthy +1 +0\.\d+ +0\.0 +db1 +async" % second.port, output), output
    assert "candidate db2: eligible" in text and set(changed.values()) == {0}
    second.stop()
    for fail_on, fails in ((None, False), ("down", False), ("warning", True)):
        output, _changed = play(site, "show_cluster", fails=fails, **({"fail_on": fail_on} if fail_on else {}))
        assert "cluster orders: warning (3)" in output and "candidate db2: no, it does not answer" in " ".join(output.split()), output
    first.stop()
    output, _changed = play(site, "show_cluster", fails=True, fail_on="down")
    assert "cluster orders: down (5)" in output and "no node that answers is a primary" in output
