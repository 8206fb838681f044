# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, and when: every case is an operation, a moment in it, a fault, and whom it hits. No I/O."""

from __future__ import annotations

import dataclasses
import random

# Moments by operation: the first words of the plan's steps, requests to guardians, methods of the console. See operation_driver.py.
MOMENTS = {
    "switchover": {
        "step": ("prepare", "pause", "stop", "promote", "resume", "start", "point", "settle"),
        "guardian": ("hold", "prepare", "arm", "fence", "stop", "switch", "release", "promote", "start", "disarm"),
        "console": ("start_pause", "finish_pause", "reload", "resume"),
    },
    "failover": {
        "step": ("hold", "pause", "fence", "promote", "resume", "point", "settle"),
        "guardian": ("hold", "prepare", "arm", "fence_down", "promote", "switch", "disarm"),
        "console": ("start_pause", "reload", "resume"),
    },
}
WHEN = {"step": ("before", "after"), "guardian": ("before", "sent", "after"), "console": ("before", "after")}

FAULTS = {
    "kill": ("controller", "guardian-old", "guardian-candidate", "guardian-pooler"),
    "freeze": ("controller", "guardian-old", "guardian-candidate", "guardian-pooler", "server-old", "server-candidate", "server-other", "pooler"),
    "raise": ("controller",),
    "crash": ("server-old", "server-candidate", "server-other"),
    "lose": ("host-old", "host-candidate", "host-pooler"),
    "restart": ("pooler",),
    "cut": ("shell-old", "shell-candidate", "shell-pooler", "sql-old", "sql-candidate", "console", "replication"),
    "partition": ("shell-old", "shell-candidate", "shell-pooler", "sql-old", "sql-candidate", "console", "replication"),
    "full": ("pooler",),
    "fail": ("command-old",),
    "hang": ("command-old",),
    "start": ("server-old",),
}
"""Victims by fault; what each does is in faults.py."""

# The primary that a failover replaces has crashed before: there is nothing left to crash, nor anything that starts it by pg_ctl.
POINTLESS = {
    "failover": {
        "freeze": ("server-old",), "crash": ("server-old",), "cut": ("sql-old", "replication"), "partition": ("sql-old", "replication"),
        "fail": ("command-old",), "hang": ("command-old",),
    },
}  # fmt: skip

DELAYS = range(0, 400, 7)
"""Of a fault that hits within a step, in milliseconds: more than any step takes on a machine that is not busy."""


@dataclasses.dataclass(frozen=True)
class Case:
    operation: str
    moment: str
    """As operation_driver.py takes it."""
    fault: str
    victim: str
    delay: int | None = None
    """Milliseconds after the moment, while the operation goes on; None: it waits for the fault."""

    @property
    def id(self) -> str:
        moment = self.moment if self.delay is None else "%s+%d" % (self.moment, self.delay)
        return "%s:%s:%s:%s" % (self.operation, moment, self.fault, self.victim)

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case with this id. Raises ValueError."""
        parts = text.split(":")
        if len(parts) != 4:
            raise ValueError("%r is no case: OPERATION:MOMENT[+MILLISECONDS]:FAULT:VICTIM" % text)
        operation, moment, fault, victim = parts
        moment, plus, delay = moment.partition("+")
        if operation not in MOMENTS or moment not in moments(operation) or victim not in victims(operation, fault) or (plus and not delay.isdigit()):
            raise ValueError("%r is no case: there is no such operation, moment, fault or victim" % text)
        case = cls(operation, moment, fault, victim, int(delay) if plus else None)
        if not case.makes_sense:
            raise ValueError("%r is no case: nothing can fail there" % text)
        return case

    @property
    def makes_sense(self) -> bool:
        """A step cannot fail after it has gone on, and the steps of a failover not between two of them."""
        return self.fault != "raise" or (self.delay is None and not (self.operation == "failover" and self.moment.startswith("step.")))


def moments(operation: str) -> list[str]:
    return [
        "%s.%s.%s" % (place, name, when)
        for place, names in MOMENTS[operation].items()
        for name in names
        for when in WHEN[place]
    ]  # fmt: skip


def victims(operation: str, fault: str) -> list[str]:
    return [victim for victim in FAULTS.get(fault, ()) if victim not in POINTLESS.get(operation, {}).get(fault, ())]


def choose(operations, seed: int, count: int) -> list[Case]:
    """``count`` different cases, the same for the same seed. All faults and victims come equally often, as far as that goes."""
    generator = random.Random(seed)
    piles = []
    for operation in operations:
        for fault in FAULTS:
            for victim in victims(operation, fault):
                pile = [Case(operation, moment, fault, victim) for moment in moments(operation)]
                for moment in moments(operation):
                    if moment.startswith("step.") and moment.endswith(".before"):
                        pile += [Case(operation, moment, fault, victim, delay) for delay in generator.sample(DELAYS, 2)]
                pile = [case for case in pile if case.makes_sense]
                generator.shuffle(pile)
                piles.append(pile)
    chosen: list[Case] = []
    while len(chosen) < count and any(piles):
        generator.shuffle(piles)
        chosen += [pile.pop() for pile in piles if pile]
    return chosen[:count]
