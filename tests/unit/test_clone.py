# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a clone may replace, and how, without a server."""

from __future__ import annotations

import dataclasses
import os
import pwd
import types

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster import fork
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import Refused, RolledBack, SplitBrainRisk
from ansible_collections.pgfleet.ops.plugins.module_utils._host import datadir, wal
from ansible_collections.pgfleet.ops.plugins.module_utils._host.basebackup import basebackup_command, password_environment
from ansible_collections.pgfleet.ops.plugins.module_utils._host.instance import Postmaster
from ansible_collections.pgfleet.ops.plugins.module_utils._host.rewind import needed_bytes, rewind_command
from ansible_collections.pgfleet.ops.plugins.module_utils._module import Context
from ansible_collections.pgfleet.ops.plugins.module_utils._operations import clone, rejoin

IDENTIFIER = "0123456789ab"


def make_cluster(path):
    (path / "global").mkdir(parents=True)
    (path / "PG_VERSION").write_text("15\n")
    (path / "global" / "pg_control").write_bytes(b"")
    return path


@pytest.mark.parametrize("path", ["/", "//", "/etc", "/var/..", "/proc", "relative", "", pwd.getpwuid(0).pw_dir, "/usr/.."])
def test_paths_that_are_never_replaced(path):
    with pytest.raises(Refused):
        datadir.refuse_path(path)


def test_every_home_directory_and_what_is_above(monkeypatch, tmp_path):
    home = tmp_path / "homes" / "anna"
    home.mkdir(parents=True)
    monkeypatch.setattr(pwd, "getpwall", lambda: [types.SimpleNamespace(pw_dir=str(home))])
    for path in (home, tmp_path / "homes", tmp_path / "homes" / "." / "anna"):
        with pytest.raises(Refused, match="home"):
            datadir.refuse_path(str(path))
    link = tmp_path / "link"
    link.symlink_to(home)
    with pytest.raises(Refused, match="home"):
        datadir.refuse_path(str(link))
    assert datadir.refuse_path(str(home / "data")) == str(home / "data")


def test_a_mount_root_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path))
    with pytest.raises(Refused, match="mounted file system"):
        datadir.refuse_path(str(tmp_path))
    assert datadir.refuse_path(str(tmp_path / "data"))


def test_no_data_directory_inside_another(tmp_path):
    make_cluster(tmp_path / "one")
    with pytest.raises(Refused, match="inside a data directory"):
        datadir.refuse_path(str(tmp_path / "one" / "base" / "two"))
    (tmp_path / "link").symlink_to(tmp_path / "one" / "base")
    with pytest.raises(Refused, match="inside a data directory"):
        datadir.refuse_path(str(tmp_path / "link" / "two"))
    assert datadir.refuse_path(str(tmp_path / "one")) == str(tmp_path / "one")


def test_only_own_copies_are_leftovers(tmp_path):
    data = tmp_path / "data"
    for name in (
        "data.clone-" + IDENTIFIER,
        "data.clone-short",
        "data.clone-0123456789aZ",
        "data.old-" + IDENTIFIER,
        "data2.clone-" + IDENTIFIER,
        "data.clone",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "data.clone-aaaaaaaaaaaa").symlink_to(tmp_path)
    (tmp_path / "data.clone-bbbbbbbbbbbb").write_text("")
    assert datadir.leftovers(str(data)) == [str(data) + ".clone-" + IDENTIFIER]


def test_nothing_else_is_ever_removed(tmp_path):
    for name in ("data", "data.clone-short", "data.bak"):
        (tmp_path / name).mkdir()
        with pytest.raises(Refused):
            datadir.remove_tree(str(tmp_path / name))
        assert (tmp_path / name).is_dir()
    link = tmp_path / ("data.clone-" + IDENTIFIER)
    link.symlink_to(tmp_path / "data")
    with pytest.raises(Refused):
        datadir.remove_tree(str(link))
    assert (tmp_path / "data").is_dir()


def test_rename_never_replaces_anything(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "link"):
        with pytest.raises(Refused):
            datadir.rename(str(tmp_path / "a"), str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    datadir.rename(str(tmp_path / "a"), str(tmp_path / "empty"))
    assert not (tmp_path / "a").exists() and (tmp_path / "full" / "file").read_text() == "x"


def test_a_copy_that_is_being_made_is_seen(tmp_path):
    assert not datadir.is_locked(str(tmp_path))
    with datadir.locked(str(tmp_path)):
        assert datadir.is_locked(str(tmp_path))
    assert not datadir.is_locked(str(tmp_path))


def test_settings_are_set_once():
    text = "# by ALTER SYSTEM\nwork_mem = '5MB'\nPrimary_Conninfo 'old'\nprimary_slot_name='x'\n"
    changed = datadir.with_settings(text, {"primary_conninfo": r"host=a passfile='/it\'s'", "primary_slot_name": None})
    assert changed == "# by ALTER SYSTEM\nwork_mem = '5MB'\nprimary_conninfo = 'host=a passfile=''/it\\\\''s'''\n"
    assert datadir.with_settings(changed, {"primary_conninfo": r"host=a passfile='/it\'s'", "primary_slot_name": None}) == changed


def test_command_of_the_copy():
    argv = basebackup_command("/b/pg_basebackup", "/d", "host=h user=u", "fast", "slot", "20M", "/wal", {"/a=b": "/c=d"})
    assert argv[0] == "/b/pg_basebackup" and "--no-password" in argv and "--checkpoint=fast" in argv and "--slot=slot" in argv
    assert "--label=pgfleet.ops clone" in argv
    assert r"--tablespace-mapping=/a\=b=/c\=d" in argv and "--waldir=/wal" in argv and "--max-rate=20M" in argv
    assert not any("password=" in word and "no-password" not in word for word in argv)


def test_password_travels_by_the_environment_only(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "the login's")
    assert password_environment("s3cret")["PGPASSWORD"] == "s3cret"
    # The login's password must not win over the passfile.
    assert password_environment(None)["PGPASSWORD"] == ""


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.0.0.2", "/run/postgresql", ""])
def test_names_of_this_host(name):
    assert clone.is_local(name)


def test_names_of_other_hosts():
    # Of the ranges for documentation, which no host has.
    assert not clone.is_local("192.0.2.1") and not clone.is_local("no.such.host.invalid")
    assert clone.same_address("localhost", "127.0.0.1") and not clone.same_address("127.0.0.1", "192.0.2.1")


def test_space_is_counted_by_file_system():
    free = {"/a": (1, 100 << 20), "/b": (1, 100 << 20), "/c": (2, 10 << 20)}.__getitem__
    assert clone.not_enough_space({"/a": 60 << 20, "/c": 10 << 20}, free) == []
    assert clone.not_enough_space({"/a": 60 << 20, "/b": 60 << 20}, free) == ["/a with /b has 100 MB free and the copy needs about 120 MB"]
    assert len(clone.not_enough_space({"/a": 101 << 20, "/c": 11 << 20}, free)) == 2


# The refusals, without any server: what may be planned at all.

SOURCE = clone.Source("1", "15.4", "15", False, 1, "/srv/source", "1\n/srv/source\n", 5432, 0.0, "replica", {"": 1}, None, [], False)
LIVE = Postmaster(77, "/x", 5433, "", "127.0.0.1", "ready")


@pytest.fixture
def operation(tmp_path):
    def make(**params):
        defaults = {
            "data_directory": str(tmp_path / "data"), "source_host": "h", "source_port": 5432, "method": "systemd", "unit": "u", "slot_name": None,
            "reclone": False, "keep_old": False, "verify": True, "timeout": 1, "copy_method": "auto",
        }  # fmt: skip
        return clone.CloneOperation({**defaults, **params}, Context(True, print))

    return make


def state(tmp_path, kind="standby", source=SOURCE, **fields):
    return clone.CloneState(source, clone.Standby(kind, str(tmp_path / "data"), **{"system_identifier": "1", "control_state": "shut down", **fields}))


@pytest.mark.parametrize("reclone", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "primary", "postmaster": LIVE},
        {"kind": "primary", "is_source": "it is"},
        {"kind": "standby", "is_source": "it is", "postmaster": LIVE},
        {"kind": "foreign"},
        {"kind": "primary", "system_identifier": "2"},
        {"kind": "standby", "system_identifier": "2", "postmaster": LIVE, "streaming": True, "from_source": True},
        {"kind": "primary", "orphans": (5, 6)},
        {"kind": "standby", "in_use": "/data.clone-x"},
    ],
)
def test_never_planned_whatever_the_options(operation, tmp_path, fields, reclone):
    with pytest.raises(Refused) as caught:
        operation(reclone=reclone).plan(state(tmp_path, **fields))
    assert isinstance(caught.value, SplitBrainRisk) is (fields == {"kind": "primary", "postmaster": LIVE})


WITHIN = rejoin.Relation("within")
DIVERGED = rejoin.Relation("diverged", "its WAL goes on", lost_bytes=7)
GONE = dataclasses.replace(WITHIN, rejoin_problem="the WAL is gone")
HINTS = dataclasses.replace(DIVERGED, rewind_problem="no checksums")
AHEAD = rejoin.Relation("ahead", "the source is behind")
UNKNOWN = rejoin.Relation("unknown", "no history")


@pytest.mark.parametrize(
    "relation, method, reclone, way",
    [
        # Nothing is lost, so nobody has to consent.
        (WITHIN, "auto", False, "rejoin"), (WITHIN, "rewind", False, "rejoin"), (WITHIN, "auto", True, "rejoin"),
        (WITHIN, "basebackup", False, None), (WITHIN, "basebackup", True, "basebackup"),
        (GONE, "auto", False, None), (GONE, "auto", True, "basebackup"), (GONE, "rewind", True, None),
        (DIVERGED, "auto", False, None), (DIVERGED, "rewind", False, None), (DIVERGED, "basebackup", False, None),
        (DIVERGED, "auto", True, "rewind"), (DIVERGED, "rewind", True, "rewind"), (DIVERGED, "basebackup", True, "basebackup"),
        (HINTS, "auto", False, None), (HINTS, "auto", True, "basebackup"), (HINTS, "rewind", True, None),
        (AHEAD, "auto", False, None), (AHEAD, "auto", True, "basebackup"), (AHEAD, "rewind", True, None),
        (UNKNOWN, "auto", False, None), (UNKNOWN, "auto", True, "basebackup"), (UNKNOWN, "rewind", True, None),
    ],
)  # fmt: skip
def test_the_way_of_a_directory_that_is_down(relation, method, reclone, way):
    if way is None:
        with pytest.raises(Refused, match="cannot be rewound" if reclone else "reclone"):
            rejoin.choose_way(relation, method, reclone, "/data", "h:5432")
    else:
        found = rejoin.choose_way(relation, method, reclone, "/data", "h:5432")
        assert found[0] == way
        if way == "basebackup" and method == "auto":
            assert found[1] == (relation.rewind_problem or relation.rejoin_problem or relation.reason)
    # The one primary that there is, and a source that is only its standby.
    primary = dataclasses.replace(relation, was_primary=True, source_goes_on=False)
    with pytest.raises(Refused, match="has not been promoted since"):
        rejoin.choose_way(primary, method, reclone, "/data", "h:5432")


@pytest.mark.parametrize("kind", ["standby", "primary"])
def test_plans_for_a_directory_that_is_down(operation, tmp_path, kind):
    def names(relation, **params):
        return operation(**params).plan(dataclasses.replace(state(tmp_path, kind), relation=relation)).names

    path = str(tmp_path / "data")
    assert names(WITHIN) == ["make %s a standby of h:5432, with the data that it has" % path, "start the standby and wait until it streams"]
    with pytest.raises(Refused, match="reclone"):
        names(DIVERGED)
    rewound = ["rewind %s to h:5432" % path, "put the rewound directory back in its place", "start the standby and wait until it streams"]
    assert names(DIVERGED, reclone=True, slot_name="s") == ["create the slot s on h:5432", *rewound]
    assert names(dataclasses.replace(DIVERGED, needs_checkpoint=True), reclone=True) == ["make a checkpoint on h:5432", *rewound]
    copied = names(HINTS, reclone=True)
    assert copied[-1] == "remove the old directory" and "copy h:5432" in copied
    assert names(HINTS, reclone=True, keep_old=True)[-1] == "keep the old directory"


def test_what_a_broken_rewind_left_is_copied_anew_without_asking(operation, tmp_path):
    marker = {"id": IDENTIFIER, "rewind": "1"}
    names = operation().plan(state(tmp_path, "unfinished", marker=marker, leftovers=("/d.clone-" + IDENTIFIER,))).names
    assert names[0].startswith("remove /d.clone-") and "copy h:5432" in names and not any("undo" in name for name in names)
    with pytest.raises(Refused, match="another cluster"):
        operation().plan(state(tmp_path, "unfinished", marker=marker, system_identifier="2"))
    with pytest.raises(Refused, match="cannot be rewound"):
        operation(copy_method="rewind").plan(state(tmp_path, "unfinished", marker=marker))


def test_a_directory_that_another_operation_holds(operation, tmp_path):
    with pytest.raises(Refused, match="another operation"):
        operation().plan(dataclasses.replace(state(tmp_path, held=True), relation=WITHIN))
    # Where nothing is to do nobody is in the way.
    assert operation().plan(state(tmp_path, postmaster=LIVE, streaming=True, from_source=True, held=True)).names == []


# Histories


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ((1, {}), (1, {}), (1, None, False, False)),
        ((1, {}), (2, {1: 100}), (1, 100, False, True)),
        ((2, {1: 100}), (1, {}), (1, 100, True, False)),
        # Both promoted, at different places.
        ((2, {1: 100}), (2, {1: 90}), (1, 90, True, True)),
        ((2, {1: 100}), (3, {1: 90}), (1, 90, True, True)),
        ((2, {1: 100}), (3, {1: 100, 2: 150}), (2, 150, False, True)),
        ((3, {1: 100, 2: 150}), (4, {1: 100, 2: 140}), (2, 140, True, True)),
        # Promoted at the same place to the same number: no history can tell these apart.
        ((2, {1: 100}), (2, {1: 100}), (2, None, False, False)),
        # A timeline was skipped by the other.
        ((3, {1: 100}), (2, {1: 100}), (1, 100, True, True)),
    ],
)
def test_where_two_pasts_part(one, other, expected):
    found = fork.find_fork(fork.Past(*one), fork.Past(*other))
    assert dataclasses.astuple(found) == expected
    mirrored = fork.find_fork(fork.Past(*other), fork.Past(*one))
    assert dataclasses.astuple(mirrored) == (*expected[:2], expected[3], expected[2])


def test_pasts_with_nothing_in_common():
    assert fork.find_fork(fork.Past(1), fork.Past(5, {3: 10})) is None
    assert fork.Past(3, {1: 5, 2: 9}).until(2) == fork.Past(2, {1: 5}) and fork.Past(3, {1: 5, 2: 9}).until(4) is None


def test_command_of_a_rewind():
    argv = rewind_command("/b/pg_rewind", "/d", "host=h", dry_run=True, restore=True, config_file="/c")
    assert {"--target-pgdata=/d", "--source-server=host=h", "--dry-run", "--no-ensure-shutdown", "--restore-target-wal", "--config-file=/c"} < set(argv)
    assert "--dry-run" not in rewind_command("/b/pg_rewind", "/d", "host=h")
    assert needed_bytes("x\npg_rewind: need to copy 42 MB (total source directory size is 2100 MB)\n") == 42 << 20 and needed_bytes("") is None


def test_names_of_wal_files():
    assert wal.segment_name(2, 0x1_05000028, 16 << 20) == "000000020000000100000005"
    assert wal.segment_name(1, 0x1_05000028, 1 << 20) == "000000010000000100000050"


def test_order_of_the_steps(operation, tmp_path):
    names = operation(reclone=True, slot_name="s").plan(state(tmp_path, postmaster=LIVE)).names
    path = str(tmp_path / "data")
    assert names == [
        "create the slot s on h:5432", "stop the standby in %s" % path, "copy h:5432", "verify the copy", "put the copy in the place of %s" % path,
        "start the standby and wait until it streams", "remove the old directory",
    ]  # fmt: skip


def test_a_standby_that_streams_is_left_alone(operation, tmp_path):
    for from_source in (True, False):
        assert operation().plan(state(tmp_path, postmaster=LIVE, streaming=True, from_source=from_source)).names == []
    with pytest.raises(Refused, match="does not stream"):
        operation().plan(state(tmp_path, postmaster=LIVE))


@pytest.mark.parametrize(
    "slot, ok",
    [
        (None, True),
        ({"slot_type": "physical", "active": False, "wal_status": "reserved", "application_name": None, "client": None}, True),
        ({"slot_type": "physical", "active": True, "wal_status": "reserved", "application_name": "db3", "client": None}, False),
        ({"slot_type": "physical", "active": True, "wal_status": "reserved", "application_name": "pg_basebackup", "client": None}, True),
        ({"slot_type": "logical", "active": False, "wal_status": "reserved", "application_name": None, "client": None}, False),
    ],
)
def test_slots(operation, tmp_path, slot, ok):
    seen = state(tmp_path, "missing", source=dataclasses.replace(SOURCE, slot=slot))
    if ok:
        assert ("create the slot s on h:5432" in operation(slot_name="s").plan(seen).names) is (slot is None)
    else:
        with pytest.raises(Refused, match='slot "s"'):
            operation(slot_name="s").plan(seen)


def test_a_slot_that_lost_wal_is_made_anew(operation, tmp_path):
    slot = {"slot_type": "physical", "active": False, "wal_status": "lost", "application_name": None, "client": None}
    names = operation(slot_name="s").plan(state(tmp_path, "missing", source=dataclasses.replace(SOURCE, slot=slot))).names
    assert names[0] == "create the slot s on h:5432 anew, as it has lost WAL"


def test_a_failure_undoes_in_reverse_order_and_says_so(operation):
    one, done = operation(), []
    one._undo = [("first", lambda: done.append("first")), ("second", lambda: done.append("second"))]
    with pytest.raises(RolledBack) as caught:
        one._guarded(lambda: 1 / 0)
    assert done == ["second", "first"] and caught.value.facts["undone"] == ["second", "first"] and caught.value.facts["changed"] is False
    assert "Everything is as before" in str(caught.value) and "division by zero" in str(caught.value)


def test_a_failure_while_undoing_is_no_rollback(operation):
    one = operation()

    def fails():
        raise Refused("the disk is gone")

    one._undo = [("first", lambda: None), ("second", fails)]
    with pytest.raises(Exception, match="the disk is gone") as caught:
        one._guarded(lambda: 1 / 0)
    assert not isinstance(caught.value, RolledBack)


def test_conninfo_of_the_standby_never_holds_a_password(operation):
    one = operation(replication_user="r", replication_passfile="/p", replication_password="x", replication_connect_params={"password": "x", "sslcert": "/c"},
                    ssl_mode="require", ca_cert=None)  # fmt: skip
    assert one._conninfo() == {"host": "h", "port": 5432, "user": "r", "passfile": "/p", "sslmode": "require", "sslrootcert": None, "sslcert": "/c"}
