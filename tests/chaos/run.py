# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs switchovers and failovers with a fault at each step and judges the history of each. Ends with 1 if a rule was broken.

    tests/chaos/run.py --seed 7 --cases 200 --jobs 2
    tests/chaos/run.py --only switchover:step.stop.before:freeze:server-old

As root; every worker has servers of its own. The seed chooses the cases, and a case is named by its id alone.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import pathlib
import queue
import signal
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration"), str(HERE.parents[1] / ".build" / "dev")]

from cases import ENGINES, MOMENTS, Case, choose


def end_in_order(_number, _frame):
    """The servers are stopped and their files removed on the way out."""
    raise SystemExit(1)


def play_some(waiting, done):
    """A worker: one site, replaced when a case has left it other than sound."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end_in_order)
    from chaos_site import ChaosSite
    from play import MomentMissed, Played, play
    from switchover_site import Sites

    with Sites(kind=ChaosSite) as sites:
        while True:
            try:
                case = Case.parse(waiting.get_nowait())
            except queue.Empty:
                break
            try:
                try:
                    played = play(sites.sound(), case, "%d-%d" % (os.getpid(), time.monotonic_ns()))
                except MomentMissed as error:
                    # A busy machine can make a limit pass by itself. The same a second time is no accident.
                    sites.__exit__()
                    played = play(sites.sound(), case, "%d-%d" % (os.getpid(), time.monotonic_ns()))
                    played.details.append("played twice: %s" % error)
            except Exception:
                played = Played(case.id, ["the case could not be played to its end: %s" % traceback.format_exc()])
                if sites.site:
                    played.details.append(sites.site.last_words())
            done.put(played)
            if played.violations:
                sites.__exit__()
    done.put(None)


def table(results):
    """Operation, fault, how many cases, and what became of them."""
    outcomes = ("rolled back", "went on", "left to the next run")
    rows = collections.defaultdict(collections.Counter)
    for played in results:
        operation, _moment, fault, victim = played.case.split(":")
        rows[operation, "%s %s" % (fault, victim)].update(["cases", played.outcome, *(["violated"] if played.violations else [])])
    lines = ["%-17s %-28s %5s %11s %8s %21s %8s" % ("operation", "fault", "cases", *outcomes, "violated")]
    for (operation, fault), row in sorted(rows.items()):
        lines.append("%-17s %-28s %5d %11d %8d %21d %8d" % (operation, fault, row["cases"], *(row[name] for name in outcomes), row["violated"]))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="chooses the cases; a random one, which is printed, where none is given")
    parser.add_argument("--cases", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--only", action="append", metavar="CASE", help="play this case; may be given more than once")
    parser.add_argument("--operation", action="append", choices=sorted({*MOMENTS, *ENGINES}), help="default: all; failover: however the primary is lost")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="workers, each with a site of its own (default 2)")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    options = parser.parse_args()
    wanted = options.operation or ENGINES
    operations = [name for name in MOMENTS if name in wanted or name.partition("-")[0] in wanted]
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "big")
    cases = [Case.parse(text) for text in options.only] if options.only else choose(operations, seed, options.cases)
    if options.list:
        print("\n".join(case.id for case in cases))
        return 0
    if os.geteuid() != 0:
        parser.error("servers and poolers run as user postgres and a file system is mounted: run it as root")
    print("seed %d, %d cases" % (seed, len(cases)), flush=True)
    waiting, done = multiprocessing.Queue(), multiprocessing.Queue()
    for case in cases:
        waiting.put(case.id)
    workers = [multiprocessing.Process(target=play_some, args=[waiting, done]) for _n in range(min(options.jobs, len(cases)))]
    for worker in workers:
        worker.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_a: [worker.terminate() for worker in workers])
    results, working = [], len(workers)
    while working:
        try:
            played = done.get(timeout=5)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                break
            continue
        if played is None:
            working -= 1
            continue
        results.append(played)
        print("%4d %5.1f s  %-80s %s%s" % (len(results), played.seconds, played.case, played.outcome, "  VIOLATED" if played.violations else ""), flush=True)
        if played.violations or options.only:
            print(played.story(), flush=True)
    for worker in workers:
        worker.join()
    print("\n%s\n\nseed %d" % (table(results), seed))
    broken = [played.case for played in results if played.violations]
    if len(results) < len(cases):
        print("%d cases were not played" % (len(cases) - len(results)))
    if broken:
        print("%d of %d cases broke a rule. Replay with:" % (len(broken), len(results)))
        print("\n".join("  tests/chaos/run.py --only '%s'" % case for case in broken))
    return 1 if broken or len(results) < len(cases) else 0


if __name__ == "__main__":
    sys.exit(main())
