# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_databases
short_description: Databases of a PgBouncer pooler, in its file and at run time
version_added: "0.1.0"
description:
  - Adds, changes and removes entries of the C([databases]) section. Comments, order, other entries and other settings stay as they are, to the byte.
  - Has the pooler read its configuration again (C(RELOAD)) when the file was changed or when the run time differs from it, and verifies with
    C(SHOW DATABASES) that the run time is what the file says. The pooler is never restarted.
  - Runs on the pooler's host, as a user who may write O(config_file) and its directory.
  - With O(nodes) it asks the cluster and leads the entries where its state says, writers to the primary and readers to standbys. Nothing is changed
    unless exactly one node is the primary. This is HandyRep's C(multi_pgbouncer), with O(database_list) for its database list.
  - The switchover modules redirect entries themselves, in step with the rest of a switchover.
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
  config_file:
    description:
      - The file with the C([databases]) section, C(pgbouncer.ini) itself or a file that it includes. It must exist.
      - The task is refused when the pooler reads other files.
    type: path
    required: true
  databases:
    description:
      - The entries. Either this or O(nodes) is needed.
      - Of an entry that exists, keys that are not named here stay as they are.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - The alias that clients connect to, V(*) for all others.
          - Letters, digits and the characters C(_ . -). PgBouncer 1.25 and later also take other characters, but no single quote.
        type: str
        required: true
      state:
        description: Whether the entry is there.
        type: str
        choices: [present, absent]
        default: present
      host:
        description: The server, a name, an address or a socket directory.
        type: str
      port:
        description: The server's port; PgBouncer's default is 5432.
        type: int
      dbname:
        description: The database on the server; PgBouncer's default is the alias.
        type: str
      user:
        description: Connect to the server as this user, whoever the client is. PgBouncer lets go of it only when it is restarted.
        type: str
      password:
        description: Password of O(databases[].user). It never shows in a result or a diff.
        type: str
      auth_user:
        description: User of C(auth_query).
        type: str
      pool_size:
        description: Server connections per user.
        type: int
      min_pool_size:
        description: Server connections to keep open.
        type: int
      reserve_pool:
        description: Additional server connections when clients wait too long.
        type: int
      max_db_connections:
        description: Server connections of all users together.
        type: int
      pool_mode:
        description: When a server connection goes back to the pool.
        type: str
        choices: [session, transaction, statement]
      connect_query:
        description: Query to run on each new server connection.
        type: str
      params:
        description: Further keys of the entry. A null removes a key, also one of those above.
        type: dict
        default: {}
      verify_role:
        description:
          - Prove, after the change, with a query through the alias that it leads to a server of this role.
          - The alias is asked as O(verify_user). An alias that leads elsewhere fails the task; the entries stay as they were set.
        type: str
        choices: [primary, standby]
  nodes:
    description:
      - Every node of the cluster, instead of O(databases). Which of them is the primary is asked, as O(cluster_user), and never told.
      - Without O(database_list) every entry that leads to one of the nodes is led anew, whatever its name. With it entries are made too.
      - Refused when none or more than one is a primary, when one is of another cluster, and when one is on a newer timeline than the primary,
        because then the real primary is the one that does not answer. A node that does not answer is warned of.
    type: list
    elements: dict
    suboptions:
      name:
        description: The node's name, unique in the list.
        type: str
        required: true
      host:
        description: Name or address where the pooler's host reaches the node.
        type: str
        required: true
      port:
        description: The node's port.
        type: int
        default: 5432
      address:
        description: Name or address for the entries, if that is not O(nodes[].host).
        type: str
      priority:
        description: Readers go to the standby with the lowest number first.
        type: int
        default: 100
  cluster_user:
    description: Who asks the nodes, best a member of C(pg_monitor), as others do not see which standby streams; by default O(verify_user).
    type: str
  cluster_password:
    description: Password of O(cluster_user).
    type: str
  database_list:
    description:
      - Names of databases. Each gets an entry of its own name that leads to the primary, and one or more with O(readonly_suffix) for readers.
      - A read-only entry that leads to a standby that streams stays where it is.
    type: list
    elements: str
  readonly_suffix:
    description: What the names of read-only entries end with; a number may follow.
    type: str
    default: _ro
  readonly_databases:
    description: Names of further read-only entries, when O(database_list) is not given.
    type: list
    elements: str
    default: []
  all_replicas:
    description:
      - Make read-only entries for all standbys, with the numbers 1, 2 and so on behind O(readonly_suffix), instead of one.
      - There are as many as the cluster has nodes besides the primary, so that no name comes and goes with a standby. While there are
        fewer standbys, entries share them.
    type: bool
    default: false
  extra_connect_param:
    description: Further keys of the entries of O(database_list), for example V(pool_size=20 application_name='my app').
    type: str
  without_standby:
    description: Where readers go while no standby streams. V(primary) leads them there, as HandyRep does, V(fail) refuses.
    type: str
    choices: [primary, fail]
    default: primary
  verify:
    description: Prove each entry of O(nodes) as O(databases[].verify_role) does.
    type: bool
    default: true
  on_failure:
    description:
      - What to do with the entries for writers that lead elsewhere than to the primary of O(nodes), when they cannot be led there although the
        console answers, because the file cannot be read or written, or the pooler does not follow it, or the proof fails.
      - V(report) only fails. V(disable) also disables these entries and ends their connections, so that no client is served by the wrong server.
      - With V(disable) a later run that leads them to the primary enables them again.
    type: str
    choices: [report, disable]
    default: report
  exclusive:
    description: Remove all entries of O(config_file) that O(databases) or O(database_list) does not stand for, V(*) among them.
    type: bool
    default: false
  unreachable:
    description:
      - What to do when the pooler does not answer.
      - V(skip) changes the file only and warns.
      - A pooler that answers and does not let the login in always fails the task.
    type: str
    choices: [fail, skip]
    default: fail
  verify_user:
    description: Who asks through the aliases for O(databases[].verify_role); by default the user of the console.
    type: str
  verify_password:
    description: Password of O(verify_user).
    type: str
  timeout:
    description: Seconds for each answer of the console, and for all queries of O(databases[].verify_role) together.
    type: float
    default: 5
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - The login must be one of PgBouncer's C(admin_users).
  - Before 1.25 PgBouncer answers a C(RELOAD) with success also when it refuses the file. The module therefore compares host, port, database, user,
    pool sizes and pool mode afterwards. C(SHOW DATABASES) shows neither V(*), nor C(connect_query), nor the settings of a session. These are loaded
    when the file is changed, and a run time that is stale in them alone is not noticed.
  - For many poolers run the task on the host of each, which Ansible does at the same time.
    M(pgfleet.ops.pgbouncer_pool) does what needs all of them at once.
  - In a pooler with an entry V(*) a removed database may go on to exist at run time.
seealso:
  - module: pgfleet.ops.pgbouncer_info
  - module: pgfleet.ops.pgbouncer_pool
  - name: PgBouncer's configuration
    description: Meaning of each key of an entry.
    link: https://www.pgbouncer.org/config.html#section-databases
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Writers to the primary, readers to a standby, and prove it
  pgfleet.ops.pgbouncer_databases:
    login_host: 127.0.0.1
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    config_file: /etc/pgbouncer/databases.ini
    databases:
      - {name: app, host: db1.example.com, dbname: app, verify_role: primary}
      - {name: app_ro, host: db2.example.com, dbname: app, verify_role: standby, pool_size: 40}
    verify_user: app
    verify_password: "{{ app_password }}"
  become: true
  become_user: postgres

- name: Lead all entries to whoever is the primary now, and readers to standbys
  pgfleet.ops.pgbouncer_databases:
    login_host: 127.0.0.1
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    config_file: /etc/pgbouncer/databases.ini
    nodes:
      - {name: db1, host: db1.example.com, priority: 1}
      - {name: db2, host: db2.example.com, priority: 2}
      - {name: db3, host: db3.example.com, priority: 3}
    cluster_user: monitor
    cluster_password: "{{ monitor_password }}"
    verify_user: app
    verify_password: "{{ app_password }}"
    on_failure: disable
  become: true
  become_user: postgres

- name: The entries app, app_ro1, app_ro2, shop, shop_ro1 and shop_ro2, as HandyRep makes them
  pgfleet.ops.pgbouncer_databases:
    login_host: 127.0.0.1
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    config_file: /etc/pgbouncer/databases.ini
    nodes:
      - {name: db1, host: db1.example.com}
      - {name: db2, host: db2.example.com}
      - {name: db3, host: db3.example.com}
    database_list: [app, shop]
    all_replicas: true
    extra_connect_param: pool_size=20
    verify_user: app
    verify_password: "{{ app_password }}"
  become: true
  become_user: postgres

- name: Take a database away, also when the pooler is down
  pgfleet.ops.pgbouncer_databases:
    login_host: 127.0.0.1
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    config_file: /etc/pgbouncer/databases.ini
    databases:
      - {name: old_app, state: absent}
    unreachable: skip
  become: true
  become_user: postgres
"""

RETURN = r"""
config_file:
  description: The file, links resolved.
  returned: success
  type: str
  sample: /etc/pgbouncer/databases.ini
databases:
  description: The entries of the file by name, with their parameters as text and without passwords.
  returned: success
  type: dict
  sample: {app: {host: db1.example.com, dbname: app}}
reachable:
  description: Whether the pooler answered.
  returned: success
  type: bool
version:
  description: PgBouncer's version, null if it did not answer.
  returned: success
  type: str
  sample: 1.18.0
runtime:
  description: Rows of C(SHOW DATABASES), null if the pooler did not answer.
  returned: success
  type: list
  elements: dict
primary:
  description: Name of the primary of O(nodes), null without them.
  returned: success
  type: str
disabled:
  description: Entries that O(on_failure=disable) has disabled, because they lead elsewhere than to the primary.
  returned: failure
  type: list
  elements: str
reloaded:
  description: Whether the pooler was told to read its configuration again.
  returned: success
  type: bool
verified:
  description: By alias, RV(ignore:role), RV(ignore:server_address) and RV(ignore:server_port) of the server behind it; null if nothing was to be verified.
  returned: success
  type: dict
  sample: {app: {role: primary, server_address: 10.0.0.11, server_port: 5432}}
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.pgbouncer_databases import PGBOUNCER_DATABASES, PoolerDatabases


def main() -> None:
    run(PoolerDatabases, PGBOUNCER_DATABASES)


if __name__ == "__main__":
    main()
