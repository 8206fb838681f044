# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_archive_cleanup on real archives: what must stay stays, and a point-in-time recovery from the cleaned archive reaches its point."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess

from lab import HOST, SUPERUSER_PASSWORD, call_module, four_steps, module_library, wait_until


class Site:
    """A primary with segments of 1 MB that archives, and what one does with it."""

    def __init__(self, lab, name="db1", standbys=0):
        self.lab = lab
        self.archive = lab.path / "archive"
        self.archive.mkdir(mode=0o750)
        shutil.chown(self.archive, "postgres", "postgres")
        self.settings = {
            "archive_mode": "on", "archive_command": "test ! -f %s/%%f && cp %%p %s/%%f" % (self.archive, self.archive),
            "restore_command": "cp %s/%%f %%p" % self.archive, "wal_keep_size": 0, "min_wal_size": "2MB", "max_wal_size": "1GB",
        }  # fmt: skip
        self.primary = lab.postgres(name, settings=self.settings).init("--wal-segsize=1").start()
        self.primary.sql("CREATE TABLE t (n int)")
        self.nodes = [self.primary]
        self.count = 0
        for number in range(standbys):
            self.add_standby("db%d" % (number + 2))

    def add_standby(self, name, **settings):
        standby = self.lab.postgres(name, settings={**self.settings, **settings})
        standby.clone(self.primary, slot=False)
        self.nodes.append(standby)
        self.primary.wait_for_standbys(len(self.nodes) - 1)
        # Its own first copy is a base backup too.
        for path in self.archive.glob("*.backup"):
            self.wait_for_archive()
            path.unlink(missing_ok=True)
        return standby

    def options(self, **changes):
        nodes = [{"name": node.name, "host": "127.0.0.1", "port": node.port} for node in self.nodes]
        return {"archive_directory": str(self.archive), "nodes": nodes, "login_user": "postgres", "login_password": SUPERUSER_PASSWORD, **changes}

    def call(self, check=False, diff=False, **changes):
        result = call_module("pg_archive_cleanup", self.options(**changes), check=check, diff=diff)
        assert SUPERUSER_PASSWORD not in str(result)
        return result

    def good(self, **changes):
        result = self.call(**changes)
        assert not result["failed"], result
        return result

    def write(self, segments=3):
        """Rows, and as many segments in the archive."""
        for _number in range(segments):
            self.count += 1
            self.primary.sql("INSERT INTO t VALUES (%s)", [self.count])
            self.primary.sql("SELECT pg_switch_wal()")
        self.wait_for_archive()
        return self.count

    def wait_for_archive(self):
        done = "SELECT NOT EXISTS (SELECT FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready')"
        wait_until(lambda: self.primary.value(done), 60)

    def back_up(self, name, label=None, source=None):
        """A base backup without WAL of its own; it is complete only with the archive."""
        source = source or self.primary
        target = self.lab.path / ("backup-" + name)
        source._run(
            "pg_basebackup", "-D", target, "-h", "127.0.0.1", "-p", source.port, "-U", "postgres", "-c", "fast", "-X", "none", "-N", "--no-slot",
            "-l", label or name, env={**os.environ, "PGPASSWORD": SUPERUSER_PASSWORD},
        )  # fmt: skip
        self.wait_for_archive()
        return target

    def start_of(self, label):
        """The name of the first segment of a backup."""
        (found,) = [path.name for path in self.archive.glob("*.backup") if "LABEL: %s\n" % label in path.read_text()]
        return found[:24]

    def restore(self, backup, name, **target):
        """The rows that a recovery of a backup with the archive ends with."""
        server = self.lab.postgres(name, settings={**self.settings, "archive_mode": "off", **target, "recovery_target_action": "promote"})
        shutil.copytree(backup, server.data)
        for path in (server.data, *server.data.rglob("*")):
            shutil.chown(path, "postgres", "postgres")
        server.data.chmod(0o700)
        server.write(server.data / "recovery.signal", "")
        server.start()
        wait_until(lambda: not server.in_recovery, 60)
        rows = [row[0] for row in server.sql("SELECT n FROM t ORDER BY n")]
        server.stop("immediate")
        return rows

    @property
    def segments(self):
        return sorted(path.name for path in self.archive.iterdir() if len(path.name) == 24)

    @property
    def names(self):
        return {path.name for path in self.archive.iterdir()}


def test_a_cleaned_archive_still_recovers_to_any_point_behind_the_backup(own_lab):
    site = Site(own_lab)
    site.write()
    site.back_up("old")
    site.write()
    new = site.back_up("new")
    at_point = site.write()
    site.primary.sql("SELECT pg_create_restore_point('the point')")
    at_end = site.write()
    strangers = {"00000002.history": "1\t0/1\tx\n", "README": "hands off", "000000010000000000000001.tmp": "", "00000001000000000000000z": ""}
    for name, text in strangers.items():
        site.primary.write(site.archive / name, text)
    (site.archive / "000000010000000000000000").symlink_to("/etc/hostname")
    (site.archive / "000000010000000000000000.gz").mkdir()
    before, first = site.names, site.start_of("new")

    both = site.call(keep_backups=2, check=True)
    assert both["needed_by"][0].startswith('the backup "old" of ') and both["oldest_needed"] == site.start_of("old")
    result = four_steps("pg_archive_cleanup", site.options())
    doomed = {name for name in before if len(name) >= 24 and name[:24] < first and name[8:24] > "0" * 16 and name not in strangers}
    assert set(result["removed"]) == doomed and len(doomed) > 5
    assert site.names == before - doomed
    assert result["oldest_needed"] == result["oldest_kept"] == first
    assert [one["label"] for one in result["backups"]] == ["new"] and result["hole"] is None
    assert result["removed_bytes"] >= (len(doomed) - 1) << 20
    assert result["diff"][0]["before"].splitlines() == result["removed"]
    # Without the strangers, which belong to no history of this archive.
    (site.archive / "00000002.history").unlink()
    assert site.restore(new, "to_point", recovery_target_name="the point") == list(range(1, at_point + 1))
    assert site.restore(new, "to_end") == list(range(1, at_end + 1))


def test_the_program_of_postgresql_would_remove_the_same(own_lab):
    site = Site(own_lab)
    site.write(6)
    site.back_up("one")
    site.write(2)
    planned = site.call(check=True)
    printed = site.primary._run("pg_archivecleanup", "-n", site.archive, planned["oldest_needed"])
    theirs = {line.rpartition("/")[2] for line in printed.splitlines()}
    assert theirs == {name for name in planned["removed"] if not name.endswith(".backup")} and len(theirs) >= 6


def test_a_slot_that_lags_holds_its_segments(own_lab):
    site = Site(own_lab)
    site.write(2)
    site.primary.sql("SELECT pg_create_physical_replication_slot('slow', true)")
    held = site.primary.value("SELECT pg_walfile_name(restart_lsn + 1) FROM pg_replication_slots")
    site.write()
    site.back_up("one")
    site.write()
    result = site.good()
    assert result["oldest_needed"] == held and "the slot slow on db1 begins at" in result["needed_by"][0], result
    assert site.segments[0] == held
    site.primary.sql("SELECT pg_drop_replication_slot('slow')")
    assert site.good()["oldest_needed"] == site.start_of("one") == site.segments[0]


def test_a_standby_with_replay_behind_holds_what_it_would_recover_from(own_lab):
    site = Site(own_lab)
    standby = site.add_standby("db2")
    standby.sql("SELECT pg_wal_replay_pause()")
    wait_until(lambda: standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused", 30)
    rows = site.write(4)
    site.back_up("one")
    site.write(2)
    result = site.good()
    assert result["oldest_needed"] < site.start_of("one") and result["needed_by"][0].startswith("db2 would recover from"), result
    assert result["oldest_needed"] in site.segments
    # Its own WAL is lost; with the archive it comes up all the same.
    standby.stop("immediate")
    refused = site.call()
    assert refused["error"] == "NotReachable" and "what db2 needs is unknown" in refused["msg"] and refused["performed"] == []
    for path in (standby.data / "pg_wal").glob("0000000*"):
        path.unlink()
    standby.start()
    wait_until(lambda: standby.value("SELECT max(n) FROM t") >= rows, 60)


def test_a_member_that_does_not_answer_keeps_everything_unless_it_is_named(own_lab):
    site = Site(own_lab)
    standby = site.add_standby("db2")
    site.write()
    site.back_up("one")
    site.write()
    standby.stop()
    before = site.names
    for check in (True, False):
        result = site.call(check=check)
        assert result["failed"] and result["error"] == "NotReachable" and site.names == before, result
    unknown = site.call(ignore_nodes=["db3"])
    assert unknown["error"] == "InvalidInput" and "db3" in unknown["msg"]
    result = site.good(ignore_nodes=["db2"])
    assert result["removed"] and "db2 did not answer" in result["printed"]
    # A member that is named and answers is respected all the same.
    standby.start()
    site.primary.wait_for_standbys(1)
    standby.sql("SELECT pg_wal_replay_pause()")
    wait_until(lambda: standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused", 30)
    site.write()
    site.back_up("two")
    assert site.good(ignore_nodes=["db2"])["needed_by"][0].startswith("db2 would recover from")


def test_no_known_backup_is_no_leave_to_remove(own_lab):
    site = Site(own_lab)
    site.write(4)
    before = site.names
    result = site.call()
    assert result["error"] == "Refused" and "no base backup is known" in result["msg"] and site.names == before
    # The copy of a standby is kept by nobody.
    site.back_up("clone", label="pgfleet.ops clone")
    result = site.call()
    assert result["error"] == "Refused" and "its label is one of ignore_labels" in result["msg"]
    # Nor can one be restored of which a segment is missing.
    site.write(1)
    site.back_up("torn")
    torn = site.archive / site.start_of("torn")
    saved = torn.read_bytes()
    torn.unlink()
    result = site.call()
    assert result["error"] == "Refused" and "%s, which it needs, is not in the archive" % torn.name in result["msg"]
    site.primary.write(torn, "", 0o600)
    torn.write_bytes(saved)
    assert site.good(check=True)["oldest_needed"] == torn.name
    # Told so, only the members count.
    (site.archive / next(name for name in site.names if name.endswith(".backup") and name.startswith(torn.name))).unlink()
    site.primary.sql("CHECKPOINT")
    result = site.good(without_backups=True)
    assert result["needed_by"][0].startswith("db1 would recover from") and result["removed"]


def test_the_oldest_backup_of_another_tool(own_lab):
    site = Site(own_lab)
    site.write(2)
    site.back_up("theirs")
    theirs = site.start_of("theirs")
    site.write(2)
    site.back_up("ours")
    site.write(2)
    for name, words in (
        ("0000000100000000000000FF", "the primary has only come to"),
        ("000000010000000000000000", "which is not in the archive"),
        ("20260101-000000F", "no history file in the archive knows"),
    ):
        result = site.call(oldest_backup=[name])
        assert result["error"] == "InvalidInput" and words in result["msg"], result
    for name in (theirs, "theirs", next(path.name for path in site.archive.glob(theirs + ".*.backup"))):
        result = site.call(check=True, oldest_backup=[name])
        assert result["oldest_needed"] == theirs and result["needed_by"] == ["oldest_backup names %s" % name], result
    for path in site.archive.glob("*.backup"):
        path.unlink()
    assert site.good(oldest_backup=[theirs])["oldest_kept"] == theirs


def test_timelines_after_a_failover_and_the_way_back_through_both(own_lab):
    site = Site(own_lab)
    standby = site.add_standby("db2")
    site.write(2)
    old = site.back_up("old")
    site.write(2)
    old_primary = site.primary
    # The timeline is left within a segment: that of the new one begins with pages of the old one.
    old_primary.sql("INSERT INTO t VALUES (%s)", [site.count + 1])
    site.count += 1
    wait_until(lambda: standby.value("SELECT max(n) FROM t") == site.count, 30)
    # What only the old primary has is archived, behind the point where its timeline is left.
    standby.stop()
    site.write(3)
    old_primary.stop("immediate")
    # Streaming had brought all but this; the archive must not bring it either.
    standby.write_config({**site.settings, "restore_command": ""})
    standby.start()
    standby.sql("SELECT pg_promote()")
    wait_until(lambda: not standby.in_recovery, 60)
    standby.write_config(site.settings)
    standby.sql("SELECT pg_reload_conf()")
    site.primary, site.nodes = standby, [standby]
    site.count = standby.value("SELECT max(n) FROM t")
    at_end = site.write(4)
    assert any(name.startswith("00000002") for name in site.segments)
    first = site.start_of("old")
    result = site.good()
    assert result["oldest_needed"] == first and all(name[8:24] < first[8:24] for name in result["removed"])
    # Of the old timeline what is behind the fork stays too: positions are compared.
    assert [name for name in site.segments if name.startswith("00000001") and name >= first]
    assert "00000002.history" in site.names
    assert site.restore(old, "both") == list(range(1, at_end + 1))
    site.back_up("new")
    second = site.start_of("new")
    assert second.startswith("00000002")
    site.write(1)
    result = four_steps("pg_archive_cleanup", site.options())
    assert result["oldest_needed"] == second and {name[:8] for name in result["removed"]} == {"00000001", "00000002"}
    assert "00000002.history" in site.names and min(name[8:] for name in site.segments) == second[8:]
    # A timeline that nobody of the cluster knows is not touched.
    stranger = "00000007" + "0" * 15 + "1"
    site.primary.write(site.archive / stranger, "x")
    result = site.good()
    assert stranger in site.names and "of a later timeline" in result["printed"]


def test_compressed_segments_and_the_age(own_lab):
    site = Site(own_lab)
    site.write(4)
    site.back_up("one")
    site.write(1)
    packed = site.segments[0]
    (site.archive / (packed + ".gz")).write_bytes(gzip.compress((site.archive / packed).read_bytes()))
    (site.archive / packed).rename(site.archive / (packed + ".zst"))
    for name in (".gz", ".zst"):
        shutil.chown(site.archive / (packed + name), "postgres", "postgres")
    kept = site.good(keep_hours=1)
    assert kept["changed"] is False and kept["too_young"] >= 4
    for name in site.segments:
        os.utime(site.archive / name, (0, 0))
    aged = site.good(keep_hours=1)
    assert packed + ".gz" in site.names and aged["removed"] and aged["too_young"] == 2
    assert sorted(site.good()["removed"]) == [packed + ".gz", packed + ".zst"]


def test_segments_of_another_cluster_stop_it(own_lab):
    site = Site(own_lab)
    site.write(3)
    site.back_up("one")
    other = own_lab.postgres("other", settings={"archive_mode": "off"}).init("--wal-segsize=1").start()
    first = site.segments[0]
    saved = (site.archive / first).read_bytes()
    foreign = min((other.data / "pg_wal").glob("0000000100000000*"))
    (site.archive / first).write_bytes(foreign.read_bytes())
    before = site.names
    result = site.call()
    assert result["error"] == "Refused" and "of the cluster with the system identifier" in result["msg"] and site.names == before, result
    (site.archive / first).write_bytes((site.archive / site.segments[1]).read_bytes())
    result = site.call()
    assert result["error"] == "Refused" and "holds another segment than its name says" in result["msg"] and site.names == before
    (site.archive / first).write_bytes(b"sealed" * 100)
    result = site.call()
    assert result["error"] == "Refused" and "does not begin as a WAL segment" in result["msg"] and site.names == before
    assert first in site.good(verify_contents=False, check=True)["removed"]
    (site.archive / first).write_bytes(saved)
    # Nodes of two clusters
    both = site.options()["nodes"] + [{"name": "other", "host": "127.0.0.1", "port": other.port}]
    result = site.call(nodes=both)
    assert result["error"] == "Refused" and "of different clusters" in result["msg"] and site.names == before


def test_what_is_no_archive(own_lab):
    site = Site(own_lab)
    site.write(1)
    site.back_up("one")
    photos = own_lab.path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_text("x")
    shutil.chown(photos, "postgres", "postgres")
    for path, words in (
        ("/", "top level"), ("wal", "absolute path"), (site.primary.data, "is a data directory"), (site.primary.data / "pg_wal", "inside a data directory"),
        (photos, "has no WAL file"), (own_lab.path / "nothing", "cannot be opened"),
    ):  # fmt: skip
        result = site.call(archive_directory=str(path), without_backups=True)
        assert result["failed"] and words in result["msg"] and result["performed"] == [], result
    (photos / "holiday.jpg").unlink()
    empty = site.good(archive_directory=str(photos), without_backups=True)
    assert empty["changed"] is False and empty["removed"] == [] and empty["oldest_kept"] is None
    for wrong, words in (({"keep_backups": 0}, "keep_backups is 0"), ({"keep_hours": -1}, "keep_hours is -1"), ({"nodes": []}, "empty list")):
        result = site.call(**wrong)
        assert result["error"] == "InvalidInput" and words in result["msg"]


def test_a_base_backup_that_runs_may_have_begun_before_the_newest(own_lab):
    site = Site(own_lab)
    site.write(2)
    argv = [site.primary.system.bin / "pg_basebackup", "-D", own_lab.path / "slow", "-h", "127.0.0.1", "-p", site.primary.port, "-U", "postgres",
            "-c", "fast", "-X", "none", "-N", "-r", "32k", "-l", "slow"]  # fmt: skip
    environment = {**os.environ, "PGPASSWORD": SUPERUSER_PASSWORD}
    slow = subprocess.Popen(HOST.argv(argv, "postgres"), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: site.primary.value("SELECT phase FROM pg_stat_progress_basebackup") == "streaming database files", 60)
        site.write(2)
        site.back_up("quick")
        site.write(1)
        before = site.names
        result = site.call()
        assert result["error"] == "Refused" and "a base backup is being taken from db1" in result["msg"] and site.names == before, result
    finally:
        slow.terminate()
        slow.wait()
    wait_until(lambda: not site.primary.value("SELECT count(*) FROM pg_stat_progress_basebackup"), 60)
    assert site.good()["oldest_needed"] == site.start_of("quick")


def test_two_primaries_and_none(own_lab):
    site = Site(own_lab)
    standby = site.add_standby("db2")
    site.write(2)
    site.back_up("one")
    before = site.names
    none = site.call(nodes=[{"name": "db2", "host": "127.0.0.1", "port": standby.port}])
    assert none["error"] == "Refused" and "no primary" in none["msg"]
    standby.sql("SELECT pg_promote()")
    wait_until(lambda: not standby.in_recovery, 60)
    both = site.call()
    assert both["error"] == "SplitBrainRisk" and before <= site.names


def test_a_run_that_is_killed_leaves_no_hole(own_lab):
    site = Site(own_lab)
    site.write(12)
    site.back_up("one")
    at_end = site.write(1)
    doomed = site.call(check=True)["removed"]
    # The same steps in a process that is killed when it comes to the middle.
    middle = doomed[len(doomed) // 2]
    program = (
        "import os, signal, sys\n"
        "from ansible_collections.pgfleet.ops.plugins.module_utils._host.wal_archive import ArchiveDirectory\n"
        "remove = ArchiveDirectory.remove\n"
        "def until_middle(self, entry):\n"
        "    if entry.name == %r: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return remove(self, entry)\n"
        "ArchiveDirectory.remove = until_middle\n"
        "from ansible_collections.pgfleet.ops.plugins.modules import pg_archive_cleanup\n"
        "pg_archive_cleanup.main()\n"
    ) % middle  # fmt: skip
    done = killed_module(program, site.options())
    assert done.returncode == -signal.SIGKILL, done
    left = site.segments
    assert middle in site.names and doomed[0] not in site.names
    numbers = [int(name[8:16], 16) * 4096 + int(name[16:], 16) for name in left]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    again = site.good()
    assert again["removed"] == doomed[doomed.index(middle) :]
    assert site.restore(own_lab.path / "backup-one", "after") == list(range(1, at_end + 1))


def killed_module(program, options):
    argv = ["/usr/bin/env", "PYTHONPATH=%s" % module_library(), "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3", "-c", program]
    request = json.dumps({"ANSIBLE_MODULE_ARGS": options})
    return subprocess.run(HOST.argv(argv, "postgres"), input=request, capture_output=True, text=True, timeout=120, check=False, cwd="/")


def test_a_monitoring_role_is_enough(own_lab):
    site = Site(own_lab)
    site.write(2)
    site.back_up("one")
    site.primary.sql("CREATE ROLE monitor LOGIN PASSWORD 'm' IN ROLE pg_monitor")
    result = site.good(login_user="monitor", login_password="m")
    assert result["removed"] and result["oldest_needed"] == site.start_of("one")
