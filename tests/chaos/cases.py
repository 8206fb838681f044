# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, and when: every case is an operation, a moment in it, a fault, and whom it hits. No I/O."""

from __future__ import annotations

import dataclasses
import itertools
import random

# Moments by operation: the first words of the plan's steps, requests to guardians, methods of the console. See operation_driver.py.
_SEEN = ("look_for_proof", "knock", "look")
# The second time that every member is asked, right before the promotion.
_LAST_LOOK = "look_for_proof#4"
_CONSOLE = ("start_pause", "start_reload", "start_resume", "finish_resume")
_CRASHED = {
    "step": ("hold", "pause", "fence", "promote", "resume", "point", "settle"),
    "guardian": (*_SEEN, "end_of_wal", "hold", "prepare", "arm", "fence_down", _LAST_LOOK, "promote", "switch", "disarm"),
    "console": _CONSOLE,
}
_LIVING = {
    "step": ("hold", "pause", "end", "promote", "resume", "point", "settle"),
    "guardian": (*_SEEN, "hold", "prepare", "arm", "end", _LAST_LOOK, "promote", "switch", "disarm"),
    "console": _CONSOLE,
}
MOMENTS = {
    "switchover": {
        "step": ("prepare", "pause", "stop", "promote", "resume", "start", "point", "settle"),
        "guardian": ("hold", "prepare", "arm", "fence", "stop", "switch", "release", "promote", "start", "disarm"),
        "console": ("start_pause", "finish_pause", "start_reload", "start_resume", "finish_resume"),
    },
    "failover": _CRASHED,
    "failover-behind": {**_CRASHED, "step": (*_CRASHED["step"], "let")},
    "failover-stuck": {**_CRASHED, "guardian": (*_CRASHED["guardian"], "recover", "let_nobody_in")},
    "failover-gone": {
        "step": tuple(name for name in _CRASHED["step"] if name != "fence"),
        "guardian": tuple(name for name in _CRASHED["guardian"] if name not in ("fence_down", "end_of_wal")),
        "console": _CONSOLE,
    },
    "failover-frozen": _LIVING,
    "failover-isolated": _LIVING,
    "failover-reached": _LIVING,
    "failover-refused": {"guardian": _SEEN},
}
"""A failover is named with the way in which the primary is lost, see losses.py."""

ENGINES = ("switchover", "failover")
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
    "full": ("pooler", "wal-candidate"),
    "fail": ("command-old",),
    "hang": ("command-old",),
    "start": ("server-old",),
}
"""Victims by fault; what each does is in faults.py."""

_NO_SERVER = {
    "freeze": ("server-old",), "crash": ("server-old",), "cut": ("sql-old", "replication"), "partition": ("sql-old", "replication"),
    "fail": ("command-old",), "hang": ("command-old",),
}  # fmt: skip
_NO_WAY = {"cut": ("sql-old", "replication"), "partition": ("sql-old", "replication")}
_ONE_WAY = {"cut": ("sql-old",), "partition": ("sql-old",), "start": ("server-old",)}
# What is gone already cannot fail once more. Who is named in the option fenced is not to come back.
POINTLESS = {
    "failover": _NO_SERVER,
    "failover-behind": _NO_SERVER,
    "failover-stuck": {**_NO_SERVER, "full": ("pooler",)},
    "failover-gone": {
        **_NO_SERVER, "kill": ("guardian-old",), "freeze": ("server-old", "guardian-old"), "lose": ("host-old",), "start": ("server-old",),
        "cut": ("sql-old", "replication", "shell-old"), "partition": ("sql-old", "replication", "shell-old"),
    },
    "failover-frozen": {**_NO_WAY, "freeze": ("server-old",)},
    "failover-isolated": _NO_WAY,
    "failover-reached": _ONE_WAY,
    "failover-refused": {**_ONE_WAY, "full": ("pooler", "wal-candidate"), "fail": ("command-old",), "hang": ("command-old",)},
}  # fmt: skip
_NOT_YET = ("guardian-pooler", "shell-pooler", "host-pooler")
"""Who has no guardian before the poolers are looked at."""

DELAYS = range(0, 400, 7)
"""Of a fault that hits within a step, in milliseconds: more than any step takes on a machine that is not busy."""


@dataclasses.dataclass(frozen=True)
class Case:
    operation: str
    """A key of MOMENTS."""
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

    @property
    def engine(self) -> str:
        """``switchover`` or ``failover``."""
        return self.operation.partition("-")[0]

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
        """A step cannot fail after it has gone on, and nobody loses a guardian before it has one."""
        place, name, _when = self.moment.split(".")
        if place == "guardian" and name in ("look_for_proof", "look") and self.victim in _NOT_YET:
            return False
        return self.fault != "raise" or self.delay is None


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
    """``count`` different cases, the same for the same seed, by turns of each engine. All its faults and victims come equally often, as far as that goes."""
    shares = [_choose([one for one in operations if one.partition("-")[0] == engine], random.Random("%s %d" % (engine, seed)), count) for engine in ENGINES]
    return [case for turn in itertools.zip_longest(*shares) for case in turn if case is not None][:count]


def _choose(operations, generator: random.Random, count: int) -> list[Case]:
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
