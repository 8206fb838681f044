# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Which server stands behind an entry of a pooler: asked through its alias, or directly where the entry leads."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from .._sql.connection import Session, Target, connect
from .._wait import Deadline

# A server that was just left by RELOAD may serve one more query from a connection that is still being closed.
SETTLE_SECONDS = 1.0

_QUESTION = "SELECT pg_catalog.pg_is_in_recovery() AS standby, pg_catalog.host(pg_catalog.inet_server_addr()) AS address, pg_catalog.inet_server_port() AS port"


@dataclasses.dataclass(frozen=True)
class Alias:
    """An entry of a pooler as its clients know it. ``role`` is ``primary``, ``standby``, or None for whatever answers."""

    name: str
    role: str | None
    target: Target

    def __str__(self) -> str:
        return '%s database "%s"' % (self.target, self.name)


def behind(alias: Alias, deadline: Deadline) -> dict[str, t.Any]:
    """Who answers behind an alias. Asks again for a moment while it is another role than expected."""
    settle = deadline.within(SETTLE_SECONDS)
    while True:
        # Without start-up options, which PgBouncer refuses, and by the simple protocol, which holds the bound.
        found = _ask(connect(alias.target, timeout=deadline.left, console=True), deadline)
        if alias.role in (None, found["role"]) or settle.passed:
            return found
        time.sleep(0.1)


def server_at(target: Target, deadline: Deadline) -> dict[str, t.Any]:
    """Who answers at an address of a server; keys as of ``behind``."""
    return _ask(connect(target, timeout=deadline.left, read_only=True), deadline)


def _ask(session: Session, deadline: Deadline) -> dict[str, t.Any]:
    try:
        row = session.ask(_QUESTION, deadline)[0]
    finally:
        session.close()
    role = "standby" if row["standby"] == "t" else "primary"
    return {"role": role, "server_address": row["address"], "server_port": int(row["port"]) if row["port"] else None}
