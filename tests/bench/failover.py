# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long clients wait from the kill of the primary to their first commit: pg_failover, check_failover, and Patroni, in turn, in one run.

Machines differ and are noisy: only the ratios mean something. Needs root and the tests' packages; with --peers also those that
tools/install_bench_packages.sh installs (make bench). docs/bench/README.md says what each method is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pathlib
import re
import select
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import figures
import psycopg
import report
from bench_site import BenchSite, measure
from cluster_play import play
from lab import BIN, Lab, call_module
from patroni_site import DEFAULT, TUNED, peers
from switchover_site import waiting_failover

OURS = "pg_failover"
CONFIGURATIONS = {"tuned": TUNED, "defaults": DEFAULT}
# Method -> configuration of Patroni, and whether Patroni is killed with the server, as when the host is lost.
PATRONI = {
    "Patroni, tuned": ("tuned", False), "Patroni, defaults": ("defaults", False),
    "Patroni, tuned, host lost": ("tuned", True), "Patroni, defaults, host lost": ("defaults", True),
}  # fmt: skip


def kill(node):
    """Kill the postmaster of a node. Returns when that was."""
    pid = node.pid
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return killed


def options_for(site):
    options = site.options(None)
    del options["candidate"]
    return options


def stated_loss(result):
    """How many bytes of WAL it says are lost."""
    if result["failed"]:
        sys.exit("pg_failover failed: %s" % result["msg"])
    return result["data_loss"]["bytes"]


def by_module(site):
    """With its default settings."""
    return stated_loss(call_module("pg_failover", options_for(site), ansible=True))


def by_playbook(site):
    """As a scheduler runs it."""
    output, _changes = play(site, "check_failover", variables={"pgfleet_lock_directory": str(site.lab.path / "lock")})
    return max(int(found) for found in re.findall(r"may be lost: (?:at least )?(\d+) bytes", output))


COLLECTION = {OURS: by_module, "check_failover": by_playbook}
RESIDENT = "pg_failover, resident"
METHODS = [*COLLECTION, RESIDENT, *PATRONI]


def lose_primary(site, fail_over, stated):
    """Kill the primary and replace it at once. Returns when the kill was and what brings the old primary back."""
    lost = site.primary
    killed = kill(lost)
    stated.append(fail_over(site))
    return killed, lambda: site.bring_back(lost)


def lose_watched_primary(site, stated):
    """The same where a process has all connections open and watches: a connection that ends and one that is refused tell it."""
    lost = site.primary
    with waiting_failover(site, {**options_for(site), "tries": 1}) as fail_over, lost.connect() as watch:
        killed = kill(lost)
        select.select([watch], [], [], 10)
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                lost.connect().close()
        stated.append(stated_loss(fail_over()))
    return killed, lambda: site.bring_back(lost)


def lose_primary_of_patroni(site, with_patroni):
    """The same where Patroni replaces it on its own; with ``with_patroni`` that of the primary's host is killed before."""
    lost = site.primary
    if with_patroni:
        site.daemons[lost.name].kill()
    return kill(lost), lambda: site.bring_back(lost)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="Patroni too")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="only these")
    parser.add_argument("--write", type=pathlib.Path, metavar="DIRECTORY", help="put the table into README.md there, and the picture beside it")
    options = parser.parse_args()
    methods = options.methods or [method for method in METHODS if options.peers or method not in PATRONI]
    lab = Lab()
    seen, loads, stated = [], [os.getloadavg()[0]], []
    try:
        own = BenchSite(lab) if any(method not in PATRONI for method in methods) else None
        wanted = {PATRONI[method][0] for method in methods if method in PATRONI}
        sites = peers(lab, {name: CONFIGURATIONS[name] for name in CONFIGURATIONS if name in wanted})
        for number in range(options.rounds):
            for method in methods:
                if method == RESIDENT:
                    site, act = own, functools.partial(lose_watched_primary, own, stated)
                elif method in COLLECTION:
                    site, act = own, functools.partial(lose_primary, own, COLLECTION[method], stated)
                else:
                    name, with_patroni = PATRONI[method]
                    site, act = sites[name], functools.partial(lose_primary_of_patroni, sites[name], with_patroni)
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
        if stated:
            heading.append("WAL that only the killed primary had, as pg_failover said: %d bytes at most in one round" % max(stated))
        report.write_table(options.write, "failover", heading, rows)
        report.write_picture(options.write, "failover", "Commits of clients when the primary is killed", heading, seen, OURS, zoom=5)


if __name__ == "__main__":
    main()
