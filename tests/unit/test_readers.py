# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that stay open between two looks: taken again while they answer, and never believed when they have ended."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import NotReachable, WaitTimeout
from ansible_collections.pgfleet.ops.plugins.module_utils._sql import readers
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import Target
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline

TARGET = Target("db1", 5432, "postgres", "postgres")


class Session:
    def __init__(self, target):
        self.target = target
        self.closed = False
        self.fault = None

    def close(self):
        self.closed = True


@pytest.fixture
def opened(monkeypatch):
    """The sessions that were opened, in order; an error in ``refuses`` is raised instead."""
    sessions = []

    def connect(target, timeout, read_only):
        assert read_only and timeout > 0
        if refuses:
            raise refuses[0]
        sessions.append(Session(target))
        return sessions[-1]

    refuses = []
    monkeypatch.setattr(readers, "connect", connect)
    return sessions, refuses


def ask(session):
    if session.fault:
        raise session.fault
    return session


def test_a_connection_that_answers_is_taken_again(opened):
    sessions, _refuses = opened
    held = readers.Readers()
    first = held.ask(TARGET, Deadline(5), ask)
    assert held.ask(TARGET, Deadline(5), ask) is first and len(sessions) == 1
    # Another server has its own.
    assert held.ask(TARGET.to(port=5433), Deadline(5), ask) is not first and len(sessions) == 2
    held.close()
    assert all(session.closed for session in sessions)


def test_the_end_of_an_old_connection_is_no_answer(opened):
    sessions, refuses = opened
    held = readers.Readers()
    held.ask(TARGET, Deadline(5), ask).fault = NotReachable("the connection was lost")
    second = held.ask(TARGET, Deadline(5), ask)
    assert second is sessions[1] and sessions[0].closed
    second.fault = NotReachable("the connection was lost")
    refuses.append(NotReachable("nobody listens", refused=True))
    with pytest.raises(NotReachable) as caught:
        held.ask(TARGET, Deadline(5), ask)
    assert caught.value is refuses[0] and second.closed


def test_a_server_that_hangs_costs_one_time_limit(opened):
    sessions, _refuses = opened
    held = readers.Readers()
    held.ask(TARGET, Deadline(5), ask).fault = WaitTimeout("it hangs")
    with pytest.raises(WaitTimeout):
        held.ask(TARGET, Deadline(5), ask)
    assert len(sessions) == 1 and sessions[0].closed
    # What it still answers belongs to nobody.
    assert held.ask(TARGET, Deadline(5), ask) is sessions[1]


def test_two_who_ask_at_once_do_not_share_one(opened):
    sessions, _refuses = opened
    held = readers.Readers()
    held.ask(TARGET, Deadline(5), ask)
    inner = []
    outer = held.ask(TARGET, Deadline(5), lambda session: inner.append(held.ask(TARGET, Deadline(5), ask)) or session)
    assert outer is sessions[0] and inner == [sessions[1]]
    # One of them is kept.
    assert [session.closed for session in sessions] == [True, False]
    held.close()
    assert all(session.closed for session in sessions)
