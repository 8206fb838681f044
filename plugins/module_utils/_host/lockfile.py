# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Locks with a time to live, as files of one directory on this host."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import stat
import time
import typing as t
import urllib.parse

from .._errors import CommandFailed, InvalidInput, OperationError
from .._wait import Deadline, wait_for
from .files import FileFailed, read_text, write_atomic

GUARD_TIMEOUT = 20
"""Seconds to wait for the guard; whoever has it reads and writes one small file."""


class LockFailed(OperationError):
    """A lock cannot be read, trusted or written. This never means that it is free."""


class LockNotUnderstood(LockFailed):
    """A lock file holds something else than a lock."""


def boot_id() -> str:
    """The kernel's name for the time since it was started. Raises CommandFailed."""
    path = "/proc/sys/kernel/random/boot_id"
    try:
        with open(path, encoding="ascii") as stream:
            return stream.read().strip()
    except OSError as error:
        raise CommandFailed("%s cannot be read: %s" % (path, error.strerror), expected="a Linux host") from error


def boot_seconds() -> float:
    """Seconds since the kernel was started, those asleep too; nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_clock(moment: float) -> str:
    """A moment of ``boot_seconds`` for people, such as 2026-03-01T09:30:00Z."""
    seconds = time.time() + moment - boot_seconds()
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclasses.dataclass(frozen=True)
class Lock:
    """What a lock file says. ``taken`` and ``ends`` are seconds as of ``boot_seconds``, ``ttl`` is in seconds."""

    cluster: str
    member: str
    holder: str
    owner: str
    operation: str
    ttl: int
    boot: str
    taken: float
    ends: float

    def left(self, boot: str, now: float) -> float:
        """Seconds until the lock ends, 0 when it has ended by its time or by a restart of the host."""
        return max(0.0, self.ends - now) if self.boot == boot else 0.0

    def renewed(self, owner: str, operation: str, ttl: int, now: float) -> Lock:
        return dataclasses.replace(self, owner=owner, operation=operation, ttl=ttl, ends=now + ttl)


class LockFile:
    """The lock of one cluster, for one member of it.

    A directory that others may write could give anybody the lock, so it must belong to this user or to root and to no group.
    """

    def __init__(self, directory: str, cluster: str, member: str) -> None:
        self.directory, self.cluster, self.member = directory, cluster, member
        name = "@".join(urllib.parse.quote(part, safe="") for part in (cluster, member) if part) + ".json"
        if len(name) > 200:
            raise InvalidInput("the names of the cluster and of the member are too long for a file's name: %d characters" % len(name), expected="200 at most")
        self.path = os.path.join(directory, name)

    def read(self) -> Lock | None:
        """What the file says, None without one. Raises FileFailed, LockFailed, LockNotUnderstood."""
        if not self._is_there():
            return None
        try:
            text = read_text(self.path)
        except FileFailed as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        try:
            found = Lock(**json.loads(text))
        except (ValueError, TypeError):
            found = None
        types = t.get_type_hints(Lock)
        if found is None or not all(isinstance(getattr(found, field.name), types[field.name]) for field in dataclasses.fields(Lock)):
            raise self._not_understood("it is no lock that this version writes")
        if (found.cluster, found.member) != (self.cluster, self.member):
            raise self._not_understood("it is of cluster %s, member %s" % (found.cluster, found.member or "-"))
        if found.boot == boot_id() and not found.taken <= boot_seconds():
            raise self._not_understood("it was taken in the future")
        return found

    def write(self, lock: Lock) -> None:
        """Replace the file. Only with the guard. Raises FileFailed."""
        write_atomic(self.path, json.dumps(dataclasses.asdict(lock), sort_keys=True) + "\n", 0o644)

    def remove(self) -> None:
        """Remove the file. Only with the guard. Raises LockFailed."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._no_access("%s cannot be removed" % self.path, error) from error

    @contextlib.contextmanager
    def guarded(self) -> t.Iterator[None]:
        """Nobody else decides about a lock of this directory meanwhile. Makes the directory. Raises LockFailed, WaitTimeout."""
        try:
            os.mkdir(self.directory, 0o755)
        except FileExistsError:
            pass
        except OSError as error:
            raise self._no_access("the directory %s cannot be made" % self.directory, error) from error
        self._is_there()
        try:
            # A file of its own, because the lock file is replaced. Not readable for others: who can open it can hold it.
            guard = os.open(os.path.join(self.directory, ".guard"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._no_access("the file .guard in %s cannot be opened" % self.directory, error) from error
        try:
            wait_for("the guard of %s becoming free" % self.directory, lambda: _try_flock(guard), bool, Deadline(GUARD_TIMEOUT), interval=0.02)
            yield
        finally:
            os.close(guard)

    def _is_there(self) -> bool:
        """Whether the directory is there. Raises LockFailed when somebody else could write in it."""
        try:
            found = os.lstat(self.directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._no_access("the directory %s cannot be looked at" % self.directory, error) from error
        problem = None
        if not stat.S_ISDIR(found.st_mode):
            problem = "is no directory"
        elif found.st_uid not in (0, os.geteuid()):
            problem = "belongs to user %d" % found.st_uid
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            problem = "has mode %04o, so that others may write in it" % stat.S_IMODE(found.st_mode)
        if problem:
            raise LockFailed(
                "the lock directory %s %s" % (self.directory, problem),
                expected="a directory of root or of the user of this task (user %d), which nobody else may write" % os.geteuid(),
                action="Correct it, name another with the option directory, or run all operations as the same user",
            )
        return True

    def _not_understood(self, why: str) -> LockNotUnderstood:
        return LockNotUnderstood(
            "the lock file %s cannot be understood: %s" % (self.path, why),
            action="See that no operation works on cluster %s, then remove the lock with state released and force" % self.cluster,
        )

    def _no_access(self, what: str, error: OSError) -> LockFailed:
        return LockFailed(
            "%s: %s" % (what, error.strerror),
            action="Run the task as root (become), or name a directory with the option directory that the task's user may write",
        )


def _try_flock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
