# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The planned switchover: one process owns the time from PAUSE to RESUME.

Before the first PAUSE everything is connected, checked and prepared. Inside the window nothing starts a process, opens
a connection or waits for a tool that polls. A guardian on the host of each pooler and of the old primary
(_host/guardian_program.py) puts its part back when this process fails, hangs or is killed.

Order and rollback points:

1. prepare: sessions, checkpoints, where the old primary will stream from; nothing that clients notice, undone on failure
2. fence: standby.signal on the old primary, so that whatever starts it later starts a standby
3. prove that the poolers read their files, then pause all of them at once, with a bound
4. stop the old primary; meanwhile the poolers' files are switched
5. proof: pg_control says shut down, and the candidate has replayed that shutdown checkpoint
6. release: the old primary's guardian gives up its right to go back. Until it says so, nothing is promoted.
7. promote, reload and resume; then, outside the window: old primary starts as a standby, the others follow, slots are moved
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t

from .._cluster.model import Cluster, Node
from .._cluster.switchover import Surroundings
from .._cluster.timeline import why_diverged
from .._errors import NotConfirmed, OperationError, Refused, RolledBack, WaitTimeout
from .._host.guardian import Guardian
from .._pgbouncer.console import Console
from .._sql.connection import Session
from .._sql.node_state import fetch_node_state
from .._sql.settings import Setting, change_settings, put_back_settings, read_setting
from .._sql.standby import drop_idle_slot, ensure_slot, led_conninfo, point_at, receiver
from .._sql.values import lsn_to_int
from .._wait import Deadline, wait_for
from .follow import read_history
from .members import Run
from .poolers import Pooler, Redirection, ask_to_recover, told_of_recovery
from .promotion import Promotion, wait_until_promoted
from .switchover_checks import Conditions

# A promotion that meets a walreceiver being restarted waits this long; the default is 5 s.
RETRIEVE_RETRY = "5ms"
# A promotion whose WAL ends in the last quarter of a segment makes the next one before it takes clients (PreallocXlogFiles in PostgreSQL's xlog.c), 16 MB
# of zeros that reach the disk. With archiving a shutdown begins a new segment itself, and the standby has to receive the rest of the old one meanwhile.
FRESH_SEGMENT = (
    "SELECT pg_switch_wal() FROM pg_settings WHERE name = 'wal_segment_size' AND current_setting('archive_mode') = 'off'"
    " AND (pg_current_wal_insert_lsn() - '0/0') % setting::bigint > setting::bigint / 2"
)


@dataclasses.dataclass
class Seen:
    cluster: Cluster
    candidate: Node
    poolers: t.Sequence[Pooler]
    around: Surroundings
    problems: t.Sequence[str]
    fenced_down: t.Sequence[str]
    """Nodes that are down, fenced, and left so by an interrupted switchover."""


class Finish:
    """Brings the other nodes behind the primary. Every method does nothing where nothing is to be done."""

    def __init__(self, run: Run, primary: Node, timeout: float) -> None:
        self._run = run
        self._primary = primary
        self._timeout = timeout
        self._session: Session | None = None
        self._timeline: int | None = None
        self._made: list[str] = []

    @property
    def session(self) -> Session:
        """On the new primary."""
        if self._session is None:
            self._session = self._run.session(self._primary)
        return self._session

    @property
    def timeline(self) -> int:
        """Of the new primary."""
        if self._timeline is None:
            self._timeline = int(fetch_node_state(self.session, Deadline(self._timeout))["timeline"])
        return self._timeline

    def conninfo(self, node: Node, own: str, model: str) -> str:
        """Where a node streams from: its own connection string or, if it never had one, that of the model, led to the new primary."""
        changes: dict[str, t.Any] = {} if own else {"application_name": node.name}
        changes.update(self._run.entry(node)["conninfo"])
        changes.update(host=self._primary.peer_address, port=self._primary.port)
        return led_conninfo(node.name, own or model, {"application_name": node.name}, changes)

    def promote(self) -> None:
        """Promote the candidate of an interrupted switchover. One that is under way looks just like it, and holds its nodes."""
        Promotion(self._run, self._primary.name, what="switchover").promote(60)

    def lead(self, pooler: Pooler) -> None:
        """File and run time of a pooler to the primary."""
        deadline = Deadline(self._timeout)
        guardian, console = t.cast(Guardian, pooler.guardian), t.cast(Console, pooler.console)
        # A guardian of the run before may have found the new primary first.
        directions = [{"text": text, "node": None} for text in (pooler.text, pooler.new_text)]
        guardian.call("prepare", deadline, console=pooler.target.keywords(), databases=None, directions=directions)
        guardian.call("switch", deadline, text=pooler.new_text)
        console.reload(deadline)
        # An interrupted failover lets nobody in to where nobody can be served.
        for name in pooler.view.disabled:
            console.enable(name, deadline)

    def ensure_slot(self, node: Node) -> str:
        name = self._run.slot_of(node)
        ensure_slot(self.session, name, Deadline(self._timeout))
        return name

    def hold_wal(self, nodes: t.Iterable[Node], deadline: Deadline) -> None:
        """Before the promotion: slots of those that will follow with one. The first checkpoint after it removes what they have not received yet."""
        names = {self._run.slot_of(node): node.name for node in nodes if (node.state or {}).get("primary_slot_name")}
        if not names:
            return
        try:
            # One of its own: it is lost where the server does not answer in time.
            session = self._run.session(self._primary, timeout=deadline.left)
            for name in names:
                # Without an answer it may be there all the same.
                self._made.append(name)
                if not ensure_slot(session, name, deadline):
                    self._made.remove(name)
        except OperationError as error:
            # Whether the promotion is possible at all is found out elsewhere.
            what = "WAL that %s may still need may be missing on %s" % (", ".join(names.values()), self._primary.name)
            self._run.warn("%s, as no slot could be made for it before: %s" % (what, error.message))

    def let_go_of_wal(self, deadline: Deadline) -> None:
        """Drop the slots that were made for that: the node stays a standby, on which they would hold WAL for ever."""
        if self._made:
            session = self._run.session(self._primary, timeout=deadline.left)
            while self._made:
                drop_idle_slot(session, self._made.pop(), deadline)

    def follow(self, node: Node) -> None:
        """Point a running standby at the primary and wait until it streams from there. Raises Refused where it has left the primary's history."""
        diverged = self.why_diverged(node)
        if diverged:
            raise Refused(
                "%s cannot follow %s: %s" % (node.name, self._primary.name, diverged),
                action="Rewind or clone it with pgfleet.ops.pg_clone",
            )
        self.point(node, self._run.session(node))
        self.wait_until_streaming(node)

    def why_diverged(self, node: Node) -> str | None:
        """Why a standby has WAL that is no part of the primary's history; None where it has not, or where the primary does not know that history any more."""
        now = dataclasses.replace(node, state=fetch_node_state(self._run.session(node), Deadline(self._timeout)))
        history = read_history(self.session, self.timeline)
        return why_diverged(now.timeline or 0, now.received or 0, self.timeline, history) if history is not None else None

    def point(self, node: Node, session: Session) -> None:
        """PostgreSQL 13 and later take it by reload."""
        slot = self.ensure_slot(node) if session.value("SELECT setting FROM pg_settings WHERE name = 'primary_slot_name'") else None
        own = session.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'") or ""
        point_at(session, self.conninfo(node, own, own), slot)

    def start(self, name: str, slot: bool) -> None:
        """Start a fenced node that is down, with a slot where the cluster uses slots."""
        node = next(Node(e["name"], e["host"], e["port"], e["priority"], e["address"]) for e in self._run.params["nodes"] if e["name"] == name)
        if slot:
            self.ensure_slot(node)
        guardian = self._run.guardians["node", name]
        guardian.call("hold", Deadline(15), patience=10)
        guardian.call("start", Deadline(self._timeout), timeout=self._timeout)
        self.follow(node)

    def wait_until_streaming(self, node: Node) -> None:
        session = self._run.session(node)
        wait_for(
            "streaming of %s from %s on timeline %d" % (node.name, self._primary.name, self.timeline),
            lambda: receiver(session),
            lambda row: (
                row.get("status") == "streaming" and row["timeline"] >= self.timeline and self._primary.listens_at(row["sender_host"], row["sender_port"])
            ),
            Deadline(self._timeout),
            interval=0.05,
            action="See the log of %s: a slot, WAL, a line of pg_hba.conf or the password of the replication user may be missing on %s"
            % (node.name, self._primary.name),
        )

    def drop_stale_slots(self) -> None:
        """Slots that were needed while their node was the primary and now would only hold WAL."""
        now = self._run.observe()
        for node in now.standbys:
            for name in self._run.stale_slots(now, node):
                drop_idle_slot(self._run.session(node), name, Deadline(self._timeout))

    def drop_slot(self, name: str) -> None:
        """On the primary."""
        drop_idle_slot(self.session, name, Deadline(self._timeout))

    def reset_retry(self) -> None:
        change_settings(self.session, {"wal_retrieve_retry_interval": None})


class Window:
    """The switchover itself; its methods are the plan's steps, in order."""

    def __init__(self, run: Run, seen: Seen, old: Node, checks: Conditions, awaited: t.Sequence[Node] = ()) -> None:
        """``awaited``: standbys that the first commits on the candidate may wait for."""
        self.run = run
        self.awaited = {node.name: node for node in awaited}
        self.sessions_of_awaited: dict[str, Session] = {}
        self.checks = checks
        self.seen = seen
        self.old_node = old
        self.new_node = seen.candidate
        self.redirection = Redirection(run, seen.poolers, self.old_node, self.new_node)
        self.finish = Finish(run, seen.candidate, run.params["timeout"])
        self.timeout: float = run.params["timeout"]
        self.limit = Deadline(0)
        self.undo: list[t.Callable[[], None]] = []
        self.reset_retry: t.Callable[[], None] = bind(lambda: None)
        self.armed = False
        self.phase = "prepare"
        self._slots_wanted = False

    # Every step goes through here: one place knows the way back.
    def guarded(self, do: t.Callable[[], t.Any]) -> t.Callable[[], None]:
        def run() -> None:
            try:
                do()
            except BaseException as error:
                if self.phase == "done" and isinstance(error, OperationError):
                    # The next run does not know what it was.
                    with contextlib.suppress(OperationError):
                        self.redirection.restore_settings()
                    raise NotConfirmed(
                        "%s is the new primary and the poolers lead to it, but not everything follows yet: %s" % (self.new_node.name, error),
                        action="Run the switchover again: it finishes what is left",
                        **error.facts,
                    ) from error
                outcomes, now = self.recover()
                if not isinstance(error, OperationError) or (isinstance(error, Refused) and self.phase == "prepare"):
                    raise
                raise self._failure(error, outcomes, now) from error

        return run

    def _failure(self, error: OperationError, outcomes: dict[str, str], now: Cluster) -> OperationError:
        facts = {**self.run.result, **error.facts, "phase": self.phase, "recovery": outcomes, "timing_ms": self.run.timing}
        primary = now.primary
        if primary is not None and primary.name == self.old_node.name:
            good = ("it leads to %s" % self.old_node.name, "it was never stopped", "it was started again as the primary")
            lost = ["%s (%s)" % (name, text) for name, text in outcomes.items() if not text.endswith(good)]
            return RolledBack(
                "the switchover to %s failed and was rolled back, %s is the primary as before: %s" % (self.new_node.name, self.old_node.name, error),
                action="Not put back: %s" % "; ".join(lost)
                if lost
                else "The poolers lead to %s again" % self.old_node.name
                if self.redirection.poolers
                else None,
                **facts,
            )
        facts["cluster"] = self.run.describe(now)
        if primary is not None and primary.name == self.new_node.name:
            return NotConfirmed(
                "%s is the new primary and the poolers lead to it, but the switchover did not end well: %s" % (primary.name, error),
                action="Run the switchover again: it finishes what is left",
                **facts,
            )
        return NotConfirmed(
            "the switchover failed and no node, or more than one, accepts writes now (%s): %s" % (", ".join(n.name for n in now.primaries) or "none", error),
            action="Look at both nodes before you start or promote anything; guardians: %s" % outcomes,
            **facts,
        )

    def recover(self) -> tuple[dict[str, str], Cluster]:
        """Let every guardian put its part back, as they would without us, then take back what was prepared.

        Returns what each guardian did and the cluster as it is then.
        """
        outcomes: dict[str, str] = {}
        silent: list[Guardian] = []
        patience = Deadline(self.timeout + 5)
        if self.armed:
            # The poolers first: they wait for a node to accept writes, and one that does not answer must not hold up the others.
            guardians = [*self.redirection.guardians, self.guard_candidate, self.guard_node]
            for guardian in guardians:
                ask_to_recover(guardian)
            for guardian in guardians:
                try:
                    outcomes[guardian.name] = told_of_recovery(guardian, patience)
                except OperationError as error:
                    outcomes[guardian.name] = "recovery failed: %s" % error
                    silent.append(guardian)
            # A pooler whose guardian has died would stay paused.
            for guardian in [one for one in silent if one in self.redirection.guardians]:
                with contextlib.suppress(OperationError):
                    outcomes[guardian.name] = self.redirection.recover_with_another(guardian, Deadline(self.timeout))
        now = self.run.observe()
        went_back = now.primary is not None and now.primary.name == self.old_node.name
        # Where the candidate was promoted, the old primary needs what was prepared for it as a standby.
        for undo in reversed([self.reset_retry, self.redirection.restore_settings, *(self.undo if went_back else [])]):
            try:
                undo()
            except OperationError as error:
                outcomes["prepared settings"] = "recovery failed: %s" % error
        return outcomes, now

    # -- before the window -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        run, params = self.run, self.run.params
        run.mark(None)
        deadline = Deadline(params["prepare_timeout"])
        self.guard_node = run.guardians["node", self.old_node.name]
        self.guard_candidate = run.guardians["node", self.new_node.name]
        run.hold([self.old_node, self.new_node])
        self.old = run.session(self.old_node)
        self.new = run.session(self.new_node)
        # What was seen before the lock was ours may not be true any more.
        roles = [self.old.value("SELECT pg_is_in_recovery()"), self.new.value("SELECT pg_is_in_recovery()")]
        if roles != [False, True]:
            raise Refused("the cluster has changed since it was looked at: %s is not the primary any more" % self.old_node.name, action="Run it again")
        self.sessions_of_awaited = {name: run.session(node) for name, node in self.awaited.items()}
        self.redirection.prepare(deadline)
        run.mark("connect")
        self.reset_retry = self._set(self.new_node, self.new, "wal_retrieve_retry_interval", RETRIEVE_RETRY)
        self._slots_wanted = run.uses_slots(self.seen.cluster)
        own = self.old.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'") or ""
        model = (self.new_node.state or {}).get("primary_conninfo") or ""
        self.undo.append(self._set(self.old_node, self.old, "primary_conninfo", self.finish.conninfo(self.old_node, own, model)))
        if self._slots_wanted:
            self.undo.append(self._set(self.old_node, self.old, "primary_slot_name", run.slot_of(self.old_node)))
        # Twice: what the first one's own time dirtied is little, so that the shutdown checkpoint is short.
        for session in (self.old, self.old, self.new):
            session.ask("CHECKPOINT", deadline)
        run.mark("checkpoint")
        self.old.ask(FRESH_SEGMENT, deadline)
        head = lsn_to_int(self.old.ask_value("SELECT pg_current_wal_flush_lsn()", deadline) or "0/0")
        self._wait_for_replay(head, deadline.within(params["timeout"]))
        run.mark("catch_up")
        self.redirection.warm_up(deadline.within(params["timeout"]))
        run.mark("warm_up")
        # A checkpoint can take minutes, in which transactions grow old.
        self.checks.look_again(self.old)
        # Its backend would have to end before the old primary can.
        self.old.close()

    def _set(self, node: Node, session: Session, name: str, value: str) -> t.Callable[[], None]:
        """ALTER SYSTEM; returns its undo, which has a session of its own because this one may not survive."""
        before = read_setting(session, name)
        # The short retry interval is left over from a run that was killed, if it is set there: nothing to go back to.
        left_over = before.own and before.value == value and name == "wal_retrieve_retry_interval"
        if before.value == value and not left_over:
            return bind(lambda: None)
        change_settings(session, {name: value})
        kept = dataclasses.replace(before, own=before.own and not left_over)
        return bind(self._put_back, node, kept)

    def _put_back(self, node: Node, kept: Setting) -> None:
        put_back_settings(self.run.session(node), [kept])

    def _wait_for_replay(self, position: int, deadline: Deadline) -> None:
        """Until the candidate has replayed past a position (bytes)."""
        while True:
            replayed = lsn_to_int(self.new.ask_value("SELECT pg_last_wal_replay_lsn()", deadline) or "0/0")
            if replayed >= position:
                return
            if deadline.passed:
                raise WaitTimeout(
                    "the candidate %s has not replayed the WAL of %s within %g s, %d bytes are missing"
                    % (self.new_node.name, self.old_node.name, deadline.seconds, position - replayed)
                )
            time.sleep(0.0005)

    # -- the window ------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """From here on a guardian acts when we do not. Forward has half of the time limit, the way back the other half."""
        run = self.run
        self.phase = "arm"
        half = self.timeout / 2
        self.limit = Deadline(half - min(1.0, half / 4))
        self.armed = True
        self.redirection.arm(half, self.limit)
        for guardian in (self.guard_candidate, self.guard_node):
            guardian.call("arm", self.limit, limit=half)
        self.guard_node.call("fence", self.limit)
        run.mark("fence")

    def pause(self) -> None:
        run = self.run
        run.mark(None)
        self._arm()
        self.phase = "pause"
        self.redirection.prove_files(self.limit)
        run.mark("prove_files")
        self.redirection.close_idle(self.limit)
        run.mark("close_idle")
        bound = self.limit.within(run.params["pause_timeout"])
        self.redirection.quicken_logins(bound)
        run.mark("wait_for_logins")
        self.paused_at = time.monotonic()
        self.redirection.hold_back(bound, self.old_node.name)
        run.mark("pause")

    def end_sessions(self) -> None:
        """Only now, when everything else is paused: this cannot be taken back."""
        self.run.result["terminated_sessions"] = self.redirection.end_sessions(self.limit)
        self.run.mark("end_sessions")

    def stop(self) -> None:
        run = self.run
        if not self.armed:  # no poolers
            run.mark(None)
            self._arm()
            self.paused_at = time.monotonic()
        self.phase = "stop"
        self.guard_node.start("stop", timeout=max(0.1, self.limit.left - 0.1))
        # The poolers' files change while the old primary writes its shutdown checkpoint.
        self.redirection.write_files(self.limit)
        run.mark("write_files")
        self.shutdown_checkpoint = int(self.guard_node.finish(self.limit)["checkpoint"])
        run.mark("stop")

    def promote(self) -> None:
        run = self.run
        self.phase = "replay"
        # The replay position is the end of the last record: past the checkpoint's start means that the record is replayed.
        self._wait_for_replay(self.shutdown_checkpoint + 1, self.limit)
        run.mark("replay")
        self.phase = "release"
        self.guard_node.call("release", self.limit)
        self.phase = "promote"
        self.guard_candidate.call("promote", self.limit)
        wait_until_promoted(self.new, self.new_node, self.limit)
        run.mark("promote")

    def resume(self) -> None:
        run = self.run
        self.phase = "resume"
        run.result["paused_ms"] = self.redirection.let_go(self.limit)
        run.mark("check_poolers")

    # -- after the window ------------------------------------------------------------------------------------------

    def rejoin(self) -> None:
        run = self.run
        self.phase = "rejoin"
        if not self.redirection.poolers:
            run.result["paused_ms"] = round((time.monotonic() - self.paused_at) * 1000, 1)
        # Slots first: a follower that names one does not stream without it.
        if self._slots_wanted:
            self.finish.ensure_slot(self.old_node)
        run.mark(None)
        self.guard_node.start("start", timeout=self.timeout)
        # Clients that commit synchronously have begun to wait. What fails here fails again in the step that is about that standby.
        for name, session in self.sessions_of_awaited.items():
            with contextlib.suppress(OperationError):
                self.finish.point(self.awaited[name], session)
        self.guard_node.finish(Deadline(self.timeout))
        run.mark("start_old_primary")
        self.finish.wait_until_streaming(self.old_node)
        run.mark("stream")
        self.redirection.let_go_of_the_rest(self.limit)
        self.redirection.disarm()
        for guardian in (self.guard_node, self.guard_candidate):
            guardian.call("disarm", Deadline(5))
        self.armed = False
        # Nothing is left that could go back, and what was set for the way there is taken back in settle().
        self.phase = "done"

    def follow(self, node: Node) -> None:
        self.finish.follow(node)

    def settle(self) -> None:
        run = self.run
        self.reset_retry()
        self.redirection.restore_settings()
        self.finish.drop_stale_slots()
        run.mark("settle")
        run.result["timing_ms"] = run.timing
        run.result["old_primary"] = self.old_node.name
        run.result["timeline_before"] = self.old_node.timeline


def bind(function: t.Callable[..., t.Any], *arguments: t.Any) -> t.Callable[[], t.Any]:
    return lambda: function(*arguments)
