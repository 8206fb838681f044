# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The extension powa and its statistics extensions in one database of one server, with the rights that logins need."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
import typing as t

from .._errors import InvalidInput, Refused
from .._module import Context, Operation
from .._plan import Plan
from .._powa.preload import FAILS_UNLOADED, Preload, debian_package, judge_preload
from .._powa.removal import Footprint, read_footprint
from .._powa.repository import Installed, Repository, Right, read_installed, repository_class, version_tuple
from .._powa.settings import parse_settings
from .._sql import settings as parameters
from .._sql.connection import DatabaseMissing, Session, Target, connect, sql
from .._wait import Deadline

POWA = "powa"
# CREATE EXTENSION powa brings these.
_BROUGHT = ("pg_stat_statements", "btree_gist")
_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z")


@dataclasses.dataclass
class Role:
    """A login that gets rights. ``missing`` is None where the extension is not there yet."""

    name: str
    access: str
    exists: bool
    superuser: bool = False
    missing: list[Right] | None = None


@dataclasses.dataclass
class Seen:
    in_recovery: bool
    major: int
    libraries: str
    pending_restart: bool
    available: t.Mapping[str, str]
    database_exists: bool
    installed: t.Mapping[str, Installed]
    paths: t.Mapping[str, bool]
    roles: t.Sequence[Role]
    schema_exists: bool
    after_creation: t.Sequence[Right]
    settings: parameters.Settings
    footprint: Footprint = dataclasses.field(default_factory=Footprint)


class PowaArchivist(Operation):
    """One side of PoWA, repository or remote server, in one database."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.target = Target.from_params(params)
        self.database: str = params.get("database") or "powa"
        self.side: str = params["side"]
        self.schema: str = params.get("schema") or "public"
        self.extensions = [name for name in dict.fromkeys(params.get("extensions") or ()) if name != POWA]
        self.update = bool(params["update"])
        self.version: str | None = params.get("version")
        self.absent = params["state"] == "absent"
        self.settings = parse_settings(params.get("settings"))
        self._sessions: dict[str, Session] = {}
        self._lost: Footprint | None = None
        self._check_names()
        self.grants = self._grants()

    def _check_names(self) -> None:
        for name in self.extensions:
            if not _NAME.match(name):
                raise InvalidInput('"%s" in extensions is no name of an extension' % name)
        useless = [name for name in ("grant_to", "version", "update") if self.params.get(name)]
        if self.absent and useless:
            raise InvalidInput("state is absent, with which these mean nothing: %s" % ", ".join(useless), expected="them with state present only")

    def _grants(self) -> list[tuple[str, str]]:
        default = "collector" if self.side == "repository" else "monitor"
        allowed = ("collector", "reader", "manager") if self.side == "repository" else ("monitor",)
        found = []
        for entry in self.params.get("grant_to") or ():
            access = entry.get("access") or default
            if access not in allowed:
                raise InvalidInput('grant_to gives "%s" the access "%s" on the side "%s"' % (entry["role"], access, self.side), expected=" or ".join(allowed))
            if (entry["role"], access) not in found:
                found.append((entry["role"], access))
        return found

    # Sessions

    def session(self, dbname: str | None = None) -> Session:
        """The session in the maintenance database, or in ``dbname``. Raises DatabaseMissing."""
        key = dbname or ""
        if key not in self._sessions:
            self._sessions[key] = connect(self.target.to(dbname=dbname) if dbname else self.target, read_only=self.context.check_mode)
        return self._sessions[key]

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def repository(self) -> Repository:
        session = self.session(self.database)
        installed = read_installed(session)
        if installed is None:
            raise Refused('the database "%s" on %s has no extension powa any more' % (self.database, session.target))
        return repository_class(installed.version)(session, installed)

    # Observation

    def observe(self) -> Seen:
        seen = self._observe()
        if seen.in_recovery and self.params["on_standby"] == "verify":
            # What the primary does arrives by replication.
            deadline = Deadline(self.params["timeout"])
            while self.steps(seen).changed and not deadline.passed and not self.context.check_mode:
                time.sleep(0.3)
                seen = self._observe()
        return seen

    def _observe(self) -> Seen:
        session = self.session()
        row = session.row(
            "SELECT pg_is_in_recovery() AS in_recovery, current_setting('shared_preload_libraries') AS libraries,"
            " (SELECT pending_restart FROM pg_settings WHERE name = 'shared_preload_libraries') AS pending_restart,"
            " EXISTS (SELECT FROM pg_database WHERE datname = %s) AS database_exists",
            [self.database],
        )
        available = {one["name"]: one["default_version"] for one in session.rows("SELECT name, default_version FROM pg_available_extensions")}
        found = {one["rolname"]: one["rolsuper"] for one in session.rows("SELECT rolname, rolsuper FROM pg_roles")}
        roles = [Role(name, access, name in found, found.get(name, False)) for name, access in self.grants]
        seen = Seen(
            major=session.server_version // 10000,
            available=available,
            installed={},
            paths={},
            roles=roles,
            schema_exists=self.schema == "public",
            after_creation=(),
            settings=parameters.read_settings(session, self.settings),
            **(row or {}),
        )
        if seen.database_exists:
            self._observe_database(seen)
        return seen

    def _observe_database(self, seen: Seen) -> None:
        try:
            inside = self.session(self.database)
        except DatabaseMissing:  # dropped just now
            seen.database_exists = False
            return
        seen.schema_exists = bool(inside.value("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", [self.schema]))
        seen.installed = {
            row["name"]: Installed(row["version"], row["schema"])
            for row in inside.rows(
                "SELECT e.extname AS name, e.extversion AS version, n.nspname AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
            )
        }
        if self.absent:
            seen.footprint = read_footprint(inside, {name: found for name, found in seen.installed.items() if name in self.wanted_extensions()})
            return
        seen.paths = {
            name: bool(
                inside.value("SELECT EXISTS (SELECT FROM pg_extension_update_paths(%s) WHERE source = %s AND target = %s AND path IS NOT NULL)",
                             [name, seen.installed[name].version, wanted])
            )
            for name, wanted in self.updates(seen).items()
        }  # fmt: skip
        if POWA in seen.installed:
            repository = repository_class(seen.installed[POWA].version)(inside, seen.installed[POWA])
            if self.side == "repository":
                seen.after_creation = repository.after_creation()
            for role in seen.roles:
                if role.exists:
                    role.missing = repository.missing_rights(role.name, role.access)

    def wanted_extensions(self) -> list[str]:
        """powa first: it brings what the others need."""
        return [POWA, *self.extensions]

    def wanted_version(self, seen: Seen, name: str) -> str | None:
        return (self.version if name == POWA else None) or seen.available.get(name)

    def updates(self, seen: Seen) -> dict[str, str]:
        """Installed extensions of which another version is wanted or there, and that version."""
        found = {}
        for name in self.wanted_extensions():
            wanted = self.wanted_version(seen, name)
            if name in seen.installed and wanted and wanted != seen.installed[name].version:
                found[name] = wanted
        return found

    def preload(self, seen: Seen) -> Preload:
        """A repository alone needs nothing preloaded, unless it is to have an extension that does."""
        names = [*self.extensions, "pg_stat_statements"] if self.side == "remote" else [name for name in self.extensions if name in FAILS_UNLOADED]
        return judge_preload(seen.libraries, [*([] if self.absent else names), *seen.settings.libraries])

    def deferred(self, seen: Seen) -> list[str]:
        """Extensions that cannot be created before the server was restarted."""
        missing = self.preload(seen).missing
        return [name for name in self.extensions if name in FAILS_UNLOADED and name in missing and name not in seen.installed]

    # Plan

    def plan(self, seen: Seen) -> Plan:
        skip = seen.in_recovery and self.params["on_standby"] == "skip"
        plan = Plan() if skip else self.steps(seen)
        if seen.in_recovery and plan.changed:
            raise Refused(
                "%s is a standby and lacks: %s" % (self.target, ", ".join(plan.names)),
                expected="what the primary has, within %g s" % self.params["timeout"],
                action="Run this task on the primary; a standby gets everything from there",
                in_recovery=True,
            )
        self._plan_settings(plan, seen.settings)
        return plan

    def _plan_settings(self, plan: Plan, settings: parameters.Settings) -> None:
        """The server's own file, which a standby has too."""
        changes = settings.changes()
        for change in changes:
            after = settings.target(change.name)
            plan.add(
                change.what,
                functools.partial(self._write_setting, change),
                subject="setting %s" % change.name,
                before="%s = %s\n" % (change.name, change.before or ""),
                after="%s = %s\n" % (change.name, after or ""),
            )
        if changes or settings.awaiting_reload():
            plan.add("reload the configuration", self._reload)

    def steps(self, seen: Seen) -> Plan:
        """What is missing in the database or is to go from it, whatever the server's role. A standby gets it from its primary."""
        return self._removal(seen) if self.absent else self._creation(seen)

    def _removal(self, seen: Seen) -> Plan:
        plan = Plan()
        names = [name for name in self.wanted_extensions() if name in seen.installed]
        if not names:
            return plan
        lost = seen.footprint
        self._refuse_removal(lost)
        self._lost = self._lost or lost
        plan.add(
            "drop extension %s" % ", ".join(names),
            functools.partial(self._drop_extensions, names),
            subject="database %s" % self.database,
            before="".join("%s %s\n" % (name, seen.installed[name].version) for name in names)
            + "".join("registered server %s\n" % name for name in lost.servers)
            + ("%s\n" % lost.history if POWA in names else ""),
            after="",
        )
        return plan

    def _refuse_removal(self, lost: Footprint) -> None:
        what = 'the extensions in the database "%s" on %s' % (self.database, self.target)
        if lost.collectors:
            raise Refused(
                "%s are in use: %s" % (what, ", ".join(lost.collectors)),
                expected="no session of PoWA",
                action="Stop powa-collector; where powa itself collects, take it out of shared_preload_libraries and restart the server",
                collectors=list(lost.collectors),
            )
        if lost.datasources or lost.dependents:
            tables = ["the table %s of a datasource" % name for name in lost.datasources]
            raise Refused(
                "%s cannot be dropped, as these need them: %s" % (what, ", ".join([*tables, *lost.dependents])),
                action="Remove the datasources, and drop or change the other objects, if nobody needs them",
                dependents=[*lost.datasources, *lost.dependents],
            )
        if (lost.servers or lost.rows) and not self.params["purge"]:
            raise Refused(
                "dropping %s deletes %s" % (what, lost.history),
                expected="purge true, if this is meant",
                action="The servers are: %s" % ", ".join(lost.servers) if lost.servers else None,
            )

    def _creation(self, seen: Seen) -> Plan:
        self._refuse(seen)
        plan = Plan()
        names = self.wanted_extensions()
        deferred = self.deferred(seen)
        create = [name for name in names if name not in seen.installed and name not in deferred]
        brought = _BROUGHT if POWA in create else ()
        if not seen.database_exists:
            plan.add(
                'create database "%s"' % self.database, self._create_database, subject="database %s" % self.database, before="", after=self.database + "\n"
            )
        if not seen.schema_exists:
            plan.add('create schema "%s"' % self.schema, self._create_schema, subject="schema %s" % self.schema, before="", after=self.schema + "\n")
        for name in create:
            if name in brought:
                continue
            version = self.wanted_version(seen, name)
            plan.add(
                "create extension %s %s" % (name, version),
                functools.partial(self._create_extension, name, version),
                subject="extension %s" % name,
                before="",
                after="%s %s\n" % (name, version),
            )
        if self.update:
            for name, version in self.updates(seen).items():
                before = seen.installed[name].version
                plan.add(
                    "update extension %s from %s to %s" % (name, before, version),
                    functools.partial(self._update_extension, name, version),
                    subject="extension %s" % name,
                    before="%s %s\n" % (name, before),
                    after="%s %s\n" % (name, version),
                )
        if self._needs_group_roles(seen, create):
            plan.add("give PoWA's roles their rights in this database", self._after_creation, subject="roles of PoWA", before="", after="setup_powa_roles\n")
        changed = plan.changed
        for role in seen.roles:
            if role.missing or (changed and not role.superuser):
                self._plan_role(plan, role)
        return plan

    def _needs_group_roles(self, seen: Seen, create: t.Sequence[str]) -> bool:
        # Whether a new repository finds roles of another one in its cluster shows only after CREATE EXTENSION, which looks after it.
        return POWA not in create and bool(seen.after_creation)

    def _plan_role(self, plan: Plan, role: Role) -> None:
        texts = [right.text for right in role.missing or ()]
        plan.add(
            'grant "%s" the rights of a %s' % (role.name, role.access),
            functools.partial(self._grant, role),
            subject="rights of %s" % role.name,
            before="",
            after="".join(text + "\n" for text in texts) or "what a %s needs in the new objects\n" % role.access,
        )

    def _refuse(self, seen: Seen) -> None:
        installed = seen.installed.get(POWA)
        unavailable = [name for name in self.wanted_extensions() if name not in seen.available and name not in seen.installed]
        if unavailable:
            packages = sorted({debian_package(name, seen.major) for name in unavailable})
            raise Refused(
                "the files of %s are not installed on the host of %s" % (", ".join(unavailable), self.target),
                expected="the packages of PostgreSQL %d with them" % seen.major,
                action="Debian: install %s" % ", ".join(packages),
                missing_extensions=unavailable,
                missing_packages=packages,
            )
        absent = list(dict.fromkeys(role.name for role in seen.roles if not role.exists))
        if absent and self.context.check_mode:
            # A task before this one would have created it.
            self.context.warn("there is no role %s on %s; a real run fails without it" % (", ".join(absent), self.target))
        elif absent:
            raise Refused(
                "there is no role %s on %s" % (", ".join(absent), self.target),
                action="Create it first, for example with community.postgresql.postgresql_user, or take it out of grant_to",
            )
        target = installed.version if installed else self.wanted_version(seen, POWA)
        wanted = repository_class(str(target))
        number = version_tuple(str(target))
        if number[0] == 4 and self.schema != "public":
            raise InvalidInput('schema is "%s", and PoWA %s works in the schema public only' % (self.schema, target), expected="no schema, or public")
        for name, found in seen.installed.items():
            if name in self.wanted_extensions() and number[0] == 4 and found.schema != "public":
                raise Refused(
                    'the extension %s is in the schema "%s" of "%s"' % (name, found.schema, self.database),
                    expected="the schema public, in which PoWA %s looks for it" % target,
                    action="Move it with ALTER EXTENSION ... SET SCHEMA public",
                )
        if installed and number[0] >= 5 and self.params.get("schema") and installed.schema != self.schema:
            raise Refused('powa is in the schema "%s"' % installed.schema, expected='"%s", which cannot be had by moving it' % self.schema)
        if self.update:
            self._refuse_updates(seen, wanted)

    def _refuse_updates(self, seen: Seen, current: type[Repository]) -> None:
        for name, version in self.updates(seen).items():
            before = seen.installed[name].version
            if name == POWA and repository_class(version) is not current:
                raise Refused(
                    "powa %s cannot be updated to %s: PoWA has no way from one major version to the other" % (before, version),
                    action="Drop the extension, which loses all that was collected, create it again and register the servers again;"
                    " or set update to false and stay",
                )
            if not seen.paths.get(name):
                raise Refused("the extension %s has no update path from %s to %s" % (name, before, version), action="Set version, or update to false")

    # Execution

    def _create_database(self) -> None:
        self.session().execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.database)))

    def _create_schema(self) -> None:
        self.session(self.database).execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema)))

    def _ready_for_extensions(self) -> Session:
        session = self.session(self.database)
        if self.schema == "public":
            # PoWA 4 has an event trigger that calls its functions without a schema at each CREATE EXTENSION.
            session.execute("SET search_path = pg_catalog, public")
        return session

    def _create_extension(self, name: str, version: str | None) -> None:
        session = self._ready_for_extensions()
        statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}").format(sql.Identifier(name), sql.Identifier(self.schema))
        if version:
            statement += sql.SQL(" VERSION {}").format(sql.Literal(version))
        session.execute(statement + sql.SQL(" CASCADE"))
        if name == POWA and self.side == "repository":
            self._after_creation()

    def _update_extension(self, name: str, version: str) -> None:
        session = self._ready_for_extensions()
        session.execute(sql.SQL("ALTER EXTENSION {} UPDATE TO {}").format(sql.Identifier(name), sql.Literal(version)))
        if name == POWA and self.side == "repository":
            self.repository().after_update()

    def _after_creation(self) -> None:
        repository = self.repository()
        for right in repository.after_creation():
            repository.session.execute(right.statement)

    def _grant(self, role: Role) -> None:
        repository = self.repository()
        for right in repository.missing_rights(role.name, role.access):
            repository.session.execute(right.statement)

    def _drop_extensions(self, names: t.Sequence[str]) -> None:
        session = self._ready_for_extensions()
        session.execute("SELECT set_config('lock_timeout', %s, false)", ["%dms" % (self.params["timeout"] * 1000)])
        session.execute(sql.SQL("DROP EXTENSION {}").format(sql.SQL(", ").join(map(sql.Identifier, names))))

    def _write_setting(self, change: parameters.Change) -> None:
        parameters.write(self.session(), change)

    def _reload(self) -> None:
        parameters.reload_settings(self.session(), self.settings)

    # Result

    def report(self, seen: Seen) -> dict[str, t.Any]:
        installed = seen.installed.get(POWA)
        preload = self.preload(seen)
        reason = self._restart_reason(seen, preload)
        if reason and not seen.in_recovery:
            self.context.warn("%s must be restarted for PoWA: %s" % (self.target, reason))
        return {
            "database": self.database,
            "side": self.side,
            "in_recovery": seen.in_recovery,
            "version": installed.version if installed else None,
            "schema": installed.schema if installed else None,
            "extensions": {name: seen.installed[name].version for name in sorted(self._shown(seen))},
            "updates_available": {} if self.version else self.updates(seen),
            "deferred": self.deferred(seen),
            "preload_missing": list(preload.missing),
            "preload_expected": preload.expected,
            "settings": {name: seen.settings.parameters[name].setting for name in self.settings if name in seen.settings.parameters},
            "deferred_settings": seen.settings.deferred,
            "removed": None if self._lost is None else {"servers": list(self._lost.servers), "rows": self._lost.rows, "bytes": self._lost.bytes},
            "restart_required": bool(reason),
            "restart_reason": reason,
        }

    def _shown(self, seen: Seen) -> set[str]:
        return set(seen.installed) & {POWA, *_BROUGHT, *self.extensions}

    @staticmethod
    def _restart_reason(seen: Seen, preload: Preload) -> str:
        reasons = []
        names = ", ".join(preload.missing)
        if preload.missing and seen.pending_restart:
            reasons.append("%s must be preloaded, and shared_preload_libraries has changed in its file since the server started" % names)
        elif preload.missing:
            reasons.append("%s must be preloaded; set shared_preload_libraries = '%s', in this order" % (names, preload.expected))
        waiting = ["%s = %s" % (name, seen.settings.target(name)) for name in seen.settings.awaiting_restart()]
        if waiting:
            reasons.append("only a restart brings %s" % ", ".join(waiting))
        if seen.settings.deferred:
            reasons.append("%s can be set once the library is loaded" % ", ".join(seen.settings.deferred))
        return "; ".join(reasons)
