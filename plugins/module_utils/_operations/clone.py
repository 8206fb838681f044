# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Making this host's data directory a streaming standby of another server.

The copy is made beside the data directory, verified and swapped in by rename; the old directory waits until the standby
streams. Each step knows how to undo itself, and a run that was killed leaves names by which the next one knows what to do:

``DATA.clone-ID``  a copy that is not in use: always disposable
``DATA.old-ID``    the old directory, set aside
``DATA/pgfleet_clone.json``  DATA is a copy of run ID that has not streamed yet; without PG_VERSION beside it, DATA only stands in for a directory
                          that run ID rewinds as ``DATA.clone-ID``

A directory that is down and whose WAL is in the source's history is started where it is (see rejoin.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import re
import shutil
import signal
import typing as t

from .._errors import AuthenticationFailed, CommandFailed, InvalidInput, NotConfirmed, NotReachable, OperationError, Refused, RolledBack, SplitBrainRisk
from .._host import datadir
from .._host.basebackup import as_user, basebackup_command, end_copies, password_environment, run_copy, verify_command
from .._host.command import run_command
from .._host.controldata import read_head
from .._host.instance import Instance, find_bin_directory
from .._host.rewind import needed_bytes, reason, recover_command, rewind_command
from .._module import LOGIN, ArgumentSpec, Operation
from .._plan import Plan
from .._sql.connection import Session, Target, connect
from .._sql.standby import connect_for_replication, drop_slot_when_idle, ensure_slot, receiver
from .._sql.values import build_conninfo, parse_conninfo
from .._wait import Deadline, wait_for
from .clone_state import CloneState, Source, Space, Standby, is_local, not_enough_space, same_address
from .instance import INSTANCE, port_conflicts
from .rejoin import REWIND_FUNCTIONS, WAYS, Judge, Relation, ask_past, choose_way, no_rewind

MARKER = "pgfleet_clone.json"
# What a directory that is rewound leaves behind: what belongs to the node, and where its tablespaces and its WAL are.
STAND_IN = (*datadir.CARRIED_OVER, "postgresql.auto.conf")
LAG_WARNING = 16777216
"""Bytes of WAL that a source may have received and not replayed without a word about it."""

PG_CLONE = LOGIN.merge(INSTANCE).merge(
    ArgumentSpec(
        {
            "source_host": {"type": "str", "required": True},
            "source_port": {"type": "int", "default": 5432},
            "replication_user": {"type": "str", "default": "replication"},
            "replication_passfile": {"type": "path", "no_log": False},
            "replication_password": {"type": "str", "no_log": True},
            "replication_connect_params": {"type": "dict", "default": {}},
            "slot_name": {"type": "str"},
            "application_name": {"type": "str"},
            "copy_method": {"type": "str", "choices": list(WAYS), "default": "auto"},
            "tablespace_mapping": {"type": "dict", "default": {}},
            "wal_directory": {"type": "path"},
            "max_rate": {"type": "str"},
            "checkpoint": {"type": "str", "choices": ["fast", "spread"], "default": "fast"},
            "verify": {"type": "bool", "default": True},
            "reclone": {"type": "bool", "default": False},
            "keep_old": {"type": "bool", "default": False},
            "owner": {"type": "str"},
            "copy_timeout": {"type": "int", "default": 86400},
        }
    )
)


class CloneOperation(Operation):
    """The operation of pg_clone."""

    def __init__(self, params: t.Mapping[str, t.Any], context: t.Any) -> None:
        super().__init__(params, context)
        # Also in its raw form: normalising "" would make it the working directory.
        self.instance = Instance.from_params(params)
        self.source_name = "%s:%s" % (params["source_host"], params["source_port"])
        self.identifier = datadir.new_identifier()
        self.owner: str | None = None
        self._undo: list[tuple[str, t.Callable[[], None]]] = []
        self._hold = contextlib.ExitStack()
        self._kept: str | None = None
        self._done = False
        self._holding = False
        self._way: str | None = None
        self._rewind_problem: str | None = None
        self._copied_bytes: int | None = None
        self._stays: str | None = None
        """What a failure from now on leaves changed."""
        # libpq would prefer it to the passfile of the replication user. The login has read it already.
        os.environ.pop("PGPASSWORD", None)

    def close(self) -> None:
        self._hold.close()

    # Observing

    def observe(self) -> CloneState:
        directory = datadir.refuse_path(self.params["data_directory"])
        session = self._connect_source()
        try:
            source = self._observe_source(session)
            target = self._observe_target(directory, source)
            if not self._done:
                self.owner = self._find_owner(target)
                self._check_programs(source)
            spaces = self._observe_spaces(source, target)
            if self._done or not self._wants_work(target):
                return CloneState(source, target, spaces)
            identified, history = self._ask_by_replication(source)
            relation = None
            if self._is_down(target) and target.system_identifier == source.system_identifier:
                row = {**dataclasses.asdict(source), "tablespaces": source.tablespaces}
                past = ask_past(session, identified, history, row, int(source.major_version))
                relation = Judge(self._instance(target), session, past, target.kind == "standby").relation()
                relation = self._rehearse_rewind(relation, target)
        finally:
            session.close()
        # What an interrupted run left is removed first and gives room.
        problems = () if target.leftovers or target.marker else tuple(self._space_problems(source, target, spaces))
        return CloneState(source, target, spaces, problems, relation)

    @staticmethod
    def _is_down(target: Standby) -> bool:
        return target.kind in ("standby", "primary") and not (target.running or target.orphans or target.marker or target.in_use or target.is_source)

    def _wants_work(self, target: Standby) -> bool:
        return target.kind in ("missing", "empty", "unfinished") or bool(target.marker) or bool(self.params["reclone"]) or self._is_down(target)

    def _ask_by_replication(self, source: Source) -> tuple[dict[str, t.Any], str]:
        """The answer to IDENTIFY_SYSTEM, and the text of the history file of the source's timeline.

        The replication login must work before anything is stopped. Raises AuthenticationFailed, NotReachable, Refused.
        """
        session = connect_for_replication(self._conninfo(), self.params["replication_password"])
        try:
            identified = session.ask("IDENTIFY_SYSTEM", Deadline(10))[0]
            timeline = int(identified["timeline"] or 1)
            history = session.ask("TIMELINE_HISTORY %d" % timeline, Deadline(10))[0]["content"] if timeline > 1 else ""
        finally:
            session.close()
        if identified["systemid"] != source.system_identifier:
            raise Refused(
                "the replication login leads to a server of system identifier %s, the other login to %s" % (identified["systemid"], source.system_identifier)
            )
        return identified, history or ""

    def _connect_source(self) -> Session:
        target = Target.from_params(self.params, host=self.params["source_host"], port=self.params["source_port"])
        return connect(target, timeout=10, read_only=self.context.check_mode)

    def _observe_source(self, session: Session) -> Source:
        row = session.row(
            "SELECT pg_is_in_recovery() AS in_recovery, current_setting('server_version') AS version,"
            " current_setting('server_version_num')::int / 10000 AS major,"
            " (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,"
            " (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,"
            " (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,"
            " current_setting('port')::int AS port, extract(epoch FROM pg_postmaster_start_time())::float8 AS started,"
            " current_setting('wal_level') AS wal_level,"
            " has_function_privilege('pg_read_file(text)', 'EXECUTE') AS reads_files,"
            " (SELECT bool_and(has_function_privilege(f, 'EXECUTE')) FROM unnest(%s::text[]) AS f) AS rewindable,"
            " (SELECT array_agg(oid::int8) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')) AS tablespaces",
            [list(REWIND_FUNCTIONS)],
        )
        if row is None:
            raise OperationError("the source %s gave no answer about itself" % session.target)
        spaces = session.rows(
            "SELECT CASE WHEN spcname IN ('pg_default', 'pg_global') THEN '' ELSE pg_tablespace_location(oid) END AS location,"
            " sum(pg_tablespace_size(oid))::bigint AS size FROM pg_tablespace GROUP BY 1"
        )
        slot = None
        if self.params["slot_name"]:
            slot = session.row(
                "SELECT slot_type, active, active_pid, wal_status, application_name, client_addr::text AS client"
                " FROM pg_replication_slots LEFT JOIN pg_stat_activity ON pid = active_pid WHERE slot_name = %s",
                [self.params["slot_name"]],
            )
        return Source(
            system_identifier=row["system_identifier"],
            version=row["version"],
            major_version=str(row["major"]),
            in_recovery=row["in_recovery"],
            timeline=row["timeline"],
            data_directory=row["data_directory"],
            # It holds the pid, the path and the moment of the start: no two servers share it.
            pid_file=session.value("SELECT pg_read_file('postmaster.pid')") if row["reads_files"] else None,
            port=row["port"],
            started=row["started"],
            wal_level=row["wal_level"],
            spaces={(space["location"] or ""): int(space["size"] or 0) for space in spaces if (space["location"] or "/").startswith("/")},
            slot=slot,
            senders=session.rows("SELECT pid, application_name, client_addr::text AS client, state FROM pg_stat_replication"),
            local=is_local(self.params["source_host"]),
            reads_files=row["reads_files"],
            rewindable=row["rewindable"],
            tablespaces=tuple(row["tablespaces"] or ()),
            standing=self._standing(session) if row["in_recovery"] else (),
        )

    @staticmethod
    def _standing(session: Session) -> tuple[str, ...]:
        row = session.row("SELECT pg_is_wal_replay_paused() AS paused, pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::int8 AS behind")
        found = []
        if row and row["paused"]:
            found.append("its replay is paused")
        if receiver(session).get("status") != "streaming":
            found.append("it does not stream from its own upstream")
        if row and (row["behind"] or 0) > LAG_WARNING:
            found.append("it has %d MB of WAL still to replay" % (row["behind"] // 1048576))
        return tuple(found)

    def _observe_target(self, directory: str, source: Source) -> Standby:
        copies = datadir.leftovers(directory)
        own = datadir.clone_path(directory, self.identifier)
        in_use = next((copy for copy in copies if copy != own and datadir.is_locked(copy)), None)
        found = Standby("missing", directory, leftovers=tuple(copy for copy in copies if copy != own), in_use=in_use)
        if not os.path.lexists(directory):
            interrupted = next((i for i in map(datadir.identifier_of, copies) if self._is_set_aside(datadir.old_path(directory, i))), None)
            return dataclasses.replace(found, interrupted=interrupted)
        if not os.path.isdir(directory):
            return dataclasses.replace(found, kind="foreign")
        is_source = self._why_source(directory, source)
        if is_source:
            return dataclasses.replace(found, kind="primary", is_source=is_source)
        try:
            empty = datadir.is_empty(directory)
        except OSError as error:
            raise OperationError("%s cannot be looked into: %s" % (directory, error.strerror), action="Run the task as its owner (become_user)") from error
        found = dataclasses.replace(found, held=not self._holding and datadir.is_locked(directory))
        if empty:
            return dataclasses.replace(found, kind="empty")
        if not datadir.is_data_directory(directory):
            marker = self._read_marker(directory)
            if marker and marker.get("rewind") and not os.path.exists(os.path.join(directory, "PG_VERSION")):
                return dataclasses.replace(found, kind="unfinished", marker=marker, system_identifier=str(marker["rewind"]))
            return dataclasses.replace(found, kind="foreign")
        instance = Instance(directory, self.instance.config_file, self.params["bin_directory"])
        head = read_head(directory)
        # pg_control says what the server is; the signal file only what it will be.
        standby = os.path.exists(os.path.join(directory, "standby.signal"))
        found = dataclasses.replace(
            found,
            kind="standby" if standby else "primary",
            postmaster=instance.postmaster(),
            system_identifier=head.system_identifier,
            control_state=head.state,
            marker=self._read_marker(directory),
        )
        # The lock on a copy stays with it when it has been swapped in.
        if found.marker and found.marker["id"] != self.identifier and datadir.is_locked(directory):
            return dataclasses.replace(found, in_use=directory)
        if not found.running:
            return dataclasses.replace(found, orphans=tuple(instance.processes()))
        return self._observe_running(found, source)

    def _observe_running(self, found: Standby, source: Source) -> Standby:
        """Ask the running server. If it is in recovery it is a standby, whatever the files say."""
        session = self._connect_standby(found)
        if session is None:
            # The source sees what the standby would not tell us.
            conninfo = parse_conninfo(self._instance(found).setting("primary_conninfo"))
            name = self.params["application_name"] or self._instance(found).setting("cluster_name") or "walreceiver"
            host, port = conninfo.get("host", ""), int(conninfo.get("port") or 5432)
            mine = self._is_source_address(host, port)
            seen = any(sender["application_name"] == name and sender["state"] == "streaming" for sender in source.senders)
            return dataclasses.replace(found, upstream="%s:%d" % (host, port) if conninfo else None, streaming=mine and seen, from_source=mine)
        try:
            if not session.value("SELECT pg_is_in_recovery()"):
                return dataclasses.replace(found, kind="primary")
            seen = receiver(session)
            if seen.get("status") != "streaming":
                # It may be between two connections.
                with contextlib.suppress(OperationError):
                    seen = wait_for(
                        "streaming",
                        lambda: receiver(session),
                        lambda row: row.get("status") == "streaming",
                        Deadline(6),
                    )
            if seen.get("sender_host"):
                host, port = seen["sender_host"], seen["sender_port"]
            else:
                conninfo = parse_conninfo(session.value("SELECT current_setting('primary_conninfo')") or "")
                host, port = conninfo.get("host", ""), int(conninfo.get("port") or 5432)
            return dataclasses.replace(
                found,
                kind="standby",
                upstream="%s:%s" % (host, port),
                streaming=seen.get("status") == "streaming",
                from_source=self._is_source_address(host, port),
            )
        finally:
            session.close()

    def _is_source_address(self, host: str, port: int) -> bool:
        return port == self.params["source_port"] and same_address(host, self.params["source_host"])

    def _instance(self, target: Standby) -> Instance:
        return Instance(target.real_path, self.instance.config_file, self.params["bin_directory"])

    def _connect_standby(self, target: Standby) -> Session | None:
        """Ask the server in the data directory itself, by its own address, with the same login; None when that does not work."""
        postmaster = target.postmaster
        if postmaster is None:
            return None
        hosts = ["127.0.0.1" if postmaster.listen_address in ("*", "0.0.0.0", "::") else postmaster.listen_address, postmaster.socket_directory]
        for host in filter(None, hosts):
            try:
                session = connect(Target.from_params(self.params, host=host, port=postmaster.port), timeout=5, read_only=True)
            except (NotReachable, AuthenticationFailed):
                continue
            if session.value("SELECT system_identifier::text FROM pg_control_system()") == target.system_identifier:
                return session
            session.close()
        return None

    def _why_source(self, directory: str, source: Source) -> str | None:
        """Why the directory must be the source's own, or None. By what the source says of itself, not by any name."""
        try:
            with open(os.path.join(directory, "postmaster.pid"), encoding="utf-8", errors="replace") as file:
                here = file.read()
        except FileNotFoundError:
            here = None
        except OSError as error:
            raise OperationError(
                "%s/postmaster.pid cannot be read: %s" % (directory, error.strerror), action="Run the task as its owner (become_user)"
            ) from error
        if here and source.pid_file:
            # The last line is the state and may change meanwhile.
            if here.splitlines()[:4] == source.pid_file.splitlines()[:4]:
                return "its postmaster.pid is the source's"
        elif here:
            lines = [*here.splitlines(), "", "", "", ""]
            if lines[3] == str(source.port) and lines[2].isdigit() and abs(int(lines[2]) - source.started) < 5:
                return "its server has the source's port and the moment of its start"
        if source.local and source.data_directory:
            with contextlib.suppress(OSError):
                if os.path.samefile(directory, source.data_directory):
                    return "the source is on this host and says that its data directory is %s" % source.data_directory
        return None

    def _is_set_aside(self, old: str) -> bool:
        return os.path.isdir(old) and (datadir.is_data_directory(old) or self._read_marker(old) is not None)

    def _read_marker(self, directory: str) -> dict[str, t.Any] | None:
        try:
            with open(os.path.join(directory, MARKER), encoding="utf-8") as file:
                found = json.load(file)
            return found if isinstance(found, dict) and re.match(r"[0-9a-f]{12}\Z", str(found.get("id"))) else None
        except (OSError, ValueError):
            return None

    def _find_owner(self, target: Standby) -> str | None:
        """Who must own the copy, when root runs this."""
        if os.geteuid() != 0:
            return None
        if self.params["owner"]:
            return str(self.params["owner"])
        if os.path.isdir(target.real_path) and os.stat(target.real_path).st_uid:
            return pwd.getpwuid(os.stat(target.real_path).st_uid).pw_name
        return "postgres"

    def _check_programs(self, source: Source) -> None:
        directory = self.params["bin_directory"] or find_bin_directory(source.major_version)
        self.instance = Instance(
            datadir.refuse_path(self.params["data_directory"]), self.instance.config_file, directory, self.params["method"], self.instance.unit,
            self.params["log_file"], self.params["timeout"],
        )  # fmt: skip
        words = run_command([self.instance.program("postgres"), "--version"], timeout=15).stdout
        if " %s" % source.major_version not in words.replace(".", " "):
            raise InvalidInput("the programs in %s are %s and the source is PostgreSQL %s" % (directory, words.strip(), source.version))

    def _observe_spaces(self, source: Source, target: Standby) -> tuple[Space, ...]:
        mapping = self.params["tablespace_mapping"] or {}
        unknown = sorted(set(mapping) - set(source.spaces))
        if unknown:
            raise InvalidInput("tablespace_mapping names locations that the source does not have: %s" % ", ".join(unknown))
        ours = set(datadir.links_out(target.real_path))
        found = []
        wanted = [("tablespace", location, str(mapping.get(location, location)), size) for location, size in sorted(source.spaces.items()) if location]
        old_wal = os.path.join(target.real_path, "pg_wal")
        wal = self.params["wal_directory"] or (os.path.realpath(old_wal) if os.path.islink(old_wal) else None)
        if wal:
            wanted.append(("WAL", "", wal, 0))
        for kind, origin, path, size in wanted:
            real = os.path.realpath(path)
            problem = None
            if not os.path.isabs(path):
                problem = "is not an absolute path"
            elif kind == "tablespace" and source.local and os.path.realpath(origin) == real:
                problem = "is the source's own directory; set tablespace_mapping"
            elif real == target.real_path or real.startswith(target.real_path + "/"):
                problem = "is inside the data directory"
            elif os.path.ismount(real):
                # Neither can a copy be renamed to it, nor what is in it be set aside.
                option = "tablespace_mapping" if kind == "tablespace" else "wal_directory"
                problem = "is the root of a mounted file system; name a directory below it in %s" % option
            elif os.path.lexists(real) and real not in ours:
                try:
                    problem = None if os.path.isdir(real) and datadir.is_empty(real) else "is not empty and not a part of the directory that is replaced"
                except OSError as error:
                    problem = "cannot be looked into: %s" % error.strerror
            found.append(Space(kind, origin, real, size, problem))
        return tuple(found)

    @staticmethod
    def _set_aside(target: Standby) -> str | None:
        """The old directory of a run that was interrupted after its swap."""
        path = datadir.old_path(target.real_path, str(target.marker["id"])) if target.marker else None
        return path if path and os.path.isdir(path) else None

    # Whether it can be rewound

    def _rehearse_rewind(self, relation: Relation, target: Standby) -> Relation:
        """Ask pg_rewind itself, which writes nothing in a dry run, where the answer is wanted and is to be had before anything is done."""
        if relation.verdict != "diverged" or relation.rewind_problem or not self.params["reclone"] or self.params["copy_method"] == "basebackup":
            return relation
        if self.params["keep_old"]:
            return dataclasses.replace(relation, rewind_problem="keep_old is set, and a rewind changes the old directory itself")
        if relation.crashed or relation.needs_checkpoint:
            return relation
        problem = self._try_rewind(target.real_path)
        # What is missing may come from the archive, which a dry run would already write to the directory.
        return relation if problem and relation.restore else dataclasses.replace(relation, rewind_problem=problem)

    def _rewind_argv(self, directory: str, dry_run: bool, restore: bool = False) -> tuple[list[str], dict[str, str]]:
        """The command and its environment. As with the login, and never with a password in an argument."""
        target = Target.from_params(self.params, host=self.params["source_host"], port=self.params["source_port"])
        keywords = target.keywords()
        password = keywords.pop("password", None)
        keywords.pop("sslpassword", None)
        if dry_run:
            keywords["options"] = ("%s -c default_transaction_read_only=on" % keywords.get("options", "")).strip()
        argv = rewind_command(self.instance.program("pg_rewind"), directory, build_conninfo(keywords), dry_run, restore, self.instance.config_file)
        return argv, password_environment(password)

    def _try_rewind(self, directory: str, restore: bool = False) -> str | None:
        """Why pg_rewind would refuse, by a dry run."""
        argv, environment = self._rewind_argv(directory, True, restore)
        try:
            output = run_command(as_user(argv, self.owner), self.params["copy_timeout"], environment).stdout
        except CommandFailed as error:
            return reason(error)
        return "pg_rewind sees nothing to rewind" if "no rewind required" in output else None

    # Planning

    def plan(self, seen: CloneState) -> Plan:
        source, target = seen.source, seen.target
        plan = Plan()
        self._refuse(seen)
        if target.marker and target.streaming and target.from_source:
            self._add(plan, "finish the clone that was interrupted", lambda: self._finish(target, str((target.marker or {})["id"])))
            return plan
        if target.kind == "standby" and target.running and not self.params["reclone"] and not target.marker:
            if target.streaming:
                return plan
            raise Refused(
                "%s holds a running standby of this cluster that does not stream (its upstream is %s)" % (target.real_path, target.upstream or "not set"),
                action="See its log; correct its upstream with pgfleet.ops.pg_follow, or set reclone to make it anew",
            )
        target_before = {"state": self._describe(target)}
        target_after = {
            "state": "streaming standby",
            "upstream": self.source_name,
            **({"slot_name": self.params["slot_name"]} if self.params["slot_name"] else {}),
        }
        for copy in target.leftovers:
            if datadir.identifier_of(copy) != target.interrupted:
                self._add(plan, "remove %s, which an interrupted run left" % copy, lambda copy=copy: self._remove_copy(copy))  # type: ignore[misc]
        if target.interrupted:
            self._add(plan, "put back the old directory that an interrupted run had set aside", lambda: self._put_back(target, str(target.interrupted)))
        if target.marker and (target.kind != "unfinished" or self._set_aside(target)):
            self._add(plan, "undo the clone that was interrupted", lambda: self._undo_interrupted(target))
        if self.params["slot_name"]:
            self._plan_slot(plan, source)
        if self._way != "basebackup":
            self._plan_without_copy(plan, seen, target_before, target_after)
            return plan
        if target.running and not target.marker:
            self._add(plan, "stop the standby in %s" % target.real_path, self._stop_old)
        self._add(
            plan,
            "copy %s" % self.source_name,
            lambda: self._copy(seen),
            subject=target.real_path,
            before=target_before,
            after=target_after,
        )
        if self.params["verify"]:
            self._add(plan, "verify the copy", self._verify)
        self._add(plan, "put the copy in the place of %s" % target.real_path, lambda: self._swap(seen))
        self._add(plan, "start the standby and wait until it streams", lambda: self._start(seen))
        replaces = target.interrupted or self._set_aside(target) or (target.kind in ("standby", "primary", "unfinished") and not target.marker)
        name = "%s the old directory" % ("keep" if self.params["keep_old"] else "remove") if replaces else "end the work on %s" % target.real_path
        self._add(plan, name, lambda: self._finish(target, self.identifier))
        return plan

    def _choose_way(self, seen: CloneState) -> tuple[str, str | None]:
        """``rejoin``, ``rewind`` or ``basebackup``, and why it is not rewound where that was in question. Raises Refused."""
        target, method = seen.target, self.params["copy_method"]
        if seen.relation:
            return choose_way(seen.relation, method, self.params["reclone"], target.real_path, self.source_name)
        if method == "rewind":
            raise Refused(
                "%s cannot be rewound: %s" % (target.real_path, no_rewind(target.kind, target.running) or "an interrupted run has left it"),
                action="Set copy_method to auto or basebackup",
            )
        return "basebackup", None

    def _plan_without_copy(self, plan: Plan, seen: CloneState, before: dict[str, t.Any], after: dict[str, t.Any]) -> None:
        path = seen.target.real_path
        if self._way == "rejoin":
            what = "make %s a standby of %s, with the data that it has" % (path, self.source_name)
            self._add(plan, what, lambda: self._rejoin(seen), subject=path, before=before, after=after)
        else:
            if seen.relation and seen.relation.needs_checkpoint:
                self._add(plan, "make a checkpoint on %s" % self.source_name, self._checkpoint)
            self._add(plan, "rewind %s to %s" % (path, self.source_name), lambda: self._rewind(seen), subject=path, before=before, after=after)
            self._add(plan, "put the rewound directory back in its place", lambda: self._swap_rewound(seen))
        self._add(plan, "start the standby and wait until it streams", lambda: self._start(seen))

    def _refuse(self, seen: CloneState) -> None:
        """Everything that forbids the operation. The order is from the worst to the least."""
        source, target = seen.source, seen.target
        path = target.real_path
        if target.is_source:
            raise Refused(
                "%s is the data directory of the source %s: %s" % (path, self.source_name, target.is_source), action="Correct data_directory or source_host"
            )
        if target.in_use:
            raise Refused("another run is making the copy %s now" % target.in_use, action="Wait until it has ended")
        if target.kind == "foreign":
            raise Refused(
                "%s is not empty and is no PostgreSQL data directory" % path,
                expected="a missing or empty directory, or one with PG_VERSION and global/pg_control",
                action="Correct data_directory, or move away what is there",
            )
        if target.kind in ("standby", "primary", "unfinished") and target.system_identifier != source.system_identifier:
            raise Refused(
                "%s belongs to another cluster: its system identifier is %s, the source's %s" % (path, target.system_identifier, source.system_identifier),
                action="Correct data_directory or source_host; if the data is of no more use, move it away by hand",
            )
        if target.kind == "primary" and target.running:
            raise SplitBrainRisk(
                "a primary runs in %s (process %d)" % (path, target.postmaster.pid if target.postmaster else 0),
                expected="no server, or a standby",
                action="If it is the outdated one, stop it with pgfleet.ops.pg_instance and set reclone",
            )
        if target.orphans:
            raise Refused("server processes still work in %s: %s" % (path, ", ".join(map(str, target.orphans))), action="Wait until they have ended")
        if not self.params["reclone"] and not target.marker and target.streaming:
            return
        aside = datadir.old_path(path, target.interrupted) if target.interrupted else self._set_aside(target)
        if aside and not self.params["reclone"] and not (target.streaming and target.from_source):
            raise Refused(
                "an interrupted run has set aside the old directory of %s as %s" % (path, aside),
                action="Set reclone, as that run had it, to make the clone anew",
            )
        if target.held:
            raise Refused("another operation is at work on %s" % path, action="Wait until it has ended")
        self._way, self._rewind_problem = self._choose_way(seen)
        if source.wal_level == "minimal":
            raise Refused(
                "the source %s has wal_level minimal" % self.source_name, expected="replica or logical", action="Set wal_level and restart the source"
            )
        self._refuse_slot(source, target)
        for space in seen.spaces if self._way == "basebackup" else ():
            if space.problem:
                raise Refused("the directory %s for the %s %s %s" % (space.path, space.kind, space.origin, space.problem))
        if seen.space_problems and self._way == "basebackup":
            raise self._no_space(seen.space_problems)
        parent = datadir.existing_parent(path)
        if parent != os.path.dirname(path):
            raise Refused("the directory %s does not exist" % os.path.dirname(path), action="Make it; it must belong to the server's user")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise Refused("this user may not write to %s, where the copy is made" % parent, action="Correct the directory's owner, or become_user")
        self.instance.refuse_root()

    def _refuse_slot(self, source: Source, target: Standby) -> None:
        slot = source.slot
        if not slot:
            return
        name = self.params["slot_name"]
        if slot["slot_type"] != "physical":
            raise Refused('the slot "%s" on %s is a logical one' % (name, self.source_name), action="Choose another slot_name")
        # The walsender of a standby that is stopped first, or of a copy that was killed, ends by itself.
        passing = target.running or target.marker or target.leftovers or slot["application_name"] == "pg_basebackup"
        if slot["active"] and not passing:
            raise Refused(
                'the slot "%s" on %s is in use by %s (%s)' % (name, self.source_name, slot["application_name"] or "another server", slot["client"] or "local"),
                action="Choose another slot_name",
            )

    def _plan_slot(self, plan: Plan, source: Source) -> None:
        name = self.params["slot_name"]
        if source.slot is None:
            self._add(plan, "create the slot %s on %s" % (name, self.source_name), self._create_slot)
        elif source.slot["wal_status"] == "lost":
            self._add(plan, "create the slot %s on %s anew, as it has lost WAL" % (name, self.source_name), self._create_slot)

    @staticmethod
    def _describe(target: Standby) -> str:
        if target.kind in ("missing", "empty", "unfinished"):
            return target.kind
        what = "%s, %s" % (target.kind, "running" if target.running else target.control_state)
        return "%s, upstream %s" % (what, target.upstream) if target.upstream else what

    # Doing. Every step runs guarded: when one fails, what was done is undone in the reverse order.

    def _add(self, plan: Plan, what: str, do: t.Callable[[], None], **kwargs: t.Any) -> None:
        plan.add(what, lambda: self._guarded(do), **kwargs)

    def _guarded(self, do: t.Callable[[], None]) -> None:
        def interrupted(number: int, _frame: t.Any) -> None:
            raise OperationError("the run was ended by signal %d" % number)

        before = {number: signal.signal(number, interrupted) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            self._hold_directory()
            do()
        except Exception as error:  # pylint: disable=broad-exception-caught
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            self._roll_back(error if isinstance(error, OperationError) else OperationError("%s: %s" % (type(error).__name__, error)))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hold_directory(self) -> None:
        """From the first step on, no other run and no switchover may touch the directory."""
        path = os.path.realpath(self.instance.data_directory)
        if self._holding or not os.path.isdir(path):
            return
        try:
            # A check that looks whether it is held has it for a moment.
            self._hold.enter_context(datadir.locked(path, patience=2))
        except BlockingIOError as error:
            raise Refused("another operation is at work on %s" % path, action="Wait until it has ended") from error
        self._holding = True

    def _roll_back(self, error: OperationError) -> None:
        undone, failed = [], []
        while self._undo:
            what, undo = self._undo.pop()
            try:
                undo()
                undone.append(what)
            except OperationError as problem:
                failed.append("%s: %s" % (what, problem.message))
        if failed:
            raise OperationError(
                "%s. Putting things back did not succeed either: %s" % (error.message.rstrip("."), "; ".join(failed)), action=error.action, **error.facts
            ) from error
        if self._stays:
            facts = {**error.facts, "changed": True, "cause": type(error).__name__, "undone": undone}
            raise OperationError("%s. %s" % (error.message.rstrip("."), self._stays), error.expected, error.action, **facts) from error
        if not undone:
            raise error
        facts = {**error.facts, "changed": False, "cause": type(error).__name__, "undone": undone}
        raise RolledBack(error.message, error.expected, ("Everything is as before. %s" % (error.action or "")).strip(), **facts) from error

    def _create_slot(self) -> None:
        session = self._connect_source()
        try:
            made = ensure_slot(session, self.params["slot_name"], Deadline(30))
        finally:
            session.close()
        if made:
            self._undo.append(("slot removed", self._drop_slot))

    def _drop_slot(self) -> None:
        session = self._connect_source()
        try:
            drop_slot_when_idle(session, self.params["slot_name"], Deadline(30))
        finally:
            session.close()

    def _stop_old(self) -> None:
        self._undo.append(("old standby started again", self._start_again))
        self.instance.stop("fast")

    def _start_again(self) -> None:
        if not self.instance.is_running():
            self.instance.start()

    def _conninfo(self) -> dict[str, t.Any]:
        """How the standby connects: never with a password in it."""
        extra = {key: value for key, value in (self.params["replication_connect_params"] or {}).items() if key != "password"}
        return {
            "host": self.params["source_host"], "port": self.params["source_port"], "user": self.params["replication_user"],
            "passfile": self.params["replication_passfile"], "sslmode": self.params["ssl_mode"], "sslrootcert": self.params["ca_cert"], **extra,
        }  # fmt: skip

    def _copies(self, seen: CloneState) -> list[tuple[str, str]]:
        """Each directory that the copy consists of: where it belongs and where it is made."""
        paths = [seen.target.real_path, *(space.path for space in seen.spaces)]
        return [(path, datadir.clone_path(path, self.identifier)) for path in paths]

    def _copy(self, seen: CloneState) -> None:
        problems = self._space_problems(seen.source, seen.target, seen.spaces)
        if problems:
            raise self._no_space(problems)
        if self.params["slot_name"]:
            self._wait_for_slot()
        copies = dict(self._copies(seen))
        for copy in copies.values():
            os.mkdir(copy, 0o700)
            self._own(copy)
            self._undo.append(("copy removed", lambda copy=copy: datadir.remove_tree(copy)))  # type: ignore[misc]
        own = copies[seen.target.real_path]
        self._hold.enter_context(datadir.locked(own))
        self._holding = True
        rivals = [copy for copy in datadir.leftovers(seen.target.real_path) if copy != own and datadir.is_locked(copy)]
        if rivals:
            raise Refused("another run is making the copy %s now" % rivals[0], action="Wait until it has ended")
        argv = basebackup_command(
            self.instance.program("pg_basebackup"), own, build_conninfo(self._conninfo()), self.params["checkpoint"], self.params["slot_name"],
            self.params["max_rate"], next((copies[space.path] for space in seen.spaces if space.kind == "WAL"), None),
            {space.origin: copies[space.path] for space in seen.spaces if space.kind == "tablespace"},
        )  # fmt: skip
        run_copy(argv, self.params["copy_timeout"], self.owner, password_environment(self.params["replication_password"]))

    # Without a copy

    def _rejoin(self, seen: CloneState) -> None:
        """The directory as it is, with the settings of a standby."""
        path = seen.target.real_path
        self._look_again(path)
        auto = os.path.join(path, "postgresql.auto.conf")
        text = self._read(auto)
        # First of all: whatever starts it from here on, it does not accept writes. This is never undone, as another server is the primary.
        self._write(os.path.join(path, "standby.signal"), "")
        if seen.target.kind == "primary":
            self._stays = "%s keeps standby.signal, so that it cannot come back as a second primary" % path
        self._undo.append(("settings put back", lambda: self._write(auto, text)))
        self._write(auto, datadir.with_settings(text, self._standby_settings()))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, "recovery.signal"))
        self._copied_bytes = 0

    def _checkpoint(self) -> None:
        session = self._connect_source()
        try:
            session.execute("CHECKPOINT")
        finally:
            session.close()

    def _rewind(self, seen: CloneState) -> None:
        """Rewind the directory under a name under which nothing starts it, while a directory that no server starts on stands in for it."""
        relation = t.cast(Relation, seen.relation)
        path = seen.target.real_path
        work = datadir.clone_path(path, self.identifier)
        self._look_again(path)
        # Also when it is put back, another server is the primary.
        self._write(os.path.join(path, "standby.signal"), "")
        if seen.target.kind == "primary":
            self._stays = "%s keeps standby.signal, so that it cannot come back as a second primary" % path
        self._undo.append(("old directory put back", lambda: self._take_back(path)))
        self._stand_in(path, work, seen.source.system_identifier)
        old = datadir.old_path(path, self.identifier)
        datadir.rename(path, old)
        datadir.rename(work, path)
        datadir.rename(old, work)
        restore = relation.restore and (not self.instance.config_file or int(seen.source.major_version) >= 15)
        if relation.crashed:
            # In single user mode there are no standbys. The process number in the other file may be another server's by now.
            for name in ("standby.signal", "postmaster.pid"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(work, name))
            argv = recover_command(self.instance.program("postgres"), work, self.instance.config_file)
            run_copy(argv, self.params["copy_timeout"], self.owner)
        if relation.crashed or relation.needs_checkpoint or restore:
            problem = self._try_rewind(work, restore)
            if problem:
                raise Refused("%s cannot be rewound: %s" % (path, problem), action="Set copy_method to basebackup to make a new copy")
        argv, environment = self._rewind_argv(work, False, restore)
        self._undo.pop()
        self._stays = "The rewind had begun: %s holds no data now, and the next run makes a new copy" % path
        self._copied_bytes = needed_bytes(run_copy(argv, self.params["copy_timeout"], self.owner, environment))

    def _stand_in(self, path: str, place: str, system_identifier: str) -> None:
        """What the next run needs, should this one be killed: the node's own files, where the tablespaces and the WAL are, and what this is."""
        os.mkdir(place, 0o700)
        self._own(place)
        for name in STAND_IN:
            if os.path.isfile(os.path.join(path, name)):
                self._carry(os.path.join(path, name), os.path.join(place, name))
        os.mkdir(os.path.join(place, "pg_tblspc"), 0o700)
        for name in ("pg_wal", *(os.path.join("pg_tblspc", entry) for entry in os.listdir(os.path.join(path, "pg_tblspc")))):
            if os.path.islink(os.path.join(path, name)):
                os.symlink(os.readlink(os.path.join(path, name)), os.path.join(place, name))
        self._write(os.path.join(place, MARKER), json.dumps({"id": self.identifier, "rewind": system_identifier}) + "\n")

    def _take_back(self, path: str) -> None:
        """Undo the exchange of the directory and what stands in for it, however far it came."""
        work, old = datadir.clone_path(path, self.identifier), datadir.old_path(path, self.identifier)
        full = next(place for place in (path, work, old) if datadir.is_data_directory(place))
        self._write(os.path.join(full, "standby.signal"), "")
        if full != path:
            spare = old if full == work else work
            if os.path.isdir(path):
                datadir.rename(path, spare)
            datadir.rename(full, path)
        for place in (work, old):
            if not datadir.is_data_directory(place):
                datadir.remove_tree(place)

    def _swap_rewound(self, seen: CloneState) -> None:
        path = seen.target.real_path
        work, old = datadir.clone_path(path, self.identifier), datadir.old_path(path, self.identifier)
        for name in STAND_IN:
            if os.path.isfile(os.path.join(path, name)):
                self._carry(os.path.join(path, name), os.path.join(work, name))
        self._configure_standby(work)
        datadir.rename(path, old)
        datadir.rename(work, path)
        self._stays = "%s has been rewound and is a standby of %s that is down; the next run starts it" % (path, self.source_name)
        # First a name that is always disposable.
        datadir.rename(old, work)
        datadir.remove_tree(work)

    def _carry(self, origin: str, destination: str) -> None:
        shutil.copy2(origin, destination)
        self._own(destination)

    @staticmethod
    def _no_space(problems: t.Sequence[str]) -> Refused:
        return Refused("; ".join(problems), action="Make room, or place data_directory or tablespace_mapping elsewhere")

    @staticmethod
    def _space_problems(source: Source, target: Standby, spaces: t.Sequence[Space]) -> list[str]:
        needed = {datadir.existing_parent(target.real_path): source.spaces.get("", 0)}
        for space in spaces:
            parent = datadir.existing_parent(space.path)
            needed[parent] = needed.get(parent, 0) + space.needed
        # A tenth and two WAL segments more, for the WAL that is written meanwhile.
        return not_enough_space(
            {path: size + size // 10 + 2 * 16777216 for path, size in needed.items()}, lambda path: (os.stat(path).st_dev, datadir.free_bytes(path))
        )

    def _wait_for_slot(self) -> None:
        session = self._connect_source()
        try:
            wait_for(
                'the slot "%s" on %s to become free' % (self.params["slot_name"], self.source_name),
                lambda: session.rows(
                    "SELECT application_name, client_addr::text AS client FROM pg_replication_slots"
                    " LEFT JOIN pg_stat_activity ON pid = active_pid WHERE active AND slot_name = %s",
                    [self.params["slot_name"]],
                ),
                lambda users: not users,
                Deadline(self.params["timeout"]),
                action="Another server uses this slot; choose another slot_name",
            )
        finally:
            session.close()

    def _verify(self) -> None:
        copy = datadir.clone_path(self.instance.data_directory, self.identifier)
        run_command(as_user(verify_command(self.instance.program("pg_verifybackup"), copy), self.owner), self.params["copy_timeout"])

    def _swap(self, seen: CloneState) -> None:
        path = seen.target.real_path
        copy = datadir.clone_path(path, self.identifier)
        self._make_standby(seen, copy)
        self._look_again(path)
        for place, new in reversed(self._copies(seen)):
            old = datadir.old_path(place, self.identifier)
            if os.path.isdir(place) and datadir.is_empty(place):
                mode = os.stat(place).st_mode & 0o7777
                self._undo.append(("empty directory made again", lambda place=place, mode=mode: self._make_again(place, mode)))  # type: ignore[misc]
            elif os.path.isdir(place):
                datadir.rename(place, old)
                self._undo.append(("old directory put back", lambda place=place, old=old: datadir.rename(old, place)))  # type: ignore[misc]
            datadir.rename(new, place)
            self._undo.append(("copy set aside", lambda place=place, new=new: datadir.rename(place, new)))  # type: ignore[misc]
        self._relink(seen)

    def _look_again(self, path: str) -> None:
        """The last look before anything is moved: nobody may have started it meanwhile."""
        if self.instance.postmaster() or self.instance.processes():
            raise SplitBrainRisk("a server was started in %s meanwhile" % path)

    def _make_again(self, place: str, mode: int) -> None:
        os.mkdir(place)
        os.chmod(place, mode)
        self._own(place)

    def _relink(self, seen: CloneState) -> None:
        """Links of the new data directory still lead to where the copies were made."""
        path = seen.target.real_path
        ends = {new: place for place, new in self._copies(seen)}
        candidates = [os.path.join(path, "pg_wal"), *(entry.path for entry in os.scandir(os.path.join(path, "pg_tblspc")))]
        for link in candidates:
            if os.path.islink(link) and os.readlink(link) in ends:
                datadir.relink(link, ends[os.readlink(link)])
                self._own(link)

    def _make_standby(self, seen: CloneState, copy: str) -> None:
        old = seen.target.real_path
        if os.path.isdir(old):
            for name in datadir.CARRIED_OVER:
                if os.path.isfile(os.path.join(old, name)):
                    self._carry(os.path.join(old, name), os.path.join(copy, name))
        self._configure_standby(copy)
        self._write(os.path.join(copy, MARKER), json.dumps({"id": self.identifier, "was_running": seen.target.running}) + "\n")

    def _configure_standby(self, directory: str) -> None:
        """Make a directory that is not started a standby's."""
        auto = os.path.join(directory, "postgresql.auto.conf")
        self._write(auto, datadir.with_settings(self._read(auto), self._standby_settings()))
        for name in datadir.SIGNAL_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
        self._write(os.path.join(directory, "standby.signal"), "")

    def _standby_settings(self) -> dict[str, str | None]:
        conninfo = self._conninfo()
        if self.params["application_name"]:
            conninfo["application_name"] = self.params["application_name"]
        return {"primary_conninfo": build_conninfo(conninfo), "primary_slot_name": self.params["slot_name"]}

    @staticmethod
    def _read(path: str) -> str:
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
        return ""

    def _write(self, path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(path, 0o600)
        self._own(path)

    def _own(self, path: str) -> None:
        if self.owner:
            account = pwd.getpwnam(self.owner)
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)

    def _start(self, seen: CloneState) -> None:
        conflicts = port_conflicts(self.instance)
        if conflicts:
            raise Refused(
                "the standby in %s cannot listen: %s" % (self.instance.data_directory, "; ".join(conflicts)),
                action="Set config_file to a configuration of this node's own, or carry one over in the old data directory",
            )
        # Immediate where what is stopped is thrown away.
        mode = "immediate" if self._way == "basebackup" else "fast"
        self._undo.append(("new standby stopped", lambda: self.instance.stop(mode)))
        mark = self.instance.log_mark()
        self.instance.start()
        try:
            wait_for(
                "streaming from %s" % self.source_name,
                lambda: self._streams(seen.source),
                lambda streams: streams,
                Deadline(self.params["timeout"]),
                action="See the log lines: usually the replication login, its passfile or the source's pg_hba.conf",
            )
        except OperationError as error:
            log = self.instance.log_tail(mark)
            error.facts["log"] = log
            error.message = "%s. The server logged: %s" % (error.message.rstrip("."), " / ".join(log[-8:]))
            raise
        if self._way != "basebackup":
            self._undo.clear()
            self._done = True

    def _streams(self, source: Source) -> bool:
        with contextlib.suppress(NotReachable):
            session = self._connect_source()
            try:
                fresh = dataclasses.replace(
                    source, senders=session.rows("SELECT pid, application_name, client_addr::text AS client, state FROM pg_stat_replication")
                )
            finally:
                session.close()
            found = self._observe_target(self.instance.data_directory, fresh)
            return found.kind == "standby" and found.streaming and found.from_source
        return False

    def _finish(self, target: Standby, identifier: str) -> None:
        """The standby streams: from here on nothing is undone."""
        self._undo.clear()
        self._done = True
        doomed = []
        for place in [target.real_path, *self._outside(target.real_path)]:
            old = datadir.old_path(place, identifier)
            if os.path.isdir(old):
                if self.params["keep_old"]:
                    self._kept = self._kept or old
                else:
                    # First a name that is always disposable, so that a run killed now leaves nothing that looks like an old directory to put back.
                    datadir.rename(old, datadir.clone_path(place, identifier))
                    doomed.append(datadir.clone_path(place, identifier))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(target.real_path, MARKER))
        for path in doomed:
            datadir.remove_tree(path)

    def _outside(self, path: str) -> list[str]:
        return datadir.links_out(path)

    # What an interrupted run left

    def _remove_copy(self, copy: str) -> None:
        end_copies(copy)
        for outside in datadir.links_out(copy):
            # Only what the same run made; a link of its own may lead anywhere.
            if outside.endswith(".clone-%s" % datadir.identifier_of(copy)):
                datadir.remove_tree(outside)
        datadir.remove_tree(copy)

    def _put_back(self, target: Standby, identifier: str) -> None:
        path = target.real_path
        old = datadir.old_path(path, identifier)
        for place in datadir.links_out(old):
            self._put_back_one(place, identifier)
        self._put_back_one(path, identifier)
        self._remove_copy(datadir.clone_path(path, identifier))

    @staticmethod
    def _put_back_one(place: str, identifier: str) -> None:
        old, copy = datadir.old_path(place, identifier), datadir.clone_path(place, identifier)
        if os.path.isdir(old):
            if os.path.isdir(place):
                datadir.rename(place, copy)
            datadir.rename(old, place)

    def _undo_interrupted(self, target: Standby) -> None:
        identifier = str((target.marker or {})["id"])
        self.instance.stop("immediate")
        path = target.real_path
        outside = set(datadir.links_out(path))
        old = datadir.old_path(path, identifier)
        if os.path.isdir(old):
            outside |= set(datadir.links_out(old))
        for place in sorted(outside):
            self._put_back_one(place, identifier)
        if os.path.isdir(old):
            self._put_back_one(path, identifier)
        else:
            datadir.rename(path, datadir.clone_path(path, identifier))
        self._remove_copy(datadir.clone_path(path, identifier))

    # Afterwards

    def confirm(self, seen: CloneState) -> None:
        target = seen.target
        if target.interrupted is None and target.kind == "standby" and target.streaming and target.from_source:
            return
        raise NotConfirmed("%s is %s after all steps" % (target.real_path, self._describe(target)), expected="a streaming standby of %s" % self.source_name)

    def report(self, seen: CloneState) -> dict[str, t.Any]:
        target = seen.target
        if target.kind == "standby" and target.streaming and not target.from_source:
            self.context.warn(
                "%s already is a standby of this cluster and streams from %s, not from %s; nothing was done. pgfleet.ops.pg_follow or reclone move it."
                % (target.real_path, target.upstream, self.source_name)
            )
        if self._way and self._rewind_problem:
            self.context.warn("%s could not be rewound, so that it takes a new copy: %s." % (target.real_path, self._rewind_problem))
        if self._way:
            for problem in seen.source.standing:
                self.context.warn("The source %s is a standby, and %s; its copy is as old as its own data." % (self.source_name, problem))
        return {
            "copy_method": self._way,
            "copied_bytes": self._copied_bytes,
            "rewind_problem": self._rewind_problem,
            "state": target.kind,
            "streaming": target.streaming,
            "upstream": target.upstream,
            "follows_source": target.from_source,
            "pid": target.postmaster.pid if target.postmaster else None,
            "port": target.postmaster.port if target.postmaster else None,
            "slot_name": self.params["slot_name"],
            "system_identifier": seen.source.system_identifier,
            "timeline": seen.source.timeline,
            "version": seen.source.version,
            "data_directory": target.real_path,
            "kept_directory": self._kept,
            "needed_bytes": sum(seen.source.spaces.values()),
        }
