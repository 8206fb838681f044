# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_instance
short_description: Start, stop, restart or reload one PostgreSQL instance
version_added: "0.1.0"
description:
  - Makes one instance on this host run or not run, and sees to it that it really does. After a start the server accepts connections,
    after a stop every process is gone and the control file says that the server was shut down.
  - When a start fails, the failure carries the lines that the server logged since.
  - Refuses to start when the port or the socket is taken by another program, and names that program.
  - This is HandyRep's C(startup), C(shutdown) and C(restart) with the plugins C(restart_pg_ctl), C(restart_service) and C(restart_daemontools).
options:
  state:
    description:
      - V(started) and V(stopped) change nothing when it is already so.
      - V(restarted) and V(reloaded) always change, except that V(restarted) with O(only_if_pending_restart=true) looks first.
      - V(restarted) starts a server that is down. V(reloaded) needs one that runs.
    type: str
    choices: [started, stopped, restarted, reloaded]
    default: started
  mode:
    description:
      - How to stop. V(smart) waits for the clients, V(fast) ends their sessions, V(immediate) stops without a checkpoint
        and needs crash recovery afterwards.
    type: str
    choices: [smart, fast, immediate]
    default: fast
  only_if_pending_restart:
    description: Restart only if a setting waits for a restart (C(pg_settings.pending_restart)). Needs a login option, and O(state=restarted).
    type: bool
    default: false
  allow_primary_stop:
    description:
      - Stop or restart a primary also when it has synchronous standbys, or clients by one of O(poolers).
      - Without this the module refuses, as far as the login options and O(poolers) let it ask.
    type: bool
    default: false
  poolers:
    description:
      - Every PgBouncer that may have entries which lead to this instance. When it is a primary, and an entry that leads to it is neither paused nor disabled,
        or a pooler does not tell, it is not stopped or restarted without O(allow_primary_stop).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The pooler's name in messages.
        type: str
        required: true
      host:
        description: Name or address of the pooler, or its socket directory.
        type: str
        required: true
      port:
        description: Port of the pooler.
        type: int
        default: 6432
      user:
        description: A role in the pooler's C(admin_users) or C(stats_users), instead of O(login_user).
        type: str
      password:
        description: Its password, instead of O(login_password).
        type: str
  addresses:
    description:
      - The addresses by which entries of O(poolers) reach this host, as the entries spell them.
      - Without this option an entry leads to this instance when its port is the instance's and its host is, as this host resolves it, an address of this
        host. Name them where a virtual address or a translation lies between.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.instance
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
attributes:
  idempotent:
    support: partial
    details: O(state=reloaded) always changes, and O(state=restarted) does without O(only_if_pending_restart=true).
notes:
  - The login options are optional. With any of them the module also asks the server by SQL, and a server that runs and does not answer afterwards is a failure.
  - The login must lead to the instance of O(data_directory). That is checked by the system identifier.
seealso:
  - module: pgfleet.ops.pg_clone
  - module: pgfleet.ops.pg_cluster_info
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Start Debian's cluster 17/main by its systemd unit
  pgfleet.ops.pg_instance:
    data_directory: /var/lib/postgresql/17/main
  become: true

- name: Restart only if a setting waits for it
  pgfleet.ops.pg_instance:
    data_directory: /var/lib/postgresql/17/main
    method: systemd
    state: restarted
    only_if_pending_restart: true
    login_host: 127.0.0.1
    login_user: postgres
    connect_params:
      passfile: /root/.pgpass
  become: true

- name: Restart a primary only while its poolers hold their clients
  pgfleet.ops.pg_instance:
    data_directory: /var/lib/postgresql/17/main
    state: restarted
    poolers:
      - {name: pool1, host: pool1.example.com, user: pgbouncer_admin, password: "{{ pgbouncer_admin_password }}"}
  become: true

- name: Restart an instance below daemontools
  pgfleet.ops.pg_instance:
    data_directory: /srv/pg/db1/data
    method: command
    start_command: [svc, -u, /service/postgres]
    stop_command: [svc, -d, /service/postgres]
    state: restarted
  become: true

- name: Stop an instance that pg_ctl has started
  pgfleet.ops.pg_instance:
    data_directory: /srv/pg/db1/data
    config_file: /srv/pg/db1/config/postgresql.conf
    method: pg_ctl
    state: stopped
    mode: fast
  become: true
  become_user: postgres
"""

RETURN = r"""
state:
  description: V(running) or V(stopped).
  returned: success
  type: str
  sample: running
pid:
  description: The postmaster's process id, null when it does not run.
  returned: success
  type: int
  sample: 4711
port:
  description: The port of the running server, else null.
  returned: success
  type: int
  sample: 5432
method:
  description: The method that was used, never V(auto).
  returned: success
  type: str
  sample: systemd
unit:
  description: The systemd unit, null with another method.
  returned: success
  type: str
  sample: postgresql@17-main
version:
  description: The server's full version when it could be asked by SQL, else the data directory's major version.
  returned: success
  type: str
  sample: "17.4"
in_recovery:
  description: Whether the running server is a standby. Null when it is down, or recovers and could not be asked.
  returned: success
  type: bool
  sample: false
pending_restart:
  description: The settings that wait for a restart, null when the server could not be asked by SQL.
  returned: success
  type: list
  elements: str
  sample: [shared_buffers]
control_state:
  description: The state in the control file, in the words of C(pg_controldata).
  returned: success
  type: str
  sample: in production
data_directory:
  description: The data directory.
  returned: success
  type: str
  sample: /var/lib/postgresql/17/main
log:
  description: The lines that the server logged since a start or stop that failed.
  returned: failure
  type: list
  elements: str
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
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.instance import PG_INSTANCE, InstanceOperation


def main() -> None:
    # Without login options no psycopg is needed.
    run(InstanceOperation, PG_INSTANCE, needs_psycopg=False)


if __name__ == "__main__":
    main()
