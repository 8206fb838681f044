# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgbouncer_databases with the option nodes: entries led where the cluster's state says."""

from __future__ import annotations

import contextlib
import json
import threading

import psycopg
import pytest
from lab import SUPERUSER_PASSWORD, call_module, four_steps, wait_until

LOGIN = {"verify_user": "postgres", "verify_password": SUPERUSER_PASSWORD}


@pytest.fixture(scope="module")
def nodes(lab):
    """db1 is the primary, db2 and db3 stream from it."""
    primary = lab.postgres("db1").init().start()
    primary.sql("CREATE DATABASE app")
    primary.sql("CREATE DATABASE shop")
    standbys = [lab.postgres(name).clone(primary) for name in ("db2", "db3")]
    primary.wait_for_standbys(2)
    return [primary, *standbys]


@pytest.fixture
def cluster(own_lab):
    """The same with two nodes, for tests that break it."""
    primary = own_lab.postgres("db1").init().start()
    primary.sql("CREATE DATABASE app")
    standby = own_lab.postgres("db2").clone(primary)
    primary.wait_for_standbys(1)
    return [primary, standby]


def entry(node, **more):
    return "host=127.0.0.1 port=%d%s" % (node.port, "".join(" %s=%s" % item for item in more.items()))


def options(pooler, nodes, **more):
    listed = [{"name": node.name, "host": "127.0.0.1", "port": node.port, "priority": 10 - n} for n, node in enumerate(nodes)]
    return {**pooler.login, "config_file": str(pooler.databases_file), "nodes": listed, **LOGIN, **more}


def call(pooler, nodes, check=False, **more):
    return call_module("pgbouncer_databases", options(pooler, nodes, **more), check=check)


def targets(pooler):
    return {row["name"]: row["port"] for row in pooler.show("DATABASES") if row["name"] != "pgbouncer"}


def disabled(pooler):
    return sorted(row["name"] for row in pooler.show("DATABASES") if row["disabled"])


def test_handyreps_database_list(own_lab, nodes):
    db1, _db2, db3 = nodes
    pooler = own_lab.pgbouncer("pool", {"mine": "host=elsewhere port=1"}).start()
    before = pooler.databases_file.read_text()
    real = four_steps("pgbouncer_databases", options(pooler, nodes, database_list=["app", "shop"], extra_connect_param="pool_size=7 application_name='a b'"))
    extra = " pool_size=7 application_name='a b'\n"
    # db3 has the lowest priority number.
    lines = ["%s = host=127.0.0.1 port=%d dbname=%s%s" % (name, node.port, name[:4].rstrip("_"), extra) for name, node in (
        ("app", db1), ("app_ro", db3), ("shop", db1), ("shop_ro", db3))]  # fmt: skip
    assert pooler.databases_file.read_text() == before + "".join(lines)
    assert real["primary"] == "db1" and {name: facts["role"] for name, facts in real["verified"].items()} == {
        "app": "primary", "app_ro": "standby", "shop": "primary", "shop_ro": "standby"
    }  # fmt: skip
    assert targets(pooler) == {"mine": 1, "app": db1.port, "app_ro": db3.port, "shop": db1.port, "shop_ro": db3.port}
    real = four_steps("pgbouncer_databases", options(pooler, nodes, database_list=["app"], exclusive=True))
    assert targets(pooler) == {"app": db1.port, "app_ro": db3.port}


def test_all_replicas(own_lab, nodes):
    db1, db2, db3 = nodes
    pooler = own_lab.pgbouncer("pool", {"app_ro2": entry(db3, dbname="app")}).start()
    real = four_steps("pgbouncer_databases", options(pooler, nodes, database_list=["app"], all_replicas=True, readonly_suffix="_ro"))
    # The one that leads to a living standby stays.
    assert targets(pooler) == {"app": db1.port, "app_ro1": db2.port, "app_ro2": db3.port}
    assert real["plan"][0].endswith(": add app, add app_ro1")
    # A cluster with nodes that are not there: no name is missing.
    pooler = own_lab.pgbouncer("second", {}).start()
    call(pooler, nodes[:2], database_list=["app"], all_replicas=True)
    assert targets(pooler) == {"app": db1.port, "app_ro1": db2.port}


def test_entries_that_exist_are_led_anew_and_nothing_else(own_lab, nodes):
    db1, db2, db3 = nodes
    pooler = own_lab.pgbouncer(
        "pool", {"orders": entry(db2, dbname="app", pool_size=3), "orders_ro": entry(db2, dbname="app"), "reports": entry(db1, dbname="shop"),
                 "reports_ro7": entry(db1, dbname="shop"), "foreign": "host=elsewhere port=5432", "*": entry(db3)},
    )  # fmt: skip
    text = pooler.databases_file.read_text().replace("orders = ", "; kept\norders = ").replace("\n", "\r\n")
    pooler.databases_file.write_bytes(text.encode())
    pooler.start()
    real = four_steps("pgbouncer_databases", options(pooler, nodes))
    assert real["plan"][0].endswith(": change orders, change reports_ro7, change *")
    expected = text.replace("orders = " + entry(db2), "orders = " + entry(db1)).replace("reports_ro7 = " + entry(db1), "reports_ro7 = " + entry(db3))
    assert pooler.databases_file.read_bytes().decode() == expected.replace("* = " + entry(db3), "* = " + entry(db1))
    assert targets(pooler) == {"orders": db1.port, "orders_ro": db2.port, "reports": db1.port, "reports_ro7": db3.port, "foreign": 5432}
    none = own_lab.pgbouncer("none", {"foreign": "host=elsewhere port=5432"}).start()
    result = call(none, nodes)
    assert result["failed"] and result["error"] == "Refused" and "no entry" in result["msg"]


def test_it_follows_a_promotion_and_readers_go_where_a_standby_streams(own_lab, cluster):
    db1, db2 = cluster
    pooler = own_lab.pgbouncer("pool", {"app": entry(db1), "app_ro": entry(db2, dbname="app")}).start()
    assert call(pooler, cluster)["changed"] is False
    db1.stop()
    # No answer of db1 and no primary: nothing is changed.
    result = call(pooler, cluster)
    assert result["failed"] and result["error"] == "Refused" and "no node that answers is a primary" in result["msg"]
    assert targets(pooler) == {"app": db1.port, "app_ro": db2.port}
    db2.sql("SELECT pg_promote(true)")
    refused = call(pooler, cluster, without_standby="fail")
    assert refused["failed"] and refused["error"] == "Refused" and "no standby streams" in refused["msg"] and targets(pooler)["app"] == db1.port
    real = four_steps("pgbouncer_databases", options(pooler, cluster))
    assert real["primary"] == "db2" and targets(pooler) == {"app": db2.port, "app_ro": db2.port} and "db1 does not answer" in real["printed"]
    # The old primary comes back: two primaries.
    db1.start()
    for check in (True, False):
        result = call(pooler, cluster, check=check, database_list=["app"])
        assert result["failed"] and result["error"] == "SplitBrainRisk" and "db1, db2" in result["msg"]
    assert targets(pooler) == {"app": db2.port, "app_ro": db2.port}


def test_a_primary_of_an_old_timeline_is_none(own_lab, cluster):
    """The old primary is started again while the new one is down, and a standby of the new one shows what happened."""
    db1, db2 = cluster
    db3 = own_lab.postgres("db3").clone(db1)
    db1.wait_for_standbys(2)
    pooler = own_lab.pgbouncer("pool", {"app": entry(db2)}).start()
    db1.stop()
    db2.sql("SELECT pg_promote(true)")
    db3.follow(db2, slot=False)
    db3.stop()
    db3.start()
    wait_until(lambda: db2.value("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1, 60)
    db2.sql("CHECKPOINT")
    db3.sql("CHECKPOINT")
    db2.stop()
    db1.start()
    result = call(pooler, [db1, db2, db3])
    assert result["failed"] and result["error"] == "SplitBrainRisk" and "timeline" in result["msg"] and "db2" in result["msg"], result
    assert targets(pooler) == {"app": db2.port}


@pytest.mark.parametrize("fault", ["unreadable", "unwritable", "no reload"])
def test_disabled_and_not_wrong(own_lab, cluster, fault):
    db1, db2 = cluster
    pooler = own_lab.pgbouncer("pool", {"app": entry(db1), "app_ro": entry(db1, dbname="app"), "foreign": "host=elsewhere port=1"}).start()
    text, main = pooler.databases_file.read_text(), pooler.ini.read_text()
    client = pooler.connect("app")
    client.execute("SELECT 1")
    db1.stop()
    db2.sql("SELECT pg_promote(true)")
    if fault == "unreadable":
        pooler.databases_file.chmod(0)
    elif fault == "unwritable":
        pooler.base.chmod(0o500)
    else:
        pooler.ini.write_text("[pgbouncer]\nno_such_setting = 1\n" + main)
    with pooler.console() as console, contextlib.closing(client):
        reported = call(pooler, cluster, database_list=["app"], check=True, on_failure="disable")
        assert disabled(pooler) == []
        if fault != "no reload":
            reported = call(pooler, cluster, database_list=["app"])
            assert reported["failed"] and disabled(pooler) == [], reported
        result = call(pooler, cluster, on_failure="disable", database_list=["app"])
        assert result["failed"] and result["disabled"] == ["app"] and "app are refused" in result["msg"], result
        assert [row[0] for row in console.execute("SHOW DATABASES").fetchall() if row[-1]] == ["app"]
        with pytest.raises(psycopg.Error):
            client.execute("SELECT 1")
    if fault == "no reload":
        return  # PgBouncer has gone back to its defaults and lets no administrator in any more
    with pytest.raises(psycopg.Error, match="disabled"):
        pooler.connect("app")
    pooler.base.chmod(0o700)
    pooler.databases_file.chmod(0o600)
    assert pooler.databases_file.read_text() == text
    real = four_steps("pgbouncer_databases", options(pooler, cluster, database_list=["app"], on_failure="disable"))
    assert real["plan"][-1] == "enable app of 127.0.0.1:%d" % pooler.port and disabled(pooler) == []
    with contextlib.closing(pooler.connect("app")) as client:
        assert client.execute("SELECT inet_server_port()").fetchone() == (db2.port,)


def test_an_entry_that_stays_wrong_is_not_enabled(own_lab, nodes):
    """Its file is right already, and the run time is not: PgBouncer does not follow."""
    db2 = nodes[1]
    pooler = own_lab.pgbouncer("pool", {"app": entry(db2)}).start()
    with contextlib.closing(pooler.console()) as console:
        console.execute("DISABLE app")
        pooler.ini.write_text("[pgbouncer]\nno_such_setting = 1\n" + pooler.ini.read_text())
        result = call(pooler, nodes, on_failure="disable")
        assert result["failed"] and result["error"] == "NotConfirmed" and "stays disabled" in result["msg"], result
        assert [row[-1] for row in console.execute("SHOW DATABASES").fetchall() if row[0] == "app"] == [1]


def test_what_cannot_be_meant(own_lab, nodes):
    pooler = own_lab.pgbouncer("pool", {"app": entry(nodes[0])}).start()
    for more, expected in (
        ({"extra_connect_param": "pool_size=1"}, "database_list"),
        ({"database_list": ["app"], "extra_connect_param": "host=x"}, "host"),
        ({"database_list": ["app"], "extra_connect_param": "pool_size"}, "cannot be read"),
        ({"database_list": ["app"], "extra_connect_param": "nothing=1"}, 'no parameter "nothing"'),
        ({"exclusive": True}, "exclusive"),
        ({"databases": [{"name": "app"}]}, "mutually exclusive"),
    ):
        result = call(pooler, nodes, **more)
        assert result["failed"] and expected in result["msg"], (more, result)
    given = options(pooler, nodes, databases=[{"name": "app"}], on_failure="disable")
    del given["nodes"]
    alone = call_module("pgbouncer_databases", given)
    assert alone["failed"] and "needs the option nodes" in alone["msg"]
    secret = call(pooler, nodes, database_list=["app"], extra_connect_param="user=postgres password='geheim 1'", verify=False)
    assert not secret["failed"] and secret["changed"] and "geheim" not in json.dumps(secret)
    assert "password='geheim 1'" in pooler.databases_file.read_text()


def test_clients_that_write_while_their_entry_is_led_back(own_lab, nodes):
    """A run that finds all well does nothing to them."""
    pooler = own_lab.pgbouncer("pool", {"app": entry(nodes[0])}).start()
    stop, errors, done = threading.Event(), [], []

    def write():
        with contextlib.closing(pooler.connect("app")) as client:
            while not stop.is_set():
                try:
                    done.append(client.execute("SELECT txid_current()").fetchone())
                except psycopg.Error as error:
                    errors.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: done, 20)
        assert call(pooler, nodes)["changed"] is False
        assert call(pooler, nodes, database_list=["app"], on_failure="disable")["changed"] is True
    finally:
        stop.set()
        thread.join(60)
    assert errors == []
