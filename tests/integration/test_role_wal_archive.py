# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role wal_archive and the playbook clean_archive: a server that archives, a standby that lives on it, and the clean-up under the lock."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import cluster_play
import pytest
from lab import SUPERUSER_PASSWORD, ansible_environment, call_module, free_port, wait_until


class Cluster:
    """Nodes that archive by the role to a directory that they share."""

    poolers = ()

    def __init__(self, lab, **settings):
        self.lab = lab
        self.directory = lab.path / "it's 100% wal" / "shop"
        self.script = lab.path / "archive wal.sh"
        self.nodes = [lab.postgres("db1", settings={"archive_mode": "on", "wal_keep_size": 0, **settings}).init("--wal-segsize=1").start()]

    @property
    def variables(self):
        return {
            "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "wal_archive_directory": str(self.directory),
            "wal_archive_script": str(self.script), "postgresql_node_superuser_password": SUPERUSER_PASSWORD,
        }  # fmt: skip

    def play(self, *arguments, fails=False, **variables):
        """The role on all nodes: output and number of changes of each."""
        hosts = {node.name: {**self.variables, "postgresql_node_port": node.port, **variables} for node in self.nodes}
        inventory, play = self.lab.path / "role.json", self.lab.path / "play.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        show = {"ansible.builtin.debug": {"msg": "restore_command {{ wal_archive_instance.restore_command | b64encode }} end"}}
        play.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": ["pgfleet.ops.wal_archive"], "post_tasks": [show]}]))
        argv = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", inventory, "--diff", play, *arguments]
        done = subprocess.run(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
            check=False, cwd="/", env=ansible_environment(),
        )  # fmt: skip
        assert bool(done.returncode) is fails, done.stdout
        assert SUPERUSER_PASSWORD not in done.stdout and json.dumps(SUPERUSER_PASSWORD)[1:-1] not in done.stdout
        return done.stdout, {host: int(number) for host, number in re.findall(r"^(\w+)\s+: ok=.* changed=(\d+)", done.stdout, re.M)}

    def clean(self, *arguments, fails=False, **extra):
        """The playbook, with the archive on a host of its own."""
        archive = {"archive1": {**self.variables, "pgfleet_roles": ["wal_archive"]}}
        variables = {"pgfleet_lock_directory": str(self.lab.path / "locks")}
        return cluster_play.play(self, "clean_archive", *arguments, fails=fails, variables=variables, hosts=archive, **extra)

    def write(self, segments=3):
        primary = self.nodes[0]
        for _number in range(segments):
            primary.sql("SELECT pg_logical_emit_message(true, 'test', 'x')")
            primary.sql("SELECT pg_switch_wal()")
        wait_until(lambda: primary.value("SELECT NOT EXISTS (SELECT FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready')"), 60)

    def back_up(self, name):
        primary = self.nodes[0]
        primary._run(
            "pg_basebackup", "-D", self.lab.path / name, "-h", "127.0.0.1", "-p", primary.port, "-U", "postgres", "-c", "fast", "-X", "none", "-N", "-l", name,
            env={**os.environ, "PGPASSWORD": SUPERUSER_PASSWORD},
        )  # fmt: skip
        self.write(1)

    @property
    def names(self):
        return {path.name for path in self.directory.iterdir()}


def test_from_nothing_to_an_archive_that_a_standby_lives_on(own_lab):
    cluster = Cluster(own_lab)
    primary = cluster.nodes[0]
    primary.sql("CREATE TABLE t (n int)")

    output, changed = cluster.play("--check")
    assert changed["db1"] >= 3 and "archive_mode" not in output.split("set archive_command")[0] and not cluster.directory.exists()
    output, changed = cluster.play()
    assert changed["db1"] >= 3 and cluster.names, output
    for arguments in ((), ("--check",)):
        output, changed = cluster.play(*arguments)
        assert changed == {"db1": 0}, output
    assert cluster.directory.stat().st_mode & 0o777 == 0o750 and cluster.directory.owner() == "postgres"
    assert not call_module("pg_archiving", {**primary.login, "state": "healthy"})["failed"]

    # A standby whose primary has removed the WAL catches up with the role's restore_command.
    restore = base64.b64decode(re.search(r"restore_command (\S+) end", output)[1]).decode()
    standby = own_lab.postgres("db2", settings={"archive_mode": "on", "restore_command": restore.replace("'", "''")})
    standby.clone(primary, slot=False)
    primary.wait_for_standbys(1)
    standby.stop()
    primary.sql("INSERT INTO t SELECT generate_series(1, 50000)")
    cluster.write(5)
    primary.sql("CHECKPOINT")
    cluster.write(2)
    for path in (primary.data / "pg_wal").glob("0000000*"):
        if path.name in cluster.names and path.name < primary.value("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()"):
            path.unlink()
    standby.start()
    wait_until(lambda: standby.value("SELECT count(*) FROM t") == 50000, 60)

    # The role on it too: it will archive once it is promoted, to the same place.
    cluster.nodes.append(standby)
    _output, changed = cluster.play()
    assert changed == {"db1": 0, "db2": 1}
    standby.sql("SELECT pg_promote()")
    wait_until(lambda: "00000002.history" in cluster.names, 60)


def test_a_server_that_must_be_restarted_says_so(own_lab):
    cluster = Cluster(own_lab, archive_mode="off")
    output, _changed = cluster.play()
    assert "db1 archives once it has been restarted" in output and cluster.names == set()
    cluster.nodes[0].stop()
    cluster.nodes[0].start()
    _output, changed = cluster.play()
    assert changed == {"db1": 1} and cluster.names
    _output, changed = cluster.play()
    assert changed == {"db1": 0}


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"wal_archive_directory": "/archive"}, "absolute path of at least two parts"),
        ({"wal_archive_directory": "wal/archive"}, "absolute path of at least two parts"),
        ({"wal_archive_directory": "/var/../etc"}, "absolute path of at least two parts"),
        ({"wal_archive_mount": "/var/tmp/somewhere/else"}, "below the mount point"),
        ({"wal_archive_mount": "/var/tmp"}, "Nothing is mounted at /var/tmp"),
        ({"wal_archive_directory": "/var/lib"}, "is not a directory of postgres for archived WAL"),
    ],
)
def test_wrong_variables_fail_before_anything_is_made(lab, variables, words):
    cluster = Cluster.__new__(Cluster)
    cluster.lab, cluster.directory, cluster.script = lab, lab.path / "wal" / "shop", lab.path / "archive.sh"
    cluster.nodes = [type("Node", (), {"name": "db1", "port": 1})]
    output, _changed = cluster.play(fails=True, **variables)
    assert words in " ".join(output.split()) and not cluster.directory.exists() and not cluster.script.exists()


@pytest.mark.long
def test_the_archive_is_cleaned_while_nobody_else_works_on_the_cluster(own_lab):
    cluster = Cluster(own_lab)
    cluster.play()
    primary = cluster.nodes[0]
    standby = own_lab.postgres("db2", settings={"archive_mode": "on"})
    standby.clone(primary)
    cluster.nodes.append(standby)
    primary.wait_for_standbys(1)
    cluster.write(4)
    nothing, _changed = cluster.clean(fails=True, wal_archive_ignore_labels=["*"])
    assert "no base backup is known" in nothing
    for name in ("one", "two"):
        cluster.back_up(name)
        cluster.write(3)
    # The slot lets nothing go that the standby has not confirmed and that a restart would begin with.
    for node in cluster.nodes:
        node.sql("CHECKPOINT")
    before = cluster.names
    _output, changed = cluster.clean("--check", wal_archive_keep_backups=2)
    assert cluster.names == before
    output, changed = cluster.clean("--check", "--diff")
    assert changed["archive1"] == 1 and changed["db1"] == changed["db2"] == 0 and cluster.names == before and "would go" in output, output
    output, changed = cluster.clean()
    assert changed["archive1"] == 1 and cluster.names < before and "are gone" in output, output
    assert r'the backup \"two\" of' in " ".join(output.split()), output
    output, changed = cluster.clean()
    assert set(changed.values()) == {0}, output

    # Half a cluster, no cluster, a node that is down, somebody else at work.
    assert "cuts it in half" in " ".join(cluster.clean("--limit", "db1,archive1", fails=True)[0].split())
    lock = {"cluster": cluster_play.CLUSTER, "operation": "a test", "owner": "somebody", "holder": "x" * 20, "state": "held",
            "directory": str(own_lab.path / "locks"), "ttl": 600}  # fmt: skip
    for member in ("db1", "db2"):
        held = call_module("pg_operation_lock", {**lock, "member": member}, user="root")
        assert not held["failed"], held
    assert "is not ours" in " ".join(cluster.clean(fails=True)[0].split())
    for member in ("db1", "db2"):
        call_module("pg_operation_lock", {**{key: lock[key] for key in ("cluster", "holder", "directory")}, "member": member, "state": "released"}, user="root")
    cluster.back_up("three")
    standby.stop()
    before = cluster.names
    assert "what db2 needs is unknown" in " ".join(cluster.clean(fails=True)[0].split()) and cluster.names == before
    primary.sql("SELECT pg_drop_replication_slot('db2')")
    primary.sql("CHECKPOINT")
    output, changed = cluster.clean(archive_ignore_nodes=["db2"])
    assert changed["archive1"] == 1 and cluster.names < before, output
    shutil.rmtree(cluster.directory)
    assert "cannot be opened" in cluster.clean(fails=True, archive_ignore_nodes=["db2"])[0]


METHOD = """
- ansible.builtin.file:
    path: "{{ method_input.options.directory }}/{{ item }}"
    state: absent
  loop: "{{ method_input.options.removable%s }}"
  become: true
  register: gone
- ansible.builtin.set_fact:
    method_result: {changed: "{{ gone is changed }}", msg: "by a method of our own from {{ method_input.target.directory }}"}
"""


@pytest.mark.long
def test_a_method_of_ones_own_must_leave_what_is_needed(own_lab):
    cluster = Cluster(own_lab)
    cluster.play()
    cluster.write(4)
    cluster.back_up("one")
    (own_lab.path / "clean.yml").write_text(METHOD % "")
    (own_lab.path / "greedy.yml").write_text(METHOD % " + [method_input.options.keep_from]")
    before = cluster.names
    unknown, _changed = cluster.clean(fails=True, archive_delete_method="archive_delete_find")
    assert "pg_archive_cleanup" in unknown and cluster.names == before, unknown
    _output, changed = cluster.clean("--check", archive_delete_method="clean.yml")
    assert changed["archive1"] == 1 and cluster.names == before
    output, changed = cluster.clean(archive_delete_method="clean.yml")
    assert changed["archive1"] == 1 and cluster.names < before, output
    output, changed = cluster.clean(archive_delete_method="clean.yml")
    assert set(changed.values()) == {0}, output
    cluster.write(2)
    cluster.back_up("two")
    output, _changed = cluster.clean(fails=True, archive_delete_method="greedy.yml")
    assert "greedy.yml has removed WAL that is needed" in " ".join(output.split()), output


@pytest.mark.long
def test_a_whole_site_with_its_archive(own_lab):
    """deploy_site makes the instance and has it archive from its first start on; a second run changes nothing."""
    site = types.SimpleNamespace(lab=own_lab, nodes=[], poolers=[])
    base, archive = own_lab.path / "site", own_lab.path / "wal"
    base.mkdir()
    host = {
        "pgfleet_roles": ["postgresql_node", "wal_archive"], "postgresql_node_port": free_port(), "postgresql_node_directory": str(base / "db1"),
        "postgresql_node_install": False, "postgresql_node_replication_user": "replication", "postgresql_node_replication_password": "replication",
        "postgresql_node_settings": {"fsync": False, "shared_buffers": "16MB", "archive_mode": True}, "wal_archive_directory": str(archive),
        "wal_archive_script": str(own_lab.path / "archive_wal.sh"), "pgfleet_lock_directory": str(own_lab.path / "locks"),
    }  # fmt: skip
    hosts = {"db1": host, "archive1": {**host, "pgfleet_roles": ["wal_archive"]}}
    output, changed = cluster_play.play(site, "deploy_site", hosts=hosts)
    assert changed["db1"] > 5, output
    assert [path.name for path in archive.iterdir() if len(path.name) == 24]
    output, changed = cluster_play.play(site, "deploy_site", hosts=hosts)
    assert changed == {"archive1": 0, "db1": 0}, output
