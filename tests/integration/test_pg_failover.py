# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A failover: the primary is lost in many ways, and never are there two, whatever is tried."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading

import psycopg
import pytest
from lab import SUPERUSER_PASSWORD, call_module, collections_path, wait_until
from switchover_site import Sites, waiting_failover
from test_pg_promote import caught_up, crash, cut_off
from test_switchover_hazards import frozen, processes_of


@pytest.fixture(scope="module")
def sites():
    with Sites() as found:
        yield found


@pytest.fixture
def site(sites):
    """Every test loses a primary; the next one gets a site that is sound."""
    yield sites.sound()


def options(site, **changes):
    whole = site.options("db2")
    del whole["candidate"]
    return {**whole, "delay": 0.2, "answer_timeout": 3, **changes}


def fail_over(site, check=False, diff=False, user="postgres", **changes):
    return call_module("pg_failover", options(site, **changes), user=user, check=check, diff=diff, ansible=not check)


def driven(site, wanted, accident, moment):
    path = site.lab.path / "failover.json"
    path.write_text(json.dumps(wanted))
    driver = pathlib.Path(__file__).with_name("operation_driver.py")
    process = subprocess.Popen(
        [sys.executable, driver, "failover", path, accident, moment], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        env={**os.environ, "PYTHONPATH": str(collections_path())},
    )  # fmt: skip
    site.processes.append(process)
    return process


def drive(site, wanted, moment):
    """The same with a failure at a moment."""
    return json.loads(driven(site, wanted, "error", moment).communicate(timeout=120)[0].splitlines()[-1])


def refused(result, *words, error="Refused"):
    assert result["failed"] and result["error"] == error, result
    for word in words:
        assert word in result["msg"], result["msg"]
    assert result["changed"] is False and SUPERUSER_PASSWORD not in json.dumps(result)


def writes_through(pooler):
    with pooler.connect("app") as connection:
        return connection.execute("SELECT NOT pg_is_in_recovery(), inet_server_port()").fetchone()


def test_a_killed_primary_under_load(site):
    """Check, run, check again, run again; clients in flight get an error, the others wait, and what was acknowledged is there."""
    old = site.primary
    with site.load(duration=120) as load:
        crash(old)
        check = fail_over(site, check=True, diff=True)
        assert not check["failed"] and check["changed"], check
        assert site.primaries == [] and not (old.data / "standby.signal").exists()
        real = fail_over(site, diff=True)
        assert not real["failed"] and real["changed"], real
        assert real["plan"] == check["plan"] == real["performed"] and real["diff"] == check["diff"]
        again = fail_over(site, check=True)
        assert not again["failed"] and not again["changed"], again
        again = fail_over(site)
        assert not again["failed"] and not again["changed"], again
    new = site.primary
    assert real["primary"] == new.name and real["old_primary"] == old.name and real["to_rejoin"] == [old.name], real
    assert real["data_loss"]["known"] and len(load.lost) == 0 if real["data_loss"]["bytes"] == 0 else True
    assert {opinion["answer"] for opinion in real["opinions"]} == {"refused"} and len(real["opinions"]) == 5, real["opinions"]
    assert (old.data / "standby.signal").exists() and site.paused() == []
    for pooler in site.poolers:
        assert writes_through(pooler) == (True, new.port)
        assert "port=%d" % old.port not in pooler.databases_file.read_text()
    assert SUPERUSER_PASSWORD not in json.dumps(real)
    new.wait_for_standbys(1)


def test_a_process_that_waits_with_its_connections_open(site):
    """It begins with those; what ended meanwhile is opened again."""
    old = site.primary
    standbys = [node for node in site.nodes if node is not old]
    with waiting_failover(site, options(site, tries=1)) as go:
        for node in site.nodes:
            assert node.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgfleet.ops' AND state = 'idle'") == 1
        standbys[0].stop()
        standbys[0].start()
        site.poolers[0].stop()
        site.poolers[0].start()
        caught_up(old, *standbys)
        crash(old)
        result = go()
    assert not result["failed"] and result["primary"] == site.primary.name != old.name, result
    assert site.paused() == [] and all(writes_through(pooler)[0] for pooler in site.poolers)


def test_a_primary_that_answers(site):
    before = site.fingerprint()
    result = fail_over(site)
    assert not result["failed"] and not result["changed"] and result["plan"] == [] and result["primary"] == site.primary.name, result
    refused(fail_over(site, if_primary="fail"), "is the primary and answers")
    assert site.fingerprint() == before


def test_options_that_make_no_sense(site):
    for changes, words in (
        ({"candidate": "db9"}, ["candidate", "db9"]), ({"exclude": ["db9"]}, ["exclude", "db9"]), ({"fenced": ["db2"], "candidate": "db2"}, ["fenced", "db2"]),
        ({"tries": 0}, ["tries"]), ({"max_data_loss_bytes": -1}, ["max_data_loss_bytes"]), ({"pause_timeout": 20}, ["timeout", "pause_timeout"]),
    ):  # fmt: skip
        refused(fail_over(site, **changes), *words, error="InvalidInput")


def cut_off_from_us(site, node, **changes):
    """The option nodes where this host does not reach one node, and all others do."""
    nodes = site.options("db2")["nodes"]
    for entry in nodes:
        entry["address"] = "127.0.0.1"
        if entry["name"] == node.name:
            entry.update(host="127.0.0.9", **changes)
    return nodes


def test_a_primary_that_only_this_host_does_not_reach(site):
    """The oldest mistake of failover tools."""
    before = site.fingerprint()
    refused(
        fail_over(site, nodes=cut_off_from_us(site, site.primary)), "%s is reached still" % site.primary.name, "the host of db3: it answers there",
        "the host of pooler1: it answers there",
    )  # fmt: skip
    assert site.fingerprint() == before


def test_a_primary_that_is_ended_because_the_user_wants_it(site):
    """if_reached: fence. What its clients were told is committed is there: it is shut down cleanly."""
    old = site.primary
    with site.load(duration=120) as load:
        wait_until(lambda: old.value("SELECT count(*) FROM public.load", dbname="app") > 50, 60)
        result = fail_over(site, nodes=cut_off_from_us(site, old), if_reached="fence", max_data_loss_bytes=0)
        assert result["failed"], result
        result = fail_over(site, nodes=cut_off_from_us(site, old), if_reached="fence")
        assert not result["failed"] and any(step.startswith("end the server of %s" % old.name) for step in result["performed"]), result
    assert old.pid is None and (old.data / "standby.signal").exists() and load.lost == set() and load.report["commits"] > 50
    assert result["primary"] == site.primary.name != old.name and site.paused() == []
    # Whatever starts it starts a standby.
    old.start()
    assert site.primaries == [site.primary] and old.in_recovery


def test_a_primary_whose_postmaster_is_frozen_and_whose_clients_work(site):
    """It takes no connection, and those that a pooler holds commit: to every prober it is dead."""
    primary = site.primary
    for pooler in site.poolers:
        writes_through(pooler)
    with site.load(duration=120) as load:
        wait_until(lambda: primary.value("SELECT count(*) FROM public.load", dbname="app") > 50, 60)
        with frozen([processes_of(primary)[0]]):
            refused(fail_over(site, tries=1), "%s is reached still" % primary.name, "answered while we looked")
    assert load.report["errors"] == 0 and load.lost == set() and site.primary is primary


def test_a_frozen_primary(site):
    """It answers nobody, and its host says that it runs: it is ended there, by the only signal that it hears."""
    old = site.primary
    caught_up(old, *[node for node in site.nodes if node is not old])
    with frozen(processes_of(old)):
        result = fail_over(site, tries=1, answer_timeout=2)
    assert not result["failed"] and any(step.startswith("end the server of") for step in result["performed"]), result
    assert {opinion["answer"] for opinion in result["opinions"]} == {"silent"}
    assert result["primary"] == site.primary.name != old.name and old.pid is None


def without_host(site, node):
    """Nothing leads to the host of this node."""
    nodes = site.options("db2")["nodes"]
    for entry in nodes:
        if entry["name"] == node.name:
            del entry["data_directory"]
    return nodes


def test_a_host_that_is_gone(site):
    """That nobody reaches it is no proof, unless the user vouches for it."""
    old = site.primary
    caught_up(old, *[node for node in site.nodes if node is not old])
    nodes = without_host(site, old)
    crash(old)
    result = fail_over(site, nodes=nodes)
    refused(result, "no proof", "fenced")
    assert result["needs_fencing"] == [old.name], result
    # Nobody shall fence what would not help.
    assert fail_over(site, nodes=nodes, max_data_loss_bytes=0)["needs_fencing"] == []
    refused(fail_over(site, nodes=nodes, fenced=[old.name], max_data_loss_bytes=0), "max_data_loss_bytes is 0", "not known")
    result = fail_over(site, nodes=nodes, fenced=[old.name])
    assert not result["failed"] and not result["data_loss"]["known"] and result["proof"][old.name]["kind"] == "vouched", result
    assert result["primary"] == site.primary.name


def test_a_host_that_is_vouched_for_and_reached(site):
    primary = site.primary
    nodes = cut_off_from_us(site, primary)
    for entry in nodes:
        if entry["name"] == primary.name:
            del entry["data_directory"]
    refused(fail_over(site, nodes=nodes, fenced=[primary.name]), "%s is reached still" % primary.name)
    assert fail_over(site, nodes=nodes)["needs_fencing"] == []
    assert fail_over(site, nodes=nodes, if_reached="fence")["needs_fencing"] == [primary.name]
    assert site.primary is primary and site.paused() == []


def test_what_a_crashed_primary_has_sent_to_nobody(site):
    """Its WAL is read: how much would be lost is known to the byte, and refused where it is too much."""
    old = site.primary
    standbys = [node for node in site.nodes if node is not old]
    caught_up(old, *standbys)
    for standby in standbys:
        cut_off(standby)
    position = old.value("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
    with old.connect() as session:
        session.execute("CREATE TABLE public.unsent AS SELECT n FROM generate_series(1, 100) AS n")
    # Nothing is flushed behind the commit but what the background does.
    written = old.value("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn") - position
    crash(old)
    result = fail_over(site, max_data_loss_bytes=1000)
    refused(result, "bytes of WAL would be lost", old.name)
    assert result["data_loss"]["known"] and written <= result["data_loss"]["bytes"] < written + 4096, (written, result["data_loss"])
    for node in standbys:
        node.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (db1, db2, db3)'")
        node.sql("SELECT pg_reload_conf()")
    result = fail_over(site)
    refused(result, "max_data_loss_bytes is 0")
    result = fail_over(site, max_data_loss_bytes=1048576)
    assert not result["failed"] and result["data_loss"]["bytes"] > 1000, result


@pytest.mark.parametrize("while_it_writes", [False, True])
def test_a_frozen_primary_with_more_wal_than_may_be_lost(site, while_it_writes):
    """What nobody has received is read in its directory, and once more when it was ended: what it is then has to be within the limit, too."""
    old = site.primary
    standbys = [node for node in site.nodes if node is not old]
    caught_up(old, *standbys)
    for standby in standbys:
        cut_off(standby)

    def write():
        with old.connect() as session:
            session.execute("CREATE TABLE public.unsent AS SELECT n FROM generate_series(1, 1000) AS n")

    if not while_it_writes:
        write()
        with frozen(processes_of(old)):
            refused(fail_over(site, max_data_loss_bytes=10000), "bytes of WAL would be lost", old.name, "still to be ended")
        assert site.primary is old
        return
    candidate = standbys[0]
    with frozen(processes_of(old)):
        driver = driven(site, options(site, candidate=candidate.name, max_data_loss_bytes=10000, tries=1), "ask", "step.end.before")
        assert "AT" in driver.stdout.readline()
    # It wakes up and works on before it is ended.
    write()
    with frozen(processes_of(old)):
        result = json.loads(driver.communicate("go\n", timeout=120)[0].splitlines()[-1])
    assert result["failed"] and result["error"] == "RolledBack" and "bytes of WAL would be lost" in result["msg"], result
    assert site.primary is old and old.value("SELECT count(*) FROM public.unsent") == 1000 and not (old.data / "standby.signal").exists()
    assert site.paused() == []


def test_the_best_standby_gets_what_another_one_has(site):
    old, candidate = site.primary, next(node for node in site.nodes if node.in_recovery)
    other = next(node for node in site.nodes if node.in_recovery and node is not candidate)
    caught_up(old, candidate, other)
    before = candidate.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'")
    cut_off(candidate)
    with old.connect() as session:
        session.execute("CREATE TABLE public.sent_to_one AS SELECT n FROM generate_series(1, 100) AS n")
    caught_up(old, other)
    crash(old)
    result = fail_over(site, candidate=candidate.name, max_data_loss_bytes=0)
    assert not result["failed"] and any("receive" in step for step in result["performed"]), result
    assert candidate.value("SELECT count(*) FROM public.sent_to_one") == 100 and site.primary is candidate
    assert before is not None and other.value("SELECT count(*) FROM public.sent_to_one") == 100


def test_a_standby_that_lags_by_segments_still_gets_them(site):
    """The checkpoint of the new primary removes what nobody holds, and a standby may need seconds before it asks."""
    old, candidate = site.primary, next(node for node in site.nodes if node.in_recovery)
    other = next(node for node in site.nodes if node.in_recovery and node is not candidate)
    caught_up(old, candidate, other)
    candidate.sql("ALTER SYSTEM SET wal_keep_size = 0")
    candidate.sql("SELECT pg_reload_conf()")
    cut_off(other)
    for _segment in range(2):
        old.sql("SELECT pg_logical_emit_message(false, '', 'something')")
        old.sql("SELECT pg_switch_wal()")
    caught_up(old, candidate)
    crash(old)
    driver = driven(site, options(site, candidate=candidate.name), "ask", "step.point.before")
    assert "AT" in driver.stdout.readline()
    candidate.sql("CHECKPOINT")
    result = json.loads(driver.communicate("go\n", timeout=120)[0].splitlines()[-1])
    assert not result["failed"], result
    wait_until(lambda: other.value("SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'") == result["timeline"], 20)
    candidate.sql("ALTER SYSTEM RESET wal_keep_size")
    candidate.sql("SELECT pg_reload_conf()")


def test_without_a_candidate_the_one_that_has_most_is_taken(site):
    old = site.primary
    behind, other = (node for node in site.nodes if node is not old)
    cut_off(behind)
    old.sql("CREATE TABLE public.sent_to_the_other AS SELECT 1")
    caught_up(old, other)
    crash(old)
    refused(fail_over(site, exclude=[behind.name, other.name]), "no standby can take over", "excluded")
    result = fail_over(site)
    assert not result["failed"] and result["primary"] == other.name, result


def test_a_pooler_that_is_gone_and_one_that_cannot_be_written(site):
    """The first one is skipped, the second one lets nobody in; when both are back the next run leads them."""
    old = site.primary
    gone, stuck = site.poolers
    caught_up(old, *[node for node in site.nodes if node is not old])
    crash(old)
    gone.stop()
    refused(fail_over(site, unreachable_poolers="fail"), "pooler %s" % gone.name)
    text = stuck.databases_file.read_text()
    # In such a directory nobody may replace the file of another user.
    owner, mode = stuck.base.stat(), stuck.base.stat().st_mode & 0o7777
    os.chown(stuck.base, 0, 0)
    stuck.base.chmod(0o1777)
    os.chown(stuck.databases_file, 0, 0)
    stuck.databases_file.chmod(0o644)
    try:
        result = fail_over(site)
        assert result["failed"] and stuck.name in result["msg"] and "is the new primary" in result["msg"], result
        assert stuck.databases_file.read_text() == text and site.primary is not old
        assert set(result["poolers_left"]) == {gone.name, stuck.name}, result
        rows = {row["name"]: row for row in stuck.show("DATABASES")}
        assert rows["app"]["disabled"] and not rows["app"]["paused"], rows
    finally:
        for path in (stuck.base, stuck.databases_file):
            os.chown(path, owner.st_uid, owner.st_gid)
        stuck.base.chmod(mode)
        gone.start()
    result = fail_over(site)
    assert not result["failed"] and result["changed"], result
    for pooler in site.poolers:
        assert writes_through(pooler) == (True, site.primary.port)
    result = fail_over(site)
    assert not result["failed"] and not result["changed"], result


def test_a_pooler_that_was_left_and_an_old_primary_that_follows_already(site):
    """Nothing tells any more that anything was lost, but that the pooler lets nobody in to where it leads. Without that it may be meant."""
    pooler, standby = site.poolers[0], next(node for node in site.nodes if node.in_recovery)
    text = pooler.databases_file.read_text()
    pooler.databases_file.write_text(text.replace("app = host=127.0.0.1 port=%d" % site.primary.port, "app = host=127.0.0.1 port=%d" % standby.port))
    with pooler.console() as console:
        console.execute("RELOAD")
        result = fail_over(site)
        assert not result["failed"] and not result["changed"], result
        assert any("the entry app leads to %s, which is a standby" % standby.name in warning for warning in result["warnings_found"]), result
        console.execute("DISABLE app")
    result = fail_over(site, check=True)
    assert not result["failed"] and result["changed"], result
    result = fail_over(site)
    assert not result["failed"] and result["changed"] and result["performed"] == ["lead %s to %s" % (pooler.name, site.primary.name)], result
    assert writes_through(pooler) == (True, site.primary.port) and pooler.databases_file.read_text() == text
    result = fail_over(site)
    assert not result["failed"] and not result["changed"] and result["warnings_found"] == [], result


def test_a_standby_that_has_more_than_the_new_primary_is_left_for_a_rejoin(site):
    """It was down meanwhile, and would go on with WAL that the new primary never had."""
    old = site.primary
    candidate, other = (node for node in site.nodes if node is not old)
    caught_up(old, candidate, other)
    cut_off(candidate)
    old.sql("CREATE TABLE public.sent_to_one_that_is_down AS SELECT n FROM generate_series(1, 100) AS n")
    caught_up(old, other)
    other.stop()
    crash(old)
    result = fail_over(site, candidate=candidate.name, max_data_loss_bytes=1048576)
    assert not result["failed"] and set(result["to_rejoin"]) == {old.name, other.name}, result
    before = (other.data / "postgresql.auto.conf").read_text()
    other.start()
    # As if it had gone away between the promotion and its turn to follow.
    candidate.sql("SELECT pg_create_physical_replication_slot(%s, true)", [other.name])
    for check in (True, False):
        result = fail_over(site, check=check)
        assert not result["failed"] and result["changed"], result
        assert result["plan"] == ["drop slot %s on %s, which holds WAL that %s has no use for" % (other.name, candidate.name, other.name)], result
    for _again in (1, 2):
        result = fail_over(site)
        assert not result["failed"] and not result["changed"] and other.name in result["to_rejoin"], result
        assert any(warning.startswith("%s cannot follow %s" % (other.name, candidate.name)) for warning in result["warnings_found"]), result
    assert (other.data / "postgresql.auto.conf").read_text() == before
    assert other.name not in [name for (name,) in candidate.sql("SELECT slot_name FROM pg_replication_slots")]


def test_two_failovers_at_once(site):
    """One is refused, or finds that there is a primary; there is never a second one."""
    crash(site.primary)
    results = []
    standbys = [node.name for node in site.nodes if node.pid]
    threads = [threading.Thread(target=lambda name=name: results.append(fail_over(site, candidate=name))) for name in standbys]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(psycopg.Error):
            most = max(most, len([node for node in site.nodes if node.pid and not node.in_recovery]))
    assert most <= 1 and len(site.primaries) == 1
    done = [result for result in results if not result["failed"] and result["changed"]]
    assert len(done) == 1 and done[0]["primary"] == site.primary.name, results


# The third to be armed is the candidate's guardian, after those of the poolers.
@pytest.mark.parametrize("moment", ["step.promote.before", "step.end.after", "guardian.arm#3.before"])
def test_a_failover_that_fails_before_the_promotion_is_taken_back(site, moment):
    """The server that was ended starts again as what it was, and the poolers lead to it."""
    old = site.primary
    candidate = next(node for node in site.nodes if node is not old)
    wanted = options(site, nodes=cut_off_from_us(site, old), if_reached="fence", candidate=candidate.name, tries=1)
    result = drive(site, wanted, moment)
    assert result["failed"] and result["error"] == "RolledBack" and result["changed"] is False, result
    assert site.primary is old and not (old.data / "standby.signal").exists() and site.paused() == []
    assert candidate.value("SELECT count(*) FROM pg_replication_slots") == 0
    for pooler in site.poolers:
        assert writes_through(pooler) == (True, old.port)


def test_a_candidate_that_may_have_been_told_keeps_the_old_primary_fenced(site):
    """After a failure nothing is started as a primary while somebody else may become one."""
    old = site.primary
    candidate = next(node for node in site.nodes if node is not old)
    wanted = options(site, nodes=cut_off_from_us(site, old), if_reached="fence", candidate=candidate.name, tries=1, timeout=6)
    (candidate.data / "promote").mkdir()
    try:
        result = drive(site, wanted, "step.promote.before")
        assert result["failed"] and "fenced" in result["recovery"][old.name], result
        assert (old.data / "standby.signal").exists() and len(site.primaries) <= 1
    finally:
        (candidate.data / "promote").rmdir()
