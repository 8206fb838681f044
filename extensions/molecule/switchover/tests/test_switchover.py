# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""switch_over as people run it: from a controller, as an ordinary user with sudo, on servers that systemd keeps."""

from __future__ import annotations

import pytest
from conftest import CLUSTER, NODES, POOLERS, Load, address, ask, cluster_is_whole, data_directory, machine, must_play, play, service, streams_from, wait_for


@pytest.fixture(scope="module", autouse=True)
def whole():
    """The cluster before and after, with its first node as the primary."""
    wait_for(cluster_is_whole, "one primary and standbys that stream")
    yield
    if cluster_is_whole() != NODES[0]:
        must_play("switch_over", cluster=CLUSTER, candidate=NODES[0])


@pytest.mark.parametrize("order", ["there", "back"])
def test_clients_do_not_notice(order, tmp_path):
    old = cluster_is_whole()
    candidate = next(node for node in NODES if node != old) if order == "there" else NODES[0]
    before = {node: service(node)["MainPID"] for node in NODES}
    with Load(tmp_path) as load:
        must_play("switch_over", cluster=CLUSTER, candidate=candidate)
    report = load.report
    assert (report["errors"], report["error_texts"], report["unfinished_clients"], load.lost(candidate)) == (0, [], 0, 0)
    assert report["commits"] > 20 and report["outage_ms"] > 0
    print("%s: outage %s ms, %d commits" % (order, report["outage_ms"], report["commits"]))

    assert wait_for(lambda: cluster_is_whole(candidate), "all others stream from the new primary") == candidate
    # systemd knows of the server that the switchover has started, and only the old primary was started anew.
    for node in NODES:
        seen = service(node)
        assert (seen["ActiveState"], seen["SubState"], seen["Result"]) == ("active", "running", "success"), node
        pid = machine(node).check_output("head -n 1 %s/postmaster.pid", data_directory(node))
        assert seen["MainPID"] == pid and (pid != before[node]) == (node == old), node
        # What is on its disk says what it is, also after its next start.
        assert machine(node).file(data_directory(node) + "/standby.signal").exists == (node != candidate)
    assert ask(old, "SELECT status, sender_host FROM pg_stat_wal_receiver") == [("streaming", address(candidate))]
    for pooler in POOLERS:
        through = {"port": 6432, "user": "app"}
        assert ask(pooler, "SELECT host(inet_server_addr())", dbname="app", **through) == [(address(candidate),)]
        assert ask(pooler, "SELECT pg_is_in_recovery()", dbname="app_ro", **through) == [(True,)]
        assert "host=%s " % address(candidate) in machine(pooler).file("/etc/pgbouncer/databases.ini").content_string


def test_check_mode_changes_nothing():
    primary = cluster_is_whole()
    candidate = next(node for node in NODES if node != primary)
    before = [service(node) for node in NODES]
    must_play("switch_over", "--check", "--diff", cluster=CLUSTER, candidate=candidate)
    assert [service(node) for node in NODES] == before and streams_from(primary, [node for node in NODES if node != primary])


def test_half_a_cluster_is_refused():
    primary = cluster_is_whole()
    candidate = next(node for node in NODES if node != primary)
    status, printed = play("switch_over", "--limit", candidate, cluster=CLUSTER, candidate=candidate)
    assert status != 0 and "cuts it in half" in printed
    assert cluster_is_whole() == primary
