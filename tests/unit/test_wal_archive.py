# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive directory: which is taken at all, what is listed, read and removed, and what never is."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pwd
import struct
import types

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import OperationError, Refused
from ansible_collections.pgfleet.ops.plugins.module_utils._host import wal_archive
from ansible_collections.pgfleet.ops.plugins.module_utils._host.wal_archive import ArchiveDirectory, SegmentHeader

PAGE = struct.pack("=HHIQI4xQII", 0xD110, 2, 1, 0x3000000, 0, 7234567890123456789, 16 << 20, 8192) + b"\0" * 8152
HEADER = SegmentHeader(1, 0x3000000, "7234567890123456789", 16 << 20)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "archive"
    made.mkdir()
    return made


@pytest.fixture
def directory(path):
    opened = ArchiveDirectory(str(path))
    yield opened
    opened.close()


def entry(directory, name):
    return next(one for one in directory.entries()[0] if one.name == name)


@pytest.mark.parametrize("wrong", ["/", "/tmp", "relative/archive", "", "~", pwd.getpwuid(0).pw_dir, "/proc/self/.."])
def test_directories_that_are_never_an_archive(wrong):
    with pytest.raises(Refused):
        ArchiveDirectory(wrong)


def test_what_a_path_leads_to_counts(tmp_path, path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to("/")
    with pytest.raises(Refused, match="is a top level directory"):
        ArchiveDirectory(str(link))
    home = tmp_path / "home" / "anna"
    home.mkdir(parents=True)
    monkeypatch.setattr(pwd, "getpwall", lambda: [types.SimpleNamespace(pw_dir=str(home))])
    link.unlink()
    link.symlink_to(home)
    with pytest.raises(Refused, match="home"):
        ArchiveDirectory(str(link))
    monkeypatch.setattr(os.path, "ismount", lambda one: one == str(path))
    with pytest.raises(Refused, match="root of a mounted"):
        ArchiveDirectory(str(path))


def test_data_directories_and_their_wal_are_refused(tmp_path):
    data = tmp_path / "data"
    for name in ("global", "pg_wal/archive_status", "elsewhere"):
        (data / name).mkdir(parents=True)
    (data / "PG_VERSION").write_text("15\n")
    (data / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(Refused, match="is a data directory"):
        ArchiveDirectory(str(data))
    for inside in ("pg_wal", "elsewhere"):
        with pytest.raises(Refused, match="inside a data directory"):
            ArchiveDirectory(str(data / inside))
    # WAL on a file system of its own
    outside = tmp_path / "wal"
    (outside / "archive_status").mkdir(parents=True)
    with pytest.raises(Refused, match="pg_wal of a server"):
        ArchiveDirectory(str(outside))


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(OperationError, match="see that it is mounted"):
        ArchiveDirectory(str(tmp_path / "nothing"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OperationError, match="cannot be opened"):
        ArchiveDirectory(str(tmp_path / "file"))


def test_only_regular_files_are_listed(path, directory):
    (path / "a").write_bytes(b"xy")
    (path / "b").symlink_to("a")
    (path / "c").mkdir()
    os.mkfifo(path / "d")
    (path / "e").symlink_to("nowhere")
    found, others = directory.entries()
    assert [(one.name, one.size) for one in found] == [("a", 2)] and others == 4


@pytest.mark.parametrize("suffix, pack", [("", bytes), ("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)])
def test_the_beginning_of_a_segment(path, directory, suffix, pack):
    (path / "good").write_bytes(pack(PAGE))
    assert directory.header("good", suffix) == HEADER
    (path / "short").write_bytes(pack(PAGE)[:20])
    (path / "other").write_bytes(pack(b"not a segment at all" * 100))
    (path / "packed not").write_bytes(b"\1\2\3\4" * 100)
    for name in ("short", "other", "packed not"):
        assert directory.header(name, suffix) is None, name
    (path / "text").write_bytes(pack("1\t0/3000148\tgröße\n".encode()))
    assert directory.read_text("text", suffix) == "1\t0/3000148\tgröße\n"


def test_what_cannot_be_read(path, directory):
    (path / "a").write_bytes(PAGE)
    assert directory.header("a", "zst") is None and directory.read_text("a", "lz4") is None
    (path / "link").symlink_to("a")
    with pytest.raises(OperationError, match="cannot be read"):
        directory.header("link", "")


def test_a_listed_file_is_removed_once(path, directory):
    (path / "a").write_bytes(b"x")
    one = entry(directory, "a")
    assert directory.remove(one) is True and not (path / "a").exists()
    assert directory.remove(one) is False


def test_another_file_in_its_place_stays(path, directory):
    (path / "a").write_bytes(b"x")
    one = entry(directory, "a")
    (path / "new").write_bytes(b"y")
    os.replace(path / "new", path / "a")
    with pytest.raises(Refused, match="another file than a moment ago"):
        directory.remove(one)
    assert (path / "a").read_bytes() == b"y"


def test_nothing_is_removed_through_a_symbolic_link(path, directory, tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(b"x")
    (path / "a").write_bytes(b"x")
    one = entry(directory, "a")
    (path / "a").unlink()
    (path / "a").symlink_to(target)
    with pytest.raises(Refused):
        directory.remove(one)
    assert target.exists() and (path / "a").is_symlink()


def test_a_directory_that_is_exchanged_meanwhile_is_left_alone(path, directory, tmp_path):
    (path / "a").write_bytes(b"x")
    one = entry(directory, "a")
    path.rename(tmp_path / "moved")
    path.mkdir()
    (path / "a").write_bytes(b"x")
    assert directory.remove(one) is True
    assert (path / "a").exists() and not (tmp_path / "moved" / "a").exists()


def test_the_layout_of_the_first_page():
    assert wal_archive._LONG_HEADER.size == 40
