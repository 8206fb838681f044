# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors: a sentence with what was found, what is expected and what to do."""

from __future__ import annotations

import inspect

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils import _errors
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import NotReachable, OperationError, Refused, SplitBrainRisk
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import DatabaseMissing, Rejecting


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("it is down",), "it is down."),
        (("it is down.",), "it is down."),
        (("it is down", "a primary"), "it is down. Expected: a primary."),
        (("it is down", None, "Start it"), "it is down. Start it."),
        (("it is down.", "a primary.", "Start it."), "it is down. Expected: a primary. Start it."),
        (("it is down", "", ""), "it is down."),
    ],
)
def test_the_text(arguments, text):
    assert str(OperationError(*arguments)) == text


def test_the_parts_stay_apart():
    error = Refused("found", expected="wanted", action="do", lag_bytes=5, cluster={"status": "down"})
    assert (error.message, error.expected, error.action) == ("found", "wanted", "do")
    assert error.facts == {"lag_bytes": 5, "cluster": {"status": "down"}}
    assert error.args == ("found",)


def test_every_error_is_caught_by_its_family():
    kinds = [kind for _name, kind in inspect.getmembers(_errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) > 8
    assert all(issubclass(kind, OperationError) and kind.__doc__ for kind in kinds)
    # Who handles a refusal handles the risk of two primaries; who cannot reach a server is not told that it lacks a database.
    assert issubclass(SplitBrainRisk, Refused)
    assert issubclass(Rejecting, NotReachable)
    assert not issubclass(DatabaseMissing, NotReachable)
