# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users do beside the plain run: check mode over everything, limits, playbooks of their own, a vault for the passwords, and -vvv."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
import yaml
from conftest import (
    CLUSTER,
    INVENTORY,
    MONITOR,
    NODES,
    POOLERS,
    ask,
    changes,
    cluster_is_whole,
    logged,
    make_whole,
    must_play,
    must_refuse,
    secret,
    secrets,
    service,
    wait_for,
)

HOSTS = {*NODES, *POOLERS, MONITOR}
RESTART_STANDBYS = pathlib.Path(__file__).parents[1] / "restart_standbys.yml"


@pytest.fixture(scope="module", autouse=True)
def whole():
    """The cluster before and after, with db1 as the primary."""
    make_whole()
    yield
    make_whole()


@pytest.fixture(scope="module")
def vaulted(tmp_path_factory):
    """The inventory with its passwords in group_vars that are encrypted, and a lookup that would find others."""
    base = tmp_path_factory.mktemp("vaulted")
    shutil.copy(INVENTORY, base / "hosts.yml")
    variables = {name + "_password": secret(name) for name in ("superuser", "replication", "app", "powa", "stats", "pooler")}
    (base / "vault").write_text(os.urandom(16).hex(), encoding="utf-8")
    (base / "group_vars").mkdir()
    path = base / "group_vars" / "all.yml"
    path.write_text(yaml.safe_dump({**variables, "secrets": str(base / "lookup")}), encoding="utf-8")
    subprocess.run(["ansible-vault", "encrypt", "--vault-password-file", base / "vault", path], check=True, capture_output=True)
    assert secret("app") not in path.read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(base / "vault"))
        yield base / "hosts.yml"
    assert not (base / "lookup").exists()


def started():
    return {node: ask(node, "SELECT pg_postmaster_start_time()")[0][0] for node in NODES}


def test_check_mode_finds_nothing_to_do_on_the_whole_site():
    before = [service(node) for node in NODES]
    printed = must_play("deploy_site", "--check", "--diff")
    found = changes(printed)
    assert found.keys() >= HOSTS and not any(found.values()), printed[-3000:]
    assert [service(node) for node in NODES] == before


@pytest.mark.parametrize(
    "playbook, limit, variables",
    [
        ("switch_over", "db2", {"candidate": "db2"}),
        ("fail_over", "db*", {"candidate": "db2"}),
        ("restart_cluster", "db2,db3", {}),
        ("clone_standby", "db3", {"standby": "db3", "reclone": True}),
        ("deploy_site", "db1,db2,db3,monitor", {}),
    ],
)
def test_half_a_cluster_is_refused(playbook, limit, variables):
    before = [service(node) for node in NODES]
    must_refuse("in half", playbook, "--limit", limit, **variables, **({} if playbook == "deploy_site" else {"cluster": CLUSTER}))
    assert [service(node) for node in NODES] == before and cluster_is_whole("db1")


def test_a_playbook_of_ones_own_works_on_one_node_after_the_other():
    before = started()
    assert sum(changes(must_play(str(RESTART_STANDBYS), "--check")).values()) == 2 and started() == before
    did = changes(must_play(str(RESTART_STANDBYS)))
    after = started()
    assert did == {"db1": 0, "db2": 1, "db3": 1} and after["db1"] == before["db1"] and before["db2"] < after["db2"] < after["db3"]
    wait_for(lambda: cluster_is_whole("db1"), "both standbys stream again")
    assert [service(node)["ActiveState"] for node in NODES] == ["active"] * len(NODES)


def no_secret_in(printed):
    assert "module_args" in printed  # that much is told
    for number, word in enumerate(secrets()):
        assert word not in printed, "secret %d: %s" % (number, printed[max(0, printed.index(word) - 300) :][:300])
    assert "SCRAM-SHA-256$" not in printed


@pytest.mark.parametrize("candidate", ["db2", "db1"], ids=["there", "back"])
def test_a_switchover_that_tells_all_tells_no_password(vaulted, candidate):
    no_secret_in(must_play("switch_over", "-vvv", inventory=vaulted, cluster=CLUSTER, candidate=candidate))
    wait_for(lambda: cluster_is_whole(candidate), "both others stream from the new primary")


def test_a_deployment_that_tells_all_tells_no_password(vaulted):
    printed = must_play("deploy_site", "-vvv", "--diff", inventory=vaulted)
    no_secret_in(printed)
    assert not any(changes(printed).values()), [line for line in printed.splitlines() if line.startswith("changed:")]


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_no_password_is_in_a_log_of_a_host(name):
    assert logged(name, secrets()) == []
