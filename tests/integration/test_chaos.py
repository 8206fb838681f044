# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A few of the cases of tests/chaos, each kind of fault and each way of losing a primary at least once. All of them: make chaos."""

from __future__ import annotations

import itertools

import pytest
from cases import FAULTS, MOMENTS, Case
from chaos_site import ChaosSite
from play import play
from switchover_site import Sites

CASES = [
    "switchover:guardian.switch.before:kill:guardian-pooler",
    "switchover:step.promote.before:freeze:controller",
    "switchover:guardian.release.sent:raise:controller",
    "switchover:step.pause.after:lose:host-old",
    "switchover:guardian.release.before:cut:shell-old",
    "switchover:guardian.stop.before:partition:replication",
    "switchover:guardian.switch.before:full:pooler",
    "switchover:step.promote.before:fail:command-old",
    "switchover:guardian.start.before:hang:command-old",
    "switchover:guardian.promote.sent:crash:server-candidate",
    "switchover:console.start_reload.before:restart:pooler",
    "switchover:step.stop.after:kill:controller",
    "switchover:step.promote.before:start:server-old",
    "failover:guardian.look_for_proof#4.after:start:server-old",
    "failover-behind:step.let.before:crash:server-other",
    "failover-stuck:guardian.let_nobody_in.before:kill:controller",
    "failover-gone:guardian.promote.sent:raise:controller",
    "failover-frozen:step.end.before:start:server-old",
    "failover-isolated:guardian.end.sent:kill:controller",
    "failover-reached:step.promote.before:raise:controller",
    "failover-refused:guardian.knock.after:raise:controller",
]
"""Chosen for their moments; what is chosen by chance is for a machine with more time."""

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def sites():
    with Sites(kind=ChaosSite) as sites:
        yield sites


def test_every_fault_and_operation_occurs():
    assert {Case.parse(case).fault for case in CASES} == set(FAULTS)
    assert {Case.parse(case).operation for case in CASES} == set(MOMENTS)


@pytest.mark.parametrize("case", CASES)
def test_no_rule_is_broken(sites, case):
    played = None
    try:
        played = play(sites.sound(), Case.parse(case), "pytest-%d" % next(NUMBERS))
        assert not played.violations, played.story()
    finally:
        if played is None or played.violations:
            # The next case is to have a site of its own.
            sites.__exit__()
