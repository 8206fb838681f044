# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Foreign data objects of a database: what there is, what runs it, and whether each table's options are accepted."""

from __future__ import annotations

import dataclasses
import typing as t

from .._errors import NotConfirmed, OperationError
from .._fdw import catalog, hosting, runtime
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._sql.connection import Session, Target, connect, sql

FDW_INFO = CONNECTION.merge(
    ArgumentSpec(
        {
            "wrappers": {"type": "list", "elements": "str"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "check": {"type": "bool", "default": True},
            "fail_on_problems": {"type": "bool", "default": False},
        }
    )
)
# Multicorn's own guess, which makes PostgreSQL compile every query.
_MULTICORN_GUESS = 100000000


class ForeignDataInfo(Operation):
    """Reads the catalogs, and lets each table be planned."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self._session: Session | None = None
        self._can_ask, self._unchecked = False, 0

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = connect(Target.from_params(self.params), read_only=True)
        return self._session

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def observe(self) -> dict[str, t.Any]:
        session, params = self.session, self.params
        extensions = runtime.read_extensions(session)
        self._can_ask = runtime.can_ask(session)
        python = runtime.ask_python(session, params["packages"]) if self._can_ask else None
        names = [row["fdwname"] for row in session.rows("SELECT fdwname FROM pg_foreign_data_wrapper ORDER BY 1")]
        wanted = [name for name in names if params["wrappers"] is None or name in params["wrappers"]]
        problems = ["there is no foreign-data wrapper %s" % name for name in params["wrappers"] or () if name not in names]
        for name, found in (python or {}).get("packages", {}).items():
            if found["error"]:
                problems.append("the package %s cannot be imported: %s" % (name, found["error"]))
        if python is None and params["packages"]:
            problems.append(
                "whether %s can be imported is not known: to ask the server's Python takes the extension plpython3u in the database, and a superuser"
                % ", ".join(params["packages"])
            )
        wrappers = [self._wrapper(name, problems) for name in wanted]
        return {
            "standby": session.value("SELECT pg_is_in_recovery()"),
            "extensions": {name: dataclasses.asdict(one) for name, one in extensions.items()},
            "python": python,
            "wrappers": wrappers,
            "problems": problems,
        }

    def _wrapper(self, name: str, problems: list[str]) -> dict[str, t.Any]:
        found = t.cast(catalog.FoundWrapper, catalog.read_wrapper(self.session, name))
        used = runtime.of_wrapper(found)
        hosted = {(one.schema, one.name): one for one in hosting.read_hosted(self.session, name)} if used else {}
        servers = [self._server(row["srvname"], used, hosted, problems) for row in self.session.rows(
            "SELECT srvname FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE w.fdwname = %s ORDER BY 1", [name]
        )]  # fmt: skip
        if used == runtime.MULTICORN and not (found.validator or "").startswith("%s." % runtime.SCHEMA):
            problems.append("the foreign-data wrapper %s has no guard: whoever may use a server of it can load any class" % name)
        return {
            "name": name, "runtime": used, "owner": found.owner, "handler": found.handler, "validator": found.validator, "extension": found.extension,
            "options": dict(found.options), "servers": servers,
        }  # fmt: skip

    def _server(self, name: str, used: str | None, hosted: t.Mapping[tuple[str, str], hosting.Hosted], problems: list[str]) -> dict[str, t.Any]:
        found = t.cast(catalog.FoundServer, catalog.read_server(self.session, name))
        mappings = catalog.read_mappings(self.session, name)
        if used and found.usage:
            problems.append(
                "the server %s can be used by %s, who may make tables of its class" % (name, ", ".join(sorted(role or "PUBLIC" for role in found.usage)))
            )
        tables = []
        for row in self.session.rows(
            "SELECT n.nspname, c.relname FROM pg_foreign_table t JOIN pg_class c ON c.oid = t.ftrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_foreign_server s ON s.oid = t.ftserver WHERE s.srvname = %s ORDER BY 1, 2", [name],
        ):  # fmt: skip
            tables.append(self._table(row["nspname"], row["relname"], used, hosted, problems))
        return {
            "name": name, "owner": found.owner, "type": found.type, "version": found.version, "options": dict(found.options),
            "usage": sorted(role or "PUBLIC" for role in found.usage), "mappings": sorted(one.role or "PUBLIC" for one in mappings), "tables": tables,
            "dependents": catalog.read_dependents(self.session, name),
        }  # fmt: skip

    def _table(self, schema: str, name: str, used: str | None, hosted: t.Mapping[tuple[str, str], hosting.Hosted], problems: list[str]) -> dict[str, t.Any]:
        view = hosted.get((schema, name.removesuffix(hosting.FOREIGN_SUFFIX))) if name.endswith(hosting.FOREIGN_SUFFIX) else None
        found = t.cast(catalog.FoundForeignTable, catalog.read_table(self.session, schema, name))
        problem = None
        if used and (view is None or view.runtime is None):
            problem = "it has no view; make it with pgfleet.ops.fdw_table"
        elif view is not None and view.runtime != used:
            problem = "its view is read by %s; run pgfleet.ops.fdw_wrapper" % view.runtime
        elif self.params["check"]:
            problem = self._ask(schema, name, used)
        clients_name = view.name if view is not None and view.runtime is not None else name
        shown = "%s.%s" % (schema, view.name if view else name)
        if problem:
            problems.append("%s: %s" % (shown, problem))
        return {
            "schema": schema, "name": view.name if view else name, "foreign_table": name, "writable": view.writable if view else None,
            "options": dict(found.options), "columns": [dataclasses.asdict(column) for column in found.columns],
            "dependents": catalog.read_users_of(self.session, schema, clients_name), "problem": problem,
        }  # fmt: skip

    def _ask(self, schema: str, name: str, used: str | None) -> str | None:
        """Why a table cannot be planned, or None. Nothing is read from the other side, unless the wrapper does that to plan."""
        table = hosting.names(schema, name)
        try:
            if used == runtime.PLPYTHON:
                if not self._can_ask:
                    self._unchecked += 1
                    return None
                return runtime.ask_table(self.session, table.as_string(self.session.connection))
            with self.session.rehearsal():
                lines = self.session.rows(sql.SQL("EXPLAIN SELECT * FROM {}").format(table))
        except OperationError as error:
            return error.message
        if used == runtime.MULTICORN and "rows=%d " % _MULTICORN_GUESS in str(lines[0]):
            return "its class does not say how many rows it has, so that PostgreSQL expects a hundred million (get_rel_size)"
        return None

    def report(self, seen: dict[str, t.Any]) -> dict[str, t.Any]:
        if self._unchecked:
            self.context.warn("%d tables of classes in Python were not checked, as %s is no superuser" % (self._unchecked, self.session.target.user))
        if seen["problems"] and self.params["fail_on_problems"]:
            raise NotConfirmed("foreign data of %s: %s" % (self.session.target, "; ".join(seen["problems"])), **seen)
        return seen
