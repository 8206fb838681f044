# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Pausing, resuming, disabling and reconnecting the databases of one or many poolers, all poolers at once."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t

from .._cluster.aliases import is_read_only, proved_primary
from .._cluster.model import Cluster
from .._errors import InvalidInput, NotConfirmed, NotReachable, OperationError, QueryFailed, Refused, RolledBack, WaitTimeout
from .._host.guardian import Guardian
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._parallel import ask_all
from .._pgbouncer.alias import Alias, behind, server_at
from .._pgbouncer.console import Console, Row
from .._plan import Plan
from .._sql.connection import Target
from .._wait import Deadline
from .cluster_info import NODE_OPTIONS, check_nodes, observe_cluster
from .pgbouncer_info import POOLER_OPTIONS, Pooler, poolers_of, server_params

PGBOUNCER_POOL = CONNECTION.merge(
    ArgumentSpec(
        {
            "state": {"type": "str", "choices": ["paused", "running", "disabled", "reconnected"], "required": True},
            "poolers": {"type": "list", "elements": "dict", "options": POOLER_OPTIONS},
            "databases": {"type": "list", "elements": "str"},
            "timeout": {"type": "float", "default": 5},
            "on_timeout": {"type": "str", "choices": ["resume", "kill"], "default": "resume"},
            "max_pause": {"type": "float"},
            "unreachable": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
            "verify_role": {"type": "str", "choices": ["primary", "standby", "any"], "default": "primary"},
            "verify_user": {"type": "str"},
            "verify_password": {"type": "str", "no_log": True},
            "readonly_suffix": {"type": "str", "default": "_ro"},
            "readonly_databases": {"type": "list", "elements": "str", "default": []},
            "nodes": {"type": "list", "elements": "dict", "options": NODE_OPTIONS},
        }
    )
)

# How long a PAUSE may take to be answered before it counts as one that waits for transactions.
_PROMPT_SECONDS = 0.05
# A PAUSE that meets a server connection in login makes PgBouncer refuse clients for server_login_retry.
_LOGIN_GATE_SECONDS = 0.5
_POLL_SECONDS = 0.02
# What is taken back has this time of its own, in seconds.
_BACK_SECONDS = 5.0
_HOLDERS_IN_A_MESSAGE = 5
# Servers and aliases that are asked at the same time.
_AT_ONCE = 32

_OPPOSITE = {"RESUME": "PAUSE", "ENABLE": "DISABLE"}
_WORDS = {"PAUSE": "pause", "RESUME": "resume", "ENABLE": "enable", "DISABLE": "disable", "RECONNECT": "reconnect", "WAIT": "wait for the transactions of"}

Action = tuple[str, t.Optional[str]]
"""A command of the console, or WAIT, and the database; None is the pooler as a whole."""


@dataclasses.dataclass(frozen=True)
class View:
    """What one pooler says."""

    version: str
    databases: t.Mapping[str, Row]
    paused: bool
    """As a whole."""
    busy: frozenset[str]
    """Databases with server connections: one that is paused and busy waits for the end of transactions."""
    socket_directory: str


@dataclasses.dataclass(frozen=True)
class Proof:
    """Who stands behind an entry. ``problem`` says why it must not be resumed."""

    pooler: str
    database: str
    role: str | None = None
    problem: str | None = None


@dataclasses.dataclass
class Seen:
    views: dict[str, View]
    silent: dict[str, OperationError]
    actions: dict[str, list[Action]]
    proofs: list[Proof]


class PoolState(Operation):
    """The module pgbouncer_pool."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self._state = params["state"]
        self._poolers = poolers_of(params)
        self._names = params["databases"]
        self._warned: set[str] = set()
        self._killed: list[str] = []
        self._done = False
        if self._names is not None and (not self._names or not all(self._names)):
            raise InvalidInput("the option databases is empty or has an empty name", action="Leave it out to mean the pooler as a whole")
        if params["max_pause"] is not None and (self._state != "paused" or params["max_pause"] <= 0):
            raise InvalidInput("max_pause is %g" % params["max_pause"], expected="a number of seconds above 0, and state=paused")
        if params["nodes"] is not None:
            check_nodes(params["nodes"])

    # -- observe

    def observe(self) -> Seen:
        deadline = Deadline(self.params["timeout"])
        answers = ask_all(self._poolers, lambda pooler: _look(pooler.target, deadline), deadline)
        seen = Seen({}, {}, {}, [])
        for pooler, answer in zip(self._poolers, answers):
            if isinstance(answer, View):
                seen.views[pooler.name] = answer
            elif isinstance(answer, (NotReachable, WaitTimeout)):
                seen.silent[pooler.name] = answer
            else:
                raise answer
        self._judge_silence(seen)
        seen.actions = {name: actions for name, view in seen.views.items() if (actions := self._needed(name, view))}
        if self._state == "running" and seen.actions and self.params["verify_role"] != "any":
            seen.proofs = self._prove(seen)
        return seen

    def _judge_silence(self, seen: Seen) -> None:
        if not seen.silent:
            return
        text = "; ".join(error.message for error in seen.silent.values())
        if self.params["unreachable"] == "fail" or not seen.views:
            raise NotReachable(
                "%d of %d poolers do not answer, and none was touched: %s" % (len(seen.silent), len(self._poolers), text),
                action="Start them, or set unreachable=skip to do the others" if seen.views else "Check that they run, and their addresses",
                unreachable=sorted(seen.silent),
            )
        if text not in self._warned:
            self._warned.add(text)
            self.context.warn("Skipped: %s." % text)

    def _needed(self, name: str, view: View) -> list[Action]:
        """What is to be done on one pooler. Raises Refused for a database that it does not have."""
        missing = [database for database in self._names or () if database not in view.databases]
        if missing:
            raise Refused(
                "pooler %s has no database %s" % (name, ", ".join('"%s"' % one for one in missing)),
                expected="names of SHOW DATABASES: %s" % ", ".join(sorted(view.databases)),
                action='One that is served by an entry "*" is there only after its first client came',
            )
        rows = {one: view.databases[one] for one in (self._names or sorted(view.databases))}
        if self._state == "paused":
            if view.paused or self._names is None:
                return ([] if view.paused else [("PAUSE", None)]) or ([("WAIT", None)] if view.busy & set(rows) else [])
            return [("WAIT" if row["paused"] else "PAUSE", one) for one, row in rows.items() if not row["paused"] or one in view.busy]
        if self._state == "disabled":
            return [("DISABLE", one) for one, row in rows.items() if not row["disabled"]]
        if self._state == "reconnected":
            return [] if self._done else [("RECONNECT", one) for one in (self._names or [None])]
        if view.paused and self._names is not None:
            raise Refused("pooler %s is paused as a whole, and so are its databases" % name, action="Leave out databases to resume all of it", paused=True)
        whole: list[Action] = [("RESUME", None)] if view.paused else []
        resumed: list[Action] = [("RESUME", one) for one, row in rows.items() if row["paused"]]
        return whole + resumed + [("ENABLE", one) for one, row in rows.items() if row["disabled"]]

    # -- the proof before anything is resumed

    def _released(self, seen: Seen) -> list[tuple[Pooler, str]]:
        """The entries that clients get to again."""
        found = []
        for pooler in self._poolers:
            names = {name for _verb, name in seen.actions.get(pooler.name, ())}
            if None in names:
                names |= {name for name, row in seen.views[pooler.name].databases.items() if not row["disabled"]}
            found += [(pooler, name) for name in sorted(name for name in names if name is not None)]
        return found

    def _role_of(self, name: str) -> str | None:
        """The role that has to stand behind an entry, None for any."""
        role: str = self.params["verify_role"]
        may_be_standby = role == "primary" and is_read_only(name, self.params["readonly_suffix"], self.params["readonly_databases"])
        return None if role == "any" or may_be_standby else role

    def _prove(self, seen: Seen) -> list[Proof]:
        deadline = Deadline(self.params["timeout"])
        entries = self._released(seen)
        if self.params["nodes"] is not None:
            cluster = observe_cluster(server_params(self.params, "verify"), self.params["timeout"], read_only=True)
            if self.params["verify_role"] == "primary":
                proved_primary(cluster)
            return [self._prove_by_cluster(cluster, pooler, name, seen.views[pooler.name]) for pooler, name in entries]
        answers = ask_all(entries, lambda entry: self._prove_by_asking(*entry, seen.views[entry[0].name], deadline), deadline, at_most=_AT_ONCE)
        return [
            Proof(pooler.name, name, problem=answer.message) if isinstance(answer, OperationError) else answer
            for (pooler, name), answer in zip(entries, answers)
        ]

    def _server(self, host: str, port: int, dbname: str) -> Target:
        return Target.from_params(server_params(self.params, "verify"), host=host, port=port, dbname=dbname)

    def _prove_by_cluster(self, cluster: Cluster, pooler: Pooler, name: str, view: View) -> Proof:
        role = self._role_of(name)
        row = view.databases[name]
        roles = set()
        for host in _hosts(row, view):
            node = next((node for node in cluster.nodes if node.listens_at(host, row["port"])), None)
            where = "%s:%s" % (host, row["port"])
            if node is None:
                return Proof(pooler.name, name, problem="it leads to %s, which is none of the nodes" % where)
            if node.role is None:
                return Proof(pooler.name, name, problem="it leads to %s (%s), which does not answer: %s" % (node.name, where, node.problem))
            roles.add(node.role)
            if role not in (None, node.role):
                return Proof(pooler.name, name, node.role, "it leads to %s (%s), a %s" % (node.name, where, node.role))
        return Proof(pooler.name, name, "primary" if roles == {"primary"} else "standby")

    def _prove_by_asking(self, pooler: Pooler, name: str, view: View, deadline: Deadline) -> Proof:
        role = self._role_of(name)
        row = view.databases[name]
        roles = set()
        for host in _hosts(row, view):
            if _is_local(host) and not _is_local(pooler.target.host):
                return Proof(
                    pooler.name,
                    name,
                    problem="it leads to %s on the pooler's own host; run this there, or name the nodes" % host,
                )
            answer = server_at(self._server(host, row["port"], row["database"]), deadline)
            roles.add(answer["role"])
            if role not in (None, answer["role"]):
                return Proof(pooler.name, name, answer["role"], "it leads to %s:%s, a %s" % (host, row["port"], answer["role"]))
        return Proof(pooler.name, name, "primary" if roles == {"primary"} else "standby")

    # -- plan

    def plan(self, seen: Seen) -> Plan:
        problems = ['"%s" of %s: %s' % (proof.database, proof.pooler, proof.problem) for proof in seen.proofs if proof.problem]
        if problems:
            raise Refused(
                "nothing was resumed, because not every entry is proved to lead where it should: %s" % "; ".join(problems),
                expected="a %s behind every entry%s"
                % (
                    self.params["verify_role"],
                    " but the read-only ones, which may lead to any server that answers" if self.params["verify_role"] == "primary" else "",
                ),
                action="Lead the entries to the right server, correct verify_user, verify_password and readonly_suffix, or give up the proof: verify_role=any",
                proofs=[dataclasses.asdict(proof) for proof in seen.proofs],
            )
        plan = Plan()
        released = self._released(seen)
        for verbs, do, more in ((("PAUSE", "WAIT"), self._pause, []), (("DISABLE", "RECONNECT", "RESUME", "ENABLE"), self._command, [released])):
            actions = {name: mine for name, all_of in seen.actions.items() if (mine := [one for one in all_of if one[0] in verbs])}
            if actions:
                plan.add(
                    "; ".join(_described(name, mine) for name, mine in actions.items()),
                    self._bind(do, actions, *more),
                    subject="poolers",
                    before={name: _states(seen.views[name], mine) for name, mine in actions.items()},
                    after={name: {_shown(one): _AFTER[verb] for verb, one in mine} for name, mine in actions.items()},
                )
        return plan

    @staticmethod
    def _bind(do: t.Callable[..., None], *arguments: t.Any) -> t.Callable[[], None]:
        return lambda: do(*arguments)

    # -- execute

    def _chosen(self, actions: t.Mapping[str, t.Any]) -> list[Pooler]:
        return [pooler for pooler in self._poolers if pooler.name in actions]

    def _command(self, actions: dict[str, list[Action]], released: t.Sequence[tuple[Pooler, str]]) -> None:
        poolers = self._chosen(actions)
        deadline = Deadline(self.params["timeout"])
        done: dict[str, list[Action]] = {pooler.name: [] for pooler in poolers}
        answers = ask_all(poolers, lambda pooler: _send(pooler.target, actions[pooler.name], deadline, done[pooler.name]), deadline)
        failed = {pooler.name: answer.message for pooler, answer in zip(poolers, answers) if isinstance(answer, OperationError)}
        self._done = True
        if self._state == "running":
            self._prove_through(done, released)
        if failed:
            raise NotConfirmed(
                "not everything was done: %s" % "; ".join("%s: %s" % item for item in sorted(failed.items())),
                action="Look at the poolers with pgbouncer_info and run the task again",
                failed=sorted(failed),
            )

    def _prove_through(self, done: t.Mapping[str, list[Action]], released: t.Sequence[tuple[Pooler, str]]) -> None:
        """The last proof, by a query through each alias: PgBouncer may have resolved a host's name to another address than we did."""
        if self.params["verify_role"] == "any":
            return
        deadline = Deadline(self.params["timeout"])
        aliases: list[Alias] = []
        owners: list[tuple[Pooler, Action]] = []
        for pooler, name in released:
            action = next((one for one in done[pooler.name] if one[1] in (None, name)), None)
            if action is not None:
                aliases.append(Alias(name, self._role_of(name), self._server(pooler.target.host, pooler.target.port, name)))
                owners.append((pooler, action))
        answers = ask_all(aliases, lambda alias: behind(alias, deadline), deadline, at_most=_AT_ONCE) if aliases else []
        wrong: dict[str, dict[Action, bool]] = {}
        problems = []
        for alias, (pooler, action), answer in zip(aliases, owners, answers):
            if isinstance(answer, OperationError):
                # The server itself has answered before: that this login may not pass the pooler says nothing against it.
                self.context.warn('"%s" of %s was resumed and cannot be asked through the pooler: %s.' % (alias.name, pooler.name, answer.message))
            elif alias.role not in (None, answer["role"]):
                wrong.setdefault(pooler.name, {})[_OPPOSITE[action[0]], action[1]] = True
                problems.append(
                    '"%s" of %s leads to a %s (%s:%s)' % (alias.name, pooler.name, answer["role"], answer["server_address"] or "socket", answer["server_port"])
                )
        if not wrong:
            return
        back = ask_all(self._chosen(wrong), lambda pooler: _send(pooler.target, list(wrong[pooler.name]), Deadline(_BACK_SECONDS), []), Deadline(_BACK_SECONDS))
        left = [str(answer) for answer in back if isinstance(answer, OperationError) and not isinstance(answer, WaitTimeout)]
        raise (NotConfirmed if left else RolledBack)(
            "%s, although the server that the pooler names is of another role when asked directly; these were paused or disabled again" % "; ".join(problems),
            action="See SHOW DNS_HOSTS of the pooler for the addresses that it uses, and RELOAD it",
            not_taken_back=left,
        )

    def _pause(self, actions: dict[str, list[Action]]) -> None:
        poolers = self._chosen(actions)
        ours = {name: [one for verb, one in mine if verb == "PAUSE"] for name, mine in actions.items()}
        guardian = self._guard([pooler for pooler in poolers if ours[pooler.name]], ours)
        deadline = Deadline(self.params["timeout"])
        try:
            # A moment more than the pauses have, for the question who holds them up.
            outer = Deadline(deadline.left + 2)
            answers = ask_all(poolers, lambda pooler: _pause_one(pooler, actions[pooler.name], deadline), outer)
            if self.params["on_timeout"] == "kill":
                held = [(pooler, answer) for pooler, answer in zip(poolers, answers) if isinstance(answer, list) and answer]
                killed = dict(zip([pooler.name for pooler, _holders in held], ask_all(held, _kill, Deadline(_BACK_SECONDS))))
                self._killed = sorted(name for name, answer in killed.items() if not isinstance(answer, OperationError))
                answers = [killed.get(pooler.name, answer) for pooler, answer in zip(poolers, answers)]
            failure = self._take_back(poolers, ours, answers) if any(answers) else None
            if guardian is not None and not isinstance(failure, NotConfirmed):
                if failure is not None or self.params["max_pause"] is None:
                    guardian.call("disarm", Deadline(_BACK_SECONDS))
                else:
                    guardian.call("arm", Deadline(_BACK_SECONDS), limit=self.params["max_pause"], stays=True)
            if failure is not None:
                raise failure
        finally:
            # Whatever happened above that was not foreseen: the end of the pipe has the guardian resume.
            if guardian is not None:
                guardian.close()

    def _guard(self, poolers: t.Sequence[Pooler], names: t.Mapping[str, list[t.Optional[str]]]) -> Guardian | None:
        """A process that resumes what this one pauses when it is killed in the middle, or after ``max_pause``."""
        if not poolers:
            return None
        patience = Deadline(self.params["timeout"] + 10)
        guardian = Guardian("the pause", [], {"part": "pause"}, patience=_BACK_SECONDS)
        try:
            wanted = {pooler.name: [pooler.target.keywords(), None if None in names[pooler.name] else names[pooler.name]] for pooler in poolers}
            guardian.call("prepare", patience, poolers=wanted)
            guardian.call("arm", patience, limit=self.params["timeout"] + 4 * _BACK_SECONDS)
        except OperationError as error:
            guardian.close()
            raise Refused("nothing was paused, because no process could be left that ends the pause when this one is killed: %s" % error) from error
        return guardian

    def _take_back(self, poolers: t.Sequence[Pooler], ours: t.Mapping[str, list[t.Optional[str]]], answers: t.Sequence[t.Any]) -> OperationError:
        """Resume what was paused; the error that says why and how that went."""
        problems, holders = [], []
        for pooler, answer in zip(poolers, answers):
            if isinstance(answer, OperationError):
                problems.append("%s: %s" % (pooler.name, answer.message))
            elif answer:
                holders += [{"pooler": pooler.name, **row} for row in answer]
        shown = [
            "%(user)s@%(address)s holds a server connection of %(database)s on %(pooler)s since %(since)s (server process %(server_pid)s)" % row
            for row in holders[:_HOLDERS_IN_A_MESSAGE]
        ]
        if len(holders) > len(shown):
            shown.append("and %d more" % (len(holders) - len(shown)))
        limit = self.params["timeout"]
        text = "the poolers were not paused within %g s: %s" % (limit, "; ".join([*problems, *shown]))
        mine = [pooler for pooler in poolers if ours[pooler.name]]
        back = ask_all(
            mine, lambda pooler: _send(pooler.target, [("RESUME", one) for one in ours[pooler.name]], Deadline(_BACK_SECONDS), []), Deadline(_BACK_SECONDS)
        )
        left = sorted(pooler.name for pooler, answer in zip(mine, back) if isinstance(answer, OperationError))
        if left:
            return NotConfirmed(
                "%s. %s may be paused still; a process on this host goes on trying to resume that" % (text, ", ".join(left)),
                action="RESUME it on its console as soon as it answers",
                holders=holders,
                paused=left,
            )
        return (RolledBack if mine else WaitTimeout)(
            text,
            expected="every transaction, and in session mode every session, to end in time",
            action="Everything that this task paused is resumed. End what holds it up, raise timeout, or let on_timeout=kill end it",
            holders=holders,
        )

    def confirm(self, seen: Seen) -> None:
        missing = sorted({pooler.name for pooler in self._poolers} - set(seen.views)) if self.params["unreachable"] == "fail" else []
        if missing:
            raise NotConfirmed("these poolers stopped to answer: %s" % ", ".join(missing))
        super().confirm(seen)

    # -- report

    def report(self, seen: Seen) -> dict[str, t.Any]:
        found: list[dict[str, t.Any]] = []
        for pooler in self._poolers:
            facts: dict[str, t.Any] = {"name": pooler.name, "host": pooler.target.host, "port": pooler.target.port, "reachable": pooler.name in seen.views}
            view = seen.views.get(pooler.name)
            if view is None:
                facts["reason"] = seen.silent[pooler.name].message
            else:
                facts.update(
                    version=view.version,
                    paused=view.paused,
                    paused_databases=sorted(name for name, row in view.databases.items() if row["paused"]),
                    disabled_databases=sorted(name for name, row in view.databases.items() if row["disabled"]),
                )
            found.append(facts)
        return {"poolers": found, "all_reachable": not seen.silent, "killed": self._killed}


_AFTER = {"PAUSE": "paused", "WAIT": "paused", "RESUME": "running", "ENABLE": "enabled", "DISABLE": "disabled", "RECONNECT": "new server connections"}


def _look(target: Target, deadline: Deadline) -> View:
    with contextlib.closing(Console.open(target, timeout=deadline.left)) as console:
        databases = console.databases(deadline)
        paused = console.is_paused(deadline)
        if paused is None:
            raise Refused("the console of %s takes no commands from %s" % (target, target.user), expected="one of PgBouncer's admin_users")
        return View(
            version=".".join(str(part) for part in console.version),
            databases=databases,
            paused=paused,
            busy=_busy(console, deadline),
            socket_directory=str(console.config(deadline).get("unix_socket_dir") or ""),
        )


def _busy(console: Console, deadline: Deadline) -> frozenset[str]:
    """Databases with server connections: PAUSE has ended when there is none."""
    return frozenset(row["database"] for row in console.pools(deadline) if any(value for key, value in row.items() if key.startswith("sv_")))


def _hosts(row: Row, view: View) -> list[str]:
    """Where an entry leads: names, addresses or socket directories."""
    return [host.strip() or view.socket_directory for host in str(row["host"] or "").split(",")]


def _is_local(host: str) -> bool:
    return host in ("", "localhost", "::1") or host.startswith(("/", "@", "127."))


def _send(target: Target, actions: t.Sequence[Action], deadline: Deadline, done: list[Action]) -> None:
    """Commands that are answered at once. A PAUSE among them is not waited for."""
    with contextlib.closing(Console.open(target, timeout=deadline.left)) as console:
        for action in actions:
            verb, name = action
            if verb == "RESUME":
                console.resume(name, deadline, missing_ok=True)
            elif verb == "RECONNECT":
                console.reconnect(name, deadline)
            elif verb == "PAUSE":
                console.pause(name, deadline)
            else:
                {"ENABLE": console.enable, "DISABLE": console.disable}[verb](str(name), deadline)
            done.append(action)


def _pause_one(pooler: Pooler, actions: t.Sequence[Action], deadline: Deadline) -> list[dict[str, t.Any]]:
    """Pause one pooler. Returns an empty list, or the clients that held it up until the deadline."""
    waiting: list[Console] = []
    console = Console.open(pooler.target, timeout=deadline.left)
    try:
        console.wait_for_logins(deadline.within(_LOGIN_GATE_SECONDS))
        for verb, name in actions:
            if verb == "PAUSE":
                # One that waits for transactions keeps its console; the next database need not wait for that.
                console.start_pause(name)
                try:
                    console.finish_pause(deadline.within(_PROMPT_SECONDS))
                except WaitTimeout:
                    waiting.append(console)
                    console = Console.open(pooler.target, timeout=deadline.left + 1)
                except QueryFailed as error:
                    if "already" not in error.message:
                        raise
        names = {name for _verb, name in actions}
        while True:
            # The answer to a PAUSE says no more than this, and never comes where somebody kills the database meanwhile.
            busy = _busy(console, Deadline(2))
            held = busy if None in names else busy & names
            if not held:
                return []
            if deadline.passed:
                return _holders(console, held)
            time.sleep(_POLL_SECONDS)
    finally:
        for one in (*waiting, console):
            one.close()


def _holders(console: Console, databases: t.Collection[str]) -> list[dict[str, t.Any]]:
    """The clients behind the server connections of these databases, the oldest request first."""
    clients = {row["ptr"]: row for row in console.show("CLIENTS", Deadline(2))}
    found = []
    for server in console.show("SERVERS", Deadline(2)):
        if server["database"] in databases:
            client = clients.get(server["link"] or "") or {}
            found.append(
                {
                    "database": server["database"],
                    "user": client.get("user") or server["user"],
                    "address": "%s:%s" % (client["addr"], client["port"]) if client else "none",
                    "application_name": client.get("application_name") or "",
                    "since": client.get("request_time") or server["request_time"],
                    "connected_since": client.get("connect_time") or server["connect_time"],
                    "server_pid": server["remote_pid"],
                    "server_state": server["state"],
                }
            )
    # One that ended between the two questions leaves nothing to name, and is late all the same.
    return sorted(found, key=lambda row: str(row["since"])) or [
        {"database": name, "user": "somebody", "address": "none", "application_name": "", "since": "just now", "connected_since": None, "server_pid": None,
         "server_state": None} for name in sorted(databases)
    ]  # fmt: skip


def _kill(held: tuple[Pooler, list[dict[str, t.Any]]]) -> list[dict[str, t.Any]]:
    """End the clients that hold up a pause. Returns an empty list, or who is still there."""
    pooler, holders = held
    names = sorted({row["database"] for row in holders})
    deadline = Deadline(_BACK_SECONDS - 1)
    with contextlib.closing(Console.open(pooler.target, timeout=deadline.left)) as console:
        # A pooler that is paused as a whole takes no KILL, which itself leaves the database paused by name.
        as_a_whole = console.resume(None, deadline, missing_ok=True)
        for name in names:
            console.kill(name, deadline)
    if not as_a_whole:
        return _pause_one(pooler, [("WAIT", name) for name in names], deadline)
    left = _pause_one(pooler, [("PAUSE", None)], deadline)
    _send(pooler.target, [("RESUME", name) for name in names], Deadline(2), [])
    return left


def _shown(name: str | None) -> str:
    return "everything" if name is None else name


def _described(pooler: str, actions: t.Sequence[Action]) -> str:
    """One pooler's actions in words, "pause app, app_ro of pool1"."""
    found = []
    for verb in dict.fromkeys(verb for verb, _name in actions):
        names = [_shown(name) for other, name in actions if other == verb]
        found.append("%s %s of %s" % (_WORDS[verb], ", ".join(names), pooler))
    return "; ".join(found)


def _states(view: View, actions: t.Sequence[Action]) -> dict[str, str]:
    found = {}
    for verb, name in actions:
        if verb == "RECONNECT":
            state = "server connections as they are"
        elif verb == "WAIT":
            state = "paused, transactions under way"
        elif name is None:
            state = "paused" if view.paused else "running"
        else:
            row = view.databases[name]
            state = {"PAUSE": "running", "DISABLE": "enabled"}.get(verb) or ("paused" if verb == "RESUME" and row["paused"] else "disabled")
        found[_shown(name)] = state
    return found
