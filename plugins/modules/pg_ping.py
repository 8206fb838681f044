# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_ping
short_description: Whether a PostgreSQL server is up, rejecting, silent or refuses the login
version_added: "0.1.0"
description:
  - Asks one server and tells five answers apart. V(up), V(rejecting) (it starts, recovers, shuts down or is full), V(no_answer),
    V(authentication_failed) (it answers and does not let this login in) and V(tool_missing) (neither psycopg nor C(pg_isready) is on this host).
  - Asks again, up to O(retries) times, until the answer is the expected one.
  - Fails unless the answer is one of O(expect). The failure carries all return values.
  - V(no_answer) is no proof that the server is down. It may hang, be paused by its pooler, or be behind a network that is broken.
  - This is HandyRep's C(poll) with the plugins C(poll_isready) and C(poll_connect). HandyRep takes a server that rejects connections for one that is up,
    see the examples.
options:
  expect:
    description:
      - The answers with which the task succeeds. V(any) is all of them, for a task that only wants to know.
    type: list
    elements: str
    choices: [up, rejecting, no_answer, authentication_failed, tool_missing, any]
    default: [up]
  expect_role:
    description:
      - The role that a server which is up must have, else the task fails. V(primary) accepts writes, V(standby) is in recovery.
      - To ask for the role takes a login. C(pg_isready) cannot.
    type: str
    choices: [any, primary, standby]
    default: any
  retries:
    description:
      - How many more times to ask while the answer or the role is not the expected one.
      - After V(authentication_failed) and V(tool_missing) the server is not asked again, as waiting heals neither.
    type: int
    default: 0
  delay:
    description: Seconds between two attempts.
    type: float
    default: 1
  timeout:
    description: Seconds for each attempt, the resolution of the name included.
    type: float
    default: 5
  method:
    description:
      - V(psycopg) logs in and asks for the role.
      - V(pg_isready) runs that program, which logs in to nothing. O(connect_params) other than C(hostaddr) have no effect then.
      - V(auto) is V(psycopg) where that is installed, else V(pg_isready).
    type: str
    choices: [auto, psycopg, pg_isready]
    default: auto
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.info
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - The login needs no right but to connect to O(login_db). It may lead through a PgBouncer.
  - A server that is up does not let this login in when the password is wrong, C(pg_hba.conf) has no line for it, the role or the database is missing,
    or the certificate is not trusted. All of these are V(authentication_failed), and RV(answer) says which.
seealso:
  - module: pgfleet.ops.pg_cluster_info
  - module: pgfleet.ops.pg_instance
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Wait at most a minute until the server is up
  pgfleet.ops.pg_ping:
    login_host: db1.example.com
    login_user: monitor
    retries: 30
    delay: 2

- name: See that the pooler leads to a primary
  pgfleet.ops.pg_ping:
    login_host: pooler.example.com
    login_port: 6432
    login_user: app
    login_db: app
    expect_role: primary

- name: Count a server that is starting as up, as HandyRep does
  pgfleet.ops.pg_ping:
    login_host: db1.example.com
    method: pg_isready
    expect: [up, rejecting]

- name: Only ask
  pgfleet.ops.pg_ping:
    login_host: db1.example.com
    expect: [any]
  register: ping
"""

RETURN = r"""
status:
  description: The last answer, V(up), V(rejecting), V(no_answer), V(authentication_failed) or V(tool_missing).
  returned: success, and failure because of O(expect) or O(expect_role)
  type: str
  sample: up
answer:
  description: The answer in words, mostly the server's own.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: str
  sample: "db1.example.com:5432 is up: PostgreSQL 17.4, primary"
role:
  description: V(primary) or V(standby). Null where it could not be asked.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: str
  sample: primary
in_recovery:
  description: Whether the server is in recovery, that is a standby. Null where it could not be asked.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: bool
  sample: false
version:
  description: The server's version. Null where it could not be asked.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: str
  sample: "17.4"
method:
  description: V(psycopg) or V(pg_isready), whichever was used. Null if there is none.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: str
  sample: psycopg
attempts:
  description: How many times the server was asked.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: int
  sample: 1
answer_ms:
  description: Milliseconds that the last attempt took.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: float
  sample: 11.3
elapsed_ms:
  description: Milliseconds that all attempts took, with the delays between them.
  returned: success, and failure because of O(expect) or O(expect_role)
  type: float
  sample: 11.3
plan:
  description: Always empty.
  returned: always
  type: list
  elements: str
performed:
  description: Always empty.
  returned: always
  type: list
  elements: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.ping import PG_PING, Ping


def main() -> None:
    # That psycopg is missing is an answer.
    run(Ping, PG_PING, needs_psycopg=False)


if __name__ == "__main__":
    main()
