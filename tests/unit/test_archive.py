# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may go from a WAL archive: names, backups, needs, and whole lives of archives with timelines, holes and clean-ups."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.archive import (
    ArchivedFile,
    Backup,
    Need,
    compression_of,
    decide,
    first_hole,
    judge_backups,
    parse_backup,
    parse_history,
    parse_wal_name,
    segment_name,
    timeline_of_history,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = 16 << 20


def file(name, age=1e9, size=SIZE):
    return ArchivedFile(parse_wal_name(name, size), size, age)


def segment(number, timeline=1, age=1e9):
    return file(segment_name(timeline, number, SIZE), age)


def names(decision):
    return [one.wal.name for one in decision.removable]


@pytest.mark.parametrize(
    "name, found",
    [
        ("00000001000000000000000A", (1, 10, "segment", "")),
        ("0000000200000001000000FF.gz", (2, 511, "segment", "gz")),
        ("000000010000000000000003.partial", (1, 3, "partial", "")),
        ("000000010000000000000003.partial.zst", (1, 3, "partial", "zst")),
        ("000000010000000000000003.00000028.backup", (1, 3, "backup", "")),
        ("000000010000000000000003.00000028.backup.xz", (1, 3, "backup", "xz")),
        ("000000010000000000000100", None),  # beyond the end of a log of 16 MB segments
        ("000000000000000000000001", None),
        ("00000001000000000000000a", None),
        ("00000001000000000000000A.tmp", None),
        ("00000001000000000000000A\n", None),
        (".00000001000000000000000A", None),
        ("00000001000000000000000A.gz.gz", None),
        ("00000002.history", None),
        ("000000010000000000000003.0000028.backup", None),
        ("README", None),
    ],
)
def test_names(name, found):
    wal = parse_wal_name(name, SIZE)
    assert (wal and (wal.timeline, wal.number, wal.kind, wal.compression)) == found


@pytest.mark.parametrize("size", [1 << 20, SIZE, 1 << 30])
def test_names_of_every_segment_size(size):
    for number in (1, 4095, (5 << 32) // size, (7 << 32) // size - 1):
        wal = parse_wal_name(segment_name(3, number, size), size)
        assert (wal.timeline, wal.number) == (3, number)


def test_history_files():
    assert timeline_of_history("0000000A.history") == 10 and timeline_of_history("00000002.history.gz") == 2
    assert timeline_of_history("000000010000000000000001") is None and timeline_of_history("00000002.history.bak") is None
    assert compression_of("00000002.history.gz") == "gz" and compression_of("000000010000000000000003.00000028.backup") == ""
    assert parse_history("# x\n1\t0/3000148\tno recovery target\n\n2\t1/0\tbefore 2024\n") == [(1, 0x3000148), (2, 1 << 32)]
    with pytest.raises((ValueError, IndexError)):
        parse_history("nothing of this kind")


BACKUP = """START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
STOP WAL LOCATION: 0/3000000 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-22 10:00:00 CET
LABEL: night: full
START TIMELINE: 1
STOP TIME: 2026-11-22 10:00:01 CET
STOP TIMELINE: 1
"""


def test_a_backup_history_file():
    found = parse_backup("x", 1, BACKUP)
    assert found == Backup("x", "night: full", 1, 0x2000028, 0x3000000, "2026-11-22 10:00:01 CET")
    for text in ("", BACKUP.replace("STOP WAL", "STOPPED WAL"), "START WAL LOCATION: x\nSTOP WAL LOCATION: 0/1"):
        with pytest.raises(ValueError, match="has no"):
            parse_backup("x", 1, text)


def judged(*backups, present=((1, 2), (1, 3), (1, 4)), timeline=1, history=(), ignore=()):
    found = judge_backups(backups, set(present), timeline, history, SIZE, lambda label: label in ignore)
    return [(one.backup.label, one.problem) for one in found]


def backup(label, start, stop, timeline=1):
    return Backup("file of %s" % label, label, timeline, start, stop, "now")


def test_which_backups_count():
    one, two = backup("one", 0x2000028, 0x3000000), backup("two", 0x4000028, 0x4000100)
    # Exactly at the end of a segment, the next one is not needed.
    assert judged(one, two, present=[(1, 2), (1, 4)]) == [("two", None), ("one", None)]
    assert judged(one, two, present=[(1, 3), (1, 4)]) == [("two", None), ("one", "000000010000000000000002, which it needs, is not in the archive")]
    assert judged(one, two, ignore=["two"]) == [("one", None), ("two", "its label is one of ignore_labels")]
    # Timeline 2 left timeline 1 within segment 3.
    assert judged(one, two, timeline=2, history=[(1, 0x3000500)]) == [("one", None), ("two", "it is not of the past of timeline 2")]
    assert "no history file of timeline 2" in judged(one, timeline=2)[0][1]
    assert judged(backup("over", 0x2000028, 0x3000600), timeline=2, history=[(1, 0x3000500)])[0][1] == "it is not of the past of timeline 2"


def test_the_oldest_need_wins_and_is_told():
    files = [segment(number) for number in range(1, 8)]
    decision = decide(files, [Need(5, 1, "slot"), Need(3, 1, "backup"), Need(3, 2, "standby")], 1, 0)
    assert names(decision) == [segment_name(1, 1, SIZE), segment_name(1, 2, SIZE)]
    assert [need.what for need in decision.oldest] == ["backup", "standby"]
    with pytest.raises(ValueError, match="no need"):
        decide(files, [], 1, 0)


def test_older_timelines_are_compared_by_position_and_later_ones_stay():
    files = [segment(2), segment(3), segment(4), segment(2, 2), segment(3, 2), segment(2, 3)]
    decision = decide(files, [Need(3, 2, "x")], 2, 0)
    assert names(decision) == [segment_name(1, 2, SIZE), segment_name(2, 2, SIZE)]
    assert decision.unknown_timeline == 1


def test_young_files_stay():
    files = [segment(1, age=7200), segment(2, age=3599), segment(3)]
    decision = decide(files, [Need(3, 1, "x")], 1, 3600)
    assert names(decision) == [segment_name(1, 1, SIZE)] and decision.too_young == 1
    # A clock that is ahead makes nothing old.
    assert names(decide([segment(1, age=-5)], [Need(3, 1, "x")], 1, 0)) == []


def test_holes():
    assert first_hole([segment(1), segment(2), segment(3, 2)], 1) is None
    assert first_hole([segment(1), segment(3)], 1) == 2
    assert first_hole([segment(5)], 3) == 3
    assert first_hole([segment(1), segment(3)], 3) is None and first_hole([], 7) is None


# -- whole lives -------------------------------------------------------------------------------------------------------


class Life:
    """An archive and its cluster, told by events. What must stay is found by walking from each start to the present, not by comparing numbers."""

    def __init__(self, keep):
        self.keep = keep
        self.files = set()  # (timeline, number)
        self.backups = []  # in the order in which they were taken
        self.parent = {1: (None, 0)}  # timeline: its parent and where it left it
        self.timeline, self.head = 1, SIZE + 100
        self.members = []

    def way(self):
        """The past of the present: (timeline, begin, end), the newest first."""
        found, timeline, end = [], self.timeline, self.head
        while timeline is not None:
            parent, begin = self.parent[timeline]
            found.append((timeline, begin, end))
            timeline, end = parent, begin
        return found

    def history(self):
        return [(timeline, end) for timeline, _begin, end in self.way()[1:]]

    def needed_from(self, start):
        return {
            (timeline, number)
            for timeline, begin, end in self.way()
            for number in range(max(start, begin) // SIZE, max(end - 1, 0) // SIZE + 1)
            if end > start
        }

    def restorable(self):
        found = []
        for one in self.backups:
            inside = any(timeline == one.timeline and one.start >= begin and one.stop <= end for timeline, begin, end in self.way())
            whole = {(one.timeline, number) for number in range(one.start // SIZE, (one.stop - 1) // SIZE + 1)} <= self.files
            if inside and whole and one.label != "clone":
                found.append(one)
        return found

    def write(self, amount):
        before = self.head
        self.head += amount
        self.files |= {(self.timeline, number) for number in range(before // SIZE, self.head // SIZE)}

    def back_up(self, label, length):
        start = self.head
        self.write(length)
        stop = self.head
        self.write(SIZE)
        self.backups.append(Backup("file %d" % len(self.backups), label, self.timeline, start, stop, "now"))

    def branch(self, position):
        """A failover (the position is the head) or a recovery to an earlier one."""
        new = max(self.parent) + 1
        owner = next(timeline for timeline, begin, _end in self.way() if begin <= position)
        self.parent[new] = (owner, position)
        self.timeline, self.head = new, position
        self.members = []

    def clean(self):
        files = [segment(number, timeline) for timeline, number in sorted(self.files)]
        found = judge_backups(self.backups, self.files, self.timeline, self.history(), SIZE, lambda label: label == "clone")
        counted = [one.backup for one in found if one.problem is None]
        starts = [one.start for one in counted[: self.keep]] + self.members
        wanted = self.restorable()[-self.keep :]
        assert sorted(one.file for one in counted[: self.keep]) == sorted(one.file for one in wanted)
        if not counted:
            return
        must_stay = set().union(*(self.needed_from(start) for start in [one.start for one in wanted] + self.members)) & self.files
        decision = decide(files, [Need(start // SIZE, self.timeline, "x") for start in starts], self.timeline, 0)
        removed = {(one.wal.timeline, one.wal.number) for one in decision.removable}
        assert not removed & must_stay
        # And what nobody can reach goes.
        assert not {(t, n) for t, n in self.files - removed if n < min(starts) // SIZE and t <= self.timeline}
        self.files -= removed
        assert self.restorable()[-self.keep :] == wanted


EVENTS = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 4 * SIZE)),
    st.tuples(st.just("backup"), st.integers(1, 3 * SIZE)),
    st.tuples(st.just("clone"), st.integers(1, SIZE)),
    st.tuples(st.just("member"), st.floats(0, 1)),
    st.tuples(st.just("failover"), st.integers(0, 2 * SIZE)),
    st.tuples(st.just("recovery"), st.floats(0, 1)),
    st.tuples(st.just("hole"), st.floats(0, 1)),
    st.tuples(st.just("clean"), st.just(0)),
)


@settings(max_examples=300)
@given(st.integers(1, 3), st.lists(EVENTS, max_size=25))
def test_no_life_of_an_archive_loses_what_is_needed(keep, events):
    life = Life(keep)
    for what, value in events:
        if what == "write":
            life.write(value)
        elif what in ("backup", "clone"):
            life.back_up(what, value)
        elif what == "member":
            life.members.append(int(life.head * value))
        elif what == "failover":
            # The old primary has archived more than the new one took over.
            position = life.head
            life.write(value)
            life.branch(position)
        elif what == "recovery" and life.restorable():
            oldest = life.restorable()[0].stop
            life.branch(oldest + int((life.head - oldest) * value))
        elif what == "hole" and life.files:
            ordered = sorted(life.files)
            life.files.remove(ordered[min(int(value * len(ordered)), len(ordered) - 1)])
        else:
            life.clean()
    life.clean()
