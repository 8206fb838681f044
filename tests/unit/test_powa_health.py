# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a repository of PoWA is judged."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.powa_info import parse_expected
from ansible_collections.pgfleet.ops.plugins.module_utils._powa import health
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.collector import mismatch
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.health import AgeLimit, CollectorSeen, Node, Reason
from test_powa import registered


@pytest.mark.parametrize(
    "snapshot, worker, status, words",
    [
        ({"snapshot_age_seconds": 10}, "running", "ok", []),
        ({"snapshot_age_seconds": 10}, None, "ok", []),
        ({"snapshot_age_seconds": 240}, "running", "ok", []),
        ({"snapshot_age_seconds": 241}, "running", "critical", ["241 s old, which is more than 240 s"]),
        ({}, "running", "warning", ["no snapshot yet"]),
        ({"snapshot_age_seconds": 10, "errors": ["a\nb"]}, "running", "warning", ["PoWA noted errors: a b"]),
        ({"snapshot_age_seconds": 10}, "none", "critical", ["no worker collects from it"]),
        ({"snapshot_age_seconds": 10}, "stopped", "critical", ["its worker has ended (stopped)"]),
        ({"snapshot_age_seconds": 10}, "no connection to remote server", "critical", ["its worker has no connection to remote server"]),
        ({"snapshot_age_seconds": 10}, "stopping", "critical", ["its worker is stopping"]),
        ({"snapshot_age_seconds": 300, "errors": ["x"]}, "none", "critical", ["no worker", "300 s old", "errors: x"]),
    ],
)
def test_a_server(snapshot, worker, status, words):
    server = registered()
    reasons = health.judge_server(server, snapshot, worker, AgeLimit(4).of(server))
    assert health.worst(reasons) == status
    found = health.texts(reasons)
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found))


def test_an_inactive_server_is_well():
    assert health.judge_server(registered(frequency=-1), {"snapshot_age_seconds": 1e6, "errors": ["old"]}, None, 0) == []


def test_the_limit_in_seconds_wins():
    assert AgeLimit(4).of(registered(frequency=30)) == 120 and AgeLimit(4, 7).of(registered(frequency=30)) == 7


def test_the_worst_comes_first():
    reasons = [Reason("warning", "a"), Reason("critical", "b"), Reason("warning", "c")]
    assert health.worst(reasons) == "critical" and health.texts(reasons) == ["b", "a", "c"] and health.worst([]) == "ok"


def test_errors_are_cut():
    assert health.join_errors(["x\n  y", "z"]) == "x y / z" and len(health.join_errors(["e" * 5000])) < 400


@pytest.mark.parametrize(
    "seen, unfit, status, words",
    [
        (CollectorSeen(["1.2.0"], {7: "running"}), None, "ok", ""),
        (CollectorSeen([]), None, "critical", "no powa-collector is connected"),
        (CollectorSeen(["1.2.0", "1.2.0"]), None, "warning", "2 collectors are connected"),
        (CollectorSeen(["1.2.0"], {7: "running", 9: "running"}), None, "warning", "(id 9): restart it"),
        (CollectorSeen(["1.2.0"], {7: "running", 9: "stopped"}), None, "ok", ""),
        (CollectorSeen(["1.3.1"], problem="it did not answer"), None, "critical", "it did not answer"),
        (CollectorSeen(["1.2.0"]), "does not fit", "critical", "does not fit"),
    ],
)
def test_the_collector(seen, unfit, status, words):
    reasons = health.judge_collector(seen, [registered()], unfit)
    assert health.worst(reasons) == status and words in " ".join(health.texts(reasons))


def test_no_collector_is_needed_without_an_active_server():
    assert health.judge_collector(CollectorSeen([]), [registered(frequency=-1)], None) == []


def test_versions_that_cannot_work_together():
    assert mismatch("1.2.0", "4.1.4") is mismatch("1.3.1", "4.1.4") is mismatch("1.3.1", "5.0.2") is mismatch("", "5.0.2") is None
    assert "powa-collector 1.2.0 cannot work with PoWA 5.0.2" in mismatch("1.2.0", "5.0.2")


def test_coverage():
    servers = [registered(), registered(id=8, alias="b", host="h2", port=5433), registered(id=9, alias="off", host="h3", frequency=-1)]
    nodes = [Node("other", "10.0.0.1"), Node("b", "elsewhere"), Node("off", "h3"), Node("lost", "h4", 6000)]
    seen = health.cover(nodes, servers)
    assert [(node.name, why) for node, why in seen.unwatched] == [
        ("off", 'it is registered as "off", which is inactive'), ("lost", "it is not registered")
    ]  # fmt: skip
    assert list(seen.unexpected) == [] and "nobody watches lost (h4:6000): it is not registered" in health.texts(seen.reasons)
    # The address counts before the name: a name that another node took over is no proof.
    seen = health.cover([Node("b", "10.0.0.1")], servers[:2])
    assert [one.id for one in seen.unexpected] == [8] and health.worst(seen.reasons) == "warning"
    assert health.cover([Node("prod1")], servers[:1]).reasons == []


def test_expected_nodes_are_told_apart():
    assert parse_expected([{"name": "a", "host": "", "port": None}]) == [Node("a")]
    for entries, what in (([{"name": "a"}, {"name": "a"}], "name"), ([{"name": "a", "host": "h"}, {"name": "b", "host": "h"}], "host and port")):
        with pytest.raises(InvalidInput, match="the same %s" % what):
            parse_expected(entries)
