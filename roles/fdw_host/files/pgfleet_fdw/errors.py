# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors and messages on their way to whoever runs the query."""

from __future__ import annotations

import logging
import sys
import typing as t

Sink = t.Callable[[str, str, t.Optional[str], t.Optional[str]], None]
LEVELS = {logging.DEBUG: "debug", logging.INFO: "notice", logging.WARNING: "warning"}

_sinks: list[Sink] = []


class WrapperError(Exception):
    """Ends the query with a message of its own instead of a traceback. Both hosts show ``hint`` and ``detail`` as PostgreSQL does."""

    # By this Multicorn knows an exception that it may show as it is; it reads the four attributes below.
    _is_multicorn_exception = True
    code = 3

    def __init__(self, message: str, hint: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.detail = message, hint, detail


def send_messages_to(sink: Sink) -> None:
    """Where ``log`` sends messages: a function of level (debug, notice, warning), message, hint and detail. For hosts."""
    _sinks[:] = [sink]


def log(message: str, level: int = logging.INFO, hint: str | None = None, detail: str | None = None) -> None:
    """Tell the client something that does not end its query. ``level`` is DEBUG, INFO or WARNING of ``logging``; for errors raise WrapperError."""
    if level not in LEVELS:
        raise ValueError("log takes logging.DEBUG, INFO or WARNING; raise WrapperError to end the query")
    if _sinks:
        _sinks[0](LEVELS[level], message, hint, detail)
        return
    utils = sys.modules.get("multicorn.utils")
    # With Python 3.14 the second message of multicorn2 3.2 ends the server process.
    if utils is not None and sys.version_info < (3, 14):
        utils.log_to_postgres(message, level, hint=hint, detail=detail)
        return
    # The server's log.
    sys.stderr.write("%s: %s\n" % (LEVELS[level].upper(), message))
