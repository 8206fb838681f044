# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Copying a running server with pg_basebackup and proving the copy with pg_verifybackup."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import typing as t

from .._errors import CommandFailed
from .._wait import Deadline, wait_for
from .command import run_command

LABEL = "pgfleet.ops clone"
"""What the base backup of a clone is called; pg_archive_cleanup leaves it out by its default ignore_labels."""


def basebackup_command(
    program: str,
    destination: str,
    conninfo: str,
    checkpoint: str = "fast",
    slot_name: str | None = None,
    max_rate: str | None = None,
    wal_directory: str | None = None,
    tablespaces: t.Mapping[str, str] | None = None,
) -> list[str]:
    """The argument list of pg_basebackup. The connection string must hold no password: other users see it."""
    # --no-password: a prompt would wait for ever.
    argv = [program, "--pgdata=%s" % destination, "--dbname=%s" % conninfo, "--no-password", "--checkpoint=%s" % checkpoint, "--wal-method=stream"]
    # Its history file comes into the WAL archive, where it must not count as a backup that somebody keeps.
    argv.append("--label=%s" % LABEL)
    if slot_name:
        argv.append("--slot=%s" % slot_name)
    if max_rate:
        argv.append("--max-rate=%s" % max_rate)
    if wal_directory:
        argv.append("--waldir=%s" % wal_directory)
    for old, new in sorted((tablespaces or {}).items()):
        argv.append("--tablespace-mapping=%s=%s" % (old.replace("=", "\\="), new.replace("=", "\\=")))
    return argv


def as_user(argv: t.Sequence[str], user: str | None) -> list[str]:
    """The command as another user, which only root can ask for."""
    if not user:
        return list(argv)
    if shutil.which("setpriv"):
        return ["setpriv", "--reuid=%s" % user, "--regid=%d" % _group_of(user), "--init-groups", *argv]
    return ["runuser", "-u", user, "--", *argv]


def run_copy(argv: t.Sequence[str], timeout: float, user: str | None = None, environment: t.Mapping[str, str] | None = None) -> str:
    """Run pg_basebackup or pg_rewind so that nothing of it outlives us, and return what it printed.

    The second process of pg_basebackup, which receives WAL, does not notice the death of the first: it would hold the slot and our output
    for ever. So both are in a process group that ends as a whole, also when we are killed. Raises CommandFailed.
    """
    command = as_user(argv, user)
    if _knows_death_signal():
        group_end = 'trap "trap - TERM; kill -TERM 0" TERM; "$@" & wait "$!"'
        identity = command[1 : len(command) - len(argv)] if user else []
        command = ["setpriv", *identity, "--pdeathsig=TERM", "sh", "-c", group_end, "sh", *argv]
    # A file and no pipe: a pipe stays open as long as any process has it.
    with tempfile.TemporaryFile() as output:
        env = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **(environment or {})}
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/", env=env, start_new_session=True)
        except OSError as error:
            raise CommandFailed("%s cannot be run: %s" % (command[0], error.strerror)) from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed("%s did not end within %g s" % (os.path.basename(argv[0]), timeout)) from error
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        # Progress comes with carriage returns.
        text = output.read().decode("utf-8", "replace").replace("\r", "\n").strip()
        if code:
            lines = text.splitlines()[-15:]
            raise CommandFailed("%s ended with %d: %s" % (os.path.basename(argv[0]), code, "\n".join(lines) or "it printed nothing"), argv=list(argv))
        return text


def end_copies(destination: str) -> None:
    """End what still works on a copy, where a killed run could not take its processes with it."""
    victims = list(_copying_to(destination))
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(
        "the end of the copy to %s" % destination, lambda: [pid for pid in _copying_to(destination) if pid in victims], lambda left: not left, Deadline(10)
    )


def _copying_to(destination: str) -> t.Iterator[int]:
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if entry.isdigit():
            with contextlib.suppress(OSError), open("/proc/%s/cmdline" % entry, "rb") as file:
                words = file.read().split(b"\0")
                program = os.path.basename(words[0])
                wanted = {b"pg_basebackup": "--pgdata=%s", b"pg_rewind": "--target-pgdata=%s", b"postgres": "%s"}.get(program)
                # A server in single user mode recovers what is to be rewound.
                if wanted and os.fsencode(wanted % destination) in words and (program != b"postgres" or b"--single" in words):
                    yield int(entry)


def _knows_death_signal() -> bool:
    if not shutil.which("setpriv"):
        return False
    try:
        run_command(["setpriv", "--pdeathsig=TERM", "true"], timeout=10)
    except CommandFailed:
        return False
    return True


def _group_of(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def verify_command(program: str, directory: str) -> list[str]:
    return [program, "--exit-on-error", directory]


def password_environment(password: str | None) -> dict[str, str]:
    """The replication password on its way to libpq. Nothing of the caller's own login may get in between."""
    environment = {name: "" for name in ("PGPASSWORD", "PGOPTIONS") if name in os.environ}
    if password:
        environment["PGPASSWORD"] = password
    return environment
