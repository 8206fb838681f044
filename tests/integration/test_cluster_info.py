# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_cluster_info on real nodes, living, dead and hung."""

from __future__ import annotations

import json
import socket
import subprocess
import time

import pytest
from lab import BIN, SUPERUSER_PASSWORD, Lab, call_module, free_port, wait_until


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
    for name in ("hung0", "hung1", "dead"):
        assert result["nodes"][name]["reachable"] is False and result["nodes"][name]["status"] == "down"
    assert "Connection refused" in result["nodes"]["dead"]["problem"]


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


def test_bad_input(cluster):
    _lab, nodes = cluster
    assert "same name: db1" in ask([nodes[0], nodes[0]])["msg"]
    assert "empty list" in ask([])["msg"]
    assert "not in the option nodes: db7" in ask(nodes, exclude=["db7"])["msg"]


def test_an_empty_string_counts_as_unset(cluster):
    """As AWX surveys send it, for text and for numbers."""
    _lab, nodes = cluster
    result = ask(nodes, ssl_mode="", ca_cert="", login_db="", timeout="", lag_limit_bytes="")
    assert not result["failed"] and result["primary"] == "db1"
