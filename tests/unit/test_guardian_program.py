# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guardian's logic without servers: a directory that looks like a data directory, consoles that only write down."""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import types

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import NotReachable, WaitTimeout
from ansible_collections.pgfleet.ops.plugins.module_utils._host import guardian as controller
from ansible_collections.pgfleet.ops.plugins.module_utils._host import guardian_program as program
from ansible_collections.pgfleet.ops.plugins.module_utils._host.guardian import GuardianFailed
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline

IDENTIFIER = 7554003270000000001
CHECKPOINT = 0x2_0000_0028
IN_ARCHIVE_RECOVERY = 5


def control_block(state, checkpoint=CHECKPOINT):
    """The first 40 bytes: identifier, version, catalog version, state, padding, time, position of the last checkpoint."""
    return struct.pack("<QIIIIQQ", IDENTIFIER, 1300, 202209061, state, 0, 1767225600, checkpoint) + b"\0" * 8152


class Home:
    """A data directory and the server that seems to run in it."""

    def __init__(self, path, monkeypatch):
        self.path = path
        (path / "global").mkdir(parents=True)
        self.control = path / "global" / "pg_control"
        self.signal = path / "standby.signal"
        self.marker = path / "started"
        self.state(program.IN_PRODUCTION)
        self.pid = 4711
        self.signals = []
        self.on_signal = {signal.SIGINT: self.shut_down}
        start = [sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write('x')", str(self.marker)]
        self.node = program.Node(str(path), start)
        monkeypatch.setattr(self.node, "postmaster", lambda: self.pid)
        monkeypatch.setattr(program.os, "kill", self.kill)

    def fence(self):
        self.node.hold(0)
        self.node.fence()

    def close(self):
        if self.node._lock is not None:
            os.close(self.node._lock)

    def state(self, state, checkpoint=CHECKPOINT):
        self.control.write_bytes(control_block(state, checkpoint))

    def kill(self, pid, number):
        assert pid == self.pid
        self.signals.append(number)
        self.on_signal.get(number, lambda: None)()

    def shut_down(self):
        self.state(program.SHUT_DOWN, CHECKPOINT + 0x100)
        self.pid = None

    @property
    def started(self):
        return len(self.marker.read_text()) if self.marker.exists() else 0

    @property
    def fenced(self):
        return self.signal.exists()


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = Home(tmp_path / "data", monkeypatch)
    yield home
    home.close()


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    found = []
    monkeypatch.setattr(program, "note", found.append)
    return found


# -- a node ------------------------------------------------------------------------------------------------------------


def test_what_a_node_looks_like(home):
    home.fence()
    assert home.node.look() == {
        "pid": 4711, "system_identifier": str(IDENTIFIER), "state": program.IN_PRODUCTION, "checkpoint": CHECKPOINT, "standby_signal": True,
    }  # fmt: skip


def test_a_directory_without_pg_control_is_a_failure(home):
    home.control.unlink()
    with pytest.raises(program.Failure, match="cannot read"):
        home.node.look()


def test_a_start_command_whose_program_does_not_exist_is_refused(home):
    home.node.start_command = [str(home.path / "no_such_program"), "start"]
    with pytest.raises(program.Failure, match=r"could be stopped and not started again: .*no_such_program"):
        home.node.look()


@pytest.fixture
def command(tmp_path):
    """Makes a program of a given name."""

    def make(name, text="exit 0"):
        path = tmp_path / name
        path.write_text("#!/bin/sh\n%s\n" % text)
        path.chmod(0o755)
        return str(path)

    return make


def test_pg_ctl_must_run_as_the_owner_of_the_directory(home, command, monkeypatch):
    owner = home.path.stat().st_uid
    home.node.start_command = [command("pg_ctl"), "start"]
    monkeypatch.setattr(program.os, "geteuid", lambda: owner + 1)
    with pytest.raises(program.Failure, match=r"pg_ctl must run as the owner of .* \(user %d\), this is user %d" % (owner, owner + 1)):
        home.node.look()
    monkeypatch.setattr(program.os, "geteuid", lambda: owner)
    assert home.node.look()["pid"] == 4711


def test_systemctl_must_run_as_root_and_know_the_unit(home, command, monkeypatch):
    systemctl = command("systemctl", '[ "$*" = "show --property=LoadState --value known.service" ] && echo loaded || echo not-found')
    home.node.start_command = [systemctl, "start", "known.service"]
    monkeypatch.setattr(program.os, "geteuid", lambda: 1000)
    with pytest.raises(program.Failure, match=r"systemctl must run as root .* user 1000"):
        home.node.look()
    monkeypatch.setattr(program.os, "geteuid", lambda: 0)
    assert home.node.look()["pid"] == 4711
    home.node.start_command = [systemctl, "start", "other.service"]
    with pytest.raises(program.Failure, match=r"systemd knows no unit other\.service"):
        home.node.look()


def test_one_operation_holds_a_node_and_the_next_waits_for_its_end(home):
    home.node.hold(0)
    home.node.hold(0)
    other = program.Node(str(home.path), home.node.start_command)
    began = time.monotonic()
    with pytest.raises(program.Failure, match="another operation is at work on"):
        other.hold(0.15)
    assert 0.15 <= time.monotonic() - began < 5
    with pytest.raises(program.Failure, match="not held by this operation"):
        other.fence()
    assert not home.fenced
    lock, home.node._lock = home.node._lock, None
    ending = threading.Timer(0.2, os.close, [lock])
    ending.start()
    try:
        other.hold(10)
        other.fence()
        assert home.fenced
    finally:
        ending.join()
        if other._lock is not None:
            os.close(other._lock)


def test_a_node_is_not_fenced_without_being_held(home):
    with pytest.raises(program.Failure, match="not held by this operation"):
        home.node.fence()
    assert not home.fenced and not home.node.fenced


@pytest.mark.parametrize("state", [program.SHUT_DOWN, IN_ARCHIVE_RECOVERY])
def test_only_a_primary_in_production_is_fenced(home, state):
    home.state(state)
    with pytest.raises(program.Failure, match="does not say that it is in production"):
        home.fence()
    assert not home.fenced and not home.node.fenced


def test_the_fence_of_somebody_else_is_left(home):
    home.signal.touch()
    home.node.hold(0)
    home.node.unfence()
    assert home.node.recover(1) == "it was never stopped"
    assert home.fenced


@pytest.mark.parametrize("text", ["", "no number\n", "999999999\n/data\n", None])
def test_a_pid_file_without_a_living_process_means_that_nothing_runs(tmp_path, text):
    if text is not None:
        (tmp_path / "postmaster.pid").write_text(text)
    assert program.Node(str(tmp_path), []).postmaster() is None


def test_a_living_process_is_seen_and_a_zombie_is_none(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        (tmp_path / "postmaster.pid").write_text("%d\n%s\n" % (process.pid, tmp_path))
        assert program.Node(str(tmp_path), []).postmaster() == process.pid
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert program.Node(str(tmp_path), []).postmaster() is None


def test_fencing_writes_standby_signal_as_the_owner_of_the_directory(home):
    os.chmod(home.path, 0o700)
    if os.geteuid() == 0:
        os.chown(home.path, 12345, 12346)
    home.fence()
    home.fence()
    found = home.signal.stat()
    owner = home.path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), found.st_size) == (owner.st_uid, owner.st_gid, 0o600, 0)
    assert home.node.fenced
    home.node.unfence()
    home.node.unfence()
    assert not home.fenced and not home.node.fenced


def test_stop_returns_the_shutdown_checkpoint(home):
    assert home.node.stop(5) == {"checkpoint": CHECKPOINT + 0x100}
    assert home.signals == [signal.SIGINT]


def test_stop_waits_for_the_checkpoint_and_gives_up_in_time(home):
    home.on_signal = {}
    began = time.monotonic()
    with pytest.raises(program.Failure, match=r"not shut down within 0\.05 s"):
        home.node.stop(0.05)
    assert time.monotonic() - began < 2
    assert home.node.stopping


@pytest.mark.parametrize("state", [program.SHUT_DOWN, IN_ARCHIVE_RECOVERY])
def test_stop_refuses_a_server_that_is_not_in_production(home, state):
    home.state(state)
    with pytest.raises(program.Failure, match="in production"):
        home.node.stop(1)
    assert home.signals == [] and not home.node.stopping


def test_stop_refuses_when_nothing_runs(home):
    home.pid = None
    with pytest.raises(program.Failure, match="no server runs"):
        home.node.stop(1)
    assert not home.node.stopping


def test_release_needs_a_fence(home):
    with pytest.raises(program.Failure, match="not fenced"):
        home.node.release()
    assert not home.node.released
    home.fence()
    home.signal.unlink()
    with pytest.raises(program.Failure, match="not fenced"):
        home.node.release()
    assert not home.node.released
    home.fence()
    home.node.release()
    assert home.node.released


def test_a_start_that_fails_tells_the_last_lines(home):
    home.pid = None
    home.signal.touch()
    home.node.start_command = [sys.executable, "-c", "print('one'); print('no space'); raise SystemExit(3)"]
    with pytest.raises(program.Failure, match="ended with 3: one / no space"):
        home.node.start(5)


def test_nothing_is_started_beside_the_server_that_was_stopped(home):
    home.on_signal = {signal.SIGINT: lambda: home.state(program.SHUT_DOWN)}
    home.node.stop(5)
    with pytest.raises(program.Failure, match=r"the old server process .* has not ended within"):
        home.node.start(0.02)
    assert home.started == 0 and home.node.stopping


def test_a_supervisor_that_was_faster_has_started_it(home):
    home.on_signal = {signal.SIGINT: lambda: home.state(program.SHUT_DOWN)}
    home.node.stop(5)
    home.pid = 4712
    home.node.start(5)
    assert home.started == 0 and not home.node.stopping


def test_a_server_that_it_did_not_stop_is_started_as_a_standby_only(home):
    home.pid = None
    with pytest.raises(program.Failure, match=r"no standby\.signal: it would start as a primary"):
        home.node.start(5)
    assert home.started == 0
    home.signal.touch()
    home.node.start(5)
    assert home.started == 1


def test_a_released_node_whose_fence_was_taken_away_is_fenced_again_before_it_starts(home):
    home.fence()
    home.node.stop(5)
    home.node.release()
    home.signal.unlink()
    text = "import os, sys; open(sys.argv[1], 'w').write('x' * (1 + os.path.exists(sys.argv[2])))"
    home.node.start_command = [sys.executable, "-c", text, str(home.marker), str(home.signal)]
    home.node.start(5)
    assert (home.started, home.fenced) == (2, True)


def test_what_is_started_does_not_inherit_the_lock(home):
    home.node.hold(0)
    home.signal.touch()
    home.pid = None
    text = "import os, sys; sys.exit(any(os.path.realpath(d.path) == sys.argv[1] for d in os.scandir('/proc/self/fd')))"
    home.node.start_command = [sys.executable, "-c", text, os.path.realpath(home.path)]
    home.node.start(5)


def test_recovery_before_the_stop_only_takes_the_fence_away(home):
    home.fence()
    assert home.node.recover(1) == "it was never stopped"
    assert (home.fenced, home.started, home.signals) == (False, 0, [])


def test_recovery_after_the_stop_starts_the_primary_again_without_the_fence(home):
    home.fence()
    home.node.stop(5)
    assert home.node.recover(5) == "it was started again as the primary"
    assert (home.fenced, home.started, home.signals) == (False, 1, [signal.SIGINT])


def test_recovery_from_a_shutdown_that_hangs_ends_the_server_at_once(home):
    home.on_signal = {signal.SIGQUIT: home.shut_down}
    home.fence()
    with pytest.raises(program.Failure):
        home.node.stop(0.01)
    # A third of it is waited for, and the rest is for a start on a busy machine.
    assert home.node.recover(6) == "it was started again as the primary"
    assert (home.signals, home.fenced, home.started) == ([signal.SIGINT, signal.SIGQUIT], False, 1)


def test_recovery_after_the_release_keeps_the_fence(home):
    home.fence()
    home.node.stop(5)
    home.node.release()
    assert home.node.recover(5) == "it is kept as a standby"
    assert (home.fenced, home.started) == (True, 1)


def test_recovery_after_it_came_back_as_a_standby_does_not_start_it_twice(home):
    home.fence()
    home.node.stop(5)
    home.node.release()
    home.node.start(5)
    home.pid = 4712
    assert home.node.recover(5) == "it is kept as a standby"
    assert (home.fenced, home.started) == (True, 1)


def test_a_node_that_crashed_while_it_was_fenced_is_started_again_as_the_primary(home):
    home.fence()
    home.pid = None
    assert home.node.recover(5) == "it was started again as the primary"
    assert (home.fenced, home.started, home.signals) == (False, 1, [])


def test_a_node_that_crashed_while_it_was_fenced_and_came_up_as_a_standby_is_turned_back(home):
    home.fence()
    home.pid = 4712
    home.state(IN_ARCHIVE_RECOVERY)
    assert home.node.recover(5) == "it was started again as the primary"
    assert (home.fenced, home.started, home.signals) == (False, 1, [signal.SIGINT])


def test_a_node_that_is_down_and_was_not_fenced_by_this_operation_is_left_alone(home):
    home.node.hold(0)
    home.pid = None
    assert home.node.recover(5) == "it was never stopped"
    assert (home.started, home.signals) == (0, [])


def test_a_standby_that_a_supervisor_made_of_the_stopped_primary_is_turned_back(home):
    home.fence()
    home.node.stop(5)
    home.pid = 4712
    home.state(IN_ARCHIVE_RECOVERY)
    assert home.node.recover(5) == "it was started again as the primary"
    assert (home.fenced, home.started, home.signals) == (False, 1, [signal.SIGINT] * 2)


# -- a pooler ----------------------------------------------------------------------------------------------------------


class FakePooler(program.Pooler):
    """``writable`` says what the nodes answer each time they are asked; the last answer stays."""

    def __init__(self, path, *writable, **options):
        super().__init__(str(path))
        self.answers = list(writable)
        self.commands = []
        self.refuse = options.pop("refuse", {})
        self.databases = options.pop("databases", ["app"])
        self.directions = [
            {"name": "db1", "text": "old\n", "targets": {"app": ["db1.example", 5432]}},
            {"name": "db2", "text": "new\n", "targets": {"app": ["db2.example", 5433]}},
        ]
        self.running = options.pop("running", None)
        """What SHOW DATABASES answers; as the file says where it is None."""

    def accepts_writes(self, direction):
        now = self.answers[0]
        if direction["name"] == "db2" and len(self.answers) > 1:
            self.answers.pop(0)
        return direction["name"] in now

    def command(self, statement):
        self.commands.append(statement)
        if statement in self.refuse:
            raise program.Failure(self.refuse[statement])
        if statement != "SHOW DATABASES":
            return []
        with open(self.file, encoding="utf-8") as stream:
            host, port = (b"db1.example", b"5432") if stream.read() == "old\n" else (b"db2.example", b"5433")
        console = {"name": b"pgbouncer", "host": None, "port": b"6432"}
        return [console] + ([{"name": b"app", "host": host, "port": port}] if self.running is None else self.running)


@pytest.fixture
def ini(tmp_path):
    path = tmp_path / "pgbouncer.ini"
    path.write_text("old\n")
    return path


@pytest.mark.parametrize(("writable", "name", "text"), [(["db1"], "db1", "old\n"), (["db2"], "db2", "new\n")])
def test_a_pooler_goes_where_the_one_writable_node_is(ini, writable, name, text):
    pooler = FakePooler(ini, writable)
    assert pooler.recover(5) == "it leads to %s" % name
    assert ini.read_text() == text
    assert pooler.commands == ["RELOAD", "SHOW DATABASES", 'RESUME "app"']


@pytest.mark.parametrize("writable", [["db1"], ["db1", "db2"], []])
def test_what_was_set_meanwhile_is_set_back_whatever_the_recovery_finds(ini, writable):
    pooler = FakePooler(ini, writable)
    pooler.settings = {"server_login_retry": "15", "default_pool_size": "20"}
    pooler.recover(0.1)
    assert pooler.commands[-2:] == ["SET server_login_retry = '15'", "SET default_pool_size = '20'"]


def test_what_was_set_meanwhile_is_set_back_where_somebody_has_changed_the_file(ini):
    pooler = FakePooler(ini, ["db2"])
    pooler.settings = {"default_pool_size": "20"}
    ini.write_text("mine\n")
    with pytest.raises(program.Changed):
        pooler.recover(5)
    assert pooler.commands == ['RESUME "app"', "SET default_pool_size = '20'"]


def test_a_file_on_its_way_is_known(ini):
    pooler = FakePooler(ini, ["db2"])
    pooler.texts = ["between\n"]
    pooler.switch("between\n")
    assert pooler.recover(5) == "it leads to db2" and ini.read_text() == "new\n"


def test_a_pooler_waits_until_one_node_is_writable(ini):
    pooler = FakePooler(ini, [], [], ["db1", "db2"], [], ["db2"])
    assert pooler.recover(5) == "it leads to db2"
    assert ini.read_text() == "new\n" and len(pooler.answers) == 1


def test_a_pooler_is_never_resumed_while_two_nodes_accept_writes(ini):
    pooler = FakePooler(ini, ["db1", "db2"])
    outcome = pooler.recover(0.1)
    assert "stays paused" in outcome and "db1, db2" in outcome
    assert pooler.commands == [] and ini.read_text() == "old\n"
    assert pooler.unsettled


def test_a_pooler_is_resumed_where_it_stands_when_no_node_comes_back(ini):
    pooler = FakePooler(ini, [])
    began = time.monotonic()
    assert "no node accepts writes" in pooler.recover(0.1)
    assert 0.1 <= time.monotonic() - began < 2
    assert pooler.commands == ['RESUME "app"'] and ini.read_text() == "old\n"
    assert pooler.unsettled


def test_a_pooler_that_found_its_primary_is_settled(ini):
    pooler = FakePooler(ini, ["db2"])
    pooler.recover(5)
    assert not pooler.unsettled
    pooler.linger()
    assert pooler.commands.count("RELOAD") == 1


@pytest.mark.parametrize("nobody", [[], ["db1", "db2"]])
def test_a_pooler_without_a_primary_is_led_to_it_later(ini, notes, monkeypatch, nobody):
    pauses = []
    monkeypatch.setattr(program, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
    pooler = FakePooler(ini, nobody)
    pooler.recover(0)
    pooler.commands.clear()
    pauses.clear()
    pooler.answers = [nobody, ["db2"]]
    pooler.linger()
    assert ini.read_text() == "new\n" and not pooler.unsettled and len(pauses) == 1
    assert pooler.commands == ["RELOAD", "SHOW DATABASES", 'RESUME "app"']
    assert notes == ["pgfleet.ops switchover guardian (pooler): it leads to db2 now"]


def test_looking_for_a_primary_ends(ini, monkeypatch):
    monkeypatch.setattr(program, "LOOKING_SECONDS", 0.1)
    pooler = FakePooler(ini, [])
    pooler.unsettled = True
    began = time.monotonic()
    pooler.linger()
    assert 0.1 <= time.monotonic() - began < 5
    assert pooler.commands == [] and pooler.unsettled


def test_who_looks_for_a_primary_ends_when_the_next_operation_is_at_work(ini, notes, monkeypatch):
    monkeypatch.setattr(program, "CLAIM_SECONDS", 5)
    first, following = FakePooler(ini, []), FakePooler(ini, [])
    first.unsettled = True
    looking = threading.Thread(target=first.linger)
    looking.start()
    monkeypatch.setattr(following, "_connect", lambda _keywords: None)
    following.prepare({}, [], ["app"])
    looking.join(20)
    assert not looking.is_alive()
    assert notes == ["pgfleet.ops switchover guardian (pooler): another operation is at work on it"]
    # It does not write any more, although there is a primary now, and its own way there is another one.
    first.answers = [["db2"]]
    first.linger()
    assert ini.read_text() == "old\n"
    following._unclaim()
    first.linger()
    assert ini.read_text() == "new\n"


def test_a_file_from_which_no_way_leads_back(ini):
    """As where nobody knows any more who the primary was."""
    pooler = program.Pooler(str(ini))
    pooler.directions = [{"name": "", "node": None, "session": None, "text": "old\n", "targets": {}, "system_identifier": "7"}]
    assert not pooler.accepts_writes(pooler.directions[0])
    pooler.switch("new\n")
    assert ini.read_text() == "new\n"


def test_a_guardian_that_does_not_let_go_holds_up_nobody_for_long(ini, monkeypatch):
    monkeypatch.setattr(program, "CLAIM_SECONDS", 0.1)
    first, following = FakePooler(ini, []), FakePooler(ini, [])
    assert first._claim() and first._claim() and not following._claim()
    monkeypatch.setattr(following, "_connect", lambda _keywords: None)
    following.prepare({}, [], ["app"])
    assert following.databases == ["app"]
    first._unclaim()
    assert following._claim()
    following._unclaim()


@pytest.mark.parametrize(
    "running",
    [
        [],
        [{"name": b"other", "host": b"db2.example", "port": b"5433"}],
        [{"name": b"app", "host": b"db1.example", "port": b"5433"}],
        [{"name": b"app", "host": b"db2.example", "port": b"5432"}],
        [{"name": b"app", "host": None, "port": None}],
    ],
)
def test_a_pooler_that_does_not_do_what_its_file_says_is_a_failure_and_is_resumed(ini, running):
    pooler = FakePooler(ini, ["db2"], running=running)
    with pytest.raises(program.Failure, match="app still leads elsewhere"):
        pooler.recover(5)
    assert pooler.commands == ["RELOAD", "SHOW DATABASES", 'RESUME "app"']


def test_a_file_that_leads_there_already_is_not_written_again(ini):
    before = ini.stat().st_ino
    FakePooler(ini, ["db1"]).recover(5)
    assert ini.stat().st_ino == before


def test_a_file_that_somebody_else_changed_is_left_as_it_is(ini):
    ini.write_text("edited\n")
    pooler = FakePooler(ini, ["db2"])
    with pytest.raises(program.Failure, match="changed by somebody else"):
        pooler.switch("new\n")
    with pytest.raises(program.Failure, match=r"changed by somebody else .* left as it is"):
        pooler.recover(5)
    assert ini.read_text() == "edited\n"
    assert pooler.commands == ['RESUME "app"']


def test_switching_writes_the_prepared_text(ini):
    pooler = FakePooler(ini, ["db1"])
    pooler.switch("new\n")
    assert ini.read_text() == "new\n"
    pooler.switch("old\n")
    assert ini.read_text() == "old\n"


def test_what_is_not_paused_is_no_obstacle_and_anything_else_is(ini):
    pooler = FakePooler(ini, ["db2"], databases=["a", 'b"c'], refuse={'RESUME "a"': 'RESUME "a": ERROR: database a is not paused'})
    assert pooler.recover(5) == "it leads to db2"
    assert pooler.commands == ["RELOAD", "SHOW DATABASES", 'RESUME "a"', 'RESUME "b""c"']
    pooler = FakePooler(ini, ["db2"], refuse={'RESUME "app"': "no such database"})
    with pytest.raises(program.Failure, match="no such database"):
        pooler.recover(5)


def test_everything_is_resumed_when_everything_was_paused(ini):
    pooler = FakePooler(ini, ["db1"], databases=None)
    pooler.recover(5)
    assert pooler.commands == ["RELOAD", "SHOW DATABASES", "RESUME"]


class FakeResult:
    """Rows, or an error, as psycopg's PGresult has them."""

    def __init__(self, rows=(), error=None):
        self.rows = [list(row.values()) for row in rows]
        self.names = list(rows[0]) if rows else []
        self.status = 7 if error else 2
        self.error_message = error
        self.ntuples, self.nfields = len(self.rows), len(self.names)

    def fname(self, column):
        return self.names[column].encode()

    def get_value(self, row, column):
        return self.rows[row][column]


class FakeSession:
    """As psycopg's connection and its pgconn, as far as a guardian knows them.

    Answers one column ``yes``, or the results given, or what is raised; it is busy until it is readable.
    """

    status = 0

    def __init__(self, answer=None, results=None):
        self.answer = answer
        self.results = [FakeResult([{"yes": answer}])] if results is None else list(results)
        self.asked = []
        self.pgconn = self
        self.busy = True
        self.readable, self.writable = os.pipe()
        os.write(self.writable, b"x")

    def __del__(self):
        os.close(self.readable)
        os.close(self.writable)

    @property
    def socket(self):
        return self.readable

    def send_query(self, statement):
        if isinstance(self.answer, Exception):
            raise self.answer
        self.asked.append(statement.decode())
        self.left = [*self.results, None]

    def flush(self):
        pass

    def is_busy(self):
        return self.busy

    def consume_input(self):
        self.busy = False

    def get_result(self):
        return self.left.pop(0)


def connecting(monkeypatch, pooler, *sessions):
    left = list(sessions)
    keywords = []

    def connect(given):
        keywords.append(given)
        session = left.pop(0)
        if isinstance(session, Exception):
            raise session
        return session

    monkeypatch.setattr(pooler, "_connect", connect)
    return keywords


def test_an_answer_is_a_list_of_rows_by_name():
    rows = [{"name": b"app", "host": None}, {"name": b"x", "host": b"db1"}]
    session = FakeSession(results=[FakeResult(), FakeResult(rows)])
    assert program.Pooler._ask(session, "SHOW DATABASES") == rows
    assert session.asked == ["SHOW DATABASES"]
    assert program.Pooler._ask(FakeSession(results=[FakeResult()]), "RELOAD") == []


def test_a_statement_that_is_refused_is_a_failure():
    with pytest.raises(program.Failure, match="RESUME: ERROR: no"):
        program.Pooler._ask(FakeSession(results=[FakeResult(error=b"ERROR: no\n")]), "RESUME")


def test_a_question_without_an_answer_ends_in_time(monkeypatch):
    monkeypatch.setattr(program, "ANSWER_SECONDS", 0.1)
    session = FakeSession(b"t")
    os.read(session.readable, 1)
    began = time.monotonic()
    with pytest.raises(program.Gone, match="no answer within"):
        program.Pooler._ask(session, "SELECT 1")
    assert 0.1 <= time.monotonic() - began < 1.5


def test_a_connection_that_ends_is_gone():
    with pytest.raises(program.Gone, match="broken pipe"):
        program.Pooler._ask(FakeSession(OSError("broken pipe")), "SELECT 1")
    with pytest.raises(program.Gone, match="closed"):
        program.Pooler._ask(FakeSession(results=[]), "SELECT 1")
    # libpq answers with a result of its own that says why.
    session = FakeSession(results=[FakeResult(error=b"server closed the connection unexpectedly")])
    session.status = 1
    with pytest.raises(program.Gone, match="closed"):
        program.Pooler._ask(session, "SELECT 1")


def test_preparing_opens_all_connections_that_there_are(monkeypatch, ini):
    pooler = program.Pooler(str(ini))
    sessions = [FakeSession(), FakeSession()]
    keywords = connecting(monkeypatch, pooler, *sessions)
    nodes = [{"name": "db1", "node": {"host": "db1"}}, {"name": "db2", "node": None}]
    pooler.prepare({"host": "p1"}, nodes, ["app"])
    assert keywords == [{"host": "p1"}, {"host": "db1"}]
    assert [direction["session"] for direction in pooler.directions] == [sessions[1], None]
    assert (pooler._console, pooler.databases) == (sessions[0], ["app"])


def test_a_node_that_cannot_be_asked_does_not_count_as_writable(ini):
    assert program.Pooler(str(ini)).accepts_writes({"session": None, "node": None, "system_identifier": "7"}) is False


def test_a_node_that_hangs_is_not_asked_twice(monkeypatch, ini):
    monkeypatch.setattr(program, "ANSWER_SECONDS", 0.1)
    pooler = program.Pooler(str(ini))
    keywords = connecting(monkeypatch, pooler, FakeSession(b"t"))
    session = FakeSession(b"t")
    os.read(session.readable, 1)
    direction = {"session": session, "node": {}, "system_identifier": "7"}
    assert pooler.accepts_writes(direction) is False
    assert keywords == [] and direction["session"] is None


@pytest.mark.parametrize(("answer", "expected"), [(b"t", True), (b"f", False), (None, False)])
def test_a_node_accepts_writes_when_it_says_so_with_the_right_identifier(monkeypatch, ini, answer, expected):
    pooler = program.Pooler(str(ini))
    session = FakeSession(answer)
    assert pooler.accepts_writes({"session": session, "node": {}, "system_identifier": str(IDENTIFIER)}) is expected
    assert str(IDENTIFIER) in session.asked[0] and "pg_is_in_recovery" in session.asked[0] and "transaction_read_only" in session.asked[0]


def test_a_node_whose_connection_is_gone_is_asked_on_a_new_one(monkeypatch, ini):
    pooler = program.Pooler(str(ini))
    keywords = connecting(monkeypatch, pooler, FakeSession(b"t"))
    direction = {"session": FakeSession(OSError("gone")), "node": {"host": "db1"}, "system_identifier": "7"}
    assert pooler.accepts_writes(direction) is True
    assert keywords == [{"host": "db1"}]


def test_a_node_that_does_not_answer_does_not_count_as_writable(monkeypatch, ini):
    pooler = program.Pooler(str(ini))
    connecting(monkeypatch, pooler, OSError("refused"), OSError("refused"))
    direction = {"session": None, "node": {}, "system_identifier": "7"}
    assert pooler.accepts_writes(direction) is False
    assert direction["session"] is None


def test_a_console_that_is_gone_is_opened_again_once(monkeypatch, ini):
    pooler = program.Pooler(str(ini))
    pooler.console_keywords = {"host": "p1"}
    pooler._console = FakeSession(OSError("gone"))
    fresh = FakeSession(b"1")
    keywords = connecting(monkeypatch, pooler, fresh)
    assert pooler.command("RELOAD") == [{"yes": b"1"}]
    assert fresh.asked == ["RELOAD"] and keywords == [{"host": "p1"}]
    pooler._console = FakeSession(OSError("gone"))
    connecting(monkeypatch, pooler, FakeSession(OSError("gone again")))
    with pytest.raises(program.Failure, match="the console does not answer: gone again"):
        pooler.command("RELOAD")


def test_what_the_console_refuses_is_not_asked_again(monkeypatch, ini):
    pooler = program.Pooler(str(ini))
    pooler._console = session = FakeSession(results=[FakeResult(error=b"ERROR: no")])
    keywords = connecting(monkeypatch, pooler)
    with pytest.raises(program.Failure, match="RELOAD: ERROR: no"):
        pooler.command("RELOAD")
    assert session.asked == ["RELOAD"] and pooler._console is session and keywords == []


def test_writing_keeps_owner_and_mode_and_the_text_to_the_byte(ini):
    ini.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(ini, 12345, 12346)
    before = ini.stat()
    program.write_file(str(ini), "a\r\nü\n")
    after = ini.stat()
    assert ini.read_bytes() == "a\r\nü\n".encode()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino
    assert [path.name for path in ini.parent.iterdir()] == ["pgbouncer.ini"]


def test_a_file_that_cannot_be_written_is_left_whole(ini, monkeypatch):
    def fail(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.os, "fsync", fail)
    with pytest.raises(OSError):
        program.write_file(str(ini), "new\n")
    assert ini.read_text() == "old\n"
    assert [path.name for path in ini.parent.iterdir()] == ["pgbouncer.ini"]


def test_a_file_that_is_next_takes_its_place_without_waiting_for_the_disk(ini, monkeypatch):
    ini.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(ini, 12345, 12346)
    before = ini.stat()
    following = program.NextFile(str(ini), "a\r\nü\n")
    # Whoever kills this process now leaves nothing behind.
    assert ini.read_text() == "old\n" and [path.name for path in ini.parent.iterdir()] == ["pgbouncer.ini"]
    monkeypatch.setattr(program.os, "fsync", None)
    following.put_in_place()
    after = ini.stat()
    assert ini.read_bytes() == "a\r\nü\n".encode()
    assert (after.st_uid, after.st_gid, after.st_mode, after.st_nlink) == (before.st_uid, before.st_gid, before.st_mode, 1)
    assert [path.name for path in ini.parent.iterdir()] == ["pgbouncer.ini"]


def test_a_file_that_cannot_take_its_place_is_left_whole(ini, monkeypatch):
    following = program.NextFile(str(ini), "new\n")

    def fail(_source, _destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.os, "rename", fail)
    with pytest.raises(OSError):
        following.put_in_place()
    assert ini.read_text() == "old\n"
    assert [path.name for path in ini.parent.iterdir()] == ["pgbouncer.ini"]


def test_a_prepared_file_is_put_in_place_and_others_are_written(monkeypatch, ini):
    pooler = FakePooler(ini, ["db1"])
    without_nodes = [{**direction, "node": None} for direction in pooler.directions]
    connecting(monkeypatch, pooler, FakeSession())
    synced = []
    monkeypatch.setattr(program.os, "fsync", synced.append)
    pooler.prepare({}, without_nodes, ["app"], following="new\n")
    assert len(synced) == 1
    # On the way it is another one, and back.
    pooler.switch("old\n")
    assert len(synced) == 2
    pooler.switch("new\n")
    assert ini.read_text() == "new\n" and len(synced) == 2
    pooler.switch("old\n")
    pooler.switch("new\n")
    assert ini.read_text() == "new\n" and len(synced) == 4


def test_where_there_are_no_files_without_names_it_is_written(monkeypatch, ini):
    def fail(*_arguments, **_keywords):
        raise OSError(95, "Operation not supported")

    pooler = FakePooler(ini, ["db1"])
    without_nodes = [{**direction, "node": None} for direction in pooler.directions]
    connecting(monkeypatch, pooler, FakeSession())
    monkeypatch.setattr(program, "NextFile", fail)
    pooler.prepare({}, without_nodes, ["app"], following="new\n")
    pooler.switch("new\n")
    assert ini.read_text() == "new\n"
    monkeypatch.undo()
    connecting(monkeypatch, pooler, FakeSession())
    pooler.prepare({}, without_nodes, ["app"], following="old\n")
    monkeypatch.setattr(program.os, "link", fail)
    pooler.switch("old\n")
    assert ini.read_text() == "old\n"


def test_what_a_pooler_looks_like(ini, tmp_path):
    ini.write_bytes(b"a\r\nb\n")
    assert program.Pooler(str(ini)).look() == {"text": "a\r\nb\n"}
    with pytest.raises(program.Failure, match="cannot read"):
        program.Pooler(str(tmp_path / "none.ini")).look()


# -- requests ----------------------------------------------------------------------------------------------------------


def test_requests_reach_the_part_with_their_arguments(home):
    guardian = program.Guardian(home.node, 5)
    assert guardian.handle({"do": "look"})["pid"] == 4711
    guardian.handle({"do": "hold", "patience": 0})
    guardian.handle({"do": "fence"})
    assert guardian.handle({"do": "stop", "timeout": 5}) == {"checkpoint": CHECKPOINT + 0x100}


def test_arming_sets_the_clock_and_disarming_takes_it_away(home):
    guardian = program.Guardian(home.node, 5)
    began = time.monotonic()
    guardian.handle({"do": "arm", "limit": 30})
    assert began + 30 <= guardian.armed_until <= time.monotonic() + 30
    guardian.handle({"do": "disarm"})
    assert guardian.armed_until is None


def test_after_a_recovery_only_looking_and_disarming_is_left(home, notes):
    guardian = program.Guardian(home.node, 5)
    guardian.handle({"do": "arm", "limit": 30})
    guardian.handle({"do": "hold", "patience": 0})
    guardian.handle({"do": "fence"})
    assert guardian.handle({"do": "recover"}) == "asked to: it was never stopped"
    assert guardian.armed_until is None
    for request in ({"do": "stop", "timeout": 1}, {"do": "fence"}, {"do": "release"}, {"do": "start", "timeout": 1}, {"do": "arm", "limit": 30}):
        with pytest.raises(program.Failure, match="put back already"):
            guardian.handle(dict(request))
    assert (home.signals, home.fenced, home.started, guardian.armed_until) == ([], False, 0, None)
    assert guardian.handle({"do": "look"})["standby_signal"] is False
    guardian.handle({"do": "disarm"})
    # Asked again it says the same and does nothing.
    assert guardian.handle({"do": "recover"}) == "asked to: it was never stopped"
    assert notes == ["pgfleet.ops switchover guardian (node): asked to: it was never stopped"]


def test_a_recovery_that_fails_is_told_and_written_down(home, notes):
    home.node.start_command = [sys.executable, "-c", "raise SystemExit('disk full')"]
    guardian = program.Guardian(home.node, 5)
    guardian.handle({"do": "hold", "patience": 0})
    guardian.handle({"do": "fence"})
    guardian.handle({"do": "stop", "timeout": 5})
    assert "recovery failed" in guardian.recover("the time limit has passed") and "disk full" in guardian.recovered
    assert notes == ["pgfleet.ops switchover guardian (node): %s" % guardian.recovered]


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize(
    ("requests", "why"),
    [
        ([], ["the time limit has passed", "the controlling process is gone"]),
        (["recover"], ["the time limit has passed", "asked to"]),
        (["disarm"], ["the time limit has passed", "the controlling process is gone"]),
    ],
    ids=["it dies", "it gives up", "it goes on as if nothing had been"],
)
def test_what_a_late_controller_pauses_is_put_back_again(monkeypatch, notes, requests, why, stays):
    """It slept right before its PAUSE until the limit had passed, and sends it when it wakes up."""

    class Part:
        put_back_again = True

        def __init__(self):
            self.paused = False

        def recover(self, _patience):
            self.paused = False
            return "resumed"

        def needed(self):
            return self.paused

    part, late = Part(), ["PAUSE"]
    guardian = program.Guardian(part, 5)
    guardian.handle({"do": "arm", "limit": 0, "stays": stays})
    # The limit passes; then the controller wakes up and sends what it was about to; then nothing comes any more.
    chunks = [json.dumps({"do": name}).encode() + b"\n" for name in requests] + [b""]

    def select(*_arguments):
        if not guardian.recovered:
            return [], [], []
        part.paused |= bool(late and late.pop())
        return [0], [], []

    monkeypatch.setattr(program, "select", types.SimpleNamespace(select=select))
    monkeypatch.setattr(program, "os", types.SimpleNamespace(read=lambda *_: chunks.pop(0), write=lambda *_: None))
    asked = []
    recover = guardian.recover
    monkeypatch.setattr(guardian, "recover", lambda reason: asked.append(reason) or recover(reason))
    guardian.serve()
    assert asked == why and not late and not part.paused


@pytest.mark.parametrize("unsettled", [True, False])
def test_a_pooler_without_a_primary_goes_on_looking_after_the_end_of_the_pipe(monkeypatch, unsettled):
    done = []

    class Part:
        def recover(self, _patience):
            done.append("recover")
            self.unsettled = unsettled
            return "done"

        def linger(self):
            done.append("linger")

    guardian = program.Guardian(Part(), 5)
    guardian.handle({"do": "arm", "limit": 30})
    monkeypatch.setattr(program, "select", types.SimpleNamespace(select=lambda *_: ([0], [], [])))
    monkeypatch.setattr(program, "os", types.SimpleNamespace(read=lambda *_: b""))
    guardian.serve()
    assert done == (["recover", "linger"] if unsettled else ["recover"])


# -- as a process of its own, through the controller's end of the pipe -------------------------------------------------

SERVER = """
import os, signal, sys, time
data, shutdown = sys.argv[1], sys.argv[2]
def stop(*_):
    with open(data + "/global/pg_control", "wb") as stream:
        stream.write(bytes.fromhex(shutdown))
    os._exit(0)
signal.signal(signal.SIGINT, stop)
with open(data + "/postmaster.pid", "w") as stream:
    stream.write("%d\\n" % os.getpid())
time.sleep(60)
"""


class Site:
    """A data directory with a process that ends on SIGINT as a server does, and a guardian beside it."""

    def __init__(self, path, limit=20):
        (path / "global").mkdir()
        self.path = path
        (path / "global" / "pg_control").write_bytes(control_block(program.IN_PRODUCTION))
        self.server = subprocess.Popen([sys.executable, "-c", SERVER, str(path), control_block(program.SHUT_DOWN, 77).hex()])
        self.until(lambda: (path / "postmaster.pid").exists() and (path / "postmaster.pid").read_text().endswith("\n"))
        start = [sys.executable, "-c", "import os, sys; open(sys.argv[1], 'w').write(str(os.path.exists(sys.argv[2])))"]
        start += [str(path / "started"), str(path / "standby.signal")]
        self.guardian = controller.Guardian("db1", [], {"part": "node", "data_directory": str(path), "start_command": start}, patience=5)
        self.limit = Deadline(limit)

    @staticmethod
    def until(condition):
        end = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    def call(self, request, **arguments):
        return self.guardian.call(request, self.limit, **arguments)

    def started_as_standby(self):
        self.until(lambda: (self.path / "started").exists() and (self.path / "started").read_text())
        return (self.path / "started").read_text() == "True"

    def close(self):
        self.guardian.close()
        self.guardian._process.wait(15)
        if self.server.poll() is None:
            self.server.kill()
        self.server.wait(5)


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    yield site
    site.close()


def test_the_end_of_the_pipe_brings_the_primary_back(site):
    assert site.call("look")["pid"] == site.server.pid
    site.call("arm", limit=60)
    site.call("hold", patience=0)
    site.call("fence")
    assert site.call("stop", timeout=5) == {"checkpoint": 77}
    site.guardian.close()
    assert site.started_as_standby() is False
    assert not (site.path / "standby.signal").exists()


def test_a_node_is_held_until_the_guardian_has_ended(site):
    site.call("hold", patience=0)
    other = program.Node(str(site.path), [])
    with pytest.raises(program.Failure, match="another operation"):
        other.hold(0)
    site.guardian.close()
    site.guardian._process.wait(15)
    other.hold(0)
    os.close(other._lock)


def test_what_a_login_shell_prints_is_not_taken_for_an_answer(tmp_path):
    (tmp_path / "global").mkdir()
    (tmp_path / "global" / "pg_control").write_bytes(control_block(program.IN_PRODUCTION))
    options = {"part": "node", "data_directory": str(tmp_path), "start_command": [sys.executable]}
    guardian = controller.Guardian("db1", ["sh", "-c", 'echo Welcome; echo; exec "$@"', "sh"], options, patience=1)
    try:
        assert guardian.call("look", Deadline(15))["system_identifier"] == str(IDENTIFIER)
        assert guardian.waiting == 0
    finally:
        guardian.close()
        guardian._process.wait(15)


def test_the_limit_brings_the_primary_back_and_later_requests_are_refused(site):
    site.call("hold", patience=0)
    site.call("fence")
    site.call("stop", timeout=5)
    site.call("arm", limit=0.1)
    assert site.started_as_standby() is False
    with pytest.raises(GuardianFailed, match=r"put back already.*time limit"):
        site.call("release")
    assert site.call("look")["standby_signal"] is False


def test_after_the_release_the_end_of_the_pipe_keeps_it_a_standby(site):
    site.call("arm", limit=60)
    site.call("hold", patience=0)
    site.call("fence")
    site.call("stop", timeout=5)
    site.call("release")
    site.guardian.close()
    assert site.started_as_standby() is True
    assert (site.path / "standby.signal").exists()


def test_a_guardian_that_is_not_armed_touches_nothing_when_the_pipe_ends(site):
    site.call("arm", limit=60)
    site.call("hold", patience=0)
    site.call("fence")
    site.call("disarm")
    site.guardian.close()
    site.guardian._process.wait(15)
    assert site.guardian._process.returncode == 0
    assert site.server.poll() is None and not (site.path / "started").exists()
    assert (site.path / "standby.signal").exists()


def test_a_guardian_does_not_end_with_what_ends_its_controller(site):
    site.call("look")
    assert os.getsid(site.guardian._process.pid) != os.getsid(0)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.kill(site.guardian._process.pid, number)
    assert site.call("look")["pid"] == site.server.pid


def test_answers_keep_their_order_and_errors_do_not_end_the_guardian(site):
    site.guardian.start("release")
    site.guardian.start("look")
    assert site.guardian.waiting == 2
    with pytest.raises(GuardianFailed, match="db1: it is not fenced"):
        site.guardian.finish(site.limit)
    assert site.guardian.finish(site.limit)["pid"] == site.server.pid
    assert site.guardian.waiting == 0
    with pytest.raises(GuardianFailed, match="AttributeError"):
        site.call("no_such_request")


def test_no_answer_in_time_is_a_timeout(site):
    site.call("look")
    os.kill(site.guardian._process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(WaitTimeout, match=r"guardian of db1 did not answer look within 0\.1 s"):
            site.guardian.call("look", Deadline(0.1))
    finally:
        os.kill(site.guardian._process.pid, signal.SIGCONT)


def test_a_guardian_that_cannot_be_started_says_why():
    # It may be gone before it is sent its program, or after.
    with pytest.raises(NotReachable, match="permission denied"):
        controller.Guardian("db1", ["sh", "-c", "echo 'permission denied' >&2; exit 255"], {"part": "node"}, patience=1).call("look", Deadline(10))


# -- a node that is down, for a promotion elsewhere ---------------------------------------------------------------------


def test_a_fence_for_a_server_that_is_down(home, monkeypatch):
    home.pid = None
    home.state(program.SHUT_DOWN)
    monkeypatch.setattr(home.node, "orphans", list)
    with pytest.raises(program.Failure, match="not held"):
        home.node.fence_down()
    home.node.hold(0)
    home.node.fence_down()
    assert home.fenced
    home.node.unfence()
    assert not home.fenced


@pytest.mark.parametrize("orphans", [[], [4712]])
def test_a_fence_that_came_too_late(home, monkeypatch, orphans):
    """A supervisor was faster: its server is, or will be, a primary. The file must not turn its next start into a surprise."""
    home.pid = None if orphans else 4711
    monkeypatch.setattr(home.node, "orphans", lambda: orphans)
    home.node.hold(0)
    with pytest.raises(program.Failure, match="a server works in"):
        home.node.fence_down()
    assert not home.fenced


def test_a_fence_of_somebody_else_stays(home, monkeypatch):
    home.pid = None
    home.signal.touch()
    monkeypatch.setattr(home.node, "orphans", list)
    home.node.hold(0)
    home.node.fence_down()
    home.node.unfence()
    assert home.fenced


def test_processes_in_the_directory(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    named = tmp_path / "postgres"
    named.symlink_to(sys.executable)
    node = program.Node(str(data), [])

    def work(argv):
        return subprocess.Popen(argv, cwd=data, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    # Somebody's shell in the data directory is no server.
    with work([sys.executable, "-c", "print(1, flush=True); input()"]) as other, work([named, "-c", "print(1, flush=True); input()"]) as server:
        for process in (other, server):
            process.stdout.readline()
        assert node.orphans() == [server.pid]
        for process in (other, server):
            process.communicate(b"\n", timeout=60)
    assert node.orphans() == []


def test_what_a_control_file_knows(home):
    block = bytearray(control_block(program.IN_PRODUCTION))
    struct.pack_into("<I", block, 48, 2)
    struct.pack_into("<QI", block, 136, CHECKPOINT + 7, 3)
    home.control.write_bytes(bytes(block))
    assert home.node.known() == {"timeline": 3, "position": CHECKPOINT + 7}
    struct.pack_into("<Q", block, 136, 0)
    home.control.write_bytes(bytes(block))
    assert home.node.known()["position"] == CHECKPOINT + 1
    struct.pack_into("<I", block, 8, 1900)
    home.control.write_bytes(bytes(block))
    with pytest.raises(program.Failure, match="version 1900"):
        home.node.known()


@pytest.mark.parametrize(
    ("host", "here"), [("127.0.0.1", True), ("localhost", True), ("", True), ("/run/postgresql", True), ("192.0.2.1", False), ("no-such-host.invalid", False)]
)
def test_whose_address_it_is(host, here):
    assert program.is_here(host) is here


def test_what_a_promotion_is_told(home):
    seen = home.node.look_for_proof(["192.0.2.1"])
    assert (seen["pid"], seen["standby_signal"], seen["crashed"], seen["here"]) == (4711, False, True, False)
    for state in (program.SHUT_DOWN, program.SHUT_DOWN_IN_RECOVERY, IN_ARCHIVE_RECOVERY):
        home.state(state)
        assert home.node.look_for_proof(["192.0.2.1", "127.0.0.1"])["crashed"] is False
    assert home.node.look_for_proof(["127.0.0.1"])["here"] is True
    assert seen["place"] == home.node.look_for_proof([])["place"] != program.Node(str(home.path / "global"), []).data
