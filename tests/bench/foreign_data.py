# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many rows a second come from a class in Python, beside a plain set-returning function in PL/Python and one in SQL; and with Multicorn where it is.

Machines differ and are noisy: only the ratios mean something. Needs root and the tests' packages. docs/bench/README.md says what the figures are.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import figures
import report
from fdw_packages import install_packages
from lab import BIN, Lab, call_module

ROWS = 200000
CLASSES = '''
from pgfleet_fdw import Wrapper

class Mappings(Wrapper):
    def scan(self, quals, columns):
        for n in range(%(rows)d):
            yield {"n": n, "word": "word", "other": "other", "more": 2.5, "at": "2026-01-01 00:00:00"}

class Sequences(Wrapper):
    def scan(self, quals, columns):
        for n in range(%(rows)d):
            yield n, "word", "other", 2.5, "2026-01-01 00:00:00"
''' % {"rows": ROWS}
COLUMNS = "n int, word text, other text, more float8, at timestamp"
PLAIN = "plain function in PL/Python"
NAMES = {"plpython": "PL/Python", "multicorn": "Multicorn"}
KINDS = ("mappings", "sequences")


def available(server, wanted):
    """The runtimes of which this machine has the files; says which it has not."""
    found = []
    for runtime in wanted:
        extension = {"plpython": "plpython3u", "multicorn": "multicorn"}[runtime]
        if server.sql("SELECT 1 FROM pg_available_extensions WHERE name = %s", [extension]):
            found.append(runtime)
        else:
            print("Not measured: %s, as pg_available_extensions has no %s" % (NAMES[runtime], extension), file=sys.stderr)
    return found


def prepare(server, runtimes):
    """What is measured, by its name, as it stands in FROM."""
    columns = [dict(zip(("name", "type"), column.split())) for column in COLUMNS.split(", ")]
    methods, results = {}, []
    for runtime in runtimes:
        results.append(call_module("fdw_wrapper", {**server.login, "name": runtime, "packages": ["bench_fdw"], "runtime": runtime}))
        for kind in KINDS:
            name, options = "%s_%s" % (kind, runtime), {"wrapper": "bench_fdw.%s" % kind.title()}
            results.append(call_module("fdw_server", {**server.login, "name": name, "wrapper": runtime, "options": options}))
            results.append(call_module("fdw_table", {**server.login, "name": name, "server": name, "columns": columns, "rows": ROWS}))
            methods["class in %s, %s" % (NAMES[runtime], kind)] = name
    failed = [result["msg"] for result in results if result["failed"]]
    if failed:
        sys.exit("\n".join(failed))
    server.sql("CREATE EXTENSION IF NOT EXISTS plpython3u")
    server.sql("CREATE TYPE yielded AS (%s)" % COLUMNS)
    server.sql(
        "CREATE FUNCTION plain() RETURNS SETOF yielded LANGUAGE plpython3u AS $$\nfor n in range(%d):\n"
        '    yield n, "word", "other", 2.5, "2026-01-01 00:00:00"\n$$' % ROWS
    )
    server.sql(
        "CREATE FUNCTION in_sql() RETURNS SETOF yielded LANGUAGE sql AS $$"
        "SELECT n, 'word'::text, 'other'::text, 2.5::float8, '2026-01-01 00:00:00'::timestamp FROM generate_series(1, %d) AS n $$" % ROWS
    )
    return {**methods, PLAIN: "plain()", "plain function in SQL": "in_sql()"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", choices=list(NAMES), help="only this one; else all that the machine has")
    parser.add_argument("--write", type=pathlib.Path, metavar="DIRECTORY", help="put the table into README.md there")
    options = parser.parse_args()
    lab, loads = Lab(), [os.getloadavg()[0]]
    try:
        server = lab.postgres("rows", environment={"PYTHONPATH": str(install_packages(lab, bench_fdw=CLASSES))}).init().start()
        runtimes = available(server, [options.runtime] if options.runtime else list(NAMES))
        methods = prepare(server, runtimes)
        took = {method: [] for method in methods}
        with server.connect() as session:
            for _round in range(options.rounds):
                for method, source in methods.items():
                    began = time.monotonic()
                    assert session.execute("SELECT count(*), max(n), min(at) FROM %s" % source).fetchone()[0] == ROWS
                    took[method].append(time.monotonic() - began)
                loads.append(os.getloadavg()[0])
    finally:
        lab.close()
    base = statistics.median(took[PLAIN])
    header = ["method", "rows per second, median", "slowest to fastest", "rounds", "times the plain function's time"]
    rows = [header] + [
        [
            method, "%d" % (ROWS / statistics.median(times)), "%d to %d" % (ROWS / max(times), ROWS / min(times)), "%d" % len(times),
            "%.2f" % (statistics.median(times) / base),
        ]
        for method, times in took.items()
    ]  # fmt: skip
    print(figures.as_text(rows))
    if options.write:
        notes = [*report.machine(BIN, loads), "%d rows of five columns for each scan, classes in %s" % (ROWS, ", ".join(NAMES[one] for one in runtimes))]
        report.write_table(options.write, "foreign_data", notes, rows)


if __name__ == "__main__":
    main()
