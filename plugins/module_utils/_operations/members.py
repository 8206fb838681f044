# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The members of a cluster as an operation on all of them is given them, and what it holds of them."""

from __future__ import annotations

import contextlib
import time
import typing as t

from .._cluster.model import Cluster, Node
from .._cluster.switchover import slot_name
from .._errors import InvalidInput, OperationError, Refused
from .._host.guardian import Guardian
from .._host.instance import Instance
from .._pgbouncer.console import Console
from .._sql.connection import Session, Target, connect
from .._sql.readers import Readers
from .._wait import Deadline
from .cluster_info import NODE_OPTIONS, check_nodes, describe, observe_cluster

T = t.TypeVar("T")

MEMBER_OPTIONS: dict[str, t.Any] = {
    **NODE_OPTIONS,
    "conninfo": {"type": "dict", "default": {}},
    "slot": {"type": "str"},
    "upstream": {"type": "str"},
    "data_directory": {"type": "path"},
    "config_file": {"type": "path"},
    "bin_directory": {"type": "path"},
    "method": {"type": "str", "choices": ["auto", "systemd", "pg_ctlcluster", "pg_ctl"], "default": "auto"},
    "unit": {"type": "str"},
    "log_file": {"type": "path"},
    "shell": {"type": "list", "elements": "str", "default": []},
}
"""In step with the doc fragment ``members``."""


def check_members(params: t.Mapping[str, t.Any]) -> None:
    """The options nodes and candidate make sense together. Raises InvalidInput."""
    check_nodes(params["nodes"])
    names = [entry["name"] for entry in params["nodes"]]
    if params["candidate"] not in names:
        raise InvalidInput(
            'the option candidate names "%s", which is not a node of this cluster' % params["candidate"], expected="one of %s" % ", ".join(names)
        )
    for entry in params["nodes"]:
        if entry["upstream"] and (entry["upstream"] not in names or entry["upstream"] == entry["name"]):
            raise InvalidInput('the option upstream of node %s names "%s", which is no other node' % (entry["name"], entry["upstream"]))
        if "password" in entry["conninfo"]:
            raise InvalidInput(
                "the option conninfo of node %s holds a password, which would end up in postgresql.auto.conf" % entry["name"], expected="a passfile"
            )


def check_methods(params: t.Mapping[str, t.Any]) -> None:
    """For every node it is known how its server is started. Raises InvalidInput."""
    for entry in params["nodes"]:
        if entry["shell"] and (entry["method"] == "auto" or (entry["method"] == "pg_ctl" and not entry["bin_directory"])):
            raise InvalidInput(
                "the node %s has a shell, so that this host cannot find out how its server is started" % entry["name"],
                expected="the options method and, for pg_ctl, bin_directory of that node",
            )


class Run:
    """What one operation on a cluster holds while it runs: connections, guardians, the clock, and what is told at the end.

    ``readers`` keeps the connections by which the nodes are asked open; without it each look opens its own.
    """

    def __init__(self, params: t.Mapping[str, t.Any], readers: Readers | None = None) -> None:
        self.params = params
        self.readers = readers
        self.guardians: dict[tuple[str, str], Guardian] = {}
        """By what they guard (``node`` or ``pooler``) and its name: a host may be both."""
        self.timing: dict[str, float] = {}
        self.result: dict[str, t.Any] = {}
        self.warnings: list[str] = []
        self._open: list[t.Any] = [readers] if readers else []
        self._spare_guardians: dict[tuple[str, str], Guardian] = {}
        self._spare_consoles: dict[str, Console] = {}
        self._marked = 0.0

    def keep(self, part: T) -> T:
        """Have something closed at the end."""
        self._open.append(part)
        return part

    def close(self) -> None:
        for part in reversed(self._open):
            with contextlib.suppress(OperationError):
                part.close()
        self._open.clear()

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def mark(self, what: str | None) -> None:
        """Add the time since the last mark to ``timing`` (milliseconds); None only starts the clock."""
        now = time.monotonic()
        if what is not None:
            self.timing[what] = round(self.timing.get(what, 0) + (now - self._marked) * 1000, 1)
        self._marked = now

    def entry(self, node: Node) -> t.Mapping[str, t.Any]:
        """The node's options."""
        return next(entry for entry in self.params["nodes"] if entry["name"] == node.name)

    def target(self, node: Node) -> Target:
        return Target.from_params(self.params, host=node.host, port=node.port)

    def session(self, node: Node, read_only: bool = False, timeout: float = 10) -> Session:
        return self.keep(connect(self.target(node), timeout=timeout, read_only=read_only))

    def guardian(self, name: str, shell: t.Sequence[str], options: t.Mapping[str, t.Any]) -> Guardian:
        guardian = self._spare_guardians.pop((options["part"], name), None)
        if guardian is None or guardian.ended:
            guardian = self.keep(Guardian(name, shell, options, patience=self.params["timeout"] / 2))
        self.guardians[options["part"], name] = guardian
        return guardian

    def console(self, name: str, target: Target, timeout: float) -> Console:
        """The console of a pooler. Raises AuthenticationFailed, Rejecting or NotReachable."""
        console = self._spare_consoles.pop(name, None)
        if console is not None:
            with contextlib.suppress(OperationError):
                console.show("VERSION", Deadline(timeout))
                return console
        return self.keep(Console.open(target, timeout=timeout))

    def set_aside(self, consoles: t.Mapping[str, Console]) -> None:
        """What was started so far is for later: whoever asks for a guardian or a console next is given it, once."""
        self._spare_guardians, self.guardians = self.guardians, {}
        self._spare_consoles = dict(consoles)

    def guardian_of_node(self, node: Node, data_directory: str, config_file: str | None) -> Guardian:
        """One that can also start the node's server; the options have been seen by ``check_methods``. Raises InvalidInput where this user may not."""
        entry = self.entry(node)
        instance = Instance(
            data_directory,
            config_file=config_file,
            bin_directory=entry["bin_directory"],
            method=entry["method"],
            unit=entry["unit"],
            log_file=entry["log_file"],
            timeout=self.params["timeout"],
        )
        if not entry["shell"]:
            instance.refuse_root()
        return self.guardian(node.name, entry["shell"], {"part": "node", "data_directory": data_directory, "start_command": instance.start_command()})

    def hold(self, nodes: t.Iterable[Node], what: str = "switchover") -> None:
        """Keep other operations from these nodes until this one ends; one that is at work has up to 10 s to end. Raises Refused."""
        # In the same order whoever comes: operations that have nodes in common wait for each other, and never for ever.
        try:
            for node in sorted(nodes, key=lambda node: node.name):
                self.guardians["node", node.name].call("hold", Deadline(15), patience=10)
        except OperationError as error:
            raise Refused("the %s was not begun, nothing was changed: %s" % (what, error), action="Wait until the other one has ended") from error

    def slot_of(self, node: Node) -> str:
        configured = node.state["primary_slot_name"] if node.state else None
        return self.entry(node)["slot"] or configured or slot_name(node.name)

    def stale_slots(self, cluster: Cluster, node: Node) -> list[str]:
        """Physical slots on a standby that no member uses there any more: each would hold WAL for ever."""
        # Who cascades from this node, or cannot be asked, may need its slot here.
        return self.idle_slots(node, [other for other in cluster.nodes if other.reachable and self.entry(other)["upstream"] != node.name])

    def idle_slots(self, node: Node, members: t.Iterable[Node]) -> list[str]:
        """Physical slots on a node that belong to these members and that nobody uses."""
        names = {self.slot_of(member) for member in members}
        slots = node.state["slots"] if node.state else []
        return [slot["name"] for slot in slots if slot["type"] == "physical" and not slot["active"] and slot["name"] in names]

    def uses_slots(self, cluster: Cluster) -> bool:
        return any(self.entry(node)["slot"] or (node.state or {}).get("primary_slot_name") for node in cluster.nodes)

    def observe(self, timeout: float = 10) -> Cluster:
        """Ask every node; together they take at most ``timeout`` seconds."""
        return observe_cluster(self.params, timeout=timeout, read_only=True, readers=self.readers)

    def describe(self, cluster: Cluster) -> dict[str, t.Any]:
        return describe(cluster, self.params["lag_limit_bytes"], "priority", ())
