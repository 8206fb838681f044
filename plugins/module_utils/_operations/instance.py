# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Starting, stopping, restarting and reloading one instance on this host."""

from __future__ import annotations

import dataclasses
import typing as t

from .._errors import CommandFailed, InvalidInput, NotConfirmed, NotReachable, OperationError, QueryFailed, Refused
from .._host.controldata import CLEAN
from .._host.instance import METHODS, MODES, Instance, Postmaster
from .._host.listening import find_conflicts, own_address
from .._module import CONNECTION, ArgumentSpec, Operation
from .._parallel import ask_all
from .._pgbouncer.console import console_target
from .._plan import Plan
from .._sql.connection import Session, Target, connect, psycopg_problem
from .._wait import Deadline, wait_for
from .pgbouncer_info import describe_pooler

INSTANCE = ArgumentSpec(
    {
        "data_directory": {"type": "path", "required": True},
        "config_file": {"type": "path"},
        "bin_directory": {"type": "path"},
        "method": {"type": "str", "choices": list(METHODS), "default": "auto"},
        "unit": {"type": "str"},
        "start_command": {"type": "list", "elements": "str"},
        "stop_command": {"type": "list", "elements": "str"},
        "log_file": {"type": "path"},
        "timeout": {"type": "int", "default": 60},
    },
    required_if=[("method", "command", ["start_command", "stop_command"])],
)
"""One instance on this host; in step with the doc fragment ``instance``."""

PG_INSTANCE = CONNECTION.merge(INSTANCE).merge(
    ArgumentSpec(
        {
            "state": {"type": "str", "choices": ["started", "stopped", "restarted", "reloaded"], "default": "started"},
            "mode": {"type": "str", "choices": list(MODES), "default": "fast"},
            "only_if_pending_restart": {"type": "bool", "default": False},
            "allow_primary_stop": {"type": "bool", "default": False},
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
                },
            },
            "addresses": {"type": "list", "elements": "str", "default": []},
        }
    )
)

# Seconds for all poolers together.
_POOLERS_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class ServerAnswers:
    """What the running server says by SQL."""

    version: str
    in_recovery: bool
    pending_restart: tuple[str, ...]
    synchronous_standbys: tuple[str, ...]
    configuration_loaded: str
    configuration_errors: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class InstanceState:
    """One instance as it was found."""

    has_data: bool
    postmaster: Postmaster | None
    control_state: str | None
    answers: ServerAnswers | None = None
    problem: str | None = None
    """Why the running server could not be asked by SQL."""
    configuration_problem: str | None = None
    """The server's own words when its configuration files cannot be read."""
    conflicts: tuple[str, ...] = ()
    """Who has taken the port or the socket that the server would listen on."""
    dependents: tuple[str, ...] = ()
    """Entries of poolers that lead to the running server and are neither paused nor disabled, and poolers that do not tell."""

    @property
    def running(self) -> bool:
        return self.postmaster is not None


def ask_server(session: Session) -> ServerAnswers:
    """Ask a running server about itself. Raises QueryFailed, NotReachable."""
    in_recovery = session.value("SELECT pg_is_in_recovery()")
    standbys = session.rows(
        "SELECT application_name, client_addr::text AS address, sync_state FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') ORDER BY 1, 2"
    )
    try:
        errors = session.rows(
            "SELECT f.name, f.error FROM pg_file_settings f LEFT JOIN pg_settings s ON s.name = f.name"
            " WHERE f.error IS NOT NULL AND s.pending_restart IS NOT TRUE ORDER BY f.seqno"
        )
    except QueryFailed:
        # Only superusers may see the view, and not knowing is no error.
        errors = []
    return ServerAnswers(
        version=session.value("SELECT current_setting('server_version')"),
        in_recovery=in_recovery,
        pending_restart=tuple(row["name"] for row in session.rows("SELECT name FROM pg_settings WHERE pending_restart ORDER BY name")),
        synchronous_standbys=tuple("%s (%s, %s)" % (s["application_name"], s["address"] or "local", s["sync_state"]) for s in standbys),
        configuration_loaded=str(session.value("SELECT pg_conf_load_time()")),
        configuration_errors=tuple("%s: %s" % (row["name"], row["error"]) for row in errors),
    )


def port_conflicts(instance: Instance) -> tuple[str, ...]:
    """Who has taken what the instance would listen on. Raises CommandFailed when its configuration has errors."""
    found = find_conflicts(
        int(instance.setting("port")), instance.setting("listen_addresses"), instance.setting("unix_socket_directories"), own=instance.processes()
    )
    return tuple(str(listener) for listener in found)


class InstanceOperation(Operation):
    """The operation of pg_instance."""

    def __init__(self, params: t.Mapping[str, t.Any], context: t.Any) -> None:
        super().__init__(params, context)
        self.instance = Instance.from_params(params)
        self.old_pid: int | None = None
        self.old_load: str | None = None
        self.login = any(params.get(name) for name in ("login_host", "login_port", "login_unix_socket", "login_user", "login_password", "connect_params"))
        problem = psycopg_problem() if self.login or params["poolers"] else None
        if problem:
            raise InvalidInput(
                "login options or poolers are given and %s on this host" % problem, action="Install it (Debian and Ubuntu: package python3-psycopg)"
            )

    # What is there

    def observe(self) -> InstanceState:
        state = self.params["state"]
        if self.params["only_if_pending_restart"] and (state != "restarted" or not self.login):
            raise InvalidInput(
                "only_if_pending_restart is set%s"
                % (" and state is %s" % state if state != "restarted" else ", and no login option says how to ask the server"),
                expected="state restarted and at least one of login_host, login_unix_socket, login_port, login_user",
            )
        has_data = self.instance.has_data
        postmaster = self.instance.postmaster()
        if postmaster and postmaster.status == "starting" and state != "stopped" and not self.context.check_mode:
            wait_for("the start that is under way", self._status, lambda status: status != "starting", Deadline(self.instance.timeout))
            postmaster = self.instance.postmaster()
        answers, problem = None, None
        if postmaster and self.login:
            try:
                answers = self._ask()
            except NotReachable as error:
                # A server that is full or hangs is just what one restarts.
                problem = str(error)
        configuration_problem: str | None = None
        conflicts: tuple[str, ...] = ()
        if has_data and state != "stopped":
            try:
                if postmaster is None or str(postmaster.port) != self.instance.setting("port"):
                    conflicts = port_conflicts(self.instance)
            except CommandFailed as error:
                configuration_problem = error.message
        control_state = self.instance.control_head().state if has_data else None
        dependents: tuple[str, ...] = ()
        is_primary = not answers.in_recovery if answers else control_state != "in archive recovery"
        if postmaster and is_primary and state in ("stopped", "restarted") and not self.params["allow_primary_stop"]:
            dependents = self._dependents(postmaster)
        return InstanceState(has_data, postmaster, control_state, answers, problem, configuration_problem, conflicts, dependents)

    def _dependents(self, postmaster: Postmaster) -> tuple[str, ...]:
        deadline = Deadline(_POOLERS_SECONDS)
        targets = [
            console_target(self.params, host=entry["host"], port=entry["port"], user=entry["user"], password=entry["password"])
            for entry in self.params["poolers"]
        ]
        found: list[str] = []
        for entry, answer in zip(self.params["poolers"], ask_all(targets, lambda target: describe_pooler(target, ["databases"], deadline), deadline)):
            if isinstance(answer, OperationError):
                found.append("pooler %s does not tell: %s" % (entry["name"], answer.message))
            elif not answer["paused"]:
                names = [
                    row["name"]
                    for row in answer["databases"]
                    if not row["paused"] and not row["disabled"] and self._leads_here(row, entry["host"], postmaster.port)
                ]
                if names:
                    found.append("pooler %s: %s" % (entry["name"], ", ".join(names)))
        return tuple(found)

    def _leads_here(self, row: t.Mapping[str, t.Any], pooler_host: str, port: int | None) -> bool:
        for host in str(row["host"] or "").split(","):
            if row["port"] != port:
                continue
            if self.params["addresses"]:
                if host in self.params["addresses"]:
                    return True
            elif host and not host.startswith(("/", "@")) and own_address(host) != "loopback":
                # A name that cannot be resolved here may be ours.
                if own_address(host) is not None:
                    return True
            elif pooler_host.startswith("/") or own_address(pooler_host) is not None:
                # A socket or loopback is the pooler's own host.
                return True
        return False

    def _status(self) -> str:
        found = self.instance.postmaster()
        return found.status if found else "down"

    def _ask(self) -> ServerAnswers:
        session = connect(Target.from_params(self.params), timeout=10, read_only=True)
        try:
            identifier = session.value("SELECT system_identifier::text FROM pg_control_system()")
            here = self.instance.control_head().system_identifier
            if identifier != here:
                raise Refused(
                    "the login options lead to a server of system identifier %s, and %s has %s" % (identifier, self.instance.data_directory, here),
                    action="Correct login_host and login_port: they must name the instance of data_directory",
                )
            return ask_server(session)
        finally:
            session.close()

    # What to do

    def plan(self, seen: InstanceState) -> Plan:
        plan = Plan()
        state, directory = self.params["state"], self.instance.data_directory
        if not seen.has_data:
            raise Refused(
                "%s holds no database cluster" % directory,
                expected="a data directory with PG_VERSION and global/pg_control",
                action="Correct data_directory, or make the instance with initdb or pgfleet.ops.pg_clone",
            )
        if state == "stopped":
            if seen.running:
                self._refuse_primary(seen)
                plan.add("stop the server in %s" % directory, self._stop, subject=directory, before=self._shown(seen), after={"state": "stopped"})
        elif not seen.running:
            if state == "reloaded":
                raise Refused("no server runs in %s, so none can be reloaded" % directory, action="Use state started")
            self._refuse_start(seen)
            plan.add("start the server in %s" % directory, self._start, subject=directory, before={"state": "stopped"}, after={"state": "running"})
        elif state == "reloaded":
            self._refuse_configuration(seen)
            self.old_load = seen.answers.configuration_loaded if seen.answers else None
            plan.add("reload the server in %s" % directory, self.instance.reload)
        elif state == "restarted":
            if self.params["only_if_pending_restart"]:
                if seen.answers is None:
                    raise NotReachable("whether settings wait for a restart is unknown: %s" % seen.problem)
                if not seen.answers.pending_restart:
                    return plan
            self._refuse_primary(seen)
            self._refuse_start(seen)
            plan.add(
                "restart the server in %s" % directory,
                self._restart,
                subject=directory,
                before=self._shown(seen),
                after={"state": "running", **({"pending_restart": []} if seen.answers else {})},
            )
        elif seen.postmaster is not None and seen.postmaster.status == "stopping":
            plan.add("start the server in %s once it has stopped" % directory, self._start, subject=directory)
        return plan

    def _refuse_start(self, seen: InstanceState) -> None:
        self._refuse_configuration(seen)
        if seen.conflicts:
            raise Refused(
                "the server in %s cannot listen: %s" % (self.instance.data_directory, "; ".join(seen.conflicts)),
                action="Stop that program, or change port, listen_addresses or unix_socket_directories of this instance",
                conflicts=list(seen.conflicts),
            )
        self.instance.refuse_root()

    def _refuse_configuration(self, seen: InstanceState) -> None:
        if seen.configuration_problem:
            raise Refused(
                "the configuration of the server in %s has errors: %s" % (self.instance.data_directory, seen.configuration_problem),
                action="Correct the configuration files first",
            )

    def _refuse_primary(self, seen: InstanceState) -> None:
        if seen.dependents:
            raise Refused(
                "the server in %s is a primary that clients reach through poolers (%s)" % (self.instance.data_directory, "; ".join(seen.dependents)),
                expected="each entry that leads to it paused or disabled",
                action="Switch over first (pgfleet.ops.pg_switchover), pause the poolers (pgfleet.ops.pgbouncer_pool), or set allow_primary_stop",
                poolers=list(seen.dependents),
            )
        found = seen.answers
        if found and not found.in_recovery and found.synchronous_standbys and not self.params["allow_primary_stop"]:
            raise Refused(
                "the server in %s is a primary with the synchronous standbys %s" % (self.instance.data_directory, ", ".join(found.synchronous_standbys)),
                action="Switch over first (pgfleet.ops.pg_switchover), or set allow_primary_stop",
                synchronous_standbys=list(found.synchronous_standbys),
            )

    # Doing it

    def _start(self) -> None:
        self.instance.start()

    def _stop(self) -> None:
        self.instance.stop(self.params["mode"])

    def _restart(self) -> None:
        self.old_pid = self.instance.postmaster_pid()
        self.instance.restart(self.params["mode"])

    # Was it done

    def confirm(self, seen: InstanceState) -> None:
        directory = self.instance.data_directory
        if self.params["state"] == "stopped":
            if seen.running or self.instance.processes():
                raise NotConfirmed("the server in %s still runs" % directory)
            if self.params["mode"] != "immediate" and seen.control_state not in CLEAN:
                raise NotConfirmed('the server in %s is down and its control file says "%s"' % (directory, seen.control_state), expected=" or ".join(CLEAN))
            return
        if not seen.running:
            raise NotConfirmed("the server in %s does not run" % directory, log=self.instance.log_tail())
        if seen.postmaster and seen.postmaster.pid == self.old_pid:
            raise NotConfirmed("process %d in %s is the same as before the restart" % (seen.postmaster.pid, directory))
        if self.login and seen.answers is None:
            raise NotConfirmed("the server in %s runs and does not answer: %s" % (directory, seen.problem))
        if seen.answers and self.params["state"] == "reloaded":
            self._confirm_reload()
        if seen.answers and self.params["state"] == "restarted" and seen.answers.pending_restart:
            raise NotConfirmed("these settings still wait for a restart: %s" % ", ".join(seen.answers.pending_restart))

    def _confirm_reload(self) -> None:
        # The signal is taken up a moment later.
        answers = wait_for("the reload", self._ask, lambda found: found.configuration_loaded != self.old_load, Deadline(self.instance.timeout))
        if answers.configuration_errors:
            raise NotConfirmed("the server did not take up its configuration: %s" % "; ".join(answers.configuration_errors))

    # What is said

    @staticmethod
    def _shown(seen: InstanceState) -> dict[str, t.Any]:
        return {"state": "running" if seen.running else "stopped", **({"pending_restart": list(seen.answers.pending_restart)} if seen.answers else {})}

    def report(self, seen: InstanceState) -> dict[str, t.Any]:
        if seen.problem and self.params["state"] != "stopped":
            self.context.warn("The server runs and could not be asked: %s" % seen.problem)
        in_recovery = {"in production": False, "in archive recovery": True}.get(seen.control_state or "") if seen.running else None
        return {
            "state": "running" if seen.running else "stopped",
            "pid": seen.postmaster.pid if seen.postmaster else None,
            "port": seen.postmaster.port if seen.postmaster else None,
            "method": self.instance.method,
            "unit": self.instance.unit if self.instance.method == "systemd" else None,
            "version": seen.answers.version if seen.answers else self.instance.major_version,
            "in_recovery": seen.answers.in_recovery if seen.answers else in_recovery,
            "pending_restart": list(seen.answers.pending_restart) if seen.answers else None,
            "control_state": seen.control_state,
            "data_directory": self.instance.data_directory,
        }
