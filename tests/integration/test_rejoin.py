# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_clone on a directory that is down: started as it is, rewound, or copied anew, and what is lost by that is never lost unasked."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest
from lab import BIN, SUPERUSER_PASSWORD, call_module, four_steps, run, wait_until
from test_pg_clone import age, entries, killed_in, mount_disk, options, slots


def tree(directory):
    """All that is in a directory: names, sizes, modes, moments of change and content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else None
        found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns if content else None, content)
    return found


def caught_up(primary, standby):
    position = primary.value("SELECT pg_current_wal_flush_lsn()")
    wait_until(lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s", [position]), 20)


def promote(node):
    node.sql("SELECT pg_promote()")
    wait_until(lambda: not node.in_recovery, 20)
    return node


def crash(node):
    os.kill(node.pid, signal.SIGKILL)
    wait_until(lambda: not any(is_server_in(node.data, entry) for entry in os.listdir("/proc") if entry.isdigit()), 20)


def is_server_in(directory, entry):
    try:
        return os.path.samefile("/proc/%s/cwd" % entry, directory)
    except OSError:
        return False


class Pair:
    """A primary ``old`` and its standby ``new``, which becomes the primary."""

    def __init__(self, lab, **more):
        self.old = lab.postgres("old", **more).init().start()
        self.old.sql("CREATE TABLE t (i int, filler text)")
        self.old.sql("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 5000) g")
        self.new = lab.postgres("new", **more).clone(self.old)
        self.old.wait_for_standbys(1)

    def switch(self):
        """Stopped cleanly, and nothing is missing on the other side."""
        caught_up(self.old, self.new)
        self.old.stop()
        wait_until(lambda: self.new.value("SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()"), 20)
        promote(self.new)
        self.new.sql("INSERT INTO t SELECT -1, 'after'")
        return self

    def diverge(self, kill):
        """The old primary goes on alone and is lost; the other is promoted without what it wrote then."""
        caught_up(self.old, self.new)
        self.new.stop()
        self.old.sql("INSERT INTO t SELECT g, 'lost' FROM generate_series(100001, 100100) g")
        if kill:
            crash(self.old)
        else:
            self.old.stop()
        self.new.start()
        promote(self.new)
        self.new.sql("INSERT INTO t SELECT -1, 'after'")
        return self

    def options(self, **more):
        return options(self.old, self.new, **more)

    def rows(self):
        return self.old.sql("SELECT filler, count(*) FROM t WHERE filler <> repeat('x', 200) GROUP BY 1 ORDER BY 1")

    def wait_for_rows(self):
        wait_until(lambda: self.rows() == [("after", 1)], 20)

    def refused(self, text, error="Refused", **more):
        """In check mode and for real; nothing has changed on either side."""
        before = tree(self.old.base), slots(self.new)
        for check in (True, False):
            result = call_module("pg_clone", self.options(slot_name="old", **more), check=check)
            assert result["failed"] and result["error"] == error and text in result["msg"], result
            assert result["performed"] == [] and not result["changed"]
        assert (tree(self.old.base), slots(self.new)) == before
        return result


def nothing_left(node):
    return [name for name in entries(node) if name.startswith("data")] == ["data"] and not (node.data / "pgfleet_clone.json").exists()


def test_old_primary_after_a_switchover_is_not_copied(own_lab):
    pair = Pair(own_lab).switch()
    before = age(pair.old)
    result = four_steps("pg_clone", pair.options(slot_name="old", application_name="old"))
    assert (result["copy_method"], result["copied_bytes"], result["state"], result["follows_source"]) == ("rejoin", 0, "standby", True), result
    assert len(result["plan"]) == 3 and age(pair.old) == before and nothing_left(pair.old)
    pair.wait_for_rows()
    assert pair.new.value("SELECT active FROM pg_replication_slots WHERE slot_name = 'old'") is True
    # Down for a while, as any standby.
    pair.old.stop()
    pair.new.sql("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 5000) g")
    result = four_steps("pg_clone", pair.options(slot_name="old", copy_method="rewind"))
    assert result["copy_method"] == "rejoin" and age(pair.old) == before
    wait_until(lambda: pair.old.value("SELECT count(*) FROM t") == 10001, 20)


def test_killed_primary_whose_wal_the_other_has(own_lab):
    """Crash recovery of a directory that has nothing of its own is no reason for a copy."""
    pair = Pair(own_lab)
    caught_up(pair.old, pair.new)
    pair.old.sql("INSERT INTO t SELECT 1, 'before'")
    caught_up(pair.old, pair.new)
    crash(pair.old)
    promote(pair.new)
    result = four_steps("pg_clone", pair.options())
    assert result["copy_method"] == "rejoin" and pair.old.in_recovery, result
    wait_until(lambda: pair.rows() == [("before", 1)], 20)


def test_killed_primary_whose_wal_ends_with_a_switch_of_segments(own_lab):
    """What it needs begins in the next segment, so that it needs none that the new primary has removed meanwhile."""
    pair = Pair(own_lab, settings={"wal_keep_size": "0"})
    pair.old.sql("SELECT pg_switch_wal()")
    last = pair.old.value("SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
    caught_up(pair.old, pair.new)
    crash(pair.old)
    promote(pair.new).sql("CHECKPOINT")
    assert pair.new.value("SELECT min(substr(name, 9)) > substr(%s, 9) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'", [last])
    before = age(pair.old)
    result = four_steps("pg_clone", pair.options(slot_name="old"))
    assert (result["copy_method"], result["copied_bytes"], result["streaming"]) == ("rejoin", 0, True), result
    assert age(pair.old) == before


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_old_primary_with_wal_of_its_own_is_rewound_with_consent_only(own_lab, kill):
    pair = Pair(own_lab).diverge(kill)
    for method in ("auto", "rewind"):
        result = pair.refused("timeline 2 left at", copy_method=method)
        assert "Set reclone" in result["msg"] and "has is lost then" in result["msg"] and result["lost_bytes"] > 5000, result
        assert "about %d bytes" % result["lost_bytes"] in result["msg"]
    # The dry run of pg_rewind is a part of check mode, and writes nothing.
    before = tree(pair.old.base)
    check = call_module("pg_clone", pair.options(slot_name="old", reclone=True), check=True)
    assert not check["failed"] and check["copy_method"] == "rewind" and tree(pair.old.base) == before and "old" not in slots(pair.new), check
    inode = age(pair.old)
    result = call_module("pg_clone", pair.options(slot_name="old", reclone=True), diff=True)
    assert not result["failed"] and result["plan"] == check["plan"] == result["performed"], result
    assert result["copy_method"] == "rewind" and result["rewind_problem"] is None and 0 < result["copied_bytes"] < result["needed_bytes"] * 10
    assert age(pair.old) == inode and nothing_left(pair.old) and pair.old.in_recovery
    pair.wait_for_rows()
    assert "old" in slots(pair.new) and SUPERUSER_PASSWORD not in str(result)
    for check in (True, False):
        again = call_module("pg_clone", pair.options(slot_name="old"), check=check)
        assert not again["failed"] and not again["changed"] and again["copy_method"] is None, again
    # What pg_rewind brought from the source is not this node's.
    assert "application_name" not in (pair.old.data / "postgresql.auto.conf").read_text()


def test_a_rewind_keeps_the_nodes_own_files(own_lab):
    pair = Pair(own_lab)
    pair.old.write(pair.old.data / "pg_hba.conf", "# of the old one\n")
    pair.new.write(pair.new.data / "pg_hba.conf", "# of the new one\n")
    pair.old.sql("ALTER SYSTEM SET work_mem = '5MB'")
    pair.diverge(kill=False)
    pair.new.sql("ALTER SYSTEM SET work_mem = '6MB'")
    assert call_module("pg_clone", pair.options(reclone=True))["copy_method"] == "rewind"
    assert (pair.old.data / "pg_hba.conf").read_text() == "# of the old one\n"
    assert pair.old.value("SELECT current_setting('work_mem')") == "5MB"
    pair.wait_for_rows()


def test_where_no_rewind_is_possible_a_copy_says_why(own_lab):
    pair = Pair(own_lab, checksums=False).diverge(kill=True)
    pair.refused("neither data checksums nor wal_log_hints", copy_method="rewind", reclone=True)
    before = age(pair.old)
    check = call_module("pg_clone", pair.options(reclone=True), check=True)
    result = call_module("pg_clone", pair.options(reclone=True))
    assert not result["failed"] and result["plan"] == check["plan"] and result["copy_method"] == "basebackup", result
    assert "neither data checksums nor wal_log_hints" in result["rewind_problem"] and "could not be rewound" in result["printed"]
    assert age(pair.old) != before and nothing_left(pair.old)
    pair.wait_for_rows()


def test_pg_rewinds_own_refusal_leads_to_a_copy(own_lab):
    """The WAL with the last checkpoint before the fork is gone from the directory; pg_rewind says so before it touches anything."""
    pair = Pair(own_lab)
    pair.old.sql("CHECKPOINT")
    pair.old.sql("SELECT pg_switch_wal()")
    pair.old.sql("INSERT INTO t SELECT 1, repeat('x', 200)")
    pair.diverge(kill=False)
    pair.new.sql("CHECKPOINT")
    parted = pair.new.value("SELECT pg_walfile_name(%s)", [(pair.new.data / "pg_wal" / "00000002.history").read_text().split()[1]])[8:]
    gone = [path for path in (pair.old.data / "pg_wal").iterdir() if len(path.name) == 24 and path.name[8:] < parted]
    assert gone
    for path in gone:
        path.unlink()
    text = pair.refused("cannot be rewound", copy_method="rewind", reclone=True)["msg"]
    result = call_module("pg_clone", pair.options(reclone=True))
    assert not result["failed"] and result["copy_method"] == "basebackup" and result["rewind_problem"] in text, result
    pair.wait_for_rows()


def wrapped(node, program, text):
    """A directory with the server's programs, of which one does something else."""
    programs = node.base / "bin"
    programs.mkdir()
    for one in BIN.iterdir():
        if one.name != program:
            (programs / one.name).symlink_to(one)
    (programs / program).write_text("#!/bin/sh\n%s\n" % text)
    (programs / program).chmod(0o755)
    return programs


# Begins to change the directory, and then does not end, or fails.
HALF = """
case "$*" in *--dry-run*) exec %s/pg_rewind "$@";; esac
for word; do case "$word" in --target-pgdata=*) target="${word#--target-pgdata=}";; esac; done
printf torn > "$target/global/pg_filenode.map"
touch "$(dirname "$target")/half"
""" % BIN


@pytest.mark.parametrize("link", [False, True], ids=["plain", "WAL elsewhere"])
def test_a_rewind_that_fails_half_way_is_never_started(own_lab, link):
    pair = Pair(own_lab)
    if link:
        # Its WAL is elsewhere; what stands in for the directory still knows where.
        pair.old.stop()
        elsewhere = own_lab.path / "wal"
        (pair.old.data / "pg_wal").rename(elsewhere)
        (pair.old.data / "pg_wal").symlink_to(elsewhere)
        pair.old.start()
        pair.old.wait_for_standbys(1)
    pair.old.write(pair.old.data / "pg_hba.conf", "# of the old one\n")
    pair.diverge(kill=True)
    programs = wrapped(pair.old, "pg_rewind", HALF + "echo 'pg_rewind: error: no space left' >&2; exit 1")
    result = call_module("pg_clone", pair.options(slot_name="old", reclone=True, bin_directory=programs))
    assert result["failed"] and result["changed"] and "no space left" in result["msg"] and "the next run makes a new copy" in result["msg"], result
    assert result["undone"] == ["slot removed"] and "old" not in slots(pair.new) and "Everything is as before" not in result["msg"]
    assert not (pair.old.data / "PG_VERSION").exists()
    with pytest.raises(AssertionError):
        pair.old.start()
    # Consent was given, and there is nothing left to lose.
    result = four_steps("pg_clone", pair.options(slot_name="old"))
    assert result["copy_method"] == "basebackup" and nothing_left(pair.old), result
    assert (pair.old.data / "pg_hba.conf").read_text() == "# of the old one\n" and (pair.old.data / "pg_wal").is_symlink() is link
    pair.wait_for_rows()


def test_a_rewind_that_is_killed_half_way(own_lab):
    pair = Pair(own_lab).diverge(kill=False)
    programs = wrapped(pair.old, "pg_rewind", HALF + "sleep 300")
    killed_in(pair.old, pair.new, (pair.old.base / "half").exists, slot_name="old", reclone=True, bin_directory=programs)
    assert not (pair.old.data / "PG_VERSION").exists() and "old" in slots(pair.new)
    with pytest.raises(AssertionError):
        pair.old.start()
    result = four_steps("pg_clone", pair.options(slot_name="old"))
    assert result["copy_method"] == "basebackup" and nothing_left(pair.old), result
    assert any("interrupted run left" in step for step in result["plan"])
    pair.wait_for_rows()


def test_killed_while_the_directory_changes_its_name(own_lab):
    """Made by hand, as no kill hits these moments: set aside, and what stands in for it in its place or not yet."""
    pair = Pair(own_lab).diverge(kill=False)
    identifier = "0123456789ab"
    system = pair.new.value("SELECT system_identifier::text FROM pg_control_system()")
    for moment in ("before", "after"):
        pair.old.data.rename(pair.old.base / ("data.old-" + identifier))
        stand_in = pair.old.base / ("data.clone-" + identifier) if moment == "before" else pair.old.data
        stand_in.mkdir(mode=0o700)
        pair.old.write(stand_in / "pgfleet_clone.json", '{"id": "%s", "rewind": "%s"}\n' % (identifier, system))
        os.chown(stand_in, pair.old.base.stat().st_uid, pair.old.base.stat().st_gid)
        pair.refused("has set aside the old directory")
        result = call_module("pg_clone", pair.options(reclone=True))
        assert not result["failed"] and nothing_left(pair.old), result
        pair.wait_for_rows()
        pair.old.stop()


def test_a_rewind_that_was_done_stays_when_the_standby_does_not_start(own_lab):
    pair = Pair(own_lab).diverge(kill=True)
    text = pair.old.config_file.read_text()
    # Found by the start only: single user mode reads no such file.
    pair.old.write(pair.old.config_file, text + "ssl = on\nssl_cert_file = '/nowhere'\n")
    result = call_module("pg_clone", pair.options(slot_name="old", reclone=True))
    assert result["failed"] and "has been rewound" in result["msg"] and "slot removed" in result["undone"] and "old" not in slots(pair.new), result
    assert (pair.old.data / "standby.signal").exists() and not pair.old.pid
    pair.old.write(pair.old.config_file, text)
    result = four_steps("pg_clone", pair.options(slot_name="old"))
    assert result["copy_method"] == "rejoin", result
    pair.wait_for_rows()


def test_a_directory_that_cannot_be_started_as_it_is(own_lab):
    """Its settings are put back, the slot is gone, and it cannot come back as a primary."""
    pair = Pair(own_lab).switch()
    text, auto = pair.old.config_file.read_text(), (pair.old.data / "postgresql.auto.conf").read_text()
    pair.old.write(pair.old.config_file, text + "shared_preload_libraries = 'no_such_library'\n")
    result = call_module("pg_clone", pair.options(slot_name="old"))
    assert result["failed"] and "no_such_library" in result["msg"] and "keeps standby.signal" in result["msg"], result
    assert (pair.old.data / "postgresql.auto.conf").read_text() == auto and "old" not in slots(pair.new)
    pair.old.write(pair.old.config_file, text)
    pair.old.start()
    assert pair.old.in_recovery
    pair.old.stop()
    result = four_steps("pg_clone", pair.options(slot_name="old"))
    assert result["copy_method"] == "rejoin"


def test_never_takes_the_last_primary(own_lab):
    """The primary is down for maintenance, and its own standby is named as the source."""
    pair = Pair(own_lab)
    caught_up(pair.old, pair.new)
    pair.old.stop()
    for reclone in (False, True):
        for method in ("auto", "rewind", "basebackup"):
            pair.refused("has not been promoted since", reclone=reclone, copy_method=method)
    pair.old.start()
    assert not pair.old.in_recovery


def test_two_promotions_to_one_timeline_at_one_place(own_lab):
    """Their histories are the same to the letter; only the WAL itself tells them apart."""
    pair = Pair(own_lab)
    third = own_lab.postgres("third").clone(pair.old)
    pair.old.wait_for_standbys(2)
    caught_up(pair.old, pair.new)
    pair.old.stop("immediate")
    # Both end at the same record, as neither gets anything more.
    wait_until(lambda: third.value("SELECT pg_last_wal_replay_lsn()") == pair.new.value("SELECT pg_last_wal_replay_lsn()"), 20)
    for node, text in ((third, "lost"), (pair.new, "after")):
        promote(node)
        node.sql("INSERT INTO t SELECT -1, %s", [text])
    history = [(node.data / "pg_wal" / "00000002.history").read_text() for node in (third, pair.new)]
    assert history[0] == history[1]
    pair.new.sql("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 1000) g")
    third.stop()
    pair.old = third
    pair.refused("both have written on that timeline")
    pair.refused("timelines, which do not show this", copy_method="rewind", reclone=True)
    result = call_module("pg_clone", pair.options(reclone=True))
    assert not result["failed"] and result["copy_method"] == "basebackup", result
    pair.wait_for_rows()


def test_two_promotions_to_one_timeline_and_the_segment_that_tells_is_gone(own_lab):
    """One ends with a switch of segments, and the other has removed that segment: the next one still says what was before it."""
    pair = Pair(own_lab, settings={"wal_keep_size": "0"})
    third = own_lab.postgres("third", settings={"wal_keep_size": "0"}).clone(pair.old)
    pair.old.wait_for_standbys(2)
    caught_up(pair.old, pair.new)
    pair.old.stop("immediate")
    wait_until(lambda: third.value("SELECT pg_last_wal_replay_lsn()") == pair.new.value("SELECT pg_last_wal_replay_lsn()"), 20)
    ends = []
    for node, texts in ((third, ["lost"]), (pair.new, ["after", "and more"])):
        promote(node)
        for text in texts:
            node.sql("INSERT INTO t SELECT -1, %s", [text])
        node.sql("SELECT pg_switch_wal()")
        ends.append(node.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"))
    crash(third)
    assert ends[0] == ends[1]
    pair.new.sql("CHECKPOINT")
    assert pair.new.value("SELECT min(substr(name, 9)) = substr(%s, 9) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'", [ends[1]])
    pair.old = third
    pair.refused("both have written on that timeline")


def test_standby_that_received_more_than_the_new_primary_and_did_not_replay_it(own_lab):
    """Its data files have not passed the fork, its WAL has. A start would replay it, and pg_rewind would not see it."""
    pair = Pair(own_lab)
    third = own_lab.postgres("third").clone(pair.old)
    pair.old.wait_for_standbys(2)
    caught_up(pair.old, pair.new)
    caught_up(pair.old, third)
    pair.new.stop()
    third.sql("SELECT pg_wal_replay_pause()")
    pair.old.sql("INSERT INTO t SELECT g, 'lost' FROM generate_series(100001, 100100) g")
    written = pair.old.value("SELECT pg_current_wal_flush_lsn()")
    wait_until(lambda: third.value("SELECT pg_last_wal_receive_lsn() >= %s", [written]), 20)
    third.stop()
    pair.old.stop("immediate")
    pair.new.start()
    promote(pair.new)
    pair.new.sql("INSERT INTO t SELECT -1, 'after'")
    pair.old = third
    pair.refused("timeline 2 left at")
    pair.refused("pg_rewind would leave that", copy_method="rewind", reclone=True)
    result = call_module("pg_clone", pair.options(reclone=True))
    assert not result["failed"] and result["copy_method"] == "basebackup", result
    pair.wait_for_rows()


def test_wal_that_the_source_has_removed(own_lab):
    pair = Pair(own_lab, settings={"wal_keep_size": "0", "min_wal_size": "32MB", "max_wal_size": "32MB"}).switch()
    # Nothing holds it back, as there is no slot.
    for _round in range(4):
        pair.new.sql("SELECT pg_switch_wal()")
        pair.new.sql("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 1000) g")
        pair.new.sql("CHECKPOINT")
    pair.refused("no longer has the WAL")
    pair.refused("no longer has the WAL", copy_method="rewind", reclone=True)
    result = call_module("pg_clone", pair.options(slot_name="old", reclone=True))
    assert not result["failed"] and result["copy_method"] == "basebackup", result
    pair.wait_for_rows()


def test_no_room_for_the_wal_of_the_source(own_lab):
    """pg_rewind would find that out half way, and leave a directory that cannot be started."""
    pair = Pair(own_lab).diverge(kill=False)
    disk = own_lab.path / "disk"
    disk.mkdir()
    mount_disk(disk, "160m")
    try:
        run(["mv", pair.old.data / "pg_wal", disk / "wal"])
        (pair.old.data / "pg_wal").symlink_to(disk / "wal")
        for _segment in range(10):
            pair.new.sql("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 10) g")
            pair.new.sql("SELECT pg_switch_wal()")
        pair.refused("MB more in %s, where" % (disk / "wal"), copy_method="rewind", reclone=True)
        result = call_module("pg_clone", pair.options(reclone=True))
        assert not result["failed"] and result["copy_method"] == "basebackup" and "MB are free" in result["rewind_problem"], result
        pair.wait_for_rows()
        assert os.path.realpath(pair.old.data / "pg_wal") == str(disk / "wal") and os.listdir(disk) == ["wal"]
    finally:
        pair.old.stop("immediate")
        run(["umount", disk])


def test_a_newer_directory_than_the_source(own_lab):
    """The source is the outdated one; nothing is rewound to it."""
    pair = Pair(own_lab).switch()
    pair.new.stop()
    (pair.old.data / "standby.signal").unlink(missing_ok=True)
    pair.old.start()
    pair.old, pair.new = pair.new, pair.old
    pair.refused("no part of the history of the source's timeline 1")
    pair.refused("may be the outdated server", copy_method="rewind", reclone=True)


# One operation at a time on a directory


def test_a_switchover_that_holds_the_directory_keeps_others_from_it(own_lab, monkeypatch):
    from ansible_collections.pgfleet.ops.plugins.module_utils._host import guardian_program

    pair = Pair(own_lab).switch()
    guardian = guardian_program.Node(str(pair.old.data), ["true"])
    guardian.hold(0)
    try:
        pair.refused("another operation is at work")
    finally:
        os.close(guardian._lock)
    # And the other way round: while the directory is copied anew, no switchover gets it.
    seen = []

    def moment():
        if any((pair.old.base / name / "base").exists() for name in entries(pair.old) if ".clone-" in name):
            with pytest.raises(guardian_program.Failure):
                guardian_program.Node(str(pair.old.data), ["true"]).hold(0)
            seen.append(True)
        return bool(seen)

    killed_in(pair.old, pair.new, moment, reclone=True, copy_method="basebackup", max_rate="1M")
    assert seen
    wait_until(lambda: not call_module("pg_clone", pair.options())["failed"], 30)
    pair.wait_for_rows()


# A standby as the source


def test_a_standby_as_the_source(own_lab):
    """It needs no checkpoint of the primary, and what makes it a doubtful source is said."""
    pair = Pair(own_lab)
    third = own_lab.postgres("third")
    pair.new.sql("SELECT pg_wal_replay_pause()")
    result = call_module("pg_clone", options(third, pair.new, slot_name="third"), check=True)
    assert not result["failed"] and "its replay is paused" in result["printed"], result
    pair.new.sql("SELECT pg_wal_replay_resume()")
    result = four_steps("pg_clone", options(third, pair.new, slot_name="third"))
    assert result["copy_method"] == "basebackup" and "replay" not in result["printed"] and slots(pair.new) == {"third"}
    pair.old.stop()
    third.stop()
    wait_until(lambda: pair.new.value("SELECT count(*) FROM pg_stat_wal_receiver") == 0, 20)
    result = call_module("pg_clone", options(third, pair.new, slot_name="third"))
    assert not result["failed"] and result["copy_method"] == "rejoin" and "does not stream from its own upstream" in result["printed"], result
