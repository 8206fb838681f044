# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Who connects and how; in step with LOGIN in module_utils/_module.py.
    LOGIN = r"""
options:
  login_user:
    description:
      - The role to connect as.
      - Without this option the environment variable E(PGUSER) counts, then V(postgres).
    type: str
  login_password:
    description:
      - The password of O(login_user).
      - Without this option the environment variable E(PGPASSWORD) counts, then a passfile
        (E(PGPASSFILE), or C(passfile) in O(connect_params)).
    type: str
  login_db:
    description:
      - The database to connect to.
      - Without this option the environment variable E(PGDATABASE) counts, then V(postgres).
    type: str
  ssl_mode:
    description:
      - Whether and how the connection is encrypted, as libpq's C(sslmode).
      - Without this option the environment variable E(PGSSLMODE) counts, then libpq's own default.
    type: str
    choices: [allow, disable, prefer, require, verify-ca, verify-full]
  ca_cert:
    description: File with the certificate authorities, as libpq's C(sslrootcert); environment variable E(PGSSLROOTCERT).
    type: path
  ssl_cert:
    description: File with the client's certificate; environment variable E(PGSSLCERT).
    type: path
  ssl_key:
    description: File with the client's private key; environment variable E(PGSSLKEY).
    type: path
  connect_params:
    description: Further libpq connection keywords, for example C(passfile) or C(service). They win over the other options.
    type: dict
    default: {}
requirements:
  - psycopg >= 3.1 on the host that runs the module (Debian and Ubuntu C(python3-psycopg))
"""

    # One server to connect to, beside LOGIN; in step with CONNECTION in module_utils/_module.py.
    SERVER = r"""
options:
  login_host:
    description:
      - Name, address or socket directory of the server.
      - Without this option the environment variable E(PGHOST) counts, then libpq's own default.
    type: str
  login_port:
    description: Port of the server; environment variable E(PGPORT), then V(5432).
    type: int
  login_unix_socket:
    description: Directory of the server's socket. Wins over O(login_host).
    type: str
notes:
  - An empty string counts as an option that is not set, as AWX surveys send it.
"""
