# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What a standby streams from: its connection string, its slot, and the login that they lead to."""

from __future__ import annotations

import typing as t

from .._errors import Refused
from .._wait import Deadline, wait_for
from .connection import Session, Target, connect, sql
from .settings import change_settings
from .values import build_conninfo, parse_conninfo

# Where the standby went before, and what libpq or the walreceiver sets itself.
_NOT_KEPT = ("hostaddr", "dbname", "replication", "fallback_application_name")
SECRET_KEYWORDS = ("password", "sslpassword")

# Names of settings with which a standby ends its recovery by itself. In force, or in a file and waiting for a start: the
# start of a primary as a standby would be that start.
ENDS_RECOVERY = """
SELECT DISTINCT name FROM (SELECT name, setting FROM pg_settings UNION ALL SELECT name, setting FROM pg_file_settings) AS s
WHERE setting <> '' AND name IN ('recovery_target', 'recovery_target_lsn', 'recovery_target_name', 'recovery_target_time',
  'recovery_target_xid', 'promote_trigger_file') ORDER BY name
"""

# A walreceiver calls itself streaming before it has asked its upstream for anything (WalReceiverMain sets the state, walreceiver.c), and again each time
# that it is refused, for a missing slot for example. Its three times are one moment until the upstream has sent something. An upstream that has nothing
# to send may be silent for long, but it is waited for in the main loop only.
RECEIVER = """
SELECT w.pid, CASE WHEN w.status = 'streaming' AND w.last_msg_send_time = w.last_msg_receipt_time AND a.wait_event IS DISTINCT FROM 'WalReceiverMain'
                   THEN 'starting' ELSE w.status END AS status,
       w.sender_host, w.sender_port, w.slot_name, w.received_tli AS timeline, w.latest_end_lsn
FROM pg_stat_wal_receiver AS w LEFT JOIN pg_stat_activity AS a ON a.pid = w.pid WHERE w.pid IS NOT NULL
"""


def led_conninfo(who: str, model: str, defaults: t.Mapping[str, t.Any], changes: t.Mapping[str, t.Any]) -> str:
    """A primary_conninfo made of an existing one: ``defaults`` fill what it lacks, ``changes`` (host and port at least) win.

    Raises Refused where it cannot be read, or holds a password.
    """
    try:
        keywords = parse_conninfo(model)
    except ValueError as error:
        raise Refused(
            "the setting primary_conninfo of %s, or the one that serves as its model, cannot be read: %s" % (who, error),
            expected="keyword=value pairs, as in host=db1 user=replication",
            action="Set it in that form, or name the keywords in the options",
        ) from None
    if any(keyword in keywords for keyword in SECRET_KEYWORDS):
        raise Refused(
            "the setting primary_conninfo of %s, or the one that serves as its model, holds a password" % who,
            expected="a passfile: a change of the setting is printed to the server's log",
        )
    missing = {key: value for key, value in defaults.items() if key not in keywords}
    return build_conninfo({key: value for key, value in {**keywords, **missing, **changes}.items() if key not in _NOT_KEPT})


def point_at(session: Session, conninfo: str, slot: str | None) -> None:
    """Lead a standby to an upstream. PostgreSQL 13 and later take both settings by reload.

    By one reload: the new slot at the old upstream would cost the walreceiver a failure, and the wait after it.
    """
    change_settings(session, {**({"primary_slot_name": slot} if slot is not None else {}), "primary_conninfo": conninfo})


def receiver(session: Session) -> dict[str, t.Any]:
    """What the standby's walreceiver does now: status, sender_host, sender_port, timeline, slot_name, latest_end_lsn; empty where none runs."""
    return session.row(RECEIVER) or {}


def ensure_slot(session: Session, name: str, deadline: Deadline) -> bool:
    """A physical slot that holds WAL from the last checkpoint on, not only from its first use. Whether it was not there.

    One that has lost WAL serves nobody any more, even where the WAL is there: it is made anew. Raises WaitTimeout, after which the session is of no more
    use.
    """
    _drop_slot(session, name, sql.SQL("wal_status = 'lost' AND NOT active"), deadline)
    statement = sql.SQL(
        "SELECT pg_create_physical_replication_slot(name, true) FROM (VALUES ({}::name)) AS wanted (name)"
        " WHERE name NOT IN (SELECT slot_name FROM pg_replication_slots)"
    )
    return bool(session.ask(statement.format(sql.Literal(name)).as_string(session.connection), deadline))


def drop_idle_slot(session: Session, name: str, deadline: Deadline) -> None:
    """Where there is such a slot and nobody uses it now. Raises WaitTimeout, after which the session is of no more use."""
    _drop_slot(session, name, sql.SQL("NOT active"), deadline)


def drop_slot_when_idle(session: Session, name: str, deadline: Deadline) -> None:
    """A walsender may take a moment to notice that its client is gone. Raises WaitTimeout, QueryFailed where somebody else uses it."""
    wait_for(
        "the end of the use of slot %s on %s" % (name, session.target),
        lambda: session.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [name]),
        lambda active: not active,
        deadline,
    )
    _drop_slot(session, name, sql.SQL("true"), deadline)


def _drop_slot(session: Session, name: str, condition: sql.SQL, deadline: Deadline) -> None:
    statement = sql.SQL("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {} AND {}")
    session.ask(statement.format(sql.Literal(name), condition).as_string(session.connection), deadline)


def connect_for_replication(conninfo: t.Mapping[str, t.Any], password: str | None) -> Session:
    """Log in as a standby would, for ``ask``. Raises AuthenticationFailed, NotReachable."""
    own = ("host", "port", "user")
    target = Target(
        host=str(conninfo.get("host") or ""), port=int(conninfo.get("port") or 5432), user=str(conninfo.get("user") or ""), dbname="replication",
        password=password, extra={"replication": "true", **{key: value for key, value in conninfo.items() if key not in own and value not in (None, "")}},
    )  # fmt: skip
    return connect(target, timeout=10, console=True)


def identify_by_replication(conninfo: t.Mapping[str, t.Any], password: str | None) -> str:
    """Log in as a standby would and ask for the system identifier. Raises AuthenticationFailed, NotReachable."""
    session = connect_for_replication(conninfo, password)
    try:
        return str(session.ask("IDENTIFY_SYSTEM", Deadline(10))[0]["systemid"])
    finally:
        session.close()
