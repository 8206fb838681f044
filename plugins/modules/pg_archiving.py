# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_archiving
short_description: Turn WAL archiving on, pause it without loss, turn it off, or see whether it works
version_added: "0.1.0"
description:
  - Sets C(archive_mode) with C(archive_command) or C(archive_library) on one server by C(ALTER SYSTEM), reloads it, and has a segment archived to prove it.
  - A command that can say success without having archived is refused, since PostgreSQL then removes WAL that is in no archive. Every way through
    the command is followed as a shell would, so C(cp %p /archive/%f || true), C(test -f /stop && exit 0; cp %p /archive/%f) and
    C(test -f /archive/%f || cp %p /archive/%f) are all found.
  - The server is never restarted. RV(restart_required) says when only a restart brings what is wanted.
  - This is HandyRep's C(start_archiving), C(stop_archiving) and C(poll_archiving). HandyRep stopped archiving with a command that says success,
    which leaves a hole in the archive; O(state=paused) keeps the WAL.
options:
  state:
    description:
      - V(enabled) sets O(command) or O(library) and C(archive_mode). Without both the server's files must have one already.
      - V(paused) empties C(archive_command) while C(archive_mode) stays on. PostgreSQL then keeps all WAL until archiving is enabled again, in C(pg_wal),
        whose room is not watched by this module.
      - V(disabled) sets C(archive_mode) to off, which needs a restart. The command stays in the files.
      - V(healthy) changes nothing and fails unless archiving is on and works.
    type: str
    choices: [enabled, paused, disabled, healthy]
    default: healthy
  command:
    description:
      - The C(archive_command), with C(%p) for the path of the segment, C(%f) for its name and C(%%) for a percent sign.
      - Without this option O(state=enabled) keeps a command that the server has. After V(paused) it takes back what the files have below the line of
        C(ALTER SYSTEM), if there is something.
      - Keep secrets in a file that the command reads. Everybody on the host can see the command while it runs, and what looks like a password
        is left out of results and diffs only.
    type: str
  library:
    description: The C(archive_library), for PostgreSQL 15 or later. C(archive_command) is emptied, as the server allows only one of them.
    type: str
  always:
    description: Archive on a standby too (C(archive_mode) V(always) instead of V(on)). The archive must then take a segment that it already has.
    type: bool
    default: false
  verify:
    description:
      - With O(state=enabled), on a primary whose archiver runs, wait until a segment has been archived. A WAL switch is made only if no segment waits.
      - This is done when something was changed, when the archiver fails, and when nothing was archived since the server's start.
    type: bool
    default: true
  max_ready_segments:
    description: With O(state=healthy), as many segments may wait to be archived.
    type: int
    default: 16
  max_age:
    description: With O(state=healthy), a segment may wait as many seconds to be archived.
    type: int
    default: 600
  timeout:
    description: Seconds that O(verify) waits.
    type: int
    default: 90
extends_documentation_fragment:
  - pgfleet.ops.attributes
  - pgfleet.ops.attributes.changes
  - pgfleet.ops.connection.login
  - pgfleet.ops.connection.server
notes:
  - C(ALTER SYSTEM) writes to the data directory of this server alone. Run the task on standbys too, so that they archive once they are promoted.
  - O(state=healthy) needs no more than membership in C(pg_monitor), the other states need a superuser.
  - A pipe ends as its last command does, so a failure before it may go unseen. Put what needs more than one command into a script that checks each of them,
    as the role wal_archive does.
seealso:
  - module: pgfleet.ops.pg_archive_cleanup
  - module: pgfleet.ops.pg_instance
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Archive with pgBackRest
  pgfleet.ops.pg_archiving:
    login_unix_socket: /var/run/postgresql
    state: enabled
    command: pgbackrest --stanza=main archive-push %p
  become: true
  become_user: postgres
  register: archiving

- name: Restart if that is needed
  pgfleet.ops.pg_instance:
    data_directory: /var/lib/postgresql/17/main
    state: restarted
  become: true
  when: archiving.restart_required

- name: Pause while the archive is moved, and keep the WAL
  pgfleet.ops.pg_archiving:
    login_host: db1.example.com
    state: paused

- name: Fail unless archiving works
  pgfleet.ops.pg_archiving:
    login_host: db1.example.com
    login_user: monitor
    state: healthy
    max_age: 300
"""

RETURN = r"""
state:
  description: The state that was wanted.
  returned: success
  type: str
  sample: enabled
mode:
  description: C(archive_mode) as it is in force.
  returned: success
  type: str
  sample: "on"
command:
  description: C(archive_command) as it is in force, without what looks like a secret. Empty while RV(mode) is V(off).
  returned: success
  type: str
  sample: pgbackrest --stanza=main archive-push %p
library:
  description: C(archive_library) as it is in force.
  returned: success
  type: str
  sample: ""
before:
  description: C(archive_mode), C(archive_command) and C(archive_library) as the files had them before, null with O(state=healthy).
  returned: success
  type: dict
archives:
  description: Whether this server hands its segments to the archiver now. A standby does so with C(archive_mode) V(always) only.
  returned: success
  type: bool
  sample: true
in_recovery:
  description: Whether the server is a standby.
  returned: success
  type: bool
  sample: false
restart_required:
  description: Whether C(archive_mode) waits for a restart.
  returned: success
  type: bool
  sample: false
verified:
  description: Whether this run has seen a segment archived.
  returned: success
  type: bool
  sample: true
ready_segments:
  description: How many segments wait to be archived.
  returned: success
  type: int
  sample: 0
ready_bytes:
  description: How many bytes they have.
  returned: success
  type: int
  sample: 0
archiver:
  description: The numbers of C(pg_stat_archiver), and how many segments wait for how many seconds.
  returned: success
  type: dict
problems:
  description: Why archiving is not healthy; empty on success.
  returned: always
  type: list
  elements: str
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
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.archiving import PG_ARCHIVING, Archiving


def main() -> None:
    run(Archiving, PG_ARCHIVING)


if __name__ == "__main__":
    main()
