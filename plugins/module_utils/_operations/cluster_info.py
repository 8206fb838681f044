# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Observing a whole cluster: every node asked at once, one that does not answer is data."""

from __future__ import annotations

import dataclasses
import typing as t

from .._cluster.model import SLOT_LIMIT_BYTES, STATUS_NUMBERS, Cluster, Node, Verdict
from .._cluster.restart import restart_problems
from .._errors import InvalidInput, OperationError, Unhealthy
from .._module import LOGIN, ArgumentSpec, Operation
from .._parallel import ask_all
from .._plan import Plan
from .._sql.connection import Target, connect
from .._sql.node_state import fetch_node_state
from .._sql.readers import Readers
from .._sql.values import int_to_lsn
from .._wait import Deadline

NODE_OPTIONS: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5432},
    "address": {"type": "str"},
    "priority": {"type": "int", "default": 100},
}

CLUSTER_INFO = LOGIN.merge(
    ArgumentSpec(
        {
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": NODE_OPTIONS},
            "strategy": {"type": "str", "choices": ["priority", "lsn", "synchronous"], "default": "priority"},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "lag_limit_bytes": {"type": "int", "default": 16777216},
            "lag_limit_mb": {"type": "float"},
            "slot_limit_mb": {"type": "float", "default": 1024},
            "fail_on": {"type": "str", "choices": ["none", "down", "warning", "lagged"], "default": "none"},
            "timeout": {"type": "float", "default": 10},
        }
    )
)


def check_nodes(nodes: t.Sequence[t.Mapping[str, t.Any]]) -> None:
    """Names and addresses of the option ``nodes`` must be unique. Raises InvalidInput."""
    if not nodes:
        raise InvalidInput("the option nodes is an empty list", expected="every member of the cluster")
    if not all(node["name"] for node in nodes):
        raise InvalidInput("an entry of the option nodes has an empty name", expected="a name of its own for every node")
    for what, keys in (("name", [n["name"] for n in nodes]), ("address", ["%s:%s" % (n["host"], n["port"]) for n in nodes])):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise InvalidInput("two entries of the option nodes have the same %s: %s" % (what, ", ".join(twice)))


def observe_cluster(params: t.Mapping[str, t.Any], timeout: float, read_only: bool, readers: Readers | None = None) -> Cluster:
    """Ask every node of the option ``nodes`` at once; together they take at most ``timeout`` seconds. ``readers`` keeps the connections open."""
    deadline = Deadline(timeout)

    def ask(entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        target = Target.from_params(params, host=entry["host"], port=entry["port"])
        if readers is not None:
            return readers.ask(target, deadline, lambda session: fetch_node_state(session, deadline))
        session = connect(target, timeout=deadline.left, read_only=read_only)
        try:
            return fetch_node_state(session, deadline)
        finally:
            session.close()

    entries = list(params["nodes"])
    nodes = []
    for entry, answer in zip(entries, ask_all(entries, ask, deadline)):
        node = Node(name=entry["name"], host=entry["host"], port=entry["port"], priority=entry["priority"], address=entry["address"] or None)
        if isinstance(answer, OperationError):
            problem = "no answer within %g s" % timeout if type(answer).__name__ == "WaitTimeout" else answer.message
            nodes.append(dataclasses.replace(node, problem=problem, problem_kind=type(answer).__name__, refused=bool(answer.facts.get("refused"))))
        else:
            nodes.append(dataclasses.replace(node, state=answer))
    return Cluster(nodes)


def describe(cluster: Cluster, lag_limit_bytes: int, strategy: str, exclude: t.Collection[str], slot_limit_bytes: int = SLOT_LIMIT_BYTES) -> dict[str, t.Any]:
    """The cluster as a result for people and programs."""
    verdict = cluster.status(lag_limit_bytes, slot_limit_bytes)
    return {
        "status": verdict.label,
        "status_number": verdict.number,
        "reasons": list(verdict.reasons),
        "primary": cluster.primary.name if cluster.primary else None,
        "primaries": [node.name for node in cluster.primaries],
        "system_identifiers": sorted(cluster.system_identifiers),
        "topology": cluster.topology(),
        "restart_problems": restart_problems(cluster),
        "nodes": {node.name: _describe_node(cluster, node, cluster.verdict(node, lag_limit_bytes, slot_limit_bytes)) for node in cluster.nodes},
        "candidates": [
            {**dataclasses.asdict(candidate), "eligible": candidate.eligible} for candidate in cluster.candidates(strategy, lag_limit_bytes, exclude)
        ],
    }


def _describe_node(cluster: Cluster, node: Node, verdict: Verdict) -> dict[str, t.Any]:
    described: dict[str, t.Any] = {
        "host": node.host,
        "port": node.port,
        "reachable": node.reachable,
        "status": verdict.label,
        "status_number": verdict.number,
        "reasons": list(verdict.reasons),
        "role": node.role,
    }
    if node.state is None:
        described["problem"] = node.problem
        described["problem_kind"] = node.problem_kind
        return described
    upstream = cluster.upstream(node)
    address = node.upstream_address
    lag = cluster.lag_bytes(node)
    sender = cluster.sender_of(node)
    wanted = cluster.synchronous(node)
    # The connection string may hold a password and stays here.
    shown = {key: value for key, value in node.state.items() if key not in ("in_recovery", "primary_conninfo", "seconds_since_replay", "standby_settings")}
    described.update(shown)
    described.update(
        {
            "streaming": node.streaming if node.role == "standby" else None,
            "upstream": upstream.name if upstream else None,
            "upstream_address": "%s:%d" % address if address else None,
            "received_lsn": int_to_lsn(node.received) if node.role == "standby" and node.received is not None else None,
            "lag_bytes": lag,
            "lag_mb": round(lag / 1048576, 3) if lag is not None else None,
            "lag_seconds": cluster.lag_seconds(node),
            "synchronous": {**dataclasses.asdict(wanted), "satisfied": wanted.satisfied} if wanted else None,
            "sync_state": sender["sync_state"] if sender and node.role == "standby" else None,
        }
    )
    return described


class ClusterInfo(Operation):
    """Read the state of a cluster, and fail if that was asked for. Changes nothing."""

    def observe(self) -> Cluster:
        check_nodes(self.params["nodes"])
        unknown = sorted(set(self.params["exclude"]) - {node["name"] for node in self.params["nodes"]})
        if unknown:
            raise InvalidInput("the option exclude names nodes that are not in the option nodes: %s" % ", ".join(unknown))
        for option in ("lag_limit_bytes", "lag_limit_mb", "slot_limit_mb", "timeout"):
            value = self.params[option]
            if value is not None and (value < 0 or (option == "timeout" and not value)):
                raise InvalidInput("%s is %g" % (option, value), expected="a positive number")
        return observe_cluster(self.params, self.params["timeout"], read_only=True)

    def plan(self, seen: Cluster) -> Plan:
        return Plan()

    def report(self, seen: Cluster) -> dict[str, t.Any]:
        in_mb = self.params["lag_limit_mb"]
        lag_limit_bytes = self.params["lag_limit_bytes"] if in_mb is None else int(in_mb * 1048576)
        result = describe(seen, lag_limit_bytes, self.params["strategy"], self.params["exclude"], int(self.params["slot_limit_mb"] * 1048576))
        threshold = self.params["fail_on"]
        # A standby that lags leaves the cluster healthy.
        lagged = any(node["status"] == "lagged" for node in result["nodes"].values())
        worst = max(result["status_number"], STATUS_NUMBERS["lagged"] if lagged else 0)
        if threshold != "none" and worst >= STATUS_NUMBERS[threshold]:
            raise Unhealthy(
                "the cluster is %s: %s" % ("lagged" if worst == STATUS_NUMBERS["lagged"] else result["status"], "; ".join(result["reasons"])), **result
            )
        return result
