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
from .datasource import LABEL, MARK, Declaration, Names, label_columns, quote, record_columns, transient_columns
from .datasource_catalog import FoundTable

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
    columns = (("srvid", "integer", True), ("ts", "timestamp with time zone", True), *((column.name, column.type, False) for column in declaration.columns))
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
            functools.partial(tools.migrate, live, tuple(tables)),
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
        objects = {"transient": self.names.transient, "record": self.names.record, "current": self.names.current, "history": self.names.history, **objects}
        qualified = {key: sql.Identifier(self.schema, name) for key, name in objects.items() if "{%s}" % key in template}
        self.session.execute(sql.SQL(template).format(servers=sql.Identifier(self.schema, "powa_servers"), mark=sql.Literal(MARK), **qualified))

    def create_storage(self) -> None:
        labels = label_columns(self.declaration)
        key = "srvid integer NOT NULL REFERENCES {servers} (id) ON UPDATE CASCADE ON DELETE CASCADE%s" % labels
        self._run("CREATE TYPE {record} AS (%s)" % record_columns(self.declaration))
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
        self._run("CREATE UNLOGGED TABLE {transient} (%s)" % transient_columns(self.declaration))
        self._run("COMMENT ON TABLE {transient} IS {mark}")

    def lock(self, tables: t.Sequence[str]) -> None:
        """Keep snapshots out until the transaction ends."""
        for table in tables:
            self._run("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", table=table)

    def migrate(self, live: Layout, existing: t.Collection[str]) -> None:
        """Make the tables anew and fill them with everything the old ones hold. ``existing`` are the names of all that are there."""
        # In the order in which a snapshot takes them, so that it and this cannot wait for each other.
        self.lock([name for name in (self.names.transient, self.names.current, self.names.history) if name in existing])
        with_current = self.names.current in existing
        old = dict(zip(("old_record", "old_current", "old_history"), self._old_names()))
        self._run("ALTER TYPE {record} RENAME TO %s" % quote(old["old_record"]))
        self._run("ALTER TABLE {history} RENAME TO %s" % quote(old["old_history"]))
        if with_current:
            self._run("ALTER TABLE {current} RENAME TO %s" % quote(old["old_current"]))
        self.create_storage()
        labels = "".join(", " + quote(column.name) for column in self.declaration.labels)
        if with_current:
            self._run(
                "INSERT INTO {current} (srvid%s, record) SELECT o.srvid%s, ROW((o.record).ts%s)::{record} FROM {old_current} o"
                % (labels, self._values(live, True, "(o.record)"), self._values(live, False, "(o.record)")),
                **old,
            )
        # One row of the old history may become several, or several keep their ranges, as labels change.
        self._run(
            "INSERT INTO {history} (srvid%s, coalesce_range, records)"
            " SELECT s.srvid%s, tstzrange(min((s.record).ts), max((s.record).ts), '[]'), array_agg(s.record ORDER BY (s.record).ts)"
            " FROM (SELECT o.n, o.srvid%s, ROW(r.ts%s)::{record} AS record"
            " FROM (SELECT row_number() OVER () AS n, h.* FROM {old_history} h) o CROSS JOIN LATERAL unnest(o.records) AS r) s GROUP BY s.n, s.srvid%s"
            % (
                labels,
                "".join(", s.%s" % quote(column.name) for column in self.declaration.labels),
                self._values(live, True, "r", named=True),
                self._values(live, False, "r"),
                "".join(", s.%s" % quote(column.name) for column in self.declaration.labels),
            ),
            **old,
        )
        if with_current:
            self._run("DROP TABLE {old_current}", **old)
        self._run("DROP TABLE {old_history}", **old)
        self._run("DROP TYPE {old_record}", **old)

    def _old_names(self) -> tuple[str, str, str]:
        prefix = "powa_%s_old" % self.declaration.name
        return prefix + "_record", prefix + "_current", prefix + "_history"

    def _values(self, live: Layout, labels: bool, record: str, named: bool = False) -> str:
        """Expressions for the labels, or the metrics, of the declaration, from a row ``o`` and its record."""
        found = []
        for column in self.declaration.columns:
            if (column.kind == LABEL) != labels:
                continue
            name = quote(column.name)
            value = "o.%s" % name if column.name in live.labels else "%s.%s" % (record, name) if column.name in live.metrics else "NULL"
            found.append(", %s::%s%s" % (value, column.type, " AS %s" % name if named else ""))
        return "".join(found)
