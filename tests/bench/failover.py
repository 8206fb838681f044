# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long clients wait from the kill of the primary to their first commit: Patroni with its defaults and tuned, in turn, in one run.

Machines differ and are noisy: only the ratios mean something. Needs root, the tests' packages and those that tools/install_bench_packages.sh installs.
docs/bench/README.md says what each method is.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import figures
import report
from bench_site import measure
from lab import BIN, Lab
from patroni_site import DEFAULT, TUNED, peers

OURS = "pg_failover"
CONFIGURATIONS = {"tuned": TUNED, "defaults": DEFAULT}
# Method -> configuration of Patroni, and whether Patroni is killed with the server, as when the host is lost.
METHODS = {
    "Patroni, tuned": ("tuned", False), "Patroni, defaults": ("defaults", False),
    "Patroni, tuned, host lost": ("tuned", True), "Patroni, defaults, host lost": ("defaults", True),
}  # fmt: skip


def kill_patroni(site, with_patroni):
    """Kill the primary's postmaster, before it Patroni where that is to go too. Returns when that was and what starts Patroni again."""
    lost = site.primary
    pid = lost.pid
    if with_patroni:
        site.daemons[lost.name].kill()
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return killed, lambda: site.restart(lost)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="only these")
    parser.add_argument("--write", type=pathlib.Path, metavar="DIRECTORY", help="put the table into README.md there, and the picture beside it")
    options = parser.parse_args()
    lab = Lab()
    seen, loads = [], [os.getloadavg()[0]]
    try:
        wanted = {METHODS[method][0] for method in options.methods}
        sites = peers(lab, {name: CONFIGURATIONS[name] for name in CONFIGURATIONS if name in wanted})
        for number in range(options.rounds):
            for method in options.methods:
                name, with_patroni = METHODS[method]
                site = sites[name]
                act = functools.partial(kill_patroni, site, with_patroni)
                seen.append(measure(site, act, figures.of_failover, method))
                loads.append(os.getloadavg()[0])
                row = seen[-1]
                print("round %d  %-30s %8.1f ms  errors %5d  lost %d" % (number + 1, method, row.milliseconds, row.errors, row.lost), flush=True)
    finally:
        lab.close()
    rows = figures.table(seen, OURS, "kill to first commit")
    print("\n%s" % figures.as_text(rows))
    if options.write:
        heading = report.heading(BIN, loads, seen)
        report.write_table(options.write, "failover", heading, rows)
        report.write_picture(options.write, "failover", "Commits of clients when the primary is killed", heading, seen, OURS, zoom=5)


if __name__ == "__main__":
    main()
