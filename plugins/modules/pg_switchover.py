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
    description: A transaction on the primary that is open longer is too long, in seconds, because every client would wait for it.
    type: float
    default: 5
  long_transactions:
    description:
      - What to do when a transaction is open longer than O(transaction_limit). It is looked for at first and again right before the first pause.
      - V(refuse) names each with process, user, application, age and since when it is open.
      - V(wait) waits until there is none, at most O(wait_timeout).
      - V(terminate) ends the sessions that hold them, right before the first pause; each of their clients gets an error. No other session is ended.
      - V(ignore) goes on. Where such a transaction is a pooler's and does not end within O(pause_timeout), everything is rolled back; where it is no
        pooler's, the stop of the primary ends it.
    type: str
    choices: [refuse, wait, terminate, ignore]
    default: refuse
  session_pools:
    description:
      - What to do when a pooler pools by session for an entry that leads to the cluster. A pause of it would wait until all its clients have gone.
      - With V(terminate), their connections are ended once everything else is paused, and each client gets one error. One that connects again at once
        waits until the candidate is the primary.
    type: str
    choices: [refuse, terminate]
    default: refuse
  synchronous:
    description:
      - What to do when commits on the candidate would wait for ever, because its C(synchronous_standby_names) wants more standbys than will stream from it.
      - With V(ignore), commits wait until the setting is changed.
    type: str
    choices: [refuse, ignore]
    default: refuse
  archive_behind:
    description:
      - What to do when archiving on the primary fails, or more than O(archive_lag_limit) files of WAL wait for it. Nobody archives later what the old primary
        has not archived when it stops, so that the archive has a gap, and the old primary can start as a standby only when its archiver has ended.
      - V(wait) waits until the archiver has caught up, at most O(wait_timeout).
    type: str
    choices: [refuse, wait, ignore]
    default: refuse
  archive_lag_limit:
    description: How many files of WAL may wait to be archived.
    type: int
    default: 16
  foreign_slots:
    description:
      - What to do when the primary has replication slots that the candidate lacks, other than those of O(nodes), logical ones (their subscribers cannot go on
        at the new primary) or physical ones, of a backup server for example. Each is named with what it holds.
      - A slot that the candidate has, too, is no reason; from PostgreSQL 17 on a logical one must be synced from the primary.
      - With V(ignore) they stay on the old primary, where they hold WAL until they are dropped. The primary does not stop before the users of slots that are
        in use have received everything.
    type: str
    choices: [refuse, ignore]
    default: refuse
  wait_timeout:
    description: How long all that is waited for before the first pause may take together, in seconds.
    type: float
    default: 60
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
  sample: {connect: 310.0, checkpoint: 84.1, catch_up: 0.6, warm_up: 14.2, fence: 1.2, prove_files: 9.8, close_idle: 553.1, wait_for_logins: 0.9, pause: 2.4,
    write_files: 1.1, stop: 22.0, replay: 0.4, promote: 44.6, reload: 0.8, resume: 0.3, check_poolers: 1.9}
timeline:
  description: The primary's timeline afterwards.
  returned: success
  type: int
  sample: 2
terminated_sessions:
  description: How many sessions were ended because their entry pools by session, by pooler and entry.
  returned: when O(session_pools=terminate) and it came that far
  type: dict
  sample: {pooler1: {orders: 12}}
terminated:
  description: The sessions that were ended because their transaction was too long, each with pid, user, application_name, started_at and seconds.
  returned: when O(long_transactions=terminate) and it came that far
  type: list
  elements: dict
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
