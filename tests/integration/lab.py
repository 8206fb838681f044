# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real PostgreSQL and PgBouncer instances for tests, on loopback, below one directory that is removed afterwards."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import functools
import glob
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import psycopg

# A program in the background of a script ignores this, and so do all that it starts: PgBouncer could not be stopped then.
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SUPERUSER_PASSWORD = "super secret: 'quoted' \\ password"
LAUNCHER = REPOSITORY / "roles" / "powa_collector" / "files" / "powa_collector_launcher.py"
PRELOAD = "pg_stat_statements,pg_stat_kcache,pg_qualstats,pg_wait_sampling"


def run(argv, user=None, check=True, timeout=120, **kwargs):
    """Run a program, as another user if named, and return its output."""
    if user:
        account = pwd.getpwnam(user)
        kwargs.update(user=account.pw_uid, group=account.pw_gid, extra_groups=[])
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=timeout, cwd="/", check=False, **kwargs,
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError("%s -> %s\n%s" % (argv, done.returncode, done.stdout))
    return done.stdout


class System:
    """Where programs come from: this machine, or the root directory of another Debian on it.

    A program of a root has mounts of its own, which end with it, sees processes, loopback, users and /var/tmp of this machine, and finds all else
    of the root read-only.
    """

    # The arguments are the root, the ids of user and group, and the program with its own arguments.
    ENTER = """
        root=$1 uid=$2 gid=$3; shift 3
        mount --bind "$root" "$root" && mount -o remount,ro,bind "$root"
        for path in /proc /dev /var/tmp /etc/passwd /etc/group; do mount --rbind "$path" "$root$path"; done
        mount -t tmpfs tmpfs "$root/tmp" && chmod 1777 "$root/tmp"
        exec chroot --userspec="$uid:$gid" --groups= "$root" "$@"
    """

    def __init__(self, root=None):
        self.root = root
        found = glob.glob("%s/usr/lib/postgresql/*/bin" % (root or ""))
        newest = max(found, key=lambda path: float(pathlib.Path(path).parent.name))
        self.bin = pathlib.Path("/") / pathlib.Path(newest).relative_to(root or "/")

    @property
    def major(self):
        return int(self.bin.parent.name)

    def argv(self, argv, user):
        """What starts a program of this system as the user, called as root. The process id stays the same."""
        account = pwd.getpwnam(user)
        if self.root is None:
            enter = ["setpriv", "--reuid", account.pw_uid, "--regid", account.pw_gid, "--clear-groups", "--"]
        else:
            enter = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", self.ENTER, "sh", self.root, account.pw_uid, account.pw_gid]
        return [str(word) for word in (*enter, *argv)]

    def run(self, argv, user="postgres", **kwargs):
        return run(self.argv(argv, user), **kwargs)


HOST = System()
BIN = HOST.bin


@functools.lru_cache
def debian(release):
    """The system of a Debian release: this machine or a root directory, which is made if it is not there."""
    if 'VERSION_ID="%d"' % release in pathlib.Path("/etc/os-release").read_text():
        return HOST
    done = subprocess.run([REPOSITORY / "tools" / "debian_root.sh"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    root = pathlib.Path(done.stdout.strip())
    # Held until the tests end, so that nobody takes the root away.
    fcntl.flock(os.open(root, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)
    return System(root)


@dataclasses.dataclass(frozen=True)
class Generation:
    """The PoWA of one Debian release: versions of the extension and of the collector."""

    name: str
    release: int
    powa: str
    collector: str

    @property
    def system(self):
        return debian(self.release)


GENERATIONS = [Generation("powa4", 12, "4.1.4", "1.2.0"), Generation("powa5", 13, "5.0.2", "1.3.1")]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """A directory that user postgres owns, and what runs in it."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="pgfleet-test-", dir="/var/tmp"))
        shutil.chown(self.path, "postgres", "postgres")
        self.path.chmod(0o755)
        self.parts = []

    def postgres(self, name, **kwargs):
        part = Postgres(self, name, **kwargs)
        self.parts.append(part)
        return part

    def pgbouncer(self, name, databases, **kwargs):
        part = PgBouncer(self, name, databases, **kwargs)
        self.parts.append(part)
        return part

    def collector(self, repository, passwords, **kwargs):
        part = Collector(self, repository, passwords, **kwargs)
        self.parts.append(part)
        return part

    def close(self):
        for part in reversed(self.parts):
            with contextlib.suppress(Exception):
                part.stop("immediate")
        # A server that a module started is known by its data directory only.
        for pidfile in self.path.glob("**/postmaster.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pidfile.read_text().split()[0]), signal.SIGQUIT)
        shutil.rmtree(self.path, ignore_errors=True)


class Postgres:
    """One instance: configuration in NAME/config, data in NAME/data, log in NAME/log. Superuser postgres, SCRAM by TCP."""

    def __init__(self, lab, name, settings=None, checksums=True, system=HOST, environment=None):
        self.lab, self.name, self.system = lab, name, system
        self.environment = environment
        self.port = free_port()
        # Where other nodes and poolers reach it; a test may put something in between.
        self.address = "127.0.0.1"
        self.base = lab.path / name
        self.data = self.base / "data"
        self.config = self.base / "config"
        self.config_file = self.config / "postgresql.conf"
        self.log = self.base / "log"
        self.passfile = self.base / "passfile"
        self.checksums = checksums
        for directory in (self.base, self.config):
            self._own(directory, mkdir=True)
        self.write_config(settings or {})
        self.write(self.passfile, "*:*:*:*:%s\n" % re.sub(r"([\\:])", r"\\\1", SUPERUSER_PASSWORD), 0o600)

    def _own(self, path, mkdir=False, mode=0o700):
        if mkdir:
            path.mkdir(mode=mode, exist_ok=True)
        shutil.chown(path, "postgres", "postgres")

    def write(self, path, text, mode=0o600):
        path.write_text(text)
        path.chmod(mode)
        self._own(path)

    def write_config(self, settings):
        values = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "hba_file": self.config / "pg_hba.conf",
            "ident_file": self.config / "pg_ident.conf", "data_directory": self.data, "wal_level": "replica", "hot_standby": "on",
            "max_wal_senders": 10, "max_replication_slots": 10, "wal_keep_size": "128MB", "fsync": "off", "shared_buffers": "16MB",
            "max_connections": 60, "cluster_name": self.name, "password_encryption": "scram-sha-256", "wal_receiver_status_interval": "1s",
            "min_wal_size": "64MB", "max_wal_size": "1GB", "logging_collector": "off", "log_line_prefix": "%m [%p] ", **settings,
        }  # fmt: skip
        self.write(self.config_file, "".join("%s = '%s'\n" % item for item in values.items()))
        self.write(self.config / "pg_hba.conf", "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n")
        self.write(self.config / "pg_ident.conf", "")

    def _run(self, program, *arguments, **kwargs):
        return self.system.run([self.system.bin / program, *arguments], **kwargs)

    def init(self, *more):
        """``more`` are further options of initdb."""
        secret = self.base / "secret"
        self.write(secret, SUPERUSER_PASSWORD + "\n")
        options = ["-k"] if self.checksums else []
        self._run("initdb", "-D", self.data, "-A", "scram-sha-256", "-U", "postgres", "--pwfile", secret, "-N", "--locale=C.UTF-8", *options, *more)
        secret.unlink()
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (self.data / name).unlink()
        return self

    def start(self, *settings, check=True):
        """``settings`` (name=value) go onto the command line."""
        options = " ".join("-c %s" % one for one in ("config_file='%s'" % self.config_file, *settings))
        environment = {**os.environ, **(self.environment or {})}
        self._run("pg_ctl", "-D", self.data, "-l", self.log, "-o", options, "-w", "-t", "60", "-s", "start", check=check, env=environment)
        return self

    def stop(self, mode="fast"):
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", "60", "-s", "stop", check=False)

    def clone(self, source, slot=True):
        """Make this instance a running standby of source, by hand."""
        if slot:
            source.sql("SELECT pg_create_physical_replication_slot(%s, true)", [self.name])
        environment = {**os.environ, "PGPASSWORD": SUPERUSER_PASSWORD}
        self._run("pg_basebackup", "-D", self.data, "-h", "127.0.0.1", "-p", source.port, "-U", "postgres", "-c", "fast", "-X", "stream", "-N", env=environment)
        self.follow(source, slot)
        return self.start()

    def follow(self, source, slot=True):
        conninfo = "host=%s port=%s user=postgres application_name=%s passfile=%s" % (source.address, source.port, self.name, self.passfile)
        lines = "primary_conninfo = '%s'\n" % conninfo + ("primary_slot_name = '%s'\n" % self.name if slot else "")
        self.write(self.data / "postgresql.auto.conf", lines)
        self.write(self.data / "standby.signal", "")

    def connect(self, dbname="postgres", **kwargs):
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=SUPERUSER_PASSWORD, dbname=dbname, autocommit=True, connect_timeout=5, **kwargs
        )

    def sql(self, query, parameters=None, dbname="postgres"):
        """Run a query and return its rows as tuples."""
        with self.connect(dbname) as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def value(self, query, parameters=None, dbname="postgres"):
        rows = self.sql(query, parameters, dbname)
        return rows[0][0] if rows else None

    @property
    def pid(self):
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            return pid if lives(pid) else None
        except (OSError, ValueError, IndexError):
            return None

    @property
    def in_recovery(self):
        return self.value("SELECT pg_is_in_recovery()")

    def wait_for_standbys(self, count, timeout=20):
        wait_until(lambda: self.value("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") >= count, timeout)

    @property
    def login(self):
        """The connection options of a module for this instance."""
        return {"login_host": "127.0.0.1", "login_port": self.port, "login_user": "postgres", "login_password": SUPERUSER_PASSWORD}


class PgBouncer:
    """One pooler: NAME/pgbouncer.ini and beside it databases.ini with the [databases] section."""

    def __init__(self, lab, name, databases, pool_mode="transaction", settings=None, system=HOST):
        self.lab, self.name, self.system = lab, name, system
        self.port = free_port()
        self.base = lab.path / name
        self.base.mkdir(mode=0o700)
        self.ini = self.base / "pgbouncer.ini"
        self.databases_file = self.base / "databases.ini"
        self.users_file = self.base / "userlist.txt"
        self.log = self.base / "log"
        values = {
            "listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": "", "auth_type": "scram-sha-256", "auth_file": self.users_file,
            "pool_mode": pool_mode, "max_client_conn": 500, "default_pool_size": 20, "logfile": self.log, "pidfile": self.base / "pid",
            "admin_users": "pooler_admin", "server_login_retry": "0.1", "ignore_startup_parameters": "extra_float_digits", **(settings or {}),
        }  # fmt: skip
        self._write(self.databases_file, "; the databases of %s\n[databases]\n" % name + "".join("%s = %s\n" % item for item in databases.items()))
        self._write(self.ini, "%%include %s\n[pgbouncer]\n" % self.databases_file + "".join("%s = %s\n" % item for item in values.items()))
        self.write_users(SUPERUSER_PASSWORD)
        shutil.chown(self.base, "postgres", "postgres")

    def write_users(self, password, **others):
        """``password``: plain, or as PostgreSQL stores it; also of further users, by name."""
        users = {"postgres": password, "pooler_admin": password, **others}
        self._write(self.users_file, "".join('"%s" "%s"\n' % (name, text.replace('"', '""')) for name, text in users.items()))

    @staticmethod
    def _write(path, text):
        # PgBouncer takes a users' file of the same second, size and inode for the one that it has read.
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        shutil.chown(new, "postgres", "postgres")
        new.replace(path)

    def start(self):
        self.system.run(["/usr/sbin/pgbouncer", "-d", "-q", self.ini])
        wait_until(self._answers, 10)
        return self

    def _answers(self):
        with contextlib.suppress(psycopg.Error), self.console():
            return True
        return False

    def console(self):
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="pooler_admin", password=SUPERUSER_PASSWORD, dbname="pgbouncer", autocommit=True,
            connect_timeout=5, cursor_factory=psycopg.ClientCursor,
        )  # fmt: skip

    def show(self, what):
        """Rows of SHOW what, as dictionaries."""
        with self.console() as console:
            cursor = console.execute("SHOW " + what)
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row)) for row in cursor.fetchall()]

    def connect(self, dbname, **kwargs):
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=SUPERUSER_PASSWORD, dbname=dbname, autocommit=True,
            connect_timeout=5, prepare_threshold=None, **kwargs,
        )  # fmt: skip

    @property
    def pid(self):
        try:
            pid = int((self.base / "pid").read_text())
            return pid if lives(pid) else None
        except (OSError, ValueError):
            return None

    def stop(self, _mode=None):
        pid = self.pid
        if pid:
            os.kill(pid, signal.SIGQUIT)
            wait_until(lambda: not lives(pid), 30)
            # It stays behind after SIGQUIT; a new process would take one that nobody has waited for yet for another instance.
            (self.base / "pid").unlink(missing_ok=True)

    @property
    def login(self):
        return {"login_host": "127.0.0.1", "login_port": self.port, "login_user": "pooler_admin", "login_password": SUPERUSER_PASSWORD}


class Collector:
    """A powa-collector of the test's own with configuration and passfile in NAME, as user postgres. ``passwords`` has those of logins by name."""

    def __init__(self, lab, repository, passwords, user="collector", dbname="powa", name="powa_collector", system=None, **config):
        self.system = system or repository.system
        self.base = lab.path / name
        self.base.mkdir(mode=0o755)
        self.log = self.base / "log"
        self.passfile = self.base / "passfile"
        # A copy, as neither user postgres nor another root may see the checkout.
        self.launcher = pathlib.Path(shutil.copy(LAUNCHER, self.base))
        self.config = self.base / "powa-collector.conf"
        dsn = "host=127.0.0.1 port=%d user=%s dbname=%s" % (repository.port, user, dbname)
        self.config.write_text(json.dumps({"repository": {"dsn": dsn}, "debug": False, **config}))
        self.passfile.write_text("".join("*:*:*:%s:%s\n" % item for item in passwords.items()))
        self.passfile.chmod(0o600)
        shutil.chown(self.passfile, "postgres", "postgres")
        self.process = None

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.system.argv(["/usr/bin/python3", self.launcher, self.config], "postgres"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PGPASSFILE": str(self.passfile)},
            )  # fmt: skip
        return self

    def stop(self, _mode=None):
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
            self.process.kill()
            self.process.wait()
            self.process = None


def lives(pid):
    """Whether a process runs; one that has ended and waits for its parent to ask does not."""
    try:
        return pathlib.Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, timeout, interval=0.1):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "not so within %s s" % timeout
        time.sleep(interval)


def collections_path():
    """A collections directory in which this checkout is pgfleet.ops."""
    if os.environ.get("PGFLEET_COLLECTIONS"):
        return pathlib.Path(os.environ["PGFLEET_COLLECTIONS"])
    path = REPOSITORY / ".build" / "dev"
    link = path / "ansible_collections" / "pgfleet" / "ops"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(REPOSITORY)
    return path


def ansible_environment(**variables):
    return {
        **os.environ,
        "PATH": "%s:%s" % (pathlib.Path(sys.executable).parent, os.environ["PATH"]),
        "ANSIBLE_COLLECTIONS_PATH": "%s:%s" % (collections_path(), REPOSITORY / ".build" / "collections"),
        "ANSIBLE_PIPELINING": "1", "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0", "ANSIBLE_BECOME_METHOD": "su", **variables,
    }  # fmt: skip


@functools.lru_cache
def module_library():
    """What Ansible sends to a host, the modules and what they import, in a directory that every user can read."""
    import ansible.module_utils

    path = pathlib.Path(tempfile.mkdtemp(prefix="pgfleet-test-modules-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    path.chmod(0o755)
    plugins = path / "ansible_collections" / "pgfleet" / "ops" / "plugins"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(pathlib.Path(ansible.module_utils.__file__).parent, path / "ansible" / "module_utils", ignore=ignore)
    for part in ("modules", "module_utils"):
        shutil.copytree(REPOSITORY / "plugins" / part, plugins / part, ignore=ignore)
    (path / "ansible" / "__init__.py").touch()
    # Some thousand calls would compile it all each time.
    run(["/usr/bin/python3", "-m", "compileall", "-q", path])
    return path


def call_module(name, options, check=False, diff=False, user="postgres", environment=None, ansible=False):
    """Run a module on this machine and return its result (a dictionary with ``failed`` always set).

    With ``ansible``, or an ``environment`` for it, through the ad hoc command; else what that sends to a host is run without it, which is much faster.
    """
    if ansible or environment:
        return _call_through_ansible(name, options, check, diff, user, environment)
    arguments = {**json.loads(json.dumps(options, default=str)), "_ansible_check_mode": check, "_ansible_diff": diff}
    argv = ["/usr/bin/env", "PYTHONPATH=%s" % module_library(), "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3", "-m",
            "ansible_collections.pgfleet.ops.plugins.modules.%s" % name]  # fmt: skip
    done = subprocess.run(
        HOST.argv(argv, user or "root"), input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True, timeout=180,
        check=False, cwd="/",
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, "no result in:\n%s\n%s" % (done.stdout, done.stderr)
    result = {"failed": False, **json.loads(lines[0])}
    result.pop("invocation", None)
    result["printed"] = " ".join(warning["event"]["msg"] for warning in result.pop("warnings", ()))
    return result


def _call_through_ansible(name, options, check, diff, user, environment):
    program = pathlib.Path(sys.executable).parent / "ansible"
    argv = [program, "localhost", "-i", "localhost,", "-c", "local", "-m", "pgfleet.ops." + name, "-a", json.dumps(options, default=str)]
    if user:
        argv += ["--become", "--become-user", user]
    # Only at -vvv does the ad hoc command print the diff within the result.
    argv += ["--check"] * check + ["--diff", "-vvv"] * diff
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False, cwd=REPOSITORY,
        env=ansible_environment(**(environment or {})),
    )  # fmt: skip
    found = re.search(r"^localhost \| (SUCCESS|CHANGED|FAILED!)(?: \| rc=\S+)? => (\{.*\})\s*\Z", done.stdout, re.S | re.M)
    assert found, "no result in:\n%s\n%s" % (done.stdout, done.stderr)
    result = json.loads(found.group(2))
    result["failed"] = found.group(1) == "FAILED!"
    # Ansible takes warnings out of the result and prints them, broken into lines.
    result["printed"] = " ".join(done.stderr.split())
    return result


SENT_BY_ANSIBLE = set()


def four_steps(name, options, user="postgres", expect_change=True, diff=True):
    """Check, run, check again, run again: the contract of every changing module. Returns the result of the real run.

    The first real run of a module goes through Ansible. How that packs and sends a module depends on nothing that tests vary, and it takes most of their time.
    """
    check = call_module(name, options, check=True, diff=diff, user=user)
    assert not check["failed"], check
    assert check["changed"] is expect_change, check
    real = call_module(name, options, diff=diff, user=user, ansible=name not in SENT_BY_ANSIBLE)
    SENT_BY_ANSIBLE.add(name)
    assert not real["failed"], real
    assert real["changed"] is expect_change, real
    assert real["plan"] == check["plan"] == real["performed"], (check["plan"], real["plan"], real["performed"])
    assert check["performed"] == []
    assert real.get("diff") == check.get("diff")
    for again in (True, False):
        second = call_module(name, options, check=again, user=user)
        assert not second["failed"] and second["changed"] is False and second["plan"] == [], second
    return real
