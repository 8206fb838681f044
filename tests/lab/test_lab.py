# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of several hosts leaves the machine as it was, also when it is killed. Called by make molecule-ci, which has built the image."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAB = str(ROOT / "tools" / "lab" / "lab.sh")
HOSTS = {"db1", "db2", "db3", "pooler1", "pooler2", "monitor"}


def output(*argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def machine():
    """What a run could leave behind. Processes by the namespaces and cgroups that they are in: those of others come and go."""
    own = {kind: os.readlink("/proc/self/ns/" + kind) for kind in ("mnt", "net", "pid", "cgroup")}
    elsewhere, in_lab = set(), set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(process / "ns" / kind) != name for kind, name in own.items()):
                elsewhere.add(process.name)
            if "pgfleet-lab" in (process / "cgroup").read_text():
                in_lab.add(process.name)
        except OSError:
            continue
    return {
        "mounts": sorted(line.split(" - ")[0].split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": sorted(os.listdir("/sys/class/net")),
        "cgroups": sorted(str(path) for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") for path in pathlib.Path(root).glob("*pgfleet-lab*")),
        "processes in other namespaces": elsewhere,
        "processes in the lab's cgroup": in_lab,
        "containers": output("podman", "ps", "--all", "--quiet").split(),
    }


def settled(before):
    """The machine once it is as before, or what it is after ten seconds. Processes of others that are gone meanwhile are no difference."""
    end = time.monotonic() + 10
    while True:
        now = machine()
        for key in ("processes in other namespaces", "processes in the lab's cgroup"):
            now[key] = before[key] if now[key] <= before[key] else now[key]
        if now == before or time.monotonic() > end:
            return now
        time.sleep(0.2)


def clear():
    """Where podman needs no sandbox, hosts outlive whoever made them: what make lab-down does."""
    if output(LAB, "why").strip() == "nothing":
        subprocess.run(["podman", "network", "rm", "--force", "pgfleet-lab"], check=False, capture_output=True)


@pytest.fixture(autouse=True)
def down():
    yield
    clear()
    subprocess.run([LAB, "down"], check=True)


def run(*argv):
    return subprocess.run([LAB, "run", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)


def test_two_runs_leave_nothing():
    before = machine()
    for status in (0, 7):
        done = run("bash", "-c", "podman ps --quiet && exit %d" % status)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert settled(before) == before


def test_a_run_that_was_killed_leaves_nothing_that_the_next_one_minds(tmp_path):
    before = machine()
    started = tmp_path / "started"
    names = "podman ps --format '{{.Names}}'"
    script = 'molecule create && %s > "%s.new" && mv "%s.new" "%s" && sleep 300' % (names, started, started, started)
    own = {**os.environ, "LAB_DIRECTORY": str(tmp_path / "lab"), "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "molecule")}
    with (tmp_path / "log").open("w") as log:
        killed = subprocess.Popen([LAB, "run", "bash", "-c", script], env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            end = time.monotonic() + 200
            while not started.exists():
                assert killed.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
    assert set(started.read_text().split()) == HOSTS
    # The next run begins anew. A cgroup without a process stays until then.
    clear()
    done = run("podman", "ps", "--all", "--quiet", "--filter", "network=pgfleet-lab")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert settled(before) == before
