# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_archiving on real servers: on with proof, paused without a hole, off, healthy or not."""

from __future__ import annotations

import shutil

import pytest
from lab import call_module, four_steps, wait_until


class Archived:
    """A server and a directory to archive to."""

    def __init__(self, lab, name, **kwargs):
        self.server = lab.postgres(name, **kwargs)
        self.directory = self.server.base / "archive"
        self.directory.mkdir()
        shutil.chown(self.directory, "postgres", "postgres")
        self.command = "test ! -f %s/%%f && cp %%p %s/%%f" % (self.directory, self.directory)

    def options(self, state, **changes):
        return {**self.server.login, "state": state, **changes}

    def call(self, state, check=False, **changes):
        return call_module("pg_archiving", self.options(state, **changes), check=check, diff=True)

    def restart(self):
        self.server.stop()
        self.server.start()

    def write_segments(self, count):
        """Fill as many segments; their names."""
        names = []
        for _number in range(count):
            # At the very beginning of a segment this name would be the one before.
            self.server.sql("SELECT pg_logical_emit_message(true, 'test', 'x')")
            names.append(self.server.value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
            self.server.sql("SELECT pg_switch_wal()")
        return names

    @property
    def names(self):
        return {path.name for path in self.directory.iterdir()}


@pytest.fixture(scope="module")
def site(lab, generation):
    found = Archived(lab, "life-" + generation.name, system=generation.system)
    found.server.init().start()
    return found


@pytest.fixture
def archived(own_lab):
    def make(name="db1", **settings):
        found = Archived(own_lab, name, settings={"archive_mode": "on", **settings})
        found.server.init().start()
        return found

    return make


def test_the_whole_life(site):
    off = site.call("healthy")
    assert off["failed"] and off["error"] == "Unhealthy" and "archive_mode is off" in off["msg"], off
    refused = site.call("paused")
    assert refused["error"] == "Refused" and "archive_mode is off" in refused["msg"]

    on = four_steps("pg_archiving", site.options("enabled", command=site.command))
    assert on["plan"] == ["set archive_mode", "set archive_command", "reload the configuration"]
    assert on["restart_required"] and not on["archives"] and not on["verified"] and on["mode"] == "off"
    assert on["before"]["archive_mode"] == "off" and site.names == set()
    assert site.server.value("SELECT pending_restart FROM pg_settings WHERE name = 'archive_mode'") is True

    site.restart()
    proved = four_steps("pg_archiving", site.options("enabled", command=site.command), diff=False)
    assert proved["plan"] == ["see that a segment is archived, which takes a WAL switch if none waits"]
    assert proved["verified"] and proved["archives"] and not proved["restart_required"] and len(site.names) >= 1
    healthy = site.call("healthy")
    assert not healthy["failed"] and healthy["changed"] is False and healthy["archives"] and healthy["problems"] == [], healthy

    # A pause loses nothing.
    paused = four_steps("pg_archiving", site.options("paused"))
    assert paused["before"]["archive_command"] == site.command and paused["mode"] == "on" and not paused["archives"]
    assert site.command in str(paused["diff"])
    written = site.write_segments(5)
    site.server.sql("CHECKPOINT")
    waiting = site.call("paused")
    assert waiting["ready_segments"] >= 5 and waiting["ready_bytes"] == waiting["ready_segments"] * 16777216
    assert "watch pg_wal" in waiting["printed"]
    unhealthy = site.call("healthy")
    assert unhealthy["failed"] and "archiving is paused" in unhealthy["msg"] and unhealthy["ready_segments"] >= 5
    assert not set(written) & site.names
    nothing = site.call("enabled")
    assert nothing["error"] == "InvalidInput" and "neither command nor library" in nothing["msg"]
    again = four_steps("pg_archiving", site.options("enabled", command=site.command))
    assert again["verified"]
    wait_until(lambda: set(written) <= site.names, 60)

    disabled = four_steps("pg_archiving", site.options("disabled"))
    assert disabled["plan"] == ["set archive_mode", "reload the configuration"]
    assert disabled["restart_required"] and disabled["mode"] == "on" and disabled["archives"]
    assert "cannot be recovered past" in disabled["printed"]
    site.restart()
    ended = site.call("disabled")
    assert not ended["restart_required"] and ended["mode"] == "off" and ended["changed"] is False


@pytest.mark.long_with("powa4")
def test_a_library_takes_the_place_of_the_command(lab, generation):
    found = Archived(lab, "library-" + generation.name, settings={"archive_mode": "on", "archive_command": "false %p"}, system=generation.system)
    found.server.init()
    found.server.write_config({"archive_mode": "on", "archive_command": "cp %%p %s/%%f" % found.directory, "basic_archive.archive_directory": found.directory})
    found.server.start()
    result = four_steps("pg_archiving", found.options("enabled", library="basic_archive"))
    assert sorted(result["plan"][:2]) == ["set archive_command", "set archive_library"] and result["verified"]
    assert (result["library"], result["command"]) == ("basic_archive", "") and found.names
    paused = four_steps("pg_archiving", found.options("paused"))
    assert paused["library"] == paused["command"] == "" and not paused["archives"]
    # Below the lines of the pause the file has a command.
    back = four_steps("pg_archiving", found.options("enabled"))
    assert set(back["plan"][:2]) == {"reset archive_command", "reset archive_library"} and back["command"].startswith("cp %p ") and back["verified"]


@pytest.mark.parametrize("command", ["true", "cp %p /archive/%f || true", "test -f /stop && exit 0; cp %p /archive/%f", "cp /archive/%f", "cp %p x\ntrue"])
def test_a_command_that_loses_wal_is_refused(site, command):
    own = (site.server.data / "postgresql.auto.conf").read_text()
    for check in (True, False):
        result = site.call("enabled", check=check, command=command)
        assert result["failed"] and result["error"] == "InvalidInput" and result["performed"] == [], result
    assert (site.server.data / "postgresql.auto.conf").read_text() == own


def test_a_command_that_fails_is_told_with_the_segment(archived):
    one = archived()
    result = one.call("enabled", command="test -d /nowhere/at/all && cp %p /nowhere/at/all/%f", timeout=60)
    assert result["failed"] and result["error"] == "NotConfirmed" and result["phase"] == "execute", result
    assert result["archiver"]["last_failed_wal"] in result["msg"] and "keeps the WAL" in result["msg"]
    assert result["performed"] == ["set archive_command", "reload the configuration"]
    unhealthy = one.call("healthy")
    assert unhealthy["error"] == "Unhealthy" and "the archiver fails on" in unhealthy["msg"]
    # Run again with what works: the failure is over and nothing was lost.
    failed = result["archiver"]["last_failed_wal"]
    good = one.call("enabled", command=one.command)
    assert not good["failed"] and good["verified"], good
    assert failed in one.names
    assert not one.call("healthy")["failed"]


def test_limits_of_health(archived):
    one = archived(archive_command="false %p")
    one.write_segments(4)
    wait_until(lambda: one.server.value("SELECT failed_count FROM pg_stat_archiver") > 0, 60)
    result = one.call("healthy", max_ready_segments=3, max_age=0)
    assert result["error"] == "Unhealthy" and len(result["problems"]) == 3, result
    assert "4 segments wait to be archived, more than 3" in result["msg"] and "the oldest segment has waited" in result["msg"]
    assert len(one.call("healthy", max_ready_segments=4, max_age=86400)["problems"]) == 1


def test_a_running_server_that_loses_wal_is_not_healthy(archived):
    one = archived(archive_command="/bin/true %p")
    result = one.call("healthy")
    assert result["error"] == "Unhealthy" and "without having archived" in result["msg"]
    kept = one.call("enabled")
    assert kept["error"] == "InvalidInput" and "without having archived" in kept["msg"]


def test_the_command_of_the_configuration_file_comes_back_after_a_pause(archived):
    one = archived(archive_command="cp %p /var/tmp/nowhere-%f && false")
    one.server.write_config({"archive_mode": "on", "archive_command": one.command})
    one.server.sql("SELECT pg_reload_conf()")
    four_steps("pg_archiving", one.options("paused"))
    back = four_steps("pg_archiving", one.options("enabled"))
    assert back["plan"][0] == "reset archive_command" and back["command"] == one.command and back["verified"]


def test_what_cannot_be(archived, own_lab):
    one = archived(wal_level="replica")
    one.server.stop()
    one.server.write_config({"archive_mode": "off", "wal_level": "minimal", "max_wal_senders": 0})
    one.server.start()
    minimal = one.call("enabled", command=one.command)
    assert minimal["error"] == "Refused" and "wal_level is minimal" in minimal["msg"]
    one.server.stop()
    one.server.write_config({"archive_mode": "off"})
    one.server.start("archive_mode=off")
    line = one.call("enabled", command=one.command)
    assert line["error"] == "Refused" and "command line" in line["msg"]
    assert not (one.server.data / "postgresql.auto.conf").read_text().count("archive_")
    useless = one.call("paused", command=one.command)
    assert useless["error"] == "InvalidInput" and "mean nothing: command" in useless["msg"]


def test_a_standby_says_that_it_archives_nothing(archived):
    one = archived()
    one.call("enabled", command=one.command)
    standby = Archived(one.server.lab, "db2", settings={"archive_mode": "on"})
    standby.server.clone(one.server)
    result = standby.call("enabled", command=one.command)
    assert not result["failed"] and not result["archives"] and result["in_recovery"] and not result["verified"], result
    assert "archives nothing with archive_mode = on" in result["printed"]
    again = standby.call("enabled", command=one.command)
    assert again["changed"] is False
    healthy = standby.call("healthy")
    assert not healthy["failed"] and not healthy["archives"]


def test_secrets_are_shown_nowhere(archived):
    one = archived(archive_command="PGPASSWORD=old-geheim cp %p /nowhere/%f")
    result = one.call("enabled", command="PGPASSWORD=new-geheim; " + one.command)
    assert not result["failed"], result
    assert "geheim" not in str({key: value for key, value in result.items() if key != "invocation"})
    assert "seems to hold a secret" in result["printed"] and "PGPASSWORD=********" in result["command"]
