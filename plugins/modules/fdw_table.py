# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fdw_table
short_description: Keep foreign tables as declared, or as the other side offers them
version_added: "0.1.0"
description:
  - Creates foreign tables and changes them in place, options one by one with C(ADD), C(SET) and C(DROP), columns with C(ALTER FOREIGN TABLE). A table is
    never dropped to be made anew.
  - With O(import_schema) the tables are those that the other side offers, as C(IMPORT FOREIGN SCHEMA) makes them, and a second run finds them as they are.
    What is offered no longer stays.
  - For servers of M(pgfleet.ops.fdw_wrapper) what clients use is a view, O(name). Its foreign table is O(name) with C(_ft); with PL/Python there are the
    functions with C(_scan) and, where it can be written, C(_write). Changing the runtime replaces the view in place.
  - All changes are one transaction.
options:
  name:
    description: Name of the table. Either this or O(import_schema) is needed.
    type: str
  schema:
    description: Schema of the table.
    type: str
    default: public
  create_schema:
    description: Create O(schema) where it is missing.
    type: bool
    default: false
  state:
    description:
      - V(present) creates or changes tables.
      - V(absent) drops the one with O(name), with its view and functions.
    type: str
    choices: [present, absent]
    default: present
  server:
    description: The foreign server. Required with O(state=present). It cannot be changed later.
    type: str
  columns:
    description:
      - All columns of the table O(name). Others are dropped. Where a column is dropped or has another type, the view is made anew with its rights; refused
        while anything depends on it.
      - The order counts only when the table is created; later ones are added behind.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the column.
        type: str
        required: true
      type:
        description: Its type, in any words that PostgreSQL knows.
        type: str
        required: true
      not_null:
        description: Whether the other side promises a value. PostgreSQL does not check it.
        type: bool
        default: false
      options:
        description: Options of the column, exactly these.
        type: dict
        default: {}
  options:
    description: Options of the table, or of each table with O(import_schema). Values become text; null drops an option.
    type: dict
    default: {}
  options_exact:
    description: Drop options that O(options), or the import, does not have.
    type: bool
    default: true
  import_schema:
    description: Schema of the other side whose tables are to be here. What it means is the wrapper's; many do not look at it.
    type: str
  import_options:
    description: Options of the import.
    type: dict
    default: {}
  limit_to:
    description: Import only these.
    type: list
    elements: str
  exclude:
    description: Import all but these.
    type: list
    elements: str
  rows:
    description: How many rows a scan yields, about. Only PL/Python needs to be told; Multicorn asks the class.
    type: int
    default: 100
  writable:
    description:
      - Let the view be written with PL/Python; the class must be able to. Statements take effect at the end of their transaction, and what the class makes
        of a row is not seen before. With Multicorn views can always be written.
    type: bool
    default: false
  cascade:
    description: With O(state=absent), drop what depends on the table, too.
    type: bool
    default: false
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - With PL/Python who reads a view needs C(SELECT) on it and C(EXECUTE) on its function with C(_scan). The module grants the second to all who have the
    first; run it again after further grants.
seealso:
  - module: pgfleet.ops.fdw_server
  - module: pgfleet.ops.fdw_wrapper
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: A table of another database
  pgfleet.ops.fdw_table:
    login_unix_socket: /var/run/postgresql
    login_db: shop
    name: stock
    server: warehouse
    columns:
      - {name: item, type: bigint, not_null: true}
      - {name: amount, type: "numeric(12,3)"}
    options:
      schema_name: public
      table_name: stock
  become: true
  become_user: postgres

- name: All that the poolers tell
  pgfleet.ops.fdw_table:
    login_unix_socket: /var/run/postgresql
    login_db: shop
    schema: poolers
    server: poolers
    import_schema: pgbouncer
  become: true
  become_user: postgres
"""

RETURN = r"""
runtime:
  description: What runs the class, V(multicorn) or V(plpython); null for other wrappers.
  returned: success
  type: str
  sample: plpython
tables:
  description: The tables afterwards, or those that there were, in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    schema:
      description: Its schema.
      type: str
    name:
      description: What clients name.
      type: str
    foreign_table:
      description: Name of the foreign table.
      type: str
    server:
      description: Its server.
      type: str
    options:
      description: Its options.
      type: dict
    columns:
      description: Its columns, with C(name), C(type), C(not_null) and C(options).
      type: list
      elements: dict
plan:
  description: The steps; the same list in check mode.
  returned: always
  type: list
  elements: str
  sample: ["create public.stock on server warehouse"]
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
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.fdw_table import FDW_TABLE, ForeignTables


def main() -> None:
    run(ForeignTables, FDW_TABLE)


if __name__ == "__main__":
    main()
