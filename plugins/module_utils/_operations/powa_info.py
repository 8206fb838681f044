# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What a repository of PoWA knows, collects and misses."""

from __future__ import annotations

import dataclasses
import typing as t

from .._errors import InvalidInput, OperationError, Unhealthy
from .._module import Context, Operation
from .._powa import health
from .._powa.collector import Collector, collector_versions, mismatch
from .._powa.datasources import Datasource
from .._powa.health import AgeLimit, CollectorSeen, Node, Reason
from .._powa.repository import Registered, open_repository
from .._sql.connection import Session, Target, connect
from .powa_server import describe

_NO_HISTORY = {"rows": 0, "bytes": 0, "begins": None, "ends": None}


@dataclasses.dataclass
class Seen:
    version: str
    schema: str
    servers: t.Sequence[Registered]
    snapshots: t.Mapping[int, t.Mapping[str, t.Any]]
    datasources: t.Sequence[Datasource]
    collector: CollectorSeen
    history: t.Mapping[int, t.Mapping[str, t.Any]] | None


def parse_expected(entries: t.Iterable[t.Mapping[str, t.Any]]) -> list[Node]:
    """Entries of the option ``expected``. Raises InvalidInput."""
    nodes = [Node(entry["name"], entry.get("host") or None, entry.get("port") or 5432) for entry in entries]
    for what, keys in (("name", [node.name for node in nodes]), ("host and port", ["%s:%s" % (node.host, node.port) for node in nodes if node.host])):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise InvalidInput("two entries of the option expected have the same %s: %s" % (what, ", ".join(twice)))
    return nodes


class PowaInfo(Operation):
    """Read everything, judge it, and fail if that was asked for."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.expected = None if params["expected"] is None else parse_expected(params["expected"])
        self.limit = AgeLimit(params["max_age_factor"], params["max_age_seconds"])
        for option, value, least in (("max_age_factor", self.limit.factor, 1), ("max_age_seconds", self.limit.seconds, 1)):
            if value is not None and value < least:
                raise InvalidInput("%s is %g" % (option, value), expected="at least %d" % least)
        self.session: Session | None = None

    def observe(self) -> Seen:
        self.session = connect(Target.from_params(self.params, dbname=self.params.get("login_db") or "powa"), read_only=True)
        repository = open_repository(self.session)
        servers = repository.servers()
        return Seen(
            version=repository.version,
            schema=repository.schema,
            servers=servers,
            # Asked first, as its answer may take seconds in which snapshots are stored.
            collector=self._ask_collector(servers),
            snapshots=repository.snapshots(),
            datasources=repository.datasources(),
            history=repository.history() if self.params["history"] else None,
        )

    def _ask_collector(self, servers: t.Sequence[Registered]) -> CollectorSeen:
        versions = collector_versions(self.session)
        if not versions or not self.params["ask_collector"]:
            return CollectorSeen(versions)
        try:
            return CollectorSeen(versions, Collector(self.session).workers([server.id for server in servers]))
        except OperationError as error:
            return CollectorSeen(versions, problem=str(error).rstrip("."))

    def report(self, seen: Seen) -> dict[str, t.Any]:
        unfit = mismatch(seen.collector.versions[0], seen.version) if seen.collector.versions else None
        reasons = health.judge_collector(seen.collector, seen.servers, unfit)
        servers = []
        for server in seen.servers:
            described, about = self._describe_server(server, seen)
            servers.append(described)
            reasons += [Reason(reason.level, "%s: %s" % (server.label, reason.text)) for reason in about]
        result: dict[str, t.Any] = {
            "version": seen.version,
            "schema": seen.schema,
            "servers": servers,
            "datasources": {one.name: self._describe_datasource(one, seen) for one in seen.datasources},
            "collector": self._describe_collector(seen),
        }
        if self.expected is not None:
            coverage = health.cover(self.expected, seen.servers)
            reasons += coverage.reasons
            result["coverage"] = {
                "unwatched": [{**dataclasses.asdict(node), "reason": why} for node, why in coverage.unwatched],
                "unexpected": [{key: getattr(one, key) for key in ("id", "alias", "host", "port")} for one in coverage.unexpected],
            }
        result.update(status=health.worst(reasons), reasons=health.texts(reasons))
        self._fail_if_asked(result)
        return result

    def _describe_server(self, server: Registered, seen: Seen) -> tuple[dict[str, t.Any], list[Reason]]:
        snapshot = seen.snapshots.get(server.id, {})
        limit = self.limit.of(server) if server.active else None
        worker = seen.collector.worker(server) if server.active else None
        reasons = health.judge_server(server, snapshot, worker, limit or 0)
        keys = [what + suffix for what in ("snapshot", "aggregate", "purge") for suffix in ("_at", "_age_seconds")]
        age = snapshot.get("snapshot_age_seconds")
        return {
            **describe(server),
            "worker": worker,
            **{key: snapshot.get(key) for key in keys},
            "max_age_seconds": limit,
            "stale": limit is not None and (age is None or age > limit),
            "errors": list(snapshot.get("errors") or ()),
            **({} if seen.history is None else {"history": seen.history.get(server.id, _NO_HISTORY)}),
            "status": health.worst(reasons),
            "reasons": health.texts(reasons),
        }, reasons

    @staticmethod
    def _describe_datasource(one: Datasource, seen: Seen) -> dict[str, t.Any]:
        return {
            "custom": one.custom,
            "functions": one.functions,
            "query_source": one.query_source,
            "servers": [server.label for server in seen.servers if one.servers.get(server.id)],
        }

    def _describe_collector(self, seen: Seen) -> dict[str, t.Any]:
        versions = seen.collector.versions
        return {
            "connected": bool(versions),
            "version": versions[0] if versions else None,
            "duplicates": max(len(versions) - 1, 0),
            "answered": seen.collector.workers is not None if versions and self.params["ask_collector"] else None,
            "problem": seen.collector.problem,
            "strays": seen.collector.strays(seen.servers),
        }

    def _fail_if_asked(self, result: dict[str, t.Any]) -> None:
        threshold = self.params["fail_on"]
        if threshold != "none" and health.LEVELS.index(result["status"]) >= health.LEVELS.index(threshold):
            raise Unhealthy("the repository is %s: %s" % (result["status"], "; ".join(result["reasons"])), **result)

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
