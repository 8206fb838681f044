# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The controller's end of a guardian (see guardian_program.py): started on a host of its own, spoken to by a pipe."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import select
import shlex
import subprocess
import sys
import typing as t

from .._errors import CommandFailed, NotReachable, WaitTimeout
from .._wait import Deadline
from . import guardian_program

# Reads the length of what follows, byte by byte so that nothing is taken from the requests behind it.
_BOOTSTRAP = """
import json, os
def line():
    got = b""
    while not got.endswith(b"\\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        got += byte
    return got
head = json.loads(line())
source = b""
while len(source) < head["size"]:
    source += os.read(0, head["size"] - len(source))
space = {"__name__": "guardian"}
exec(compile(source, "guardian", "exec"), space)
space["serve"](**head["options"])
"""

# Read once, and not by the threads that start guardians at the same time: inspect's cache of lines is not made for those.
_SOURCE = inspect.getsource(guardian_program).encode()


class GuardianFailed(CommandFailed):
    """A guardian could not do what it was asked to; ``str()`` says what it answered."""


class Guardian:
    """A guardian of one node or pooler.

    ``shell`` is the command that runs a program on the part's host as the right user, for example
    ``["ssh", "db1", "sudo", "-n", "-u", "postgres"]``; empty for this host and user. It must not ask for anything.
    The process has a session of its own, so that what ends this process does not end it.
    """

    def __init__(self, name: str, shell: t.Sequence[str], options: t.Mapping[str, t.Any], patience: float) -> None:
        self.name = name
        program = [sys.executable or "python3", "-u", "-c", _BOOTSTRAP]
        if shell:
            # ssh hands one string to the shell of the other side.
            program = [*shell, "python3", "-u", "-c", shlex.quote(_BOOTSTRAP) if os.path.basename(shell[0]) == "ssh" else _BOOTSTRAP]
        self._started_with = " ".join(program[:-1])
        try:
            self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", start_new_session=True)
        except OSError as error:
            raise CommandFailed("cannot run %s for %s: %s" % (program[0], name, error.strerror)) from error
        self._requests = t.cast(t.IO[bytes], self._process.stdin)
        self._answers = t.cast(t.IO[bytes], self._process.stdout)
        self._complaints = t.cast(t.IO[bytes], self._process.stderr)
        self._pending = b""
        self._request = ""
        self.waiting = 0
        """Requests whose answer has not been read."""
        self._send(json.dumps({"size": len(_SOURCE), "options": {"patience": patience, **options}}).encode() + b"\n" + _SOURCE)

    def start(self, request: str, **arguments: t.Any) -> None:
        """Send a request and do not wait for its answer."""
        self._request = request
        self.waiting += 1
        self._send(json.dumps({"do": request, **arguments}).encode() + b"\n")

    def finish(self, deadline: Deadline) -> t.Any:
        """The answer to the request sent last.

        Raises GuardianFailed with what it says, NotReachable when it is gone, WaitTimeout when it does not answer.
        """
        while b"\n" not in self._pending:
            ready, _w, _x = select.select([self._answers], [], [], deadline.left)
            if not ready:
                if deadline.passed:
                    raise WaitTimeout("the guardian of %s did not answer %s within %g s" % (self.name, self._request, deadline.seconds))
                continue
            chunk = os.read(self._answers.fileno(), 65536)
            if not chunk:
                self.waiting = 0
                raise self._gone()
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        if not line.startswith(b'{"ok"'):
            # What a login shell prints before the program begins.
            return self.finish(deadline)
        self.waiting -= 1
        answer = json.loads(line)
        if not answer["ok"]:
            raise GuardianFailed("%s: %s" % (self.name, answer["error"]))
        return answer["result"]

    def call(self, request: str, deadline: Deadline, **arguments: t.Any) -> t.Any:
        """Send a request and wait for its answer."""
        self.start(request, **arguments)
        return self.finish(deadline)

    @property
    def ended(self) -> bool:
        """Whether its process, or the shell that leads to it, has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the pipe. An armed guardian recovers now, one that is not ends."""
        for stream in (self._requests, self._answers, self._complaints):
            with contextlib.suppress(OSError):
                stream.close()

    def _send(self, data: bytes) -> None:
        try:
            self._requests.write(data)
            self._requests.flush()
        except OSError as error:
            raise self._gone() from error

    def _gone(self) -> NotReachable:
        return NotReachable(
            "the guardian of %s is gone: %s" % (self.name, self._last_words()),
            action="It is started with %s; check that this works without a password or a question" % self._started_with,
        )

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        ready, _w, _x = select.select([self._complaints], [], [], 0)
        text = os.read(self._complaints.fileno(), 4096).decode("utf-8", "replace") if ready else ""
        return " ".join(text.split()) or "it ended with %s" % self._process.returncode
