# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput, NotConfirmed, Refused
from ansible_collections.pgfleet.ops.plugins.module_utils._module import Context
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.pgbouncer_databases import ENTRY_OPTIONS, PGBOUNCER_DATABASES, PoolerDatabases, Seen
from ansible_collections.pgfleet.ops.plugins.module_utils._pgbouncer.ini import Ini, Tree

CONFIG = {"default_pool_size": "20", "min_pool_size": "0", "reserve_pool_size": "0", "max_db_connections": "0"}
ROW = {
    "host": "h1", "port": 5432, "database": "app", "force_user": None, "pool_size": 20, "min_pool_size": 0, "reserve_pool_size": 0,
    "pool_mode": None, "max_connections": 0,
}  # fmt: skip


class Case:
    def __init__(self, *entries, exclusive=False):
        self.warnings = []
        defaults = {key: option.get("default") for key, option in ENTRY_OPTIONS.items()}
        params = {
            **{key: option.get("default") for key, option in PGBOUNCER_DATABASES.argument_spec.items()},
            "config_file": "/etc/x/databases.ini",
            "databases": [{**defaults, "state": "present", **entry} for entry in entries],
            "exclusive": exclusive,
            "login_host": "127.0.0.1",
            "login_port": 6432,
            "unreachable": "fail",
            "timeout": 5,
        }
        self.operation = PoolerDatabases(params, Context(False, self.warnings.append))

    def seen(self, text, runtime=None, main=None, version=(1, 18, 0)):
        tree = None
        if main is not None:
            tree = Tree.load("/etc/x/main.ini", {"/etc/x/main.ini": main, "/etc/x/databases.ini": text}.__getitem__)
        return Seen(text, Ini.parse(text), tree, version, runtime, CONFIG)

    def plan(self, *args, **kwargs):
        return self.operation.plan(self.seen(*args, **kwargs)).names


TEXT = "[databases]\napp = host=h1\n"
INCLUDE = "%include /etc/x/databases.ini\n[pgbouncer]\n"


def test_nothing_to_do():
    assert Case({"name": "app", "host": "h1"}).plan(TEXT, {"app": ROW}) == []


@pytest.mark.parametrize("column", ["host", "port", "database", "pool_size", "min_pool_size", "reserve_pool_size", "pool_mode", "max_connections"])
def test_each_column_of_a_stale_run_time_is_noticed(column):
    assert Case({"name": "app"}).plan(TEXT, {"app": {**ROW, column: "other"}}) == ["reload 127.0.0.1:6432"]


def test_every_key_is_compared_with_its_column():
    text = "[databases]\napp = host=h2 port=1 dbname=d user=u pool_size=2 min_pool_size=3 reserve_pool=4 pool_mode=SESSION max_db_connections=5\n"
    row = {
        "host": "h2", "port": 1, "database": "d", "force_user": "u", "pool_size": 2, "min_pool_size": 3, "reserve_pool_size": 4, "pool_mode": "session",
        "max_connections": 5,
    }  # fmt: skip
    assert Case({"name": "app"}).plan(text, {"app": row}) == []
    for column in row:
        assert Case({"name": "app"}).plan(text, {"app": {**row, column: "other"}}) == ["reload 127.0.0.1:6432"], column


def test_a_forced_user_that_only_a_restart_removes_is_a_warning():
    case = Case({"name": "app"})
    assert case.plan(TEXT, {"app": {**ROW, "force_user": "u"}}) == []
    assert len(case.warnings) == 1 and "restarted" in case.warnings[0]


def test_a_database_that_only_the_run_time_has():
    both = {"app": ROW, "ghost": ROW}
    # Without knowing all files only what was asked to be absent counts.
    assert Case({"name": "app"}).plan(TEXT, both) == []
    assert Case({"name": "ghost", "state": "absent"}).plan(TEXT, both) == ["reload 127.0.0.1:6432"]
    assert Case({"name": "app"}).plan(TEXT, both, main=INCLUDE) == ["reload 127.0.0.1:6432"]
    # Another file has it, or "*" brought it about.
    assert Case({"name": "app"}).plan(TEXT, both, main=INCLUDE + "[databases]\nghost = host=h1\n") == []
    assert Case({"name": "app"}).plan(TEXT, both, main=INCLUDE + "[databases]\n* = host=h1\n") == []
    assert Case({"name": "ghost", "state": "absent"}).plan(TEXT + "* = host=h1\n", both) == []


def test_exclusive_removes_the_rest_of_this_file_only():
    case = Case({"name": "new", "host": "h1"}, exclusive=True)
    seen = case.seen(TEXT + "* =\n", {"app": ROW}, main=INCLUDE + "[databases]\nelse = host=h1\n")
    assert case.operation.plan(seen).names == ["write /etc/x/databases.ini: add new, remove app, remove *", "reload 127.0.0.1:6432"]


def test_an_entry_of_another_file_is_refused():
    with pytest.raises(Refused, match=r"also in /etc/x/main\.ini"):
        Case({"name": "twin", "host": "h1"}).plan(TEXT, {"app": ROW}, main=INCLUDE + "[databases]\ntwin = host=h1\n")


def test_keys_and_names_by_version():
    later = {"name": "app", "params": {"load_balance_hosts": "disable"}}
    with pytest.raises(InvalidInput, match=r"came with 1\.24"):
        Case(later).plan(TEXT, {"app": ROW}, version=(1, 23, 1))
    assert Case(later).plan(TEXT, {"app": ROW}, version=(1, 24, 0))
    unknown = {"name": "app", "params": {"from_the_future": "1"}}
    with pytest.raises(InvalidInput, match="no parameter"):
        Case(unknown).plan(TEXT, {"app": ROW}, version=(1, 25, 1))
    assert Case(unknown).plan(TEXT, {"app": ROW}, version=(1, 26, 0))
    with pytest.raises(InvalidInput):
        Case({"name": "a b"}).plan(TEXT, {"app": ROW}, version=(1, 24, 0))
    assert Case({"name": "a b"}).plan(TEXT, {"app": ROW}, version=(1, 25, 0))[0].endswith("add a b")


def test_a_silent_pooler_gets_no_reload():
    assert Case({"name": "app", "port": 1}).plan(TEXT, None) == ["write /etc/x/databases.ini: change app"]


def test_what_is_left_after_a_reload_is_said():
    case = Case({"name": "app"})
    with pytest.raises(NotConfirmed, match="'host': 'old'"):
        case.operation.confirm(case.seen(TEXT, {"app": {**ROW, "host": "old"}}))
    case.operation.confirm(case.seen(TEXT, {"app": ROW}))
