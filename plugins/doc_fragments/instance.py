# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # One instance on the host that runs the module; in step with INSTANCE in module_utils/_operations/instance.py.
    DOCUMENTATION = r"""
options:
  data_directory:
    description: The instance's data directory, an absolute path.
    type: path
    required: true
  config_file:
    description:
      - The instance's C(postgresql.conf), when it is outside of O(data_directory).
      - For O(data_directory) V(/var/lib/postgresql/VERSION/NAME) without a C(postgresql.conf) in it, the default is
        V(/etc/postgresql/VERSION/NAME/postgresql.conf).
    type: path
  bin_directory:
    description:
      - The directory with the server's programs.
      - The default is found from the data directory's version in V(/usr/lib/postgresql/VERSION/bin) or V(/usr/pgsql-VERSION/bin), then from C(pg_config).
    type: path
  method:
    description:
      - Who starts and stops the server.
      - V(auto) takes V(systemd) where systemd runs and has O(unit), V(pg_ctlcluster) when O(config_file) is below V(/etc/postgresql), else V(pg_ctl).
      - V(pg_ctl) needs a task that runs as the owner of the data directory (C(become_user)), V(systemd) usually one that runs as root.
      - V(command) runs O(start_command) and O(stop_command), for daemontools, runit and other supervisors. That the server is up or down then is proved
        as with the other methods.
    type: str
    choices: [auto, systemd, pg_ctlcluster, pg_ctl, command]
    default: auto
  start_command:
    description:
      - For O(method=command), the program and its arguments that start the server, for example V([svc, -u, /service/postgres]). No shell is involved.
      - It may end before the server is up.
    type: list
    elements: str
  stop_command:
    description:
      - For O(method=command), the program and its arguments that stop the server and keep it stopped, for example V([svc, -d, /service/postgres]).
      - It may end before the server is down. What it sends is mostly SIGTERM, which is mode smart; unless smart is wanted, the server gets the signal
        of the wanted mode as well.
    type: list
    elements: str
  unit:
    description:
      - The systemd unit.
      - The default is V(postgresql@VERSION-NAME) when O(config_file) is V(/etc/postgresql/VERSION/NAME/postgresql.conf),
        and V(postgresql-VERSION) when O(data_directory) is V(/var/lib/pgsql/VERSION/data).
    type: str
  log_file:
    description:
      - Where the server's messages go when V(pg_ctl) starts it, and where they are read from when a start fails.
      - The default is V(/var/log/postgresql/postgresql-VERSION-NAME.log) for a configuration below V(/etc/postgresql),
        else V(startup.log) in the data directory.
    type: path
  timeout:
    description: Seconds that each start or stop may take.
    type: int
    default: 60
"""
