# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_archive_cleanup
short_description: Remove from a WAL archive what nobody needs any more
version_added: "0.1.0"
description:
  - Removes the WAL segments that are older than anything that a base backup, a replication slot or a member of the cluster would begin with.
  - What is needed is asked, from every member of the cluster and from the archive's own backup history files. If a member does not answer, or
    no restorable base backup is known, nothing is removed.
  - Only WAL segments (whole or C(.partial), plain or with C(.gz), C(.zst), C(.lz4), C(.xz), C(.bz2)) and the C(.backup) files of
    backups before them are ever removed. Timeline history files and everything else in the directory stay.
  - Segments are compared by their position, not by their timeline, as C(pg_archivecleanup) does. A segment of an earlier timeline
    stays if it is at or after the oldest position that is needed.
  - While a base backup is being taken from a member nothing is removed, as no server tells where it began.
  - Run it on the host that has the archive. Segments are removed oldest first, so a run that is killed leaves no hole.
  - This is HandyRep's C(cleanup_archive) and the plugin C(archive_delete_find), which looked at the age of files alone.
options:
  archive_directory:
    description:
      - The directory that C(archive_command) copies to, an absolute path.
      - A data directory, C(pg_wal), a home directory, a top level directory and the root of a mounted file system are refused, also behind a symbolic link.
    type: path
    required: true
  nodes:
    description: Every member of the cluster. Each is asked for its role, its last checkpoint or restart point, its slots and who streams from it.
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
        description: Name or address where the other nodes reach it; not used here.
        type: str
      priority:
        description: Not used here.
        type: int
        default: 100
  ignore_nodes:
    description:
      - Members of O(nodes) that need not answer, as they will be made anew. What they would need may be removed.
      - One that answers all the same is respected.
    type: list
    elements: str
    default: []
  keep_backups:
    description:
      - The WAL of as many base backups stays, the newest ones that can be restored.
      - A base backup is known by its C(.backup) file in the archive. It counts if every segment between its start and its end is in the archive, and if
        it lies in the past of the cluster's timeline. Whether its copy of the data still exists cannot be seen here.
      - A backup that was taken from a standby leaves no such file; name it in O(oldest_backup).
    type: int
    default: 1
  ignore_labels:
    description:
      - Base backups with a label that matches one of these patterns do not count.
      - The copy of a new standby is a base backup too, and nobody keeps it. Those that M(pgfleet.ops.pg_clone) makes are left out by the default;
        a standby that was copied by hand has C(pg_basebackup)'s own label unless it was given one.
    type: list
    elements: str
    default: ['pgfleet.ops clone*']
  oldest_backup:
    description:
      - The oldest base backups that must stay restorable, for tools that keep their own lists, as pgBackRest and barman do.
      - Each entry is the name of the first WAL segment that the backup needs (24 hexadecimal digits), of a C(.backup) file in the archive, or the label
        of a backup in the archive. What O(keep_backups) finds stays too.
    type: list
    elements: str
    default: []
  without_backups:
    description: Go on if no base backup is known. Then only the members of the cluster count, and no point-in-time recovery is left.
    type: bool
    default: false
  keep_hours:
    description: Files that were written within as many hours stay in any case.
    type: float
    default: 0
  verify_contents:
    description:
      - Look at the first page of each segment before it is removed, and refuse if it is of another cluster or of another position than its name says.
      - Segments with C(.zst) or C(.lz4) cannot be looked into.
    type: bool
    default: true
  timeout:
    description: Seconds for all nodes together.
    type: float
    default: 10
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
notes:
  - The login needs no more than membership in C(pg_monitor). All nodes are asked with the same login.
  - A server that recovers from the archive and is not among O(nodes) is not seen. List it in O(nodes), or name what it starts from in O(oldest_backup).
  - Do not run this while a base backup is being restored. The playbook C(pgfleet.ops.clean_archive) holds the cluster's operation lock.
seealso:
  - module: pgfleet.ops.pg_archiving
  - module: pgfleet.ops.pg_cluster_info
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: See what would go from the archive
  pgfleet.ops.pg_archive_cleanup:
    archive_directory: /srv/wal_archive/shop
    keep_backups: 2
    login_user: monitor
    nodes:
      - {name: db1, host: db1.example.com}
      - {name: db2, host: db2.example.com}
  become: true
  become_user: postgres
  check_mode: true
  diff: true

- name: Keep what the oldest backup of another tool needs, and three days
  pgfleet.ops.pg_archive_cleanup:
    archive_directory: /srv/wal_archive/shop
    oldest_backup: ["00000002000000A100000042"]
    keep_hours: 72
    login_user: monitor
    nodes:
      - {name: db1, host: db1.example.com}
      - {name: db2, host: db2.example.com}
  become: true
  become_user: postgres
"""

RETURN = r"""
archive_directory:
  description: The directory, without symbolic links.
  returned: success
  type: str
  sample: /srv/wal_archive/shop
removed:
  description: The files that were removed, or would be in check mode, oldest first.
  returned: success, and when a removal has failed what was removed until then
  type: list
  elements: str
removed_bytes:
  description: How many bytes they have.
  returned: as RV(removed)
  type: int
  sample: 16777216
kept:
  description: How many WAL segments stay.
  returned: success
  type: int
  sample: 12
oldest_kept:
  description: The oldest segment that stays, null when there is none.
  returned: success
  type: str
  sample: "00000002000000A100000042"
oldest_needed:
  description: The oldest segment that is needed.
  returned: success
  type: str
  sample: "00000002000000A100000042"
needed_by:
  description: Why, a sentence for each that starts in this segment.
  returned: success
  type: list
  elements: str
  sample: ["the slot db2 on db1 begins at A1/42000028"]
too_young:
  description: How many files stay for O(keep_hours) alone.
  returned: success
  type: int
  sample: 0
backups:
  description: The base backups that the archive knows, each with its file, label and end, whether it counts, and if not, why.
  returned: success
  type: list
  elements: dict
hole:
  description: The first segment that is missing between the oldest needed and the newest one, null when there is none.
  returned: success
  type: str
plan:
  description: The steps that are needed, the same in check mode.
  returned: always
  type: list
  elements: str
performed:
  description: The steps that were done.
  returned: always
  type: list
  elements: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.archive_cleanup import PG_ARCHIVE_CLEANUP, ArchiveCleanup


def main() -> None:
    run(ArchiveCleanup, PG_ARCHIVE_CLEANUP)


if __name__ == "__main__":
    main()
