# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of wrappers, declared once: what they are called, of which type they are, where they may be set."""

from __future__ import annotations

import dataclasses
import typing as t

from .errors import WrapperError

SCOPES = ("server", "table", "mapping")
_SHOWN = {"server": "the server", "table": "the table", "mapping": "the user mapping"}
_TRUE, _FALSE = ("1", "true", "on", "yes", "t", "y"), ("0", "false", "off", "no", "f", "n")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a server, table or user mapping, all of which PostgreSQL keeps as text.

    ``type`` makes a value of the text (str, int, float, bool or a function that raises ValueError); a ``secret`` one is in no message. ``scope`` lists
    where it may be set; a user mapping wins over its server and that over the table.
    """

    type: t.Callable[[str], t.Any] = str
    required: bool = False
    default: t.Any = None
    choices: t.Sequence[t.Any] = ()
    secret: bool = False
    scope: t.Sequence[str] = SCOPES

    def parse(self, name: str, text: str) -> t.Any:
        """Raises WrapperError."""
        shown = "the given value" if self.secret else '"%s"' % text
        try:
            value = _boolean(text) if self.type is bool else self.type(text)
        except ValueError as error:
            if isinstance(self.type, type):
                raise WrapperError('option "%s": %s is no %s' % (name, shown, self.type.__name__), detail=None if self.secret else str(error)) from None
            raise WrapperError('option "%s": %s is not accepted%s' % (name, shown, "" if self.secret else ", %s" % error)) from None
        if self.choices and value not in self.choices:
            raise WrapperError('option "%s": %s is not allowed' % (name, shown), hint="Allowed are: %s" % ", ".join(map(str, self.choices)))
        return value


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("expected true or false")
    return text.lower() in _TRUE


def parse_options(declared: t.Mapping[str, Option], given: t.Mapping[str, str], ignored: t.Collection[str] = ("wrapper",)) -> dict[str, t.Any]:
    """The value of every declared option. Raises WrapperError for one that is not declared, missing or wrong."""
    unknown = sorted(set(given) - set(declared) - set(ignored))
    if unknown:
        raise WrapperError("there is no option %s" % ", ".join('"%s"' % name for name in unknown), hint="Options are: %s" % ", ".join(sorted(declared)))
    missing = [name for name, option in declared.items() if option.required and name not in given]
    if missing:
        raise WrapperError("the option %s is required" % ", ".join('"%s"' % name for name in missing))
    return {name: option.parse(name, given[name]) if name in given else option.default for name, option in declared.items()}


def check_scopes(declared: t.Mapping[str, Option], parts: t.Mapping[str, t.Mapping[str, str]]) -> None:
    """Raises WrapperError for an option that is set where it may not be. ``parts``: what is set, by scope.

    Whoever may use a server can have a mapping of his own, and that wins: an address there would get what a passfile of the server's account has.
    """
    for scope, given in parts.items():
        for name in sorted(set(given) & set(declared)):
            allowed = declared[name].scope
            if scope not in allowed:
                raise WrapperError(
                    'the option "%s" is set for %s' % (name, _SHOWN[scope]), hint="It belongs to %s" % " or ".join(_SHOWN[one] for one in allowed)
                )
