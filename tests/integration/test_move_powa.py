# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook move_powa, from a real PoWA 4 repository with history to a real PoWA 5 one."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest
from lab import GENERATIONS, PRELOAD, ansible_environment, call_module

PASSWORDS = {"collector": "collector-secret-1", "monitor": "remote-secret-1"}
STORED = "stored-secret-1"
CARRIED = "carried-secret-1"
COLUMNS = "alias, hostname, port, username, dbname, frequency, powa_coalesce, retention::text, allow_ui_connection, password"


@pytest.fixture(scope="module")
def repositories(lab):
    """The old one with four servers, one of them real and with history; the new one with one of the four."""
    old, new = (lab.postgres(one.name, system=one.system).init().start() for one in GENERATIONS)
    remote = lab.postgres("remote", settings={"shared_preload_libraries": PRELOAD}, system=GENERATIONS[0].system).init().start()
    old.sql("CREATE ROLE collector LOGIN PASSWORD '%s'" % PASSWORDS["collector"])
    remote.sql("CREATE ROLE monitor LOGIN PASSWORD '%s'" % PASSWORDS["monitor"])
    do("powa_archivist", old, side="repository", grant_to=[{"role": "collector"}])
    do("powa_archivist", new, side="repository")
    do("powa_archivist", remote, side="remote", extensions=["pg_qualstats"], grant_to=[{"role": "monitor"}])
    prod1 = {"alias": "prod1", "host": "127.0.0.1", "port": remote.port, "user": "monitor", "frequency": 5, "extensions": ["pg_qualstats"]}
    prod2 = {"alias": "prod2", "host": "10.0.0.2", "dbname": "stats", "powa_coalesce": 7, "retention": "9 days", "allow_ui_connection": False,
             "password": STORED, "extensions": ["pg_stat_kcache"]}  # fmt: skip
    do("powa_server", old, servers=[prod1, prod2, {"alias": "quiet", "host": "10.0.0.3", "state": "inactive", "password": STORED}])
    do("powa_server", old, servers=[{"alias": "there", "host": "10.0.0.4"}])
    do("powa_server", new, servers=[{"alias": "other name", "host": "10.0.0.4", "frequency": 77}])
    old.sql("UPDATE powa_functions SET enabled = false WHERE srvid = 2 AND module = 'powa_stat_user_functions'", dbname="powa")
    old.sql("INSERT INTO powa_functions (srvid, module, operation, function_name, query_source) VALUES (1, 'mine', 'snapshot', 'mine_snapshot', 'mine_src')"
            , dbname="powa")  # fmt: skip
    daemon = lab.collector(old, PASSWORDS).start()
    do("powa_collector", old, servers=["prod1"], wait_snapshot="any", timeout=60)
    daemon.stop()
    return old, new


def do(module, server, **options):
    result = call_module(module, {**server.login, **options})
    assert not result["failed"], result
    return result


def move(old, new, *options, **variables):
    """Run the playbook; returns the exit code, the output and the number of changes."""
    given = {"move_from": old.login, "move_to": new.login, "ansible_become": True, "ansible_become_user": "postgres", **variables}
    argv = [pathlib.Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local", "pgfleet.ops.move_powa"]
    done = subprocess.run(
        [*argv, "-e", json.dumps(given), *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200,
        check=False, cwd="/", env=ansible_environment(),
    )  # fmt: skip
    assert STORED not in done.stdout and CARRIED not in done.stdout
    found = re.search(r"changed=(\d+)", done.stdout)
    return done.returncode, done.stdout, int(found.group(1)) if found else None


def rows(server, columns=COLUMNS):
    return server.sql("SELECT %s FROM powa_servers WHERE id > 0 ORDER BY alias" % columns, dbname="powa")


def test_registrations_are_carried_and_the_rest_is_named(repositories):
    old, new = repositories
    before, there = rows(old), rows(new)
    variables = {"move_passwords": {"prod2": CARRIED}}
    # Without passwords, and of one server only.
    code, output, changed = move(old, new, "--check", move_servers=["prod2"])
    assert code == 0 and changed == 1 and "a password is stored for prod2 and is not carried" in output and "1 of 1 servers" in output, output[-4000:]
    outputs = []
    for options, changes in (("--check", "--diff"), 1), ((), 1), (("--check",), 0), ((), 0):
        code, output, changed = move(old, new, *options, **variables)
        assert code == 0 and changed == changes, output[-4000:]
        outputs.append(output)
        if options and changes:
            assert rows(new) == there and rows(old) == before
    first, again = outputs[0], outputs[-1]
    assert "3 of 4 servers are carried from PoWA 4.1.4 to PoWA 5.0.2" in first and "0 of 4 servers are carried" in again
    history = old.value("SELECT count(*) FROM powa_statements_history_current WHERE srvid = 1", dbname="powa")
    found = re.search(r"prod1 \(127.0.0.1:\d+\): carried, with pg_qualstats, pg_stat_statements; history that stays behind: (\d+) rows, (\d+) bytes, ", first)
    assert found and int(found.group(1)) > history > 0 and int(found.group(2)) > 1000, first
    assert "there (10.0.0.4:5432): the new repository has it already; history that stays behind: none" in first
    assert "a password is stored for quiet and is not carried" in first
    assert "the datasource mine (on prod1) is not carried" in first and "replace the extension powa by 5.0.2" in first
    # As they were, but for passwords; what was there before is as it was.
    known = {row[0]: row for row in before}
    moved = {row[0]: row for row in rows(new)}
    assert there[0] == moved.pop("other name") and set(moved) == {"prod1", "prod2", "quiet"} and rows(old) == before
    assert {alias: row[:-1] for alias, row in moved.items()} == {alias: known[alias][:-1] for alias in moved}
    assert {alias: row[-1] for alias, row in moved.items()} == {"prod1": None, "prod2": CARRIED, "quiet": None}
    servers = {one["alias"]: one for one in do("powa_info", new, ask_collector=False)["servers"]}
    assert servers["prod1"]["extensions"] == ["pg_qualstats", "pg_stat_statements"] and servers["prod2"]["extensions"] == [
        "pg_stat_kcache",
        "pg_stat_statements",
    ]
    relations = ["pg_stat_all_indexes", "pg_stat_all_tables"]
    assert [one["name"] for one in servers["prod1"]["db_modules"]] == [*relations, "pg_stat_user_functions"]
    assert [one["name"] for one in servers["prod2"]["db_modules"]] == relations
    # Only when asked for.
    code, output, changed = move(old, new, move_deactivate=True, move_servers=["prod1"])
    assert code == 0 and changed == 1 and {row[0]: row[5] for row in rows(old)}["prod1"] == -1 and rows(old)[1:] == before[1:], output[-3000:]


def test_what_is_no_move_from_4_to_5(repositories):
    old, new = repositories
    before = rows(new)
    for source, target, variables, words in (
        (new, old, {}, "(expected 4.x) and the new one 4.1.4 (expected 5.x)"),
        (old, new, {"move_servers": ["nobody"]}, "The old one has no server nobody, see move_servers."),
        (old, new, {"move_to": ""}, "Say where the old repository is and where the new one"),
    ):
        code, output, _changed = move(source, target, **variables)
        assert code != 0 and words in output and rows(new) == before, output[-3000:]
