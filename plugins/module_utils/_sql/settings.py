# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Parameters of a server by ALTER SYSTEM and reload, and the way back."""

from __future__ import annotations

import dataclasses
import typing as t

from .connection import Session, sql


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
    """ALTER SYSTEM for each, None is RESET, and one reload for all. ALTER SYSTEM takes no parameters, so values are composed as literals."""
    for name, value in values.items():
        if value is None:
            session.execute(sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name)))
        else:
            session.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    session.execute("SELECT pg_reload_conf()")


def put_back_settings(session: Session, settings: t.Iterable[Setting]) -> None:
    """Let each parameter come again from where it came."""
    change_settings(session, {setting.name: setting.value if setting.own else None for setting in settings})
