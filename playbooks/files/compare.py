# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many of the rows that clients were told are committed a server does not hold.

Usage: compare.py OPTIONS.json, with the keys host, port, dbname, user, passfile, table and report (what load.py wrote).
Prints {"lost": N, "held": N, "server_is_primary": BOOL}.
"""

from __future__ import annotations

import json
import sys

import psycopg


def main():
    with open(sys.argv[1], encoding="utf-8") as stream:
        options = json.load(stream)
    with open(options["report"], encoding="utf-8") as stream:
        report = json.load(stream)
    acknowledged = {(int(client), sequence) for client, sequences in report["acknowledged"].items() for sequence in sequences}
    with psycopg.connect(**{key: options[key] for key in ("host", "port", "dbname", "user", "passfile")}, connect_timeout=10) as connection:
        rows = connection.execute("SELECT client, sequence FROM %s WHERE run = %%s" % options["table"], (report["run"],)).fetchall()
        primary = not connection.execute("SELECT pg_is_in_recovery()").fetchone()[0]
    print(json.dumps({"lost": len(acknowledged - set(rows)), "held": len(rows), "server_is_primary": primary}))


if __name__ == "__main__":
    main()
