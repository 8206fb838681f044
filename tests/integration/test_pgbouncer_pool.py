# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgbouncer_pool on the real PgBouncer: two poolers before a primary and a standby."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time

import psycopg
import pytest
from lab import GENERATIONS, HOST, SUPERUSER_PASSWORD, call_module, four_steps, free_port, module_library, wait_until

LOGIN = {"verify_user": "postgres", "verify_password": SUPERUSER_PASSWORD}


@pytest.fixture(scope="module")
def primary(lab):
    server = lab.postgres("primary").init().start()
    server.sql("CREATE DATABASE app")
    server.sql("CREATE DATABASE other")
    return server


@pytest.fixture(scope="module")
def standby(lab, primary):
    server = lab.postgres("standby").clone(primary)
    primary.wait_for_standbys(1)
    return server


@pytest.fixture
def poolers(own_lab, primary, standby):
    return [own_lab.pgbouncer(name, entries(primary, standby)).start() for name in ("pool1", "pool2")]


@pytest.fixture(params=GENERATIONS, ids=lambda one: "debian%d" % one.release)
def pooler(own_lab, primary, standby, request):
    """One PgBouncer of each release that Debian has: with and without SHOW STATE."""
    return own_lab.pgbouncer("pool", entries(primary, standby), system=request.param.system).start()


def entries(primary, standby):
    return {
        "app": "host=127.0.0.1 port=%d" % primary.port,
        "other": "host=127.0.0.1 port=%d" % primary.port,
        "app_ro": "host=127.0.0.1 port=%d dbname=app" % standby.port,
    }


def options(*poolers, state="paused", **more):
    login = {key: value for key, value in poolers[0].login.items() if key != "login_port"}
    return {**login, "poolers": [{"name": pooler.name, "login_port": pooler.port} for pooler in poolers], "state": state, **LOGIN, **more}


def call(*poolers, state="paused", check=False, **more):
    return call_module("pgbouncer_pool", options(*poolers, state=state, **more), check=check)


def states(pooler):
    return {row["name"]: (bool(row["paused"]), bool(row["disabled"])) for row in pooler.show("DATABASES") if row["name"] != "pgbouncer"}


def is_paused(pooler):
    """As a whole, by another way than the module's where there is one."""
    with pooler.console() as console:
        try:
            console.execute("PAUSE pgbouncer")
        except psycopg.Error as error:
            return "already" in str(error)
    raise AssertionError("PgBouncer has paused its own database")


def command(pooler, text):
    with pooler.console() as console:
        console.execute(text)


def nothing_is_paused(*poolers):
    return not any(is_paused(pooler) or any(paused for paused, _disabled in states(pooler).values()) for pooler in poolers)


@contextlib.contextmanager
def transaction(pooler, dbname="app"):
    """A client that holds a transaction open."""
    with contextlib.closing(pooler.connect(dbname)) as client:
        client.execute("BEGIN")
        client.execute("SELECT 1")
        yield client


def answers(pooler, dbname="app"):
    """Whether a client is served, which may wait for its login too."""
    login = {"host": "127.0.0.1", "port": pooler.port, "user": "postgres", "password": SUPERUSER_PASSWORD}
    with contextlib.closing(psycopg.connect(**login, dbname=dbname, connect_timeout=60)) as client:
        return client.execute("SELECT 1").fetchone() == (1,)


# -- paused and running


def test_a_whole_pooler(pooler):
    assert answers(pooler) and answers(pooler, "app_ro")
    real = four_steps("pgbouncer_pool", options(pooler))
    assert real["plan"] == ["pause everything of pool"] and real["poolers"][0]["paused"] is True and real["all_reachable"] is True
    assert real["diff"][0]["before"] == {"pool": {"everything": "running"}} and real["diff"][0]["after"] == {"pool": {"everything": "paused"}}
    assert is_paused(pooler)
    info = call_module("pgbouncer_info", {**pooler.login, "gather_subset": ["min"]})["poolers"][0]
    assert info["paused"] is True and info["paused_databases"] == [] and info["disabled_databases"] == []
    served = []
    waiting = threading.Thread(target=lambda: served.append(answers(pooler)))
    waiting.start()
    named = call(pooler, state="running", databases=["app"])
    assert named["failed"] and named["error"] == "Refused" and "paused as a whole" in named["msg"]
    assert call(pooler, databases=["app"])["changed"] is False
    assert served == []
    real = four_steps("pgbouncer_pool", options(pooler, state="running"))
    assert real["plan"] == ["resume everything of pool"] and nothing_is_paused(pooler)
    waiting.join(60)
    assert served == [True]


def test_databases_by_name(pooler):
    real = four_steps("pgbouncer_pool", options(pooler, databases=["app", "app_ro"]))
    assert real["plan"] == ["pause app, app_ro of pool"] and real["poolers"][0]["paused_databases"] == ["app", "app_ro"]
    assert states(pooler) == {"app": (True, False), "app_ro": (True, False), "other": (False, False)} and not is_paused(pooler)
    assert answers(pooler, "other")
    four_steps("pgbouncer_pool", options(pooler, state="disabled", databases=["other", "app"]))
    assert states(pooler) == {"app": (True, True), "app_ro": (True, False), "other": (False, True)}
    with pytest.raises(psycopg.Error):
        answers(pooler, "other")
    real = four_steps("pgbouncer_pool", options(pooler, state="running", databases=["app"]))
    assert real["plan"] == ["resume app of pool; enable app of pool"]
    real = four_steps("pgbouncer_pool", options(pooler, state="running"))
    assert real["plan"] == ["resume app_ro of pool; enable other of pool"]
    assert set(states(pooler).values()) == {(False, False)} and answers(pooler, "other")


def test_two_poolers_at_once(poolers):
    first, second = poolers
    command(first, "PAUSE app")
    real = four_steps("pgbouncer_pool", options(*poolers, databases=["app"]))
    assert real["plan"] == ["pause app of pool2"]
    four_steps("pgbouncer_pool", options(*poolers))
    assert is_paused(first) and is_paused(second)
    real = four_steps("pgbouncer_pool", options(*poolers, state="running"))
    assert real["plan"] == ["resume everything, app of pool1; resume everything, app of pool2"] and nothing_is_paused(*poolers)


def test_everything_disabled_and_back(poolers):
    four_steps("pgbouncer_pool", options(*poolers, state="disabled"))
    assert {state for pooler in poolers for state in states(pooler).values()} == {(False, True)}
    four_steps("pgbouncer_pool", options(*poolers, state="running"))
    assert {state for pooler in poolers for state in states(pooler).values()} == {(False, False)}


def test_reconnected_opens_new_server_connections(pooler, primary):
    with contextlib.closing(pooler.connect("app")) as client:
        before = client.execute("SELECT pg_backend_pid()").fetchone()
        check = call(pooler, state="reconnected", check=True)
        assert check["changed"] and client.execute("SELECT pg_backend_pid()").fetchone() == before
        real = call(pooler, state="reconnected", databases=["app"])
        assert real["changed"] and real["performed"] == ["reconnect app of pool"]
        assert client.execute("SELECT pg_backend_pid()").fetchone() != before
    again = call(pooler, state="reconnected")
    assert not again["failed"] and again["changed"] and again["performed"] == ["reconnect everything of pool"]


# -- a pause that is held up


def test_a_pause_that_does_not_end_is_taken_back_everywhere(poolers, primary):
    first, second = poolers
    command(first, "PAUSE other")
    with transaction(second) as client:
        result = call(*poolers, databases=["app", "other", "app_ro"], timeout=1)
        assert result["failed"] and result["error"] == "RolledBack" and result["performed"] == [] and result["changed"] is False
        (holder,) = result["holders"]
        assert (holder["pooler"], holder["database"], holder["user"]) == ("pool2", "app", "postgres") and holder["since"]
        assert holder["address"].endswith(":%d" % local_port(client)) and holder["server_pid"] == client.execute("SELECT pg_backend_pid()").fetchone()[0]
        assert holder["address"] in result["msg"] and str(holder["server_pid"]) in result["msg"]
        # What somebody else had paused stays so, and what was not held up is resumed too.
        assert states(first) == {"app": (False, False), "app_ro": (False, False), "other": (True, False)}
        assert set(states(second).values()) == {(False, False)}
        client.execute("COMMIT")
        assert answers(first) and answers(second)
        client.execute("BEGIN")
        whole = call(*poolers, timeout=1)
        assert whole["error"] == "RolledBack" and not is_paused(first) and not is_paused(second)
        assert states(first)["other"] == (True, False)


def local_port(client):
    with socket.socket(fileno=os.dup(client.fileno())) as copy:
        return copy.getsockname()[1]


def test_a_transaction_that_ends_in_time_is_waited_for(poolers):
    with transaction(poolers[1]) as client:
        ending = threading.Timer(1.0, client.execute, ["COMMIT"])
        ending.start()
        result = call(*poolers, databases=["other", "app"], timeout=60)
        ending.join()
    assert not result["failed"] and all(states(pooler)["app"] == (True, False) for pooler in poolers), result


@pytest.mark.parametrize("databases", [None, ["app", "other"]])
def test_whoever_holds_up_a_pause_can_be_killed(pooler, databases):
    with transaction(pooler) as client, contextlib.closing(pooler.connect("other")) as bystander:
        bystander.execute("SELECT 1")
        result = call(pooler, timeout=1, on_timeout="kill", databases=databases)
        assert not result["failed"] and result["killed"] == ["pool"] and result["changed"], result
        with pytest.raises(psycopg.Error):
            client.execute("SELECT 1")
        assert is_paused(pooler) is (databases is None)
        assert states(pooler)["app"] == (databases is not None, False)
        resumed = call(pooler, state="running")
        assert not resumed["failed"] and nothing_is_paused(pooler)
        # Only the database that held it up was killed.
        assert bystander.execute("SELECT 1").fetchone() == (1,)


def test_a_pause_of_somebody_else_that_still_waits_is_not_called_paused(pooler):
    with transaction(pooler) as client:
        with contextlib.closing(pooler.console()) as console:
            console.pgconn.send_query(b"PAUSE app")
            wait_until(lambda: states(pooler)["app"] == (True, False), 10)
            check = call(pooler, databases=["app"], check=True)
            assert check["plan"] == ["wait for the transactions of app of pool"]
            late = call(pooler, databases=["app"], timeout=1)
            assert late["failed"] and late["error"] == "WaitTimeout" and late["holders"][0]["database"] == "app"
        # That pause is not this task's to take back.
        assert states(pooler)["app"] == (True, False)
        client.execute("COMMIT")
    assert call(pooler, databases=["app"])["failed"] is False


# -- the controlling process is killed, and the limit of a pause


def start(*poolers, **more):
    """The module as a process of its own."""
    argv = ["/usr/bin/env", "PYTHONPATH=%s" % module_library(), "/usr/bin/python3", "-m", "ansible_collections.pgfleet.ops.plugins.modules.pgbouncer_pool"]
    process = subprocess.Popen(HOST.argv(argv, "postgres"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": options(*poolers, **more)}).encode())
    process.stdin.close()
    return process


@pytest.mark.parametrize("databases", [None, ["other", "app"]])
@pytest.mark.parametrize("max_pause", [None, 600])
def test_a_task_that_is_killed_in_the_middle_leaves_nothing_paused(poolers, databases, max_pause):
    first, second = poolers
    with transaction(second):
        process = start(*poolers, databases=databases, timeout=60, max_pause=max_pause)
        try:
            wait_until(lambda: (is_paused(first) and is_paused(second)) or (states(first)["app"][0] and states(second)["app"][0]), 30)
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: nothing_is_paused(*poolers), 30)
    assert answers(first) and answers(second)


def test_a_pause_ends_by_itself(poolers):
    result = call(*poolers, max_pause=3)
    assert not result["failed"] and result["changed"] and is_paused(poolers[0]) and is_paused(poolers[1])
    wait_until(lambda: nothing_is_paused(*poolers), 30)


def test_the_limit_holds_for_what_the_task_has_paused_and_for_no_later_pause(poolers, own_lab):
    first, second = poolers
    command(first, "PAUSE other")
    result = call(*poolers, max_pause=6, databases=["app", "other"])
    assert not result["failed"] and result["plan"] == ["pause app of pool1; pause app, other of pool2"]
    # Somebody ends one of the pauses, and begins another one after a while: that has no limit.
    assert not call(second, state="running", databases=["app"])["failed"]
    time.sleep(2.5)  # longer than the watching process looks away
    command(second, "PAUSE app")
    wait_until(lambda: not states(first)["app"][0] and not states(second)["other"][0], 30)
    assert states(first)["other"] == (True, False) and states(second)["app"] == (True, False)


@pytest.mark.parametrize("more", [{"max_pause": 5, "state": "running"}, {"max_pause": 0}, {"databases": []}, {"databases": ["app", ""]}])
def test_options_that_cannot_be_meant(poolers, more):
    result = call(*poolers, **more)
    assert result["failed"] and result["error"] == "InvalidInput" and nothing_is_paused(*poolers)


# -- nothing is resumed but towards a proved server


def repoint(pooler, name, port):
    text = "".join(
        "%s = host=127.0.0.1 port=%d dbname=app\n" % (name, port) if line.startswith(name + " ") else line
        for line in pooler.databases_file.read_text().splitlines(True)
    )
    pooler.databases_file.write_text(text)
    command(pooler, "RELOAD")


def cluster(primary, standby, **changes):
    return [{"name": "db1", "host": "127.0.0.1", "port": primary.port, **changes}, {"name": "db2", "host": "127.0.0.1", "port": standby.port}]


@pytest.mark.parametrize("by_nodes", [False, True])
def test_nothing_is_resumed_towards_a_standby(poolers, primary, standby, by_nodes):
    first, second = poolers
    more = {"nodes": cluster(primary, standby)} if by_nodes else {}
    assert not call(*poolers)["failed"]
    repoint(second, "app", standby.port)
    for check in (True, False):
        result = call(*poolers, state="running", check=check, **more)
        assert result["failed"] and result["error"] == "Refused" and result["performed"] == [], result
        assert '"app" of pool2' in result["msg"] and "a standby" in result["msg"] and '"app" of pool1' not in result["msg"]
    assert is_paused(first) and is_paused(second)
    assert {(proof["pooler"], proof["database"]): proof["role"] for proof in result["proofs"]}["pool2", "app_ro"] == "standby"
    repoint(second, "app", primary.port)
    four_steps("pgbouncer_pool", options(*poolers, state="running", **more))
    assert nothing_is_paused(*poolers)
    # To enable is to let clients go there too.
    assert not call(second, state="disabled", databases=["app"])["failed"]
    repoint(second, "app", standby.port)
    assert call(second, state="running", **more)["error"] == "Refused" and states(second)["app"] == (False, True)
    assert call(second, state="running", verify_role="any")["failed"] is False and states(second)["app"] == (False, False)


def test_a_server_that_does_not_answer_is_no_proof(poolers, primary, standby):
    assert not call(*poolers)["failed"]
    repoint(poolers[0], "app_ro", free_port())
    result = call(*poolers, state="running")
    assert result["failed"] and result["error"] == "Refused" and '"app_ro" of pool1' in result["msg"] and is_paused(poolers[1])
    stranger = call(poolers[1], state="running", verify_user="nobody", verify_password="geheim")
    assert stranger["failed"] and stranger["error"] == "Refused" and is_paused(poolers[1]) and "geheim" not in json.dumps(stranger)
    assert SUPERUSER_PASSWORD not in json.dumps(result)
    silent = call(poolers[1], state="running", nodes=cluster(primary, standby, port=free_port()))
    assert silent["failed"] and is_paused(poolers[1]) and "no node that answers is a primary" in silent["msg"]


def test_a_standby_can_be_asked_for(poolers):
    assert not call(*poolers, databases=["app", "app_ro"])["failed"]
    refused = call(*poolers, state="running", databases=["app", "app_ro"], verify_role="standby")
    assert refused["failed"] and '"app" of pool1' in refused["msg"] and '"app_ro"' not in refused["msg"]
    assert not call(*poolers, state="running", databases=["app_ro"], verify_role="standby")["failed"]
    # With another suffix this entry has to lead to the primary as any other.
    assert not call(*poolers, databases=["app_ro"])["failed"]
    assert '"app_ro" of pool1' in call(*poolers, state="running", databases=["app_ro"], readonly_suffix="_reader")["msg"]
    assert not call(*poolers, state="running", databases=["app_ro"], readonly_suffix="_reader", readonly_databases=["app_ro"])["failed"]


def test_two_primaries(poolers, own_lab, primary):
    second = own_lab.postgres("second").init().start()
    assert not call(*poolers, databases=["app"])["failed"]
    result = call(*poolers, state="running", databases=["app"], nodes=cluster(primary, second))
    assert result["failed"] and result["error"] == "SplitBrainRisk" and "db1, db2" in result["msg"]
    assert all(states(pooler)["app"] == (True, False) for pooler in poolers)


def test_what_leads_elsewhere_through_the_pooler_is_paused_again(poolers, primary, standby):
    """What the module asks and where the pooler connects are not the same server, as with a name that resolves differently."""
    assert not call(*poolers, databases=["app"])["failed"]
    with redirected(primary.port, standby.port) as port:
        repoint(poolers[0], "app", port)
        result = call(*poolers, state="running", databases=["app"])
    assert result["failed"] and result["error"] == "RolledBack" and '"app" of pool1 leads to a standby' in result["msg"], result
    assert states(poolers[0])["app"] == (True, False) and states(poolers[1])["app"] == (False, False)


@contextlib.contextmanager
def redirected(first, then):
    """A port that leads the first connection to one server and every later one to another."""
    targets = [first]

    with socket.create_server(("127.0.0.1", 0)) as server:

        def carry(source, target):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)
            for one in (source, target):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    client, _address = server.accept()
                    upstream = socket.create_connection(("127.0.0.1", targets.pop() if targets else then))
                    for pair in ((client, upstream), (upstream, client)):
                        threading.Thread(target=carry, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


# -- poolers that do not answer


def test_a_pooler_that_is_down(poolers, own_lab, primary, standby):
    dead = own_lab.pgbouncer("dead", entries(primary, standby))
    result = call(*poolers, dead)
    assert result["failed"] and result["error"] == "NotReachable" and result["unreachable"] == ["dead"] and nothing_is_paused(*poolers)
    real = four_steps("pgbouncer_pool", options(*poolers, dead, unreachable="skip"))
    assert [facts["reachable"] for facts in real["poolers"]] == [True, True, False] and "127.0.0.1:%d" % dead.port in real["poolers"][2]["reason"]
    assert is_paused(poolers[0]) and is_paused(poolers[1])
    alone = call(dead, unreachable="skip")
    assert alone["failed"] and alone["error"] == "NotReachable"
    wrong = call_module("pgbouncer_pool", {**options(*poolers, unreachable="skip"), "login_password": "wrong"})
    assert wrong["failed"] and wrong["error"] == "AuthenticationFailed"
    reader = call_module("pgbouncer_pool", {**options(*poolers), "databases": ["nothing"]})
    assert reader["failed"] and reader["error"] == "Refused" and '"nothing"' in reader["msg"]


def test_two_hung_poolers_cost_one_limit(poolers):
    with contextlib.ExitStack() as stack:
        hung = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _n in range(2)]
        listed = options(poolers[0], unreachable="skip", timeout=3)
        listed["poolers"] += [{"name": "hung%d" % n, "login_port": one.getsockname()[1]} for n, one in enumerate(hung)]
        result = call_module("pgbouncer_pool", listed)
    assert not result["failed"], result
    assert [facts["reachable"] for facts in result["poolers"]] == [True, False, False] and is_paused(poolers[0])


def test_a_pooler_that_stops_to_answer_in_the_middle(poolers):
    """It takes the PAUSE and hangs: the others are resumed, and so is it as soon as it answers again."""
    first, second = poolers
    with transaction(second):
        process = start(*poolers, timeout=4)
        try:
            wait_until(lambda: is_paused(first) and is_paused(second), 30)
            os.kill(second.pid, signal.SIGSTOP)
            try:
                out = process.stdout.read()
                assert not is_paused(first)
            finally:
                os.kill(second.pid, signal.SIGCONT)
        finally:
            process.kill()
            process.wait()
        result = json.loads(out)
        assert result["failed"] and result["error"] == "NotConfirmed" and result["paused"] == ["pool2"] and "goes on trying" in result["msg"]
        wait_until(lambda: nothing_is_paused(*poolers), 60)


def test_an_entry_for_all_others(own_lab, primary, standby):
    pooler = own_lab.pgbouncer("star", {"*": "host=127.0.0.1 port=%d" % primary.port, **entries(primary, standby)}).start()
    del_other = "".join(line for line in pooler.databases_file.read_text().splitlines(True) if not line.startswith("other"))
    pooler.databases_file.write_text(del_other)
    command(pooler, "RELOAD")
    refused = call(pooler, databases=["other"])
    assert refused["failed"] and refused["error"] == "Refused" and '"*"' in refused["msg"]
    assert not call(pooler)["failed"]
    served = []
    waiting = threading.Thread(target=lambda: served.append(answers(pooler, "other")))
    waiting.start()
    wait_until(lambda: any(row["database"] == "other" for row in pooler.show("CLIENTS")), 20)
    assert served == []
    four_steps("pgbouncer_pool", options(pooler, state="running"))
    waiting.join(60)
    assert served == [True]
