# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""How a table of a wrapper is read and written under each runtime.

What users name is always a view, NAME. Behind it is the foreign table NAME_ft, which has the options and columns. With Multicorn the view reads that.
With PL/Python it reads the function NAME_scan, and writes go through a trigger. So changing the runtime replaces the view in place: it keeps its
rights, and what depends on it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._sql.connection import Session, sql
from .runtime import MULTICORN, PLPYTHON, SCHEMA

FOREIGN_SUFFIX, SCAN_SUFFIX, WRITE_SUFFIX = "_ft", "_scan", "_write"
WRITABLE = "writable through its view"
"""Comment of a foreign table that is. Multicorn needs no trigger, so that its tables cannot show it otherwise."""
KINDS = {
    "r": "a table", "p": "a table", "v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index", "c": "a type",
}  # fmt: skip
"""By pg_class.relkind."""
TYPE = re.compile(r'(?:[\w .,()\[\]]|"(?:[^"\0]|"")+")+')
"""What the text of a type may consist of."""
LONGEST_NAME = 63 - len(WRITE_SUFFIX)
"""In bytes, so that none of the names that are made of it is cut off."""

# Catalogs are replicated and packages are not: after a switchover this may be what a client sees.
_IMPORT = """
try:
    from pgfleet_fdw import plpython
except ImportError as error:
    plpy.error("this server's Python cannot import the package pgfleet_fdw: %s" % error, hint="Install it on every node of the cluster")
"""
_SCAN = _IMPORT + "return plpython.scan(plpy, GD, {table!r}, quals)\n"
_WRITE = _IMPORT + "return plpython.write(plpy, GD, TD, {table!r})\n"
OUTBOX_NAME = "%s.outbox" % SCHEMA
OUTBOX = [
    "CREATE TABLE pgfleet_fdw.outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, relation text NOT NULL, operation text NOT NULL, row_id jsonb,"
    " new jsonb)",
    "CREATE FUNCTION pgfleet_fdw.apply_outbox () RETURNS trigger LANGUAGE plpython3u SECURITY DEFINER SET search_path = pg_catalog AS $$\n"
    "%sreturn plpython.apply(plpy, GD, TD)\n$$" % _IMPORT,
    "CREATE CONSTRAINT TRIGGER apply AFTER INSERT ON pgfleet_fdw.outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    " EXECUTE FUNCTION pgfleet_fdw.apply_outbox ()",
]
"""Rows wait here within their transaction only, so that savepoints count; at its end each is applied and gone."""


@dataclasses.dataclass(frozen=True)
class Hosted:
    """A table of a wrapper. ``runtime`` is by what its view is read now, None where the view is missing. ``writable``: its view has, or had, a trigger."""

    schema: str
    name: str
    server: str
    runtime: t.Optional[str]
    rows: t.Optional[float]
    writable: bool


def names(schema: str, name: str, suffix: str = "") -> t.Any:
    return sql.SQL("{}.{}").format(sql.Identifier(schema), sql.Identifier(name + suffix))


def read_hosted(session: Session, wrapper: str) -> list[Hosted]:
    """All tables of one foreign-data wrapper that have, or could have, a view."""
    rows = session.rows(
        "SELECT n.nspname AS schema, left(c.relname, -%s) AS name, s.srvname AS server, p.prorows AS rows,"
        " coalesce(obj_description(c.oid, 'pg_class') = %s, false) AS writable,"
        " CASE WHEN v.oid IS NULL THEN NULL WHEN EXISTS (SELECT FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
        "   WHERE r.ev_class = v.oid AND d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid) THEN %s ELSE %s END AS runtime"
        " FROM pg_foreign_table t JOIN pg_class c ON c.oid = t.ftrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_foreign_server s ON s.oid = t.ftserver JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw"
        " LEFT JOIN pg_class v ON v.relnamespace = n.oid AND v.relkind = 'v' AND v.relname = left(c.relname, -%s)"
        " LEFT JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = left(c.relname, -%s) || %s"
        " WHERE w.fdwname = %s AND c.relname LIKE '%%' || %s ORDER BY 1, 2",
        [
            len(FOREIGN_SUFFIX),
            WRITABLE,
            PLPYTHON,
            MULTICORN,
            len(FOREIGN_SUFFIX),
            len(FOREIGN_SUFFIX),
            SCAN_SUFFIX,
            wrapper,
            FOREIGN_SUFFIX.replace("_", r"\_"),
        ],
    )
    return [Hosted(**row) for row in rows]


def statements(runtime: str, schema: str, name: str, rows: int, writable: bool, replace: bool = False) -> list[t.Any]:
    """What makes the view read by a runtime. ``rows``: how many a scan yields, about. ``replace``: there is a view that has the same columns."""
    view, foreign, scan, write = (names(schema, name, suffix) for suffix in ("", FOREIGN_SUFFIX, SCAN_SUFFIX, WRITE_SUFFIX))
    # As a literal of Python.
    table = "%s.%s" % (_quoted(schema), _quoted(name + FOREIGN_SUFFIX))
    scan_call = None
    made = []
    if runtime == PLPYTHON:
        # The class and its options come from the catalogs, the caller gives conditions only: it may run with its owner's rights.
        made.append(
            sql.SQL(
                "CREATE OR REPLACE FUNCTION {scan} (quals jsonb DEFAULT NULL) RETURNS SETOF {foreign} LANGUAGE plpython3u STABLE SECURITY DEFINER"
                " SET search_path = pg_catalog ROWS {rows} COST 1000 AS {source}"
            ).format(scan=scan, foreign=foreign, rows=sql.Literal(rows), source=sql.Literal(_SCAN.format(table=table)))
        )
        made.append(sql.SQL("REVOKE ALL ON FUNCTION {} (jsonb) FROM PUBLIC").format(scan))
        scan_call = sql.SQL("{}()").format(scan)
    made.append(sql.SQL("CREATE {}VIEW {} AS SELECT * FROM {}").format(sql.SQL("OR REPLACE " if replace else ""), view, scan_call if scan_call else foreign))
    if runtime == PLPYTHON and writable:
        made.append(
            sql.SQL("CREATE OR REPLACE FUNCTION {} () RETURNS trigger LANGUAGE plpython3u SECURITY DEFINER SET search_path = pg_catalog AS {}").format(
                write, sql.Literal(_WRITE.format(table=table))
            )
        )
        # Before PostgreSQL 14 a trigger cannot be replaced.
        made.append(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(name + WRITE_SUFFIX), view))
        made.append(
            sql.SQL("CREATE TRIGGER {} INSTEAD OF INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION {} ()").format(
                sql.Identifier(name + WRITE_SUFFIX), view, write
            )
        )
    else:
        made.append(sql.SQL("DROP FUNCTION IF EXISTS {} () CASCADE").format(write))
    if runtime == MULTICORN:
        made.append(sql.SQL("DROP FUNCTION IF EXISTS {} (jsonb)").format(scan))
    made.append(sql.SQL("COMMENT ON FOREIGN TABLE {} IS {}").format(foreign, sql.Literal(WRITABLE if writable else None)))
    return made


def missing_callers(session: Session, schema: str, name: str) -> list[str]:
    """Roles that may read the view and not call the function behind it, which PostgreSQL asks them for as well."""
    rows = session.rows(
        "SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END AS role FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = c.relname || %s, aclexplode(c.relacl) a"
        " WHERE n.nspname = %s AND c.relname = %s AND a.privilege_type = 'SELECT'"
        " AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) b WHERE b.grantee = a.grantee AND b.privilege_type = 'EXECUTE') ORDER BY 1",
        [SCAN_SUFFIX, schema, name],
    )
    return [row["role"] for row in rows]


def _quoted(name: str) -> str:
    return '"%s"' % name.replace('"', '""')
