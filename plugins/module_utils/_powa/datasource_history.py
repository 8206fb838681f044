# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The tables of a generated datasource: how they are made, and how history is carried into another shape.

A row of the history is the samples of one server and one set of labels over one time range, as PoWA keeps its own:
``(srvid, labels ..., coalesce_range, records[])``, where a record is ``(ts, metrics ...)``.
"""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from .._errors import Refused
from .._plan import Plan
from .._sql.connection import Session, sql
from .datasource import MARK, Column, Declaration, Names, label_columns, quote, record_columns, transient_columns
from .datasource_catalog import FoundTable, lock_tables

_OWN_LABELS = ("srvid", "coalesce_range", "records")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Columns of the stored history with their types; metrics in the order of the record."""

    labels: t.Mapping[str, str]
    metrics: t.Mapping[str, str]

    @classmethod
    def read(cls, tables: t.Mapping[str, FoundTable], names: Names) -> Layout | None:
        """As it is stored, or None where nothing is."""
        if names.history not in tables or names.record not in tables:
            return None
        return cls(
            {name: type_ for name, type_, _required in tables[names.history].columns if name not in _OWN_LABELS},
            {name: type_ for name, type_, _required in tables[names.record].columns if name != "ts"},
        )

    @classmethod
    def wanted(cls, declaration: Declaration) -> Layout:
        return cls({column.name: column.type for column in declaration.labels}, {column.name: column.type for column in declaration.metrics})

    @property
    def columns(self) -> dict[str, str]:
        return {**self.labels, **self.metrics}

    def same_as(self, other: Layout) -> bool:
        # A record is written by position, labels are written by name.
        return self.labels == other.labels and list(self.metrics.items()) == list(other.metrics.items())


def retyped(live: Layout, declaration: Declaration) -> list[tuple[str, str]]:
    """(old type, new type) of the columns that are in both."""
    return sorted({(live.columns[column.name], column.type) for column in declaration.columns if column.name in live.columns})


def transient_table(declaration: Declaration, names: Names) -> FoundTable:
    """The transient table as it should be found."""
    columns = (("srvid", "integer", True), ("ts", "timestamp with time zone", True), *((column.name, column.type, False) for column in declaration.yielded))
    return FoundTable(names.transient, False, True, columns, MARK)


def describe_changes(live: Layout, wanted: Layout) -> list[str]:
    """What differs, in words."""
    changes = ["add %s %s" % (name, type_) for name, type_ in wanted.columns.items() if name not in live.columns]
    changes += ["drop %s" % name for name in live.columns if name not in wanted.columns]
    for name, type_ in wanted.columns.items():
        if name in live.columns and live.columns[name] != type_:
            changes.append("change %s from %s to %s" % (name, live.columns[name], type_))
        if name in live.columns and (name in live.labels) != (name in wanted.labels):
            changes.append("make %s a %s" % (name, "label" if name in wanted.labels else "metric"))
    return changes or ["change the order of the columns"]


def plan_tables(
    plan: Plan,
    session: Session,
    schema: str,
    declaration: Declaration,
    tables: t.Mapping[str, FoundTable],
    convertible: t.Mapping[tuple[str, str], bool],
    purge: bool,
) -> bool:
    """Steps that make or change the tables. Returns whether there are any. Raises Refused where history would be lost."""
    names = Names(declaration.name)
    tools = Tables(session, schema, declaration)
    live, wanted = Layout.read(tables, names), Layout.wanted(declaration)
    steps = len(plan.steps)
    if live is None:
        if names.record in tables or names.current in tables:
            raise Refused(
                "of the tables of %s only a part is there" % declaration.name,
                expected="%s, %s and %s" % (names.record, names.current, names.history),
                action="Restore what is missing, or remove the rest with state=absent and purge=true",
            )
        plan.add(
            "create the tables of %s" % declaration.name,
            tools.create_storage,
            subject="tables of %s" % declaration.name,
            before="",
            after=_show(wanted),
        )
    elif not live.same_as(wanted) or names.current not in tables:
        changes = describe_changes(live, wanted)
        _refuse_loss(declaration, live, wanted, convertible, purge)
        plan.add(
            "migrate the history of %s: %s" % (declaration.name, ", ".join(changes)),
            functools.partial(tools.migrate, live, tuple(tables), purge),
            subject="tables of %s" % declaration.name,
            before=_show(live),
            after=_show(wanted),
        )
    transient = tables.get(names.transient)
    expected = transient_table(declaration, names)
    if transient is None or transient.columns != expected.columns or not transient.unlogged:
        plan.add(
            "%s the transient table of %s" % ("create" if transient is None else "make anew", declaration.name),
            tools.create_transient,
            subject="table %s" % names.transient,
            before="".join("%s %s\n" % column[:2] for column in transient.columns) if transient else "",
            after="".join("%s %s\n" % column[:2] for column in expected.columns),
        )
    return len(plan.steps) > steps


def _refuse_loss(declaration: Declaration, live: Layout, wanted: Layout, convertible: t.Mapping[tuple[str, str], bool], purge: bool) -> None:
    for name, type_ in wanted.columns.items():
        before = live.columns.get(name)
        if before is not None and not convertible[(before, type_)]:
            raise Refused(
                'column "%s" of %s has a history of type %s, which cannot become %s' % (name, declaration.name, before, type_),
                action="Give the column of the new type a name of its own and keep the old one, or drop it with purge=true",
            )
    lost = [name for name in live.columns if name not in wanted.columns]
    if lost and not purge:
        raise Refused(
            "the declaration of %s no longer has %s, whose history would be lost" % (declaration.name, ", ".join(lost)),
            action="Keep the column in the declaration (the query may yield NULL), or agree with purge=true",
        )


def _show(layout: Layout) -> str:
    lines = ["label %s %s\n" % item for item in sorted(layout.labels.items())]
    return "".join(lines + ["metric %s %s\n" % item for item in layout.metrics.items()])


class Tables:
    """Statements on the tables of one datasource."""

    def __init__(self, session: Session, schema: str, declaration: Declaration) -> None:
        self.session = session
        self.schema = schema
        self.declaration = declaration
        self.names = Names(declaration.name)

    def _run(self, template: str, **objects: str) -> None:
        """Execute a statement; {transient}, {record}, {current}, {history} and names in ``objects`` become qualified names.

        What else is in the template comes from our own generator: checked names, and types as the server writes them.
        """
        self.session.execute(self._compose(template, objects))

    def _compose(self, template: str, objects: t.Mapping[str, str]) -> t.Any:
        names = {"transient": self.names.transient, "record": self.names.record, "current": self.names.current, "history": self.names.history, **objects}
        qualified = {key: sql.Identifier(self.schema, name) for key, name in names.items() if "{%s}" % key in template}
        return sql.SQL(template).format(servers=sql.Identifier(self.schema, "powa_servers"), mark=sql.Literal(MARK), **qualified)

    def create_storage(self) -> None:
        labels = _plain(label_columns(self.declaration))
        key = "srvid integer NOT NULL REFERENCES {servers} (id) ON UPDATE CASCADE ON DELETE CASCADE%s" % labels
        self._run("CREATE TYPE {record} AS (%s)" % _plain(record_columns(self.declaration)))
        self._run("COMMENT ON TYPE {record} IS {mark}")
        self._run("CREATE TABLE {current} (%s, record {record} NOT NULL)" % key)
        self._run("CREATE INDEX ON {current} (srvid)")
        self._run("CREATE TABLE {history} (%s, coalesce_range tstzrange NOT NULL, records {record}[] NOT NULL)" % key)
        # By the operator classes of btree_gist, which PoWA requires: serves the purge and the reading of a time range.
        self._run("CREATE INDEX ON {history} USING gist (srvid, coalesce_range)")
        for table in ("current", "history"):
            self._run("COMMENT ON TABLE {%s} IS {mark}" % table)

    def create_transient(self) -> None:
        # Rows in it live for the time of one snapshot.
        self._run("DROP TABLE IF EXISTS {transient}")
        self._run("CREATE UNLOGGED TABLE {transient} (%s)" % _plain(transient_columns(self.declaration)))
        self._run("COMMENT ON TABLE {transient} IS {mark}")

    def migrate(self, live: Layout, existing: t.Collection[str], purge: bool) -> None:
        """Make the tables anew and fill them with everything the old ones hold. ``existing`` are the names of all that are there."""
        lock_tables(self.session, self.schema, [name for name in self.names.tables if name in existing])
        with_current = self.names.current in existing
        old = {"old_record": self._old("record"), "old_current": self._old("current"), "old_history": self._old("history")}
        extras = self._extras([self.names.current, self.names.history])
        self._run("ALTER TYPE {record} RENAME TO %s" % quote(old["old_record"]))
        self._run("ALTER TABLE {history} RENAME TO %s" % quote(old["old_history"]))
        if with_current:
            self._run("ALTER TABLE {current} RENAME TO %s" % quote(old["old_current"]))
        if not purge:
            self._refuse_inexact(live, old, with_current)
        self.create_storage()
        labels = "".join(", " + quote(column.name) for column in self.declaration.labels)
        if with_current:
            self._run(
                "INSERT INTO {current} (srvid%s, record) SELECT o.srvid%s, ROW((o.record).ts%s)::{record} FROM {old_current} o"
                % (labels, self._values(live, self.declaration.labels, "(o.record)"), self._values(live, self.declaration.metrics, "(o.record)")),
                **old,
            )
        # One row of the old history may become several, as labels change.
        self._run(
            "INSERT INTO {history} (srvid%s, coalesce_range, records)"
            " SELECT s.srvid%s, tstzrange(min((s.record).ts), max((s.record).ts), '[]'), array_agg(s.record ORDER BY (s.record).ts)"
            " FROM (SELECT o._row, o.srvid%s, ROW(r.ts%s)::{record} AS record"
            " FROM (SELECT row_number() OVER () AS _row, h.* FROM {old_history} h) o CROSS JOIN LATERAL unnest(o.records) AS r) s GROUP BY s._row, s.srvid%s"
            % (
                labels,
                "".join(", s.%s" % quote(column.name) for column in self.declaration.labels),
                self._values(live, self.declaration.labels, "r", named=True),
                self._values(live, self.declaration.metrics, "r"),
                "".join(", s.%s" % quote(column.name) for column in self.declaration.labels),
            ),
            **old,
        )
        if with_current:
            self._run("DROP TABLE {old_current}", **old)
        self._run("DROP TABLE {old_history}", **old)
        self._run("DROP TYPE {old_record}", **old)
        for statement in extras:
            self.session.execute(statement)

    def _old(self, what: str) -> str:
        # No datasource can have objects of this name: theirs begin with a letter behind powa_.
        return "powa__old_%s_%s" % (self.declaration.name, what)

    def _extras(self, tables: t.Sequence[str]) -> list[t.Any]:
        """Statements that give the new tables what somebody gave the old ones: indexes, storage parameters, owner. Rights are granted elsewhere."""
        rows = self.session.rows(
            "SELECT c.oid, c.relname AS name, r.rolname AS owner, r.rolname <> current_user AS foreign_owner, array_to_string(c.reloptions, ', ') AS options,"
            " EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL) AS column_rights,"
            " EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal) AS triggers"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner"
            " WHERE n.nspname = %s AND c.relname = ANY (%s)",
            [self.schema, list(tables)],
        )
        found: list[t.Any] = []
        for row in rows:
            if row["column_rights"] or row["triggers"]:
                raise Refused(
                    "%s has %s that somebody made" % (row["name"], "rights on columns" if row["column_rights"] else "a trigger"),
                    action="Remove them, as the table is made anew, and add them again afterwards",
                )
            for index in self.session.rows(
                "SELECT pg_get_indexdef(indexrelid) AS statement FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_am m ON m.oid = i.relam"
                " WHERE indrelid = %s AND NOT (indnatts = 1 AND amname = 'btree' AND indexprs IS NULL AND indpred IS NULL AND indkey[0] = 1)"
                " AND NOT (indnatts = 2 AND amname = 'gist' AND indkey[0] = 1 AND indpred IS NULL)",
                [row["oid"]],
            ):
                found.append(index["statement"])
            table = sql.Identifier(self.schema, row["name"])
            if row["options"]:
                found.append(sql.SQL("ALTER TABLE {} SET ({})").format(table, sql.SQL(row["options"])))
            if row["foreign_owner"]:
                found.append(sql.SQL("ALTER TABLE {} OWNER TO {}").format(table, sql.Identifier(row["owner"])))
        return found

    def _refuse_inexact(self, live: Layout, old: t.Mapping[str, str], with_current: bool) -> None:
        """Values that would not come back from the new type are values lost."""
        for column in self.declaration.columns:
            before = live.columns.get(column.name)
            if before in (None, column.type):
                continue
            value = "o.%s" % quote(column.name) if column.name in live.labels else "%%s.%s" % quote(column.name)
            test = " WHERE (%s::%s)::%s IS DISTINCT FROM %s"
            count = 0
            for source, record in (("{old_history} o CROSS JOIN LATERAL unnest(o.records) AS r", "r"), ("{old_current} o", "(o.record)")):
                if record != "r" and not with_current:
                    continue
                expression = value.replace("%s", record)
                template = "SELECT count(*) FROM " + source + _plain(test % (expression, column.type, before, expression))
                count += self.session.value(self._compose(template, old))
            if count:
                raise Refused(
                    "%d values of %s would not be the same as %s instead of %s" % (count, column.name, column.type, before),
                    action="Give the column of the new type a name of its own and keep the old one, or agree with purge=true",
                )

    @staticmethod
    def _values(live: Layout, columns: t.Iterable[Column], record: str, named: bool = False) -> str:
        """Expressions for columns of the declaration, from a row ``o`` and its record."""
        found = []
        for column in columns:
            name = quote(column.name)
            value = "o.%s" % name if column.name in live.labels else "%s.%s" % (record, name) if column.name in live.metrics else "NULL"
            found.append(_plain(", %s::%s%s" % (value, column.type, " AS %s" % name if named else "")))
        return "".join(found)


def _plain(text: str) -> str:
    """Text that is no template: the name of a type may hold braces."""
    return text.replace("{", "{{").replace("}", "}}")
