# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Parameters in the files of one server: what is wanted, what the files say, what runs.

ALTER SYSTEM writes into the server's own data directory, also on a standby, and nothing of it is replicated.
"""

from __future__ import annotations

import dataclasses
import re
import time
import typing as t

from .._errors import InvalidInput, NotConfirmed, QueryFailed, Refused
from .._wait import Deadline
from .connection import Session, sql

# As PostgreSQL has them, from large to small: a fraction is rounded to a multiple of the next smaller unit.
_UNITS: tuple[dict[str, int], ...] = (
    {"TB": 1 << 40, "GB": 1 << 30, "MB": 1 << 20, "kB": 1 << 10, "B": 1},
    {"d": 86400000000, "h": 3600000000, "min": 60000000, "s": 1000000, "ms": 1000, "us": 1},
)
_NUMBER = re.compile(r"\s*(?P<number>[+-]?(?:0x[0-9a-f]+|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?))\s*(?P<unit>[A-Za-z]*)\s*\Z", re.I)
_WORDS = {"true": "on", "yes": "on", "on": "on", "1": "on", "false": "off", "no": "off", "off": "off", "0": "off"}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of pg_settings. ``setting`` and the other values are in ``unit``."""

    name: str
    setting: str
    unit: str | None
    vartype: str
    context: str
    source: str
    min_val: str | None
    max_val: str | None
    enumvals: t.Sequence[str] | None
    boot_val: str | None

    @property
    def needs_restart(self) -> bool:
        return self.context == "postmaster"

    @property
    def allowed(self) -> str:
        """The values that it takes, in words."""
        if self.vartype == "enum":
            return "one of %s" % ", ".join(self.enumvals or ())
        if self.vartype == "bool":
            return "on or off"
        if self.vartype in ("integer", "real"):
            return "a number from %s to %s%s" % (self.min_val, self.max_val, " in units of %s, or one with another unit" % self.unit if self.unit else "")
        return "a text"

    def canonical(self, text: str) -> str:
        """``text`` as pg_settings would show it. Raises ValueError where PostgreSQL would not take it."""
        if self.vartype == "bool":
            return _boolean(text)
        if self.vartype == "enum":
            found = [value for value in self.enumvals or () if value == text.strip().lower()]
            if not found:
                raise ValueError(text)
            return found[0]
        if self.vartype not in ("integer", "real"):
            return text
        whole = self.vartype == "integer"
        number = _number(text, self.unit, octal=whole)
        if whole:
            number = round(number)
        if not float(self.min_val or "-inf") <= number <= float(self.max_val or "inf"):
            raise ValueError(text)
        return "%d" % number if whole else "%g" % number

    def same(self, one: str | None, other: str | None) -> bool:
        """Whether two values are one to PostgreSQL."""
        if one is None or other is None:
            return (one or "") == (other or "")
        try:
            return self.canonical(one) == self.canonical(other)
        except ValueError:
            return one == other


def _boolean(text: str) -> str:
    word = text.strip().lower()
    # As PostgreSQL does it: any beginning that is clear; "o" is not.
    found = {value for name, value in _WORDS.items() if word and name.startswith(word)}
    if len(found) != 1:
        raise ValueError(text)
    return found.pop()


def _number(text: str, base: str | None, octal: bool) -> float:
    found = _NUMBER.match(text)
    if found is None:
        raise ValueError(text)
    digits, unit = found["number"].lower(), found["unit"]
    if re.fullmatch(r"[+-]?0x[0-9a-f]+", digits):
        number = float(int(digits, 16))
    elif octal and re.fullmatch(r"[+-]?0[0-7]+", digits):
        number = float(int(digits, 8))
    else:
        number = float(digits)
    if not unit:
        return number
    for units in _UNITS:
        size = re.fullmatch(r"(\d*)(%s)" % "|".join(units), base or "")
        if size is not None and unit in units:
            target = int(size[1] or 1) * units[size[2]]
            # PostgreSQL multiplies with the quotient, which now and then is another number than a division gives.
            number *= units[unit] / target
            smaller = next((factor / target for factor in units.values() if factor < units[unit]), None)
            return round(number / smaller) * smaller if smaller else number
    raise ValueError(text)


@dataclasses.dataclass(frozen=True)
class Line:
    """A parameter in a configuration file; ``own`` is the file that ALTER SYSTEM writes."""

    own: bool
    setting: str | None


@dataclasses.dataclass(frozen=True)
class Change:
    """A parameter whose line in the server's own file is to become ``value``, or to go (None)."""

    name: str
    value: str | None
    before: str | None

    @property
    def what(self) -> str:
        return "reset %s" % self.name if self.value is None else "set %s = %s" % (self.name, self.value)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a server has of the ``wanted`` parameters, and what is to be done. ``lines`` are in the order in which they count."""

    wanted: t.Mapping[str, str | None]
    parameters: t.Mapping[str, Parameter]
    lines: t.Mapping[str, t.Sequence[Line]]
    loaded: t.Collection[str]
    broken: t.Sequence[str] = ()
    forbidden: bool = False

    @property
    def deferred(self) -> list[str]:
        """Parameters of libraries that are not loaded: no server can check their values yet, and older ones do not take them."""
        return [name for name, value in self.wanted.items() if value is not None and name not in self.parameters and _library(name) not in ("", *self.loaded)]

    @property
    def libraries(self) -> list[str]:
        """Libraries that the wanted parameters belong to."""
        return list(dict.fromkeys(_library(name) for name, value in self.wanted.items() if value is not None and _library(name)))

    def target(self, name: str) -> str | None:
        """The value that the files are to give the parameter in the end."""
        value = self.wanted[name]
        if value is not None:
            return value
        others = [line.setting for line in self.lines.get(name, ()) if not line.own]
        return others[-1] if others else self.parameters[name].boot_val if name in self.parameters else None

    def check(self) -> None:
        """Raises InvalidInput or Refused if something wanted cannot be."""
        for name, value in self.wanted.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                if value is not None and name not in self.deferred:
                    known = [other for other in self.parameters if _library(other) == _library(name)]
                    raise InvalidInput(
                        "settings names %s, which this server does not know" % name,
                        expected=("one of %s" % ", ".join(known)) if known and _library(name) else "a parameter of this version of PostgreSQL",
                    )
                continue
            if value is None:
                continue
            try:
                parameter.canonical(value)
            except ValueError:
                raise InvalidInput('settings gives %s the value "%s"' % (name, value), expected=parameter.allowed)
            if parameter.source == "command line" and not parameter.same(value, parameter.setting):
                raise Refused(
                    "the server was started with %s = %s on its command line, which wins over all files" % (name, parameter.setting),
                    action="Take it out of the command line, or leave it as it is",
                )
        if self.changes() and self.forbidden:
            raise Refused("allow_alter_system is off on this server", action="Let the tool that owns its configuration set these: %s" % ", ".join(self.wanted))
        if self.broken and (self.changes() or self.not_in_force()):
            raise Refused(
                "the configuration files have errors, with which a reload does nothing: %s" % "; ".join(self.broken), action="Mend them and run this task again"
            )

    def changes(self) -> list[Change]:
        found = []
        for name, value in self.wanted.items():
            lines = self.lines.get(name, ())
            if value is None:
                own = [line.setting for line in lines if line.own]
                if own:
                    found.append(Change(name, None, own[-1]))
            elif name in self.parameters:
                parameter = self.parameters[name]
                before = lines[-1].setting if lines else parameter.boot_val
                if not parameter.same(before, value):
                    found.append(Change(name, value, before))
        return found

    def not_in_force(self) -> list[str]:
        """Parameters that the running server has another value of, and whether by a reload or by a restart does not matter here."""
        found = []
        for name in self.wanted:
            parameter = self.parameters.get(name)
            # A role or a database may have its own value, which says nothing about the server's.
            if parameter is None or parameter.source not in ("default", "configuration file"):
                continue
            # So PostgreSQL shows archive_command while archive_mode is off, whatever it is.
            if name == "archive_command" and parameter.setting == "(disabled)":
                continue
            # Some libraries compute a value of their own from the default.
            unset = parameter.source == "default" and parameter.same(self.target(name), parameter.boot_val)
            if not unset and not parameter.same(self.target(name), parameter.setting):
                found.append(name)
        return found

    def awaiting_reload(self) -> list[str]:
        return [name for name in self.not_in_force() if not self.parameters[name].needs_restart]

    def awaiting_restart(self) -> list[str]:
        return [name for name in self.not_in_force() if self.parameters[name].needs_restart]


def _library(name: str) -> str:
    return name.rpartition(".")[0]


def read_settings(session: Session, wanted: t.Mapping[str, str | None]) -> Settings:
    """Ask the server about the wanted parameters. Raises InvalidInput if it would not take a value."""
    if not wanted:
        return Settings({}, {}, {}, ())
    libraries = sorted({_library(name) for name in wanted} - {""})
    rows = session.rows(
        "SELECT name, setting, unit, vartype, context, source, min_val, max_val, enumvals, boot_val FROM pg_settings"
        " WHERE name = ANY (%s) OR split_part(name, '.', 1) = ANY (%s) AND strpos(name, '.') > 0 ORDER BY name",
        [list(wanted), libraries],
    )
    parameters = {row["name"]: Parameter(**row) for row in rows}
    lines: dict[str, list[Line]] = {}
    broken = []
    for row in session.rows(
        "SELECT lower(f.name) AS name, f.setting, f.error, f.sourcefile, f.sourceline,"
        " f.sourcefile ~ '/postgresql[.]auto[.]conf$' AS own,"
        " strpos(f.name, '.') > 0 OR EXISTS (SELECT FROM pg_settings s WHERE s.name = lower(f.name)) AS known"
        " FROM pg_file_settings f ORDER BY f.seqno"
    ):
        if row["error"] and not row["known"]:
            broken.append("%s line %s: %s" % (row["sourcefile"], row["sourceline"], row["error"]))
        elif row["name"] in wanted:
            lines.setdefault(row["name"], []).append(Line(row["own"], row["setting"]))
    forbidden = session.value("SELECT current_setting('allow_alter_system', true)") == "off"
    found = Settings(wanted, parameters, lines, {_library(name) for name in parameters}, broken, forbidden)
    found.check()
    _try(session, found)
    return found


def _try(session: Session, settings: Settings) -> None:
    """Let the server itself judge values that a session may have: extensions have rules that pg_settings does not show."""
    for change in settings.changes():
        if change.value is not None and settings.parameters[change.name].context in ("superuser", "user"):
            try:
                with session.transaction():
                    session.execute("SELECT set_config(%s, %s, true)", [change.name, change.value])
            except QueryFailed as error:
                raise InvalidInput('settings gives %s the value "%s": %s' % (change.name, change.value, error.message))


def write(session: Session, change: Change) -> None:
    """Change the server's own file. Nothing takes effect before a reload or a restart."""
    _alter_system(session, change.name, change.value)


def _alter_system(session: Session, parameter: str, value: str | None) -> None:
    # ALTER SYSTEM takes no parameters, so values are composed as literals.
    name = sql.Identifier(*parameter.split("."))
    if value is None:
        session.execute(sql.SQL("ALTER SYSTEM RESET {}").format(name))
    else:
        session.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(name, sql.Literal(value)))


def reload_settings(session: Session, wanted: t.Mapping[str, str | None], seconds: float = 10) -> None:
    """Have the server read its files and wait until the wanted parameters are in force. Raises NotConfirmed."""
    session.execute("SELECT pg_reload_conf()")
    deadline = Deadline(seconds)
    while True:
        left = read_settings(session, wanted).awaiting_reload()
        if not left:
            return
        if deadline.passed:
            raise NotConfirmed(
                "%s was told to reload its configuration and goes on with other values of %s" % (session.target, ", ".join(left)),
                action="Look into the server's log and pg_file_settings",
            )
        time.sleep(0.05)


# For a while: what is put back exactly as it was.


@dataclasses.dataclass(frozen=True)
class Setting:
    """A parameter as it is in force. ``own`` says that it comes from postgresql.auto.conf, which ALTER SYSTEM writes."""

    name: str
    value: str
    own: bool


def read_setting(session: Session, name: str) -> Setting:
    """The value in force, with its unit. The login must see where settings come from (a superuser, or pg_read_all_settings)."""
    row = session.row("SELECT setting, unit, sourcefile FROM pg_settings WHERE name = %s", [name]) or {}
    return Setting(name, "%s%s" % (row["setting"] or "", row["unit"] or ""), str(row["sourcefile"] or "").endswith("postgresql.auto.conf"))


def change_settings(session: Session, values: t.Mapping[str, str | None]) -> None:
    """ALTER SYSTEM for each, None is RESET, and one reload for all."""
    for name, value in values.items():
        _alter_system(session, name, value)
    session.execute("SELECT pg_reload_conf()")


def put_back_settings(session: Session, settings: t.Iterable[Setting]) -> None:
    """Let each parameter come again from where it came."""
    change_settings(session, {setting.name: setting.value if setting.own else None for setting in settings})
