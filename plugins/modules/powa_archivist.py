# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: powa_archivist
short_description: The extension powa with its statistics extensions and rights on one server
version_added: "0.1.0"
description:
  - Makes one server a repository of PoWA or a remote server that a repository collects from. Creates the database and the
    extensions, updates them, and gives logins the rights that they need for their part.
  - Says which libraries have to be preloaded and never restarts anything.
  - On a standby it changes nothing but O(settings), as everything else comes from the primary. See O(on_standby).
  - Supports PoWA 4.1, 4.2 and 5.x. Tested with 4.1.4 on PostgreSQL 15 and with 5.0.2 on PostgreSQL 17.
options:
  login_db:
    description: A database that exists, usually V(postgres). Not the one that is created.
  side:
    description:
      - V(repository) - the server stores what is collected. Nothing has to be preloaded.
      - V(remote) - the server is collected from. C(pg_stat_statements) has to be preloaded.
    type: str
    choices: [repository, remote]
    required: true
  database:
    description: The database for the extensions. Best one of its own.
    type: str
    default: powa
  schema:
    description: The schema for the extensions. PoWA 4 works in V(public) only, which is the default.
    type: str
  state:
    description:
      - V(absent) - drops the extension powa and those of O(extensions) from O(database), in one statement and nothing else. Database,
        schema and roles stay, and so do other extensions, for example C(pg_stat_statements) if it is not in the list.
      - It is refused while a collector is connected to the database, and if objects of others need the extensions, for example tables
        of custom datasources. The error names them.
    type: str
    choices: [present, absent]
    default: present
  purge:
    description:
      - Whether O(state=absent) may delete registered servers and history. Without it that is refused, with what would be lost.
    type: bool
    default: false
  extensions:
    description:
      - Further extensions that O(database) is to have, for example C(pg_qualstats), C(pg_stat_kcache), C(pg_wait_sampling),
        C(pg_track_settings) and C(hypopg). C(pg_stat_statements) and C(btree_gist) come with powa.
      - C(pg_track_settings) has to be on both sides, the others on the remote side only.
      - An extension that is not in the list is left alone.
      - C(pg_stat_kcache) can be created only once its library is loaded. Until then it stands in RV(deferred).
    type: list
    elements: str
    default: []
  version:
    description:
      - Version of powa to create or, with O(update=true), to update to. Without this option the newest that the packages have.
      - The repository and all its remote servers must have the same first two numbers.
    type: str
  update:
    description:
      - Update powa and O(extensions) where the packages have newer versions.
      - There is no way from PoWA 4 to 5, and the module refuses to try.
    type: bool
    default: false
  grant_to:
    description:
      - Logins and what they are to be able to do. They must exist. Rights are only ever added.
    type: list
    elements: dict
    default: []
    suboptions:
      role:
        description: Name of the login.
        type: str
        required: true
      access:
        description:
          - V(collector) - on a repository, the login of powa-collector. The default there.
          - V(reader) - on a repository, a login of powa-web. It reads everything, also passwords in C(powa_servers).
          - V(manager) - on a repository, a login that registers servers, for M(pgfleet.ops.powa_server).
          - V(monitor) - on a remote server, the login as which the collector comes. The default there.
        type: str
        choices: [collector, reader, manager, monitor]
  settings:
    description:
      - Parameters of the server by name, for example C(pg_stat_statements.track) or C(track_io_timing). Those of the libraries
        C(powa), C(pg_stat_statements), C(pg_stat_kcache), C(pg_qualstats) and C(pg_wait_sampling), and of PostgreSQL itself
        C(compute_query_id), C(track_activities), C(track_activity_query_size), C(track_cost_delay_timing), C(track_counts),
        C(track_functions), C(track_io_timing) and C(track_wal_io_timing).
      - A value that differs from that of the configuration files is written with C(ALTER SYSTEM), and the server reloads its
        configuration. V(1GB) and V(1024MB) are the same. V(null) removes what C(ALTER SYSTEM) has set, so that the other files count again.
      - A parameter that changes with a restart only is written and named in RV(restart_reason). A parameter of a library that is not
        loaded is not written, as no server can check its value yet. It is named in RV(deferred_settings) and RV(restart_reason).
      - They belong to one node and are not replicated. This option does the same on a standby as on a primary, whatever O(on_standby)
        says. A value that came with C(ALTER DATABASE) or C(ALTER ROLE) is not looked at.
      - C(shared_preload_libraries) is not among them. RV(preload_expected) says what it has to be.
    type: dict
    default: {}
  on_standby:
    description:
      - What to do about database, extensions and rights on a standby. They come from its primary.
      - V(verify) - fail if the standby lacks something, after O(timeout).
      - V(skip) - only report.
    type: str
    choices: [verify, skip]
    default: verify
  timeout:
    description:
      - How many seconds a standby may take to receive what the primary has, and O(state=absent) to get its locks.
    type: float
    default: 30
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - O(login_user) must be a superuser, as the extension powa is not trusted.
seealso:
  - module: pgfleet.ops.powa_server
  - module: pgfleet.ops.powa_collector
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: A repository with the rights of the collector and of powa-web
  pgfleet.ops.powa_archivist:
    side: repository
    extensions: [pg_track_settings]
    grant_to:
      - {role: powa_collector, access: collector}
      - {role: powa_web, access: reader}

- name: A server to collect from
  pgfleet.ops.powa_archivist:
    login_host: 10.0.0.11
    side: remote
    extensions: [pg_qualstats, pg_stat_kcache, pg_wait_sampling, pg_track_settings, hypopg]
    grant_to:
      - role: powa
  register: archivist

- name: Stop here if the server has to be restarted first
  ansible.builtin.assert:
    that: not archivist.restart_required
    fail_msg: "{{ archivist.restart_reason }}"

- name: What is measured, on every node of a cluster
  pgfleet.ops.powa_archivist:
    side: remote
    on_standby: skip
    settings:
      track_io_timing: true
      track_functions: all
      pg_stat_statements.max: 10000
      pg_qualstats.sample_rate: null

- name: Take PoWA away from a server that is not collected from any more
  pgfleet.ops.powa_archivist:
    side: remote
    state: absent
    extensions: [pg_qualstats, pg_stat_kcache, pg_wait_sampling, pg_track_settings, hypopg]
"""

RETURN = r"""
database:
  description: The database with the extensions.
  type: str
  returned: success
side:
  description: As the option.
  type: str
  returned: success
in_recovery:
  description: Whether the server is a standby.
  type: bool
  returned: success
version:
  description: Version of powa; none in check mode while it is not installed.
  type: str
  returned: success
  sample: 4.1.4
schema:
  description: Schema of powa.
  type: str
  returned: success
  sample: public
extensions:
  description: The extensions that this task is about and that are installed, with their versions.
  type: dict
  returned: success
  sample: {powa: 4.1.4, pg_stat_statements: "1.10"}
updates_available:
  description: Versions that O(update=true) would install, by extension.
  type: dict
  returned: success
deferred:
  description: Wanted extensions that can be created only after a restart of the server.
  type: list
  elements: str
  returned: success
preload_missing:
  description: Libraries that are not loaded and have to be.
  type: list
  elements: str
  returned: success
preload_expected:
  description: What C(shared_preload_libraries) should be, in an order with which the server starts.
  type: str
  returned: success
  sample: pg_stat_statements,pg_stat_kcache
settings:
  description: What the running server has of O(settings), in the units of C(pg_settings).
  type: dict
  returned: success
  sample: {track_io_timing: "on"}
deferred_settings:
  description: Parameters of O(settings) that were not written, as their libraries are not loaded.
  type: list
  elements: str
  returned: success
removed:
  description:
    - What O(state=absent) has deleted, or would in check mode. Rows and bytes are those of history; more than 100000
      rows of a table are estimated. None if there was nothing to drop.
  type: dict
  returned: success
  sample: {servers: [prod1], rows: 5120, bytes: 1048576}
dependents:
  description: Objects that need what O(state=absent) was to drop.
  type: list
  elements: str
  returned: failure because of them
collectors:
  description: Sessions of collectors, while which O(state=absent) drops nothing.
  type: list
  elements: str
  returned: failure because of them
restart_required:
  description: Whether the server has to be restarted before everything works. This module never does it.
  type: bool
  returned: success
restart_reason:
  description: Why, and what to set before; empty if RV(restart_required) is false.
  type: str
  returned: success
missing_packages:
  description: Packages of Debian with the files that are not there.
  type: list
  elements: str
  returned: failure because of missing files
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import CONNECTION, ArgumentSpec, run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.powa_archivist import PowaArchivist

SPEC = CONNECTION.merge(
    ArgumentSpec(
        {
            "side": {"type": "str", "choices": ["repository", "remote"], "required": True},
            "database": {"type": "str", "default": "powa"},
            "schema": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "purge": {"type": "bool", "default": False},
            "settings": {"type": "dict", "default": {}},
            "extensions": {"type": "list", "elements": "str", "default": []},
            "version": {"type": "str"},
            "update": {"type": "bool", "default": False},
            "grant_to": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "role": {"type": "str", "required": True},
                    "access": {"type": "str", "choices": ["collector", "reader", "manager", "monitor"]},
                },
            },
            "on_standby": {"type": "str", "choices": ["verify", "skip"], "default": "verify"},
            "timeout": {"type": "float", "default": 30},
        }
    )
)


def main() -> None:
    run(PowaArchivist, SPEC)


if __name__ == "__main__":
    main()
