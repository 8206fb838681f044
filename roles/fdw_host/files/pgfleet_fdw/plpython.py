# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""PL/Python as the host of wrappers, where Multicorn is not installed.

Options and columns are read from the catalogs of the foreign table, as Multicorn reads them. A function of the database calls ``scan``, a trigger of a view
``write``; what is written waits as rows of an ordinary table until the transaction ends, so that savepoints count, and a deferred trigger calls ``apply``.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import typing as t

from . import multicorn_names
from .errors import WrapperError, log, send_messages_to
from .options import check_scopes
from .tables import check_width
from .wrapper import Wrapper

# What a SECURITY DEFINER function is run as hides who asks; a role that was set is still in the setting.
_MAPPING = """
  (SELECT json_object_agg(o.option_name, o.option_value) FROM (
     SELECT m.umoptions FROM pg_user_mapping m LEFT JOIN pg_roles r ON r.oid = m.umuser
     WHERE m.umserver = s.oid
       AND (m.umuser = 0 OR r.rolname = CASE current_setting('role') WHEN 'none' THEN session_user::text ELSE current_setting('role') END)
     ORDER BY m.umuser = 0 LIMIT 1) AS u,
     pg_options_to_table(u.umoptions) AS o) AS mapping
"""
_SERVER = (
    """
SELECT
  (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(s.srvoptions)) AS server,
"""
    + _MAPPING
    + "FROM pg_foreign_server s WHERE s.srvname = $1"
)
_TABLE = (
    """
SELECT
  (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(s.srvoptions)) AS server,
  (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(f.ftoptions)) AS "table",
  (SELECT json_agg(json_build_array(a.attname, a.atttypid::bigint, a.atttypmod, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, NULL),
     (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(a.attfdwoptions))) ORDER BY a.attnum)
   FROM pg_attribute a WHERE a.attrelid = f.ftrelid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  now()::text AS began, pg_current_xact_id_if_assigned()::text AS xid, current_setting('transaction_isolation') AS isolation,
"""
    + _MAPPING
    + "FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = $1::regclass"
)
_BOOLEAN, _INTEGER, _NUMERIC = 16, 23, 1700
_PUT = "INSERT INTO pgfleet_fdw.outbox (relation, operation, row_id, new) VALUES ($1, $2, $3, $4)"
_TAKE = "WITH gone AS (DELETE FROM pgfleet_fdw.outbox WHERE id = %(id)d) SELECT max(id) AS last FROM pgfleet_fdw.outbox"
_TRUE = ("t", "true", "on", "yes", "1")
_TRANSACTION = "pgfleet_fdw transaction"


def scan(plpy: t.Any, memory: dict[str, t.Any], table: str, quals: str | None = None) -> t.Iterator[dict[str, t.Any]]:
    """The rows of a foreign table. ``quals``: a JSON object, column -> value, list of values or null."""
    wrapper, columns = _wrapper(plpy, memory, table)
    try:
        conditions = _conditions(table, json.loads(quals or "{}"), columns)
    except WrapperError as error:
        _fail(plpy, error)
    rows = _rows(plpy, wrapper, columns, conditions)
    # What a wrapper finds wrong it mostly finds here, where PostgreSQL still shows the message as it is.
    first = list(itertools.islice(rows, 1))
    return itertools.chain(first, rows)


def _conditions(table: str, asked: t.Any, columns: t.Mapping[str, t.Any]) -> list[multicorn_names.Qual]:
    """The conditions of a scan, with values as Multicorn would pass them. Raises WrapperError."""
    hint = 'Conditions are a JSON object of columns, each with a value that it equals or a list of values, as in {"name": ["a", "b"]}'
    if not isinstance(asked, dict):
        raise WrapperError("the conditions for %s are no JSON object" % table, hint)
    conditions = []
    for name, value in asked.items():
        if name not in columns:
            raise WrapperError('%s has no column "%s"' % (table, name), "It has %s" % ", ".join(columns))
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, (dict, list)) for one in values):
            raise WrapperError('the condition for "%s" is neither a value nor a list of values' % name, hint)
        passed = [_passed(one, columns[name].type_oid) for one in values]
        conditions.append(multicorn_names.Qual(name, ("=", True), passed) if isinstance(value, list) else multicorn_names.Qual(name, "=", passed[0]))
    return conditions


def _passed(value: t.Any, type_oid: int) -> t.Any:
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value) if isinstance(value, (int, float)) and type_oid not in (_INTEGER, _NUMERIC) else value


def _rows(plpy: t.Any, wrapper: t.Any, columns: dict[str, t.Any], conditions: list[multicorn_names.Qual]) -> t.Iterator[t.Any]:
    # PL/Python takes any text for true.
    truths = [(number, name) for number, (name, column) in enumerate(columns.items()) if column.type_oid == _BOOLEAN]
    try:
        for row in wrapper.execute(conditions, set(columns)) or ():
            if row is None:
                # Multicorn takes it for the end.
                break
            if not hasattr(row, "keys"):
                check_width(row, columns)
                if truths:
                    row = list(row)
                    for number, _name in truths:
                        row[number] = _truth(row[number])
            elif truths or row.keys() != columns.keys():
                row = {name: row.get(name) for name in columns}
                for _number, name in truths:
                    row[name] = _truth(row[name])
            yield row
    except GeneratorExit:
        raise
    except Exception as error:
        _fail(plpy, error)
    wrapper.end_scan()


def _truth(value: t.Any) -> t.Any:
    return value.lower() in _TRUE if isinstance(value, str) else value


def write(plpy: t.Any, memory: dict[str, t.Any], trigger: dict[str, t.Any], table: str) -> str:
    """What INSERT, UPDATE or DELETE on a view does: a row for the outbox. The wrapper sees it when the transaction ends."""
    wrapper, _columns = _wrapper(plpy, memory, table)
    rowid = wrapper.rowid_column
    if rowid is None:
        plpy.error("%s cannot be written" % table)
    operation = trigger["event"].lower()
    old = {} if operation == "insert" else trigger["old"]
    values = [
        table, operation, json.dumps(old.get(rowid), default=_as_text), json.dumps(None if operation == "delete" else trigger["new"], default=_as_text),
    ]  # fmt: skip
    plan = memory.get("pgfleet_fdw outbox") or memory.setdefault("pgfleet_fdw outbox", plpy.prepare(_PUT, ["text", "text", "jsonb", "jsonb"]))
    plpy.execute(plan, values)
    return "OK"


def apply(plpy: t.Any, memory: dict[str, t.Any], trigger: dict[str, t.Any]) -> None:
    """At the end of a transaction, for each row of the outbox in their order. An error takes the transaction back, as far as it is local."""
    row = trigger["new"]
    wrapper, _columns = _wrapper(plpy, memory, row["relation"])
    rowid, values = json.loads(row["row_id"] or "null"), json.loads(row["new"] or "null")
    transaction = memory[_TRANSACTION]
    try:
        if row["operation"] == "update":
            wrapper.update(rowid, values)
        elif row["operation"] == "delete":
            wrapper.delete(rowid)
        elif getattr(wrapper, "modify_batch_size", 1) > 1:
            wrapper.bulk_insert([values])
        else:
            wrapper.insert(values)
        if not any(one is wrapper for one in transaction["written"]):
            transaction["written"].append(wrapper)
        # Rows of other transactions cannot be seen, and those of this one go one by one, in their order. The largest number is found by the index.
        if plpy.execute(_TAKE % {"id": row["id"]})[0]["last"] == row["id"]:
            written, transaction["written"] = transaction["written"], []
            for name in ("end_modify", "pre_commit"):
                for one in written:
                    _call(one, name)
    except Exception as error:
        _fail(plpy, error)


def _call(wrapper: t.Any, name: str, *arguments: t.Any) -> None:
    """Classes that do not inherit from a base class may leave out what they do not need."""
    method = getattr(wrapper, name, None)
    if method is not None:
        method(*arguments)


def _meet(plpy: t.Any, memory: dict[str, t.Any], wrapper: t.Any, found: t.Mapping[str, t.Any]) -> None:
    """Tell a wrapper of the transaction that it meets, and before that those of an earlier one how it has ended: nobody is called when it does."""
    earlier = memory.get(_TRANSACTION)
    if earlier is None or earlier["began"] != found["began"]:
        memory[_TRANSACTION] = {"began": found["began"], "xid": None, "met": [], "written": []}
        if earlier is not None:
            _tell_the_end(plpy, earlier)
    now = memory[_TRANSACTION]
    now["xid"] = now["xid"] or found["xid"]
    if not any(one is wrapper for one in now["met"]):
        now["met"].append(wrapper)
        try:
            _call(wrapper, "begin", int(found["isolation"] == "serializable"))
        except Exception as error:
            _fail(plpy, error)


def _tell_the_end(plpy: t.Any, transaction: t.Mapping[str, t.Any]) -> None:
    # Who has only read has no number, and nothing that a rollback could take back.
    status = plpy.execute("SELECT pg_xact_status('%s'::xid8) AS status" % transaction["xid"])[0]["status"] if transaction["xid"] else None
    name = "commit" if status == "committed" else "rollback"
    for one in transaction["met"]:
        try:
            _call(one, name)
        except Exception as error:  # that transaction has ended, and this one is another
            log("%s of %s failed, after the transaction had ended: %s" % (name, type(one).__name__, error), logging.WARNING)


def _as_text(value: t.Any) -> str:
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def _wrapper(plpy: t.Any, memory: dict[str, t.Any], table: str, meets: bool = True) -> tuple[t.Any, dict[str, t.Any]]:
    """The wrapper of a foreign table, and its columns; made anew when the catalogs say something else than before. ``meets``: it is told of the transaction."""
    send_messages_to(lambda level, message, hint, detail: _say(plpy, level, message, hint, detail))
    plan = memory.get("pgfleet_fdw plan") or memory.setdefault("pgfleet_fdw plan", plpy.prepare(_TABLE, ["text"]))
    found = list(plpy.execute(plan, [table]))
    if not found:
        plpy.error("%s is no foreign table" % table)
    row = dict(found[0])
    key, slot = [row[name] for name in ("server", "table", "mapping", "columns")], "pgfleet_fdw " + table
    if slot not in memory or memory[slot][0] != key:
        # In this order one wins over the other, as with Multicorn.
        parts = {part: json.loads(row[part] or "{}") for part in ("table", "server", "mapping")}
        columns = {one[0]: multicorn_names.ColumnDefinition(*one[:5], options=one[5]) for one in json.loads(row["columns"] or "[]")}
        try:
            found_class = find_class(parts["server"].pop("wrapper", ""))
            memory[slot] = (key, found_class(_options(found_class, parts), columns), columns)
        except Exception as error:
            _fail(plpy, error)
    _key, wrapper, columns = memory[slot]
    if meets:
        _meet(plpy, memory, wrapper, row)
    return wrapper, columns


def _options(found: type, parts: t.Mapping[str, t.Mapping[str, str]]) -> dict[str, str]:
    """All options for a class; later parts win. Raises WrapperError for one that its part may not have, which Multicorn cannot tell."""
    if issubclass(found, Wrapper):
        check_scopes(found.options, parts)
    return {name: value for part in parts.values() for name, value in part.items()}


def offer(plpy: t.Any, setting: str) -> None:
    """What a class offers for import: reads what is asked from a setting, as JSON, and leaves the CREATE FOREIGN TABLE statements there."""
    send_messages_to(lambda level, message, hint, detail: _say(plpy, level, message, hint, detail))
    asked = json.loads(plpy.execute("SELECT current_setting(%s) AS asked" % plpy.quote_literal(setting))[0]["asked"])
    found = plpy.execute(plpy.prepare(_SERVER, ["text"]), [asked["server"]])[0]
    parts = {part: json.loads(found[part] or "{}") for part in ("server", "mapping")}
    parts["server"].pop("wrapper", None)
    try:
        found_class = find_class(asked["class"])
        tables = found_class.import_schema(asked["schema"], _options(found_class, parts), asked["options"], asked["restriction"], asked["names"])
        statements = [table.to_statement(asked["into"], asked["server"]) for table in tables]
    except Exception as error:
        _fail(plpy, error)
    plpy.execute(plpy.prepare("SELECT set_config($1, $2, true)", ["text", "text"]), [setting, json.dumps(statements)])


def try_table(plpy: t.Any, setting: str) -> None:
    """Make the wrapper of a table and scan nothing. What is asked comes by a setting, and the problem, or null, goes there."""
    table = json.loads(plpy.execute("SELECT current_setting(%s) AS asked" % plpy.quote_literal(setting))[0]["asked"])["table"]
    problem = None
    try:
        _wrapper(plpy, {}, table, meets=False)
    except Exception as error:
        problem = str(error)
    plpy.execute(plpy.prepare("SELECT set_config($1, $2, true)", ["text", "text"]), [setting, json.dumps(problem)])


def find_class(path: str) -> t.Any:
    """The class that a server's option ``wrapper`` names. Raises WrapperError."""
    module, dot, name = path.rpartition(".")
    if not dot:
        raise WrapperError('the option "wrapper" of the server is "%s"' % path, hint="It names a class: package.module.Class")
    multicorn_names.provide()
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise WrapperError("the wrapper %s cannot be loaded: %s" % (path, error), hint="Install its package on every node of the cluster") from error
    if not (isinstance(found, type) and hasattr(found, "execute")):
        raise WrapperError("%s is no wrapper" % path, hint="It must be a class with the method execute")
    return found


def _say(plpy: t.Any, level: str, message: str, hint: str | None, detail: str | None) -> None:
    getattr(plpy, level)(message, **{key: value for key, value in (("hint", hint), ("detail", detail)) if value})


def _fail(plpy: t.Any, error: Exception) -> t.NoReturn:
    if getattr(error, "_is_multicorn_exception", False):
        given = {key: getattr(error, key, None) for key in ("hint", "detail")}
        plpy.error(str(error), **{key: value for key, value in given.items() if value})
    raise error
