# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From nothing to snapshots with each PoWA that Debian has: repository, remote server, registration, collector."""

from __future__ import annotations

import pytest
from lab import PRELOAD, call_module, four_steps

EXTENSIONS = ["pg_stat_kcache", "pg_qualstats", "pg_wait_sampling", "pg_track_settings"]
# What registration itself activates.
BASE = {"powa4": ["pg_stat_bgwriter", "pg_stat_statements", "powa_stat_all_relations", "powa_stat_user_functions"], "powa5": ["pg_stat_statements"]}
PASSWORDS = {"collector": "collector-secret-1", "monitor": "remote-secret-1"}


@pytest.fixture(scope="module")
def repository(lab, generation):
    return lab.postgres("repository-" + generation.name, system=generation.system).init().start()


@pytest.fixture(scope="module")
def remote(lab, generation):
    settings = {"shared_preload_libraries": PRELOAD}
    return lab.postgres("remote-" + generation.name, settings=settings, system=generation.system).init().start()


def test_from_nothing_to_snapshots(lab, generation, repository, remote):
    repository.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % PASSWORDS["collector"])
    remote.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % PASSWORDS["monitor"])
    stored = {**repository.login, "side": "repository", "extensions": ["pg_track_settings"], "grant_to": [{"role": "collector"}]}
    assert four_steps("powa_archivist", stored)["version"] == generation.powa
    watched = {**remote.login, "side": "remote", "extensions": EXTENSIONS, "grant_to": [{"role": "monitor"}]}
    assert four_steps("powa_archivist", watched)["version"] == generation.powa
    entry = {"alias": "prod1", "host": "127.0.0.1", "port": remote.port, "user": "monitor", "frequency": 5, "extensions": EXTENSIONS}
    assert four_steps("powa_server", {**repository.login, "servers": [entry]})["servers"][0]["extensions"] == sorted({*EXTENSIONS, *BASE[generation.name]})
    lab.collector(repository, PASSWORDS, name="collector-" + generation.name).start()
    login = {**repository.login, "login_user": "collector", "login_password": PASSWORDS["collector"]}
    result = call_module("powa_collector", {**login, "wait_snapshot": "any", "timeout": 60})
    assert not result["failed"] and result["collector_version"] == generation.collector, result
    assert [(server["alias"], server["worker"], server["errors"]) for server in result["servers"]] == [("prod1", "running", [])]
    for table in ("powa_statements_history_current", "powa_kcache_metrics_current", "powa_wait_sampling_history_current", "pg_track_settings_history"):
        assert repository.value("SELECT count(*) FROM %s WHERE srvid > 0" % table, dbname="powa"), table
