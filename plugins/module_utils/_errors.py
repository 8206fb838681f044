# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The errors of an operation: what was found, what was expected, what to do next.

Nothing in the collection but ``_module.py`` turns one into a failed task.
"""

from __future__ import annotations

import typing as t


class OperationError(Exception):
    """An operation that was refused or that did not succeed.

    ``message`` is a whole sentence that names what was found. ``expected`` and ``action`` complete it: what the
    operation needs and what the user can do. ``facts`` are JSON-safe values that end up in the task's result.
    """

    def __init__(self, message: str, expected: str | None = None, action: str | None = None, **facts: t.Any) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.action = action
        self.facts = facts

    def __str__(self) -> str:
        parts = [self.message.rstrip(".") + "."]
        if self.expected:
            parts.append("Expected: %s." % self.expected.rstrip("."))
        if self.action:
            parts.append(self.action.rstrip(".") + ".")
        return " ".join(parts)


class InvalidInput(OperationError):
    """An option is wrong; nothing was asked of any server."""


class NotReachable(OperationError):
    """A server or a pooler does not answer. This is no proof that it is down."""


class AuthenticationFailed(OperationError):
    """A server or a pooler answers and does not let us in."""


class QueryFailed(OperationError):
    """A server refused a statement."""


class Refused(OperationError):
    """The state found does not allow the operation; nothing was changed."""


class SplitBrainRisk(Refused):
    """More than one node accepts writes, or going on could make it so."""


class CommandFailed(OperationError):
    """A program on the host ended with an error."""


class WaitTimeout(OperationError):
    """Something did not happen in time; ``facts`` hold what was seen last."""


class RolledBack(OperationError):
    """An operation did not succeed and everything is as it was before."""


class NotConfirmed(OperationError):
    """All steps were done, and the state afterwards is not the wanted one."""


class Unhealthy(OperationError):
    """What was observed is worse than the task accepts; ``facts`` hold all of it."""
