# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Functions, tables and types of one schema as the catalogs show them, and the statements that make them."""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from .._errors import InvalidInput, QueryFailed
from .._sql.connection import Session, sql
from .._sql.values import split_names
from .datasource import LABEL, MARK, Column, Function


@dataclasses.dataclass(frozen=True)
class FoundFunction:
    """One overload of a function. ``inputs`` are the types of its input arguments; ``mark`` is its comment."""

    name: str
    inputs: tuple[str, ...]
    arguments: str
    result: str
    returns_set: bool
    language: str
    body: str
    volatility: str
    security_definer: bool
    search_path: tuple[str, ...] | None
    mark: str
    trusted_owner: bool
    public_may_execute: bool
    executors: tuple[str, ...]

    @property
    def signature(self) -> str:
        return "%s(%s)" % (self.name, ", ".join(self.inputs))

    @property
    def made_here(self) -> bool:
        # Anybody can write our comment; whoever owns a function can change it at any time.
        return self.mark.startswith(MARK) and self.trusted_owner

    @property
    def definition(self) -> str:
        """The same form as ``Function.definition``, for a diff."""
        path = self.search_path or ()
        return Function(self.name, self.arguments, self.result, self.language, self.body, path, self.volatility, self.security_definer).definition


@dataclasses.dataclass(frozen=True)
class FoundTable:
    """A table or a composite type. ``columns`` are (name, type, not null); ``rights`` by role, the owner's left out (None: PUBLIC)."""

    name: str
    composite: bool
    unlogged: bool
    columns: tuple[tuple[str, str, bool], ...]
    mark: str
    rights: t.Mapping[str | None, frozenset[str]] = dataclasses.field(default_factory=dict)
    trusted_owner: bool = True

    @property
    def made_here(self) -> bool:
        return self.mark.startswith(MARK) and self.trusted_owner


def _trusted(alias: str, owner: str) -> t.Any:
    """Who may have made our objects: this role, the owner of PoWA, a superuser. ``alias`` and ``owner`` name the column with the owner's oid."""
    return sql.SQL(
        "(SELECT r.rolsuper OR r.rolname = current_user OR r.oid = (SELECT extowner FROM pg_extension WHERE extname = 'powa') FROM pg_roles r WHERE r.oid = {})"
    ).format(sql.Identifier(alias, owner))


def read_types(session: Session, columns: t.Iterable[Column]) -> tuple[dict[str, str], dict[str, str | None]]:
    """What the server calls the types of columns, and what kind of type each is, by what was declared.

    Kinds: None (unknown, or nothing that can be stored), "domain", "unequal" (values cannot be grouped), else the type's name.
    """
    names: dict[str, str] = {}
    categories: dict[str, str | None] = {}
    columns = list(columns)
    labels = {column.type for column in columns if column.kind == LABEL}
    for text in dict.fromkeys(column.type for column in columns):
        try:
            row = session.row(
                # With the modifier -1: bpchar and "bit" without a length, which character and bit would make 1.
                "SELECT format_type(oid, -1) AS name, typtype = 'd' AS is_domain FROM pg_type WHERE oid = to_regtype(%s)::oid AND typtype <> 'p'",
                [text],
            )
        except QueryFailed as error:
            raise InvalidInput('"%s" in columns is no type of PostgreSQL: %s' % (text, error.message)) from error
        if row is None:
            names[text], categories[text] = text, None
            continue
        names[text] = row["name"]
        categories[text] = "domain" if row["is_domain"] else row["name"] if text not in labels or _can_be_grouped(session, row["name"]) else "unequal"
    return names, categories


def _can_be_grouped(session: Session, type_name: str) -> bool:
    try:
        session.execute(sql.SQL("SELECT x FROM (SELECT NULL::{}) AS v (x) GROUP BY x").format(sql.SQL(type_name)))
    except QueryFailed:
        return False
    return True


def convertible(session: Session, pairs: t.Iterable[tuple[str, str]]) -> dict[tuple[str, str], bool]:
    """Whether PostgreSQL converts values of one type to another without being told to."""
    return {
        pair: pair[0] == pair[1]
        or pair[1] == "text"
        or bool(
            session.value(
                "SELECT EXISTS (SELECT FROM pg_cast WHERE castsource = to_regtype(%s)::oid AND casttarget = to_regtype(%s)::oid AND castcontext IN ('a', 'i'))",
                list(pair),
            )
        )
        for pair in pairs
    }


def read_functions(session: Session, schema: str, names: t.Collection[str]) -> dict[str, list[FoundFunction]]:
    """All overloads by name."""
    rows = session.rows(
        sql.SQL(
            "SELECT p.proname AS name, ARRAY(SELECT format_type(a.type, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a(type, n) ORDER BY a.n)"
            " AS inputs,"
            " pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result, p.proretset AS returns_set, l.lanname AS language,"
            " p.prosrc AS body, p.provolatile::text AS volatility, p.prosecdef AS security_definer, p.proconfig AS config,"
            " coalesce(obj_description(p.oid, 'pg_proc'), '') AS mark,"
            " EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0) AS public_may_execute,"
            " ARRAY(SELECT r.rolname::text FROM aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee WHERE a.grantee <> p.proowner"
            " ORDER BY 1) AS executors,"
            " {trusted} AS trusted_owner"
            " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang"
            " WHERE n.nspname = %s AND p.proname = ANY (%s) ORDER BY 1, 3"
        ).format(trusted=_trusted("p", "proowner")),
        [schema, list(names)],
    )
    found: dict[str, list[FoundFunction]] = {}
    for row in rows:
        config = dict(setting.split("=", 1) for setting in row.pop("config") or ())
        row["search_path"] = tuple(split_names(config["search_path"])) if "search_path" in config else None
        row["volatility"] = {"i": "IMMUTABLE", "s": "STABLE", "v": "VOLATILE"}[row["volatility"]]
        row["inputs"], row["executors"] = tuple(row["inputs"]), tuple(row["executors"])
        found.setdefault(row["name"], []).append(FoundFunction(**row))
    return found


def read_tables(session: Session, schema: str, names: t.Collection[str]) -> dict[str, FoundTable]:
    """Tables and composite types by name."""
    rows = session.rows(
        sql.SQL(
            "SELECT {trusted} AS trusted_owner, c.oid, c.relname AS name, c.relkind = 'c' AS composite, c.relpersistence = 'u' AS unlogged,"
            " coalesce(CASE WHEN c.relkind = 'c' THEN obj_description(c.reltype, 'pg_type') ELSE obj_description(c.oid, 'pg_class') END, '') AS mark"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind NOT IN ('i', 'I', 'S', 't') ORDER BY c.relname"
        ).format(trusted=_trusted("c", "relowner")),
        [schema, list(names)],
    )
    oids = [row["oid"] for row in rows]
    columns: dict[int, list[tuple[str, str, bool]]] = {}
    for row in session.rows(
        "SELECT attrelid AS oid, attname AS name, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), -1) AS type,"
        " attnotnull AS required FROM pg_attribute JOIN pg_type t ON t.oid = atttypid"
        " WHERE attrelid = ANY (%s::oid[]) AND attnum > 0 AND NOT attisdropped ORDER BY attrelid, attnum",
        [oids],
    ):
        columns.setdefault(row["oid"], []).append((row["name"], row["type"], row["required"]))
    rights: dict[int, dict[str | None, frozenset[str]]] = {}
    for row in session.rows(
        "SELECT c.oid, r.rolname AS role, array_agg(a.privilege_type::text) AS rights FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a"
        " LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE c.oid = ANY (%s::oid[]) AND a.grantee <> c.relowner GROUP BY 1, 2",
        [oids],
    ):
        rights.setdefault(row["oid"], {})[row["role"]] = frozenset(row["rights"])
    return {
        row["name"]: FoundTable(
            row["name"], row["composite"], row["unlogged"], tuple(columns.get(row["oid"], ())), row["mark"], rights.get(row["oid"], {}), row["trusted_owner"]
        )
        for row in rows
    }  # fmt: skip


def mark_of(function: Function) -> str:
    """The comment of a generated function: it holds what the catalogs show in too many ways to compare."""
    signature = "%s -> %s" % (function.arguments, function.returns)
    return "%s (signature %s)" % (MARK, hashlib.sha256(signature.encode()).hexdigest()[:16])


def is_as_wanted(found: FoundFunction, wanted: Function) -> bool:
    return (
        found.mark == mark_of(wanted)
        and (found.language, found.body, found.volatility, found.security_definer, found.search_path)
        == (wanted.language, wanted.body, wanted.volatility, wanted.security_definer, wanted.search_path)
    )  # fmt: skip


def create_function(session: Session, schema: str, wanted: Function, found: FoundFunction | None) -> None:
    """Create or replace; a function with another signature is dropped first."""
    dropped = found if found is not None and found.mark != mark_of(wanted) else None
    if dropped is not None:
        drop_function(session, schema, dropped)
    name = sql.Identifier(schema, wanted.name)
    # Arguments, result, language and volatility come from our own generator; only the body holds what a user wrote.
    session.execute(
        sql.SQL("CREATE OR REPLACE FUNCTION {}({}) RETURNS {} LANGUAGE {} {} SECURITY {} SET search_path = {} AS {}").format(
            name,
            sql.SQL(wanted.arguments),
            sql.SQL(wanted.returns),
            sql.Identifier(wanted.language),
            sql.SQL(wanted.volatility),
            sql.SQL("DEFINER" if wanted.security_definer else "INVOKER"),
            sql.SQL(", ").join(map(sql.Identifier, wanted.search_path)),
            sql.Literal(wanted.body),
        )
    )
    session.execute(sql.SQL("COMMENT ON FUNCTION {} IS {}").format(name, sql.Literal(mark_of(wanted))))
    if dropped is not None and not dropped.public_may_execute:
        session.execute(sql.SQL("REVOKE ALL ON FUNCTION {} FROM PUBLIC").format(name))
    for role in dropped.executors if dropped is not None else ():
        session.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(name, sql.Identifier(role)))


def lock_tables(session: Session, schema: str, names: t.Iterable[str]) -> None:
    """Keep snapshots out until the transaction ends. They take the tables in the order of ``Names.tables``: give them so, too."""
    for name in names:
        session.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(schema, name)))


def drop_function(session: Session, schema: str, found: FoundFunction) -> None:
    inputs = sql.SQL(", ").join(map(sql.SQL, found.inputs))
    session.execute(sql.SQL("DROP FUNCTION {}({})").format(sql.Identifier(schema, found.name), inputs))
