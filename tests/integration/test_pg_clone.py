# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_clone on real servers: what it makes, what it refuses, and what it leaves when it fails or is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import time

import pytest
from lab import BIN, REPOSITORY, SUPERUSER_PASSWORD, ansible_environment, call_module, four_steps, free_port, run, wait_until


def options(node, source, **more):
    return {
        "data_directory": node.data, "config_file": node.config_file, "log_file": node.log, "method": "pg_ctl", "timeout": 30,
        "source_host": "127.0.0.1", "source_port": source.port, "login_user": "postgres", "login_password": SUPERUSER_PASSWORD,
        "replication_user": "postgres", "replication_passfile": node.passfile, **more,
    }  # fmt: skip


def entries(node):
    """What lies beside a data directory."""
    return sorted(path.name for path in node.base.iterdir())


def slots(server):
    return {row[0] for row in server.sql("SELECT slot_name FROM pg_replication_slots WHERE NOT temporary")}


def mount_disk(path, size):
    """A file system of its own for the servers' user."""
    run(["mount", "-t", "tmpfs", "-o", "size=%s,mode=0700,uid=%d" % (size, pwd.getpwnam("postgres").pw_uid), "tmpfs", path])


def age(node):
    """Changes when a directory is replaced."""
    return node.data.stat().st_ino


@pytest.fixture(scope="module")
def source(lab):
    made = lab.postgres("source").init().start()
    made.sql("CREATE TABLE t AS SELECT g AS i, repeat('x', 200) AS filler FROM generate_series(1, 20000) g")
    return made


@pytest.fixture
def node(lab, request):
    """An instance without data."""
    return lab.postgres("n_" + "".join(c for c in request.node.name if c.isalnum() or c == "_")[-40:])


@pytest.fixture
def standby(node, source):
    result = call_module("pg_clone", options(node, source))
    assert not result["failed"], result
    yield node
    node.stop("immediate")


def test_makes_a_standby_that_streams(node, source):
    result = four_steps("pg_clone", options(node, source, slot_name="first", application_name="first app"))
    assert result["state"] == "standby" and result["streaming"] and result["follows_source"] and result["pid"] == node.pid and result["port"] == node.port
    assert node.in_recovery and node.value("SELECT count(*) FROM t") == 20000
    assert source.sql("SELECT slot_name, active FROM pg_replication_slots WHERE slot_name = 'first'") == [("first", True)]
    assert source.value("SELECT state FROM pg_stat_replication WHERE application_name = 'first app'") == "streaming"
    source.sql("INSERT INTO t SELECT 0, ''")
    wait_until(lambda: node.value("SELECT count(*) FROM t") == 20001, 10)
    assert "pgfleet_clone.json" not in os.listdir(node.data)
    assert [name for name in entries(node) if name.startswith("data")] == ["data"]
    # No secret where others can read it, and none in the standby's own files.
    assert SUPERUSER_PASSWORD not in str(result)
    text = (node.data / "postgresql.auto.conf").read_text()
    assert "passfile=" in text and "password=" not in text and "super secret" not in text
    assert node.value("SELECT setting FROM pg_settings WHERE name = 'primary_slot_name'") == "first"
    assert result["diff"][0]["before"] == {"state": "missing"} and result["diff"][0]["after"]["slot_name"] == "first"
    node.stop()


def test_check_mode_writes_nothing(node, source):
    before, beside = slots(source), entries(node)
    result = call_module("pg_clone", options(node, source, slot_name="never"), check=True)
    assert result["changed"] and not result["failed"] and result["performed"] == []
    assert slots(source) == before and entries(node) == beside and not node.data.exists()


def test_empty_directory_and_symbolic_link(node, source):
    """The data directory may be a link to another place; the link stays."""
    place = node.base / "elsewhere"
    place.mkdir(mode=0o700)
    shutil.chown(place, "postgres", "postgres")
    node.data.symlink_to(place)
    result = four_steps("pg_clone", options(node, source))
    assert result["data_directory"] == str(place) and node.data.is_symlink() and node.in_recovery
    node.stop()


def test_standby_of_another_upstream_is_left_alone(lab, standby, source):
    cascade = lab.postgres("cascade")
    assert not call_module("pg_clone", options(cascade, standby))["failed"]
    before = age(cascade), cascade.pid
    result = four_steps("pg_clone", options(cascade, source), expect_change=False)
    assert result["streaming"] and not result["follows_source"] and result["upstream"] == "127.0.0.1:%d" % standby.port
    assert "streams from 127.0.0.1:%d, not from" % standby.port in result["printed"], result["printed"]
    assert (age(cascade), cascade.pid) == before
    # reclone moves it.
    result = call_module("pg_clone", options(cascade, source, reclone=True))
    assert not result["failed"] and result["follows_source"] and result["upstream"] == "127.0.0.1:%d" % source.port and age(cascade) != before[0]
    cascade.stop()


def test_reclone_replaces_a_running_standby_and_keeps_its_files(standby, source):
    standby.write(standby.data / "pg_hba.conf", "# of this node\n")
    before, pid = age(standby), standby.pid
    result = call_module("pg_clone", options(standby, source, reclone=True, keep_old=True))
    assert not result["failed"], result
    assert age(standby) != before and standby.pid != pid and standby.in_recovery
    assert (standby.data / "pg_hba.conf").read_text() == "# of this node\n"
    assert os.stat(result["kept_directory"]).st_ino == before
    # A kept directory is not a leftover.
    assert not call_module("pg_clone", options(standby, source, reclone=True))["failed"]
    assert os.stat(result["kept_directory"]).st_ino == before
    assert len([name for name in entries(standby) if name.startswith("data")]) == 2


def test_tablespaces_and_wal_go_where_they_are_told(own_lab):
    source, node = own_lab.postgres("spaces").init().start(), own_lab.postgres("mapped")
    origin, mapped, wal = own_lab.path / "space=1", own_lab.path / "mapped=1", own_lab.path / "wal"
    origin.mkdir()
    shutil.chown(origin, "postgres", "postgres")
    source.sql("CREATE TABLESPACE there LOCATION '%s'" % origin)
    source.sql("CREATE TABLE spaced TABLESPACE there AS SELECT generate_series(1, 1000) AS i")
    refused = call_module("pg_clone", options(node, source))
    assert refused["failed"] and refused["error"] == "Refused" and "source's own directory" in refused["msg"], refused
    wanted = options(node, source, tablespace_mapping={str(origin): str(mapped)}, wal_directory=wal)
    four_steps("pg_clone", wanted)
    for _again in range(2):
        assert node.value("SELECT count(*) FROM spaced") == 1000
        assert node.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'there'") == str(mapped)
        assert os.path.realpath(node.data / "pg_wal") == str(wal) and any(wal.iterdir())
        # Their old content is replaced with them.
        result = call_module("pg_clone", {**wanted, "reclone": True})
        assert not result["failed"], result
    assert sorted(path.name for path in own_lab.path.iterdir()) == ["mapped", "mapped=1", "space=1", "spaces", "wal"]
    assert source.value("SELECT count(*) FROM spaced") == 1000
    # Put back with them too.
    before = age(node), mapped.stat().st_ino, wal.stat().st_ino
    node.write(node.config_file, node.config_file.read_text() + "shared_preload_libraries = 'no_such_library'\n")
    result = call_module("pg_clone", {**wanted, "reclone": True})
    assert result["failed"] and (age(node), mapped.stat().st_ino, wal.stat().st_ino) == before
    assert sorted(path.name for path in own_lab.path.iterdir()) == ["mapped", "mapped=1", "space=1", "spaces", "wal"]


def test_wal_at_the_root_of_a_mounted_file_system(standby, source):
    """It can be rewound there, but not replaced; that is said before anything is stopped or copied."""
    wal = standby.base / "wal"
    wal.mkdir()
    mount_disk(wal, "200m")
    try:
        standby.stop()
        run(["mv", "-t", wal, *(standby.data / "pg_wal").iterdir()])
        (standby.data / "pg_wal").rmdir()
        (standby.data / "pg_wal").symlink_to(wal)
        standby.start()
        pid, before = standby.pid, age(standby)
        for more in ({}, {"wal_directory": wal}):
            text = "root of a mounted file system; name a directory below it in wal_directory"
            refused(standby, source, text, reclone=True, copy_method="basebackup", **more)
        assert (standby.pid, age(standby)) == (pid, before)
        result = call_module("pg_clone", options(standby, source, reclone=True, wal_directory=wal / "main"))
        assert not result["failed"] and result["streaming"], result
        assert os.path.realpath(standby.data / "pg_wal") == str(wal / "main")
    finally:
        standby.stop("immediate")
        run(["umount", wal])


# What it refuses. Each test looks at the disk and the processes afterwards, not only at the message.


def refused(node, source, text, error="Refused", **more):
    """Both in check mode and for real, and nothing has changed."""
    before = entries(node)
    for check in (True, False):
        result = call_module("pg_clone", options(node, source, **more), check=check)
        assert result["failed"] and result["error"] == error and text in result["msg"], result
        assert result["performed"] == [] and not result["changed"] and result["phase"] in ("observe", "plan")
    assert entries(node) == before
    return result


def test_refuses_a_running_primary(lab, source):
    """The old primary that nobody stopped, also with reclone. Its copy has the same system identifier."""
    old = lab.postgres("old_primary")
    assert not call_module("pg_clone", options(old, source))["failed"]
    old.sql("SELECT pg_promote()")
    wait_until(lambda: not old.in_recovery, 20)
    before = age(old), old.pid
    for reclone in (False, True):
        refused(old, source, "a primary runs in", error="SplitBrainRisk", reclone=reclone)
    # A stray signal file does not make it a standby.
    old.write(old.data / "standby.signal", "")
    refused(old, source, "a primary runs in", error="SplitBrainRisk", reclone=True)
    assert (age(old), old.pid) == before and not old.in_recovery
    (old.data / "standby.signal").unlink()
    # Stopped, it needs reclone, and then comes back as a standby. The source has stayed on the older timeline.
    old.stop()
    refused(old, source, "may be the outdated server", reclone=True, copy_method="rewind")
    refused(old, source, "Set reclone")
    assert age(old) == before[0]
    assert not call_module("pg_clone", options(old, source, reclone=True))["failed"]
    assert old.in_recovery and age(old) != before[0]
    old.stop()


def test_refuses_the_sources_own_directory_by_any_name(lab, source, standby):
    """clone(r1, True, r1) of old: r1 was stopped, wiped, and then there was nothing to copy."""
    link = lab.path / "link_to_source"
    link.symlink_to(source.data)
    parent_link = lab.path / "link_to_base"
    parent_link.symlink_to(source.base)
    for server in (source, standby):
        for directory in {source: (source.data, link, parent_link / "data", source.base / "config" / ".." / "data"), standby: (standby.data,)}[server]:
            before = server.pid, age(server), entries(server)
            refused(server, server, "is the data directory of the source", reclone=True, data_directory=directory, config_file=server.config_file)
            assert (server.pid, age(server), entries(server)) == before
    # By another address of the same host.
    refused(source, source, "is the data directory of the source", reclone=True, source_host="localhost")
    assert source.value("SELECT 1") == 1


def test_refuses_the_sources_directory_through_a_bind_mount(lab, source):
    """No path and no link tells that the two are one."""
    elsewhere = lab.path / "elsewhere"
    elsewhere.mkdir()
    run(["mount", "--bind", source.base, elsewhere])
    try:
        before = source.pid, age(source), entries(source)
        for reclone in (False, True):
            refused(source, source, "is the data directory of the source", reclone=reclone, data_directory=elsewhere / "data")
        assert (source.pid, age(source), entries(source)) == before and source.value("SELECT 1") == 1
    finally:
        run(["umount", elsewhere])


def test_refuses_the_source_for_a_login_that_may_read_no_files(standby, source):
    source.sql("CREATE ROLE watcher LOGIN PASSWORD 'w'")
    source.sql("GRANT pg_monitor TO watcher")
    wait_until(lambda: standby.value("SELECT count(*) FROM pg_roles WHERE rolname = 'watcher'") == 1, 10)
    login = {"login_user": "watcher", "login_password": "w", "login_db": "postgres"}
    refused(standby, standby, "is the data directory of the source", reclone=True, **login)
    assert standby.pid


@pytest.mark.parametrize("path", ["/", "/var", "/root", "/var/lib/postgresql", "/home", "/proc", "/dev/shm", "//", "/var/../"])
def test_refuses_a_path_that_is_never_a_data_directory(node, source, path):
    refused(node, source, "the data directory", data_directory=path, reclone=True)
    assert os.path.isdir(path)


@pytest.mark.parametrize("path", ["", "data", "."])
def test_refuses_a_path_that_is_none(node, source, path):
    before = entries(node)
    result = call_module("pg_clone", options(node, source, data_directory=path, reclone=True))
    assert result["failed"] and result.get("performed", []) == []
    assert entries(node) == before


def test_refuses_a_directory_with_other_things(node, source):
    node.data.mkdir(mode=0o700)
    node.write(node.data / "thesis.txt", "the only copy")
    shutil.chown(node.data, "postgres", "postgres")
    refused(node, source, "is not empty and is no PostgreSQL data directory", reclone=True)
    assert (node.data / "thesis.txt").read_text() == "the only copy"
    # A hidden file counts, and so does a file in the place of the directory.
    (node.data / "thesis.txt").rename(node.data / ".hidden")
    refused(node, source, "is not empty", reclone=True)
    shutil.rmtree(node.data)
    node.write(node.data, "a file")
    refused(node, source, "is not empty", reclone=True)
    assert node.data.read_text() == "a file"


def test_refuses_a_place_inside_another_data_directory(node, source):
    refused(node, source, "inside a data directory", data_directory=source.data / "base" / "new")
    refused(node, source, "inside a data directory", data_directory=source.data / "pg_wal", reclone=True)
    assert source.value("SELECT 1") == 1


def test_refuses_another_cluster(lab, source):
    other = lab.postgres("foreign").init()
    before = age(other)
    for reclone in (False, True):
        refused(other, source, "belongs to another cluster", reclone=reclone)
    other.start()
    refused(other, source, "belongs to another cluster", reclone=True)
    assert age(other) == before and other.pid
    other.stop()


def test_a_standby_that_is_down_is_copied_only_when_told(standby, source):
    standby.stop()
    before = age(standby)
    refused(standby, source, "a server that is down, and copy_method is basebackup", copy_method="basebackup")
    assert age(standby) == before
    # A pid file of a process that is no server does not make it a running one.
    standby.write(standby.data / "postmaster.pid", "%d\n%s\n1\n1\n\n\n0 0\nready\n" % (os.getpid(), standby.data))
    assert not call_module("pg_clone", options(standby, source, reclone=True, copy_method="basebackup"))["failed"]
    assert age(standby) != before and standby.in_recovery


def test_refuses_wrong_logins_before_anything_is_stopped(standby, source, lab):
    pid = standby.pid
    wrong = lab.path / "wrong_passfile"
    standby.write(wrong, "*:*:*:*:wrong\n")
    refused(standby, source, "does not let user", error="AuthenticationFailed", reclone=True, replication_passfile=wrong)
    refused(standby, source, "does not let user", error="AuthenticationFailed", reclone=True, login_password="wrong")
    refused(standby, source, "does not answer", error="NotReachable", reclone=True, source_port=1)
    assert standby.pid == pid


def test_refuses_a_slot_of_another_standby(lab, standby, source):
    result = call_module("pg_clone", options(standby, source, slot_name="taken", reclone=True))
    assert not result["failed"]
    other = lab.postgres("wants_taken")
    refused(other, source, 'the slot "taken"', slot_name="taken")
    assert not other.data.exists()


def test_refuses_root_with_pg_ctl(node, source):
    result = call_module("pg_clone", options(node, source), user=None)
    assert result["failed"] and result["error"] == "InvalidInput" and "become_user" in result["msg"]
    assert not node.data.exists()


# What it leaves when something goes wrong.


def test_failed_copy_leaves_nothing(node, source):
    """The copy cannot be made at this rate; the slot that was made for it goes with it."""
    beside = entries(node)
    result = call_module("pg_clone", options(node, source, slot_name="for_nothing", max_rate="1"))
    assert result["failed"] and result["error"] == "RolledBack" and result["cause"] == "CommandFailed" and not result["changed"], result
    assert "slot removed" in result["undone"] and "for_nothing" not in slots(source)
    assert entries(node) == beside and not node.data.exists()


def test_failed_copy_keeps_a_slot_that_was_there(node, source):
    source.sql("SELECT pg_create_physical_replication_slot('was_there')")
    result = call_module("pg_clone", options(node, source, slot_name="was_there", max_rate="1"))
    assert result["failed"] and "was_there" in slots(source)


def test_old_directory_comes_back_when_the_new_one_does_not_start(standby, source):
    before, beside = age(standby), entries(standby)
    text = standby.config_file.read_text()
    standby.write(standby.config_file, text + "shared_preload_libraries = 'no_such_library'\n")
    result = call_module("pg_clone", options(standby, source, slot_name="undone", reclone=True))
    assert result["failed"] and "no_such_library" in result["msg"] and "undone" not in slots(source), result
    assert age(standby) == before and entries(standby) == beside
    # It could not be started again either, as its configuration is the same; with the old one it is as it was.
    standby.write(standby.config_file, text)
    standby.start()
    wait_until(lambda: standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming", 20)


def test_old_standby_runs_again_when_the_new_one_does_not_stream(standby, source):
    """The copy works with a password by the environment; streaming does not, as the passfile holds it no more."""
    before, pid = age(standby), standby.pid
    empty = standby.base / "no_passfile"
    result = call_module(
        "pg_clone",
        options(standby, source, reclone=True, timeout=6, slot_name="undone", replication_password=SUPERUSER_PASSWORD, replication_passfile=empty),
    )
    assert result["failed"] and result["error"] == "RolledBack" and result["cause"] == "WaitTimeout", result
    assert any("password" in line for line in result["log"]) and SUPERUSER_PASSWORD not in str(result)
    assert age(standby) == before and standby.pid not in (None, pid) and "undone" not in slots(source)
    wait_until(lambda: standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming", 20)


def test_verification_finds_a_damaged_copy(node, source):
    """A verifier that fails stands for a copy that is damaged."""
    programs = node.base / "bin"
    programs.mkdir()
    for program in BIN.iterdir():
        (programs / program.name).symlink_to(program)
    (programs / "pg_verifybackup").unlink()
    (programs / "pg_verifybackup").write_text('#!/bin/sh\nfor last; do :; done\nprintf x >> "$last/PG_VERSION"\nexec %s/pg_verifybackup "$@"\n' % BIN)
    (programs / "pg_verifybackup").chmod(0o755)
    result = call_module("pg_clone", options(node, source, bin_directory=programs))
    assert result["failed"] and result["error"] == "RolledBack" and "PG_VERSION" in result["msg"], result
    assert not node.data.exists() and not any(name.startswith("data") for name in entries(node))


def killed_in(node, source, moment, number=signal.SIGKILL, **more):
    """Start pg_clone, kill its process at a moment, and wait until it is gone."""
    argv = [
        pathlib.Path(sys.executable).parent / "ansible", "localhost", "-i", "localhost,", "-c", "local", "-m", "pgfleet.ops.pg_clone", "-a",
        json.dumps(options(node, source, **more), default=str), "--become", "--become-user", "postgres",
    ]  # fmt: skip
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ansible_environment(), cwd=REPOSITORY
    )
    try:
        wait_until(lambda: process.poll() is not None or moment(), 60, interval=0.01)
        assert process.poll() is None, process.stdout.read()
        victims = [pid for pid in descendants(process.pid) if is_module(pid)]
        assert victims, "the module's process was not found"
        for pid in victims:
            os.kill(pid, number)
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    return output


def descendants(pid):
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # has ended
        for child in pathlib.Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def is_module(pid):
    """The python process of postgres, not the su and the shell before it."""
    status = pathlib.Path("/proc/%d" % pid)
    with contextlib.suppress(FileNotFoundError):  # has ended
        return status.stat().st_uid == pwd.getpwnam("postgres").pw_uid and "python" in os.path.basename(os.readlink(status / "exe"))
    return False


def copying(node):
    """Whether the copy has begun, to be asked again and again."""
    return lambda: any((node.base / name / "base").exists() for name in entries(node) if ".clone-" in name)


def test_killed_half_way_through_the_copy(node, source):
    moment = copying(node)
    killed_in(node, source, moment, slot_name="half", max_rate="2M")
    copies = [name for name in entries(node) if ".clone-" in name]
    assert len(copies) == 1 and not node.data.exists() and "half" in slots(source)
    # The copy died with the module, or the disk would still be filled.

    def size():
        return sum(path.stat().st_size for path in (node.base / copies[0]).rglob("*") if path.is_file())

    before = size()
    time.sleep(1.5)
    assert size() == before
    # And so did its second process, which would hold the slot for ever.
    wait_until(lambda: source.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'half'") == [(False,)], 10)
    result = four_steps("pg_clone", options(node, source, slot_name="half"))
    assert any("interrupted run left" in step for step in result["plan"])
    assert node.in_recovery and not any("." in name for name in entries(node) if name.startswith("data"))


def test_terminated_half_way_through_the_copy(node, source):
    """A polite signal leaves nothing at all."""
    moment = copying(node)
    output = killed_in(node, source, moment, number=signal.SIGTERM, slot_name="polite", max_rate="2M")
    assert "RolledBack" in output and not any(name.startswith("data") for name in entries(node)) and "polite" not in slots(source), output


def test_copy_that_outlived_its_module_is_ended(node, source):
    """Where the host cannot end it with the module, the next run does."""
    source.sql("SELECT pg_create_physical_replication_slot('orphaned', true)")
    copy = node.base / "data.clone-0123456789ab"
    orphan = subprocess.Popen(
        [BIN / "pg_basebackup", "--pgdata=%s" % copy, "--dbname=host=127.0.0.1 port=%d user=postgres passfile=%s" % (source.port, node.passfile),
         "--slot=orphaned", "--max-rate=1M", "--checkpoint=fast"], user="postgres", group="postgres", cwd="/",
    )  # fmt: skip
    wait_until(lambda: source.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'orphaned'") and (copy / "base").exists(), 30)
    orphan.kill()
    orphan.wait()
    result = call_module("pg_clone", options(node, source, slot_name="orphaned"))
    assert not result["failed"] and node.in_recovery and not copy.exists(), result


def test_second_run_meanwhile_is_refused(node, source):
    def moment():
        return any((node.base / name / "base").exists() for name in entries(node) if ".clone-" in name)

    results = []

    def meanwhile():
        if moment():
            results.append(call_module("pg_clone", options(node, source)))
        return bool(results)

    killed_in(node, source, meanwhile, max_rate="1M")
    assert results[0]["failed"] and "another run is making the copy" in results[0]["msg"], results


def test_killed_before_the_standby_streams(standby, source):
    """After the swap: the next run puts the old directory back and starts anew."""
    before = age(standby)
    empty = standby.base / "no_passfile"
    killed_in(
        standby, source, lambda: (standby.data / "pgfleet_clone.json").exists() and standby.pid,
        reclone=True, replication_password=SUPERUSER_PASSWORD, replication_passfile=empty,
    )  # fmt: skip
    olds = [name for name in entries(standby) if ".old-" in name]
    assert len(olds) == 1 and (standby.base / olds[0]).stat().st_ino == before
    # Without reclone nobody decides about the old directory.
    refused(standby, source, "has set aside the old directory")
    result = call_module("pg_clone", options(standby, source, reclone=True))
    assert not result["failed"] and "undo the clone that was interrupted" in result["plan"], result
    assert standby.in_recovery and [name for name in entries(standby) if name.startswith("data")] == ["data"]


def test_killed_between_the_two_renames(standby, source):
    """Made by hand, as no kill hits that moment: the old directory is aside and the copy not yet in its place."""
    standby.stop()
    before, identifier = age(standby), "0123456789ab"
    standby.data.rename(standby.base / ("data.old-" + identifier))
    copy = standby.base / ("data.clone-" + identifier)
    copy.mkdir(mode=0o700)
    shutil.chown(copy, "postgres", "postgres")
    refused(standby, source, "has set aside the old directory")
    assert (standby.base / ("data.old-" + identifier)).stat().st_ino == before
    result = call_module("pg_clone", options(standby, source, reclone=True))
    assert not result["failed"] and any("put back" in step for step in result["plan"]), result
    assert standby.in_recovery and [name for name in entries(standby) if name.startswith("data")] == ["data"]


def test_killed_after_it_streams_is_only_finished(standby, source):
    standby.write(standby.data / "pgfleet_clone.json", '{"id": "0123456789ab", "was_running": true}\n')
    old = standby.base / "data.old-0123456789ab"
    old.mkdir()
    shutil.chown(old, "postgres", "postgres")
    pid = standby.pid
    result = four_steps("pg_clone", options(standby, source))
    assert result["plan"] == ["finish the clone that was interrupted"] and standby.pid == pid and not old.exists()


def test_free_space_is_looked_at_first(own_lab, source):
    """A file system that is too small: nothing is begun."""
    node = own_lab.postgres("small")
    mount_disk(node.base, "40m")
    try:
        result = call_module("pg_clone", options(node, source, config_file=None, log_file=None, data_directory=node.base / "data", replication_passfile=None,
                                                 replication_password=SUPERUSER_PASSWORD, slot_name="small"))  # fmt: skip
        assert result["failed"] and result["error"] == "Refused" and "MB free" in result["msg"], result
        assert list(node.base.iterdir()) == [] and "small" not in slots(source)
        result = call_module("pg_clone", options(node, source, config_file=None, log_file=None, data_directory=node.base, replication_passfile=None,
                                                 replication_password=SUPERUSER_PASSWORD))  # fmt: skip
        assert result["failed"] and "root of a mounted file system" in result["msg"]
    finally:
        run(["umount", node.base])


def test_root_makes_a_standby_that_belongs_to_the_servers_user(source):
    """As with systemd: root runs the task, Debian's tools start the server, and every file is the server user's."""
    version, name, port = BIN.parent.name, "pgfleet_clone_%d" % os.getpid(), free_port()
    directory = pathlib.Path("/var/lib/postgresql/%s/%s" % (version, name))
    run(["pg_createcluster", version, name, "-p", port, "--start-conf=manual", "-D", directory, "--", "-N"])
    try:
        # The configuration stays, the data is to come from the source.
        shutil.rmtree(directory)
        wanted = {
            "data_directory": directory, "config_file": "/etc/postgresql/%s/%s/postgresql.conf" % (version, name), "timeout": 30,
            "source_host": "127.0.0.1", "source_port": source.port, "login_user": "postgres", "login_password": SUPERUSER_PASSWORD,
            "replication_user": "postgres", "replication_passfile": source.passfile, "slot_name": "for_root",
        }  # fmt: skip
        result = four_steps("pg_clone", wanted, user=None)
        assert result["streaming"] and result["port"] == port, result
        owners = {path.owner() for path in [directory, *directory.rglob("*")]}
        assert owners == {"postgres"} and (directory / "standby.signal").exists()
        before = directory.stat().st_ino
        result = call_module("pg_clone", {**wanted, "reclone": True}, user=None)
        assert not result["failed"] and directory.stat().st_ino != before
    finally:
        run(["pg_ctlcluster", "-m", "immediate", version, name, "stop"], check=False)
        run(["pg_dropcluster", version, name])
