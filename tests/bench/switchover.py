# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a switchover costs clients: pg_switchover beside the same steps with command line tools, in turn, in one run.

Machines differ and are noisy: only the ratios mean something. Needs root and the tests' packages (make bench).
The steps with tools are PAUSE, pg_ctl stop, the poolers' file, RELOAD, pg_ctl promote, RESUME, one after the other in one
script that holds its consoles open: better than a playbook with a task for each, which pays for every task besides.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from lab import BIN, Lab, run
from switchover_site import Site


def by_tools(site, candidate):
    """The same switchover with pg_ctl and one console for each pooler."""
    old, new = site.primary, site.node(candidate)
    consoles = [pooler.console() for pooler in site.poolers]
    for node in (old, old, new):
        node.sql("CHECKPOINT")
    old.write(old.data / "standby.signal", "")
    with old.connect() as session:
        session.execute(
            "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=%d user=postgres application_name=%s passfile=%s'" % (new.port, old.name, old.passfile)
        )
        session.execute("ALTER SYSTEM SET primary_slot_name = '%s'" % old.name)
    began = time.monotonic()
    for console in consoles:
        console.execute("PAUSE app")
    run([BIN / "pg_ctl", "-D", old.data, "-m", "fast", "-w", "-s", "stop"], user="postgres")
    for pooler in site.poolers:
        text = pooler.databases_file.read_text()
        pooler.databases_file.write_text(text.replace("app = host=127.0.0.1 port=%d" % old.port, "app = host=127.0.0.1 port=%d" % new.port))
    for console in consoles:
        console.execute("RELOAD")
    run([BIN / "pg_ctl", "-D", new.data, "-w", "-s", "promote"], user="postgres")
    for console in consoles:
        console.execute("RESUME app")
        console.close()
    paused = (time.monotonic() - began) * 1000
    new.sql("SELECT pg_create_physical_replication_slot(%s, true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)", [old.name] * 2)
    old.start()
    new.wait_for_standbys(1)
    old.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
    return paused


def by_module(site, candidate):
    result = site.switch(candidate)
    if result["failed"]:
        sys.exit("pg_switchover failed: %s" % result["msg"])
    return result["paused_ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=20)
    rounds = parser.parse_args()
    methods = {"pg_switchover": by_module, "command line tools": by_tools}
    seen = {name: [] for name in methods}
    lab = Lab()
    try:
        site = Site(lab, nodes=2, poolers=2)
        for number in range(rounds.rounds):
            for name, method in methods.items():
                candidate = next(node.name for node in site.nodes if node.in_recovery)
                with site.load(clients=rounds.clients, interval=0.04) as load:
                    time.sleep(1)
                    paused = method(site, candidate)
                    time.sleep(1)
                seen[name].append((load.report["outage_ms"], paused, load.report["errors"], len(load.lost)))
                print("round %d  %-20s outage %7.1f ms  paused %7.1f ms  errors %d  lost %d" % (number + 1, name, *seen[name][-1]), flush=True)
    finally:
        lab.close()
    print()
    ours = statistics.median(row[0] for row in seen["pg_switchover"])
    print("%-20s %10s %22s %8s %6s %8s" % ("method", "median ms", "min - max", "errors", "lost", "ratio"))
    for name, rows in seen.items():
        outages = [row[0] for row in rows]
        print(
            "%-20s %10.1f %22s %8d %6d %8.2f"
            % (
                name,
                statistics.median(outages),
                "%.1f - %.1f" % (min(outages), max(outages)),
                sum(row[2] for row in rows),
                sum(row[3] for row in rows),
                statistics.median(outages) / ours,
            )
        )


if __name__ == "__main__":
    main()
