# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_info
short_description: The state of one or many PgBouncer poolers
version_added: "0.1.0"
description:
  - Asks the admin console of one pooler, or of a list of poolers at once, for its version, databases, pools, statistics and settings.
  - A pooler that does not answer is data, not a failure, unless O(unreachable=fail). All poolers together take at most O(timeout),
    however many of them hang.
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
      - Poolers to ask, instead of the one of O(login_host).
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
  gather_subset:
    description:
      - What to ask for besides the version. V(min) asks for nothing more, V(all) for everything.
      - V(clients) and V(servers) have a row for each connection.
    type: list
    elements: str
    choices: [all, min, databases, pools, stats, config, lists, users, servers, clients, totals, mem, state]
    default: [databases, pools]
  unreachable:
    description: Whether a pooler that cannot be asked is reported as such or fails the task, after all others have been asked.
    type: str
    choices: [report, fail]
    default: report
  timeout:
    description: Seconds for all poolers together.
    type: float
    default: 5
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.info
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - The login must be one of PgBouncer's C(admin_users) or C(stats_users).
seealso:
  - module: pgfleet.ops.pgbouncer_databases
  - name: PgBouncer's admin console
    description: Meaning of each column.
    link: https://www.pgbouncer.org/usage.html#admin-console
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Where do the aliases of this host's pooler lead
  pgfleet.ops.pgbouncer_info:
    login_host: 127.0.0.1
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    gather_subset: [databases]
  register: pooler

- name: Stop unless every pooler answers, in three seconds at most
  pgfleet.ops.pgbouncer_info:
    login_user: pgbouncer_admin
    login_password: "{{ pgbouncer_admin_password }}"
    poolers:
      - {name: pool1, login_host: pool1.example.com}
      - {name: pool2, login_host: pool2.example.com}
    gather_subset: [min]
    unreachable: fail
    timeout: 3
"""

RETURN = r"""
poolers:
  description: One entry for each pooler, in the order of O(poolers).
  returned: always
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
      description: Whether the console let the login in and answered everything in time.
      returned: always
      type: bool
    error:
      description: Kind of the failure, null without one.
      returned: always
      type: str
      sample: NotReachable
    reason:
      description: Why the pooler could not be asked, null if it could.
      returned: always
      type: str
    version:
      description: PgBouncer's version.
      returned: when reachable
      type: str
      sample: 1.18.0
    paused:
      description:
        - Whether the pooler is paused or suspended as a whole, by a C(PAUSE) without a name.
        - Null where the login may not know. For the versions without C(SHOW STATE), such as 1.18, that takes one of C(admin_users).
      returned: when reachable
      type: bool
    disabled_databases:
      description: Names of databases that take no new clients.
      returned: when reachable
      type: list
      elements: str
    paused_databases:
      description: Names of databases that are paused one by one. A pause of the whole pooler shows in RV(poolers[].paused) only.
      returned: when reachable
      type: list
      elements: str
    databases:
      description:
        - Rows of C(SHOW DATABASES) without the console's own, for example with RV(ignore:name), RV(ignore:host), RV(ignore:port),
          RV(ignore:database), RV(ignore:pool_size), RV(ignore:pool_mode), and RV(ignore:paused) and RV(ignore:disabled) as booleans.
        - RV(ignore:reserve_pool_size) is there for every version.
      returned: when asked for and reachable
      type: list
      elements: dict
    pools:
      description: Rows of C(SHOW POOLS) without the console's own.
      returned: when asked for and reachable
      type: list
      elements: dict
    stats:
      description: Rows of C(SHOW STATS).
      returned: when asked for and reachable
      type: list
      elements: dict
    config:
      description: Each setting's text, by name.
      returned: when asked for and reachable
      type: dict
    lists:
      description: Rows of C(SHOW LISTS).
      returned: when asked for and reachable
      type: list
      elements: dict
    users:
      description: Rows of C(SHOW USERS).
      returned: when asked for and reachable
      type: list
      elements: dict
    servers:
      description: Rows of C(SHOW SERVERS).
      returned: when asked for and reachable
      type: list
      elements: dict
    clients:
      description: Rows of C(SHOW CLIENTS).
      returned: when asked for and reachable
      type: list
      elements: dict
    totals:
      description: Rows of C(SHOW TOTALS).
      returned: when asked for and reachable
      type: list
      elements: dict
    mem:
      description: Rows of C(SHOW MEM).
      returned: when asked for and reachable
      type: list
      elements: dict
    state:
      description:
        - Of C(SHOW STATE), RV(ignore:active), RV(ignore:paused) and RV(ignore:suspended) as booleans.
        - Null where the version has no such command (1.18); RV(poolers[].paused) tells there too.
      returned: when asked for and reachable
      type: dict
all_reachable:
  description: Whether every pooler answered.
  returned: success
  type: bool
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.pgbouncer_info import PGBOUNCER_INFO, PoolersInfo


def main() -> None:
    run(PoolersInfo, PGBOUNCER_INFO)


if __name__ == "__main__":
    main()
