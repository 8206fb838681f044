# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A directory with archived WAL: listing it, reading the beginning of its files, and removing files of it by name."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import lzma
import os
import stat
import struct
import typing as t
import zlib

from .._errors import OperationError, Refused
from .datadir import is_data_directory, refuse_path

# The standard library reads these; a file of another compression cannot be looked into.
_OPEN: t.Mapping[str, t.Callable[[t.Any], t.Any]] = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}
_UNREADABLE = frozenset(("zst", "lz4"))
# Far more than any history file has.
_TEXT_BYTES = 1 << 20

# The first page of a segment: magic, info, timeline, its own position, rest of a record, (padding), system identifier, segment size, page size
_LONG_HEADER = struct.Struct("=HHIQI4xQII")
_HAS_LONG_HEADER = 0x0002
_SEGMENT_SIZES = frozenset(1 << power for power in range(20, 31))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A regular file of the directory; times in nanoseconds since 1970, size in bytes."""

    name: str
    device: int
    inode: int
    size: int
    modified: int


@dataclasses.dataclass(frozen=True)
class SegmentHeader:
    """How a WAL segment begins. Sizes are in bytes."""

    timeline: int
    position: int
    system_identifier: str
    segment_size: int


class ArchiveDirectory:
    """An open archive directory. What is done goes to the directory that was opened, whatever its path leads to meanwhile."""

    def __init__(self, path: str) -> None:
        """Raises Refused for a directory that can be no WAL archive, OperationError for one that cannot be opened."""
        self.path = refuse_path(path, "the archive directory")
        if is_data_directory(self.path):
            raise Refused("the archive directory %s is a data directory" % path, expected="a directory that archive_command copies to")
        try:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise OperationError(
                "the archive directory %s cannot be opened: %s" % (path, error.strerror),
                action="Run the task on the host that has the archive, as a user who may read and write it (become_user), and see that it is mounted",
            ) from error
        if "archive_status" in os.listdir(self._handle):
            self.close()
            raise Refused(
                "the archive directory %s has the directory archive_status, so it is the pg_wal of a server" % path,
                expected="a directory that archive_command copies to",
            )

    def close(self) -> None:
        os.close(self._handle)

    def entries(self) -> tuple[list[Entry], int]:
        """The regular files, and how many other entries there are. Symbolic links are not followed."""
        found, others = [], 0
        with os.scandir(self._handle) as listing:
            for one in listing:
                with contextlib.suppress(FileNotFoundError):
                    seen = one.stat(follow_symlinks=False)
                    if stat.S_ISREG(seen.st_mode):
                        found.append(Entry(one.name, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns))
                    else:
                        others += 1
        return found, others

    def read(self, name: str, compression: str, size: int) -> bytes | None:
        """The first bytes of a file as they were before compression, or None where that cannot be read."""
        if compression in _UNREADABLE:
            return None
        try:
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._handle), "rb") as raw:
                if not compression:
                    return raw.read(size)
                with _OPEN[compression](raw) as stream:
                    return stream.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile):
            return None
        except OSError as error:
            if error.errno is None:  # what bz2 says of a file that is none of its own
                return None
            raise OperationError("%s in %s cannot be read: %s" % (name, self.path, error.strerror)) from error

    def read_text(self, name: str, compression: str) -> str | None:
        """A history file, or None where it cannot be read."""
        found = self.read(name, compression, _TEXT_BYTES)
        return None if found is None else found.decode("utf-8", "replace")

    def header(self, name: str, compression: str) -> SegmentHeader | None:
        """How a segment begins, or None for a file that does not begin as a segment or cannot be read."""
        found = self.read(name, compression, _LONG_HEADER.size)
        if found is None or len(found) < _LONG_HEADER.size:
            return None
        _magic, info, timeline, position, _rest, identifier, segment_size, _page_size = _LONG_HEADER.unpack(found)
        if not info & _HAS_LONG_HEADER or segment_size not in _SEGMENT_SIZES:
            return None
        return SegmentHeader(timeline, position, str(identifier), segment_size)

    def remove(self, entry: Entry) -> bool:
        """Remove a file if it still is the one that was listed. False when it is gone. Raises Refused if it is another one now."""
        try:
            seen = os.stat(entry.name, dir_fd=self._handle, follow_symlinks=False)
            if (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns) != (entry.device, entry.inode, entry.size, entry.modified):
                raise Refused("%s in %s is another file than a moment ago" % (entry.name, self.path), action="See who writes there, and run this again")
            os.unlink(entry.name, dir_fd=self._handle)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OperationError("%s in %s cannot be removed: %s" % (entry.name, self.path, error.strerror)) from error
        return True

    def sync(self) -> None:
        """Make removals last over a power failure, where the file system can."""
        with contextlib.suppress(OSError):
            os.fsync(self._handle)
