# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""pg_rewind, and the crash recovery that a directory may need before it."""

from __future__ import annotations

import re

from .._errors import CommandFailed

_NEEDED = re.compile(r"need to copy (\d+) MB")


def rewind_command(program: str, data_directory: str, conninfo: str, dry_run: bool = False, restore: bool = False, config_file: str | None = None) -> list[str]:
    """The argument list of pg_rewind. The connection string must hold no password: other users see it.

    The directory must have been shut down cleanly. ``restore`` lets it fetch WAL by the restore_command of ``config_file`` (PostgreSQL 15 and later).
    """
    argv = [program, "--target-pgdata=%s" % data_directory, "--source-server=%s" % conninfo, "--no-ensure-shutdown", "--progress"]
    if dry_run:
        argv.append("--dry-run")
    if restore:
        argv.append("--restore-target-wal")
        if config_file:
            argv.append("--config-file=%s" % config_file)
    return argv


def recover_command(program: str, data_directory: str, config_file: str | None) -> list[str]:
    """The argument list that lets a crashed server recover and shut down, without ever accepting a connection. ``program`` is postgres."""
    argv = [program, "--single", "-D", data_directory]
    if config_file:
        # The file may name the directory by the name that it had before.
        argv += ["-c", "config_file=%s" % config_file, "-c", "data_directory=%s" % data_directory]
    # pg_rewind looks for the last checkpoint before the fork: no WAL may be recycled (the value is in MB).
    return [*argv, "-c", "wal_keep_size=1000000", "template1"]


def needed_bytes(output: str) -> int | None:
    """How much pg_rewind copies, of what it printed."""
    found = _NEEDED.search(output)
    return int(found.group(1)) * 1048576 if found else None


def reason(error: CommandFailed) -> str:
    """Why pg_rewind did not want to, in its own words."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"(error|fatal):", line)]
    return re.sub(r"^.*?(error|fatal): ", "", (errors or lines)[-1])
