# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A plan whose steps are one transaction."""

from __future__ import annotations

import typing as t

from .._errors import OperationError, Refused
from .._plan import Plan
from .connection import Session, sql

# Deadlock, and a lock that did not come in time.
_BUSY = ("40P01", "55P03")


class TransactionPlan(Plan):
    """All steps or none. ``prepare`` is called before the first step, ``prove`` behind the last, and what it raises takes everything back."""

    def __init__(self, session: Session, lock_seconds: int | None = None) -> None:
        super().__init__()
        self.session = session
        self.lock_seconds = lock_seconds
        self.prepare: t.Callable[[], None] | None = None
        self.prove: t.Callable[[], None] | None = None

    def execute(self) -> None:
        try:
            with self.session.transaction():
                if self.lock_seconds is not None:
                    self.session.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(self.lock_seconds * 1000)))
                if self.prepare is not None:
                    self.prepare()
                super().execute()
                if self.prove is not None:
                    self.prove()
        except OperationError as error:
            self.performed.clear()
            if error.facts.get("sqlstate") in _BUSY:
                raise Refused(
                    "somebody else was at work on the same objects, most likely a snapshot of the collector: %s" % error.message,
                    action="Everything is as it was before. Run this again",
                ) from error
            raise
