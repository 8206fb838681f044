# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The [databases] section of a pooler: in its file, and at run time by RELOAD."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._cluster.aliases import Lead, is_read_only, leads_of_database, leads_of_entries, proved_primary
from .._cluster.model import Cluster, Node
from .._errors import InvalidInput, NotConfirmed, NotReachable, OperationError, QueryFailed, Refused, WaitTimeout
from .._host.files import FileFailed, read_text, write_atomic
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._parallel import ask_all
from .._pgbouncer.alias import Alias, behind
from .._pgbouncer.console import ADMIN_DATABASE, Console, Row, console_target
from .._pgbouncer.ini import DATABASES, KEYS_SINCE, NEWEST_KNOWN, QUOTED_NAMES_SINCE, Ini, Tree, parse_params, without_secret
from .._plan import Plan
from .._wait import Deadline
from .cluster_info import NODE_OPTIONS, check_nodes, observe_cluster
from .pgbouncer_info import server_params

# Options of an entry that are keys of its line under the same name.
KEYS = (
    "host", "port", "dbname", "user", "password", "auth_user", "pool_size", "min_pool_size", "reserve_pool", "max_db_connections", "pool_mode",
    "connect_query",
)  # fmt: skip

ENTRY_OPTIONS: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "host": {"type": "str"},
    "port": {"type": "int"},
    "dbname": {"type": "str"},
    "user": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "auth_user": {"type": "str"},
    "pool_size": {"type": "int"},
    "min_pool_size": {"type": "int"},
    "reserve_pool": {"type": "int"},
    "max_db_connections": {"type": "int"},
    "pool_mode": {"type": "str", "choices": ["session", "transaction", "statement"]},
    "connect_query": {"type": "str"},
    "params": {"type": "dict", "default": {}},
    "verify_role": {"type": "str", "choices": ["primary", "standby"]},
}

PGBOUNCER_DATABASES = CONNECTION.merge(
    ArgumentSpec(
        {
            "config_file": {"type": "path", "required": True},
            "databases": {"type": "list", "elements": "dict", "options": ENTRY_OPTIONS},
            "nodes": {"type": "list", "elements": "dict", "options": NODE_OPTIONS},
            "cluster_user": {"type": "str"},
            "cluster_password": {"type": "str", "no_log": True},
            "database_list": {"type": "list", "elements": "str"},
            "readonly_suffix": {"type": "str", "default": "_ro"},
            "readonly_databases": {"type": "list", "elements": "str", "default": []},
            "all_replicas": {"type": "bool", "default": False},
            # What HandyRep's users have here may hold a password.
            "extra_connect_param": {"type": "str", "no_log": True},
            "without_standby": {"type": "str", "choices": ["primary", "fail"], "default": "primary"},
            "verify": {"type": "bool", "default": True},
            "on_failure": {"type": "str", "choices": ["report", "disable"], "default": "report"},
            "exclusive": {"type": "bool", "default": False},
            "unreachable": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
            "verify_user": {"type": "str"},
            "verify_password": {"type": "str", "no_log": True},
            "timeout": {"type": "float", "default": 5},
        },
        required_one_of=[("databases", "nodes")],
        mutually_exclusive=[("databases", "nodes")],
        required_by={"database_list": ["nodes"], "extra_connect_param": ["database_list"]},
    )
)

# A RELOAD that meets a connection in login can make PgBouncer refuse new ones for server_login_retry.
_LOGIN_GATE_SECONDS = 0.5


@dataclasses.dataclass
class Seen:
    """The file as text and read, and what the pooler says, or None where it may be and is silent."""

    text: str
    ini: Ini
    tree: Tree | None
    version: tuple[int, ...] | None
    runtime: dict[str, Row] | None
    config: dict[str, str | None]
    problem: OperationError | None = None
    """Why the file cannot be worked on, where that is no reason to stop at once."""


class PoolerDatabases(Operation):
    """The module pgbouncer_databases."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        # PgBouncer itself names files by the path it was started with; a link would hide that two paths are one file.
        self._path = os.path.realpath(params["config_file"])
        self._target = console_target(params)
        self._console: Console | None = None
        self._silent: OperationError | None = None
        self._warned: set[str] = set()
        self._reloaded = False
        self._pending = False
        self._primary: Node | None = None
        self._wanted: dict[str, t.Mapping[str, t.Any]] = {}
        if params["nodes"] is None:
            self._wanted = _wanted(params["databases"])
            if params["on_failure"] == "disable":
                raise InvalidInput("on_failure=disable needs the option nodes", expected="to know who the primary is")
        else:
            check_nodes(params["nodes"])
            if params["exclusive"] and params["database_list"] is None:
                raise InvalidInput("exclusive needs a list of what stays", expected="the option databases or database_list")
        self._extra = _extra(params)

    # -- observe

    def observe(self) -> Seen:
        cluster = self._ask_cluster()
        version: tuple[int, ...] | None = None
        runtime: dict[str, Row] | None = None
        config: dict[str, str | None] = {}
        if self._silent is None:
            try:
                if self._console is None:
                    self._console = Console.open(self._target, timeout=self.params["timeout"])
                version, runtime, config = self._console.version, self._console.databases(), self._console.config()
            except (NotReachable, WaitTimeout) as error:
                if self.params["unreachable"] == "fail":
                    raise NotReachable(error.message, action="Start the pooler, or set unreachable=skip to change only the file") from error
                self._silent = error
                self._warn("%s Only %s is looked after; the pooler reads it when it starts." % (NotReachable(error.message), self._path))
        try:
            text = read_text(self._path)
            tree = self._load_tree(config)
            seen = Seen(text, tree.files[self._path] if tree else _parse(text, self._path), tree, version, runtime, config)
        except OperationError as error:
            if self.params["on_failure"] == "report" or runtime is None:
                raise
            return Seen("", Ini.parse(""), None, version, runtime, config, error)
        if cluster is not None:
            self._wanted = _wanted(self._entries_for(cluster, seen))
        return seen

    def _ask_cluster(self) -> Cluster | None:
        """The nodes, asked anew each time. Raises Refused or SplitBrainRisk where there is no one primary."""
        if self.params["nodes"] is None:
            return None
        cluster = observe_cluster(server_params(self.params, "cluster", "verify"), self.params["timeout"], read_only=True)
        self._primary = proved_primary(cluster)
        for node in cluster.nodes:
            if not node.reachable:
                self._warn("%s does not answer, and %s counts as the primary: %s." % (node.name, self._primary.name, node.problem))
        return cluster

    def _entries_for(self, cluster: Cluster, seen: Seen) -> list[dict[str, t.Any]]:
        """The option databases as it has to be for the cluster's state."""
        params = self.params
        fallback = cluster.primary if params["without_standby"] == "primary" else None
        entries = seen.ini.databases()
        found = []
        if params["database_list"] is None:
            leads = leads_of_entries(cluster, entries, params["readonly_suffix"], params["readonly_databases"], fallback)
            if not leads:
                raise Refused(
                    "no entry of %s leads to one of the nodes" % self._path,
                    expected="an entry with host and port, or address and port, of one of %s" % ", ".join(node.name for node in cluster.nodes),
                    action="Name the databases in database_list to have their entries made",
                    entries={name: without_secret(entry) for name, entry in entries.items()},
                )
            found = [(lead, {}) for lead in leads]
        else:
            for name in params["database_list"]:
                own = leads_of_database(cluster, name, entries, params["readonly_suffix"], params["all_replicas"], fallback)
                found += [(lead, {"dbname": name, **self._extra}) for lead in own]
        return [self._entry_for(cluster, lead, keys) for lead, keys in found]

    def _entry_for(self, cluster: Cluster, lead: Lead, keys: t.Mapping[str, str]) -> dict[str, t.Any]:
        # An address that leads there already may be written in other words.
        target: dict[str, t.Any] = {} if lead.is_there else {"host": lead.node.peer_address, "port": lead.node.port}
        given = {**target, **keys}
        verified = self.params["verify"] and lead.name != "*"
        return {
            **dict.fromkeys(KEYS),
            **{key: value for key, value in given.items() if key in KEYS},
            "name": lead.name,
            "state": "present",
            "params": {key: value for key, value in given.items() if key not in KEYS},
            "verify_role": ("primary" if lead.node is cluster.primary else "standby") if verified else None,
            "read_only": lead.read_only,
        }

    def _load_tree(self, config: t.Mapping[str, str | None]) -> Tree | None:
        """The files that the pooler reads, or None where this cannot be known. Raises Refused if ours is not among them."""
        main = config.get("conffile")
        if not main or not os.path.isabs(main):
            return None
        real: list[str] = []

        def read(path: str) -> str:
            real.append(os.path.realpath(path))
            return read_text(path)

        try:
            tree = Tree.load(main, read)
        except FileFailed:
            # Another user's file, or an include relative to a working directory that is not known.
            return None
        if self._path not in real:
            raise Refused(
                "the pooler at %s reads %s and not %s" % (self._target, ", ".join(tree.files), self._path),
                expected="a file that the pooler reads, so that the change reaches it",
                action="Correct config_file or the login options, or include the file with %include",
                files=list(tree.files),
            )
        tree.files = {os.path.realpath(path): ini for path, ini in tree.files.items()} | tree.files
        return tree

    # -- plan

    def plan(self, seen: Seen) -> Plan:
        plan = Plan()
        if seen.problem is not None:
            return self._plan_without_file(seen)
        ini = seen.ini.copy()
        before = ini.databases()
        changes = self._edit(ini, before, seen)
        after = ini.databases()
        text = ini.text()
        if text != seen.text:
            plan.add(
                "write %s: %s" % (self._path, ", ".join(changes)),
                lambda: self._write(seen.text, text),
                subject=self._path,
                before=_shown(before, after),
                after=_shown(after, before),
            )
        if seen.runtime is not None:
            stale = self._stale(seen, after)
            if stale or text != seen.text:
                plan.add(
                    "reload %s" % self._target,
                    self._reload,
                    subject="run time of %s" % self._target,
                    before={name: difference[0] for name, difference in stale.items()} or None,
                    after={name: difference[1] for name, difference in stale.items()} or None,
                )
            shut = [name for name in self._writers() if seen.runtime.get(name, {}).get("disabled")]
            if shut and self.params["on_failure"] == "disable":
                plan.add(
                    "enable %s of %s" % (", ".join(shut), self._target),
                    lambda: self._enable(shut),
                    subject="run time of %s" % self._target,
                    before=dict.fromkeys(shut, "disabled"),
                    after=dict.fromkeys(shut, "enabled"),
                )
        self._pending = plan.changed
        return plan

    def _plan_without_file(self, seen: Seen) -> Plan:
        """The file cannot be worked on: what leads clients elsewhere than to the primary takes none any more."""
        plan = Plan()
        wrong = [name for name in self._elsewhere(seen.runtime or {}) if not (seen.runtime or {})[name]["disabled"]]
        if wrong:
            plan.add(
                "disable %s of %s" % (", ".join(wrong), self._target),
                lambda: self._disable(wrong),
                subject="run time of %s" % self._target,
                before=dict.fromkeys(wrong, "enabled"),
                after=dict.fromkeys(wrong, "disabled"),
            )
        self._pending = plan.changed
        return plan

    def _writers(self) -> list[str]:
        """Entries that lead to the primary, as far as clients can name them."""
        return [name for name, entry in self._wanted.items() if entry["state"] == "present" and not entry.get("read_only", True) and name != "*"]

    def _elsewhere(self, runtime: t.Mapping[str, Row]) -> list[str]:
        """Entries for writers that lead to another node of the cluster, or elsewhere, at run time."""
        names = self._writers()
        if not self._wanted:
            # Without a file only the cluster's own addresses tell which entries are its.
            suffix, others = self.params["readonly_suffix"], self.params["readonly_databases"]
            names = [name for name, row in runtime.items() if self._is_node(row) and not is_read_only(name, suffix, others)]
            names += [name for name in self.params["database_list"] or () if name in runtime and name not in names]
        primary = t.cast(Node, self._primary)
        return [name for name in names if name in runtime and not primary.listens_at(runtime[name]["host"] or "", runtime[name]["port"])]

    def _is_node(self, row: Row) -> bool:
        nodes = [Node(entry["name"], entry["host"], entry["port"], address=entry["address"]) for entry in self.params["nodes"]]
        return any(node.listens_at(row["host"] or "", row["port"]) for node in nodes)

    def _edit(self, ini: Ini, before: t.Mapping[str, t.Any], seen: Seen) -> list[str]:
        """Bring the file to what is wanted; what was done, in words."""
        done = []
        version = seen.version
        files = seen.tree.files if seen.tree else {}
        rivals = {name: path for path, other in files.items() if os.path.realpath(path) != self._path for name in other.databases()}
        quoted_names = version is not None and version[:2] >= QUOTED_NAMES_SINCE
        for name, entry in self._wanted.items():
            if entry["state"] == "absent":
                if ini.remove_database(name):
                    done.append("remove %s" % name)
                continue
            params = _params(entry)
            _check_keys(name, params, version)
            if name in rivals:
                raise Refused(
                    'database "%s" is also in %s, and of two entries the later one counts' % (name, rivals[name]),
                    action="Remove it there, or let config_file name that file",
                )
            if ini.set_database(name, params, quoted_names=quoted_names):
                done.append("%s %s" % ("change" if name in before else "add", name))
        if self.params["exclusive"]:
            for name in before:
                if name not in self._wanted and ini.remove_database(name):
                    done.append("remove %s" % name)
        return done

    def _stale(self, seen: Seen, entries: t.Mapping[str, t.Mapping[str, str]]) -> dict[str, tuple[t.Any, t.Any]]:
        """What the run time says otherwise than the file will: by name, what is and what should be. RELOAD settles it."""
        runtime = seen.runtime or {}
        found: dict[str, tuple[t.Any, t.Any]] = {}
        for name, params in entries.items():
            if name == "*" or (seen.tree and os.path.realpath(seen.tree.file_of(name) or self._path) != self._path):
                # SHOW DATABASES does not show "*"; an entry of another file that comes later is the one that counts.
                continue
            row = runtime.get(name)
            wanted = _expected(name, params, seen.config)
            if row is None:
                found[name] = (None, wanted)
                continue
            if row.get("force_user") and "user" not in params:
                self._warn(
                    'database "%s" at %s keeps its user "%s": PgBouncer lets go of one only when it is restarted.' % (name, self._target, row["force_user"])
                )
            is_now = {key: row.get(key) for key in wanted}
            if is_now != wanted:
                found[name] = (is_now, wanted)
        for name in runtime:
            if name not in entries and self._should_vanish(name, seen, entries):
                found[name] = (_target_of(runtime[name]), None)
        return found

    def _should_vanish(self, name: str, seen: Seen, entries: t.Mapping[str, t.Any]) -> bool:
        everything = seen.tree.databases() if seen.tree else dict(seen.ini.databases())
        for gone in set(seen.ini.databases()) - set(entries):
            if not seen.tree or os.path.realpath(seen.tree.file_of(gone) or "") == self._path:
                everything.pop(gone, None)
        if "*" in everything or name in everything:
            # Through "*" any database can come to be at run time.
            return False
        return seen.tree is not None or name in self._wanted

    # -- execute

    def _write(self, seen: str, text: str) -> None:
        if read_text(self._path) != seen:
            raise Refused("%s was changed by somebody else in the meantime" % self._path, action="Run the task again")
        try:
            write_atomic(self._path, text)
        except OperationError as error:
            raise self._not_wrong(error) from error

    def _reload(self) -> None:
        if self._console is None:
            raise OperationError("there is no console to reload through")
        self._console.wait_for_logins(Deadline(_LOGIN_GATE_SECONDS))
        self._console.reload()
        self._reloaded = True

    def _enable(self, names: t.Sequence[str]) -> None:
        console = t.cast(Console, self._console)
        # RELOAD answers with success whatever it makes of the file.
        wrong = sorted(set(names) & set(self._elsewhere(console.databases())))
        if wrong:
            raise NotConfirmed(
                "%s of %s stays disabled: after a RELOAD it still leads elsewhere than to %s"
                % (", ".join(wrong), self._target, self._primary and self._primary.name),
                action="Look into the pooler's log",
            )
        for name in names:
            console.enable(name)

    def _disable(self, names: t.Sequence[str]) -> None:
        """No new clients, and those that are in are let go: they would be served by a server that is not the primary."""
        console = t.cast(Console, self._console)
        for name in names:
            console.disable(name)
            # A pooler that is paused as a whole takes no KILL, and serves nobody.
            with contextlib.suppress(QueryFailed):
                console.kill(name)
                console.resume(name, missing_ok=True)

    def _not_wrong(self, error: OperationError, names: t.Collection[str] = ()) -> OperationError:
        """What is told of a failure, after entries that lead elsewhere than to the primary were disabled where that is wanted."""
        if self.params["on_failure"] == "report" or self._console is None or self.context.check_mode:
            return error
        try:
            wrong = sorted({*self._elsewhere(self._console.databases()), *names})
            self._disable(wrong)
        except OperationError as second:
            error.facts["disabled"] = []
            error.message = "%s. Clients may be led to the wrong server: %s" % (error.message.rstrip("."), second.message)
            return error
        error.facts["disabled"] = wrong
        if wrong:
            error.message = "%s. Clients of %s are refused meanwhile" % (error.message.rstrip("."), ", ".join(wrong))
        return error

    def confirm(self, seen: Seen) -> None:
        if seen.problem is not None:
            raise self._not_wrong(seen.problem)
        if self._reloaded and seen.runtime is None:
            raise NotConfirmed("%s stopped to answer after the RELOAD" % self._target)
        left = self.plan(seen)
        if not left.changed:
            return
        stale = self._stale(seen, seen.ini.databases())
        raise self._not_wrong(
            NotConfirmed(
                "after a RELOAD %s still differs from %s: %s"
                % (
                    self._target,
                    self._path,
                    "; ".join('"%s" is %s instead of %s' % (name, was, wanted) for name, (was, wanted) in stale.items()) or left.names,
                ),
                action="Look into the pooler's log: PgBouncer answers a RELOAD with success also when it refuses the file, and then would not start from it",
                stale=stale,
            )
        )

    # -- report

    def report(self, seen: Seen) -> dict[str, t.Any]:
        if seen.problem is not None:
            # In check mode, or where everything that leads elsewhere is disabled already.
            raise seen.problem
        verified = None
        if not (self._pending and self.context.check_mode):
            verified = self._verify(seen)
        return {
            "config_file": self._path,
            "reachable": seen.runtime is not None,
            "version": ".".join(str(part) for part in seen.version) if seen.version else None,
            "databases": {name: without_secret(params) for name, params in seen.ini.databases().items()},
            "runtime": None if seen.runtime is None else list(seen.runtime.values()),
            "reloaded": self._reloaded,
            "verified": verified,
            "primary": self._primary.name if self._primary else None,
        }

    def _verify(self, seen: Seen) -> dict[str, t.Any] | None:
        roles = {name: entry["verify_role"] for name, entry in self._wanted.items() if entry["verify_role"]}
        if not roles:
            return None
        if seen.runtime is None:
            self._warn("The roles behind the aliases of %s are not verified, because it does not answer." % self._target)
            return None
        target = self._target.to(
            user=self.params["verify_user"] or self._target.user,
            password=self.params["verify_password"] if self.params["verify_user"] else self._target.password,
        )
        deadline = Deadline(self.params["timeout"])
        aliases = [Alias(name, roles[name], target.to(dbname=name)) for name in sorted(roles)]
        answers = ask_all(aliases, lambda alias: behind(alias, deadline), deadline)
        found: dict[str, t.Any] = {}
        problems, wrong = [], []
        for alias, answer in zip(aliases, answers):
            if isinstance(answer, OperationError):
                problems.append('"%s" cannot be asked: %s' % (alias.name, answer.message))
                continue
            found[alias.name] = answer
            if answer["role"] != alias.role:
                wrong += [alias.name] if alias.name in self._writers() else []
                problems.append('"%s" leads to a %s (%s:%s)' % (alias.name, answer["role"], answer["server_address"] or "socket", answer["server_port"]))
        if problems:
            raise self._not_wrong(
                NotConfirmed(
                    "not every alias of %s leads where it should: %s" % (self._target, "; ".join(problems)),
                    expected=", ".join('"%s" leads to a %s' % item for item in sorted(roles.items())),
                    action="Point the entries at the right servers, or correct verify_role, verify_user and verify_password",
                    verified=found,
                ),
                wrong,
            )
        return found

    def close(self) -> None:
        if self._console is not None:
            self._console.close()

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.context.warn(text)


def _wanted(entries: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Mapping[str, t.Any]]:
    """The entries by name. Raises InvalidInput for what cannot be meant."""
    found: dict[str, t.Mapping[str, t.Any]] = {}
    for entry in entries:
        name = entry["name"]
        if name in found:
            raise InvalidInput('the option databases names "%s" twice' % name)
        if name == ADMIN_DATABASE:
            raise InvalidInput('the database name "%s" is reserved for the admin console' % name)
        twice = [key for key in entry["params"] if key in KEYS and entry.get(key) is not None]
        if twice:
            raise InvalidInput('database "%s": %s is given as an option and in params' % (name, ", ".join(twice)))
        if entry["params"].get("password") is not None:
            raise InvalidInput('database "%s": params has a password' % name, action="Use the option password, which is kept out of logs")
        if entry["verify_role"] and (name == "*" or entry["state"] == "absent"):
            raise InvalidInput('database "%s": verify_role needs an entry that clients can name' % name)
        found[name] = entry
    return found


def _extra(params: t.Mapping[str, t.Any]) -> dict[str, str]:
    """HandyRep's extra_connect_param as keys of an entry."""
    found = parse_params(params["extra_connect_param"] or "")
    taken = sorted({"host", "port", "dbname"} & set(found))
    if taken:
        raise InvalidInput("extra_connect_param has %s" % ", ".join(taken), expected="other keys: these come from the state of the cluster")
    return found


def _params(entry: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    given = {key: entry[key] for key in KEYS if entry.get(key) not in (None, "")}
    return {**given, **entry["params"]}


def _check_keys(name: str, params: t.Mapping[str, t.Any], version: tuple[int, ...] | None) -> None:
    """One key that it does not know makes PgBouncer refuse the whole file, at once or at its next start."""
    for key, value in params.items():
        if value is None or (version and version[:2] > NEWEST_KNOWN):
            continue
        since = KEYS_SINCE.get(key)
        if since is None:
            raise InvalidInput(
                'database "%s": PgBouncer knows no parameter "%s" of a database' % (name, key), expected="one of %s" % ", ".join(sorted(KEYS_SINCE))
            )
        if version and version[:2] < since:
            raise InvalidInput(
                'database "%s": PgBouncer %s has no "%s", which came with %s' % (name, _dotted(version), key, _dotted(since)),
                action="Leave it out or upgrade PgBouncer",
            )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _parse(text: str, path: str) -> Ini:
    try:
        return Ini.parse(text)
    except InvalidInput as error:
        # An included file may rely on the header of the file that includes it.
        with contextlib.suppress(InvalidInput):
            return Ini.parse(text, DATABASES)
        raise InvalidInput("%s, %s" % (path, error.message), error.expected, error.action, **error.facts) from error


def _shown(entries: t.Mapping[str, t.Mapping[str, str]], others: t.Mapping[str, t.Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The entries that differ from the others, without secrets; a changed password shows as such."""
    shown = {}
    for name, params in entries.items():
        other = others.get(name)
        if other != params:
            shown[name] = without_secret(params)
            if other is not None and "password" in params and "password" in other and params["password"] != other["password"]:
                shown[name]["password"] += " (differs)"
    return shown


def _target_of(row: Row) -> dict[str, t.Any]:
    return {key: row.get(key) for key in ("host", "port", "database")}


def _expected(name: str, params: t.Mapping[str, str], config: t.Mapping[str, str | None]) -> dict[str, t.Any]:
    """What SHOW DATABASES shows of an entry once it is loaded. It shows no connect_query and no start-up parameters."""
    wanted: dict[str, t.Any] = {"host": params.get("host"), "port": int(params.get("port", 5432)), "database": params.get("dbname", name)}
    wanted["pool_mode"] = params["pool_mode"].lower() if "pool_mode" in params else None
    if "user" in params:
        wanted["force_user"] = params["user"]
    for column, key, default in (
        ("pool_size", "pool_size", "default_pool_size"),
        ("min_pool_size", "min_pool_size", "min_pool_size"),
        ("reserve_pool_size", "reserve_pool", "reserve_pool_size"),
        ("max_connections", "max_db_connections", "max_db_connections"),
    ):
        value = params.get(column if column == "reserve_pool_size" and column in params else key, config.get(default))
        if column == "max_connections" and value == "0":
            value = config.get(default)
        if value is not None and value.isdigit():
            wanted[column] = int(value)
    return wanted
