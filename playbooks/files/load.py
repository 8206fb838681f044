# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clients that write through poolers, one committed row at a time, and remember what they were told is committed.

Usage: load.py OPTIONS.json, with the keys poolers ([[host, port], ...]), dbname, user, passfile, table, clients, interval
(seconds between two rows of one client), duration (seconds, the upper bound), ready (file made once every client has
committed a row), stop (file that ends the load when it appears), report (file for the result) and, if the report is to
tell when each row was committed, how long its client waited for it and when each error came (seconds of the monotonic
clock), moments: true. The list
rows_per_connection says after how many rows a client opens a new connection, null for never; clients take its entries
in turn. Without it every fifth one opens a new connection for each ten rows, and the others keep theirs.

The report: rows acknowledged, connections opened, errors with their time, the longest time without any commit (outage_ms) and the longest
single commit. The rows are (run, client, sequence); which of them are missing is for the caller to ask the primary.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import psycopg


class Client(threading.Thread):
    """One client."""

    def __init__(self, number, options, stop):
        super().__init__(daemon=True)
        self.number = number
        self.options = options
        self.stop = stop
        self.host, self.port = options["poolers"][number % len(options["poolers"])]
        kinds = options.get("rows_per_connection") or [None, None, None, None, 10]
        self.rows_per_connection = kinds[number % len(kinds)]
        self.acknowledged = []
        self.errors = []
        self.longest = 0.0
        self.connection = None
        self.connections = 0

    def connect(self):
        options = self.options
        return psycopg.connect(
            host=self.host,
            port=self.port,
            dbname=options["dbname"],
            user=options["user"],
            passfile=options["passfile"],
            connect_timeout=30,
            autocommit=True,
            prepare_threshold=None,
        )

    def run(self):
        sequence = 0
        insert = "INSERT INTO %s (run, client, sequence) VALUES (%%s, %%s, %%s)" % self.options["table"]
        following = time.monotonic() + self.options["interval"] * self.number / self.options["clients"]
        while not self.stop.is_set():
            time.sleep(max(0.0, following - time.monotonic()))
            following = max(following + self.options["interval"], time.monotonic() - self.options["interval"])
            sequence += 1
            began = time.monotonic()
            try:
                if self.connection is None:
                    self.connection = self.connect()
                    self.connections += 1
                self.connection.execute(insert, (self.options["run"], self.number, sequence))
            except psycopg.Error as error:
                self.errors.append((time.monotonic(), type(error).__name__ + ": " + " ".join(str(error).split())[:200]))
                self._disconnect()
                time.sleep(0.02)
                continue
            ended = time.monotonic()
            self.longest = max(self.longest, ended - began)
            self.acknowledged.append((ended, sequence, ended - began))
            if self.rows_per_connection and sequence % self.rows_per_connection == 0:
                self._disconnect()
        self._disconnect()

    def _disconnect(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def main():
    with open(sys.argv[1], encoding="utf-8") as stream:
        options = json.load(stream)
    options["run"] = "%d-%d" % (time.time(), os.getpid())
    stop = threading.Event()
    clients = [Client(number, options, stop) for number in range(options["clients"])]
    end = time.monotonic() + options["duration"]
    for client in clients:
        client.start()
    ready = False
    while time.monotonic() < end and not os.path.exists(options["stop"]):
        if not ready and all(client.acknowledged for client in clients):
            with open(options["ready"], "w", encoding="utf-8"):
                ready = True
        time.sleep(0.05)
    stop.set()
    for client in clients:
        client.join(40)
    rows = sorted((moment, wait) for client in clients for moment, _sequence, wait in client.acknowledged)
    moments = [moment for moment, _wait in rows]
    gaps = [(later - sooner, sooner) for sooner, later in zip(moments, moments[1:])]
    errors = [error for client in clients for error in client.errors]
    report = {
        "run": options["run"],
        "ready": ready,
        "unfinished_clients": sum(client.is_alive() for client in clients),
        "acknowledged": {str(client.number): [sequence for _moment, sequence, _wait in client.acknowledged] for client in clients},
        "commits": len(moments),
        "connections": sum(client.connections for client in clients),
        "errors": len(errors),
        "error_texts": sorted({text for _moment, text in errors}),
        "outage_ms": round(max(gaps)[0] * 1000, 1) if gaps else None,
        "median_gap_ms": round(sorted(gap for gap, _start in gaps)[len(gaps) // 2] * 1000, 2) if gaps else None,
        "longest_commit_ms": round(max(client.longest for client in clients) * 1000, 1),
    }
    if options.get("moments"):
        report["moments"] = moments
        report["waits"] = [wait for _moment, wait in rows]
        report["error_moments"] = sorted(moment for moment, _text in errors)
    with open(options["report"] + ".new", "w", encoding="utf-8") as stream:
        json.dump(report, stream)
    os.rename(options["report"] + ".new", options["report"])


if __name__ == "__main__":
    main()
