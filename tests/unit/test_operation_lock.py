# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of pg_operation_lock, without a clock or a file."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput, NotConfirmed, Refused
from ansible_collections.pgfleet.ops.plugins.module_utils._host.lockfile import Lock, LockFile, LockNotUnderstood
from ansible_collections.pgfleet.ops.plugins.module_utils._module import Context
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.operation_lock import LockState, OperationLock

BOOT, NOW = "this start", 1000.0
LOCK = Lock("shop", "db1", "mine", "ops@controller", "clone of db3", 600, BOOT, NOW - 100, NOW + 500)


def operation(**options):
    given = {"cluster": "shop", "member": "db1", "state": "held", "holder": "mine", "operation": "clone of db3", "owner": "ops@controller", "ttl": 600,
             "wait": 0, "force": False, "directory": "/nowhere"}  # fmt: skip
    return OperationLock({**given, **options}, Context(True, print))


def seen(lock=LOCK, **changes):
    return LockState(**{"lock": lock, "boot": BOOT, "now": NOW, **changes})


def test_a_lock_ends_by_its_time_and_by_a_restart():
    assert LOCK.left(BOOT, NOW) == 500 and LOCK.left(BOOT, NOW + 499.9) > 0
    assert LOCK.left(BOOT, NOW + 500) == 0 and LOCK.left("another start", NOW) == 0
    assert seen(now=NOW + 500).held_by is None and seen(boot="another start").held_by is None and seen(None).held_by is None
    assert seen().held_by == "mine"


def test_what_is_free_or_has_ended_is_taken():
    for state in (seen(None), seen(now=NOW + 500), seen(boot="another start")):
        for holder in ("mine", "other"):
            assert operation(holder=holder).plan(state).names == ["take the operation lock of cluster shop on db1"]


@pytest.mark.parametrize(
    ("now", "options", "names"),
    [
        (NOW, {}, []),
        (NOW + 200, {}, []),
        (NOW + 201, {}, ["renew the operation lock of cluster shop on db1"]),
        (NOW, {"ttl": 1001}, ["renew the operation lock of cluster shop on db1"]),
        (NOW, {"ttl": 1}, []),
        (NOW, {"operation": "next"}, ["renew the operation lock of cluster shop on db1"]),
        (NOW, {"operation": " clone\nof  db3 "}, []),
    ],
)
def test_the_holder_renews_when_half_of_the_time_is_over(now, options, names):
    assert operation(**options).plan(seen(now=now)).names == names


def test_another_is_refused_until_the_very_end():
    for state in ("held", "released"):
        with pytest.raises(Refused, match='held by ops@controller for "clone of db3"') as error:
            operation(holder="other", state=state).plan(seen(now=NOW + 499.9))
        assert error.value.facts["lock"]["holder"] == "mine"


def test_released_is_what_is_ours_also_when_it_has_ended():
    assert operation(state="released").plan(seen(None)).names == []
    assert operation(state="released").plan(seen()).names == ["release the operation lock of cluster shop on db1"]
    assert operation(state="released").plan(seen(now=NOW + 900)).names == ["release the operation lock of cluster shop on db1"]
    assert operation(state="released", holder="other").plan(seen(now=NOW + 900)).names == []
    assert operation(state="released", holder=None, force=True).plan(seen()).names == ["release the operation lock of cluster shop on db1"]
    assert operation(state="released", holder=None, force=True).plan(seen(None)).names == []


def test_what_is_not_understood_never_counts_as_free():
    problem = LockNotUnderstood("no lock")
    for state in ("held", "released", "shown"):
        with pytest.raises(LockNotUnderstood):
            operation(state=state).plan(seen(None, problem=problem))
    assert operation(state="released", force=True).plan(seen(None, problem=problem)).changed


def test_afterwards_the_lock_must_be_ours():
    taken = operation()
    taken.confirm(seen())
    for state in (seen(None), seen(now=NOW + 500), seen(Lock(**{**LOCK.__dict__, "holder": "other"}))):
        with pytest.raises(NotConfirmed):
            taken.confirm(state)


def test_after_a_release_the_lock_may_be_anothers_but_not_the_same():
    released = operation(state="released")
    assert released.plan(seen()).changed
    released.confirm(seen(None))
    released.confirm(seen(Lock(**{**LOCK.__dict__, "holder": "other"})))
    with pytest.raises(NotConfirmed):
        released.confirm(seen())


def test_the_plan_says_nothing_of_times():
    """So that check mode and the real run show the same."""
    (difference,) = operation(holder="other").plan(seen(now=NOW + 500)).diff()
    assert difference["before"] == {"held": False}
    assert difference["after"] == {"held": True, "holder": "other", "owner": "ops@controller", "operation": "clone of db3", "ttl": 600}


@pytest.mark.parametrize(
    "options",
    [{"ttl": 0}, {"ttl": 604801}, {"wait": -1}, {"force": True}, {"state": "released", "holder": None}, {"cluster": "x" * 200}, {"member": "/" * 70}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(InvalidInput):
        operation(**options)


def test_names_cannot_leave_the_directory_or_meet():
    names = [("shop", "db1"), ("shop@db1", ""), ("shop", ""), ("../shop", ""), ("shop/db1", ""), ("shop%40db1", ""), ("shop", "@db1")]
    paths = [LockFile("/locks", *name).path for name in names]
    assert len(set(paths)) == len(paths) and all(path.startswith("/locks/") and path.count("/") == 2 for path in paths)
