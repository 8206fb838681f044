# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""crun, with what this machine cannot grant taken out of what podman asks for.

Limits above our own (raising them takes CAP_SYS_RESOURCE), capabilities that we do not have ourselves, and cgroup controllers, which belong to cgroup v1 on
a machine with both versions.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import sys

NUMBER_OF = {"CAP_SYS_RESOURCE": 24}


def option(arguments, *names):
    """The value of an option, given as `--name value` or `--name=value`; None without it."""
    for position, argument in enumerate(arguments):
        if argument in names:
            return arguments[position + 1]
        name, equals, value = argument.partition("=")
        if equals and name in names:
            return value
    return None


def status(field):
    for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return line.split()[1]
    raise KeyError(field)


def fit_process(process):
    for limit in process.get("rlimits") or []:
        hard = resource.getrlimit(getattr(resource, limit["type"]))[1]
        if hard != resource.RLIM_INFINITY:
            limit["hard"] = min(limit["hard"], hard)
            limit["soft"] = min(limit["soft"], limit["hard"])
    if (process.get("oomScoreAdj") or 0) < int(pathlib.Path("/proc/self/oom_score_adj").read_text(encoding="ascii")):
        process.pop("oomScoreAdj", None)
    ours = int(status("CapBnd"), 16)
    for kind, names in (process.get("capabilities") or {}).items():
        process["capabilities"][kind] = [name for name in names if name not in NUMBER_OF or ours >> NUMBER_OF[name] & 1]


def fit_container(config):
    fit_process(config["process"])
    config.setdefault("linux", {})["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}


def edit(path, change):
    path = pathlib.Path(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    new = path.with_name(path.name + ".lab")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.replace(path)


def main():
    arguments = sys.argv[1:]
    command = next((argument for argument in arguments if argument in ("create", "run", "exec")), None)
    process = option(arguments, "--process", "-p")
    if command in ("create", "run"):
        edit(os.path.join(option(arguments, "--bundle", "-b") or ".", "config.json"), fit_container)
    elif command == "exec" and process:
        edit(process, fit_process)
    os.execvp("crun", ["crun", *arguments])


if __name__ == "__main__":
    main()
