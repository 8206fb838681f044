# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""One PostgreSQL instance on this host: is it running, start, stop, restart, reload, and what it logged meanwhile."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shlex
import shutil
import signal
import time
import typing as t

from .._errors import CommandFailed, InvalidInput, OperationError, WaitTimeout
from .._wait import Deadline, wait_for
from .command import run_command
from .controldata import ControlData, ControlHead, read_controldata, read_head

METHODS = ("auto", "systemd", "pg_ctlcluster", "pg_ctl", "command")
MODES = ("smart", "fast", "immediate")
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# daemontools starts a server again after one second.
_SUPERVISORS_SECONDS = 1.5

_DEBIAN_CONFIG = re.compile(r"^/etc/postgresql/([^/]+)/([^/]+)/postgresql\.conf$")
_DEBIAN_DATA = re.compile(r"^/var/lib/postgresql/([^/]+)/([^/]+)$")
_RHEL_DATA = re.compile(r"^/var/lib/pgsql/([^/]+)/data$")


class Postmaster(t.NamedTuple):
    """What a live postmaster says of itself in postmaster.pid. ``status`` is starting, stopping, ready or standby."""

    pid: int
    data_directory: str
    port: int | None
    socket_directory: str
    listen_address: str
    status: str


class Instance:
    """One instance, known by its data directory, which need not exist yet.

    ``timeout`` is in seconds and bounds each start and stop. ``method`` says who starts and stops: ``auto`` takes systemd
    where it runs and has the unit, pg_ctlcluster for a configuration below /etc/postgresql, else pg_ctl. ``command`` runs ``commands``,
    the argument lists of start and stop, which need not wait for the server.
    """

    def __init__(
        self,
        data_directory: str,
        config_file: str | None = None,
        bin_directory: str | None = None,
        method: str = "auto",
        unit: str | None = None,
        log_file: str | None = None,
        timeout: float = 60,
        commands: t.Optional[tuple[t.Sequence[str], t.Sequence[str]]] = None,
    ) -> None:
        if not os.path.isabs(data_directory or ""):
            raise InvalidInput('data_directory is "%s"' % (data_directory or ""), expected="an absolute path")
        if method not in METHODS:
            raise InvalidInput('method is "%s"' % method, expected="one of %s" % ", ".join(METHODS))
        if method == "command" and not (commands and all(commands)):
            raise InvalidInput("method is command and one of its commands is missing", expected="the options start_command and stop_command")
        self.data_directory = os.path.normpath(data_directory)
        self.config_file = config_file or self._debian_config_file()
        self.timeout = timeout
        self._bin_directory = bin_directory
        self._method = method
        self._unit = unit
        self._log_file = log_file
        self._commands = commands or ((), ())

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> Instance:
        """The instance that a module's options name."""
        return cls(
            params["data_directory"],
            params.get("config_file"),
            params.get("bin_directory"),
            params.get("method") or "auto",
            params.get("unit"),
            params.get("log_file"),
            params.get("timeout") or 60,
            (params.get("start_command") or (), params.get("stop_command") or ()),
        )

    # What it is

    @property
    def has_data(self) -> bool:
        """Whether the data directory holds a database cluster.

        Raises OperationError when this user may not look: that must never count as "no data".
        """
        for parts in (("PG_VERSION",), ("global", "pg_control")):
            try:
                os.stat(self.path(*parts))
            except (FileNotFoundError, NotADirectoryError):
                return False
            except OSError as error:
                raise OperationError(
                    "%s cannot be looked at: %s" % (self.path(*parts), error.strerror),
                    action="Run the task as root or as the owner of the data directory (become_user)",
                ) from error
        return True

    @property
    def major_version(self) -> str | None:
        """``15``, or None without data."""
        try:
            with open(self.path("PG_VERSION"), encoding="ascii") as file:
                return file.read().strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    @property
    def bin_directory(self) -> str:
        """Where the programs of this instance's version are. Raises InvalidInput when they are not found."""
        if not self._bin_directory:
            self._bin_directory = find_bin_directory(self.major_version)
        return self._bin_directory

    @property
    def debian_name(self) -> tuple[str, str] | None:
        """Version and name of a cluster whose configuration is where Debian keeps it."""
        found = _DEBIAN_CONFIG.match(self.config_file or "")
        return (found.group(1), found.group(2)) if found else None

    @property
    def unit(self) -> str | None:
        """The systemd unit: as given, or as Debian or the RHEL packages name it."""
        if self._unit:
            return self._unit
        if self.debian_name:
            return "postgresql@%s-%s" % self.debian_name
        found = _RHEL_DATA.match(self.data_directory)
        return "postgresql-%s" % found.group(1) if found else None

    @property
    def method(self) -> str:
        """``systemd``, ``pg_ctlcluster``, ``pg_ctl`` or ``command``."""
        if self._method == "auto":
            if self._systemd_has_unit():
                self._method = "systemd"
            else:
                self._method = "pg_ctlcluster" if self.debian_name and shutil.which("pg_ctlcluster") else "pg_ctl"
        return self._method

    @property
    def log_file(self) -> str:
        """Where the server writes until it has a log of its own."""
        if self._log_file:
            return self._log_file
        if self.debian_name:
            return "/var/log/postgresql/postgresql-%s-%s.log" % self.debian_name
        return self.path("startup.log")

    def path(self, *parts: str) -> str:
        """A path inside the data directory."""
        return os.path.join(self.data_directory, *parts)

    def program(self, name: str) -> str:
        return os.path.join(self.bin_directory, name)

    def control_head(self) -> ControlHead:
        """State and last checkpoint by one read of 48 bytes. Raises OperationError."""
        return read_head(self.data_directory)

    def controldata(self) -> ControlData:
        """All of the control file, by pg_controldata. Raises CommandFailed."""
        return read_controldata(self.bin_directory, self.data_directory)

    def setting(self, name: str) -> str:
        """A setting as the files on disk have it now, also of a server that is down.

        Raises CommandFailed with the server's own words when the files have errors.
        """
        # -C must come first: only then may root ask.
        argv = [self.program("postgres"), "-C", name, "-D", self.data_directory]
        if self.config_file:
            argv += ["-c", "config_file=%s" % self.config_file]
        output = run_command(argv, timeout=30).stdout
        # Warnings may come before the value.
        return output.rstrip("\n").rsplit("\n", 1)[-1]

    # Is it running

    def postmaster(self) -> Postmaster | None:
        """The live postmaster of this data directory, or None. A stale postmaster.pid is no server.

        Raises OperationError when postmaster.pid cannot be read: that must never count as "not running".
        """
        lines = self._read_pidfile()
        if not lines:
            return None
        try:
            pid = abs(int(lines[0]))
        except ValueError:
            return None
        directory = lines[1] if len(lines) > 1 else ""
        if not is_postgres(pid) or not self._belongs(pid, directory):
            return None
        lines += [""] * (8 - len(lines))
        return Postmaster(pid, directory, int(lines[3]) if lines[3].isdigit() else None, lines[4], lines[5], lines[7].strip())

    def postmaster_pid(self) -> int | None:
        found = self.postmaster()
        return found.pid if found else None

    def is_running(self) -> bool:
        return self.postmaster() is not None

    def processes(self) -> list[int]:
        """All server processes that work in the data directory, also those that outlived a killed postmaster.

        Complete only for root and for the user that the server runs as.
        """
        found = []
        for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
            if entry.isdigit() and is_postgres(int(entry)):
                directory = _working_directory(int(entry))
                if directory and _same(directory, self.data_directory):
                    found.append(int(entry))
        return sorted(found)

    # Start, stop, restart, reload

    def start_command(self) -> list[str]:
        """The argument list that starts the instance and, except with ``command``, waits for it."""
        if self.method == "command":
            return list(self._commands[0])
        if self.method == "systemd":
            return ["systemctl", "start", self._required_unit()]
        if self.method == "pg_ctlcluster":
            return ["pg_ctlcluster", *self._required_cluster(), "start", "--", "-t", self._seconds()]
        argv = [self.program("pg_ctl"), "-D", self.data_directory, "-w", "-t", self._seconds(), "-s"]
        # Without a file of its own the server would keep our output pipe open for ever.
        argv += ["-l", self.log_file]
        if self.config_file:
            # pg_ctl hands its options to a shell.
            argv += ["-o", "-c config_file=%s" % shlex.quote(self.config_file)]
        return [*argv, "start"]

    def stop_command(self, mode: str = "fast") -> list[str]:
        """The argument list that stops the instance. With systemd any mode but fast returns before the server is down, and so may ``command``."""
        if mode not in MODES:
            raise InvalidInput('mode is "%s"' % mode, expected="one of %s" % ", ".join(MODES))
        if self.method == "command":
            return list(self._commands[1])
        if self.method == "systemd":
            unit = self._required_unit()
            if mode == "fast":
                return ["systemctl", "stop", unit]
            return ["systemctl", "kill", "--kill-who=main", "--signal=%s" % SIGNALS[mode].name, unit]
        if self.method == "pg_ctlcluster":
            return ["pg_ctlcluster", "-m", mode, *self._required_cluster(), "stop", "--", "-t", self._seconds()]
        return [self.program("pg_ctl"), "-D", self.data_directory, "-m", mode, "-w", "-t", self._seconds(), "-s", "stop"]

    def start(self) -> int:
        """Start and wait until the server accepts connections (or, without hot standby, recovers). Returns its pid.

        Raises CommandFailed or WaitTimeout with what the server logged since.
        """
        self.refuse_root()
        mark = self.log_mark()
        deadline = Deadline(self.timeout)
        try:
            # Processes that outlived a killed postmaster end by themselves; until then no new one can start.
            if not (self.method == "command" and self.is_running()):
                self.wait_down(deadline)
                self._wait_collected(deadline)
            run_command(self.start_command(), timeout=self.timeout + 15)
            # systemd may answer before the server does, and Debian's unit hides a failed start. A supervisor of its own starts when it likes.
            over = ("ready", "standby") if self.method == "command" else ("ready", "standby", "down")
            wait_for("the start", self._start_state, lambda state: state in over, deadline)
        except (CommandFailed, WaitTimeout) as error:
            error.facts["log"] = self.log_tail(mark)
            error.message = self._with_log("the server in %s did not start: %s" % (self.data_directory, error.message), error.facts["log"])
            error.action = error.action or self._read_the_log()
            raise
        pid = self.postmaster_pid()
        if pid is None:
            log = self.log_tail(mark)
            raise CommandFailed(
                self._with_log("the server in %s did not start, or ended at once" % self.data_directory, log), action=self._read_the_log(), log=log
            )
        return pid

    def stop(self, mode: str = "fast", for_good: bool = True) -> None:
        """Stop and wait until every process is gone. Raises CommandFailed or WaitTimeout.

        ``for_good``, a supervisor that starts it again at once is an error.
        """
        if not self.is_running():
            return
        self.refuse_root()
        mark = self.log_mark()
        deadline = Deadline(self.timeout)
        try:
            run_command(self.stop_command(mode), timeout=self.timeout + 15)
            if self.method == "command":
                self._hurry(SIGNALS[mode])
            self.wait_down(deadline)
            if self.method == "command" and for_good:
                self._watch()
        except (CommandFailed, WaitTimeout) as error:
            error.facts["log"] = self.log_tail(mark)
            error.message = self._with_log("the server in %s did not stop: %s" % (self.data_directory, error.message), error.facts["log"])
            if mode == "smart":
                error.action = "It waits for its clients in mode smart; use mode fast, or end the clients"
            raise

    def restart(self, mode: str = "fast") -> int:
        """Stop if it runs, then start. Returns the new pid."""
        old = self.postmaster_pid()
        if self.method == "systemd" and mode == "fast" and old:
            # One job, so that units which depend on this one come back too.
            self.refuse_root()
            mark = self.log_mark()
            run_command(["systemctl", "restart", self._required_unit()], timeout=2 * self.timeout + 15)
            state = wait_for("the restart", self._start_state, lambda state: state in ("ready", "standby", "down"), Deadline(self.timeout))
            pid = self.postmaster_pid()
            if state == "down" or pid is None or pid == old:
                log = self.log_tail(mark)
                raise CommandFailed(
                    self._with_log("the server in %s did not restart" % self.data_directory, log),
                    action=self._read_the_log() if pid != old else "It does not run under %s; stop it by the method that started it" % self.unit,
                    log=log,
                )
            return pid
        self.stop(mode, for_good=False)
        return self.start()

    def reload(self) -> None:
        """Make the server read its configuration again. Raises OperationError when it does not run."""
        self.signal(signal.SIGHUP)

    def signal(self, number: int) -> int:
        pid = self.postmaster_pid()
        if pid is None:
            raise OperationError("no server runs in %s" % self.data_directory)
        try:
            os.kill(pid, number)
        except OSError as error:
            raise OperationError(
                "the server in %s (process %s) takes no signal from this user: %s" % (self.data_directory, pid, error.strerror),
                action="Run the task as the user that owns the data directory (become_user)",
            ) from error
        return pid

    def _watch(self) -> None:
        """Whether a supervisor was told, and not just the server stopped beneath it."""
        watch = Deadline(_SUPERVISORS_SECONDS)
        while not watch.passed:
            if self.is_running():
                raise CommandFailed(
                    "it stopped and was started again at once by its supervisor", action="Use a stop_command that tells the supervisor to keep it stopped"
                )
            time.sleep(0.05)

    def _hurry(self, number: int) -> None:
        """Supervisors stop by SIGTERM, which is mode smart and waits for clients for ever; the wanted mode can follow."""
        pid = self.postmaster_pid()
        if pid is not None and number != signal.SIGTERM:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_down(self, deadline: Deadline, interval: float = 0.05) -> None:
        """Wait until no process of the server is left. Raises WaitTimeout."""
        wait_for("the end of the server in %s" % self.data_directory, self._living, lambda living: not living, deadline, interval=interval)

    # Its log

    def log_mark(self) -> dict[str, int]:
        """Where each log file ends now; for ``log_tail``."""
        return {path: os.path.getsize(path) for path in self._log_files() if os.path.isfile(path)}

    def log_tail(self, since: t.Mapping[str, int] | None = None, lines: int = 25) -> list[str]:
        """The last lines that the server logged since a mark (or at all), at most ``lines``."""
        found: list[str] = []
        for path in self._log_files():
            try:
                with open(path, "rb") as file:
                    begin = (since or {}).get(path, 0)
                    # A file smaller than at the mark was rotated.
                    file.seek(begin if begin <= os.path.getsize(path) else 0)
                    found += file.read().decode("utf-8", "replace").splitlines()[-lines:]
            except OSError:
                continue
        return found[-lines:]

    def refuse_root(self) -> None:
        """PostgreSQL refuses to run as root, and pg_ctl with it."""
        if self.method == "pg_ctl" and os.geteuid() == 0:
            raise InvalidInput(
                "this task runs as root, and pg_ctl may not",
                expected="the user that owns %s" % self.data_directory,
                action="Set become_user (usually postgres), or use method systemd or pg_ctlcluster",
            )

    # Private

    def _debian_config_file(self) -> str | None:
        found = _DEBIAN_DATA.match(self.data_directory)
        if not found or os.path.exists(self.path("postgresql.conf")):
            return None
        path = "/etc/postgresql/%s/%s/postgresql.conf" % found.groups()
        return path if os.path.exists(path) else None

    def _systemd_has_unit(self) -> bool:
        if not os.path.isdir("/run/systemd/system") or not self.unit:
            return False
        try:
            done = run_command(["systemctl", "show", "--property=LoadState", self.unit], timeout=15)
        except CommandFailed:
            return False
        return done.stdout.strip() == "LoadState=loaded"

    def _required_unit(self) -> str:
        if not self.unit:
            raise InvalidInput("method is systemd and no unit is known for %s" % self.data_directory, action="Set the option unit")
        return self.unit

    def _required_cluster(self) -> tuple[str, str]:
        if not self.debian_name:
            raise InvalidInput(
                "method is pg_ctlcluster and the configuration is %s" % (self.config_file or "in the data directory"),
                expected="/etc/postgresql/VERSION/NAME/postgresql.conf",
                action="Set the option config_file, or another method",
            )
        return self.debian_name

    def _seconds(self) -> str:
        return str(max(1, int(self.timeout)))

    def _read_pidfile(self) -> list[str] | None:
        try:
            with open(self.path("postmaster.pid"), encoding="utf-8", errors="surrogateescape") as file:
                return file.read().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OperationError(
                "%s cannot be read, so whether a server runs there is unknown: %s" % (self.path("postmaster.pid"), error.strerror),
                action="Run the task as root or as the owner of the data directory (become_user)",
            ) from error

    def _belongs(self, pid: int, directory: str) -> bool:
        # A server works in its data directory, whatever name that has by now. Another user's process does not tell.
        actual = _working_directory(pid)
        return _same(actual or directory, self.data_directory)

    def _living(self) -> list[int]:
        pid = self.postmaster_pid()
        return sorted({*self.processes(), *([pid] if pid else [])})

    def _wait_collected(self, deadline: Deadline) -> None:
        """Wait until the parent of a killed postmaster has collected it: as long as it is a zombie, PostgreSQL takes it for a living server."""
        lines = self._read_pidfile()
        if not lines or not lines[0].lstrip("-").isdigit():
            return
        pid = abs(int(lines[0]))
        try:
            wait_for("the end of process %d" % pid, lambda: _process(pid)[1], lambda state: state not in ("Z", "X"), deadline)
        except WaitTimeout as error:
            error.message = (
                "the last server, process %d, has ended, but its parent, process %s, has not collected it, and PostgreSQL starts no other one until then"
                % (pid, _process(pid)[2])
            )
            error.action = "Give the container an init process that collects orphans (docker run --init)"
            raise

    def _start_state(self) -> str:
        found = self.postmaster()
        return found.status or "starting" if found else "down"

    def _log_files(self) -> list[str]:
        files = [self.log_file]
        try:
            with open(self.path("current_logfiles"), encoding="utf-8") as file:
                for line in file.read().splitlines():
                    kind, _space, path = line.partition(" ")
                    if kind == "stderr":
                        files.append(os.path.join(self.data_directory, path))
        except OSError:
            pass
        return files

    @staticmethod
    def _with_log(message: str, log: t.Sequence[str]) -> str:
        return "%s. The server logged: %s" % (message.rstrip("."), " / ".join(log)) if log else message

    def _read_the_log(self) -> str:
        return "See %s" % self.log_file if self.method != "systemd" else "See %s and journalctl -u %s" % (self.log_file, self.unit)


def find_bin_directory(major_version: str | None) -> str:
    """The directory with the server's programs of a version; without one, of the newest that is installed."""
    if major_version:
        candidates = ["/usr/lib/postgresql/%s/bin" % major_version, "/usr/pgsql-%s/bin" % major_version]
    else:
        candidates = sorted(glob.glob("/usr/lib/postgresql/[0-9]*/bin") + glob.glob("/usr/pgsql-[0-9]*/bin"), key=_version_in, reverse=True)
    for candidate in candidates:
        if os.path.exists(os.path.join(candidate, "pg_ctl")):
            return candidate
    if shutil.which("pg_config"):
        candidate = run_command(["pg_config", "--bindir"], timeout=15).stdout.strip()
        program = os.path.join(candidate, "postgres")
        if os.path.exists(program):
            words = run_command([program, "--version"], timeout=15).stdout
            if not major_version or re.search(r"\) %s\b" % re.escape(major_version), words):
                return candidate
    raise InvalidInput(
        "the programs of PostgreSQL%s are not on this host (looked in %s and asked pg_config)"
        % (" " + major_version if major_version else "", ", ".join(candidates) or "/usr/lib/postgresql"),
        action="Install the server's package, or set bin_directory",
    )


def is_postgres(pid: int) -> bool:
    """Whether a process lives and is a PostgreSQL server process. A zombie does not live."""
    if not os.path.isdir("/proc/self"):
        # No /proc on this system: all that can be asked is whether it lives.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
    name, state, _parent = _process(pid)
    return name.startswith(("postgres", "postmaster")) and state not in ("Z", "X")


def _process(pid: int) -> tuple[str, str, str]:
    """Name, state letter and parent of a process, from proc_pid_stat(5); empty when there is none."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            name, _parenthesis, rest = file.read().partition(b"(")[2].rpartition(b")")
    except OSError:
        return "", "", ""
    state, parent = rest.split()[:2]
    return name.decode("utf-8", "replace"), state.decode(), parent.decode()


def _working_directory(pid: int) -> str | None:
    try:
        return os.readlink("/proc/%d/cwd" % pid)
    except OSError:
        return None


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.normpath(one) == os.path.normpath(other)


def _version_in(path: str) -> float:
    found = re.search(r"[0-9]+(\.[0-9]+)?", path)
    return float(found.group()) if found else 0.0
