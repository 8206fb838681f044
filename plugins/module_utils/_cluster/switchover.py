# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Whether a switchover may begin, judged from what was observed. Without I/O: every reason against it is found at once."""

from __future__ import annotations

import dataclasses
import typing as t

from .._sql.values import parse_conninfo
from .model import Cluster, Node


@dataclasses.dataclass(frozen=True)
class PoolerView:
    """What one pooler is seen to do. ``problem`` is set when it could not be asked, then all else is empty."""

    name: str
    problem: str | None = None
    affected: t.Sequence[str] = ()
    """Entries that lead to a node whose role will change."""
    session_pools: t.Sequence[str] = ()
    """Those of them that pool by session: a PAUSE of such a pool waits until its clients leave."""
    stale: t.Sequence[str] = ()
    """Those of them that lead elsewhere at run time than on disk."""
    disabled: t.Sequence[str] = ()
    paused: t.Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Transaction:
    """A transaction that is open on the primary."""

    pid: int
    seconds: float
    application_name: str
    user: str
    started_at: str

    def __str__(self) -> str:
        return "pid %d (user %s, application %s) open since %s, %.1f s" % (
            self.pid,
            self.user,
            self.application_name or "without a name",
            self.started_at,
            self.seconds,
        )


def refusals(
    cluster: Cluster,
    candidate: Node,
    lag_limit_bytes: int,
    poolers: t.Sequence[PoolerView],
    transactions: t.Sequence[Transaction],
    transaction_limit: float,
) -> list[str]:
    """Why the candidate cannot become the primary now, a sentence each; empty when it can."""
    found: list[str] = []
    for node in cluster.nodes:
        if not node.reachable:
            # It could be a second primary; no answer is no proof that it is none.
            found.append("node %s (%s:%d) does not answer: %s" % (node.name, node.host, node.port, node.problem))
        try:
            if "password" in parse_conninfo((node.state or {}).get("primary_conninfo") or ""):
                # ALTER SYSTEM would print it to the logs of two servers.
                found.append("the primary_conninfo of node %s holds a password: put it into a passfile and name that instead" % node.name)
        except ValueError as error:
            # Found out later, it would leave a node behind that nobody has led to the new primary.
            found.append("the primary_conninfo of node %s cannot be led to another primary, only its form keyword=value can, no URI: %s" % (node.name, error))
    identifiers = {node.system_identifier for node in cluster.nodes if node.reachable}
    if len(identifiers) > 1:
        found.append(
            "the nodes belong to different clusters, their system identifiers are %s"
            % ", ".join("%s: %s" % (node.name, node.system_identifier) for node in cluster.nodes if node.reachable)
        )
    if len(cluster.primaries) > 1:
        found.append("more than one node is a primary: %s" % ", ".join(node.name for node in cluster.primaries))
    if not cluster.primaries:
        found.append("no node that answers is a primary: a switchover moves a primary that is well, a lost one needs a failover")
    primary = cluster.primary
    for node in cluster.nodes:
        state = node.state or {}
        if node is not candidate and state.get("recovery_target_timeline", "latest") != "latest":
            found.append("node %s could not follow to a new timeline: set its recovery_target_timeline to latest" % node.name)
    if candidate.reachable and len(identifiers) == 1 and candidate.role == "standby":
        judged = cluster.judge(candidate, lag_limit_bytes)
        found.extend("the candidate %s cannot be promoted: %s" % (candidate.name, reason) for reason in judged.refusals)
        upstream = cluster.upstream(candidate)
        if primary and candidate.streaming and upstream is not primary:
            found.append(
                "the candidate %s does not stream from the primary %s but from %s"
                % (candidate.name, primary.name, upstream.name if upstream else "%s:%d" % (candidate.upstream_address or ("?", 0)))
            )
    for pooler in poolers:
        if pooler.problem:
            found.append("pooler %s: %s" % (pooler.name, pooler.problem))
        if pooler.session_pools:
            found.append(
                "pooler %s pools by session for %s: clients keep their connection to the old primary and would get errors"
                % (pooler.name, ", ".join(pooler.session_pools))
            )
        for names, what in ((pooler.stale, "leads elsewhere than its file says (RELOAD it first)"), (pooler.disabled, "is disabled")):
            if names:
                found.append("pooler %s: the entry %s %s" % (pooler.name, ", ".join(names), what))
        if pooler.paused:
            found.append("pooler %s: %s is paused already; RESUME it first if nothing else pauses it" % (pooler.name, ", ".join(pooler.paused)))
        if not pooler.problem and not pooler.affected:
            found.append(
                "pooler %s has no entry that leads to the primary: it is listed here by mistake, or its addresses are not those of the nodes" % pooler.name
            )
    old = [transaction for transaction in transactions if transaction.seconds > transaction_limit]
    if old:
        found.append("transactions are open longer than %g s, every client would wait for them: %s" % (transaction_limit, "; ".join(map(str, old))))
    return found


def read_only_target(cluster: Cluster, candidate: Node) -> Node | None:
    """Where read-only entries that led to the candidate go: another standby if there is one, else the old primary."""
    others = [node for node in cluster.standbys if node is not candidate and node.streaming]
    return min(others, key=lambda node: (node.priority, node.name)) if others else cluster.primary


def slot_name(node_name: str) -> str:
    """A replication slot's name made of a node's: lower case letters, digits and underscores, at most 63."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in node_name.lower())[:63]
