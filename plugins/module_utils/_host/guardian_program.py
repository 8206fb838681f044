# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A program that holds one node or one pooler through a switchover and puts it back when its controller is gone.

It is started on the host of the node or pooler before anything is paused, by a pipe (a local process, or ssh), and
its text is sent through that pipe: it therefore imports nothing of the collection and works on Python 3.9 and later.
Requests and answers are JSON objects, one a line. Secrets come by the pipe only.

From ``arm`` on, the end of the pipe (controller killed, ssh cut) or the limit in seconds starts the recovery; where it
was told to stay, only the limit does. So does the request ``recover``: the way back is this one piece of code, whether
the controller lives or not.

* A node that was not released goes back to being the primary: standby.signal removed, server started. A node that was
  released stays fenced: it is started as a standby. The controller promotes the candidate only after the release was
  acknowledged, so there is no moment at which both could accept writes. A lock on the data directory, held until this
  process ends, keeps a second operation from the same node. The candidate is held so, too, and promoted by its guardian.
* A pooler goes where exactly one node accepts writes, by asking the nodes, and is resumed. Node and pooler need not
  agree on anything: the pooler waits until the node that comes back answers. Where none does in time, it is resumed all
  the same, and led to the one that accepts writes as soon as there is one.
* A pause, of any number of poolers, is ended, and nothing else is changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import syslog
import threading
import time

# States in pg_control, src/include/catalog/pg_control.h. The layout of the fields that are read here is the same in PostgreSQL 13 to 18.
KNOWN_VERSIONS = (1300, 1700, 1800)
SHUT_DOWN = 1
SHUT_DOWN_IN_RECOVERY = 2
IN_ARCHIVE_RECOVERY = 5
IN_PRODUCTION = 6


# How long one question to a node or console may take, in seconds: a host that is gone must not hold up the others.
ANSWER_SECONDS = 2
# How long a pooler that could not be led to a primary goes on looking for one, in seconds.
LOOKING_SECONDS = 600
# How long a guardian waits for one of an earlier operation to let go of its pooler, in seconds.
CLAIM_SECONDS = 3


class Failure(Exception):
    """A request that could not be done; the text goes to the controller."""


class Changed(Failure):
    """A file that is somebody else's by now."""


class Gone(Exception):
    """A connection that is of no use any more."""


def note(text):
    """The controller may be gone: what a guardian does on its own goes to the system's log."""
    syslog.syslog(syslog.LOG_WARNING, text)


def write_file(path, text):
    """Replace a file in one step; owner and mode stay."""
    with _replacement(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            _fill(stream, path, text)


@contextlib.contextmanager
def _replacement(path):
    """A path for what takes the place of a file at the end of the block; nothing of it is left where that fails."""
    # A name of its own: where a guardian is out of reach, another one may be at work on the same file.
    temporary = "%s.pgfleet-%d" % (path, os.getpid())
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _fill(stream, path, text):
    """Write and sync the text, with owner and mode of the file at the path."""
    old = os.stat(path)
    os.fchmod(stream.fileno(), old.st_mode & 0o7777)
    if os.geteuid() == 0:
        os.fchown(stream.fileno(), old.st_uid, old.st_gid)
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())


class NextFile:
    """What a file will be: on disk already, but without a name, so that it is gone when this process is (O_TMPFILE of open(2)).

    Raises OSError, also where the filesystem has no such files.
    """

    def __init__(self, path, text):
        self.path = path
        self.text = text
        descriptor = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_WRONLY, 0o600)
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
        try:
            _fill(self._stream, path, text)
        except BaseException:
            self._stream.close()
            raise

    def put_in_place(self):
        """Replace the file in one step, which waits for no disk. Once only."""
        with self._stream, _replacement(self.path) as temporary:
            descriptor = self._stream.fileno()
            # Python follows the link only where a directory is given, whichever that is.
            os.link("/proc/self/fd/%d" % descriptor, temporary, src_dir_fd=descriptor, follow_symlinks=True)


def alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def is_here(host):
    """Whether a name or an address is this machine's."""
    if not host or host.startswith("/"):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, _protocol, _name, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind((address[0], 0))
            return True
    return False


def knock(host, port, timeout):
    """Whether a PostgreSQL server answers at an address, without a login: ``answers``, ``refused``, ``silent`` or ``unknown``.

    An SSLRequest of the protocol (message formats of the PostgreSQL manual) is answered with one byte by every postmaster that is at work.
    """
    end = time.monotonic() + timeout
    try:
        if host.startswith("/"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout)
            connection.connect("%s/.s.PGSQL.%d" % (host, port))
        else:
            connection = socket.create_connection((host, port), timeout)
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused"
    except socket.gaierror:
        return "unknown"
    except OSError:
        return "silent"
    with connection:
        try:
            connection.settimeout(max(0.1, end - time.monotonic()))
            connection.sendall(struct.pack("!ii", 8, 80877103))
            return "answers" if connection.recv(1) else "refused"
        except ConnectionResetError:
            return "refused"
        except OSError:
            return "silent"


class Part:
    """What a guardian guards."""

    # Whether a controller can take away by itself what was put back: a PAUSE goes past the guardian.
    put_back_again = False

    @staticmethod
    def knock(addresses, timeout):
        """What this host sees of others: for each host and port what ``knock`` says, all at once."""
        answers = ["unknown"] * len(addresses)

        def ask(number, host, port):
            answers[number] = knock(host, port, timeout)

        threads = [threading.Thread(target=ask, args=[number, *address]) for number, address in enumerate(addresses)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


class Node(Part):
    """One PostgreSQL instance on this host."""

    def __init__(self, data_directory, start_command):
        self.data = data_directory
        self.start_command = start_command
        self.signal_file = os.path.join(data_directory, "standby.signal")
        self.fenced = False
        self.stopping = False
        self.released = False
        self.stopped_pid = None
        self._lock = None

    def postmaster(self):
        """Process id of the running server, or None."""
        try:
            with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as stream:
                lines = stream.read().split("\n")
            pid = int(lines[0])
        except (OSError, ValueError):
            return None
        return pid if alive(pid) else None

    def _control_block(self, size):
        """The first bytes of pg_control."""
        # The server overwrites the file in place; whoever restores or replaces it may be in the middle of that.
        for _attempt in range(100):
            with open(os.path.join(self.data, "global", "pg_control"), "rb") as stream:
                block = stream.read(size)
            if len(block) == size:
                return block
            time.sleep(0.001)
        raise Failure("pg_control of %s holds only %d bytes" % (self.data, len(block)))

    def control(self):
        """System identifier, state and position (bytes) of the last checkpoint, read from pg_control."""
        block = self._control_block(40)
        identifier, _version, _catalog, state = struct.unpack_from("<QIII", block, 0)
        return str(identifier), state, struct.unpack_from("<Q", block, 32)[0]

    def known(self):
        """Timeline, and a position (bytes) up to which this node has WAL; it may have more."""
        block = self._control_block(148)
        _identifier, version = struct.unpack_from("<QI", block, 0)
        if version not in KNOWN_VERSIONS:
            raise Failure("pg_control of %s has version %d, known are %s" % (self.data, version, ", ".join(map(str, KNOWN_VERSIONS))))
        (checkpoint,) = struct.unpack_from("<Q", block, 32)
        (timeline,) = struct.unpack_from("<I", block, 48)
        minimum, minimum_timeline = struct.unpack_from("<QI", block, 136)
        # A checkpoint's position is where its record begins: who has its WAL has at least the byte behind.
        return {"timeline": max(timeline, minimum_timeline), "position": max(checkpoint + 1, minimum)}

    def orphans(self):
        """Server processes that work in the data directory; some go on for a while where their postmaster was killed, and may still commit."""
        found = []
        for entry in os.listdir("/proc"):
            # What belongs to another user, or has just ended, is none of ours.
            with contextlib.suppress(OSError):
                if not entry.isdigit() or not os.path.samefile("/proc/%s/cwd" % entry, self.data):
                    continue
                with open("/proc/%s/comm" % entry, encoding="utf-8") as stream:
                    name = stream.read().strip()
                if name.startswith(("postgres", "postmaster")) and alive(int(entry)):
                    found.append(int(entry))
        return sorted(found)

    def look_for_proof(self, hosts):
        """What a promotion elsewhere wants to know of this node, which need not be running.

        ``hosts`` are the names and addresses that should be this machine's. ``place`` is the same for two names of one directory only.
        """
        try:
            identifier, state, _checkpoint = self.control()
            found = os.stat(self.data)
            with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as stream:
                boot = stream.read().strip()
        except OSError as error:
            raise Failure("cannot read %s: %s" % (self.data, error.strerror)) from error
        if not os.access(self.data, os.W_OK):
            raise Failure("user %d may not write to %s" % (os.geteuid(), self.data))
        return {
            "pid": self.postmaster(),
            "orphans": self.orphans(),
            "system_identifier": identifier,
            "crashed": state not in (SHUT_DOWN, SHUT_DOWN_IN_RECOVERY, IN_ARCHIVE_RECOVERY),
            "standby_signal": os.path.exists(self.signal_file),
            "place": "%s:%d:%d" % (boot, found.st_dev, found.st_ino),
            "here": any(is_here(host) for host in hosts),
            **self.known(),
        }

    def look(self):
        try:
            identifier, state, checkpoint = self.control()
        except OSError as error:
            raise Failure("cannot read %s: %s" % (self.data, error.strerror)) from error
        if not os.access(self.data, os.W_OK):
            raise Failure("user %d may not write to %s" % (os.geteuid(), self.data))
        self._can_be_started()
        return {
            "pid": self.postmaster(),
            "system_identifier": identifier,
            "state": state,
            "checkpoint": checkpoint,
            "standby_signal": os.path.exists(self.signal_file),
        }

    def _can_be_started(self):
        """A server that is stopped must be startable, by this user and by this command."""
        program = self.start_command[0]
        name = os.path.basename(program)
        if shutil.which(program) is None:
            raise Failure("the server could be stopped and not started again: there is no program %s on its host" % program)
        owner = os.stat(self.data).st_uid
        if name == "pg_ctl" and os.geteuid() != owner:
            raise Failure("pg_ctl must run as the owner of %s (user %d), this is user %d" % (self.data, owner, os.geteuid()))
        if name == "systemctl":
            if os.geteuid() != 0:
                raise Failure("systemctl must run as root to start the server again, this is user %d" % os.geteuid())
            unit = self.start_command[-1]
            shown = subprocess.run([program, "show", "--property=LoadState", "--value", unit], stdout=subprocess.PIPE, timeout=10, check=False)
            if shown.stdout.strip() != b"loaded":
                raise Failure("systemd knows no unit %s" % unit)

    def hold(self, patience):
        """Keep every other operation from this node until this process ends.

        What was found out before may not be true any more: whoever had the lock may have moved the primary.
        """
        if self._lock is None:
            descriptor = os.open(self.data, os.O_RDONLY)
            end = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > end:
                        os.close(descriptor)
                        raise Failure("another operation is at work on %s, or puts back what it has left" % self.data) from error
                    time.sleep(0.1)
            self._lock = descriptor

    def fence(self):
        """Whatever starts this server from now on, a reboot included, starts a standby."""
        if self._lock is None:
            raise Failure("it is not held by this operation")
        if not self.released and self.control()[1] != IN_PRODUCTION:
            raise Failure("pg_control of %s does not say that it is in production" % self.data)
        self._write_signal()

    def _write_signal(self):
        owner = os.stat(self.data)
        descriptor = os.open(self.signal_file, os.O_WRONLY | os.O_CREAT, 0o600)
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.fsync(descriptor)
        os.close(descriptor)
        self._sync_directory()
        self.fenced = True

    def fence_down(self):
        """Fence a node that is down: whatever starts it from now on starts a standby."""
        if self._lock is None:
            raise Failure("it is not held by this operation")
        if not os.path.exists(self.signal_file):
            self._write_signal()
        # A server that was started before the file was there has left its process id by now.
        working = self.orphans()
        if self.postmaster() is not None or working:
            self.unfence()
            raise Failure("a server works in %s (process %s)" % (self.data, self.postmaster() or ", ".join(map(str, working))))

    def end(self, timeout):
        """Fence a node whose server may be at work, and end all of it, whatever that takes. It is stopped by the same steps as a person would.

        A server that is well gets the time for a clean shutdown; one that is frozen hears nothing but the last signal.
        """
        if self._lock is None:
            raise Failure("it is not held by this operation")
        if not os.path.exists(self.signal_file):
            self._write_signal()
        self.stopped_pid = self.postmaster()
        self.stopping = self.stopped_pid is not None
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            working = {self.postmaster(), *self.orphans()} - {None}
            # To the postmaster while there is one: it ends the others. The last signal is for all.
            targets = working if number == signal.SIGKILL or self.postmaster() is None else {self.postmaster()}
            for pid in targets:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            until = time.monotonic() + timeout / 3
            while time.monotonic() < until:
                if self.postmaster() is None and not self.orphans():
                    return
                if number != signal.SIGKILL and any(self._is_frozen(pid) for pid in targets):
                    break
                time.sleep(0.01)
        raise Failure("processes of the server in %s do not end: %s" % (self.data, ", ".join(map(str, self.orphans()))))

    @staticmethod
    def _is_frozen(pid):
        try:
            with open("/proc/%d/stat" % pid, "rb") as stream:
                return stream.read().rpartition(b")")[2].split()[0] == b"T"
        except OSError:
            return False

    def end_of_wal(self, program, timeline, start, timeout):
        """Where the valid WAL of a timeline ends that this node has from a position on, at which a record begins (bytes); null where it cannot say."""
        begin = "%X/%X" % (start >> 32, start & 0xFFFFFFFF)
        command = [program, "--path", os.path.join(self.data, "pg_wal"), "--timeline", str(timeline), "--start", begin]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", timeout=timeout, check=False, env={"LC_ALL": "C"})
        except (OSError, subprocess.TimeoutExpired):
            return None
        for line in reversed(done.stdout.splitlines()):
            found = re.search(rb"len \(rec/tot\): +[0-9]+/ *([0-9]+),.* lsn: ([0-9A-F]+)/([0-9A-F]+),", line)
            if found:
                end = (int(found.group(2), 16) << 32) + int(found.group(3), 16) + int(found.group(1))
                # Records begin at multiples of 8 bytes.
                return (end + 7) // 8 * 8
        # The end of the WAL is an error for it, and so is a start at that end.
        missing = re.search(rb'could not find file "([0-9A-F]{24})"', done.stderr)
        if missing:
            # A segment that was not begun yet; where there are later ones, it is gone, and that tells nothing.
            kept = [name for name in os.listdir(os.path.join(self.data, "pg_wal")) if re.fullmatch("[0-9A-F]{24}", name)]
            return None if any(name[:8] == missing.group(1).decode()[:8] and name >= missing.group(1).decode() for name in kept) else start
        return start if b"invalid" in done.stderr or b"could not find a valid record" in done.stderr else None

    def _sync_directory(self):
        descriptor = os.open(self.data, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def unfence(self):
        """Take back this operation's own fence, nobody else's."""
        if self.fenced and os.path.exists(self.signal_file):
            os.unlink(self.signal_file)
            self._sync_directory()
        self.fenced = False

    def stop(self, timeout):
        """Fast shutdown; returns once pg_control says that the shutdown checkpoint is on disk, and where it is.

        The process needs some 30 ms more to go; nobody has to wait for that, it cannot write any more.
        """
        pid = self.postmaster()
        if pid is None:
            raise Failure("no server runs in %s" % self.data)
        if self.control()[1] != IN_PRODUCTION:
            raise Failure("pg_control of %s does not say that it is in production" % self.data)
        self.stopping = True
        self.stopped_pid = pid
        os.kill(pid, signal.SIGINT)
        end = time.monotonic() + timeout
        while True:
            _identifier, state, checkpoint = self.control()
            if state == SHUT_DOWN:
                return {"checkpoint": checkpoint}
            if time.monotonic() > end:
                raise Failure("it has not shut down within %g s" % timeout)
            time.sleep(0.0005)

    def release(self):
        """From here on this node never goes back to being the primary on its own."""
        if not self.fenced or not os.path.exists(self.signal_file):
            raise Failure("it is not fenced")
        self.released = True

    def promote(self):
        """Tell the standby to promote itself, as pg_ctl promote does: a file and a signal, and no wait.

        Only the process that holds the node may do that. A controller that has slept meanwhile has lost its guardian, or
        finds it recovered, and cannot promote beside whoever came after it; a session by SQL could have survived.
        """
        if self._lock is None:
            raise Failure("it is not held by this operation")
        pid = self.postmaster()
        if pid is None:
            raise Failure("no server runs in %s" % self.data)
        owner = os.stat(self.data)
        descriptor = os.open(os.path.join(self.data, "promote"), os.O_WRONLY | os.O_CREAT, 0o600)
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.close(descriptor)
        os.kill(pid, signal.SIGUSR1)

    def wait_for_exit(self, pid, timeout):
        end = time.monotonic() + timeout
        while pid is not None and self.postmaster() == pid:
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def start(self, timeout):
        if not self.wait_for_exit(self.stopped_pid, timeout):
            raise Failure("the old server process in %s has not ended within %g s" % (self.data, timeout))
        if self.released and not os.path.exists(self.signal_file):
            self.fence()
        if not self.stopping and not os.path.exists(self.signal_file):
            raise Failure("%s holds no standby.signal: it would start as a primary" % self.data)
        if self.postmaster() is not None:
            # A supervisor was faster.
            self.stopping = False
            return
        done = subprocess.run(
            self.start_command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stdout.decode("utf-8", "replace").strip().splitlines()[-5:]
            raise Failure("%s ended with %d: %s" % (self.start_command[0], done.returncode, " / ".join(lines)))
        self.stopping = False

    def _signal(self, number):
        """To the server that is to end; one that has just ended is as good."""
        if self.stopped_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.stopped_pid, number)

    def recover(self, patience):
        if self.released:
            if self.postmaster() is None or self.stopping:
                self.start(patience)
            return "it is kept as a standby"
        was_fenced = self.fenced
        self.unfence()
        pid = self.postmaster()
        if not self.stopping:
            if not was_fenced or (pid is not None and self.control()[1] == IN_PRODUCTION):
                return "it was never stopped"
            # It crashed while it was fenced, and came up as a standby if it came up at all.
            self.stopping, self.stopped_pid = True, pid
            self._signal(signal.SIGINT)
        elif pid is not None and pid != self.stopped_pid:
            # A supervisor has started it meanwhile, as a standby.
            self.stopped_pid = pid
            self._signal(signal.SIGINT)
        # A shutdown cannot be taken back. What is not down by itself in time is ended at once: crash recovery loses no commit.
        if not self.wait_for_exit(self.stopped_pid, patience / 3):
            self._signal(signal.SIGQUIT)
        self.start(patience)
        return "it was started again as the primary"


class Pooler(Part):
    """One PgBouncer on this host: the file with its [databases] section, and its console."""

    put_back_again = True

    def __init__(self, config_file):
        self.file = config_file
        self.directions = []
        self.console_keywords = {}
        self.databases = []
        self.texts = []
        self.settings = {}
        self.disabled = []
        self.led = False
        self.unsettled = False
        self._next = None
        self._claimed = None

    def look(self):
        try:
            with open(self.file, encoding="utf-8", newline="") as stream:
                text = stream.read()
        except OSError as error:
            raise Failure("cannot read %s: %s" % (self.file, error.strerror)) from error
        if not os.access(os.path.dirname(self.file), os.W_OK):
            raise Failure("user %d may not write to the directory of %s" % (os.geteuid(), self.file))
        # Takes a while, which nobody waits for now. Where it is missing, prepare() says so.
        with contextlib.suppress(ImportError):
            importlib.import_module("psycopg")
        return {"text": text}

    def prepare(self, console, directions, databases, texts=(), settings=None, following=None):
        """``directions``: for each node that may be the primary, how to reach it, the file's text that leads there, and the
        host and port of each entry then.

        ``databases``: what is paused, null for everything. ``following``: the text that the file is to have when it matters how long that takes.
        ``texts``: what it may be on its way, besides. ``settings``: those of PgBouncer that are others meanwhile, as they were.
        All connections are opened here: what cannot be reached is found out before anything is paused. That to a node that ``will_stop`` is closed again.
        """
        # A guardian that an earlier operation has left looking for a primary would lead the pooler by turns with this one.
        end = time.monotonic() + CLAIM_SECONDS
        while self.file is not None and not self._claim() and time.monotonic() < end:
            time.sleep(0.05)
        self.console_keywords = console
        self.directions = [dict(direction) for direction in directions]
        self.databases = databases
        self.texts = list(texts)
        self.settings = dict(settings or {})
        if following is not None:
            self.texts.append(following)
            with contextlib.suppress(OSError):  # then it takes a little longer
                self._next = NextFile(self.file, following)
        self._console = self._connect(console)
        for direction in self.directions:
            direction["session"] = None
            # A node that may be down is asked when it matters.
            if direction["node"] and not direction.get("may_be_down"):
                session = self._connect(direction["node"])
                if direction.get("will_stop"):
                    # It can be reached. The backend would have to end, one more, before the server can, while clients wait.
                    session.close()
                else:
                    direction["session"] = session

    def _claim(self):
        """Whether no other guardian is at work on this pooler. It lasts until _unclaim() or the end of this process, and leaves no file."""
        if self._claimed is None:
            name = hashlib.sha256(os.path.realpath(self.file).encode()).hexdigest()
            claimed = socket.socket(socket.AF_UNIX)
            try:
                claimed.bind("\0pgfleet.ops pooler " + name)
            except OSError:
                claimed.close()
                return False
            self._claimed = claimed
        return True

    def _unclaim(self):
        if self._claimed is not None:
            self._claimed.close()
            self._claimed = None

    def switch(self, text):
        """Put the prepared text on disk, unless somebody has changed the file since it was looked at."""
        if self.look()["text"] not in self._known_texts():
            raise Failure("%s was changed by somebody else in the meantime" % self.file)
        if self._next and self._next.text == text:
            following, self._next = self._next, None
            with contextlib.suppress(OSError):  # what is wrong shows in the other way as well
                following.put_in_place()
                return
        write_file(self.file, text)

    def _known_texts(self):
        return [direction["text"] for direction in self.directions] + self.texts

    def _connect(self, keywords):
        import psycopg

        return psycopg.connect(**{**keywords, "autocommit": True, "prepare_threshold": None, "connect_timeout": ANSWER_SECONDS})

    @staticmethod
    def _ask(session, statement):
        """Rows of one statement by the simple protocol. Raises Failure where it is refused, Gone where nothing answers in time."""
        pgconn = session.pgconn
        end = time.monotonic() + ANSWER_SECONDS
        try:
            pgconn.send_query(statement.encode())
            pgconn.flush()
            results = []
            while True:
                while pgconn.is_busy():
                    ready, _w, _x = select.select([pgconn.socket], [], [], max(0.0, end - time.monotonic()))
                    if not ready:
                        raise Gone("no answer within %d s" % ANSWER_SECONDS)
                    pgconn.consume_input()
                result = pgconn.get_result()
                if result is None:
                    break
                results.append(result)
        except Gone:
            raise
        except Exception as error:  # whatever the driver raises, the connection is of no more use
            raise Gone(str(error)) from error
        if pgconn.status != 0 or not results:
            # A closed connection answers with a result of its own.
            raise Gone("the connection was closed")
        for result in results:
            if result.status not in (1, 2):
                raise Failure("%s: %s" % (statement, (result.error_message or b"").decode("utf-8", "replace").strip()))
        last = results[-1]
        names = [(last.fname(n) or b"").decode() for n in range(last.nfields)]
        return [{name: last.get_value(row, n) for n, name in enumerate(names)} for row in range(last.ntuples)]

    def accepts_writes(self, direction):
        """Asks the node itself, on a new connection where the old one is gone. No answer counts as no."""
        question = (
            "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'"
            " AND system_identifier::text = '%d' AS yes FROM pg_control_system()" % int(direction["system_identifier"])
        )
        for _attempt in (1, 2):
            try:
                if direction["session"] is None:
                    direction["session"] = self._connect(direction["node"])
                return self._ask(direction["session"], question)[0]["yes"] == b"t"
            except Exception as error:  # whatever the driver raises: there is no answer
                direction["session"] = None
                if isinstance(error, Gone) and "no answer" in str(error):
                    return False
        return False

    def command(self, statement):
        """One statement for the console, on a new connection where the pooler was restarted."""
        for attempt in (1, 2):
            try:
                if self._console is None:
                    self._console = self._connect(self.console_keywords)
                return self._ask(self._console, statement)
            except Failure:
                raise
            except Exception as error:
                self._console = None
                if attempt == 2:
                    raise Failure("the console does not answer: %s" % error) from error

    def resume(self, databases=None):
        """``databases``: of those to be resumed only these, where None is everything."""
        if databases is None:
            databases = self.databases if self.databases is not None else [None]
        for database in databases:
            try:
                self.command("RESUME" if database is None else 'RESUME "%s"' % database.replace('"', '""'))
            except Failure as error:
                # PgBouncer calls it an error to resume what is not paused.
                if "not paused" not in str(error):
                    raise

    def lead_to(self, direction):
        """File and run time to one node. Raises Failure where the pooler does not do what its file says."""
        text = self.look()["text"]
        if text not in self._known_texts():
            raise Changed("%s was changed by somebody else in the meantime and was left as it is" % self.file)
        if text != direction["text"]:
            write_file(self.file, direction["text"])
        self.command("RELOAD")
        running = {row["name"].decode(): row for row in self.command("SHOW DATABASES")}
        for name, (host, port) in direction["targets"].items():
            row = running.get(name)
            if row is None or (row["host"] or b"").decode() != host or int(row["port"] or 0) != port:
                raise Failure("it was reloaded and %s still leads elsewhere than %s says" % (name, self.file))
        while self.disabled:
            self.command('ENABLE "%s"' % self.disabled.pop().replace('"', '""'))

    def let_nobody_in(self, names):
        """New clients are refused until this pooler is led to a primary."""
        if self.led:
            raise Failure("it leads to the primary by now")
        for name in names:
            # A console that does not answer may do it all the same, later.
            self.disabled.append(name)
            self.command('DISABLE "%s"' % name.replace('"', '""'))

    def lead_to_the_primary(self):
        """Lead the pooler to the one node that accepts writes, if there is one, and resume it. Returns the names of all that do."""
        writable = [direction for direction in self.directions if self.accepts_writes(direction)]
        if len(writable) == 1:
            try:
                self.lead_to(writable[0])
                self.led = True
            finally:
                self.resume()
        return [direction["name"] for direction in writable]

    def recover(self, patience):
        try:
            return self._recover(patience)
        finally:
            # Not every way back reloads.
            with contextlib.suppress(Failure):
                for name, value in self.settings.items():
                    self.command("SET %s = '%s'" % (name, value.replace("'", "''")))

    def _recover(self, patience):
        end = time.monotonic() + patience
        # Also where its console does not answer, or its file cannot be written now.
        self.unsettled = True
        while True:
            names = self.lead_to_the_primary()
            if len(names) == 1:
                self.unsettled = False
                return "it leads to %s" % names[0]
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        if names:
            return "it stays paused: more than one node accepts writes (%s)" % ", ".join(names)
        # No node accepts writes, so none can be written to by mistake; clients get errors instead of waiting for ever.
        self.resume()
        return "no node accepts writes; it was resumed as it stands on disk and is led to the first that does"

    def linger(self):
        """After a recovery that found no primary, or could not lead the pooler there: do it once that is possible.

        The guardian of the next operation takes that over.
        """
        end = time.monotonic() + LOOKING_SECONDS
        pause = 0.0
        while self.unsettled and time.monotonic() < end and os.path.exists(self.file):
            self._unclaim()
            if pause:
                time.sleep(pause)
            if not self._claim():
                note("pgfleet.ops switchover guardian (pooler): another operation is at work on it")
                return
            pause = 0.5
            try:
                names = self.lead_to_the_primary()
            except Changed as error:
                note("pgfleet.ops switchover guardian (pooler): %s" % error)
                return
            except (Failure, OSError) as error:
                note("pgfleet.ops switchover guardian (pooler): %s" % error)
                pause = 5
                continue
            if len(names) == 1:
                self.unsettled = False
                note("pgfleet.ops switchover guardian (pooler): it leads to %s now" % names[0])


class Pause:
    """Poolers that one operation pauses. What it paused is resumed, nothing else; nobody is asked where the entries lead."""

    put_back_again = True
    title = "guardian of a pause"

    def __init__(self):
        self.poolers = {}
        self.unsettled = False

    def prepare(self, poolers):
        """``poolers``: by name the console's keywords and the databases to be paused, null for the pooler as a whole."""
        for name, (console, databases) in poolers.items():
            self.poolers[name] = Pooler(None)
            self.poolers[name].prepare(console, [], databases)

    def needed(self):
        """Whether anything is paused still. What others have resumed is not looked after any more."""
        for name, pooler in list(self.poolers.items()):
            with contextlib.suppress(Failure):  # the console does not answer: that is no proof of anything
                paused = self._paused(pooler)
                if not paused:
                    del self.poolers[name]
                elif pooler.databases is not None:
                    pooler.databases = paused
        return bool(self.poolers)

    @staticmethod
    def _paused(pooler):
        """What is paused of all that is to be resumed; [None] is the pooler as a whole."""
        if pooler.databases is not None:
            paused = {row["name"].decode() for row in pooler.command("SHOW DATABASES") if row["paused"] == b"1"}
            return [name for name in pooler.databases if name in paused]
        try:
            # Never done: a console that is not paused refuses this for another reason.
            pooler.command("PAUSE pgbouncer")
        except Failure as error:
            if "already" in str(error):
                return [None]
            if "cannot pause" not in str(error):
                raise
        return []

    def recover(self, patience):
        """All at once: a pooler that hangs must not hold up the others."""
        failed = {}
        end = time.monotonic() + patience

        def resume(name):
            pooler = self.poolers[name]
            while True:
                try:
                    pooler.resume(self._paused(pooler))
                    # The last words of a controller that was killed may arrive after this.
                    time.sleep(0.2)
                    pooler.resume(self._paused(pooler))
                except Failure as error:
                    failed[name] = str(error)
                    if time.monotonic() > end:
                        return
                    time.sleep(0.2)
                else:
                    failed.pop(name, None)
                    return

        threads = [threading.Thread(target=resume, args=[name]) for name in self.poolers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.unsettled = bool(failed)
        if failed:
            return "these may be paused still: %s" % "; ".join("%s (%s)" % item for item in sorted(failed.items()))
        return "resumed: %s" % (", ".join(sorted(self.poolers)) or "none")

    def linger(self):
        """After a recovery that did not reach every pooler: go on until it does."""
        end = time.monotonic() + LOOKING_SECONDS
        while self.unsettled and time.monotonic() < end:
            note("pgfleet.ops guardian of a pause: %s" % self.recover(5))


class Guardian:
    """Reads requests, keeps the clock."""

    def __init__(self, part, patience):
        self.part = part
        self.patience = patience
        self.armed_until = None
        self.stays = False
        self.recovered = None
        self._was_asked = False

    def recover(self, why):
        """Put the part back. Returns how that went.

        A controller that slept until the limit had passed may send the PAUSE that it was about to send when it wakes up. So what was put back is put back
        again when it says that it gives up, or is gone.
        """
        if self.recovered and not self.part.put_back_again:
            return self.recovered
        self.armed_until = None
        try:
            outcome = self.part.recover(self.patience)
        except Exception as error:
            outcome = "recovery failed: %s" % error
        self.recovered = "%s: %s" % (why, outcome)
        title = getattr(self.part, "title", "switchover guardian (%s)" % type(self.part).__name__.lower())
        note("pgfleet.ops %s: %s" % (title, self.recovered))
        return self.recovered

    def handle(self, request):
        name = request.pop("do")
        if name == "disarm":
            self.armed_until = None
            return None
        if name == "recover":
            self._was_asked = True
            return self.recover("asked to")
        if self.recovered and name not in ("look", "let_nobody_in"):
            raise Failure("it has been put back already (%s)" % self.recovered)
        if name == "arm":
            self.armed_until = time.monotonic() + request["limit"]
            self.stays = request.get("stays", False)
            return None
        return getattr(self.part, name)(**request)

    def stay(self):
        """The controller has ended as it should; its limit holds without it."""
        while self.part.needed():
            left = self.armed_until - time.monotonic()
            if left <= 0:
                self.recover("the time limit has passed")
                return
            time.sleep(min(left, 1))

    def serve(self):
        pending = b""
        while True:
            timeout = None if self.armed_until is None else max(0.0, self.armed_until - time.monotonic())
            ready, _w, _x = select.select([0], [], [], timeout)
            if not ready:
                self.recover("the time limit has passed")
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                if self.stays and not self.recovered:
                    self.stay()
                elif self.armed_until is not None or (self.recovered and not self._was_asked):
                    self.recover("the controlling process is gone")
                if getattr(self.part, "unsettled", False):
                    self.part.linger()
                return
            pending += chunk
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                try:
                    answer = {"ok": True, "result": self.handle(json.loads(line))}
                except Failure as error:
                    answer = {"ok": False, "error": str(error)}
                except Exception as error:
                    answer = {"ok": False, "error": "%s: %s" % (type(error).__name__, error)}
                # Where the controller is gone, the next read says so.
                with contextlib.suppress(OSError):
                    os.write(1, json.dumps(answer).encode() + b"\n")


def serve(part, patience, **options):
    """Entry point; ``part`` is ``node``, ``pooler`` or ``pause``."""
    for name in ("SIGHUP", "SIGTERM", "SIGPIPE", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    syslog.openlog("pgfleet", syslog.LOG_PID)
    os.chdir("/")
    Guardian({"node": Node, "pooler": Pooler, "pause": Pause}[part](**options), patience).serve()
