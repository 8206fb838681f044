# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""move_powa between two sites: what it writes, and what both repositories collect afterwards."""

from __future__ import annotations

import pathlib
import re

from conftest import address, ask, machine, must_play, shown_by_powa_web, wait_for

OLD, NEW = "monitor", "monitor2"
MOVE = "@%s" % (pathlib.Path(__file__).parents[1] / "move.yml")
SERVERS = """
SELECT alias, hostname, port, username, dbname, frequency, powa_coalesce, retention::text, allow_ui_connection, password IS NULL
FROM powa_servers WHERE id > 0 ORDER BY alias
"""
# What is collected from each server, as each version keeps it.
EXTENSIONS = {
    OLD: "SELECT alias, module FROM powa_functions JOIN powa_servers ON id = srvid WHERE id > 0 AND enabled AND operation = 'snapshot' ORDER BY 1, 2",
    NEW: "SELECT alias, extname FROM powa_extension_config JOIN powa_servers ON id = srvid WHERE id > 0 AND enabled AND extname <> 'hypopg' ORDER BY 1, 2",
}
MODULES = {
    kind: "SELECT alias, count(*) FROM powa_%s_config JOIN powa_servers ON id = srvid WHERE id > 0 AND enabled GROUP BY 1 ORDER BY 1" % kind
    for kind in ("module", "db_module")
}
SNAPSHOTS = "SELECT alias, nullif(snapts, '-infinity'), errors FROM powa_snapshot_metas JOIN powa_servers ON id = srvid WHERE id > 0"
STATEMENTS = "SELECT count(*) FROM powa_statements_history_current JOIN powa_servers ON id = srvid WHERE alias = '%s'"
NODES_OF_OLD = ("db1", "db2", "db3")


def powa(name, query):
    return ask(name, query, dbname="powa")


def everything(name):
    """All that the playbook could change."""
    found = [powa(name, SERVERS), powa(name, EXTENSIONS[name])]
    return found + ([powa(name, query) for query in MODULES.values()] if name == NEW else [])


def snapshots(name):
    """By server, when the last snapshot was and what was wrong with it."""
    return {alias: tuple(rest) for alias, *rest in powa(name, SNAPSHOTS)}


def statements(name, alias):
    """How many records of statements a repository has of a server."""
    return powa(name, STATEMENTS % alias)[0][0]


def good_snapshot(name, alias, after=None):
    """The time of a server's last snapshot, if nothing was wrong and it is a newer one."""
    at, errors = snapshots(name)[alias]
    return at if at and not errors and (after is None or at > after) else None


def watchers(name):
    """Where those come from who are logged in on a server as PoWA."""
    return {host for (host,) in ask(name, "SELECT host(client_addr) FROM pg_stat_activity WHERE usename = 'powa'")}


def move(*options, **variables):
    """Run the playbook; returns what it printed and the number of changes."""
    printed = must_play("move_powa", "-e", MOVE, *options, **variables)
    return printed, int(re.search(r"changed=(\d+)", printed).group(1))


def test_check_mode_tells_it_and_changes_nothing():
    before = everything(OLD), everything(NEW)
    printed, changes = move("--check", "--diff")
    assert changes == 1 and (everything(OLD), everything(NEW)) == before
    assert "5 of 6 servers are carried from PoWA 4.1.4 to PoWA 5.0.2" in printed
    # History is named with its size; that of db1 has begun with its deployment.
    assert re.search(r"db1 \(10\.77\.0\.11:5432\): carried, with [a-z_, ]+; history that stays behind: [1-9]\d* rows, \d+ bytes", printed), printed
    assert "stored-and-not-carried" not in printed
    assert "garden2 (10.77.0.42:5432): the new repository has it already" in printed
    assert "a password is stored for retired and is not carried" in printed
    assert "the datasource replication (on db1, db2, db3) is not carried" in printed
    assert "replace the extension powa by 5.0.2" in printed
    assert "new repository: reload the collector, if one runs" in printed


def test_it_carries_what_is_missing_and_nothing_else():
    old, new = everything(OLD), everything(NEW)
    assert move()[1] == 1
    after = everything(NEW)
    assert everything(OLD) == old
    # As they were but for passwords, and beside what was there.
    expected = {row[0]: (*row[:-1], True) for row in old[0]} | {row[0]: row for row in new[0]}
    assert {row[0]: row for row in after[0]} == expected and set(expected) == {*NODES_OF_OLD, "garden1", "garden2", "retired"}
    assert expected["retired"][5] == -1
    collected = {alias: {name for other, name in after[1] if other == alias} for alias in expected}
    assert collected["db1"] == collected["db2"] == collected["db3"] == {"pg_stat_statements", "pg_stat_kcache", "pg_qualstats", "pg_wait_sampling"}
    assert collected["garden1"] == {"pg_stat_statements", "pg_stat_kcache", "pg_wait_sampling"}
    assert collected["garden2"] == {name for alias, name in new[1] if alias == "garden2"}
    # PoWA 5 has divided the modules of PoWA 4, and knows more of them.
    for kinds, number in ((after[2], 16), (after[3], 3)):
        assert kinds == [(alias, number) for alias in sorted(expected)]
    # Again: there is nothing to do.
    printed, changes = move()
    assert changes == 0 and "0 of 6 servers are carried" in printed and "new repository: nothing" in printed
    assert (everything(OLD), everything(NEW)) == (old, after)


def test_the_new_repository_collects_from_servers_of_its_version_and_says_which_are_not():
    # With servers of PoWA 5, the old one has errors and no statements.
    assert snapshots(OLD)["garden1"][1] and statements(OLD, "garden1") == 0
    before = snapshots(NEW)["garden2"][0]
    machine(NEW).check_output("systemctl reload powa-collector")
    first = wait_for(lambda: good_snapshot(NEW, "garden1"), "a snapshot of the server that has come")
    wait_for(lambda: good_snapshot(NEW, "garden1", after=first) and statements(NEW, "garden1") > 0, "statements of it")
    # The one that was there goes on; those on which the extension is still PoWA 4's wait for it.
    wait_for(lambda: good_snapshot(NEW, "garden2", after=before), "a newer snapshot of the server that was there")
    for node in NODES_OF_OLD:
        refused = wait_for(lambda node=node: snapshots(NEW)[node][1], "the refusal of " + node)
        assert "Incompatible PoWA version" in refused[0] and snapshots(NEW)[node][0] is None and statements(NEW, node) == 0
    shown = shown_by_powa_web(NEW)
    assert [alias for alias, (well, _worker) in shown.items() if not well] == list(NODES_OF_OLD), shown
    assert {shown[alias][1] for alias in (*NODES_OF_OLD, "garden1", "garden2")} == {"running"}


def test_the_old_repository_goes_on_with_servers_of_its_version():
    before = snapshots(OLD)
    for node in NODES_OF_OLD:
        wait_for(lambda node=node: good_snapshot(OLD, node, after=before[node][0]), "a newer snapshot of %s in the old repository" % node)


def test_the_old_one_lets_go_of_a_server_when_told_to():
    before = everything(OLD)
    printed, changes = move("--check", move_deactivate=True, move_servers=["garden1"])
    assert changes == 1 and everything(OLD) == before
    printed, changes = move(move_deactivate=True, move_servers=["garden1"])
    assert changes == 1 and "old repository: restart the collector, if one runs" in printed
    assert [row if row[0] != "garden1" else (*row[:5], -1, *row[6:]) for row in before[0]] == powa(OLD, SERVERS)
    assert move(move_deactivate=True, move_servers=["garden1"])[1] == 0
    machine(OLD).check_output("systemctl restart powa-collector")
    # Only the new one's collector holds a session there.
    wait_for(lambda: watchers("garden1") == {address(NEW)}, "the end of the old one's session")
    assert shown_by_powa_web(NEW)["garden1"] == (True, "running")
