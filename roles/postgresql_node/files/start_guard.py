# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a server that its cluster has replaced from starting as a second primary.

systemd runs it right before the instance is started: start_guard.py CONFIG, a JSON file with bin_directory, data_directory, passfile, user, wait (seconds),
marker (a path that is gone after a reboot) and peers (name, host, port). It ends with 0 where the server may start, and with 1 where it would be a primary
on an older timeline than another node of the same cluster has; the reason goes to the journal.

Whoever was replaced while nothing could be written on its disk has no standby.signal. When its host comes back it is the only one that does not know, so it
asks: IDENTIFY_SYSTEM of the replication protocol, which every login for replication may, tells system identifier and timeline
(https://www.postgresql.org/docs/current/protocol-replication.html). Nobody is waiting for the server yet at its first start after a boot; then nodes that do
not answer, as they may be booting too, are asked for up to `wait` seconds. A server that was started since the last boot is not kept waiting by them.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import time

ANSWER_SECONDS = 3
"""How long a node may take to answer. Two is the least that libpq takes for a time limit."""
PAUSE_SECONDS = 1


def control(config):
    """System identifier and timeline of the server here, by its control file. Raises OSError or subprocess.CalledProcessError where that cannot be read."""
    text = subprocess.run(
        [os.path.join(config["bin_directory"], "pg_controldata"), "-D", config["data_directory"]],
        env={"LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    identifier = re.search(r"^Database system identifier:\s*(\d+)$", text, re.M)
    # After a promotion the second one is the new timeline until the first checkpoint.
    timelines = re.findall(r"^(?:Latest checkpoint's TimeLineID|Min recovery ending loc's timeline):\s*(\d+)$", text, re.M)
    return identifier[1], max(map(int, timelines))


def ask(config, peers):
    """Ask all of them at once. By name, (system identifier, timeline) of those that answer."""
    environment = {"LC_ALL": "C", "PGPASSFILE": config["passfile"], "PGCONNECT_TIMEOUT": str(ANSWER_SECONDS), "PGAPPNAME": "start_guard"}
    asked = []
    for peer in peers:
        # The database is what a password file calls it; a physical replication connection has none.
        where = {"host": peer["host"], "port": peer["port"], "user": config["user"], "dbname": "replication", "replication": "true"}
        conninfo = " ".join("%s='%s'" % (key, str(value).replace("\\", "\\\\").replace("'", "\\'")) for key, value in where.items())
        argv = [os.path.join(config["bin_directory"], "psql"), "-wXAtq", "-F", " ", "-c", "IDENTIFY_SYSTEM", conninfo]
        asked.append((peer["name"], subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)))
    end = time.monotonic() + ANSWER_SECONDS
    found = {}
    for name, process in asked:
        try:
            words = process.communicate(timeout=max(0.1, end - time.monotonic()))[0].decode().split()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            continue
        if process.returncode == 0 and len(words) >= 2:
            found[name] = words[0], int(words[1])
    return found


def judge(config):
    """Why the server must not start; None where it may. Prints what else should be known."""
    data = pathlib.Path(config["data_directory"])
    # With one of these it starts as a standby, or to a point in time that somebody has chosen.
    if any((data / name).exists() for name in ("standby.signal", "recovery.signal")) or not (data / "global" / "pg_control").exists():
        return None
    identifier, timeline = control(config)
    end = time.monotonic() + (0 if os.path.exists(config["marker"]) else config["wait"])
    silent = config["peers"]
    while silent:
        answers = ask(config, silent)
        for name, (theirs, newer) in answers.items():
            if theirs != identifier:
                print("%s is a server of another cluster, with the system identifier %s and not %s" % (name, theirs, identifier))
            elif newer > timeline:
                return (
                    "%s is on timeline %d, and this server would start as a primary on timeline %d: the cluster has another primary now. Bring it back as"
                    " a standby with the playbook clone_standby. To start it all the same, against the cluster: %s/pg_ctl start, as the server's user"
                ) % (name, newer, timeline, config["bin_directory"])
        silent = [peer for peer in silent if peer["name"] not in answers]
        if time.monotonic() >= end:
            break
        if silent:
            time.sleep(PAUSE_SECONDS)
    if silent:
        print("it starts as a primary although these did not answer: %s" % ", ".join(peer["name"] for peer in silent))
    return None


def main():
    config = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    reason = judge(config)
    if reason:
        sys.exit(reason)
    marker = pathlib.Path(config["marker"])
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


if __name__ == "__main__":
    main()
