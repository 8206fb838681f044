# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Options of foreign data objects, as PostgreSQL keeps them: changed one by one, never by making the object anew."""

from __future__ import annotations

import dataclasses
import typing as t

from .._errors import InvalidInput
from .._sql.connection import sql


@dataclasses.dataclass(frozen=True)
class OptionChange:
    """``verb`` is ADD, SET or DROP."""

    verb: str
    name: str
    value: str | None = None

    def __str__(self) -> str:
        return "%s %s" % (self.verb, self.name)


def as_text(options: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Values as PostgreSQL keeps them; null leaves an option out. Raises InvalidInput for what has no text of its own."""
    for name, value in options.items():
        if isinstance(value, (list, dict)):
            raise InvalidInput(
                'the option "%s" of the foreign data object is a %s' % (name, "list" if isinstance(value, list) else "mapping"),
                expected="text, a number or true or false, as PostgreSQL keeps options as text",
            )
        if not name or "=" in name:
            raise InvalidInput('"%s" is no name of an option of a foreign data object' % name, expected="a name without =")
    return {name: _text(value) for name, value in options.items() if value is not None}


def _text(value: t.Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def changes(found: t.Mapping[str, str], wanted: t.Mapping[str, t.Any], exact: bool = True) -> list[OptionChange]:
    """What makes ``wanted`` of ``found``. ``exact``: options that are not wanted go; a null drops its option in any case."""
    text = as_text(wanted)
    dropped = [name for name in found if name not in text and (exact or name in wanted)]
    return [
        *(OptionChange("DROP", name) for name in dropped),
        *(OptionChange("SET" if name in found else "ADD", name, value) for name, value in text.items() if found.get(name) != value),
    ]


def apply(found: t.Mapping[str, str], wanted: t.Sequence[OptionChange]) -> dict[str, str]:
    """The options after the changes."""
    after = {name: value for name, value in found.items() if OptionChange("DROP", name) not in wanted}
    return {**after, **{change.name: change.value for change in wanted if change.value is not None}}


def clause(wanted: t.Sequence[OptionChange], creating: bool = False) -> t.Any:
    """``OPTIONS (...)``, empty where there is nothing to say. In a CREATE statement the verbs are left out."""
    if not wanted:
        return sql.SQL("")
    parts = []
    for change in wanted:
        name = sql.Identifier(change.name)
        if change.verb == "DROP":
            parts.append(sql.SQL("DROP {}").format(name))
        else:
            verb = sql.SQL("") if creating else sql.SQL({"ADD": "ADD ", "SET": "SET "}[change.verb])
            parts.append(sql.SQL("{}{} {}").format(verb, name, sql.Literal(change.value)))
    return sql.SQL(" OPTIONS ({})").format(sql.SQL(", ").join(parts))


def shown(options: t.Mapping[str, str], secret: t.Collection[str] = ()) -> str:
    """For a diff, a line each."""
    return "".join("%s: %s\n" % (name, "(secret)" if name in secret else options[name]) for name in sorted(options))
