# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operation lock in playbooks: the majority of a cluster's hosts, hosts that do not answer, two runs at once, runs that end badly."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest
from lab import REPOSITORY, SUPERUSER_PASSWORD, ansible_environment, call_module, wait_until
from switchover_site import Site

TASKS = REPOSITORY / "playbooks" / "tasks"
# An operation that lasts until a file is there, and says in another that it has begun.
OPERATION = """
- hosts: all
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - block:
        - ansible.builtin.include_tasks: {tasks}/lock.yml
          vars: {{lock_operation: "test of {{{{ name }}}}"}}
        - ansible.builtin.shell: echo {{{{ name }}}} >> {base}/begun
          run_once: true
        - ansible.builtin.wait_for: {{path: "{base}/{{{{ until }}}}", timeout: 120}}
          when: until is defined and inventory_hostname in ansible_play_hosts[-1:]
        - ansible.builtin.include_tasks: {tasks}/lock.yml
          vars: {{lock_operation: "test of {{{{ name }}}}", lock_renew: true}}
          when: renew | default(true)
        - ansible.builtin.fail: {{msg: broken on purpose}}
          when: inventory_hostname in (broken | default([]))
        - ansible.builtin.fail: {{msg: broken on purpose}}
          run_once: true
          when: broken | default([]) == ['once']
      always:
        - ansible.builtin.include_tasks: {tasks}/unlock.yml
"""
# An operation that goes on without hosts that do not answer, as a failover does.
SIMPLE = """
- hosts: all
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - block:
        - ansible.builtin.include_tasks: {tasks}/lock.yml
          vars: {{lock_operation: simple}}
        - ansible.builtin.debug: {{msg: works alone}}
      always:
        - ansible.builtin.include_tasks: {tasks}/unlock.yml
"""


class Runs:
    """Playbooks over clusters whose hosts are this machine, or a port of it on which nobody listens."""

    def __init__(self, base):
        self.base = base
        base.mkdir()
        self.locks = base / "locks"
        self.begun = base / "begun"
        self.playbook = base / "operation.yml"
        self.playbook.write_text(OPERATION.format(tasks=TASKS, base=base))
        self.simple = base / "simple.yml"
        self.simple.write_text(SIMPLE.format(tasks=TASKS))
        self.processes = []

    def inventory(self, clusters, gone=()):
        down = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
        common = {"ansible_connection": "local", "pgfleet_roles": [], "pgfleet_lock_directory": str(self.locks)}
        children = {
            cluster: {"vars": {**common, "pgfleet_cluster": cluster}, "hosts": {host: down if host in gone else {} for host in hosts}}
            for cluster, hosts in clusters.items()
        }
        path = self.base / ("inventory-%d.json" % len(list(self.base.glob("inventory-*"))))
        path.write_text(json.dumps({"all": {"children": children}}))
        return path

    def start(self, inventory, playbook=None, *arguments, **variables):
        argv = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", inventory, playbook or self.playbook, "-e", json.dumps(variables), *arguments]
        process = subprocess.Popen(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
            env=ansible_environment(),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def end(self, process, fails=False):
        output = process.communicate(timeout=300)[0]
        assert bool(process.returncode) is fails, output
        return output

    def run(self, inventory, *arguments, playbook=None, fails=False, **variables):
        return self.end(self.start(inventory, playbook, *arguments, **variables), fails)

    def held(self):
        """The holders' operations by the lock file."""
        return {path.name: json.loads(path.read_text())["operation"] for path in self.locks.glob("*.json")}

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def runs(own_lab):
    made = Runs(own_lab.path / "runs")
    yield made
    made.close()


SHOP = {"shop": ["db1", "db2", "pooler1"]}


def test_a_second_run_is_refused_and_told_who_works(runs):
    inventory = runs.inventory(SHOP)
    first = runs.start(inventory, name="first", until="go")
    wait_until(runs.begun.exists, 60)
    assert runs.held() == {"shop@%s.json" % host: "test of first" for host in SHOP["shop"]}
    output = runs.run(inventory, name="second", fails=True)
    for words in ("0 of 3 hosts have given it, 2 are needed", 'for "test of first" since 20', "pgfleet.ops.release_lock -e cluster=shop -e holder="):
        assert words in output, output
    # Check mode says it and goes on.
    output = runs.run(inventory, "--check", name="third", until="never")
    assert "a real run may be refused now" in output and 'for \\"test of first\\"' in output
    assert runs.held() == {"shop@%s.json" % host: "test of first" for host in SHOP["shop"]}
    (runs.base / "go").touch()
    runs.end(first)
    assert runs.begun.read_text() == "first\n" and runs.held() == {}
    runs.run(inventory, name="fourth")


def test_of_runs_that_start_at_once_one_works(runs):
    """Also none could be, were votes split; everybody begins with the same member, so it is one."""
    inventory = runs.inventory({"shop": ["db1", "db2", "db3", "pooler1"]})
    started = [runs.start(inventory, name="run%d" % number, until="go") for number in range(4)]
    wait_until(lambda: sum(process.poll() is not None for process in started) == 3, 240)
    (runs.base / "go").touch()
    assert sorted(bool(runs.end(process, fails=process.poll() is not None and process.returncode != 0)) for process in started) == [True] * 4
    assert sorted(process.returncode for process in started) == [0, 2, 2, 2]
    assert len(runs.begun.read_text().split()) == 1 and runs.held() == {}


def test_a_run_that_waits_goes_on_afterwards(runs):
    inventory = runs.inventory(SHOP)
    first = runs.start(inventory, name="first", until="go")
    wait_until(runs.begun.exists, 60)
    second = runs.start(inventory, name="second", lock_wait=120)
    for line in second.stdout:
        if line.startswith("TASK [Take the lock on the first member"):
            break
    assert second.poll() is None and runs.begun.read_text() == "first\n"
    (runs.base / "go").touch()
    runs.end(first)
    runs.end(second)
    assert runs.begun.read_text() == "first\nsecond\n"


def test_one_member_that_does_not_answer_is_no_hindrance(runs):
    """The first member of all, which contenders begin with, and the play would end with an unreachable host."""
    output = runs.run(runs.inventory(SHOP, gone=["db1"]), playbook=runs.simple)
    assert "works alone" in output and runs.held() == {}


@pytest.mark.parametrize(
    ("hosts", "gone"), [(3, 2), (4, 2), (2, 1), (1, 1)], ids=["two of three", "two of four", "one of two", "the only one"]
)
def test_without_the_majority_nothing_is_done(runs, hosts, gone):
    names = ["db%d" % number for number in range(hosts)]
    output = runs.run(runs.inventory({"shop": names}, gone=names[:gone]), playbook=runs.simple, fails=True)
    assert "works alone" not in output and runs.held() == {}
    assert "%d of %d hosts have given it, %d are needed" % (hosts - gone, hosts, hosts // 2 + 1) in output, output
    assert "db0: " in output and "Connection refused" in output
    assert ("A cluster of two hosts needs a third one in the group shop" in output) is (hosts == 2)


def test_a_limit_does_not_make_a_majority(runs):
    output = runs.run(runs.inventory(SHOP), "--limit", "db2", playbook=runs.simple, fails=True)
    assert "1 of 3 hosts have given it" in output and "db1 did not answer or is not in this run" in output and runs.held() == {}


@pytest.mark.long
def test_a_minority_held_by_another_does_not_matter_and_stays(runs):
    """For example what was left on a host that could not be reached when its lock was given back."""
    inventory = runs.inventory(SHOP)
    runs.run(inventory, name="first")
    left = {"cluster": "shop", "member": "pooler1", "holder": "old", "operation": "left behind", "directory": runs.locks}
    assert call_module("pg_operation_lock", left, user=None)["changed"]
    assert "works alone" in runs.run(inventory, playbook=runs.simple)
    assert runs.held() == {"shop@pooler1.json": "left behind"}


@pytest.mark.parametrize("broken", [["db2"], ["db1", "db2", "pooler1"], ["once"]], ids=["one host", "all hosts", "a task with run_once"])
def test_a_run_that_fails_gives_it_back(runs, broken):
    inventory = runs.inventory(SHOP)
    output = runs.run(inventory, name="first", broken=broken, fails=True)
    assert "broken on purpose" in output and runs.held() == {}
    runs.run(inventory, name="second")


def test_each_cluster_has_its_own_and_one_that_is_busy_stops_all(runs):
    clusters = {**SHOP, "store": ["db5", "db6", "pooler5"]}
    first = runs.start(runs.inventory(SHOP), name="first", until="go")
    wait_until(runs.begun.exists, 60)
    # Another cluster of the same hosts is nobody's business.
    runs.run(runs.inventory({"store": clusters["store"]}), name="second")
    output = runs.run(runs.inventory(clusters), name="third", fails=True)
    assert "The operation lock of cluster shop is not ours" in output and "of cluster store is not ours" not in output
    assert set(runs.held().values()) == {"test of first"}
    (runs.base / "go").touch()
    runs.end(first)
    assert runs.held() == {}
    runs.run(runs.inventory(clusters), name="fourth")


@pytest.mark.parametrize(
    ("renew", "words"),
    [
        (True, "The operation lock of cluster shop is not ours: 1 of 3"),
        (False, "The operation lock ended before the operation did, and somebody else has taken it"),
    ],
    ids=["by the next phase", "in the end"],
)
def test_a_lock_that_was_lost_is_found_out(runs, renew, words):
    """Its time was over, and somebody else has begun: neither the next phase nor the end passes over that."""
    inventory = runs.inventory(SHOP)
    first = runs.start(inventory, name="first", until="go", renew=renew)
    wait_until(runs.begun.exists, 60)
    for member in SHOP["shop"][:2]:
        options = {"cluster": "shop", "member": member, "directory": runs.locks}
        assert call_module("pg_operation_lock", {**options, "state": "released", "force": True}, user=None)["changed"]
        assert call_module("pg_operation_lock", {**options, "holder": "other", "operation": "other work"}, user=None)["changed"]
    (runs.base / "go").touch()
    output = runs.end(first, fails=True)
    assert words in output and "other work" in output
    assert set(runs.held().values()) == {"other work"}


def test_the_lock_of_a_killed_run_is_released_by_name(runs):
    inventory = runs.inventory(SHOP)
    first = runs.start(inventory, name="first", until="never")
    wait_until(runs.begun.exists, 60)
    first.kill()
    first.communicate()
    assert len(runs.held()) == 3
    output = runs.run(inventory, playbook="pgfleet.ops.release_lock", cluster="shop", fails=True)
    holder = re.search(r"(\w+) on db1, of [^ ]+ for", output.replace("\\", ""))
    assert holder, output
    runs.run(inventory, playbook="pgfleet.ops.release_lock", cluster="shop", holder="somebody else")
    runs.run(inventory, "--check", playbook="pgfleet.ops.release_lock", cluster="shop", holder=holder.group(1))
    assert len(runs.held()) == 3
    runs.run(inventory, playbook="pgfleet.ops.release_lock", cluster="shop", holder=holder.group(1))
    assert runs.held() == {}
    output = runs.run(inventory, playbook="pgfleet.ops.release_lock", cluster="shop", fails=True)
    assert "nobody holds it" in output


@pytest.mark.long
def test_a_deployment_works_alone_on_each_cluster(runs):
    """Its hosts have nothing to do here, so that only the lock is there to stop it."""
    inventory = runs.inventory({**SHOP, "store": ["db5"]})
    other = {"cluster": "shop", "holder": "other", "operation": "clone of db2", "owner": "ops@elsewhere", "directory": runs.locks}
    for member in SHOP["shop"]:
        assert call_module("pg_operation_lock", {**other, "member": member}, user=None)["changed"]
    output = runs.run(inventory, playbook="pgfleet.ops.deploy_site", fails=True)
    assert 'held by ops@elsewhere for \\"clone of db2\\"' in output and "Install PostgreSQL" not in output
    assert set(runs.held().values()) == {"clone of db2"}
    for member in SHOP["shop"]:
        assert call_module("pg_operation_lock", {**other, "member": member, "state": "released"}, user=None)["changed"]
    output = runs.run(inventory, playbook="pgfleet.ops.deploy_site")
    assert "Install PostgreSQL" in output and runs.held() == {}


@pytest.fixture(scope="module")
def cluster(lab):
    return Site(lab, nodes=2, poolers=1)


def test_a_switchover_works_alone(cluster, lab):
    runs = Runs(lab.path / "switchover")
    hosts = {
        node.name: {
            "pgfleet_roles": ["postgresql_node"], "postgresql_node_port": node.port, "postgresql_node_data_directory": str(node.data),
            "postgresql_node_config_directory": str(node.config), "postgresql_node_log_file": str(node.log), "postgresql_node_method": "pg_ctl",
            "postgresql_node_address": "127.0.0.1", "postgresql_node_superuser_password": SUPERUSER_PASSWORD,
            "postgresql_node_replication_user": "postgres", "postgresql_node_replication_password": SUPERUSER_PASSWORD,
            "postgresql_node_passfile": str(node.passfile),
        } for node in cluster.nodes
    } | {
        pooler.name: {
            "pgfleet_roles": ["pgbouncer"], "pgbouncer_port": pooler.port, "pgbouncer_address": "127.0.0.1", "pgbouncer_owner": "postgres",
            "pgbouncer_admin_user": "pooler_admin", "pgbouncer_admin_password": SUPERUSER_PASSWORD, "pgbouncer_method": "process",
            "pgbouncer_databases_file": str(pooler.databases_file), "pgbouncer_directory": str(pooler.base),
        } for pooler in cluster.poolers
    }  # fmt: skip
    common = {"ansible_connection": "local", "pgfleet_cluster": "shop", "pgfleet_lock_directory": str(runs.locks)}
    inventory = runs.base / "inventory.json"
    inventory.write_text(json.dumps({"all": {"children": {"shop": {"vars": common, "hosts": hosts}}}}))
    switch = {"playbook": "pgfleet.ops.switch_over", "cluster": "shop"}
    try:
        assert cluster.primary.name == "db1"
        busy = {"cluster": "shop", "holder": "other", "operation": "clone of db2", "owner": "ops@elsewhere", "directory": runs.locks}
        for member in hosts:
            assert call_module("pg_operation_lock", {**busy, "member": member}, user=None)["changed"]
        before = cluster.fingerprint()
        output = runs.run(inventory, candidate="db2", fails=True, **switch)
        assert 'held by ops@elsewhere for "clone of db2"' in output and cluster.fingerprint() == before
        output = runs.run(inventory, "--check", candidate="db2", **switch)
        assert "a real run may be refused now" in output and cluster.fingerprint() == before
        for member in hosts:
            assert call_module("pg_operation_lock", {**busy, "member": member, "state": "released"}, user=None)["changed"]
        runs.run(inventory, candidate="db2", **switch)
        assert cluster.primary.name == "db2" and runs.held() == {}
        # Refused by the module, on one host of the play.
        output = runs.run(inventory, candidate="nobody", fails=True, **switch)
        assert "is not a node of this cluster" in output and runs.held() == {}
        assert cluster.primary.name == "db2"
    finally:
        runs.close()
