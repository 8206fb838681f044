# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks do while links between hosts are cut: nothing, but say who sees what. In no case does a second node take writes."""

from __future__ import annotations

import pytest
from conftest import CONTROLLER, NODES, POOLERS, Load, ask, cluster_is_whole, cut, led_to, make_whole, must_play, play, writable


@pytest.fixture(autouse=True)
def whole():
    make_whole()
    yield
    make_whole()


def refused(playbook, *words, **variables):
    """The playbook fails, says why, and leaves one node that takes writes: db1."""
    status, printed = play(playbook, cluster="shop", **variables)
    assert status != 0, printed[-4000:]
    for word in words:
        assert word in printed, printed[-4000:]
    assert writable() == ["db1"]
    return printed


@pytest.mark.long
def test_the_controller_is_cut_off_from_the_primary_only(tmp_path):
    with Load(tmp_path) as load:
        cut("db1", [CONTROLLER])
        # Both ask everybody. The standbys' receivers still get WAL.
        refused("check_failover", "db1 is reached still")
        refused("fail_over", "db1 is reached still", fenced="db1")
        refused("switch_over", candidate="db2")
    assert (load.report["errors"], load.report["unfinished_clients"]) == (0, 0), load.report["error_texts"]


def test_the_primary_is_cut_off_from_everyone_but_the_poolers(tmp_path):
    with Load(tmp_path) as load:
        cut("db1", [CONTROLLER, "db2", "db3", "monitor"])
        printed = refused("fail_over", "db1 is reached still", "pooler1", "pooler2")
        assert "db2: nothing answers" in printed
        refused("fail_over", "db1 is reached still", fenced="db1")
    assert (load.report["errors"], load.report["unfinished_clients"]) == (0, 0), load.report["error_texts"]
    # Clients went on through the poolers; nothing of that is lost when the link is back.
    make_whole()
    assert led_to("db1") and load.lost("db1") == 0


@pytest.mark.long
def test_a_primary_that_nobody_reaches_is_not_replaced_without_proof():
    cut("db1", [CONTROLLER, "db2", "db3", *POOLERS, "monitor"])
    refused("check_failover", "db1", "fenced")
    make_whole()
    assert led_to("db1")


@pytest.mark.long
def test_a_standby_alone():
    cut("db3", [CONTROLLER, "db1", "db2", *POOLERS, "monitor"])
    # The primary is well, so that a scheduler's round changes nothing and is no alarm.
    must_play("check_failover", cluster="shop")
    refused("switch_over", "db3", candidate="db2")
    assert led_to("db1")
    with pytest.raises(AssertionError):
        assert cluster_is_whole()
    make_whole()
    assert ask("db1", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(len(NODES) - 1,)]
