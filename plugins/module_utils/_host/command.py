# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Programs on the host: argument lists, never a shell, secrets by the environment."""

from __future__ import annotations

import os
import subprocess
import typing as t

from .._errors import CommandFailed


def run_command(
    argv: t.Sequence[str],
    timeout: float,
    environment: t.Mapping[str, str] | None = None,
    accept: t.Sequence[int] = (0,),
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, at most ``timeout`` seconds.

    Raises CommandFailed with the last lines that the program printed.
    """
    env = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **(environment or {})}
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd="/",
            env=env,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed("the program %s is not on this host" % argv[0], action="Install its package or set the option that names its directory") from error
    except PermissionError as error:
        raise CommandFailed("the program %s may not be run by this user" % argv[0]) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed("%s did not end within %g s" % (argv[0], timeout), output=_tail(error.stdout or "")) from error
    if done.returncode not in accept:
        raise CommandFailed("%s ended with %d: %s" % (os.path.basename(argv[0]), done.returncode, _tail(done.stdout)), argv=list(argv))
    return done


def _tail(output: str | bytes, lines: int = 15) -> str:
    text = output.decode("utf-8", "replace") if isinstance(output, bytes) else output
    return "\n".join(text.strip().splitlines()[-lines:]) or "it printed nothing"
