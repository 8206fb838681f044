# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Read-only connections that stay open from one look at a cluster to the next."""

from __future__ import annotations

import contextlib
import typing as t

from .._errors import OperationError, WaitTimeout
from .._wait import Deadline
from .connection import Session, Target, connect

T = t.TypeVar("T")


class Readers:
    """At most one idle connection for each target.

    Nobody waits for a login of a server that was asked before, and that a connection has ended is seen at once. What says that a server is gone is
    always a new connection, never the end of an old one.
    """

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], Session] = {}

    def ask(self, target: Target, deadline: Deadline, ask: t.Callable[[Session], T]) -> T:
        """What ``ask`` makes of an open connection, or of a new one. Raises what ``ask`` and ``connect`` raise."""
        # Taken out, so that no two threads share it; it comes back only when it has answered.
        session = self._idle.pop((target.host, target.port), None)
        if session is not None:
            try:
                return self._answer(session, ask)
            except WaitTimeout:
                raise
            except OperationError:
                if deadline.passed:
                    raise
        return self._answer(connect(target, timeout=deadline.left, read_only=True), ask)

    def _answer(self, session: Session, ask: t.Callable[[Session], T]) -> T:
        try:
            answer = ask(session)
        except BaseException:
            with contextlib.suppress(OperationError):
                session.close()
            raise
        # Where another thread has brought one back meanwhile, that one is kept.
        if self._idle.setdefault((session.target.host, session.target.port), session) is not session:
            session.close()
        return answer

    def close(self) -> None:
        while self._idle:
            self._idle.popitem()[1].close()
