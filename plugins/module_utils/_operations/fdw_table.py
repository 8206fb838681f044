# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Foreign tables by a list of columns or as the other side offers them, changed in place."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing as t

from .._errors import InvalidInput, OperationError, Refused
from .._fdw import catalog, hosting, options, runtime
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._plan import Plan
from .._sql.connection import Session, Target, connect, sql
from .._sql.transaction import TransactionPlan

COLUMN_OPTIONS: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "type": {"type": "str", "required": True},
    "not_null": {"type": "bool", "default": False},
    "options": {"type": "dict", "default": {}},
}

FDW_TABLE = CONNECTION.merge(
    ArgumentSpec(
        {
            "name": {"type": "str"},
            "schema": {"type": "str", "default": "public"},
            "create_schema": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "server": {"type": "str"},
            "columns": {"type": "list", "elements": "dict", "options": COLUMN_OPTIONS},
            "options": {"type": "dict", "default": {}},
            "options_exact": {"type": "bool", "default": True},
            "import_schema": {"type": "str"},
            "import_options": {"type": "dict", "default": {}},
            "limit_to": {"type": "list", "elements": "str"},
            "exclude": {"type": "list", "elements": "str"},
            "rows": {"type": "int", "default": 100},
            "writable": {"type": "bool", "default": False},
            "cascade": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ("server",))],
        mutually_exclusive=[("name", "import_schema"), ("limit_to", "exclude")],
        required_one_of=[("name", "import_schema")],
        required_by={"limit_to": ["import_schema"], "exclude": ["import_schema"], "columns": ["name"]},
    )
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One foreign table as it is to be. Types are as format_type writes them."""

    name: str
    columns: t.Sequence[catalog.FoundColumn]
    options: t.Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Seen:
    hosted: bool
    """The server's class is one in Python: clients read a view."""
    runtime: str | None
    wanted: t.Sequence[Wanted]
    found: t.Mapping[str, catalog.FoundForeignTable | None]
    views: t.Mapping[str, hosting.Hosted]
    callers: t.Mapping[str, t.Sequence[str]]
    schema: bool = True
    """It is there."""


@dataclasses.dataclass(frozen=True)
class Remade:
    """What changes of a foreign table mean for its view: it is dropped before, or has to show more columns."""

    dropped: bool = False
    grows: bool = False
    rights: t.Sequence[t.Any] = ()
    """Statements that give the view that is made anew the rights of the old one."""


class ForeignTables(Operation):
    """Makes, changes or drops one foreign table, or all that an import offers."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.schema = str(params["schema"])
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = connect(Target.from_params(self.params), read_only=self.context.check_mode)
        return self._session

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    # -- what is there ---------------------------------------------------------------------------------------------

    def observe(self) -> Seen:
        self._check()
        if self.params["state"] == "absent":
            return self._observe_for_drop()
        session = self.session
        server = catalog.read_server(session, self.params["server"])
        if server is None:
            raise Refused(
                'there is no foreign server "%s" in the database %s' % (self.params["server"], session.value("SELECT current_database()")),
                action="Create it first with pgfleet.ops.fdw_server",
            )
        wrapper = t.cast(catalog.FoundWrapper, catalog.read_wrapper(session, server.wrapper))
        used = runtime.of_wrapper(wrapper)
        hosted = used is not None
        wanted = self._import(server, hosted and used == runtime.PLPYTHON) if self.params["import_schema"] is not None else [self._declared()]
        suffix = hosting.FOREIGN_SUFFIX if hosted else ""
        views = {one.name: one for one in hosting.read_hosted(session, wrapper.name) if one.schema == self.schema} if hosted else {}
        return Seen(
            hosted, used, wanted, {one.name: catalog.read_table(session, self.schema, one.name + suffix) for one in wanted}, views,
            {one.name: hosting.missing_callers(session, self.schema, one.name) for one in wanted} if used == runtime.PLPYTHON else {},
            bool(session.value("SELECT count(*) FROM pg_namespace WHERE nspname = %s", [self.schema])),
        )  # fmt: skip

    def _observe_for_drop(self) -> Seen:
        name = str(self.params["name"])
        hosted = catalog.read_table(self.session, self.schema, name + hosting.FOREIGN_SUFFIX)
        found = hosted if hosted is not None and catalog.read_kind(self.session, self.schema, name) in (None, "v") else None
        plain = catalog.read_table(self.session, self.schema, name)
        return Seen(found is not None, None, [Wanted(name, [], {})], {name: found or plain}, {}, {})

    def _check(self) -> None:
        params = self.params
        if params["state"] == "absent" and params["name"] is None:
            raise InvalidInput("state=absent needs the option name")
        if params["state"] == "present" and params["name"] is not None and not params["columns"]:
            raise InvalidInput("the option columns is empty", expected="the columns of %s, or import_schema in place of name" % params["name"])
        names = [column["name"] for column in params["columns"] or ()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput("the option columns has %s twice" % ", ".join(twice))
        if params["rows"] < 1:
            raise InvalidInput("the option rows is %d" % params["rows"], expected="1 or more")
        if params["name"] is not None and len(params["name"].encode()) > hosting.LONGEST_NAME:
            raise InvalidInput("the option name is %d bytes long" % len(params["name"].encode()), expected="%d at most" % hosting.LONGEST_NAME)

    def _declared(self) -> Wanted:
        """The option columns, with types as the catalogs write them."""
        columns = []
        for column in self.params["columns"]:
            text = sql.SQL(_type(column))
            try:
                # Only PostgreSQL knows all words for a type.
                _name, oid, modifier = self.session.describe(sql.SQL("SELECT CAST(NULL AS {})").format(text))[0]
            except OperationError as error:
                raise InvalidInput('the type "%s" of the column %s: %s' % (column["type"], column["name"], error.message)) from error
            kind = self.session.value("SELECT format_type(%s, %s)", [oid, modifier])
            columns.append(catalog.FoundColumn(column["name"], kind, column["not_null"], options.as_text(column["options"])))
        return Wanted(str(self.params["name"]), columns, options.as_text(self.params["options"]))

    def _import(self, server: catalog.FoundServer, by_class: bool) -> list[Wanted]:
        """What the other side offers. It is made in a schema of its own, read, and taken back."""
        params, session = self.params, self.session
        scratch = "pgfleet_import_%d" % session.value("SELECT pg_backend_pid()")
        restriction = "LIMIT TO" if params["limit_to"] is not None else "EXCEPT" if params["exclude"] is not None else None
        names = params["limit_to"] or params["exclude"] or []
        if restriction is not None and not names:
            raise InvalidInput("the option %s is empty" % ("limit_to" if params["limit_to"] is not None else "exclude"))
        with session.rehearsal():
            # Also in check mode: it is taken back.
            session.execute("SET TRANSACTION READ WRITE")
            session.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(scratch)))
            if by_class:
                for statement in self._statements_of_class(server, scratch, restriction, names):
                    session.execute(sql.SQL(statement))
            else:
                listed = sql.SQL(" {} ({})").format(sql.SQL(restriction), sql.SQL(", ").join(map(sql.Identifier, names))) if restriction else sql.SQL("")
                clause = options.clause(options.changes({}, params["import_options"]), creating=True)
                session.execute(
                    sql.SQL("IMPORT FOREIGN SCHEMA {}{} FROM SERVER {} INTO {}{}").format(
                        sql.Identifier(params["import_schema"]), listed, sql.Identifier(server.name), sql.Identifier(scratch), clause
                    )
                )
            made = session.rows(
                "SELECT c.relname AS name FROM pg_foreign_table t JOIN pg_class c ON c.oid = t.ftrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname = %s ORDER BY 1", [scratch],
            )  # fmt: skip
            tables = [t.cast(catalog.FoundForeignTable, catalog.read_table(session, scratch, row["name"])) for row in made]
        missing = sorted(set(params["limit_to"] or ()) - {table.name for table in tables})
        if missing:
            raise Refused(
                "the server %s offers no %s in %s" % (server.name, ", ".join(missing), params["import_schema"]), expected="names that it has, in limit_to"
            )
        return [Wanted(table.name, table.columns, {**table.options, **options.as_text(params["options"])}) for table in tables]

    def _statements_of_class(self, server: catalog.FoundServer, scratch: str, restriction: str | None, names: t.Sequence[str]) -> list[str]:
        """What the class makes of IMPORT FOREIGN SCHEMA, which PostgreSQL does only with a handler."""
        asked = {
            "class": server.options.get("wrapper", ""), "schema": self.params["import_schema"], "options": options.as_text(self.params["import_options"]),
            "restriction": {"LIMIT TO": "limit", "EXCEPT": "except"}.get(restriction or ""), "names": list(names), "into": scratch, "server": server.name,
        }  # fmt: skip
        return runtime.ask_import(self.session, asked)

    # -- what is to be done ----------------------------------------------------------------------------------------

    def plan(self, seen: Seen) -> Plan:
        plan = TransactionPlan(self.session)
        if self.params["state"] == "present" and not seen.schema:
            if not self.params["create_schema"]:
                raise Refused('there is no schema "%s"' % self.schema, action="Create it, or let this task do so with create_schema=true")
            self._step(plan, "create schema %s" % self.schema, [sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema))])
        for wanted in seen.wanted:
            found = seen.found[wanted.name]
            if self.params["state"] == "absent":
                self._plan_absent(plan, wanted.name, found, seen.hosted)
            else:
                self._plan_table(plan, wanted, found, seen)
        return plan

    def _plan_absent(self, plan: Plan, name: str, found: catalog.FoundForeignTable | None, hosted: bool) -> None:
        if found is None:
            return
        users = catalog.read_users_of(self.session, self.schema, name)
        if users and not self.params["cascade"]:
            raise Refused(
                "%s.%s is in use and was not dropped: %s" % (self.schema, name, ", ".join(users)), action="Drop these first, or all of them with cascade=true"
            )
        tail = sql.SQL(" CASCADE" if self.params["cascade"] else "")
        statements = []
        if hosted:
            statements.append(sql.SQL("DROP VIEW IF EXISTS {}{}").format(hosting.names(self.schema, name), tail))
            statements.append(sql.SQL("DROP FUNCTION IF EXISTS {} (jsonb){}").format(hosting.names(self.schema, name, hosting.SCAN_SUFFIX), tail))
            statements.append(sql.SQL("DROP FUNCTION IF EXISTS {} (){}").format(hosting.names(self.schema, name, hosting.WRITE_SUFFIX), tail))
        statements.append(sql.SQL("DROP FOREIGN TABLE {}{}").format(hosting.names(self.schema, found.name), tail))
        self._step(plan, "drop %s.%s%s" % (self.schema, name, " with %s" % ", ".join(users) if users else ""), statements, found, None)

    def _plan_table(self, plan: Plan, wanted: Wanted, found: catalog.FoundForeignTable | None, seen: Seen) -> None:
        suffix = hosting.FOREIGN_SUFFIX if seen.hosted else ""
        view, remade = seen.views.get(wanted.name), Remade()
        if found is None:
            self._refuse_other(wanted.name, suffix)
            self._step(plan, "create %s.%s on server %s" % (self.schema, wanted.name, self.params["server"]), [self._creation(wanted, suffix)], None, wanted)
        else:
            if found.server != self.params["server"]:
                raise Refused(
                    "%s.%s is a table of the server %s, which cannot be changed" % (self.schema, wanted.name, found.server),
                    action="Drop it first (state=absent)",
                )
            remade = self._plan_changes(plan, wanted, found, suffix, view is not None and view.runtime is not None)
        if not seen.hosted:
            return
        used = t.cast(str, seen.runtime)
        as_wanted = view is not None and view.runtime == used and view.writable == self.params["writable"] and view.rows in (None, self.params["rows"])
        if not as_wanted or remade.dropped or remade.grows:
            replace = view is not None and view.runtime is not None and not remade.dropped
            made = hosting.statements(used, self.schema, wanted.name, self.params["rows"], self.params["writable"], replace)
            self._step(plan, "let %s read %s.%s" % (used, self.schema, wanted.name), [*made, *remade.rights])
        for role in seen.callers.get(wanted.name, ()):
            grantee = sql.SQL("PUBLIC") if role == "PUBLIC" else sql.Identifier(role)
            statement = sql.SQL("GRANT EXECUTE ON FUNCTION {} (jsonb) TO {}").format(hosting.names(self.schema, wanted.name, hosting.SCAN_SUFFIX), grantee)
            self._step(plan, "let %s, who may read %s.%s, have it read" % (role, self.schema, wanted.name), [statement])

    def _refuse_other(self, name: str, suffix: str) -> None:
        for one in dict.fromkeys((name, name + suffix)):
            kind = catalog.read_kind(self.session, self.schema, one)
            if kind is not None:
                raise Refused(
                    "%s.%s is there already and is %s" % (self.schema, one, hosting.KINDS.get(kind, "something else")), action="Choose another name or schema"
                )

    def _creation(self, wanted: Wanted, suffix: str) -> t.Any:
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}{}{}").format(
                sql.Identifier(column.name), sql.SQL(column.type), options.clause(options.changes({}, column.options), creating=True),
                sql.SQL(" NOT NULL" if column.not_null else ""),
            )
            for column in wanted.columns
        )  # fmt: skip
        return sql.SQL("CREATE FOREIGN TABLE {} ({}) SERVER {}{}").format(
            hosting.names(self.schema, wanted.name, suffix), columns, sql.Identifier(self.params["server"]),
            options.clause(options.changes({}, wanted.options), creating=True),
        )  # fmt: skip

    def _plan_changes(self, plan: Plan, wanted: Wanted, found: catalog.FoundForeignTable, suffix: str, viewed: bool) -> Remade:
        there = {column.name: column for column in found.columns}
        names = {column.name for column in wanted.columns}
        gone = [name for name in there if name not in names]
        retyped = [column for column in wanted.columns if column.name in there and there[column.name].type != column.type]
        table = hosting.names(self.schema, wanted.name, suffix)
        parts, told = [], []
        for name in gone:
            parts.append(sql.SQL("DROP COLUMN {}").format(sql.Identifier(name)))
            told.append("DROP %s" % name)
        for column in wanted.columns:
            before = there.get(column.name)
            identifier = sql.Identifier(column.name)
            if before is None:
                clause = options.clause(options.changes({}, column.options), creating=True)
                parts.append(sql.SQL("ADD COLUMN {} {}{}{}").format(identifier, sql.SQL(column.type), clause, sql.SQL(" NOT NULL" if column.not_null else "")))
                told.append("ADD %s" % column.name)
                continue
            if column in retyped:
                parts.append(sql.SQL("ALTER COLUMN {} TYPE {}").format(identifier, sql.SQL(column.type)))
                told.append("%s becomes %s" % (column.name, column.type))
            if column.not_null != before.not_null:
                parts.append(sql.SQL("ALTER COLUMN {} {} NOT NULL").format(identifier, sql.SQL("SET" if column.not_null else "DROP")))
                told.append("%s %s" % (column.name, "NOT NULL" if column.not_null else "NULL"))
            changed = options.changes(before.options, column.options)
            if changed:
                parts.append(sql.SQL("ALTER COLUMN {}{}").format(identifier, options.clause(changed)))
                told.append("%s: %s" % (column.name, ", ".join(map(str, changed))))
        changed = options.changes(found.options, wanted.options, self.params["options_exact"])
        if changed:
            parts.append(sql.SQL("{}").format(options.clause(changed)))
            told += map(str, changed)
        if not parts:
            return Remade()
        statements, remade = [], Remade(grows=bool(names - set(there)))
        if (gone or retyped) and viewed:
            self._refuse_users(wanted.name)
            remade = Remade(dropped=True, rights=self._rights(wanted.name))
            statements.append(sql.SQL("DROP VIEW {}").format(hosting.names(self.schema, wanted.name)))
        statements.append(sql.SQL("ALTER FOREIGN TABLE {} {}").format(table, sql.SQL(", ").join(parts)))
        after = catalog.FoundForeignTable(self.schema, found.name, found.server, found.owner, options.apply(found.options, changed), wanted.columns)
        self._step(plan, "change %s.%s: %s" % (self.schema, wanted.name, ", ".join(told)), statements, found, after)
        return remade

    def _refuse_users(self, name: str) -> None:
        """A view cannot lose a column, nor change its type: it has to be made anew."""
        users = catalog.read_users_of(self.session, self.schema, name)
        if users:
            raise Refused(
                "the columns of %s.%s cannot be changed like that while it is in use: %s" % (self.schema, name, ", ".join(users)),
                action="Drop these, or only add columns",
            )

    def _rights(self, name: str) -> list[t.Any]:
        view = hosting.names(self.schema, name)
        rows = self.session.rows(
            "SELECT CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END AS role, a.privilege_type AS privilege, a.is_grantable AS again,"
            " pg_get_userbyid(c.relowner) AS owner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a"
            " WHERE n.nspname = %s AND c.relname = %s AND a.grantee <> c.relowner", [self.schema, name],
        )  # fmt: skip
        return [
            sql.SQL("GRANT {} ON {} TO {}{}").format(
                sql.SQL(row["privilege"]),
                view,
                sql.Identifier(row["role"]) if row["role"] else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if row["again"] else ""),
            )
            for row in rows
        ]

    def _step(self, plan: Plan, what: str, statements: t.Sequence[t.Any], before: t.Any = None, after: t.Any = None) -> None:
        def do() -> None:
            for statement in statements:
                self.session.execute(statement)

        diff = {"subject": what.split(" on server ")[0], "before": _shown(before), "after": _shown(after)} if before or after else {}
        plan.add(what, functools.partial(do), **diff)

    # -- what came out ---------------------------------------------------------------------------------------------

    def _warn_of_refused(self, seen: Seen) -> None:
        """A class looks at its options when a table is first read. Only a warning: with the user mapping of who reads it may be all right."""
        if seen.runtime != runtime.PLPYTHON or self.params["state"] == "absent" or not runtime.can_ask(self.session):
            return
        for name in sorted(name for name, found in seen.found.items() if found is not None):
            table = hosting.names(self.schema, name, hosting.FOREIGN_SUFFIX).as_string(self.session.connection)
            try:
                problem = runtime.ask_table(self.session, table)
            except OperationError as error:
                problem = error.message
            if problem:
                self.context.warn("%s.%s cannot be read as it is, at least not by %s: %s" % (self.schema, name, self.session.target.user, problem))

    def report(self, seen: Seen) -> dict[str, t.Any]:
        self._warn_of_refused(seen)
        return {
            "runtime": seen.runtime,
            "tables": [
                {
                    "schema": self.schema, "name": one.name, "foreign_table": found.name, "server": found.server, "options": dict(found.options),
                    "columns": [dataclasses.asdict(column) for column in found.columns],
                }
                for one in seen.wanted
                for found in [seen.found[one.name]]
                if found is not None
            ],
        }  # fmt: skip


def _type(column: t.Mapping[str, t.Any]) -> str:
    """The text of a type, which stands in a statement as it is: nothing but a type may be in it. Raises InvalidInput."""
    text = str(column["type"]).strip()
    if not text or not hosting.TYPE.fullmatch(text):
        raise InvalidInput('the type "%s" of the column %s' % (text, column["name"]), expected="a type as in CREATE TABLE, for example numeric(10,2) or text[]")
    return text


def _shown(table: Wanted | catalog.FoundForeignTable | None) -> str:
    if table is None:
        return ""
    columns = "".join(
        "%s %s%s%s\n" % (column.name, column.type, " not null" if column.not_null else "", " %s" % json.dumps(dict(column.options)) if column.options else "")
        for column in table.columns
    )
    return columns + options.shown(table.options)
