# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The planned switchover: one process owns the time from PAUSE to RESUME.

Before the first PAUSE everything is connected, checked and prepared. Inside the window nothing starts a process, opens
a connection or waits for a tool that polls. A guardian on the host of each pooler and of the old primary
(_host/guardian_program.py) puts its part back when this process fails, hangs or is killed.

Order and rollback points:

1. prepare: sessions, checkpoints, where the old primary will stream from; nothing that clients notice, undone on failure
2. fence: standby.signal on the old primary, so that whatever starts it later starts a standby
3. pause all poolers at once, with a bound
4. stop the old primary; meanwhile the poolers' files are switched and reloaded
5. proof: pg_control says shut down, and the candidate has replayed that shutdown checkpoint
6. release: the old primary's guardian gives up its right to go back. Until it says so, nothing is promoted.
7. promote, resume; then, outside the window: old primary starts as a standby, the others follow, slots are moved
"""

from __future__ import annotations

import contextlib
import dataclasses
import select
import time
import typing as t

from .._cluster.model import Cluster, Node
from .._cluster.switchover import PoolerView, Transaction, read_only_target, refusals, slot_name
from .._errors import InvalidInput, NotConfirmed, NotReachable, OperationError, Refused, RolledBack, WaitTimeout
from .._host.guardian import Guardian
from .._host.instance import Instance
from .._module import LOGIN, ArgumentSpec, Context, Operation
from .._parallel import ask_all
from .._pgbouncer.console import Console
from .._pgbouncer.ini import DATABASES, Change, Ini, retarget
from .._plan import Plan
from .._sql.connection import Session, Target, connect, sql
from .._sql.values import build_conninfo, lsn_to_int, parse_conninfo
from .._wait import Deadline, wait_for
from .cluster_info import NODE_OPTIONS, check_nodes, describe, observe_cluster

# With PgBouncer's default of 15 s, one login that meets a PAUSE keeps a pool closed for that long.
LOGIN_RETRY_SECONDS = "0.1"
# A promotion that meets a walreceiver being restarted waits this long; the default is 5 s.
RETRIEVE_RETRY = "5ms"

SWITCHOVER = LOGIN.merge(
    ArgumentSpec(
        {
            "candidate": {"type": "str", "required": True},
            "nodes": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    **NODE_OPTIONS,
                    "conninfo": {"type": "dict", "default": {}, "no_log": True},
                    "slot": {"type": "str"},
                    "data_directory": {"type": "path"},
                    "config_file": {"type": "path"},
                    "bin_directory": {"type": "path"},
                    "method": {"type": "str", "choices": ["auto", "systemd", "pg_ctlcluster", "pg_ctl"], "default": "auto"},
                    "unit": {"type": "str"},
                    "log_file": {"type": "path"},
                    "shell": {"type": "list", "elements": "str", "default": []},
                },
            },
            "poolers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 6432},
                    "user": {"type": "str"},
                    "password": {"type": "str", "no_log": True},
                    "config_file": {"type": "path", "required": True},
                    "shell": {"type": "list", "elements": "str", "default": []},
                },
            },
            "pooler_user": {"type": "str"},
            "pooler_password": {"type": "str", "no_log": True},
            "readonly_suffix": {"type": "str", "default": "_ro"},
            "readonly_databases": {"type": "list", "elements": "str", "default": []},
            "lag_limit_bytes": {"type": "int", "default": 16777216},
            "transaction_limit": {"type": "float", "default": 5},
            "pause_timeout": {"type": "float", "default": 2},
            "timeout": {"type": "float", "default": 30},
            "prepare_timeout": {"type": "float", "default": 300},
            "if_primary": {"type": "str", "choices": ["unchanged", "fail"], "default": "unchanged"},
        }
    )
)


@dataclasses.dataclass
class Pooler:
    """One pooler with all that the window needs of it."""

    name: str
    options: t.Mapping[str, t.Any]
    target: Target
    guardian: Guardian | None = None
    console: Console | None = None
    text: str = ""
    new_text: str = ""
    changes: t.Sequence[Change] = ()
    everything: bool = False
    """All that it serves is affected: it is paused as a whole."""
    login_retry: str = LOGIN_RETRY_SECONDS
    view: PoolerView = PoolerView("")

    @property
    def paused(self) -> list[str | None]:
        """What the PAUSE and RESUME commands name; None is everything."""
        return [None] if self.everything else [change.name for change in self.changes]


@dataclasses.dataclass
class Seen:
    cluster: Cluster
    candidate: Node
    poolers: t.Sequence[Pooler]
    transactions: t.Sequence[Transaction]
    problems: t.Sequence[str]
    fenced_down: t.Sequence[str]
    """Nodes that are down, fenced, and left so by an interrupted switchover."""


class Switchover(Operation):
    """Makes ``candidate`` the primary and everything else follow it; finishes one that was interrupted."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self._open: list[t.Any] = []
        self._guardians: dict[str, Guardian] = {}
        self._timing: dict[str, float] = {}
        self._marked = 0.0
        self._result: dict[str, t.Any] = {}
        self._warnings: list[str] = []

    # -- what is there ---------------------------------------------------------------------------------------------

    def observe(self) -> Seen:
        params = self.params
        check_nodes(params["nodes"])
        names = [entry["name"] for entry in params["nodes"]]
        if params["candidate"] not in names:
            raise InvalidInput(
                'the option candidate names "%s", which is not a node of this cluster' % params["candidate"], expected="one of %s" % ", ".join(names)
            )
        pooler_names = [entry["name"] for entry in params["poolers"]]
        if len(set(pooler_names)) != len(pooler_names):
            raise InvalidInput("two entries of the option poolers have the same name: %s" % ", ".join(sorted(pooler_names)))
        for entry in params["nodes"]:
            if entry["shell"] and (entry["method"] == "auto" or entry["method"] == "pg_ctl" and not entry["bin_directory"]):
                raise InvalidInput(
                    "the node %s has a shell, so that this host cannot find out how its server is started" % entry["name"],
                    expected="the options method and, for pg_ctl, bin_directory of that node",
                )
        if params["pause_timeout"] * 2 > params["timeout"]:
            raise InvalidInput("the option timeout (%g s) must be at least twice the option pause_timeout (%g s)" % (params["timeout"], params["pause_timeout"]))
        cluster = observe_cluster(params, timeout=10, read_only=True)
        candidate = t.cast(Node, cluster.node(params["candidate"]))
        problems: list[str] = []
        transactions: list[Transaction] = []
        if cluster.primary and cluster.primary is not candidate:
            transactions = self._transactions(cluster.primary, problems)
            self._look_at_node(cluster.primary, problems)
        if candidate.role == "primary":
            fenced_down = [node.name for node in cluster.nodes if not node.reachable and self._is_fenced_down(node, candidate)]
        else:
            fenced_down = []
        deadline = Deadline(10)
        poolers = [Pooler(entry["name"], entry, self._pooler_target(entry)) for entry in params["poolers"]]
        for pooler, answer in zip(poolers, ask_all(poolers, lambda p: self._look_at_pooler(p, cluster, candidate, deadline), deadline)):
            pooler.view = PoolerView(pooler.name, problem=str(answer)) if isinstance(answer, OperationError) else answer
        return Seen(cluster, candidate, poolers, transactions, problems, fenced_down)

    def _pooler_target(self, entry: t.Mapping[str, t.Any]) -> Target:
        params = self.params
        return Target.from_params(
            params,
            host=entry["host"],
            port=entry["port"],
            user=entry["user"] or params["pooler_user"],
            password=entry["password"] or params["pooler_password"],
            dbname="pgbouncer",
        )

    def _node_target(self, node: Node) -> Target:
        return Target.from_params(self.params, host=node.host, port=node.port)

    def _entry(self, node: Node) -> t.Mapping[str, t.Any]:
        return next(entry for entry in self.params["nodes"] if entry["name"] == node.name)

    def _transactions(self, primary: Node, problems: list[str]) -> list[Transaction]:
        """Open transactions of clients, and whether this login may do what is needed."""
        session = connect(self._node_target(primary), read_only=True)
        try:
            if not session.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
                problems.append('the login "%s" is no superuser on %s: a switchover needs CHECKPOINT, ALTER SYSTEM and pg_promote' % (session.target.user, primary.name))
            rows = session.rows(
                "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, application_name, usename::text AS user,"
                " xact_start::text AS started_at FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start"
            )
        finally:
            session.close()
        return [Transaction(**row) for row in rows]

    def _guardian_of_node(self, node: Node, data_directory: str, config_file: str | None) -> Guardian:
        entry = self._entry(node)
        instance = Instance(
            data_directory,
            config_file=config_file,
            bin_directory=entry["bin_directory"],
            method=entry["method"],
            unit=entry["unit"],
            log_file=entry["log_file"],
            timeout=self.params["timeout"],
        )
        if not entry["shell"]:
            instance.refuse_root()
        return self._guardian(node.name, entry["shell"], {"part": "node", "data_directory": data_directory, "start_command": instance.start_command()})

    def _guardian(self, name: str, shell: t.Sequence[str], options: t.Mapping[str, t.Any]) -> Guardian:
        guardian = Guardian(name, shell, options, patience=self.params["timeout"] / 2)
        self._guardians[name] = guardian
        self._open.append(guardian)
        return guardian

    def _look_at_node(self, primary: Node, problems: list[str]) -> None:
        """Can the old primary be stopped and started from here? Is it the one that answered the queries?"""
        entry = self._entry(primary)
        assert primary.state is not None
        data_directory = entry["data_directory"] or primary.state["data_directory"]
        config_file = entry["config_file"] or primary.state["config_file"]
        try:
            seen = self._guardian_of_node(primary, data_directory, config_file).call("look", Deadline(10))
        except OperationError as error:
            problems.append("the host of the primary %s: %s" % (primary.name, error))
            return
        if seen["system_identifier"] != primary.system_identifier:
            problems.append(
                "%s on the host of %s belongs to another cluster: its system identifier is %s, the server answers %s"
                % (data_directory, primary.name, seen["system_identifier"], primary.system_identifier)
            )
        if seen["pid"] is None:
            problems.append("no server runs in %s, but %s:%d answers: the option data_directory or shell names another host or directory" % (data_directory, primary.host, primary.port))

    def _is_fenced_down(self, node: Node, primary: Node) -> bool:
        entry = self._entry(node)
        if not entry["data_directory"]:
            return False
        seen = self._guardian_of_node(node, entry["data_directory"], entry["config_file"]).call("look", Deadline(10))
        return seen["pid"] is None and seen["standby_signal"] and seen["system_identifier"] == primary.system_identifier

    def _is_read_only(self, name: str) -> bool:
        suffix = self.params["readonly_suffix"]
        return name in self.params["readonly_databases"] or bool(suffix and name.endswith(suffix))

    def _look_at_pooler(self, pooler: Pooler, cluster: Cluster, candidate: Node, deadline: Deadline) -> PoolerView:
        options = pooler.options
        pooler.console = Console.open(pooler.target, timeout=5)
        self._open.append(pooler.console)
        guardian = self._guardian(pooler.name, options["shell"], {"part": "pooler", "config_file": options["config_file"]})
        pooler.guardian = guardian
        pooler.text = pooler.new_text = guardian.call("look", deadline)["text"]
        self._retarget(pooler, cluster, candidate)
        entries = Ini.parse(pooler.text, section=DATABASES).databases()
        running = pooler.console.databases(deadline)
        config = pooler.console.config(deadline)
        pooler.login_retry = config["server_login_retry"]
        affected = [change.name for change in pooler.changes]
        # "*" does not show in SHOW DATABASES; it can only be paused with everything else.
        pooler.everything = "*" in affected or set(running) <= set(affected)
        return PoolerView(
            name=pooler.name,
            affected=affected,
            session_pools=[name for name in affected if (running.get(name, {}).get("pool_mode") or config["pool_mode"]) == "session"],
            stale=[name for name in affected if name != "*" and not _same_target(entries[name], running.get(name))],
            disabled=[name for name in affected if running.get(name, {}).get("disabled")],
            paused=[name for name in affected if running.get(name, {}).get("paused")],
        )

    def _retarget(self, pooler: Pooler, cluster: Cluster, candidate: Node) -> None:
        """The pooler's file as it will be: read-write entries go to the candidate, read-only ones leave it."""
        primary = cluster.primary
        if primary is None or primary is candidate:
            return
        entries = Ini.parse(pooler.text, section=DATABASES).databases()
        target = read_only_target(cluster, candidate) or primary
        text, changes = pooler.text, []
        for source, destination, names in (
            (primary, candidate, [name for name in entries if not self._is_read_only(name)]),
            (candidate, target, [name for name in entries if self._is_read_only(name)]),
        ):
            mapping = {
                (host, port): (destination.peer_address, destination.port)
                for host, port in {(entry.get("host", ""), int(entry.get("port", 5432))) for entry in entries.values()}
                if source.listens_at(host, port)
            }
            text, changed = retarget(text, mapping, names=names, section=DATABASES)
            changes += changed
        pooler.new_text, pooler.changes = text, changes

    # -- what is to be done ----------------------------------------------------------------------------------------

    def plan(self, seen: Seen) -> Plan:
        candidate, cluster = seen.candidate, seen.cluster
        if candidate.role == "primary":
            return self._plan_to_finish(seen)
        found = refusals(
            cluster,
            candidate,
            self.params["lag_limit_bytes"],
            [pooler.view for pooler in seen.poolers],
            seen.transactions,
            self.params["transaction_limit"],
        ) + list(seen.problems)
        if found:
            raise Refused(
                "the switchover to %s was not begun, nothing was changed: %s" % (candidate.name, "; ".join(found)),
                findings=found,
                cluster=self._describe(cluster),
            )
        primary = t.cast(Node, cluster.primary)
        window = Window(self, seen, primary)
        names = ", ".join(pooler.name for pooler in seen.poolers)
        plan = Plan()
        plan.add("prepare %s and %s (checkpoints, sessions)" % (primary.name, candidate.name), window.prepare)
        if seen.poolers:
            plan.add("pause %s" % names, window.pause)
        plan.add(
            "stop %s, fenced by standby.signal" % primary.name,
            window.stop,
            subject="roles",
            before={primary.name: "primary", candidate.name: "standby"},
            after={primary.name: "standby", candidate.name: "primary"},
        )
        plan.add("promote %s once it has replayed the shutdown checkpoint of %s" % (candidate.name, primary.name), window.promote)
        for n, pooler in enumerate(seen.poolers):
            plan.add(
                "resume %s towards %s" % (pooler.name, candidate.name),
                window.resume if n == 0 else _nothing,
                subject="pooler %s, %s" % (pooler.name, pooler.options["config_file"]),
                before=_targets(pooler.changes, "before"),
                after=_targets(pooler.changes, "after"),
            )
        plan.add("start %s as a standby of %s" % (primary.name, candidate.name), window.rejoin)
        for node in cluster.standbys:
            if node is not candidate:
                plan.add("point %s at %s" % (node.name, candidate.name), _bind(window.follow, node))
        plan.add("settle: slots, settings, one verified primary", window.settle)
        for step in plan.steps:
            step.do = window.guarded(step.do)
        return plan

    def _plan_to_finish(self, seen: Seen) -> Plan:
        """The candidate is the primary already: only what an interrupted switchover left undone."""
        cluster, candidate = seen.cluster, seen.candidate
        if len(cluster.primaries) > 1:
            raise Refused("more than one node is a primary: %s" % ", ".join(node.name for node in cluster.primaries), cluster=self._describe(cluster))
        strangers = [node.name for node in cluster.nodes if node.reachable and node.system_identifier != candidate.system_identifier]
        if strangers:
            raise Refused("these nodes belong to another cluster than %s: %s" % (candidate.name, ", ".join(strangers)), cluster=self._describe(cluster))
        finish = Finish(self, candidate, self.params["prepare_timeout"])
        plan = Plan()
        for name in seen.fenced_down:
            plan.add("start %s as a standby of %s" % (name, candidate.name), _bind(finish.start, name))
        for node in cluster.standbys:
            if cluster.upstream(node) is not candidate and not self._follows_a_follower(cluster, node, candidate):
                plan.add("point %s at %s" % (node.name, candidate.name), _bind(finish.follow, node))
        for node in cluster.standbys:
            stale = self._stale_slots(cluster, node)
            if stale:
                plan.add("drop the slots %s on %s" % (", ".join(stale), node.name), _bind(finish.drop_slots, node, stale))
        if candidate.state and candidate.state["wal_retrieve_retry_ms"] == 5:
            plan.add("reset wal_retrieve_retry_interval on %s" % candidate.name, finish.reset_retry)
        for pooler in seen.poolers:
            if pooler.view.problem:
                self._warn("pooler %s: %s" % (pooler.name, pooler.view.problem))
                continue
            for name, entry in Ini.parse(pooler.text, section=DATABASES).databases().items():
                led = next((n for n in cluster.standbys if n.listens_at(entry.get("host", ""), int(entry.get("port", 5432)))), None)
                if led and not self._is_read_only(name):
                    self._warn("pooler %s: the entry %s leads to %s, which is a standby (see the option readonly_databases)" % (pooler.name, name, led.name))
        if not plan.changed and self.params["if_primary"] == "fail":
            raise Refused(
                "the candidate %s is the primary already, nothing was changed" % candidate.name,
                expected="a standby as the candidate",
                action="Name one of %s" % (", ".join(node.name for node in cluster.standbys) or "no node: there is no standby"),
                cluster=self._describe(cluster),
            )
        return plan

    @staticmethod
    def _follows_a_follower(cluster: Cluster, node: Node, candidate: Node) -> bool:
        """A cascade that ends at the primary is somebody's intention."""
        seen: set[str] = set()
        current: Node | None = node
        while current is not None and current.name not in seen:
            seen.add(current.name)
            current = cluster.upstream(current)
            if current is candidate:
                return True
        return False

    def _stale_slots(self, cluster: Cluster, node: Node) -> list[str]:
        """Physical slots on a standby that no member uses there any more: each would hold WAL for ever."""
        members = {self.slot_of(other) for other in cluster.nodes}
        slots = node.state["slots"] if node.state else []
        return [slot["name"] for slot in slots if slot["type"] == "physical" and not slot["active"] and slot["name"] in members]

    def slot_of(self, node: Node) -> str:
        entry = self._entry(node)
        configured = node.state["primary_slot_name"] if node.state else None
        return entry["slot"] or configured or slot_name(node.name)

    def confirm(self, seen: Seen) -> None:
        if seen.candidate.role != "primary":
            raise NotConfirmed("%s is not the primary after all steps" % seen.candidate.name, cluster=self._describe(seen.cluster))
        if len(seen.cluster.primaries) != 1:
            raise NotConfirmed("more than one node is a primary: %s" % ", ".join(n.name for n in seen.cluster.primaries))
        idle = [node.name for node in seen.cluster.nodes if node is not seen.candidate and not node.streaming]
        if idle:
            raise NotConfirmed("these nodes do not stream from the new primary: %s" % ", ".join(idle), cluster=self._describe(seen.cluster))

    def report(self, seen: Seen) -> dict[str, t.Any]:
        for text in self._warnings:
            self.context.warn(text)
        return {
            "primary": seen.cluster.primary.name if seen.cluster.primary else None,
            "cluster": self._describe(seen.cluster),
            "poolers": {pooler.name: {name: _shown(entry) for name, entry in self._entries(pooler).items()} for pooler in seen.poolers},
            "warnings_found": self._warnings,
            **self._result,
        }

    def close(self) -> None:
        # Guardians last: an armed one recovers as soon as its pipe ends.
        for part in reversed(self._open):
            with contextlib.suppress(OperationError):
                part.close()

    def _entries(self, pooler: Pooler) -> dict[str, dict[str, str]]:
        return Ini.parse(pooler.text, section=DATABASES).databases() if pooler.text else {}

    def _describe(self, cluster: Cluster) -> dict[str, t.Any]:
        return describe(cluster, self.params["lag_limit_bytes"], "priority", ())

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    # -- shared by the window and the finish -----------------------------------------------------------------------

    def mark(self, what: str | None) -> None:
        """Add the time since the last mark to ``timing_ms``; None only starts the clock."""
        now = time.monotonic()
        if what is not None:
            self._timing[what] = round(self._timing.get(what, 0) + (now - self._marked) * 1000, 1)
        self._marked = now

    def session(self, node: Node) -> Session:
        session = connect(self._node_target(node))
        self._open.append(session)
        return session


class Finish:
    """Brings the other nodes behind the primary. Every method does nothing where nothing is to be done."""

    def __init__(self, operation: Switchover, primary: Node, timeout: float) -> None:
        self._operation = operation
        self._primary = primary
        self._timeout = timeout
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """On the new primary."""
        if self._session is None:
            self._session = self._operation.session(self._primary)
        return self._session

    def conninfo(self, node: Node, own: str, model: str) -> str:
        """Where a node streams from: its own connection string or, if it never had one, that of the model, led to the new primary."""
        keywords: dict[str, t.Any] = parse_conninfo(own) or parse_conninfo(model)
        keywords.setdefault("application_name", node.name)
        if not own:
            keywords["application_name"] = node.name
        keywords.update(self._operation._entry(node)["conninfo"])
        keywords.update(host=self._primary.peer_address, port=self._primary.port)
        return build_conninfo({key: value for key, value in keywords.items() if key not in ("hostaddr", "dbname", "replication", "fallback_application_name")})

    def ensure_slot(self, node: Node) -> str:
        name = self._operation.slot_of(node)
        if not self.session.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", [name]):
            self.session.execute("SELECT pg_create_physical_replication_slot(%s, true)", [name])
        return name

    def follow(self, node: Node) -> None:
        """Point a running standby at the primary; PostgreSQL 13 and later take it by reload."""
        session = self._operation.session(node)
        slot = self.ensure_slot(node) if session.value("SELECT setting FROM pg_settings WHERE name = 'primary_slot_name'") else None
        own = session.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'") or ""
        point_at(session, self.conninfo(node, own, own), slot)
        self.wait_until_streaming(node)

    def start(self, name: str) -> None:
        """Start a fenced node that is down."""
        node = next(Node(e["name"], e["host"], e["port"], e["priority"], e["address"]) for e in self._operation.params["nodes"] if e["name"] == name)
        self.ensure_slot(node)
        self._operation._guardians[name].call("start", Deadline(self._timeout), timeout=self._timeout)
        self.follow(node)

    def wait_until_streaming(self, node: Node) -> None:
        session = self._operation.session(node)
        wait_for(
            "streaming of %s from %s" % (node.name, self._primary.name),
            lambda: session.row("SELECT status, sender_port FROM pg_stat_wal_receiver") or {},
            lambda row: row.get("status") == "streaming" and row.get("sender_port") == self._primary.port,
            Deadline(self._timeout),
            interval=0.05,
            action="See the log of %s: a slot, pg_hba.conf or the password of the replication user may be missing on %s" % (node.name, self._primary.name),
        )

    def drop_slots(self, node: Node, names: t.Sequence[str]) -> None:
        session = self._operation.session(node)
        for name in names:
            session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active", [name])

    def reset_retry(self) -> None:
        reset_setting(self.session, "wal_retrieve_retry_interval")


class Window:
    """The switchover itself; its methods are the plan's steps, in order."""

    def __init__(self, operation: Switchover, seen: Seen, old: Node) -> None:
        self.operation = operation
        self.seen = seen
        self.old_node = old
        self.new_node = seen.candidate
        self.poolers = [pooler for pooler in seen.poolers if pooler.changes]
        self.finish = Finish(operation, seen.candidate, operation.params["timeout"])
        self.timeout: float = operation.params["timeout"]
        self.limit = Deadline(0)
        self.undo: list[t.Callable[[], None]] = []
        self.armed = False
        self.phase = "prepare"
        self._slots_wanted = False

    # Every step goes through here: one place knows the way back.
    def guarded(self, do: t.Callable[[], t.Any]) -> t.Callable[[], None]:
        def run() -> None:
            try:
                do()
            except BaseException as error:
                if self.phase == "done" and isinstance(error, OperationError):
                    raise NotConfirmed(
                        "%s is the new primary and the poolers lead to it, but not everything follows yet: %s" % (self.new_node.name, error),
                        action="Run the switchover again: it finishes what is left",
                        **error.facts,
                    ) from error
                outcomes, now = self.recover()
                if not isinstance(error, OperationError):
                    raise
                raise self._failure(error, outcomes, now) from error

        return run

    def _failure(self, error: OperationError, outcomes: dict[str, str], now: Cluster) -> OperationError:
        facts = {**error.facts, "phase": self.phase, "recovery": outcomes, "timing_ms": self.operation._timing}
        primary = now.primary
        if primary is not None and primary.name == self.old_node.name:
            lost = [text for name, text in outcomes.items() if "failed" in text or "stays paused" in text]
            return RolledBack(
                "the switchover to %s failed and was rolled back, %s is the primary as before: %s" % (self.new_node.name, self.old_node.name, error),
                action="Not put back: %s" % "; ".join(lost) if lost else "The poolers lead to %s again" % self.old_node.name if self.poolers else None,
                **facts,
            )
        facts["cluster"] = self.operation._describe(now)
        if primary is not None and primary.name == self.new_node.name:
            return NotConfirmed(
                "%s is the new primary and the poolers lead to it, but the switchover did not end well: %s" % (primary.name, error),
                action="Run the switchover again: it finishes what is left",
                **facts,
            )
        return NotConfirmed(
            "the switchover failed and no node, or more than one, accepts writes now (%s): %s" % (", ".join(n.name for n in now.primaries) or "none", error),
            action="Look at both nodes before you start or promote anything; guardians: %s" % outcomes,
            **facts,
        )

    def recover(self) -> tuple[dict[str, str], Cluster]:
        """Let every guardian put its part back, as they would without us, then take back what was prepared.

        Returns what each guardian did and the cluster as it is then.
        """
        outcomes: dict[str, str] = {}
        patience = Deadline(self.timeout + 5)
        if self.armed:
            guardians = [self.operation._guardians[self.old_node.name], *(t.cast(Guardian, pooler.guardian) for pooler in self.poolers)]
            for guardian in guardians:
                with contextlib.suppress(OperationError):
                    self._drain(guardian)
                    guardian.start("recover")
            for guardian in guardians:
                try:
                    outcomes[guardian.name] = str(guardian.finish(patience))
                except OperationError as error:
                    outcomes[guardian.name] = "recovery failed: %s" % error
        now = observe_cluster(self.operation.params, timeout=10, read_only=True)
        went_back = now.primary is not None and now.primary.name == self.old_node.name
        # Where the candidate was promoted, the old primary needs what was prepared for it as a standby.
        for undo in reversed(self.undo if went_back else self.undo[:1]):
            try:
                undo()
            except OperationError as error:
                outcomes["prepared settings"] = "recovery failed: %s" % error
        return outcomes, now

    @staticmethod
    def _drain(guardian: Guardian) -> None:
        """A request may be under way whose answer nobody has read."""
        while guardian.waiting:
            with contextlib.suppress(OperationError):
                guardian.finish(Deadline(10))

    # -- before the window -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        operation, params = self.operation, self.operation.params
        operation.mark(None)
        deadline = Deadline(params["prepare_timeout"])
        self.old = operation.session(self.old_node)
        self.new = operation.session(self.new_node)
        self.guard_node = operation._guardians[self.old_node.name]
        for pooler in self.poolers:
            assert pooler.guardian is not None
            pooler.guardian.start(
                "prepare",
                console=pooler.target.keywords(),
                databases=None if pooler.everything else pooler.paused,
                directions=[
                    {
                        "name": node.name,
                        "node": operation._node_target(node).keywords(),
                        "system_identifier": node.system_identifier,
                        "text": text,
                    }
                    for node, text in ((self.old_node, pooler.text), (self.new_node, pooler.new_text))
                ],
            )
        for pooler in self.poolers:
            t.cast(Guardian, pooler.guardian).finish(deadline)
        operation.mark("connect")
        self._set(self.new_node, self.new, "wal_retrieve_retry_interval", RETRIEVE_RETRY)
        self._slots_wanted = bool((self.new_node.state or {}).get("primary_slot_name") or operation._entry(self.old_node)["slot"])
        own = self.old.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'") or ""
        model = (self.new_node.state or {}).get("primary_conninfo") or ""
        self._set(self.old_node, self.old, "primary_conninfo", self.finish.conninfo(self.old_node, own, model))
        if self._slots_wanted:
            self._set(self.old_node, self.old, "primary_slot_name", operation.slot_of(self.old_node))
        # Twice: what the first one's own time dirtied is little, so that the shutdown checkpoint is short.
        for session in (self.old, self.old, self.new):
            session.ask("CHECKPOINT", deadline)
        operation.mark("checkpoint")
        head = lsn_to_int(self.old.ask_value("SELECT pg_current_wal_flush_lsn()", deadline) or "0/0")
        self._wait_for_replay(head, deadline.within(params["timeout"]))
        operation.mark("catch_up")

    def _set(self, node: Node, session: Session, name: str, value: str) -> None:
        """ALTER SYSTEM with an undo, which has a session of its own: this one may not survive."""
        before = session.row("SELECT setting, unit, sourcefile FROM pg_settings WHERE name = %s", [name]) or {}
        was_set = str(before.get("sourcefile") or "").endswith("postgresql.auto.conf")
        old = "%s%s" % (before["setting"], before["unit"] or "") if was_set else None
        set_setting(session, name, value)

        def undo() -> None:
            fresh = self.operation.session(node)
            if old is None:
                reset_setting(fresh, name)
            else:
                set_setting(fresh, name, old)

        self.undo.append(undo)

    def _wait_for_replay(self, position: int, deadline: Deadline) -> None:
        """Until the candidate has replayed past a position (bytes)."""
        while True:
            replayed = lsn_to_int(self.new.ask_value("SELECT pg_last_wal_replay_lsn()", deadline) or "0/0")
            if replayed >= position:
                return
            if deadline.passed:
                raise WaitTimeout(
                    "the candidate %s has not replayed the WAL of %s within %g s, %d bytes are missing"
                    % (self.new_node.name, self.old_node.name, deadline.seconds, position - replayed)
                )
            time.sleep(0.0005)

    # -- the window ------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """From here on a guardian acts when we do not. Forward has half of the time limit, the way back the other half."""
        operation = self.operation
        self.phase = "arm"
        half = self.timeout / 2
        self.limit = Deadline(half - min(1.0, half / 4))
        self.armed = True
        guardians = [self.guard_node, *(t.cast(Guardian, pooler.guardian) for pooler in self.poolers)]
        for guardian in guardians:
            guardian.start("arm", limit=half)
        for guardian in guardians:
            guardian.finish(self.limit)
        self.guard_node.call("fence", self.limit)
        operation.mark("fence")

    def pause(self) -> None:
        operation = self.operation
        operation.mark(None)
        self._arm()
        self.phase = "pause"
        bound = self.limit.within(operation.params["pause_timeout"])
        for pooler in self.poolers:
            console = t.cast(Console, pooler.console)
            if float(pooler.login_retry) > float(LOGIN_RETRY_SECONDS):
                console.set("server_login_retry", LOGIN_RETRY_SECONDS, bound)
                self.undo.append(_bind(console.set, "server_login_retry", pooler.login_retry, Deadline(5)))
        # A PAUSE that meets a server connection in login makes PgBouncer take the pool for failed.
        for pooler in self.poolers:
            while any(row["sv_login"] for row in t.cast(Console, pooler.console).pools(bound)) and bound.left > bound.seconds / 2:
                time.sleep(0.001)
        operation.mark("wait_for_logins")
        self.paused_at = time.monotonic()
        waiting = {pooler.name: list(pooler.paused) for pooler in self.poolers}
        busy: dict[str, Pooler] = {}
        for pooler in self.poolers:
            t.cast(Console, pooler.console).start_pause(waiting[pooler.name].pop(0))
            busy[pooler.name] = pooler
        while busy:
            sockets = {t.cast(Console, pooler.console).session.fileno: pooler for pooler in busy.values()}
            ready, _w, _x = select.select(list(sockets), [], [], bound.left)
            if not ready and bound.passed:
                raise WaitTimeout(
                    "PAUSE did not end within %g s on %s: clients hold transactions open" % (bound.seconds, ", ".join(sorted(busy))),
                    action="See pg_stat_activity on %s for the transactions, or raise pause_timeout" % self.old_node.name,
                )
            for descriptor in ready:
                pooler = sockets[descriptor]
                console = t.cast(Console, pooler.console)
                if console.pause_finished():
                    console.finish_pause(bound)
                    if waiting[pooler.name]:
                        console.start_pause(waiting[pooler.name].pop(0))
                    else:
                        del busy[pooler.name]
        operation.mark("pause")

    def stop(self) -> None:
        operation = self.operation
        if not self.armed:  # no poolers
            operation.mark(None)
            self._arm()
            self.paused_at = time.monotonic()
        self.phase = "stop"
        self.guard_node.start("stop", timeout=max(0.1, self.limit.left - 0.1))
        # The poolers' files change while the old primary writes its shutdown checkpoint.
        for pooler in self.poolers:
            t.cast(Guardian, pooler.guardian).start("switch", text=pooler.new_text)
        for pooler in self.poolers:
            t.cast(Guardian, pooler.guardian).finish(self.limit)
            console = t.cast(Console, pooler.console)
            console.reload(self.limit)
            if float(pooler.login_retry) > float(LOGIN_RETRY_SECONDS):
                console.set("server_login_retry", LOGIN_RETRY_SECONDS, self.limit)
        operation.mark("reload")
        self.shutdown_checkpoint = int(self.guard_node.finish(self.limit)["checkpoint"])
        operation.mark("stop")

    def promote(self) -> None:
        operation = self.operation
        self.phase = "replay"
        # The replay position is the end of the last record: past the checkpoint's start means that the record is replayed.
        self._wait_for_replay(self.shutdown_checkpoint + 1, self.limit)
        operation.mark("replay")
        self.phase = "release"
        self.guard_node.call("release", self.limit)
        self.phase = "promote"
        self.new.ask("SELECT pg_promote(false)", self.limit)
        while self.new.ask_value("SELECT pg_is_in_recovery()", self.limit) != "f":
            if self.limit.passed:
                raise WaitTimeout("%s was told to promote and is still in recovery after %g s" % (self.new_node.name, self.limit.seconds))
            time.sleep(0.001)
        operation.mark("promote")

    def resume(self) -> None:
        operation = self.operation
        self.phase = "resume"
        deferred = self._deferred()
        for pooler in self.poolers:
            console = t.cast(Console, pooler.console)
            for name in pooler.paused:
                if name not in deferred.get(pooler.name, ()):
                    console.resume(name, self.limit)
        operation.mark("resume")
        operation._result["paused_ms"] = round((time.monotonic() - self.paused_at) * 1000, 1)
        self._check_run_time()

    def _deferred(self) -> dict[str, list[str]]:
        """Read-only entries that now lead to the old primary: they wait until it is a standby that answers."""
        return {
            pooler.name: [
                change.name for change in pooler.changes if self.old_node.listens_at(change.after.get("host", ""), int(change.after.get("port", 5432)))
            ]
            for pooler in self.poolers
        }

    def _check_run_time(self) -> None:
        for pooler in self.poolers:
            running = t.cast(Console, pooler.console).databases(self.limit)
            wrong = [change.name for change in pooler.changes if change.name != "*" and not _same_target(change.after, running.get(change.name))]
            if wrong:
                raise NotConfirmed("pooler %s still leads elsewhere for %s, although its file was changed and it was reloaded" % (pooler.name, ", ".join(wrong)))

    # -- after the window ------------------------------------------------------------------------------------------

    def rejoin(self) -> None:
        operation = self.operation
        self.phase = "rejoin"
        if not self.poolers:
            operation._result["paused_ms"] = round((time.monotonic() - self.paused_at) * 1000, 1)
        # Slots first: a follower that names one does not stream without it.
        if self._slots_wanted:
            self.finish.ensure_slot(self.old_node)
        operation.mark(None)
        self.guard_node.call("start", Deadline(self.timeout), timeout=self.timeout)
        operation.mark("start_old_primary")
        self.finish.wait_until_streaming(self.old_node)
        operation.mark("stream")
        for name, entries in self._deferred().items():
            console = next(t.cast(Console, pooler.console) for pooler in self.poolers if pooler.name == name)
            for entry in entries:
                console.resume(entry, self.limit)
        for guardian in (self.guard_node, *(t.cast(Guardian, pooler.guardian) for pooler in self.poolers)):
            guardian.call("disarm", Deadline(5))
        self.armed = False
        # Nothing is left that could go back, and what was set for the way there is taken back in settle().
        self.phase = "done"

    def follow(self, node: Node) -> None:
        self.finish.follow(node)

    def settle(self) -> None:
        operation = self.operation
        reset_retry = self.undo[0]
        reset_retry()
        for pooler in self.poolers:
            if float(pooler.login_retry) > float(LOGIN_RETRY_SECONDS):
                t.cast(Console, pooler.console).set("server_login_retry", pooler.login_retry, Deadline(5))
        now = observe_cluster(operation.params, timeout=10, read_only=True)
        for node in now.standbys:
            stale = operation._stale_slots(now, node)
            if stale:
                self.finish.drop_slots(node, stale)
        operation.mark("settle")
        operation._result["timing_ms"] = operation._timing
        operation._result["old_primary"] = self.old_node.name
        operation._result["timeline"] = {"before": self.old_node.timeline, "after": now.primary.timeline if now.primary else None}


def set_setting(session: Session, name: str, value: str) -> None:
    """ALTER SYSTEM SET and reload. ALTER SYSTEM takes no parameters, so the value is composed as a literal."""
    session.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    session.execute("SELECT pg_reload_conf()")


def reset_setting(session: Session, name: str) -> None:
    """ALTER SYSTEM RESET and reload."""
    session.execute(sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name)))
    session.execute("SELECT pg_reload_conf()")


def point_at(session: Session, conninfo: str, slot: str | None) -> None:
    """Lead a standby to an upstream."""
    if slot is not None:
        set_setting(session, "primary_slot_name", slot)
    set_setting(session, "primary_conninfo", conninfo)


def _same_target(entry: t.Mapping[str, str], running: t.Mapping[str, t.Any] | None) -> bool:
    if running is None:
        return False
    return (entry.get("host") or None) == (running["host"] or None) and int(entry.get("port", 5432)) == int(running["port"] or 5432)


def _shown(entry: t.Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in entry.items() if key in ("host", "port", "dbname")}


def _targets(changes: t.Sequence[Change], side: str) -> str:
    return "".join("%s = %s\n" % (change.name, " ".join("%s=%s" % item for item in _shown(getattr(change, side)).items())) for change in changes)


def _bind(function: t.Callable[..., t.Any], *arguments: t.Any) -> t.Callable[[], t.Any]:
    return lambda: function(*arguments)


def _nothing() -> None:
    """A step that shows its own part of the diff and is done together with the step before it."""
