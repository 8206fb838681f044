# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting, on a clock of our own."""

from __future__ import annotations

import time

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils import _wait
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import WaitTimeout
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline, wait_for


class Clock:
    def __init__(self):
        self.now = 100.0
        self.slept = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_wait, "time", clock)
    return clock


def test_a_deadline_comes_and_stays(clock):
    deadline = Deadline(5)
    assert (deadline.seconds, deadline.left, deadline.passed) == (5, 5, False)
    clock.now += 4.5
    assert (deadline.left, deadline.passed) == (0.5, False)
    clock.now += 0.5
    assert (deadline.left, deadline.passed) == (0, True)
    clock.now += 10
    assert (deadline.left, deadline.passed) == (0, True)


def test_a_deadline_within_another_is_never_later(clock):
    outer = Deadline(5)
    assert outer.within(2).left == 2
    assert outer.within(7).left == 5
    clock.now += 4
    assert outer.within(2).left == 1
    clock.now += 2
    assert outer.within(2).passed


def test_what_holds_at_once_is_returned_without_a_pause(clock):
    assert wait_for("it", lambda: 7, lambda seen: seen == 7, Deadline(0)) == 7
    assert clock.slept == []


def test_it_asks_again_until_it_holds(clock):
    answers = iter([1, 2, 3])
    assert wait_for("it", lambda: next(answers), lambda seen: seen == 3, Deadline(5), interval=0.5) == 3
    assert clock.slept == [0.5, 0.5]


def test_the_last_look_is_at_the_deadline_and_not_after_an_interval(clock):
    looked = []

    def observe():
        looked.append(clock.now)
        return len(looked)

    with pytest.raises(WaitTimeout) as caught:
        wait_for("streaming of db2", observe, lambda seen: False, Deadline(1), interval=0.4, action="Look at its log")
    assert looked == pytest.approx([100.0, 100.4, 100.8, 101.0])
    assert str(caught.value) == "streaming of db2 did not happen within 1 s; last seen: 4. Look at its log."
    assert caught.value.facts == {"last_seen": 4}


def test_an_error_of_the_observation_is_not_swallowed(clock):
    with pytest.raises(ZeroDivisionError):
        wait_for("it", lambda: 1 / 0, lambda seen: True, Deadline(1))


def test_the_clock_is_the_monotonic_one(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    deadline = Deadline(0.02)
    assert wait_for("it", lambda: deadline.passed, bool, Deadline(5), interval=0.005)
