# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A promotion without a primary: with proof for every other member, and never two primaries, whatever is tried."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import threading

import pytest
from lab import HOST, SUPERUSER_PASSWORD, Lab, call_module, four_steps, wait_until
from switchover_site import Site
from test_switchover_hazards import frozen, processes_of


@pytest.fixture
def site():
    lab = Lab()
    yield Site(lab, poolers=0)
    lab.close()


def options(site, candidate, **changes):
    whole = site.options(candidate)
    return {name: whole[name] for name in ("candidate", "nodes", "login_user", "login_password")} | changes


def promote(site, candidate, check=False, user="postgres", **changes):
    return call_module("pg_promote", options(site, candidate, **changes), user=user, check=check)


def without(site, name, **changes):
    """The option nodes where nothing leads to the host of one node."""
    nodes = site.options(name)["nodes"]
    for entry in nodes:
        if entry["name"] == name:
            del entry["data_directory"]
            entry.update(changes)
    return nodes


def refused(result, *words, error="Refused"):
    assert result["failed"] and result["error"] == error, result
    for word in words:
        assert word in result["msg"], result["msg"]
    assert result["changed"] is False, result
    assert SUPERUSER_PASSWORD not in json.dumps(result)


def crash(node):
    """The postmaster is killed; its children end by themselves."""
    pids = processes_of(node)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 30)


def is_alive(pid):
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def caught_up(primary, *standbys):
    head = primary.value("SELECT pg_current_wal_lsn()::text")
    for node in standbys:
        wait_until(lambda node=node: node.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [head]), 30)


def cut_off(standby):
    standby.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'")
    standby.sql("SELECT pg_reload_conf()")
    wait_until(lambda: standby.value("SELECT count(*) FROM pg_stat_wal_receiver") == 0, 20)


# -- what it does ------------------------------------------------------------------------------------------------------


def test_a_primary_that_was_shut_down(site):
    db1, db2, db3 = site.nodes
    db1.stop()
    result = four_steps("pg_promote", options(site, "db2"))
    assert result["primary"] == "db2" and (result["timeline_before"], result["timeline"]) == (1, 2)
    assert result["proof"]["db1"] == {"kind": "fenced_down", "text": "no server works in its data directory, and standby.signal is there"}
    assert result["proof"]["db3"]["kind"] == "standby"
    assert result["missing_bytes"] == 0 and result["to_follow"] == ["db3"]
    assert result["plan"][0].startswith("fence db1") and result["plan"][1].startswith("promote db2")
    assert not db2.in_recovery and db3.in_recovery
    # It is told of what is there to do, and does not do it.
    assert db3.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'").count("port=%d" % db1.port) == 1
    assert promote(site, "db2", if_primary="fail")["error"] == "Refused"
    # Whatever starts the old primary starts a standby.
    db1.start()
    assert db1.in_recovery
    follow = call_module("pg_follow", {**db3.login, "upstream_host": "127.0.0.1", "upstream_port": db2.port})
    assert not follow["failed"], follow
    db2.sql("CREATE TABLE public.after_it ()")
    caught_up(db2, db3)


def test_a_primary_that_crashed_and_that_a_supervisor_starts_later(site):
    db1, db2, _db3 = site.nodes
    db1.sql("INSERT INTO public.load VALUES ('crash', 1, 1)", dbname="app")
    caught_up(db1, db2)
    crash(db1)
    assert not (db1.data / "standby.signal").exists()
    check = promote(site, "db2", check=True)
    assert check["proof"]["db1"]["kind"] == "down" and not (db1.data / "standby.signal").exists()
    result = promote(site, "db2")
    assert not result["failed"], result
    assert result["proof"]["db1"]["kind"] == "fenced_down"
    assert "db1 was not shut down" in " ".join(result["warnings_found"])
    assert db2.sql("SELECT client FROM public.load WHERE run = 'crash'", dbname="app") == [(1,)]
    # systemd: Restart=on-failure.
    db1.start()
    assert db1.in_recovery and not db2.in_recovery


def test_a_host_that_is_gone_and_vouched_for(site):
    db1, _db2, _db3 = site.nodes
    db1.stop()
    nodes = without(site, "db1")
    refused(promote(site, "db2", nodes=nodes), "db1 (127.0.0.1:%d) does not answer" % db1.port, "no proof", "data_directory", "fenced")
    result = promote(site, "db2", nodes=nodes, fenced=["db1"])
    assert not result["failed"] and result["changed"], result
    assert result["proof"]["db1"]["kind"] == "vouched"
    assert "if it comes back as a primary, there are two" in " ".join(result["warnings_found"])


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_while_the_primary_accepts_writes(site):
    for more in ({}, {"fenced": ["db1"]}, {"max_data_loss_bytes": 1 << 40, "fenced": ["db1", "db3"]}):
        for check in (True, False):
            refused(promote(site, "db2", check=check, **more), "db1 is a primary and accepts writes", "pg_switchover", error="SplitBrainRisk")
    assert [node.name for node in site.primaries] == ["db1"]


def test_a_frozen_primary(site):
    """No answer is no proof, whoever vouches: its host says that it runs."""
    db1 = site.node("db1")
    with frozen(processes_of(db1)):
        for more in ({}, {"fenced": ["db1"]}):
            refused(promote(site, "db2", **more), "db1", "does not answer", "on its host the server runs (process %d)" % db1.pid)
    assert [node.name for node in site.primaries] == ["db1"]


def test_processes_that_outlive_their_postmaster(site):
    """A backend that was at work when the postmaster was killed can still commit."""
    db1, db2, _db3 = site.nodes
    connection = db1.connect()
    backend = connection.info.backend_pid
    busy = threading.Thread(target=lambda: contextless(connection, "SELECT pg_sleep(3600)"), daemon=True)
    busy.start()
    wait_until(lambda: db1.value("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", [backend]) == "PgSleep", 20)
    os.kill(backend, signal.SIGSTOP)
    try:
        os.kill(db1.pid, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in processes_of_directory(db1) if pid != backend), 30)
        refused(promote(site, "db2"), "go on without their postmaster", str(backend))
        assert db2.in_recovery and not (db1.data / "standby.signal").exists()
    finally:
        os.kill(backend, signal.SIGKILL)
    wait_until(lambda: not is_alive(backend), 20)
    assert not promote(site, "db2")["failed"]


def contextless(connection, query):
    try:
        connection.execute(query)
    except Exception:
        return


def processes_of_directory(node):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink("/proc/%s/cwd" % entry) == str(node.data):
                    found.append(int(entry))
            except OSError:
                continue
    return found


def test_the_wrong_host(site):
    """A shell that leads elsewhere, to a directory of the same cluster, proves nothing of a node."""
    db1, _db2, db3 = site.nodes
    db1.stop()
    elsewhere = without(site, "db1", host="192.0.2.1", data_directory=str(db1.data))
    refused(promote(site, "db2", nodes=elsewhere), "a host that has none of its addresses", "nodes[].address")
    assert not (db1.data / "standby.signal").exists()
    # The directory of another node.
    refused(promote(site, "db2", nodes=without(site, "db1", data_directory=str(db3.data))), "one and the same", "data_directory")
    # The candidate's own options lead to another server: it must not be the one that is promoted.
    nodes = site.options("db2")["nodes"]
    nodes[1]["data_directory"], nodes[2]["data_directory"] = nodes[2]["data_directory"], nodes[1]["data_directory"]
    refused(promote(site, "db2", nodes=nodes), "data_directory or shell is of another node")
    assert site.primaries == []


def test_a_candidate_that_lacks_wal(site):
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    cut_off(db2)
    db1.sql("INSERT INTO public.load SELECT 'late', n, 0 FROM generate_series(1, 1000) AS n", dbname="app")
    caught_up(db1, db3)
    db1.stop()
    refused(promote(site, "db2"), "bytes would be lost", "db3 has WAL up to", "db1 has WAL up to")
    assert site.primaries == []
    missing = promote(site, "db2", max_data_loss_bytes=1 << 30, check=True)["missing_bytes"]
    assert missing > 1000
    refused(promote(site, "db2", max_data_loss_bytes=missing - 1), "%d bytes would be lost" % missing)
    # A refusal takes its fence back.
    assert not (db1.data / "standby.signal").exists()
    result = promote(site, "db2", max_data_loss_bytes=missing)
    assert not result["failed"] and result["missing_bytes"] == missing, result


def test_replay_that_is_paused(site):
    db1, db2, _db3 = site.nodes
    caught_up(db1, db2)
    db2.sql("SELECT pg_wal_replay_pause()")
    db1.stop()
    refused(promote(site, "db2"), "replay is paused on the candidate db2")
    # The question whether it is being promoted did not resume it.
    assert db2.value("SELECT pg_is_wal_replay_paused()")


def test_an_older_timeline_and_two_primaries(site):
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    db1.stop()
    db3.sql("SELECT pg_promote()")
    refused(promote(site, "db2"), "db3 is a primary", error="SplitBrainRisk")
    db3.stop()
    refused(promote(site, "db2"), "older than timeline 2 of db3")
    db3.start()
    db1.start()
    refused(promote(site, "db2"), "more than one node is a primary", error="SplitBrainRisk")
    refused(promote(site, "db3"), "more than one node is a primary", error="SplitBrainRisk")


def test_members_that_would_become_primaries_by_themselves(site):
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    db1.stop()
    signal_file = db3.data / "standby.signal"
    signal_file.rename(db3.data / "away")
    refused(promote(site, "db2"), "db3 is in recovery without standby.signal")
    (db3.data / "away").rename(signal_file)
    db3.sql("ALTER SYSTEM SET recovery_target_name = 'somewhen'")
    refused(promote(site, "db2"), "settings of a point-in-time recovery", "recovery_target_name")
    db3.sql("ALTER SYSTEM RESET recovery_target_name")
    assert site.primaries == []


def test_another_cluster_and_options_that_make_no_sense(site):
    db1, *_others = site.nodes
    stranger = site.lab.postgres("stranger").init().start()
    db1.stop()
    nodes = site.options("db2")["nodes"]
    nodes[2].update(port=stranger.port, data_directory=str(stranger.data))
    refused(promote(site, "db2", nodes=nodes), "db3 is a primary", error="SplitBrainRisk")
    stranger.stop()
    refused(promote(site, "db2", nodes=nodes), "db3 belongs to another cluster")
    assert not (stranger.data / "standby.signal").exists() and not (db1.data / "standby.signal").exists()
    refused(promote(site, "db9"), "which is not a node", error="InvalidInput")
    refused(promote(site, "db2", fenced=["db9"]), "db9", error="InvalidInput")
    refused(promote(site, "db2", fenced=["db2"]), "names the candidate", error="InvalidInput")


# -- at the same time --------------------------------------------------------------------------------------------------


def start_module(site, name, given):
    """A module as a process of its own."""
    from lab import module_library

    argv = ["/usr/bin/env", "PYTHONPATH=%s" % module_library(), "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3", "-m",
            "ansible_collections.pgfleet.ops.plugins.modules.%s" % name]  # fmt: skip
    process = subprocess.Popen(HOST.argv(argv, "postgres"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": json.loads(json.dumps(given, default=str))}))
    process.stdin.close()
    return process


def result_of(process):
    output = process.stdout.read()
    assert process.wait(120) in (0, 1), process.stderr.read()
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


def test_two_promotions_of_different_candidates_at_once(site):
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    crash(db1)
    processes = [start_module(site, "pg_promote", options(site, name)) for name in ("db2", "db3", "db2", "db3")]
    results = [result_of(process) for process in processes]
    assert len(site.primaries) == 1, results
    winner = site.primary.name
    for name, result in zip(("db2", "db3", "db2", "db3"), results):
        if name == winner:
            continue
        assert result["failed"] and result["error"] in ("Refused", "SplitBrainRisk"), result
    assert any(not result.get("failed") and result["changed"] for result in results)
    assert (db1.data / "standby.signal").exists()


def test_a_promotion_beside_a_switchover(site):
    """The switchover has stopped the old primary and goes on; to a promotion it looks like a lost primary."""
    from test_switchover_accidents import run_driver

    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    process = run_driver(site, "db2", "hang", "guardian.release.after", timeout=240)
    try:
        wait_until(lambda: (db1.data / "standby.signal").exists() and db1.pid is None, 60)
        refused(promote(site, "db3"), "another operation is at work")
        assert db3.in_recovery
    finally:
        process.kill()
        process.wait(10)
    wait_until(lambda: site.answers("db1") and db1.in_recovery, 60)
    assert site.primaries == []


def test_a_promotion_that_is_under_way_keeps_every_other_candidate_back(site):
    """The first candidate has much to replay: it was told, it answers as a standby, and the first run has given up waiting."""
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    # A promotion waits for the startup process, and this one is frozen.
    crash(db1)
    (startup,) = [pid for pid in processes_of(db2) if b"startup" in pathlib.Path("/proc/%d/cmdline" % pid).read_bytes()]
    with frozen([startup]):
        result = promote(site, "db2", timeout=2)
        assert result["failed"] and result["error"] == "NotConfirmed", result
        assert "whether it is the primary is not known" in result["msg"] and "prove that db2 is not promoted" in result["msg"]
        # Nobody takes the fence away either.
        assert (db1.data / "standby.signal").exists()
        refused(promote(site, "db3"), "db2 is being promoted", "the file promote is there")
    wait_until(lambda: not db2.in_recovery, 60)
    refused(promote(site, "db3"), "db2 is a primary", error="SplitBrainRisk")
    again = promote(site, "db2")
    assert not again["failed"] and again["changed"] is False, again


def test_a_promotion_whose_file_is_gone_already(site):
    """The startup process has taken the file away and replays what is left: only the server knows that it is being promoted."""
    db1, db2, db3 = site.nodes
    caught_up(db1, db2, db3)
    db2.sql("ALTER SYSTEM SET archive_cleanup_command = ''")
    # The end of recovery waits for this command.
    blocker = site.lab.path / "blocker"
    blocker.touch()
    db2.stop()
    db2.write(db2.config_file, db2.config_file.read_text() + "recovery_end_command = 'while test -e %s; do sleep 0.1; done'\n" % blocker)
    db2.start()
    caught_up(db1, db2)
    crash(db1)
    try:
        result = promote(site, "db2", timeout=2)
        assert result["failed"] and result["error"] == "NotConfirmed", result
        assert not (db2.data / "promote").exists()
        refused(promote(site, "db3"), "db2 is being promoted")
    finally:
        blocker.unlink()
    wait_until(lambda: not db2.in_recovery, 60)
    assert [node.name for node in site.primaries] == ["db2"]


# -- what the guardian reads --------------------------------------------------------------------------------------------


def test_the_control_file_says_what_pg_controldata_says(site):
    from ansible_collections.pgfleet.ops.plugins.module_utils._host.guardian_program import Node

    db1, db2, _db3 = site.nodes
    db1.sql("CREATE TABLE public.something ()")
    caught_up(db1, db2)
    db2.sql("CHECKPOINT")
    for node in (db1, db2):
        text = node._run("pg_controldata", "-D", node.data)
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        position = max(lsn(fields["Latest checkpoint location"]) + 1, lsn(fields["Minimum recovery ending location"]))
        timeline = max(int(fields["Latest checkpoint's TimeLineID"]), int(fields["Min recovery ending loc's timeline"]))
        assert Node(str(node.data), []).known() == {"timeline": timeline, "position": position}
    assert lsn(fields["Minimum recovery ending location"]) > 0


def lsn(text):
    high, low = text.strip().split("/")
    return (int(high, 16) << 32) + int(low, 16)
