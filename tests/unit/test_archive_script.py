# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that PostgreSQL calls for each segment: all of it in the archive or a failure, and never a file replaced."""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "roles" / "wal_archive" / "files" / "archive_wal.sh"
NAME = "000000010000000000000001"


class Archive:
    def __init__(self, base):
        self.base = base
        self.directory = base / "the 'archive' of $HOME"
        self.directory.mkdir()
        self.segment = base / NAME
        self.segment.write_bytes(os.urandom(1 << 20))
        self.fakes = base / "bin"
        self.fakes.mkdir()

    def argv(self, *arguments):
        return [str(SCRIPT), *map(str, arguments or (self.directory, self.segment, NAME))]

    def run(self, *arguments, **kwargs):
        environment = {**os.environ, "PATH": "%s:%s" % (self.fakes, os.environ["PATH"])}
        return subprocess.run(self.argv(*arguments), capture_output=True, text=True, timeout=60, env=environment, check=False, **kwargs)

    def fake(self, program, text):
        """Put a program of this name before the real one."""
        path = self.fakes / program
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    @property
    def names(self):
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path)


def test_a_segment_is_copied_whole(archive):
    done = archive.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert archive.names == [NAME] and (archive.directory / NAME).read_bytes() == archive.segment.read_bytes()
    assert (archive.directory / NAME).stat().st_mode & 0o777 == 0o640 and (archive.directory / NAME).stat().st_nlink == 1


@pytest.mark.parametrize("name", ["00000002.history", NAME + ".partial", NAME + ".00000028.backup"])
def test_all_that_postgresql_archives(archive, name):
    assert archive.run(archive.directory, archive.segment, name).returncode == 0 and archive.names == [name]


def test_the_same_segment_again_is_a_success(archive):
    archive.run()
    before = (archive.directory / NAME).stat()
    assert archive.run().returncode == 0
    after = (archive.directory / NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns) and archive.names == [NAME]


@pytest.mark.parametrize("content", [b"", b"something else", None])
def test_another_file_of_this_name_is_never_replaced(archive, content):
    target = archive.directory / NAME
    content = archive.segment.read_bytes()[:-1] if content is None else content
    target.write_bytes(content)
    done = archive.run()
    assert done.returncode == 1 and "another content" in done.stderr and target.read_bytes() == content and archive.names == [NAME]


def test_nothing_is_written_through_a_symbolic_link(archive):
    (archive.directory / NAME).symlink_to(archive.base / "elsewhere")
    assert archive.run().returncode == 1 and not (archive.base / "elsewhere").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "call it with"),
        (("directory", "segment"), "call it with"),
        (("directory", "segment", ""), "no name of a WAL file"),
        (("directory", "segment", "../x"), "no name of a WAL file"),
        (("directory", "segment", ".hidden"), "no name of a WAL file"),
        (("directory", "segment", "a b"), "no name of a WAL file"),
        (("directory", "nothing", NAME), "is not there"),
        (("nowhere", "segment", NAME), "is its file system mounted"),
    ],
)
def test_wrong_calls_fail(archive, arguments, words):
    paths = {"directory": archive.directory, "segment": archive.segment, "nothing": archive.base / "nothing", "nowhere": archive.base / "nowhere"}
    argv = [str(SCRIPT), *(str(paths.get(one, one)) for one in arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and words in done.stderr and archive.names == [] and not (archive.base / "nowhere").exists()


def test_a_full_disk_is_a_failure_and_leaves_nothing(archive):
    done = archive.run(preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))))
    assert done.returncode == 1 and "cannot be copied" in done.stderr and archive.names == []
    assert archive.run().returncode == 0 and archive.names == [NAME]


@pytest.mark.parametrize("program, words", [("dd", "cannot be copied"), ("ln", "cannot be made"), ("sync", "cannot be synced"), ("cmp", "another content")])
def test_no_step_may_fail_unseen(archive, program, words):
    if program == "cmp":
        archive.run()
    archive.fake(program, "exit 1\n")
    done = archive.run()
    assert done.returncode == 1 and words in done.stderr and [name for name in archive.names if name.endswith(".tmp")] == []


def test_what_counts_as_archived_is_on_disk(archive):
    log = archive.base / "log"
    for program in ("dd", "ln", "sync"):
        archive.fake(program, 'echo %s "$@" >> %s\nexec /usr/bin/%s "$@"\n' % (program, log, program))
    archive.run()
    copied, linked, synced = log.read_text().splitlines()
    assert copied.startswith("dd ") and "fsync" in copied and linked.startswith("ln ") and synced == "sync -- %s" % archive.directory
    log.write_text("")
    archive.run()
    assert log.read_text() == "sync -- %s %s\n" % (archive.directory / NAME, archive.directory)


def test_an_attempt_that_was_killed_does_no_harm(archive):
    archive.fake("ln", "kill -9 $PPID\n")
    assert archive.run().returncode == -signal.SIGKILL
    (left,) = archive.names
    assert left.startswith("." + NAME) and left.endswith(".tmp")
    (archive.fakes / "ln").unlink()
    assert archive.run().returncode == 0 and archive.names == [NAME]


def test_of_two_servers_only_one_wins(archive):
    other = archive.base / "other"
    other.write_bytes(os.urandom(1 << 20))
    for number in range(10):
        name = "00000001000000000000%04X" % number
        running = [subprocess.Popen(archive.argv(archive.directory, path, name), stderr=subprocess.DEVNULL) for path in (archive.segment, other)]
        codes = [process.wait(60) for process in running]
        # One may have taken away the other's unfinished copy, and then it tries again.
        assert codes.count(0) <= 1, codes
        if 0 in codes:
            assert (archive.directory / name).read_bytes() == (archive.segment, other)[codes.index(0)].read_bytes()
    assert not [name for name in archive.names if name.endswith(".tmp")]
