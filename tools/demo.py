# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: `demo.py up` deploys, switches over under load, checks that a second run changes nothing; `demo.py down` removes it.

Needs root, Debian 12 or 13, and the collection installed below ANSIBLE_COLLECTIONS_PATH (see the Makefile).
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
INVENTORY = ROOT / "playbooks" / "inventory" / "demo.yml"
SITE = pathlib.Path("/var/lib/pgfleet-demo")
LOCKS = pathlib.Path("/run/pgfleet-demo")
LOG = ROOT / ".build" / "demo.log"
FOREIGN_COLUMNS = ("node", "role", "lag_bytes", "pooler", "version", "clients")
OUTAGE_LIMIT_MS = 500
NODES = ("db1", "db2", "db3")


def environment():
    settings = {
        "CONFIG": str(ROOT / "tools" / "ansible.cfg"),
        "NOCOLOR": "1",
        "FORCE_COLOR": "0",
    }
    return {**os.environ, **{"ANSIBLE_" + key: value for key, value in settings.items()}}


def say(text):
    print(text, flush=True)


class Failed(Exception):
    pass


def be_the_only_one():
    """Nobody else runs the demo as long as this process or a playbook of it lives, so locks that are there are of one that was killed."""
    handle = os.open(SITE, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(handle, True)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed("another demo works in %s, or what is left of one that was killed: wait for its end" % SITE) from None
    shutil.rmtree(LOCKS, ignore_errors=True)


def play(title, playbook, *arguments):
    """Run a playbook, print a line for each play with its time, and return the number of changed tasks."""
    say("== %s" % title)
    began = time.monotonic()
    argv = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(INVENTORY), playbook, *arguments]
    lines, current, at = [], None, began

    def close():
        if current:
            say("   %-44s %5.1f s" % (current, time.monotonic() - at))

    with open(LOG, "a", encoding="utf-8") as log, subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment(), cwd="/",
        close_fds=False,
    ) as process:  # fmt: skip
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line.rstrip("\n"))
            found = re.match(r"PLAY \[(.*)\]", line)
            if found or line.startswith("PLAY RECAP"):
                close()
                current, at = (found.group(1) if found else None), time.monotonic()
        process.wait()
    if process.returncode != 0:
        close()
        say("\n".join(explain(lines)))
        raise Failed("%s did not succeed; everything it printed is in %s" % (playbook, LOG))
    changed = [int(number) for line in lines for number in re.findall(r"\bchanged=(\d+)\s+unreachable=", line)]
    if not changed:
        raise Failed("%s printed no recap; see %s" % (playbook, LOG))
    say("   done in %.0f s, %d changed" % (time.monotonic() - began, sum(changed)))
    return sum(changed), lines


def explain(lines):
    """The failed tasks and what they said, without the rest."""
    shown, task = [], ""
    for line in lines:
        if line.startswith("TASK ["):
            task = line.split("]")[0][6:]
        if re.match(r"(fatal|failed): ", line):
            shown.append("   %s, %s" % (task, line[:3000]))
    return shown or lines[-15:]


def what_changed(lines):
    task, found = "", []
    for line in lines:
        if line.startswith(("TASK [", "RUNNING HANDLER [")):
            task = line.split("[", 1)[1].split("]")[0]
        if line.startswith("changed:"):
            found.append("   changed: %s on %s" % (task, line.split("[")[1].split("]")[0]))
    return found


def as_promised(result):
    """Whether one run of the playbook, told by what it has written down, did what the demo is there to show."""
    # Each node is asked by PoWA, so each has rows, and goes on having new ones when the primary has moved.
    since = [result["datasources_since_moved"][name] for name in result["datasources"]]
    rows = [counts.get(node, 0) for counts in (result["snapshots"], *since) for node in NODES]
    return (
        result["errors"] == 0 and result["lost"] == 0 and result["compared_with_primary"] and 0 < result["outage_ms"] < OUTAGE_LIMIT_MS
        and len(result["foreign"]) == 2 and all(result["foreign"]) and result["commits"] > 0 and result["datasources"] and min(rows) > 0
    )  # fmt: skip


def up():
    if os.geteuid() != 0:
        raise Failed("this needs root, because servers run as their own user: use make demo, which asks sudo")
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    SITE.mkdir(mode=0o755, exist_ok=True)
    be_the_only_one()
    say("PostgreSQL primary and two standbys, two PgBouncers, PoWA with collector and web pages, all on 127.0.0.1 below %s." % SITE)
    play("deploy, then move the primary while clients write", "pgfleet.ops.demo")
    second, lines = play("the same deployment again: nothing may change", "pgfleet.ops.deploy_site")
    say("\n".join(what_changed(lines))) if second else None
    check, lines = play("and in check mode", "pgfleet.ops.deploy_site", "--check", "--diff")
    say("\n".join(what_changed(lines))) if check else None
    result = json.loads((SITE / "load" / "result.json").read_text())
    snapshots = [result["snapshots"].get(node, 0) for node in NODES]
    secrets = SITE / "secrets"
    say("")
    say("Look around (passwords are in %s):" % secrets)
    say("  the primary is %s, %d rows were committed through the poolers" % (result["primary"], result["commits"]))
    say("  pooler       PGPASSWORD=$(cat %s/app) psql -h 127.0.0.1 -p 16431 -U app app" % secrets)
    say("  superuser    PGPASSWORD=$(cat %s/superuser) psql -h 127.0.0.1 -p 15431 -U postgres" % secrets)
    say("  PoWA         http://127.0.0.1:18888/  user powa, password $(cat %s/powa)" % secrets)
    command = "%s -i %s pgfleet.ops.show_cluster -e cluster=shop" % (pathlib.Path(sys.executable).parent / "ansible-playbook", INVENTORY)
    sudo = "sudo " if os.environ.get("SUDO_USER") else ""
    say("  cluster      %sANSIBLE_COLLECTIONS_PATH=%s %s" % (sudo, os.environ.get("ANSIBLE_COLLECTIONS_PATH", ""), command))
    say("  remove it    make demo-down")
    say("")
    for text in result["error_texts"]:
        say("  a client saw: %s" % text)
    say("The new primary on the cluster and its poolers, asked by SELECT:")
    for row in [row for rows in result["foreign"] for row in rows]:
        # JSON has lost the order of the columns.
        columns = [name for name in FOREIGN_COLUMNS if name in row]
        say("  %s" % "  ".join("%s=%s" % (name, "-" if row[name] is None else row[name]) for name in columns))
    for name, rows in result["datasources"].items():
        since = result["datasources_since_moved"][name]
        counts = " ".join("%s=%d (%d)" % (node, rows.get(node, 0), since.get(node, 0)) for node in NODES)
        say("datasource %s: stored rows, and those since the switchover: %s" % (name, counts))
    say(
        "demo: errors=%d lost=%d outage_ms=%s snapshots=%d second_run_changed=%d check_changed=%d"
        % (result["errors"], result["lost"], result["outage_ms"], sum(snapshots), second, check)
    )
    if not (as_promised(result) and second == 0 and check == 0):
        raise Failed("that is not as it should be")


def inside(path):
    return path == str(SITE) or path.startswith(str(SITE) + "/")


def own_processes():
    """Servers that work in the demo's directory, and programs and scripts that lie in it. Nobody's pager or editor."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        try:
            program = os.path.basename(os.readlink(entry / "exe"))
            directory = os.readlink(entry / "cwd")
            arguments = entry.joinpath("cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if (
            (program == "postgres" and inside(directory))
            or (program == "pgbouncer" and any(inside(word) for word in arguments))
            or (program.startswith("python") and any(inside(word) for word in arguments[:2]))
        ):
            found.append(int(entry.name))
    return found


def down():
    if os.geteuid() != 0:
        raise Failed("this needs root: use make demo-down, which asks sudo")
    # A guardian of a switchover that was killed would start a server again.
    for number, patience in ((signal.SIGINT, 5), (signal.SIGTERM, 5), (signal.SIGQUIT, 5), (signal.SIGKILL, 10)):
        end = time.monotonic() + patience
        for pid in own_processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        while own_processes() and time.monotonic() < end:
            time.sleep(0.1)
    left = own_processes()
    if left:
        raise Failed("these processes of the demo do not end: %s" % left)
    if SITE.exists():
        shutil.rmtree(SITE)
    shutil.rmtree(LOCKS, ignore_errors=True)
    say("demo: removed %s and all processes that ran there" % SITE)


if __name__ == "__main__":
    if sys.argv[1:] not in (["up"], ["down"]):
        sys.exit(__doc__)
    try:
        {"up": up, "down": down}[sys.argv[1]]()
    except Failed as failure:
        say("demo: %s" % failure)
        sys.exit(1)
    except KeyboardInterrupt:
        say("demo: interrupted; run it again, or make demo-down")
        sys.exit(130)
