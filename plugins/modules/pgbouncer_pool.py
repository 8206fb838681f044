# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_pool
short_description: Pause, resume, disable and reconnect databases of one or many PgBouncer poolers
version_added: "0.1.0"
description:
  - Pauses poolers within O(timeout) or not at all. Where one of them is held up by a transaction, everything that was paused is resumed
    and the failure names who holds it up.
  - Resumes a pooler only towards a server that is proved to be what O(verify_role) says, by default the primary.
  - Works on all poolers at once, and all of them together take no longer than one of them.
  - A pause lasts until something ends it, which is what this module is for. With O(max_pause) it ends by itself.
options:
  login_host:
    description:
      - Name, address or socket directory of the pooler.
      - Without this option the environment variable E(PGHOST) counts, then libpq's own default.
    type: str
  login_port:
    description: Port of the pooler; environment variable E(PGPORT), then V(6432).
    type: int
  login_db:
    description: Has no effect; the console's database is always C(pgbouncer).
    type: str
  login_unix_socket:
    description: Directory of the pooler's socket. Wins over O(login_host).
    type: str
  poolers:
    description:
      - The poolers, instead of the one of O(login_host).
      - What an entry leaves out comes from the module's own connection options.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the pooler in the result; by default its host and port. Unique in the list.
        type: str
      login_host:
        description: Name, address or socket directory.
        type: str
      login_port:
        description: Port.
        type: int
      login_unix_socket:
        description: Socket directory. Wins over O(poolers[].login_host).
        type: str
      login_user:
        description: User of the console.
        type: str
      login_password:
        description: Password of O(poolers[].login_user).
        type: str
  state:
    description:
      - V(paused) lets transactions end, closes the server connections and has clients wait. In session mode it waits for the end of sessions.
      - V(running) resumes what is paused and enables what is disabled.
      - V(disabled) refuses new clients. Those that are in stay.
      - V(reconnected) has each server connection closed as soon as it is free, so that new ones are opened. It always changes.
    type: str
    choices: [paused, running, disabled, reconnected]
    required: true
  databases:
    description:
      - Names of entries, as C(SHOW DATABASES) has them; every pooler must have each of them.
      - Without this option V(paused) pauses each pooler as a whole, with whatever its entry V(*) serves; V(running) ends that and resumes and enables
        each database; V(disabled) disables each database that is there.
    type: list
    elements: str
  timeout:
    description:
      - Seconds for all poolers together to be paused, or to do whatever else is wanted.
      - The questions before and after that have as long again, each time.
    type: float
    default: 5
  on_timeout:
    description:
      - What to do when a pause has not ended in time. V(resume) takes it back everywhere.
      - V(kill) ends the connections of the databases that are not paused by then, clients and transactions included, and leaves them paused.
    type: str
    choices: [resume, kill]
    default: resume
  max_pause:
    description:
      - For O(state=paused), resume after this many seconds whatever this task has paused and is paused still, also when nobody does it.
      - A process on the host that runs the module sees to that. It outlives the task, and does not outlive that host or, for a task
        that runs in one, the container. It asks for no proof, so for a change of the primary use M(pgfleet.ops.pg_switchover).
      - A pause that was there before the task is left alone, with whatever limit it has.
    type: float
  unreachable:
    description:
      - What to do when a pooler does not answer. V(fail) fails before anything is changed on any of them, V(skip) does the others and warns.
      - It fails in any case when none answers, and when one answers and does not let the login in.
    type: str
    choices: [fail, skip]
    default: fail
  verify_role:
    description:
      - For O(state=running), what the server behind each entry must be before that is resumed or enabled. Where one is not, nothing is changed.
      - The server is asked at the address to which the entry leads, from the host that runs the module, and once more through the pooler
        after the resume. An entry that leads elsewhere then is paused or disabled again.
      - With V(primary) an entry of O(readonly_suffix) or O(readonly_databases) may lead to any server that answers.
      - V(any) asks nothing.
    type: str
    choices: [primary, standby, any]
    default: primary
  verify_user:
    description: Who asks the servers, a role that may connect to each of these databases; by default the user of the console.
    type: str
  verify_password:
    description: Password of O(verify_user).
    type: str
  readonly_suffix:
    description: Entries whose name ends like this, or like this and a number, need not lead to the primary.
    type: str
    default: _ro
  readonly_databases:
    description: Names of further entries that need not lead to the primary.
    type: list
    elements: str
    default: []
  nodes:
    description:
      - Every node of the cluster. With it the proof is that the entry leads to the one of them that is the primary, and that there is
        no second one. Nothing else is asked at the addresses of the entries.
      - Use it where those addresses mean nothing on the host that runs the module.
    type: list
    elements: dict
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
        description: Name or address that the poolers use for it, if that is not O(nodes[].host).
        type: str
      priority:
        description: Has no effect here.
        type: int
        default: 100
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
attributes:
  idempotent:
    support: partial
    details: O(state=reconnected) always changes.
notes:
  - The login must be one of PgBouncer's C(admin_users).
  - A second process watches over each pause until the task has ended. When the task is killed in the middle, that process resumes what it had paused.
  - No version before 1.19 shows whether the pooler as a whole is paused. There the console is asked to pause its own database, which PgBouncer always
    refuses, for another reason when the pooler is paused. It writes a line to its log each time.
  - In a paused pooler an entry V(*) can be named only for the databases that clients have connected to, and PgBouncer forgets those that nobody uses,
    also while they are paused. Pause the pooler as a whole instead. What V(*) serves is proved only for the databases that are there.
  - PgBouncer forgets every pause, and what is disabled, when it is restarted.
seealso:
  - module: pgfleet.ops.pgbouncer_info
  - module: pgfleet.ops.pgbouncer_databases
  - module: pgfleet.ops.pg_switchover
  - name: PgBouncer's admin console
    description: Meaning of each command.
    link: https://www.pgbouncer.org/usage.html#process-controlling-commands
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Hold all clients of two poolers, in two seconds or not at all, and for a minute at most
  pgfleet.ops.pgbouncer_pool:
    state: paused
    poolers:
      - {name: pool1, login_host: pool1.example.com}
      - {name: pool2, login_host: pool2.example.com}
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    timeout: 2
    max_pause: 60

- name: Let them go on, towards the primary only
  pgfleet.ops.pgbouncer_pool:
    state: running
    poolers:
      - {name: pool1, login_host: pool1.example.com}
      - {name: pool2, login_host: pool2.example.com}
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    verify_user: app
    verify_password: "{{ app_password }}"
    nodes:
      - {name: db1, host: db1.example.com}
      - {name: db2, host: db2.example.com}

- name: Let no new clients of one application in
  pgfleet.ops.pgbouncer_pool:
    state: disabled
    databases: [app, app_ro]
    login_host: 127.0.0.1
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
"""

RETURN = r"""
poolers:
  description: One entry for each pooler, in the order of O(poolers).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The pooler's name, or its host and port.
      returned: always
      type: str
    host:
      description: Host that was asked; empty for libpq's default.
      returned: always
      type: str
    port:
      description: Port that was asked.
      returned: always
      type: int
    reachable:
      description: Whether the pooler answered.
      returned: always
      type: bool
    reason:
      description: Why it was skipped.
      returned: when not reachable
      type: str
    version:
      description: PgBouncer's version.
      returned: when reachable
      type: str
      sample: 1.18.0
    paused:
      description: Whether the pooler is paused as a whole.
      returned: when reachable
      type: bool
    paused_databases:
      description: Databases that are paused by name.
      returned: when reachable
      type: list
      elements: str
    disabled_databases:
      description: Databases that take no new clients.
      returned: when reachable
      type: list
      elements: str
all_reachable:
  description: Whether every pooler answered.
  returned: success
  type: bool
killed:
  description: Names of the poolers on which O(on_timeout=kill) ended connections.
  returned: success
  type: list
  elements: str
holders:
  description: Who held up a pause until the time limit, the oldest request first.
  returned: when a pause did not end in time
  type: list
  elements: dict
  contains:
    pooler:
      description: The pooler's name.
      returned: always
      type: str
    database:
      description: The database.
      returned: always
      type: str
    user:
      description: User of the client.
      returned: always
      type: str
    address:
      description: Address and port of the client.
      returned: always
      type: str
      sample: 10.0.0.7:53574
    application_name:
      description: The client's C(application_name).
      returned: always
      type: str
    since:
      description: When the client's last request came, as PgBouncer prints it.
      returned: always
      type: str
    connected_since:
      description: When the client connected.
      returned: always
      type: str
    server_pid:
      description: Process id of the server connection, as in C(pg_stat_activity).
      returned: always
      type: int
    server_state:
      description: State of the server connection in C(SHOW SERVERS).
      returned: always
      type: str
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
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.pgbouncer_pool import PGBOUNCER_POOL, PoolState


def main() -> None:
    run(PoolState, PGBOUNCER_POOL)


if __name__ == "__main__":
    main()
