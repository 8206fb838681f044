# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the switchover engine as user postgres and meets with an accident at a named point.

Usage: switchover_driver.py OPTIONS.json ACCIDENT [MOMENT]

ACCIDENT is ``none``, ``kill`` (SIGKILL of this process), ``hang`` (this process stops working and goes on 60 s later),
``stop`` (until it gets SIGCONT) or ``error`` (the step fails). MOMENT is the name of a function of the window, a space, and ``before`` or ``after``.
Prints the result as JSON on its last line.
"""

from __future__ import annotations

# Python loads these when they are first needed, and then perhaps from a place that user postgres may not read.
import encodings.ascii
import encodings.idna
import encodings.latin_1
import json
import os
import pwd
import signal
import sys
import time

from ansible_collections.pgfleet.ops.plugins.module_utils._errors import OperationError
from ansible_collections.pgfleet.ops.plugins.module_utils._host.guardian import Guardian
from ansible_collections.pgfleet.ops.plugins.module_utils._module import ArgumentSpec, Context
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.switchover import SWITCHOVER, Switchover
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.switchover_window import Window

NEEDED_LATER = (encodings.ascii, encodings.idna, encodings.latin_1)


def with_defaults(options, spec):
    """The options as AnsibleModule hands them over."""
    full = {}
    for name, option in spec.items():
        value = options.get(name, option.get("default"))
        if option.get("options") and value is not None:
            value = [with_defaults(item, option["options"]) for item in value]
        full[name] = value
    return full


def happen(kind):
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "hang":
        time.sleep(60)
    else:
        raise OperationError("an accident happened")


def wrap(owner, name, when, kind, applies=lambda *a, **k: True):
    real = getattr(owner, name)

    def replacement(self, *arguments, **keywords):
        if not applies(*arguments, **keywords):
            return real(self, *arguments, **keywords)
        if when == "before":
            happen(kind)
        result = real(self, *arguments, **keywords)
        if when == "after":
            happen(kind)
        return result

    setattr(owner, name, replacement)


def arrange(kind, moment):
    name, when = moment.split()
    requests = {"pg_promote": "promote"}  # promote is a function of the window, too
    if name in ("fence", "release", "switch", *requests):
        # "After" is when the guardian has answered.
        wrap(Guardian, "call" if name != "switch" else "start", when, kind, lambda request, *_a, **_k: request == requests.get(name, name))
    else:
        wrap(Window, name, when, kind)


def main():
    with open(sys.argv[1], encoding="utf-8") as stream:
        options = json.load(stream)
    account = pwd.getpwnam("postgres")
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    sys.executable = "/usr/bin/python3"  # what a module runs with; the tests' own may not be open to this user
    if sys.argv[2] != "none":
        arrange(sys.argv[2], sys.argv[3])
    spec: ArgumentSpec = SWITCHOVER
    operation = Switchover(with_defaults(options, spec.argument_spec), Context(False, print))
    result = {"failed": False}
    try:
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
