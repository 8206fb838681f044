# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fdw_server
short_description: Keep a foreign server, its options, user mappings and rights as declared
version_added: "0.1.0"
description:
  - Creates a foreign server, or changes the one that is there, option by option with C(ADD), C(SET) and C(DROP). It is never dropped to be made anew, which
    would take its foreign tables, views on them and rights along.
  - Serves any foreign-data wrapper, C(postgres_fdw) and C(file_fdw) as well as wrappers in Python.
  - Where PL/Python runs the class that the option C(wrapper) of the server names, that class must be there; only a superuser's task can see to that.
  - All changes are one transaction.
options:
  name:
    description: Name of the server.
    type: str
    required: true
  state:
    description:
      - V(present) creates or changes the server.
      - V(absent) drops it with its user mappings. Where foreign tables use it, only with O(cascade).
    type: str
    choices: [present, absent]
    default: present
  wrapper:
    description:
      - Name of the foreign-data wrapper. It must be there, by C(CREATE EXTENSION) or M(pgfleet.ops.fdw_wrapper).
      - Required with O(state=present). It cannot be changed later.
    type: str
  type:
    description: Type of the server, for wrappers that want one. It cannot be changed later.
    type: str
  version:
    description: Version of the server, for wrappers that want one.
    type: str
  options:
    description:
      - Options of the server. Values become text; null drops an option.
      - Everybody who may connect can read them, so that passwords are refused here; they belong into O(mappings[].secrets).
    type: dict
    default: {}
  options_exact:
    description: Drop options that O(options) does not have.
    type: bool
    default: true
  owner:
    description: Role that owns the server. Without this option it stays as it is.
    type: str
  usage:
    description:
      - Roles besides the owner that may use the server, V(PUBLIC) for everybody; others lose that right. Without this option rights stay as they are.
      - Who reads a foreign table needs no such right. Who has it can create foreign tables and a user mapping of his own, and with some wrappers reach
        more than you want.
    type: list
    elements: str
  mappings:
    description: User mappings of the server.
    type: list
    elements: dict
    default: []
    suboptions:
      role:
        description: The role on this side, V(PUBLIC) for everybody without a mapping of his own.
        type: str
        required: true
      options:
        description: Options of the mapping, exactly these and O(mappings[].secrets), for example C(user).
        type: dict
        default: {}
      secrets:
        description: Options of the mapping whose values are shown nowhere, for example C(password).
        type: dict
        default: {}
  mappings_exact:
    description: Drop user mappings of roles that O(mappings) does not have.
    type: bool
    default: false
  cascade:
    description: With O(state=absent), drop what uses the server, too. RV(dependents) lists it.
    type: bool
    default: false
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - Connect as the owner of the server or as a superuser, since nobody else sees the options of user mappings.
seealso:
  - module: pgfleet.ops.fdw_wrapper
  - module: pgfleet.ops.fdw_table
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: A server for tables of the warehouse
  pgfleet.ops.fdw_server:
    login_unix_socket: /var/run/postgresql
    login_db: shop
    name: warehouse
    wrapper: postgres_fdw
    options:
      host: warehouse.example.com
      dbname: warehouse
      fetch_size: 1000
    mappings:
      - role: reporting
        options:
          user: shop
        secrets:
          password: "{{ warehouse_password }}"
  become: true
  become_user: postgres

- name: Drop it with all foreign tables
  pgfleet.ops.fdw_server:
    login_unix_socket: /var/run/postgresql
    login_db: shop
    name: warehouse
    state: absent
    cascade: true
  become: true
  become_user: postgres
"""

RETURN = r"""
server:
  description: The server afterwards; null where there is none.
  returned: success
  type: dict
  sample: {name: warehouse, wrapper: postgres_fdw, owner: postgres, type: null, version: null, options: {host: warehouse.example.com}, usage: []}
mappings:
  description: Roles that have a user mapping.
  returned: success
  type: list
  elements: str
  sample: [reporting]
dependents:
  description: What uses the server.
  returned: success
  type: list
  elements: str
  sample: [foreign table stock]
plan:
  description: The steps; the same list in check mode.
  returned: always
  type: list
  elements: str
  sample: ["change options of server warehouse: SET host"]
performed:
  description: The steps that were done.
  returned: always
  type: list
  elements: str
error:
  description: Class of the error.
  returned: failure
  type: str
phase:
  description: How far it came.
  returned: failure
  type: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.fdw_server import FDW_SERVER, ForeignServer


def main() -> None:
    run(ForeignServer, FDW_SERVER)


if __name__ == "__main__":
    main()
