# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Remote servers as a user wants them, and what differs from those that are registered. Without I/O."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._errors import InvalidInput, Refused
from .repository import IGNORED, Activation, Registered

DEFAULT_FREQUENCY = 300
_INTEGER_MAXIMUM = 2**31 - 1
_EXTENSION = re.compile(r"[a-z_][a-z0-9_]*\Z")
# Modules of PoWA 4 that look like extensions named powa; activating any other powa* name there removes them.
_POWA_MODULES = ("powa_stat_user_functions", "powa_stat_all_relations")


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


def _unique(what: str, values: t.Sequence[str]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise InvalidInput("servers names the same %s twice: %s" % (what, ", ".join(twice)))


class Register:
    """The registered servers, found by alias or by host and port."""

    def __init__(self, servers: t.Iterable[Registered]) -> None:
        self.servers = list(servers)
        self.by_alias = {server.alias: server for server in self.servers if server.alias}
        self.by_endpoint = {server.endpoint: server for server in self.servers}


def match(wanted: Wanted, register: Register) -> Registered | None:
    """The registered server that an entry means: the one with its alias, else the one with its host and port.

    Raises Refused where these are two different ones, and where an entry to be absent names another host than is registered.
    """
    by_alias = register.by_alias.get(wanted.alias)
    by_endpoint = register.by_endpoint.get(wanted.endpoint) if wanted.endpoint else None
    if wanted.state == "absent":
        if by_alias and wanted.endpoint and by_alias.endpoint != wanted.endpoint:
            raise Refused(
                'the server "%s" is registered with %s:%s' % (wanted.alias, *by_alias.endpoint),
                expected="%s:%s, as this entry says" % wanted.endpoint,
                action="Correct host and port of the entry or leave them out",
            )
        return by_alias
    if by_alias and by_endpoint and by_alias.id != by_endpoint.id:
        raise Refused(
            'alias "%s" is registered with %s:%s, and %s:%s is registered as "%s"'
            % (wanted.alias, *by_alias.endpoint, *by_endpoint.endpoint, by_endpoint.label),
            expected="one server",
            action="Correct the entry, or make one of the two absent first",
        )
    return by_alias or by_endpoint


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


def extension_changes(
    wanted: Wanted, active: t.Mapping[str, Activation], known: t.Collection[str], base: t.Collection[str], exact: bool
) -> tuple[list[str], list[str]]:
    """Extensions to activate and to deactivate. Raises Refused for one that PoWA does not know."""
    if wanted.extensions is None:
        return [], []
    unknown = [name for name in wanted.extensions if name not in known and name not in active]
    if unknown:
        raise Refused(
            'PoWA does not know %s, wanted on the server "%s"' % (", ".join(unknown), wanted.alias),
            expected="one of %s" % ", ".join(sorted(set(known) - set(IGNORED))),
            action="A datasource of your own is put there by pgfleet.ops.powa_datasource",
        )
    missing = Activation(enabled=False)
    activate = [name for name in wanted.extensions if not (active.get(name, missing).enabled and active.get(name, missing).complete)]
    deactivate = []
    if exact:
        keep = {*wanted.extensions, *base, *IGNORED}
        deactivate = sorted(name for name, activation in active.items() if activation.enabled and name not in keep)
    return activate, deactivate


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
