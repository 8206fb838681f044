# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A custom datasource: what belongs on a remote server, and what belongs into the repository."""

from __future__ import annotations

import dataclasses
import functools
import time
import typing as t

from .._errors import InvalidInput, OperationError, QueryFailed, Refused
from .._module import Context, Operation
from .._parallel import ask_all
from .._plan import Plan
from .._powa import datasource_catalog as catalog
from .._powa import datasource_check as check
from .._powa import datasource_history as history
from .._powa.datasource import Declaration, Function, Names, check_name, check_types, parse_columns, quote, repository_functions, source_function
from .._powa.datasource_check import Fault
from .._powa.datasources import Entry, Registration
from .._powa.repository import Registered, Repository, open_repository
from .._sql.connection import Session, Target, connect, sql
from .._sql.transaction import TransactionPlan
from .._wait import Deadline

# PoWA's own tables, whose rights tell who collects and who reads.
MODEL_TRANSIENT = "powa_statements_src_tmp"
MODEL_HISTORY = "powa_statements_history_current"
# A snapshot that runs has these seconds to end before a change of its tables gives up.
LOCK_SECONDS = 30
PROBES_AT_ONCE = 50
# Servers whose rows are put through a trial snapshot; all that are probed are compared by columns.
TRIALS = 10


def powa_datasource(params: t.Mapping[str, t.Any], context: Context) -> Operation:
    """The operation for one side."""
    return (RemoteSide if params["side"] == "remote" else RepositorySide)(params, context)


class _Side(Operation):
    """Options that both sides share, and their session."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.name = check_name(params["name"])
        self.names = Names(self.name)
        self.present = params["state"] == "present"
        self.functions = {key: value for key, value in (params.get("functions") or {}).items() if value not in (None, "")}
        self.declared: Declaration | None = None
        if params["source_timeout"] <= 0:
            raise InvalidInput("source_timeout is %s" % params["source_timeout"], expected="seconds, more than 0")
        if self.functions:
            self._check_functions()
        elif self.present:
            if params.get("columns") is None:
                raise InvalidInput("functions is empty", expected="columns and query, or the names of functions that you wrote")
            self.declared = Declaration(
                self.name,
                parse_columns(params["columns"]),
                params["query"],
                params["language"],
                bool(params["security_definer"]),
                tuple(params.get("extensions") or ()),
            )
        self._session: Session | None = None
        self._repository: Repository | None = None

    @property
    def milliseconds(self) -> int:
        # 0 would be no limit.
        return max(1, int(self.params["source_timeout"] * 1000))

    def _check_functions(self) -> None:
        missing = [option for option in ("query_source", "snapshot", "aggregate", "purge") if option not in self.functions]
        if missing and self.present:
            raise InvalidInput(
                "functions lacks %s" % ", ".join(missing),
                expected="query_source, snapshot, aggregate and purge",
                action="Without query_source nothing is ever collected, without purge the history grows for ever, and PoWA notes neither as an error",
            )
        check.refuse(self.name, check.check_names({key: value for key, value in self.functions.items() if key != "query_cleanup"}))

    @property
    def repository(self) -> Repository:
        """PoWA's extension in the session's database, on either side."""
        if self._repository is None:
            self._session = connect(Target.from_params(self.params, dbname=self.params.get("login_db") or "powa"), read_only=self.context.check_mode)
            self._repository = open_repository(self._session)
        return self._repository

    @property
    def session(self) -> Session:
        return self.repository.session

    def typed(self) -> Declaration | None:
        if self.declared is None:
            return None
        types, categories = catalog.read_types(self.session, self.declared.columns)
        check_types(self.declared.columns, categories)
        return self.declared.typed(types)

    def failed_call(self, label: str, schema: str, error: QueryFailed) -> Fault:
        """Why calling the source failed on a server."""
        return check.failed_call(label, self.source, schema, error.message, error.facts.get("sqlstate"), self.params["source_timeout"])

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


def refuse_foreign(what: str) -> None:
    raise Refused(
        "%s is there and was not made by this module" % what,
        expected="objects that it made itself, which it marks with a comment",
        action="Give the datasource another name, remove it yourself, or register functions of your own with the option functions",
    )


@dataclasses.dataclass
class RemoteSeen:
    in_recovery: bool
    declaration: Declaration | None
    sources: t.Sequence[catalog.FoundFunction]
    extensions: t.Mapping[str, str]
    available: t.Collection[str]
    roles: t.Mapping[str, bool]


class RemoteSide(_Side):
    """The source function in PoWA's schema of one remote server."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.roles = list(dict.fromkeys(params.get("grant_to") or ()))
        if params.get("servers"):
            raise InvalidInput("servers belongs to side=repository")
        self.source = self.functions.get("query_source", self.names.source)

    def observe(self) -> RemoteSeen:
        seen = self._observe()
        if seen.in_recovery and self.params["on_standby"] == "verify" and not self.context.check_mode:
            # What the primary does arrives by replication.
            deadline = Deadline(self.params["timeout"])
            while self.steps(seen).changed and not deadline.passed:
                time.sleep(0.3)
                seen = self._observe()
        return seen

    def _observe(self) -> RemoteSeen:
        session = self.session
        declaration = self.typed()
        extensions = session.rows("SELECT e.extname AS name, n.nspname AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace")
        wanted = list(self.declared.extensions) if self.declared else []
        roles = session.rows(
            "SELECT r.rolname AS name, coalesce(has_function_privilege(r.oid, f.oid, 'EXECUTE'), false) AS may FROM pg_roles r"
            " LEFT JOIN (SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = %s AND p.proname = %s"
            " AND p.pronargs = 1 AND p.proargtypes[0] = 'integer'::regtype) f ON true WHERE r.rolname = ANY (%s)",
            [self.repository.schema, self.source, self.roles],
        )
        return RemoteSeen(
            bool(session.value("SELECT pg_is_in_recovery()")),
            declaration,
            catalog.read_functions(session, self.repository.schema, [self.source]).get(self.source, []),
            {row["name"]: row["schema"] for row in extensions},
            {row["name"] for row in session.rows("SELECT name FROM pg_available_extensions WHERE name = ANY (%s)", [wanted])},
            {row["name"]: row["may"] for row in roles},
        )

    def plan(self, seen: RemoteSeen) -> Plan:
        if seen.in_recovery and self.params["on_standby"] == "skip":
            return Plan()
        plan = self.steps(seen)
        if seen.in_recovery and plan.changed:
            raise Refused(
                "%s is a standby and lacks: %s" % (self.session.target, ", ".join(plan.names)),
                expected="what the primary has, within %g s" % self.params["timeout"],
                action="Run this task on the primary; a standby gets everything from there",
                in_recovery=True,
            )
        return plan

    def steps(self, seen: RemoteSeen) -> Plan:
        """What is missing, whatever the server's role."""
        plan = TransactionPlan(self.session)
        if not self.present:
            self._plan_absent(plan, seen)
            return plan
        absent = [role for role in self.roles if role not in seen.roles]
        if absent:
            raise InvalidInput("grant_to names %s, and there is no such role on %s" % (", ".join(absent), self.session.target))
        if seen.declaration is None:
            check.refuse(self.name, self._faults(seen))
        else:
            self._plan_source(plan, seen, seen.declaration)
        replaced = plan.changed
        lacking = [role for role in self.roles if replaced or not seen.roles[role]]
        definer = seen.declaration is not None and seen.declaration.security_definer
        open_to_all = definer and (replaced or any(one.public_may_execute for one in seen.sources))
        if (lacking and (definer or any(not seen.roles[role] for role in lacking))) or open_to_all:
            plan.add(
                "let %s execute %s" % (", ".join(self.roles) or "nobody but its owner", self.source),
                functools.partial(self._set_rights, definer),
                subject="rights on %s" % self.source,
                before="",
                after="".join("EXECUTE for %s\n" % role for role in self.roles) + ("not for PUBLIC\n" if definer else ""),
            )
        plan.prove = self._prove
        return plan

    def _faults(self, seen: RemoteSeen) -> list[Fault]:
        label, schema = str(self.session.target), self.repository.schema
        faults = check.check_overloads(label, self.source, schema, seen.sources)
        if not faults:
            try:
                with self.session.rehearsal():
                    self._call()
            except QueryFailed as error:
                faults.append(self.failed_call(label, schema, error))
        return faults

    def _plan_absent(self, plan: Plan, seen: RemoteSeen) -> None:
        if self.functions:
            return  # these are the user's
        for found in seen.sources:
            if not found.made_here:
                refuse_foreign("the function %s" % found.signature)
            plan.add(
                "drop function %s" % self.source,
                functools.partial(catalog.drop_function, self.session, self.repository.schema, found),
                subject="function %s" % self.source,
                before=found.definition,
                after="",
            )

    def _plan_source(self, plan: Plan, seen: RemoteSeen, declaration: Declaration) -> None:
        schemas = dict(seen.extensions)
        for extension in declaration.extensions:
            if extension in schemas:
                continue
            if extension not in seen.available:
                raise Refused(
                    "the files of the extension %s are not installed on the host of %s" % (extension, self.session.target),
                    action="Install its package there; what comes with PostgreSQL itself is in postgresql-contrib or postgresql-VERSION",
                )
            schemas[extension] = self.repository.schema
            plan.add(
                "create extension %s" % extension,
                functools.partial(self._create_extension, extension),
                subject="extension %s" % extension,
                before="",
                after=extension + "\n",
            )
        wanted = source_function(declaration, self.repository.schema, schemas)
        plan_function(plan, self.session, self.repository.schema, wanted, seen.sources, self._create_source)

    def _create_source(self, *arguments: t.Any) -> None:
        try:
            catalog.create_function(*arguments)
        except QueryFailed as error:
            # Before the function exists its faults are those of the query.
            check.refuse(
                self.name,
                [
                    Fault(
                        "source_fails",
                        "no function can be made of query on %s" % error.message,
                        "Mend the query: it yields columns of the names in columns (%s)" % ", ".join(column.name for column in self.declared.columns),
                    )
                ],
            )

    def _create_extension(self, name: str) -> None:
        # PoWA 4 has an event trigger that calls its functions without a schema at each CREATE EXTENSION.
        self.session.execute(sql.SQL("SET LOCAL search_path = pg_catalog, {}").format(sql.Identifier(self.repository.schema)))
        self.session.execute(sql.SQL("CREATE EXTENSION {} SCHEMA {}").format(sql.Identifier(name), sql.Identifier(self.repository.schema)))
        self.session.execute("SET LOCAL search_path = pg_catalog")

    def _set_rights(self, definer: bool) -> None:
        function = sql.Identifier(self.repository.schema, self.source)
        if definer:
            self.session.execute(sql.SQL("REVOKE ALL ON FUNCTION {}(integer) FROM PUBLIC").format(function))
        for role in self.roles:
            self.session.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {}(integer) TO {}").format(function, sql.Identifier(role)))

    def _call(self) -> None:
        self.session.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(self.milliseconds)))
        self.session.execute("SET LOCAL transaction_read_only = on")
        self.session.execute(sql.SQL("SELECT * FROM {}(0)").format(sql.Identifier(self.repository.schema, self.source)))

    def _prove(self) -> None:
        """Call the source once, as everybody who is to call it: what does not work is not left behind."""
        for role in [None, *(role for role in self.roles if self.session.value("SELECT pg_has_role(%s::name, 'MEMBER')", [role]))]:
            try:
                with self.session.rehearsal():
                    if role:
                        self.session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
                    self._call()
            except QueryFailed as error:
                who = "%s as %s" % (self.session.target, role) if role else str(self.session.target)
                check.refuse(self.name, [self.failed_call(who, self.repository.schema, error)])

    def report(self, seen: RemoteSeen) -> dict[str, t.Any]:
        return {
            "name": self.name,
            "side": "remote",
            "schema": self.repository.schema,
            "in_recovery": seen.in_recovery,
            "query_source": self.source if seen.sources else None,
        }


def plan_function(
    plan: Plan,
    session: Session,
    schema: str,
    wanted: Function,
    overloads: t.Sequence[catalog.FoundFunction],
    create: t.Callable[..., None] = catalog.create_function,
) -> None:
    """Create or replace one generated function."""
    for found in overloads:
        if not found.made_here:
            refuse_foreign("the function %s" % found.signature)
    found = overloads[0] if overloads else None
    if found is not None and catalog.is_as_wanted(found, wanted):
        return
    plan.add(
        "%s function %s" % ("create" if found is None else "replace", wanted.name),
        functools.partial(create, session, schema, wanted, found),
        subject="function %s" % wanted.name,
        before=found.definition if found else "",
        after=wanted.definition,
    )


@dataclasses.dataclass
class Probe:
    """What the collector would meet on one server. ``data`` is what it would copy."""

    server: Registered
    faults: list[Fault]
    yielded: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    data: bytes = dataclasses.field(default=b"", repr=False)


@dataclasses.dataclass
class RepositorySeen:
    declaration: Declaration | None
    servers: t.Sequence[Registered]
    registration: Registration
    elsewhere: t.Sequence[tuple[str, str]]
    tables: t.Mapping[str, catalog.FoundTable]
    functions: t.Mapping[str, t.Sequence[catalog.FoundFunction]]
    transient_rights: t.Mapping[t.Optional[str], frozenset[str]]
    history_rights: t.Mapping[t.Optional[str], frozenset[str]]
    convertible: t.Mapping[tuple[str, str], bool]
    history_bytes: int
    probes: t.Sequence[Probe] = ()

    @property
    def by_alias(self) -> dict[str, Registered]:
        return {server.label: server for server in self.servers}


class DatasourcePlan(TransactionPlan):
    """``rebuilds``: tables with history are made anew or dropped."""

    rebuilds = False


class RepositorySide(_Side):
    """Tables, functions and registration in the repository, in one transaction."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        if params.get("grant_to"):
            raise InvalidInput("grant_to belongs to side=remote", action="In the repository rights follow those on PoWA's own tables")
        self.source = self.functions.get("query_source", self.names.source)
        self.transient = self.source + "_tmp"
        self.twins: dict[str, int] = {}

    # Observation

    def observe(self) -> RepositorySeen:
        seen = self._observe()
        if seen.declaration is not None:
            live = history.Layout.read(seen.tables, self.names)
            seen.convertible = catalog.convertible(self.session, history.retyped(live, seen.declaration) if live else ())
        if self.present and self.params["check_source"] and self.draft(seen).changed:
            seen.probes = self._probe_all(self._targets(seen))
        return seen

    def _observe(self) -> RepositorySeen:
        repository = self.repository
        declaration = self.typed()
        operations = {key: value for key, value in self.functions.items() if key in check.OPERATIONS}
        names = [*operations.values(), *self.names.functions]
        tables = catalog.read_tables(self.session, repository.schema, [*self.names.tables, self.names.record, self.transient])
        return RepositorySeen(
            declaration=declaration,
            servers=repository.servers(),
            registration=repository.registration(self.name),
            elsewhere=repository.registered_elsewhere(self.name, list(operations.values())),
            tables=tables,
            functions=catalog.read_functions(self.session, repository.schema, names),
            transient_rights=repository.data_roles(MODEL_TRANSIENT),
            history_rights=repository.data_roles(MODEL_HISTORY),
            convertible={},
            history_bytes=self._history_bytes(),
        )

    def _history_bytes(self) -> int:
        return self.session.value(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname = ANY (%s)",
            [self.repository.schema, [self.names.current, self.names.history]],
        )

    def _targets(self, seen: RepositorySeen) -> list[Registered]:
        aliases = self.params.get("servers")
        if aliases is None:
            return list(seen.servers)
        by_alias = seen.by_alias
        unknown = [alias for alias in aliases if alias not in by_alias]
        if unknown:
            raise InvalidInput(
                "servers names %s, and no server is registered so" % ", ".join(unknown),
                expected="aliases of registered servers: %s" % (", ".join(sorted(by_alias)) or "there are none"),
                action="Register it with pgfleet.ops.powa_server",
            )
        return [by_alias[alias] for alias in dict.fromkeys(aliases)]

    # What the collector would meet

    def _probe_all(self, targets: t.Sequence[Registered]) -> list[Probe]:
        active = [(server, self._login(server)) for server in targets if server.active]
        rounds = -(-len(active) // PROBES_AT_ONCE)
        answers = ask_all(active, lambda one: self._probe(*one), Deadline((self.params["source_timeout"] + 15) * rounds), at_most=PROBES_AT_ONCE)
        return [self._unreachable(server, answer) if isinstance(answer, OperationError) else answer for (server, _target), answer in zip(active, answers)]

    def _login(self, server: Registered) -> Target:
        password = self.repository.password(server.id) if server.has_password else None
        return Target(server.host, server.port, server.user, server.dbname, password, dict(self.params.get("source_connect_params") or {}))

    @staticmethod
    def _unreachable(server: Registered, error: OperationError) -> Probe:
        return Probe(
            server,
            [
                Fault(
                    "source_unreachable",
                    'server "%s" cannot be asked as the collector does: %s' % (server.label, error.message),
                    "Run this task as the account of the collector where that runs, or name its passfile in source_connect_params;"
                    " or set check_source to false and do without the check",
                )
            ],
        )

    def _probe(self, server: Registered, target: Target) -> Probe:
        session = connect(target, timeout=5, read_only=True)
        try:
            remote = open_repository(session)
            if remote.version.startswith("4."):
                # Collector and extension leave the path of the role as it is.
                session.execute("SELECT set_config('search_path', %s, false)", [remote.search_path_of(target.user) or '"$user", public'])
            # What a role has of its own must not count on one side only.
            session.execute("SET datestyle = ISO")
            session.execute("SET client_encoding = 'UTF8'")
            session.execute(sql.SQL("SET statement_timeout = {}").format(sql.Literal(self.milliseconds)))
            overloads = catalog.read_functions(session, remote.schema, [self.source]).get(self.source, [])
            probe = Probe(server, check.check_overloads(server.label, self.source, remote.schema, overloads))
            if not probe.faults:
                self._call(session, remote.schema, probe)
            return probe
        finally:
            session.close()

    def _call(self, session: Session, schema: str, probe: Probe) -> None:
        call = sql.SQL("{}(0)").format(sql.Identifier(schema, self.source))
        try:
            columns = session.columns(sql.SQL("SELECT * FROM {}").format(call))
            oids = [type_ for _name, type_ in columns]
            rows = session.rows("SELECT o AS oid, pg_catalog.format_type(o, -1) AS name FROM pg_catalog.unnest(%s::oid[]) AS o", [oids])
            names = {row["oid"]: row["name"] for row in rows}
            probe.yielded = [(name, names[type_]) for name, type_ in columns]
            probe.data = session.copy_out(sql.SQL("COPY (SELECT {}, * FROM {}) TO STDOUT").format(sql.Literal(probe.server.id), call))
        except QueryFailed as error:
            probe.faults.append(self.failed_call(probe.server.label, schema, error))

    # Plan

    def plan(self, seen: RepositorySeen) -> Plan:
        plan = self.draft(seen)
        faults: list[Fault] = []
        if plan.changed:
            for probe in seen.probes:
                faults += probe.faults or self._column_faults(probe, seen)
        check.refuse(self.name, faults)
        plan.prepare = functools.partial(self._prepare, seen, plan.rebuilds)
        plan.prove = functools.partial(self._prove, [probe for probe in seen.probes if not probe.faults])
        return plan

    def _column_faults(self, probe: Probe, seen: RepositorySeen) -> list[Fault]:
        expected = seen.tables[self.transient] if seen.declaration is None else history.transient_table(seen.declaration, self.names)
        return check.check_columns(probe.server.label, self.transient, expected, probe.yielded, names_too=seen.declaration is not None)

    def draft(self, seen: RepositorySeen) -> DatasourcePlan:
        """All steps, before anything is known of the remote servers."""
        plan = DatasourcePlan(self.session, lock_seconds=LOCK_SECONDS)
        if seen.registration.foreign:
            raise Refused(
                '"%s" is the name of something that PoWA collects itself' % self.name,
                action="Give the datasource another name",
            )
        if not self.present:
            self._plan_absent(plan, seen)
            return plan
        targets = self._targets(seen)
        if seen.declaration is not None:
            self._refuse_taken(seen.registration)
            self._plan_objects(plan, seen, seen.declaration)
        else:
            check.refuse(self.name, self._faults(seen))
        self._plan_registration(plan, seen, targets)
        return plan

    def _refuse_taken(self, registration: Registration) -> None:
        """A name under which somebody has registered functions of his own."""
        generated = set(self.names.operations.values())
        others = sorted({entry.function for entries in registration.entries.values() for entry in entries} - generated)
        if others or (registration.external and not registration.entries.get(None)):
            refuse_foreign('the datasource "%s" with %s' % (self.name, ", ".join(others) or "no functions"))

    def _prepare(self, planned: RepositorySeen, rebuilds: bool) -> None:
        """One run at a time, with what it has seen: asking the servers takes time, in which somebody may have changed the same datasource."""
        self.session.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", ["pgfleet.ops.powa_datasource " + self.name])
        now = self._observe()
        if (now.tables, now.functions, now.registration) != (planned.tables, planned.functions, planned.registration):
            raise Refused('the datasource "%s" was changed by somebody else meanwhile' % self.name, action="Nothing was done. Run this again")
        if rebuilds:
            # In the order of the collector: it copies into the transient table, has these rows while the snapshot is taken, and then wants the history.
            catalog.lock_tables(self.session, self.repository.schema, [name for name in (self.names.transient,) if name in now.tables])
            metas = sql.Identifier(self.repository.schema, "powa_snapshot_metas")
            self.session.execute(sql.SQL("SELECT FROM {} WHERE srvid = ANY (%s) ORDER BY srvid FOR UPDATE").format(metas), [list(planned.registration.enabled)])

    def _faults(self, seen: RepositorySeen) -> list[Fault]:
        """What can be said of functions that somebody wrote without calling them."""
        schema = self.repository.schema
        transient = seen.tables.get(self.transient)
        faults = check.check_cleanup(self.functions.get("query_cleanup"), braces=self.repository.version.startswith("5"))
        for option in check.OPERATIONS:
            if option in self.functions:
                faults += check.check_operation(option, self.functions[option], schema, seen.functions.get(self.functions[option], ()))
        problem = check.check_transient(self.transient, schema, transient)
        faults += problem
        if transient is not None and not problem:
            faults += check.check_rights(transient, seen.transient_rights)
        for snapshot in seen.functions.get(self.functions["snapshot"], ()):
            if snapshot.inputs == ("integer",) and snapshot.language in ("sql", "plpgsql"):
                faults += check.check_emptied(self.functions["snapshot"], self.transient, snapshot.body)
        for other, function in seen.elsewhere:
            faults.append(
                Fault(
                    "already_registered",
                    'the function %s is registered for the datasource "%s" as well' % (function, other),
                    "Each of them would collect: make that one absent first, or use its name",
                )
            )
        return faults

    def _plan_objects(self, plan: DatasourcePlan, seen: RepositorySeen, declaration: Declaration) -> None:
        for name, table in seen.tables.items():
            if not table.made_here:
                refuse_foreign("%s %s" % ("the type" if table.composite else "the table", name))
        schema = self.repository.schema
        rebuilt = history.plan_tables(plan, self.session, schema, declaration, seen.tables, seen.convertible, purge=bool(self.params["purge"]))
        plan.rebuilds = rebuilt and bool(seen.tables)
        for function in repository_functions(declaration, schema, self.repository.unregister_statement(self.name)):
            plan_function(plan, self.session, schema, function, seen.functions.get(function.name, ()))
        wanted = self._wanted_rights(seen)
        lacking = [
            (table, role, sorted(rights - (frozenset() if rebuilt or table not in seen.tables else seen.tables[table].rights.get(role, frozenset()))))
            for table, by_role in wanted.items()
            for role, rights in by_role.items()
        ]
        lacking = [one for one in lacking if one[2]]
        if lacking:
            plan.add(
                "grant rights on the tables of %s to %s" % (self.name, ", ".join(sorted({role or "PUBLIC" for _table, role, _rights in lacking}))),
                functools.partial(self._grant, lacking),
                subject="rights on the tables of %s" % self.name,
                before="",
                after="".join("%s on %s to %s\n" % (", ".join(rights), table, role or "PUBLIC") for table, role, rights in lacking),
            )

    def _wanted_rights(self, seen: RepositorySeen) -> dict[str, dict[str | None, frozenset[str]]]:
        """Those on PoWA's own tables, and what somebody granted besides."""
        wanted: dict[str, dict[str | None, frozenset[str]]] = {}
        for table in self.names.tables:
            model = seen.transient_rights if table == self.names.transient else seen.history_rights
            given = seen.tables[table].rights if table in seen.tables else {}
            wanted[table] = {role: model.get(role, frozenset()) | given.get(role, frozenset()) for role in sorted({*model, *given}, key=str)}
        return wanted

    def _grant(self, lacking: t.Iterable[tuple[str, str | None, list[str]]]) -> None:
        for table, role, rights in lacking:
            self.session.execute(
                sql.SQL("GRANT {} ON {} TO {}").format(
                    # The names of rights come from the catalogs.
                    sql.SQL(", ").join(map(sql.SQL, rights)),
                    sql.Identifier(self.repository.schema, table),
                    sql.SQL("PUBLIC") if role is None else sql.Identifier(role),
                )
            )

    def _entries(self) -> list[Entry]:
        functions = self.functions or {**self.names.operations, "query_source": self.source}
        priority = float(self.params["priority"])
        return sorted(
            (
                Entry(
                    operation,
                    functions[operation],
                    functions["query_source"] if operation == "snapshot" else None,
                    functions.get("query_cleanup") if operation == "snapshot" else None,
                    priority,
                )
                for operation in self.repository.operations
                if operation in functions
            ),
            key=lambda entry: (entry.operation, entry.function),
        )

    def _plan_registration(self, plan: Plan, seen: RepositorySeen, targets: t.Sequence[Registered]) -> None:
        entries = tuple(self._entries())
        registration, by_id = seen.registration, {server.id: server for server in seen.servers}
        shared = self.repository.shared_registration
        if shared and (registration.entries.get(None) != entries or registration.external):
            plan.add(
                "register the functions of %s" % self.name,
                functools.partial(self.repository.register_datasource, self.name, entries),
                subject="registration of %s" % self.name,
                before=_show(registration.entries.get(None, ())),
                after=_show(entries),
            )
        wanted_ids = {server.id for server in targets}
        for server in targets:
            found = registration.entries.get(None if shared else server.id, ())
            current = shared or found == entries
            if registration.enabled.get(server.id) and current:
                continue
            plan.add(
                '%s %s on server "%s"' % ("correct the registration of" if registration.enabled.get(server.id) else "activate", self.name, server.label),
                functools.partial(self.repository.enable_datasource, server.id, self.name, entries),
                subject="%s on server %s" % (self.name, server.label),
                before=_show(found) if registration.enabled.get(server.id) else "",
                after=_show(entries),
            )
        for srvid, enabled in sorted(registration.enabled.items()):
            if srvid in wanted_ids or srvid not in by_id:
                continue
            self._plan_other(plan, by_id[srvid], enabled, registration, entries)

    def _plan_other(self, plan: Plan, server: Registered, enabled: bool, registration: Registration, entries: tuple[Entry, ...]) -> None:
        """A server that is not named: left alone, or deactivated; what is registered for it must fit the functions all the same."""
        if enabled and self.params["servers_exact"]:
            plan.add(
                'deactivate %s on server "%s"' % (self.name, server.label),
                functools.partial(self.repository.disable_datasource, server.id, self.name),
                subject="%s on server %s" % (self.name, server.label),
                before="active\n",
                after="not active\n",
            )
            enabled = False
        if not self.repository.shared_registration and registration.entries.get(server.id) != entries:
            plan.add(
                'correct the registration of %s on server "%s"' % (self.name, server.label),
                functools.partial(self.repository.enable_datasource, server.id, self.name, entries, enabled),
                subject="%s on server %s" % (self.name, server.label),
                before=_show(registration.entries.get(server.id, ())),
                after=_show(entries),
            )

    def _plan_absent(self, plan: DatasourcePlan, seen: RepositorySeen) -> None:
        registration = seen.registration
        if registration.entries or registration.enabled:
            labels = [server.label for server in seen.servers if registration.enabled.get(server.id)]
            plan.add(
                "unregister %s" % self.name,
                functools.partial(self.repository.unregister_datasource, self.name),
                subject="registration of %s" % self.name,
                before="".join("active on %s\n" % label for label in labels) or _show(next(iter(registration.entries.values()), ())),
                after="",
            )
        if not self.params["purge"]:
            return
        tables = [table for name, table in seen.tables.items() if name in (*self.names.tables, self.names.record)]
        found = [one for name in self.names.functions for one in seen.functions.get(name, ())]
        for what, objects in (("table or type", tables), ("function", found)):
            for one in objects:
                if not one.made_here:
                    if self.functions:
                        return  # the user's own
                    refuse_foreign("the %s %s" % (what, one.name))
        if tables or found:
            plan.rebuilds = True
            plan.add(
                "drop the tables and functions of %s with %d bytes of history" % (self.name, seen.history_bytes),
                functools.partial(self._drop, tables, found),
                subject="objects of %s" % self.name,
                before="".join("%s\n" % one.name for one in [*tables, *found]),
                after="",
            )

    def _drop(self, tables: t.Sequence[catalog.FoundTable], functions: t.Sequence[catalog.FoundFunction]) -> None:
        schema = self.repository.schema
        there = {table.name for table in tables}
        catalog.lock_tables(self.session, schema, [name for name in self.names.tables if name in there])
        for function in functions:
            catalog.drop_function(self.session, schema, function)
        for table in sorted(tables, key=lambda one: one.composite):
            self.session.execute(sql.SQL("DROP {} {}").format(sql.SQL("TYPE" if table.composite else "TABLE"), sql.Identifier(schema, table.name)))

    # Proof

    def _prove(self, probes: t.Sequence[Probe]) -> None:
        """A trial snapshot with what the servers yield now, by everybody who may collect, and all of it rolled back."""
        roles = self._collecting_roles() if probes else []
        for probe in probes[:TRIALS]:
            for role in roles:
                fault = self._trial(probe, role)
                if fault:
                    check.refuse(self.name, [fault])

    def _collecting_roles(self) -> list[str | None]:
        """Logins that may write PoWA's own transient tables and that this session may act as; else itself."""
        rows = self.session.rows(
            "SELECT rolname FROM pg_roles WHERE rolcanlogin AND NOT rolsuper AND pg_has_role(oid, 'MEMBER')"
            " AND has_table_privilege(oid, to_regclass(%s)::oid, 'INSERT') AND has_database_privilege(oid, current_database(), 'CONNECT')"
            " AND has_schema_privilege(oid, %s::text, 'USAGE') ORDER BY rolname",
            ["%s.%s" % (quote(self.repository.schema), MODEL_TRANSIENT), self.repository.schema],
        )
        return [row["rolname"] for row in rows][:TRIALS] or [None]

    def _trial(self, probe: Probe, role: str | None) -> Fault | None:
        repository, srvid = self.repository, probe.server.id
        schema = repository.schema
        transient = sql.Identifier(schema, self.transient)
        functions = self.functions or self.names.operations
        doing = 'waiting for the end of a snapshot of server "%s"' % probe.server.label
        try:
            with self.session.rehearsal():
                self.session.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(LOCK_SECONDS * 1000)))
                self.session.execute("SET LOCAL datestyle = ISO")
                self.session.execute("SET LOCAL client_encoding = 'UTF8'")
                # PoWA's functions take this lock too, and they fail at once when the collector has it.
                metas = sql.Identifier(schema, "powa_snapshot_metas")
                self.session.execute(sql.SQL("SELECT FROM {} WHERE srvid = %s FOR UPDATE").format(metas), [srvid])
                doing = 'copying the rows of server "%s" into %s' % (probe.server.label, self.transient)
                # What the last snapshot may have left would be taken for a fault of this one.
                self.session.execute(sql.SQL("DELETE FROM {} WHERE srvid = %s").format(transient), [srvid])
                self.session.execute("SET LOCAL search_path = pg_catalog" if repository.shared_registration else 'SET LOCAL search_path = "$user", public')
                if role:
                    self.session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
                self.session.copy_in(sql.SQL("COPY {} FROM STDIN").format(transient), probe.data)
                self._note_twins(probe, transient)
                for operation in ("snapshot", "aggregate", "purge"):
                    doing = "%s(%d)" % (functions[operation], srvid)
                    self.session.execute(sql.SQL("SELECT {}(%s)").format(sql.Identifier(schema, functions[operation])), [srvid])
                    left = operation == "snapshot" and self.session.value(sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE srvid = %s)").format(transient), [srvid])
                    if left:
                        return check.not_emptied(functions["snapshot"], self.transient)
        except QueryFailed as error:
            who = " as %s" % role if role else ""
            if error.facts.get("sqlstate") == "55P03":
                raise
            denied = error.facts.get("sqlstate") == "42501"
            return Fault(
                "collector_rights" if denied else "trial_snapshot",
                "in a trial snapshot%s, which was rolled back, %s fails: %s" % (who, doing, error.message),
                "Grant %s what is missing" % (role or "it")
                if denied
                else "Mend it; PoWA would note this at each snapshot, or only when it aggregates",
            )  # fmt: skip
        return None

    def _note_twins(self, probe: Probe, transient: t.Any) -> None:
        """Rows of one sample with the same labels are one series to whoever reads the history."""
        if self.declared is None:
            return
        labels = sql.SQL(", ").join([sql.Identifier("srvid"), *(sql.Identifier(column.name) for column in self.declared.labels)])
        count = self.session.value(
            sql.SQL("SELECT count(*) FROM (SELECT 1 FROM {} WHERE srvid = %s GROUP BY {} HAVING count(*) > 1) AS twins").format(transient, labels),
            [probe.server.id],
        )
        if count:
            self.twins[probe.server.label] = count

    # Result

    def report(self, seen: RepositorySeen) -> dict[str, t.Any]:
        for label, count in self.twins.items():
            self.context.warn(
                'the query of %s yields rows with the same labels on server "%s", %d times: add a label that tells them apart, or rates are wrong'
                % (self.name, label, count)
            )
        return {
            "name": self.name,
            "side": "repository",
            "schema": self.repository.schema,
            "repository_version": self.repository.version,
            "query_source": self.source,
            "servers": [{"alias": server.label, "active": bool(seen.registration.enabled.get(server.id))} for server in seen.servers],
            "history_bytes": seen.history_bytes,
            "checked_servers": [probe.server.label for probe in seen.probes],
        }


def _show(entries: t.Iterable[Entry]) -> str:
    """Registered functions in a diff."""
    lines = []
    for entry in entries:
        source = " from %s" % entry.query_source if entry.query_source else ""
        cleanup = ", then %s" % entry.query_cleanup if entry.query_cleanup else ""
        lines.append("%s: %s%s%s, priority %g\n" % (entry.operation, entry.function, source, cleanup, entry.priority))
    return "".join(lines)
