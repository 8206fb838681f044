# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_switchover as users call it: what it does, and everything that it refuses before it changes anything."""

from __future__ import annotations

import json
import subprocess
import threading
import time

import psycopg
import pytest
from lab import SUPERUSER_PASSWORD, Lab, call_module, wait_until
from switchover_site import Site


@pytest.fixture(scope="module")
def site():
    lab = Lab()
    yield Site(lab)
    lab.close()


@pytest.fixture
def unchanged(site):
    """The test must leave everything as it was."""
    site.primary.wait_for_standbys(2)
    before = site.fingerprint()
    primary = site.primary.name
    yield primary
    site.primary.wait_for_standbys(2)
    assert site.fingerprint() == before
    assert site.primary.name == primary


def standby_of(site):
    return next(node.name for node in site.nodes if node.in_recovery)


def test_the_four_steps(site):
    """Check, run, check again, run again, with clients that write all the time."""
    candidate = standby_of(site)
    old = site.primary.name
    fingerprint = site.fingerprint()
    check = site.switch(candidate, check=True, diff=True)
    assert not check["failed"] and check["changed"], check
    assert check["performed"] == [] and site.fingerprint() == fingerprint
    with site.load() as load:
        time.sleep(0.5)
        real = site.switch(candidate, diff=True)
        assert not real["failed"], real["msg"]
        time.sleep(0.5)
    assert real["changed"] and real["plan"] == check["plan"] == real["performed"]
    assert real["diff"] == check["diff"]
    assert real["primary"] == candidate and real["old_primary"] == old
    assert real["timeline"] == real["timeline_before"] + 1
    assert load.report["errors"] == 0, load.report["error_texts"]
    assert load.lost == set() and load.report["commits"] > 100
    # The outage that clients saw is what the poolers were paused for, and little more; the rest of the playing time is outside.
    assert load.report["outage_ms"] < real["paused_ms"] + 1000
    for part in ("connect", "checkpoint", "pause", "stop", "replay", "promote", "reload", "resume"):
        assert real["timing_ms"][part] > 0
    for again in (True, False):
        second = site.switch(candidate, check=again)
        assert not second["failed"] and not second["changed"] and second["plan"] == [], second


def test_afterwards_everything_follows_the_new_primary(site):
    candidate, old = standby_of(site), site.primary
    result = site.switch(candidate)
    assert not result["failed"], result["msg"]
    new = site.node(candidate)
    assert [node.name for node in site.primaries] == [candidate]
    followers = {row[0] for row in new.sql("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")}
    assert followers == {node.name for node in site.nodes} - {candidate}
    # Slots moved: each follower has one on the new primary, nobody has one on a standby.
    assert {row[0] for row in new.sql("SELECT slot_name FROM pg_replication_slots WHERE active")} == followers
    for node in site.nodes:
        if node is not new:
            assert node.sql("SELECT slot_name FROM pg_replication_slots") == []
            assert (node.data / "standby.signal").exists()
            assert node.value("SELECT received_tli FROM pg_stat_wal_receiver") == result["timeline"]
    assert not (new.data / "standby.signal").exists()
    # No copy was made: the old primary's directory still holds what was put there.
    assert old.data.stat().st_ino
    # What was set for the way is gone.
    assert new.value("SELECT setting FROM pg_settings WHERE name = 'wal_retrieve_retry_interval'") == "5000"
    # Disk and run time of the poolers agree; read-only entries lead to a standby.
    for pooler in site.poolers:
        rows = {row["name"]: row for row in pooler.show("DATABASES")}
        assert rows["app"]["port"] == new.port and not rows["app"]["paused"]
        assert rows["app_ro"]["port"] in {node.port for node in site.nodes if node is not new}
        text = pooler.databases_file.read_text()
        assert "app = host=127.0.0.1 port=%d dbname=app\n" % new.port in text
        assert "port=%d dbname=app\n" % rows["app_ro"]["port"] in text
        assert text.startswith("; the databases of ")
        with pooler.connect("app") as rw, pooler.connect("app_ro") as ro:
            assert rw.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
            assert ro.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


def test_a_check_writes_nothing_at_all(site, unchanged):
    candidate = standby_of(site)
    stamps = {path: path.stat().st_mtime_ns for pooler in site.poolers for path in (pooler.databases_file, pooler.ini)}
    # A server writes by itself now and then; a check that wrote would do so each time.
    moved = []
    for _attempt in range(4):
        before = site.primary.value("SELECT pg_current_wal_lsn()")
        assert site.switch(candidate, check=True)["changed"]
        moved.append(site.primary.value("SELECT pg_current_wal_lsn()") != before)
        if not moved[-1]:
            break
    assert not all(moved)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


# -- bad input -----------------------------------------------------------------------------------------------------


def refused(result, *words):
    assert result["failed"] and not result["changed"], result
    assert result["performed"] == []
    for word in words:
        assert word in result["msg"], (word, result["msg"])
    assert SUPERUSER_PASSWORD not in json.dumps(result["msg"])
    return result


def test_an_unknown_candidate(site, unchanged):
    result = refused(site.switch("db9"), "candidate", '"db9"', "db1, db2, db3")
    assert result["error"] == "InvalidInput"


def test_a_candidate_that_is_the_primary(site, unchanged):
    result = refused(site.switch(unchanged, if_primary="fail"), "the candidate %s is the primary already" % unchanged, "nothing was changed")
    assert result["error"] == "Refused"


def test_a_pooler_that_does_not_answer(site, unchanged):
    options = site.options(standby_of(site))
    options["poolers"].append({"name": "pooler9", "host": "127.0.0.1", "port": 1, "config_file": str(site.poolers[0].databases_file)})
    refused(call_module("pg_switchover", options), "pooler9", "127.0.0.1:1 does not answer", "nothing was changed")


def test_a_pooler_whose_file_is_not_there(site, unchanged):
    options = site.options(standby_of(site))
    options["poolers"][0]["config_file"] = "/nonexistent/pgbouncer.ini"
    refused(call_module("pg_switchover", options), "pooler1", "/nonexistent/pgbouncer.ini", "No such file")


def test_a_pooler_that_leads_elsewhere(site, unchanged):
    stranger = site.lab.pgbouncer("stranger", {"app": "host=127.0.0.1 port=1 dbname=app"}).start()
    options = site.options(standby_of(site))
    options["poolers"].append({"name": "stranger", "host": "127.0.0.1", "port": stranger.port, "config_file": str(stranger.databases_file)})
    refused(call_module("pg_switchover", options), "stranger has no entry that leads to the primary")
    stranger.stop()


def test_a_wrong_password(site, unchanged):
    result = refused(site.switch(standby_of(site), login_password="wrong"), "does not let user", '"postgres"')
    assert "wrong" not in result["msg"].replace("wrong password", "")


def test_a_wrong_password_of_the_poolers(site, unchanged):
    refused(site.switch(standby_of(site), pooler_password="wrong"), "pooler1", "pooler2", 'does not let user "pooler_admin" in')


def test_a_node_of_another_cluster(site, unchanged):
    stranger = site.lab.postgres("stranger_node").init().start()
    options = site.options(standby_of(site))
    options["nodes"].append({"name": "stranger", "host": "127.0.0.1", "port": stranger.port})
    identifier = stranger.value("SELECT system_identifier::text FROM pg_control_system()")
    refused(call_module("pg_switchover", options), "different clusters", "stranger: " + identifier)
    stranger.stop()


def test_a_node_that_does_not_answer(site, unchanged):
    options = site.options(standby_of(site))
    options["nodes"].append({"name": "db4", "host": "127.0.0.1", "port": 1})
    refused(call_module("pg_switchover", options), "node db4 (127.0.0.1:1) does not answer")


def test_a_data_directory_of_another_server(site, unchanged):
    stranger = site.lab.postgres("other_data").init()
    options = site.options(standby_of(site))
    for entry in options["nodes"]:
        entry["data_directory"] = str(stranger.data)
    refused(call_module("pg_switchover", options), "belongs to another cluster")


def test_a_pool_in_session_mode(own_lab):
    site = Site(own_lab, nodes=2, poolers=1, pool_mode="session")
    before = site.fingerprint()
    refused(site.switch("db2"), "pooler1 pools by session for app")
    assert site.fingerprint() == before


def test_a_login_without_rights(site, unchanged):
    site.primary.sql("CREATE ROLE plain LOGIN PASSWORD 'open sesame'")
    try:
        result = site.switch(standby_of(site), login_user="plain", login_password="open sesame")
        refused(result, 'the login "plain" is no superuser')
    finally:
        site.primary.sql("DROP ROLE plain")


def test_a_password_in_the_replication_options(site, unchanged):
    options = site.options(standby_of(site))
    options["nodes"][0]["conninfo"]["password"] = "hidden-word"
    result = call_module("pg_switchover", options)
    refused(result, "db1", "passfile")
    assert "hidden-word" not in result["msg"]


def test_psycopg_missing_on_the_target(site, unchanged):
    environment = site.lab.path / "bare"
    if not environment.exists():
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(environment)], check=True)
    result = call_module("pg_switchover", site.options(standby_of(site)), environment={"ANSIBLE_PYTHON_INTERPRETER": str(environment / "bin" / "python3")})
    refused(result, "psycopg 3 is missing", "python3-psycopg")


def test_a_long_transaction_is_named(site, unchanged):
    with site.primary.connect("app", application_name="nightly report") as connection, connection.transaction():
        connection.execute("SELECT 1")
        pid = connection.info.backend_pid
        time.sleep(1.2)
        refused(site.switch(standby_of(site), transaction_limit=1), "pid %d" % pid, "nightly report", "longer than 1 s")


def test_replay_that_is_paused(site, unchanged):
    name = standby_of(site)
    site.node(name).sql("SELECT pg_wal_replay_pause()")
    try:
        refused(site.switch(name), "the candidate %s cannot be promoted: replay is paused" % name)
    finally:
        site.node(name).sql("SELECT pg_wal_replay_resume()")


@pytest.mark.parametrize(("named", "what"), [(" app", "app"), ("", "everything")])
def test_an_entry_that_is_paused_already(site, unchanged, named, what):
    with site.poolers[0].console() as console:
        console.execute("PAUSE" + named)
        try:
            refused(site.switch(standby_of(site)), "pooler1: %s is paused already" % what)
        finally:
            console.execute("RESUME" + named)


# -- inside the window ---------------------------------------------------------------------------------------------


def test_a_transaction_that_outlasts_the_pause_rolls_back(site, unchanged):
    """PAUSE waits for it; at the bound everything is resumed, the transaction commits, nobody gets an error."""
    outcome = {}
    switched = threading.Event()

    def hold():
        with site.poolers[0].connect("app") as connection, connection.transaction():
            connection.execute("INSERT INTO public.load VALUES ('holder', 1, %s)", [int(time.time() * 1000) % 10**9])
            outcome["open"] = True
            switched.wait(120)
        outcome["committed"] = True

    holder = threading.Thread(target=hold)
    holder.start()
    wait_until(lambda: outcome.get("open"), 10)
    with site.load(clients=8) as load:
        try:
            result = site.switch(standby_of(site), transaction_limit=600, pause_timeout=1)
            assert not site.paused()
        finally:
            switched.set()
            holder.join()
    assert outcome.get("committed")
    refused_message = result["msg"]
    assert result["failed"] and result["error"] == "RolledBack", result
    assert "PAUSE did not end within 1 s on pooler1" in refused_message and "rolled back" in refused_message
    assert load.report["errors"] == 0 and load.lost == set()


def test_the_clients_of_one_entry_do_not_wait_for_those_of_another(own_lab):
    """All entries of a pooler are paused while transactions are open in each, not one after the other."""
    site = Site(own_lab, nodes=2, poolers=1)
    (pooler,) = site.poolers
    results = []
    with pooler.connect("app") as writer, pooler.connect("app_ro") as reader:
        for connection in (writer, reader):
            connection.execute("BEGIN")
            connection.execute("SELECT 1")
        switching = threading.Thread(target=lambda: results.append(site.switch("db2", transaction_limit=600, timeout=120, pause_timeout=20)))
        switching.start()
        wait_until(lambda: results or site.paused() == [("pooler1", "app"), ("pooler1", "app_ro")], 30)
        assert not results, results
        for connection in (writer, reader):
            connection.execute("COMMIT")
        switching.join()
    assert not results[0]["failed"], results[0]["msg"]
    assert site.paused() == []


def test_two_nodes_only(own_lab):
    """The read-only entry has no other standby to go to: it waits for the old primary to be one."""
    site = Site(own_lab, nodes=2, poolers=1)
    result = site.switch("db2")
    assert not result["failed"], result["msg"]
    rows = {row["name"]: row for row in site.poolers[0].show("DATABASES")}
    assert rows["app"]["port"] == site.node("db2").port and rows["app_ro"]["port"] == site.node("db1").port
    assert site.paused() == []
    with site.poolers[0].connect("app_ro") as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


def test_without_poolers_and_a_direct_writer(site):
    """Nobody pauses: a direct client gets its error, and everything that it was told is committed is there."""
    acknowledged, errors = [], []
    candidate, old = standby_of(site), site.primary
    stop = threading.Event()

    def write():
        with old.connect("app") as connection:
            n = 0
            while not stop.is_set():
                n += 1
                try:
                    connection.execute("INSERT INTO public.load VALUES ('direct', %s, %s)", [id(stop) % 10**6, n])
                    acknowledged.append(n)
                except psycopg.Error as error:
                    errors.append(str(error))
                    return

    writer = threading.Thread(target=write)
    writer.start()
    result = site.switch(candidate, poolers=[])
    stop.set()
    writer.join()
    assert not result["failed"], result["msg"]
    held = {row[0] for row in site.primary.sql("SELECT sequence FROM public.load WHERE run = 'direct' AND client = %s", [id(stop) % 10**6], dbname="app")}
    assert acknowledged and set(acknowledged) <= held
    assert len(errors) == 1
    # The poolers were left out and still lead to the old primary; switching back makes that right again.
    assert not site.switch(old.name, poolers=[])["failed"]


def test_a_switchover_by_a_shell_to_another_host(site):
    """The way to another host: guardians behind a command. Here the command is env, on a host it is ssh."""
    candidate = standby_of(site)
    options = site.options(candidate)
    for entry in options["nodes"]:
        entry.update(shell=["env", "PGFLEET=1"], method="pg_ctl", bin_directory="/usr/lib/postgresql/%s/bin" % site.nodes[0].value("SHOW server_version")[:2])
    for entry in options["poolers"]:
        entry["shell"] = ["env", "PGFLEET=1"]
    result = call_module("pg_switchover", options)
    assert not result["failed"], result["msg"]
    assert site.primary.name == candidate


def test_a_shell_that_does_not_work(site, unchanged):
    options = site.options(standby_of(site))
    for entry in options["poolers"]:
        entry["shell"] = ["false"]
    refused(call_module("pg_switchover", options), "the guardian of pooler1 is gone", "without a password or a question")


def test_no_secret_is_seen_anywhere(site):
    """Not in the result, not in the arguments of any process, not in a log, while it runs."""
    seen, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            listing = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
            # The test's own call of ansible carries the options as its arguments; nothing below it may.
            seen.extend(line for line in listing.splitlines() if "super secret" in line and "/ansible localhost" not in line)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = site.switch(standby_of(site), diff=True)
    stop.set()
    watcher.join()
    assert not result["failed"], result["msg"]
    assert "super secret" not in json.dumps(result)
    assert seen == []
    for node in site.nodes:
        assert "super secret" not in node.log.read_text()
        assert "super secret" not in (node.data / "postgresql.auto.conf").read_text()
