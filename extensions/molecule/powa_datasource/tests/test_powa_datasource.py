# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""deploy_datasource with the declaration that docs/datasources.md gives to copy, all through its life. These run in this order."""

from __future__ import annotations

import copy
import pathlib
import re

import pytest
import yaml
from conftest import CLUSTER, MONITOR, NODES, ask, changes, make_whole, must_play, must_refuse, wait_for

DOCUMENTATION = pathlib.Path(__file__).parents[4] / "docs" / "datasources.md"
MADE = """
SELECT 'function', p.oid::regprocedure::text, md5(p.prosrc), p.proacl::text FROM pg_proc AS p WHERE p.proname ~ 'database_size'
  AND p.pronamespace <> 'pg_catalog'::regnamespace
UNION ALL SELECT 'column', c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod), c.relacl::text
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE c.relname ~ 'database_size' AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT 'type', t.typname, '', '' FROM pg_type AS t WHERE t.typname ~ 'database_size' ORDER BY 1, 2
"""


def made():
    """All that there is of the datasource, on each node and in the repository."""
    found = {name: ask(name, MADE, dbname="powa") for name in (*NODES, MONITOR)}
    found["registered"] = ask(MONITOR, "SELECT f.* FROM powa_functions AS f WHERE f::text ~ 'database_size' ORDER BY f::text", dbname="powa")
    return found


def newest():
    """The moment of the newest row of each node."""
    query = "SELECT v.alias, max(s.ts) FROM powa_servers AS v, powa_database_size_samples(v.id) AS s GROUP BY 1"
    return dict(ask(MONITOR, query, user="powa", dbname="powa"))


def rows_go_on_arriving():
    since = ask(MONITOR, "SELECT clock_timestamp()")[0][0]
    wait_for(lambda: set(newest()) == set(NODES) and min(newest().values()) > since, "newer rows of each node")
    errors = "SELECT v.alias, m.errors FROM powa_servers AS v JOIN powa_snapshot_metas AS m ON m.srvid = v.id WHERE cardinality(m.errors) > 0"
    wait_for(lambda: ask(MONITOR, errors, dbname="powa") == [], "a snapshot of each node without an error")


@pytest.fixture(scope="module")
def declared():
    text = DOCUMENTATION.read_text(encoding="utf-8").split("## One's own")[1]
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def path(declared, tmp_path_factory):
    """Where the user has it. Whatever fails, nothing of it is left and db1 is the primary."""
    make_whole()
    found = tmp_path_factory.mktemp("own") / "database_size.yml"
    found.write_text(yaml.safe_dump(declared), encoding="utf-8")
    yield found
    if any(made().values()):
        found.write_text(yaml.safe_dump(declared), encoding="utf-8")
        must_play("deploy_datasource", datasource=str(found), state="absent", purge=True)
    make_whole()


def deploy(path, **more):
    """Check mode, which changes nothing, the real run, and another one, which changes nothing either."""
    options = {"datasource": str(path), **more}
    before = made()
    would = changes(must_play("deploy_datasource", "--check", "--diff", **options))
    assert made() == before and would[MONITOR] and sum(would[node] for node in NODES) == 1, would
    did = changes(must_play("deploy_datasource", **options))
    assert did == would
    after = made()
    assert after != before
    printed = must_play("deploy_datasource", **options)
    assert not any(changes(printed).values()), printed
    assert made() == after


def test_its_rows_arrive_also_after_a_switchover(path):
    assert not any(made().values())
    deploy(path)
    rows_go_on_arriving()
    stored = ask(MONITOR, "SELECT DISTINCT datname FROM powa_database_size_samples() WHERE size > 1000000", user="powa", dbname="powa")
    assert {("app",), ("powa",), ("postgres",)} <= set(stored)
    must_play("switch_over", cluster=CLUSTER, candidate="db2")
    rows_go_on_arriving()
    rates = "SELECT commits_per_second FROM powa_database_size_rates((SELECT id FROM powa_servers WHERE alias = 'db2')) WHERE datname = 'powa'"
    assert any(rate and rate > 0 for (rate,) in ask(MONITOR, rates, user="powa", dbname="powa"))


def test_changed_columns_take_the_history_along(path, declared):
    more = copy.deepcopy(declared)
    more["columns"].insert(1, {"name": "backends", "type": "integer", "kind": "gauge"})
    more["query"] = declared["query"].replace("SELECT ", "SELECT s.numbackends AS backends, ", 1)
    path.write_text(yaml.safe_dump(more), encoding="utf-8")
    counted = "SELECT count(*), count(size), count(backends) FROM powa_database_size_samples()"
    rows, _sizes = ask(MONITOR, counted.replace(", count(backends)", ""), user="powa", dbname="powa")[0]
    deploy(path)
    rows_go_on_arriving()
    after, sizes, backends = ask(MONITOR, counted, user="powa", dbname="powa")[0]
    assert after > rows and sizes == after and 0 < backends <= after - rows
    # Without the column again: what it holds is lost, which takes consent.
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    before = made()
    must_refuse("purge", "deploy_datasource", datasource=str(path))
    assert made() == before


def test_nothing_of_it_is_left(path):
    deploy(path, state="absent", purge=True)
    assert not any(made().values())
    since = ask(MONITOR, "SELECT clock_timestamp()")[0][0]
    snapshots = "SELECT v.alias FROM powa_servers AS v JOIN powa_snapshot_metas AS m ON m.srvid = v.id WHERE m.snapts > '%s' AND cardinality(m.errors) IS NULL"
    wait_for(lambda: {alias for (alias,) in ask(MONITOR, snapshots % since, dbname="powa")} >= set(NODES), "snapshots without an error")
