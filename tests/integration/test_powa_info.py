# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_info on real repositories of both generations of PoWA, with the real collector, while things break."""

from __future__ import annotations

import json
import time

import pytest
from lab import PRELOAD, Lab, call_module, wait_until
from psycopg import errors, sql

EXTENSIONS = ["pg_qualstats", "pg_wait_sampling"]
PASSWORDS = {"collector": "collector-secret-1", "monitor": "remote-secret-1", "reader": "reader-secret-1"}
STORED = "stored-secret-1"


class Site:
    """A repository and two remote servers with roles, all by powa_archivist, and a collector that is not started."""

    def __init__(self, lab, generation):
        self.lab, self.generation = lab, generation
        system = generation.system
        self.repository = lab.postgres("repository", system=system).init().start()
        self.remotes = [lab.postgres(name, settings={"shared_preload_libraries": PRELOAD}, system=system).init().start() for name in ("prod1", "prod2")]
        grants = [{"role": "collector"}, {"role": "reader", "access": "reader"}]
        self._deploy(self.repository, ("collector", "reader"), side="repository", grant_to=grants)
        for remote in self.remotes:
            self._deploy(remote, ("monitor",), side="remote", extensions=EXTENSIONS, grant_to=[{"role": "monitor"}])
        self.collector = lab.collector(self.repository, PASSWORDS)

    @staticmethod
    def _deploy(server, roles, **options):
        for role in roles:
            server.sql(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(PASSWORDS[role])))
        result = call_module("powa_archivist", {**server.login, **options})
        assert not result["failed"], result

    def register(self, *remotes, **more):
        entries = [
            {"alias": one.name, "host": "127.0.0.1", "port": one.port, "user": "monitor", "frequency": 5, "extensions": EXTENSIONS, **more} for one in remotes
        ]
        result = call_module("powa_server", {**self.repository.login, "servers": entries})
        assert not result["failed"], result

    def info(self, login="collector", **options):
        result = call_module("powa_info", {**self.repository.login, "login_user": login, "login_password": PASSWORDS[login], **options})
        assert result.get("changed") is not True
        assert not [secret for secret in (*PASSWORDS.values(), STORED) if secret in json.dumps(result)]
        return result

    def until(self, condition, timeout=60, **options):
        """Ask until the condition holds of the answer, and return that answer."""
        answers = []

        def holds():
            answers.append(self.info(**options))
            return condition(answers[-1])

        try:
            wait_until(holds, timeout, interval=0.5)
        except AssertionError:
            raise AssertionError("last answer: %s" % json.dumps(answers[-1], indent=1)) from None
        return answers[-1]

    def snapshots(self, timeout=90):
        result = call_module("powa_collector", {**self.repository.login, "wait_snapshot": "new", "timeout": timeout})
        assert not result["failed"], result

    def custom(self, name):
        """Register a datasource of one's own for all servers, by hand; its functions need not exist to be described."""
        values = [(op, "%s_%s" % (name, op), name + "_src" if op == "snapshot" else None) for op in ("snapshot", "purge")]
        for operation, function, source in values:
            if self.generation.powa.startswith("4"):
                query = (
                    "INSERT INTO powa_functions (srvid, module, operation, function_name, query_source, enabled)"
                    " SELECT id, %s, %s, %s, %s, false FROM powa_servers"
                )
            else:
                self.repository.sql("INSERT INTO powa_extensions (extname, external) VALUES (%s, false) ON CONFLICT DO NOTHING", [name], dbname="powa")
                query = "INSERT INTO powa_extension_functions (extname, operation, function_name, query_source) VALUES (%s, %s, %s, %s)"
            self.repository.sql(query, [name, operation, function, source], dbname="powa")


@pytest.fixture(scope="module")
def site(generation):
    lab = Lab()
    yield Site(lab, generation)
    lab.close()


def of(result, alias):
    (server,) = [one for one in result["servers"] if one["alias"] == alias]
    return server


def drop_extension(node, name):
    """The collector copies over one connection while it has a transaction open on another: whoever waits between the two lets all three wait for ever."""

    def dropped():
        with node.connect("powa") as connection:
            connection.execute("SET lock_timeout = '500ms'")
            try:
                connection.execute("DROP EXTENSION %s CASCADE" % name)
            except errors.LockNotAvailable:
                return False
        return True

    wait_until(dropped, 60)


@pytest.mark.long_with("powa4")
def test_one_repository_through_good_and_bad_days(site):
    """One story, as each step needs the state that the one before has left."""
    repository, (first, second) = site.repository, site.remotes

    # Nothing is registered: nothing is wrong, but nobody is watched either.
    empty = site.info()
    assert (empty["status"], empty["reasons"], empty["servers"], empty["version"]) == ("ok", [], [], site.generation.powa), empty
    assert empty["collector"] == {"connected": False, "version": None, "duplicates": 0, "answered": None, "problem": None, "strays": []}
    assert "coverage" not in empty and empty["schema"] == "public"
    missing = site.info(expected=[{"name": "prod1", "host": "127.0.0.1", "port": first.port}], fail_on="warning")
    assert missing["failed"] and missing["error"] == "Unhealthy" and "nobody watches prod1 (127.0.0.1:%d): it is not registered" % first.port in missing["msg"]
    assert missing["coverage"]["unwatched"][0]["name"] == "prod1" and missing["status"] == "warning"

    # Registered, and nobody collects.
    site.register(first, password=STORED)
    call_module("powa_server", {**repository.login, "servers": [{"alias": "prod1", "clear_password": True}]})
    site.register(second)
    alone = site.info()
    assert alone["status"] == "critical" and alone["reasons"][0] == "no powa-collector is connected to the repository"
    assert of(alone, "prod1")["reasons"] == ["it has no snapshot yet"] and of(alone, "prod1")["stale"] is True and of(alone, "prod1")["max_age_seconds"] == 20
    failed = site.info(fail_on="critical")
    assert failed["failed"] and failed["error"] == "Unhealthy" and "the repository is critical: no powa-collector is connected" in failed["msg"]
    assert len(failed["servers"]) == 2

    # All is well, and this is known to a login that may read only, too.
    site.collector.start()
    site.snapshots()
    site.custom("mine")
    well = site.info(fail_on="warning", expected=[{"name": "any", "host": "127.0.0.1", "port": first.port}, {"name": "prod2", "host": "db2.example.org"}])
    assert not well["failed"] and well["status"] == "ok" and well["reasons"] == [], well
    assert well["coverage"] == {"unwatched": [], "unexpected": []}
    assert well["collector"] == {
        "connected": True, "version": site.generation.collector, "duplicates": 0, "answered": True, "problem": None, "strays": []
    }  # fmt: skip
    one = of(well, "prod1")
    assert (one["worker"], one["status"], one["stale"], one["errors"], one["has_password"]) == ("running", "ok", False, [], False)
    assert 0 < one["snapshot_age_seconds"] < 20 and one["snapshot_at"] and set(EXTENSIONS) < set(one["extensions"])
    assert well["datasources"]["mine"] == {
        "custom": True, "functions": {"snapshot": "mine_snapshot", "purge": "mine_purge"}, "query_source": "mine_src", "servers": []
    }  # fmt: skip
    qualstats = well["datasources"]["pg_qualstats"]
    assert qualstats["custom"] is False and qualstats["servers"] == ["prod1", "prod2"] and qualstats["functions"]["snapshot"] == "powa_qualstats_snapshot"
    reader = site.info("reader", ask_collector=False)
    assert reader["status"] == "ok" and of(reader, "prod1")["worker"] is None and reader["collector"]["answered"] is None, reader
    asking = site.info("reader")
    if site.generation.collector.startswith("1.2"):
        assert asking["status"] == "ok"
    else:
        assert asking["status"] == "critical" and "Permission denied" in asking["collector"]["problem"] and asking["collector"]["answered"] is False, asking
    stray = site.info(expected=[{"name": "prod1"}])
    assert stray["status"] == "warning" and [one["alias"] for one in stray["coverage"]["unexpected"]] == ["prod2"]
    counted = site.info(max_age_seconds=1000000, history=True)
    assert of(counted, "prod1")["max_age_seconds"] == 1000000 and "history" not in one
    history = of(counted, "prod1")["history"]
    statements = repository.value("SELECT count(*) FROM powa_statements_history_current WHERE srvid > 0", dbname="powa")
    assert history["rows"] > statements / 2 > 0 and history["bytes"] > history["rows"] and history["begins"] <= history["ends"]

    # A second collector.
    other = site.lab.collector(repository, PASSWORDS, name="second_collector").start()
    two = site.until(lambda answer: answer["collector"]["duplicates"] == 1, ask_collector=False)
    assert two["status"] == "warning" and "2 collectors are connected" in two["reasons"][0]
    other.stop()
    site.until(lambda answer: answer["collector"]["duplicates"] == 0, ask_collector=False)

    # A statistics extension is missing on a server: PoWA notes it, the rest is still collected.
    drop_extension(first, "pg_wait_sampling")
    noted = site.until(lambda answer: of(answer, "prod1")["errors"])
    assert noted["status"] == "warning" and noted["reasons"][0].startswith("prod1: PoWA noted errors: ") and "wait_sampling" in noted["reasons"][0]
    assert of(noted, "prod2")["status"] == "ok" and not site.info(fail_on="critical")["failed"]
    first.sql("CREATE EXTENSION pg_wait_sampling", dbname="powa")
    site._deploy(first, (), side="remote", extensions=EXTENSIONS, grant_to=[{"role": "monitor"}])
    site.collector.stop()
    site.collector.start()
    site.until(lambda answer: answer["status"] == "ok", timeout=90)

    # The extension powa itself goes: the worker ends when it connects again.
    drop_extension(second, "powa")
    second.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'monitor'")
    ended = site.until(lambda answer: of(answer, "prod2")["worker"] == "stopped")
    assert ended["status"] == "critical" and "prod2: its worker has ended (stopped)" in ended["reasons"][0]

    # A server that cannot be reached, from one snapshot to the next.
    first.stop()
    lost = site.until(lambda answer: of(answer, "prod1")["worker"] == "no connection to remote server" and of(answer, "prod1")["errors"])
    assert "prod1: its worker has no connection to remote server" in lost["reasons"] and any("prod1: PoWA noted errors" in text for text in lost["reasons"])

    # Nobody collects any more: the last snapshot grows old.
    site.collector.stop()
    second_age = of(site.info(), "prod2")["snapshot_age_seconds"]
    time.sleep(max(0.0, 21 - second_age))
    stale = site.info(ask_collector=False)
    assert of(stale, "prod2")["stale"] is True and of(stale, "prod2")["status"] == "critical"
    assert any(text.startswith("prod2: its last snapshot is ") and text.endswith("more than 20 s") for text in stale["reasons"]), stale["reasons"]
    call_module("powa_server", {**repository.login, "servers": [{"alias": "prod2", "state": "inactive"}]})
    inactive = site.info(expected=[{"name": "prod1"}, {"name": "prod2"}])
    assert of(inactive, "prod2")["status"] == "ok" and of(inactive, "prod2")["max_age_seconds"] is None
    assert inactive["coverage"]["unwatched"] == [
        {"name": "prod2", "host": None, "port": 5432, "reason": 'it is registered as "prod2", which is inactive'}
    ]  # fmt: skip


def test_bad_input(site):
    for options, words in (
        ({"max_age_factor": 0.5}, "max_age_factor is 0.5"),
        ({"max_age_seconds": 0}, "max_age_seconds is 0"),
        ({"expected": [{"name": "a"}, {"name": "a"}]}, "same name: a"),
    ):
        result = site.info(**options)
        assert result["failed"] and result["error"] == "InvalidInput" and words in result["msg"], result
    nowhere = site.info(login_db="postgres")
    assert nowhere["failed"] and nowhere["error"] == "Refused" and "has no extension powa" in nowhere["msg"]
