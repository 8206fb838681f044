# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_instance on real servers."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._host import controldata
from lab import BIN, HOST, SUPERUSER_PASSWORD, call_module, four_steps, free_port, run, wait_until


def options(instance, **more):
    return {"data_directory": instance.data, "config_file": instance.config_file, "log_file": instance.log, "method": "pg_ctl", "timeout": 30, **more}


@pytest.fixture(scope="module")
def server(lab):
    return lab.postgres("instance").init()


@pytest.fixture
def running(server):
    if not server.pid:
        server.start()
    return server


@pytest.fixture
def stopped(server):
    server.stop()
    assert server.pid is None
    return server


def control_state(server):
    return run([BIN / "pg_controldata", "-D", server.data], env={**os.environ, "LC_ALL": "C"}).split("Database cluster state:")[1].splitlines()[0].strip()


def test_starts_a_server_that_is_down(stopped):
    result = four_steps("pg_instance", options(stopped, state="started"))
    assert result["state"] == "running" and result["pid"] == stopped.pid and result["port"] == stopped.port
    assert result["method"] == "pg_ctl" and result["version"] == BIN.parent.name and result["in_recovery"] is False and result["pending_restart"] is None
    assert stopped.value("SELECT 1") == 1
    assert result["diff"][0]["before"] == {"state": "stopped"} and result["diff"][0]["after"] == {"state": "running"}


def test_stops_a_server_that_runs(running):
    result = four_steps("pg_instance", options(running, state="stopped", **running.login))
    assert result["state"] == "stopped" and result["pid"] is None and result["control_state"] == "shut down"
    assert running.pid is None and control_state(running) == "shut down"


def test_check_mode_neither_starts_nor_stops(stopped):
    assert call_module("pg_instance", options(stopped), check=True)["changed"]
    assert stopped.pid is None
    stopped.start()
    before = stopped.pid
    for state in ("stopped", "restarted", "reloaded"):
        assert call_module("pg_instance", options(stopped, state=state), check=True)["changed"]
    assert stopped.pid == before


def test_restarts_with_a_new_process(running):
    before = running.pid
    result = call_module("pg_instance", options(running, state="restarted", **running.login))
    assert not result["failed"] and result["changed"] and result["pid"] == running.pid != before
    assert result["version"] == running.value("SELECT current_setting('server_version')") and result["pending_restart"] == []


def test_restarts_only_for_a_pending_restart(running):
    wanted = options(running, state="restarted", only_if_pending_restart=True, **running.login)
    before = running.pid
    result = call_module("pg_instance", wanted)
    assert not result["failed"] and not result["changed"] and running.pid == before
    running.sql("ALTER SYSTEM SET max_connections = 61")
    running.sql("SELECT pg_reload_conf()")
    wait_until(lambda: running.value("SELECT count(*) FROM pg_settings WHERE pending_restart") == 1, 10)
    result = four_steps("pg_instance", wanted)
    assert running.pid != before and result["pending_restart"] == [] and running.value("SHOW max_connections") == "61"
    assert result["diff"][0]["before"]["pending_restart"] == ["max_connections"]


def test_only_if_pending_restart_must_be_able_to_ask(running):
    before = running.pid
    result = call_module("pg_instance", options(running, state="restarted", only_if_pending_restart=True))
    assert result["failed"] and result["error"] == "InvalidInput" and "login_host" in result["msg"]
    assert running.pid == before


def test_reload_makes_settings_count(running):
    before = running.value("SHOW work_mem")
    with open(running.config_file, "a") as file:
        file.write("work_mem = '7MB'\n")
    assert running.value("SHOW work_mem") == before != "7MB"
    result = call_module("pg_instance", options(running, state="reloaded", **running.login))
    assert not result["failed"] and result["changed"], result
    assert running.value("SHOW work_mem") == "7MB"


def test_reload_needs_a_server(stopped):
    result = call_module("pg_instance", options(stopped, state="reloaded"))
    assert result["failed"] and result["error"] == "Refused" and "no server runs" in result["msg"] and stopped.pid is None


def test_broken_configuration_is_found_before_anything_stops(running):
    before, text = running.pid, running.config_file.read_text()
    try:
        running.write(running.config_file, text + "work_mem = 'much'\n")
        for state in ("restarted", "reloaded"):
            for check in (True, False):
                result = call_module("pg_instance", options(running, state=state), check=check)
                assert result["failed"] and result["error"] == "Refused" and "work_mem" in result["msg"], result
        assert running.pid == before
    finally:
        running.write(running.config_file, text)


def test_failed_start_shows_the_servers_own_lines(stopped):
    text = stopped.config_file.read_text()
    try:
        stopped.write(stopped.config_file, text + "shared_preload_libraries = 'no_such_library'\n")
        result = call_module("pg_instance", options(stopped))
    finally:
        stopped.write(stopped.config_file, text)
    assert result["failed"] and result["error"] == "CommandFailed" and result["phase"] == "execute"
    assert 'could not access file "no_such_library"' in result["msg"], result
    assert any("no_such_library" in line for line in result["log"])
    # Only what came since this start.
    assert not any("ready to accept connections" in line for line in result["log"])
    assert result["performed"] == [] and stopped.pid is None


def test_port_taken_by_another_program_is_named(stopped):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", stopped.port))
        other.listen()
        for check in (True, False):
            result = call_module("pg_instance", options(stopped), check=check)
            assert result["failed"] and result["error"] == "Refused", result
            assert "port %d of 127.0.0.1 is taken by" % stopped.port in result["msg"] and result["plan"] == []
    assert stopped.pid is None and "could not bind" not in "\n".join(result.get("log", []))


def test_port_taken_by_another_server_is_named_with_its_directory(lab, stopped):
    other = lab.postgres("port_owner", settings={"port": stopped.port}).init()
    other.port = stopped.port
    other.start()
    try:
        result = call_module("pg_instance", options(stopped))
        assert result["failed"] and "process %d (postgres in %s)" % (other.pid, other.data) in result["msg"], result
    finally:
        other.stop()
    assert not call_module("pg_instance", options(stopped))["failed"]


def test_stale_pid_file_is_no_server(stopped):
    """After a power failure the pid may belong to anything, here to a process that is no server, and to a server elsewhere."""
    sleeper = subprocess.Popen(["sleep", "300"])
    try:
        stopped.write(stopped.data / "postmaster.pid", "%d\n%s\n1\n%d\n\n127.0.0.1\n0 0\nready   \n" % (sleeper.pid, stopped.data, stopped.port))
        result = call_module("pg_instance", options(stopped, state="stopped"))
        assert not result["failed"] and not result["changed"] and result["state"] == "stopped"
        result = call_module("pg_instance", options(stopped, state="reloaded"))
        assert result["failed"] and "no server runs" in result["msg"]
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
        (stopped.data / "postmaster.pid").unlink()


def test_starts_after_the_postmaster_was_killed(running):
    before = running.pid
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: running.pid is None, 10)
    result = call_module("pg_instance", options(running, **running.login))
    assert not result["failed"] and result["changed"] and result["pid"] not in (None, before)


def test_smart_stop_that_clients_hold_up_says_so(running):
    with running.connect():
        result = call_module("pg_instance", options(running, state="stopped", mode="smart", timeout=2))
        assert result["failed"] and "mode fast" in result["msg"], result
    wait_until(lambda: running.pid is None, 20)


def test_immediate_stop_is_no_shutdown(running):
    result = call_module("pg_instance", options(running, state="stopped", mode="immediate"))
    assert not result["failed"] and result["state"] == "stopped" and result["control_state"] == "in production"


def test_root_is_told_to_become_the_owner(stopped):
    result = call_module("pg_instance", options(stopped), user=None)
    assert result["failed"] and result["error"] == "InvalidInput" and "become_user" in result["msg"], result
    assert stopped.pid is None


def test_directory_without_a_cluster_is_refused(lab):
    empty = lab.path / "nothing"
    empty.mkdir(exist_ok=True)
    for state in ("started", "stopped"):
        result = call_module("pg_instance", {"data_directory": empty, "method": "pg_ctl", "state": state})
        assert result["failed"] and result["error"] == "Refused" and "holds no database cluster" in result["msg"]
    result = call_module("pg_instance", {"data_directory": "relative/path", "method": "pg_ctl"})
    assert result["failed"]


def test_unreadable_directory_never_counts_as_stopped(running):
    result = call_module("pg_instance", options(running, state="stopped"), user="nobody", environment={"ANSIBLE_BECOME_FLAGS": "-s /bin/sh"})
    assert result["failed"] and "become_user" in result["msg"], result
    assert running.pid


def test_login_that_leads_to_another_server_is_refused(lab, running):
    other = lab.postgres("other").init().start()
    before = running.pid
    result = call_module("pg_instance", options(running, state="restarted", **other.login))
    assert result["failed"] and result["error"] == "Refused" and "system identifier" in result["msg"]
    assert running.pid == before


def test_primary_with_synchronous_standby_is_not_stopped(own_lab):
    primary = own_lab.postgres("sync_primary").init().start()
    own_lab.postgres("sync_standby").clone(primary)
    primary.wait_for_standbys(1)
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'sync_standby'")
    primary.sql("SELECT pg_reload_conf()")
    wait_until(lambda: primary.value("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 1, 20)
    before = primary.pid
    for state in ("stopped", "restarted"):
        result = call_module("pg_instance", options(primary, state=state, **primary.login))
        assert result["failed"] and result["error"] == "Refused" and "sync_standby" in result["msg"] and "allow_primary_stop" in result["msg"], result
        assert primary.pid == before
    result = four_steps("pg_instance", options(primary, state="stopped", allow_primary_stop=True, **primary.login))
    assert result["state"] == "stopped"


def test_primary_behind_poolers_is_not_stopped(own_lab):
    """Refused while clients may come, allowed while the entry is paused or disabled, and no question for a standby or a stopped server."""
    primary = own_lab.postgres("behind").init().start()
    pooler = own_lab.pgbouncer("pooler", {"app": "host=localhost port=%d dbname=postgres" % primary.port, "other": "host=127.0.0.1 port=1"}).start()
    entry = {"name": "pool1", "host": "127.0.0.1", "port": pooler.port, "user": "pooler_admin", "password": SUPERUSER_PASSWORD}

    def tried(check=True, state="restarted", **more):
        return call_module("pg_instance", options(primary, state=state, **{"poolers": [entry], **more}), check=check)

    before = primary.pid
    for state in ("stopped", "restarted"):
        for check in (True, False):
            result = tried(check, state)
            assert result["failed"] and result["error"] == "Refused" and "(pool1: app)" not in result["msg"], result
            assert "pooler pool1: app)" in result["msg"] and "allow_primary_stop" in result["msg"] and primary.pid == before
    assert not tried(state="started")["failed"] and not tried(state="reloaded")["failed"]
    assert not tried(allow_primary_stop=True)["failed"] and not tried(addresses=["10.99.99.99"])["failed"]
    assert "app" in tried(addresses=["localhost"])["msg"]
    assert "does not tell" in tried(poolers=[{**entry, "port": free_port()}])["msg"]
    assert "does not tell" in tried(poolers=[{**entry, "password": "wrong"}])["msg"]
    for hold, release in (("PAUSE app", "RESUME app"), ("PAUSE", "RESUME"), ("DISABLE app", "ENABLE app")):
        with pooler.console() as console:
            console.execute(hold)
            assert not tried()["failed"], hold
            console.execute(release)
        assert tried()["failed"]
    with pooler.console() as console:
        console.execute("PAUSE app")
        result = call_module("pg_instance", options(primary, state="restarted", poolers=[entry]))
        assert not result["failed"] and result["pid"] == primary.pid != before, result
        console.execute("RESUME app")
    # A standby has no primary's clients.
    standby = own_lab.postgres("standby").clone(primary)
    result = call_module("pg_instance", options(standby, state="stopped", poolers=[{**entry, "port": free_port()}]))
    assert not result["failed"] and standby.pid is None
    assert not call_module("pg_instance", options(standby, state="stopped", poolers=[{**entry, "port": free_port()}]))["changed"]


SUPERVISOR = """\
import os, subprocess, sys, time
home, argv = sys.argv[1], sys.argv[2:]
while True:
    if not os.path.exists(home + "/down"):
        subprocess.run(argv, stdout=open(home + "/log", "a"), stderr=subprocess.STDOUT)
    time.sleep(0.1)
"""


@pytest.fixture
def supervised(own_lab):
    """A server below a supervisor that starts it again whenever it ends, as daemontools and runit do, and the commands that tell it to."""
    server = own_lab.postgres("supervised").init()
    down = server.base / "down"
    server.write(down, "")
    server.write(server.base / "up.sh", "rm -f %s\n" % down)
    server.write(server.base / "down.sh", "touch %s; kill -TERM $(head -n 1 %s/postmaster.pid)\n" % (down, server.data))
    argv = ["/usr/bin/python3", "-c", SUPERVISOR, server.base, BIN / "postgres", "-D", server.data, "-c", "config_file=%s" % server.config_file]
    daemon = subprocess.Popen(HOST.argv(argv, "postgres"), stdin=subprocess.DEVNULL, cwd="/")
    commands = {"start_command": ["sh", server.base / "up.sh"], "stop_command": ["sh", server.base / "down.sh"]}
    yield server, options(server, **{**commands, "method": "command", "log_file": server.base / "log"})
    daemon.kill()
    daemon.wait()


def test_commands_of_a_supervisor(supervised):
    """Its commands end at once; that the server is up or down is proved all the same."""
    server, wanted = supervised
    result = four_steps("pg_instance", {**wanted, **server.login})
    assert result["method"] == "command" and result["pid"] == server.pid and result["version"] == server.value("SHOW server_version")
    before = server.pid
    with server.connect():
        # What the command sends would wait for this client.
        result = call_module("pg_instance", {**wanted, "state": "restarted", **server.login})
        assert not result["failed"] and result["pid"] == server.pid != before, result
    with server.connect():
        result = call_module("pg_instance", {**wanted, "state": "stopped", "mode": "smart", "timeout": 2})
        assert result["failed"] and "mode fast" in result["msg"], result
    wait_until(lambda: server.pid is None, 30)
    result = call_module("pg_instance", {**wanted, "state": "stopped"})
    assert not result["failed"] and not result["changed"] and result["control_state"] == "shut down"


def test_commands_that_do_nothing_are_found_out(supervised):
    server, wanted = supervised
    result = call_module("pg_instance", {**wanted, "start_command": ["true"], "timeout": 2})
    assert result["failed"] and result["error"] == "WaitTimeout" and "did not start" in result["msg"], result
    result = call_module("pg_instance", {**wanted, "start_command": ["/no/such/program"]})
    assert result["failed"] and "/no/such/program is not on this host" in result["msg"] and server.pid is None
    text = server.config_file.read_text()
    server.write(server.config_file, text + "shared_preload_libraries = 'no_such_library'\n")
    result = call_module("pg_instance", {**wanted, "timeout": 3})
    assert result["failed"] and any("no_such_library" in line for line in result["log"]), result
    server.write(server.config_file, text)
    wait_until(lambda: server.pid is not None, 30)
    assert not call_module("pg_instance", wanted)["failed"]
    # One that stops it and has it started again at once.
    result = call_module("pg_instance", {**wanted, "state": "stopped", "timeout": 3, "stop_command": ["true"], "mode": "fast"})
    assert result["failed"] and "started again at once by its supervisor" in result["msg"], result
    result = call_module("pg_instance", {**wanted, "state": "restarted", "timeout": 30, "stop_command": ["true"]})
    assert not result["failed"] and result["state"] == "running", result
    result = call_module("pg_instance", {key: value for key, value in wanted.items() if key != "stop_command"})
    assert result["failed"] and "stop_command" in result["msg"]


def test_control_file_is_read_as_pg_controldata_reads_it(stopped):
    """The direct read of 48 bytes against the server's own program, in both states."""
    for state in ("shut down", "in production"):
        text = run([BIN / "pg_controldata", "-D", stopped.data], env={**os.environ, "LC_ALL": "C"})
        head = controldata.read_head(str(stopped.data))
        full = controldata.read_controldata(str(BIN), str(stopped.data))
        assert head.state == full.state == state
        for name, label in (("system_identifier", "Database system identifier"), ("checkpoint_lsn", "Latest checkpoint location"),
                            ("redo_lsn", "Latest checkpoint's REDO location")):  # fmt: skip
            value = re.search("^%s: +(.*)$" % label, text, re.M).group(1)
            assert getattr(head, name) == getattr(full, name) == value
        if state == "shut down":
            stopped.start()


@pytest.fixture
def debian():
    """A cluster as Debian's tools make it, with its configuration below /etc/postgresql."""
    version, name, port = BIN.parent.name, "pgfleet_test_%d" % os.getpid(), free_port()
    directory = "/var/lib/postgresql/%s/%s" % (version, name)
    run(["pg_createcluster", version, name, "-p", port, "--start-conf=manual", "-D", directory, "--", "-N"])
    yield {"data_directory": directory, "timeout": 30}, port
    run(["pg_dropcluster", "--stop", version, name])


def test_debians_cluster_is_started_by_its_own_tools(debian):
    """The configuration file, the log and the method are found; root may do it."""
    options_of_it, port = debian
    result = four_steps("pg_instance", options_of_it, user=None)
    assert result["method"] == "pg_ctlcluster" and result["port"] == port and result["state"] == "running", result
    pid = result["pid"]
    result = call_module("pg_instance", {**options_of_it, "state": "restarted"}, user=None)
    assert not result["failed"] and result["pid"] not in (None, pid)
    result = four_steps("pg_instance", {**options_of_it, "state": "stopped"}, user=None)
    assert result["control_state"] == "shut down"
    configuration = pathlib.Path("/etc/postgresql/%s/%s/postgresql.conf" % (BIN.parent.name, os.path.basename(options_of_it["data_directory"])))
    configuration.write_text(configuration.read_text() + "shared_preload_libraries = 'no_such_library'\n")
    result = call_module("pg_instance", options_of_it, user=None)
    assert result["failed"] and any("no_such_library" in line for line in result["log"]), result
