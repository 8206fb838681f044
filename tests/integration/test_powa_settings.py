# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option settings of powa_archivist: what the server's own file, the reload and the restart do, with both generations."""

from __future__ import annotations

import random

import psycopg
import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.settings import parse_settings
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import Session
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.settings import Parameter, read_settings
from lab import PRELOAD, call_module, four_steps

OWN = "postgresql.auto.conf"


@pytest.fixture(scope="module")
def server(lab, generation):
    settings = {"shared_preload_libraries": PRELOAD + ",powa", "pg_wait_sampling.history_size": "6000"}
    server = lab.postgres("settings-" + generation.name, settings=settings, system=generation.system).init().start()
    result = call_module("powa_archivist", {**server.login, "side": "remote", "database": "stats"})
    assert not result["failed"], result
    return server


def options(server, **settings):
    return {**server.login, "side": "remote", "database": "stats", "settings": {name.replace("__", "."): value for name, value in settings.items()}}


def own_lines(server):
    return dict(line.split(" = ") for line in (server.data / OWN).read_text().splitlines() if "=" in line)


def test_written_once_reloaded_and_taken_back(server):
    wanted = {"track_io_timing": True, "powa__retention": "2 d", "pg_wait_sampling__history_size": 6000, "pg_stat_statements__track": "all"}
    result = four_steps("powa_archivist", options(server, **wanted, powa__debug=False))
    # What the files say already is not written again.
    assert result["plan"] == ["set track_io_timing = on", "set powa.retention = 2 d", "set pg_stat_statements.track = all", "reload the configuration"]
    assert own_lines(server) == {"track_io_timing": "'on'", "powa.retention": "'2 d'", "pg_stat_statements.track": "'all'"}
    assert result["settings"]["powa.retention"] == "2880" and result["restart_required"] is False and result["deferred_settings"] == []
    assert {"before": "track_io_timing = off\n", "after": "track_io_timing = on\n"}.items() <= result["diff"][0].items()
    same = options(server, powa__retention="48h", track_io_timing="yes", pg_stat_statements__track="ALL", pg_wait_sampling__history_size="6000")
    assert call_module("powa_archivist", same)["changed"] is False
    back = four_steps("powa_archivist", options(server, powa__retention=None, track_io_timing=None, pg_wait_sampling__history_size=None))
    assert back["plan"] == ["reset powa.retention", "reset track_io_timing", "reload the configuration"]
    assert own_lines(server) == {"pg_stat_statements.track": "'all'"} and server.value("SHOW powa.retention") == "1d"
    assert {"before": "powa.retention = 2 d\n", "after": "powa.retention = 1440\n"}.items() <= back["diff"][0].items()


def test_a_restart_is_reported_until_it_was_done(server):
    wanted = options(server, pg_stat_statements__max=7000, track_activity_query_size="2kB")
    started = server.value("SELECT pg_postmaster_start_time()")
    ahead = call_module("powa_archivist", wanted, check=True)
    assert ahead["restart_required"] is True
    assert "only a restart brings pg_stat_statements.max = 7000, track_activity_query_size = 2kB" in ahead["restart_reason"]
    result = four_steps("powa_archivist", wanted)
    assert result["restart_reason"] == ahead["restart_reason"] and server.value("SELECT pg_postmaster_start_time()") == started
    again = call_module("powa_archivist", wanted)
    assert again["changed"] is False and again["restart_required"] is True and again["settings"]["pg_stat_statements.max"] == "5000"
    assert "must be restarted" in again["printed"]
    server.stop()
    server.start()
    after = call_module("powa_archivist", wanted)
    assert after["changed"] is False and after["restart_required"] is False
    assert after["settings"] == {"pg_stat_statements.max": "7000", "track_activity_query_size": "2048"}


def test_a_file_that_was_changed_and_not_read_is_read(server):
    server.sql("ALTER SYSTEM SET track_functions = 'pl'")
    assert four_steps("powa_archivist", options(server, track_functions="pl"), diff=False)["plan"] == ["reload the configuration"]
    assert server.value("SHOW track_functions") == "pl"


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("work_mem", "1MB", "settings names work_mem. Expected: pg_stat_statements.*"),
        ("shared_preload_libraries", "powa", "Other parameters are set where"),
        ("pg_qualstats.nope", 1, "which this server does not know. Expected: one of pg_qualstats.enabled"),
        ("track_cost_delay_timing", True, "Expected: a parameter of this version of PostgreSQL"),
        ("pg_stat_statements.max", 12, 'the value "12". Expected: a number from 100 to 1073741823'),
        ("pg_stat_statements.max", "many", 'the value "many"'),
        ("pg_stat_statements.max", "6000kB", 'the value "6000kB"'),
        ("pg_stat_statements.track", "some", "Expected: one of none, top, all"),
        ("track_activity_query_size", "2MB", "from 100 to 1048576 in units of B"),
        ("track_io_timing", "perhaps", "Expected: on or off"),
        # Less than 5 s are allowed by pg_settings and not by PoWA.
        ("powa.frequency", "2s", 'powa.frequency the value "2s"'),
        ("powa.ignored_users", "a\nb", "more than one line"),
        ("powa.ignored_users", ["a"], "a value of the type list"),
    ],
)
def test_nothing_is_written_if_one_value_is_wrong(server, name, value, words):
    before = own_lines(server)
    with server.connect() as connection, pytest.raises(InvalidInput) as refused:
        wanted = parse_settings({"pg_qualstats.track_constants": False, name: value})
        read_settings(Session(connection, None), wanted)
    assert words in str(refused.value) and own_lines(server) == before


def test_a_wrong_value_fails_the_task_before_any_step(server):
    before = own_lines(server)
    result = call_module("powa_archivist", options(server, track_functions="all", pg_stat_statements__max=12))
    assert result["failed"] and result["error"] == "InvalidInput" and 'pg_stat_statements.max the value "12"' in result["msg"]
    assert result["performed"] == [] and own_lines(server) == before


def test_numbers_are_read_as_the_server_reads_them(server):
    """Canonical values of parameters with and without units, beside those that a session of the server makes of the same text."""
    names = ["work_mem", "log_min_duration_statement", "powa.coalesce", "powa.retention", "seq_page_cost", "vacuum_cost_delay", "backend_flush_after"]
    names.append("powa.debug")
    columns = "name, setting, unit, vartype, context, source, min_val, max_val, enumvals, boot_val"
    rows = server.sql("SELECT %s FROM pg_settings WHERE name = ANY (%%s)" % columns, [names])
    parameters = [Parameter(**dict(zip(columns.split(", "), row))) for row in rows]
    assert len(parameters) == len(names)
    dice = random.Random(1)
    numbers = ["0", "1", "7.5", "0.1", "30.1", "1e2", "0x20", "010", "-1", "2.5", "3.5", ".5", "5.", "1_0", "", "x", "99999999999"]
    numbers += ["%.5f" % dice.uniform(0, 100) for _n in range(10)]
    units = ["", "B", "kB", "MB", "GB", "TB", "kb", "us", "ms", "s", "min", "h", "d", " s", "  MB "]
    texts = [number + unit for number in numbers for unit in units] + ["on", "of", "o", "TRUE", "tr", "y", "n", "no"]
    different, taken = [], 0
    with server.connect(dbname="stats") as connection, connection.transaction(force_rollback=True):
        for parameter in parameters:
            for text in texts:
                try:
                    with connection.transaction(force_rollback=True):
                        connection.execute("SELECT set_config(%s, %s, true)", [parameter.name, text])
                        theirs = connection.execute("SELECT setting FROM pg_settings WHERE name = %s", [parameter.name]).fetchone()[0]
                except psycopg.errors.InvalidParameterValue:
                    theirs = None
                try:
                    ours = parameter.canonical(text)
                except ValueError:
                    ours = None
                taken += theirs is not None
                if theirs != ours:
                    different.append((parameter.name, text, theirs, ours))
    assert not different and taken > 100, (different[:20], taken)


def test_a_library_that_is_not_loaded_defers_its_parameters(own_lab, generation):
    server = own_lab.postgres("unloaded", system=generation.system).init().start()
    wanted = options(server, pg_stat_statements__max="7000", track_io_timing=True)
    result = four_steps("powa_archivist", wanted)
    assert "set track_io_timing = on" in result["plan"] and result["deferred_settings"] == ["pg_stat_statements.max"]
    assert own_lines(server) == {"track_io_timing": "'on'"} and result["restart_required"] is True
    assert "pg_stat_statements must be preloaded" in result["restart_reason"] and "pg_stat_statements.max can be set once" in result["restart_reason"]
    server.write_config({"shared_preload_libraries": result["preload_expected"]})
    server.stop()
    server.start()
    later = four_steps("powa_archivist", wanted)
    assert later["plan"] == ["set pg_stat_statements.max = 7000", "reload the configuration"] and later["deferred_settings"] == []
    # The line stays where the library is gone, and can be taken back all the same.
    server.write_config({})
    server.stop()
    server.start()
    assert four_steps("powa_archivist", options(server, pg_stat_statements__max=None))["plan"][0] == "reset pg_stat_statements.max"
    assert own_lines(server) == {"track_io_timing": "'on'"}


def test_each_node_has_its_own(own_lab, generation):
    primary = own_lab.postgres("primary", settings={"shared_preload_libraries": PRELOAD}, system=generation.system).init().start()
    standby = own_lab.postgres("standby", settings={"shared_preload_libraries": PRELOAD}, system=generation.system).clone(primary)
    assert not call_module("powa_archivist", options(primary, track_io_timing=True))["failed"]
    primary.wait_for_standbys(1)
    assert standby.value("SHOW track_io_timing") == "off"
    result = four_steps("powa_archivist", {**options(standby, track_io_timing=True), "on_standby": "skip"})
    assert result["plan"] == ["set track_io_timing = on", "reload the configuration"] and result["in_recovery"] is True
    assert four_steps("powa_archivist", options(standby, track_functions="pl"))["settings"] == {"track_functions": "pl"}


def test_what_stands_above_the_files(own_lab, generation):
    server = own_lab.postgres("above", system=generation.system).init().start("track_io_timing=off")
    fixed = call_module("powa_archivist", options(server, track_io_timing=True))
    assert fixed["failed"] and fixed["error"] == "Refused" and "on its command line" in fixed["msg"] and own_lines(server) == {}
    with server.config_file.open("a") as file:
        file.write("no such line\n")
    broken = call_module("powa_archivist", options(server, track_functions="pl"))
    assert broken["failed"] and broken["error"] == "Refused" and "%s line" % server.config_file in broken["msg"] and own_lines(server) == {}
    if generation.system.major >= 17:
        server.write_config({"allow_alter_system": "off"})
        server.sql("SELECT pg_reload_conf()")
        forbidden = call_module("powa_archivist", options(server, track_functions="pl"))
        assert forbidden["failed"] and "allow_alter_system is off" in forbidden["msg"]
