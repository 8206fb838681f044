# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a standby may go over to another upstream, without a server."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.model import Node
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.timeline import history_file, parse_history, segment_key, why_diverged
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import AuthenticationFailed, Refused, Unhealthy
from ansible_collections.pgfleet.ops.plugins.module_utils._module import Context
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.follow import FOLLOW, FollowOperation, OldSlot, Seen, as_seen_here, same_server
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.connection import Target
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.standby import led_conninfo
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.values import lsn_to_int, parse_conninfo

OLD = "host=db1 port=5432 user=repl passfile=/p application_name=db3"
NEW = "host=db2 port=5432 user=repl passfile=/p application_name=db3"
FACTS = {"superuser": True, "segment_size": 16777216, "has_archive": False, "may_alter": True, "wal_level": "replica", "max_senders": 10, "senders": 1}


def test_a_history_file():
    text = "1\t0/A000000\tno recovery target specified\n\n# a comment\n2\t0/B000060\tbefore 2026-01-01\n"
    assert parse_history(text) == {1: 0xA000000, 2: 0xB000060}
    assert parse_history("") == {}
    assert history_file(26) == "0000001A.history"
    for broken in ("1 somewhere", "x\t0/A000000\treason", "1\t0/A000000garbage"):
        with pytest.raises(ValueError, match="cannot be read"):
            parse_history(broken)


def test_where_histories_part():
    history = {1: 100, 2: 200}
    assert why_diverged(3, 10**9, 3, {}) is None
    assert why_diverged(1, 100, 3, history) is None
    assert why_diverged(2, 200, 3, history) is None
    assert "1 bytes are not" in why_diverged(1, 101, 3, history)
    assert "no part of the history" in why_diverged(4, 1, 5, history)


@pytest.mark.parametrize(
    ("megabytes", "lsn", "key"), [(16, "0/5000148", "0000000000000005"), (16, "1/FF000000", "00000001000000FF"), (1024, "2/C0000001", "0000000200000003")]
)
def test_names_of_segments(megabytes, lsn, key):
    assert segment_key(lsn_to_int(lsn), megabytes << 20) == key


def test_a_conninfo_keeps_what_nobody_changes():
    led = led_conninfo("db3", OLD + " hostaddr=10.0.0.1 sslmode=verify-full", {"application_name": "x", "keepalives": 1}, {"host": "db 2", "port": 5433})
    assert led == "host='db 2' port=5433 user=repl passfile=/p application_name=db3 sslmode=verify-full keepalives=1"
    for secret in ("password=hush", "sslpassword=hush"):
        with pytest.raises(Refused, match="holds a password") as caught:
            led_conninfo("db3", OLD + " " + secret, {}, {})
        assert "hush" not in str(caught.value)
    with pytest.raises(Refused, match="cannot be read"):
        led_conninfo("db3", "postgresql://u:hush@db1/", {}, {})


@pytest.mark.parametrize(("host", "seen"), [("localhost", "a"), ("127.0.0.1", "a"), ("::1", "a"), ("/run/postgresql", "a"), ("db1", "db1")])
def test_an_address_of_another_hosts_view(host, seen):
    assert as_seen_here(host, "a") == seen


def state(recovering, **changes):
    return {
        "in_recovery": recovering, "system_identifier": "7", "started_at": "today", "data_directory": "/d", "timeline": 1, "cluster_name": "",
        "current_lsn": None if recovering else "0/6000000",
        "received_lsn": "0/5000000" if recovering else None, "replayed_lsn": "0/5000000" if recovering else None,
        "receiver": {"status": "streaming", "host": "db1", "port": 5432, "slot": "db3"} if recovering else None, "primary_conninfo": OLD if recovering else "",
        "primary_slot_name": "db3" if recovering else "", "senders": [], "replay_paused": False, "recovery_target_timeline": "latest",
        "apply_delay_seconds": 0, **changes,
    }  # fmt: skip


def operation(**options):
    defaults = {name: option.get("default") for name, option in FOLLOW.argument_spec.items()}
    params = {**defaults, "login_host": "db3", "upstream_host": "db2", **options}
    return FollowOperation(params, Context(True, lambda text: None))


def seen(standby=None, upstream=None, facts=None, upstream_facts=None, **changes):
    """db3 follows db1 and is to follow db2, the new primary of timeline 2."""
    return Seen(**{
        "standby": Node("the standby", "db3", 5432, state=state(True, started_at="earlier", **(standby or {}))),
        "upstream": Node("the upstream", "db2", 5432, state=state(False, timeline=2, **(upstream or {}))),
        "facts": {**FACTS, **(facts or {})}, "upstream_facts": {**FACTS, **(upstream_facts or {})},
        "conninfo": NEW, "slot_name": "db3", "history": {1: 0x5000000}, "own_history": {}, "oldest_segment": "0000000000000002", "role": {"may": True},
        **changes,
    })  # fmt: skip


def test_the_plan():
    plan = operation().plan(seen(old_slot=OldSlot("db3", Target("db1", 5432, "postgres", "postgres"))))
    assert plan.names == ["create the slot db3 on db2:5432", "point db3:5432 at db2:5432", "drop the slot db3 on db1:5432"]
    (shown,) = [diff for diff in plan.diff() if diff["before_header"].startswith("standby")]
    assert shown["before"] == {"primary_conninfo": OLD, "primary_slot_name": "db3"}
    assert shown["after"] == {"primary_conninfo": NEW, "primary_slot_name": "db3"}


SLOT = {"slot_type": "physical", "temporary": False, "active": False, "wal_status": "reserved", "application_name": None, "client": None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"standby": {"timeline": 3}}, "older than timeline 3"),
        ({"standby": {"received_lsn": "0/5000001"}}, "1 bytes are not"),
        ({"standby": {"replayed_lsn": "0/5000001"}}, "1 bytes are not"),
        ({"history": {}}, "no part of the history"),
        ({"history": None}, "no history file"),
        ({"standby": {"timeline": 2}, "own_history": {1: 0x4000000}}, "began elsewhere"),
        ({"standby": {"timeline": 2, "received_lsn": "0/6000001"}}, "only up to 0/6000000"),
        ({"different_wal": "0/4000000 to 0/5000000"}, "is not the upstream's"),
        ({"standby": {"recovery_target_timeline": "1"}}, "recovery_target_timeline is 1"),
        ({"standby": {"replay_paused": True}}, "replay is paused"),
        ({"facts": {"may_alter": False}}, "does not allow ALTER SYSTEM"),
        ({"upstream_facts": {"wal_level": "minimal"}}, "wal_level minimal"),
        ({"upstream_facts": {"senders": 10}}, "no walsender left"),
        ({"role": None}, "no such role"),
        ({"role": {"may": False}}, "no attribute REPLICATION"),
        ({"slot": {**SLOT, "slot_type": "logical"}}, "a logical one"),
        ({"slot": {**SLOT, "active": True, "application_name": "db4"}}, "in use by db4"),
        ({"oldest_segment": "0000000000000006"}, "has removed it"),
        ({"loop": ("db2:5432", "db3:5432")}, "a loop"),
    ],
)
def test_what_is_refused(changes, words):
    with pytest.raises(Refused, match=words):
        operation().plan(seen(**changes))


def test_what_is_refused_is_allowed_otherwise():
    """Each case differs from this in one thing only."""
    assert operation().plan(seen()).changed
    assert operation().plan(seen(slot=SLOT)).names == ["point db3:5432 at db2:5432"]
    # An archive may have what the upstream has removed.
    assert operation().plan(seen(oldest_segment="0000000000000006", facts={"has_archive": True})).changed


def test_slots():
    with pytest.raises(Refused, match="there is no slot"):
        operation(create_slot=False).plan(seen())
    assert operation().plan(seen(slot={**SLOT, "wal_status": "lost"})).names[0].endswith("anew, as it has lost WAL")
    left = seen(slot=SLOT, old_slot=OldSlot("db3", Target("db1", 5432, "postgres", "postgres"), "it could not be asked: no route"))
    it = operation()
    assert it.plan(left).names == ["point db3:5432 at db2:5432"]
    assert "no route" in it.report(left)["warnings_found"][0]
    it = operation(drop_old_slot=False)
    assert it.plan(left).names == ["point db3:5432 at db2:5432"] and it.report(left)["warnings_found"] == []


def test_a_login_that_was_tried_in_vain():
    with pytest.raises(AuthenticationFailed):
        operation().plan(seen(login_problem=AuthenticationFailed("no")))


def test_nothing_is_left_to_do():
    receiver = {"status": "streaming", "host": "db2", "port": 5432, "slot": "db3"}
    there = {"primary_conninfo": " ".join(reversed(NEW.split())), "receiver": receiver, "timeline": 2}
    settled = seen(standby=there, slot={**SLOT, "active": True}, served=True)
    assert parse_conninfo(there["primary_conninfo"]) == parse_conninfo(NEW) and there["primary_conninfo"] != NEW
    assert not operation().plan(settled).changed
    # On the old timeline it has not arrived yet, and a stream that the upstream knows nothing of is no stream from there.
    for changes in ({"standby": {**there, "timeline": 1}, "served": True}, {"standby": there, "served": False}):
        with pytest.raises((Unhealthy, Refused)):
            operation().plan(seen(slot={**SLOT, "active": True}, **changes))


def test_one_server_or_two():
    one = Node("a", "db1", 5432, state=state(False))
    assert same_server(one, Node("b", "other-name", 1, state=state(False)))
    for changes in ({"started_at": "later"}, {"data_directory": "/e"}, {"system_identifier": "8"}):
        assert not same_server(one, Node("b", "db1", 5432, state=state(False, **changes)))
