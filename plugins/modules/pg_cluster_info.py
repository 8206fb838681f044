# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_cluster_info
short_description: The state of a whole PostgreSQL cluster in one call
version_added: "0.1.0"
description:
  - Asks every node of a cluster at once for its role, timeline, positions, replication, slots and archiver, and judges the cluster from the answers.
  - A node that does not answer is data, not a failure. All nodes together take at most O(timeout), however many of them hang.
  - Nothing is believed because an inventory says so. Two primaries are reported as such and RV(primary) is then null.
  - This is HandyRep's C(get_status), C(get_master_name), C(get_server_info), C(verify_*) and the selection plugins, with the same
    status labels and numbers (unknown 0, healthy 1, lagged 2, warning 3, unavailable 4, down 5).
options:
  nodes:
    description: Every member of the cluster.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The node's name, unique in the list.
        type: str
        required: true
      host:
        description: Name or address where the host that runs this module reaches the node.
        type: str
        required: true
      port:
        description: The node's port.
        type: int
        default: 5432
      address:
        description: Name or address where the other nodes reach it, if that is not O(nodes[].host); upstreams are recognised by it.
        type: str
      priority:
        description: For O(strategy=priority); the lower the number, the better the candidate.
        type: int
        default: 100
  strategy:
    description:
      - How eligible candidates are ranked.
      - V(priority) by O(nodes[].priority), then by received WAL; V(lsn) by received WAL; V(synchronous) synchronous standbys first.
    type: str
    choices: [priority, lsn, synchronous]
    default: priority
  exclude:
    description: Names of nodes that are no candidates.
    type: list
    elements: str
    default: []
  lag_limit_bytes:
    description: A standby that has replayed less than the primary's current position by more bytes than this is lagged and no candidate.
    type: int
    default: 16777216
  timeout:
    description: Seconds for all nodes together.
    type: float
    default: 10
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.info
  - pgfleet.ops.connection.login
notes:
  - The login needs no more than membership in C(pg_monitor). All nodes are asked with the same login.
seealso:
  - module: pgfleet.ops.pg_switchover
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: See the cluster
  pgfleet.ops.pg_cluster_info:
    login_user: monitor
    nodes:
      - {name: db1, host: db1.example.com}
      - {name: db2, host: db2.example.com}
      - {name: db3, host: db3.example.com, priority: 200}
  register: cluster

- name: Stop here unless all is well
  ansible.builtin.assert:
    that: cluster.status_number <= 2
    fail_msg: "{{ cluster.reasons | join('; ') }}"
"""

RETURN = r"""
status:
  description: The cluster's status, V(healthy), V(warning) or V(down).
  returned: success
  type: str
  sample: healthy
status_number:
  description: HandyRep's number for RV(status).
  returned: success
  type: int
  sample: 1
reasons:
  description: Why the status is not better, a sentence each.
  returned: success
  type: list
  elements: str
primary:
  description: Name of the one primary, null when there is none or more than one.
  returned: success
  type: str
  sample: db1
primaries:
  description: Names of all nodes that accept writes.
  returned: success
  type: list
  elements: str
system_identifiers:
  description: The system identifiers found; more than one means that a node belongs to another cluster.
  returned: success
  type: list
  elements: str
nodes:
  description:
    - By name, each node's address, RV(ignore:reachable), RV(ignore:status), RV(ignore:role), RV(ignore:timeline), positions, RV(ignore:lag_bytes),
      RV(ignore:lag_mb), RV(ignore:lag_seconds), RV(ignore:upstream), RV(ignore:senders), RV(ignore:slots) with the bytes of WAL that each holds,
      RV(ignore:base_backups) with the phase, the bytes streamed and the bytes in total of each copy that is being taken from it,
      RV(ignore:pending_restart) with the settings that wait, and RV(ignore:archiver).
    - A node that did not answer has RV(ignore:problem) and RV(ignore:problem_kind) instead.
  returned: success
  type: dict
candidates:
  description: All nodes but the primary, the best promotion target first, each with RV(ignore:eligible) and the reasons against it in RV(ignore:refusals).
  returned: success
  type: list
  elements: dict
plan:
  description: Always empty.
  returned: always
  type: list
  elements: str
performed:
  description: Always empty.
  returned: always
  type: list
  elements: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.cluster_info import CLUSTER_INFO, ClusterInfo


def main() -> None:
    run(ClusterInfo, CLUSTER_INFO)


if __name__ == "__main__":
    main()
