# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign-data wrappers for classes in Python on a real PostgreSQL with PL/Python."""

from __future__ import annotations

import contextlib
import threading

import psycopg
import pytest
from fdw_packages import install_packages
from lab import call_module, four_steps, wait_until

SHOP = '''
from pgfleet_fdw import Wrapper

class Numbers(Wrapper):
    def scan(self, quals, columns):
        for n in range(3):
            yield {"n": n}
'''


@pytest.fixture(scope="module")
def packages(lab):
    return install_packages(lab, shop_fdw=SHOP)


@pytest.fixture(scope="module")
def primary(lab, packages):
    return lab.postgres("wrapped", environment={"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}).init().start()


@pytest.fixture
def options(primary, request):
    name = "w_" + request.node.name[-30:]
    yield {**primary.login, "name": name, "packages": ["pgfleet_fdw", "shop_fdw"]}
    primary.sql('DROP FOREIGN DATA WRAPPER IF EXISTS "%s" CASCADE' % name)
    primary.sql('DROP FUNCTION IF EXISTS pgfleet_fdw."%s_guard"' % name)


def refused(result, *words):
    assert result["failed"] and result["changed"] is False, result
    for word in words:
        assert word in result["msg"], result["msg"]


def test_from_nothing_to_a_guarded_wrapper_and_away_again(primary, options):
    result = four_steps("fdw_wrapper", options)
    assert result["runtime"] == "plpython" and result["wrapper"]["handler"] is None and result["standby"] is False
    assert result["python"]["packages"]["shop_fdw"]["error"] is None and result["python"]["packages"]["pgfleet_fdw"]["file"].endswith("__init__.py")
    name = options["name"]
    assert primary.value("SELECT has_function_privilege('public', 'pgfleet_fdw.\"%s_guard\"(text[],oid)', 'EXECUTE')" % name) is False
    primary.sql('CREATE SERVER in_use FOREIGN DATA WRAPPER "%s" OPTIONS (wrapper \'shop_fdw.Numbers\')' % name)
    refused(call_module("fdw_wrapper", {**primary.login, "name": name, "state": "absent"}), "in_use", "fdw_server")
    primary.sql("DROP SERVER in_use")
    four_steps("fdw_wrapper", {**primary.login, "name": name, "state": "absent"})


def test_the_guard_lets_nothing_else_be_loaded(primary, options):
    name = options["name"]
    call_module("fdw_wrapper", options)

    def fails(statement, words):
        with pytest.raises(Exception, match=words):
            primary.sql(statement % {"w": '"%s"' % name})

    fails("CREATE SERVER s FOREIGN DATA WRAPPER %(w)s OPTIONS (wrapper 'os.getcwd')", "none of the packages")
    fails("CREATE SERVER s FOREIGN DATA WRAPPER %(w)s OPTIONS (wrapper 'shop_fdw')", "none of the packages")
    fails("CREATE SERVER s FOREIGN DATA WRAPPER %(w)s OPTIONS (wrapper 'shop_fdw_more.Numbers')", "none of the packages")
    fails("CREATE SERVER s FOREIGN DATA WRAPPER %(w)s", "wrapper.* is missing")
    primary.sql('CREATE SERVER s FOREIGN DATA WRAPPER "%s" OPTIONS (wrapper \'shop_fdw.Numbers\', note \'it\'\'s %% 100\')' % name)
    fails("ALTER SERVER s OPTIONS (SET wrapper 'os.getcwd')", "none of the packages")
    fails("ALTER SERVER s OPTIONS (DROP wrapper)", "is missing")
    fails("CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (wrapper 'shop_fdw.Numbers')", "belongs to the server")
    fails("CREATE FOREIGN TABLE t (n int OPTIONS (wrapper 'shop_fdw.Numbers')) SERVER s", "belongs to the server")
    primary.sql("CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (key 'a')")
    # A package that is listed no more: what is there stays, what comes anew is refused.
    result = four_steps("fdw_wrapper", {**options, "packages": ["pgfleet_fdw"]})
    assert len(result["plan"]) == 1 and result["plan"][0].startswith("change the guard")
    fails("ALTER SERVER s OPTIONS (SET wrapper 'shop_fdw.Numbers')", "none of the packages")


def test_a_package_that_is_missing_changes_nothing(primary, options):
    call_module("fdw_wrapper", options)
    refused(call_module("fdw_wrapper", {**options, "packages": ["shop_fdw", "no_such_fdw"]}), "no_such_fdw", "ModuleNotFoundError", "every node")
    assert call_module("fdw_wrapper", options)["changed"] is False


def test_a_package_that_is_missing_takes_a_first_run_back(lab, packages):
    """PL/Python is not there to ask before."""
    server = lab.postgres("bare-wrapped", environment={"PYTHONPATH": str(packages)}).init().start()
    result = call_module("fdw_wrapper", {**server.login, "name": "fleet", "packages": ["no_such_fdw"]})
    refused(result, "no_such_fdw", "cannot import")
    assert server.sql("SELECT 1 FROM pg_extension WHERE extname = 'plpython3u'") == []
    assert server.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'pgfleet_fdw'") == []
    server.stop()


def test_sessions_that_hold_old_code(primary, options, packages):
    call_module("fdw_wrapper", options)
    with primary.connect(application_name="old one") as session:
        session.execute("SELECT 1")
        file = packages / "shop_fdw.py"
        file.write_text(file.read_text() + "\n")
        result = call_module("fdw_wrapper", options)
        assert [row["application"] for row in result["stale_sessions"]] == ["old one"] and "old code" in result["printed"]
        assert result["changed"] is False
        result = four_steps("fdw_wrapper", {**options, "stale_sessions": "terminate"})
        assert result["stale_sessions"] == []
        wait_until(lambda: primary.sql("SELECT 1 FROM pg_stat_activity WHERE application_name = 'old one'") == [], 5)


def test_a_session_that_does_not_end_at_once(primary, options, packages):
    """Python code heeds no signal before it returns; this one returns when the module has looked for its end in vain."""
    call_module("fdw_wrapper", options)
    looked = primary.base / "looked"

    def work(session):
        with contextlib.suppress(psycopg.OperationalError):
            session.execute("DO LANGUAGE plpython3u $$import os, time\nwhile not os.path.exists('%s'): time.sleep(0.02)$$" % looked)

    def watch():
        looks = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT count%%pg_stat_activity WHERE pid%%' AND state = 'idle in transaction'"
        wait_until(lambda: primary.sql(looks), 30)
        looked.touch()

    with primary.connect(application_name="slow one") as session:
        threads = [threading.Thread(target=work, args=[session]), threading.Thread(target=watch)]
        for thread in threads:
            thread.start()
        file = packages / "shop_fdw.py"
        file.write_text(file.read_text() + "\n")
        result = call_module("fdw_wrapper", {**options, "stale_sessions": "terminate"})
        looked.touch()
        for thread in threads:
            thread.join()
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert not result["failed"] and result["stale_sessions"] == [], result


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packages": []}, ["packages is empty"]),
        ({"packages": ["a.b"]}, ['"a.b"', "without a dot"]),
        ({"packages": ["a'); import os"]}, ["names of packages"]),
        ({"runtime": "multicorn"}, ["extension multicorn", "every node"]),
        ({"name": "w" * 60}, ["60 bytes", "57 at most"]),
    ],
)
def test_bad_options_change_nothing(primary, options, changes, words):
    if changes.get("runtime") == "multicorn" and primary.sql("SELECT 1 FROM pg_available_extensions WHERE name = 'multicorn'"):
        pytest.skip("this machine has Multicorn")
    refused(call_module("fdw_wrapper", {**options, **changes}), *words)
    assert primary.sql("SELECT 1 FROM pg_foreign_data_wrapper WHERE fdwname = %s", [options["name"]]) == []


def test_a_wrapper_of_something_else_is_left_alone(primary, options):
    primary.sql("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    before = primary.sql("SELECT * FROM pg_foreign_data_wrapper WHERE fdwname = 'postgres_fdw'")
    for check in (True, False):
        refused(call_module("fdw_wrapper", {**options, "name": "postgres_fdw"}, check=check), "not for classes in Python", "postgres_fdw_handler", "fdw_server")
    refused(call_module("fdw_wrapper", {**primary.login, "name": "postgres_fdw", "state": "absent"}), "extension postgres_fdw requires it")
    assert primary.sql("SELECT * FROM pg_foreign_data_wrapper WHERE fdwname = 'postgres_fdw'") == before
