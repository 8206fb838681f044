# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: powa_datasource
short_description: A datasource of one's own for PoWA
version_added: "0.1.0"
description:
  - Has PoWA collect and keep what a query of your own yields on each server.
  - Declare the columns and the query, and everything that PoWA asks for is generated. On a remote server that is the source
    function; in the repository the transient table, the history, the functions for snapshot, aggregate, purge, reset and
    unregister, two functions to read the history with, the rights and the registration.
  - Or write the functions yourself and name them in O(functions). They are checked first, as PoWA itself checks nothing and
    some faults never show as an error.
  - Has two sides. Run it with O(side=remote) on the primary of each server that is collected from, then once with
    O(side=repository). The playbook C(pgfleet.ops.deploy_datasource) does both.
  - In the repository it works in one transaction, which includes a trial snapshot that is rolled back.
  - Works the same way on PoWA 4.1, 4.2 and 5.x.
options:
  login_db:
    description: The database with the extension powa. Without this option the environment variable E(PGDATABASE) counts, then V(powa).
  name:
    description:
      - Name of the datasource. All objects that are made have names that begin with C(powa_) and this name.
      - Lower-case letters, digits and underscores, at most 40 characters.
    type: str
    required: true
  side:
    description:
      - V(remote) - the server is collected from. Creates the source function, or checks the one of O(functions).
      - V(repository) - the server stores what is collected. Creates everything else, registers it and activates it on O(servers).
    type: str
    choices: [remote, repository]
    required: true
  state:
    description:
      - V(present) - there, as declared.
      - V(absent) - with O(side=repository) nothing is collected any more, and with O(purge) the history is dropped too;
        with O(side=remote) the source function is dropped. Unregister before you drop the source.
    type: str
    choices: [present, absent]
    default: present
  columns:
    description:
      - What the query yields, besides the time, which every sample gets by itself as C(ts).
      - Changing the list later migrates the history. A new column is NULL in what was stored before, a type changes if PostgreSQL
        converts it by assignment, and a column that is gone asks for O(purge), as its history goes too.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the column in the query. Lower-case letters, digits and underscores, at most 50 characters.
        type: str
        required: true
      type:
        description: Type of PostgreSQL, for example V(bigint). Modifiers such as in C(numeric(10,2)) do not count.
        type: str
        required: true
      kind:
        description:
          - V(label) - says what a row is about. The history is kept apart for each combination of labels.
          - V(gauge) - a value at that moment.
          - V(counter) - a number that only grows until it is reset. Read as a rate per second.
        type: str
        choices: [label, gauge, counter]
        required: true
      description:
        description: For people who read the declaration.
        type: str
  query:
    description:
      - What is asked on a remote server. With O(language=sql) a SELECT whose columns bear the names in O(columns).
      - With O(language=plpgsql) the body of a function that returns rows of C(ts) and the columns, in this order.
      - The C(search_path) is C(pg_catalog) and the schema of PoWA, with O(security_definer) only C(pg_catalog). Write the schema before all
        other names.
        C(@extschema@) stands for the schema of PoWA there, C(@extschema:NAME@) for that of an extension.
      - It must only read, as it also runs on standbys.
    type: str
  language:
    description: Language of O(query).
    type: str
    choices: [sql, plpgsql]
    default: sql
  security_definer:
    description:
      - Run the query with the rights of the role that creates the function instead of those of the collector.
      - PUBLIC then loses the right to execute it, so name the collector's role on that server in O(grant_to).
    type: bool
    default: false
  extensions:
    description: Extensions that the query needs on the remote server. They are created if they are missing and never dropped.
    type: list
    elements: str
  functions:
    description:
      - Functions that you wrote yourself, instead of O(columns) and O(query). All are without a schema, as they have to be in that
        of PoWA (C(public) on PoWA 4), and take one integer, the server's id.
      - The transient table has the name of RV(query_source) with C(_tmp) behind it.
    type: dict
    suboptions:
      query_source:
        description: The function on the remote servers that yields the rows.
        type: str
      query_cleanup:
        description: A statement for the remote server after each snapshot.
        type: str
      snapshot:
        description: Moves the rows of a server from the transient table into the history.
        type: str
      aggregate:
        description: Brings the history into its final form, once in C(powa_coalesce) snapshots.
        type: str
      purge:
        description: Deletes what is older than the server's retention.
        type: str
      reset:
        description: Deletes the whole history of a server.
        type: str
      unregister:
        description: Ends the registration of a server. Only PoWA 4 knows it.
        type: str
  priority:
    description: Place among the datasources of a snapshot, the lowest first. PoWA's own have 0 to 10.
    type: int
    default: 10
  servers:
    description:
      - Aliases of the registered servers on which the datasource is active. Without this option on all that are registered now.
      - For O(side=repository).
    type: list
    elements: str
  servers_exact:
    description: Deactivate it on all other servers.
    type: bool
    default: false
  check_source:
    description:
      - Before anything is changed in the repository, connect to the servers as the collector does (registered host, port, role,
        database and password), call the source, and compare what it yields with the transient table.
      - Then take a trial snapshot with these rows, as a role that may collect, and roll it back.
      - Only active servers are asked, and only if there is something to change. In check mode there is no trial snapshot.
    type: bool
    default: true
  source_connect_params:
    description: Libpq keywords for these connections, for example C(passfile) with that of the collector.
    type: dict
    default: {}
  source_timeout:
    description: How many seconds the source may take when it is called for a check. A whole snapshot waits for it.
    type: float
    default: 5
  grant_to:
    description: Roles that may execute the source function, for O(side=remote). The source is called once as each of them.
    type: list
    elements: str
  on_standby:
    description:
      - V(verify) - fail if the standby lacks the source function, after O(timeout).
      - V(skip) - only report.
      - For O(side=remote).
    type: str
    choices: [verify, skip]
    default: verify
  timeout:
    description: How many seconds a standby may take to receive what the primary has.
    type: float
    default: 30
  purge:
    description:
      - Agree to the loss of history. With O(state=absent) of all of it, with O(state=present) of columns that are no longer declared.
      - Only objects that this module made are dropped.
    type: bool
    default: false
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - Read the history with C(powa_NAME_samples(server id, from, to)) and C(powa_NAME_rates(server id, from, to)). All three may be
    left out. The second has rates per second in the place of counters, none for the first sample and none where a counter was reset.
  - In the repository rights follow those on PoWA's own tables, so roles that M(pgfleet.ops.powa_archivist) lets collect or read may do so here.
  - Between the changes of both sides the columns may differ. PoWA then notes an error for this datasource and goes on with the others; where
    the types fit it stores what it gets by position, so change both sides in one run.
  - A migration waits for running snapshots, and a snapshot that begins meanwhile fails once and is taken again at the next interval.
  - A conversion that would change stored values asks for O(purge) as well. Indexes, storage parameters, owner and rights of the tables are kept.
  - Servers that are registered later do not have the datasource. Run this module again.
  - The form of PoWA 3, functions without an argument, is refused with what to change.
seealso:
  - module: pgfleet.ops.powa_archivist
  - module: pgfleet.ops.powa_server
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Have the sizes of databases collected, on a server
  pgfleet.ops.powa_datasource:
    name: database_size
    side: remote
    columns: &columns
      - {name: datname, type: text, kind: label}
      - {name: size_bytes, type: bigint, kind: gauge}
      - {name: commits, type: bigint, kind: counter}
    query: &query >-
      SELECT d.datname, pg_database_size(d.oid) AS size_bytes, s.xact_commit AS commits
      FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid WHERE d.datallowconn

- name: Have the sizes of databases collected, in the repository
  pgfleet.ops.powa_datasource:
    name: database_size
    side: repository
    columns: *columns
    query: *query
    login_host: repository.example.org
    servers: [prod1, prod2]

- name: Register functions that somebody wrote
  pgfleet.ops.powa_datasource:
    name: my_datasource
    side: repository
    login_host: repository.example.org
    functions:
      query_source: powa_my_datasource_src
      snapshot: powa_my_datasource_snapshot
      aggregate: powa_my_datasource_aggregate
      purge: powa_my_datasource_purge

- name: Stop collecting and drop the history
  pgfleet.ops.powa_datasource:
    name: database_size
    side: repository
    login_host: repository.example.org
    state: absent
    purge: true
"""

RETURN = r"""
name:
  description: Name of the datasource.
  type: str
  returned: success
  sample: database_size
side:
  description: The side that this was about.
  type: str
  returned: success
  sample: repository
schema:
  description: Schema of PoWA, in which the objects are.
  type: str
  returned: success
  sample: public
query_source:
  description: The source function; null where it is not there.
  type: str
  returned: success
  sample: powa_database_size_src
repository_version:
  description: Version of the extension powa in the repository.
  type: str
  returned: success and O(side=repository)
  sample: 4.1.4
servers:
  description: All registered servers, and whether the datasource is active on them.
  type: list
  elements: dict
  returned: success and O(side=repository)
  contains:
    alias:
      description: The server's name.
      type: str
    active:
      description: Whether it is collected from this server.
      type: bool
history_bytes:
  description: Size of the generated history, in bytes, with its indexes.
  type: int
  returned: success and O(side=repository)
checked_servers:
  description: Servers that were asked as the collector asks them.
  type: list
  elements: str
  returned: success and O(side=repository)
in_recovery:
  description: Whether the server is a standby.
  type: bool
  returned: success and O(side=remote)
faults:
  description: What is wrong with the datasource. O(ignore:msg) holds the same as text.
  type: list
  elements: dict
  returned: failure because of faults
  contains:
    check:
      description: Short name of the check.
      type: str
      sample: transient_not_emptied
    found:
      description: What was found.
      type: str
    action:
      description: What to do about it.
      type: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import CONNECTION, ArgumentSpec, run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.powa_datasource import powa_datasource

FUNCTIONS = ("query_source", "query_cleanup", "snapshot", "aggregate", "purge", "reset", "unregister")

SPEC = CONNECTION.merge(
    ArgumentSpec(
        {
            "name": {"type": "str", "required": True},
            "side": {"type": "str", "choices": ["remote", "repository"], "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "columns": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "type": {"type": "str", "required": True},
                    "kind": {"type": "str", "choices": ["label", "gauge", "counter"], "required": True},
                    "description": {"type": "str"},
                },
            },
            "query": {"type": "str"},
            "language": {"type": "str", "choices": ["sql", "plpgsql"], "default": "sql"},
            "security_definer": {"type": "bool", "default": False},
            "extensions": {"type": "list", "elements": "str"},
            "functions": {"type": "dict", "options": {name: {"type": "str"} for name in FUNCTIONS}},
            "priority": {"type": "int", "default": 10},
            "servers": {"type": "list", "elements": "str"},
            "servers_exact": {"type": "bool", "default": False},
            "check_source": {"type": "bool", "default": True},
            "source_connect_params": {"type": "dict", "default": {}},
            "source_timeout": {"type": "float", "default": 5},
            "grant_to": {"type": "list", "elements": "str"},
            "on_standby": {"type": "str", "choices": ["verify", "skip"], "default": "verify"},
            "timeout": {"type": "float", "default": 30},
            "purge": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ("query", "functions"), True)],
        required_together=[("columns", "query")],
        mutually_exclusive=[("columns", "functions")],
    )
)


def main() -> None:
    run(powa_datasource, SPEC)


if __name__ == "__main__":
    main()
