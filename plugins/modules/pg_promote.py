# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_promote
short_description: Promote a standby, with proof that no other member is a primary
version_added: "0.1.0"
description:
  - Makes O(candidate) the primary of a cluster that has none. For every other member there must be proof that it is no primary and does not become one.
  - Proof is that the member answers as a standby. Or that its own host says that no server works in its data directory, and C(standby.signal) is there,
    with which whatever starts it later starts a standby; where that file is missing the module puts it there first. Or that you vouch for it with O(fenced).
    That a member does not answer is no proof.
  - While a primary answers there is no promotion, whatever the options say; M(pgfleet.ops.pg_switchover) moves a primary that is well.
  - The candidate must be a standby of the same system identifier, on no older timeline than any other member, with replay not paused, and with at least
    as much WAL as every other member is known to have, less O(max_data_loss_bytes).
  - Every member that can be reached is held from before the last look at the roles until the end, so that two promotions, or a promotion and a switchover,
    at the same time never make two primaries.
  - Where the candidate does not end its recovery within O(timeout) nothing else is promoted or started, because it still may.
  - Poolers and the other standbys are not touched; M(pgfleet.ops.pgbouncer_databases) and M(pgfleet.ops.pg_follow) lead them to the new primary.
  - Where the candidate is the only primary already, nothing is changed. This is HandyRep's C(promote), with the proof that it did not ask for.
options:
  candidate:
    description: Name of the node in O(nodes) that becomes the primary.
    type: str
    required: true
  fenced:
    description:
      - Names of nodes that you vouch for. Each is fenced for good, powered off or cut off from all clients, and cannot come back as a primary.
      - Only for a node whose host cannot be asked. It is stated in RV(proof) and in a warning; it allows nothing where the node, or its host, says otherwise.
    type: list
    elements: str
    default: []
  max_data_loss_bytes:
    description:
      - The candidate may have so many bytes of WAL less than another member is known to have; they are lost.
      - What a crashed or fenced primary had written beyond its last checkpoint is not known; a warning says so.
    type: int
    default: 0
  timeout:
    description: How long the candidate may take to end its recovery, in seconds.
    type: float
    default: 60
  if_primary:
    description: What to do when the candidate is the primary already.
    type: str
    choices: [unchanged, fail]
    default: unchanged
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.members
notes:
  - The login must be a superuser; all nodes are asked with the same one.
  - The host that runs the module needs PostgreSQL connections to all nodes and, for each node that is elsewhere, its C(shell).
  - Of O(nodes), name, host, port, address, data_directory and shell count here; M(pgfleet.ops.pg_switchover), which takes the same list, needs the others.
  - A host whose word counts as proof for a node that is down must have the address O(nodes[].host) or O(nodes[].address), so that a shell to the wrong host
    proves nothing.
  - PostgreSQL 13 and later.
seealso:
  - module: pgfleet.ops.pg_switchover
  - module: pgfleet.ops.pg_follow
  - module: pgfleet.ops.pgbouncer_databases
  - module: pgfleet.ops.pg_cluster_info
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Promote db2 after db1 has crashed; its host is still there
  pgfleet.ops.pg_promote:
    candidate: db2
    login_password: "{{ superuser_password }}"
    nodes:
      - {name: db1, host: db1.example.com, data_directory: /var/lib/postgresql/17/main, shell: [ssh, db1.example.com, sudo, -n, -u, postgres]}
      - {name: db2, host: db2.example.com, shell: [ssh, db2.example.com, sudo, -n, -u, postgres]}
      - {name: db3, host: db3.example.com, shell: [ssh, db3.example.com, sudo, -n, -u, postgres]}
  delegate_to: localhost

- name: Promote db2 after the host of db1 was powered off
  pgfleet.ops.pg_promote:
    candidate: db2
    fenced: [db1]
    login_password: "{{ superuser_password }}"
    nodes: "{{ nodes }}"
  delegate_to: localhost
"""

RETURN = r"""
primary:
  description: Name of the primary afterwards, null if there is none, as in check mode.
  returned: success
  type: str
  sample: db2
timeline:
  description: The primary's timeline afterwards.
  returned: success
  type: int
  sample: 2
timeline_before:
  description: The candidate's timeline before.
  returned: success
  type: int
  sample: 1
proof:
  description:
    - For each other member why it is no primary, by C(kind) and C(text).
    - Kinds are V(standby), V(fenced_down), V(vouched) and, before it is fenced, V(down).
  returned: always, for the members that there is proof for
  type: dict
  sample: {db1: {kind: fenced_down, text: "no server works in its data directory, and standby.signal is there"}}
missing_bytes:
  description: Bytes of WAL that another member is known to have and the candidate has not.
  returned: success
  type: int
  sample: 0
to_follow:
  description: Names of standbys that answer and do not stream from the new primary, to be led there by M(pgfleet.ops.pg_follow).
  returned: success
  type: list
  elements: str
  sample: [db3]
cluster:
  description: The cluster afterwards, as M(pgfleet.ops.pg_cluster_info) returns it.
  returned: success, and failure where it is known
  type: dict
warnings_found:
  description: What an operator should look at, although nothing failed.
  returned: success
  type: list
  elements: str
findings:
  description: Every reason why the candidate was not promoted.
  returned: when it was refused
  type: list
  elements: str
still_fenced:
  description: Nodes that this run fenced and could not take the fence back from, although nothing was promoted.
  returned: failure, if there are such
  type: list
  elements: str
plan:
  description: The steps; the same list in check mode.
  returned: always
  type: list
  elements: str
performed:
  description: The steps that were done.
  returned: always
  type: list
  elements: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.promote import PROMOTE, PromoteOperation


def main() -> None:
    run(PromoteOperation, PROMOTE)


if __name__ == "__main__":
    main()
