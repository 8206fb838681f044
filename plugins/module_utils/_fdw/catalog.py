# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Foreign data objects as the catalogs have them."""

from __future__ import annotations

import dataclasses
import typing as t

from .._sql.connection import Session


@dataclasses.dataclass(frozen=True)
class FoundWrapper:
    """A foreign-data wrapper; handler and validator with their schema, None where there is none."""

    name: str
    owner: str
    handler: t.Optional[str]
    validator: t.Optional[str]
    options: t.Mapping[str, str]
    extension: t.Optional[str]


@dataclasses.dataclass(frozen=True)
class FoundServer:
    name: str
    wrapper: str
    owner: str
    type: t.Optional[str]
    version: t.Optional[str]
    options: t.Mapping[str, str]
    usage: frozenset[t.Optional[str]]
    """Roles besides the owner that may use it; None is PUBLIC."""


@dataclasses.dataclass(frozen=True)
class FoundMapping:
    """``role`` None is PUBLIC. ``options`` is None where this session may not see them."""

    role: t.Optional[str]
    options: t.Optional[t.Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class FoundColumn:
    name: str
    type: str
    not_null: bool
    options: t.Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class FoundForeignTable:
    schema: str
    name: str
    server: str
    owner: str
    options: t.Mapping[str, str]
    columns: t.Sequence[FoundColumn]


def read_wrapper(session: Session, name: str) -> FoundWrapper | None:
    row = session.row(
        "SELECT w.fdwname AS name, pg_get_userbyid(w.fdwowner) AS owner, nullif(w.fdwhandler, 0)::regprocedure::text AS handler,"
        " nullif(w.fdwvalidator, 0)::regprocedure::text AS validator,"
        " (SELECT coalesce(json_object_agg(option_name, coalesce(option_value, '')), '{}') FROM pg_options_to_table(w.fdwoptions)) AS options,"
        " (SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid"
        "  WHERE d.classid = 'pg_foreign_data_wrapper'::regclass AND d.objid = w.oid AND d.deptype = 'e') AS extension"
        " FROM pg_foreign_data_wrapper w WHERE w.fdwname = %s",
        [name],
    )
    return None if row is None else FoundWrapper(**row)


def read_server(session: Session, name: str) -> FoundServer | None:
    row = session.row(
        "SELECT s.srvname AS name, w.fdwname AS wrapper, pg_get_userbyid(s.srvowner) AS owner, s.srvtype AS type, s.srvversion AS version,"
        " (SELECT coalesce(json_object_agg(option_name, coalesce(option_value, '')), '{}') FROM pg_options_to_table(s.srvoptions)) AS options,"
        " ARRAY(SELECT CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END FROM aclexplode(s.srvacl) a"
        "  WHERE a.privilege_type = 'USAGE' AND a.grantee <> s.srvowner) AS usage"
        " FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE s.srvname = %s",
        [name],
    )
    return None if row is None else FoundServer(**{**row, "usage": frozenset(row["usage"])})


def read_mappings(session: Session, server: str) -> list[FoundMapping]:
    rows = session.rows(
        "SELECT CASE umuser WHEN 0 THEN NULL ELSE usename::text END AS role, umoptions IS NOT NULL OR pg_has_role(session_user, s.srvowner, 'USAGE') AS seen,"
        " (SELECT coalesce(json_object_agg(option_name, coalesce(option_value, '')), '{}') FROM pg_options_to_table(m.umoptions)) AS options"
        " FROM pg_user_mappings m JOIN pg_foreign_server s ON s.oid = m.srvid WHERE m.srvname = %s ORDER BY 1 NULLS FIRST",
        [server],
    )
    return [FoundMapping(row["role"], row["options"] if row["seen"] else None) for row in rows]


def read_dependents(session: Session, server: str) -> list[str]:
    """What DROP ... CASCADE would take along, but for the server's own mappings."""
    rows = session.rows(
        "SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS what FROM pg_depend d JOIN pg_foreign_server s ON s.oid = d.refobjid"
        " WHERE d.refclassid = 'pg_foreign_server'::regclass AND d.deptype = 'n' AND d.classid <> 'pg_user_mapping'::regclass AND s.srvname = %s ORDER BY 1",
        [server],
    )
    return [row["what"] for row in rows]


def read_table(session: Session, schema: str, name: str) -> FoundForeignTable | None:
    """A foreign table; the types of its columns as format_type writes them."""
    row = session.row(
        "SELECT n.nspname AS schema, c.relname AS name, s.srvname AS server, pg_get_userbyid(c.relowner) AS owner,"
        " (SELECT coalesce(json_object_agg(option_name, coalesce(option_value, '')), '{}') FROM pg_options_to_table(f.ftoptions)) AS options,"
        " (SELECT coalesce(json_agg(json_build_object("
        "  'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull, 'options',"
        "  (SELECT coalesce(json_object_agg(option_name, coalesce(option_value, '')), '{}')"
        "   FROM pg_options_to_table(a.attfdwoptions)))"
        "   ORDER BY a.attnum), '[]')"
        "  FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns"
        " FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_foreign_server s ON s.oid = f.ftserver"
        " WHERE n.nspname = %s AND c.relname = %s",
        [schema, name],
    )
    return None if row is None else FoundForeignTable(**{**row, "columns": [FoundColumn(**column) for column in row["columns"]]})


def read_kind(session: Session, schema: str, name: str) -> str | None:
    """What relation has a name: r, v, f and so on as pg_class.relkind has it; None where there is none."""
    return session.value(
        "SELECT c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s", [schema, name]
    )


def read_users_of(session: Session, schema: str, name: str) -> list[str]:
    """What depends on a relation, other than itself: views, functions with a body in SQL, policies."""
    rows = session.rows(
        "SELECT DISTINCT CASE WHEN r.oid IS NULL THEN pg_describe_object(d.classid, d.objid, 0)"
        "  ELSE pg_describe_object('pg_class'::regclass, r.ev_class, 0) END AS what FROM pg_depend d JOIN pg_class c ON c.oid = d.refobjid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
        " WHERE d.refclassid = 'pg_class'::regclass AND n.nspname = %s AND c.relname = %s AND d.deptype = 'n' AND r.ev_class IS DISTINCT FROM c.oid ORDER BY 1",
        [schema, name],
    )
    return [row["what"] for row in rows]
