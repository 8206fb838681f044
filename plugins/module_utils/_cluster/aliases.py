# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Where the entries of a pooler have to lead, decided from what the nodes of the cluster say."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._errors import Refused, SplitBrainRisk
from .model import Cluster, Node

DEFAULT_PORT = 5432


@dataclasses.dataclass(frozen=True)
class Lead:
    """An entry and the node that it has to lead to. ``is_there``: it does already, in whatever words."""

    name: str
    node: Node
    is_there: bool
    read_only: bool


def is_read_only(name: str, suffix: str | None, names: t.Collection[str]) -> bool:
    """Whether an entry may lead to a standby: by its name, or by HandyRep's suffix, behind which a number may stand."""
    return name in names or bool(suffix and re.search(re.escape(suffix) + "[0-9]*$", name))


def proved_primary(cluster: Cluster) -> Node:
    """The one node that clients may be led to. Raises Refused or SplitBrainRisk where that is not certain."""
    silent = "; ".join("%s: %s" % (node.name, node.problem) for node in cluster.nodes if not node.reachable)
    primary = cluster.primary
    if len(cluster.primaries) > 1:
        raise SplitBrainRisk(
            "%d nodes are a primary: %s" % (len(cluster.primaries), ", ".join(node.name for node in cluster.primaries)),
            expected="exactly one",
            action="Nothing was changed. Stop all but one, and let those follow it",
        )
    if primary is None:
        raise Refused(
            "no node that answers is a primary%s" % (" (%s)" % silent if silent else ""),
            expected="exactly one",
            action="Nothing was changed. Start the primary or promote a standby first",
        )
    if len(cluster.system_identifiers) > 1:
        raise Refused(
            "the nodes are not of one cluster: %s" % ", ".join("%s is %s" % (n.name, n.system_identifier) for n in cluster.nodes if n.system_identifier),
            expected="one system identifier",
            action="Nothing was changed. Correct the option nodes",
        )
    newer = [node for node in cluster.nodes if (node.timeline or 0) > (primary.timeline or 0)]
    if newer:
        # An old primary that was started again, while the new one does not answer.
        raise SplitBrainRisk(
            "%s is a primary on timeline %s, and %s" % (primary.name, primary.timeline, ", ".join("%s is on %s" % (n.name, n.timeline) for n in newer)),
            expected="the primary on the newest timeline",
            action="Nothing was changed. Find the primary of the newer timeline%s" % (" (%s)" % silent if silent else ""),
        )
    return primary


def readers(cluster: Cluster) -> list[Node]:
    """The standbys that read-only entries may lead to, the preferred one first."""
    return sorted((node for node in cluster.standbys if node.streaming), key=lambda node: (node.priority, node.name))


def node_of(cluster: Cluster, entry: t.Mapping[str, str] | None) -> Node | None:
    """The node that an entry (its parameters) leads to, if it is one of the cluster's."""
    if entry is None:
        return None
    host, port = entry.get("host", ""), int(entry.get("port", DEFAULT_PORT))
    return next((node for node in cluster.nodes if node.listens_at(host, port)), None)


def leads_of_database(
    cluster: Cluster, name: str, entries: t.Mapping[str, t.Mapping[str, str]], suffix: str, all_replicas: bool, fallback: Node | None
) -> list[Lead]:
    """HandyRep's entries for one database: its name for writers, and with the suffix for readers.

    With ``all_replicas`` there are as many for readers as the cluster can have standbys, numbered from 1, so that no name
    comes and goes with a standby; those that have none of their own share the others'. ``fallback`` serves readers while
    there is no standby.
    """
    primary = proved_primary(cluster)
    found = [Lead(name, primary, node_of(cluster, entries.get(name)) is primary, False)]
    names = ["%s%s%d" % (name, suffix, number + 1) for number in range(max(1, len(cluster.nodes) - 1))] if all_replicas else [name + suffix]
    return found + _spread(cluster, names, entries, fallback)


def leads_of_entries(
    cluster: Cluster, entries: t.Mapping[str, t.Mapping[str, str]], suffix: str | None, read_only: t.Collection[str], fallback: Node | None
) -> list[Lead]:
    """For every entry that leads to one of the nodes, where it has to lead to."""
    primary = proved_primary(cluster)
    ours = {name: node for name, entry in entries.items() if (node := node_of(cluster, entry)) is not None}
    found = []
    for name, node in ours.items():
        if is_read_only(name, suffix, read_only):
            found += _spread(cluster, [name], entries, fallback)
        else:
            found.append(Lead(name, primary, node is primary, False))
    return found


def _spread(cluster: Cluster, names: t.Sequence[str], entries: t.Mapping[str, t.Mapping[str, str]], fallback: Node | None) -> list[Lead]:
    """Standbys for read-only entries: one that leads to a living one stays, the others get those that are left, or share."""
    living = readers(cluster) or ([fallback] if fallback else [])
    if not living:
        raise Refused(
            "no standby streams, and the read-only entries %s have nowhere to lead to" % ", ".join(names),
            expected="a standby that streams",
            action="Nothing was changed. Start a standby, or let without_standby=primary lead readers to the primary meanwhile",
        )
    chosen: dict[str, Node] = {}
    for name in names:
        node = node_of(cluster, entries.get(name))
        if node is not None and node in living and node not in chosen.values():
            chosen[name] = node
    free = [node for node in living if node not in chosen.values()]
    for position, name in enumerate(names):
        if name not in chosen:
            chosen[name] = free.pop(0) if free else living[position % len(living)]
    return [Lead(name, chosen[name], node_of(cluster, entries.get(name)) is chosen[name], True) for name in names]
