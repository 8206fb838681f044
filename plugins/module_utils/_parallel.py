# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Asking many servers at once, with one limit for all of them."""

from __future__ import annotations

import collections
import threading
import typing as t

from ._errors import OperationError, WaitTimeout
from ._wait import Deadline

T = t.TypeVar("T")
R = t.TypeVar("R")


def ask_all(items: t.Sequence[T], ask: t.Callable[[T], R], deadline: Deadline, at_most: int = 0) -> list[t.Union[R, OperationError]]:
    """Call ``ask`` for every item, each in a thread of its own or ``at_most`` so many at a time; answers come in the order of the items.

    An OperationError is an answer. An item that has not answered when the deadline passes is answered with WaitTimeout
    and left alone: its thread is a daemon and does not keep the process alive, so two hung servers cost one limit.
    """
    answers: dict[int, t.Any] = {}
    waiting = collections.deque(enumerate(items))

    def work() -> None:
        while not deadline.passed:
            try:
                position, item = waiting.popleft()
            except IndexError:
                return
            try:
                answers[position] = ask(item)
            except BaseException as error:  # a fault of ours must not vanish with its thread
                answers[position] = error

    threads = [threading.Thread(target=work, daemon=True) for _number in range(min(at_most or len(items), len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline.left)
    final: list[t.Union[R, OperationError]] = []
    for position, item in enumerate(items):
        answer = answers.get(position, WaitTimeout("%s did not answer within %g s" % (item, deadline.seconds)))
        if isinstance(answer, BaseException) and not isinstance(answer, OperationError):
            raise answer
        final.append(answer)
    return final
