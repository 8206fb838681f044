# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # The poolers, for operations that move them with the primary; in step with POOLERS in module_utils/_operations/poolers.py.
    DOCUMENTATION = r"""
options:
  poolers:
    description: Every PgBouncer whose entries lead to the cluster. One that is left out goes on sending its clients to the old primary.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The pooler's name, unique in the list.
        type: str
        required: true
      host:
        description: Name or address of the pooler.
        type: str
        required: true
      port:
        description: Port of the pooler.
        type: int
        default: 6432
      user:
        description: A role in the pooler's C(admin_users), instead of O(pooler_user).
        type: str
      password:
        description: Its password, instead of O(pooler_password).
        type: str
      config_file:
        description: The file on the pooler's host that holds the [databases] section, C(pgbouncer.ini) itself or a file that it includes.
        type: path
        required: true
      shell:
        description: As O(nodes[].shell), for a user who may write O(poolers[].config_file) and has psycopg 3.
        type: list
        elements: str
        default: []
  pooler_user:
    description: Console login for all poolers, instead of O(login_user).
    type: str
  pooler_password:
    description: Its password, instead of O(login_password).
    type: str
  readonly_suffix:
    description: Entries whose name ends like this, or this and a number, lead to a standby; all others that lead to the primary lead to the new one afterwards.
    type: str
    default: _ro
  readonly_databases:
    description: Names of further entries that lead to a standby.
    type: list
    elements: str
    default: []
  pause_timeout:
    description: How long the poolers may take to drain, in seconds; after it they are resumed and nothing has changed.
    type: float
    default: 2
  timeout:
    description:
      - The longest time in seconds that a pooler may stay paused, whatever happens to this process.
      - Half of it is for the way forward, the other half for the way back.
    type: float
    default: 30
"""
