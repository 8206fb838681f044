# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One instance on a host: commands, names and the formats that are read, without a server."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
import time

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import CommandFailed, InvalidInput, OperationError, WaitTimeout
from ansible_collections.pgfleet.ops.plugins.module_utils._host import controldata, listening
from ansible_collections.pgfleet.ops.plugins.module_utils._host.instance import Instance

OUTPUT = """\
pg_control version number:            1300
Database system identifier:           7710960669273728883
Database cluster state:               shut down in recovery
pg_control last modified:             Sun Nov 22 11:45:36 2026
Latest checkpoint location:           1/17419B8
Latest checkpoint's REDO location:    1/1741890
Latest checkpoint's TimeLineID:       3
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
wal_log_hints setting:                on
Latest checkpoint's full_page_writes:  on
Bytes per WAL segment:                16777216
Data page checksum version:           0
"""


def test_controldata_is_read():
    found = controldata.parse_controldata(OUTPUT)
    assert (found.system_identifier, found.state, found.checkpoint_lsn, found.timeline) == ("7710960669273728883", "shut down in recovery", "1/17419B8", 3)
    assert found.wal_log_hints and not found.data_checksums and found.shut_down and found.wal_segment_size == 16777216
    assert found.modified == "Sun Nov 22 11:45:36 2026"


def test_controldata_without_a_field_is_an_error():
    with pytest.raises(CommandFailed, match="TimeLineID"):
        controldata.parse_controldata(OUTPUT.replace("TimeLineID", "Timeline"))


def head(version=1300, state=1):
    return struct.pack("=QIIi4xqQQ", 7710960669273728883, version, 202209061, state, 1795347937, 0x1_01741898, 0x1_01741890)


@pytest.mark.parametrize("version", [1300, 1700, 1800])
def test_head_of_the_control_file(version):
    found = controldata.parse_head(head(version) + b"\0" * 200)
    assert len(head()) == 48
    assert (found.system_identifier, found.state, found.checkpoint_lsn, found.redo_lsn) == ("7710960669273728883", "shut down", "1/1741898", "1/1741890")
    assert found.shut_down and not controldata.parse_head(head(state=6)).shut_down


@pytest.mark.parametrize("data", [head(1201), head(state=7), head(state=-1), head()[:40], b"", head(0x14050000)])
def test_unknown_head_is_an_error_and_no_guess(data):
    with pytest.raises(OperationError):
        controldata.parse_head(data)


def test_pg_ctl_commands():
    one = Instance("/srv/a b/data/", "/srv/a b/it's.conf", "/opt/pg/bin", "pg_ctl", log_file="/srv/log", timeout=7)
    assert one.data_directory == "/srv/a b/data"
    begin = ["/opt/pg/bin/pg_ctl", "-D", "/srv/a b/data"]
    assert one.start_command() == [*begin, "-w", "-t", "7", "-s", "-l", "/srv/log", "-o", "-c config_file='/srv/a b/it'\"'\"'s.conf'", "start"]
    assert one.stop_command("immediate") == [*begin, "-m", "immediate", "-w", "-t", "7", "-s", "stop"]
    plain = Instance("/srv/data", bin_directory="/opt/pg/bin", method="pg_ctl")
    assert "-o" not in plain.start_command() and plain.log_file == "/srv/data/startup.log"


def test_commands_of_ones_own():
    one = Instance("/srv/data", method="command", commands=(["svc", "-u", "/service/pg"], ["svc", "-d", "/service/pg"]))
    assert one.method == "command" and one.start_command() == ["svc", "-u", "/service/pg"] and one.stop_command("smart") == ["svc", "-d", "/service/pg"]
    for commands in (None, ([], ["x"]), (["x"], [])):
        with pytest.raises(InvalidInput, match="start_command and stop_command"):
            Instance("/srv/data", method="command", commands=commands)


@pytest.mark.parametrize(
    ("name", "found"), [("127.0.0.1", "loopback"), ("localhost", "loopback"), ("::1", "loopback"), ("192.0.2.77", None), ("nowhere.invalid", "unknown")]
)
def test_whose_address_a_name_is(name, found):
    assert listening.own_address(name) == found


def test_debian_names():
    one = Instance("/srv/data", "/etc/postgresql/15/main/postgresql.conf", method="systemd")
    assert one.unit == "postgresql@15-main" and one.start_command() == ["systemctl", "start", "postgresql@15-main"]
    assert one.stop_command() == ["systemctl", "stop", "postgresql@15-main"]
    assert one.stop_command("immediate") == ["systemctl", "kill", "--kill-who=main", "--signal=SIGQUIT", "postgresql@15-main"]
    assert one.log_file == "/var/log/postgresql/postgresql-15-main.log"
    one = Instance("/srv/data", "/etc/postgresql/15/main/postgresql.conf", method="pg_ctlcluster", timeout=9)
    assert one.stop_command("smart") == ["pg_ctlcluster", "-m", "smart", "15", "main", "stop", "--", "-t", "9"]
    assert Instance("/var/lib/pgsql/16/data", method="systemd").unit == "postgresql-16"
    assert Instance("/srv/data", unit="mine", method="systemd").unit == "mine"


def test_wrong_options_are_refused():
    for make in (
        lambda: Instance(""), lambda: Instance("data"), lambda: Instance("/d", method="init"), lambda: Instance("/d", method="systemd").start_command(),
        lambda: Instance("/d", method="pg_ctlcluster").stop_command(), lambda: Instance("/d", bin_directory="/b", method="pg_ctl").stop_command("slow"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            make()


def test_a_missing_directory_has_no_server(tmp_path):
    one = Instance(str(tmp_path / "none"))
    assert one.postmaster() is None and not one.has_data and one.major_version is None
    (tmp_path / "postmaster.pid").write_text("not a number\n")
    assert Instance(str(tmp_path)).postmaster() is None


@pytest.fixture
def uncollected():
    """A process that has ended and whose parent, this one, has not asked for its end."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process
    process.wait()


def instance_with_marker(tmp_path, pid):
    data, marker = tmp_path / "data", tmp_path / "started"
    data.mkdir()
    (data / "postmaster.pid").write_text("%d\n%s\n0\n" % (pid, data))
    commands = {"bin_directory": str(tmp_path), "timeout": 1}
    program = tmp_path / "pg_ctl"
    program.write_text("#!/bin/sh\necho >%s\n" % marker)
    program.chmod(0o755)
    return Instance(str(data), "pg_ctl", **commands), marker


def test_a_server_that_nobody_has_collected_is_named_and_none_is_started(tmp_path, uncollected, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    instance, marker = instance_with_marker(tmp_path, uncollected.pid)
    with pytest.raises(WaitTimeout, match="process %d, has ended, but its parent, process %d," % (uncollected.pid, os.getpid())) as caught:
        instance.start()
    assert "--init" in caught.value.action and not marker.exists()


def test_a_server_that_is_collected_late_does_not_keep_the_next_one_from_starting(tmp_path, uncollected, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    instance, marker = instance_with_marker(tmp_path, uncollected.pid)
    collector = threading.Thread(target=lambda: (time.sleep(0.3), uncollected.wait()))
    collector.start()
    with pytest.raises(CommandFailed, match="did not start, or ended at once"):
        instance.start()
    collector.join()
    assert marker.exists()


def test_log_tail_shows_what_came_since(tmp_path):
    log = tmp_path / "log"
    one = Instance(str(tmp_path / "data"), log_file=str(log))
    assert one.log_tail() == []
    log.write_text("old\n")
    mark = one.log_mark()
    with log.open("a") as file:
        file.write("new 1\nnew 2\n")
    assert one.log_tail(mark) == ["new 1", "new 2"] and one.log_tail(mark, lines=1) == ["new 2"] and one.log_tail() == ["old", "new 1", "new 2"]
    log.write_text("r\n")
    assert one.log_tail(mark) == ["r"]


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1538 0100007F:9C40 01 00000000:00000000 00:00000000 00000000   101        0 4712 1 0 100 0 0 10 0
   2: 00000000:1539 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4713 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:1538 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4714 1
   1: 0000000000000000FFFF00000100007F:1538 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4715 1
"""
UNIX = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 4716 /run/with space/.s.PGSQL.5432
0000000000000000: 00000003 00000000 00000000 0001 03 4717 /run/with space/.s.PGSQL.5432
0000000000000000: 00000003 00000000 00000000 0001 03 4718
"""


def test_listeners_are_read():
    assert listening.parse_tcp(TCP, 5432) == [("127.0.0.1", "4711")] and listening.parse_tcp(TCP, 5433) == [("0.0.0.0", "4713")]
    assert listening.parse_tcp(TCP6, 5432) == [("::1", "4714"), ("127.0.0.1", "4715")] and listening.parse_tcp("", 5432) == []
    assert listening.parse_unix(UNIX, "/run/with space/.s.PGSQL.5432") == ["4716"] and listening.parse_unix(UNIX, "/run/.s.PGSQL.5432") == []


@pytest.mark.parametrize(
    "wanted, taken, clash",
    [("127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "127.0.0.2", False), ("127.0.0.1", "0.0.0.0", True), ("0.0.0.0", "10.0.0.1", True),
     ("127.0.0.1", "::", True), ("::1", "127.0.0.1", False), ("::", "0.0.0.0", False), ("::", "::1", True)],
)  # fmt: skip
def test_which_addresses_meet(wanted, taken, clash):
    assert listening.clashes(wanted, taken) is clash


@pytest.mark.parametrize("text", [None, "", "no number\n"])
def test_without_the_pid_of_an_old_server_nothing_is_waited_for(tmp_path, monkeypatch, text):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    instance, marker = instance_with_marker(tmp_path, 0)
    pidfile = tmp_path / "data" / "postmaster.pid"
    pidfile.unlink()
    if text is not None:
        pidfile.write_text(text)
    with pytest.raises(CommandFailed, match="did not start, or ended at once"):
        instance.start()
    assert marker.exists()
