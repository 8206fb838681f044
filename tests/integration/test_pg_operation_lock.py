# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_operation_lock: contenders, holders that are dead, directories and files that cannot be trusted."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess

import pytest
from lab import HOST, call_module, four_steps, module_library, wait_until

CONTENDERS = 20
ROUNDS = 25


@pytest.fixture
def directory(lab):
    path = lab.path / "locks"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def options(directory):
    return {"cluster": "shop", "member": "db1", "directory": directory, "holder": "first", "owner": "ops@controller", "operation": "clone of db3"}


def lock(options, **changes):
    return call_module("pg_operation_lock", {**options, **changes})


def shown(options):
    result = lock(options, state="shown")
    assert not result["failed"] and not result["changed"], result
    return result["lock"]


def test_takes_and_gives_back(options, directory):
    result = four_steps("pg_operation_lock", options)
    assert result["held"] and result["lock"]["holder"] == "first" and result["lock"]["operation"] == "clone of db3"
    assert result["lock"]["owner"] == "ops@controller" and 590 < result["lock"]["seconds_left"] <= 600 and result["lock"]["since"] < result["lock"]["until"]
    assert shown(options)["holder"] == "first"
    result = four_steps("pg_operation_lock", {**options, "state": "released"})
    assert result["held"] is False and result["lock"] is None
    assert [path.name for path in directory.iterdir()] == [".guard"]


def test_check_mode_writes_nothing(options, directory):
    assert call_module("pg_operation_lock", options, check=True)["changed"]
    assert not directory.exists()
    lock(options)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}
    assert call_module("pg_operation_lock", {**options, "state": "released"}, check=True)["changed"]
    assert call_module("pg_operation_lock", {**options, "ttl": 6000}, check=True)["plan"] == ["renew the operation lock of cluster shop on db1"]
    refused = call_module("pg_operation_lock", {**options, "holder": "second", "wait": 60}, check=True)
    assert refused["failed"] and refused["error"] == "Refused"
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()} == before


def test_another_is_told_who_holds_it_and_gets_nothing(options):
    assert lock(options)["changed"]
    for state in ("held", "released"):
        result = lock(options, holder="second", owner="other", state=state)
        assert result["failed"] and result["error"] == "Refused" and not result["changed"], result
        assert 'held by ops@controller for "clone of db3" since 20' in result["msg"] and result["lock"]["holder"] == "first"
    assert shown(options)["holder"] == "first"


def test_clusters_and_members_have_locks_of_their_own(options):
    assert lock(options)["changed"]
    for change in ({"member": "db2"}, {"member": ""}, {"cluster": "shop@db1", "member": ""}, {"cluster": "../shop"}, {"cluster": "store"}):
        result = lock(options, holder="second", **change)
        assert not result["failed"] and result["changed"], (change, result)
    assert shown(options)["holder"] == "first"


def test_holder_renews_before_the_end_and_only_then(options):
    lock(options, ttl=100)
    since = shown(options)["since"]
    assert not lock(options, ttl=100)["changed"] and not lock(options, ttl=10)["changed"]
    result = lock(options, ttl=1000)
    assert result["changed"] and result["performed"] == ["renew the operation lock of cluster shop on db1"] and result["lock"]["seconds_left"] > 990
    assert result["lock"]["since"] == since
    assert lock(options, ttl=1000, operation="the next phase")["lock"]["operation"] == "the next phase"


def test_releasing_what_is_not_held_is_no_change(options, directory):
    result = lock(options, state="released")
    assert not result["failed"] and not result["changed"] and not directory.exists()


def test_force_releases_the_lock_of_another(options):
    lock(options)
    result = four_steps("pg_operation_lock", {**options, "holder": "", "operation": "", "state": "released", "force": True})
    assert result["diff"][0]["before"]["owner"] == "ops@controller"
    assert shown(options) is None


def test_exactly_one_of_many_contenders_gets_it(options, directory):
    """All are started and ready before one byte in a pipe lets them begin."""
    argv = HOST.argv(["/usr/bin/env", "PYTHONPATH=%s" % module_library(), "/usr/bin/python3", "-c", CONTENDER], "postgres")
    processes = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") for _number in range(CONTENDERS)]
    try:
        for number, process in enumerate(processes):
            process.stdin.write(json.dumps({**options, "directory": str(directory), "holder": "contender %d" % number}) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ready\n"
        for _round in range(ROUNDS):
            for process in processes:
                process.stdin.write("go\n")
                process.stdin.flush()
            answers = [process.stdout.readline().strip() for process in processes]
            winners = [number for number, answer in enumerate(answers) if answer == "held"]
            assert len(winners) == 1 and set(answers) == {"held", "Refused"}, answers
            assert shown(options)["holder"] == "contender %d" % winners[0]
            assert lock(options, holder="contender %d" % winners[0], state="released")["changed"]
    finally:
        for process in processes:
            process.stdin.close()
            process.wait(30)


CONTENDER = """
import json, sys
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import OperationError
from ansible_collections.pgfleet.ops.plugins.module_utils._module import Context
from ansible_collections.pgfleet.ops.plugins.module_utils._operations.operation_lock import OperationLock
options = {"state": "held", "ttl": 600, "wait": 0, "force": False, **json.loads(sys.stdin.readline())}
print("ready", flush=True)
for line in sys.stdin:
    operation = OperationLock(options, Context(False, print))
    try:
        operation.plan(operation.observe()).execute()
        operation.confirm(operation.observe())
        answer = "held"
    except OperationError as error:
        answer = type(error).__name__
    print(answer, flush=True)
"""


def test_waiting_contenders_get_it_one_after_the_other(options, lab):
    """Each adds one to a number as nobody should who is not alone: reads, hesitates, writes."""
    counter = lab.path / "counter"
    counter.write_text("0")

    def work(number):
        mine = {**options, "holder": "waiting %d" % number, "wait": 120}
        assert lock(mine)["changed"]
        value = int(counter.read_text())
        assert shown(options)["holder"] == mine["holder"]
        counter.write_text(str(value + 1))
        assert lock(mine, state="released")["changed"]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, number) for number in range(6)]:
            done.result()
    assert counter.read_text() == "6"


def test_waiting_ends(options):
    lock(options)
    result = lock(options, holder="second", wait=1)
    assert result["failed"] and result["error"] == "Refused" and result["lock"]["holder"] == "first"


def test_the_lock_of_a_dead_holder_ends_by_itself(options):
    lock(options, ttl=3, owner="a controller that was killed")
    result = lock(options, holder="second", wait=60)
    assert not result["failed"] and result["lock"]["holder"] == "second"
    assert 'not given back by its last holder: a controller that was killed, for "clone of db3"' in result["printed"]
    # The first one is late, and does not take away what is another's now.
    late = lock(options, state="released")
    assert late["failed"] and late["error"] == "Refused" and shown(options)["holder"] == "second"


def test_a_late_release_says_that_the_lock_had_ended(options, directory):
    lock(options, ttl=1)
    wait_until(lambda: shown(options) is None, 20)
    result = lock(options, state="released")
    assert not result["failed"] and result["changed"] and "had ended before it was released" in result["printed"]
    assert not lock(options, state="released")["changed"]


def file_of(directory):
    (path,) = directory.glob("*.json")
    return path


def rewrite(directory, **changes):
    path = file_of(directory)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_restart_of_the_host_ends_its_locks(options, directory):
    lock(options)
    rewrite(directory, boot="of another start")
    assert shown(options) is None
    assert lock(options, holder="second")["lock"]["holder"] == "second"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"holder": "x"}', "text", None],
    ids=["empty", "cut off", "list", "null", "parts missing", "text", "other types"],
)
def test_a_file_that_is_no_lock_never_counts_as_free(options, directory, content):
    lock(options)
    if content is None:
        rewrite(directory, ends="soon")
    else:
        file_of(directory).write_text(content)
    for state in ("held", "released", "shown"):
        result = lock(options, state=state)
        assert result["failed"] and result["error"] == "LockNotUnderstood" and str(file_of(directory)) in result["msg"], result
    four_steps("pg_operation_lock", {**options, "state": "released", "force": True})
    assert lock(options)["changed"]


def test_a_lock_of_another_cluster_or_of_the_future_is_not_understood(options, directory):
    lock(options)
    for changes, words in (({"cluster": "store"}, "cluster store"), ({"taken": 1e12}, "in the future")):
        before = file_of(directory).read_text()
        rewrite(directory, **changes)
        result = lock(options, holder="second")
        assert result["failed"] and result["error"] == "LockNotUnderstood" and words in result["msg"]
        file_of(directory).write_text(before)


def test_an_unreadable_file_never_counts_as_free(options, directory):
    lock(options)
    path = file_of(directory)
    os.chown(path, 0, 0)
    path.chmod(0o600)
    for state in ("held", "shown"):
        result = lock(options, state=state, holder="second")
        assert result["failed"] and "cannot be read" in result["msg"], result


def test_a_directory_that_others_may_write_is_refused(options, directory, lab):
    """With such a directory anybody could take away a lock, or have root overwrite a file."""
    victim = lab.path / "victim"
    victim.write_text("precious")
    for prepare, words in (
        (lambda: directory.mkdir(mode=0o777) or directory.chmod(0o777), "mode 0777"),
        (lambda: directory.mkdir() or directory.chmod(0o775), "mode 0775"),
        (lambda: directory.mkdir() or shutil.chown(directory, "nobody"), "belongs to user"),
        (lambda: directory.symlink_to(lab.path), "is no directory"),
        (lambda: directory.write_text(""), "is no directory"),
    ):
        prepare()
        if directory.is_dir() and not directory.is_symlink():
            (directory / "shop@db1.json").symlink_to(victim)
        for user in ("postgres", None):
            for state in ("held", "released", "shown"):
                result = call_module("pg_operation_lock", {**options, "state": state}, user=user)
                assert result["failed"] and result["error"] == "LockFailed" and words in result["msg"], result
        assert victim.read_text() == "precious"
        if directory.is_dir() and not directory.is_symlink():
            shutil.rmtree(directory)
        else:
            directory.unlink()


def test_root_does_not_use_the_directory_of_another_user(options):
    assert lock(options)["changed"]
    result = call_module("pg_operation_lock", options, user=None)
    assert result["failed"] and "belongs to user" in result["msg"] and "same user" in result["msg"]


def test_everybody_may_look_and_only_the_owner_may_change(options, directory):
    assert call_module("pg_operation_lock", options, user=None)["changed"]
    assert shown(options)["holder"] == "first"
    for changes in ({"state": "released"}, {"state": "held", "ttl": 6000}):
        result = lock(options, **changes)
        assert result["failed"] and result["error"] == "LockFailed" and "become" in result["msg"], result
    assert directory.stat().st_mode & 0o777 == 0o755 and (directory / ".guard").stat().st_mode & 0o777 == 0o600


def test_a_directory_whose_parent_is_missing_is_named(options, directory):
    result = lock(options, directory=directory / "below")
    assert result["failed"] and result["error"] == "LockFailed" and "cannot be made" in result["msg"] and str(directory) in result["msg"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": ""}, "cluster"),
        ({"holder": ""}, "holder"),
        ({"operation": ""}, "operation"),
        ({"state": "released", "holder": ""}, "holder"),
        ({"ttl": 0}, "ttl is 0"),
        ({"ttl": 604801}, "604800"),
        ({"wait": -1}, "wait is -1"),
        ({"force": True}, "force"),
        ({"cluster": "x" * 300}, "too long"),
    ],
)
def test_wrong_options_are_named(options, directory, changes, words):
    result = lock(options, **changes)
    assert result["failed"] and words in result["msg"], result
    assert not directory.exists()


def test_the_default_directory_is_roots():
    result = call_module("pg_operation_lock", {"cluster": "pgfleet-test-%d" % os.getpid(), "state": "shown"})
    assert not result["failed"] and result["lock"] is None
    assert pathlib.Path("/run").stat().st_mode & 0o022 == 0
