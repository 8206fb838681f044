# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo as a newcomer meets it: a port that is taken, a run that is killed half way, a run after it, a run on top, the removal.

Needs root and takes some minutes. Ends with a line `N passed, N failed`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request

from demo import as_promised

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEMO = [sys.executable, str(ROOT / "tools" / "demo.py")]
PLAYBOOK = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(ROOT / "playbooks" / "inventory" / "demo.yml")]
SITE = pathlib.Path("/var/lib/pgfleet-demo")
PORTS = {15430, 15431, 15432, 15433, 16431, 16432, 18888}
LINE = re.compile(r"^demo: errors=0 lost=0 outage_ms=([\d.]+) snapshots=(\d+) second_run_changed=0 check_changed=0$", re.M)
ROWS = re.compile(r"^datasource (\w+): stored rows, and those since the switchover: db1=(\d+) \((\d+)\) db2=(\d+) \((\d+)\) db3=(\d+) \((\d+)\)$", re.M)


def demo(what, echo=True, **kwargs):
    """Run demo.py to its end; returns its exit status and what it printed."""
    with subprocess.Popen([*DEMO, what], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs) as run:
        lines = []
        for line in run.stdout:
            lines.append(line)
            if echo:
                print("    " + line, end="", flush=True)
    return run.returncode, "".join(lines)


def machine():
    """What the demo must leave alone: clusters that Debian's tools know, and files of packages' own instances."""
    tool = pathlib.Path("/usr/bin/pg_lsclusters")
    clusters = subprocess.run([str(tool), "--no-header"], capture_output=True, text=True, check=True).stdout if tool.exists() else ""
    names = ("/etc/pgbouncer/pgbouncer.ini", "/etc/pgbouncer/userlist.txt", "/etc/powa-collector.conf", "/usr/sbin/policy-rc.d")
    files = [pathlib.Path(name) for name in names]
    return clusters, {str(path): path.read_bytes() for path in files if path.exists()}


def listening():
    """Address and port of every listening TCP socket, from the kernel's own tables."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/net", table).read_text().splitlines()[1:]:
            local, _remote, state = line.split()[1:4]
            if state == "0A":
                address, port = local.split(":")
                found.add((table, address, int(port, 16)))
    return found


def own_processes():
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = [os.readlink(entry / "cwd"), *entry.joinpath("cmdline").read_bytes().decode("utf-8", "replace").split("\0")]
                if any(word.startswith(str(SITE)) for word in words):
                    found.append(" ".join(words[1:]))
    return found


def test_a_port_that_is_taken():
    """Noticed before anything is made, and named."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 16432))
        other.listen()
        status, output = demo("up", echo=False)
    assert status != 0, output
    assert "Port 16432 of 127.0.0.1, meant for pooler2, is taken" in output, output
    assert not own_processes() and not (SITE / "db1").exists()


def test_killed_half_way():
    """kill -9 of everything that the run consists of, while servers are being made."""
    run = subprocess.Popen([*DEMO, "up"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 600
    while not (SITE / "db1" / "data" / "postmaster.pid").exists():
        assert time.monotonic() < end and run.poll() is None, "the demo has not come as far as a server"
        time.sleep(0.2)
    time.sleep(3)  # standbys are being copied now
    # ansible-playbook's workers have sessions of their own.
    family, grown = {run.pid}, True
    while grown:
        grown = False
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                if parent in family and int(entry.name) not in family:
                    family.add(int(entry.name))
                    grown = True
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.wait(30)
    assert run.returncode == -9


def succeeds():
    status, output = demo("up")
    assert status == 0, output
    found = LINE.search(output)
    assert found, output
    assert 0 < float(found.group(1)) < 500
    assert int(found.group(2)) >= 3
    rows = {name: list(map(int, counts)) for name, *counts in ROWS.findall(output)}
    assert set(rows) == {"replication", "pgbouncer"}, output
    # Each node has rows, new ones among them; its poolers alone make several of each snapshot.
    assert all(0 < since <= stored for counts in rows.values() for stored, since in zip(counts[::2], counts[1::2])), rows
    assert min(rows["pgbouncer"][1::2]) >= 2, rows
    return output


def test_a_run_after_the_killed_one():
    succeeds()
    mine = {(table, address, port) for table, address, port in listening() if port in PORTS}
    assert {port for _table, _address, port in mine} == PORTS, mine
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert {address for _table, address, _port in mine} <= loopback, mine
    try:
        status = urllib.request.urlopen("http://127.0.0.1:18888/login/", timeout=10).status
    except urllib.error.HTTPError as answer:
        status = answer.code
    assert status in (200, 403), status


def test_a_run_on_top():
    """The playbook alone; what demo.py does besides was seen above."""
    result = SITE / "load" / "result.json"
    before = json.loads(result.read_text())
    done = subprocess.run([*PLAYBOOK, "pgfleet.ops.demo"], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    after = json.loads(result.read_text())
    assert after["primary"] != before["primary"] and as_promised(after), (before, after)


def test_show_cluster():
    """What the demo says to look at works, as it is printed."""
    command = [*PLAYBOOK, "pgfleet.ops.show_cluster", "-e", "cluster=shop"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    assert "cluster shop: healthy" in output and output.count("standby") == 2, output


def test_switch_over_says_what_is_wrong():
    """The playbook with its usual mistakes: each ends in an error, none changes anything."""
    command = [*PLAYBOOK, "pgfleet.ops.switch_over"]
    for arguments, words in (
        ([], "The variable cluster is not set"),
        (["-e", "cluster=shops"], 'The variable cluster is "shops"'),
        (["-e", "cluster=shop"], "Name the candidate"),
        (["-e", "cluster=shop", "-e", "candidate=db9"], "is not a node of this cluster"),
        (["-e", "cluster=shop", "-e", "candidate=db2", "--limit", "localhost,db1,db2"], "without a --limit"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode != 0 and words in done.stdout + done.stderr, (arguments, done.stdout + done.stderr)


def test_removal():
    status, output = demo("down")
    assert status == 0, output
    assert not SITE.exists() and not own_processes()
    assert not {port for _table, _address, port in listening()} & PORTS


def main():
    if os.geteuid() != 0:
        sys.exit("this needs root: use make end-to-end, which asks sudo")
    os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "tools" / "ansible.cfg"))
    demo("down", echo=False)
    before = machine()
    passed, failed = 0, 0
    tests = [
        test_a_port_that_is_taken, test_killed_half_way, test_a_run_after_the_killed_one, test_a_run_on_top, test_show_cluster,
        test_switch_over_says_what_is_wrong, test_removal,
    ]  # fmt: skip
    for test in tests:
        print("== %s" % test.__name__, flush=True)
        try:
            test()
            passed += 1
        except Exception:
            failed += 1
            traceback.print_exc()
    after = machine()
    kept = {name: content for name, content in after[1].items() if name in before[1]}
    try:
        assert before[0] in ("", after[0]), "clusters of the machine were changed:\n%s\n%s" % (before[0], after[0])
        assert kept == before[1], "files of the machine were changed: %s" % [name for name in before[1] if before[1][name] != kept.get(name)]
        passed += 1
    except AssertionError:
        failed += 1
        traceback.print_exc()
    if failed:
        demo("down", echo=False)
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
