# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The powa extension in one database, and everything that differs between PoWA 4 and PoWA 5.

All statements name the schema of the extension: ``public`` on 4.x, where the functions themselves also need it in the
search_path; any schema on 5.x, whose functions bring their own search_path.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from .._errors import QueryFailed, Refused
from .._sql.connection import Session, sql
from .datasources import Datasource, Entry, Registration, gather

# Activated by powa_register_server itself, and never deactivated here.
MANDATORY = ("pg_stat_statements",)
# The collector adds and removes this row on its own.
IGNORED = ("hypopg", "powa")

# What powa_register_server takes, by our names.
COLUMNS = ("host", "port", "alias", "user", "password", "dbname", "frequency", "powa_coalesce", "retention", "allow_ui_connection")

SUPPORTED = "PoWA 4.1, 4.2 or 5.x"


def version_tuple(version: str) -> tuple[int, ...]:
    """``4.1.4`` -> (4, 1, 4); what is no number counts as 0 (``5.2.0devel``)."""
    return tuple(int((re.match(r"\d+", part) or [0])[0]) for part in version.split("."))


@dataclasses.dataclass(frozen=True)
class Installed:
    """The powa extension as pg_extension shows it."""

    version: str
    schema: str


def read_installed(session: Session) -> Installed | None:
    """The powa extension of the session's database, or None."""
    row = session.row(
        "SELECT e.extversion AS version, n.nspname AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'powa'"
    )
    return Installed(**row) if row else None


@dataclasses.dataclass
class Registered:
    """One remote server in powa_servers. ``frequency`` is in seconds, -1 while inactive. Never holds the password."""

    id: int
    alias: str | None
    host: str
    port: int
    user: str
    dbname: str
    frequency: int
    powa_coalesce: int
    retention: str
    allow_ui_connection: bool
    has_password: bool
    version: str | None
    extensions: dict[str, Activation] = dataclasses.field(default_factory=dict)
    # PoWA 5 only.
    modules: dict[str, bool] = dataclasses.field(default_factory=dict)
    db_modules: dict[str, DbModule] = dataclasses.field(default_factory=dict)
    # Of extensions on the server, as the collector noted them; None before it did.
    versions: dict[str, str | None] = dataclasses.field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.frequency > 0

    @property
    def endpoint(self) -> tuple[str, int]:
        return (self.host, self.port)

    @property
    def label(self) -> str:
        return self.alias or "%s:%s" % self.endpoint

    @property
    def enabled_extensions(self) -> list[str]:
        return sorted(name for name, activation in self.extensions.items() if activation.enabled)

    @property
    def enabled_modules(self) -> list[str]:
        return sorted(name for name, enabled in self.modules.items() if enabled)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An extension (or a custom datasource) on one server. ``complete`` is False where rows of it were lost."""

    enabled: bool
    complete: bool = True
    custom: bool = False


@dataclasses.dataclass(frozen=True)
class DbModule:
    """A module of PoWA 5 that is collected in each database, or in ``databases`` (sorted)."""

    name: str
    databases: tuple[str, ...] | None = None
    enabled: bool = True


@dataclasses.dataclass(frozen=True)
class Known:
    """What can be collected. ``base`` extensions are active on every server, and so are the modules of PoWA 5."""

    base: tuple[str, ...]
    extensions: frozenset[str]
    # Extensions that the repository needs too, and those that it has.
    both_sides: frozenset[str] = frozenset()
    here: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    # PoWA's own are on for a new server.
    db_modules: frozenset[str] = frozenset()
    default_db_modules: frozenset[str] = frozenset()

    @property
    def has_modules(self) -> bool:
        return bool(self.modules)


@dataclasses.dataclass(frozen=True)
class Right:
    """A right that a role lacks: in words, and as the statement that grants it."""

    text: str
    statement: t.Any


class Repository:
    """The objects of one powa extension. Subclasses hold what differs; ``repository_class`` picks one by version."""

    # Names in powa_functions or powa_extension_config that stay active whatever a list of extensions says.
    base: tuple[str, ...] = MANDATORY

    def __init__(self, session: Session, installed: Installed) -> None:
        self.session = session
        self.version = installed.version
        self.schema = installed.schema
        self.prepare()

    def prepare(self) -> None:
        """Make the session fit for the extension's functions."""

    def name(self, relation: str) -> t.Any:
        return sql.Identifier(self.schema, relation)

    def statement(self, template: str, **names: t.Any) -> t.Any:
        """``template`` with {name} replaced by the qualified object of the schema, or by the given composable."""
        fields = set(re.findall(r"\{(\w+)\}", template))
        return sql.SQL(template).format(**{field: names.get(field) or self.name(field) for field in fields})

    # Servers

    def servers(self) -> list[Registered]:
        """All remote servers in the order of their ids, with what is active on each."""
        rows = self.session.rows(
            self.statement(
                "SELECT id, alias, hostname AS host, port, username AS user, dbname, frequency, powa_coalesce, retention::text AS retention,"
                " allow_ui_connection, password IS NOT NULL AS has_password, version FROM {powa_servers} WHERE id > 0 ORDER BY id"
            )
        )
        servers = [Registered(**row) for row in rows]
        by_id = {server.id: server for server in servers}
        for srvid, name, activation in self.activations():
            if srvid in by_id:
                by_id[srvid].extensions[name] = activation
        self.read_more(by_id)
        return servers

    def read_more(self, servers: t.Mapping[int, Registered]) -> None:
        """Modules, and versions that the collector noted, into the servers by id."""
        raise NotImplementedError

    def sequence_lag(self) -> int:
        """How far the sequence of server ids is behind the highest id: a restored dump starts it anew. 0 where it is not, or may not be read."""
        return self.session.value(
            self.statement(
                "SELECT CASE WHEN has_sequence_privilege(s.name, 'USAGE, SELECT') THEN"
                " greatest(0, coalesce((SELECT max(id) FROM {powa_servers}), 0) - coalesce(pg_sequence_last_value(s.name::regclass), 0)) ELSE 0 END::integer"
                " FROM pg_get_serial_sequence(quote_ident(%s) || '.powa_servers', 'id') AS s(name)"
            ),
            [self.schema],
        )

    def advance_sequence(self, count: int) -> None:
        # setval() would need a right that a manager has no other use for.
        self.session.execute(
            "SELECT count(nextval(pg_get_serial_sequence(quote_ident(%s) || '.powa_servers', 'id')::regclass)) FROM generate_series(1, %s)",
            [self.schema, count],
        )

    def park(self, srvids: t.Sequence[int]) -> None:
        """Free the addresses of servers that move within this transaction, so that others can take them."""
        self.session.execute(self.statement("UPDATE {powa_servers} SET port = -id WHERE id = ANY (%s)"), [list(srvids)])

    def compare(self, wanted: t.Sequence[tuple[int, str | None, str | None]]) -> dict[int, dict[str, bool]]:
        """For each (server id, password, retention) which of the two differ. The server compares: no password is read."""
        if not wanted:
            return {}
        ids, passwords, retentions = (list(column) for column in zip(*wanted))
        rows = self.session.rows(
            self.statement(
                "SELECT s.id, s.password IS DISTINCT FROM w.password AS password, s.retention IS DISTINCT FROM w.retention::interval AS retention"
                " FROM unnest(%s::integer[], %s::text[], %s::text[]) AS w(id, password, retention) JOIN {powa_servers} s ON s.id = w.id"
            ),
            [ids, passwords, retentions],
        )
        return {row["id"]: {"password": row["password"], "retention": row["retention"]} for row in rows}

    def register(self, server: t.Mapping[str, t.Any]) -> None:
        """Register a server; a key that is missing or None becomes PoWA's default. ``extensions`` are activated too."""
        self.session.execute(
            self.statement(
                "SELECT {powa_register_server}(hostname => %(host)s::text, port => %(port)s::integer, alias => %(alias)s::text,"
                " username => %(user)s::text, password => %(password)s::text, dbname => %(dbname)s::text, frequency => %(frequency)s::integer,"
                " powa_coalesce => %(powa_coalesce)s::integer, retention => %(retention)s::interval, allow_ui_connection => %(allow_ui_connection)s::boolean,"
                " extensions => %(extensions)s::text[])"
            ),
            {key: server.get(key) for key in (*COLUMNS, "extensions")},
        )

    def id_of(self, alias: str) -> int:
        return self.session.value(self.statement("SELECT id FROM {powa_servers} WHERE alias = %s"), [alias])

    def configure(self, srvid: int, changes: t.Mapping[str, t.Any]) -> None:
        """Change columns of a server (keys as in ``register``); None is SQL's NULL."""
        changes = dict(changes)
        if "powa_coalesce" in changes:
            # powa_configure_server refuses this column.
            self.session.execute(self.statement("UPDATE {powa_servers} SET powa_coalesce = %s WHERE id = %s"), [changes.pop("powa_coalesce"), srvid])
        if not changes:
            return
        columns = {{"host": "hostname", "user": "username"}.get(key, key): value for key, value in changes.items()}
        self._must(
            self.session.value(self.statement("SELECT {powa_configure_server}(%s::integer, %s::json)"), [srvid, json.dumps(columns)]),
            "change the server with id %s" % srvid,
        )

    def deactivate(self, srvid: int) -> None:
        self._must(self.session.value(self.statement("SELECT {powa_deactivate_server}(%s::integer)"), [srvid]), "deactivate the server with id %s" % srvid)

    def purge(self, srvid: int) -> None:
        """Delete a server and everything that was collected from it."""
        leftovers = self.transient_tables(srvid)
        self.session.execute(self.statement("SELECT {powa_delete_and_purge_server}(%s::integer)"), [srvid])
        for table in leftovers:
            self.session.execute(self.statement("DELETE FROM {table} WHERE srvid = %s", table=self.name(table)), [srvid])
        # What the function returns is wrong on 4.x.
        self._must(not self.session.value(self.statement("SELECT count(*) FROM {powa_servers} WHERE id = %s"), [srvid]), "delete the server with id %s" % srvid)

    def transient_tables(self, srvid: int) -> list[str]:
        """Tables with rows of the server that powa_delete_and_purge_server forgets."""
        return []

    @staticmethod
    def _must(done: t.Any, what: str) -> None:
        if not done:
            raise QueryFailed("PoWA did not %s" % what, action="Look for a change by somebody else at the same time and run the task again")

    # Extensions of a server

    def activations(self) -> list[tuple[int, str, Activation]]:
        """(server id, extension, activation) of all remote servers."""
        raise NotImplementedError

    def known(self) -> Known:
        """What can be activated on any server."""
        raise NotImplementedError

    def datasources(self) -> list[Datasource]:
        """Extensions and custom datasources that have functions, by name."""
        raise NotImplementedError

    # Custom datasources

    # Whether the functions of a datasource are registered once for all servers.
    shared_registration = True
    # What may be registered for a datasource, in the order in which people think of it.
    operations: tuple[str, ...] = ("snapshot", "aggregate", "purge", "reset")
    # The statement in powa_NAME_unregister(_srvid integer).
    unregister_template = ""

    def unregister_statement(self, name: str) -> str:
        """SQL for the body of a function that ends the registration of a datasource on the server _srvid."""
        return self.unregister_template.format(schema='"%s"' % self.schema.replace('"', '""'), name=name)

    def registration(self, name: str) -> Registration:
        """All rows of one datasource."""
        raise NotImplementedError

    def registered_elsewhere(self, name: str, functions: t.Sequence[str]) -> list[tuple[str, str]]:
        """(datasource, function) where another datasource has one of these functions."""
        raise NotImplementedError

    def register_datasource(self, name: str, entries: t.Sequence[Entry]) -> None:
        """Make the functions known to all servers, where PoWA has one place for that."""

    def enable_datasource(self, srvid: int, name: str, entries: t.Sequence[Entry], enabled: bool = True) -> None:
        """Have a datasource collected from a server, with exactly these functions."""
        raise NotImplementedError

    def disable_datasource(self, srvid: int, name: str) -> None:
        self.deactivate_extensions(srvid, [name])

    def unregister_datasource(self, name: str) -> None:
        """Remove all rows of a datasource, from all servers."""
        raise NotImplementedError

    def password(self, srvid: int) -> str | None:
        """What the collector connects to a server with. Never for a result or a message."""
        return self.session.value(self.statement("SELECT password FROM {powa_servers} WHERE id = %s"), [srvid]) or None

    def data_roles(self, table: str) -> dict[str | None, frozenset[str]]:
        """Rights that roles have on one of PoWA's own tables, by role (None: PUBLIC), the owner's left out."""
        rows = self.session.rows(
            "SELECT r.rolname AS role, array_agg(a.privilege_type::text) AS rights FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee"
            " WHERE n.nspname = %s AND c.relname = %s AND a.grantee <> c.relowner AND a.privilege_type = ANY (%s) GROUP BY 1",
            [self.schema, table, list(_ALL)],
        )
        return {row["role"]: frozenset(row["rights"]) for row in rows}

    def activate(self, srvid: int, names: t.Sequence[str], damaged: t.Sequence[str] = ()) -> None:
        """Activate extensions; ``damaged`` are those of which rows were lost."""
        if damaged:
            self.forget(srvid, damaged)
        rows = self.session.rows(
            self.statement("SELECT name, {powa_activate_extension}(%s::integer, name) AS done FROM unnest(%s::text[]) AS name"), [srvid, list(names)]
        )
        failed = [row["name"] for row in rows if not row["done"]]
        self._must(not failed, "activate %s on the server with id %s" % (", ".join(failed), srvid))

    def forget(self, srvid: int, names: t.Sequence[str]) -> None:
        """Remove what is left of damaged activations."""

    def deactivate_extensions(self, srvid: int, names: t.Sequence[str]) -> None:
        self.session.execute(self.statement("SELECT {powa_deactivate_extension}(%s::integer, name) FROM unnest(%s::text[]) AS name"), [srvid, list(names)])

    # Modules of a server, PoWA 5 only

    def set_modules(self, srvid: int, on: t.Sequence[str], off: t.Sequence[str]) -> None:
        raise NotImplementedError

    def set_db_modules(self, srvid: int, on: t.Sequence[DbModule], off: t.Sequence[str]) -> None:
        raise NotImplementedError

    # Snapshots

    def snapshots(self) -> dict[int, dict[str, t.Any]]:
        """By server id: ``snapshot_at``, ``snapshot_age_seconds``, the same for aggregate and purge (None before the first), ``errors`` (list of texts)."""
        rows = self.session.rows(
            self.statement(
                "SELECT m.srvid, CASE WHEN isfinite(m.snapts) THEN m.snapts END AS snapshot_at,"
                " CASE WHEN isfinite(m.snapts) THEN extract(epoch FROM clock_timestamp() - m.snapts)::float8 END AS snapshot_age_seconds,"
                " CASE WHEN isfinite(m.aggts) THEN m.aggts END AS aggregate_at,"
                " CASE WHEN isfinite(m.aggts) THEN extract(epoch FROM clock_timestamp() - m.aggts)::float8 END AS aggregate_age_seconds,"
                " CASE WHEN isfinite(m.purgets) THEN m.purgets END AS purge_at,"
                " CASE WHEN isfinite(m.purgets) THEN extract(epoch FROM clock_timestamp() - m.purgets)::float8 END AS purge_age_seconds,"
                " coalesce(m.errors, '{{}}') AS errors FROM {powa_snapshot_metas} m WHERE m.srvid > 0"
            )
        )
        return {row.pop("srvid"): row for row in rows}

    def history(self) -> dict[int, dict[str, t.Any]]:
        """What is stored, by server id: ``rows``, ``bytes`` of these rows, ``begins`` and ``ends``. Reads all of it."""
        found: dict[int, dict[str, t.Any]] = {}
        for table in self._history_tables():
            # A record of snapshots has their range; a single one, not yet put together, has its time.
            first, last = ("min(lower(h.coalesce_range))", "max(upper(h.coalesce_range))") if table["ranges"] else ("min((h.record).ts)", "max((h.record).ts)")
            query = sql.SQL("SELECT h.srvid, count(*) AS rows, sum(pg_column_size(h.*))::bigint AS bytes, {} AS begins, {} AS ends FROM {} h GROUP BY h.srvid")
            for row in self.session.rows(query.format(sql.SQL(first), sql.SQL(last), self.name(table["name"]))):
                one = found.setdefault(row["srvid"], {"rows": 0, "bytes": 0, "begins": row["begins"], "ends": row["ends"]})
                one["rows"] += row["rows"]
                one["bytes"] += row["bytes"]
                one["begins"], one["ends"] = min(one["begins"], row["begins"]), max(one["ends"], row["ends"])
        return found

    def _history_tables(self) -> list[dict[str, t.Any]]:
        """Tables of the schema with stored snapshots: ``name``, and ``ranges`` where a row holds many of them."""
        return self.session.rows(
            "SELECT c.relname AS name, bool_or(a.attname = 'coalesce_range') AS ranges FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped LEFT JOIN pg_type t ON t.oid = a.atttypid"
            " LEFT JOIN pg_attribute f ON f.attrelid = t.typrelid AND a.attname = 'record' AND f.attname = 'ts' AND f.attnum > 0"
            " WHERE n.nspname = %s AND c.relkind = 'r' AND (a.attname = 'coalesce_range' OR f.attname = 'ts')"
            " AND EXISTS (SELECT FROM pg_attribute s WHERE s.attrelid = c.oid AND s.attname = 'srvid') GROUP BY 1 ORDER BY 1",
            [self.schema],
        )

    # Rights

    def missing_rights(self, role: str, access: str) -> list[Right]:
        """What ``role`` lacks for ``access``: collector, reader or manager on a repository, monitor on a remote server."""
        rights = self._database_and_schemas(role)
        rights += self._monitor(role) if access == "monitor" else self._repository_rights(role, access)
        return rights

    def after_creation(self) -> list[Right]:
        """What the roles of the extension itself need once after CREATE EXTENSION."""
        return []

    def after_update(self) -> None:
        """Bring rights and modules of existing servers to the new version of the extension."""

    def _repository_rights(self, role: str, access: str) -> list[Right]:
        raise NotImplementedError

    def search_path_of(self, role: str) -> str | None:
        """The search_path that a role gets in this database by its own settings or the database's, or None for the server's default."""
        row = self.session.row(
            "SELECT split_part(c.setting, '=', 2) AS path FROM pg_db_role_setting s"
            " CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)"
            " WHERE split_part(c.setting, '=', 1) = 'search_path' AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = %s))"
            " AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
            " ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1",
            [role],
        )
        return row["path"] if row else None

    def _database_and_schemas(self, role: str) -> list[Right]:
        rights = []
        if not self.session.value("SELECT has_database_privilege(%s::name, current_database(), 'CONNECT')", [role]):
            database = self.session.value("SELECT current_database()")
            rights.append(self._grant("CONNECT ON DATABASE", sql.Identifier(database), database, role))
        for row in self.session.rows(
            "SELECT DISTINCT n.nspname AS name FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
            " WHERE n.nspname <> 'pg_catalog' AND NOT has_schema_privilege(%s::name, n.oid, 'USAGE') ORDER BY 1",
            [role],
        ):
            rights.append(self._grant("USAGE ON SCHEMA", sql.Identifier(row["name"]), row["name"], role))
        return rights

    def _monitor(self, role: str) -> list[Right]:
        rights = self._membership(role, "pg_read_all_stats")
        rights += self._tables(role, ("SELECT",), names=("powa_databases", "powa_statements"))
        for row in self.session.rows(
            "SELECT n.nspname AS schema, p.proname AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
            " WHERE p.proname = 'pg_qualstats_reset' AND p.pronargs = 0 AND NOT has_function_privilege(%s::name, p.oid, 'EXECUTE')",
            [role],
        ):
            function = sql.Identifier(row["schema"], row["name"]) + sql.SQL("()")
            rights.append(self._grant("EXECUTE ON FUNCTION", function, "%(schema)s.%(name)s()" % row, role))
        return rights

    def _membership(self, role: str, group: str) -> list[Right]:
        if self.session.value("SELECT pg_has_role(%s::name, %s::name, 'USAGE')", [role, group]):
            return []
        return [Right("member of %s" % group, sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(role)))]

    def _tables(
        self,
        role: str,
        privileges: t.Sequence[str],
        extensions: t.Sequence[str] = (),
        names: t.Sequence[str] = (),
        own: bool = False,
        kinds: t.Sequence[str] = ("r", "p"),
    ) -> list[Right]:
        """Rights that are missing on tables of extensions, on tables of PoWA's schema by name, and (``own``) on all its powa_* tables."""
        rows = self.session.rows(
            "SELECT c.oid, n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            ' WHERE c.relkind = ANY (%(kinds)s::text[]::"char"[])'
            " AND (n.nspname = %(schema)s AND (c.relname = ANY (%(names)s) OR %(own)s AND c.relname LIKE 'powa\\_%%')"
            " OR EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass"
            " WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' AND e.extname = ANY (%(extensions)s)))"
            " AND EXISTS (SELECT FROM unnest(%(privileges)s::text[]) AS p(name) WHERE NOT has_table_privilege(%(role)s::name, c.oid, p.name))"
            " ORDER BY 2, 3",
            {
                "kinds": list(kinds),
                "schema": self.schema,
                "names": list(names),
                "own": own,
                "extensions": list(extensions),
                "privileges": list(privileges),
                "role": role,
            },
        )
        words = ", ".join(privileges)
        return [self._grant("%s ON TABLE" % words, sql.Identifier(row["schema"], row["name"]), "%(schema)s.%(name)s" % row, role) for row in rows]

    @staticmethod
    def _grant(what: str, identifier: t.Any, text: str, role: str) -> Right:
        # ``what`` is a constant of this file.
        return Right("%s %s" % (what, text), sql.SQL("GRANT {} {} TO {}").format(sql.SQL(what), identifier, sql.Identifier(role)))


_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")
_OPERATIONS = frozenset(("snapshot", "aggregate", "purge", "reset"))


class Repository4(Repository):
    """PoWA 4.1 and 4.2: schema public, one table powa_functions for everything, no roles of its own."""

    base = (*MANDATORY, "powa_stat_user_functions", "powa_stat_all_relations", "pg_stat_bgwriter")
    modules: t.Mapping[str, frozenset[str]] = {
        "pg_stat_statements": _OPERATIONS,
        "powa_stat_user_functions": _OPERATIONS,
        "powa_stat_all_relations": _OPERATIONS,
        "pg_stat_bgwriter": _OPERATIONS,
        "pg_stat_kcache": _OPERATIONS,
        "pg_qualstats": _OPERATIONS,
        "pg_wait_sampling": _OPERATIONS,
        # This one keeps history by itself: nothing to aggregate or to purge.
        "pg_track_settings": frozenset(("snapshot",)),
    }

    def prepare(self) -> None:
        # The functions call each other without a schema.
        self.session.execute("SET search_path = pg_catalog, public")

    def known(self) -> Known:
        here = frozenset(row["extname"] for row in self.session.rows("SELECT extname FROM pg_extension"))
        return Known(self.base, frozenset(self.modules), frozenset(("pg_track_settings",)), here)

    def read_more(self, servers: t.Mapping[int, Registered]) -> None:
        for row in self.session.rows(self.statement("SELECT srvid, extname, version FROM {powa_extensions} WHERE srvid > 0")):
            if row["srvid"] in servers:
                servers[row["srvid"]].versions[row["extname"]] = row["version"]

    def activations(self) -> list[tuple[int, str, Activation]]:
        rows = self.session.rows(
            self.statement(
                "SELECT srvid, module, bool_and(enabled) AS enabled, array_agg(DISTINCT operation) AS operations"
                " FROM {powa_functions} WHERE srvid > 0 GROUP BY srvid, module"
            )
        )
        found = []
        for row in rows:
            operations = self.modules.get(row["module"])
            found.append((row["srvid"], row["module"], Activation(row["enabled"], (operations or frozenset()) <= set(row["operations"]), operations is None)))
        return found

    def datasources(self) -> list[Datasource]:
        # Each server has rows of its own; where they differ, the server that was registered last decides.
        rows = self.session.rows(
            self.statement(
                "SELECT srvid, module AS name, operation, function_name, query_source, enabled FROM {powa_functions} WHERE srvid > 0"
                " ORDER BY module, srvid DESC, priority, function_name"
            )
        )
        servers: dict[str, dict[int, bool]] = {}
        for row in rows:
            enabled = servers.setdefault(row["name"], {})
            enabled[row["srvid"]] = row["enabled"] and enabled.get(row["srvid"], True)
        return gather(({**row, "custom": row["name"] not in self.modules} for row in rows), servers)

    shared_registration = False
    operations = (*Repository.operations, "unregister")
    unregister_template = "DELETE FROM {schema}.powa_functions WHERE srvid = _srvid AND module = '{name}'"

    def registration(self, name: str) -> Registration:
        rows = self.session.rows(
            self.statement(
                "SELECT srvid, operation, function_name AS function, query_source, query_cleanup, priority::float8 AS priority, enabled"
                " FROM {powa_functions} WHERE module = %s AND srvid > 0 ORDER BY srvid, operation, function_name"
            ),
            [name],
        )
        enabled: dict[int, bool] = {}
        entries: dict[int | None, tuple[Entry, ...]] = {}
        for row in rows:
            srvid = row.pop("srvid")
            enabled[srvid] = row.pop("enabled") and enabled.get(srvid, True)
            entries[srvid] = (*entries.get(srvid, ()), Entry(**row))
        return Registration(entries, enabled, foreign=name in self.modules)

    def registered_elsewhere(self, name: str, functions: t.Sequence[str]) -> list[tuple[str, str]]:
        rows = self.session.rows(
            self.statement("SELECT DISTINCT module, function_name FROM {powa_functions} WHERE module <> %s AND function_name = ANY (%s) ORDER BY 1, 2"),
            [name, list(functions)],
        )
        return [(row["module"], row["function_name"]) for row in rows]

    def enable_datasource(self, srvid: int, name: str, entries: t.Sequence[Entry], enabled: bool = True) -> None:
        # There is no key: what is there twice is collected twice.
        self.forget(srvid, [name])
        for entry in entries:
            self.session.execute(
                self.statement(
                    "INSERT INTO {powa_functions} (srvid, module, operation, function_name, query_source, query_cleanup, added_manually, enabled, priority)"
                    " VALUES (%s, %s, %s, %s, %s, %s, true, %s, %s)"
                ),
                [srvid, name, entry.operation, entry.function, entry.query_source, entry.query_cleanup, enabled, entry.priority],
            )

    def unregister_datasource(self, name: str) -> None:
        self.session.execute(self.statement("DELETE FROM {powa_functions} WHERE module = %s"), [name])

    def forget(self, srvid: int, names: t.Sequence[str]) -> None:
        self.session.execute(self.statement("DELETE FROM {powa_functions} WHERE srvid = %s AND module = ANY (%s)"), [srvid, list(names)])

    def transient_tables(self, srvid: int) -> list[str]:
        rows = self.session.rows(
            self.statement(
                "SELECT DISTINCT c.relname AS name FROM {powa_functions} f JOIN pg_class c ON c.relname = f.query_source || '_tmp'"
                " JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %s WHERE f.srvid = %s ORDER BY 1"
            ),
            [self.schema, srvid],
        )
        return [row["name"] for row in rows]

    def missing_rights(self, role: str, access: str) -> list[Right]:
        return super().missing_rights(role, access) + self._search_path(role)

    def _repository_rights(self, role: str, access: str) -> list[Right]:
        extensions = ("powa", "pg_track_settings")
        rights = self._tables(role, ("SELECT",) if access == "reader" else _ALL, extensions=extensions, own=True)
        rights += self._tables(role, ("SELECT",), extensions=extensions, own=True, kinds=("v", "m"))
        if access == "manager":
            sequence = self.session.value("SELECT NOT has_sequence_privilege(%s::name, to_regclass(%s)::oid, 'USAGE')", [role, "public.powa_servers_id_seq"])
            if sequence:
                rights.append(self._grant("USAGE ON SEQUENCE", sql.Identifier("public", "powa_servers_id_seq"), "public.powa_servers_id_seq", role))
        return rights

    def _search_path(self, role: str) -> list[Right]:
        """A search_path of the role without ``public`` stops collection without a word."""
        path = self.search_path_of(role)
        if path is None or "public" in re.findall(r"\w+", path):
            return []
        database = self.session.value("SELECT current_database()")
        return [
            Right(
                'search_path = "$user", public in database %s' % database,
                sql.SQL('ALTER ROLE {} IN DATABASE {} SET search_path = "$user", public').format(sql.Identifier(role), sql.Identifier(database)),
            )
        ]


class Repository5(Repository):
    """PoWA 5: any schema, a table for each kind of datasource, group roles with the rights."""

    groups: t.Mapping[str, str] = {"collector": "powa_write_all_data", "reader": "powa_read_all_data", "manager": "powa_admin"}

    def known(self) -> Known:
        row = self.session.row(
            self.statement(
                "SELECT (SELECT array_agg(extname) FROM {powa_extensions}) AS extensions,"
                " (SELECT array_agg(extname) FROM {powa_extensions} WHERE external) AS both_sides,"
                " (SELECT array_agg(extname) FROM pg_extension) AS here,"
                " (SELECT array_agg(module) FROM {powa_modules}) AS modules,"
                " (SELECT array_agg(db_module) FROM {powa_db_modules}) AS db_modules,"
                " (SELECT array_agg(db_module) FROM {powa_db_modules} WHERE NOT added_manually) AS default_db_modules"
            )
        )
        return Known(self.base, **{key: frozenset(names or ()) for key, names in (row or {}).items()})

    def activations(self) -> list[tuple[int, str, Activation]]:
        rows = self.session.rows(
            self.statement(
                "SELECT c.srvid, c.extname, c.enabled, e.added_manually AS custom FROM {powa_extension_config} c"
                " JOIN {powa_extensions} e ON e.extname = c.extname WHERE c.srvid > 0"
            )
        )
        return [(row["srvid"], row["extname"], Activation(row["enabled"], custom=row["custom"])) for row in rows]

    def read_more(self, servers: t.Mapping[int, Registered]) -> None:
        for row in self.session.rows(
            self.statement(
                "SELECT 'version' AS what, srvid, extname AS name, version, enabled, NULL::text[] AS databases FROM {powa_extension_config} WHERE srvid > 0"
                " UNION ALL SELECT 'module', srvid, module, NULL, enabled, NULL FROM {powa_module_config} WHERE srvid > 0"
                " UNION ALL SELECT 'db_module', srvid, db_module, NULL, enabled, dbnames FROM {powa_db_module_config} WHERE srvid > 0"
            )
        ):
            server = servers.get(row["srvid"])
            if server is None:
                continue
            if row["what"] == "version":
                server.versions[row["name"]] = row["version"]
            elif row["what"] == "module":
                server.modules[row["name"]] = row["enabled"]
            else:
                databases = None if row["databases"] is None else tuple(sorted(row["databases"]))
                server.db_modules[row["name"]] = DbModule(row["name"], databases, row["enabled"])

    def set_modules(self, srvid: int, on: t.Sequence[str], off: t.Sequence[str]) -> None:
        for function, names in (("powa_activate_module", on), ("powa_deactivate_module", off)):
            if names:
                self.session.execute(
                    self.statement("SELECT {function}(%s::integer, name) FROM unnest(%s::text[]) AS name", function=self.name(function)), [srvid, list(names)]
                )

    def set_db_modules(self, srvid: int, on: t.Sequence[DbModule], off: t.Sequence[str]) -> None:
        for module in on:
            databases = None if module.databases is None else list(module.databases)
            self.session.execute(self.statement("SELECT {powa_activate_db_module}(%s::integer, %s::text, %s::text[])"), [srvid, module.name, databases])
        if not off:
            return
        # The collector does not look at the flag that powa_deactivate_db_module sets: it would go on, and for all databases.
        self.session.execute(self.statement("DELETE FROM {powa_db_module_config} WHERE srvid = %s AND db_module = ANY (%s)"), [srvid, list(off)])
        for row in self.session.rows(
            self.statement(
                "SELECT n.nspname AS schema, c.relname AS name FROM {powa_db_modules} m JOIN pg_class c ON c.oid = to_regclass(m.tmp_table)"
                " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE m.db_module = ANY (%s)"
            ),
            [list(off)],
        ):
            self.session.execute(self.statement("DELETE FROM {table} WHERE srvid = %s", table=sql.Identifier(row["schema"], row["name"])), [srvid])

    def datasources(self) -> list[Datasource]:
        servers: dict[str, dict[int, bool]] = {}
        for srvid, name, activation in self.activations():
            servers.setdefault(name, {})[srvid] = activation.enabled
        rows = self.session.rows(
            self.statement(
                "SELECT e.extname AS name, e.added_manually AS custom, f.operation, f.function_name, f.query_source"
                " FROM {powa_extensions} e JOIN {powa_extension_functions} f USING (extname) ORDER BY e.extname, f.priority, f.function_name"
            )
        )
        return gather(rows, servers)

    unregister_template = "DELETE FROM {schema}.powa_extension_config WHERE srvid = _srvid AND extname = '{name}'"

    def registration(self, name: str) -> Registration:
        known = self.session.row(self.statement("SELECT external, added_manually FROM {powa_extensions} WHERE extname = %s"), [name])
        rows = self.session.rows(
            self.statement(
                "SELECT operation, function_name AS function, query_source, query_cleanup, priority::float8 AS priority"
                " FROM {powa_extension_functions} WHERE extname = %s ORDER BY operation, function_name"
            ),
            [name],
        )
        config = self.session.rows(self.statement("SELECT srvid, enabled FROM {powa_extension_config} WHERE extname = %s AND srvid > 0"), [name])
        # A module or a database module may bear the name as well; the collector would take it for the same thing.
        taken = self.session.value(
            self.statement("SELECT EXISTS (SELECT FROM {powa_modules} WHERE module = %s) OR EXISTS (SELECT FROM {powa_db_modules} WHERE db_module = %s)"),
            [name, name],
        )
        return Registration(
            {None: tuple(Entry(**row) for row in rows)} if known else {},
            {row["srvid"]: row["enabled"] for row in config},
            foreign=bool(taken or (known and not known["added_manually"])),
            external=bool(known and known["external"]),
        )

    def registered_elsewhere(self, name: str, functions: t.Sequence[str]) -> list[tuple[str, str]]:
        rows = self.session.rows(
            self.statement("SELECT extname, function_name FROM {powa_extension_functions} WHERE extname <> %s AND function_name = ANY (%s) ORDER BY 1, 2"),
            [name, list(functions)],
        )
        return [(row["extname"], row["function_name"]) for row in rows]

    def register_datasource(self, name: str, entries: t.Sequence[Entry]) -> None:
        # external: PoWA would look for an extension of that name on both sides.
        self.session.execute(
            self.statement(
                "INSERT INTO {powa_extensions} (extname, external, added_manually) VALUES (%s, false, true)"
                " ON CONFLICT (extname) DO UPDATE SET external = false"
            ),
            [name],
        )
        self.session.execute(self.statement("DELETE FROM {powa_extension_functions} WHERE extname = %s"), [name])
        for entry in entries:
            self.session.execute(
                self.statement(
                    "INSERT INTO {powa_extension_functions} (extname, operation, function_name, query_source, query_cleanup, added_manually, priority)"
                    " VALUES (%s, %s, %s, %s, %s, true, %s)"
                ),
                [name, entry.operation, entry.function, entry.query_source, entry.query_cleanup, entry.priority],
            )

    def enable_datasource(self, srvid: int, name: str, entries: t.Sequence[Entry], enabled: bool = True) -> None:
        self.activate(srvid, [name])

    def unregister_datasource(self, name: str) -> None:
        # Functions and servers go with it.
        self.session.execute(self.statement("DELETE FROM {powa_extensions} WHERE extname = %s AND added_manually"), [name])

    def group_roles(self) -> dict[str, str | None]:
        """Name of the actual role by PoWA's name for it; None where this database has not taken over the cluster's roles."""
        return {row["powa_role"]: row["rolname"] for row in self.session.rows(self.statement("SELECT powa_role, rolname FROM {powa_roles}"))}

    def after_creation(self) -> list[Right]:
        if all(self.group_roles().values()):
            return []
        return [Right("rights of the roles powa_* in this database", self.statement("SELECT {setup_powa_roles}(reuse_existing_role => true)"))]

    def after_update(self) -> None:
        self.session.execute(self.statement("SELECT {powa_grant}()"))
        self.session.execute(
            self.statement(
                "SELECT {powa_activate_module}(s.id, m.module) FROM {powa_servers} s, {powa_modules} m WHERE s.id > 0"
                " AND NOT EXISTS (SELECT FROM {powa_module_config} c WHERE c.srvid = s.id AND c.module = m.module)"
            )
        )

    def _repository_rights(self, role: str, access: str) -> list[Right]:
        group = self.group_roles().get(self.groups[access]) or self.groups[access]
        rights = self._membership(role, group)
        # The group roles have no rights on this extension, which PoWA treats as external.
        return rights + self._tables(role, ("SELECT",) if access == "reader" else _ALL, extensions=("pg_track_settings",))

    def _monitor(self, role: str) -> list[Right]:
        rights = super()._monitor(role)
        # The collector looks into every database that accepts connections, at each snapshot.
        for row in self.session.rows(
            "SELECT datname FROM pg_database WHERE datallowconn AND datname <> current_database()"
            " AND NOT has_database_privilege(%s::name, oid, 'CONNECT') ORDER BY 1",
            [role],
        ):
            rights.append(self._grant("CONNECT ON DATABASE", sql.Identifier(row["datname"]), row["datname"], role))
        return rights


def repository_class(version: str) -> type[Repository]:
    """The class for a version of the extension. Raises Refused for one that is not supported."""
    number = version_tuple(version)
    if number[0] == 5:
        return Repository5
    if number[0] == 4 and number[1:2] >= (1,):
        return Repository4
    raise Refused("version %s of the extension powa is not supported" % version, expected=SUPPORTED)


def open_repository(session: Session) -> Repository:
    """The powa extension of the session's database. Raises Refused if there is none or none that is supported."""
    installed = read_installed(session)
    if installed is None:
        raise Refused(
            'the database "%s" on %s has no extension powa' % (session.target.dbname, session.target),
            expected="the repository of PoWA",
            action="Name it with login_db, or create it with pgfleet.ops.powa_archivist",
        )
    return repository_class(installed.version)(session, installed)
