# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pg_clone costs beside bare pg_basebackup and a start, and what a rewind or a rejoin saves over a new copy.

Each round does everything once, one after the other, and medians are compared: machines differ and are noisy, only the ratios mean something.
The module's own process is measured, without Ansible around it, as the bare commands are without one. Needs root and the tests' packages (make bench).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from lab import SUPERUSER_PASSWORD, Lab, call_module, module_library, wait_until


def bare(node, source):
    """pg_basebackup with a slot into a new directory, configured by hand, started until it streams."""
    shutil.rmtree(node.data, ignore_errors=True)
    began = time.monotonic()
    node._run("pg_basebackup", "-D", node.data, "-h", "127.0.0.1", "-p", source.port, "-U", "postgres", "-c", "fast", "-X", "stream", "-C", "-S", node.name,
              env={**os.environ, "PGPASSWORD": SUPERUSER_PASSWORD}, timeout=3600)  # fmt: skip
    node.follow(source)
    node.start()
    wait_until(lambda: streams(source, node), 120, 0.02)
    return time.monotonic() - began


def streams(source, node):
    return source.value("SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'", [node.name])


def ours(node, source, **more):
    """Seconds that pg_clone takes, and its result."""
    options = {
        "data_directory": node.data, "config_file": node.config_file, "log_file": node.log, "method": "pg_ctl", "timeout": 120,
        "source_host": "127.0.0.1", "source_port": source.port, "login_user": "postgres", "login_password": SUPERUSER_PASSWORD,
        "replication_user": "postgres", "replication_passfile": node.passfile, "slot_name": node.name, "application_name": node.name, **more,
    }  # fmt: skip
    began = time.monotonic()
    result = call_module("pg_clone", options)
    took = time.monotonic() - began
    if result["failed"]:
        sys.exit("pg_clone failed: %s" % result)
    # The source may still call it catching up.
    wait_until(lambda: streams(source, node), 60)
    return took, result


def remove(node, source):
    node.stop("immediate")
    shutil.rmtree(node.data)
    wait_until(lambda: not source.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [node.name]), 60)
    source.sql("SELECT pg_drop_replication_slot(%s)", [node.name])


def fill(source, megabytes):
    source.sql("CREATE TABLE filler (id int, text text)")
    source.sql("ALTER TABLE filler ALTER text SET STORAGE EXTERNAL")
    for part in range(0, megabytes, 50):
        source.sql("INSERT INTO filler SELECT g, repeat(md5(g::text), 31) FROM generate_series(%s, %s) g", [part * 1000, (part + 50) * 1000 - 1])
    source.sql("CREATE TABLE small AS SELECT g AS i, 0 AS n FROM generate_series(1, 200000) g")
    source.sql("CHECKPOINT")
    return source.value("SELECT sum(pg_tablespace_size(oid)) FROM pg_tablespace")


def caught_up(primary, standby):
    position = primary.value("SELECT pg_current_wal_flush_lsn()")
    wait_until(lambda: standby.value("SELECT pg_last_wal_replay_lsn() >= %s", [position]), 120)


def promote(node):
    node.sql("SELECT pg_promote()")
    wait_until(lambda: not node.in_recovery, 60)


def copies(lab, source, rounds):
    node = lab.postgres("copied")
    times = {"bare": [], "verify: false": [], "verify: true": []}
    for number in range(rounds):
        # In another order each time, as each run finds a cache that the one before has warmed.
        for what in sorted(times, key=lambda name: (list(times).index(name) + number) % 3):
            times[what].append(bare(node, source) if what == "bare" else ours(node, source, verify=what == "verify: true")[0])
            remove(node, source)
    return times


def returns(lab, source, rounds, settings):
    """The old primary comes back: after a clean switchover, after 20000 rows changed on both sides, and the latter by a new copy."""
    times = {"rejoin": [], "rewind": [], "new copy": []}
    copied = {"rejoin": [], "rewind": []}
    nodes = [source, lab.postgres("other", settings=settings)]
    ours(nodes[1], source, verify=False)
    for number in range(3 * rounds):
        old, new = nodes
        what = list(times)[number % 3]
        caught_up(old, new)
        if what == "rejoin":
            old.stop()
        else:
            new.stop()
            old.sql("UPDATE small SET n = n + 1 WHERE i <= 20000")
            old.stop()
            new.start()
        promote(new)
        new.sql("UPDATE small SET n = n + 1 WHERE i > 180000")
        took, result = ours(old, new, verify=False, reclone=what != "rejoin", copy_method="basebackup" if what == "new copy" else "rewind")
        if result["copy_method"] != ("basebackup" if what == "new copy" else what):
            sys.exit("it was to be %s and was %s: %s" % (what, result["copy_method"], result["rewind_problem"]))
        times[what].append(took)
        if what in copied:
            copied[what].append(result["copied_bytes"])
        nodes.reverse()
    return times, copied


def shown(seconds):
    return "%6.2f s [%.2f to %.2f]" % (statistics.median(seconds), min(seconds), max(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the source's data")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    module_library()
    lab = Lab()
    try:
        # pg_rewind copies all of the source's pg_wal, so that its size counts.
        settings = {"min_wal_size": "32MB", "max_wal_size": "64MB", "wal_keep_size": "0"}
        source = lab.postgres("source", settings=settings).init().start()
        size = fill(source, options.megabytes)
        print("source: %d MB, %d rounds, medians [least to most]" % (size / 1048576, options.rounds), flush=True)
        times = copies(lab, source, options.rounds)
        base = statistics.median(times["bare"])
        print("pg_basebackup and start   %s" % shown(times["bare"]))
        for what in ("verify: false", "verify: true"):
            print("pg_clone %-16s %s   %.2f times" % (what, shown(times[what]), statistics.median(times[what]) / base), flush=True)
        times, copied = returns(lab, source, options.rounds, settings)
        base = statistics.median(times["new copy"])
        print("old primary, new copy     %s" % shown(times["new copy"]))
        for what in ("rewind", "rejoin"):
            bytes_copied = statistics.median(copied[what])
            print(
                "old primary, %-12s %s   %.2f times   %d MB copied (%.1f %%)"
                % (what, shown(times[what]), statistics.median(times[what]) / base, bytes_copied / 1048576, 100 * bytes_copied / size),
                flush=True,
            )
    finally:
        lab.close()


if __name__ == "__main__":
    main()
