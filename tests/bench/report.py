# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark leaves in the documentation: its table with the machine and the date, and its picture."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import re
import subprocess
import sys

import figures
import picture


def version(*argv):
    """The first thing in a program's output that looks like a version; None where the program is not there."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    except OSError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)*", done.stdout)
    return found.group() if found else None


def machine(postgresql, loads):
    """What was measured on and when, line by line. ``postgresql`` is the directory of its programs, ``loads`` the machine's load at each round."""
    release = re.search(r'^PRETTY_NAME="(.*)"', pathlib.Path("/etc/os-release").read_text(), re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    programs = {
        "PostgreSQL": [postgresql / "postgres", "--version"], "PgBouncer": ["/usr/sbin/pgbouncer", "--version"],
        "ansible-core": [pathlib.Path(sys.executable).parent / "ansible", "--version"], "Patroni": ["patroni", "--version"],
        "etcd": ["etcd", "--version"], "HAProxy": ["haproxy", "-v"],
    }  # fmt: skip
    versions = {name: version(*argv) for name, argv in programs.items()}
    return [
        "%s. %d cores, %.0f GB of memory, %s, kernel %s, load of the machine %.1f to %.1f"
        % (datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), os.cpu_count(), memory,
           release.group(1) if release else "Linux", platform.release().split("-")[0], min(loads), max(loads)),
        ", ".join("%s %s" % item for item in versions.items() if item[1]),
    ]  # fmt: skip


def heading(postgresql, loads, measurements):
    """The same, and how even the load was."""
    steady = "longest time between two commits before anything was done: %.0f ms (median of all rounds)" % figures.steady(measurements)
    return [*machine(postgresql, loads), steady]


def write_table(directory, name, lines, rows):
    """Replace the block of that name in README.md of the directory."""
    path = directory / "README.md"
    command = "tests/bench/%s %s" % (pathlib.Path(sys.argv[0]).name, " ".join(sys.argv[1:]))
    block = "\n".join("- %s" % line for line in [*lines, "`%s`" % command]) + "\n\n" + figures.as_markdown(rows)
    path.write_text(figures.replace_block(path.read_text(), name, block))


def write_picture(directory, name, title, notes, measurements, ours, zoom=0.5):
    """The round in the middle of each method, one line each, written to NAME.svg."""
    lines = []
    for method, rows in figures.by_method(measurements).items():
        row = figures.typical(rows)
        commits, failures = ([moment - row.zero for moment in moments] for moments in (row.commits, row.failures))
        lines.append(picture.Line(method, row.milliseconds / 1000, commits, failures, figures.duration(row.milliseconds), method == ours))
    (directory / (name + ".svg")).write_text(picture.svg(title, notes, lines, zoom))
