# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: powa_server
short_description: Remote servers of a PoWA repository
version_added: "0.1.0"
description:
  - Registers, changes, deactivates and deletes the remote servers that a repository of PoWA collects from, and sets which
    statistics extensions and modules are collected on each.
  - One call takes all servers, in one connection and one transaction. If one entry fails, nothing is changed.
  - What a restored dump has lost is put back for the servers of O(servers), PoWA's own sources and rows of activated extensions, and a sequence of
    server ids that is behind them is moved.
  - Supports PoWA 4.1, 4.2 and 5.x. Tested with 4.1.4 on PostgreSQL 15 and with 5.0.2 on PostgreSQL 17.
options:
  login_db:
    description: The repository's database. Without this option the environment variable E(PGDATABASE) counts, then V(powa).
  servers:
    description:
      - The servers. An empty list changes nothing and returns all servers that are registered.
      - A server that is registered is found by its alias, else by its host and port. It keeps its data when one of them changes. Entries may
        pass addresses on to each other.
      - An option that is left out becomes PoWA's own default for a new server and stays as it is for a known one.
    type: list
    elements: dict
    required: true
    suboptions:
      alias:
        description: The server's name, unique in the repository.
        type: str
        required: true
      state:
        description:
          - V(present) - registered and collected from.
          - V(inactive) - registered with all its data, and not collected from. The frequency is lost.
          - V(absent) - not registered. All that was collected from it is deleted, so O(servers[].purge) must be V(true).
        type: str
        choices: [present, inactive, absent]
        default: present
      host:
        description: Name or address by which the collector reaches the server. Needed for a new one.
        type: str
      port:
        description: Port of the server. PoWA's default is 5432.
        type: int
      user:
        description: Role as which the collector connects. PoWA's default is V(powa).
        type: str
      password:
        description:
          - Password of O(servers[].user). PoWA keeps it in plain text in its table C(powa_servers), where every role with SELECT reads it.
          - Better leave it out and give the collector a passfile, as the role P(pgfleet.ops.powa_collector#role) does.
        type: str
      clear_password:
        description: Remove the password that is registered.
        type: bool
        default: false
      dbname:
        description: Database with the extension powa on the server. PoWA's default is V(powa).
        type: str
      frequency:
        description:
          - Seconds between two snapshots, at least 5. PoWA's default is 300. V(-1) means O(servers[].state=inactive).
          - Version 1.2 of the collector takes one at each third interval only.
        type: int
      powa_coalesce:
        description: Number of snapshots that are stored as one record, at least 5. PoWA's default is 100.
        type: int
      retention:
        description:
          - How long data is kept, as an interval of PostgreSQL, for example V(2 days). PoWA's default is one day.
          - A retention of a single extension, which PoWA knows from 5.1.2 on, is not set here.
        type: str
      allow_ui_connection:
        description: Whether powa-web may connect to the server. PoWA's default is V(true).
        type: bool
      extensions:
        description:
          - Statistics extensions to collect, besides what PoWA always collects. The order is of no importance.
          - They must be there on the remote server, see M(pgfleet.ops.powa_archivist) and O(check_servers).
            PoWA 5 stops collecting from a server on which C(pg_qualstats) is missing. C(pg_track_settings) must be in the repository too.
          - V(hypopg) is ignored, as the collector finds it by itself.
        type: list
        elements: str
      modules:
        description:
          - Modules of PoWA 5 to collect, for example V(pg_stat_io). All are active on a new server, so this is of use with O(modules_exact).
          - PoWA 4 has none. There the extensions C(pg_stat_bgwriter), C(powa_stat_user_functions) and C(powa_stat_all_relations) stand for them.
        type: list
        elements: str
      db_modules:
        description:
          - What PoWA 5 collects in each database. All of PoWA's own are active for all databases on a new server. What is not named stays as it is.
        type: list
        elements: dict
        suboptions:
          name:
            description: The db module, V(pg_stat_all_tables), V(pg_stat_all_indexes), V(pg_stat_user_functions) or one of your own.
            type: str
            required: true
          state:
            description:
              - Whether it is collected.
              - V(absent) deletes its configuration, as the collector goes on after PoWA's function C(powa_deactivate_db_module), and in all databases.
            type: str
            choices: [present, absent]
            default: present
          databases:
            description: The databases, in any order. Without this option all of them.
            type: list
            elements: str
      purge:
        description: Agree to the deletion of the server's data with O(servers[].state=absent).
        type: bool
        default: false
  extensions_exact:
    description:
      - Also deactivate what is active on a server and not in its list O(servers[].extensions).
      - What PoWA always collects stays active, and so do datasources of your own, which M(pgfleet.ops.powa_datasource) sees to.
        Entries without a list are left alone.
    type: bool
    default: false
  modules_exact:
    description: Also deactivate modules that are active on a server and not in its list O(servers[].modules). Entries without a list are left alone.
    type: bool
    default: false
  check_servers:
    description:
      - Before anything is changed, log in as the collector would on every server that it would newly meet, which is one that is new, active again,
        has another address or login, or more extensions. Refuse with the faults of all servers in one error.
      - Faults are a server that does not answer or does not let the role in, no extension C(powa) there or one of another version, a missing
        extension, a library that is not preloaded, and missing rights.
      - Only a task that runs on the collector's host and has its passwords asks the same question as the collector, so this is no default.
        The playbook C(pgfleet.ops.register_powa_servers) does it.
    type: bool
    default: false
  check_timeout:
    description: Seconds in which a server has to answer O(check_servers). 32 servers are asked at a time.
    type: int
    default: 10
  server_connect_params:
    description:
      - Keywords of libpq for O(check_servers), such as C(passfile) with the collector's passfile, or C(sslmode).
      - Passwords that are registered or in O(servers[].password) win over it.
    type: dict
    default: {}
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - The right to register servers comes with O(pgfleet.ops.powa_archivist#module:grant_to[].access=manager).
  - A collector that runs does not notice most changes by itself, see RV(collector_reload_required) and RV(collector_restart_required).
seealso:
  - module: pgfleet.ops.powa_archivist
  - module: pgfleet.ops.powa_collector
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Register two servers
  pgfleet.ops.powa_server:
    login_host: repository.example.org
    login_user: postgres
    servers:
      - alias: prod1
        host: 10.0.0.11
        frequency: 60
        retention: 7 days
        extensions: [pg_qualstats, pg_stat_kcache, pg_wait_sampling]
      - alias: prod2
        host: 10.0.0.12
        frequency: 60
  register: registered

- name: Register a server after a look at it with the collector's own passfile
  pgfleet.ops.powa_server:
    login_host: repository.example.org
    servers:
      - alias: prod1
        host: 10.0.0.11
        extensions: [pg_qualstats, pg_stat_kcache]
    check_servers: true
    server_connect_params:
      passfile: /var/lib/powa-collector/passfile
  become: true
  become_user: powa

- name: PoWA 5, two modules and the tables of one database only
  pgfleet.ops.powa_server:
    servers:
      - alias: prod1
        host: 10.0.0.11
        modules: [pg_stat_database, pg_stat_io]
        db_modules:
          - name: pg_stat_all_tables
            databases: [app]
          - name: pg_stat_user_functions
            state: absent
    modules_exact: true

- name: Stop collecting from one server and delete another with its data
  pgfleet.ops.powa_server:
    servers:
      - alias: prod1
        state: inactive
      - alias: prod2
        state: absent
        purge: true

- name: Read all servers
  pgfleet.ops.powa_server:
    servers: []
"""

RETURN = r"""
servers:
  description: The servers of the option as they are registered afterwards; all of them if the option is an empty list.
  type: list
  elements: dict
  returned: success
  contains:
    id:
      description: The number of the server in the repository.
      type: int
    alias:
      description: Its name.
      type: str
    host:
      description: Where the collector connects to.
      type: str
    port:
      description: Where the collector connects to.
      type: int
    user:
      description: As whom the collector connects.
      type: str
    dbname:
      description: Where the collector connects to.
      type: str
    state:
      description: V(present) or V(inactive).
      type: str
    frequency:
      description: Seconds between snapshots; -1 while inactive.
      type: int
    powa_coalesce:
      description: Snapshots in one record.
      type: int
    retention:
      description: How long data is kept.
      type: str
    allow_ui_connection:
      description: Whether powa-web may connect to the server.
      type: bool
    has_password:
      description: Whether a password is stored. The password itself is never returned.
      type: bool
    extensions:
      description: Extensions and datasources that are collected, on PoWA 4 also those of PoWA itself.
      type: list
      elements: str
    extension_versions:
      description: Versions of extensions on the server by name, as the collector noted them; none before it did. PoWA 4 notes that of C(powa) too.
      type: dict
    modules:
      description: Modules that are collected, with PoWA 5.
      type: list
      elements: str
    db_modules:
      description: What PoWA 5 collects in databases. A value of none for C(databases) means all of them.
      type: list
      elements: dict
    version:
      description: Version of PostgreSQL that the collector found; none before the first snapshot.
      type: str
  sample:
    - {id: 1, alias: prod1, host: 10.0.0.11, port: 5432, user: powa, dbname: powa, state: present, frequency: 60, powa_coalesce: 100,
       retention: 7 days, allow_ui_connection: true, has_password: false, extensions: [pg_qualstats, pg_stat_statements],
       extension_versions: {pg_qualstats: 2.1.1, pg_stat_statements: "1.11"}, modules: [pg_stat_io], db_modules: [{name: pg_stat_all_tables, databases: [app]}],
       version: "17.4"}
repository_version:
  description: Version of the extension powa in the repository.
  type: str
  returned: success
  sample: 4.1.4
servers_checked:
  description: Aliases of the servers that were asked because of O(check_servers).
  type: list
  elements: str
  returned: success
  sample: [prod1]
collector_running:
  description: Whether a collector is connected to the repository.
  type: bool
  returned: success
collector_reload_required:
  description: Whether a collector that runs has to be told of the changes of this task, with M(pgfleet.ops.powa_collector).
  type: bool
  returned: success
collector_restart_required:
  description:
    - Whether a collector that runs has to be restarted because of the changes of this task.
    - After a reload alone it would go on collecting from a server that is gone, or lose its main thread. With PoWA 5 a worker does not find
      C(pg_qualstats) and C(pg_track_settings) if they were created on the server after it connected.
  type: bool
  returned: success
collector_reasons:
  description: Why.
  type: list
  elements: str
  returned: success
  sample: ['server "prod1" is new']
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import CONNECTION, ArgumentSpec, run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.powa_server import PowaServer

SPEC = CONNECTION.merge(
    ArgumentSpec(
        {
            "servers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "alias": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": ["present", "inactive", "absent"], "default": "present"},
                    "host": {"type": "str"},
                    "port": {"type": "int"},
                    "user": {"type": "str"},
                    "password": {"type": "str", "no_log": True},
                    "clear_password": {"type": "bool", "default": False, "no_log": False},
                    "dbname": {"type": "str"},
                    "frequency": {"type": "int"},
                    "powa_coalesce": {"type": "int"},
                    "retention": {"type": "str"},
                    "allow_ui_connection": {"type": "bool"},
                    "extensions": {"type": "list", "elements": "str"},
                    "modules": {"type": "list", "elements": "str"},
                    "db_modules": {
                        "type": "list",
                        "elements": "dict",
                        "options": {
                            "name": {"type": "str", "required": True},
                            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                            "databases": {"type": "list", "elements": "str"},
                        },
                    },
                    "purge": {"type": "bool", "default": False},
                },
            },
            "extensions_exact": {"type": "bool", "default": False},
            "modules_exact": {"type": "bool", "default": False},
            "check_servers": {"type": "bool", "default": False},
            "check_timeout": {"type": "int", "default": 10},
            "server_connect_params": {"type": "dict", "default": {}},
        }
    )
)


def main() -> None:
    run(PowaServer, SPEC)


if __name__ == "__main__":
    main()
