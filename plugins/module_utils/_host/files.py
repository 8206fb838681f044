# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Small text files on the host: read to the byte, replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import typing as t

from .._errors import OperationError

_SELINUX = "security.selinux"


class FileFailed(OperationError):
    """A file could not be read or written; a file that could not be written is as it was."""


def read_text(path: str, missing_ok: bool = False) -> str:
    """The file's text. Bytes that are no UTF-8 survive a later write, and line ends stay as they are.

    Raises FileFailed. With ``missing_ok`` a missing file is an empty one.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except FileNotFoundError as error:
        if missing_ok:
            return ""
        raise FileFailed("the file %s does not exist" % path, action="Check the path, and that the task runs on the host where the file is") from error
    except OSError as error:
        raise FileFailed("%s cannot be read: %s" % (path, error.strerror), action="Run the task as a user who may read it (become_user)") from error


class Prepared:
    """A new version of a file that lies finished beside the old one; ``commit`` only renames it."""

    def __init__(self, path: str, temporary: str) -> None:
        self.path = path
        self._temporary: str | None = temporary

    def commit(self) -> None:
        """Put the new version in the place of the old one. A second call does nothing. Raises FileFailed."""
        if self._temporary is None:
            return
        try:
            os.replace(self._temporary, self.path)
        except OSError as error:
            self.discard()
            raise _cannot_write(self.path, error) from error
        self._temporary = None
        # The rename has happened; a file system that cannot sync a directory is no reason to call it failed.
        with contextlib.suppress(OSError):
            handle = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def discard(self) -> None:
        """Remove the new version if it was not committed."""
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def prepare(path: str, text: str, mode: int | None = None) -> Prepared:
    """Write the new version of a file beside it, synced, with the owner, group and SELinux label of the old one.

    ``mode`` is an integer such as 0o640; without it the old file's mode stays, a new file gets 0o600. A symbolic link
    stays one: the file that it leads to is replaced. Raises FileFailed, and then nothing is left behind.
    """
    path = os.path.realpath(path)
    temporary: str | None = None
    try:
        try:
            old: os.stat_result | None = os.stat(path)
        except FileNotFoundError:
            old = None
        handle, temporary = tempfile.mkstemp(prefix=".%s." % os.path.basename(path), dir=os.path.dirname(path))
        with open(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            stream.write(text)
            if old is not None:
                _keep_owner(stream.fileno(), old)
                _keep_label(path, stream.fileno())
            # Last, because a change of owner may clear bits of the mode.
            os.fchmod(stream.fileno(), mode if mode is not None else stat.S_IMODE(old.st_mode) if old is not None else 0o600)
            stream.flush()
            os.fsync(stream.fileno())
        return Prepared(path, temporary)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise _cannot_write(path, error) from error


def write_atomic(path: str, text: str, mode: int | None = None) -> None:
    """Replace a file by one rename; options and errors as of ``prepare``."""
    prepare(path, text, mode).commit()


def _keep_owner(handle: int, old: os.stat_result) -> None:
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        os.fchown(handle, old.st_uid, old.st_gid)


def _keep_label(path: str, handle: int) -> None:
    # Where there is no SELinux there is no such attribute, or no such call (not Linux).
    with contextlib.suppress(OSError, AttributeError):
        os.setxattr(handle, _SELINUX, os.getxattr(path, _SELINUX))


def _cannot_write(path: str, error: OSError) -> FileFailed:
    detail: t.Any = error.strerror or error
    return FileFailed(
        "%s cannot be written: %s" % (path, detail),
        action="Run the task as root or as the file's owner, who must also be allowed to write its directory",
    )
