# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from lab import GENERATIONS, Lab

# Those that take minutes begin first: a file is one worker's, and the others would wait for one that begins last.
LONG = [
    "pg_failover", "restart_cluster", "fail_over", "role_wal_archive", "powa_collector", "operation_lock_playbooks", "clone_standby", "role_pgbouncer",
    "powa_datasource", "switchover_hazards", "powa_web", "role_postgresql_node", "handyrep", "powa_info", "role_fdw_host", "powa_register",
    "redirect_pgbouncer", "powa_roles", "pg_clone", "pg_archiving",
]  # fmt: skip


def pytest_configure(config):
    config.addinivalue_line("markers", "long: for make integration-long only, as it takes minutes and most of what it shows is shown by others, too")
    config.addinivalue_line("markers", "long_with(generation): long with this PoWA, but not with the other one")


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("long_with"):
            if item.callspec.params["generation"].name in mark.args:
                item.add_marker("long")
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(scope="module")
def lab():
    """A lab for the tests of one file."""
    made = Lab()
    yield made
    made.close()


@pytest.fixture
def own_lab():
    """A lab for one test, where the test breaks things."""
    made = Lab()
    yield made
    made.close()


@pytest.fixture(scope="module", params=GENERATIONS, ids=lambda one: one.name)
def generation(request):
    """Each PoWA that Debian has, with the PostgreSQL and the collector of the same release."""
    return request.param
