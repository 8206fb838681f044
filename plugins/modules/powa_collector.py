# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: powa_collector
short_description: A powa-collector that works for every server
version_added: "0.1.0"
description:
  - Asks the running powa-collector, through its repository, what its workers do. Reloads it if a server has no worker or one
    without connection, and fails with the reason for each server that still has none afterwards.
  - Can have snapshots taken at once, and can wait until the servers have one.
  - Starts and stops no process, see the role P(pgfleet.ops.powa_collector#role) for that.
  - Supports the versions 1.2 and 1.3 of the collector.
options:
  login_db:
    description: The repository's database. Without this option the environment variable E(PGDATABASE) counts, then V(powa).
  state:
    description:
      - V(running) - each server has a running worker. The collector is reloaded only if that is not so.
      - V(reloaded) - the same after a reload in any case, for example after the password of a server was changed. Always a change.
    type: str
    choices: [running, reloaded]
    default: running
  servers:
    description: Aliases of the servers that count. Without this option all active servers do.
    type: list
    elements: str
    default: []
  force_snapshot:
    description:
      - Have a snapshot of each server taken at once and wait for it, as with O(wait_snapshot=new). Always a change.
      - From version 1.3 of the collector on. It takes none within 10 seconds of the last one, so the task may wait that long before.
    type: bool
    default: false
  wait_snapshot:
    description:
      - V(none) - do not wait for a snapshot.
      - V(any) - wait until each server has one, old or new.
      - V(new) - wait until each server has one from after the start of the task.
      - Not in check mode.
    type: str
    choices: [none, any, new]
    default: none
  timeout:
    description:
      - Seconds for workers and snapshots together.
      - Version 1.2 of the collector takes a snapshot at each third interval only, so O(wait_snapshot=new) needs more than three times
        the frequency of the slowest server.
    type: float
    default: 60
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
attributes:
  check_mode:
    support: full
    details: Check mode asks for the state of the workers, and neither reloads the collector nor has it take snapshots.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: O(state=running) changes nothing twice, O(state=reloaded) and O(force_snapshot) always do.
notes:
  - The login needs to read the tables of PoWA. From version 1.3 of the collector on it must also be a superuser or a member of
    C(pg_signal_backend), C(powa_signal_backend), C(powa_write_all_data) or C(powa_admin).
  - A collector that has to be restarted is reported and not reloaded, because a reload would leave it unable to answer. This is so
    after a server was deactivated or deleted. It cannot be seen from outside that a server has moved to another host or port, so restart
    the collector if M(pgfleet.ops.powa_server) says so.
seealso:
  - module: pgfleet.ops.powa_server
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Every server has a worker and a snapshot
  pgfleet.ops.powa_collector:
    login_host: repository.example.org
    wait_snapshot: any
    timeout: 300

- name: Take over a changed password
  pgfleet.ops.powa_collector:
    state: reloaded

- name: Have the state before the load test stored
  pgfleet.ops.powa_collector:
    servers: [prod1]
    force_snapshot: true
"""

RETURN = r"""
collector_version:
  description: Version of the collector.
  type: str
  returned: success
  sample: 1.2.0
repository_version:
  description: Version of the extension powa in the repository.
  type: str
  returned: success
  sample: 4.1.4
restart_required:
  description: Whether the collector has to be restarted; the task then fails.
  type: bool
  returned: success or failure for this reason
servers:
  description: The servers that count.
  type: list
  elements: dict
  returned: success, and failure because of a server
  contains:
    id:
      description: Number in the repository.
      type: int
    alias:
      description: Name in the repository.
      type: str
    host:
      description: Where the collector connects to.
      type: str
    port:
      description: Where the collector connects to.
      type: int
    frequency:
      description: Seconds between snapshots.
      type: int
    worker:
      description: The collector's own word for it; V(running) if all is well, V(none) if there is no worker.
      type: str
    snapshot_at:
      description: Time of the last snapshot; none before the first.
      type: str
    snapshot_age_seconds:
      description: Its age.
      type: float
    errors:
      description: What PoWA noted at the last snapshot or attempt.
      type: list
      elements: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import CONNECTION, ArgumentSpec, run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.powa_collector import PowaCollector

SPEC = CONNECTION.merge(
    ArgumentSpec(
        {
            "state": {"type": "str", "choices": ["running", "reloaded"], "default": "running"},
            "servers": {"type": "list", "elements": "str", "default": []},
            "force_snapshot": {"type": "bool", "default": False},
            "wait_snapshot": {"type": "str", "choices": ["none", "any", "new"], "default": "none"},
            "timeout": {"type": "float", "default": 60},
        }
    )
)


def main() -> None:
    run(PowaCollector, SPEC)


if __name__ == "__main__":
    main()
