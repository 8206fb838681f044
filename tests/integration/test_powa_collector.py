# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_collector with the real powa-collector of each generation, two remote servers and the rights that powa_archivist gives."""

from __future__ import annotations

import json
import os
import signal

import pytest
from lab import PRELOAD, Lab, call_module, four_steps, free_port, wait_until

EXTENSIONS = ["pg_stat_kcache", "pg_qualstats", "pg_wait_sampling", "pg_track_settings"]
REMOTE_PASSWORD = "remote-secret-1"
COLLECTOR_PASSWORD = "collector-secret-1"


class Site:
    """A repository and two remote servers, deployed by powa_archivist, and a collector that is not started."""

    def __init__(self, lab, generation):
        self.lab, self.generation, system = lab, generation, generation.system
        self.old = generation.collector.startswith("1.2")
        self.repository = repository = lab.postgres("repository", system=system, settings={"max_connections": 400}).init().start()
        self.remotes = [lab.postgres(name, settings={"shared_preload_libraries": PRELOAD}, system=system).init().start() for name in ("prod1", "prod2")]
        repository.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % COLLECTOR_PASSWORD)
        self.do("powa_archivist", side="repository", extensions=["pg_track_settings"], grant_to=[{"role": "collector"}])
        for remote in self.remotes:
            remote.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % REMOTE_PASSWORD)
            self.do("powa_archivist", **remote.login, side="remote", extensions=EXTENSIONS, grant_to=[{"role": "monitor"}])
        self.daemon = lab.collector(repository, {"collector": COLLECTOR_PASSWORD, "monitor": REMOTE_PASSWORD})

    def do(self, module, **options):
        """Call a module as superuser of the repository; it must succeed."""
        result = call_module(module, {**self.repository.login, **options})
        assert not result["failed"], result
        return result

    def register(self, *entries):
        return self.do("powa_server", servers=list(entries))

    def ask(self, check=False, **options):
        """The module under test with the collector's own login."""
        return call_module("powa_collector", {**collector_login(self.repository), **options}, check=check)

    def empty(self):
        """No server and no collector."""
        self.daemon.stop()
        for other in self.lab.parts:
            if other is not self.daemon and type(other) is type(self.daemon):
                other.stop()
        gone = [{"alias": one["alias"], "state": "absent", "purge": True} for one in self.register()["servers"]]
        self.register(*gone)
        wait_until(lambda: self.repository.value("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA%'") == 0, 20)
        return self


@pytest.fixture(scope="module")
def whole_site(generation):
    lab = Lab()
    yield Site(lab, generation)
    lab.close()


@pytest.fixture
def site(whole_site):
    return whole_site.empty()


def entry(remote, **more):
    return {"alias": remote.name, "host": "127.0.0.1", "port": remote.port, "user": "monitor", "frequency": 5, "extensions": EXTENSIONS, **more}


def collector_login(repository):
    return {**repository.login, "login_user": "collector", "login_password": COLLECTOR_PASSWORD}


@pytest.mark.long_with("powa4")
def test_from_no_collector_to_snapshots_of_every_server(site):
    """One story, as each step needs the one before: no collector, workers, a new server, a wrong password, a server that goes."""
    repository, (first, second), daemon = site.repository, site.remotes, site.daemon
    login = collector_login(repository)
    registered = call_module("powa_server", {**repository.login, "servers": [entry(first)]})
    assert not registered["failed"] and registered["collector_running"] is False, registered

    alone = call_module("powa_collector", login)
    assert alone["failed"] and alone["error"] == "NotReachable" and "no powa-collector is connected" in alone["msg"]

    # A collector that has just been started gets the time it needs, and workers of its own need no reload.
    daemon.start()
    started = call_module("powa_collector", {**login, "wait_snapshot": "any", "timeout": 60})
    assert not started["failed"] and started["changed"] is False, started
    assert started["collector_version"] == site.generation.collector and [server["worker"] for server in started["servers"]] == ["running"]
    assert started["servers"][0]["snapshot_at"] and started["servers"][0]["errors"] == []

    # A server that was registered since has no worker: one reload, and it is there.
    added = call_module("powa_server", {**repository.login, "servers": [entry(first), entry(second)]})
    assert added["collector_running"] is True and added["collector_reload_required"] is True and added["collector_restart_required"] is False
    result = four_steps("powa_collector", login)
    assert result["plan"] == ["reload the collector (for prod2)"] and result["restart_required"] is False
    assert result["diff"][0]["before"] == {"prod1": "running", "prod2": "none"} and result["diff"][0]["after"] == {"prod1": "running", "prod2": "running"}
    waited = call_module("powa_collector", {**login, "wait_snapshot": "new", "timeout": 60})
    assert not waited["failed"] and waited["changed"] is False, waited
    assert [(server["alias"], server["worker"], server["errors"]) for server in waited["servers"]] == [("prod1", "running", []), ("prod2", "running", [])]
    assert all(server["snapshot_age_seconds"] < 60 for server in waited["servers"])
    for table in ("powa_statements_history_current", "powa_kcache_metrics_current", "pg_track_settings_history"):
        assert repository.value("SELECT count(DISTINCT srvid) FROM %s WHERE srvid > 0" % table, dbname="powa") == 2, table

    # A reload can be asked for, and is then a change each time.
    for _again in range(2):
        reloaded = call_module("powa_collector", {**login, "state": "reloaded", "servers": ["prod2"]})
        assert reloaded["changed"] is True and reloaded["performed"] == ["reload the collector (asked for)"], reloaded
        assert [server["alias"] for server in reloaded["servers"]] == ["prod2"]
    assert call_module("powa_collector", {**login, "state": "reloaded"}, check=True)["performed"] == []

    # A password that is wrong on one server names this server, its error and no other.
    second.sql("ALTER ROLE monitor PASSWORD 'something else'")
    call_module("powa_server", {**repository.login, "servers": [entry(second, password="stale-secret-1")]})
    failed = call_module("powa_collector", {**login, "state": "reloaded", "timeout": 8})
    assert failed["failed"] and failed["error"] == "NotConfirmed" and failed["phase"] == "confirm", failed
    assert "prod2 (127.0.0.1:%d)" % second.port in failed["msg"] and "password authentication failed" in failed["msg"] and "prod1" not in failed["msg"]
    assert [server["worker"] for server in failed["servers"]] == ["running", "no connection to remote server"]
    late = call_module("powa_collector", {**login, "servers": ["prod1"], "wait_snapshot": "new", "timeout": 1})
    assert late["failed"] and late["error"] == "WaitTimeout" and late["phase"] == "wait" and "prod1 (127.0.0.1:%d)" % first.port in late["msg"], late
    second.sql("ALTER ROLE monitor PASSWORD '%s'" % REMOTE_PASSWORD)
    fixed = call_module("powa_server", {**repository.login, "servers": [entry(second, clear_password=True)]})
    assert fixed["changed"] is True
    assert call_module("powa_collector", {**login, "state": "reloaded"})["failed"] is False

    # The worker of a server that has gone ends with a restart only, and a reload is refused.
    gone = call_module("powa_server", {**repository.login, "servers": [{"alias": "prod2", "state": "inactive"}]})
    assert gone["collector_restart_required"] is True
    for state in ("running", "reloaded"):
        refused = call_module("powa_collector", {**login, "state": state})
        assert refused["failed"] and refused["error"] == "Refused" and refused["restart_required"] is True and "restart of the collector" in refused["msg"]
    daemon.stop()
    daemon.start()
    assert call_module("powa_collector", login)["failed"] is False
    secrets = json.dumps([started, added, result, waited, reloaded, failed, late, fixed, gone, refused])
    assert not [secret for secret in (REMOTE_PASSWORD, COLLECTOR_PASSWORD, "stale-secret-1") if secret in secrets]

    # A main thread that has died does not answer, and this is said.
    unknown = call_module("powa_collector", {**login, "servers": ["nobody"]})
    assert unknown["failed"] and unknown["error"] == "InvalidInput" and "no server is registered as nobody" in unknown["msg"]
    os.kill(daemon.process.pid, signal.SIGSTOP)
    silent = call_module("powa_collector", login)
    os.kill(daemon.process.pid, signal.SIGCONT)
    assert silent["failed"] and silent["error"] == "NotReachable" and "did not answer WORKERS_STATUS" in silent["msg"]
    daemon.stop()
    wait_until(lambda: repository.value("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA%'") == 0, 20)


def test_a_snapshot_at_once(site):
    first, second = site.remotes
    site.register(entry(first, frequency=3600), entry(second, frequency=3600))
    site.daemon.start()
    if site.old:
        for check in (True, False):
            refused = site.ask(check, force_snapshot=True)
            assert refused["failed"] and refused["error"] == "Refused" and "powa-collector 1.2.0 takes no snapshot on request" in refused["msg"], refused
            assert "wait_snapshot=new" in refused["msg"] and refused["performed"] == []
        return
    check = site.ask(True, force_snapshot=True)
    assert check["changed"] is True and check["performed"] == [] and check["plan"] == ["take a snapshot of prod1, prod2 at once"], check
    taken = []
    # The second time, the collector itself wants 10 seconds between two of them.
    for _again in range(2):
        result = site.ask(force_snapshot=True, servers=["prod1"])
        assert result["changed"] is True and result["performed"] == ["take a snapshot of prod1 at once"], result
        assert result["servers"][0]["snapshot_age_seconds"] < 10
        taken.append(result["servers"][0]["snapshot_at"])
    assert taken[0] < taken[1]
    # A server that has no worker yet gets one first.
    site.register({"alias": "prod2", "state": "inactive"})
    site.daemon.stop()
    site.daemon.start()
    assert site.ask()["failed"] is False
    site.register(entry(second, frequency=3600))
    both = site.ask(force_snapshot=True)
    assert both["performed"] == ["reload the collector (for prod2)", "take a snapshot of prod1, prod2 at once"], both
    assert all(server["snapshot_age_seconds"] < 30 for server in both["servers"])
    # Only some may send requests since 1.3.
    site.repository.sql("CREATE ROLE nobody LOGIN PASSWORD 'nobody-secret-1'")
    site.do("powa_archivist", side="repository", grant_to=[{"role": "nobody", "access": "reader"}])
    denied = call_module("powa_collector", {**site.repository.login, "login_user": "nobody", "login_password": "nobody-secret-1"})
    assert denied["failed"] and denied["error"] == "Refused" and "Permission denied" in denied["msg"] and "powa_signal_backend" in denied["msg"], denied
    assert "restart_required" not in denied


def test_what_takes_effect_by_itself_and_what_needs_a_reload_or_a_restart(site):
    first, _second = site.remotes
    some = [name for name in EXTENSIONS if name != "pg_stat_kcache"]
    site.register(entry(first, extensions=some))
    site.daemon.start()
    assert site.ask(wait_snapshot="any")["failed"] is False
    rows = "SELECT count(*) FROM powa_kcache_metrics_current WHERE srvid > 0"
    assert site.repository.value(rows, dbname="powa") == 0

    def needs(**more):
        result = site.register(entry(first, **more))
        assert result["changed"] is True and result["collector_running"] is True
        return result["collector_reload_required"], result["collector_restart_required"]

    assert needs(extensions=some, retention="2 days", powa_coalesce=7) == needs(extensions=EXTENSIONS) == (False, False)
    wait_until(lambda: site.repository.value(rows, dbname="powa") > 0, 40)
    # 1.3 goes on with the old frequency after a reload, and with all its power.
    assert needs(frequency=3600) == ((True, False) if site.old else (False, True))
    site.daemon.stop()
    site.daemon.start()
    assert site.ask()["failed"] is False
    assert needs(frequency=5) == ((True, False) if site.old else (False, True))
    if site.old:
        assert site.ask(state="reloaded")["failed"] is False
    else:
        site.daemon.stop()
        site.daemon.start()
    assert site.ask(wait_snapshot="new")["failed"] is False
    assert needs(port=first.port + 1) == (False, True)


@pytest.mark.long_with("powa4")
def test_a_collector_that_cannot_answer_any_more(site):
    first, second = site.remotes
    site.register(entry(first), entry(second))
    site.daemon.start()
    assert site.ask()["failed"] is False
    # Two of them.
    other = site.lab.collector(site.repository, {"collector": COLLECTOR_PASSWORD, "monitor": REMOTE_PASSWORD}, name="other%d" % len(site.lab.parts)).start()
    wait_until(lambda: site.repository.value("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector - main%%'") == 2, 20)
    twice = site.ask()
    assert twice["failed"] and twice["error"] == "Refused" and "2 collectors are connected" in twice["msg"], twice
    other.stop()
    # Somebody reloads it by hand after a server has gone, which this module refuses.
    site.register({"alias": "prod2", "state": "inactive"})
    site.repository.sql("SELECT pg_notify('powa_collector', 'RELOAD -')", dbname="powa")
    answers = []
    wait_until(lambda: answers.append(site.ask()) or answers[-1]["failed"], 60)
    broken = answers[-1]
    # By what it answers, or by the worker that should have ended: either way a restart.
    assert "estart" in broken["msg"], broken
    assert broken["error"] == "NotReachable" or broken["restart_required"] is True
    site.daemon.stop()
    site.daemon.start()
    assert site.ask()["failed"] is False
    # The repository is restarted: the main thread ends, the process and its connection stay.
    site.repository.stop()
    site.repository.start()
    answers = []
    wait_until(lambda: answers.append(site.ask()) or answers[-1]["failed"], 60)
    dead = answers[-1]
    assert dead["error"] == "NotReachable" and ("estart" in dead["msg"] or "no powa-collector is connected" in dead["msg"]), dead
    assert site.daemon.process.poll() is None


def test_more_workers_than_fit_into_one_answer(site):
    """Some hundred servers that do not exist: the collector could not tell them all in the 8000 bytes that a notification holds."""
    closed = free_port()
    count = 220
    entries = [{"alias": "server%03d" % n, "host": "127.0.0.%d" % (n + 2), "port": closed, "frequency": 3600} for n in range(count)]
    site.register(*entries)
    site.daemon.start()
    answer = site.ask(timeout=5)
    assert answer["failed"] and len(answer["servers"]) == count, answer
    assert {one["worker"] for one in answer["servers"]} == {"no connection to remote server"}
    assert site.daemon.process.poll() is None
