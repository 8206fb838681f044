# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has made, or could make, two primaries, a pooler that leads to the wrong node, or none at all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import pytest
from lab import SUPERUSER_PASSWORD, wait_until
from switchover_site import Sites
from test_switchover_accidents import other, run_driver, settled, split, writable


@pytest.fixture(scope="module")
def sites():
    with Sites(poolers=1) as sites:
        yield sites


@pytest.fixture
def site(sites):
    return sites.sound()


def result_of(process, timeout=90):
    output, _errors = process.communicate(timeout=timeout)
    return json.loads(output.splitlines()[-1])


def heal(site):
    """Whatever a test left: one primary, all others behind it."""
    assert not site.switch(site.primary.name)["failed"]
    site.primary.wait_for_standbys(2)


@contextlib.contextmanager
def frozen(pids):
    # A backend may have ended since it was counted.
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def state_and_parent(pid):
    with open("/proc/%s/stat" % pid, encoding="utf-8") as stream:
        state, parent = stream.read().rpartition(")")[2].split()[:2]
    return state, int(parent)


def children_of(pid):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if state_and_parent(entry)[1] == pid:
                    found.append(int(entry))
    return found


def processes_of(node):
    """The postmaster and its children."""
    return [node.pid, *children_of(node.pid)]


def stopped(process):
    return state_and_parent(process.pid)[0] == "T"


def test_two_switchovers_at_once(site):
    """One of them is refused, whatever it wanted; there is never a second primary."""
    for _attempt in range(3):
        primary = site.primary.name
        standbys = [node.name for node in site.nodes if node.name != primary]
        processes = [run_driver(site, standbys[0], "none"), run_driver(site, standbys[1], "none")]
        two = []
        while any(process.poll() is None for process in processes):
            two += split(site)
        results = [result_of(process) for process in processes]
        assert not two
        if len({result.get("timeline") for result in results if not result["failed"]}) < 2:
            break
        # One had ended before the other one looked: those were not at once.
        heal(site)
    assert [result["failed"] for result in results].count(False) == 1, results
    (lost,) = [result for result in results if result["failed"]]
    # The other one may stop the server while it is being looked at.
    assert lost["error"] in ("Refused", "RolledBack", "NotReachable"), lost
    winner = standbys[[result["failed"] for result in results].index(False)]
    assert [node.name for node in site.primaries] == [winner]
    assert (site.node(primary).data / "standby.signal").exists()
    heal(site)


def test_a_second_one_that_looks_while_nobody_is_the_primary(site):
    """The first one has given up the old primary and not promoted yet: that looks as if it had been killed there."""
    primary = site.primary.name
    standbys = [node.name for node in site.nodes if node.name != primary]
    first = run_driver(site, standbys[0], "stop", "guardian.release.after", timeout=90)
    wait_until(lambda: stopped(first), 30)
    lost = result_of(run_driver(site, standbys[1], "none"))
    assert lost["failed"] and lost["error"] == "Refused" and "another operation is at work" in lost["msg"], lost
    assert writable(site) == []
    os.kill(first.pid, signal.SIGCONT)
    won = result_of(first)
    assert not won["failed"], won
    assert [node.name for node in site.primaries] == [standbys[0]]
    heal(site)


def test_a_controller_that_wakes_up_after_its_guardians_are_gone(site):
    """As a notebook that was closed in the wrong moment: its session to the candidate may have survived, another run has taken over."""
    primary = site.primary.name
    standbys = [node.name for node in site.nodes if node.name != primary]
    first = run_driver(site, standbys[0], "stop", "guardian.release.after", timeout=90)
    wait_until(lambda: stopped(first), 30)
    for pid in children_of(first.pid):
        os.kill(pid, signal.SIGKILL)
    runs = []
    wait_until(lambda: runs.append(site.switch(standbys[1])) or not runs[-1]["failed"], 60)
    assert [node.name for node in site.primaries] == [standbys[1]]
    os.kill(first.pid, signal.SIGCONT)
    woken = result_of(first)
    assert woken["failed"] and "is gone" in woken["msg"], woken
    assert [node.name for node in site.primaries] == [standbys[1]]
    assert writable(site) == [standbys[1]]
    heal(site)


def test_a_second_one_while_the_first_prepares(site):
    """The lock is taken before anything is done, and held until the guardian is gone."""
    primary = site.primary.name
    candidate = other(site, primary)
    first = run_driver(site, candidate, "hang", "step.prepare.after")
    try:
        wait_until(lambda: site.node(candidate).value("SELECT setting FROM pg_settings WHERE name = 'wal_retrieve_retry_interval'") == "5", 20)
        second = site.switch(candidate)
        assert second["failed"] and second["error"] == "Refused", second
        assert "another operation is at work" in second["msg"]
    finally:
        first.kill()
        first.wait(10)
    assert [node.name for node in site.primaries] == [primary]
    heal(site)


def test_settings_of_a_point_in_time_recovery(site):
    """A standby with a recovery target ends its recovery there, by itself: no fence at all."""
    primary = site.primary
    primary.sql("ALTER SYSTEM SET recovery_target = 'immediate'")
    primary.sql("SELECT pg_reload_conf()")
    try:
        primary.stop()
        primary.start()
        wait_until(lambda: len(site.primaries) == 1, 20)
        site.primary.wait_for_standbys(2)
        result = site.switch(other(site, primary.name))
        assert result["failed"] and "point-in-time recovery" in result["msg"] and "reset recovery_target" in result["msg"], result["msg"]
    finally:
        primary.sql("ALTER SYSTEM RESET recovery_target")
        primary.stop()
        primary.start()
        site.primary.wait_for_standbys(2)


def test_a_recovery_target_that_waits_for_a_restart(site):
    """The start as a standby is that restart."""
    primary = site.primary
    primary.sql("ALTER SYSTEM SET recovery_target = 'immediate'")
    try:
        result = site.switch(other(site, primary.name))
        assert result["failed"] and "recovery_target" in result["msg"], result["msg"]
    finally:
        primary.sql("ALTER SYSTEM RESET recovery_target")


def test_a_frozen_candidate_does_not_hold_up_the_poolers(site):
    """It neither answers nor refuses, as a host without power; the process is killed in the same moment."""
    primary = site.primary.name
    candidate = other(site, primary)
    process = run_driver(site, candidate, "hang", "step.pause.after", timeout=6)
    wait_until(lambda: bool(site.paused()), 20, interval=0.02)
    with frozen(processes_of(site.node(candidate))):
        process.kill()
        process.wait(10)
        began = time.monotonic()
        wait_until(lambda: not site.paused(), 20)
        assert time.monotonic() - began < 6 + 6
        with site.poolers[0].connect("app") as connection:
            assert connection.execute("SELECT current_setting('cluster_name'), pg_is_in_recovery()").fetchone() == (primary, False)
    heal(site)


def test_a_pooler_restarted_in_the_window(site):
    """It comes up with the file that leads to the candidate; the rollback must lead the new process back."""
    primary = site.primary.name
    process = run_driver(site, other(site, primary), "hang", "step.stop.after", timeout=8)
    wait_until(lambda: "port=%d" % site.node(primary).port not in site.poolers[0].databases_file.read_text().split("app_ro")[0], 20, interval=0.02)
    site.poolers[0].stop()
    site.poolers[0].start()
    process.kill()
    process.wait(10)
    wait_until(settled(site, primary), 20)

    def leads_back():
        with contextlib.suppress(Exception), site.poolers[0].connect("app") as connection:
            return connection.execute("SELECT current_setting('cluster_name'), pg_is_in_recovery()").fetchone() == (primary, False)
        return False

    wait_until(leads_back, 20)
    heal(site)


def test_a_file_that_the_pooler_does_not_read(site):
    """RELOAD answers success. That it changes nothing is seen before anything is paused."""
    primary = site.primary.name
    copy = site.poolers[0].base / "copy.ini"
    site.poolers[0]._write(copy, site.poolers[0].databases_file.read_text())
    options = site.options(other(site, primary))
    options["poolers"][0]["config_file"] = str(copy)
    with site.load(clients=4) as load:
        process = run_driver(site, other(site, primary), "none", poolers=options["poolers"])
        result = result_of(process)
    after = copy.read_text()
    copy.unlink()
    assert after == site.poolers[0].databases_file.read_text()
    assert result["failed"] and result["error"] == "RolledBack", result
    assert "does not take what %s says of app" % copy in result["msg"] and "pause" not in result["timing_ms"]
    assert [node.name for node in site.primaries] == [primary]
    assert load.report["errors"] == 0 and load.lost == set(), load.report["error_texts"]
    heal(site)


def test_a_file_that_the_pooler_refuses(site):
    """Somebody has left a fault in it, and nobody has reloaded it since."""
    primary, pooler = site.primary.name, site.poolers[0]
    before = pooler.databases_file.read_text()
    faulty = before.replace("[databases]\n", "[databases]\nnew = host=127.0.0.1 no_such_key=1\n")
    pooler._write(pooler.databases_file, faulty)
    result = site.switch(other(site, primary))
    assert pooler.databases_file.read_text() == faulty
    pooler._write(pooler.databases_file, before)
    pooler.console().execute("RELOAD")
    assert result["failed"] and "See the log of that PgBouncer" in result["msg"], result
    assert [node.name for node in site.primaries] == [primary] and not site.paused()
    heal(site)


@pytest.fixture(scope="module")
def pairs():
    """Two nodes: the old primary is the only one that can answer the read-only entries afterwards."""
    with Sites(nodes=2, poolers=1) as pairs:
        yield pairs


@pytest.mark.parametrize(("moment", "entry"), [("guardian.promote.after", "app"), ("step.start.before", "app_ro")])
def test_a_client_that_logs_in_while_everything_is_paused(pairs, moment, entry):
    """PgBouncer opens a server connection for one that comes after a RELOAD, the PAUSE closes it, and after the RESUME others are refused because of that."""
    site = pairs.sound()
    pooler, candidate = site.poolers[0], other(site, site.primary.name)
    with pooler.connect(entry) as old, contextlib.ExitStack() as stack:
        old.execute("SELECT 1")
        process = run_driver(site, candidate, "ask", moment)
        assert process.stdout.readline() == "AT\n"
        assert (pooler.name, entry) in site.paused()
        # It is let in at once, as nothing has been reloaded, and waits with its first statement.
        new = stack.enter_context(pooler.connect(entry))
        process.stdin.write("go\n")
        process.stdin.flush()
        result = result_of(process)
        assert not result["failed"], result
        led_to = {session.execute("SELECT current_setting('cluster_name')").fetchone()[0] for session in (old, new)}
    assert (led_to == {candidate}) == (entry == "app")


def test_a_file_that_is_edited_meanwhile(site):
    primary = site.primary.name
    pooler = site.poolers[0]
    before = pooler.databases_file.read_text()
    process = run_driver(site, other(site, primary), "hang", "step.prepare.after")
    wait_until(lambda: site.node(other(site, primary)).value("SELECT setting FROM pg_settings WHERE name = 'wal_retrieve_retry_interval'") == "5", 20)
    # The accident is a sleep of 60 s; that long an edit of somebody else has time to come in between.
    pooler._write(pooler.databases_file, before + "; somebody else was here\n")
    result = result_of(process, timeout=120)
    assert result["failed"] and "changed by somebody else" in result["msg"], result
    assert pooler.databases_file.read_text() == before + "; somebody else was here\n"
    assert not site.paused() and [node.name for node in site.primaries] == [primary]
    heal(site)


@pytest.mark.parametrize("moment", ["guardian.release.after", "guardian.promote.before"])
def test_killed_after_the_release_and_before_the_promotion(site, moment):
    """Nobody is the primary then, and nobody can become one by accident; the next run finishes it."""
    primary = site.primary.name
    candidate = other(site, primary)
    with site.load(clients=4) as load:
        process = run_driver(site, candidate, "kill", moment, timeout=4)
        process.wait(30)
        wait_until(lambda: site.answers(primary) and not site.paused(), 30)
        assert writable(site) == [] and (site.node(primary).data / "standby.signal").exists()
        result = site.switch(candidate)
        assert not result["failed"], result["msg"]
        assert result["plan"][0].startswith("promote %s" % candidate)
        time.sleep(1)
    assert writable(site) == [candidate]
    assert load.lost == set()
    with site.poolers[0].connect("app") as connection:
        assert connection.execute("SELECT current_setting('cluster_name')").fetchone() == (candidate,)
    heal(site)


def test_the_pooler_of_a_database_host_may_have_its_name(site):
    candidate = other(site, site.primary.name)
    options = site.options(candidate)
    options["poolers"][0]["name"] = site.primary.name
    result = result_of(run_driver(site, candidate, "none", poolers=options["poolers"]))
    assert not result["failed"], result
    heal(site)


def test_a_server_that_could_not_be_started_again(site):
    candidate = other(site, site.primary.name)
    options = site.options(candidate)
    for entry in options["nodes"]:
        entry.update(shell=["env", "A=1"], method="pg_ctl", bin_directory="/nonexistent")
    result = result_of(run_driver(site, candidate, "none", nodes=options["nodes"]))
    assert result["failed"] and "there is no program /nonexistent/pg_ctl" in result["msg"], result


def test_a_password_in_primary_conninfo(site):
    """A switchover would rewrite it, and the servers would print it to their logs."""
    standby = next(node for node in site.nodes if node.in_recovery)
    before = standby.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'")
    standby.sql("SELECT set_config('log_statement', 'none', false)")
    escaped = before.replace("'", "''")
    standby.sql("ALTER SYSTEM SET primary_conninfo = '%s password=hush'" % escaped)
    standby.sql("SELECT pg_reload_conf()")
    try:
        wait_until(lambda: "hush" in standby.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'"), 10)
        result = site.switch(next(node.name for node in site.nodes if node.in_recovery and node is not standby))
        assert result["failed"] and "%s holds a password" % standby.name in result["msg"], result["msg"]
        assert "hush" not in json.dumps(result)
    finally:
        standby.sql("ALTER SYSTEM SET primary_conninfo = '%s'" % escaped)
        standby.sql("SELECT pg_reload_conf()")
        site.primary.wait_for_standbys(2)


def test_a_shell_that_greets(site):
    """As ssh does where a login script prints something."""
    candidate = other(site, site.primary.name)
    options = site.options(candidate)
    for entry in options["poolers"]:
        entry["shell"] = ["sh", "-c", 'echo "Welcome to $HOSTNAME"; exec "$@"', "sh"]
    result = result_of(run_driver(site, candidate, "none", poolers=options["poolers"]))
    assert not result["failed"], result
    heal(site)


def test_connect_params_that_the_module_sets_itself(site):
    result = site.switch(site.primary.name, connect_params={"connect_timeout": 3, "application_name": "mine"}, login_password=SUPERUSER_PASSWORD)
    assert not result["failed"], result["msg"]
