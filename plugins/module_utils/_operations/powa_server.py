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

from .._errors import InvalidInput, QueryFailed, Refused
from .._module import Context, Operation
from .._plan import Plan
from .._powa import collector, servers
from .._powa.repository import Registered, Repository, open_repository, version_tuple
from .._powa.servers import CollectorNeeds, Wanted
from .._sql.connection import Session, Target, connect
from .._sql.transaction import TransactionPlan


@dataclasses.dataclass
class Seen:
    register: servers.Register
    differs: t.Mapping[int, t.Mapping[str, bool]]
    known: t.Collection[str]
    base: t.Collection[str]
    collector_versions: t.Sequence[str]


class PowaServer(Operation):
    """Register, change, deactivate and purge the servers of the option ``servers`` in one transaction."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.wanted = servers.parse_wanted(params["servers"])
        self.exact = bool(params["extensions_exact"])
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
        found = [(one, servers.match(one, register)) for one in self.wanted]
        compared = [(server.id, one.password, one.retention) for one, server in found if server is not None and one.state != "absent"]
        return Seen(
            register=register,
            differs=repository.compare(compared),
            known=repository.known_extensions() if any(one.extensions for one in self.wanted) else (),
            base=repository.base,
            collector_versions=collector.collector_versions(repository.session),
        )

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
        plan = TransactionPlan(self.repository.session)
        needs = CollectorNeeds()
        version = min((version_tuple(text) for text in seen.collector_versions if text), default=None)
        # Servers that go make room for the alias or the address of others.
        for wanted in sorted(self.wanted, key=lambda one: one.state != "absent"):
            found = servers.match(wanted, seen.register)
            if wanted.state == "absent":
                needs = needs.and_also(self._plan_absent(plan, wanted, found))
            elif found is None:
                needs = needs.and_also(self._plan_new(plan, wanted, seen))
            else:
                needs = needs.and_also(self._plan_change(plan, wanted, found, seen, version))
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

    def _plan_new(self, plan: Plan, wanted: Wanted, seen: Seen) -> CollectorNeeds:
        if wanted.endpoint is None:
            raise InvalidInput('the server "%s" is not registered and its entry names no host' % wanted.alias, expected="the host of a new server")
        activate, _deactivate = servers.extension_changes(wanted, {}, seen.known, seen.base, False)
        columns = ("alias", "host", "port", "user", "password", "dbname", "powa_coalesce", "retention", "allow_ui_connection")
        row = {key: getattr(wanted, key) for key in columns}
        row["frequency"] = -1 if wanted.state == "inactive" else wanted.frequency

        def register() -> None:
            srvid = self.repository.register(row)
            for name in activate:
                self.repository.activate(srvid, name)

        shown = {key: value for key, value in row.items() if value is not None and key != "password"}
        if wanted.password:
            shown["password"] = "(set)"
        if activate:
            shown["extensions"] = sorted(activate)
        plan.add('register server "%s" (%s:%s)' % (wanted.alias, *wanted.endpoint), register, subject="server %s" % wanted.alias, before={}, after=shown)
        return CollectorNeeds(reload=('server "%s" is new' % wanted.alias,)) if wanted.state == "present" else CollectorNeeds()

    def _plan_change(self, plan: Plan, wanted: Wanted, found: Registered, seen: Seen, version: tuple[int, ...] | None) -> CollectorNeeds:
        changes = servers.column_changes(wanted, found, seen.differs.get(found.id, {}))
        deactivate_server = wanted.state == "inactive" and found.active
        subject = "server %s" % found.label
        if changes:
            before, after = change_diff(found, changes)
            plan.add(
                'change %s of server "%s"' % (", ".join(sorted(changes)), found.label),
                functools.partial(self.repository.configure, found.id, changes),
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
        activate, deactivate = servers.extension_changes(wanted, found.extensions, seen.known, seen.base, self.exact)
        after_names = sorted((set(found.enabled_extensions) | set(activate)) - set(deactivate))
        if activate or deactivate:

            def set_extensions() -> None:
                for name in activate:
                    self.repository.activate(found.id, name, found.extensions.get(name))
                for name in deactivate:
                    self.repository.deactivate_extension(found.id, name)

            words = ["activate %s" % name for name in activate] + ["deactivate %s" % name for name in deactivate]
            plan.add(
                '%s on server "%s"' % (", ".join(words), found.label),
                set_extensions,
                subject=subject,
                before={"extensions": found.enabled_extensions},
                after={"extensions": after_names},
            )
        return servers.collector_needs(found.label, changes, found.active, deactivate_server, version)

    def report(self, seen: Seen) -> dict[str, t.Any]:
        found = [servers.match(one, seen.register) for one in self.wanted] if self.wanted else seen.register.servers
        return {
            "repository_version": self.repository.version,
            "servers": [describe(server) for server in found if server is not None],
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
