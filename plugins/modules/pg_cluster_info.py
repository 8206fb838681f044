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
    status labels and numbers (unknown 0, healthy 1, lagged 2, warning 3, unavailable 4, down 5). See the notes for what they mean.
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
    description:
      - A standby that has replayed less than the primary's current position by more bytes than this is lagged and no candidate.
      - Where no node is a primary, a standby that has received less than the furthest one by more bytes than this is no candidate.
    type: int
    default: 16777216
  lag_limit_mb:
    description: The same in MB, as HandyRep's C(lag_limit). Wins over O(lag_limit_bytes).
    type: float
  slot_limit_mb:
    description: A slot that nobody uses and that holds more MB of WAL than this is a warning.
    type: float
    default: 1024
  fail_on:
    description:
      - V(none) - never fail because of what was found.
      - V(down) - fail if RV(status) is V(down).
      - V(warning) - fail if RV(status) is V(warning) or V(down).
      - V(lagged) - fail also if a standby is lagged, which leaves RV(status) V(healthy).
      - The failure carries all return values.
    type: str
    choices: [none, down, warning, lagged]
    default: none
  timeout:
    description: Seconds for all nodes together.
    type: float
    default: 10
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.info
  - pgfleet.ops.connection.login
notes:
  - The login needs no more than membership in C(pg_monitor). All nodes are asked with the same login. What the settings that wait for a restart
    will be is told to superusers only.
  - A node is V(healthy), or V(lagged) beyond the limit of lag. It is V(warning) when it answers and something is wrong with it - a standby that does
    not stream or whose replay is paused, a foreign system identifier, a second primary, a primary whose commits wait for synchronous standbys that
    are not there or whose C(default_transaction_read_only) is on, archiving that fails, a slot that lost its WAL, is about to lose it, or holds much
    WAL without being used.
  - It is V(unavailable) when it does not let this login in, rejects connections, or does not answer at all. It is V(down) only if its host answers that
    nothing listens at its port. Neither is proof that the node is stopped, and nothing should be promoted because of one.
  - The cluster is V(down) without exactly one primary that answers, V(warning) when a node is V(warning) or worse or a cluster of several nodes has no
    standby, else V(healthy). HandyRep's V(unknown) stands for a server that was not checked yet, and is never returned.
  - HandyRep calls a replica that its master does not list V(unavailable); such a node answers here and is a V(warning). It calls a replica whose
    service was found stopped by SSH V(down); this module has no shell on the nodes.
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

- name: Fail from a scheduler unless all is well
  pgfleet.ops.pg_cluster_info:
    login_user: monitor
    nodes: "{{ nodes }}"
    lag_limit_mb: 100
    fail_on: lagged

- name: Who would be promoted if the primary were lost
  pgfleet.ops.pg_cluster_info:
    login_user: monitor
    nodes: "{{ nodes }}"
    strategy: lsn
  register: cluster

- name: Show the candidates and what speaks against them
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.refusals | join('; ') or 'eligible' }}"
  loop: "{{ cluster.candidates }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
status:
  description: The cluster's status, V(healthy), V(warning) or V(down).
  returned: success, and failure because of O(fail_on)
  type: str
  sample: healthy
status_number:
  description: HandyRep's number for RV(status).
  returned: success, and failure because of O(fail_on)
  type: int
  sample: 1
reasons:
  description: Why the status is not better, a sentence each; also which standbys are lagged.
  returned: success, and failure because of O(fail_on)
  type: list
  elements: str
  sample: ["db3: replay is paused"]
primary:
  description: Name of the one primary, null when there is none or more than one.
  returned: success, and failure because of O(fail_on)
  type: str
  sample: db1
primaries:
  description: Names of all nodes that accept writes.
  returned: success, and failure because of O(fail_on)
  type: list
  elements: str
  sample: [db1]
system_identifiers:
  description: The system identifiers found; more than one means that a node belongs to another cluster.
  returned: success, and failure because of O(fail_on)
  type: list
  elements: str
  sample: ["7710960669273728883"]
topology:
  description:
    - Who follows whom, as a tree. Each entry has RV(ignore:name), RV(ignore:role), RV(ignore:streaming) and RV(ignore:standbys), a list of the same.
    - On the first level are the primaries, then nodes whose upstream is none of O(nodes) or is not known.
  returned: success, and failure because of O(fail_on)
  type: list
  elements: dict
  sample: [{name: db1, role: primary, streaming: null, standbys: [{name: db2, role: standby, streaming: true, standbys: []}]}]
nodes:
  description: By name, what each node says of itself. A node that did not answer has the first eight and RV(nodes.problem) and RV(nodes.problem_kind).
  returned: success, and failure because of O(fail_on)
  type: dict
  contains:
    host:
      description: As given.
      type: str
    port:
      description: As given.
      type: int
    reachable:
      description: Whether it answered.
      type: bool
    status:
      description: V(healthy), V(lagged), V(warning), V(unavailable) or V(down), see the notes.
      type: str
    status_number:
      description: HandyRep's number for it.
      type: int
    reasons:
      description: Why the status is not better.
      type: list
      elements: str
    role:
      description: V(primary) or V(standby), null without an answer.
      type: str
    problem:
      description: Why there is no answer.
      type: str
    problem_kind:
      description: Its kind, as V(NotReachable), V(WaitTimeout), V(Rejecting) or V(AuthenticationFailed).
      type: str
    timeline:
      description: The timeline it is on.
      type: int
    current_lsn:
      description: A primary's current position.
      type: str
    received_lsn:
      description: How far a standby has the WAL.
      type: str
    replayed_lsn:
      description: How far it has replayed it.
      type: str
    lag_bytes:
      description: What lies between the primary's current position and the one replayed; null without one primary.
      type: int
    lag_mb:
      description: The same in MB.
      type: float
    lag_seconds:
      description:
        - How old the standby's data is, that of its upstream included. 0 when there is nothing to replay, however long ago the last commit was.
        - While it does not stream, the time since the last transaction it has replayed.
      type: float
    upstream:
      description: Name of the node that it follows, null if that is none of O(nodes).
      type: str
    upstream_address:
      description: Where it follows.
      type: str
    streaming:
      description: Whether it streams, null for a primary.
      type: bool
    sync_state:
      description: As the primary sees it, V(async), V(potential), V(sync) or V(quorum).
      type: str
    synchronous:
      description:
        - What the commits of a primary wait for, null if it is nothing. RV(ignore:required) of RV(ignore:names) by RV(ignore:method) V(first) or V(any),
          RV(ignore:standbys) that are there now, and whether it is RV(ignore:satisfied).
      type: dict
    senders:
      description: Its walsenders, with positions and RV(ignore:sync_state).
      type: list
      elements: dict
    slots:
      description:
        - Its slots with RV(ignore:active), RV(ignore:wal_status) and RV(ignore:retained_bytes), the WAL that each holds. RV(ignore:safe_bytes) can still be
          written before it is lost.
        - RV(ignore:failover) and RV(ignore:synced) are those of PostgreSQL 17 and later, whose standbys can have logical slots of their primary.
      type: list
      elements: dict
    pending_restart:
      description: The settings that wait for a restart.
      type: list
      elements: str
    pending_values:
      description: By name, the value RV(ignore:now) and what it will be RV(ignore:then), as text. Null without the right to read the server's files.
      type: dict
    archiver:
      description: What it has archived, where it last failed, and whether it is RV(ignore:failing) since.
      type: dict
restart_problems:
  description:
    - What speaks against restarting the nodes in a certain order with the settings that their files have now, by order, a sentence each.
    - A standby must not have less than its primary of C(max_connections), C(max_worker_processes), C(max_wal_senders), C(max_prepared_transactions) and
      C(max_locks_per_transaction). So a higher value needs RV(ignore:standbys_first), a lower one RV(ignore:primary_first).
      RV(ignore:standbys_only) leaves the primary alone, RV(ignore:switchover) restarts the standbys and then makes one of them the primary.
  returned: success, and failure because of O(fail_on)
  type: dict
  sample: {standbys_only: [], standbys_first: [], primary_first: [], switchover: []}
candidates:
  description:
    - All nodes but the primary, the best promotion target first, each with RV(ignore:eligible) and the reasons against it in RV(ignore:refusals).
    - Without a primary they are judged among themselves, by timeline and by what each has received.
  returned: success, and failure because of O(fail_on)
  type: list
  elements: dict
  sample: [{name: db2, eligible: true, refusals: [], synchronous: false, priority: 100, received_lsn: 0/3000148, lag_bytes: 0}]
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
