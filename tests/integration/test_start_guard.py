# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The start guard of the role postgresql_node: a server that its cluster has replaced does not start as a second primary."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time

import pytest
from lab import BIN, REPOSITORY

GUARD = REPOSITORY / "roles" / "postgresql_node" / "files" / "start_guard.py"


class Pair:
    """A primary that is down and a standby of it that answers."""

    def __init__(self, lab, number):
        self.old = lab.postgres("guarded%d" % number).init().start()
        self.new = lab.postgres("successor%d" % number).clone(self.old)
        self.old.wait_for_standbys(1)
        self.old.stop()
        self.marker = self.old.base / "run" / "started"

    def ask(self, wait=0, **changes):
        """Exit status, what it printed, and how long it took in seconds."""
        config = {
            "bin_directory": str(BIN), "data_directory": str(self.old.data), "passfile": str(self.old.passfile), "user": "postgres", "wait": wait,
            "marker": str(self.marker), "peers": [self.peer(self.new)], **changes,
        }  # fmt: skip
        path = self.old.base / "start_guard.json"
        path.write_text(json.dumps(config))
        began = time.monotonic()
        done = subprocess.run([sys.executable, str(GUARD), str(path)], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr, time.monotonic() - began

    @staticmethod
    def peer(node):
        return {"name": node.name.rstrip("0123456789"), "host": "127.0.0.1", "port": node.port}


NUMBERS = itertools.count()


@pytest.fixture
def pair(lab):
    found = Pair(lab, next(NUMBERS))
    yield found
    for node in (found.old, found.new):
        if node.pid:
            node.stop()


def test_a_primary_that_was_not_replaced_starts(pair):
    status, printed, seconds = pair.ask(wait=30)
    assert (status, printed) == (0, "") and seconds < 20
    assert pair.marker.exists()


def test_a_primary_that_was_replaced_does_not_start(pair):
    pair.new.sql("SELECT pg_promote()")
    for _again in range(2):
        status, printed, _seconds = pair.ask()
        assert status == 1, printed
        for word in ("successor is on timeline 2", "primary on timeline 1", "clone_standby"):
            assert word in printed
    assert not pair.marker.exists()
    # A standby of the new primary knows as well.
    third = pair.old.lab.postgres("third").clone(pair.new)
    pair.new.wait_for_standbys(1)
    status, printed, _seconds = pair.ask(peers=[pair.peer(third)])
    third.stop()
    assert status == 1 and "third is on timeline 2" in printed
    # As a standby it may start.
    pair.old.write(pair.old.data / "standby.signal", "")
    assert pair.ask()[:2] == (0, "")


def test_a_primary_that_was_promoted_last_and_crashed_starts(pair, tmp_path):
    """Its control file names the new timeline as that of its last checkpoint only when there was one, which is soon."""
    pair.new.sql("SELECT pg_promote()")
    text = subprocess.run([BIN / "pg_controldata", "-D", pair.new.data], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
    for line, timeline in (("Latest checkpoint's TimeLineID", 1), ("Min recovery ending loc's timeline", 2)):
        text, found = re.subn(r"^(%s:\s*)\d+$" % line, r"\g<1>%d" % timeline, text, flags=re.M)
        assert found == 1
    (tmp_path / "text").write_text(text)
    (tmp_path / "pg_controldata").write_text("#!/bin/sh\nexec cat %s/text\n" % tmp_path)
    (tmp_path / "pg_controldata").chmod(0o755)
    (tmp_path / "psql").symlink_to(BIN / "psql")
    assert pair.ask(bin_directory=str(tmp_path))[:2] == (0, "")


def test_a_node_that_boots_later_is_waited_for_once(pair):
    pair.new.sql("SELECT pg_promote()")
    pair.new.stop()
    back = threading.Timer(3, pair.new.start)
    back.start()
    status, printed, seconds = pair.ask(wait=40)
    back.join()
    assert status == 1 and "successor is on timeline 2" in printed and seconds >= 3
    pair.new.stop()
    status, printed, seconds = pair.ask(wait=2)
    assert status == 0 and "did not answer: successor" in printed and seconds >= 2
    # It has run since the last boot: nobody who waits for it is kept waiting.
    status, printed, seconds = pair.ask(wait=40)
    assert status == 0 and "did not answer: successor" in printed and seconds < 20


def test_another_cluster_at_the_address_of_a_node_does_not_count(pair):
    other = pair.old.lab.postgres("stranger").init().start()
    status, printed, _seconds = pair.ask(peers=[pair.peer(other)])
    other.stop()
    assert status == 0 and "stranger is a server of another cluster" in printed


def test_a_login_that_is_refused_is_no_answer(pair):
    pair.new.sql("SELECT pg_promote()")
    status, printed, _seconds = pair.ask(passfile="/dev/null")
    assert status == 0 and "did not answer: successor" in printed
