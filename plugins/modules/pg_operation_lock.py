# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_operation_lock
short_description: Hold, release or show the operation lock of a cluster on one host
version_added: "0.1.0"
description:
  - An operation lock keeps a second controller from working on a cluster at the same time. It says who holds it, for what, since when and until when.
  - This module takes, renews, releases or shows the lock on the host where it runs. One host is not enough, because it may be the one that is
    down. Run the module on every host of the cluster, nodes and poolers, and work only with the majority of them; a host that does not answer
    counts as not held. The playbooks of this collection do so, and a cluster of two hosts needs a third for it.
  - A lock ends by itself O(ttl) seconds after it was taken or renewed, so a holder that is dead is no problem for long. The time is counted by a
    clock that nobody sets, and a restart of the host ends its locks.
  - No database is asked or changed. This is for HandyRep's C(check_last_ip_db), C(one_hr_master) and its file of the process number.
options:
  cluster:
    description: The name of the cluster. Each cluster has locks of its own.
    type: str
    required: true
  member:
    description:
      - The name of the cluster's member whose host this is, in the playbooks the inventory name.
      - Several members on one machine have locks of their own by it.
    type: str
  state:
    description:
      - V(held) takes the lock, or fails and says who has it. Who holds it already renews it by this once less than half of O(ttl) is left, and
        otherwise nothing is changed.
      - V(released) gives it back. A lock that is not there is no change, the lock of another holder is refused.
      - V(shown) only says what is there.
    type: str
    choices: [held, released, shown]
    default: held
  holder:
    description:
      - Which run holds the lock, a text that no other run uses. The same on all hosts. It is no secret.
      - Needed for O(state=held), and for O(state=released) without O(force).
    type: str
  operation:
    description: What is done under the lock, for those who are refused. Needed for O(state=held).
    type: str
  owner:
    description:
      - Who holds the lock, for those who are refused, for example C(user@controller) and the number of a job.
      - Without it the user and the host name of where the module runs.
    type: str
  ttl:
    description: Seconds after which the lock ends if it is not renewed, at most 604800. Longer than the operation takes.
    type: int
    default: 600
  wait:
    description: Seconds to wait for another holder to release the lock or for its lock to end. Check mode does not wait.
    type: int
    default: 0
  force:
    description:
      - With O(state=released), release the lock whoever holds it, and remove one that cannot be understood.
      - For people who have seen that the other operation does not run any more. Nothing else keeps two operations apart.
    type: bool
    default: false
  directory:
    description:
      - Where the locks are. It is made if it is missing, not its parents. All operations on the host must use the same one.
      - Only root or the user of the task may own it, and nobody else may write in it. The default needs root.
      - Below C(/run) locks do not outlive a restart; elsewhere their files do, and count as ended.
    type: path
    default: /run/pgfleet
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
attributes:
  check_mode:
    details: Check mode takes nothing, and fails as a real run would when somebody else holds the lock.
notes:
  - Works on Linux. Needs no psycopg.
  - A lock file that cannot be read or understood is a failure and never counts as free.
seealso:
  - module: pgfleet.ops.pg_switchover
  - module: pgfleet.ops.pg_cluster_info
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Who works on the cluster
  pgfleet.ops.pg_operation_lock:
    cluster: shop
    member: "{{ inventory_hostname }}"
    state: shown

- name: Take the lock on this host
  pgfleet.ops.pg_operation_lock:
    cluster: shop
    member: "{{ inventory_hostname }}"
    holder: "{{ run_id }}"
    operation: clone of db3
    owner: ops@controller, job 4711
    ttl: 3600
  become: true

- name: Give it back
  pgfleet.ops.pg_operation_lock:
    cluster: shop
    member: "{{ inventory_hostname }}"
    holder: "{{ run_id }}"
    state: released
  become: true

- name: Remove what a controller left that was switched off
  pgfleet.ops.pg_operation_lock:
    cluster: shop
    member: "{{ inventory_hostname }}"
    state: released
    force: true
  become: true
"""

RETURN = r"""
cluster:
  description: The name of the cluster.
  returned: success
  type: str
  sample: shop
member:
  description: The member whose host this is, null if not given.
  returned: success
  type: str
  sample: db1
held:
  description: Whether anybody holds the lock on this host now.
  returned: success
  type: bool
  sample: true
lock:
  description: The lock that is held now, null when it is free. Also when the module is refused because of it.
  returned: success, and when another holds the lock
  type: dict
  contains:
    holder:
      description: Which run holds it.
      type: str
      sample: 6x0p3t1rq8zk
    owner:
      description: Who holds it.
      type: str
      sample: ops@controller, job 4711
    operation:
      description: For what.
      type: str
      sample: clone of db3
    since:
      description: When it was taken, in UTC.
      type: str
      sample: "2026-03-01T09:30:00Z"
    until:
      description: When it ends if it is not renewed, in UTC.
      type: str
      sample: "2026-03-01T10:30:00Z"
    seconds_left:
      description: Seconds until then.
      type: int
      sample: 3571
    ttl:
      description: The ttl that it was taken or renewed with, in seconds.
      type: int
      sample: 3600
plan:
  description: The steps that are needed, the same in check mode.
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
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.operation_lock import OPERATION_LOCK, OperationLock


def main() -> None:
    run(OperationLock, OPERATION_LOCK, needs_psycopg=False)


if __name__ == "__main__":
    main()
