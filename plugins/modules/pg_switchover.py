# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_switchover
short_description: Move the primary of a cluster to a standby without client errors
version_added: "0.1.0"
description:
  - Makes O(candidate) the primary, leads the poolers to it and lets the old primary and all other standbys follow it, without a copy.
  - One process holds every connection before it begins. Clients of a pooler in transaction mode see a pause of about a tenth of a second
    and no error; nothing that was committed is lost.
  - Whatever can be refused is refused before the first pause, with all reasons at once and nothing changed.
  - The candidate is promoted only after the old primary is fenced by C(standby.signal), has shut down cleanly, and the candidate has replayed
    its shutdown checkpoint.
  - A guardian on the host of each pooler and of the old primary puts its part back when this process fails, is killed or hangs. No pooler stays
    paused longer than O(timeout), and two nodes never accept writes.
  - Where the candidate is the primary already, an interrupted switchover is finished; where nothing is left to do, nothing is changed.
options:
  candidate:
    description: Name of the node in O(nodes) that becomes the primary.
    type: str
    required: true
  lag_limit_bytes:
    description: A candidate that is further behind is refused, in bytes.
    type: int
    default: 16777216
  transaction_limit:
    description: A transaction on the primary that is open longer is a reason to refuse, in seconds, because every client would wait for it.
    type: float
    default: 5
  prepare_timeout:
    description: The longest time in seconds for the checkpoints before anything is paused, and for finishing an interrupted switchover.
    type: float
    default: 300
  if_primary:
    description: What to do when the candidate is the primary already and nothing is left to finish.
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
  - The host that runs the module needs PostgreSQL connections to all nodes, a console on all poolers, and, for each node and pooler that is elsewhere,
    its C(shell). The hosts of the poolers must reach the primary and the candidate under the same names as this host.
  - PostgreSQL 13 and later, PgBouncer 1.18 and later.
seealso:
  - module: pgfleet.ops.pg_cluster_info
  - module: pgfleet.ops.pgbouncer_databases
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Move the primary to db2
  pgfleet.ops.pg_switchover:
    candidate: db2
    login_password: "{{ superuser_password }}"
    nodes:
      - {name: db1, host: db1.example.com, method: systemd, shell: [ssh, db1.example.com, sudo, -n]}
      - {name: db2, host: db2.example.com, method: systemd, shell: [ssh, db2.example.com, sudo, -n]}
    poolers:
      - name: pooler1
        host: pooler1.example.com
        config_file: /etc/pgbouncer/databases.ini
        shell: [ssh, pooler1.example.com, sudo, -n, -u, postgres]
    pooler_user: pgbouncer_admin
    pooler_password: "{{ pooler_password }}"
  delegate_to: localhost
"""

RETURN = r"""
primary:
  description: Name of the primary afterwards.
  returned: success
  type: str
  sample: db2
old_primary:
  description: Name of the node that was the primary.
  returned: when the primary was moved
  type: str
  sample: db1
paused_ms:
  description: Milliseconds from the first PAUSE to the last RESUME.
  returned: when the primary was moved
  type: float
  sample: 96.4
timing_ms:
  description: Milliseconds of each part, in order.
  returned: when the primary was moved
  type: dict
  sample: {connect: 310.0, checkpoint: 84.1, catch_up: 0.6, fence: 1.2, wait_for_logins: 0.9, pause: 2.4, reload: 3.1, stop: 24.2, promote: 48.9, resume: 0.7}
timeline:
  description: The primary's timeline afterwards.
  returned: success
  type: int
  sample: 2
timeline_before:
  description: The old primary's timeline.
  returned: when the primary was moved
  type: int
  sample: 1
cluster:
  description: The cluster afterwards, as M(pgfleet.ops.pg_cluster_info) returns it.
  returned: success, and failure where it is known
  type: dict
poolers:
  description: For each pooler, where its entries lead on disk.
  returned: success
  type: dict
warnings_found:
  description: What an operator should look at, although nothing failed.
  returned: success
  type: list
  elements: str
findings:
  description: Every reason why the switchover was not begun.
  returned: when it was refused
  type: list
  elements: str
recovery:
  description: What each guardian did to put its part back.
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
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.switchover import SWITCHOVER, Switchover


def main() -> None:
    run(Switchover, SWITCHOVER)


if __name__ == "__main__":
    main()
