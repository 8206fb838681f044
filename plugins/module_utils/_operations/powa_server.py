# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The remote servers that a repository of PoWA knows."""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from .._errors import InvalidInput, OperationError, QueryFailed, Refused
from .._module import Context, Operation
from .._parallel import ask_all
from .._plan import Plan
from .._powa import collector, servers
from .._powa.reach import find_faults
from .._powa.repository import COLUMNS, DbModule, Known, Registered, Repository, open_repository, version_tuple
from .._powa.servers import CollectorNeeds, Sources, Wanted
from .._sql.connection import Session, Target, connect
from .._sql.transaction import TransactionPlan
from .._wait import Deadline

# Servers that are asked at the same time.
ASKED_AT_ONCE = 32
# Fields of an entry that the collector connects with, and libpq's names for them.
_ADDRESS = frozenset(("host", "hostaddr", "port", "user", "dbname"))


@dataclasses.dataclass
class Seen:
    """``found`` are the registered servers that the entries mean, in their order. ``faults`` are those of servers that were asked, by alias."""

    register: servers.Register
    found: t.Sequence[Registered | None]
    differs: t.Mapping[int, t.Mapping[str, bool]]
    known: Known
    collector_versions: t.Sequence[str]
    sequence_lag: int = 0
    faults: t.Mapping[str, t.Sequence[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Question:
    """A server that is to be asked whether it can be collected from."""

    alias: str
    target: Target
    extensions: t.Collection[str]

    def __str__(self) -> str:
        return 'the server "%s" (%s)' % (self.alias, self.target)


class PowaServer(Operation):
    """Register, change, deactivate and purge the servers of the option ``servers`` in one transaction."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.wanted = servers.parse_wanted(params["servers"])
        self.extensions_exact = bool(params["extensions_exact"])
        self.modules_exact = bool(params["modules_exact"])
        self.connect_params: dict[str, t.Any] = dict(params["server_connect_params"] or {})
        if _ADDRESS & set(self.connect_params):
            raise InvalidInput(
                "server_connect_params has %s" % ", ".join(sorted(_ADDRESS & set(self.connect_params))),
                expected="what is the same for all servers, such as passfile or sslmode; address, user and database are those of each server",
            )
        if params["check_timeout"] < 1:
            raise InvalidInput("check_timeout is %s" % params["check_timeout"], expected="at least 1 second")
        self.checked: list[str] = []
        self.session: Session | None = None
        self.needs = CollectorNeeds()
        self._repository: Repository | None = None
        self._planned = False

    @property
    def repository(self) -> Repository:
        if self._repository is None:
            self.session = connect(Target.from_params(self.params, dbname=self.params.get("login_db") or "powa"), read_only=self.context.check_mode)
            self._repository = open_repository(self.session)
        return self._repository

    def observe(self) -> Seen:
        repository = self.repository
        self._check_retentions()
        register = servers.Register(repository.servers())
        found = servers.resolve(self.wanted, register)
        compared = [(server.id, one.password, one.retention) for one, server in zip(self.wanted, found) if server is not None and one.state != "absent"]
        seen = Seen(
            register=register,
            found=found,
            differs=repository.compare(compared),
            known=repository.known(),
            collector_versions=collector.collector_versions(repository.session),
        )
        if any(server is None and one.state != "absent" for one, server in zip(self.wanted, found)):
            seen.sequence_lag = repository.sequence_lag()
        if self.params["check_servers"]:
            seen.faults = self._find_faults(self._questions(seen))
        return seen

    def _questions(self, seen: Seen) -> list[Question]:
        """Servers that a collector would newly meet: new, active again, with another address or login, or with more extensions."""
        known = seen.known
        met = []
        for one, found in zip(self.wanted, seen.found):
            if one.state != "present":
                continue
            after = found or self._fresh(one, known)
            columns = servers.column_changes(one, found, seen.differs.get(found.id, {})) if found else {}
            sources = self._sources(one, after, known)
            if not found or not found.active or sources.activate or {"host", "port", "user", "dbname", "password"} & set(columns):
                enabled = {name for name in after.enabled_extensions if not after.extensions[name].custom}
                met.append((one, after, ((enabled | set(sources.activate)) - set(sources.deactivate) - set(known.base)) & known.extensions))
        questions = []
        for one, after, extensions in met:
            password = one.password
            if password is None and after.id and after.has_password and not one.clear_password:
                password = self.repository.password(after.id)
            extra = {key: value for key, value in self.connect_params.items() if key != "password" or password is None}
            host, port = one.endpoint or after.endpoint
            target = Target(host, port, one.user or after.user, one.dbname or after.dbname, password, extra)
            questions.append(Question(one.alias, target, extensions))
        return questions

    def _find_faults(self, questions: t.Sequence[Question]) -> dict[str, list[str]]:
        timeout = self.params["check_timeout"]
        rounds = -(-len(questions) // ASKED_AT_ONCE)
        version = self.repository.version
        answers = ask_all(
            questions,
            lambda one: find_faults(one.target, one.extensions, version, timeout),
            # Connecting has its own limit; this one is for a server that hangs afterwards.
            Deadline(2 * timeout * rounds),
            at_most=ASKED_AT_ONCE,
        )
        self.checked += [one.alias for one in questions]
        faults = {one.alias: [answer.message] if isinstance(answer, OperationError) else answer for one, answer in zip(questions, answers)}
        return {alias: clauses for alias, clauses in faults.items() if clauses}

    def _fresh(self, wanted: Wanted, known: Known) -> Registered:
        if wanted.endpoint is None:
            raise InvalidInput('the server "%s" is not registered and its entry names no host' % wanted.alias, expected="the host of a new server")
        return servers.fresh(wanted, known)

    def _sources(self, wanted: Wanted, found: Registered, known: Known) -> Sources:
        return servers.source_changes(wanted, found, known, self.extensions_exact, self.modules_exact)

    def _check_retentions(self) -> None:
        values = sorted({one.retention for one in self.wanted if one.retention})
        if not values:
            return
        try:
            rows = self.repository.session.rows("SELECT r AS text, r::interval > interval '0' AS good FROM unnest(%s::text[]) AS r", [values])
        except QueryFailed as error:
            raise InvalidInput("a retention of servers is no interval: %s" % error.message, expected='an interval such as "2 days"') from error
        bad = [row["text"] for row in rows if not row["good"]]
        if bad:
            raise InvalidInput('retention is "%s"' % bad[0], expected='an interval above zero such as "2 days"')

    def plan(self, seen: Seen) -> Plan:
        moving = servers.in_the_way(self.wanted, seen.found)
        plan = TransactionPlan(self.repository.session)
        if moving:
            plan.prepare = functools.partial(self.repository.park, moving)
        needs = CollectorNeeds()
        version = min((version_tuple(text) for text in seen.collector_versions if text), default=None)
        if seen.sequence_lag:
            plan.add(
                "move the sequence of server ids, which is %d behind" % seen.sequence_lag,
                functools.partial(self.repository.advance_sequence, seen.sequence_lag),
            )
        # Servers that go make room for the alias or the address of others.
        for wanted, found in sorted(zip(self.wanted, seen.found), key=lambda pair: pair[0].state != "absent"):
            if wanted.state == "absent":
                needs = needs.and_also(self._plan_absent(plan, wanted, found))
            elif found is None:
                needs = needs.and_also(self._plan_new(plan, wanted, seen.known))
            else:
                needs = needs.and_also(self._plan_change(plan, wanted, found, seen, version, found.id in moving))
        if seen.faults:
            raise Refused(
                "%d of %d servers that were asked cannot be collected from. %s"
                % (len(seen.faults), len(self.checked), ". ".join("%s: %s" % (alias, "; ".join(clauses)) for alias, clauses in seen.faults.items())),
                action="Nothing was registered. Mend this on the servers, with pgfleet.ops.powa_archivist for extensions and rights; passwords come from"
                " the entry or the passfile in server_connect_params. Or set check_servers to false",
                faults=seen.faults,
            )
        if not self._planned:
            # What the changes of this run ask of the collector; the plan that confirms them has none.
            self.needs, self._planned = needs, True
        return plan

    def _plan_absent(self, plan: Plan, wanted: Wanted, found: Registered | None) -> CollectorNeeds:
        if found is None:
            return CollectorNeeds()
        if not wanted.purge:
            raise Refused(
                'the server "%s" (%s:%s) is registered, and to make it absent deletes all that was collected from it' % (found.label, *found.endpoint),
                action="Set purge to true for this entry, or state to inactive to keep the data",
            )
        plan.add(
            'delete server "%s" and its data' % found.label,
            functools.partial(self.repository.purge, found.id),
            subject="server %s" % found.label,
            before=describe(found),
            after={},
        )
        return CollectorNeeds(restart=('server "%s" is gone: only a restart ends its worker' % found.label,)) if found.active else CollectorNeeds()

    def _plan_new(self, plan: Plan, wanted: Wanted, known: Known) -> CollectorNeeds:
        fresh = self._fresh(wanted, known)
        sources = self._sources(wanted, fresh, known)
        row = {key: getattr(wanted, key) for key in COLUMNS if key != "frequency"}
        row["frequency"] = -1 if wanted.state == "inactive" else wanted.frequency
        row["extensions"] = sources.activate

        def register() -> None:
            self.repository.register(row)
            if sources.modules_off or sources.db_modules_on or sources.db_modules_off:
                self._set_modules(self.repository.id_of(wanted.alias), sources)

        shown = {key: value for key, value in row.items() if value not in (None, []) and key != "password"}
        if wanted.password:
            shown["password"] = "(set)"
        shown.update(sources_diff(fresh, dataclasses.replace(sources, activate=[]))[1])
        plan.add('register server "%s" (%s:%s)' % (wanted.alias, *fresh.endpoint), register, subject="server %s" % wanted.alias, before={}, after=shown)
        return CollectorNeeds(reload=('server "%s" is new' % wanted.alias,)) if wanted.state == "present" else CollectorNeeds()

    def _plan_change(self, plan: Plan, wanted: Wanted, found: Registered, seen: Seen, version: tuple[int, ...] | None, parked: bool) -> CollectorNeeds:
        changes = servers.column_changes(wanted, found, seen.differs.get(found.id, {}))
        deactivate_server = wanted.state == "inactive" and found.active
        subject = "server %s" % found.label
        if changes:
            before, after = change_diff(found, changes)
            plan.add(
                'change %s of server "%s"' % (", ".join(sorted(changes)), found.label),
                functools.partial(self.repository.configure, found.id, {"port": found.port, **changes} if parked else changes),
                subject=subject,
                before=before,
                after=after,
            )
        if deactivate_server:
            plan.add(
                'deactivate server "%s"' % found.label,
                functools.partial(self.repository.deactivate, found.id),
                subject=subject,
                before={"frequency": found.frequency},
                after={"frequency": -1},
            )
        sources = self._sources(wanted, found, seen.known)
        if sources.words:
            before, after = sources_diff(found, sources)
            plan.add(
                '%s on server "%s"' % (", ".join(sources.words), found.label),
                functools.partial(self._set_sources, found.id, sources),
                subject=subject,
                before=before,
                after=after,
            )
        needs = servers.collector_needs(found.label, changes, found.active, deactivate_server, version)
        return needs.and_also(servers.source_needs(found.label, sources, found, seen.known))

    def _set_sources(self, srvid: int, sources: Sources) -> None:
        if sources.activate:
            self.repository.activate(srvid, sources.activate, sources.damaged)
        if sources.deactivate:
            self.repository.deactivate_extensions(srvid, sources.deactivate)
        self._set_modules(srvid, sources)

    def _set_modules(self, srvid: int, sources: Sources) -> None:
        if sources.modules_on or sources.modules_off:
            self.repository.set_modules(srvid, sources.modules_on, sources.modules_off)
        if sources.db_modules_on or sources.db_modules_off:
            self.repository.set_db_modules(srvid, sources.db_modules_on, sources.db_modules_off)

    def report(self, seen: Seen) -> dict[str, t.Any]:
        found = seen.found if self.wanted else seen.register.servers
        for server in found:
            ignored = sorted(name for name, module in server.db_modules.items() if not module.enabled) if server is not None else []
            if ignored:
                self.context.warn(
                    'server "%s": %s was switched off with powa_deactivate_db_module, which the collector ignores: it goes on, in all databases.'
                    " Give it the state absent in db_modules" % (server.label, ", ".join(ignored))
                )
        return {
            "repository_version": self.repository.version,
            "servers": [describe(server) for server in found if server is not None],
            "servers_checked": self.checked,
            "collector_running": bool(seen.collector_versions),
            "collector_reload_required": bool(self.needs.reload) and not self.needs.restart,
            "collector_restart_required": bool(self.needs.restart),
            "collector_reasons": [*self.needs.restart, *self.needs.reload],
        }

    def close(self) -> None:
        if self.session is not None:
            self.session.close()


def describe(server: Registered) -> dict[str, t.Any]:
    """A registered server as a result shows it."""
    return {
        "id": server.id,
        "alias": server.alias,
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "dbname": server.dbname,
        "state": "present" if server.active else "inactive",
        "frequency": server.frequency,
        "powa_coalesce": server.powa_coalesce,
        "retention": server.retention,
        "allow_ui_connection": server.allow_ui_connection,
        "has_password": server.has_password,
        "extensions": server.enabled_extensions,
        "extension_versions": dict(sorted(server.versions.items())),
        "modules": server.enabled_modules,
        "db_modules": [
            {"name": name, "databases": None if module.databases is None else list(module.databases)} for name, module in sorted(server.db_modules.items())
        ],
        "version": server.version,
    }


def change_diff(found: Registered, changes: t.Mapping[str, t.Any]) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """Before and after of the columns that change, without passwords."""
    before = {key: getattr(found, key) for key in changes if key != "password"}
    after = {key: value for key, value in changes.items() if key != "password"}
    if "password" in changes:
        before["password"] = "(set)" if found.has_password else "(none)"
        after["password"] = "(set anew)" if changes["password"] is not None else "(none)"
    return before, after


def sources_diff(found: Registered, sources: Sources) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """Before and after of what is collected, by kind, where that changes."""
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    for kind, now, more, less in (
        ("extensions", found.enabled_extensions, sources.activate, sources.deactivate),
        ("modules", found.enabled_modules, sources.modules_on, sources.modules_off),
    ):
        if more or less:
            before[kind], after[kind] = now, sorted((set(now) | set(more)) - set(less))
    if sources.db_modules_on or sources.db_modules_off:
        off = set(sources.db_modules_off)
        then = {**found.db_modules, **{one.name: one for one in sources.db_modules_on}}
        before["db_modules"], after["db_modules"] = (
            {name: _databases(one) for name, one in sorted(modules.items())}
            for modules in (found.db_modules, {name: one for name, one in then.items() if name not in off})
        )
    return before, after


def _databases(module: DbModule) -> t.Any:
    return "all" if module.databases is None else list(module.databases)
