# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""A running powa-collector: a worker for every active server, and the snapshots they store, also at once."""

from __future__ import annotations

import dataclasses
import datetime
import time
import typing as t

from .._errors import InvalidInput, NotConfirmed, NotReachable, Refused, WaitTimeout
from .._module import Context, Operation
from .._plan import Plan
from .._powa.collector import ALIVE, FORCES_SNAPSHOTS, NO_WORKER, RUNNING, Collector, collector_versions
from .._powa.repository import Registered, Repository, open_repository, version_tuple
from .._sql.connection import Session, Target, connect
from .._wait import Deadline

# A collector that was just started connects within this time, and so do its workers. In seconds.
START_SECONDS = 10
POLL_SECONDS = 0.5
# What a worker says of itself counts this long after a reload, when it has seen the reload.
SETTLE_SECONDS = 2
# The collector refuses a forced snapshot for 10 s after the last one.
FORCE_AGAIN_SECONDS = 1
_ERROR_LENGTH = 500


@dataclasses.dataclass
class Seen:
    """``watched`` are the servers that this task is about, ``strays`` ids with a worker that should have none."""

    version: str
    watched: t.Sequence[Registered]
    workers: t.Mapping[int, str]
    snapshots: t.Mapping[int, t.Mapping[str, t.Any]]
    strays: t.Sequence[int]

    def worker(self, server: Registered) -> str:
        return self.workers.get(server.id, NO_WORKER)

    @property
    def not_running(self) -> list[Registered]:
        return [server for server in self.watched if self.worker(server) != RUNNING]

    def describe(self, server: Registered) -> dict[str, t.Any]:
        snapshot = self.snapshots.get(server.id, {})
        return {
            "id": server.id,
            "alias": server.alias,
            "host": server.host,
            "port": server.port,
            "frequency": server.frequency,
            "worker": self.worker(server),
            "snapshot_at": snapshot.get("snapshot_at"),
            "snapshot_age_seconds": snapshot.get("snapshot_age_seconds"),
            "errors": list(snapshot.get("errors") or ()),
        }

    def sentence(self, server: Registered) -> str:
        """One server in an error message, with what PoWA noted about it."""
        errors = " / ".join(" ".join(text.split()) for text in self.describe(server)["errors"])
        return "%s (%s:%s): worker %s%s" % (
            server.label,
            server.host,
            server.port,
            self.worker(server),
            ", errors: %s" % errors[:_ERROR_LENGTH] if errors else "",
        )


class PowaCollector(Operation):
    """Find out what the collector's workers do, and reload it where that gives a server its worker."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        if params["timeout"] < 1:
            raise InvalidInput("timeout is %s" % params["timeout"], expected="at least 1 second")
        self.deadline = Deadline(params["timeout"])
        self.aliases: list[str] = list(params.get("servers") or ())
        self.session: Session | None = None
        self._repository: Repository | None = None
        self._collector: Collector | None = None
        self.force: bool = params["force_snapshot"]
        self.wait: str = "new" if self.force else params["wait_snapshot"]
        self._reloaded = False
        self._began: datetime.datetime | None = None

    @property
    def repository(self) -> Repository:
        if self._repository is None:
            self.session = connect(Target.from_params(self.params, dbname=self.params.get("login_db") or "powa"), read_only=self.context.check_mode)
            self._repository = open_repository(self.session)
            self._began = self.session.value("SELECT clock_timestamp()")
        return self._repository

    def collector(self) -> tuple[Collector, str]:
        """The one collector of the repository and its version. Waits for one that is just starting."""
        session = self.repository.session
        deadline = self.deadline.within(START_SECONDS)
        versions = collector_versions(session)
        while not versions and not deadline.passed:
            time.sleep(POLL_SECONDS)
            versions = collector_versions(session)
        if not versions:
            raise NotReachable(
                'no powa-collector is connected to the database "%s" on %s' % (session.target.dbname, session.target),
                action="Start it, and look into its log if it does not stay: a wrong dsn or password ends it at once",
            )
        if len(versions) > 1:
            raise Refused(
                "%d collectors are connected to the same repository" % len(versions),
                expected="one: each of them would take every snapshot",
                action="Stop the others",
            )
        if self._collector is None:
            self._collector = Collector(session)
        return self._collector, versions[0]

    def observe(self) -> Seen:
        seen = self._observe()
        # A worker that is just starting shows as one without connection, and after a reload so does each that got a new one.
        deadline = self.deadline if self._reloaded else self.deadline.within(START_SECONDS / 2)
        # And for a moment after it a worker still goes on with the connection that it has, and says that it is running.
        settled = Deadline(SETTLE_SECONDS if self._reloaded else 0)
        while (not settled.passed or (seen.not_running and not self._needs_reload(seen))) and not deadline.passed:
            time.sleep(POLL_SECONDS)
            seen = self._observe()
        return seen

    def _observe(self) -> Seen:
        servers = self.repository.servers()
        active = [server for server in servers if server.active]
        watched = self._watched(servers, active)
        collector, version = self.collector()
        workers = collector.workers([server.id for server in servers])
        wanted = {server.id for server in active}
        alive = [srvid for srvid, status in workers.items() if status in ALIVE]
        return Seen(version, watched, workers, self.repository.snapshots(), sorted(set(alive) - wanted))

    def _watched(self, servers: t.Sequence[Registered], active: t.Sequence[Registered]) -> list[Registered]:
        if not self.aliases:
            return list(active)
        by_alias = {server.alias: server for server in servers}
        unknown = [alias for alias in self.aliases if alias not in by_alias]
        if unknown:
            raise InvalidInput("no server is registered as %s" % ", ".join(unknown), action="Register it with pgfleet.ops.powa_server")
        found = [by_alias[alias] for alias in self.aliases]
        inactive = [server.label for server in found if not server.active]
        if inactive:
            raise InvalidInput("not active: %s" % ", ".join(inactive), expected="servers with a frequency")
        return found

    @staticmethod
    def _needs_reload(seen: Seen) -> bool:
        """Whether a server has no worker, which no waiting gives it."""
        return any(seen.worker(server) not in ALIVE for server in seen.watched)

    def plan(self, seen: Seen) -> Plan:
        plan = Plan()
        idle = seen.not_running
        wanted = self.params["state"] == "reloaded"
        if self.force and version_tuple(seen.version) < FORCES_SNAPSHOTS:
            raise Refused(
                "powa-collector %s takes no snapshot on request" % seen.version,
                expected="1.3 or later",
                action="Wait for the next regular snapshot with wait_snapshot=new, or install a newer collector",
            )
        if seen.strays:
            raise Refused(
                "the collector still works on servers that are not active or not registered any more: id %s" % ", ".join(map(str, seen.strays)),
                expected="a restart of the collector, as a reload would not end these workers and would make it unable to answer",
                action="Restart it and run this task again",
                restart_required=True,
                servers=[seen.describe(server) for server in seen.watched],
            )
        if idle or wanted:
            reason = "asked for" if wanted else "for %s" % ", ".join(server.label for server in idle)
            plan.add(
                "reload the collector (%s)" % reason,
                self._reload,
                subject="workers of the collector",
                before={server.label: seen.worker(server) for server in seen.watched},
                after={server.label: RUNNING for server in seen.watched},
            )
        if self.force and seen.watched:
            plan.add("take a snapshot of %s at once" % ", ".join(server.label for server in seen.watched), self._force)
        return plan

    def _reload(self) -> None:
        collector, _version = self.collector()
        collector.reload()
        self._reloaded = True

    def _force(self) -> None:
        """Ask until each server has a snapshot that is under way or new. What has no worker is left to the confirmation."""
        collector, _version = self.collector()
        seen = self.observe()
        waiting = [server for server in seen.watched if server not in seen.not_running]
        while waiting and not self.deadline.passed:
            waiting = [server for server in waiting if not self._has_snapshot(seen, server) and collector.force_snapshot(server.id)]
            if waiting:
                time.sleep(min(FORCE_AGAIN_SECONDS, self.deadline.left))
                seen = dataclasses.replace(seen, snapshots=self.repository.snapshots())

    def confirm(self, seen: Seen) -> None:
        if seen.not_running:
            raise NotConfirmed(
                "no running worker after a reload: %s" % ("; ".join(map(seen.sentence, seen.not_running))),
                action="Check host, port, user, password or passfile and database of these servers, their pg_hba.conf,"
                " and that the extension powa is in that database",
                servers=[seen.describe(server) for server in seen.watched],
            )

    def report(self, seen: Seen) -> dict[str, t.Any]:
        if self.wait != "none" and not self.context.check_mode:
            seen = self._wait_for_snapshots(seen)
        for server in seen.watched:
            if seen.describe(server)["errors"]:
                self.context.warn("PoWA notes errors about %s" % seen.sentence(server))
        return {
            "collector_version": seen.version,
            "repository_version": self.repository.version,
            "restart_required": False,
            "servers": [seen.describe(server) for server in seen.watched],
        }

    def _has_snapshot(self, seen: Seen, server: Registered) -> bool:
        stored = seen.snapshots.get(server.id, {}).get("snapshot_at")
        if stored is None:
            return False
        return self.wait == "any" or stored > self._began

    def _wait_for_snapshots(self, seen: Seen) -> Seen:
        while True:
            waiting = [server for server in seen.watched if not self._has_snapshot(seen, server)]
            if not waiting:
                return seen
            if self.deadline.passed:
                seen = self._observe()
                what = "no snapshot" if self.wait == "any" else "no new snapshot"
                raise WaitTimeout(
                    "%s within %g s: %s" % (what, self.params["timeout"], "; ".join(map(seen.sentence, waiting))),
                    action="Collector 1.2 takes a snapshot at each third interval only: timeout must be above 3 x frequency",
                    phase="wait",
                    servers=[seen.describe(server) for server in seen.watched],
                )
            time.sleep(min(POLL_SECONDS, self.deadline.left))
            seen = dataclasses.replace(seen, snapshots=self.repository.snapshots())

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
