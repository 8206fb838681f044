# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A foreign server with its options, user mappings and rights, changed in place and never made anew."""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from .._errors import InvalidInput, Refused
from .._fdw import catalog, options, runtime
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._plan import Plan
from .._sql.connection import Session, Target, connect, sql
from .._sql.transaction import TransactionPlan

FDW_SERVER = CONNECTION.merge(
    ArgumentSpec(
        {
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "wrapper": {"type": "str"},
            "type": {"type": "str"},
            "version": {"type": "str"},
            "options": {"type": "dict", "default": {}},
            "options_exact": {"type": "bool", "default": True},
            "owner": {"type": "str"},
            "usage": {"type": "list", "elements": "str"},
            "mappings": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "role": {"type": "str", "required": True},
                    "options": {"type": "dict", "default": {}},
                    # Apart, because each value of such an option is hidden wherever it shows, also where it is a word like postgres.
                    "secrets": {"type": "dict", "default": {}, "no_log": True},
                },
            },
            "mappings_exact": {"type": "bool", "default": False},
            "cascade": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ("wrapper",))],
    )
)
PUBLIC = "PUBLIC"
# Everybody who may connect can read a server's options.
_SECRET = ("password", "passwd", "secret", "sslpassword")


@dataclasses.dataclass(frozen=True)
class Seen:
    wrapper: catalog.FoundWrapper | None
    server: catalog.FoundServer | None
    mappings: t.Sequence[catalog.FoundMapping]
    dependents: t.Sequence[str]
    roles: frozenset[str]


class ForeignServer(Operation):
    """Makes, changes or drops one foreign server."""

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
        session, wanted = self.session, self.params["wrapper"]
        return Seen(
            catalog.read_wrapper(session, wanted) if wanted else None,
            catalog.read_server(session, self.name),
            catalog.read_mappings(session, self.name),
            catalog.read_dependents(session, self.name),
            frozenset(row["rolname"] for row in session.rows("SELECT rolname FROM pg_roles")),
        )

    def _check(self) -> None:
        params = self.params
        if not self.name:
            raise InvalidInput("the option name is empty", expected="the name of a foreign server")
        secret = sorted(key for key in params["options"] if key.lower() in _SECRET)
        if secret:
            raise InvalidInput(
                "the option options has %s, and everybody who may connect can read the options of a server" % ", ".join(secret),
                action="Put it into the secrets of mappings, where only the server's owner and the mapped role see it, or name a passfile",
            )
        for mapping in params["mappings"]:
            shown = sorted(key for key in mapping["options"] if key.lower() in _SECRET)
            if shown:
                raise InvalidInput(
                    "the mapping of %s has %s among its options, which are shown" % (mapping["role"], ", ".join(shown)), expected="it among its secrets"
                )
            both = sorted(set(mapping["options"]) & set(mapping["secrets"]))
            if both:
                raise InvalidInput("the mapping of %s has %s among its options and its secrets" % (mapping["role"], ", ".join(both)))
        names = [mapping["role"] for mapping in params["mappings"]]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput("two entries of the option mappings are for the role %s" % ", ".join(twice))
        if "wrapper" in {key for mapping in params["mappings"] for key in (*mapping["options"], *mapping["secrets"])}:
            raise InvalidInput(
                "the option mappings has wrapper, which would win over the server's own: whoever has that mapping could load any class",
                expected="wrapper in the option options",
            )

    # -- what is to be done ----------------------------------------------------------------------------------------

    def plan(self, seen: Seen) -> Plan:
        plan = TransactionPlan(self.session)
        if self.params["state"] == "absent":
            self._plan_absent(plan, seen)
            return plan
        self._refuse(seen)
        if seen.server is None:
            self._plan_creation(plan)
        else:
            self._plan_changes(plan, seen.server)
        self._plan_owner_and_usage(plan, seen.server)
        self._plan_mappings(plan, seen.mappings)
        if runtime.of_wrapper(t.cast(catalog.FoundWrapper, seen.wrapper)) == runtime.PLPYTHON and runtime.can_ask(self.session):
            plan.prove = self._prove
        return plan

    def _plan_absent(self, plan: Plan, seen: Seen) -> None:
        if seen.server is None:
            return
        if seen.dependents and not self.params["cascade"]:
            raise Refused(
                "the server %s is in use and was not dropped: %s" % (self.name, ", ".join(seen.dependents)),
                action="Drop these first, or all of them with cascade=true",
            )
        plan.add(
            "drop server %s%s" % (self.name, " with %s" % ", ".join(seen.dependents) if seen.dependents else ""),
            functools.partial(self._execute, "DROP SERVER {}" + (" CASCADE" if self.params["cascade"] else "")),
            subject="server %s" % self.name,
            before=_shown(seen.server) + "".join("%s\n" % one for one in seen.dependents),
            after="",
        )

    def _refuse(self, seen: Seen) -> None:
        params = self.params
        if seen.wrapper is None:
            raise Refused(
                'there is no foreign-data wrapper "%s" in the database %s' % (params["wrapper"], self.session.value("SELECT current_database()")),
                action="Create the extension that has it (postgres_fdw, file_fdw), or with pgfleet.ops.fdw_wrapper one for wrappers in Python",
            )
        if seen.server is not None and seen.server.wrapper != params["wrapper"]:
            raise Refused(
                "the server %s belongs to the foreign-data wrapper %s, which cannot be changed" % (self.name, seen.server.wrapper),
                expected=str(params["wrapper"]),
                action="Choose another name, or drop the server and what uses it",
            )
        if seen.server is not None and params["type"] not in (None, "", seen.server.type):
            raise Refused("the server %s has the type %s, which cannot be changed" % (self.name, seen.server.type or "(none)"), expected=params["type"])
        named = [*([params["owner"]] if params["owner"] else []), *(params["usage"] or []), *(mapping["role"] for mapping in params["mappings"])]
        unknown = sorted(set(named) - seen.roles - {PUBLIC})
        if unknown:
            raise InvalidInput(
                "there is no role %s" % ", ".join(unknown),
                action="Write PUBLIC for everybody" if unknown == ["public"] else "Create it first, or correct owner, usage or mappings",
            )
        if params["owner"] == PUBLIC:
            raise InvalidInput("the option owner is PUBLIC", expected="a role")

    def _prove(self) -> None:
        """In the transaction: the class is there. Multicorn's validator sees to that itself."""
        path = t.cast(catalog.FoundServer, catalog.read_server(self.session, self.name)).options.get("wrapper", "")
        found = runtime.ask_python(self.session, classes=[path])
        if found["classes"][path]:
            raise Refused(
                "this server's Python cannot load the class %s: %s" % (path, found["classes"][path]),
                action="Correct the option wrapper, package.module.Class, or install the package on every node of the cluster",
            )

    def _plan_creation(self, plan: Plan) -> None:
        params = self.params
        wanted = options.changes({}, params["options"])
        described = sql.SQL("")
        for word, key in (("TYPE", "type"), ("VERSION", "version")):
            if params[key]:
                described = sql.SQL("{} {} {}").format(described, sql.SQL({"TYPE": "TYPE", "VERSION": "VERSION"}[word]), sql.Literal(params[key]))
        statement = sql.SQL("CREATE SERVER {}{} FOREIGN DATA WRAPPER {}{}").format(
            sql.Identifier(self.name), described, sql.Identifier(params["wrapper"]), options.clause(wanted, creating=True)
        )
        plan.add(
            "create server %s" % self.name,
            functools.partial(self.session.execute, statement),
            subject="server %s" % self.name,
            before="",
            after=options.shown(options.as_text(params["options"])),
        )

    def _plan_changes(self, plan: Plan, found: catalog.FoundServer) -> None:
        params = self.params
        version = params["version"] or None
        if version and version != found.version:
            statement = sql.SQL("ALTER SERVER {} VERSION {}").format(sql.Identifier(self.name), sql.Literal(version))
            plan.add(
                "set the version of server %s to %s" % (self.name, version),
                functools.partial(self.session.execute, statement),
                subject="version of server %s" % self.name,
                before="%s\n" % (found.version or ""),
                after="%s\n" % version,
            )
        changed = options.changes(found.options, params["options"], params["options_exact"])
        if changed:
            after = options.apply(found.options, changed)
            plan.add(
                "change options of server %s: %s" % (self.name, ", ".join(map(str, changed))),
                functools.partial(self.session.execute, sql.SQL("ALTER SERVER {}{}").format(sql.Identifier(self.name), options.clause(changed))),
                subject="options of server %s" % self.name,
                before=options.shown(found.options),
                after=options.shown(after),
            )

    def _plan_owner_and_usage(self, plan: Plan, found: catalog.FoundServer | None) -> None:
        params = self.params
        owner = params["owner"] or None
        if owner and (found is None or found.owner != owner):
            plan.add(
                "give server %s to %s" % (self.name, owner),
                functools.partial(self._execute, "ALTER SERVER {} OWNER TO {}", owner),
                subject="owner of server %s" % self.name,
                before="%s\n" % (found.owner if found else ""),
                after="%s\n" % owner,
            )
        if params["usage"] is None:
            return
        has = {role or PUBLIC for role in (found.usage if found else ())}
        wanted = set(params["usage"]) - {owner or (found.owner if found else None)}
        for role in sorted(wanted - has):
            plan.add("let %s use server %s" % (role, self.name), functools.partial(self._execute, "GRANT USAGE ON FOREIGN SERVER {} TO {}", role))
        for role in sorted(has - wanted):
            plan.add("let %s no longer use server %s" % (role, self.name), functools.partial(self._execute, "REVOKE USAGE ON FOREIGN SERVER {} FROM {}", role))

    def _plan_mappings(self, plan: Plan, found: t.Sequence[catalog.FoundMapping]) -> None:
        there = {mapping.role or PUBLIC: mapping for mapping in found}
        for wanted in self.params["mappings"]:
            role, values = wanted["role"], options.as_text({**wanted["options"], **wanted["secrets"]})
            open_to_see = set(wanted["options"])
            mapping = there.get(role)
            if mapping is None:
                clause = options.clause(options.changes({}, values), creating=True)
                self._add_mapping(
                    plan, "map %s on server %s" % (role, self.name), "CREATE USER MAPPING FOR {} SERVER {}{}", role, clause, {}, values, open_to_see
                )
                continue
            if mapping.options is None:
                raise Refused(
                    "the options of the mapping of %s on server %s cannot be seen by %s" % (role, self.name, self.session.target.user),
                    action="Connect as the owner of the server or as a superuser",
                )
            changed = options.changes(mapping.options, values)
            if changed:
                what = "change the mapping of %s on server %s: %s" % (role, self.name, ", ".join(map(str, changed)))
                self._add_mapping(plan, what, "ALTER USER MAPPING FOR {} SERVER {}{}", role, options.clause(changed), mapping.options, values, open_to_see)
        if self.params["mappings_exact"]:
            for role in sorted(set(there) - {mapping["role"] for mapping in self.params["mappings"]}):
                what = "drop the mapping of %s on server %s" % (role, self.name)
                self._add_mapping(plan, what, "DROP USER MAPPING FOR {} SERVER {}{}", role, sql.SQL(""), there[role].options or {}, {})

    def _add_mapping(
        self, plan: Plan, what: str, template: str, role: str, clause: t.Any, before: t.Mapping[str, str], after: t.Mapping[str, str],
        open_to_see: t.Collection[str] = (),
    ) -> None:  # fmt: skip
        """``open_to_see``: options that a diff shows; any other may be a secret."""
        statement = sql.SQL(template).format(_role(role), sql.Identifier(self.name), clause)
        plan.add(
            what,
            functools.partial(self.session.execute, statement),
            subject="mapping of %s on server %s" % (role, self.name),
            before="".join("%s: %s\n" % (key, before[key] if key in open_to_see else "(hidden)") for key in sorted(before)),
            after="".join(
                "%s: %s\n" % (key, after[key] if key in open_to_see else "(hidden)" if before.get(key) == after[key] else "(hidden, new)")
                for key in sorted(after)
            ),
        )

    def _execute(self, template: str, role: str | None = None) -> None:
        names = [sql.Identifier(self.name), *([_role(role)] if role else [])]
        self.session.execute(sql.SQL(template).format(*names))

    # -- what came out ---------------------------------------------------------------------------------------------

    def report(self, seen: Seen) -> dict[str, t.Any]:
        server = seen.server
        return {
            "server": None
            if server is None
            else {
                "name": server.name, "wrapper": server.wrapper, "owner": server.owner, "type": server.type, "version": server.version,
                "options": dict(server.options), "usage": sorted(role or PUBLIC for role in server.usage),
            },
            "mappings": sorted(mapping.role or PUBLIC for mapping in seen.mappings),
            "dependents": list(seen.dependents),
        }  # fmt: skip


def _role(name: str) -> t.Any:
    return sql.SQL("PUBLIC") if name == PUBLIC else sql.Identifier(name)


def _shown(server: catalog.FoundServer) -> str:
    return "wrapper: %s\nowner: %s\n%s" % (server.wrapper, server.owner, options.shown(server.options))
