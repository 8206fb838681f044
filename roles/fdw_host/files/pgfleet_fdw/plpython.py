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
import typing as t

from . import multicorn_names
from .errors import WrapperError, send_messages_to
from .tables import check_width

_SERVER = """
SELECT
  (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(s.srvoptions)) AS server,
  (SELECT json_object_agg(o.option_name, o.option_value) FROM (
     SELECT m.umoptions FROM pg_user_mapping m LEFT JOIN pg_roles r ON r.oid = m.umuser
     WHERE m.umserver = s.oid AND (m.umuser = 0 OR r.rolname = session_user) ORDER BY m.umuser = 0 LIMIT 1) AS u,
     pg_options_to_table(u.umoptions) AS o) AS mapping
FROM pg_foreign_server s WHERE s.srvname = $1
"""
_BOOLEAN = 16
_PUT = "INSERT INTO pgfleet_fdw.outbox (relation, operation, row_id, new) VALUES ($1, $2, $3, $4)"
_TRUE = ("t", "true", "on", "yes", "1")
_TABLE = """
SELECT
  (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(s.srvoptions)) AS server,
  (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(f.ftoptions)) AS "table",
  (SELECT json_object_agg(o.option_name, o.option_value) FROM (
     SELECT m.umoptions FROM pg_user_mapping m LEFT JOIN pg_roles r ON r.oid = m.umuser
     WHERE m.umserver = s.oid AND (m.umuser = 0 OR r.rolname = session_user) ORDER BY m.umuser = 0 LIMIT 1) AS u,
     pg_options_to_table(u.umoptions) AS o) AS mapping,
  (SELECT json_agg(json_build_array(a.attname, a.atttypid::bigint, a.atttypmod, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, NULL),
     (SELECT json_object_agg(option_name, option_value) FROM pg_options_to_table(a.attfdwoptions))) ORDER BY a.attnum)
   FROM pg_attribute a WHERE a.attrelid = f.ftrelid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = $1::regclass
"""


def scan(plpy: t.Any, memory: dict[str, t.Any], table: str, quals: str | None = None) -> t.Iterator[dict[str, t.Any]]:
    """The rows of a foreign table. ``quals``: a JSON object, column -> value, list of values or null."""
    wrapper, columns = _wrapper(plpy, memory, table)
    conditions = [
        multicorn_names.Qual(name, ("=", True) if isinstance(value, list) else "=", value) for name, value in json.loads(quals or "{}").items()
    ]
    for condition in conditions:
        if condition.field_name not in columns:
            plpy.error('%s has no column "%s"' % (table, condition.field_name))
    rows = _rows(plpy, wrapper, columns, conditions)
    # What a wrapper finds wrong it mostly finds here, where PostgreSQL still shows the message as it is.
    first = list(itertools.islice(rows, 1))
    return itertools.chain(first, rows)


def _rows(plpy: t.Any, wrapper: t.Any, columns: dict[str, t.Any], conditions: list[multicorn_names.Qual]) -> t.Iterator[t.Any]:
    # PL/Python takes any text for true.
    truths = [(number, name) for number, (name, column) in enumerate(columns.items()) if column.type_oid == _BOOLEAN]
    try:
        for row in wrapper.execute(conditions, set(columns)) or ():
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
    try:
        if row["operation"] == "insert":
            wrapper.insert(values)
        elif row["operation"] == "update":
            wrapper.update(rowid, values)
        else:
            wrapper.delete(rowid)
        touched = memory.setdefault("pgfleet_fdw touched", [])
        if wrapper not in touched:
            touched.append(wrapper)
        # The rows of other transactions cannot be seen, and those of this one go one by one.
        if plpy.execute("WITH gone AS (DELETE FROM pgfleet_fdw.outbox WHERE id = %d) SELECT count(*) AS n FROM pgfleet_fdw.outbox" % row["id"])[0]["n"] == 1:
            memory["pgfleet_fdw touched"] = []
            for one in touched:
                one.pre_commit()
    except Exception as error:
        memory["pgfleet_fdw touched"] = []
        _fail(plpy, error)


def _as_text(value: t.Any) -> str:
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def _wrapper(plpy: t.Any, memory: dict[str, t.Any], table: str) -> tuple[t.Any, dict[str, t.Any]]:
    """The wrapper of a foreign table, and its columns; made anew when the catalogs say something else than before."""
    send_messages_to(lambda level, message, hint, detail: _say(plpy, level, message, hint, detail))
    plan = memory.get("pgfleet_fdw plan") or memory.setdefault("pgfleet_fdw plan", plpy.prepare(_TABLE, ["text"]))
    found = list(plpy.execute(plan, [table]))
    if not found:
        plpy.error("%s is no foreign table" % table)
    row = dict(found[0])
    key, slot = json.dumps(row, sort_keys=True), "pgfleet_fdw " + table
    if slot in memory and memory[slot][0] == key:
        return memory[slot][1:]
    options: dict[str, str] = {}
    # In this order one wins over the other, as with Multicorn.
    for part in ("table", "server", "mapping"):
        options.update(json.loads(row[part] or "{}"))
    path = json.loads(row["server"] or "{}").get("wrapper", "")
    options.pop("wrapper", None)
    columns = {one[0]: multicorn_names.ColumnDefinition(*one[:5], options=one[5]) for one in json.loads(row["columns"])}
    try:
        wrapper = find_class(path)(options, columns)
    except Exception as error:
        _fail(plpy, error)
    memory[slot] = (key, wrapper, columns)
    return wrapper, columns


def offer(plpy: t.Any, setting: str) -> None:
    """What a class offers for import: reads what is asked from a setting, as JSON, and leaves the CREATE FOREIGN TABLE statements there."""
    send_messages_to(lambda level, message, hint, detail: _say(plpy, level, message, hint, detail))
    asked = json.loads(plpy.execute("SELECT current_setting(%s) AS asked" % plpy.quote_literal(setting))[0]["asked"])
    found = plpy.execute(plpy.prepare(_SERVER, ["text"]), [asked["server"]])[0]
    given: dict[str, str] = {}
    for part in ("server", "mapping"):
        given.update(json.loads(found[part] or "{}"))
    given.pop("wrapper", None)
    try:
        tables = find_class(asked["class"]).import_schema(asked["schema"], given, asked["options"], asked["restriction"], asked["names"])
        statements = [table.to_statement(asked["into"], asked["server"]) for table in tables]
    except Exception as error:
        _fail(plpy, error)
    plpy.execute(plpy.prepare("SELECT set_config($1, $2, true)", ["text", "text"]), [setting, json.dumps(statements)])


def try_table(plpy: t.Any, setting: str) -> None:
    """Make the wrapper of a table and scan nothing. What is asked comes by a setting, and the problem, or null, goes there."""
    table = json.loads(plpy.execute("SELECT current_setting(%s) AS asked" % plpy.quote_literal(setting))[0]["asked"])["table"]
    problem = None
    try:
        _wrapper(plpy, {}, table)
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
