# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parameters without a server: what is wanted, what the files say, what runs, and what follows from it."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput, Refused
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.settings import parse_settings
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.settings import Line, Parameter, Settings


def parameter(name="pg_stat_statements.max", **more):
    row = {
        "setting": "5000", "unit": None, "vartype": "integer", "context": "postmaster", "source": "default", "min_val": "100", "max_val": "1073741823",
        "enumvals": None, "boot_val": "5000", **more,
    }  # fmt: skip
    return Parameter(name=name, **row)


SIZE = parameter("track_activity_query_size", setting="1024", unit="B", boot_val="1024", max_val="1048576")
TIMING = parameter("track_io_timing", setting="off", vartype="bool", context="superuser", boot_val="off", min_val=None, max_val=None)
RATE = parameter("pg_qualstats.sample_rate", setting="0.0166667", vartype="real", context="user", boot_val="-1", min_val="-1", max_val="1")
KNOWN = {one.name: one for one in (parameter(), SIZE, TIMING, RATE)}


def settings(wanted, known=KNOWN, **lines):
    loaded = {name.rpartition(".")[0] for name in known}
    return Settings(parse_settings(wanted), known, {name.replace("__", "."): value for name, value in lines.items()}, loaded)


def whats(found):
    return [change.what for change in found.changes()]


def test_texts_of_the_option():
    assert parse_settings({"Track_IO_Timing": True, "powa.coalesce": 10, "pg_qualstats.sample_rate": 0.5, "track_functions": None}) == {
        "track_io_timing": "on", "powa.coalesce": "10", "pg_qualstats.sample_rate": "0.5", "track_functions": None,
    }  # fmt: skip
    assert parse_settings(None) == {}


@pytest.mark.parametrize(
    "option, words",
    [
        ({"work_mem": 1}, "settings names work_mem"),
        ({"powa": 1}, "settings names powa"),
        ({"powa.a.b": 1}, "settings names powa.a.b"),
        ({'powa."x': 1}, "settings names powa."),
        ({"track_counts": True, "TRACK_COUNTS": False}, "twice"),
        ({"track_counts": ["on"]}, "of the type list"),
        ({"powa.coalesce": float("inf")}, "of the type float"),
        ({"powa.ignored_users": "a\nb"}, "more than one line"),
    ],
)
def test_bad_options(option, words):
    with pytest.raises(InvalidInput, match=words):
        parse_settings(option)


def test_the_last_line_counts_whichever_file_it_is_in():
    elsewhere, own = Line(False, "2kB"), Line(True, "4kB")
    assert whats(settings({"track_activity_query_size": 2048}, track_activity_query_size=[elsewhere])) == []
    assert whats(settings({"track_activity_query_size": "2kB"}, track_activity_query_size=[elsewhere, own])) == ["set track_activity_query_size = 2kB"]
    assert whats(settings({"track_activity_query_size": None}, track_activity_query_size=[elsewhere, own])) == ["reset track_activity_query_size"]
    assert whats(settings({"track_activity_query_size": None}, track_activity_query_size=[elsewhere])) == []
    # Neither file has it: the value that the server was built with.
    assert whats(settings({"track_activity_query_size": 1024})) == []
    assert settings({"track_activity_query_size": None}, track_activity_query_size=[elsewhere, own]).target("track_activity_query_size") == "2kB"


def test_what_runs_is_not_what_the_files_say():
    both = settings({"track_io_timing": True, "pg_stat_statements.max": 7000}, track_io_timing=[Line(True, "on")], pg_stat_statements__max=[Line(True, "7000")])
    assert both.changes() == [] and both.awaiting_reload() == ["track_io_timing"] and both.awaiting_restart() == ["pg_stat_statements.max"]
    # The value of a role or of a database hides that of the server.
    hidden = parameter("track_io_timing", setting="off", vartype="bool", context="superuser", source="database", boot_val="off")
    assert settings({"track_io_timing": True}, {hidden.name: hidden}).awaiting_reload() == []
    # -1 became another number when the library was loaded.
    assert settings({"pg_qualstats.sample_rate": -1}).awaiting_reload() == []
    assert settings({"pg_qualstats.sample_rate": "0.0166667"}).awaiting_reload() == []


def test_a_library_that_is_not_loaded():
    found = settings({"powa.frequency": "1min", "powa.coalesce": None})
    found.check()
    assert found.deferred == ["powa.frequency"] and found.libraries == ["powa"] and found.changes() == []
    assert whats(settings({"powa.coalesce": None}, powa__coalesce=[Line(True, "7")])) == ["reset powa.coalesce"]


def test_refusals():
    with pytest.raises(InvalidInput, match="a number from 100 to 1048576 in units of B"):
        settings({"track_activity_query_size": "2MB"}).check()
    with pytest.raises(InvalidInput, match=r"one of pg_stat_statements\.max"):
        settings({"pg_stat_statements.maximum": 1}).check()
    fixed = parameter("track_io_timing", setting="off", vartype="bool", context="superuser", source="command line", boot_val="off")
    settings({"track_io_timing": False}, {fixed.name: fixed}).check()
    with pytest.raises(Refused, match="command line"):
        settings({"track_io_timing": True}, {fixed.name: fixed}).check()
    with pytest.raises(Refused, match="allow_alter_system is off"):
        Settings({"track_io_timing": "on"}, KNOWN, {}, (), forbidden=True).check()
    Settings({"track_io_timing": "off"}, KNOWN, {}, (), forbidden=True, broken=("line 1",)).check()
    with pytest.raises(Refused, match="a reload does nothing: line 1"):
        Settings({"track_io_timing": "on"}, KNOWN, {}, (), broken=("line 1",)).check()
