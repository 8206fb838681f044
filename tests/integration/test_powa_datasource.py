# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_datasource with both generations of PoWA, their real collectors and two remote servers each."""

from __future__ import annotations

import threading

import psycopg
import pytest
from lab import PRELOAD, call_module, four_steps, wait_until

PASSWORDS = {"collector": "collector-secret-1", "monitor": "remote-secret-1"}
COLUMNS = [
    {"name": "datname", "type": "text", "kind": "label"},
    {"name": "size", "type": "bigint", "kind": "gauge", "description": "bytes"},
    {"name": "commits", "type": "bigint", "kind": "counter"},
]
QUERY = """
SELECT s.xact_commit AS commits, d.datname, pg_database_size(d.oid) AS size -- not in the order of the columns
FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid;
"""
DECLARED = {"name": "sizes", "columns": COLUMNS, "query": QUERY}


class Site:
    """A repository, two remote servers registered as one and two, and a collector."""

    def __init__(self, lab, generation):
        self.generation = generation
        self.repository = lab.postgres("repository-" + generation.name, system=generation.system).init().start()
        settings = {"shared_preload_libraries": PRELOAD}
        self.remotes = {}
        for name in ("one", "two"):
            self.remotes[name] = lab.postgres(name + "-" + generation.name, settings=settings, system=generation.system).init().start()
        self.repository.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % PASSWORDS["collector"])
        self.must("powa_archivist", {**self.repository.login, "side": "repository", "grant_to": [{"role": "collector"}]})
        for remote in self.remotes.values():
            remote.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % PASSWORDS["monitor"])
            self.must("powa_archivist", {**remote.login, "side": "remote", "grant_to": [{"role": "monitor"}]})
        self.must("powa_server", {**self.repository.login, "servers": [self.entry(name) for name in self.remotes]})
        self.collector = lab.collector(self.repository, PASSWORDS, name="collector-" + generation.name)

    @staticmethod
    def must(name, options, **kwargs):
        result = call_module(name, options, **kwargs)
        assert not result["failed"], result
        return result

    def entry(self, name):
        return {"alias": name, "host": "127.0.0.1", "port": self.remotes[name].port, "user": "monitor", "frequency": 5, "powa_coalesce": 5}

    def remote(self, declared, name="one", **more):
        return {**self.remotes[name].login, "side": "remote", **declared, **more}

    def store(self, declared, **more):
        return {**self.repository.login, "side": "repository", "source_connect_params": {"passfile": str(self.collector.passfile)}, **declared, **more}

    def value(self, query, *parameters):
        return self.repository.value(query, parameters or None, dbname="powa")

    def rows(self, query, *parameters):
        return self.repository.sql(query, parameters or None, dbname="powa")

    def srvid(self, name):
        return self.value("SELECT id FROM powa_servers WHERE alias = %s", name)


@pytest.fixture(scope="module")
def site(lab, generation):
    return Site(lab, generation)


def deployed(site, declared, names=("one", "two"), **more):
    """Both sides of a datasource; the result is that of the repository."""
    for name in names:
        site.must("powa_datasource", site.remote(declared, name))
    return site.must("powa_datasource", site.store(declared, servers=list(names), **more))


def snapshot(site, *servers):
    """What the collector does for each server, without waiting for it: copy, then powa_take_snapshot, as its role."""
    for name in servers:
        srvid = site.srvid(name)
        remote, store = site.remotes[name], site.repository
        with (
            psycopg.connect(host="127.0.0.1", port=remote.port, user="monitor", password=PASSWORDS["monitor"], dbname="powa") as source,
            psycopg.connect(host="127.0.0.1", port=store.port, user="collector", password=PASSWORDS["collector"], dbname="powa") as target,
        ):
            sources = target.execute(
                "SELECT query_source FROM powa_functions WHERE srvid = %s AND operation = 'snapshot' AND enabled"
                " AND query_source ~ '^powa_(sizes|manual|counted|odd)'",
                [srvid],
            ).fetchall()
            for (query_source,) in sources:
                with source.cursor() as out, out.copy("COPY (SELECT %d, * FROM public.%s(0)) TO STDOUT" % (srvid, query_source)) as rows:
                    data = b"".join(map(bytes, rows))
                with target.cursor() as into, into.copy("COPY public.%s_tmp FROM STDIN" % query_source) as copy:
                    copy.write(data)
            assert target.execute("SELECT public.powa_take_snapshot(%s)", [srvid]).fetchone() == (0,), target.execute(
                "SELECT errors FROM public.powa_snapshot_metas WHERE srvid = %s", [srvid]
            ).fetchone()


def aggregate_next(site, name):
    """Let the next snapshot of a server aggregate, and the one behind it purge."""
    srvid = site.srvid(name)
    # PoWA 5 spreads the work of its servers.
    shift = srvid % 20 if site.generation.name == "powa5" else 0
    site.rows("UPDATE powa_snapshot_metas SET coalesce_seq = 24 - %s WHERE srvid = %s", shift % 5, srvid)


def test_what_a_declaration_generates_collects_aggregates_and_purges(site):
    """With the real collector."""
    for name in site.remotes:
        result = four_steps("powa_datasource", site.remote(DECLARED, name))
        assert result["plan"] == ["create function powa_sizes_src"] and result["query_source"] == "powa_sizes_src"
    result = four_steps("powa_datasource", site.store(DECLARED))
    assert result["servers"] == [{"alias": "one", "active": True}, {"alias": "two", "active": True}]
    assert result["checked_servers"] == [] and "create the tables of sizes" in result["plan"]
    assert site.value("SELECT count(*) FROM powa_sizes_history_current") == 0  # the trial snapshot was rolled back
    site.collector.start()
    try:
        login = {**site.repository.login, "login_user": "collector", "login_password": PASSWORDS["collector"]}
        site.must("powa_collector", {**login, "wait_snapshot": "any", "timeout": 120})
        assert site.value("SELECT count(DISTINCT srvid) FROM powa_sizes_history_current") == 2
        assert site.value("SELECT count(*) FROM powa_sizes_src_tmp") == 0
        for name, remote in site.remotes.items():
            stored = dict(site.rows("SELECT DISTINCT ON (datname) datname, size FROM powa_sizes_samples(%s) ORDER BY datname, ts", site.srvid(name)))
            assert set(stored) == {"postgres", "powa", "template1", "template0"}
            assert abs(stored["template0"] - remote.value("SELECT pg_database_size('template0')")) < 1 << 20
        aggregate_next(site, "one")
        one = site.srvid("one")
        wait_until(lambda: site.value("SELECT count(*) FROM powa_sizes_history WHERE srvid = %s", one) > 0, 120)
        assert site.value("SELECT count(*) FROM powa_sizes_history WHERE srvid = %s AND array_length(records, 1) >= 1", one) == 4
        site.must("powa_server", {**site.repository.login, "servers": [{**site.entry("one"), "retention": "1 second"}]})
        # Purging comes with the snapshot behind the one that aggregates.
        wait_until(lambda: site.value("SELECT count(*) FROM powa_sizes_history WHERE srvid = %s", one) == 0, 120)
        assert not any(site.value("SELECT errors FROM powa_snapshot_metas WHERE srvid = %s", site.srvid(name)) for name in site.remotes)
    finally:
        site.collector.stop()
    site.must("powa_server", {**site.repository.login, "servers": [{**site.entry("one"), "retention": "1 day"}]})
    # A server that goes takes its history with it.
    site.rows("INSERT INTO powa_sizes_src_tmp (srvid, ts, datname) VALUES (%s, now(), 'left')", site.srvid("two"))
    gone = site.srvid("two")
    site.must("powa_server", {**site.repository.login, "servers": [{"alias": "two", "state": "absent", "purge": True}]})
    for table in ("powa_sizes_history", "powa_sizes_history_current", "powa_sizes_src_tmp"):
        assert site.value("SELECT count(*) FROM %s WHERE srvid = %d" % (table, gone)) == 0, table
    # One that is registered later gets it with the next run.
    site.must("powa_server", {**site.repository.login, "servers": [site.entry("two")]})
    again = four_steps("powa_datasource", site.store(DECLARED))
    assert again["plan"] == ['activate sizes on server "two"']


def counted(columns, query):
    return {"name": "counted", "columns": [dict(zip(("name", "type", "kind"), column)) for column in columns], "query": query}


BEFORE = counted(
    [("what", "text", "label"), ("n", "integer", "counter"), ("level", "integer", "gauge")],
    "SELECT * FROM (VALUES ('a', 10, 1), ('b', 20, 2)) AS v(what, n, level)",
)


@pytest.fixture
def counted_site(site):
    """A datasource with samples as a collector stored them: 100 in 10 s, a reset, 5 in 5 s, half of them aggregated already."""
    deployed(site, BEFORE, ["one"])
    srvid = site.srvid("one")
    # In the order of the names: level, n.
    record = "ROW(timestamptz '2026-01-01 00:00:00+00' + interval '1 s' * %d, %d, %d)::powa_counted_record"
    records = "ARRAY[%s]" % ", ".join(record % one for one in ((0, 7, 0), (10, 8, 100)))
    site.rows("INSERT INTO powa_counted_history SELECT %%s, 'a', tstzrange(min(ts), max(ts), '[]'), %s FROM unnest(%s)" % (records, records), srvid)
    for one in ((15, 9, 1), (20, 9, 6)):
        site.rows("INSERT INTO powa_counted_history_current VALUES (%%s, 'a', %s)" % (record % one), srvid)
        site.rows("INSERT INTO powa_counted_history_current VALUES (%%s, 'b', %s)" % (record % one), srvid)
    yield site
    site.must("powa_datasource", site.store({"name": "counted", "state": "absent"}, purge=True))
    for name in site.remotes:
        site.must("powa_datasource", site.remote({"name": "counted", "state": "absent"}, name))


def test_rates_are_differences_by_time_and_a_reset_is_no_rate(counted_site):
    site, srvid = counted_site, counted_site.srvid("one")
    rates = site.rows("SELECT what, extract(epoch FROM ts)::int %% 60, level, n_per_second FROM powa_counted_rates(%s) ORDER BY 1, 2", srvid)
    assert rates == [("a", 0, 7, None), ("a", 10, 8, 10.0), ("a", 15, 9, None), ("a", 20, 9, 1.0), ("b", 15, 9, None), ("b", 20, 9, 1.0)]
    window = site.rows("SELECT what, n FROM powa_counted_samples(_from => '2026-01-01 00:00:05+00', _to => '2026-01-01 00:00:15+00') ORDER BY 1, ts")
    assert window == [("a", 100), ("a", 1), ("b", 1)]
    assert site.value("SELECT count(*) FROM powa_counted_samples(%s)", srvid + 1000) == 0


AFTER = counted(
    [("level", "numeric", "gauge"), ("extra", "text", "label"), ("what", "text", "label"), ("n", "bigint", "counter"), ("m", "double precision", "gauge")],
    "SELECT 1 AS level, 'x' AS extra, 'a' AS what, 5000000000 AS n, 0.5 AS m",
)


def test_another_declaration_migrates_the_history(counted_site):
    site, one = counted_site, counted_site.srvid("one")
    before = site.rows("SELECT what, ts, n, level FROM powa_counted_samples(%s) ORDER BY 1, 2", one)
    assert len(before) == 6
    site.rows("GRANT SELECT ON powa_counted_history TO pg_monitor")
    # The source of the server does not yield it yet.
    early = call_module("powa_datasource", site.store(AFTER, servers=["one"]))
    assert early["failed"] and early["faults"][0]["check"] == "transient_columns" and early["changed"] is False, early
    four_steps("powa_datasource", site.remote(AFTER))
    result = four_steps("powa_datasource", site.store(AFTER, servers=["one"]))
    changes = ["add extra text", "add m double precision", "change level from integer to numeric", "change n from integer to bigint"]
    assert result["plan"][0] == "migrate the history of counted: " + ", ".join(changes)
    assert site.rows("SELECT what, ts, n, level FROM powa_counted_samples(%s) ORDER BY 1, 2", one) == before
    assert site.value("SELECT count(*) FROM powa_counted_samples(%s) WHERE extra IS NULL AND m IS NULL", one) == 6
    assert site.value("SELECT has_table_privilege('pg_monitor', 'powa_counted_history', 'SELECT')")
    assert site.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'powa\\_counted%%old%%'") == 0
    snapshot(site, "one")
    aggregate_next(site, "one")
    snapshot(site, "one")
    assert site.rows("SELECT n, level, extra, m FROM powa_counted_samples(%s) WHERE extra IS NOT NULL", one) == [(5000000000, 1, "x", 0.5)] * 2
    assert site.value("SELECT count(*) FROM powa_counted_history_current") == 0

    # What would lose history is refused, before anything is changed.
    less = counted([("what", "text", "label"), ("n", "bigint", "counter")], "SELECT 'a' AS what, 1 AS n")
    refused = call_module("powa_datasource", site.store(less, servers=["one"], check_source=False))
    assert refused["failed"] and "no longer has extra, level, m, whose history would be lost" in refused["msg"] and "purge=true" in refused["msg"], refused
    other = counted([("what", "inet", "label"), ("n", "bigint", "counter")], "SELECT NULL::inet AS what, 1 AS n")
    refused = call_module("powa_datasource", site.store(other, servers=["one"], check_source=False, purge=True))
    assert refused["failed"] and 'column "what" of counted has a history of type text, which cannot become inet' in refused["msg"], refused
    assert site.value("SELECT count(*) FROM powa_counted_samples(%s)", one) == 8
    # A label that becomes a metric and the other way round, and a column that goes with consent.
    turned = counted([("what", "text", "gauge"), ("level", "numeric", "label"), ("n", "bigint", "counter")], "SELECT 'a' AS what, 1 AS level, 2 AS n")
    four_steps("powa_datasource", site.remote(turned))
    four_steps("powa_datasource", site.store(turned, servers=["one"], purge=True))
    assert site.rows("SELECT what, ts, n, level FROM powa_counted_samples(%s, _to => '2026-06-01') ORDER BY 1, 2", one) == before
    # Values that do not fit: the server says so and nothing has changed.
    narrow = counted([("what", "text", "gauge"), ("level", "numeric", "label"), ("n", "integer", "counter")], "SELECT 'a' AS what, 1 AS level, 2 AS n")
    refused = call_module("powa_datasource", site.store(narrow, servers=["one"], check_source=False))
    assert refused["failed"] and "out of range" in refused["msg"] and refused["performed"] == [], refused
    assert site.rows("SELECT what, ts, n, level FROM powa_counted_samples(%s, _to => '2026-06-01') ORDER BY 1, 2", one) == before


def test_what_a_migration_would_lose_or_must_not_touch(counted_site):
    """Follows from the ways in which somebody may have lost something."""
    site, one = counted_site, counted_site.srvid("one")
    columns = [("what", "text", "label"), ("n", "integer", "counter"), ("level", "float8", "gauge")]
    as_float = counted(columns, "SELECT 'a' AS what, 1 AS n, 0.5 AS level")
    # Indexes, storage parameters and the owner stay.
    site.rows("CREATE INDEX powa_counted_mine ON powa_counted_history (upper(coalesce_range)); ALTER TABLE powa_counted_history SET (fillfactor = 70)")
    site.rows("ALTER TABLE powa_counted_history OWNER TO pg_monitor")
    foreign = call_module("powa_datasource", site.store(as_float, servers=["one"], check_source=False))
    assert foreign["failed"] and "was not made by this module" in foreign["msg"]  # whoever owns it may have put anything there
    site.rows("CREATE ROLE apart SUPERUSER; ALTER TABLE powa_counted_history OWNER TO apart")
    site.must("powa_datasource", site.store(as_float, servers=["one"], check_source=False))
    assert site.value("SELECT count(*) FROM pg_indexes WHERE indexname = 'powa_counted_mine'") == 1
    assert site.rows("SELECT reloptions, relowner::regrole::text FROM pg_class WHERE relname = 'powa_counted_history'") == [(["fillfactor=70"], "apart")]
    site.rows("ALTER TABLE powa_counted_history OWNER TO postgres; DROP ROLE apart")
    site.rows("INSERT INTO powa_counted_history_current VALUES (%s, 'a', ROW(now(), 1.75, 1)::powa_counted_record)", one)
    lossy = call_module("powa_datasource", site.store(BEFORE, servers=["one"], check_source=False))
    assert lossy["failed"] and "1 values of level would not be the same as integer instead of double precision" in lossy["msg"], lossy
    assert site.value("SELECT count(*) FROM powa_counted_samples(%s) WHERE level = 1.75", one) == 1 and lossy["performed"] == []
    # Two columns of one type that change places are another datasource, not the same one.
    swapped = counted([("what", "text", "label"), ("m", "integer", "counter"), ("level", "float8", "gauge")], "SELECT 'a' AS what, 1 AS m, 0.5 AS level")
    site.must("powa_datasource", site.remote(swapped))
    found = call_module("powa_datasource", site.store(as_float, servers=["one"]))
    assert found["failed"] is False and found["changed"] is False  # active there already, nothing to ask for
    site.rows("SELECT powa_counted_unregister(%s)", one)
    found = call_module("powa_datasource", site.store(as_float, servers=["one"]))
    assert found["failed"] and found["faults"][0]["check"] == "transient_columns" and "m integer" in found["msg"], found
    # A name under which somebody has registered functions of his own.
    if site.generation.name == "powa4":
        site.rows("UPDATE powa_functions SET function_name = 'theirs' WHERE module = 'counted'; INSERT INTO powa_functions (srvid, module, operation,"
                  " function_name, added_manually, enabled) VALUES (%d, 'counted', 'purge', 'theirs', true, true)" % one)  # fmt: skip
    else:
        site.rows("UPDATE powa_extension_functions SET function_name = 'theirs' WHERE extname = 'counted' AND operation = 'purge'")
    taken = call_module("powa_datasource", site.store(as_float, check_source=False))
    assert taken["failed"] and 'the datasource "counted" with theirs' in taken["msg"], taken


def test_types_keep_what_they_are_given(site):
    """bpchar and bit without a length are one character long where their other names are used."""
    declared = {
        "name": "odd",
        "columns": [
            {"name": "n", "type": "char(10)", "kind": "label"}, {"name": "b", "type": "bit(8)", "kind": "gauge"},
            {"name": "user", "type": "varchar(3)", "kind": "gauge"}, {"name": "list", "type": "text[]", "kind": "label"},
        ],
        "query": "SELECT 'abcdef'::bpchar AS n, B'10110011' AS b, 'abcdef' AS \"user\", ARRAY['{x}', '$$', '%s'] AS list -- {} %",
    }  # fmt: skip
    four_steps("powa_datasource", site.remote(declared))
    four_steps("powa_datasource", site.store(declared, servers=["one"]))
    snapshot(site, "one")
    stored = 'SELECT n::text, b::text, "user"::text, list FROM powa_odd_samples()'
    assert site.rows(stored) == [("abcdef", "10110011", "abcdef", ["{x}", "$$", "%s"])]
    # A label called n, and another type of it.
    declared["columns"][0]["type"] = "text"
    four_steps("powa_datasource", site.remote(declared))
    four_steps("powa_datasource", site.store(declared, servers=["one"]))
    assert site.rows(stored) == [("abcdef", "10110011", "abcdef", ["{x}", "$$", "%s"])]
    site.must("powa_datasource", site.store({"name": "odd", "state": "absent"}, purge=True))
    empty = call_module("powa_datasource", site.store({"name": "odd", "functions": {}}))
    assert empty["failed"] and empty["error"] == "InvalidInput" and "functions is empty" in empty["msg"], empty


def test_absent_stops_collecting_and_drops_history_only_with_consent(counted_site):
    site, one = counted_site, counted_site.srvid("one")
    declared = {"name": "counted", "state": "absent"}
    result = four_steps("powa_datasource", site.store(declared))
    assert result["plan"] == ["unregister counted"] and result["history_bytes"] > 0
    assert site.value("SELECT count(*) FROM powa_functions WHERE function_name LIKE 'powa_counted%%'") == 0
    assert site.value("SELECT count(*) FROM powa_counted_samples(%s)", one) > 0
    result = four_steps("powa_datasource", site.store(declared, purge=True))
    assert len(result["plan"]) == 1 and result["plan"][0].startswith("drop the tables and functions of counted with "), result
    assert site.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'powa_counted%%'") == 0
    assert site.value("SELECT count(*) FROM pg_proc WHERE proname LIKE 'powa_counted%%'") == 0
    assert four_steps("powa_datasource", site.remote(declared))["plan"] == ["drop function powa_counted_src"]


def test_the_servers_it_is_active_on(counted_site):
    site = counted_site
    deployed(site, BEFORE, ["one", "two"])
    only = four_steps("powa_datasource", site.store(BEFORE, servers=["two"], servers_exact=True))
    assert only["plan"] == ['deactivate counted on server "one"'] and [one["active"] for one in only["servers"]] == [False, True]
    assert four_steps("powa_datasource", site.store(BEFORE, servers=["two"]), expect_change=False)["checked_servers"] == []
    assert four_steps("powa_datasource", site.store(BEFORE, servers=["one"]))["plan"] == ['activate counted on server "one"']
    unknown = call_module("powa_datasource", site.store(BEFORE, servers=["one", "three"]))
    assert unknown["failed"] and unknown["error"] == "InvalidInput" and "servers names three" in unknown["msg"] and "one, two" in unknown["msg"]
    # What was registered twice or half by hand is put right.
    if site.generation.name == "powa4":
        site.rows("INSERT INTO powa_functions SELECT * FROM powa_functions WHERE module = 'counted' AND operation = 'snapshot'")
        mended = four_steps("powa_datasource", site.store(BEFORE))
        assert mended["plan"] == ['correct the registration of counted on server "%s"' % name for name in ("one", "two")]
    else:
        site.rows("UPDATE powa_extensions SET external = true WHERE extname = 'counted'")
        site.rows("DELETE FROM powa_extension_functions WHERE extname = 'counted' AND operation = 'purge'")
        assert four_steps("powa_datasource", site.store(BEFORE))["plan"] == ["register the functions of counted"]
    # So is a function that somebody changed.
    site.rows("CREATE OR REPLACE FUNCTION powa_counted_purge(_srvid integer) RETURNS void LANGUAGE plpgsql AS 'BEGIN END'")
    mended = four_steps("powa_datasource", site.store(BEFORE))
    assert mended["plan"] == ["replace function powa_counted_purge"] and "BEGIN END" in mended["diff"][0]["before"]
    # powa_NAME_unregister does for one server what people know from PoWA's own.
    assert site.value("SELECT powa_counted_unregister(%s)", site.srvid("two")) is True
    assert [one["active"] for one in call_module("powa_datasource", site.store(BEFORE, servers=["one"]))["servers"]] == [True, False]


# Functions of somebody's own, as PoWA's contract asks for. What the documentation prints for this example does not work.
MANUAL = {
    "query_source": "powa_manual_src", "snapshot": "powa_manual_snapshot", "aggregate": "powa_manual_aggregate",
    "purge": "powa_manual_purge", "reset": "powa_manual_reset",
}  # fmt: skip
MANUAL_REMOTE = """
CREATE FUNCTION public.powa_manual_src(_srvid integer, OUT ts timestamptz, OUT my_counter integer) RETURNS SETOF record STABLE LANGUAGE sql
  AS $$ SELECT pg_catalog.now(), 42 $$;
"""
MANUAL_REPOSITORY = """
CREATE UNLOGGED TABLE public.powa_manual_src_tmp (srvid integer NOT NULL, ts timestamptz NOT NULL, my_counter integer NOT NULL);
CREATE TABLE public.powa_manual_history (srvid integer NOT NULL REFERENCES public.powa_servers ON DELETE CASCADE, ts timestamptz, my_counter integer);
CREATE FUNCTION public.powa_manual_snapshot(_srvid integer) RETURNS void LANGUAGE sql AS
  $$ WITH s AS (DELETE FROM public.powa_manual_src_tmp WHERE srvid = _srvid RETURNING *) INSERT INTO public.powa_manual_history SELECT * FROM s $$;
CREATE FUNCTION public.powa_manual_aggregate(_srvid integer) RETURNS void LANGUAGE sql AS $$ SELECT $$;
CREATE FUNCTION public.powa_manual_purge(_srvid integer) RETURNS void LANGUAGE sql AS
  $$ DELETE FROM public.powa_manual_history h USING public.powa_servers s WHERE s.id = h.srvid AND h.srvid = _srvid AND h.ts < now() - s.retention $$;
CREATE FUNCTION public.powa_manual_reset(_srvid integer) RETURNS void LANGUAGE sql AS $$ DELETE FROM public.powa_manual_history WHERE srvid = _srvid $$;
"""
SNAPSHOT_HEAD = "CREATE OR REPLACE FUNCTION public.powa_manual_snapshot(_srvid integer) RETURNS void LANGUAGE "
SOURCE_HEAD = "CREATE OR REPLACE FUNCTION public.powa_manual_src(_srvid integer, OUT ts timestamptz, OUT my_counter integer) RETURNS SETOF record LANGUAGE "


def manual(**changes):
    return {"name": "manual", "functions": {**MANUAL, **changes}}


@pytest.fixture
def handmade(site):
    """Functions of somebody's own on both sides, as they should be."""
    granted = {"powa4": "collector", "powa5": "powa_admin, powa_write_all_data, powa_snapshot"}[site.generation.name]
    rights = "GRANT SELECT, INSERT, UPDATE, DELETE ON public.powa_manual_src_tmp, public.powa_manual_history TO %s" % granted
    site.remotes["one"].sql(MANUAL_REMOTE, dbname="powa")
    site.rows(MANUAL_REPOSITORY + rights)
    yield site
    site.must("powa_datasource", site.store({"name": "manual", "state": "absent"}))
    site.remotes["one"].sql("DROP SCHEMA IF EXISTS elsewhere CASCADE", dbname="powa")
    for database in (site.remotes["one"], site.repository):
        for (dropped,) in database.sql(
            "SELECT format('DROP FUNCTION %s', oid::regprocedure) FROM pg_proc WHERE proname LIKE 'powa_manual%' OR proname = 'powa_MANUAL_src'"
            " UNION ALL SELECT format('DROP TABLE %s', oid::regclass) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'powa_manual%'",
            dbname="powa",
        ):
            database.sql(dropped, dbname="powa")


def test_functions_of_ones_own_are_registered_and_collect(handmade):
    site = handmade
    assert site.must("powa_datasource", site.remote(manual()))["changed"] is False
    result = four_steps("powa_datasource", site.store(manual(), servers=["one"]))
    assert result["query_source"] == "powa_manual_src" and result["plan"][-1] == 'activate manual on server "one"'
    assert site.value("SELECT count(*) FROM powa_manual_history") == 0
    snapshot(site, "one")
    snapshot(site, "one")
    assert site.rows("SELECT srvid, my_counter FROM powa_manual_history") == [(site.srvid("one"), 42)] * 2
    absent = four_steps("powa_datasource", site.store({**manual(), "state": "absent"}, purge=True))
    assert absent["plan"] == ["unregister manual"] and site.value("SELECT count(*) FROM powa_manual_history") == 2


# Name of the check, where it is broken, how, and what the message says. The names are those of the result.
FAULTS = {
    "source_missing": ("remote", "DROP FUNCTION public.powa_manual_src", "no function powa_manual_src"),
    "source_signature": (
        "remote",
        "ALTER FUNCTION public.powa_manual_src RENAME TO x_manual; CREATE FUNCTION public.powa_manual_src() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "DROP FUNCTION x_manual",
        "has only powa_manual_src()",
    ),
    "source_not_set": (
        "remote",
        "DROP FUNCTION public.powa_manual_src; CREATE FUNCTION public.powa_manual_src(_srvid int) RETURNS void LANGUAGE sql AS 'SELECT'",
        "returns void",
    ),
    "source_privilege": ("remote", "REVOKE ALL ON FUNCTION public.powa_manual_src FROM PUBLIC", "permission denied for function powa_manual_src"),
    "source_ambiguous": (
        "remote",
        SOURCE_HEAD + "plpgsql AS $$ BEGIN RETURN QUERY SELECT now(), my_counter FROM (SELECT 1 AS my_counter) x; END $$",
        'column reference "my_counter" is ambiguous',
    ),
    "source_writes": ("remote", SOURCE_HEAD + "plpgsql AS $$ BEGIN CREATE TABLE public.x_manual (i int); END $$", "read-only transaction"),
    "source_slow": ("remote", SOURCE_HEAD + "sql AS $$ SELECT pg_catalog.now(), 1 FROM pg_catalog.pg_sleep(60) $$", "statement timeout"),
    "source_fails": ("remote", SOURCE_HEAD + "sql AS $$ SELECT pg_catalog.now(), 1 / pg_catalog.random()::int / 0 $$", "division by zero"),
    "source_unqualified": (
        "remote",
        "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.unq (i int);"
        + SOURCE_HEAD
        + "plpgsql AS $$ BEGIN RETURN QUERY SELECT pg_catalog.now(), i FROM unq; END $$",
        'relation "unq" does not exist',
    ),
    "transient_missing": ("repository", "DROP TABLE public.powa_manual_src_tmp", "no table powa_manual_src_tmp"),
    "transient_columns": ("repository", "ALTER TABLE public.powa_manual_src_tmp ALTER my_counter TYPE bigint", "with time zone, my_counter bigint"),
    "collector_rights": ("repository", "REVOKE INSERT ON public.powa_manual_src_tmp FROM collector, powa_write_all_data", "and not powa_manual_src_tmp"),
    "function_missing": ("repository", "DROP FUNCTION public.powa_manual_purge", "no function powa_manual_purge"),
    "function_signature": (
        "repository",
        "DROP FUNCTION public.powa_manual_purge; CREATE FUNCTION public.powa_manual_purge(text) RETURNS void LANGUAGE sql AS ''",
        "powa_manual_purge(text) and no powa_manual_purge(integer)",
    ),
    "powa3_form": (
        "repository",
        "DROP FUNCTION public.powa_manual_snapshot; CREATE FUNCTION public.powa_manual_snapshot() RETURNS void LANGUAGE sql AS ''",
        "this is the form of PoWA 3",
    ),
    "transient_not_emptied": (
        "repository",
        SNAPSHOT_HEAD + "sql AS $$ INSERT INTO public.powa_manual_history SELECT * FROM public.powa_manual_src_tmp WHERE srvid = _srvid $$",
        "leaves the rows of its server in powa_manual_src_tmp",
    ),
    # Looks right and is not: it empties for another server. Only the trial snapshot finds that, and so in check mode nothing does.
    "transient_not_emptied really": (
        "repository",
        SNAPSHOT_HEAD + "sql AS $$ DELETE FROM public.powa_manual_src_tmp WHERE srvid = _srvid + 1 $$",
        "leaves the rows of its server in powa_manual_src_tmp",
    ),
    "trial_snapshot": (
        "repository",
        SNAPSHOT_HEAD + "plpgsql AS $$ BEGIN DELETE FROM public.powa_manual_src_tmp; INSERT INTO public.powa_manual_history (my_counter) VALUES (1); END $$",
        'null value in column "srvid"',
    ),
    "trial_snapshot aggregate": (
        "repository",
        "CREATE OR REPLACE FUNCTION public.powa_manual_aggregate(_srvid integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 / 0; END $$",
        "powa_manual_aggregate(",
    ),
    "collector_rights of history": ("repository", "REVOKE ALL ON public.powa_manual_history FROM collector, powa_write_all_data", "permission denied for"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_before_anything_is_registered(handmade, fault):
    site = handmade
    side, statements, said = FAULTS[fault]
    check = fault.split()[0]
    own, other = ("collector", "powa_write_all_data") if site.generation.name == "powa4" else ("powa_write_all_data", "collector")
    statements = statements.replace("%s, " % other, "").replace(", %s" % other, "") if own in statements else statements
    (site.remotes["one"] if side == "remote" else site.repository).sql(statements, dbname="powa")
    options = site.store(manual(), servers=["one"], source_timeout=1)
    result = call_module("powa_datasource", options)
    assert result["failed"] and result["error"] == "Refused" and said in result["msg"], result
    assert [one["check"] for one in result["faults"]] == [check], result["faults"]
    assert result["changed"] is False and result["performed"] == []
    assert site.value("SELECT count(*) FROM powa_functions WHERE function_name LIKE 'powa_manual%%'") == 0
    # What needs a trial snapshot is found by a real run only.
    if check != "trial_snapshot" and " " not in fault:
        assert call_module("powa_datasource", options, check=True)["faults"] == result["faults"]
    if side == "remote":
        alone = call_module("powa_datasource", site.remote(manual(), source_timeout=1))
        # Rights are those of the collector's role, which the installer does not have.
        assert check == "source_privilege" or (alone["failed"] and alone["faults"][0]["check"] == check), alone


def test_all_faults_come_at_once_and_names_first(handmade):
    site = handmade
    site.rows("DROP TABLE powa_manual_src_tmp; DROP FUNCTION powa_manual_purge, powa_manual_aggregate")
    result = call_module("powa_datasource", site.store(manual(query_cleanup="SELECT '{bad name}', '{'"), servers=["one"]))
    expected = ["query_cleanup"] * (site.generation.name == "powa5") + ["function_missing", "function_missing", "transient_missing"]
    assert [one["check"] for one in result["faults"]] == expected and "has %d faults: (1)" % len(expected) in result["msg"], result
    result = call_module("powa_datasource", site.store(manual(snapshot='powa_x"; DROP TABLE powa_servers; --', query_source="powa_MANUAL_src")))
    assert [one["check"] for one in result["faults"]] == ["identifier", "identifier"]
    result = call_module("powa_datasource", site.store({"name": "manual", "functions": {"snapshot": "powa_manual_snapshot"}}))
    assert result["error"] == "InvalidInput" and "functions lacks query_source, aggregate, purge" in result["msg"]


def test_names_of_others_are_left_alone(handmade):
    site = handmade
    # A function that is registered under another name would be called twice.
    site.must("powa_datasource", site.store(manual(), servers=["one"]))
    twice = call_module("powa_datasource", site.store({"name": "manual2", "functions": MANUAL}, servers=["one"]))
    assert twice["failed"] and {one["check"] for one in twice["faults"]} == {"already_registered"} and 'registered for the datasource "manual"' in twice["msg"]
    # A declaration does not overwrite what somebody wrote.
    site.must("powa_datasource", site.store({"name": "manual", "state": "absent"}))
    declared = {**BEFORE, "name": "manual"}
    for options in (site.store(declared, check_source=False), site.remote(declared), site.remote({"name": "manual", "state": "absent"})):
        result = call_module("powa_datasource", options)
        assert result["failed"] and "was not made by this module" in result["msg"], result
    assert call_module("powa_datasource", site.store({"name": "manual", "state": "absent"}, purge=True))["failed"]
    # Nor is anything that PoWA collects itself.
    own = call_module("powa_datasource", site.store({"name": "pg_qualstats", "state": "absent"}))
    assert own["failed"] and "that PoWA collects itself" in own["msg"], own


def test_the_example_of_the_documentation_is_refused_and_the_declaration_of_it_collects(site):
    """my_datasource: the source returns no set, the transient table is never emptied, the names do not fit."""
    remote = site.remotes["one"]
    remote.sql("CREATE FUNCTION public.my_datasource(OUT my_counter integer) RETURNS integer LANGUAGE sql STABLE AS 'SELECT 42'", dbname="powa")
    remote.sql(
        "CREATE FUNCTION public.powa_my_datasource_src(srvid integer, OUT ts timestamptz, OUT my_counter integer) RETURNS record LANGUAGE plpgsql STABLE AS"
        " $$ BEGIN SELECT now(), d.my_counter INTO ts, my_counter FROM public.my_datasource() d; END $$",
        dbname="powa",
    )
    site.rows(
        "CREATE TABLE public.powa_my_datasource_src_tmp (srvid integer NOT NULL, ts timestamptz NOT NULL, my_counter integer);"
        "CREATE FUNCTION public.powa_my_datasource_snapshot(_srvid integer) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.powa_my_datasource_history SELECT ts, my_counter FROM public.powa_my_datasource_src_tmp; END $$;"
        "CREATE FUNCTION public.powa_my_datasource_aggregate(_srvid integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$"
    )
    names = {"query_source": "powa_my_datasource_src", "purge": "powa_mydatasource_purge"}
    names.update({"snapshot": "powa_mydatasource_snapshot", "aggregate": "powa_my_datasource_aggregate"})
    printed = {"name": "my_datasource", "functions": names}
    result = call_module("powa_datasource", site.store(printed, servers=["one"]))
    assert {"function_missing"} <= {one["check"] for one in result["faults"]} and "powa_mydatasource_snapshot" in result["msg"], result
    result = call_module("powa_datasource", site.remote(printed))
    assert [one["check"] for one in result["faults"]] == ["source_not_set"], result
    names["snapshot"] = "powa_my_datasource_snapshot"
    result = call_module("powa_datasource", site.store(printed, servers=["one"]))
    assert {"transient_not_emptied", "collector_rights"} <= {one["check"] for one in result["faults"]}, result
    site.rows("DROP TABLE powa_my_datasource_src_tmp; DROP FUNCTION powa_my_datasource_snapshot, powa_my_datasource_aggregate")
    remote.sql("DROP FUNCTION powa_my_datasource_src", dbname="powa")
    ours = {
        "name": "counted_by_me", "columns": [{"name": "my_counter", "type": "integer", "kind": "counter"}],
        "query": "SELECT my_counter FROM @extschema@.my_datasource()",
    }  # fmt: skip
    deployed(site, ours, ["one"])
    snapshot(site, "one")
    assert site.rows("SELECT srvid, my_counter FROM powa_counted_by_me_samples()") == [(site.srvid("one"), 42)]


def test_a_snapshot_that_is_under_way_is_waited_for(site):
    """PoWA's own functions fail at once while the collector holds the lock of a server."""
    declared = {**DECLARED, "name": "waits"}
    site.must("powa_datasource", site.remote(declared))
    with site.repository.connect("powa") as collecting:
        collecting.execute("BEGIN")
        collecting.execute("SELECT FROM powa_snapshot_metas WHERE srvid = %s FOR UPDATE", [site.srvid("one")])
        waited = []

        def end():
            wait_until(lambda: site.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"), 60)
            waited.append(True)
            collecting.execute("COMMIT")

        ending = threading.Thread(target=end)
        ending.start()
        site.must("powa_datasource", site.store(declared, servers=["one"]))
        ending.join()
    assert waited == [True]
    site.must("powa_datasource", site.store({"name": "waits"}, state="absent", purge=True))


def test_a_collector_that_has_copied_its_rows_takes_its_snapshot(site):
    """A change takes its locks in the order of the collector: neither is told of a deadlock."""
    declared = {**DECLARED, "name": "ordered"}
    site.must("powa_datasource", site.remote(declared))
    site.must("powa_datasource", site.store(declared, servers=["one"]))
    results = []
    with site.repository.connect("powa") as collecting:
        collecting.execute("BEGIN")
        collecting.execute("LOCK TABLE powa_ordered_src_tmp IN ROW EXCLUSIVE MODE")
        dropping = threading.Thread(target=lambda: results.append(call_module("powa_datasource", site.store({"name": "ordered"}, state="absent", purge=True))))
        dropping.start()
        wait_until(lambda: site.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"), 60)
        collecting.execute("SELECT powa_take_snapshot(%s)", [site.srvid("one")])
        collecting.execute("COMMIT")
        dropping.join()
    assert results[0]["changed"] and not results[0]["failed"], results
    assert site.rows("SELECT relname FROM pg_class WHERE relname LIKE 'powa_ordered%'") == []


def test_the_source_on_a_primary_and_its_standby(own_lab, generation):
    """PoWA in a schema of its own where that can be; an extension, rights of the definer, plpgsql."""
    settings = {"shared_preload_libraries": PRELOAD}
    primary = own_lab.postgres("primary", settings=settings, system=generation.system).init().start()
    schema = {"powa4": "public", "powa5": "observe"}[generation.name]
    primary.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % PASSWORDS["monitor"])
    Site.must("powa_archivist", {**primary.login, "side": "remote", "schema": schema, "grant_to": [{"role": "monitor"}]})
    standby = own_lab.postgres("standby", settings=settings, system=generation.system).clone(primary)
    primary.wait_for_standbys(1)
    columns = [{"name": "user", "type": "name", "kind": "label"}, {"name": "n", "type": "integer", "kind": "gauge"}]
    source = {
        "name": "definer", "columns": columns, "language": "plpgsql", "security_definer": True, "extensions": ["dblink"], "grant_to": ["monitor"],
        # The definer reads what the collector's role must not, by a password that is in no text.
        "query": "BEGIN RETURN QUERY SELECT now(), current_user, n FROM @extschema:dblink@.dblink('host=127.0.0.1 port=%d user=postgres passfile=%s',"
        " 'SELECT count(*)::int FROM pg_authid') AS d(n int); END" % (primary.port, primary.passfile),
    }  # fmt: skip
    wrong = call_module("powa_datasource", {**primary.login, "side": "remote", **source, "query": "BEGIN RETURN QUERY SELECT now(), current_user, 1/0; END"})
    assert wrong["failed"] and wrong["faults"][0]["check"] == "source_fails" and "division by zero" in wrong["msg"], wrong
    assert primary.value("SELECT count(*) FROM pg_proc WHERE proname = 'powa_definer_src'", dbname="powa") == 0
    early = call_module("powa_datasource", {**standby.login, "side": "remote", **source, "timeout": 1})
    assert early["failed"] and "is a standby and lacks" in early["msg"] and early["in_recovery"], early
    result = four_steps("powa_datasource", {**primary.login, "side": "remote", **source})
    assert result["plan"] == ["create extension dblink", "create function powa_definer_src", "let monitor execute powa_definer_src"]
    assert result["schema"] == schema
    for node in (primary, standby):
        with psycopg.connect(host="127.0.0.1", port=node.port, user="monitor", password=PASSWORDS["monitor"], dbname="powa") as connection:
            rows = connection.execute('SELECT "user", n > 1 FROM %s.powa_definer_src(0)' % schema).fetchall()
            assert rows == [("postgres", True)]
    assert call_module("powa_datasource", {**standby.login, "side": "remote", **source})["changed"] is False
    # Not for everybody, and not again for everybody after somebody gave it.
    primary.sql("GRANT EXECUTE ON FUNCTION %s.powa_definer_src TO PUBLIC" % schema, dbname="powa")
    assert four_steps("powa_datasource", {**primary.login, "side": "remote", **source})["plan"] == ["let monitor execute powa_definer_src"]
    assert primary.value("SELECT has_function_privilege('pg_monitor', '%s.powa_definer_src(integer)', 'EXECUTE')" % schema, dbname="powa") is False
    unknown = call_module("powa_datasource", {**primary.login, "side": "remote", **source, "grant_to": ["nobody_here"]})
    assert unknown["failed"] and "grant_to names nobody_here" in unknown["msg"]

    # The same server keeps the history as well, in the same schema.
    Site.must("powa_archivist", {**primary.login, "side": "repository", "schema": schema})
    entry = {"alias": "self", "host": "127.0.0.1", "port": primary.port, "user": "monitor", "password": PASSWORDS["monitor"]}
    Site.must("powa_server", {**primary.login, "servers": [entry]})
    declared = {key: value for key, value in source.items() if key != "grant_to"}
    result = four_steps("powa_datasource", {**primary.login, "side": "repository", **declared})
    assert result["schema"] == schema and result["servers"] == [{"alias": "self", "active": True}]
    more = [*columns, {"name": "x", "type": "int5", "kind": "gauge"}]
    wrong = call_module("powa_datasource", {**primary.login, "side": "repository", **declared, "columns": more})
    assert wrong["failed"] and wrong["error"] == "InvalidInput" and '"int5", which the server does not know' in wrong["msg"], wrong
    twins = {"name": "twins", "columns": columns[1:], "query": "SELECT n FROM generate_series(1, 2) AS n"}
    Site.must("powa_datasource", {**primary.login, "side": "remote", **twins})
    assert 'yields rows with the same labels on server "self"' in Site.must("powa_datasource", {**primary.login, "side": "repository", **twins})["printed"]
