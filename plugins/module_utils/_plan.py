# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Plans: what would change, computed before anything does. Check mode, diff and the real run read the same plan."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass
class Step:
    """One change. ``what`` is a verb phrase for people; ``before`` and ``after`` feed the diff (text or JSON-safe data)."""

    what: str
    do: t.Callable[[], t.Any]
    subject: str = ""
    before: t.Any = None
    after: t.Any = None

    @property
    def has_diff(self) -> bool:
        return self.before is not None or self.after is not None


class Plan:
    """The steps of an operation in order, and which of them have been done."""

    def __init__(self, steps: t.Iterable[Step] = ()) -> None:
        self.steps = list(steps)
        self.performed: list[str] = []

    def add(self, what: str, do: t.Callable[[], t.Any], **kwargs: t.Any) -> None:
        self.steps.append(Step(what, do, **kwargs))

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    @property
    def names(self) -> list[str]:
        return [step.what for step in self.steps]

    def diff(self) -> list[dict[str, t.Any]]:
        """The differences in the form that Ansible prints under ``--diff``."""
        return [
            {
                "before_header": "%s (before)" % (step.subject or step.what),
                "after_header": "%s (after)" % (step.subject or step.what),
                "before": "" if step.before is None else step.before,
                "after": "" if step.after is None else step.after,
            }
            for step in self.steps
            if step.has_diff
        ]

    def execute(self) -> None:
        for step in self.steps:
            step.do()
            self.performed.append(step.what)
