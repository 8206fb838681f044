# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever happens to the controlling process: no pooler stays paused, never two writable nodes, nothing acknowledged is lost."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from lab import collections_path, wait_until
from switchover_site import Sites

DRIVER = pathlib.Path(__file__).with_name("operation_driver.py")

NUMBERS = itertools.count()

# Moments before the release: the old primary goes on. After it: the candidate is the primary, or becomes it.
GOES_BACK = ["step.prepare.after", "guardian.fence.after", "step.pause.after", "guardian.switch.sent", "step.stop.after", "guardian.release.before"]
GOES_ON = ["guardian.promote.after", "step.promote.after", "step.resume.after"]


@pytest.fixture(scope="module")
def sites():
    with Sites() as sites:
        yield sites


@pytest.fixture
def site(sites):
    return sites.sound()


def run_driver(site, candidate, accident, moment="", **changes):
    """The driver's exit status, its result (None when it was killed) and how long poolers were seen paused, in seconds."""
    options = site.lab.path / ("options-%d.json" % next(NUMBERS))
    options.write_text(json.dumps(site.options(candidate, **changes)))
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), "switchover", str(options), accident, *([moment] if moment else [])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(collections_path())}, cwd="/",
    )  # fmt: skip
    site.processes.append(process)
    return process


def writable(site):
    """Names of the nodes that accept a write at this moment; a node that does not answer accepts none."""
    names = []
    for node in site.nodes:
        try:
            node.sql("INSERT INTO public.load VALUES ('probe', %s, 0) ON CONFLICT DO NOTHING", [int(node.name[2:])], dbname="app")
        except Exception:
            continue
        names.append(node.name)
    return names


def split(site):
    """The nodes that accept writes, where that is more than one. They are asked one after the other, so one that moved counts once more."""
    return [found for found in [writable(site)] if len(found) > 1 and len(writable(site)) > 1]


def settled(site, expected):
    def is_so():
        try:
            return [node.name for node in site.primaries] == [expected] and not site.paused()
        except Exception:
            return False

    return is_so


def other(site, primary):
    return next(node.name for node in site.nodes[:2] if node.name != primary)


@pytest.mark.parametrize("moment", GOES_BACK + GOES_ON)
def test_a_killed_process_leaves_one_primary_and_no_pause(site, moment):
    before = site.primary.name
    candidate = other(site, before)
    expected = before if moment in GOES_BACK else candidate
    with site.load(clients=8) as load:
        process = run_driver(site, candidate, "kill", moment, timeout=8)
        two_writers = []
        process.wait(30)
        assert process.returncode == -9
        end = time.monotonic() + 10
        while time.monotonic() < end and not settled(site, expected)():
            two_writers += split(site)
        wait_until(settled(site, expected), 5)
        assert not two_writers
        assert writable(site) == [expected]
        # Clients go on by themselves, and they reach the right node.
        for pooler in site.poolers:
            with pooler.connect("app") as connection:
                assert connection.execute("SELECT current_setting('cluster_name'), pg_is_in_recovery()").fetchone() == (expected, False)
        time.sleep(0.3)
    assert load.lost == set()
    assert load.report["unfinished_clients"] == 0
    for pooler in site.poolers:
        assert "port=%d" % site.node(expected).port in pooler.databases_file.read_text()
    # The next run finishes or begins anew, and all nodes stream from the one primary.
    result = site.switch(candidate)
    assert not result["failed"], result["msg"]
    assert site.primary.name == candidate
    site.primary.wait_for_standbys(2)
    again = site.switch(candidate)
    assert not again["failed"] and not again["changed"], (again["plan"], again.get("msg"))
    assert candidate not in [row[0] for node in site.nodes for row in node.sql("SELECT slot_name FROM pg_replication_slots")]


@pytest.mark.parametrize("moment", ["step.prepare.after", "step.pause.after", "step.stop.after", "guardian.release.before"])
def test_a_step_that_fails_is_rolled_back(site, moment):
    primary = site.primary.name
    with site.load(clients=8) as load:
        before = site.fingerprint()
        process = run_driver(site, other(site, primary), "error", moment)
        output, _errors = process.communicate(timeout=60)
        result = json.loads(output.splitlines()[-1])
        assert result["failed"] and result["error"] == "RolledBack", result
        assert "an accident happened" in result["msg"]
        site.primary.wait_for_standbys(2)
        after = site.fingerprint()
    assert after == before
    assert load.lost == set()
    assert site.paused() == []


def test_a_hanging_process_is_overtaken_and_cannot_promote_later(site):
    primary = site.primary.name
    candidate = other(site, primary)
    with site.load(clients=8) as load:
        process = run_driver(site, candidate, "hang", "step.prepare.after", timeout=6)
        began = time.monotonic()
        try:
            # Nothing is armed yet.
            wait_until(settled(site, primary), 30)
            assert time.monotonic() - began < 30
        finally:
            process.kill()
            process.wait(10)
        wait_until(settled(site, primary), 15)
        assert writable(site) == [primary]
    assert load.lost == set()


def test_a_process_that_hangs_inside_the_window_finds_its_promotion_refused(site):
    primary = site.primary.name
    candidate = other(site, primary)
    with site.load(clients=8) as load:
        process = run_driver(site, candidate, "hang", "step.stop.after", timeout=6)
        wait_until(lambda: bool(site.paused()), 20, interval=0.02)
        began = time.monotonic()
        wait_until(settled(site, primary), 20, interval=0.05)
        # Not longer than the time limit, with what a busy machine may add.
        assert time.monotonic() - began < 6 + 6
        # It wakes up after 60 s; the guardian of the old primary then refuses the release, so it never promotes.
        output, _errors = process.communicate(timeout=90)
        result = json.loads(output.splitlines()[-1])
        assert result["failed"], result
        assert result["error"] == "RolledBack", result
        assert [node.name for node in site.primaries] == [primary]
    assert load.lost == set()
