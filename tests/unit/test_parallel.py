# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many servers at once: one limit for all, answers in order, no fault lost with its thread."""

from __future__ import annotations

import threading
import time

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import NotReachable, WaitTimeout
from ansible_collections.pgfleet.ops.plugins.module_utils._parallel import ask_all
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline


def test_answers_come_in_the_order_of_the_items():
    turn = {"a": threading.Event(), "b": threading.Event(), "c": threading.Event()}
    turn["c"].set()
    before = {"c": "b", "b": "a"}

    def ask(item):
        turn[item].wait(5)
        if item in before:
            turn[before[item]].set()
        return item.upper()

    # Each waits for its successor: asked one after the other, the first would never answer.
    began = time.monotonic()
    assert ask_all(["a", "b", "c"], ask, Deadline(4)) == ["A", "B", "C"]
    assert time.monotonic() - began < 3


def test_nobody_is_asked_when_there_is_nobody():
    assert ask_all([], lambda item: 1 / 0, Deadline(1)) == []


def test_an_operation_error_is_an_answer():
    error = NotReachable("db2 does not answer")

    def ask(item):
        if item == 2:
            raise error
        return item

    assert ask_all([1, 2, 3], ask, Deadline(5)) == [1, error, 3]


def test_none_is_an_answer():
    assert ask_all([1], lambda item: None, Deadline(5)) == [None]


def test_two_that_hang_cost_one_limit_and_keep_nothing_alive():
    release = threading.Event()

    def ask(item):
        if item.startswith("hung"):
            release.wait(30)
        return item

    began = time.monotonic()
    first, second, third = ask_all(["hung1", "db2", "hung3"], ask, Deadline(0.2))
    took = time.monotonic() - began
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    release.set()
    assert 0.15 < took < 1.5
    assert second == "db2"
    assert isinstance(first, WaitTimeout) and isinstance(third, WaitTimeout)
    assert str(first) == "hung1 did not answer within 0.2 s." and str(third).startswith("hung3 ")
    assert left == []


def test_a_late_answer_does_not_replace_the_timeout():
    release = threading.Event()
    (answer,) = ask_all(["db1"], lambda item: release.wait(30), Deadline(0.05))
    release.set()
    time.sleep(0.02)
    assert isinstance(answer, WaitTimeout)


@pytest.mark.parametrize("fault", [KeyError("slot"), SystemExit(1)])
def test_a_fault_of_ours_is_raised_here(fault):
    def ask(item):
        if item == 2:
            raise fault
        return item

    with pytest.raises(type(fault)) as caught:
        ask_all([1, 2, 3], ask, Deadline(5))
    assert caught.value is fault


def test_no_more_than_so_many_are_asked_at_a_time():
    now, most, lock = [], [0], threading.Lock()

    def ask(item):
        with lock:
            now.append(item)
            most[0] = max(most[0], len(now))
        time.sleep(0.02)
        with lock:
            now.remove(item)
        return -item

    assert ask_all(list(range(20)), ask, Deadline(10), at_most=4) == [-item for item in range(20)]
    assert most[0] == 4


def test_who_is_never_reached_has_not_answered():
    release = threading.Event()
    answers = ask_all(["hung", "next"], lambda item: release.wait(5), Deadline(0.2), at_most=1)
    release.set()
    assert [type(answer) for answer in answers] == [WaitTimeout, WaitTimeout]
