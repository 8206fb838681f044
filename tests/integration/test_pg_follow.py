# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leading a standby to another upstream: it streams there, or nothing has changed and the reason is said."""

from __future__ import annotations

import contextlib
import json

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import Target, connect
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.standby import ensure_slot
from ansible_collections.pgfleet.ops.plugins.module_utils._wait import Deadline
from lab import SUPERUSER_PASSWORD, Lab, call_module, four_steps, wait_until

HBA = """local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
host replication all ::1/128 scram-sha-256
"""


class Fleet:
    """db1 is the primary; db2 and db3 stream from it, each by a slot of its name."""

    def __init__(self, lab, names=("db1", "db2", "db3"), **settings):
        self.lab = lab
        self.nodes = []
        for name in names:
            sockets = lab.path / (name + "-socket")
            node = lab.postgres(name, settings={"listen_addresses": "127.0.0.1,::1", "unix_socket_directories": sockets, **settings})
            node._own(sockets, mkdir=True)
            node.write(node.config / "pg_hba.conf", HBA)
            node.sockets = sockets
            self.nodes.append(node)
        first = self.nodes[0].init().start()
        for node in self.nodes[1:]:
            node.clone(first)
        first.wait_for_standbys(len(names) - 1)

    def __iter__(self):
        return iter(self.nodes)

    def fingerprint(self):
        """All that a refused or rolled-back run must leave as it was."""
        return {
            node.name: {
                "auto.conf": sorted(line for line in (node.data / "postgresql.auto.conf").read_text().splitlines() if not line.startswith("#")),
                "slots": node.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1"),
                "conninfo": setting(node, "primary_conninfo"),
            }
            for node in self.nodes
            if node.pid
        }


@pytest.fixture
def lab():
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def fleet():
    """For tests that change nothing, or put back what they change."""
    lab = Lab()
    yield Fleet(lab)
    lab.close()


def setting(node, name):
    return node.value("SELECT setting FROM pg_settings WHERE name = %s", [name])


def alter(node, name, value):
    node.sql("ALTER SYSTEM SET %s = '%s'" % (name, value.replace("'", "''")))
    node.sql("SELECT pg_reload_conf()")
    wait_until(lambda: setting(node, name) == value, 20)


def options(standby, upstream, **changes):
    return {**standby.login, "upstream_host": "127.0.0.1", "upstream_port": upstream.port, **changes}


def follow(standby, upstream, user="postgres", check=False, **changes):
    return call_module("pg_follow", options(standby, upstream, **changes), user=user, check=check)


def slots(node):
    return [row[0] for row in node.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1")]


def streams_from(standby):
    row = standby.sql("SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'")
    return row[0][0] if row else None


def position(node):
    return node.value("SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text")


def caught_up(primary, *standbys):
    head = primary.value("SELECT pg_current_wal_lsn()::text")
    for node in standbys:
        wait_until(lambda node=node: node.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [head]), 30)
    return head


def refused(result, *words, error="Refused"):
    assert result["failed"] and result["error"] == error, result
    for word in words:
        assert word in result["msg"], result["msg"]
    assert result["performed"] == [] and result["changed"] is False
    assert SUPERUSER_PASSWORD not in json.dumps(result)
    return True


def cut_off(standby):
    """The standby has no upstream any more, and is up."""
    alter(standby, "primary_conninfo", "host=127.0.0.1 port=1 user=postgres passfile=%s" % standby.passfile)
    wait_until(lambda: streams_from(standby) is None, 20)


# -- what it does ------------------------------------------------------------------------------------------------------


def test_a_cascade_and_back(fleet):
    db1, db2, db3 = fleet
    before = parse(setting(db3, "primary_conninfo"))
    there = four_steps("pg_follow", options(db3, db2))
    assert there["upstream_before"] == "127.0.0.1:%d" % db1.port and there["upstream"] == "127.0.0.1:%d" % db2.port
    assert there["upstream_role"] == "standby" and there["streaming"] is True and there["timeline"] == 1
    assert there["slot_name"] == "db3" and there["dropped_slot"] == "db3 on 127.0.0.1:%d" % db1.port
    assert streams_from(db3) == db2.port
    assert slots(db1) == ["db2"] and slots(db2) == ["db3"]
    # What no option names stays.
    assert parse(setting(db3, "primary_conninfo")) == {**before, "port": str(db2.port)}
    shown = there["diff"][1]
    assert shown["before"]["primary_conninfo"] != shown["after"]["primary_conninfo"] and shown["after"]["primary_slot_name"] == "db3"
    # WAL comes through the cascade.
    db1.sql("CREATE TABLE public.through_the_cascade ()")
    caught_up(db1, db2, db3)
    back = four_steps("pg_follow", options(db3, db1, application_name="third", replication_connect_params={"sslmode": "prefer"}), diff=False)
    assert back["dropped_slot"] == "db3 on 127.0.0.1:%d" % db2.port
    assert db1.sql("SELECT application_name FROM pg_stat_replication ORDER BY 1") == [("db2",), ("third",)]
    assert parse(setting(db3, "primary_conninfo"))["sslmode"] == "prefer"
    assert slots(db1) == ["db2", "db3"] and slots(db2) == []


def parse(conninfo):
    return dict(word.split("=", 1) for word in conninfo.split())


def test_another_slot_on_the_same_upstream(fleet):
    db1, _db2, db3 = fleet
    moved = four_steps("pg_follow", options(db3, db1, slot_name="renamed"), diff=False)
    assert moved["slot_name"] == "renamed" and slots(db1) == ["db2", "renamed"]
    assert not follow(db3, db1, slot_name="db3")["failed"]
    assert slots(db1) == ["db2", "db3"] and streams_from(db3) == db1.port


def test_the_same_server_by_another_name(fleet):
    """The address is a change, the server is the same: its slot stays."""
    db1, _db2, db3 = fleet
    there = four_steps("pg_follow", options(db3, db1, upstream_host="localhost"), diff=False)
    assert there["upstream"] == "localhost:%d" % db1.port and there["dropped_slot"] is None
    assert slots(db1) == ["db2", "db3"]
    assert not follow(db3, db1)["failed"]
    assert slots(db1) == ["db2", "db3"] and streams_from(db3) == db1.port


def test_through_the_adhoc_command_by_a_socket(fleet):
    db1, db2, db3 = fleet
    login = {"login_unix_socket": str(db3.sockets), "login_port": db3.port, "login_user": "postgres", "login_password": SUPERUSER_PASSWORD}
    result = call_module(
        "pg_follow", {**login, "upstream_host": str(db2.sockets), "upstream_port": db2.port, "upstream_address": "127.0.0.1"}, ansible=True, diff=True
    )
    assert not result["failed"] and result["changed"], result
    assert result["upstream"] == "127.0.0.1:%d" % db2.port
    assert not follow(db3, db1)["failed"]


def test_a_standby_goes_over_to_a_new_timeline_and_never_back(lab):
    db1, db2, db3 = Fleet(lab)
    db1.stop()
    db2.sql("SELECT pg_promote()")
    db2.sql("CREATE TABLE public.on_the_new_timeline ()")
    result = four_steps("pg_follow", options(db3, db2), diff=False)
    assert result["timeline"] == result["upstream_timeline"] == 2
    # The server it leaves is down: its slot cannot be dropped, and that is said.
    assert "the slot db3 on 127.0.0.1:%d stays" % db1.port in " ".join(result["warnings_found"])
    caught_up(db2, db3)
    assert db3.value("SELECT to_regclass('public.on_the_new_timeline')") is not None
    db1.start()
    assert refused(follow(db3, db1), "older than timeline 2")
    assert streams_from(db3) == db2.port


def test_a_standby_that_never_streamed(lab):
    """It lives from an archive, or was just restored: there is no connection string to start from."""
    db1, _db2, db3 = Fleet(lab)
    db3.sql("ALTER SYSTEM RESET primary_conninfo")
    db3.sql("ALTER SYSTEM RESET primary_slot_name")
    db3.sql("SELECT pg_reload_conf()")
    wait_until(lambda: streams_from(db3) is None and not setting(db3, "primary_conninfo"), 20)
    refused(follow(db3, db1), 'the role "replication" may not stream', "no such role")
    result = four_steps("pg_follow", options(db3, db1, replication_user="postgres", replication_passfile=db3.passfile, application_name="db3"))
    assert result["upstream_before"] is None and result["slot_name"] is None
    assert "passfile" in result["diff"][0]["after"]["primary_conninfo"]


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "::1", "socket"])
def test_itself_under_whatever_name(fleet, name):
    *_others, db3 = fleet
    before = fleet.fingerprint()
    for check in (True, False):
        refused(follow(db3, db3, upstream_host=str(db3.sockets) if name == "socket" else name, check=check), "one and the same server")
    assert fleet.fingerprint() == before


def test_a_primary_another_cluster_and_nobody(fleet, lab):
    db1, db2, db3 = fleet
    before = fleet.fingerprint()
    stranger = lab.postgres("stranger").init().start()
    refused(follow(db1, db2), "is a primary", "pgfleet.ops.pg_clone")
    refused(follow(db3, stranger), "belongs to another cluster", stranger.value("SELECT system_identifier::text FROM pg_control_system()"))
    stranger.stop()
    refused(follow(db3, stranger), "does not answer", error="NotReachable")
    assert fleet.fingerprint() == before


def test_a_loop(fleet):
    db1, db2, db3 = fleet
    assert not follow(db3, db2)["failed"]
    try:
        before = fleet.fingerprint()
        refused(follow(db2, db3), "a loop", "127.0.0.1:%d" % db3.port)
        assert fleet.fingerprint() == before
        # One that is made already is told too: each of the two says that it streams.
        db3.sql("SELECT pg_create_physical_replication_slot('db2', true)")
        alter(db2, "primary_conninfo", setting(db2, "primary_conninfo").replace(str(db1.port), str(db3.port)))
        wait_until(lambda: streams_from(db2) == db3.port, 20)
        refused(follow(db2, db3), "a loop")
        refused(follow(db3, db2), "a loop")
    finally:
        for node in (db2, db3):
            assert not follow(node, db1)["failed"]
        for node in (db2, db3):
            node.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        db1.wait_for_standbys(2)
    assert slots(db1) == ["db2", "db3"]


def test_wal_behind_the_fork(lab):
    """db2 is promoted while db3 receives more from the old primary: db3 can never follow db2."""
    fleet = Fleet(lab)
    db1, db2, db3 = fleet
    caught_up(db1, db2, db3)
    cut_off(db2)
    db1.sql("CREATE TABLE public.lost AS SELECT generate_series(1, 1000) AS n")
    caught_up(db1, db3)
    db2.sql("SELECT pg_promote()")
    before = fleet.fingerprint()
    for check in (True, False):
        result = follow(db3, db2, check=check)
        refused(result, "it has WAL of timeline 1 up to", "left that one at", "bytes are not in the upstream's history", "pgfleet.ops.pg_clone")
    assert fleet.fingerprint() == before
    assert streams_from(db3) == db1.port


def test_two_promotions_at_the_same_position(lab):
    """Timeline numbers and history files are the same; only the WAL tells that these are two histories."""
    fleet = Fleet(lab)
    db1, db2, db3 = fleet
    caught_up(db1, db2, db3)
    db1.stop()
    for node in (db2, db3):
        node.sql("SELECT pg_promote()")
        node.sql("CREATE TABLE public.of_%s ()" % node.name)
    assert (db2.data / "pg_wal" / "00000002.history").read_text() == (db3.data / "pg_wal" / "00000002.history").read_text()
    db2.sql("SELECT pg_switch_wal()")
    db2.sql("CREATE TABLE public.more ()")
    db3.stop()
    db3.follow(db1, slot=False)
    db3.start()
    before = fleet.fingerprint()
    refused(follow(db3, db2), "its WAL from", "is not the upstream's", "pgfleet.ops.pg_clone")
    assert fleet.fingerprint() == before


def test_replay_that_is_paused(fleet):
    _db1, db2, db3 = fleet
    before = fleet.fingerprint()
    db3.sql("SELECT pg_wal_replay_pause()")
    try:
        refused(follow(db3, db2), "replay is paused", "pg_wal_replay_resume")
        assert fleet.fingerprint() == before
    finally:
        db3.sql("SELECT pg_wal_replay_resume()")


def test_a_standby_that_stays_on_its_timeline(lab):
    db1, db2, db3 = Fleet(lab)
    db3.stop()
    db3.write(db3.config_file, db3.config_file.read_text() + "recovery_target_timeline = 'current'\n")
    db3.start()
    caught_up(db1, db2, db3)
    db1.stop()
    db2.sql("SELECT pg_promote()")
    refused(follow(db3, db2), "recovery_target_timeline is current", "latest")
    assert slots(db2) == []


def test_slots_that_cannot_be_used(fleet):
    db1, db2, db3 = fleet
    assert setting(db1, "wal_level") == "replica"
    before = fleet.fingerprint()
    refused(follow(db3, db2, create_slot=False), 'there is no slot "db3"', "create_slot")
    refused(follow(db3, db1, slot_name="db2"), 'the slot "db2"', "in use by db2")
    result = follow(db3, db2, slot_name="no-such-name")
    assert result["failed"] and result["error"] == "QueryFailed" and "invalid character" in result["msg"], result
    assert fleet.fingerprint() == before


def test_a_slot_that_has_lost_wal_is_made_anew_while_the_wal_is_there(lab):
    """Another standby can be far behind and its slot lost; this one needs none of that WAL."""
    db1, db2, db3 = Fleet(lab, wal_keep_size="0", min_wal_size="32MB", max_wal_size="32MB")
    alter(db1, "max_slot_wal_keep_size", "48")
    for name in ("worn", "torn"):
        db1.sql("SELECT pg_create_physical_replication_slot(%s, true)", [name])

    def lost():
        db1.sql("SELECT pg_switch_wal()")
        db1.sql("CREATE TABLE IF NOT EXISTS public.filler ()")
        db1.sql("DROP TABLE public.filler")
        db1.sql("CHECKPOINT")
        return db1.value("SELECT bool_and(wal_status = 'lost') FROM pg_replication_slots WHERE slot_name IN ('worn', 'torn')")

    wait_until(lost, 60)
    caught_up(db1, db2, db3)
    refused(follow(db3, db1, slot_name="worn", create_slot=False), "has lost WAL")
    result = four_steps("pg_follow", options(db3, db1, slot_name="worn"))
    assert result["slot_name"] == "worn" and slots(db1) == ["db2", "torn", "worn"]
    assert "anew" in result["plan"][0]
    # What the operations on whole clusters do: it holds WAL from now on, whoever uses it.
    session = connect(Target("127.0.0.1", db1.port, "postgres", "postgres", SUPERUSER_PASSWORD))
    assert [ensure_slot(session, "torn", Deadline(10)) for _again in (1, 2)] == [True, False]
    session.close()
    assert db1.value("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'torn'") == "reserved"


def test_wal_that_the_upstream_has_removed(lab):
    fleet = Fleet(lab, wal_keep_size="0", min_wal_size="32MB", max_wal_size="32MB")
    db1, _db2, db3 = fleet
    cut_off(db3)
    db1.sql("SELECT pg_drop_replication_slot('db3')")
    needed = position(db3)

    def removed():
        db1.sql("CREATE TABLE IF NOT EXISTS public.filler ()")
        db1.sql("DROP TABLE public.filler")
        db1.sql("SELECT pg_switch_wal()")
        db1.sql("CHECKPOINT")
        return db1.value("SELECT count(*) = 0 FROM pg_ls_waldir() WHERE name = pg_walfile_name(%s)", [needed])

    wait_until(removed, 60)
    before = fleet.fingerprint()
    refused(follow(db3, db1), "has removed it", "pgfleet.ops.pg_clone")
    assert fleet.fingerprint() == before


def test_logins_that_do_not_work(fleet, tmp_path):
    db1, db2, db3 = fleet
    before = fleet.fingerprint()
    wrong = db3.base / "wrong"
    db3.write(wrong, "*:*:*:*:wrong\n")
    refused(follow(db3, db2, replication_passfile=wrong), "does not let user", error="AuthenticationFailed")
    refused(follow(db3, db2, replication_user="nobody_there"), 'the role "nobody_there" may not stream', "no such role")
    db1.sql("CREATE ROLE reader LOGIN")
    caught_up(db1, db2, db3)
    try:
        refused(follow(db3, db2, replication_user="reader"), "no attribute REPLICATION")
        refused(follow(db3, db2, login_user="reader", login_password="x"), error="AuthenticationFailed")
        db1.sql("ALTER ROLE reader PASSWORD 'x'")
        caught_up(db1, db2, db3)
        refused(follow(db3, db2, login_user="reader", login_password="x"), "no superuser")
    finally:
        db1.sql("DROP ROLE reader")
    assert fleet.fingerprint() == before


def test_passwords_in_connection_strings(fleet):
    _db1, db2, db3 = fleet
    result = follow(db3, db2, replication_connect_params={"password": "hush-hush"})
    refused(result, "a passfile", error="InvalidInput")
    assert "hush-hush" not in json.dumps(result)
    before = setting(db3, "primary_conninfo")
    alter(db3, "primary_conninfo", before + " password=hush-hush")
    try:
        result = follow(db3, db2)
        refused(result, "holds a password", "a passfile")
        assert "hush-hush" not in json.dumps(result)
    finally:
        alter(db3, "primary_conninfo", before)
        wait_until(lambda: streams_from(db3), 20)


# -- what it takes back ------------------------------------------------------------------------------------------------


def test_what_does_not_stream_is_put_back(fleet):
    """As root the login cannot be tried beforehand, and the address leads nowhere."""
    db1, db2, db3 = fleet
    before = fleet.fingerprint()
    result = follow(db3, db2, user=None, upstream_address="127.0.0.77", timeout=4)
    assert result["failed"] and result["error"] == "RolledBack", result
    assert "did not stream" in result["msg"] and "no walreceiver" in result["msg"] and "slot there is not in use" in result["msg"]
    assert result["undone"] == ["primary_conninfo put back", "primary_slot_name put back", "slot db3 removed"]
    assert result["changed"] is False
    wait_until(lambda: streams_from(db3) == db1.port, 20)
    assert fleet.fingerprint() == before


def test_an_address_that_leads_to_another_member(fleet):
    """The standby would stream, but not from the server that was checked."""
    db1, db2, db3 = fleet
    before = fleet.fingerprint()
    with_alias = {"upstream_host": "::1", "upstream_address": "127.0.0.1"}
    # db2 listens on ::1 only, db1 takes its port on 127.0.0.1.
    other = db2.port
    db2.stop()
    db2.start("listen_addresses='::1'")
    relay = Relay(other, db1.port)
    try:
        result = follow(db3, db2, user=None, timeout=4, **with_alias)
        assert result["failed"] and result["error"] == "RolledBack", result
        assert "slot there is not in use" in result["msg"]
    finally:
        relay.close()
        db2.stop()
        db2.start()
        db1.wait_for_standbys(2)
    wait_until(lambda: streams_from(db3) == db1.port, 20)
    assert fleet.fingerprint() == before


class Relay:
    """127.0.0.1:PORT that is another server's."""

    def __init__(self, port, to):
        import socket
        import threading

        self.listener = socket.create_server(("127.0.0.1", port))
        self.to, self.sockets = to, [self.listener]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        import socket
        import threading

        with contextlib.suppress(OSError):
            while True:
                one, _address = self.listener.accept()
                other = socket.create_connection(("127.0.0.1", self.to))
                self.sockets += [one, other]
                for source, sink in ((one, other), (other, one)):
                    threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def copy(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def close(self):
        import socket

        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_a_settled_standby_that_does_not_stream_is_no_success(lab):
    db1, _db2, db3 = Fleet(lab)
    db1.write(db1.config / "pg_hba.conf", HBA.replace("host replication", "#host replication"))
    db1.sql("SELECT pg_reload_conf()")
    db1.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
    wait_until(lambda: streams_from(db3) is None, 20)
    result = follow(db3, db1, user=None)
    assert result["failed"] and result["error"] == "Unhealthy" and "does not: it has no walreceiver" in result["msg"], result
    assert result["performed"] == []
    db1.write(db1.config / "pg_hba.conf", HBA)
    db1.sql("SELECT pg_reload_conf()")
    # It is between two connections now: that is waited for.
    result = follow(db3, db1)
    assert not result["failed"] and result["changed"] is False and result["streaming"] is True, result


def test_a_slot_that_somebody_dropped(lab):
    """The standby is told to use it and waits for ever; the slot is all that is missing."""
    db1, _db2, db3 = Fleet(lab)
    before = setting(db3, "primary_conninfo")
    cut_off(db3)
    db1.sql("SELECT pg_drop_replication_slot('db3')")
    alter(db3, "primary_conninfo", before)
    result = four_steps("pg_follow", options(db3, db1))
    assert result["plan"] == ["create the slot db3 on 127.0.0.1:%d" % db1.port, "wait until 127.0.0.1:%d streams from 127.0.0.1:%d" % (db3.port, db1.port)]
