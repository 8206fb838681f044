# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import cases
import pytest
from cases import FAULTS, MOMENTS, Case, choose
from losses import LOSSES


def test_a_seed_names_its_cases():
    first, again, other = choose(MOMENTS, 7, 200), choose(MOMENTS, 7, 200), choose(MOMENTS, 8, 200)
    assert first == again != other
    assert len(set(first)) == 200
    assert choose(MOMENTS, 7, 50) == first[:50]


@pytest.mark.parametrize("seed", range(5))
def test_an_id_is_a_case_whatever_the_seed(seed):
    for case in choose(MOMENTS, seed, 500):
        assert Case.parse(case.id) == case
        assert not set(case.id) & set(" '\"$\\")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("operation", MOMENTS)
def test_every_fault_and_victim_occurs_before_any_of_them_comes_twice(seed, operation):
    pairs = {(fault, victim) for fault in FAULTS for victim in cases.victims(operation, fault)}
    chosen = choose([operation], seed, len(pairs))
    assert {(case.fault, case.victim) for case in chosen} == pairs


def test_all_moments_times_all_faults():
    chosen = choose(MOMENTS, 1, 10**6)
    at_once = [case for case in chosen if case.delay is None]
    wanted = {
        Case(operation, moment, fault, victim)
        for operation in MOMENTS for moment in cases.moments(operation) for fault in FAULTS for victim in cases.victims(operation, fault)
    }  # fmt: skip
    assert len(at_once) == len(set(at_once)) and set(at_once) == {case for case in wanted if case.makes_sense}
    assert any(case.delay for case in chosen)


@pytest.mark.parametrize(
    "text",
    [
        "", "switchover", "switchover:step.stop.before:freeze", "switchover:step.stop.sent:freeze:pooler", "switchover:step.stop.before:freeze:shell-old",
        "switchover:step.stop.before:full:wal-old",
        "switchover:step.stop.before:melt:pooler", "dance:step.stop.before:freeze:pooler", "switchover:step.stop.before+:freeze:pooler",
        "switchover:step.stop.before+-5:freeze:pooler", "switchover:step.stop.before+5:raise:controller",
        "failover:step.fence.before+7:raise:controller", "failover:step.fence.before:crash:server-old", "failover-frozen:step.fence.before:kill:controller",
        "failover:guardian.look_for_proof.sent:kill:guardian-pooler", "failover:guardian.look_for_proof#2.sent:kill:controller",
        "failover-refused:step.hold.before:kill:controller",
    ],
)  # fmt: skip
def test_what_is_no_case(text):
    with pytest.raises(ValueError, match="is no case"):
        Case.parse(text)


def test_engines_have_equal_shares():
    for operations in (MOMENTS, ["switchover", "failover"]):
        chosen = choose(operations, 3, 100)
        assert [case.engine for case in chosen] == ["switchover", "failover"] * 50
    assert {case.operation for case in choose(MOMENTS, 3, 200) if case.engine == "failover"} == {name for name in MOMENTS if name != "switchover"}


def test_every_operation_has_its_loss():
    assert set(LOSSES) == {name for name in MOMENTS if name != "switchover"}
