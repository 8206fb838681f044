# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook restart_cluster on three nodes behind two poolers, with clients at work."""

from __future__ import annotations

import contextlib
import threading

import psycopg
import pytest
from cluster_play import play
from lab import Lab, wait_until
from switchover_site import Site


@pytest.fixture(scope="module")
def site():
    with contextlib.closing(Lab()) as lab:
        yield Site(lab)


def started(site):
    return {node.name: node.value("SELECT pg_postmaster_start_time()::text") for node in site.nodes}


def restarted(site, before):
    return {name for name, when in started(site).items() if when != before[name]}


def configure(site, nodes=None, **settings):
    for node in nodes or site.nodes:
        text = "".join(line for line in node.config_file.read_text().splitlines(True) if line.split(" ")[0] not in settings)
        node.write(node.config_file, text + "".join("%s = '%s'\n" % item for item in settings.items()))
        loaded = node.value("SELECT pg_conf_load_time()")
        node.sql("SELECT pg_reload_conf()")
        wait_until(lambda node=node, loaded=loaded: node.value("SELECT pg_conf_load_time()") != loaded, 20)


def values(site, name):
    return {node.value("SELECT current_setting(%s)", [name]) for node in site.nodes}


class Readers:
    """Clients of the standby's entry, one for each pooler."""

    def __init__(self, site):
        self.errors, self.count, self._end = [], 0, threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(pooler,)) for pooler in site.poolers]

    def _read(self, pooler):
        try:
            with pooler.connect("app_ro") as connection:
                while not self._end.wait(0.02):
                    connection.execute("SELECT count(*) FROM public.load")
                    self.count += 1
        except psycopg.Error as error:
            self.errors.append(str(error))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self._end.set()
        for thread in self._threads:
            thread.join(60)


def whole(site):
    site.primary.wait_for_standbys(len(site.nodes) - 1)
    assert site.paused() == []


def restart_under_load(site, **options):
    """Restart all nodes with clients of both entries at work; returns the output."""
    before = started(site)
    with site.load(duration=600) as load, Readers(site) as readers:
        output, _changed = play(site, "restart_cluster", **options)
    assert load.report["errors"] == 0, load.report["error_texts"]
    assert load.lost == set() and load.report["commits"] > 100
    assert readers.errors == [] and readers.count > 100
    assert restarted(site, before) == {"db1", "db2", "db3"}
    whole(site)
    return output


def more_connections(site):
    value = str(int(site.primary.value("SHOW max_connections")) + 10)
    configure(site, max_connections=value)
    return value


def test_with_a_switchover_clients_see_no_error_and_a_second_run_does_nothing(site):
    options = {"only_if_pending_restart": True}
    primary, wanted, before = site.primary.name, more_connections(site), started(site)
    output, changed = play(site, "restart_cluster", "--check", **options)
    assert sum(changed.values()) > 0 and restarted(site, before) == set(), output
    restart_under_load(site, **options)
    assert values(site, "max_connections") == {wanted} and site.primary.name != primary
    before = started(site)
    for again in (("--check",), ()):
        output, changed = play(site, "restart_cluster", *again, **options)
        assert set(changed.values()) == {0} and restarted(site, before) == set(), output


def test_in_place_clients_see_no_error(site):
    primary, wanted = site.primary.name, more_connections(site)
    restart_under_load(site, primary="in_place")
    assert values(site, "max_connections") == {wanted} and site.primary.name == primary


@pytest.mark.long
def test_lower_settings_go_to_the_primary_first_and_by_no_other_way(site):
    wanted, before = str(int(site.primary.value("SHOW max_connections")) - 20), started(site)
    configure(site, max_connections=wanted)
    for primary, order in (("switchover", "switchover"), ("skip", "standbys_only")):
        output, _changed = play(site, "restart_cluster", fails=True, primary=primary)
        text = " ".join(output.split())
        assert "The order %s is not possible" % order in text and "its max_connections is %s after a restart, and that of" % wanted in text, output
    assert restarted(site, before) == set()
    restart_under_load(site, primary="in_place")
    assert values(site, "max_connections") == {wanted}
    times = started(site)
    assert min(times, key=times.get) == site.primary.name


def test_nothing_is_restarted_while_a_standby_is_away(site):
    before = started(site)
    away = next(node for node in site.nodes if node is not site.primary)
    away.stop()
    try:
        output, _changed = play(site, "restart_cluster", fails=True)
        assert "Nothing was restarted" in output and "Connection refused" in output, output
    finally:
        away.start()
    whole(site)
    assert restarted(site, before) == {away.name}


def test_a_node_that_does_not_come_back_ends_it_and_nobody_is_left_waiting(site):
    broken = next(node for node in site.nodes if node is not site.primary)
    before, text = started(site), broken.config_file.read_text()
    broken.write(broken.config_file, text + "shared_preload_libraries = 'no_such_library'\n")
    try:
        output, _changed = play(site, "restart_cluster", fails=True, primary="in_place")
        assert "no_such_library" in output and broken.pid is None and site.paused() == []
    finally:
        broken.write(broken.config_file, text)
        broken.start()
    whole(site)
    assert restarted(site, before) == {broken.name}


def test_a_transaction_that_holds_up_the_pause_is_named_and_its_node_is_left_alone(site):
    """The failure of a loop prints what it loops over: no password may be in there, which play() looks for."""
    before = started(site)
    (port,) = [row["port"] for row in site.poolers[0].show("DATABASES") if row["name"] == "app_ro"]
    held = next(node for node in site.nodes if node.port == port)
    with site.poolers[0].connect("app_ro", application_name="nightly report") as connection, connection.transaction():
        connection.execute("SELECT 1")
        output, _changed = play(site, "restart_cluster", fails=True, primary="in_place", restart_pause_timeout=1)
        assert "app_ro" in output and "postgres" in output and site.paused() == [], output
        connection.execute("SELECT 1")
    assert not restarted(site, before) & {held.name, site.primary.name}
    whole(site)


METHOD = """\
- name: Restart by pg_ctl
  ansible.builtin.command:
    argv: ["{{ method_input.target.bin_directory }}/pg_ctl", -D, "{{ method_input.target.data_directory }}", -m, "{{ method_input.options.mode }}",
           -l, "{{ method_input.target.log_file }}", -w, restart]
  become: true
  become_user: "{{ method_input.target.user }}"
  changed_when: true
  when: not ansible_check_mode and not pretend
- name: Say what was done
  ansible.builtin.set_fact:
    method_result: {changed: true, msg: "restarted {{ method_input.node }}"}
"""


@pytest.mark.long
def test_a_method_of_ones_own_is_run_and_not_believed(site):
    method = site.lab.path / "restart.yml"
    method.write_text(METHOD)
    before = started(site)
    output, _changed = play(site, "restart_cluster", fails=True, restart_method="restart_pg_ctl", primary="skip")
    assert "restart_method" in output and restarted(site, before) == set(), output
    options = {"restart_method": str(method), "restart_timeout": 5}
    output, _changed = play(site, "restart_cluster", fails=True, primary="skip", pretend=True, **options)
    assert "was to be restarted, and within 5 s it was not" in " ".join(output.split()), output
    assert restarted(site, before) == set() and site.paused() == []
    play(site, "restart_cluster", primary="skip", pretend=False, **{**options, "restart_timeout": 60})
    assert restarted(site, before) == {node.name for node in site.nodes if node is not site.primary}
    whole(site)


def test_bad_options(site):
    before = started(site)
    for options, word in (({"primary": "maybe"}, "must be switchover, in_place or skip"), ({"candidate": "db7"}, "one of db1, db2, db3")):
        output, _changed = play(site, "restart_cluster", fails=True, **options)
        assert word in " ".join(output.split()), output
    assert restarted(site, before) == set()
