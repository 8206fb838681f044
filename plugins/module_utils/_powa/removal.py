# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What goes with extensions that are dropped from a database, and what stands in the way."""

from __future__ import annotations

import dataclasses
import typing as t

from .._sql.connection import Session, sql
from .repository import Installed

# Tables with more rows are not counted but estimated.
COUNTED_ROWS = 100000


@dataclasses.dataclass(frozen=True)
class Footprint:
    """``servers`` are those registered, ``rows`` and ``bytes`` the history in the tables of the extensions.

    ``datasources`` are tables of others that refer to powa_servers, ``dependents`` all other objects that the extensions do not own
    and that cannot be without them. ``collectors`` are sessions of collectors.
    """

    servers: t.Sequence[str] = ()
    rows: int = 0
    bytes: int = 0
    datasources: t.Sequence[str] = ()
    dependents: t.Sequence[str] = ()
    collectors: t.Sequence[str] = ()

    @property
    def history(self) -> str:
        return "%d registered servers, %s%d rows of history (%d bytes)" % (
            len(self.servers),
            "about " if self.rows >= COUNTED_ROWS else "",
            self.rows,
            self.bytes,
        )


def read_footprint(session: Session, extensions: t.Mapping[str, Installed]) -> Footprint:
    """Ask about installed extensions that are to be dropped, powa perhaps among them."""
    powa = extensions.get("powa")
    servers = sql.Identifier(powa.schema, "powa_servers") if powa else None
    # PoWA 3 has no such table.
    has_servers = powa is not None and session.value("SELECT to_regclass(format('%%I.powa_servers', %s::text)) IS NOT NULL", [powa.schema])
    registered = []
    if has_servers:
        query = sql.SQL("SELECT coalesce(alias, hostname || ':' || port) AS name FROM {} WHERE id > 0 ORDER BY id").format(servers)
        registered = [row["name"] for row in session.rows(query)]
    rows, size = _history(session, list(extensions))
    datasources, dependents = _dependents(session, list(extensions))
    collectors = session.rows(
        "SELECT application_name AS name, backend_type AS type FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND application_name LIKE 'PoWA%%' ORDER BY backend_start",
        [],
    )
    return Footprint(registered, rows, size, datasources, dependents, ["%(name)s (%(type)s)" % row for row in collectors])


def _history(session: Session, extensions: list[str]) -> tuple[int, int]:
    tables = session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, c.reltuples::bigint AS estimate, pg_total_relation_size(c.oid) AS size"
        " FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass"
        " JOIN pg_class c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE d.deptype = 'e' AND e.extname = ANY (%s) AND c.relkind IN ('r', 'p') AND c.relname LIKE '%%\\_history%%' ORDER BY 1, 2",
        [extensions],
    )
    rows = 0
    for table in tables:
        query = sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT {}) AS first").format(sql.Identifier(table["schema"], table["name"]), COUNTED_ROWS)
        counted = session.value(query)
        rows += counted if counted < COUNTED_ROWS else max(counted, table["estimate"])
    return rows, sum(table["size"] for table in tables)


def _dependents(session: Session, extensions: list[str]) -> tuple[list[str], list[str]]:
    """What DROP EXTENSION without CASCADE would refuse for: tables of custom datasources, and descriptions of other objects."""
    found = session.rows(
        "WITH RECURSIVE dropped(classid, objid) AS ("
        " SELECT 'pg_extension'::regclass::oid, oid FROM pg_extension WHERE extname = ANY (%s)"
        " UNION SELECT d.classid, d.objid FROM pg_depend d JOIN dropped ON d.refclassid = dropped.classid AND d.refobjid = dropped.objid"
        # All but normal dependencies: what they hold goes along.
        " WHERE d.deptype <> 'n')"
        # A view is found by its rule, and what another extension owns is that extension's.
        ", needing AS (SELECT CASE WHEN v.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END AS classid, coalesce(v.ev_class, d.objid) AS objid,"
        " CASE WHEN v.oid IS NULL THEN d.objsubid ELSE 0 END AS objsubid"
        " FROM pg_depend d JOIN dropped ON d.refclassid = dropped.classid AND d.refobjid = dropped.objid"
        " LEFT JOIN pg_rewrite v ON d.classid = 'pg_rewrite'::regclass AND v.oid = d.objid"
        " WHERE d.deptype = 'n' AND NOT EXISTS (SELECT FROM dropped o WHERE o.classid = d.classid AND o.objid = d.objid))"
        " SELECT DISTINCT coalesce('extension ' || e.extname, f.conrelid::regclass::text, pg_describe_object(n.classid, n.objid, n.objsubid)) AS name,"
        " f.oid IS NOT NULL AS datasource FROM needing n"
        " LEFT JOIN pg_depend m ON m.classid = n.classid AND m.objid = n.objid AND m.deptype = 'e'"
        " LEFT JOIN pg_extension e ON e.oid = m.refobjid"
        " LEFT JOIN pg_constraint f ON n.classid = 'pg_constraint'::regclass AND f.oid = n.objid AND f.contype = 'f'"
        " AND f.confrelid IN (SELECT oid FROM pg_class WHERE relname = 'powa_servers') ORDER BY 1",
        [extensions],
    )
    return [row["name"] for row in found if row["datasource"]], [row["name"] for row in found if not row["datasource"]]
