# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redirect_pgbouncer: every pooler of a cluster led to the primary after a failover that nobody told them of."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys

import pytest
from lab import REPOSITORY, SUPERUSER_PASSWORD, ansible_environment, wait_until
from switchover_site import Site


class Redirection:
    def __init__(self, lab):
        self.site = Site(lab, nodes=3, poolers=3)
        self.base = lab.path / "controller"
        self.base.mkdir()
        # What ssh does when there is no way to a host.
        self.no_ssh = self.base / "ssh"
        self.no_ssh.write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 255\n")
        self.no_ssh.chmod(0o755)
        self.variables = {}

    def play(self, *arguments, fails=False, **variables):
        hosts = {
            node.name: {
                "pgfleet_roles": ["postgresql_node"], "postgresql_node_address": "127.0.0.1", "postgresql_node_port": node.port,
                "postgresql_node_priority": n, **self.variables.get(node.name, {}),
            } for n, node in enumerate(self.site.nodes)
        }  # fmt: skip
        hosts.update({
            pooler.name: {
                "pgfleet_roles": ["pgbouncer"], "pgbouncer_address": "127.0.0.1", "pgbouncer_port": pooler.port,
                "pgbouncer_databases_file": str(pooler.databases_file), **self.variables.get(pooler.name, {}),
            } for pooler in self.site.poolers
        })  # fmt: skip
        common = {
            "ansible_connection": "local", "pgfleet_cluster": "shop", "pgfleet_lock_directory": str(self.base / "locks"),
            "postgresql_node_superuser_password": SUPERUSER_PASSWORD, "pgbouncer_admin_user": "pooler_admin",
            "pgbouncer_admin_password": SUPERUSER_PASSWORD, "pgbouncer_verify_user": "postgres", "pgbouncer_verify_password": SUPERUSER_PASSWORD,
            **variables,
        }  # fmt: skip
        inventory = self.base / "inventory.json"
        inventory.write_text(json.dumps({"all": {"children": {"shop": {"hosts": hosts, "vars": common}}}}))
        argv = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", inventory, "pgfleet.ops.redirect_pgbouncer", "-e", "cluster=shop", *arguments]
        done = subprocess.run(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False, cwd=REPOSITORY,
            env=ansible_environment(),
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert bool(done.returncode) is fails, output
        assert SUPERUSER_PASSWORD not in output
        assert not list((self.base / "locks").glob("*.json")), "the lock was not given back"
        return output

    def unreachable(self, name):
        self.variables[name] = {"ansible_connection": "ssh", "ansible_ssh_executable": str(self.no_ssh)}

    def ports(self):
        return {pooler.name: {row["name"]: row["port"] for row in pooler.show("DATABASES") if row["name"] != "pgbouncer"} for pooler in self.site.poolers}

    def fail_over(self):
        """By hand, and without a word to the poolers."""
        old, new, other = self.site.nodes
        old.stop()
        new.sql("SELECT pg_promote(true)")
        other.follow(new, slot=False)
        other.stop()
        other.start()
        new.wait_for_standbys(1, 60)
        self.unreachable(old.name)
        return old, new, other


@pytest.fixture
def redirection(own_lab):
    return Redirection(own_lab)


def test_all_poolers_follow_a_failover(redirection):
    assert "it leads to db1, proved through app, app_ro" in redirection.play()
    _old, new, other = redirection.fail_over()
    before = redirection.ports()
    checked = redirection.play("--check", "--diff")
    assert redirection.ports() == before and "would be" in checked
    output = redirection.play()
    # db2, to which readers were led, is the primary now; they go to db3.
    assert list(redirection.ports().values()) == 3 * [{"app": new.port, "app_ro": other.port}]
    assert output.count("redirected  it leads") == 3 and output.count("it leads to db2, proved through app, app_ro") == 3
    again = redirection.play()
    assert again.count("right       it leads") == 3 and "changed=0" in again and "changed=1" not in again
    for pooler in redirection.site.poolers:
        with contextlib.closing(pooler.connect("app")) as client:
            client.execute("INSERT INTO public.load VALUES ('after', 1, %s)", [pooler.port])


def test_one_pooler_that_cannot_be_done_does_not_hold_up_the_others(redirection):
    first, second, third = redirection.site.poolers
    old, new, other = redirection.fail_over()
    # The host of one is down, another pooler is down, and a third's file cannot be worked on.
    redirection.unreachable(first.name)
    second.stop()
    output = redirection.play(fails=True)
    assert "its host does not answer" in output and "it does not answer; its file leads to db2" in output
    assert "unreachable=0" in output and output.count("failed=1") == 2
    assert {row["port"] for row in third.show("DATABASES") if row["name"] == "app"} == {new.port}
    assert {row["port"] for row in first.show("DATABASES") if row["name"] == "app"} == {old.port}
    second.start()
    assert redirection.ports()[second.name] == {"app": new.port, "app_ro": other.port}
    # To be told of it is enough, where that is wanted.
    output = redirection.play("-e", "unreachable=skip")
    assert "its host does not answer" in output and "failed=1" not in output
    redirection.play("-e", "unreachable=perhaps", fails=True)


def test_a_pooler_that_does_not_follow_serves_nobody(redirection):
    first, second, _third = redirection.site.poolers
    _old, new, _other = redirection.fail_over()
    text = first.databases_file.read_text()
    first.databases_file.write_text(text + "no entry\n")
    output = redirection.play(fails=True)
    assert "Clients of app are refused meanwhile" in output and "failed=1" in output
    assert [(row["name"], row["disabled"]) for row in first.show("DATABASES") if row["name"] == "app"] == [("app", 1)]
    assert redirection.ports()[second.name]["app"] == new.port
    first.databases_file.write_text(text)
    redirection.play()
    with contextlib.closing(first.connect("app")) as client:
        assert client.execute("SELECT inet_server_port()").fetchone() == (new.port,)


def test_two_primaries_change_nothing(redirection):
    old, _new, _other = redirection.fail_over()
    before = redirection.ports()
    old.start()
    output = redirection.play(fails=True)
    assert "2 nodes are a primary" in output and redirection.ports() == before
    old.stop()
    redirection.site.nodes[1].stop()
    output = redirection.play(fails=True)
    assert "no node that answers is a primary" in output and redirection.ports() == before


@pytest.mark.long
def test_the_entries_of_handyrep_are_made(redirection):
    db1, db2, db3 = redirection.site.nodes
    wanted = {"pgbouncer_database_list": ["app", "postgres"], "pgbouncer_all_replicas": True, "pgbouncer_extra_connect_param": "pool_size=7"}
    redirection.play(**wanted)
    for ports in redirection.ports().values():
        expected = {"app": db1.port, "app_ro1": db2.port, "app_ro2": db3.port, "postgres": db1.port, "postgres_ro1": db2.port, "postgres_ro2": db3.port}
        assert ports == {**expected, "app_ro": db2.port}
    assert "changed=1" not in redirection.play(**wanted)


METHOD = """
- name: Lead the pooler
  ansible.builtin.shell: |
    sed -i 's/^app = .*/app = host={{ options.primary.host }} port={{ options.primary.port }} dbname=app/' {{ target.config_file }}
    sed -i 's/^app_ro = .*/app_ro = host={{ options.standbys[0].host }} port={{ options.standbys[0].port }} dbname=app/' {{ target.config_file }}
    kill -HUP $(cat {{ target.config_file | dirname }}/pid)
  when: not ansible_check_mode and not idle | default(false)
  become: true
  vars:
    options: "{{ method_input.options }}"
    target: "{{ method_input.target }}"
- name: Say so
  ansible.builtin.set_fact:
    method_result: {changed: true, msg: "led {{ method_input.node }} to {{ method_input.options.primary.name }}"}
"""


@pytest.mark.long
def test_a_method_of_ones_own_is_proved(redirection):
    method = redirection.base / "lead.yml"
    method.write_text(METHOD)
    _old, new, other = redirection.fail_over()
    before = redirection.ports()
    lazy = redirection.play("-e", "connection_failover_method=lead.yml", "-e", "idle=true", fails=True)
    assert "says that it has led clients to the primary, and for this pooler it is not so" in lazy and redirection.ports() == before
    assert "would be" in redirection.play("--check", "-e", "connection_failover_method=lead.yml") and redirection.ports() == before
    assert redirection.play("-e", "connection_failover_method=lead.yml").count("redirected  it leads to db2, proved") == 3
    assert list(redirection.ports().values()) == 3 * [{"app": new.port, "app_ro": other.port}]
    unknown = redirection.play("-e", "connection_failover_method=multi_pgbouncer", fails=True)
    assert "connection_failover_method" in unknown


def test_a_limit_and_another_operation_are_refused(redirection):
    before = redirection.ports()
    assert "without a --limit" in redirection.play("--limit", "pooler1,localhost", fails=True)
    assert redirection.ports() == before
    wait_until(lambda: redirection.site.primary, 10)
