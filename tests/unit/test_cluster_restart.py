# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order a cluster can be restarted with the settings of its files."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.model import Cluster, Node
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.restart import ORDERS, STANDBY_SETTINGS, restart_problems
from ansible_collections.pgfleet.ops.plugins.module_utils._sql import node_state


def node(name, now=60, then=60, standby=True, setting="max_connections"):
    values = {one: {"now": "8", "then": "8"} for one in STANDBY_SETTINGS}
    values[setting] = {"now": str(now), "then": str(then)}
    return Node(name, name, 5432, state={"in_recovery": standby, "standby_settings": values})


def works(*nodes):
    found = restart_problems(Cluster(nodes))
    assert tuple(found) == ORDERS
    return [order for order in ORDERS if not found[order]]


@pytest.mark.parametrize("setting", STANDBY_SETTINGS)
@pytest.mark.parametrize(
    ("primary", "standbys", "orders"),
    [
        ((60, 60), [(60, 60), (60, 60)], ["standbys_only", "standbys_first", "primary_first", "switchover"]),
        # Raised everywhere; on the primary only; on the standbys only.
        ((60, 100), [(60, 100), (60, 100)], ["standbys_only", "standbys_first", "switchover"]),
        ((60, 100), [(60, 60)], ["standbys_only", "switchover"]),
        ((60, 60), [(60, 100)], ["standbys_only", "standbys_first", "primary_first"]),
        # Standbys that already have more.
        ((60, 100), [(100, 100)], ["standbys_only", "standbys_first", "primary_first", "switchover"]),
        # Lowered everywhere; on the standbys only; on the primary only.
        ((100, 60), [(100, 60), (100, 60)], ["primary_first"]),
        ((100, 100), [(100, 60)], []),
        ((100, 60), [(100, 100)], ["standbys_only", "standbys_first", "primary_first"]),
        # One standby was forgotten.
        ((60, 100), [(60, 100), (60, 60)], ["standbys_only"]),
        # The standbys differ: whichever is promoted must not have more than another.
        ((60, 60), [(60, 80), (60, 60)], ["standbys_only", "standbys_first", "primary_first"]),
        ((60, 60), [], ["standbys_only", "standbys_first", "primary_first", "switchover"]),
    ],
)
def test_which_orders_work(setting, primary, standbys, orders):
    nodes = [node("db%d" % number, *values, setting=setting) for number, values in enumerate(standbys, 2)]
    assert works(node("db1", *primary, standby=False, setting=setting), *nodes) == orders


def test_one_raised_and_one_lowered_goes_in_no_order():
    nodes = [node("db1", 60, 100, standby=False), node("db2", 60, 100)]
    for one in nodes:
        one.state["standby_settings"]["max_worker_processes"] = {"now": "16", "then": "8"}
    assert works(*nodes) == []


def test_the_sentence_names_nodes_setting_and_values():
    found = restart_problems(Cluster([node("db1", 100, 60, standby=False), node("db2", 100, 60)]))
    assert found["standbys_only"] == [
        "db2 cannot follow db1: its max_connections is 60 after a restart, and that of db1 is 100 now"
    ]  # fmt: skip


def test_what_is_not_known_is_a_problem():
    first, second = node("db1", standby=False), node("db2")
    silent = Node("db3", "db3", 5432, problem="timeout")
    unread = Node("db4", "db4", 5432, state={"in_recovery": True, "standby_settings": None})
    found = restart_problems(Cluster([first, second, silent, unread]))
    for order in ORDERS:
        assert [text.split(":")[0] for text in found[order]] == ["db3 does not answer", "what a restart would bring to db4 is not known"]
    assert restart_problems(Cluster([second])) == {order: ["no single node is the primary"] for order in ORDERS}
    alone = Node("db1", "db1", 5432, state={"in_recovery": False, "standby_settings": None})
    assert works(alone) == list(ORDERS)
    assert works(Node("db1", "db1", 5432, state={"in_recovery": False, "standby_settings": None}), second) == []


def test_the_node_is_asked_for_these_settings():
    assert STANDBY_SETTINGS == node_state._STANDBY_SETTINGS
    text = pathlib.Path(node_state.__file__).read_text()
    assert all("'%s'" % name in text for name in STANDBY_SETTINGS)
