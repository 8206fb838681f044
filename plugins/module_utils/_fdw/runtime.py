# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What runs wrappers in Python: Multicorn's C extension, or PL/Python where that is not installed."""

from __future__ import annotations

import dataclasses
import json
import typing as t

from .._errors import Refused
from .._sql.connection import Session, sql
from .catalog import FoundWrapper

MULTICORN, PLPYTHON, AUTO = "multicorn", "plpython", "auto"
SCHEMA = "pgfleet_fdw"
"""Where guards and the outbox are."""
EXTENSIONS = {MULTICORN: "multicorn", PLPYTHON: "plpython3u"}
# What a transaction-scoped setting is called by which the server's Python is asked.
_SETTING = "pgfleet_fdw.asked"

# Runs in the server. It is always the same text: what is asked comes by a setting, and the answer goes there.
_QUESTION = """
import importlib, json, os, sys
asked = json.loads(plpy.execute("SELECT current_setting('%(setting)s') AS asked")[0]["asked"])
try:
    # Packages may have been written for Multicorn, whose names the host gives them.
    from pgfleet_fdw import multicorn_names
    multicorn_names.provide()
except ImportError:
    pass
answer = {"version": sys.version.split()[0], "prefix": sys.prefix, "path": [p for p in sys.path if p], "packages": {}, "classes": {}}
for name in asked["packages"]:
    found = {"file": None, "changed": None, "error": None}
    try:
        module = importlib.import_module(name)
        found["file"] = getattr(module, "__file__", None)
        top = os.path.dirname(found["file"]) if found["file"] and os.path.basename(found["file"]) == "__init__.py" else None
        files = [os.path.join(directory, one) for directory, _d, ones in os.walk(top) for one in ones if one.endswith(".py")] if top else [found["file"]]
        found["changed"] = max(os.stat(one).st_mtime for one in files if one)
    except BaseException as error:
        found["error"] = "%%s: %%s" %% (type(error).__name__, error)
    answer["packages"][name] = found
for path in asked["classes"]:
    module, dot, name = path.rpartition(".")
    try:
        if not isinstance(getattr(importlib.import_module(module), name), type):
            raise TypeError("%%s is no class" %% path)
        answer["classes"][path] = None
    except BaseException as error:
        answer["classes"][path] = "%%s: %%s" %% (type(error).__name__, error)
plpy.execute(plpy.prepare("SELECT set_config('%(setting)s', $1, true)", ["text"]), [json.dumps(answer)])
""" % {"setting": _SETTING}


@dataclasses.dataclass(frozen=True)
class Extension:
    """``installed``: its files are on this host. ``created``: its version in this database, or None."""

    name: str
    installed: bool
    created: t.Optional[str]
    default: t.Optional[str]


def read_extensions(session: Session) -> dict[str, Extension]:
    """By the runtime that needs them."""
    rows = session.rows("SELECT name, default_version, installed_version FROM pg_available_extensions WHERE name = ANY(%s)", [list(EXTENSIONS.values())])
    found = {row["name"]: Extension(row["name"], True, row["installed_version"], row["default_version"]) for row in rows}
    return {runtime: found.get(name) or Extension(name, False, None, None) for runtime, name in EXTENSIONS.items()}


def choose(wanted: str, extensions: t.Mapping[str, Extension], server_version: int) -> str:
    """The runtime to be used. ``server_version`` as PostgreSQL counts. Raises Refused where its files are not on the host."""
    candidates = [MULTICORN, PLPYTHON] if wanted == AUTO else [wanted]
    for runtime in candidates:
        if extensions[runtime].installed:
            return runtime
    major = server_version // 10000
    packages = {
        MULTICORN: "Multicorn 2 of your own repository (Debian has none; what PyPI calls multicorn is another project)",
        PLPYTHON: "postgresql-plpython3-%d of Debian" % major,
    }
    raise Refused(
        "this server has not the files of %s" % " or ".join("the extension %s" % EXTENSIONS[runtime] for runtime in candidates),
        action="Install %s on every node of the cluster" % ", or ".join(packages[runtime] for runtime in candidates),
    )


def can_ask(session: Session) -> bool:
    """Whether the server's Python can be asked: it is there, and this is a superuser, which an untrusted language wants."""
    return bool(
        session.value("SELECT count(*) FROM pg_language l, pg_roles r WHERE l.lanname = %s AND r.rolname = current_user AND r.rolsuper", [EXTENSIONS[PLPYTHON]])
    )


def ask_python(session: Session, packages: t.Sequence[str] = (), classes: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """What the server's own Python says of itself, and whether it can import packages and classes. By PL/Python; also on a standby, and in check mode.

    Keys: version, prefix, path; packages and classes by name. A package has file, changed (seconds since 1970) and error, a class its error or None.
    """
    question = sql.SQL("DO LANGUAGE plpython3u {}").format(sql.Literal(_QUESTION))
    with session.rehearsal():
        session.execute("SELECT set_config(%s, %s, true)", [_SETTING, json.dumps({"packages": list(packages), "classes": list(classes)})])
        session.execute(question)
        return json.loads(session.value("SELECT current_setting(%s)", [_SETTING]))


def ask_import(session: Session, asked: t.Mapping[str, t.Any]) -> list[str]:
    """The statements by which a class answers IMPORT FOREIGN SCHEMA. Keys of ``asked``: class, schema, options, restriction, names, into, server."""
    code = "from pgfleet_fdw import plpython\nplpython.offer(plpy, '%s')" % _SETTING
    with session.rehearsal():
        session.execute("SELECT set_config(%s, %s, true)", [_SETTING, json.dumps(asked)])
        session.execute(sql.SQL("DO LANGUAGE plpython3u {}").format(sql.Literal(code)))
        return json.loads(session.value("SELECT current_setting(%s)", [_SETTING]))


def ask_table(session: Session, table: str) -> str | None:
    """Why the class of a foreign table, given as SQL writes it, does not take its options and columns; None where it does. By PL/Python."""
    code = "from pgfleet_fdw import plpython\nplpython.try_table(plpy, '%s')" % _SETTING
    with session.rehearsal():
        session.execute("SELECT set_config(%s, %s, true)", [_SETTING, json.dumps({"table": table})])
        session.execute(sql.SQL("DO LANGUAGE plpython3u {}").format(sql.Literal(code)))
        return json.loads(session.value("SELECT current_setting(%s)", [_SETTING]))


def of_wrapper(wrapper: FoundWrapper) -> str | None:
    """What runs the classes of a foreign-data wrapper; None where none in Python are behind it."""
    if wrapper.handler is not None and "multicorn_handler" in wrapper.handler:
        return MULTICORN
    guarded = wrapper.handler is None and wrapper.validator is not None and wrapper.validator.startswith("%s." % SCHEMA)
    return PLPYTHON if guarded else None
