# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole cluster as tables: its nodes, who streams from whom, replication slots. All nodes are asked at once; one that does not answer is a row."""

from __future__ import annotations

import typing as t

from .asking import Answer, ask_all, login, parse_targets
from .deadline import positive_seconds
from .options import Option
from .quals import Qual, allowed_values
from .tables import Table
from .wrapper import Row, Wrapper

_NODES = """
SELECT pg_is_in_recovery() AS in_recovery, c.timeline_id AS timeline, s.system_identifier,
  CASE WHEN pg_is_in_recovery() THEN coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0') ELSE pg_current_wal_lsn() END AS lsn,
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END AS replayed_lsn,
  CASE WHEN pg_is_in_recovery() THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END AS seconds_since_replay,
  (SELECT sender_host || ':' || sender_port FROM pg_stat_wal_receiver LIMIT 1) AS upstream,
  current_setting('server_version') AS version, pg_postmaster_start_time() AS started,
  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS clients
FROM pg_control_checkpoint() AS c, pg_control_system() AS s
"""
_REPLICATION = """
SELECT pid, application_name, client_addr, state, sync_state, sent_lsn, flush_lsn, replay_lsn,
  pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, replay_lsn) AS lag_bytes,
  extract(epoch FROM replay_lag) AS replay_lag_seconds
FROM pg_stat_replication ORDER BY application_name, pid
"""
_SLOTS = """
SELECT slot_name, slot_type, plugin, database, temporary, active, active_pid, wal_status, restart_lsn, confirmed_flush_lsn, safe_wal_size,
  pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn) AS retained_bytes
FROM pg_replication_slots ORDER BY slot_name
"""
_NODE = ("node", "text")
_VIEWS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "nodes": (
        _NODES,
        [
            _NODE, ("reachable", "boolean"), ("role", "text"), ("timeline", "integer"), ("system_identifier", "text"), ("lsn", "pg_lsn"),
            ("replayed_lsn", "pg_lsn"), ("lag_bytes", "bigint"), ("seconds_since_replay", "double precision"), ("upstream", "text"), ("version", "text"),
            ("started", "timestamp with time zone"), ("clients", "integer"), ("milliseconds", "double precision"), ("error", "text"),
        ],
    ),
    "replication": (
        _REPLICATION,
        [
            _NODE, ("pid", "integer"), ("application_name", "text"), ("client_addr", "inet"), ("state", "text"), ("sync_state", "text"),
            ("sent_lsn", "pg_lsn"), ("flush_lsn", "pg_lsn"), ("replay_lsn", "pg_lsn"), ("lag_bytes", "bigint"), ("replay_lag_seconds", "double precision"),
        ],
    ),
    "slots": (
        _SLOTS,
        [
            _NODE, ("slot_name", "text"), ("slot_type", "text"), ("plugin", "text"), ("database", "text"), ("temporary", "boolean"), ("active", "boolean"),
            ("active_pid", "integer"), ("wal_status", "text"), ("restart_lsn", "pg_lsn"), ("confirmed_flush_lsn", "pg_lsn"), ("safe_wal_size", "bigint"),
            ("retained_bytes", "bigint"),
        ],
    ),
}  # fmt: skip


def _nodes(text: str) -> dict[str, dict[str, t.Any]]:
    return parse_targets(text, 5432)


class Cluster(Wrapper):
    """Tables nodes, replication and slots of the cluster whose members the server's option ``nodes`` names."""

    options = {
        "nodes": Option(_nodes, required=True, scope=("server",)),
        "view": Option(choices=tuple(_VIEWS), required=True, scope=("table",)),
        "timeout": Option(positive_seconds, default=3.0, scope=("server", "table")),
        "dbname": Option(default="postgres", scope=("server", "mapping")),
        "sslmode": Option(default="", scope=("server", "mapping")),
        "user": Option(default="", scope=("server", "mapping")),
        "password": Option(default="", secret=True, scope=("mapping",)),
        "passfile": Option(default="", scope=("server", "mapping")),
    }

    def setup(self) -> None:
        self.rows = len(self.opt["nodes"]) * (1 if self.opt["view"] == "nodes" else 3)
        self._targets(())

    def get_path_keys(self) -> list[tuple[tuple[str, ...], int]]:
        return [(("node",), 1)] if self.opt["view"] == "nodes" else []

    def _targets(self, quals: t.Sequence[Qual]) -> dict[str, dict[str, t.Any]]:
        names = allowed_values(quals, self.columns, "node")
        # The lag of one node is known from its primary, which is another one.
        return login(self.opt, self.opt["nodes"], None if self.opt["view"] == "nodes" else names)

    def explain_scan(self, quals: t.Sequence[Qual], columns: t.Collection[str]) -> t.Iterable[str]:
        return ["asks %s" % (", ".join(self._targets(quals)) or "nobody")]

    def scan(self, quals: t.Sequence[Qual], columns: t.Collection[str]) -> t.Iterator[Row]:
        answers = ask_all(self._targets(quals), _VIEWS[self.opt["view"]][0], self.opt["timeout"])
        if self.opt["view"] == "nodes":
            yield from self._describe(answers)
            return
        for answer in answers:
            for row in answer.dicts():
                yield {"node": answer.name, **row}

    def _describe(self, answers: t.Sequence[Answer]) -> t.Iterator[Row]:
        rows = {answer.name: next(answer.dicts(), {}) for answer in answers}
        written = [_position(row["lsn"]) for row in rows.values() if row.get("in_recovery") == "f"]
        for answer in answers:
            row = dict(rows[answer.name])
            role = {"t": "standby", "f": "primary"}.get(str(row.pop("in_recovery", None)))
            # With two primaries nobody knows behind what a standby lags.
            lag = max(0, written[0] - _position(row["lsn"])) if role == "standby" and len(written) == 1 else None
            reachable = answer.error is None
            yield {
                **row, "node": answer.name, "reachable": "t" if reachable else "f", "role": role, "lag_bytes": lag, "milliseconds": answer.milliseconds,
                "error": answer.error,
            }  # fmt: skip

    @classmethod
    def tables(cls, options: t.Mapping[str, t.Any], schema: str) -> list[Table]:
        return [Table(name, columns, {"view": name}) for name, (_query, columns) in _VIEWS.items()]


def _position(lsn: str | None) -> int:
    """A location in the WAL as a number of bytes."""
    high, low = (lsn or "0/0").split("/")
    return (int(high, 16) << 32) + int(low, 16)
