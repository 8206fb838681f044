# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame that every module stands in, with operations that only write down what is asked of them."""

from __future__ import annotations

import decimal
import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.pgfleet.ops.plugins.module_utils import _module
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import NotReachable, OperationError, Refused, RolledBack
from ansible_collections.pgfleet.ops.plugins.module_utils._module import CONNECTION, ArgumentSpec, Operation, run
from ansible_collections.pgfleet.ops.plugins.module_utils._plan import Plan
from ansible_collections.pgfleet.ops.plugins.module_utils._sql import connection

SPEC = CONNECTION.merge(
    ArgumentSpec(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "limit": {"type": "int", "default": 7},
            "size": {"type": "int"},
            "flag": {"type": "bool"},
            "members": {"type": "list", "elements": "dict", "options": {"conninfo": {"type": "dict"}}},
            "entries": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "password": {"type": "str", "no_log": True}},
            },
        }
    )
)
SECRET = "geheim-4711"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(capsys):
    """Run an operation as a module; its result as the controller reads it."""

    def call(operation, check=False, diff=False, spec=SPEC, needs_psycopg=True, **arguments):
        internal = {"_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_remote_tmp": "/tmp", "_ansible_keep_remote_files": False}
        with patch_module_args({**internal, **arguments}), pytest.raises(SystemExit) as ended:
            run(operation, spec, needs_psycopg=needs_psycopg)
        result = json.loads(capsys.readouterr().out)
        assert bool(ended.value.code) is bool(result.get("failed"))
        return result

    return call


class Counter(Operation):
    """Two steps from 0 to 2. ``fail`` names the method that fails, ``bad_step`` the step."""

    fail = ""
    bad_step = 0
    stuck = False
    error = NotReachable("db1 does not answer", expected="an answer", action="Start it", last_seen=decimal.Decimal("1.5"))

    def __init__(self, params, context):
        super().__init__(params, context)
        type(self).last = self
        self.calls = []
        self.state = 0
        if self.fail == "__init__":
            raise self.error

    def _called(self, name):
        self.calls.append(name)
        if self.fail == name:
            raise self.error

    def observe(self):
        self._called("observe" if "observe" not in self.calls else "observe again")
        return self.state

    def plan(self, seen):
        self._called("plan" if "plan" not in self.calls else "plan again")
        plan = Plan()
        for n in range(seen + 1, 3):
            plan.add("count to %d" % n, lambda n=n: self._step(n), subject="counter", before=n - 1, after=n)
        return plan

    def _step(self, n):
        self.calls.append("step %d" % n)
        if n == self.bad_step:
            raise self.error
        if not self.stuck:
            self.state = n

    def report(self, seen):
        self._called("report")
        return {"count": seen, "lag_seconds": decimal.Decimal("0.5"), "wanted": self.params["state"]}

    def close(self):
        self.calls.append("close")


def operation(**attributes):
    return type("It", (Counter,), attributes)


def test_a_run_performs_confirms_and_reports_the_state_after(call):
    kind = operation()
    result = call(kind)
    assert kind.last.calls == ["observe", "plan", "step 1", "step 2", "observe again", "plan again", "report", "close"]
    assert result["changed"] is True and "diff" not in result
    assert result["plan"] == result["performed"] == ["count to 1", "count to 2"]
    assert (result["count"], result["lag_seconds"], result["wanted"]) == (2, 0.5, "present")


def test_check_mode_observes_plans_and_does_nothing(call):
    kind = operation()
    result = call(kind, check=True)
    assert kind.last.context.check_mode is True
    assert kind.last.calls == ["observe", "plan", "report", "close"]
    assert (result["changed"], result["plan"], result["performed"], result["count"]) == (True, ["count to 1", "count to 2"], [], 0)


def test_nothing_to_do_is_no_change_and_is_not_observed_twice(call):
    class Done(Counter):
        def plan(self, seen):
            self.calls.append("plan")
            return Plan()

    result = call(Done)
    assert Done.last.calls == ["observe", "plan", "report", "close"]
    assert (result["changed"], result["plan"], result["performed"]) == (False, [], [])


@pytest.mark.parametrize("check", [True, False])
def test_the_diff_comes_only_when_it_is_asked_for_and_is_the_same_in_check_mode(call, check):
    assert "diff" not in call(operation(), check=check)
    assert [(part["before"], part["after"], part["before_header"]) for part in call(operation(), check=check, diff=True)["diff"]] == [
        (0, 1, "counter (before)"),
        (1, 2, "counter (before)"),
    ]


def test_what_is_left_after_all_steps_is_a_failure(call):
    result = call(operation(stuck=True))
    assert result["failed"] and result["changed"] is True
    assert (result["error"], result["phase"]) == ("NotConfirmed", "confirm")
    assert "still to do: count to 1, count to 2" in result["msg"]
    assert result["performed"] == ["count to 1", "count to 2"]


@pytest.mark.parametrize(
    ("where", "phase", "planned", "performed"),
    [
        ({"fail": "__init__"}, "start", 0, 0),
        ({"fail": "observe"}, "observe", 0, 0),
        ({"fail": "plan"}, "plan", 0, 0),
        ({"bad_step": 1}, "execute", 2, 0),
        ({"bad_step": 2}, "execute", 2, 1),
        ({"fail": "observe again"}, "confirm", 2, 2),
        ({"fail": "plan again"}, "confirm", 2, 2),
        ({"fail": "report"}, "report", 2, 2),
    ],
)
def test_an_error_in_each_phase(call, where, phase, planned, performed):
    kind = operation(**where)
    result = call(kind)
    steps = ["count to 1", "count to 2"]
    assert result["failed"] and result["msg"] == "db1 does not answer. Expected: an answer. Start it."
    assert (result["error"], result["phase"], result["last_seen"]) == ("NotReachable", phase, 1.5)
    assert (result["plan"], result["performed"]) == (steps[:planned], steps[:performed])
    assert result["changed"] is bool(performed)
    # What was opened is given back, also after a failure.
    assert kind.last.calls[-1:] == ([] if phase == "start" else ["close"])


def test_facts_of_an_error_may_say_more_exactly_what_happened_but_not_who_says_it(call):
    error = RolledBack("promotion failed", phase="promote", changed=False, outcomes={"db1": "started again"}, msg="no", plan=["no"], error="no")
    result = call(operation(bad_step=2, error=error))
    assert (result["phase"], result["changed"], result["outcomes"]) == ("promote", False, {"db1": "started again"})
    assert (result["msg"], result["error"], result["plan"]) == ("promotion failed.", "RolledBack", ["count to 1", "count to 2"])


def test_a_fault_of_ours_is_not_dressed_up_as_a_result_and_connections_are_given_back():
    kind = operation(error=KeyError("slot"), fail="observe")
    with patch_module_args({"_ansible_remote_tmp": "/tmp"}), pytest.raises(KeyError):
        run(kind, SPEC)
    assert kind.last.calls[-1] == "close"


def test_a_refusal_in_check_mode_is_the_same_refusal(call):
    kind = operation(fail="plan", error=Refused("two primaries"))
    checked, real = call(kind, check=True), call(kind)
    assert checked["failed"] and checked["error"] == "Refused"
    assert {key: value for key, value in checked.items() if key != "invocation"} == {key: value for key, value in real.items() if key != "invocation"}


def test_an_empty_string_is_an_option_that_is_not_set(call):
    kind = operation()
    empty = {"login_host": "", "login_port": "", "limit": "", "size": "", "flag": "", "state": "", "ssl_mode": "", "login_password": "", "entries": ""}
    assert not call(kind, **empty).get("failed")
    params = kind.last.params
    assert [params[key] for key in ("login_host", "login_port", "size", "flag", "ssl_mode", "login_password")] == [None] * 6
    assert (params["limit"], params["state"], params["entries"]) == (7, "present", [])


def test_an_empty_string_leaves_the_environment_its_say(call, monkeypatch):
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("PGUSER", "monitor")
    kind = operation()
    call(kind, login_port="", login_user="")
    assert (kind.last.params["login_port"], kind.last.params["login_user"]) == (6000, "monitor")
    call(kind, login_port=5433, login_user="me")
    assert (kind.last.params["login_port"], kind.last.params["login_user"]) == (5433, "me")


def test_a_required_option_that_is_empty_is_missing(call):
    spec = ArgumentSpec({"database": {"type": "str", "required": True}})
    assert "missing required arguments: database" in call(operation(), spec=spec, database="")["msg"]


@pytest.mark.parametrize("problem", ["psycopg 3 is missing", "psycopg 3.0.18 is too old"])
def test_without_psycopg_the_message_says_which_package(call, monkeypatch, problem):
    monkeypatch.setattr(_module, "psycopg_problem", lambda: problem)
    kind = operation(last=None)
    result = call(kind)
    assert result["failed"] and result["msg"].startswith(problem) and "python3-psycopg" in result["msg"]
    assert (result["error"], result["phase"], result["performed"], kind.last) == ("MissingLibrary", "start", [], None)
    assert not call(operation(), needs_psycopg=False).get("failed")


def test_which_psycopg_will_do(monkeypatch):
    assert connection.psycopg_problem() is None
    for version, problem in (
        ("3.1", None),
        ("3.1.7", None),
        ("3.2b1", None),
        ("4.0", None),
        ("3.0.18", "psycopg 3.0.18 is too old"),
        ("2.9", "psycopg 2.9 is too old"),
    ):
        monkeypatch.setattr(connection.psycopg, "__version__", version)
        assert connection.psycopg_problem() == problem
    monkeypatch.setattr(connection, "psycopg", None)
    assert connection.psycopg_problem() == "psycopg 3 is missing"


@pytest.mark.parametrize(
    "arguments",
    [
        {"login_password": SECRET},
        {"entries": [{"name": "db1", "password": SECRET}]},
        {"connect_params": {"password": SECRET}},
        {"connect_params": {"sslpassword": SECRET}},
        {"connect_params": "application_name=x password=%s" % SECRET},
        {"members": [{"conninfo": {"password": SECRET}}]},
    ],
    ids=["login_password", "suboption", "connect_params password", "connect_params sslpassword", "connect_params as text", "free dictionary"],
)
@pytest.mark.parametrize("fails", [True, False])
def test_no_secret_leaves_in_a_result_a_diff_or_a_log(call, monkeypatch, arguments, fails):
    logged = []
    monkeypatch.setattr(_module.AnsibleModule, "_log_to_syslog", lambda self, message: logged.append(message))
    text = "connection string password=%s" % SECRET

    class Leaky(Counter):
        def plan(self, seen):
            plan = Plan()
            if seen == 0:
                plan.add("set %s" % text, lambda: self._step(2), before=text, after={"password": SECRET})
            return plan

        def report(self, seen):
            if fails:
                raise OperationError(text, action=text, seen={"list": [text]})
            return {"shown": text}

    result = call(Leaky, diff=True, **arguments)
    assert bool(result.get("failed")) is fails and "password=****" in json.dumps(result)
    assert SECRET not in json.dumps(result)
    assert SECRET not in "".join(logged)


def test_specs_compose_and_an_option_in_both_is_a_mistake():
    one = ArgumentSpec({"a": {}}, required_if=[("a", 1, ["b"])], required_by={"a": "b"}, mutually_exclusive=[("a", "b")])
    two = ArgumentSpec({"b": {}}, required_one_of=[("a", "b")], required_together=[("a", "b")], required_by={"b": "a"})
    assert one.merge(two).to_kwargs() == {
        "argument_spec": {"a": {}, "b": {}},
        "required_if": [("a", 1, ["b"])],
        "required_together": [("a", "b")],
        "required_one_of": [("a", "b")],
        "mutually_exclusive": [("a", "b")],
        "required_by": {"a": "b", "b": "a"},
    }
    with pytest.raises(ValueError, match="a"):
        one.merge(one)
    assert one.argument_spec == {"a": {}}
