# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Promoting a standby with proof that no other member is, or becomes, a primary. The only way to a promotion without a primary.

Every member is held by its guardian from before the last look until the end, so that two operations never promote at once.
The guardian of the candidate promotes it, within a limit: a controller that has slept cannot promote on what it saw before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t

from .._cluster.model import Cluster, Node
from .._cluster.promotion import Judgement, Member, judge
from .._errors import NotConfirmed, OperationError, QueryFailed, Refused, SplitBrainRisk, WaitTimeout
from .._host.guardian import GuardianFailed
from .._parallel import ask_all
from .._sql.connection import Session, connect
from .._sql.standby import ENDS_RECOVERY
from .._wait import Deadline
from .members import Run

# One server or one host, in seconds. A shell that waits for a dead host ends before.
ANSWER_SECONDS = 15
# From the beginning of the last look to the promotion, in seconds.
DECISION_SECONDS = 120

_SERVER = """
SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1) AS postmaster_pid,
  (pg_stat_file('standby.signal', true)).modification IS NOT NULL AS standby_signal,
  (pg_stat_file('promote', true)).modification IS NOT NULL AS promote_file
"""
# An error where a promotion has begun, and nothing at all otherwise. The server shows it nowhere else.
_PROMOTION_BEGUN = "SELECT CASE WHEN pg_is_in_recovery() AND NOT pg_is_wal_replay_paused() THEN pg_wal_replay_resume()::text END"


@dataclasses.dataclass(frozen=True)
class Looked:
    """All members at one moment, and what follows."""

    cluster: Cluster
    members: t.Sequence[Member]
    judgement: Judgement

    @property
    def held(self) -> list[Node]:
        """Those that can be held."""
        return [member.node for member in self.members if member.host is not None]


class Promotion:
    """The promotion of one candidate. ``fenced`` names the members that the user vouches for; ``what`` is the operation, for messages."""

    def __init__(
        self, run: Run, candidate: str, fenced: t.Collection[str] = (), max_data_loss_bytes: int = 0, what: str = "promotion", may_stop: bool = False,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:  # fmt: skip
        self._run = run
        self._candidate = candidate
        self._fenced = fenced
        self._may_stop = may_stop
        self._answer_seconds = answer_seconds
        self.max_data_loss_bytes = max_data_loss_bytes
        self._what = what
        self._held: set[str] = set()
        self.proved: Looked | None = None
        """What the promotion was based on."""

    # Looking

    def look(self) -> Looked:
        """Ask every server and every host. Changes nothing."""
        cluster = self._run.observe(min(10, self._answer_seconds))
        members = []
        deadline = Deadline(4 * self._answer_seconds)
        for node, answer in zip(cluster.nodes, ask_all(cluster.nodes, self._ask, deadline)):
            if isinstance(answer, Refused):
                raise answer
            if isinstance(answer, OperationError):
                # It answered a moment ago. Whatever its guardian still answers would be taken for the answer to another request.
                self._forget_guardian(node)
                silent = dataclasses.replace(node, state=None, problem=answer.message, problem_kind=type(answer).__name__)
                answer = Member(silent, host_problem="not asked")
            members.append(dataclasses.replace(answer, vouched=node.name in self._fenced))
        candidate = next(member for member in members if member.name == self._candidate)
        return Looked(cluster, members, judge(members, candidate, self.max_data_loss_bytes, self._may_stop))

    def _ask(self, node: Node) -> Member:
        server = self._ask_server(node) if node.role == "standby" else None
        try:
            host = self._ask_host(node)
        except OperationError as error:
            if not isinstance(error, GuardianFailed):
                self._forget_guardian(node)
            return Member(node, server, host_problem=str(error))
        if not node.reachable and not host["here"]:
            return Member(node, host_problem="its shell leads to a host that has none of its addresses; set nodes[].address to one that it has")
        return Member(node, server, host)

    def _ask_server(self, node: Node) -> dict[str, t.Any]:
        deadline = Deadline(self._answer_seconds)

        def ask(session: Session) -> dict[str, t.Any]:
            if session.ask_value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", deadline) != "t":
                raise Refused(
                    'the login "%s" is no superuser on %s, nothing was changed' % (session.target.user, node.name),
                    expected="a superuser",
                    action="Set the option login_user",
                )
            facts = session.ask(_SERVER, deadline)[0]
            begun = "the file promote is there" if facts["promote_file"] == "t" else None
            try:
                session.ask(_PROMOTION_BEGUN, deadline)
            except QueryFailed as error:
                begun = error.message
            return {
                "postmaster_pid": int(facts["postmaster_pid"] or 0),
                "standby_signal": facts["standby_signal"] == "t",
                "being_promoted": begun,
                "ends_recovery": [row["name"] for row in session.ask(ENDS_RECOVERY, deadline)],
            }

        if self._run.readers is not None:
            return self._run.readers.ask(self._run.target(node), deadline, ask)
        session = connect(self._run.target(node), timeout=deadline.left, read_only=True)
        try:
            return ask(session)
        finally:
            session.close()

    def _ask_host(self, node: Node) -> dict[str, t.Any]:
        entry = self._run.entry(node)
        guardian = self._run.guardians.get(("node", node.name))
        if guardian is None:
            directory = entry["data_directory"] or (node.state or {}).get("data_directory")
            if not directory:
                raise Refused("the option data_directory of %s is not set" % node.name)
            # Nothing is started by it.
            guardian = self._run.guardian(node.name, entry["shell"], {"part": "node", "data_directory": directory, "start_command": []})
        hosts = [host for host in (node.host, node.address) if host]
        return t.cast("dict[str, t.Any]", guardian.call("look_for_proof", Deadline(self._answer_seconds), hosts=hosts))

    def _forget_guardian(self, node: Node) -> None:
        guardian = self._run.guardians.pop(("node", node.name), None)
        if guardian is not None:
            with contextlib.suppress(OperationError):
                guardian.close()

    def refuse(self, looked: Looked) -> None:
        """Raises SplitBrainRisk where a primary answers, Refused where proof is missing or the candidate is not the right one."""
        self.refuse_primaries(looked)
        if looked.judgement.refusals:
            raise Refused(
                "%s was not promoted, nothing was changed: %s" % (self._candidate, "; ".join(looked.judgement.refusals)),
                findings=looked.judgement.refusals,
                **self._facts(looked),
            )

    def refuse_primaries(self, looked: Looked) -> None:
        """Raises SplitBrainRisk where a primary answers."""
        cluster = looked.cluster
        facts = self._facts(looked)
        if len(cluster.primaries) > 1:
            raise SplitBrainRisk(
                "more than one node is a primary: %s. Nothing was changed" % ", ".join(node.name for node in cluster.primaries),
                expected="one primary at most",
                action="Find out which one holds what must not be lost, and stop the other one with pgfleet.ops.pg_instance",
                **facts,
            )
        if cluster.primary is not None:
            raise SplitBrainRisk(
                "%s is a primary and accepts writes, nothing was changed" % cluster.primary.name,
                expected="no primary",
                action="Move a primary that is well with pgfleet.ops.pg_switchover",
                **facts,
            )

    def _facts(self, looked: Looked) -> dict[str, t.Any]:
        return {"cluster": self._run.describe(looked.cluster), "proof": describe_proof(looked)}

    # Doing

    def hold(self, looked: Looked) -> None:
        """Keep other operations from every member, until this process ends."""
        self._run.hold(looked.held, self._what)
        self._held = {node.name for node in looked.held}

    def fence(self, name: str) -> None:
        """Let whatever starts this node, which is down, start a standby."""
        self._run.guardians["node", name].call("fence_down", Deadline(ANSWER_SECONDS))

    def end(self, name: str, timeout: float) -> None:
        """Fence this node, whose server may be at work, and end all of it."""
        self._run.guardians["node", name].call("end", Deadline(timeout + ANSWER_SECONDS), timeout=timeout)

    def put_back(self, name: str, timeout: float) -> str:
        """Take back what end() did: the server starts again as what it was."""
        guardian = self._run.guardians["node", name]
        return str(guardian.call("recover", Deadline(timeout + ANSWER_SECONDS)))

    def is_unpromoted(self) -> bool:
        """Whether the candidate says that it is a standby and that nobody has told it to be anything else. No answer is no."""
        node = next((node for node in self._run.observe(self._answer_seconds).standbys if node.name == self._candidate), None)
        try:
            return node is not None and not self._ask_server(node)["being_promoted"]
        except OperationError:
            return False

    def unfence(self, name: str) -> None:
        """Take back what fence() did."""
        self._run.guardians["node", name].call("unfence", Deadline(ANSWER_SECONDS))

    def promote(self, timeout: float) -> None:
        """Hold every member, look once more, promote, wait. Raises Refused with nothing promoted, NotConfirmed where that is not known."""
        if not self._held:
            self.hold(self.look())
        guardian = self._run.guardians.get(("node", self._candidate))
        if guardian is None:
            raise Refused("%s cannot be held, nothing was changed" % self._candidate)
        guardian.call("arm", Deadline(ANSWER_SECONDS), limit=DECISION_SECONDS)
        looked = self.look()
        self.refuse(looked)
        # Who answers now and did not before was never held.
        unready = [member.name for member in looked.members if member.host is not None and member.name not in self._held]
        unready += looked.judgement.to_fence + looked.judgement.to_stop
        if unready:
            raise Refused(
                "the cluster has changed since it was looked at (%s), %s was not promoted" % (", ".join(unready), self._candidate), action="Run it again"
            )
        self.proved = looked
        for text in looked.judgement.warnings:
            self._run.warn(text)
        candidate = t.cast(Node, looked.cluster.node(self._candidate))
        session = self._run.session(candidate)
        try:
            guardian.call("promote", Deadline(ANSWER_SECONDS))
        except GuardianFailed:
            raise
        except OperationError as error:
            raise self._not_known(error) from error
        try:
            wait_until_promoted(session, candidate, Deadline(timeout), interval=0.05)
        except OperationError as error:
            raise self._not_known(error) from error
        with contextlib.suppress(OperationError):
            guardian.call("disarm", Deadline(ANSWER_SECONDS))

    def _not_known(self, error: OperationError) -> NotConfirmed:
        return NotConfirmed(
            "%s was told to promote, and whether it is the primary is not known: %s" % (self._candidate, error.message),
            expected="the end of its recovery",
            action="Nothing else was promoted or started. Before anything else is, prove that %s is not promoted: see its log, or stop it"
            " with pgfleet.ops.pg_instance" % self._candidate,
            **error.facts,
        )


def describe_proof(looked: Looked) -> dict[str, dict[str, str]]:
    """For the result."""
    return {name: dataclasses.asdict(proof) for name, proof in looked.judgement.proof.items()}


def prove_writable(run: Run, node: Node) -> None:
    """One commit, which no standby need confirm and which leaves nothing but its WAL record. Raises NotConfirmed."""
    session = connect(run.target(node), timeout=ANSWER_SECONDS)
    try:
        session.execute("SET synchronous_commit = local")
        if session.ask_value("SELECT current_setting('transaction_read_only')", Deadline(ANSWER_SECONDS)) != "off":
            raise OperationError("default_transaction_read_only is on")
        session.ask("SELECT pg_logical_emit_message(true, 'pgfleet.ops', 'promoted')", Deadline(ANSWER_SECONDS))
    except OperationError as error:
        raise NotConfirmed("%s is the primary and does not accept writes: %s" % (node.name, error.message)) from error
    finally:
        session.close()


def wait_until_promoted(session: Session, node: Node, deadline: Deadline, interval: float = 0.001) -> None:
    """Raises WaitTimeout. Nothing else may be promoted then, before this node is proved not to be."""
    while session.ask_value("SELECT pg_is_in_recovery()", deadline) != "f":
        if deadline.passed:
            raise WaitTimeout("%s was told to promote and is still in recovery after %g s" % (node.name, deadline.seconds))
        time.sleep(interval)
