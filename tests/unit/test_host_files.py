# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import stat

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._host.files import FileFailed, prepare, read_text, write_atomic


def test_bytes_and_line_ends_survive(tmp_path):
    path = tmp_path / "file"
    content = b"a\r\nb\xff\xe4\n\xc3\xa4"
    path.write_bytes(content)
    write_atomic(str(path), read_text(str(path)))
    assert path.read_bytes() == content


def test_the_mode_of_the_old_file_stays_and_a_new_file_is_private(tmp_path):
    path = tmp_path / "file"
    write_atomic(str(path), "1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    write_atomic(str(path), "2")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("2", 0o640)
    write_atomic(str(path), "3", mode=0o604)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("3", 0o604)
    assert os.listdir(tmp_path) == ["file"]


def test_the_owner_of_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("1")
    given = []
    new_file = os.fstat
    monkeypatch.setattr(os, "fstat", lambda handle: os.stat_result([*new_file(handle)[:4], 1, 1, *new_file(handle)[6:10]]))
    monkeypatch.setattr(os, "fchown", lambda handle, uid, gid: given.append((uid, gid)))
    write_atomic(str(path), "2")
    assert given == [(path.stat().st_uid, path.stat().st_gid)]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("1")
    (tmp_path / "link").symlink_to("real")
    write_atomic(str(tmp_path / "link"), "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "2"


def test_a_prepared_version_is_not_seen_before_it_is_committed(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    prepared = prepare(str(path), "new")
    assert path.read_text() == "old"
    prepared.commit()
    prepared.commit()
    prepared.discard()
    assert path.read_text() == "new"
    prepare(str(path), "never").discard()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_read_or_written_says_so_and_leaves_nothing(tmp_path):
    with pytest.raises(FileFailed, match="does not exist"):
        read_text(str(tmp_path / "missing"))
    assert read_text(str(tmp_path / "missing"), missing_ok=True) == ""
    with pytest.raises(FileFailed, match="cannot be read"):
        read_text(str(tmp_path))
    with pytest.raises(FileFailed, match="cannot be written"):
        write_atomic(str(tmp_path / "no" / "file"), "x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "full").touch()
    with pytest.raises(FileFailed, match="cannot be written"):
        write_atomic(str(tmp_path / "directory"), "x")
    assert os.listdir(tmp_path) == ["directory"]
