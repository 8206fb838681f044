# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same switchover by hand: what a skilled person writes for this one cluster, without the checks and the ways back of the module.

Each function makes ``candidate`` the primary of a site, leads its poolers there and brings the old primary back as a standby. It returns what is to be
called once the load has ended, or None.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import time

from lab import BIN, run, wait_until
from psycopg import sql

# pg_control's state of a server that has been shut down cleanly as a primary.
SHUT_DOWN = 1
# Given to the poolers' new server connections, so that they can be opened before the promotion has ended.
WAIT_FOR_PROMOTION = "do $$begin while pg_is_in_recovery() loop perform pg_sleep(0.0005); end loop; end$$"


def databases(pooler, node, more=""):
    """The pooler's file with app led to a node, put in place at once."""
    text = "".join(
        "app = host=127.0.0.1 port=%d dbname=app%s\n" % (node.port, more) if line.startswith("app = ") else line
        for line in pooler.databases_file.read_text().splitlines(True)
    )
    new = pooler.base / "databases.new"
    pooler._write(new, text)
    os.rename(new, pooler.databases_file)


def prepare(old, new):
    """What all sequences do before clients notice anything: short checkpoints to come, and the old primary's way to the new one."""
    for node in (old, old, new):
        node.sql("CHECKPOINT")
    old.write(old.data / "standby.signal", "")
    conninfo = "host=127.0.0.1 port=%d user=postgres application_name=%s passfile=%s" % (new.port, old.name, old.passfile)
    for name, value in (("primary_conninfo", conninfo), ("primary_slot_name", old.name)):
        old.sql(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))


def rejoin(old, new):
    """The old primary as a standby of the new one."""
    new.sql("SELECT pg_create_physical_replication_slot(%s, true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)", [old.name] * 2)
    old.start()
    new.wait_for_standbys(1)
    old.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")


def simple(session, statement):
    """One value by the simple protocol: no parsing, no types, as fast as libpq can."""
    result = session.pgconn.exec_(statement)
    if result.error_message:
        raise RuntimeError("%s: %s" % (statement, result.error_message))
    return result.get_value(0, 0).decode() if result.ntuples else None


def position(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def control(node):
    """State and position of the last checkpoint from pg_control (PostgreSQL 13 to 18, little endian)."""
    return struct.unpack_from("<16xI12xQ", (node.data / "global" / "pg_control").read_bytes())


def logins(console):
    """How many server connections of a pooler are in login: a PAUSE that meets one makes PgBouncer take the pool for failed."""
    cursor = console.execute("SHOW POOLS")
    column = [entry.name for entry in cursor.description].index("sv_login")
    return sum(row[column] for row in cursor.fetchall())


def pause(consoles):
    """PAUSE on all consoles at once."""
    for console in consoles:
        console.pgconn.send_query(b"PAUSE app")
    waiting = list(consoles)
    while waiting:
        for console in select.select(waiting, [], [])[0]:
            console.pgconn.consume_input()
            if not console.pgconn.is_busy():
                while console.pgconn.get_result():
                    pass
                waiting.remove(console)


def libpq(site, candidate, guard=False):
    """The best sequence by hand: one process, all connections open before, polls of half a millisecond.

    With ``guard`` the poolers are resumed before the promotion, and their new server connections wait for its end.
    """
    old, new = site.primary, site.node(candidate)
    with contextlib.ExitStack() as stack:
        consoles = [stack.enter_context(contextlib.closing(pooler.console())) for pooler in site.poolers]
        before, after = stack.enter_context(contextlib.closing(old.connect())), stack.enter_context(contextlib.closing(new.connect()))
        simple(after, b"ALTER SYSTEM SET wal_retrieve_retry_interval = '5ms'")
        simple(after, b"SELECT pg_reload_conf()")
        prepare(old, new)
        pid = old.pid
        head = position(simple(before, b"SELECT pg_current_wal_flush_lsn()"))
        while position(simple(after, b"SELECT pg_last_wal_replay_lsn()")) < head:
            time.sleep(0.0005)
        end = time.monotonic() + 0.5
        while time.monotonic() < end and any(logins(console) for console in consoles):
            time.sleep(0.001)
        pause(consoles)
        os.kill(pid, signal.SIGINT)
        for pooler, console in zip(site.poolers, consoles):
            databases(pooler, new, " connect_query='%s'" % WAIT_FOR_PROMOTION if guard else "")
            simple(console, b"RELOAD")
        while control(old)[0] != SHUT_DOWN:
            time.sleep(0.0005)
        checkpoint = control(old)[1]
        while position(simple(after, b"SELECT pg_last_wal_replay_lsn()")) <= checkpoint:
            time.sleep(0.0005)
        if guard:
            for console in consoles:
                simple(console, b"RESUME app")
        simple(after, b"SELECT pg_promote(false)")
        while simple(after, b"SELECT pg_is_in_recovery()") == "t":
            time.sleep(0.001)
        if not guard:
            for console in consoles:
                simple(console, b"RESUME app")
        simple(after, b"ALTER SYSTEM RESET wal_retrieve_retry_interval")
        simple(after, b"SELECT pg_reload_conf()")
    wait_until(lambda: not old.pid, 60, 0.01)
    rejoin(old, new)

    def without_guard():
        for pooler in site.poolers:
            databases(pooler, new)
            with pooler.console() as console:
                console.execute("RELOAD")

    return without_guard if guard else None


def libpq_with_guard(site, candidate):
    return libpq(site, candidate, guard=True)


def tools(site, candidate):
    """The same with pg_ctl, which polls, and one console for each pooler: better than a playbook with a task for each step."""
    old, new = site.primary, site.node(candidate)
    consoles = [pooler.console() for pooler in site.poolers]
    prepare(old, new)
    pause(consoles)
    run([BIN / "pg_ctl", "-D", old.data, "-m", "fast", "-w", "-s", "stop"], user="postgres")
    for pooler, console in zip(site.poolers, consoles):
        databases(pooler, new)
        console.execute("RELOAD")
    run([BIN / "pg_ctl", "-D", new.data, "-w", "-s", "promote"], user="postgres")
    for console in consoles:
        console.execute("RESUME app")
        console.close()
    rejoin(old, new)


def handyrep(site, candidate):
    """What HandyRep's manual failover does with its default plugins, its commands run locally instead of by ssh.

    Stop, look at the replica, promote, ask each 3 s (fail_retry_interval) whether it has left recovery; then for one pooler after the other a new file
    and a restart that takes over the sockets (pgbouncer -R). It prepares no checkpoint, and leaves the old primary as it is: that is done here afterwards.
    """
    old, new = site.primary, site.node(candidate)
    run([BIN / "pg_ctl", "-D", old.data, "-l", old.data / "startup.log", "-w", "-t", "20", "-m", "fast", "stop"], user="postgres")
    if not new.in_recovery:
        raise RuntimeError("%s is no replica" % new.name)
    run([BIN / "pg_ctl", "-D", new.data, "promote"], user="postgres")
    with new.connect() as session:
        while session.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
            time.sleep(3)
    for pooler in site.poolers:
        databases(pooler, new)
        run(["/usr/sbin/pgbouncer", "-d", "-R", "-q", pooler.ini], user="postgres")
    old.follow(new)
    rejoin(old, new)
