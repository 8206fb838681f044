# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The steps of a failover, and the one way back from any of them before the promotion."""

from __future__ import annotations

import contextlib
import typing as t

from .._cluster.model import Node
from .._errors import NotConfirmed, OperationError, RolledBack, WaitTimeout
from .._sql.settings import Setting, put_back_settings, read_setting
from .._sql.standby import point_at
from .._wait import Deadline, wait_for
from .members import Run
from .poolers import Pooler, Redirection
from .promotion import ANSWER_SECONDS, Looked, Promotion, prove_writable
from .switchover_window import Finish

# How long the server of a primary that nobody reaches may take to end, in seconds; a third of it for a clean shutdown.
END_SECONDS = 9
# How long a standby may take to receive what another one has, in seconds.
CATCH_UP_SECONDS = 30
# How long the candidate may take to make slots, or to drop them again, in seconds. All clients wait meanwhile.
SLOT_SECONDS = 3


class Steps:
    """What the plan of a failover does.

    ``still_silent`` raises an error where a node that the user vouches for is reached after all, ``refuse_loss`` where a server that was ended has
    left more WAL behind than may be lost.
    """

    def __init__(
        self, run: Run, promotion: Promotion, looked: Looked, candidate: Node, lost: Node | None, followers: t.Sequence[Node], poolers: t.Sequence[Pooler],
        limit_bytes: int, still_silent: t.Callable[[], None], refuse_loss: t.Callable[[], None],
    ) -> None:  # fmt: skip
        self.candidate = candidate
        self.redirection = Redirection(run, poolers, lost, candidate, tolerant=True)
        self._run = run
        self._promotion = promotion
        self._looked = looked
        self._followers = followers
        self._limit_bytes = limit_bytes
        self._still_silent = still_silent
        self._refuse_loss = refuse_loss
        self._finish = Finish(run, candidate, run.params["timeout"])
        self._limit = Deadline(0)
        self._taken: list[str] = []
        self._ended: list[str] = []
        self._borrowed: list[Setting] = []
        self._stray: dict[str, str] = {}
        self.phase = "hold"
        self.promoted = False

    # Every step goes through here: one place knows the way back.
    def guarded(self, do: t.Callable[[], t.Any]) -> t.Callable[[], None]:
        def run() -> None:
            try:
                do()
            except OperationError as error:
                facts = {"phase": self.phase, "timing_ms": self._run.timing, **error.facts}
                if self.promoted or isinstance(error, NotConfirmed):
                    if not self.promoted:
                        facts["recovery"] = self._let_guardians_lead()
                    raise type(error)(error.message, error.expected, error.action, **facts) from error
                facts["recovery"] = self._take_back()
                if self.phase == "hold":
                    raise
                # What could not be put back has changed.
                facts["changed"] = bool(self._taken)
                raise RolledBack("the failover to %s failed, nothing was promoted: %s" % (self.candidate.name, error), **facts) from error

        return run

    def _take_back(self) -> dict[str, str]:
        """Nothing was promoted: what was ended starts again as what it was, and the poolers go wherever a node accepts writes."""
        outcomes: dict[str, str] = {}
        if self._taken and not self._promotion.is_unpromoted():
            # Its fence is the only thing that keeps two from being primaries.
            outcomes = {name: "it stays fenced: whether %s is being promoted is not known" % self.candidate.name for name in self._taken}
            return {**outcomes, **self._let_guardians_lead()}
        for name in list(self._taken):
            try:
                if name in self._ended:
                    outcomes[name] = self._promotion.put_back(name, END_SECONDS)
                else:
                    self._promotion.unfence(name)
                    outcomes[name] = "it is not fenced any more"
                self._taken.remove(name)
            except OperationError as error:
                outcomes[name] = "it stays fenced: %s" % error.message
        with contextlib.suppress(OperationError):
            self._finish.let_go_of_wal(Deadline(SLOT_SECONDS))
        if self._borrowed:
            with contextlib.suppress(OperationError):
                self._give_back()
        outcomes.update(self._let_guardians_lead())
        return outcomes

    def _let_guardians_lead(self) -> dict[str, str]:
        outcomes = self.redirection.recover(Deadline(self._run.params["timeout"] + 5)) if self.redirection.armed else {}
        with contextlib.suppress(OperationError):
            self.redirection.restore_settings()
        return outcomes

    # -- the steps, in order ---------------------------------------------------------------------------------------

    def hold(self) -> None:
        self._run.mark(None)
        self._promotion.hold(self._looked)
        self.redirection.prepare(Deadline(ANSWER_SECONDS), old_is_lost=True)
        self._run.mark("hold")

    def pause(self) -> None:
        """Clients wait from here on instead of getting errors."""
        self.phase = "pause"
        half = self._run.params["timeout"] / 2
        self._limit = Deadline(half - min(1.0, half / 4))
        self.redirection.arm(half, self._limit)
        bound = self._limit.within(self._run.params["pause_timeout"])
        self.redirection.quicken_logins(bound)
        busy = self.redirection.hold_back(bound, self.candidate.name, complete=False)
        if busy:
            self._run.warn("clients of %s still wait for the lost primary: they get their error when the network gives up" % ", ".join(busy))
        self._run.mark("pause")

    def end(self, name: str) -> None:
        """End a server that runs and that nobody reaches."""
        self.phase = "fence"
        self._taken.append(name)
        if next(member for member in self._looked.members if member.name == name).host["pid"] is not None:
            self._ended.append(name)
        self._promotion.end(name, END_SECONDS)
        self._run.mark("fence")

    def fence(self, name: str) -> None:
        """Let whatever starts a node that is down start a standby."""
        self.phase = "fence"
        self._taken.append(name)
        self._promotion.fence(name)
        self._run.mark("fence")

    def catch_up(self, ahead: Node) -> None:
        """Let the candidate receive what another standby has."""
        self.phase = "catch_up"
        run, session = self._run, self._run.session(self.candidate)
        self._borrowed = [read_setting(session, name) for name in ("primary_conninfo", "primary_slot_name")]
        own = session.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'") or ""
        point_at(session, Finish(run, ahead, CATCH_UP_SECONDS).conninfo(self.candidate, own, own), "")
        wanted = ahead.received or 0
        try:
            wait_for(
                "the WAL of %s on %s" % (ahead.name, self.candidate.name),
                lambda: int(session.value("SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn") or 0),
                lambda position: position >= wanted,
                Deadline(CATCH_UP_SECONDS),
                interval=0.05,
                action="See the log of %s: pg_hba.conf of %s or the password of the replication user may be missing" % (self.candidate.name, ahead.name),
            )
        except WaitTimeout as error:
            # The last look says whether that is more than may be lost.
            run.warn(error.message)
        run.mark("catch_up")

    def _give_back(self) -> None:
        put_back_settings(self._run.session(self.candidate), self._borrowed)
        self._borrowed = []

    def promote(self) -> None:
        self.phase = "promote"
        self._still_silent()
        if self._ended:
            self._refuse_loss()
        self._finish.hold_wal(self._followers, Deadline(SLOT_SECONDS))
        self._promotion.max_data_loss_bytes = self._limit_bytes
        self._promotion.promote(self._run.params["promote_timeout"])
        self.promoted = True
        self._run.mark("promote")

    def lead(self) -> None:
        """Files and run time of the poolers to the new primary, and off they go."""
        self.phase = "lead"
        self.redirection.write_files(self._limit)
        self._run.result["paused_ms"] = self.redirection.let_go(self._limit)
        # Those that did not do as they were told, or whose guardian was faster.
        self.redirection.lead_what_is_left(Deadline(self._run.params["timeout"] + 5))
        self.redirection.let_go_of_the_rest(Deadline(5))
        self.redirection.disarm()
        self._run.mark("lead")

    def follow(self, node: Node) -> None:
        self.phase = "follow"
        try:
            self._finish.follow(node)
        except OperationError as error:
            # The others go on.
            self._stray[node.name] = str(error).rstrip(".")
        self._run.mark("follow")

    def settle(self) -> None:
        self.phase = "settle"
        problems = dict(self._stray)
        for what, do in (
            ("settings of %s" % self.candidate.name, self._give_back if self._borrowed else None),
            ("slots", self._finish.drop_stale_slots),
            ("settings of the poolers", self.redirection.restore_settings),
            (self.candidate.name, lambda: prove_writable(self._run, self.candidate)),
        ):
            try:
                if do:
                    do()
            except OperationError as error:
                problems[what] = error.message
        self._run.mark("settle")
        self._run.result["timing_ms"] = self._run.timing
        if problems:
            raise NotConfirmed(
                "%s is the new primary%s, but not everything is as it should be: %s"
                % (
                    self.candidate.name,
                    " and the poolers lead to it" if self.redirection.poolers and not self.redirection.left else "",
                    "; ".join("%s (%s)" % item for item in sorted(problems.items())),
                ),
                action="Run the failover again: it finishes what is left",
                **self._run.result,
            )
