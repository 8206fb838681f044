# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""powa_collector with the real powa-collector, two remote servers and the rights that powa_archivist gives."""

from __future__ import annotations

import json
import os
import signal

import pytest
from lab import PRELOAD, call_module, four_steps, wait_until

EXTENSIONS = ["pg_stat_kcache", "pg_qualstats", "pg_wait_sampling", "pg_track_settings"]
REMOTE_PASSWORD = "remote-secret-1"
COLLECTOR_PASSWORD = "collector-secret-1"


@pytest.fixture(scope="module")
def site(lab):
    """A repository and two remote servers, deployed by powa_archivist."""
    repository = lab.postgres("repository").init().start()
    remotes = [lab.postgres(name, settings={"shared_preload_libraries": PRELOAD}).init().start() for name in ("prod1", "prod2")]
    repository.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % COLLECTOR_PASSWORD)
    result = call_module("powa_archivist", {**repository.login, "side": "repository", "extensions": ["pg_track_settings"], "grant_to": [{"role": "collector"}]})
    assert not result["failed"], result
    for remote in remotes:
        remote.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % REMOTE_PASSWORD)
        result = call_module("powa_archivist", {**remote.login, "side": "remote", "extensions": EXTENSIONS, "grant_to": [{"role": "monitor"}]})
        assert not result["failed"], result
    return repository, remotes


@pytest.fixture(scope="module")
def daemon(lab, site):
    return lab.collector(site[0], {"collector": COLLECTOR_PASSWORD, "monitor": REMOTE_PASSWORD})


def entry(remote, **more):
    return {"alias": remote.name, "host": "127.0.0.1", "port": remote.port, "user": "monitor", "frequency": 5, "extensions": EXTENSIONS, **more}


def collector_login(repository):
    return {**repository.login, "login_user": "collector", "login_password": COLLECTOR_PASSWORD}


def test_from_no_collector_to_snapshots_of_every_server(site, daemon):
    """One story, as each step needs the one before: no collector, workers, a new server, a wrong password, a server that goes."""
    repository, (first, second) = site
    login = collector_login(repository)
    registered = call_module("powa_server", {**repository.login, "servers": [entry(first)]})
    assert not registered["failed"] and registered["collector_running"] is False, registered

    alone = call_module("powa_collector", login)
    assert alone["failed"] and alone["error"] == "NotReachable" and "no powa-collector is connected" in alone["msg"]

    # A collector that has just been started gets the time it needs, and workers of its own need no reload.
    daemon.start()
    started = call_module("powa_collector", {**login, "wait_snapshot": "any", "timeout": 60})
    assert not started["failed"] and started["changed"] is False, started
    assert started["collector_version"] == "1.2.0" and [server["worker"] for server in started["servers"]] == ["running"]
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
    for table in ("powa_statements_history_current", "powa_kcache_metrics_current", "powa_stat_bgwriter_history_current", "pg_track_settings_history"):
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
