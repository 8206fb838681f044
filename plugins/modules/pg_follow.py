# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_follow
short_description: Lead a running standby to another upstream
version_added: "0.1.0"
description:
  - Sets C(primary_conninfo) and C(primary_slot_name) of one standby by C(ALTER SYSTEM) and a reload, and waits until it streams from the new
    upstream, on its timeline. Neither server is restarted.
  - The upstream may be the primary or a standby (a cascade). Keywords of C(primary_conninfo) that no option names stay as they are.
  - Whatever would keep the standby from streaming there is looked for first, and then nothing is changed. It refuses a primary, an upstream of another
    cluster, the standby itself under whatever name, a loop, an upstream on an older timeline, a standby that has WAL which is not in the upstream's history
    (M(pgfleet.ops.pg_clone) makes that one anew), WAL that the upstream has removed, and a replication user that the upstream does not know.
  - Where it does not stream within O(timeout) all the same, both settings are put back and a slot that was made is removed.
  - This is HandyRep's C(remaster) and C(push_replica_conf).
options:
  upstream_host:
    description: Name or address of the server to stream from. It is asked from the host that runs this module, with the same login as the standby.
    type: str
    required: true
  upstream_port:
    description: The upstream's port.
    type: int
    default: 5432
  upstream_address:
    description: Name or address where the standby reaches the upstream, if that is not O(upstream_host). It goes into C(primary_conninfo).
    type: str
  slot_name:
    description:
      - A physical replication slot on the upstream for this standby.
      - Without this option the standby keeps the name of the slot that it uses now, or none if it uses none.
    type: str
  create_slot:
    description: Create the slot on the upstream if it is missing, and anew if it has lost WAL. With V(false) that is refused.
    type: bool
    default: true
  drop_old_slot:
    description:
      - Once the standby streams, drop the slot that it used on the upstream before, which would hold WAL there for ever.
      - Where that server cannot be asked, or something else uses the slot, there is a warning and the slot stays.
    type: bool
    default: true
  application_name:
    description: What the standby calls itself on the upstream.
    type: str
  replication_user:
    description:
      - The role that streams.
      - Without this option the one in C(primary_conninfo) stays; where there is none, it is V(replication).
    type: str
  replication_passfile:
    description: A libpq password file on the standby's host with the password of that role. Its path goes into C(primary_conninfo).
    type: path
  replication_connect_params:
    description:
      - Further libpq connection keywords for C(primary_conninfo), for example C(sslmode).
      - A C(password) is refused, because it would be written to C(postgresql.auto.conf) and to the server's log.
    type: dict
    default: {}
  timeout:
    description: How long to wait for streaming, in seconds, before everything is put back.
    type: float
    default: 60
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - The login options lead to the standby (O(login_host), O(login_port)). The login must be a superuser.
  - The login of the replication user is tried beforehand where the module runs on the standby's host as the user of the server. Elsewhere it would prove
    nothing, because C(pg_hba.conf) and passfiles are about the standby's host.
  - Where C(primary_conninfo) is empty, O(ssl_mode) and O(ca_cert) count for it too.
  - A C(primary_conninfo) that holds a password is refused, because servers print changes of it to their logs.
  - PostgreSQL 13 and later.
seealso:
  - module: pgfleet.ops.pg_clone
  - module: pgfleet.ops.pg_switchover
  - module: pgfleet.ops.pg_cluster_info
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Let db3 stream from db2
  pgfleet.ops.pg_follow:
    login_host: db3.example.com
    login_user: postgres
    login_password: "{{ superuser_password }}"
    upstream_host: db2.example.com
    slot_name: db3
  delegate_to: localhost

- name: Name another passfile, and leave the upstream as it is
  pgfleet.ops.pg_follow:
    login_unix_socket: /var/run/postgresql
    login_user: postgres
    upstream_host: db1.example.com
    replication_passfile: /var/lib/postgresql/replication.pgpass
  become: true
  become_user: postgres
"""

RETURN = r"""
upstream_before:
  description: The address that the standby streamed from, or was told to, null if there was none.
  returned: success
  type: str
  sample: db1.example.com:5432
upstream:
  description: The address that the standby streams from afterwards; in check mode the same as RV(upstream_before).
  returned: success
  type: str
  sample: db2.example.com:5432
upstream_role:
  description: V(primary), or V(standby) for a cascade.
  returned: success
  type: str
  sample: primary
upstream_timeline:
  description: The upstream's timeline.
  returned: success
  type: int
  sample: 2
slot_name:
  description: The slot that the standby uses afterwards, null if it uses none.
  returned: success
  type: str
  sample: db3
dropped_slot:
  description: The slot that was dropped on the upstream before, null if there was none to drop.
  returned: success
  type: str
  sample: db3 on db1.example.com:5432
streaming:
  description: Whether the standby streams from the upstream that the options name.
  returned: success
  type: bool
  sample: true
timeline:
  description: The standby's timeline.
  returned: success
  type: int
  sample: 2
received_lsn:
  description: The last position that the standby holds.
  returned: success
  type: str
  sample: 0/5000148
replayed_lsn:
  description: The last position that the standby has replayed.
  returned: success
  type: str
  sample: 0/5000148
system_identifier:
  description: The cluster's system identifier.
  returned: success
  type: str
  sample: "7710960669273728883"
warnings_found:
  description: What an operator should look at, although nothing failed.
  returned: success
  type: list
  elements: str
undone:
  description: What was put back. RV(ignore:error) is then V(RolledBack).
  returned: when it did not stream in time
  type: list
  elements: str
  sample: [primary_conninfo put back, primary_slot_name put back, slot db3 removed]
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
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.follow import FOLLOW, FollowOperation


def main() -> None:
    run(FollowOperation, FOLLOW)


if __name__ == "__main__":
    main()
