# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""In which order the nodes of a cluster can be restarted, judged without I/O from the settings that a restart would bring."""

from __future__ import annotations

import typing as t

from .model import Cluster, Node

# A standby does not start with a value lower than its primary has, and stops replay when the primary's grows beyond its own.
STANDBY_SETTINGS = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction")

ORDERS = ("standbys_only", "standbys_first", "primary_first", "switchover")


def restart_problems(cluster: Cluster) -> dict[str, list[str]]:
    """What speaks against each order of restarts, by its name in ``ORDERS``; a sentence each, none when it works.

    ``switchover`` restarts the standbys, makes any one of them the primary and restarts the old primary.
    """
    primary = cluster.primary
    if primary is None:
        return {order: ["no single node is the primary"] for order in ORDERS}
    found: dict[str, list[str]] = {order: [] for order in ORDERS}
    unknown = ["%s does not answer" % node.name for node in cluster.nodes if not node.reachable]
    known = [node for node in cluster.nodes if node.reachable]
    if len(known) > 1:
        unknown += ["what a restart would bring to %s is not known: the login may not read its files" % node.name for node in known if not _values(node)]
        known = [node for node in known if _values(node)]
    standbys = [node for node in known if node is not primary] if primary in known else []
    for name in STANDBY_SETTINGS:
        for standby in standbys:
            low = too_low(name, standby, "then", primary, "now")
            found["standbys_only"] += low
            found["standbys_first"] += low + too_low(name, standby, "then", primary, "then")
            found["primary_first"] += too_low(name, standby, "now", primary, "then") + too_low(name, standby, "then", primary, "then")
            found["switchover"] += low
            for other in known:
                if other is not standby:
                    found["switchover"] += too_low(name, other, "then", standby, "then")
    return {order: unknown + list(dict.fromkeys(problems)) for order, problems in found.items()}


def _values(node: Node) -> t.Mapping[str, t.Mapping[str, str]]:
    return (node.state or {}).get("standby_settings") or {}


def too_low(name: str, standby: Node, its_time: str, primary: Node, that_time: str) -> list[str]:
    """Why ``standby`` cannot be one of ``primary``, each with the value before (``now``) or after (``then``) its restart."""
    own, wanted = _values(standby)[name][its_time], _values(primary)[name][that_time]
    if int(own) >= int(wanted):
        return []
    words = {"now": "now", "then": "after a restart"}
    return ["%s cannot follow %s: its %s is %s %s, and that of %s is %s %s" % (
        standby.name, primary.name, name, own, words[its_time], primary.name, wanted, words[that_time])]  # fmt: skip
