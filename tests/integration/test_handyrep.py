# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way from HandyRep: a running cluster with a pooler, described by nothing but a handyrep.conf, under this collection's playbooks."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from lab import BIN, REPOSITORY, SUPERUSER_PASSWORD, ansible_environment
from switchover_site import Site

# Of a site that HandyRep has run: the roles are those of its first day.
CONF = """
[handyrep]
    cluster_name = shop-1
    postgresql_version = {version}
    handyrep_db = postgres
    postgres_superuser = postgres
    replication_user = postgres
    master_check_method = one_hr_master
[passwords]
    superuser_pass = "{password}"
    handyrep_db_pass = "{password}"
    replication_pass = ""
[failover]
    auto_failover = False
    connection_failover_method = multi_pgbouncer
    selection_method = select_replica_priority
[archive]
    archiving = False
[server_defaults]
    restart_method = restart_pg_ctl
    ssh_user = handyrep
    ssh_key = /home/handyrep/.ssh/id_rsa
    lag_limit = 100
[servers]
{servers}
[plugins]
    [[multi_pgbouncer]]
        owner = postgres
        config_location = {ini}
        database_list = app
        readonly_suffix = _read
"""
NODE = """
    [[{node.name}]]
        hostname = 127.0.0.1
        role = {role}
        port = {node.port}
        pgdata = {node.data}
        pgconf = {node.config}
        failover_priority = {priority}
"""
POOLER = """
    [[{pooler.name}]]
        hostname = 127.0.0.1
        role = pgbouncer
        port = {pooler.port}
"""
# All that a newcomer adds, in files beside the inventory: how this machine is reached, and the passwords.
GROUP_VARS = {
    "ansible_connection": "local", "postgresql_node_superuser_password": SUPERUSER_PASSWORD,
    "pgbouncer_admin_user": "pooler_admin", "pgbouncer_admin_password": SUPERUSER_PASSWORD,
}  # fmt: skip

# Stand-ins for other hosts: what would go there runs here, and each call is written down.
SSH = """#!/bin/sh
printf '%s\\n' "$(printf '%s ' "$@" | tr '\\n' ' ')" >> {log}
while :; do
  case "$1" in
    -[oipl]) shift 2 ;;
    -*) shift ;;
    *) shift; break ;;
  esac
done
cd / && exec sh -c "$*"
"""
SUDO = """#!/bin/sh
user=root
while :; do
  case "$1" in
    -u) user=$2; shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"
"""


class Migrated:
    def __init__(self, lab):
        self.environment = {}
        self.site = Site(lab, poolers=1)
        (pooler,) = self.site.poolers
        # HandyRep kept the databases in pgbouncer.ini itself.
        databases = pooler.databases_file.read_text().replace("app_ro", "app_read")
        pooler.ini.write_text(databases + "".join(line for line in pooler.ini.read_text().splitlines(True) if not line.startswith("%include")))
        pooler.databases_file.unlink()
        pooler.databases_file = pooler.ini
        with pooler.console() as console:
            console.execute("RELOAD")
        self.base = lab.path / "controller"
        (self.base / "group_vars").mkdir(parents=True)
        servers = "".join(NODE.format(node=node, role="replica" if n else "master", priority=n + 1) for n, node in enumerate(self.site.nodes))
        (self.base / "handyrep.conf").write_text(CONF.format(
            version=BIN.parent.name, password=SUPERUSER_PASSWORD, servers=servers + POOLER.format(pooler=pooler), ini=pooler.ini
        ))  # fmt: skip
        (self.base / "group_vars" / "shop_1.json").write_text(json.dumps(GROUP_VARS))
        self.inventory = self.base / "shop.handyrep.yml"
        self.inventory.write_text("plugin: pgfleet.ops.handyrep\nhandyrep_conf: handyrep.conf\n")

    def hosts_by_ssh(self, monkeypatch):
        """From now on Ansible and the guardians reach the hosts as HandyRep did. Returns the file with the calls of ssh."""
        programs, log = self.base / "programs", self.base / "ssh.log"
        programs.mkdir()
        log.write_text("")
        for name, text in (("ssh", SSH.format(log=log)), ("sudo", SUDO)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", "%s:%s" % (programs, os.environ["PATH"]))
        self.environment = {"ANSIBLE_BECOME_METHOD": "sudo"}
        return log

    def ansible(self, program, *arguments, fails=False):
        argv = [pathlib.Path(sys.executable).parent / program, "-i", self.inventory, *arguments]
        done = subprocess.run(
            [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False, cwd=REPOSITORY,
            env=ansible_environment(**self.environment),
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert bool(done.returncode) is fails, output
        if program == "ansible-playbook":
            assert SUPERUSER_PASSWORD not in output
        return done.stdout if program == "ansible-inventory" else output

    def other(self):
        """A standby to move the primary to."""
        return next(node.name for node in self.site.nodes if node.in_recovery)

    def listed(self):
        # Ansible marks text that is no template, as all that comes from the file.
        return json.loads(self.ansible("ansible-inventory", "--list"), object_hook=lambda found: found.get("__ansible_unsafe", found))

    def play(self, name, *arguments, **options):
        locks = "pgfleet_lock_directory=%s" % (self.base / "lock")
        return self.ansible("ansible-playbook", "pgfleet.ops." + name, "-e", locks, *arguments, **options)


@pytest.fixture(scope="module")
def migrated(lab):
    return Migrated(lab)


def test_the_inventory_lists_the_cluster_and_none_of_handyreps_passwords(migrated):
    listed = migrated.listed()
    assert sorted(listed["shop_1"]["children"]) == ["shop_1_nodes", "shop_1_poolers"]
    assert listed["shop_1_nodes"]["hosts"] == ["db1", "db2", "db3"] and listed["shop_1_poolers"]["hosts"] == ["pooler1"]
    db2 = listed["_meta"]["hostvars"]["db2"]
    node = migrated.site.node("db2")
    assert (db2["postgresql_node_port"], db2["postgresql_node_data_directory"], db2["pgfleet_managed"]) == (node.port, str(node.data), False)
    assert db2["postgresql_node_superuser_password"] == SUPERUSER_PASSWORD
    # Without group_vars nothing of the kind is there.
    (migrated.base / "group_vars").rename(migrated.base / "elsewhere")
    try:
        text = migrated.ansible("ansible-inventory", "--list")
    finally:
        (migrated.base / "elsewhere").rename(migrated.base / "group_vars")
    assert "password" not in text and json.dumps(SUPERUSER_PASSWORD)[1:-1] not in text


def test_the_cluster_is_shown_as_it_is(migrated):
    primary = migrated.site.primary.name
    output = migrated.play("show_cluster", "-e", "cluster=shop_1")
    assert "cluster shop_1: healthy" in output and "needs a look" not in output
    assert re.search(r"%s +127\.0\.0\.1:%d +primary" % (primary, migrated.site.node(primary).port), output)
    assert migrated.site.primary.name == primary


def test_a_template_in_the_file_stays_text(migrated):
    """Whoever may write HandyRep's files must not run commands on the controller."""
    conf, there = migrated.base / "handyrep.conf", migrated.base / "there"
    before = conf.read_text()
    template = "{{ lookup('ansible.builtin.pipe', 'touch %s') }}" % there
    conf.write_text(before.replace("database_list = app", 'database_list = app\n        extra_connect_param = "%s"' % template))
    try:
        output = migrated.ansible("ansible", "pooler1", "-m", "ansible.builtin.debug", "-a", "msg=found:{{ pgbouncer_extra_connect_param }}")
    finally:
        conf.write_text(before)
    assert "found:{{ lookup(" in output and not there.exists()


def test_a_wrong_name_is_answered_with_the_groups_that_are_there(migrated):
    assert "shop_1, shop_1_nodes, shop_1_poolers" in " ".join(migrated.play("show_cluster", "-e", "cluster=shop-1", fails=True).split())


def test_a_deployment_over_it_is_refused_before_anything_is_changed(migrated):
    before = {path: path.read_bytes() for node in migrated.site.nodes for path in node.config.iterdir()}
    output = migrated.play("deploy_site", "-e", "site=shop_1", "-e", "postgresql_node_replication_password=x", fails=True)
    assert "has pgfleet_managed false" in " ".join(output.split())
    assert {path: path.read_bytes() for node in migrated.site.nodes for path in node.config.iterdir()} == before


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("pgbouncer_admin_password", "Set pgbouncer_admin_password for pooler1, the password of pooler_admin on its console."),
        ("postgresql_node_superuser_password", 'does not let user "postgres" in: fe_sendauth: no password supplied'),
    ],
)
def test_a_password_that_was_forgotten_is_named(migrated, missing, message):
    path = migrated.base / "group_vars" / "shop_1.json"
    path.write_text(json.dumps({key: value for key, value in GROUP_VARS.items() if key != missing}))
    try:
        output = migrated.play("switch_over", "-e", "cluster=shop_1", "-e", "candidate=" + migrated.other(), "--check", fails=True)
    finally:
        path.write_text(json.dumps(GROUP_VARS))
    assert message in " ".join(output.split()).replace('\\"', '"')


def test_a_switchover_in_check_mode_changes_nothing(migrated):
    before = migrated.site.fingerprint()
    output = migrated.play("switch_over", "-e", "cluster=shop_1", "-e", "candidate=" + migrated.other(), "--check")
    assert "promote " + migrated.other() in output
    assert migrated.site.fingerprint() == before


def test_a_restart_in_check_mode_changes_nothing(migrated):
    before = migrated.site.fingerprint()
    started = {node.name: node.value("SELECT pg_postmaster_start_time()") for node in migrated.site.nodes}
    migrated.play("restart_cluster", "-e", "cluster=shop_1", "--check")
    assert migrated.site.fingerprint() == before
    assert {node.name: node.value("SELECT pg_postmaster_start_time()") for node in migrated.site.nodes} == started


@pytest.mark.long
def test_poolers_get_the_entries_of_handyreps_database_list(migrated):
    """Those of database_list and of HandyRep's own database, with its suffix; all else in pgbouncer.ini stays."""
    (pooler,) = migrated.site.poolers
    before = pooler.ini.read_text()
    assert "would be" in migrated.play("redirect_pgbouncer", "-e", "cluster=shop_1", "--check")
    assert pooler.ini.read_text() == before
    migrated.play("redirect_pgbouncer", "-e", "cluster=shop_1")
    after = pooler.ini.read_text()
    assert after[after.index("[pgbouncer]") :] == before[before.index("[pgbouncer]") :]
    leads = {row["name"]: row["port"] for row in pooler.show("DATABASES") if row["name"] != "pgbouncer"}
    assert set(leads) == {"app", "app_read", "postgres", "postgres_read"}
    standbys = {node.port for node in migrated.site.nodes if node.in_recovery}
    assert leads["app"] == leads["postgres"] == migrated.site.primary.port and {leads["app_read"], leads["postgres_read"]} <= standbys
    assert "right" in migrated.play("redirect_pgbouncer", "-e", "cluster=shop_1")
    assert pooler.ini.read_text() == after


def test_a_switchover_costs_no_error_and_the_file_need_not_know(migrated):
    """HandyRep's file goes on calling db1 the master, which nobody believes."""
    site = migrated.site
    new = migrated.other()
    with site.load() as load:
        migrated.play("switch_over", "-e", "cluster=shop_1", "-e", "candidate=" + new)
    assert load.report["errors"] == 0 and load.lost == set() and sum(map(len, load.report["acknowledged"].values())) > 0
    assert site.primary.name == new
    output = migrated.play("show_cluster", "-e", "cluster=shop_1")
    assert "cluster shop_1: healthy" in output
    listed = migrated.listed()
    assert listed["_meta"]["hostvars"]["db1"]["handyrep_role"] == "master"
    ini = site.poolers[0].ini.read_text()
    # Readers stay with a standby, by the suffix that the file has for them.
    reading = re.search(r"^app_read = host=127\.0\.0\.1 port=(\d+)", ini, re.M)
    assert int(reading.group(1)) in {node.port for node in site.nodes if node.in_recovery}
    assert "app = host=127.0.0.1 port=%d" % site.node(new).port in ini and ini.count("[pgbouncer]") == 1


def test_hosts_are_reached_as_handyrep_reached_them(own_lab, monkeypatch):
    """By its user, with its key and by sudo: from Ansible, and from the guardians that hold the nodes and the pooler."""
    migrated = Migrated(own_lab)
    path = migrated.base / "group_vars" / "shop_1.json"
    path.write_text(json.dumps({key: value for key, value in GROUP_VARS.items() if key != "ansible_connection"}))
    log = migrated.hosts_by_ssh(monkeypatch)
    (migrated.base / "group_vars" / "shop_1_poolers.json").write_text('{"ansible_port": 2222}')
    migrated.play("switch_over", "-e", "cluster=shop_1", "-e", "candidate=db3")
    assert migrated.site.primary.name == "db3"
    calls = log.read_text().splitlines()
    assert calls and [call[:300] for call in calls if "/home/handyrep/.ssh/id_rsa" not in call] == []
    guardians = [call for call in calls if "ControlPersist" not in call and "sudo -n -u postgres" in call]
    nodes = [call for call in guardians if "-i /home/handyrep/.ssh/id_rsa handyrep@127.0.0.1 sudo" in call]
    poolers = [call for call in guardians if "-i /home/handyrep/.ssh/id_rsa -p 2222 handyrep@127.0.0.1 sudo" in call]
    assert nodes and poolers and len(nodes) + len(poolers) == len(guardians)


@pytest.mark.long
def test_a_lost_primary_is_replaced_and_comes_back(own_lab):
    """What HandyRep's failover and clone did, by a person: proof instead of trust, and nothing is wiped."""
    migrated = Migrated(own_lab)
    site = migrated.site
    for node in site.nodes:
        path = migrated.base / "host_vars" / (node.name + ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"postgresql_node_passfile": str(node.passfile)}))
    site.node("db1").stop("immediate")
    migrated.play("promote_node", "-e", "cluster=shop_1", "-e", "candidate=db2")
    migrated.play("redirect_pgbouncer", "-e", "cluster=shop_1")
    migrated.play("clone_standby", "-e", "cluster=shop_1", "-e", "standby=db1")
    assert site.primary.name == "db2" and site.node("db1").in_recovery
    assert "cluster shop_1: healthy" in migrated.play("show_cluster", "-e", "cluster=shop_1")
    with site.poolers[0].connect("app") as client:
        client.execute("INSERT INTO public.load VALUES ('afterwards', 1, 1)")
