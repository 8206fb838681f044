# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a primary is lost, who takes its place and what that may cost, judged without a server."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster import failover
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.failover import Loss, Opinion, count_answered
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.model import Cluster, Node
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.promotion import Member
from ansible_collections.pgfleet.ops.plugins.module_utils._host.guardian_program import knock


def standby(name, received="0/3000000", upstream="db1", sync="", **state):
    known = {
        "in_recovery": True, "timeline": 1, "system_identifier": "7", "received_lsn": received, "replayed_lsn": received, "replay_paused": False,
        "apply_delay_seconds": 0, "receiver": None, "primary_conninfo": "host=%s port=5432 application_name=%s" % (upstream, name), "cluster_name": "",
        "synchronous_standby_names": sync, "slots": [], **state,
    }  # fmt: skip
    return Node(name, name, 5432, state=known)


def silent(name):
    return Node(name, name, 5432, problem="no answer")


def host(position=0x3000000, crashed=True, signal=False, **facts):
    return {"pid": None, "orphans": [], "crashed": crashed, "standby_signal": signal, "timeline": 1, "position": position, **facts}


def test_the_lost_node_is_the_one_that_the_standbys_follow():
    cluster = Cluster([silent("db1"), standby("db2"), silent("db3")])
    assert failover.lost_node(cluster, []).name == "db1"
    cluster = Cluster([silent("db1"), standby("db2", upstream="elsewhere"), silent("db3")])
    assert failover.lost_node(cluster, []) is None
    members = [Member(silent("db1"), host=host(signal=True)), Member(silent("db3"), host=host())]
    assert failover.lost_node(cluster, members).name == "db3"


def test_who_has_received_most_is_chosen():
    cluster = Cluster([silent("db1"), standby("db2"), standby("db3", received="0/4000000"), standby("db4", received="0/5000000", replay_paused=True)])
    chosen, refused = failover.choose(cluster, [])
    assert chosen.name == "db3" and any("db4 (replay is paused)" in text for text in refused)
    assert failover.choose(cluster, ["db3"])[0].name == "db2"
    assert failover.choose(cluster, ["db2", "db3"])[0] is None
    assert failover.furthest(cluster, cluster.node("db2")).name == "db4"


@pytest.mark.parametrize(
    ("sync", "answering", "confirmed"),
    [
        ("", ["db2", "db3"], False),
        ("ANY 1 (db2, db3)", ["db2", "db3"], True),
        ("ANY 1 (db2, db3)", ["db2"], False),  # the commit may be on db3 alone
        ("ANY 2 (db2, db3)", ["db2"], True),
        ("FIRST 1 (db2, db3)", ["db3"], False),
        ("ANY 1 (db1, db2, db3)", ["db2", "db3"], True),  # the same list on all nodes
        ("ANY 1 (*)", ["db2", "db3"], True),
        ("ANY 1 (*)", ["db2"], False),
        ("db9", ["db2", "db3"], False),
    ],
)
def test_what_a_synchronous_standby_has_confirmed(sync, answering, confirmed):
    nodes = [silent("db1"), *(standby(name, sync=sync) if name in answering else silent(name) for name in ("db2", "db3"))]
    cluster = Cluster(nodes)
    assert failover.confirmed_by_a_standby(cluster, cluster.node(answering[0]), cluster.node("db1")) is confirmed


def test_what_may_be_lost():
    cluster = Cluster([silent("db1"), standby("db2"), standby("db3", received="0/3000100")])
    db1, db2, _db3 = cluster.nodes
    # What its WAL says, where it can be read.
    assert failover.judge_loss(cluster, db2, [], db1, 77) == Loss(77, True, "db1 has 77 bytes of WAL in its directory that db3 has not received")
    # A clean shutdown: its last record.
    found = failover.judge_loss(cluster, db2, [Member(db1, host=host(0x3000110, crashed=False))], db1, None)
    assert (found.bytes, found.known) == (16, True)
    # A crash: at least what its control file knows of.
    found = failover.judge_loss(cluster, db2, [Member(db1, host=host(0x3000140))], db1, None)
    assert (found.bytes, found.known) == (64, False)
    found = failover.judge_loss(cluster, db2, [Member(db1)], db1, None)
    assert (found.bytes, found.known) == (0, False)


def test_reasons_against_it():
    candidate = standby("db2")
    reached = [Opinion("this host", "db1", "silent"), Opinion("the host of db3", "db1", "answers"), Opinion("pooler1", "db1", "unknown", "no shell")]
    found = failover.still_reached(reached, [], "refuse")["db1"]
    assert found.startswith("db1 is reached still (the host of db3: it answers there), so it is not lost") and "if_reached" not in found
    assert "set if_reached to fence" in failover.still_reached(reached, ["db1"], "refuse")["db1"]
    assert failover.still_reached(reached, ["db1"], "fence") == {}
    # What cannot be ended cannot be fenced.
    assert list(failover.still_reached(reached, [], "fence")) == ["db1"]
    assert failover.still_reached(reached[:1] + reached[2:], [], "refuse") == {}
    (found,) = failover.too_much_lost(Loss(11, True, "why"), 10, candidate)
    assert found == "11 bytes of WAL would be lost with db2, max_data_loss_bytes is 10: why"
    (found,) = failover.too_much_lost(Loss(0, False, "it is not known"), 0, candidate)
    assert "max_data_loss_bytes is 0, and it is not known" in found
    assert failover.too_much_lost(Loss(0, False, "it is not known"), 1, candidate) == []
    assert failover.too_much_lost(Loss(0, True, ""), 0, candidate) == []


class Listener:
    """A socket that answers as it is told."""

    def __init__(self, answer):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.got = b""
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        connection, _address = self.socket.accept()
        with connection:
            self.got = connection.recv(8)
            if self._answer is None:
                connection.recv(1)  # until the other side has had enough
            else:
                connection.sendall(self._answer)

    def close(self):
        self._thread.join(10)
        self.socket.close()


@pytest.mark.parametrize(("answer", "expected"), [(b"N", "answers"), (b"S", "answers"), (b"", "refused"), (None, "silent")])
def test_knocking_at_a_server(answer, expected):
    listener = Listener(answer)
    assert knock("127.0.0.1", listener.port, 0.3 if answer is None else 5) == expected
    listener.close()
    # An SSLRequest: its length and its code.
    assert struct.unpack("!ii", listener.got) == (8, 80877103)


def test_knocking_where_nobody_is(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert knock("127.0.0.1", port, 2) == "refused" and knock(str(tmp_path), 5432, 2) == "refused"
    assert knock("no-such-host.invalid", 5432, 2) == "unknown"


def test_only_a_server_connection_that_is_idle_again_has_answered():
    """PgBouncer uses the place of a connection to a dead host again for the next one, which is in login then."""
    before = {("pooler1", "db1", "0x%d" % number): ("active", "10:00:00") for number in range(5)}
    after = dict(zip(before, [("idle", "10:00:01"), ("used", "10:00:01"), ("login", "10:00:01"), ("active", "10:00:01"), ("idle", "10:00:00")]))
    assert count_answered(before, after) == {("pooler1", "db1"): 2}
    assert count_answered({}, after) == {}
