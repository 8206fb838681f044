# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it takes to register a fleet with PoWA: all servers in one task beside a task for each, and the same again without a change.

Machines differ and are noisy: only the ratios mean something. Needs root and the tests' packages (make bench). A task for each server is
measured with a few of them and multiplied, as a thousand would take most of an hour.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

from lab import GENERATIONS, Lab, ansible_environment


def servers(count, first=1):
    return [
        {"alias": "prod%d" % number, "host": "10.0.%d.%d" % divmod(number, 256), "extensions": ["pg_qualstats", "pg_stat_kcache", "pg_wait_sampling"]}
        for number in range(first, first + count)
    ]


def play(repository, tasks):
    """Seconds that a playbook takes, and whether it changed anything."""
    base = repository.base
    (base / "play.json").write_text(json.dumps([{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]))
    began = time.monotonic()
    done = subprocess.run(
        [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(base / "play.json")], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=ansible_environment(),
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout[-3000:])
    return time.monotonic() - began, "changed=0" not in done.stdout


def task(repository, entries):
    return {"pgfleet.ops.powa_server": {**repository.login, "servers": entries}}


def measure(lab, generation, fleet, few):
    repository = lab.postgres("repository-" + generation.name, system=generation.system).init().start()
    repository.sql("CREATE DATABASE powa")
    repository.sql("CREATE EXTENSION powa CASCADE", dbname="powa")
    start, _changed = play(repository, [{"ansible.builtin.meta": "noop"}])
    one_by_one, _changed = play(repository, [task(repository, [entry]) for entry in servers(few)])
    again_one_by_one, _changed = play(repository, [task(repository, [entry]) for entry in servers(few)])
    repository.sql("DELETE FROM powa_servers WHERE id > 0", dbname="powa")
    at_once, changed = play(repository, [task(repository, servers(fleet))])
    again, changed_again = play(repository, [task(repository, servers(fleet))])
    if not changed or changed_again or repository.value("SELECT count(*) FROM powa_servers WHERE id > 0", dbname="powa") != fleet:
        sys.exit("the servers were not registered as they should be")
    for what, ours, each in (("register", at_once, one_by_one), ("again, no change", again, again_one_by_one)):
        theirs = (each - start) / few * fleet + start
        print(
            "PoWA %-6s %-18s %5d servers: one task %7.1f s   a task for each %8.1f s (from %d)   ratio %6.1f"
            % (generation.powa, what, fleet, ours, theirs, few, theirs / ours),
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--few", type=int, default=20, help="how many are measured with a task for each")
    options = parser.parse_args()
    lab = Lab()
    try:
        for generation in GENERATIONS:
            measure(lab, generation, options.servers, options.few)
    finally:
        lab.close()


if __name__ == "__main__":
    main()
