# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fdw_wrapper
short_description: Keep a foreign-data wrapper for classes in Python, its runtime and its guard
version_added: "0.1.0"
description:
  - Creates a foreign-data wrapper whose servers name a class in Python (C(package.module.Class)), as Multicorn does.
  - A guard lets servers name classes of listed packages only, and nothing but a server name one. With Multicorn's own validator whoever may use a server
    can name any callable in a user mapping, and has it run as the server's account.
  - The classes run in Multicorn's C extension, or in PL/Python where that is not installed. Changing O(runtime) changes every table of the wrapper in
    place; none is dropped, and rights on them and views of them stay.
  - The guard, and an outbox for what is written with PL/Python, are in the schema C(pgfleet_fdw), which is created.
  - Proves that the server's own Python can import the packages. Catalogs are replicated and packages are not, so run it on every node; on a standby it
    changes nothing and only looks.
options:
  name:
    description: Name of the foreign-data wrapper.
    type: str
    required: true
  state:
    description:
      - V(present) creates or changes it.
      - V(absent) drops it with its guard. Refused while it has servers. Extension and schema stay.
    type: str
    choices: [present, absent]
    default: present
  packages:
    description: Packages whose classes servers may name, as Python imports them. They must be where the server's Python finds them.
    type: list
    elements: str
    default: [pgfleet_fdw]
  runtime:
    description:
      - What runs the classes. V(auto) is V(multicorn) where its files are installed, else V(plpython).
      - See the guide on foreign data wrappers for what each can do.
    type: str
    choices: [auto, multicorn, plpython]
    default: auto
  stale_sessions:
    description:
      - Sessions keep the code that they have loaded. Those of this database that began before a file of a package was changed are warned of (V(report)), or
        ended (V(terminate)).
    type: str
    choices: [report, terminate]
    default: report
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - Needs a superuser, as C(CREATE EXTENSION) and functions in PL/Python do.
  - Packages are looked for by PL/Python. Where only Multicorn is installed, a package that is missing shows when a server that names it is made.
seealso:
  - module: pgfleet.ops.fdw_server
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Wrappers of this collection and our own
  pgfleet.ops.fdw_wrapper:
    login_unix_socket: /var/run/postgresql
    login_db: shop
    name: fleet
    packages: [pgfleet_fdw, shop_fdw]
  become: true
  become_user: postgres

- name: The C extension is installed now
  pgfleet.ops.fdw_wrapper:
    login_unix_socket: /var/run/postgresql
    login_db: shop
    name: fleet
    packages: [pgfleet_fdw, shop_fdw]
    runtime: multicorn
    stale_sessions: terminate
  become: true
  become_user: postgres
"""

RETURN = r"""
runtime:
  description: What runs the classes, V(multicorn) or V(plpython); null with O(state=absent).
  returned: success
  type: str
  sample: plpython
wrapper:
  description: The foreign-data wrapper afterwards; null where there is none.
  returned: success
  type: dict
  sample: {name: fleet, owner: postgres, handler: null, validator: "pgfleet_fdw.fleet_guard(text[],oid)", options: {}, extension: null}
python:
  description: What the server's Python says. Null where PL/Python is not there to ask it.
  returned: success
  type: dict
  contains:
    version:
      description: Its version.
      type: str
    prefix:
      description: Where it is installed.
      type: str
    path:
      description: Where it looks for packages.
      type: list
      elements: str
    packages:
      description: By name C(file), C(changed) (seconds since 1970) and C(error), each or null.
      type: dict
stale_sessions:
  description: Sessions of this database that may hold old code, with C(pid), C(user), C(application), C(type) and C(since).
  returned: success
  type: list
  elements: dict
standby:
  description: Whether the server is a standby.
  returned: success
  type: bool
plan:
  description: The steps; the same list in check mode.
  returned: always
  type: list
  elements: str
  sample: ["create extension plpython3u", "create foreign-data wrapper fleet, run by plpython"]
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
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.fdw_wrapper import FDW_WRAPPER, ForeignDataWrapper


def main() -> None:
    run(ForeignDataWrapper, FDW_WRAPPER)


if __name__ == "__main__":
    main()
