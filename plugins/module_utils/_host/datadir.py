# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Data directories on disk: which may be replaced at all, replacing them by rename, and the settings of a standby in them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import time
import typing as t
import uuid

from .._errors import OperationError, Refused
from .._wait import Deadline

SIGNAL_FILES = ("standby.signal", "recovery.signal")
CARRIED_OVER = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")
"""What of the old directory belongs to the node and not to the data."""

_ASSIGNMENT = re.compile(r"^\s*([A-Za-z_][\w.]*)\s*(?:=|\s)")


def is_data_directory(path: str) -> bool:
    """Whether a directory holds a database cluster. One that cannot be looked into raises OperationError."""
    for parts in (("PG_VERSION",), ("global", "pg_control")):
        try:
            os.stat(os.path.join(path, *parts))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise OperationError("%s cannot be looked into: %s" % (path, error.strerror), action="Run the task as its owner (become_user)") from error
    return True


def home_directories() -> set[str]:
    """The home directories of all users that this host knows, as real paths."""
    return {os.path.realpath(account.pw_dir) for account in pwd.getpwall() if account.pw_dir}


def refuse_path(path: str, what: str = "the data directory") -> str:
    """The real path of a directory whose content may be replaced or removed. Raises Refused for one that never may.

    This looks only at where the path leads, not at what is in the directory.
    """
    if not path or not os.path.isabs(path):
        raise Refused('%s is "%s"' % (what, path), expected="an absolute path")
    real = os.path.realpath(path)
    parts = [part for part in real.split("/") if part]
    homes = home_directories()
    why = None
    if len(parts) < 2:
        why = "a top level directory"
    elif real in homes:
        why = "a user's home directory"
    elif any(home.startswith(real + "/") and os.path.isdir(home) for home in homes):
        why = "a directory above a user's home"
    elif os.path.ismount(real):
        # It cannot be replaced by a rename, and while nothing is mounted another directory is in its place.
        why = "the root of a mounted file system"
    if why:
        raise Refused("%s %s is %s" % (what, _named(path, real), why), action="Name a directory below it that is for nothing else", path=real)
    above = os.path.dirname(real)
    while above != "/":
        if is_data_directory(above):
            raise Refused("%s %s is inside a data directory, %s" % (what, _named(path, real), above), path=real)
        above = os.path.dirname(above)
    return real


def is_empty(path: str) -> bool:
    """Whether a directory has no entry. A missing one is empty."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True


def existing_parent(path: str) -> str:
    """The nearest directory above a path that exists."""
    above = os.path.dirname(path)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    return above


def free_bytes(path: str) -> int:
    """What an ordinary user may still write to the file system of a directory."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def new_identifier() -> str:
    return uuid.uuid4().hex[:12]


def clone_path(path: str, identifier: str) -> str:
    """Where a copy is made before it takes the place of ``path``. What is there belongs to this collection."""
    return "%s.clone-%s" % (path, identifier)


def old_path(path: str, identifier: str) -> str:
    """Where the old content of ``path`` waits."""
    return "%s.old-%s" % (path, identifier)


def leftovers(path: str) -> list[str]:
    """Real directories that an interrupted run left beside ``path``: its copies, never the old directories."""
    parent, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.clone-[0-9a-f]{12}\Z")
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.path for entry in entries if pattern.match(entry.name) and entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def identifier_of(leftover: str) -> str:
    return leftover[-12:]


@contextlib.contextmanager
def locked(path: str, patience: float = 0) -> t.Iterator[None]:
    """Hold a directory against every other run on it, a switchover's guardian included (see ``hold`` there). The lock ends with the process.

    Raises BlockingIOError when another process has it for longer than ``patience`` (seconds).
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    deadline = Deadline(patience)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.passed:
                    raise
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def is_locked(path: str) -> bool:
    """Whether another process holds a directory."""
    try:
        with locked(path):
            return False
    except BlockingIOError:
        return True


def links_out(path: str) -> list[str]:
    """The directories outside that a data directory's WAL and tablespaces are in."""
    found = []
    candidates = [os.path.join(path, "pg_wal")]
    with contextlib.suppress(OSError):
        candidates += [entry.path for entry in os.scandir(os.path.join(path, "pg_tblspc"))]
    for candidate in candidates:
        if os.path.islink(candidate):
            found.append(os.path.realpath(candidate))
    return found


def remove_tree(path: str) -> None:
    """Remove a directory that this collection made or has set aside. Nothing but a real directory of such a name is removed."""
    if not re.search(r"\.(clone|old)-[0-9a-f]{12}\Z", path):
        raise Refused("%s is no copy made by this collection" % path)
    if os.path.islink(path):
        raise Refused("%s is a symbolic link" % path)
    if os.path.isdir(path):
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise OperationError("%s cannot be removed: %s" % (path, error.strerror), action="Remove it by hand", path=path) from error


def rename(source: str, destination: str) -> None:
    """Rename a directory within its parent, for good also after a power failure. Never onto something that is there."""
    try:
        if os.path.lexists(destination):
            if os.path.islink(destination) or not os.path.isdir(destination) or not is_empty(destination):
                raise Refused("%s is there already" % destination)
            os.rmdir(destination)
        os.rename(source, destination)
        handle = os.open(os.path.dirname(destination), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OperationError("%s cannot be renamed to %s: %s" % (source, destination, error.strerror)) from error


def relink(link: str, destination: str) -> None:
    """Make a symbolic link lead elsewhere, in one step."""
    temporary = "%s.new" % link
    os.symlink(destination, temporary)
    os.replace(temporary, link)


def quote_setting(value: str) -> str:
    """A value as postgresql.conf takes it."""
    return "'%s'" % value.replace("\\", "\\\\").replace("'", "''")


def with_settings(text: str, settings: t.Mapping[str, str | None]) -> str:
    """The text of a configuration file in which each setting is set once, at the end. None removes it."""
    names = {name.lower() for name in settings}
    kept = []
    for line in text.splitlines():
        found = _ASSIGNMENT.match(line)
        if not found or found.group(1).lower() not in names:
            kept.append(line)
    kept += ["%s = %s" % (name, quote_setting(value)) for name, value in settings.items() if value is not None]
    return "".join(line + "\n" for line in kept)


def _named(path: str, real: str) -> str:
    return path if os.path.normpath(path) == real else "%s (%s)" % (path, real)
