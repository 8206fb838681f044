# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What is wrong with a datasource, each fault with what PoWA would do about it. Without I/O.

PoWA accepts any registration. Most faults show as errors of each snapshot, some only after ``powa_coalesce`` snapshots,
some stop the collection of other servers, and some never show: rows are stored twice and tables grow for ever.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._errors import Refused
from .datasource_catalog import FoundFunction, FoundTable

# With _tmp at the end a name must stay within the 63 bytes of PostgreSQL.
SOURCE_LENGTH = 59
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*\Z")
OPERATIONS = ("snapshot", "aggregate", "purge", "reset", "unregister")
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclasses.dataclass(frozen=True)
class Fault:
    """``check`` is its short name in the result; ``found`` and ``action`` are sentences."""

    check: str
    found: str
    action: str


def refuse(name: str, faults: t.Sequence[Fault]) -> None:
    """Raises Refused with all faults, if there are any."""
    if not faults:
        return
    texts = ["%s. %s." % (fault.found.rstrip("."), fault.action.rstrip(".")) for fault in faults]
    shown = texts[0] if len(texts) == 1 else " ".join("(%d) %s" % pair for pair in enumerate(texts, 1))
    raise Refused(
        'the datasource "%s" has %d fault%s: %s' % (name, len(faults), "" if len(faults) == 1 else "s", shown),
        faults=[dataclasses.asdict(fault) for fault in faults],
    )


def check_names(functions: t.Mapping[str, str]) -> list[Fault]:
    """The collector writes names without quotes."""
    return [
        Fault(
            "identifier",
            'functions.%s is "%s"' % (option, function),
            "The collector writes names without quotes: use lower-case letters, digits and underscores, at most %d of them" % SOURCE_LENGTH,
        )
        for option, function in functions.items()
        if not _PLAIN.match(function) or len(function) > SOURCE_LENGTH
    ]


def check_cleanup(query_cleanup: str | None, braces: bool) -> list[Fault]:
    """PoWA 5 formats this query: what else stands in braces ends the collector's thread."""
    if not query_cleanup or not braces:
        return []
    bad = [found.group(0) for found in _BRACES.finditer(query_cleanup) if found.group(0) not in ("{{", "}}") and not _PLAIN.match(found.group(1) or "")]
    if not bad:
        return []
    return [
        Fault(
            "query_cleanup",
            "functions.query_cleanup holds %s" % " and ".join(bad),
            "PoWA 5 puts the schema of an extension in the place of {extension}, and anything else in braces ends the worker of every server:"
            " double braces that are meant as such",
        )
    ]


def check_operation(option: str, name: str, schema: str, found: t.Sequence[FoundFunction]) -> list[Fault]:
    """A function of the repository: there, with one integer."""
    if any(one.inputs == ("integer",) for one in found):
        return []
    if any(one.inputs == () for one in found):
        advice = {
            "snapshot": "take the server's id as its only argument and move the rows of this server from the transient table to the history",
            "aggregate": "take the server's id as its only argument and work on the rows of this server only",
            "purge": "take the server's id as its only argument and delete rows of this server that are older than its retention in powa_servers",
        }.get(option, "take the server's id as its only argument")
        return [
            Fault(
                "powa3_form",
                "%s() in schema %s takes no argument: this is the form of PoWA 3, which knew only the local server" % (name, schema),
                "Since PoWA 4 it is called as %s(server id): let it %s; tables need a column srvid. Or declare columns and query, and have all of it generated"
                % (name, advice),
            )
        ]
    others = ", ".join(one.signature for one in found)
    what = "%s and no %s(integer)" % (others, name) if found else "no function %s" % name
    late = "" if option == "snapshot" else ", which comes late"
    return [
        Fault(
            "function_signature" if found else "function_missing",
            'functions.%s: schema "%s" of the repository has %s' % (option, schema, what),
            "Create %s(_srvid integer) there; PoWA would note an error at each %s%s" % (name, option, late),
        )
    ]


def check_transient(name: str, schema: str, table: FoundTable | None) -> list[Fault]:
    """The transient table by itself: there, with the server's id first."""
    if table is None or table.composite:
        return [
            Fault(
                "transient_missing",
                'schema "%s" of the repository has no table %s' % (schema, name),
                "Create it, unlogged: srvid integer NOT NULL, then the columns of the source function in their order."
                " Its name is that of the source function with _tmp",
            )
        ]
    if table.columns[:1] and table.columns[0][:2] == ("srvid", "integer"):
        return []
    first = "%s %s" % table.columns[0][:2] if table.columns else "no column"
    return [
        Fault(
            "transient_columns",
            "the first column of %s is %s" % (name, first),
            "It must be srvid integer NOT NULL: the collector copies the server's id and then what the source yields, by position",
        )
    ]


def check_columns(label: str, name: str, table: FoundTable, yielded: t.Sequence[tuple[str, str]], names_too: bool = False) -> list[Fault]:
    """Transient table against what the source function of a server yields, by position; ``names_too`` where both are generated."""
    expected = [(column, type_) for column, type_, _required in table.columns[1:]]
    if expected == list(yielded) or (not names_too and [type_ for _column, type_ in expected] == [type_ for _column, type_ in yielded]):
        return []
    return [
        Fault(
            "transient_columns",
            'the source on server "%s" yields (%s), and %s has (%s) behind srvid'
            % (label, _columns(yielded), name, _columns(expected)),
            "Make them the same, in number, order and type: the collector copies by position",
        )
    ]  # fmt: skip


def _columns(columns: t.Iterable[tuple[str, str]]) -> str:
    return ", ".join("%s %s" % column for column in columns)


def check_emptied(snapshot: str, transient: str, body: str) -> list[Fault]:
    """What can be said without calling the snapshot function: it names the table and deletes from none. The trial snapshot tells the rest."""
    if transient not in body.lower() or re.search(r"\b(delete\s+from|truncate)\b", body, re.I):
        return []
    return [not_emptied(snapshot, transient)]


def not_emptied(snapshot: str, transient: str) -> Fault:
    return Fault(
        "transient_not_emptied",
        "%s leaves the rows of its server in %s" % (snapshot, transient),
        "Delete them there: each snapshot would store all earlier ones again, and the table would grow for ever, without an error",
    )


def check_rights(table: FoundTable, wanted: t.Mapping[str | None, frozenset[str]]) -> list[Fault]:
    """Roles that may write PoWA's own transient tables need the same here."""
    need = frozenset(("SELECT", "INSERT", "DELETE"))
    public = table.rights.get(None, frozenset())
    writers = [role for role, rights in wanted.items() if "INSERT" in rights]
    lacking = sorted(role or "PUBLIC" for role in writers if not need <= (table.rights.get(role, frozenset()) | public))
    if not lacking:
        return []
    return [
        Fault(
            "collector_rights",
            "%s may write PoWA's own transient tables and not %s" % (", ".join(lacking), table.name),
            "GRANT SELECT, INSERT, UPDATE, DELETE on it, and on every table that the functions write, to %s" % ", ".join(lacking),
        )
    ]


def check_overloads(label: str, name: str, schema: str, found: t.Sequence[FoundFunction]) -> list[Fault]:
    """The source function on a server: there, with one integer, yielding rows."""
    fitting = [one for one in found if one.inputs == ("integer",)]
    if not fitting:
        what = "only %s" % ", ".join(one.signature for one in found) if found else "no function %s" % name
        return [
            Fault(
                "source_signature" if found else "source_missing",
                'server "%s" has %s in the schema "%s" of PoWA' % (label, what, schema),
                "Create %s(_srvid integer) there: run this module with side=remote on its primary, or do it by hand for functions of your own" % name,
            )
        ]
    if not fitting[0].returns_set:
        return [
            Fault(
                "source_not_set",
                '%s on server "%s" returns %s' % (fitting[0].signature, label, fitting[0].result),
                "Let it return SETOF record or TABLE(...): the collector reads rows from it",
            )
        ]
    return []


def failed_call(label: str, name: str, schema: str, message: str, sqlstate: str | None, seconds: float) -> Fault:
    """Why calling the source failed, by the server's own code of the error."""
    found = 'calling %s.%s(0) on server "%s" fails: %s' % (schema, name, label, message)
    if sqlstate == "42501":
        return Fault("source_privilege", found, "Grant the role of the collector what the function and everything it reads need")
    if sqlstate == "25006":
        return Fault("source_writes", found, "A source is read at each snapshot, on standbys too: let it only read")
    if sqlstate == "57014":
        return Fault("source_slow", found, "The whole snapshot waits for it: make it answer within %g s (source_timeout)" % seconds)
    if sqlstate in ("42883", "42P01", "3F000", "42704"):
        return Fault(
            "source_unqualified", found, "Create what is missing, or write its schema before its name: PoWA 5 calls the function with search_path = pg_catalog"
        )
    if sqlstate == "42702":
        return Fault("source_ambiguous", found, "Write the table's name before the column: a parameter or an OUT column of the function has the same name")
    return Fault("source_fails", found, "Mend the function; PoWA would note this at each snapshot")
