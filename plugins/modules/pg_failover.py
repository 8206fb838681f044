# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_failover
short_description: Replace a primary that is lost by the best standby, and lead the poolers there
version_added: "0.1.0"
description:
  - Makes the standby that has received most the primary, leads the poolers to it and lets the other standbys follow.
  - A primary counts as lost only where nobody reaches it. This host, the hosts of the standbys and of the poolers, the standbys' receivers and the
    poolers' traffic are asked, several times; what each of them saw is in the result.
  - That nobody reaches it is no proof that it is down. Its host has to say that no server works there, or its server is ended there, or you vouch
    for it with O(fenced). Otherwise nothing is changed, and the failure says what would be needed.
  - What may be lost is stated before, and refused where it is more than O(max_data_loss_bytes).
  - The poolers hold their clients back while it runs. Guardians on their hosts lead them to whichever node accepts writes, also when this process is killed.
  - The old primary is left fenced by C(standby.signal). M(pgfleet.ops.pg_clone) brings it back as a standby.
  - Where a primary answers, nothing is changed but what an interrupted failover has left.
options:
  candidate:
    description: The standby that is to be the primary. Without it the one that has received most, by O(nodes[].priority) where several have the same.
    type: str
  exclude:
    description: Names of standbys that are not to be promoted.
    type: list
    elements: str
    default: []
  fenced:
    description:
      - Names of nodes that you have fenced for good, powered off or cut off from every client, and whose host cannot be asked.
      - One of these that is reached after all is a reason to refuse.
    type: list
    elements: str
    default: []
  if_reached:
    description:
      - What to do where this host does not reach the primary and somebody else does.
      - V(refuse) leaves it alone.
      - V(fence) ends its server on its own host first. It needs O(nodes[].data_directory) and, on another host, O(nodes[].shell).
    type: str
    choices: [refuse, fence]
    default: refuse
  max_data_loss_bytes:
    description:
      - How much WAL that somebody is known to have may be lost, in bytes. With 0 it must also be known that there is no more.
      - Without it 0 where C(synchronous_standby_names) of the candidate is set, which must be the same on all nodes, and 1 MB otherwise.
      - What a crashed primary has on its disk is counted where its host can be asked and C(pg_waldump) is there.
    type: int
  tries:
    description: How often the primary must not answer.
    type: int
    default: 3
  delay:
    description: Seconds between two tries.
    type: float
    default: 1
  answer_timeout:
    description: How long a server or a host may take for one answer, in seconds. All are asked at once.
    type: float
    default: 5
  promote_timeout:
    description: The longest time in seconds for the promotion itself. A standby replays all that it has received first.
    type: float
    default: 60
  unreachable_poolers:
    description: Whether a pooler that cannot be asked is left as it is, with a warning, or a reason to refuse. One that is left leads its clients nowhere.
    type: str
    choices: [skip, fail]
    default: skip
  if_primary:
    description: What to do where a primary answers and nothing is left to finish.
    type: str
    choices: [unchanged, fail]
    default: unchanged
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.members
  - pgfleet.ops.poolers
notes:
  - The login must be a superuser; all nodes are asked with the same one.
  - Also needed for a node that does not answer is its O(nodes[].data_directory).
  - PostgreSQL 13 and later, PgBouncer 1.18 and later.
seealso:
  - module: pgfleet.ops.pg_switchover
  - module: pgfleet.ops.pg_promote
  - module: pgfleet.ops.pg_clone
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Replace the primary if it is lost
  pgfleet.ops.pg_failover:
    login_password: "{{ superuser_password }}"
    nodes:
      - {name: db1, host: db1.example.com, method: systemd, data_directory: /var/lib/postgresql/15/main, shell: [ssh, db1.example.com, sudo, -n]}
      - {name: db2, host: db2.example.com, method: systemd, data_directory: /var/lib/postgresql/15/main, shell: [ssh, db2.example.com, sudo, -n]}
    poolers:
      - name: pooler1
        host: pooler1.example.com
        config_file: /etc/pgbouncer/databases.ini
        shell: [ssh, pooler1.example.com, sudo, -n, -u, postgres]
    pooler_user: pgbouncer_admin
    pooler_password: "{{ pooler_password }}"
  delegate_to: localhost

- name: Replace a primary whose host has been switched off
  pgfleet.ops.pg_failover:
    fenced: [db1]
    login_password: "{{ superuser_password }}"
    nodes: "{{ cluster_nodes }}"
    poolers: "{{ cluster_poolers }}"
  delegate_to: localhost
"""

RETURN = r"""
primary:
  description: Name of the primary afterwards.
  returned: success
  type: str
  sample: db2
old_primary:
  description: Name of the node that was the primary, where that is known.
  returned: success
  type: str
  sample: db1
timeline:
  description: The primary's timeline afterwards.
  returned: success
  type: int
  sample: 2
opinions:
  description: What each observer saw of each node that did not answer.
  returned: when no primary answered
  type: list
  elements: dict
  sample: [{observer: the host of db2, about: db1, answer: refused, reaches: false, text: "the host of db2: its host says that nothing listens there"}]
proof:
  description: For every other member, why it is no primary.
  returned: when no primary answered
  type: dict
data_loss:
  description: What may have been lost. C(bytes) of WAL are known to be missing, C(known) is whether there can be no more, C(limit) is what was allowed.
  returned: when no primary answered
  type: dict
  sample: {bytes: 0, known: true, limit: 0, text: every commit has waited for a standby that answers}
paused_ms:
  description: Milliseconds from the first PAUSE to the last RESUME.
  returned: when poolers were led to a new primary
  type: float
timing_ms:
  description: Milliseconds of each part, in order.
  returned: when a standby was promoted
  type: dict
poolers:
  description: For each pooler, where its entries lead on disk.
  returned: success
  type: dict
poolers_left:
  description: Poolers that do not lead to the new primary, and why.
  returned: success
  type: dict
to_rejoin:
  description: Nodes that do not stream, for M(pgfleet.ops.pg_clone).
  returned: success
  type: list
  elements: str
  sample: [db1]
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
  description: Every reason why the failover was not begun.
  returned: when it was refused
  type: list
  elements: str
needs_fencing:
  description: Nodes whose fencing by other means is all that is missing. Fence them, and name them in O(fenced).
  returned: when it was refused
  type: list
  elements: str
  sample: [db1]
recovery:
  description: What was put back, and where the poolers lead.
  returned: when it failed after it had begun
  type: dict
phase:
  description: How far it came.
  returned: failure
  type: str
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
error:
  description: Class of the error.
  returned: failure
  type: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.failover import FAILOVER, Failover


def main() -> None:
    run(Failover, FAILOVER)


if __name__ == "__main__":
    main()
