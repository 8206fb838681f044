# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: powa_info
short_description: What a PoWA repository collects, misses and complains about
version_added: "0.1.0"
description:
  - Reads the remote servers of a repository, their last snapshots and errors, the datasources, and what the workers of the
    collector do, and judges from this whether everything is collected that should be.
  - Compared with O(expected), it tells which nodes nobody watches.
  - With O(fail_on) it is a check for a monitoring system. The task then fails, and its message has the reasons.
  - Changes nothing.
options:
  login_db:
    description: The repository's database. Without this option the environment variable E(PGDATABASE) counts, then V(powa).
  expected:
    description:
      - The nodes that should be watched. A node is the server that is registered with its host and port, else the one with its name as alias.
      - Without this option RV(coverage) is not returned. An empty list expects no server.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the node.
        type: str
        required: true
      host:
        description: Host as the collector reaches it. Without it only the alias counts.
        type: str
      port:
        description: Port of the node.
        type: int
        default: 5432
  max_age_factor:
    description:
      - A server is stale when its last snapshot is older than this many times its frequency.
      - Version 1.2 of the collector takes a snapshot at each third interval only, so less than 4 is of use from version 1.3 on.
    type: float
    default: 4
  max_age_seconds:
    description: A server is stale when its last snapshot is older than this, whatever its frequency. Wins over O(max_age_factor).
    type: float
  ask_collector:
    description:
      - Ask the running collector for the state of its workers. It may take 10 seconds to answer.
      - From version 1.3 of the collector on, the login must be a superuser or a member of C(pg_signal_backend), C(powa_signal_backend),
        C(powa_write_all_data) or C(powa_admin). Set this to V(false) for a login that only reads.
      - With V(false), a worker that has ended shows as a stale server once its last snapshot is too old.
    type: bool
    default: true
  history:
    description: Also count what is stored of each server. This reads all of it, so it is nothing for a check that runs each minute.
    type: bool
    default: false
  fail_on:
    description:
      - V(none) - never fail because of what was found.
      - V(critical) - fail if RV(status) is V(critical).
      - V(warning) - fail if RV(status) is V(warning) or V(critical).
    type: str
    choices: [none, critical, warning]
    default: none
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.info
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - The right to read comes with O(pgfleet.ops.powa_archivist#module:grant_to[].access=reader). All such roles can also read the
    passwords that are stored in the repository. This module does not read them.
  - Ages are measured by the clock of the repository.
seealso:
  - module: pgfleet.ops.powa_server
  - module: pgfleet.ops.powa_collector
  - module: pgfleet.ops.powa_datasource
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Read the repository
  pgfleet.ops.powa_info:
    login_host: repository.example.org
    login_user: powa_reader
    ask_collector: false
  register: powa

- name: Check from a monitoring system that every node is watched
  pgfleet.ops.powa_info:
    login_host: repository.example.org
    login_user: powa_collector
    expected:
      - {name: db1, host: 10.1.0.11}
      - {name: db2, host: 10.1.0.12}
    fail_on: warning
"""

RETURN = r"""
status:
  description: V(ok), V(warning) or V(critical), the worst of RV(reasons).
  returned: success, and failure because of O(fail_on)
  type: str
  sample: critical
reasons:
  description:
    - Why the status is not V(ok), the worst first.
    - V(critical) are an active server that is stale or has no running worker, no collector, one that does not answer or one whose version
      cannot work with the repository's.
    - V(warning) are errors that PoWA noted, an active server without any snapshot, several collectors, workers of servers that are
      not active any more, unwatched nodes and unexpected servers.
  returned: success, and failure because of O(fail_on)
  type: list
  elements: str
  sample: ["prod1: its last snapshot is 5126 s old, which is more than 1200 s"]
version:
  description: Version of the extension powa in the repository.
  returned: success, and failure because of O(fail_on)
  type: str
  sample: 4.1.4
schema:
  description: Schema of the extension.
  returned: success, and failure because of O(fail_on)
  type: str
  sample: public
servers:
  description: All registered servers, each with everything that M(pgfleet.ops.powa_server) returns about it, and what follows.
  returned: success, and failure because of O(fail_on)
  type: list
  elements: dict
  contains:
    worker:
      description:
        - The collector's word for the state of its worker, V(running) if all is well, V(none) if there is no worker.
        - Null for an inactive server and where the collector was not asked or did not answer.
      type: str
      sample: running
    snapshot_at:
      description: Time of the last snapshot, null before the first.
      type: str
    snapshot_age_seconds:
      description: Its age.
      type: float
    aggregate_at:
      description: When snapshots were last put together into records, null before the first time. It happens once in RV(ignore:powa_coalesce) snapshots.
      type: str
    aggregate_age_seconds:
      description: Its age.
      type: float
    purge_at:
      description: When data older than the retention was last deleted, null before the first time. It happens once in RV(ignore:powa_coalesce) snapshots.
      type: str
    purge_age_seconds:
      description: Its age.
      type: float
    max_age_seconds:
      description: Age from which on the server is stale, null for an inactive server.
      type: float
    stale:
      description: Whether the last snapshot of an active server is too old or missing.
      type: bool
    errors:
      description: What PoWA noted at the last snapshot or attempt.
      type: list
      elements: str
    history:
      description:
        - With O(history), the number of stored RV(ignore:rows), their RV(ignore:bytes), and RV(ignore:begins) and RV(ignore:ends), the times of the first
          and of the last snapshot in them, null without any.
        - A row holds one snapshot or, once it was put together, up to RV(ignore:powa_coalesce) of them. What C(pg_track_settings) stores does not count.
      type: dict
      sample: {rows: 5120, bytes: 3102208, begins: "2026-11-20T10:00:03+00:00", ends: "2026-11-21T09:59:58+00:00"}
    status:
      description: V(ok), V(warning) or V(critical). An inactive server is V(ok).
      type: str
    reasons:
      description: Why it is not V(ok), the worst first.
      type: list
      elements: str
datasources:
  description: The datasources by name. PoWA 5 lists those that no server uses as well, PoWA 4 knows them with a server only.
  returned: success, and failure because of O(fail_on)
  type: dict
  contains:
    custom:
      description: Whether it is none of PoWA's own.
      type: bool
    functions:
      description: Name of the function for each operation. Some of PoWA's own have several for one operation, this is then the first that runs.
      type: dict
    query_source:
      description: Name of the function that is called on the remote server.
      type: str
    servers:
      description: Aliases of the servers on which it is active.
      type: list
      elements: str
  sample:
    my_datasource:
      custom: true
      functions: {snapshot: my_snapshot, aggregate: my_aggregate, purge: my_purge, reset: my_reset}
      query_source: my_src
      servers: [prod1]
collector:
  description: The collector that is connected to the repository.
  returned: success, and failure because of O(fail_on)
  type: dict
  contains:
    connected:
      description: Whether there is one.
      type: bool
    version:
      description: Its version.
      type: str
    duplicates:
      description: How many more are connected. Each of them takes every snapshot.
      type: int
    answered:
      description: Whether it said what its workers do, null if nobody asked.
      type: bool
    problem:
      description: Why it did not, null if it did.
      type: str
    strays:
      description: Ids of servers that have a worker although they are not active or not registered. Only a restart of the collector ends it.
      type: list
      elements: int
coverage:
  description: Comparison with O(expected).
  returned: with O(expected), on success and on failure because of O(fail_on)
  type: dict
  contains:
    unwatched:
      description: Nodes that nobody watches, each with RV(ignore:name), RV(ignore:host), RV(ignore:port) and RV(ignore:reason).
      type: list
      elements: dict
    unexpected:
      description: Registered servers that are no expected node, each with RV(ignore:id), RV(ignore:alias), RV(ignore:host) and RV(ignore:port).
      type: list
      elements: dict
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import CONNECTION, ArgumentSpec, run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.powa_info import PowaInfo

EXPECTED = {"name": {"type": "str", "required": True}, "host": {"type": "str"}, "port": {"type": "int", "default": 5432}}
SPEC = CONNECTION.merge(
    ArgumentSpec(
        {
            "expected": {"type": "list", "elements": "dict", "options": EXPECTED},
            "max_age_factor": {"type": "float", "default": 4},
            "max_age_seconds": {"type": "float"},
            "ask_collector": {"type": "bool", "default": True},
            "history": {"type": "bool", "default": False},
            "fail_on": {"type": "str", "choices": ["none", "critical", "warning"], "default": "none"},
        }
    )
)


def main() -> None:
    run(PowaInfo, SPEC)


if __name__ == "__main__":
    main()
