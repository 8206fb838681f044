# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook clone_standby on a cluster of three nodes."""

from __future__ import annotations

import re
import shutil

import pytest
from cluster_play import play
from lab import REPOSITORY, Lab, wait_until
from switchover_site import Site
from test_pg_clone import age


@pytest.fixture(scope="module")
def site():
    lab = Lab()
    made = Site(lab, poolers=1)
    made.nodes[0].sql("CREATE TABLE filler AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 30000) g")
    yield made
    lab.close()


def streams(site, name):
    wait_until(lambda: site.answers(name), 20)
    node = site.node(name)
    wait_until(lambda: node.value("SELECT status FROM pg_stat_wal_receiver") == "streaming", 20)
    return node.value("SELECT sender_port FROM pg_stat_wal_receiver")


@pytest.mark.long
def test_a_copy_says_how_far_it_is(site):
    """Through check mode, the real run, and both again."""
    node, before = site.node("db3"), age(site.node("db3"))
    more = {"standby": "db3", "reclone": True, "clone_max_rate": "8M"}
    output, changed = play(site, "clone_standby", "--check", **more)
    assert "db3 would become a standby of db1, by a new copy" in output and age(node) == before and sum(changed.values()) == 1, output
    output, changed = play(site, "clone_standby", **more)
    assert "db3 is a standby of db1, by a new copy" in output and age(node) != before and sum(changed.values()) == 1, output
    told = [int(percent) for percent in re.findall(r"db3: (\d+) % of \d+ MB", output)]
    assert told and told == sorted(told) and all(0 <= percent <= 100 for percent in told), output
    assert streams(site, "db3") == site.node("db1").port
    for arguments in (["--check"], []):
        output, changed = play(site, "clone_standby", *arguments, standby="db3")
        assert "db3 is a standby that streams from 127.0.0.1:%d; nothing to do" % site.node("db1").port in output and not any(changed.values()), output


def test_from_another_standby_and_without_a_copy(site):
    node = site.node("db3")
    node.stop()
    before = age(node)
    output, _changed = play(site, "clone_standby", standby="db3", source="db2")
    assert "db3 is a standby of db2, with the data that it has, nothing copied" in output and age(node) == before, output
    assert streams(site, "db3") == site.node("db2").port


@pytest.mark.parametrize(
    "arguments, extra, text",
    [
        ([], {}, "Name the node that is to be the standby"),
        ([], {"standby": "db9"}, "Name the node that is to be the standby"),
        ([], {"standby": "db3", "source": "db3"}, "Name the node that is to be the standby"),
        ([], {"standby": "db3", "clone_method": "rsync"}, "which is neither a built-in method (auto, rewind, basebackup)"),
        (["--limit", "db3,localhost"], {"standby": "db3"}, "without a --limit"),
        ([], {"standby": "db1"}, "it is the primary"),
        ([], {"standby": "db1", "source": "db2", "reclone": True}, "a primary runs in"),
    ],
)
def test_refusals_change_nothing(site, arguments, extra, text):
    before = {node.name: (node.pid, age(node)) for node in site.nodes}
    output, changed = play(site, "clone_standby", *arguments, fails=True, **extra)
    assert text in " ".join(output.split()) and not any(changed.values()), output
    assert {node.name: (node.pid, age(node)) for node in site.nodes} == before


def test_what_the_module_says_is_read_last(site):
    node = site.node("db3")
    node.stop()
    output, _changed = play(site, "clone_standby", fails=True, standby="db3", clone_method="basebackup")
    tasks = output.split("TASK [")
    assert tasks[-1].startswith("Say once more why it failed") and "copy_method is basebackup" in tasks[-1], output
    # The lock was given back.
    output, _changed = play(site, "clone_standby", standby="db3")
    assert "nothing copied" in output, output


@pytest.mark.long
def test_a_method_of_ones_own_is_judged_by_the_servers(site):
    """The worked example of the documentation: the directory of a standby that is down serves as the copy."""
    node, copy = site.node("db3"), site.node("db2")
    copy.stop()
    method = REPOSITORY / "docs" / "methods" / "clone_from_copy.yml"
    more = {"standby": "db3", "reclone": True, "clone_method": str(method), "clone_copy_directory": str(copy.data)}
    node.stop()
    shutil.rmtree(node.data)
    output, _changed = play(site, "clone_standby", "--check", **more)
    assert "db3 would become a standby of db1, by" in output and not node.data.exists(), output
    output, _changed = play(site, "clone_standby", **more)
    assert "db3 is a standby of db1, by" in output and streams(site, "db3") == site.node("db1").port, output
    # What a method must not be let near: it is not even called.
    liar = site.lab.path / "liar.yml"
    liar.write_text("- ansible.builtin.set_fact: {method_result: {changed: true, msg: done}}\n")
    output, _changed = play(site, "clone_standby", fails=True, standby="db1", source="db3", clone_method=str(liar))
    assert "a primary runs in" in output and "Take over its result" not in output, output
    # And one that only says so.
    node.stop()
    output, _changed = play(site, "clone_standby", fails=True, standby="db3", reclone=True, clone_method=str(liar))
    assert "See that it is a standby that streams from the source" in output and "nothing copied" not in output, output
    copy.start()
    node.start()
