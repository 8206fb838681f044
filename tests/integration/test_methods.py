# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Methods of one's own: the examples of docs/methods.md on real servers, modules, and methods that do not keep the contract."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from lab import BIN, REPOSITORY, ansible_environment, call_module

EXAMPLES = REPOSITORY / "docs" / "methods"
# Included on db1 for db2, as a playbook does that goes from node to node.
PLAY = """
- hosts: db1
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact:
        method_result: {changed: false, msg: of an earlier method}
    - ansible.builtin.include_tasks: %s/playbooks/tasks/method.yml
      vars:
        method_builtin: [one, two]
    - ansible.builtin.copy:
        content: "{{ method_result | to_json }}"
        dest: "{{ answer }}"
        mode: "0644"
      check_mode: false
      delegate_to: db2
""" % REPOSITORY
MODULE = """
from ansible.module_utils.basic import AnsibleModule
import os
module = AnsibleModule(
    argument_spec={
        "operation": {"type": "str"}, "cluster": {"type": "str"}, "node": {"type": "str"},
        "target": {"type": "dict"}, "options": {"type": "dict"},
    },
    supports_check_mode=True,
)
if module.params["options"].get("fails"):
    module.fail_json(msg="the storage said no")
if not module.check_mode:
    open(module.params["target"]["file"], "a").write("done\\n")
module.exit_json(changed=True, msg="on %s" % module.params["node"], uid=os.getuid(), got=module.params)
"""


class Methods:
    """An inventory with db1 and db2, and methods beside it. Nothing of a method may happen on db1, which does not answer."""

    def __init__(self, base):
        self.base = base
        self.methods = base / "methods"
        self.methods.mkdir(parents=True)
        self.answer = base / "answer.json"
        self.inventory = base / "inventory.json"
        gone = {"ansible_host": "127.0.0.1", "ansible_port": 1}
        self.inventory.write_text(json.dumps({"all": {"hosts": {"db1": gone, "db2": {"ansible_connection": "local"}}}}))
        (base / "plays").mkdir()
        self.play = base / "plays" / "play.yml"
        self.play.write_text(PLAY)
        self.collections = base / "collections"
        modules = self.collections / "ansible_collections" / "my_site" / "storage" / "plugins" / "modules"
        modules.mkdir(parents=True)
        (modules / "snapshot.py").write_text(MODULE)
        base.chmod(0o755)

    def write(self, name, text):
        (self.methods / name).write_text(text)
        return "methods/" + name

    def run(self, method, *arguments, fails=False, operation="restart", target=None, options=None, **variables):
        """Returns the output of a run that fails, else method_result."""
        given = {
            "method": method, "answer": str(self.answer), **variables,
            "method_input": {"operation": operation, "cluster": "shop", "node": "db2", "target": target or {}, "options": options or {}},
        }  # fmt: skip
        self.answer.unlink(missing_ok=True)
        environment = ansible_environment()
        environment["ANSIBLE_COLLECTIONS_PATH"] += ":%s" % self.collections
        argv = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", self.inventory, self.play, "-e", json.dumps(given), *arguments]
        done = subprocess.run(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False,
            cwd="/", env=environment,
        )  # fmt: skip
        assert bool(done.returncode) is fails and self.answer.exists() is not fails, done.stdout
        return done.stdout if fails else json.loads(self.answer.read_text())


@pytest.fixture
def methods(own_lab):
    return Methods(own_lab.path / "methods")


def test_a_task_file_says_what_it_did(methods):
    name = methods.write("own.yml", """
- ansible.builtin.set_fact:
    method_result: {changed: true, msg: "{{ method_input.operation }} of {{ method_input.node }} of {{ method_input.cluster }}", more: [1, 2]}
""")
    assert methods.run(name) == {"changed": True, "failed": False, "msg": "restart of db2 of shop", "more": [1, 2]}
    assert methods.run(str(methods.base / name))["changed"] is True
    registered = methods.write("registered.yml", "- ansible.builtin.command: echo done\n  register: method_result\n")
    assert methods.run(registered)["stdout"] == "done"


def test_a_module_gets_the_input_and_says_what_it_did(methods):
    proof = methods.base / "proof"
    target = {"file": str(proof), "port": 5432}
    result = methods.run("my_site.storage.snapshot", "--check", target=target, options={"mode": "fast"})
    assert (result["changed"], result["msg"], result["failed"]) == (True, "on db2", False) and not proof.exists()
    result = methods.run("my_site.storage.snapshot", target=target, options={"mode": "fast"})
    assert result["got"] == {"operation": "restart", "cluster": "shop", "node": "db2", "target": target, "options": {"mode": "fast"}} and result["uid"] == 0
    assert proof.read_text() == "done\n"
    proof.unlink()
    methods.base.chmod(0o777)
    result = methods.run("my_site.storage.snapshot", target=target, method_become_user="postgres")
    assert result["uid"] != 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- ansible.builtin.debug: {msg: nothing said}\n", "has not said whether it changed anything"),
        ("- ansible.builtin.set_fact: {method_result: {msg: done}}\n", "has not said whether it changed anything"),
        ("- ansible.builtin.set_fact: {method_result: {changed: 'perhaps', msg: done}}\n", "has not said whether it changed anything"),
        ("- ansible.builtin.set_fact: {method_result: done}\n", "has not said whether it changed anything"),
        ("- ansible.builtin.set_fact: {method_result: {changed: true, failed: true, msg: the volume is full}}\n", "has failed: the volume is full"),
        ("- ansible.builtin.command: 'false'\n  register: method_result\n", "non-zero return code"),
    ],
)
def test_a_task_file_that_does_not_keep_the_contract_fails(methods, text, words):
    assert words in methods.run(methods.write("own.yml", text), fails=True)


def test_a_method_that_skips_in_check_mode_is_refused(methods):
    name = methods.write("own.yml", "- ansible.builtin.command: echo done\n  register: method_result\n")
    assert methods.run(name)["changed"]
    assert "has not said whether it changed anything" in methods.run(name, "--check", fails=True)


def test_a_module_that_fails_or_is_not_there_fails(methods):
    assert "the storage said no" in methods.run("my_site.storage.snapshot", options={"fails": True}, fails=True)
    assert "my_site.storage.nothing" in methods.run("my_site.storage.nothing", fails=True)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("restart", 'restart_method is "restart", which is neither a built-in method (one, two) nor the path of a task file'),
        ("restart_daemontools", '"restart_daemontools" is a plugin of HandyRep; use '),
        ("methods/nothing.yml", 'restart_method is "methods/nothing.yml", a task file that is not there'),
        ("", "restart_method is empty"),
    ],
)
def test_an_unknown_method_is_named_before_anything_is_done(methods, method, words):
    output = methods.run(method, fails=True)
    assert words in " ".join(output.replace('\\"', '"').split()), output


def test_a_restart_by_a_command(methods, own_lab):
    server = own_lab.postgres("db2").init().start()
    shutil.copy(EXAMPLES / "restart_by_command.yml", methods.methods)
    restart = {
        "restart_command": [
            str(BIN / "pg_ctl"), "-D", str(server.data), "-l", str(server.log), "-o", "-c config_file='%s'" % server.config_file, "-w", "restart",
        ],
        "restart_command_user": "postgres",
    }  # fmt: skip
    before = server.pid
    result = methods.run("methods/restart_by_command.yml", "--check", **restart)
    assert result["changed"] and server.pid == before
    result = methods.run("methods/restart_by_command.yml", **restart)
    assert result["changed"] and result["msg"].startswith("restarted by") and server.pid not in (None, before)
    proof = call_module("pg_ping", server.login)
    assert not proof["failed"] and proof["status"] == "up", proof


def test_a_clone_from_a_copy_is_a_clone_by_pg_clones_own_word(methods, own_lab):
    """db1 is the primary, db3 a standby that is down and is copied, db2 becomes one."""
    primary, copy, standby = (own_lab.postgres(name) for name in ("db1", "db3", "db2"))
    primary.init().start()
    primary.sql("CREATE TABLE precious AS SELECT generate_series(1, 1000) AS n")
    copy.clone(primary)
    primary.wait_for_standbys(1)
    primary.sql("SELECT pg_create_physical_replication_slot('db2', true)")
    shutil.copy(EXAMPLES / "clone_from_copy.yml", methods.methods)
    clone = {
        "operation": "clone", "clone_copy_directory": str(copy.data),
        "target": {"data_directory": str(standby.data), "config_file": str(standby.config_file), "log_file": str(standby.log), "method": "pg_ctl",
                   "user": "postgres"},
        "options": {"source": {"name": "db1", "host": "127.0.0.1", "port": primary.port}, "replication_user": "postgres",
                    "passfile": str(standby.passfile), "slot": "db2", "reclone": False},
    }  # fmt: skip
    proof = {
        "data_directory": standby.data, "config_file": standby.config_file, "log_file": standby.log, "method": "pg_ctl", "source_host": "127.0.0.1",
        "source_port": primary.port, "login_user": "postgres", "login_password": primary.login["login_password"], "replication_user": "postgres",
        "replication_passfile": standby.passfile, "slot_name": "db2", "timeout": 60,
    }  # fmt: skip
    # A copy of a server that runs is refused, and nothing is left of it.
    assert "is no data directory of a server that is down" in methods.run("methods/clone_from_copy.yml", fails=True, **clone)
    copy.stop()
    assert methods.run("methods/clone_from_copy.yml", "--check", **clone) == {"changed": True, "failed": False, "msg": "copied from %s" % copy.data}
    assert not list(standby.base.glob("data*"))
    before = call_module("pg_clone", proof, check=True)
    assert not before["failed"] and before["changed"]
    assert methods.run("methods/clone_from_copy.yml", **clone)["changed"]
    primary.wait_for_standbys(1)
    after = call_module("pg_clone", proof, check=True)
    assert not after["failed"] and after["plan"] == [], after
    assert standby.in_recovery and standby.value("SELECT count(*) FROM precious") == 1000
    assert primary.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'db2'") == [(True,)]
    assert methods.run("methods/clone_from_copy.yml", **clone) == {"changed": False, "failed": False, "msg": "there already"}


def test_a_clone_that_only_says_so_is_found_out(methods, own_lab):
    """The proof is not the method's word."""
    primary, standby = own_lab.postgres("db1").init().start(), own_lab.postgres("db2")
    name = methods.write("liar.yml", "- ansible.builtin.set_fact: {method_result: {changed: true, msg: cloned}}\n")
    assert methods.run(name, operation="clone")["msg"] == "cloned"
    proof = call_module("pg_clone", {
        "data_directory": standby.data, "config_file": standby.config_file, "method": "pg_ctl", "source_host": "127.0.0.1", "source_port": primary.port,
        "login_user": "postgres", "login_password": primary.login["login_password"], "replication_user": "postgres",
        "replication_passfile": standby.passfile,
    }, check=True)  # fmt: skip
    assert not proof["failed"] and proof["plan"] != []
