# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The datasource replication as PoWA stores it, beside what the nodes really have, with both generations of PoWA."""

from __future__ import annotations

import contextlib

import pytest
from datasource_site import PASSWORDS, DatasourceSite, ask, declaration
from lab import Lab, call_module, wait_until


@pytest.fixture(scope="module")
def site(generation):
    with contextlib.closing(Lab()) as lab:
        yield DatasourceSite(lab, generation, {"max_slot_wal_keep_size": "64MB", "wal_keep_size": "0", "wal_level": "logical"})


def of(rows, what, name=None):
    (row,) = [row for row in rows if row["what"] == what and name in (None, row["name"])]
    return row


def position(server, expression="pg_current_wal_lsn()"):
    return server.value("SELECT pg_wal_lsn_diff(%s, '0/0')::bigint" % expression)


@pytest.mark.long_with("powa4")
def test_from_deployment_to_promotion(site):
    """One story, as each step needs the one before: deployed, idle, replay paused, a slot that loses its WAL, no upstream, promoted."""
    primary, standby = site.db1, site.db2
    site.deploy("replication")
    primary.sql("SELECT pg_create_physical_replication_slot('lazy', true)")
    primary.sql("SELECT pg_create_logical_replication_slot('logical', 'test_decoding')")
    primary.sql("CREATE TABLE filler AS SELECT generate_series(1, 1000) AS n")

    before = position(primary)
    rows = site.new_samples("replication", "db1")
    node = of(rows, "node")
    assert (node["name"], node["state"], node["healthy"], node["timeline"], node["lag_seconds"]) == ("db1", "primary", 1, 1, None)
    assert before <= node["wal_position"] <= position(primary)
    sender = of(rows, "sender")
    assert (sender["name"], sender["peer"], sender["state"], sender["healthy"], sender["active"]) == ("db2", "127.0.0.1", "streaming", 1, 1)
    assert sender["pid"] == primary.value("SELECT pid FROM pg_stat_replication")
    for name, active, state in (("db2", 1, "reserved"), ("lazy", 0, "reserved"), ("logical", 0, "reserved")):
        slot = of(rows, "slot", name)
        assert (slot["active"], slot["state"], slot["healthy"]) == (active, state, 1)
        if not active:
            restart = position(primary, "(SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '%s')" % name)
            assert slot["wal_position"] == restart and slot["retained_bytes"] == node["wal_position"] - restart and slot["safe_bytes"] > 0
    confirmed = position(primary, "(SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'logical')")
    assert of(rows, "slot", "logical")["replay_position"] == confirmed and of(rows, "slot", "lazy")["replay_position"] is None

    # Nothing has been committed for seconds, and this is no lag.
    rows = site.new_samples("replication", "db2")
    node, receiver = of(rows, "node"), of(rows, "receiver")
    assert (node["name"], node["state"], node["healthy"], node["timeline"], node["lag_seconds"]) == ("db2", "standby", 1, 1, 0)
    assert node["lag_bytes"] == node["wal_position"] - node["replay_position"] < 8192
    assert (receiver["name"], receiver["peer"], receiver["state"], receiver["timeline"]) == ("db2", "127.0.0.1:%d" % primary.port, "streaming", 1)
    assert receiver["wal_position"] <= node["wal_position"] and not [row for row in rows if row["what"] in ("sender", "slot")]

    # Replay stands still: what is stored is what there is to replay.
    standby.sql("SELECT pg_wal_replay_pause()")
    primary.sql("INSERT INTO filler SELECT generate_series(1, 50000)")
    written = position(primary, "pg_current_wal_flush_lsn()")
    wait_until(lambda: position(standby, "pg_last_wal_receive_lsn()") >= written, 20)
    node = of(site.new_samples("replication", "db2"), "node")
    assert node["replay_position"] == position(standby, "pg_last_wal_replay_lsn()") and node["wal_position"] >= written
    assert node["lag_bytes"] == node["wal_position"] - node["replay_position"] > 1000000
    assert node["lag_seconds"] > 0 and node["healthy"] == 0
    sender = of(ask(primary, "replication"), "sender")
    assert sender["lag_bytes"] > 1000000 and sender["lag_seconds"] > 0 and sender["state"] == "streaming"
    standby.sql("SELECT pg_wal_replay_resume()")

    # Slots that have lost their WAL are rows like others.
    for _again in range(7):
        primary.sql("INSERT INTO filler SELECT generate_series(1, 200000)")
        primary.sql("SELECT pg_switch_wal()")
    for _again in range(2):
        primary.sql("CHECKPOINT")
    rows = ask(primary, "replication")
    slot = of(rows, "slot", "lazy")
    assert (slot["state"], slot["healthy"], slot["wal_position"], slot["retained_bytes"]) == ("lost", 0, None, None)
    assert of(rows, "node")["healthy"] == 0 and of(rows, "slot", "db2")["healthy"] == 1

    # Without an upstream it is not known how old the data is, only that it is not younger.
    primary.stop()
    wait_until(lambda: not [row for row in ask(standby, "replication") if row["what"] == "receiver"], 30)
    node = of(ask(standby, "replication"), "node")
    assert (node["state"], node["healthy"]) == ("standby", 0) and node["lag_seconds"] > 0
    assert node["wal_position"] == node["replay_position"]

    standby.sql("SELECT pg_promote()")
    node = of(site.new_samples("replication", "db2"), "node")
    assert (node["state"], node["timeline"], node["healthy"], node["lag_bytes"]) == ("primary", 2, 1, None)
    assert "db2" not in site.errors()

    # Positions are read as bytes per second, also across the promotion.
    rates = site.repository.sql(
        "SELECT r.wal_position_per_second FROM powa_servers s, powa_replication_rates(s.id) r WHERE s.alias = 'db2' AND r.what = 'node'", dbname="powa"
    )
    assert max(rate for (rate,) in rates if rate is not None) > 0


def test_archive_recovery(generation, own_lab):
    """A standby that only restores from an archive, and one whose archive is empty: no receiver, no error."""
    archive = own_lab.path / "archive"
    archive.mkdir()
    archive.chmod(0o777)
    settings = {"archive_mode": "on", "archive_command": "cp %%p %s/%%f" % archive, "restore_command": "cp %s/%%f %%p" % archive}
    primary = own_lab.postgres("db1", settings=settings, system=generation.system).init().start()
    primary.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % PASSWORDS["monitor"])
    remote = {**primary.login, "side": "remote"}
    made = call_module("powa_archivist", {**remote, "extensions": [], "grant_to": [{"role": "monitor"}]})
    assert not made["failed"], made
    made = call_module("powa_datasource", {**remote, "login_db": "powa", **declaration("replication")})
    assert not made["failed"], made
    standby = own_lab.postgres("db2", settings={**settings, "archive_mode": "off"}, system=generation.system).clone(primary, slot=False)
    standby.stop()
    standby.write(standby.data / "postgresql.auto.conf", "")
    standby.start()
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 10)")
    primary.sql("SELECT pg_switch_wal()")
    wait_until(lambda: standby.value("SELECT to_regclass('t') IS NOT NULL"), 30)
    rows = ask(standby, "replication")
    assert [row["what"] for row in rows] == ["node"]
    node = rows[0]
    assert (node["state"], node["timeline"], node["healthy"], node["lag_bytes"]) == ("standby", 1, 0, 0) and node["lag_seconds"] >= 0
    # An archive that fails shows on the primary.
    archive.chmod(0o500)
    primary.sql("INSERT INTO t VALUES (1)")
    primary.sql("SELECT pg_switch_wal()")
    wait_until(lambda: of(ask(primary, "replication"), "node")["healthy"] == 0, 30)
