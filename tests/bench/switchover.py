# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a planned switchover costs clients: pg_switchover, the same by hand, HandyRep's sequence, and Patroni, in turn, in one run.

Machines differ and are noisy: only the ratios mean something. Needs root and the tests' packages; with --peers also those that
tools/install_bench_packages.sh installs (make bench). docs/bench/README.md says what each method is.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import by_hand
import figures
import report
from bench_site import BenchSite, measure
from lab import BIN, Lab
from patroni_site import CALLBACKS, DEFAULT, TUNED, PatroniSite, peers

OURS = "pg_switchover"
BY_HAND = {"by hand": by_hand.libpq, "by hand, early resume": by_hand.libpq_with_guard, "command line tools": by_hand.tools, "HandyRep": by_hand.handyrep}
PATRONI = {"Patroni, PAUSE callbacks": CALLBACKS, "Patroni, tuned": TUNED, "Patroni, defaults": DEFAULT}
METHODS = [OURS, *BY_HAND, *PATRONI]


def by_module(site, candidate):
    result = site.switch(candidate)
    if result["failed"]:
        sys.exit("pg_switchover failed: %s" % result["msg"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="Patroni too")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="only these")
    parser.add_argument("--write", type=pathlib.Path, metavar="DIRECTORY", help="put the table into README.md there, and the picture beside it")
    options = parser.parse_args()
    methods = options.methods or [method for method in METHODS if options.peers or method not in PATRONI]
    lab = Lab()
    seen, loads = [], [os.getloadavg()[0]]
    try:
        own = BenchSite(lab)
        sites = peers(lab, {method: PATRONI[method] for method in methods if method in PATRONI})
        for site in sites.values():
            site.leave()
        for number in range(options.rounds):
            for method in methods:
                site = sites.get(method, own)
                how = by_module if method == OURS else BY_HAND.get(method, PatroniSite.switch)

                def act(site=site, how=how):
                    began = time.monotonic()
                    return began, how(site, site.candidate.name)

                site.come_back()
                seen.append(measure(site, act, figures.of_switchover, method))
                site.leave()
                loads.append(os.getloadavg()[0])
                row = seen[-1]
                print("round %d  %-26s outage %8.1f ms  errors %5d  lost %d" % (number + 1, method, row.milliseconds, row.errors, row.lost), flush=True)
    finally:
        lab.close()
    rows = figures.table(seen, OURS, "outage")
    print("\n%s" % figures.as_text(rows))
    if options.write:
        heading = report.heading(BIN, loads, seen)
        report.write_table(options.write, "switchover", heading, rows)
        report.write_picture(options.write, "switchover", "Commits of clients during a planned switchover", heading, seen, OURS)


if __name__ == "__main__":
    main()
