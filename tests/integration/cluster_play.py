# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks on a cluster of switchover_site: its nodes and poolers as an inventory that nothing here has deployed."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

from lab import BIN, SUPERUSER_PASSWORD, ansible_environment

CLUSTER = "orders"


def inventory(site, hosts=None, **variables):
    """The path of an inventory; ``variables`` hold for all of its hosts, ``hosts`` has those of single ones, and of further ones, by name."""
    nodes = {
        node.name: {
            "pgfleet_roles": ["postgresql_node"], "postgresql_node_port": node.port, "postgresql_node_data_directory": str(node.data),
            "postgresql_node_config_directory": str(node.config), "postgresql_node_log_file": str(node.log), "postgresql_node_passfile": str(node.passfile),
        }
        for node in site.nodes
    }  # fmt: skip
    poolers = {
        pooler.name: {"pgfleet_roles": ["pgbouncer"], "pgbouncer_port": pooler.port, "pgbouncer_databases_file": str(pooler.databases_file),
                      "pgbouncer_config_file": str(pooler.ini)}
        for pooler in site.poolers
    }  # fmt: skip
    common = {
        "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "pgfleet_cluster": CLUSTER,
        "postgresql_node_method": "pg_ctl", "postgresql_node_address": "127.0.0.1", "postgresql_node_bin_directory": str(BIN),
        "postgresql_node_superuser_password": SUPERUSER_PASSWORD, "postgresql_node_replication_user": "postgres",
        "pgbouncer_method": "process", "pgbouncer_address": "127.0.0.1", "pgbouncer_admin_user": "pooler_admin",
        "pgbouncer_admin_password": SUPERUSER_PASSWORD, "pgfleet_lock_directory": str(site.lab.path / "lock"), **variables,
    }  # fmt: skip
    members = {**nodes, **poolers}
    for name, own in (hosts or {}).items():
        members.setdefault(name, {}).update(own)
    path = site.lab.path / "hosts.json"
    path.write_text(json.dumps({"all": {"vars": common, "children": {CLUSTER: {"hosts": members}}}}))
    return path


def play(site, playbook, *arguments, fails=False, variables=None, hosts=None, **extra):
    """Run one of the collection's playbooks on the cluster. ``extra`` is given with -e. Returns the output and how many changes each host had."""
    argv = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", inventory(site, hosts, **(variables or {})), "pgfleet.ops." + playbook]
    argv += ["-e", json.dumps({"cluster": CLUSTER, **extra}), *arguments]
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False, cwd="/", env=ansible_environment()
    )
    output = done.stdout + done.stderr
    assert bool(done.returncode) is fails, output
    assert SUPERUSER_PASSWORD not in output and json.dumps(SUPERUSER_PASSWORD)[1:-1] not in output
    return output, {host: int(n) for host, n in re.findall(r"^(\w+)\s+: ok=.* changed=(\d+)", done.stdout, re.M)}
