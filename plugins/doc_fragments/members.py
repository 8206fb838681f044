# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Every member of a cluster, for operations on all of them; in step with MEMBER_OPTIONS in module_utils/_operations/members.py.
    DOCUMENTATION = r"""
options:
  nodes:
    description: Every member of the cluster. Which of them is the primary is asked, not told.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The node's name, unique in the list.
        type: str
        required: true
      host:
        description: Name or address where the host that runs this module reaches the node.
        type: str
        required: true
      port:
        description: The node's port.
        type: int
        default: 5432
      address:
        description: Name or address that the other nodes and the poolers use for it, if that is not O(nodes[].host).
        type: str
      priority:
        description: Among standbys that are equally good for something, the one with the lowest number is taken.
        type: int
        default: 100
      conninfo:
        description:
          - libpq keywords with which this node streams from whichever node is the primary, for example C(user), C(passfile) and C(sslmode).
          - Without it the node's own C(primary_conninfo) counts, then the candidate's.
          - A C(password) is refused, because it would be written to C(postgresql.auto.conf); name a C(passfile).
        type: dict
        default: {}
      slot:
        description:
          - Name of the replication slot for this node on the primary.
          - Without it the node's C(primary_slot_name) counts, then its name with underscores; no slot is made where the cluster uses none.
        type: str
      upstream:
        description: Name of the standby that this node follows in a cascade; it is then left alone. All other nodes follow the primary.
        type: str
      data_directory:
        description: The node's data directory; without it the server is asked, which one that is down cannot be.
        type: path
      config_file:
        description: The node's C(postgresql.conf); without it the server is asked.
        type: path
      bin_directory:
        description: Directory of C(pg_ctl) on the node's host.
        type: path
      method:
        description: How the node's server is started, see M(pgfleet.ops.pg_instance).
        type: str
        choices: [auto, systemd, pg_ctlcluster, pg_ctl]
        default: auto
      unit:
        description: The systemd unit for O(nodes[].method=systemd).
        type: str
      log_file:
        description: The server's log for O(nodes[].method=pg_ctl).
        type: path
      shell:
        description:
          - The command before which a program runs on the node's host as the owner of the data directory (or root), such as
            C([ssh, db1, sudo, -n, -u, postgres]). It is opened before anything is changed and must not ask for anything.
          - Empty means this host and this user.
        type: list
        elements: str
        default: []
"""
