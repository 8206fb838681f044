# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What one PostgreSQL node says of itself, in one statement."""

from __future__ import annotations

import contextlib
import json
import typing as t

from .._errors import QueryFailed
from .._wait import Deadline
from .connection import Session
from .standby import RECEIVER

# Each value is NULL where the role may not see it; a role in pg_monitor sees all of them. The receiver is looked at once: it comes and goes, and
# what is said of it has to agree. Positions are read before everything that tells a timeline: one of the next timeline would pass for WAL that the upstream
# does not have.
_STATE = (
    """
SELECT json_build_object(
  'in_recovery', recovering,
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'version', current_setting('server_version'),
  'version_number', current_setting('server_version_num')::int,
  'started_at', pg_postmaster_start_time(),
  'cluster_name', current_setting('cluster_name'),
  'data_directory', (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
  'config_file', (SELECT setting FROM pg_settings WHERE name = 'config_file'),
  'short_retry_left_over', (SELECT setting = '5' AND sourcefile LIKE '%/postgresql.auto.conf' FROM pg_settings
                            WHERE name = 'wal_retrieve_retry_interval'),
  'recovery_target_timeline', current_setting('recovery_target_timeline'),
  'read_only_default', current_setting('default_transaction_read_only') = 'on' AND
    (SELECT source NOT IN ('client', 'session') FROM pg_settings WHERE name = 'default_transaction_read_only'),
  'timeline', CASE WHEN recovering THEN greatest(
      (SELECT timeline_id FROM pg_control_checkpoint()),
      (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
      receiver.timeline)
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END,
  'redo_lsn', (SELECT redo_lsn FROM pg_control_checkpoint()),
  'wal_segment_size', (SELECT bytes_per_wal_segment FROM pg_control_init()),
  'current_lsn', CASE WHEN NOT recovering THEN pg_current_wal_lsn() END,
  'received_lsn', CASE WHEN recovering THEN received END,
  'replayed_lsn', CASE WHEN recovering THEN replayed END,
  'replay_paused', CASE WHEN recovering THEN pg_is_wal_replay_paused() ELSE false END,
  'apply_delay_seconds', (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'recovery_min_apply_delay'),
  'may_list_wal', has_function_privilege('pg_ls_waldir()', 'EXECUTE'),
  -- A transaction's time says how old the data is only while there is something to replay, or nobody who would send it. A standby
  -- that waits for more has replayed what it can (an idle primary may leave half a record at the end of a page), and what is replayed
  -- a moment later is no lag either, however long ago the transaction before it was.
  'seconds_since_replay', CASE WHEN recovering THEN (
      SELECT CASE WHEN streaming AND (waiting OR replayed >= head) THEN 0
                  WHEN streaming AND (SELECT pg_last_wal_replay_lsn() FROM pg_sleep(0.1)) >= head THEN 0
                  ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END
      FROM (SELECT pg_last_wal_replay_lsn() AS replayed,
                   greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(),
                            CASE WHEN receiver.status = 'streaming' THEN receiver.latest_end_lsn END) AS head,
                   coalesce(receiver.status = 'streaming', false) AS streaming,
                   EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event = 'RecoveryWalStream') AS waiting) AS w) END,
  'receiver', CASE WHEN receiver.pid IS NOT NULL THEN json_build_object('status', receiver.status, 'host', receiver.sender_host,
                                                                        'port', receiver.sender_port, 'slot', receiver.slot_name) END,
  'primary_conninfo', (SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'),
  'primary_slot_name', current_setting('primary_slot_name'),
  'senders', coalesce((SELECT json_agg(json_build_object('pid', pid, 'application_name', application_name,
      'client', client_addr, 'state', state, 'sync_state', sync_state, 'sent_lsn', sent_lsn, 'replay_lsn', replay_lsn,
      'replay_lag_seconds', extract(epoch FROM replay_lag))
      ORDER BY application_name, pid) FROM pg_stat_replication), '[]'),
  'base_backups', coalesce((SELECT json_agg(json_build_object('pid', b.pid, 'client', r.client_addr, 'application_name', r.application_name,
      'phase', b.phase, 'streamed_bytes', b.backup_streamed, 'total_bytes', b.backup_total) ORDER BY b.pid)
      FROM pg_stat_progress_basebackup AS b LEFT JOIN pg_stat_replication AS r ON r.pid = b.pid), '[]'),
  'slots', coalesce((SELECT json_agg(json_build_object('name', slot_name, 'type', slot_type, 'database', database,
      'plugin', plugin, 'active', active, 'temporary', temporary, 'failover', coalesce((to_jsonb(s) ->> 'failover')::boolean, false),
      'synced', coalesce((to_jsonb(s) ->> 'synced')::boolean, false), 'wal_status', wal_status, 'restart_lsn', restart_lsn, 'safe_bytes', safe_wal_size,
      'retained_bytes', CASE WHEN restart_lsn IS NULL THEN NULL WHEN recovering THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), restart_lsn)
                             ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) END)
      ORDER BY slot_name) FROM pg_replication_slots AS s), '[]'),
  'max_replication_slots', current_setting('max_replication_slots')::int,
  'synchronous_standby_names', current_setting('synchronous_standby_names'),
  'synchronous_commit', current_setting('synchronous_commit'),
  'pending_restart', coalesce((SELECT json_agg(name ORDER BY name) FROM pg_settings WHERE pending_restart), '[]'),
  'archiver', (SELECT json_build_object('mode', current_setting('archive_mode'), 'archived', archived_count, 'failed', failed_count,
      'last_archived_wal', last_archived_wal, 'last_archived_at', last_archived_time,
      'last_failed_wal', last_failed_wal, 'last_failed_at', last_failed_time,
      'failing', current_setting('archive_mode') <> 'off' AND last_failed_time IS NOT NULL
                 AND (last_archived_time IS NULL OR last_failed_time > last_archived_time)) FROM pg_stat_archiver)
)::text FROM (SELECT pg_is_in_recovery() AS recovering, pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed) AS r LEFT JOIN ("""
    + RECEIVER
    + ") AS receiver ON true"
)

# Without a receiver that streams a standby tells its timeline late: pg_control hears of it at the next restart point. The WAL that it holds knows.
_TIMELINE_OF_WAL = """
WITH last AS (SELECT pg_size_bytes(current_setting('wal_segment_size'))::numeric AS segment,
                     greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn AS position)
SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) FROM pg_ls_waldir(), last
WHERE name ~ '^[0-9A-F]{24}$'
  AND ('x' || substr(name, 9, 8))::bit(32)::bigint * 4294967296 + ('x' || substr(name, 17, 8))::bit(32)::bigint * segment
      = div(position - 1, segment) * segment
"""


# What the files say of the settings that wait for a restart, and of those that a standby may not have lower than its primary; a setting that was taken
# out of the files gets its default back. Only for superusers and who was granted to read the files. Settings of extensions may hold a secret.
_AFTER_RESTART = """
SELECT json_object_agg(name, json_build_object('waits', pending_restart, 'now', setting, 'then', CASE WHEN source = 'command line' THEN setting ELSE coalesce(
    (SELECT f.setting FROM pg_file_settings f WHERE lower(f.name) = lower(s.name) ORDER BY f.seqno DESC LIMIT 1), boot_val) END))::text
FROM pg_settings s
WHERE pending_restart AND name NOT LIKE '%.%'
   OR name IN ('max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')
"""
_STANDBY_SETTINGS = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction")


def fetch_node_state(session: Session, deadline: Deadline) -> dict[str, t.Any]:
    """The node's own view: role, LSNs (text), timeline, receiver, senders, slots and what waits for a restart.

    ``pending_values`` has both values of each setting that waits, ``standby_settings`` those of the settings that a standby may not have lower than its
    primary; both are None without the right to read the server's files.
    ``primary_conninfo`` may hold a password and must not leave the process. Works on PostgreSQL 13 and later.
    """
    state = json.loads(t.cast(str, session.ask_value(_STATE, deadline)))
    streaming = (state["receiver"] or {}).get("status") == "streaming"
    if state.pop("may_list_wal") and state["in_recovery"] and not streaming:
        state["timeline"] = max(state["timeline"], int(session.ask_value(_TIMELINE_OF_WAL, deadline) or 0))
    state["pending_values"] = state["standby_settings"] = None
    with contextlib.suppress(QueryFailed):
        found = json.loads(t.cast(str, session.ask_value(_AFTER_RESTART, deadline)))
        waiting = {name: values.pop("waits") for name, values in found.items()}
        state["pending_values"] = {name: values for name, values in found.items() if waiting[name]}
        state["standby_settings"] = {name: values for name, values in found.items() if name in _STANDBY_SETTINGS}
    return state
