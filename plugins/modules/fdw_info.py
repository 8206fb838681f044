# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fdw_info
short_description: Foreign-data wrappers, servers and tables of a database, and what is wrong with them
version_added: "0.1.0"
description:
  - Reads the foreign data objects of a database with their options; never the values of user mappings.
  - Lets every table be planned, so that an option which its wrapper does not take shows before somebody needs the table.
  - Looks whether the server's Python can import packages; run it on every node, as packages are not replicated.
options:
  wrappers:
    description: Only these foreign-data wrappers. One that is missing is a problem.
    type: list
    elements: str
  packages:
    description: >-
      Packages in Python to look for. To ask takes the extension plpython3u in the database and a superuser; without
      these it is a problem that nobody knows.
    type: list
    elements: str
    default: []
  check:
    description:
      - Let every table be planned (C(EXPLAIN)), and with PL/Python its class be made. Wrappers that ask the other side to plan, such as C(postgres_fdw) with
        C(use_remote_estimate), do that.
    type: bool
    default: true
  fail_on_problems:
    description: Fail if RV(problems) has any.
    type: bool
    default: false
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.info
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
seealso:
  - module: pgfleet.ops.fdw_wrapper
  - module: pgfleet.ops.fdw_server
  - module: pgfleet.ops.fdw_table
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Foreign data of this node
  pgfleet.ops.fdw_info:
    login_unix_socket: /var/run/postgresql
    login_db: shop
    packages: [pgfleet_fdw, shop_fdw]
    fail_on_problems: true
  become: true
  become_user: postgres
"""

RETURN = r"""
wrappers:
  description:
    - The foreign-data wrappers, each with C(name), C(runtime) (V(multicorn), V(plpython) or null), C(owner), C(handler), C(validator), C(extension),
      C(options) and C(servers).
    - A server has C(name), C(owner), C(type), C(version), C(options), C(usage), C(mappings) (roles), C(dependents) (what C(DROP SERVER) would ask
      C(CASCADE) for) and C(tables); a table C(schema), C(name), C(foreign_table), C(writable), C(options), C(columns), C(dependents) (views and others
      that use it) and C(problem).
  returned: success
  type: list
  elements: dict
extensions:
  description: For each runtime its extension, with C(name), C(installed), C(created) and C(default).
  returned: success
  type: dict
python:
  description: What the server's Python says, as of M(pgfleet.ops.fdw_wrapper); null without PL/Python.
  returned: success
  type: dict
problems:
  description: What is wrong, in words.
  returned: success
  type: list
  elements: str
  sample: ["public.stock: there is no option \"colour\""]
standby:
  description: Whether the server is a standby.
  returned: success
  type: bool
error:
  description: Class of the error.
  returned: failure
  type: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.fdw_info import FDW_INFO, ForeignDataInfo


def main() -> None:
    run(ForeignDataInfo, FDW_INFO)


if __name__ == "__main__":
    main()
