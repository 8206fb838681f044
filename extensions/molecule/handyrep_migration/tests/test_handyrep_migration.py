# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of docs/handyrep.md: a handyrep.conf and a servers.save of these hosts, encrypted variables beside them, and the playbooks over ssh."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import yaml
from conftest import (
    LAB,
    NODES,
    POOLERS,
    Load,
    address,
    ask,
    changes,
    cluster_is_whole,
    machine,
    make_whole,
    must_play,
    must_refuse,
    secret,
    service,
    wait_for,
)

CONF = """
[handyrep]
    cluster_name = Shop EU-1
    handyrep_db = app
    postgres_superuser = postgres
    replication_user = replication
    master_check_method = one_hr_master
[passwords]
    superuser_pass = "not to be read"
[failover]
    auto_failover = False
    connection_failover_method = multi_pgbouncer
    selection_method = select_replica_priority
[archive]
    archiving = False
[server_defaults]
    ssh_user = deploy
    ssh_key = {lab}/key
    restart_method = restart_service
    lag_limit = 100
[servers]
[plugins]
    [[restart_service]]
        service_name = postgresql
    [[multi_pgbouncer]]
        owner = postgres
        config_location = /etc/pgbouncer/pgbouncer.ini
        dblist_location = /etc/pgbouncer/databases.ini
        database_list = app
        readonly_suffix = _ro
"""
GROUP = "Shop_EU_1"


def servers():
    """As HandyRep has saved them: with a master, which is not the primary."""
    found = {
        node: {
            "hostname": address(node), "role": "master" if node == "db3" else "replica", "port": 5432, "failover_priority": int(node[-1]),
            "pgdata": "/var/lib/postgresql/15/" + node, "pgconf": "/etc/postgresql/15/" + node, "enabled": True, "status": "healthy",
        }
        for node in NODES
    }  # fmt: skip
    return found | {pooler: {"hostname": address(pooler), "role": "pgbouncer", "port": 6432, "enabled": True} for pooler in POOLERS}


def group_vars():
    """What the page has a newcomer add."""
    cluster = {
        "postgresql_node_superuser_password": secret("superuser"), "pgbouncer_admin_user": "pgbouncer_admin", "pgbouncer_admin_password": secret("pooler"),
        "ansible_ssh_common_args": "-o UserKnownHostsFile=%s/known_hosts" % LAB, "ansible_python_interpreter": "/usr/bin/python3",
    }  # fmt: skip
    return {GROUP: cluster, GROUP + "_nodes": {"postgresql_node_passfile": "/var/lib/postgresql/15-{{ inventory_hostname }}.pgpass"}}


@pytest.fixture(scope="module", autouse=True)
def inventory(tmp_path_factory):
    """The cluster before and after, with db1 as the primary; HandyRep's file and all passwords are encrypted."""
    make_whole()
    base = tmp_path_factory.mktemp("controller")
    (base / "group_vars").mkdir()
    (base / "handyrep.conf").write_text(CONF.format(lab=LAB), encoding="utf-8")
    (base / "servers.save").write_text(json.dumps({"servers": servers()}), encoding="utf-8")
    for group, variables in group_vars().items():
        (base / "group_vars" / (group + ".yml")).write_text(yaml.safe_dump(variables), encoding="utf-8")
    (base / "vault").write_text(os.urandom(16).hex(), encoding="utf-8")
    encrypted = [base / "handyrep.conf", base / "group_vars" / (GROUP + ".yml")]
    subprocess.run(["ansible-vault", "encrypt", "--vault-password-file", base / "vault", *encrypted], check=True, capture_output=True)
    path = base / "shop.handyrep.yml"
    path.write_text("plugin: pgfleet.ops.handyrep\nhandyrep_conf: handyrep.conf\nservers_save: servers.save\nstrict: true\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(base / "vault"))
        yield path
    make_whole()


def state():
    return [service(node) for node in NODES], [machine(pooler).file("/etc/pgbouncer/databases.ini").content_string for pooler in POOLERS]


def test_the_inventory_is_the_cluster_without_handyreps_passwords(inventory):
    argv = ["ansible-inventory", "-i", inventory, "--list"]
    text = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    listed = json.loads(text)
    assert sorted(listed[GROUP + "_nodes"]["hosts"]) == list(NODES) and sorted(listed[GROUP + "_poolers"]["hosts"]) == list(POOLERS)
    assert "not to be read" not in text


def test_looking_at_it_changes_nothing(inventory):
    before = state()
    printed = must_play("show_cluster", inventory=inventory, cluster=GROUP, fail_on="warning")
    assert "cluster %s: healthy" % GROUP in printed and "WARNING" not in printed
    must_play("restart_cluster", "--check", inventory=inventory, cluster=GROUP)
    printed = must_play("switch_over", "--check", "--diff", inventory=inventory, cluster=GROUP, candidate="db2")
    assert "promote db2" in printed
    must_refuse("has pgfleet_managed false", "deploy_site", inventory=inventory, site=GROUP)
    assert state() == before
    # The poolers have what HandyRep's list of databases asks for.
    assert not any(changes(must_play("redirect_pgbouncer", inventory=inventory, cluster=GROUP)).values())
    assert state() == before


@pytest.mark.parametrize("candidate", ["db2", "db1"], ids=["there", "back"])
def test_clients_do_not_notice_a_switchover(inventory, candidate, tmp_path):
    old = cluster_is_whole()
    with Load(tmp_path) as load:
        must_play("switch_over", inventory=inventory, cluster=GROUP, candidate=candidate)
    report = load.report
    assert (report["errors"], report["error_texts"], report["unfinished_clients"], load.lost(candidate)) == (0, [], 0, 0)
    assert report["commits"] > 20 and report["outage_ms"] > 0
    wait_for(lambda: cluster_is_whole(candidate), "both others stream from the new primary")
    assert ask(old, "SELECT status, sender_host FROM pg_stat_wal_receiver") == [("streaming", address(candidate))]
    for pooler in POOLERS:
        for dbname, expected in (("app", False), ("app_ro", True)):
            assert ask(pooler, "SELECT pg_is_in_recovery()", port=6432, user="app", dbname=dbname) == [(expected,)]
    # systemd has the servers, as before.
    assert [service(node)["ActiveState"] for node in NODES] == ["active"] * len(NODES)
    assert [service(node)["MainPID"] for node in NODES] == [machine(node).check_output("cat /run/postgresql/15-%s.pid", node) for node in NODES]


def test_a_standby_without_data_is_cloned(inventory):
    """As root with the servers' own passfile, and through the slot that has its name."""
    machine("db3").check_output("systemctl stop postgresql@15-db3")
    machine("db3").check_output("find /var/lib/postgresql/15/db3 -mindepth 1 -delete")
    printed = must_play("clone_standby", inventory=inventory, cluster=GROUP, standby="db3")
    assert "db3 is a standby of db1, by a new copy" in printed
    wait_for(lambda: cluster_is_whole("db1"), "db3 streams again")
    assert service("db3")["ActiveState"] == "active"
    conninfo, slot = ask("db3", "SELECT current_setting('primary_conninfo'), current_setting('primary_slot_name')")[0]
    assert "passfile=/var/lib/postgresql/15-db3.pgpass" in conninfo and slot == "db3" and secret("replication") not in conninfo
    assert not any(changes(must_play("clone_standby", inventory=inventory, cluster=GROUP, standby="db3")).values())
