# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_clone
short_description: Make this host's data directory a streaming standby of another server
version_added: "0.1.0"
description:
  - Copies a running server with C(pg_basebackup) into a new directory beside O(data_directory), proves the copy with C(pg_verifybackup),
    swaps it in by rename, starts it and waits until it streams. Only then the old directory is removed.
  - A directory that is down and whose WAL is all in the source's history, such as that of the old primary after a switchover, is not copied.
    It gets the settings of a standby and is started as it is.
  - One that has WAL of its own, such as that of a primary that was lost, needs O(reclone), and is then rewound with C(pg_rewind) where that is possible.
  - When anything fails, everything is put back as it was. The old directory is in its place again, a standby that ran runs again,
    and a slot that this run made is removed. What a killed run leaves behind is recognised and cleared by the next run.
  - Nothing is done when O(data_directory) already is a streaming standby of the source, nor when it streams from another server of the same cluster.
    In that case a warning says so. That it was made by this module plays no part.
  - This is HandyRep's C(clone) and C(reclone), without its ways to lose data.
  - It refuses the source's own directory (whatever name or symbolic link leads there), a directory with a running primary, one that belongs to another
    cluster, one that is not empty and holds no cluster, and a path that is a top level directory, a home directory or the root of a file system.
    Nor does it take the directory of a primary that is down while the source is only a standby of it.
options:
  source_host:
    description: Name or address of the server to copy and then to follow. It may be a primary or a standby.
    type: str
    required: true
  source_port:
    description: The port of the server to copy.
    type: int
    default: 5432
  replication_user:
    description: The role that copies and streams. It needs the attribute C(REPLICATION) and a line for C(replication) in the source's C(pg_hba.conf).
    type: str
    default: replication
  replication_passfile:
    description:
      - A libpq password file on this host with the password of O(replication_user). The server's user must be able to read it, nobody else may.
      - Its path, never the password, goes into C(primary_conninfo).
    type: path
  replication_password:
    description:
      - The password for the copy, handed over by the environment. It is not stored anywhere, so streaming needs O(replication_passfile),
        the server user's own password file, or another way to log in.
    type: str
  replication_connect_params:
    description:
      - Further libpq connection keywords for the copy and for C(primary_conninfo), for example C(sslcert).
      - O(ssl_mode) and O(ca_cert) count for them too. A C(password) in here is left out.
    type: dict
    default: {}
  slot_name:
    description:
      - A physical replication slot on the source for this standby. It is created when it is missing, and anew when it has lost WAL.
      - Without a slot the source may remove WAL that the standby still needs.
    type: str
  application_name:
    description: What the standby calls itself on the source. Without this option PostgreSQL takes the standby's C(cluster_name).
    type: str
  copy_method:
    description:
      - How the directory gets the source's data.
      - V(auto) takes the cheapest way that is safe. Nothing is copied for a directory that is down and whose WAL is in the source's history.
        One with WAL of its own is rewound if that is possible, and otherwise, as when there is none, a new copy is made. RV(copy_method) says which it was.
      - V(rewind) never makes a new copy, and is refused with the reason where the directory can neither be started as it is nor be rewound.
      - V(basebackup) always makes a new copy, also where the directory is damaged in a way that its WAL does not show.
      - To rewind takes data checksums or C(wal_log_hints), C(full_page_writes), the directory's own WAL back to the last checkpoint before the fork
        (or a C(restore_command)), a source that is on the same timeline as the directory or a newer one (before PostgreSQL 14 also a primary),
        the same tablespaces on both, and a login that is a superuser or may call the functions that C(pg_rewind) calls.
        A directory that was not shut down cleanly is first recovered in single user mode, in which no client can connect.
      - C(pg_rewind) also copies the source's C(pg_wal), so that with little data and much WAL a new copy may be no slower. There must be room for it.
      - A rewind changes the old directory, so that it is not done with O(keep_old). While it lasts the directory has another name, and O(data_directory)
        holds nothing that a server could be started on. A rewind that was broken off is followed by a new copy, by the next run.
    type: str
    choices: [auto, rewind, basebackup]
    default: auto
  tablespace_mapping:
    description:
      - For each tablespace location of the source, the directory on this host. A location that is not named is the same on this host.
      - A directory may be missing, empty, or a tablespace of the directory that is replaced.
    type: dict
    default: {}
  wal_directory:
    description:
      - A directory outside of O(data_directory) for the WAL.
      - Without this option the WAL goes where the directory that is replaced has it. What that has elsewhere than here stays as it is.
      - The root of a mounted file system is refused, as it cannot be replaced; name a directory below it.
    type: path
  max_rate:
    description: Limit of the copy's speed as C(pg_basebackup --max-rate) takes it, for example V(20M).
    type: str
  checkpoint:
    description:
      - V(fast) begins at once. V(spread) waits for an ordinary checkpoint of the source, usually minutes.
      - A source that is a standby makes a restartpoint instead, which begins at a checkpoint that its primary has made.
        The copy therefore may need WAL from further back.
    type: str
    choices: [fast, spread]
    default: fast
  verify:
    description: Check every file of the copy against the backup's manifest, and that the WAL that it needs is there.
    type: bool
    default: true
  reclone:
    description:
      - The consent to throw away what is there now. It does not lift any of the refusals in the description above.
      - A standby that runs is made anew. A directory that is down and holds WAL that the source does not have loses that; without this option
        the refusal says from which position on and how many bytes.
      - A directory that is down and holds nothing of its own needs this option only where O(copy_method=basebackup), or where the source
        no longer has the WAL that it needs.
    type: bool
    default: false
  keep_old:
    description: Leave the old directory beside the new one, as RV(kept_directory).
    type: bool
    default: false
  owner:
    description:
      - The user that the server runs as, when the task runs as root.
      - The default is the owner of the directory that is replaced, else V(postgres).
    type: str
  copy_timeout:
    description: Seconds that the copy and its verification may take, each.
    type: int
    default: 86400
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.instance
  - pgfleet.ops.connection.login
attributes:
  idempotent:
    support: partial
    details: With O(reclone=true) every run makes a standby that runs anew.
notes:
  - O(timeout) bounds the wait for streaming too.
  - The login options lead to the source (O(source_host), O(source_port)) and are used for checks and for the slot. The role must be a superuser, or a member
    of C(pg_monitor) with the attribute C(REPLICATION). Only a superuser or a member of C(pg_read_server_files) can prove that
    O(data_directory) is not the source's own when both are on one host; for others, ports and start times must tell.
  - The same login is tried on the standby itself, to see it stream. Where it does not work the source's view counts.
  - The files C(postgresql.conf), C(pg_hba.conf) and C(pg_ident.conf) of the old directory are carried over. A new standby whose configuration is not
    outside of O(data_directory) gets the source's.
  - The standby's C(primary_conninfo) and C(primary_slot_name) are written into C(postgresql.auto.conf).
  - The old and the new directory need room at the same time.
  - Without a copy the directory keeps its own C(postgresql.auto.conf), in which only these two settings are changed.
  - The directory is locked while this works on it, so that neither a second run nor a switchover does anything there.
  - When a directory could not be started as a standby, C(standby.signal) stays in it, as another server is the primary.
seealso:
  - module: pgfleet.ops.pg_instance
  - module: pgfleet.ops.pg_cluster_info
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Make this host a standby of db1
  pgfleet.ops.pg_clone:
    data_directory: /var/lib/postgresql/17/main
    source_host: db1.example.com
    login_user: postgres
    connect_params:
      passfile: /root/.pgpass
    replication_user: replication
    replication_passfile: /var/lib/postgresql/replication.pgpass
    slot_name: db2
    application_name: db2
  become: true

- name: Replace an old primary that is down, and keep its directory
  pgfleet.ops.pg_clone:
    data_directory: /srv/pg/db1/data
    config_file: /srv/pg/db1/config/postgresql.conf
    method: pg_ctl
    source_host: 127.0.0.1
    source_port: 5434
    login_user: postgres
    replication_passfile: /srv/pg/db1/passfile
    slot_name: db1
    reclone: true
    keep_old: true
  become: true
  become_user: postgres

- name: Bring a lost primary back, and fail rather than copy everything
  pgfleet.ops.pg_clone:
    data_directory: /var/lib/postgresql/17/main
    source_host: db2.example.com
    login_user: postgres
    replication_passfile: /var/lib/postgresql/replication.pgpass
    slot_name: db1
    copy_method: rewind
    reclone: true
  become: true
"""

RETURN = r"""
state:
  description:
    - What was found, or made. V(standby), or in check mode also V(missing), V(empty), V(primary), or V(unfinished) after a rewind that was broken off.
  returned: success
  type: str
  sample: standby
copy_method:
  description: The way that was taken, or is to be taken. V(rejoin) when nothing was copied, V(rewind), V(basebackup), null when there was nothing to do.
  returned: success
  type: str
  sample: rejoin
copied_bytes:
  description: What was copied without a new copy, 0 for V(rejoin), null otherwise. C(pg_rewind) counts in MB.
  returned: success
  type: int
  sample: 0
rewind_problem:
  description: Why a new copy was made and the directory was not rewound, null where that was not in question.
  returned: success
  type: str
  sample: it has neither data checksums nor wal_log_hints
streaming:
  description: Whether the standby streams.
  returned: success
  type: bool
  sample: true
upstream:
  description: The address that the standby receives from, null when there is none yet.
  returned: success
  type: str
  sample: db1.example.com:5432
follows_source:
  description: Whether RV(upstream) is the source.
  returned: success
  type: bool
  sample: true
pid:
  description: The standby's postmaster, null when it does not run.
  returned: success
  type: int
  sample: 4711
port:
  description: The standby's port, null when it does not run.
  returned: success
  type: int
  sample: 5432
slot_name:
  description: The option O(slot_name).
  returned: success
  type: str
  sample: db2
system_identifier:
  description: The cluster's system identifier.
  returned: success
  type: str
  sample: "7710960669273728883"
timeline:
  description: The source's timeline at its last checkpoint.
  returned: success
  type: int
  sample: 1
version:
  description: The source's version.
  returned: success
  type: str
  sample: "17.4"
data_directory:
  description: The data directory without symbolic links.
  returned: success
  type: str
  sample: /var/lib/postgresql/17/main
lost_bytes:
  description: About how many bytes of WAL only the directory has, when it is refused for that.
  returned: failure
  type: int
  sample: 232
kept_directory:
  description: Where the old directory is, with O(keep_old=true).
  returned: success
  type: str
  sample: /var/lib/postgresql/17/main.old-0123456789ab
needed_bytes:
  description: The size of the source's databases.
  returned: success
  type: int
  sample: 2147483648
undone:
  description: What was put back after a failure. RV(ignore:error) is then V(RolledBack) and RV(cause) the class of what went wrong.
  returned: failure
  type: list
  elements: str
  sample: [copy removed, slot removed]
cause:
  description: The class of the error that made the run roll back.
  returned: failure
  type: str
  sample: CommandFailed
log:
  description: The lines that the server logged since a start that failed.
  returned: failure
  type: list
  elements: str
plan:
  description: The steps that are needed, the same in check mode.
  returned: always
  type: list
  elements: str
performed:
  description: The steps that were done. After a failure they may have been undone, see RV(undone).
  returned: always
  type: list
  elements: str
"""

from ansible_collections.pgfleet.ops.plugins.module_utils._module import run
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.clone import PG_CLONE, CloneOperation


def main() -> None:
    run(CloneOperation, PG_CLONE)


if __name__ == "__main__":
    main()
