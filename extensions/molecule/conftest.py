# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's hosts for testinfra, reached as Ansible reaches them, and what the scenarios' checks have in common."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import psycopg
import pytest
import testinfra
from ansible.inventory.helpers import get_group_vars
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader

LAB = pathlib.Path(os.environ["LAB_DIRECTORY"])
# The site that the checks are about. What is there besides is not, so its hosts need not be deployed; a scenario that needs all says so.
SITE = os.environ.get("LAB_SITE", "bookworm")
INVENTORY = pathlib.Path(__file__).parent / "inventory" / ("hosts.yml" if SITE == "bookworm" else "")
SSH = ("ssh", "-F", str(LAB / "ssh_config"))
inventory = InventoryManager(DataLoader(), [str(INVENTORY)])


def pytest_configure(config):
    config.addinivalue_line("markers", "long: left out by make molecule-ci, as it takes minutes")


def variables(name):
    """What the inventory says of a host, as it is written there."""
    host = inventory.get_host(name)
    return {**get_group_vars(host.get_groups()), **host.vars}


def address(name):
    return variables(name)["ansible_host"]


def version(name):
    """PostgreSQL's, which is that of the host's Debian."""
    return {"bookworm": "15", "trixie": "17"}[variables(name).get("lab_suite", "bookworm")]


def data_directory(name):
    return "/var/lib/postgresql/%s/%s" % (version(name), name)


def unit(name):
    return "postgresql@%s-%s" % (version(name), name)


# The first node is the primary.
NODES, POOLERS, (MONITOR,) = (tuple(host.name for host in inventory.get_hosts(kind + ":&" + SITE)) for kind in ("nodes", "poolers", "monitors"))
CLUSTER = variables(NODES[0])["pgfleet_cluster"]
# What somebody sees who logs in to powa-web, which listens on its own host only, and looks at the list of servers.
POWA_WEB = """
import http.client, sys, urllib.parse
web = http.client.HTTPConnection("127.0.0.1", 8888)
login = {"username": "powa", "user": "powa", "password": sys.stdin.read(), "server": "main"}
web.request("POST", "/login/", urllib.parse.urlencode(login), {"Content-Type": "application/x-www-form-urlencoded"})
answer = web.getresponse()
answer.read()
cookies = "; ".join(cookie.split(";")[0] for cookie in answer.headers.get_all("Set-Cookie") or [])
web.request("GET", "/config/powa_servers/", headers={"Cookie": cookies})
print(web.getresponse().read().decode())
"""


def secret(name):
    return (LAB / "secrets" / name).read_text(encoding="utf-8").split()[0]


def connect(name, port=5432, user="postgres", dbname="postgres", **more):
    """A connection from the controller to a host of the lab."""
    password = secret("superuser" if user == "postgres" else user)
    return psycopg.connect(
        host=address(name), port=port, user=user, password=password, dbname=dbname, autocommit=True, connect_timeout=10, prepare_threshold=None, **more
    )


def ask(name, query, **connection):
    """The rows of a query, on a connection of its own."""
    with connect(name, **connection) as session:
        return session.execute(query).fetchall()


def wait_for(condition, what, timeout=120):
    """Return the first true value of `condition()`; what it raises on the way counts as not yet."""
    end = time.monotonic() + timeout
    while True:
        try:
            found = condition()
        # The last one is testinfra's where ssh does not get there.
        except (psycopg.Error, AssertionError, RuntimeError) as error:
            found, what_failed = None, error
        else:
            what_failed = found
        if found:
            return found
        if time.monotonic() > end:
            pytest.fail("%s: not within %d s; last: %s" % (what, timeout, what_failed))
        time.sleep(0.5)


def primaries():
    """The nodes that accept writes, of those that answer."""
    found = []
    for node in NODES:
        try:
            if not ask(node, "SELECT pg_is_in_recovery()")[0][0]:
                found.append(node)
        except psycopg.OperationalError:
            continue
    return found


def streams_from(primary, others, exactly=True):
    """Whether each of `others`, and nobody else unless not `exactly`, streams from the primary; it is known there by its name."""
    streaming = {row[0] for row in ask(primary, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")}
    return streaming == set(others) if exactly else streaming >= set(others)


def cluster_is_whole(primary=None):
    """One primary, that of the name if one is given, from which all others stream; returns its name."""
    found = primaries()
    if len(found) != 1 or primary not in (None, *found):
        return None
    return found[0] if streams_from(found[0], [node for node in NODES if node != found[0]]) else None


def power_off(name):
    subprocess.run(["podman", "kill", "--signal", "KILL", name], check=True, stdout=subprocess.DEVNULL)


def power_on(name):
    subprocess.run(["podman", "start", name], check=True, stdout=subprocess.DEVNULL)


CONTROLLER = "controller"
# The lab's own end of its network, where this runs.
CONTROLLER_ADDRESS = "10.77.0.1"


def in_network_of(name, *argv):
    """Run a program of the controller's in the network of a host."""
    pid = subprocess.run(["podman", "inspect", "--format", "{{.State.Pid}}", name], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["nsenter", "--target", pid, "--net", *argv], check=True)


def cut(name, others):
    """From now on nothing goes through between a host and others, nor is anything refused: as with a link that is cut."""
    for other in others:
        far = CONTROLLER_ADDRESS if other == CONTROLLER else address(other)
        in_network_of(name, "iptables", "--wait", "--insert", "INPUT", "--source", far, "--jump", "DROP")
        in_network_of(name, "iptables", "--wait", "--insert", "OUTPUT", "--destination", far, "--jump", "DROP")


def runs(name):
    return subprocess.run(["podman", "inspect", "--format", "{{.State.Running}}", name], check=True, capture_output=True, text=True).stdout.strip() == "true"


def on(name, command, check=True):
    """A shell command on a host, as root, also where nothing reaches it over the network; returns what it prints."""
    return subprocess.run(["podman", "exec", name, "sh", "-c", command], check=check, capture_output=True, text=True, timeout=120).stdout


def in_recovery(name):
    """What a node says, asked on its own host: True for a standby, False for a primary, None where no server answers."""
    query = "PGCONNECT_TIMEOUT=5 psql -XAtqp 5432 -c 'SELECT pg_is_in_recovery()'"
    return {"t": True, "f": False}.get(on(name, "cd / && runuser -u postgres -- sh -c \"%s\"" % query, check=False).strip())


def writable():
    """The nodes that would take writes from whoever reaches them, whether we do or not."""
    return [name for name in NODES if runs(name) and in_recovery(name) is False]


def make_whole():
    """Heal every link, start every host, and bring the cluster back to where it was: db1 is the primary, both others stream."""
    for name in (*NODES, *POOLERS, MONITOR):
        if not runs(name):
            power_on(name)
        for chain in ("INPUT", "OUTPUT"):
            in_network_of(name, "iptables", "--wait", "--flush", chain)
        on(name, "systemctl is-active --quiet ssh || systemctl start ssh")
    # Sessions that the cut has left hanging find out by and by; what is over by itself is not mended.
    with contextlib.suppress(pytest.fail.Exception):
        wait_for(lambda: cluster_is_whole("db1") and led_to("db1"), "a cluster that is whole again by itself", 20)
        return
    if not cluster_is_whole():
        primary = wait_for(primaries, "a primary")[0]
        for name in NODES:
            if name != primary and not streams_from(primary, [name], exactly=False):
                must_play("clone_standby", cluster=CLUSTER, standby=name, reclone=True)
        wait_for(lambda: cluster_is_whole(primary), "the cluster, made whole")
    must_play("redirect_pgbouncer", cluster=CLUSTER)
    if cluster_is_whole() != "db1":
        must_play("switch_over", cluster=CLUSTER, candidate="db1")
    wait_for(lambda: cluster_is_whole("db1"), "the cluster with db1 as its primary")


def led_to(node):
    """Whether all poolers lead their clients to a node, and it takes what they write."""
    query = "SELECT host(inet_server_addr()), pg_is_in_recovery()"
    try:
        return all(ask(pooler, query, port=6432, user="app", dbname="app") == [(address(node), False)] for pooler in POOLERS)
    except psycopg.Error:
        return False


def shown_by_powa_web(name):
    """By alias of each server, whether it is shown there without error, and what its worker is said to do."""
    argv = [*SSH, name, "python3 -c " + shlex.quote(POWA_WEB)]
    done = subprocess.run(argv, input=secret("powa"), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("{"), done.stdout[-300:] + done.stderr[-300:]
    return {row["server_alias"]: (row["no_err"], row["collector_status"]) for row in json.loads(done.stdout)["data"]}


@functools.cache
def machine(name):
    """A host for testinfra, as the user whom Ansible uses, with sudo."""
    return testinfra.get_host("ssh://" + name, ssh_config=str(LAB / "ssh_config"), sudo=True)


def service(node):
    """What systemd says of the instance of a node."""
    found = machine(node).check_output("systemctl show --property ActiveState,SubState,Result,MainPID,NRestarts %s", unit(node))
    return dict(line.split("=") for line in found.splitlines())


def logged(name, words):
    """Where one of the words is: lines of the journal of a host, files of its log directory, processes with it in their arguments."""
    search = """
        umask 077; cat >/run/words; cd /
        journalctl --no-pager --output cat --boot all | grep -F -f /run/words
        grep -r -l -F -f /run/words /var/log
        grep -l -F -f /run/words /proc/[0-9]*/cmdline 2>/dev/null
        wc -l </run/words; rm /run/words
    """
    # Through a pipe: on a command line the words would be in the log of sudo.
    lines = "".join(word + "\n" for word in words)
    found = subprocess.run([*SSH, name, "sudo sh -c '%s'" % search], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words and found[-1:] == [str(len(words))]
    return found[:-1]


def secrets():
    """All passwords of the lab."""
    return [secret(path.name) for path in sorted((LAB / "secrets").iterdir()) if not path.name.startswith(".")]


def play(playbook, *options, inventory=INVENTORY, **variables):
    """Run a playbook of the collection, or the one at a path; returns its exit status and what it printed."""
    argv = ["ansible-playbook", "-i", str(inventory), playbook if "/" in playbook else "pgfleet.ops." + playbook, *options]
    for name, value in variables.items():
        argv += ["-e", json.dumps({name: value})]
    # Molecule asks for colours, and passes that on.
    plain = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    run = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False, env=plain)
    return run.returncode, run.stdout + run.stderr


def must_play(playbook, *options, **variables):
    status, printed = play(playbook, *options, **variables)
    assert status == 0, printed[-6000:]
    return printed


def must_refuse(reason, playbook, *options, **variables):
    """It fails for that reason, and has changed nothing."""
    status, printed = play(playbook, *options, **variables)
    assert status != 0 and reason in " ".join(printed.split()) and not any(changes(printed).values()), printed[-6000:]


def changes(printed):
    """By host, how many tasks of a run have changed something."""
    found = {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", printed, re.MULTILINE)}
    assert found, printed[-6000:]
    return found


class Load:
    """Clients on the controller that write through all poolers, as long as the block lasts; then `report` and `lost(primary)` tell what it cost."""

    def __init__(self, directory, clients=20):
        self.directory = pathlib.Path(directory)
        self.options = {
            "poolers": [[address(pooler), 6432] for pooler in POOLERS], "dbname": "app", "user": "app", "table": "public.lab", "clients": clients,
            "interval": 0.1, "duration": 1200, **{name: str(self.directory / name) for name in ("passfile", "ready", "stop", "report")},
        }  # fmt: skip
        self.process = None
        self.report = None

    def __enter__(self):
        with connect(primaries()[0], user="app", dbname="app") as session:
            session.execute("CREATE TABLE IF NOT EXISTS public.lab (run text, client int, sequence int, PRIMARY KEY (run, client, sequence))")
        passfile = self.directory / "passfile"
        passfile.touch(mode=0o600)
        passfile.write_text("*:*:*:app:%s\n" % secret("app"), encoding="utf-8")
        options = self.directory / "options"
        options.write_text(json.dumps(self.options), encoding="utf-8")
        program = pathlib.Path(__file__).parents[2] / "playbooks" / "files" / "load.py"
        self.process = subprocess.Popen([sys.executable, str(program), str(options)])
        wait_for(lambda: os.path.exists(self.options["ready"]), "a row of each client")
        return self

    def __exit__(self, *_exception):
        pathlib.Path(self.options["stop"]).touch()
        assert self.process.wait(120) == 0
        self.report = json.loads(pathlib.Path(self.options["report"]).read_text(encoding="utf-8"))

    def lost(self, primary):
        """How many rows that clients were told are committed the primary does not hold."""
        with connect(primary, user="app", dbname="app") as session:
            held = set(session.execute("SELECT client, sequence FROM public.lab WHERE run = %s", (self.report["run"],)).fetchall())
        told = {(int(client), sequence) for client, sequences in self.report["acknowledged"].items() for sequence in sequences}
        return len(told - held)
