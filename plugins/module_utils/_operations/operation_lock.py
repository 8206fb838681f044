# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The operation lock of a cluster on one host: one operation a cluster at a time."""

from __future__ import annotations

import dataclasses
import os
import platform
import pwd
import typing as t

from .._errors import InvalidInput, NotConfirmed, Refused
from .._host.lockfile import Lock, LockFile, LockNotUnderstood, boot_id, boot_seconds, wall_clock
from .._module import ArgumentSpec, Operation
from .._plan import Plan
from .._wait import Deadline, wait_for

TTL_MAX = 7 * 86400

OPERATION_LOCK = ArgumentSpec(
    {
        "cluster": {"type": "str", "required": True},
        "member": {"type": "str"},
        "state": {"type": "str", "choices": ["held", "released", "shown"], "default": "held"},
        "holder": {"type": "str"},
        "operation": {"type": "str"},
        "owner": {"type": "str"},
        "ttl": {"type": "int", "default": 600},
        "wait": {"type": "int", "default": 0},
        "force": {"type": "bool", "default": False},
        "directory": {"type": "path", "default": "/run/pgfleet"},
    },
    required_if=[("state", "held", ["holder", "operation"])],
)


@dataclasses.dataclass(frozen=True)
class LockState:
    """A lock file as it was found, and when."""

    lock: Lock | None
    boot: str
    now: float
    problem: LockNotUnderstood | None = None

    @property
    def left(self) -> float:
        """Seconds until the lock ends, 0 when it is free or has ended."""
        return self.lock.left(self.boot, self.now) if self.lock else 0.0

    @property
    def held_by(self) -> str | None:
        """The holder, None when the lock is free or has ended."""
        return self.lock.holder if self.lock and self.left > 0 else None


class OperationLock(Operation):
    """The operation of pg_operation_lock."""

    def __init__(self, params: t.Mapping[str, t.Any], context: t.Any) -> None:
        super().__init__(params, context)
        self._check_options()
        self.file = LockFile(params["directory"], params["cluster"], params.get("member") or "")
        self.state: str = params["state"]
        self.holder: str | None = params.get("holder")
        self.owner = " ".join((params.get("owner") or _user_and_host()).split())
        self.operation = " ".join((params.get("operation") or "").split())
        self.name = "operation lock of cluster %s%s" % (params["cluster"], " on %s" % params["member"] if params.get("member") else "")
        # Check mode says what is so now.
        self.deadline = Deadline(0 if context.check_mode or self.state != "held" else params["wait"])
        self.to_release: str | None = None
        """The holder whose lock is released, None for a file that is not understood."""

    def _check_options(self) -> None:
        params = self.params
        if not 1 <= params["ttl"] <= TTL_MAX:
            raise InvalidInput("ttl is %d" % params["ttl"], expected="1 to %d seconds" % TTL_MAX)
        if params["wait"] < 0:
            raise InvalidInput("wait is %d" % params["wait"], expected="0 or more seconds")
        if params["force"] and params["state"] != "released":
            raise InvalidInput("force is set and state is %s" % params["state"], expected="force only with state released", action="Release the lock first")
        if params["state"] == "released" and not (params["force"] or params.get("holder")):
            raise InvalidInput("state is released and holder is not set", expected="the holder whose lock is released, or force")

    # What is there

    def observe(self) -> LockState:
        def is_final(seen: LockState) -> bool:
            return seen.problem is not None or self._is_ours_to_take(seen) or self.deadline.passed

        # The later limit is never reached: whoever has waited long enough gets what is there.
        return wait_for("the %s becoming free" % self.name, self._look, is_final, Deadline(self.deadline.left + 60))

    def _look(self) -> LockState:
        boot, problem, lock = boot_id(), None, None
        try:
            lock = self.file.read()
        except LockNotUnderstood as error:
            problem = error
        return LockState(lock, boot, boot_seconds(), problem)

    def _is_ours_to_take(self, seen: LockState) -> bool:
        return seen.problem is None and seen.held_by in (None, self.holder)

    # What to do

    def plan(self, seen: LockState) -> Plan:
        plan = Plan()
        if seen.problem and not self.params["force"]:
            raise seen.problem
        if self.state == "held":
            if not self._is_ours_to_take(seen):
                raise self._held_by_another(seen)
            after = {"held": True, **self._who(self.holder, self.owner, self.operation), "ttl": self.params["ttl"]}
            if seen.held_by is None:
                plan.add("take the %s" % self.name, self._take, subject=self.name, before=self._shown(seen), after=after)
            elif self._is_due(seen):
                plan.add("renew the %s" % self.name, self._take, subject=self.name, before=self._shown(seen), after=after)
        elif self.state == "released":
            mine = seen.lock is not None and seen.lock.holder == self.holder
            if seen.held_by and not mine and not self.params["force"]:
                raise self._held_by_another(seen)
            if seen.problem or seen.held_by or mine:
                self.to_release = seen.lock.holder if seen.lock else None
                plan.add("release the %s" % self.name, self._release, subject=self.name, before=self._shown(seen), after={"held": False})
        return plan

    def _is_due(self, seen: LockState) -> bool:
        """Whether a lock of ours needs to be written anew. One with half of its time left does not: a second run changes nothing."""
        lock = t.cast(Lock, seen.lock)
        return seen.left < self.params["ttl"] / 2 or (lock.operation, lock.owner) != (self.operation, self.owner)

    def _take(self) -> None:
        while True:
            with self.file.guarded():
                seen = self._look()
                if seen.problem:
                    raise seen.problem
                if self._is_ours_to_take(seen):
                    self._write(seen)
                    return
            if self.deadline.passed:
                raise self._held_by_another(seen)
            self.observe()

    def _write(self, seen: LockState) -> None:
        ttl = self.params["ttl"]
        if seen.lock and seen.held_by:
            self.file.write(seen.lock.renewed(self.owner, self.operation, ttl, seen.now))
            return
        if seen.lock:
            self.context.warn(
                'The %s was not given back by its last holder: %s, for "%s". It has ended by itself. See what that operation has left.'
                % (self.name, seen.lock.owner, seen.lock.operation)
            )
        self.file.write(
            Lock(
                cluster=self.params["cluster"],
                member=self.params.get("member") or "",
                holder=t.cast(str, self.holder),
                owner=self.owner,
                operation=self.operation,
                ttl=ttl,
                boot=seen.boot,
                taken=seen.now,
                ends=seen.now + ttl,
            )
        )

    def _release(self) -> None:
        with self.file.guarded():
            seen = self._look()
            if seen.held_by and seen.held_by != self.to_release:
                raise self._held_by_another(seen)
            if seen.lock and seen.held_by is None:
                self.context.warn("The %s had ended before it was released: ttl was too short for what was done." % self.name)
            self.file.remove()

    def confirm(self, seen: LockState) -> None:
        # Another may take a lock in the moment after its release, so planning again is no proof.
        if self.state == "held" and seen.held_by != self.holder:
            raise NotConfirmed("the %s is not ours after it was taken" % self.name, action="Set a ttl longer than the operation takes")
        if self.state == "released" and (seen.problem or (seen.held_by and seen.held_by == self.to_release)):
            raise NotConfirmed("the %s is still there after it was released" % self.name)

    # What is said

    def report(self, seen: LockState) -> dict[str, t.Any]:
        return {"cluster": self.params["cluster"], "member": self.params.get("member"), "held": seen.held_by is not None, "lock": self._described(seen)}

    def _described(self, seen: LockState) -> dict[str, t.Any] | None:
        lock = seen.lock
        if lock is None or seen.held_by is None:
            return None
        times = {"since": wall_clock(lock.taken), "until": wall_clock(lock.ends), "seconds_left": round(seen.left), "ttl": lock.ttl}
        return {**self._who(lock.holder, lock.owner, lock.operation), **times}

    def _shown(self, seen: LockState) -> dict[str, t.Any]:
        lock = seen.lock
        if lock is None or seen.held_by is None:
            return {"held": False}
        return {"held": True, **self._who(lock.holder, lock.owner, lock.operation), "ttl": lock.ttl}

    @staticmethod
    def _who(holder: str | None, owner: str, operation: str) -> dict[str, t.Any]:
        return {"holder": holder, "owner": owner, "operation": operation}

    def _held_by_another(self, seen: LockState) -> Refused:
        lock = t.cast(Lock, seen.lock)
        return Refused(
            'the %s is held by %s for "%s" since %s, until %s (%d s) if it is not renewed'
            % (self.name, lock.owner, lock.operation, wall_clock(lock.taken), wall_clock(lock.ends), round(seen.left)),
            expected="no other operation on the cluster",
            action="Wait for its end. If you know that nothing of it runs any more, release the lock with state released and force",
            lock=self._described(seen),
        )


def _user_and_host() -> str:
    try:
        user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return "%s@%s" % (user, platform.node())
