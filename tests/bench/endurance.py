# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many switchovers in a row, there and back, under clients that connect and disconnect all the time.

Ends with 1 where any client saw an error, an acknowledged row is lost, or a client waited longer than a second for one row. Needs root and the tests'
packages. docs/bench/README.md says what the figures are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import figures
import report
from bench_site import BenchSite
from lab import BIN, Lab, call_module

LIMIT = 1000
"""Milliseconds that one client may wait for one row, its connection included."""
CLIENTS = 20
INTERVAL = 0.08
"""Seconds between two rows of one client."""
CHURN = [None, None, 1, 5, 20]
"""After how many rows clients open a new connection. Five kinds and two poolers, so that each pooler has each kind."""
POOLERS = {"server_lifetime": "1"}
"""PgBouncer closes server connections after a second, so that some are always about to log in: what a PAUSE may meet at its worst."""


def one(site):
    """Switch over once under load. Returns what clients saw of it: outage and longest wait of one client in milliseconds, errors and rows lost."""
    with site.load(clients=CLIENTS, interval=INTERVAL, duration=170, moments=True, rows_per_connection=CHURN) as load:
        ready = time.monotonic()
        time.sleep(1)
        began = time.monotonic()
        result = call_module("pg_switchover", site.options(site.candidate.name))
        if result["failed"]:
            sys.exit("pg_switchover failed: %s" % result["msg"])
        time.sleep(1)
    seen = load.report
    if seen["unfinished_clients"]:
        sys.exit("%d clients of the load hang" % seen["unfinished_clients"])
    for text in seen["error_texts"]:
        print("a client's error: %s" % text)
    sooner, later = figures.longest_gap(seen["moments"], began)
    wait, before = figures.longest_wait(seen, began) * 1000, figures.longest_wait(seen, ready, began) * 1000
    return figures.Run((later - sooner) * 1000, wait, before, seen["connections"], seen["commits"], seen["errors"], len(load.lost))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--switchovers", type=int, default=100)
    parser.add_argument("--write", type=pathlib.Path, metavar="DIRECTORY", help="put the table into README.md there")
    options = parser.parse_args()
    lab = Lab()
    runs, loads = [], [os.getloadavg()[0]]
    try:
        site = BenchSite(lab, **POOLERS)
        # Whoever ends it early gets the figures so far.
        with contextlib.suppress(KeyboardInterrupt):
            for number in range(options.switchovers):
                site.settle()
                runs.append(one(site))
                loads.append(os.getloadavg()[0])
                print("%3d  outage %6.1f ms  longest wait of one client %6.1f ms, before %6.1f ms  errors %d  lost %d"
                      % (number + 1, runs[-1].outage, runs[-1].wait, runs[-1].before, runs[-1].errors, runs[-1].lost), flush=True)  # fmt: skip
    finally:
        lab.close()
    if not runs:
        sys.exit("ended before the first switchover")
    rows = figures.percentiles({
        "no client got a commit": [run.outage for run in runs], "one client waited for one row": [run.wait for run in runs],
        "the same in the second before": [run.before for run in runs],
    })  # fmt: skip
    total = {name: sum(getattr(run, name) for run in runs) for name in ("connections", "commits", "errors", "lost")}
    sums = "%d switchovers in a row: %d connections and %d commits of clients, %d errors, %d acknowledged rows lost, %d times a client waited over %d ms" % (
        len(runs), *total.values(), sum(run.wait > LIMIT for run in runs), LIMIT,
    )  # fmt: skip
    print("\n%s\n%s" % (sums, figures.as_text(rows)))
    if options.write:
        report.write_table(options.write, "endurance", [*report.machine(BIN, loads), sums], rows)
    sys.exit(any(run.errors or run.lost or run.wait > LIMIT for run in runs))


if __name__ == "__main__":
    main()
