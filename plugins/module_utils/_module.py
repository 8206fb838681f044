# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The frame that every module stands in: options, psycopg, plan, execution, confirmation, result. The only caller of fail_json."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ansible.module_utils.basic import AnsibleModule, env_fallback, missing_required_lib
from ansible.module_utils.common.validation import check_type_dict

from ._errors import NotConfirmed, OperationError
from ._plan import Plan
from ._sql.connection import PSYCOPG_IMPORT_ERROR, psycopg_problem
from ._sql.values import to_jsonable


@dataclasses.dataclass(frozen=True)
class ArgumentSpec:
    """Options of a module together with the rules between them; specs compose with ``merge``."""

    argument_spec: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    required_if: t.Sequence[t.Any] = ()
    required_together: t.Sequence[t.Any] = ()
    required_one_of: t.Sequence[t.Any] = ()
    mutually_exclusive: t.Sequence[t.Any] = ()
    required_by: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    def merge(self, other: ArgumentSpec) -> ArgumentSpec:
        """Both specs as one. An option in both is a mistake of the programmer."""
        twice = set(self.argument_spec) & set(other.argument_spec)
        if twice:
            raise ValueError("options defined twice: %s" % ", ".join(sorted(twice)))
        return ArgumentSpec(
            {**self.argument_spec, **other.argument_spec},
            [*self.required_if, *other.required_if],
            [*self.required_together, *other.required_together],
            [*self.required_one_of, *other.required_one_of],
            [*self.mutually_exclusive, *other.mutually_exclusive],
            {**self.required_by, **other.required_by},
        )

    def to_kwargs(self) -> dict[str, t.Any]:
        return {
            "argument_spec": dict(self.argument_spec),
            "required_if": list(self.required_if),
            "required_together": list(self.required_together),
            "required_one_of": list(self.required_one_of),
            "mutually_exclusive": list(self.mutually_exclusive),
            "required_by": dict(self.required_by),
        }


def _from_environment(*names: str, **option: t.Any) -> dict[str, t.Any]:
    return {"fallback": (env_fallback, list(names)), **option}


LOGIN = ArgumentSpec(
    {
        "login_user": _from_environment("PGUSER", type="str"),
        "login_password": _from_environment("PGPASSWORD", type="str", no_log=True),
        "login_db": _from_environment("PGDATABASE", type="str"),
        "ssl_mode": _from_environment("PGSSLMODE", type="str", choices=["allow", "disable", "prefer", "require", "verify-ca", "verify-full"]),
        "ca_cert": _from_environment("PGSSLROOTCERT", type="path"),
        "ssl_cert": _from_environment("PGSSLCERT", type="path"),
        "ssl_key": _from_environment("PGSSLKEY", type="path"),
        "connect_params": {"type": "dict", "default": {}},
    }
)
"""Who connects and how; in step with the doc fragment ``connection.login``."""

CONNECTION = LOGIN.merge(
    ArgumentSpec(
        {
            "login_host": _from_environment("PGHOST", type="str"),
            "login_port": _from_environment("PGPORT", type="int"),
            "login_unix_socket": {"type": "str"},
        }
    )
)
"""One server to connect to; in step with the doc fragment ``connection.server`` (with ``connection.login``)."""


class Context:
    """What an operation may know about the run that it is part of."""

    def __init__(self, check_mode: bool, warn: t.Callable[[str], t.Any]) -> None:
        self.check_mode = check_mode
        self.warn = warn


class Operation:
    """What a module does. ``observe`` and ``plan`` are all that check mode ever runs, and neither may change anything."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        self.params = params
        self.context = context

    def observe(self) -> t.Any:
        """Ask the live system."""
        raise NotImplementedError

    def plan(self, seen: t.Any) -> Plan:
        """From what was seen to the steps that are needed. Raises OperationError to refuse. Without I/O."""
        return Plan()

    def confirm(self, seen: t.Any) -> None:
        """After the plan was executed: is the state, observed anew, the wanted one?"""
        left = self.plan(seen)
        if left.changed:
            raise NotConfirmed("after all steps this is still to do: %s" % ", ".join(left.names))

    def report(self, seen: t.Any) -> dict[str, t.Any]:
        """The state for the task's result."""
        return {}

    def close(self) -> None:
        """Give back connections."""


# Options that take any libpq keyword may be given these; a spec cannot mark keys of a free dictionary.
_SECRET_KEYWORDS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})


def _secrets_in(value: t.Any) -> t.Iterator[str]:
    if isinstance(value, t.Mapping):
        for key, item in value.items():
            if key in _SECRET_KEYWORDS and item not in (None, ""):
                yield str(item)
            else:
                yield from _secrets_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets_in(item)


class _Module(AnsibleModule):
    def _load_params(self) -> None:
        # AWX passes "" for a survey question without an answer, also where the option is a number.
        super()._load_params()
        self.params = {key: value for key, value in self.params.items() if value != ""}
        # Before the arguments are logged.
        self.no_log_values.update(_secrets_in(self.params))
        for option, value in self.params.items():
            if option.endswith("connect_params"):
                with contextlib.suppress(TypeError):  # a dictionary may be given as text
                    self.no_log_values.update(_secrets_in(check_type_dict(value)))


def run(operation_class: t.Callable[[t.Mapping[str, t.Any], Context], Operation], spec: ArgumentSpec, needs_psycopg: bool = True) -> None:
    """Run one operation as an Ansible module and exit."""
    module = _Module(supports_check_mode=True, **spec.to_kwargs())
    problem = psycopg_problem() if needs_psycopg else None
    if problem:
        module.fail_json(
            msg="%s on the host that runs this module. %s Debian and Ubuntu: package python3-psycopg." % (problem, missing_required_lib("psycopg>=3.1")),
            error="MissingLibrary",
            phase="start",
            performed=[],
            exception=PSYCOPG_IMPORT_ERROR,
        )
    context = Context(module.check_mode, module.warn)
    plan = Plan()
    phase = "start"
    operation: Operation | None = None
    failure: OperationError | None = None
    result: dict[str, t.Any] = {}
    try:
        operation = operation_class(module.params, context)
        phase = "observe"
        seen = operation.observe()
        phase = "plan"
        plan = operation.plan(seen)
        if plan.changed and not context.check_mode:
            phase = "execute"
            plan.execute()
            phase = "confirm"
            seen = operation.observe()
            operation.confirm(seen)
        phase = "report"
        result = operation.report(seen)
    except OperationError as error:
        failure = error
    finally:
        if operation is not None:
            operation.close()
    if failure is not None:
        facts = to_jsonable(failure.facts)
        facts.setdefault("phase", phase)
        module.fail_json(
            **{
                "changed": bool(plan.performed),
                **facts,
                "msg": str(failure),
                "error": type(failure).__name__,
                "plan": plan.names,
                "performed": plan.performed,
            }
        )
    if module._diff:  # pylint: disable=protected-access
        result["diff"] = plan.diff()
    module.exit_json(**{**to_jsonable(result), "changed": plan.changed, "plan": plan.names, "performed": plan.performed})
