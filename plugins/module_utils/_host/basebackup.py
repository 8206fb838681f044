# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Copying a running server with pg_basebackup and proving the copy with pg_verifybackup."""

from __future__ import annotations

import os
import pwd
import shutil
import typing as t

from .._errors import CommandFailed
from .command import run_command


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
    if slot_name:
        argv.append("--slot=%s" % slot_name)
    if max_rate:
        argv.append("--max-rate=%s" % max_rate)
    if wal_directory:
        argv.append("--waldir=%s" % wal_directory)
    for old, new in sorted((tablespaces or {}).items()):
        argv.append("--tablespace-mapping=%s=%s" % (old.replace("=", "\\="), new.replace("=", "\\=")))
    return argv


def supervised(argv: t.Sequence[str], user: str | None = None) -> list[str]:
    """The command so that it ends when we do, and as another user if named (which only root can)."""
    prefix: list[str] = []
    if shutil.which("setpriv"):
        prefix = ["setpriv"]
        if user:
            prefix += ["--reuid=%s" % user, "--regid=%s" % _group_of(user), "--init-groups"]
        # A copy that outlived a killed run would still fill the disk.
        death = [*prefix, "--pdeathsig=KILL"]
        try:
            run_command([*death, "true"], timeout=10)
            prefix = death
        except CommandFailed:
            prefix = prefix if user else []
    elif user:
        prefix = ["runuser", "-u", user, "--"]
    return [*prefix, *argv]


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
