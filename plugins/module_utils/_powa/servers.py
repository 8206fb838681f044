# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Remote servers as a user wants them, and what differs from those that are registered. Without I/O."""

from __future__ import annotations

import collections
import dataclasses
import re
import typing as t

from .._errors import InvalidInput, Refused
from .repository import IGNORED, Activation, DbModule, Known, Registered

DEFAULT_FREQUENCY = 300
DEFAULT_NAME = "powa"
OFF = Activation(enabled=False)
_INTEGER_MAXIMUM = 2**31 - 1
_EXTENSION = re.compile(r"[a-z_][a-z0-9_]*\Z")
# Modules of PoWA 4 that look like extensions named powa; activating any other powa* name there removes them.
_POWA_MODULES = ("powa_stat_user_functions", "powa_stat_all_relations")
_NONE_IN_4 = "On PoWA 4 the extensions pg_stat_bgwriter, powa_stat_user_functions and powa_stat_all_relations stand for them, and are always on"
_NONE_IN_5 = "On PoWA 5 bgwriter is one of its modules, and functions and relations are pg_stat_user_functions and pg_stat_all_tables of db_modules"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One entry of the option ``servers``. None means: PoWA's default for a new server, unchanged for a known one."""

    alias: str
    state: str = "present"
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    clear_password: bool = False
    dbname: str | None = None
    frequency: int | None = None
    powa_coalesce: int | None = None
    retention: str | None = None
    allow_ui_connection: bool | None = None
    extensions: tuple[str, ...] | None = None
    modules: tuple[str, ...] | None = None
    # What is to be off has ``enabled`` False.
    db_modules: tuple[DbModule, ...] | None = None
    purge: bool = False

    @property
    def endpoint(self) -> tuple[str, int] | None:
        return (self.host, self.port or 5432) if self.host else None


def parse_wanted(entries: t.Iterable[t.Mapping[str, t.Any]]) -> list[Wanted]:
    """Entries of the option ``servers``. Raises InvalidInput.

    Everything that PostgreSQL would refuse by a constraint is refused here: the text of its error shows the whole row.
    """
    wanted: list[Wanted] = []
    fields = {field.name for field in dataclasses.fields(Wanted)}
    for number, entry in enumerate(entries, 1):
        values = {key: value for key, value in entry.items() if key in fields and value not in (None, "")}
        where = 'servers[%d] ("%s")' % (number - 1, values.get("alias", ""))
        if not str(values.get("alias", "")).strip():
            raise InvalidInput("%s has no alias" % where, expected="a name that is unique in the repository")
        if values.get("frequency") == -1:
            if values.get("state") == "absent":
                raise InvalidInput("%s has a frequency and is to be absent" % where)
            values["state"] = "inactive"
            del values["frequency"]
        _within(where, "port", values.get("port"), 1, 65535)
        _within(where, "frequency", values.get("frequency"), 5, _INTEGER_MAXIMUM, "seconds, or -1 for an inactive server")
        _within(where, "powa_coalesce", values.get("powa_coalesce"), 5, _INTEGER_MAXIMUM)
        if values.get("clear_password") and values.get("password"):
            raise InvalidInput("%s has both password and clear_password" % where, expected="one of them")
        if values.get("port") and not values.get("host"):
            raise InvalidInput("%s has a port and no host" % where, expected="both or none")
        if values.get("host") and re.search(r"\s", values["host"]):
            raise InvalidInput("%s has a host with white space in it" % where, expected="a name or an address")
        if "extensions" in values:
            values["extensions"] = _extensions(where, values["extensions"])
        if "modules" in values:
            values["modules"] = tuple(dict.fromkeys(values["modules"]))
        if "db_modules" in values:
            values["db_modules"] = _db_modules(where, values["db_modules"])
        wanted.append(Wanted(**values))
    _unique("alias", [one.alias for one in wanted])
    _unique("host and port", ["%s:%s" % one.endpoint for one in wanted if one.endpoint and one.state != "absent"])
    return wanted


def _within(where: str, option: str, value: int | None, low: int, high: int, unit: str = "") -> None:
    if value is not None and not low <= value <= high:
        raise InvalidInput("%s: %s is %s" % (where, option, value), expected=("%d to %d %s" % (low, high, unit)).strip())


def _extensions(where: str, names: t.Iterable[str]) -> tuple[str, ...]:
    found = []
    for name in names:
        if not _EXTENSION.match(name):
            raise InvalidInput('%s: "%s" is no name of an extension' % (where, name))
        if name.startswith("powa") and name not in _POWA_MODULES:
            raise InvalidInput(
                '%s: "%s" cannot be activated as an extension' % (where, name),
                action="Leave it out of extensions: what belongs to PoWA itself is active on every server",
            )
        if name not in IGNORED and name not in found:
            found.append(name)
    return tuple(found)


def _db_modules(where: str, entries: t.Iterable[t.Mapping[str, t.Any]]) -> tuple[DbModule, ...]:
    found: dict[str, DbModule] = {}
    for entry in entries:
        name, databases, off = entry["name"], entry.get("databases"), entry.get("state") == "absent"
        if name in found:
            raise InvalidInput('%s: db_modules names "%s" twice' % (where, name))
        if off and databases is not None:
            raise InvalidInput('%s: the db module "%s" is to be absent and has databases' % (where, name), expected="one of both")
        if databases is not None and not [one for one in databases if one]:
            raise InvalidInput(
                '%s: the db module "%s" has an empty list of databases' % (where, name),
                expected="names of databases, or no list for all of them, or state absent for none",
            )
        found[name] = DbModule(name, None if databases is None else tuple(sorted(set(databases))), not off)
    return tuple(found.values())


def _unique(what: str, values: t.Sequence[str]) -> None:
    twice = sorted(value for value, count in collections.Counter(values).items() if count > 1)
    if twice:
        raise InvalidInput("servers names the same %s twice: %s" % (what, ", ".join(twice)))


class Register:
    """The registered servers, found by alias or by host and port."""

    def __init__(self, servers: t.Iterable[Registered]) -> None:
        self.servers = list(servers)
        self.by_alias = {server.alias: server for server in self.servers if server.alias}
        self.by_endpoint = {server.endpoint: server for server in self.servers}


def resolve(wanted: t.Sequence[Wanted], register: Register) -> list[Registered | None]:
    """For each entry the registered server that it means: the one with its alias, else the one with its host and port.

    A server keeps its data with its alias: entries may pass addresses on to each other, also in a circle. Raises Refused
    where an address would be that of two servers, and where an entry to be absent names another host than is registered.
    """
    named = {register.by_alias[one.alias].id for one in wanted if one.alias in register.by_alias}
    found: list[Registered | None] = []
    for one in wanted:
        server = register.by_alias.get(one.alias)
        if one.state == "absent":
            if server and one.endpoint and server.endpoint != one.endpoint:
                raise Refused(
                    'the server "%s" is registered with %s:%s' % (one.alias, *server.endpoint),
                    expected="%s:%s, as this entry says" % one.endpoint,
                    action="Correct host and port of the entry or leave them out",
                )
        elif server is None and one.endpoint:
            server = register.by_endpoint.get(one.endpoint)
            if server is not None and server.id in named:
                server = None
        found.append(server)
    _refuse_conflicts(wanted, found, register)
    return found


def _refuse_conflicts(wanted: t.Sequence[Wanted], found: t.Sequence[Registered | None], register: Register) -> None:
    meant = {server.id for server in found if server is not None}
    taken = {server.endpoint: server for server in register.servers if server.id not in meant}
    pairs = [(one, server) for one, server in zip(wanted, found) if one.state != "absent"]
    taken.update({server.endpoint: server for one, server in pairs if server is not None and not one.endpoint})
    for one, server in pairs:
        other = taken.get(one.endpoint) if one.endpoint else None
        if other is not None:
            here = 'alias "%s" is registered with %s:%s, and ' % (one.alias, *server.endpoint) if server else ""
            raise Refused(
                '%s%s:%s is registered as "%s"' % (here, *other.endpoint, other.label),
                expected="one server",
                action="Correct the entry, or make one of the two absent first",
            )


def in_the_way(wanted: t.Sequence[Wanted], found: t.Sequence[Registered | None]) -> list[int]:
    """Ids of servers that leave an address which another entry takes."""
    leaving = {
        server.endpoint: server.id
        for one, server in zip(wanted, found)
        if server is not None and one.state != "absent" and one.endpoint and one.endpoint != server.endpoint
    }
    return sorted({leaving[one.endpoint] for one in wanted if one.state != "absent" and one.endpoint in leaving})


def column_changes(wanted: Wanted, found: Registered, differs: t.Mapping[str, bool]) -> dict[str, t.Any]:
    """Columns of a registered server that have to change. ``differs`` says it for password and retention."""
    changes: dict[str, t.Any] = {}
    for key in ("alias", "user", "dbname", "powa_coalesce", "allow_ui_connection"):
        value = getattr(wanted, key)
        if value is not None and value != getattr(found, key):
            changes[key] = value
    if wanted.endpoint:
        for key, value in zip(("host", "port"), wanted.endpoint):
            if value != getattr(found, key):
                changes[key] = value
    if wanted.retention is not None and differs.get("retention"):
        changes["retention"] = wanted.retention
    if wanted.password is not None and differs.get("password"):
        changes["password"] = wanted.password
    if wanted.clear_password and found.has_password:
        changes["password"] = None
    if wanted.state == "present":
        if wanted.frequency is not None and wanted.frequency != found.frequency:
            changes["frequency"] = wanted.frequency
        elif wanted.frequency is None and not found.active:
            changes["frequency"] = DEFAULT_FREQUENCY
    return changes


@dataclasses.dataclass(frozen=True)
class Sources:
    """What is to be collected from one server and is not, and the reverse. ``damaged`` are activations that lost rows."""

    activate: list[str]
    deactivate: list[str]
    damaged: list[str]
    modules_on: list[str]
    modules_off: list[str]
    db_modules_on: list[DbModule]
    db_modules_off: list[str]

    @property
    def words(self) -> list[str]:
        """As verb phrases."""
        words = ["activate %s" % name for name in self.activate] + ["deactivate %s" % name for name in self.deactivate]
        words += ["activate module %s" % name for name in self.modules_on] + ["deactivate module %s" % name for name in self.modules_off]
        words += ["activate %s in %s" % (one.name, ", ".join(one.databases or ["all databases"])) for one in self.db_modules_on]
        return words + ["deactivate %s in all databases" % name for name in self.db_modules_off]


def fresh(wanted: Wanted, known: Known) -> Registered:
    """A server as PoWA registers it, before anything else is activated on it."""
    host, port = t.cast("tuple[str, int]", wanted.endpoint)
    return Registered(
        id=0,
        alias=wanted.alias,
        host=host,
        port=port,
        user=wanted.user or DEFAULT_NAME,
        dbname=wanted.dbname or DEFAULT_NAME,
        frequency=-1 if wanted.state == "inactive" else wanted.frequency or DEFAULT_FREQUENCY,
        powa_coalesce=wanted.powa_coalesce or 100,
        retention=wanted.retention or "",
        allow_ui_connection=wanted.allow_ui_connection is not False,
        has_password=wanted.password is not None,
        version=None,
        extensions={name: Activation(enabled=True) for name in known.base},
        modules=dict.fromkeys(known.modules, True),
        db_modules={name: DbModule(name) for name in known.default_db_modules},
    )


def source_changes(wanted: Wanted, found: Registered, known: Known, extensions_exact: bool, modules_exact: bool) -> Sources:
    """What has to be activated and deactivated on a server. Raises Refused for what PoWA does not know."""
    _refuse_unknown(wanted, found, known)
    names = wanted.extensions or ()
    # Rows get lost in a dump and restore, and nothing is collected without them.
    damaged = sorted(name for name, activation in found.extensions.items() if activation.enabled and not activation.complete)
    lost = sorted({*known.base} - {*found.extensions})
    asked = [name for name in names if name not in found.extensions or not found.extensions[name].enabled]
    deactivate = []
    if extensions_exact and wanted.extensions is not None:
        keep = {*names, *known.base, *IGNORED}
        deactivate = sorted(name for name, one in found.extensions.items() if one.enabled and not one.custom and name not in keep)
    activate = [name for name in dict.fromkeys([*asked, *damaged, *lost]) if name not in deactivate]
    modules = wanted.modules or ()
    exact = modules_exact and wanted.modules is not None
    modules_on = [name for name in modules if not found.modules.get(name)]
    if not exact:
        modules_on += sorted(known.modules - {*found.modules, *modules})
    now_and_then = [(one, found.db_modules.get(one.name)) for one in wanted.db_modules or ()]
    return Sources(
        activate=activate,
        deactivate=deactivate,
        damaged=[name for name in activate if name in found.extensions and not found.extensions[name].complete],
        modules_on=modules_on,
        modules_off=[name for name in found.enabled_modules if name not in modules] if exact else [],
        db_modules_on=[one for one, before in now_and_then if one.enabled and one != before],
        db_modules_off=[one.name for one, before in now_and_then if not one.enabled and before is not None],
    )


def _refuse_unknown(wanted: Wanted, found: Registered, known: Known) -> None:
    if not known.has_modules and (wanted.modules is not None or wanted.db_modules is not None):
        raise Refused('the server "%s" is to have modules, and this repository knows none' % wanted.alias, expected="PoWA 5", action=_NONE_IN_4)
    db_modules = [one.name for one in wanted.db_modules or ()]
    for what, names, there in (
        ("the extension", wanted.extensions or (), known.extensions | {*found.extensions}),
        ("the module", wanted.modules or (), known.modules),
        ("the db module", db_modules, known.db_modules),
    ):
        unknown = [name for name in names if name not in there]
        if unknown:
            hint = _NONE_IN_5 if known.has_modules and {*unknown} & {*_POWA_MODULES, "pg_stat_bgwriter"} else ""
            raise Refused(
                'PoWA does not know %s %s, wanted on the server "%s"' % (what, ", ".join(unknown), wanted.alias),
                expected="one of %s" % ", ".join(sorted({*there} - {*IGNORED})),
                action=hint or "A datasource of your own is put there by pgfleet.ops.powa_datasource",
            )
    absent = sorted((known.both_sides - known.here) & {name for name in wanted.extensions or () if not found.extensions.get(name, OFF).enabled})
    if absent:
        raise Refused(
            'the extension %s is to be collected from "%s", and the repository itself lacks it' % (", ".join(absent), wanted.alias),
            expected="the extension on both sides",
            action="Create it in the repository's database too, with the option extensions of pgfleet.ops.powa_archivist",
        )


@dataclasses.dataclass(frozen=True)
class CollectorNeeds:
    """What a running collector needs after changes, with the reasons."""

    reload: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def and_also(self, other: CollectorNeeds) -> CollectorNeeds:
        return CollectorNeeds(self.reload + other.reload, self.restart + other.restart)


def collector_needs(
    label: str, changes: t.Mapping[str, t.Any], was_active: bool, deactivated: bool, collector_version: tuple[int, ...] | None
) -> CollectorNeeds:
    """What the collector does not notice by itself when columns of a registered server change."""
    if not was_active:
        return CollectorNeeds(reload=('server "%s" becomes active' % label,)) if "frequency" in changes else CollectorNeeds()
    if deactivated:
        return CollectorNeeds(restart=('server "%s" becomes inactive: only a restart ends its worker' % label,))
    needs = CollectorNeeds()
    if "host" in changes or "port" in changes:
        needs = needs.and_also(CollectorNeeds(restart=('server "%s" moves: only a restart ends the worker of the old address' % label,)))
    # 1.3 goes on with the old frequency in a busy loop after a reload.
    if "frequency" in changes:
        if collector_version is not None and collector_version >= (1, 3):
            needs = needs.and_also(CollectorNeeds(restart=('frequency of server "%s" changes' % label,)))
        else:
            needs = needs.and_also(CollectorNeeds(reload=('frequency of server "%s" changes' % label,)))
    if {"user", "password", "dbname"} & set(changes):
        needs = needs.and_also(CollectorNeeds(reload=('login of server "%s" changes' % label,)))
    return needs


def source_needs(label: str, sources: Sources, found: Registered, known: Known) -> CollectorNeeds:
    """What the collector of PoWA 5 does not notice when extensions are activated: it looks for their schemas once, when it connects."""
    asked_by_schema = known.both_sides | {"pg_qualstats"}
    late = [name for name in sources.activate if name in asked_by_schema and name not in found.extensions]
    if not (late and known.has_modules and found.active):
        return CollectorNeeds()
    return CollectorNeeds(restart=('a worker that was there before %s was created on server "%s" does not find it' % (", ".join(late), label),))
