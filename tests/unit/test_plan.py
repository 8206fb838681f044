# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: what they say and what they do."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._plan import Plan, Step


def test_an_empty_plan_changes_nothing():
    plan = Plan()
    plan.execute()
    assert (plan.changed, plan.names, plan.diff(), plan.performed) == (False, [], [], [])


def test_steps_are_done_in_order():
    done = []
    plan = Plan([Step("first", lambda: done.append(1))])
    plan.add("second", lambda: done.append(2))
    assert plan.changed and plan.names == ["first", "second"]
    assert (done, plan.performed) == ([], [])
    plan.execute()
    assert (done, plan.performed) == ([1, 2], ["first", "second"])


def test_a_step_that_fails_ends_the_plan_and_does_not_count_as_performed():
    done = []
    plan = Plan([Step("first", lambda: done.append(1)), Step("bad", lambda: 1 / 0), Step("third", lambda: done.append(3))])
    with pytest.raises(ZeroDivisionError):
        plan.execute()
    assert (done, plan.performed) == ([1], ["first"])


def test_the_diff_has_only_steps_that_show_something():
    plan = Plan()
    plan.add("reload", lambda: None)
    plan.add("write", lambda: None, subject="pg_hba.conf", before="a\n", after="b\n")
    plan.add("create slot", lambda: None, after={"name": "db2"})
    plan.add("drop slot", lambda: None, before="db3")
    assert plan.diff() == [
        {"before_header": "pg_hba.conf (before)", "after_header": "pg_hba.conf (after)", "before": "a\n", "after": "b\n"},
        {"before_header": "create slot (before)", "after_header": "create slot (after)", "before": "", "after": {"name": "db2"}},
        {"before_header": "drop slot (before)", "after_header": "drop slot (after)", "before": "db3", "after": ""},
    ]


@pytest.mark.parametrize(("before", "after", "shown"), [(None, None, False), ("", None, True), (None, 0, True), (False, None, True)])
def test_an_empty_value_is_a_value(before, after, shown):
    assert Step("x", lambda: None, before=before, after=after).has_diff is shown


def test_two_plans_share_no_steps():
    one, other = Plan(), Plan()
    one.add("x", lambda: None)
    one.execute()
    assert (other.steps, other.performed) == ([], [])
