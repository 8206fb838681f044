# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Observing poolers: all asked at once within one limit, one that does not answer is data."""

from __future__ import annotations

import dataclasses
import typing as t

from .._errors import InvalidInput, NotReachable, OperationError, QueryFailed
from .._module import CONNECTION, ArgumentSpec, Operation
from .._parallel import ask_all
from .._pgbouncer.console import Console, console_target
from .._sql.connection import Target
from .._wait import Deadline

# Everything but these two keys is what SHOW gives under that name.
SUBSETS = ("databases", "pools", "stats", "config", "lists", "users", "servers", "clients", "totals", "mem", "state")

POOLER_OPTIONS: dict[str, t.Any] = {
    "name": {"type": "str"},
    "login_host": {"type": "str"},
    "login_port": {"type": "int"},
    "login_unix_socket": {"type": "str"},
    "login_user": {"type": "str"},
    "login_password": {"type": "str", "no_log": True},
}

PGBOUNCER_INFO = CONNECTION.merge(
    ArgumentSpec(
        {
            "poolers": {"type": "list", "elements": "dict", "options": POOLER_OPTIONS},
            "gather_subset": {"type": "list", "elements": "str", "choices": ["all", "min", *SUBSETS], "default": ["databases", "pools"]},
            "unreachable": {"type": "str", "choices": ["report", "fail"], "default": "report"},
            "timeout": {"type": "float", "default": 5},
        }
    )
)


@dataclasses.dataclass(frozen=True)
class Pooler:
    """A pooler to be asked."""

    name: str
    target: Target

    def __str__(self) -> str:
        return str(self.target)


def poolers_of(params: t.Mapping[str, t.Any]) -> list[Pooler]:
    """The poolers that the options name, at least one. Raises InvalidInput when two have the same name."""
    if params["poolers"] is None:
        target = console_target(params)
        return [Pooler(str(target), target)]
    if not params["poolers"]:
        raise InvalidInput("the option poolers is an empty list", expected="at least one pooler", action="Leave it out to ask the pooler of login_host")
    found = []
    for entry in params["poolers"]:
        target = console_target(
            params,
            host=entry["login_unix_socket"] or entry["login_host"],
            port=entry["login_port"],
            user=entry["login_user"],
            password=entry["login_password"],
        )
        found.append(Pooler(entry["name"] or str(target), target))
    names = [pooler.name for pooler in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput("two entries of the option poolers have the same name: %s" % ", ".join(twice))
    return found


def server_params(params: t.Mapping[str, t.Any], *logins: str) -> dict[str, t.Any]:
    """The options for connections to servers, whose login is not the console's.

    ``logins`` are names of options before ``_user`` and ``_password``; the first one with a user counts, after them the console's.
    """
    login = next((login for login in logins if params[login + "_user"]), "login")
    none = dict.fromkeys(("login_db", "login_host", "login_port", "login_unix_socket"))
    return {**params, **none, "login_user": params[login + "_user"], "login_password": params[login + "_password"]}


def describe_pooler(target: Target, subsets: t.Collection[str], deadline: Deadline) -> dict[str, t.Any]:
    """What one pooler says. Raises the errors of Console."""
    console = Console.open(target, timeout=deadline.left)
    try:
        databases = console.databases(deadline)
        found: dict[str, t.Any] = {
            "version": ".".join(str(part) for part in console.version),
            "paused": console.is_paused(deadline),
            "disabled_databases": sorted(name for name, row in databases.items() if row["disabled"]),
            "paused_databases": sorted(name for name, row in databases.items() if row["paused"]),
        }
        for subset in subsets:
            if subset == "databases":
                found[subset] = list(databases.values())
            elif subset == "pools":
                found[subset] = console.pools(deadline)
            elif subset == "config":
                found[subset] = console.config(deadline)
            elif subset == "state":
                found[subset] = _state(console, deadline)
            else:
                found[subset] = console.show(subset, deadline)
        return found
    finally:
        console.close()


def _state(console: Console, deadline: Deadline) -> dict[str, t.Any] | None:
    # SHOW STATE came after 1.18.
    try:
        return {str(row["key"]): {"yes": True, "no": False}.get(str(row["value"]), row["value"]) for row in console.show("STATE", deadline)}
    except QueryFailed:
        return None


class PoolersInfo(Operation):
    """The module pgbouncer_info."""

    def observe(self) -> list[dict[str, t.Any]]:
        wanted = self.params["gather_subset"]
        subsets = [subset for subset in SUBSETS if "all" in wanted or subset in wanted]
        poolers = poolers_of(self.params)
        deadline = Deadline(self.params["timeout"])
        answers = ask_all(poolers, lambda pooler: describe_pooler(pooler.target, subsets, deadline), deadline)
        found = []
        for pooler, answer in zip(poolers, answers):
            facts: dict[str, t.Any] = {"name": pooler.name, "host": pooler.target.host, "port": pooler.target.port}
            if isinstance(answer, OperationError):
                facts.update(reachable=False, error=type(answer).__name__, reason=answer.message)
            else:
                facts.update(reachable=True, error=None, reason=None, **answer)
            found.append(facts)
        return found

    def report(self, seen: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        silent = [facts for facts in seen if not facts["reachable"]]
        if silent and self.params["unreachable"] == "fail":
            raise NotReachable(
                "%d of %d poolers cannot be asked: %s" % (len(silent), len(seen), "; ".join(facts["reason"] for facts in silent)),
                action="Set unreachable=report to get this as data",
                poolers=seen,
            )
        return {"poolers": seen, "all_reachable": not silent}
