# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary that is lost as hosts are lost, and what becomes of it when it is back. In no case does a second node take writes."""

from __future__ import annotations

import contextlib
import pathlib
import time

import psycopg
import pytest
from conftest import (
    CONTROLLER,
    POOLERS,
    Load,
    ask,
    cluster_is_whole,
    cut,
    led_to,
    make_whole,
    must_play,
    on,
    play,
    power_off,
    power_on,
    primaries,
    wait_for,
    writable,
)

# An example of the documentation, with the lab's power switch.
FENCE_BY_COMMAND = pathlib.Path(__file__).resolve().parents[4] / "docs" / "methods" / "fence_by_command.yml"
UNIT = "postgresql@15-db1"


@pytest.fixture(autouse=True)
def whole():
    make_whole()
    yield
    make_whole()


def new_primary():
    """Who has taken over from db1; both poolers lead there."""
    found = primaries()
    assert len(found) == 1 and found[0] != "db1" and writable() == found
    assert led_to(found[0])
    return found[0]


def stays_down(seconds):
    """For so long the server of db1, which has got its power back, does not come up as a second primary."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert "db1" not in writable()
        time.sleep(1)


def test_a_host_without_power_and_its_return(tmp_path):
    with Load(tmp_path) as load:
        power_off("db1")
        # Nobody answers. That is no proof: the scheduler's round fails, names what is needed, and changes nothing.
        status, printed = play("check_failover", cluster="shop")
        assert status != 0 and "fenced" in printed and "db1" in printed and writable() == []
        printed = must_play("fail_over", cluster="shop", fenced="db1")
        assert "bring back with clone_standby: db1" in printed
        primary = new_primary()
    assert load.report["unfinished_clients"] == 0 and load.report["commits"] > 100
    # Its disk does not know of that. Its service does not start, and says why.
    power_on("db1")
    wait_for(lambda: on("db1", "systemctl is-failed " + UNIT, check=False).strip() == "failed", "the refusal to start")
    assert "is on timeline" in on("db1", "journalctl --unit %s --output cat" % UNIT)
    on("db1", "systemctl start " + UNIT, check=False)
    stays_down(5)
    assert primaries() == [primary]
    must_play("check_failover", cluster="shop")
    must_play("clone_standby", cluster="shop", standby="db1", reclone=True)
    assert cluster_is_whole(primary)
    assert on("db1", "systemctl is-active " + UNIT).strip() == "active"


def test_a_host_that_is_cut_off_is_switched_off_by_a_fencing_method():
    """Cut off from everybody it would go on taking writes of whoever sits beside it."""
    cut("db1", [CONTROLLER, "db2", "db3", *POOLERS, "monitor"])
    assert writable() == ["db1"]
    method = {"fencing_method": str(FENCE_BY_COMMAND), "fencing_command": ["podman", "kill", "--signal", "KILL", "db1"]}
    must_play("check_failover", cluster="shop", **method)
    primary = new_primary()
    power_on("db1")
    stays_down(10)
    assert primaries() == [primary]


def test_a_server_that_is_gone_while_its_host_answers(tmp_path):
    with Load(tmp_path) as load:
        on("db1", "systemctl kill --signal KILL " + UNIT)
        wait_for(lambda: writable() == [], "the end of the server")
        # What it had not sent yet is lost with that, which reclone says is meant.
        must_play("check_failover", cluster="shop", rejoin=True, reclone=True)
        primary = new_primary()
        wait_for(lambda: cluster_is_whole(primary), "db1 as a standby")
    assert load.report["unfinished_clients"] == 0
    assert on("db1", "systemctl is-active " + UNIT).strip() == "active"
    # A second round has nothing to do.
    assert "steps: none" in must_play("check_failover", cluster="shop")


def test_a_host_whose_sshd_is_gone_while_its_server_lives(tmp_path):
    with Load(tmp_path) as load:
        on("db1", "systemctl stop ssh")
        must_play("check_failover", cluster="shop")
        for playbook, more in (("fail_over", {"fenced": "db1"}), ("switch_over", {"candidate": "db2"})):
            status, printed = play(playbook, cluster="shop", **more)
            assert status != 0, printed[-3000:]
            assert writable() == ["db1"]
    assert (load.report["errors"], load.report["unfinished_clients"]) == (0, 0), load.report["error_texts"]
    assert load.lost("db1") == 0


def use_up_wal(node):
    """Segments that are there already would last the clients for long."""
    with contextlib.suppress(psycopg.Error):
        for _segment in range(60):
            ask(node, "SELECT pg_switch_wal()")
            time.sleep(0.1)


def test_a_primary_whose_disk_is_full(tmp_path):
    """PostgreSQL ends itself when it cannot write WAL, and cannot start again before there is space."""
    wal = "/var/lib/postgresql/15/db1/pg_wal"
    on("db1", "systemctl stop %s && mkdir /srv/wal && mount -t tmpfs -o size=512m tmpfs /srv/wal && cp -a %s/. /srv/wal && mv %s %s.disk && ln -s /srv/wal %s"
       " && chown -h postgres: %s && chown postgres: /srv/wal && chmod 700 /srv/wal && systemctl start %s" % (UNIT, *[wal] * 5, UNIT))  # fmt: skip
    wait_for(lambda: cluster_is_whole("db1"), "db1 with its WAL on a disk of its own")
    try:
        with Load(tmp_path) as load:
            on("db1", "dd if=/dev/zero of=/srv/wal/filler bs=1M", check=False)
            use_up_wal("db1")
            wait_for(lambda: writable() == [], "the end of the server on a full disk")
            must_play("check_failover", cluster="shop")
            primary = new_primary()
    finally:
        on("db1", "rm /srv/wal/filler")
    assert load.report["unfinished_clients"] == 0
    # With space again it comes back, as a standby.
    must_play("clone_standby", cluster="shop", standby="db1", reclone=True)
    assert cluster_is_whole(primary)
    # No new copy was made, so its WAL is where its owner has put it.
    assert on("db1", "readlink %s" % wal).strip() == "/srv/wal"
    on("db1", "systemctl stop %s && rm -rf %s %s.disk && mkdir -m 700 %s && cp -a /srv/wal/. %s && chown postgres: %s && systemctl start %s"
       " && umount /srv/wal && rmdir /srv/wal" % (UNIT, *[wal] * 5, UNIT))  # fmt: skip
    wait_for(lambda: cluster_is_whole(primary), "db1 with its WAL in its own directory again")


def test_a_pooler_whose_disk_is_full(tmp_path):
    """Found out before anything is paused: clients notice nothing, and the primary stays where it is."""
    on("pooler2", "cp -a /etc/pgbouncer /srv/kept && mount -t tmpfs -o size=64k tmpfs /etc/pgbouncer && cp -a /srv/kept/. /etc/pgbouncer"
       " && chown postgres: /etc/pgbouncer && dd if=/dev/zero of=/etc/pgbouncer/filler bs=1k; true")  # fmt: skip
    try:
        with Load(tmp_path) as load:
            status, printed = play("switch_over", cluster="shop", candidate="db2")
            assert status != 0 and "pooler2" in printed and "No space left" in printed, printed[-3000:]
            assert writable() == ["db1"] and led_to("db1")
        assert (load.report["errors"], load.report["unfinished_clients"], load.lost("db1")) == (0, 0, 0), load.report["error_texts"]
    finally:
        on("pooler2", "umount /etc/pgbouncer && rm -r /srv/kept")
    assert cluster_is_whole("db1")
