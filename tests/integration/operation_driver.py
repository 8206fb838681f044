# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the engine of an operation as user postgres and meets with an accident at a named moment.

Usage: operation_driver.py OPERATION OPTIONS.json ACCIDENT [MOMENT]

OPERATION is a key of OPERATIONS. ACCIDENT is ``none``, ``kill`` (SIGKILL of this process), ``hang`` (this process stops working and goes on 60 s
later), ``stop`` (until it gets SIGCONT), ``error`` (the step fails) or ``ask``: it prints a line AT and reads one, which is ``go`` or ``error``.
``wait`` is none, and has no moment: it opens all connections, prints a line READY and begins when it reads a line.

MOMENT is PLACE.NAME.WHEN, and only the first such moment counts, or the Nth where NAME ends with #N:

* ``step.pause.before``, ``.after``: a step of the plan by its first word
* ``guardian.release.before``, ``.sent``, ``.after``: a request to a guardian; ``sent`` is when it is under way, ``after`` when it was answered
* ``console.start_reload.before``, ``.after``: a method of Console

Prints the result as JSON on its last line.
"""

from __future__ import annotations

# Python loads these when they are first needed, and then perhaps from a place that user postgres may not read.
import encodings.ascii
import encodings.idna
import encodings.latin_1
import importlib
import json
import os
import pwd
import signal
import sys
import threading
import time

from ansible_collections.pgfleet.ops.plugins.module_utils._errors import OperationError
from ansible_collections.pgfleet.ops.plugins.module_utils._host.guardian import Guardian
from ansible_collections.pgfleet.ops.plugins.module_utils._module import Context
from ansible_collections.pgfleet.ops.plugins.module_utils._pgbouncer.console import Console
from ansible_collections.pgfleet.ops.plugins.module_utils._plan import Plan

NEEDED_LATER = (encodings.ascii, encodings.idna, encodings.latin_1)

OPERATIONS = {"switchover": ("switchover", "Switchover", "SWITCHOVER"), "failover": ("failover", "Failover", "FAILOVER")}
"""Module, class and options by the operation's name."""


def with_defaults(options, spec):
    """The options as AnsibleModule hands them over."""
    full = {}
    for name, option in spec.items():
        value = options.get(name, option.get("default"))
        if option.get("options") and value is not None:
            value = [with_defaults(item, option["options"]) for item in value]
        full[name] = value
    return full


class Accident:
    """Happens once."""

    def __init__(self, kind, moment):
        if moment.split(".")[0] not in ("step", "guardian", "console") or moment.count(".") != 2:
            sys.exit("%s is no moment: PLACE.NAME.WHEN" % moment)
        self.kind = kind
        place, name, when = moment.split(".")
        name, _hash, number = name.partition("#")
        self.moment = "%s.%s.%s" % (place, name, when)
        self.left = int(number or 1)
        self._lock = threading.Lock()

    def at(self, moment):
        if moment != self.moment:
            return
        # Guardians are asked by threads.
        with self._lock:
            self.left -= 1
            now = self.left == 0
        if now:
            self._happen()

    def _happen(self):
        if self.kind == "ask":
            print("AT", flush=True)
            if sys.stdin.readline().strip() != "error":
                return
            raise OperationError("an accident happened")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.kind == "hang":
            time.sleep(60)
        else:
            raise OperationError("an accident happened")


def wrap(accident, owner, method, before, after):
    """Have a method tell the accident what moment it is; ``before`` and ``after`` make the names of the arguments."""
    real = getattr(owner, method)

    def replacement(self, *arguments, **keywords):
        accident.at(before(self, *arguments))
        result = real(self, *arguments, **keywords)
        accident.at(after(self, *arguments))
        return result

    setattr(owner, method, replacement)


def arrange(accident):
    def add(self, what, do, **keywords):
        def step():
            word = what.split()[0].rstrip(":")
            accident.at("step.%s.before" % word)
            do()
            accident.at("step.%s.after" % word)

        real_add(self, what, step, **keywords)

    # Before the operation puts its own guard around a step: what fails in it must go its way back.
    real_add, Plan.add = Plan.add, add
    wrap(accident, Guardian, "start", lambda _self, name: "guardian.%s.before" % name, lambda _self, name: "guardian.%s.sent" % name)
    wrap(accident, Guardian, "finish", lambda *_a: None, lambda self, *_a: "guardian.%s.after" % self._request)
    for method in ("start_pause", "finish_pause", "start_reload", "start_resume", "finish_resume"):
        wrap(accident, Console, method, lambda *_a, m=method: "console.%s.before" % m, lambda *_a, m=method: "console.%s.after" % m)


def main():
    with open(sys.argv[2], encoding="utf-8") as stream:
        options = json.load(stream)
    module, operation_class, spec = OPERATIONS[sys.argv[1]]
    found = importlib.import_module("ansible_collections.pgfleet.ops.plugins.module_utils._operations." + module)
    account = pwd.getpwnam("postgres")
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    sys.executable = "/usr/bin/python3"  # what a module runs with; the tests' own may not be open to this user
    if sys.argv[3] not in ("none", "wait"):
        arrange(Accident(sys.argv[3], sys.argv[4]))
    operation = getattr(found, operation_class)(with_defaults(options, getattr(found, spec).argument_spec), Context(False, print))
    result = {"failed": False}
    try:
        if sys.argv[3] == "wait":
            operation.prepare()
            print("READY", flush=True)
            sys.stdin.readline()
        plan = operation.plan(operation.observe())
        plan.execute()
        seen = operation.observe()
        operation.confirm(seen)
        result.update(operation.report(seen))
    except OperationError as error:
        result = {"failed": True, "error": type(error).__name__, "msg": str(error), **error.facts}
    finally:
        operation.close()
    print(json.dumps(result, default=str))


if __name__ == "__main__":
    main()
