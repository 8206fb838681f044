# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A foreign-data wrapper for classes in Python: runtime, guard, and packages that the server of every node can import."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing as t

from .._errors import InvalidInput, Refused
from .._fdw import catalog, guard, hosting, runtime
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._plan import Plan
from .._sql.connection import Session, Target, connect, sql
from .._sql.transaction import TransactionPlan
from .._wait import Deadline, wait_for

FDW_WRAPPER = CONNECTION.merge(
    ArgumentSpec(
        {
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "packages": {"type": "list", "elements": "str", "default": ["pgfleet_fdw"]},
            "runtime": {"type": "str", "choices": [runtime.AUTO, runtime.MULTICORN, runtime.PLPYTHON], "default": runtime.AUTO},
            "stale_sessions": {"type": "str", "choices": ["report", "terminate"], "default": "report"},
        }
    )
)
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GUARD_SUFFIX = "_guard"
# How long a session may take to end, in seconds.
_END_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Seen:
    standby: bool
    extensions: t.Mapping[str, runtime.Extension]
    chosen: str | None
    """The one to be used; None where the wrapper is to be absent."""
    wrapper: catalog.FoundWrapper | None
    schema: bool
    outbox: bool
    guard: t.Mapping[str, t.Any] | None
    """source and whether everybody may call it"""
    multicorn_schema: str | None
    open_validator: bool
    """Everybody may call Multicorn's own validator."""
    hosted: t.Sequence[hosting.Hosted]
    servers: t.Sequence[str]
    python: t.Mapping[str, t.Any] | None
    """What the server's Python says, where it can be asked."""
    stale: t.Sequence[t.Mapping[str, t.Any]]


class ForeignDataWrapper(Operation):
    """Makes, changes or drops one foreign-data wrapper; on a standby only looks whether its packages are there."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.name = str(params["name"])
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
        session, params = self.session, self.params
        extensions = runtime.read_extensions(session)
        chosen = runtime.choose(params["runtime"], extensions, session.server_version) if params["state"] == "present" else None
        function = session.row(
            "SELECT p.prosrc AS source, has_function_privilege('public', p.oid, 'EXECUTE') AS open FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
            " WHERE n.nspname = %s AND p.proname = %s AND p.pronargs = 2",
            [runtime.SCHEMA, self.name + GUARD_SUFFIX],
        )
        multicorn = session.row(
            "SELECT n.nspname AS schema, has_function_privilege('public', p.oid, 'EXECUTE') AS open FROM pg_proc p"
            " JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.proname = 'multicorn_validator'"
        )
        python = None
        if params["state"] == "present" and extensions[runtime.PLPYTHON].created:
            python = runtime.ask_python(session, params["packages"])
        return Seen(
            standby=session.value("SELECT pg_is_in_recovery()"),
            extensions=extensions,
            chosen=chosen,
            wrapper=catalog.read_wrapper(session, self.name),
            schema=bool(session.value("SELECT count(*) FROM pg_namespace WHERE nspname = %s", [runtime.SCHEMA])),
            outbox=bool(session.value("SELECT count(*) FROM pg_class WHERE oid = to_regclass(%s)", [hosting.OUTBOX_NAME])),
            guard=function,
            multicorn_schema=multicorn["schema"] if multicorn else None,
            open_validator=bool(multicorn and multicorn["open"]),
            hosted=hosting.read_hosted(session, self.name),
            servers=[row["srvname"] for row in session.rows(
                "SELECT srvname FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE w.fdwname = %s ORDER BY 1", [self.name]
            )],
            python=python,
            stale=self._stale(python),
        )  # fmt: skip

    def _check(self) -> None:
        if len(self.name.encode()) > 63 - len(GUARD_SUFFIX):
            raise InvalidInput("the option name is %d bytes long" % len(self.name.encode()), expected="%d at most" % (63 - len(GUARD_SUFFIX)))
        wrong = sorted(name for name in self.params["packages"] if not _PACKAGE.fullmatch(name))
        if wrong:
            raise InvalidInput(
                "the option packages has %s" % ", ".join('"%s"' % name for name in wrong), expected="names of packages as Python imports them, without a dot"
            )
        if self.params["state"] == "present" and not self.params["packages"]:
            raise InvalidInput("the option packages is empty", expected="the packages whose classes servers of this wrapper may name")

    def _stale(self, python: t.Mapping[str, t.Any] | None) -> list[dict[str, t.Any]]:
        """Sessions of this database that began before a package was changed, and may have loaded it as it was."""
        changed = max((found["changed"] or 0 for found in python["packages"].values()), default=0) if python else 0
        if not changed:
            return []
        return self.session.rows(
            "SELECT pid, usename AS user, application_name AS application, backend_type AS type, backend_start::text AS since FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_start < to_timestamp(%s)"
            " AND backend_type NOT IN ('autovacuum worker', 'parallel worker') ORDER BY pid",
            [changed],
        )

    # -- what is to be done ----------------------------------------------------------------------------------------

    def plan(self, seen: Seen) -> Plan:
        plan = TransactionPlan(self.session)
        if self.params["state"] == "absent":
            self._plan_absent(plan, seen)
        elif seen.standby:
            self._refuse_missing_packages(seen)
        else:
            self._plan_present(plan, seen)
            plan.prove = self._prove
        if self.params["stale_sessions"] == "terminate":
            self._plan_termination(plan, seen)
        return plan

    def _refuse_missing_packages(self, seen: Seen) -> None:
        if seen.wrapper is None:
            raise Refused(
                "this server is a standby and has no foreign-data wrapper %s yet" % self.name,
                action="Run the task on the primary first, and wait until it is replayed",
            )
        self._refuse_broken(seen.python)

    def _refuse_broken(self, python: t.Mapping[str, t.Any] | None) -> None:
        broken = {name: found["error"] for name, found in (python or {}).get("packages", {}).items() if found["error"]}
        if broken:
            raise Refused(
                "this server's Python %s cannot import %s"
                % (t.cast("dict[str, t.Any]", python)["version"], "; ".join("%s (%s)" % item for item in sorted(broken.items()))),
                action="Install the package in one of %s on every node of the cluster; the role pgfleet.ops.fdw_host does"
                % ", ".join(t.cast("dict[str, t.Any]", python)["path"]),
            )

    def _plan_absent(self, plan: Plan, seen: Seen) -> None:
        if seen.standby or (seen.wrapper is None and seen.guard is None):
            return
        if seen.servers:
            raise Refused(
                "the foreign-data wrapper %s has servers and was not dropped: %s" % (self.name, ", ".join(seen.servers)),
                action="Drop these first with pgfleet.ops.fdw_server",
            )
        if seen.wrapper is not None:
            self._step(plan, "drop foreign-data wrapper %s" % self.name, sql.SQL("DROP FOREIGN DATA WRAPPER {}").format(sql.Identifier(self.name)))
        if seen.guard is not None:
            self._step(plan, "drop its guard", sql.SQL("DROP FUNCTION {} (text[], oid)").format(self._guard_name()))

    def _plan_present(self, plan: Plan, seen: Seen) -> None:
        chosen = t.cast(str, seen.chosen)
        if seen.wrapper is not None and seen.wrapper.handler is not None and runtime.of_wrapper(seen.wrapper) is None:
            raise Refused(
                "the foreign-data wrapper %s is not for classes in Python: its handler is %s" % (self.name, seen.wrapper.handler),
                action="Choose another name; servers of %s need no more than pgfleet.ops.fdw_server" % self.name,
            )
        self._refuse_broken(seen.python)
        extension = runtime.EXTENSIONS[chosen]
        if not seen.extensions[chosen].created:
            self._step(
                plan,
                "create extension %s" % extension,
                sql.SQL("CREATE EXTENSION {}{}").format(sql.Identifier(extension), sql.SQL(" SCHEMA public" if chosen == runtime.MULTICORN else "")),
            )
        if not seen.schema:
            self._step(plan, "create schema %s" % runtime.SCHEMA, sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(runtime.SCHEMA)))
        if chosen == runtime.PLPYTHON and not seen.outbox:
            self._step(plan, "create the outbox, where what is written waits until its transaction ends", *hosting.OUTBOX)
        body = guard.body(self.session, self.params["packages"], chosen, seen.multicorn_schema)
        if seen.guard is None or seen.guard["source"] != body or seen.guard["open"]:
            made = guard.statements(self.session, runtime.SCHEMA, self.name + GUARD_SUFFIX, body)
            what = "%s the guard of %s, which lets servers name classes of %s"
            self._step(
                plan,
                what % ("change" if seen.guard else "create", self.name, ", ".join(self.params["packages"])),
                *made,
                subject="guard of %s" % self.name,
                before=seen.guard["source"] if seen.guard else "",
                after=body,
            )
        handler = (
            sql.SQL("HANDLER {}.multicorn_handler").format(sql.Identifier(seen.multicorn_schema or "public"))
            if chosen == runtime.MULTICORN
            else sql.SQL("NO HANDLER")
        )
        if seen.wrapper is None:
            statement = sql.SQL("CREATE FOREIGN DATA WRAPPER {} {} VALIDATOR {}").format(sql.Identifier(self.name), handler, self._guard_name())
            self._step(plan, "create foreign-data wrapper %s, run by %s" % (self.name, chosen), statement)
        else:
            if (seen.wrapper.handler is not None) != (chosen == runtime.MULTICORN):
                statement = sql.SQL("ALTER FOREIGN DATA WRAPPER {} {}").format(sql.Identifier(self.name), handler)
                self._step(plan, "let %s run foreign-data wrapper %s" % (chosen, self.name), statement)
            if not self._guards(seen.wrapper.validator):
                statement = sql.SQL("ALTER FOREIGN DATA WRAPPER {} VALIDATOR {}").format(sql.Identifier(self.name), self._guard_name())
                self._step(plan, "guard foreign-data wrapper %s" % self.name, statement)
        if chosen == runtime.MULTICORN and (seen.open_validator or not seen.extensions[chosen].created):
            statement = sql.SQL("REVOKE ALL ON FUNCTION {}.multicorn_validator (text[], oid) FROM PUBLIC").format(
                sql.Identifier(seen.multicorn_schema or "public")
            )
            self._step(plan, "let nobody call Multicorn's own validator, which imports any module", statement)
        for table in seen.hosted:
            if table.runtime not in (None, chosen):
                made = hosting.statements(chosen, table.schema, table.name, int(table.rows or 100), table.writable, replace=True)
                self._step(plan, "let %s read %s.%s" % (chosen, table.schema, table.name), *made)

    def _plan_termination(self, plan: Plan, seen: Seen) -> None:
        for row in seen.stale:
            plan.add(
                "end the session %d of %s (%s), which began before the packages changed" % (row["pid"], row["user"], row["application"] or row["type"]),
                functools.partial(self._terminate, row["pid"]),
            )

    def _terminate(self, pid: int) -> None:
        self.session.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_for("the end of session %d" % pid, functools.partial(self._is_there, pid), lambda there: not there, Deadline(_END_SECONDS), interval=0.05)

    def _is_there(self, pid: int) -> bool:
        # A transaction sees the sessions as they were when it first looked, until it is told to look anew.
        self.session.execute("SELECT pg_stat_clear_snapshot()")
        return bool(self.session.value("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]))

    def _prove(self) -> None:
        """In the transaction, when everything is there: the packages can be imported."""
        if runtime.read_extensions(self.session)[runtime.PLPYTHON].created:
            self._refuse_broken(runtime.ask_python(self.session, self.params["packages"]))

    def _step(self, plan: Plan, what: str, *statements: t.Any, **diff: t.Any) -> None:
        def do() -> None:
            for statement in statements:
                self.session.execute(statement)

        plan.add(what, do, **diff)

    def _guard_name(self) -> t.Any:
        return sql.SQL("{}.{}").format(sql.Identifier(runtime.SCHEMA), sql.Identifier(self.name + GUARD_SUFFIX))

    def _guards(self, validator: str | None) -> bool:
        """Whether that is our guard; ``validator`` as regprocedure shows it, quoted where needed."""
        name = self.session.value("SELECT to_regprocedure(%s)::text", [self._guard_name().as_string(self.session.connection) + "(text[],oid)"])
        return validator is not None and validator == name

    # -- what came out ---------------------------------------------------------------------------------------------

    def report(self, seen: Seen) -> dict[str, t.Any]:
        if seen.stale and self.params["stale_sessions"] == "report":
            self.context.warn(
                "%d sessions began before the packages of %s changed and may run the old code: pid %s. End them, or run this with stale_sessions=terminate."
                % (len(seen.stale), self.name, ", ".join(str(row["pid"]) for row in seen.stale))
            )
        return {
            "runtime": seen.chosen,
            "wrapper": dataclasses.asdict(seen.wrapper) if seen.wrapper else None,
            "python": seen.python,
            "stale_sessions": [dict(row) for row in seen.stale],
            "standby": seen.standby,
        }
