# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The failover of a lost primary: never on one opinion, never without proof, and the poolers hold their clients back meanwhile.

Order:

1. look: every server, every host, every pooler; several times, and who sees what of the nodes that do not answer
2. hold every member, so that no other operation is at work on one
3. pause the poolers that led to the lost primary; their guardians lead them to whichever node accepts writes, whatever happens to this process
4. fence: standby.signal where the server is down; where it runs and reaches nobody, it is ended first
5. the candidate receives what another standby has and it has not
6. look once more, all of it; promote
7. lead the poolers, resume; the other standbys follow
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from .._cluster.failover import (
    ASYNCHRONOUS_LOSS_BYTES,
    Loss,
    Opinion,
    choose,
    count_answered,
    furthest,
    judge_loss,
    lost_node,
    still_reached,
    too_much_lost,
)
from .._cluster.model import Cluster, Node, parse_synchronous
from .._cluster.timeline import why_diverged
from .._errors import CommandFailed, InvalidInput, NotConfirmed, NotReachable, OperationError, Refused, SplitBrainRisk
from .._host.guardian import Guardian
from .._host.guardian_program import Part
from .._host.instance import find_bin_directory
from .._module import LOGIN, ArgumentSpec, Context, Operation
from .._parallel import ask_all
from .._plan import Plan
from .._sql.readers import Readers
from .._wait import Deadline
from .failover_steps import CATCH_UP_SECONDS, Steps
from .follow import read_history
from .members import MEMBER_OPTIONS, Run, check_members, check_methods
from .poolers import POOLERS, Pooler, add_resume_steps, check_poolers, find_taken_for_primary, leads_to, look_at_poolers
from .promotion import Looked, Promotion, describe_proof
from .switchover_window import Finish, bind

FAILOVER = LOGIN.merge(POOLERS).merge(
    ArgumentSpec(
        {
            "candidate": {"type": "str"},
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": MEMBER_OPTIONS},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "fenced": {"type": "list", "elements": "str", "default": []},
            "if_reached": {"type": "str", "choices": ["refuse", "fence"], "default": "refuse"},
            "max_data_loss_bytes": {"type": "int"},
            "tries": {"type": "int", "default": 3},
            "delay": {"type": "float", "default": 1},
            "answer_timeout": {"type": "float", "default": 5},
            "promote_timeout": {"type": "float", "default": 60},
            "unreachable_poolers": {"type": "str", "choices": ["skip", "fail"], "default": "skip"},
            "if_primary": {"type": "str", "choices": ["unchanged", "fail"], "default": "unchanged"},
        }
    )
)


@dataclasses.dataclass
class Seen:
    cluster: Cluster
    candidate: Node | None
    poolers: t.Sequence[Pooler] = ()
    refusals: t.Sequence[str] = ()
    looked: Looked | None = None
    opinions: t.Sequence[Opinion] = ()
    lost: Node | None = None
    loss: Loss | None = None
    diverged: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Standbys that have WAL which is no part of the primary's history, and why."""


class Failover(Operation):
    """Makes the best standby the primary of a cluster that has lost its own; finishes a failover that was interrupted."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.run = Run({**params, "lag_limit_bytes": 16777216, "prepare_timeout": 60}, Readers())
        self._promotion: Promotion | None = None
        self._first: Seen | None = None
        self._steps: Steps | None = None

    def close(self) -> None:
        self.run.close()

    def prepare(self) -> None:
        """Open the connections that a failover needs, for a process that waits for the loss of a primary: decision and steps then take these.

        A part of the cluster that does not answer is left out.
        """
        self._check()
        cluster = self._ask_servers()
        self._start_guardians(cluster)
        poolers = look_at_poolers(self.run, cluster, cluster.primary, []) if cluster.primary else []
        self.run.set_aside({pooler.name: pooler.console for pooler in poolers if pooler.console})

    # -- what is there ---------------------------------------------------------------------------------------------

    def observe(self) -> Seen:
        self._check()
        if self._first is not None:
            # Afterwards.
            return self._observe_primary(self.run.observe())
        cluster = self._look_for_a_primary()
        self._first = self._observe_primary(cluster) if cluster.primaries else self._observe_loss(cluster)
        return self._first

    def _check(self) -> None:
        params = self.params
        check_members({**params, "candidate": params["candidate"] or params["nodes"][0]["name"]} if params["nodes"] else params)
        check_methods(params)
        check_poolers(params)
        names = {entry["name"] for entry in params["nodes"]}
        for option in ("exclude", "fenced"):
            unknown = sorted(set(params[option]) - names)
            if unknown:
                raise InvalidInput("the option %s names nodes that are not in the option nodes: %s" % (option, ", ".join(unknown)))
            if params["candidate"] in params[option]:
                raise InvalidInput("the option %s names the candidate %s" % (option, params["candidate"]))
        for option, least in (("max_data_loss_bytes", 0), ("tries", 1), ("delay", 0), ("answer_timeout", 0.1), ("promote_timeout", 0.1)):
            if params[option] is not None and params[option] < least:
                raise InvalidInput("%s is %g" % (option, params[option]), expected="%g or more" % least)

    def _look_for_a_primary(self) -> Cluster:
        """The cluster as it is at the last of all tries, or at the first at which a primary answers."""
        cluster = self._ask_servers()
        # What is sampled first is what must not have moved in the end.
        self._received_before = {node.name: node.received for node in cluster.standbys}
        for _again in range(self.params["tries"] - 1):
            if cluster.primaries:
                break
            time.sleep(self.params["delay"])
            cluster = self._ask_servers()
        return cluster

    def _ask_servers(self) -> Cluster:
        return self.run.observe(timeout=self.params["answer_timeout"])

    def _observe_primary(self, cluster: Cluster) -> Seen:
        """A primary answers. What a failover that was interrupted has left leads to nodes that do not."""
        primary = cluster.primary
        if primary is None:
            return Seen(cluster, primary)
        lost = [node for node in cluster.nodes if not node.reachable]
        astray = [node for node in cluster.standbys if not node.streaming or (node.timeline or 0) < (primary.timeline or 0)]
        astray += [node for node in find_taken_for_primary(self.run, cluster) if node not in astray]
        # Where all is well the poolers are asked no more than that.
        if not (lost or astray or self._steps):
            return Seen(cluster, primary)
        poolers = look_at_poolers(self.run, cluster, primary, lost, astray)
        return Seen(cluster, primary, poolers, diverged=self._find_diverged(primary, astray) if astray else {})

    def _find_diverged(self, primary: Node, astray: t.Sequence[Node]) -> dict[str, str]:
        timeline = primary.timeline or 0
        history = read_history(self.run.session(primary, read_only=True), timeline)
        if history is None:
            return {}
        reasons = {node.name: why_diverged(node.timeline or 0, node.received or 0, timeline, history) for node in astray}
        return {name: reason for name, reason in reasons.items() if reason}

    def _observe_loss(self, cluster: Cluster) -> Seen:
        params = self.params
        chosen, refused = choose(cluster, params["exclude"])
        candidate = cluster.node(params["candidate"]) if params["candidate"] else chosen
        if candidate is None:
            return Seen(cluster, None, refusals=refused)
        self._start_guardians(cluster)
        # The look itself refuses no loss: that is judged here, with all that can be known, and once more by the last look.
        self._promotion = Promotion(self.run, candidate.name, params["fenced"], 2**63, what="failover", may_stop=True, answer_seconds=params["answer_timeout"])
        looked = self._promotion.look()
        cluster = looked.cluster
        candidate = t.cast(Node, cluster.node(candidate.name))
        lost = lost_node(cluster, looked.members)
        silent = [node for node in cluster.nodes if not node.reachable]
        poolers = look_at_poolers(self.run, cluster, candidate, silent)
        opinions = self._ask_around(cluster, silent, poolers)
        loss = judge_loss(cluster, candidate, looked.members, lost, self._wal_beyond(candidate, lost, looked))
        return Seen(cluster, candidate, poolers, (), looked, opinions, lost, loss)

    def _start_guardians(self, cluster: Cluster) -> None:
        for node in cluster.nodes:
            entry = self.run.entry(node)
            directory = entry["data_directory"] or (node.state or {}).get("data_directory")
            if not directory:
                continue
            # A host that cannot be asked is asked again by the look, which takes note of the reason.
            with contextlib.suppress(CommandFailed, NotReachable):
                self.run.guardian_of_node(node, directory, entry["config_file"] or (node.state or {}).get("config_file"))

    def _ask_around(self, cluster: Cluster, silent: t.Sequence[Node], poolers: t.Sequence[Pooler]) -> list[Opinion]:
        """What this host, the hosts of the standbys and of the poolers, and the standbys' receivers see of the nodes that do not answer us."""
        seconds = self.params["answer_timeout"]
        found: list[Opinion] = []
        if not silent:
            return found

        def ask(observer: tuple[str, Guardian | None]) -> list[Opinion]:
            name, guardian = observer
            # This host reaches a node by its host, the others by the address that they are given.
            addresses = [[node.host if guardian is None else node.peer_address, node.port] for node in silent]
            if guardian is None:
                answers = Part.knock(addresses, seconds)
            else:
                answers = guardian.call("knock", Deadline(seconds + 5), addresses=addresses, timeout=seconds)
            return [Opinion(name, node.name, answer) for node, answer in zip(silent, answers)]

        observers: list[tuple[str, Guardian | None]] = [("this host", None)]
        for node in cluster.standbys:
            if ("node", node.name) in self.run.guardians:
                observers.append(("the host of %s" % node.name, self.run.guardians["node", node.name]))
        observers += [("the host of %s" % pooler.name, pooler.guardian) for pooler in poolers if pooler.guardian]
        for (name, _guardian), answer in zip(observers, ask_all(observers, ask, Deadline(seconds + 6))):
            if isinstance(answer, OperationError):
                found += [Opinion(name, node.name, "unknown", "it could not be asked: %s" % answer.message.rstrip(".")) for node in silent]
            else:
                found += answer
        for node in cluster.standbys:
            upstream = cluster.upstream(node)
            if upstream in silent and node.streaming:
                moved = (node.received or 0) - (self._received_before.get(node.name) or 0)
                if moved > 0:
                    found.append(Opinion(node.name, t.cast(Node, upstream).name, "active", "its receiver has got %d bytes from it while we looked" % moved))
                else:
                    found.append(Opinion(node.name, t.cast(Node, upstream).name, "silent", "its receiver is connected and gets nothing"))
        found += self._ask_traffic(silent, poolers)
        return found

    def _refuse_if_reached(self, seen: Seen) -> None:
        """Whoever vouches for a node that is gone may be wrong. Raises SplitBrainRisk."""
        vouched = [node for node in seen.cluster.nodes if not node.reachable and node.name in self.params["fenced"]]
        reached = [opinion for opinion in self._ask_around(seen.cluster, vouched, seen.poolers) if opinion.reaches]
        if reached:
            raise SplitBrainRisk(
                "the option fenced names %s, which is reached (%s)" % (reached[0].about, "; ".join(map(str, reached))),
                expected="a node that is fenced for good",
            )

    @staticmethod
    def _ask_traffic(silent: t.Sequence[Node], poolers: t.Sequence[Pooler]) -> t.Iterator[Opinion]:
        """A pooler whose server connections still finish requests reaches a node, although that may take no new connection.

        A request that a dead host has swallowed stays active for ever; one that was answered leaves its connection idle. PgBouncer's counters of
        transactions are of no use here, as they count the refused ones, too.
        """

        def sample() -> dict[tuple[str, str, str], tuple[str, str]]:
            found = {}
            for pooler in poolers:
                if pooler.console is None or pooler.view.problem:
                    continue
                with contextlib.suppress(OperationError):
                    for row in pooler.console.show("SERVERS"):
                        entry = pooler.entries.get(str(row["database"]), {})
                        led = next((n for n in silent if leads_to(n, entry)), None)
                        if led:
                            found[pooler.name, led.name, str(row["ptr"])] = (str(row["state"]), str(row["request_time"]))
            return found

        before = sample()
        if not before:
            return
        # The times have whole seconds.
        time.sleep(1.1)
        for (pooler_name, about), count in count_answered(before, sample()).items():
            yield Opinion(pooler_name, about, "active", "%d of its server connections have answered while we looked" % count)

    def _wal_beyond(self, candidate: Node, lost: Node | None, looked: Looked) -> int | None:
        """Bytes of WAL that a primary has on its disk and no standby has; None where that cannot be read, or need not be as it was shut down."""
        member = next((member for member in looked.members if lost and member.name == lost.name), None)
        if lost is None or member is None or member.host is None or not member.host["crashed"] or member.timeline != candidate.timeline:
            return None
        entry = self.run.entry(lost)
        directory = entry["bin_directory"] or os.path.dirname(self._waldump(candidate))
        end = self.run.guardians["node", lost.name].call(
            "end_of_wal", Deadline(CATCH_UP_SECONDS + 5), program=os.path.join(directory, "pg_waldump"), timeline=candidate.timeline,
            start=candidate.position("replayed_lsn"), timeout=CATCH_UP_SECONDS,
        )  # fmt: skip
        if end is None:
            return None
        cluster = looked.cluster
        if member.host["pid"] is not None or member.host["orphans"]:
            # It writes on, and standbys that it still reaches have got that by now.
            cluster = self._ask_servers()
            candidate = next((node for node in cluster.standbys if node.name == candidate.name), candidate)
        return max(0, end - (furthest(cluster, candidate).received or 0))

    def _refuse_loss(self, seen: Seen) -> None:
        """What a server that had to be ended has on its disk is final only then. Raises Refused."""
        looked, name = t.cast(Promotion, self._promotion).look(), t.cast(Node, seen.candidate).name
        candidate = t.cast(Node, looked.cluster.node(name))
        if seen.lost is None or not candidate.reachable:
            return
        seen.loss = judge_loss(looked.cluster, candidate, looked.members, seen.lost, self._wal_beyond(candidate, seen.lost, looked))
        found = too_much_lost(seen.loss, self._limit, candidate)
        if found:
            raise Refused("; ".join(found), findings=found, **self._facts(seen))

    @staticmethod
    def _waldump(candidate: Node) -> str:
        """The program of the candidate's version: the members of a cluster have the same one, and mostly in the same place."""
        with contextlib.suppress(OperationError):
            return os.path.join(find_bin_directory(str((candidate.state or {})["version"]).split(".", maxsplit=1)[0]), "pg_waldump")
        return "pg_waldump"

    # -- what is to be done ----------------------------------------------------------------------------------------

    @property
    def _limit(self) -> int:
        """max_data_loss_bytes, or what counts without it."""
        if self.params["max_data_loss_bytes"] is not None:
            return int(self.params["max_data_loss_bytes"])
        candidate = self._first.candidate if self._first else None
        synchronous = candidate is not None and parse_synchronous((candidate.state or {}).get("synchronous_standby_names") or "")
        return 0 if synchronous else ASYNCHRONOUS_LOSS_BYTES

    def plan(self, seen: Seen) -> Plan:
        if seen.cluster.primaries:
            return self._plan_to_finish(seen)
        if seen.candidate is None or seen.looked is None or seen.loss is None or self._promotion is None:
            raise Refused(
                "no standby can take over, nothing was changed: %s" % ("; ".join(seen.refusals) or "none answers"), cluster=self.run.describe(seen.cluster)
            )
        self._refuse(seen)
        candidate = seen.candidate
        followers = [node for node in seen.cluster.standbys if node is not candidate and not self.run.entry(node)["upstream"]]
        steps = Steps(
            self.run, self._promotion, seen.looked, candidate, seen.lost, followers, seen.poolers, self._limit,
            lambda: self._refuse_if_reached(seen), lambda: self._refuse_loss(seen),
        )  # fmt: skip
        self._steps = steps
        plan = Plan()
        plan.add("hold every member that can be held", steps.hold)
        if steps.redirection.poolers:
            plan.add("pause %s" % ", ".join(pooler.name for pooler in steps.redirection.poolers), steps.pause)
        for name in seen.looked.judgement.to_stop:
            plan.add(
                "end the server of %s, which reaches nobody, fenced by standby.signal" % name,
                bind(steps.end, name),
                subject="standby.signal of %s" % name,
                before="absent\n",
                after="present\n",
            )
        for name in seen.looked.judgement.to_fence:
            plan.add(
                "fence %s: no server works there, whatever starts it later starts a standby" % name,
                bind(steps.fence, name),
                subject="standby.signal of %s" % name,
                before="absent\n",
                after="present\n",
            )
        ahead = furthest(seen.cluster, candidate)
        if ahead is not candidate:
            missing = (ahead.received or 0) - (candidate.received or 0)
            plan.add("let %s receive %d bytes from %s, which has more" % (candidate.name, missing, ahead.name), bind(steps.catch_up, ahead))
        roles = {node.name: node.role or "no answer" for node in seen.cluster.nodes}
        plan.add(
            "promote %s: every other member is a standby or fenced" % candidate.name,
            steps.promote,
            subject="roles",
            before=roles,
            after={**roles, candidate.name: "primary"},
        )
        add_resume_steps(plan, steps.redirection, steps.lead)
        for node in followers:
            plan.add("point %s at %s" % (node.name, candidate.name), bind(steps.follow, node))
        plan.add("settle: slots, settings, one verified primary", steps.settle)
        for step in plan.steps:
            step.do = steps.guarded(step.do)
        return plan

    def _refuse(self, seen: Seen) -> None:
        looked, loss, candidate = t.cast(Looked, seen.looked), t.cast(Loss, seen.loss), t.cast(Node, seen.candidate)
        t.cast(Promotion, self._promotion).refuse_primaries(looked)
        judgement = looked.judgement
        reached = still_reached(seen.opinions, judgement.to_stop + judgement.to_fence, self.params["if_reached"])
        others = judgement.reasons + too_much_lost(loss, self._limit, candidate)
        for pooler in seen.poolers:
            if pooler.view.paused:
                others.append("pooler %s: %s is paused already; RESUME it first if nothing else pauses it" % (pooler.name, ", ".join(pooler.view.paused)))
            if pooler.view.problem and self.params["unreachable_poolers"] == "fail":
                others.append("pooler %s: %s" % (pooler.name, pooler.view.problem))
        found = [*others, *judgement.unproven.values(), *reached.values()]
        if found:
            # Whoever is fenced by other means is reached by nobody afterwards.
            in_the_way = set(reached) - (set(judgement.unproven) if self.params["if_reached"] == "fence" else set())
            raise Refused(
                "the failover to %s was not begun, nothing was changed: %s" % (candidate.name, "; ".join(found)),
                findings=found,
                needs_fencing=[] if others or in_the_way else list(judgement.unproven),
                **self._facts(seen),
            )

    def _facts(self, seen: Seen) -> dict[str, t.Any]:
        facts: dict[str, t.Any] = {"cluster": self.run.describe(seen.cluster)}
        if seen.looked is not None:
            facts["proof"] = describe_proof(seen.looked)
            facts["opinions"] = [{**dataclasses.asdict(opinion), "text": str(opinion), "reaches": opinion.reaches} for opinion in seen.opinions]
        if seen.loss is not None:
            facts["data_loss"] = {**dataclasses.asdict(seen.loss), "limit": self._limit}
        return facts

    def _plan_to_finish(self, seen: Seen) -> Plan:
        """A primary answers: only what an interrupted failover has left is done."""
        cluster, primary = seen.cluster, seen.cluster.primary
        if primary is None:
            raise SplitBrainRisk(
                "more than one node is a primary: %s. Nothing was changed" % ", ".join(node.name for node in cluster.primaries),
                expected="one primary at most",
                action="Find out which one holds what must not be lost, and stop the other one with pgfleet.ops.pg_instance",
                cluster=self.run.describe(cluster),
            )
        plan = Plan()
        finish = Finish(self.run, primary, self.params["timeout"])
        for pooler in seen.poolers:
            if pooler.changes and not pooler.view.problem:
                plan.add("lead %s to %s" % (pooler.name, primary.name), bind(finish.lead, pooler), **pooler.diff())
        for node in cluster.standbys:
            upstream = cluster.upstream(node)
            stray = not node.streaming or (node.timeline or 0) < (primary.timeline or 0)
            if node.name in seen.diverged:
                self.run.warn("%s cannot follow %s before it is rewound or cloned: %s" % (node.name, primary.name, seen.diverged[node.name]))
                for name in self.run.idle_slots(primary, [node]):
                    plan.add("drop slot %s on %s, which holds WAL that %s has no use for" % (name, primary.name, node.name), bind(finish.drop_slot, name))
            elif stray and upstream is not primary and not self.run.entry(node)["upstream"]:
                plan.add("point %s at %s" % (node.name, primary.name), bind(finish.follow, node))
        if not plan.changed and self.params["if_primary"] == "fail":
            raise Refused("%s is the primary and answers, nothing was changed" % primary.name, expected="a cluster that has lost its primary")
        return plan

    # -- what came out ---------------------------------------------------------------------------------------------

    def confirm(self, seen: Seen) -> None:
        steps = self._steps
        if steps is None:
            return super().confirm(seen)
        name = steps.candidate.name
        now = seen.cluster.node(name)
        if seen.cluster.primaries != [now]:
            raise NotConfirmed(
                "%s was promoted, and the primaries are now: %s" % (name, ", ".join(node.name for node in seen.cluster.primaries) or "none"),
                **self._facts(seen),
            )
        left = steps.redirection.left
        if left:
            raise NotConfirmed(
                "%s is the new primary, but not all poolers lead to it: %s" % (name, "; ".join("%s (%s)" % item for item in sorted(left.items()))),
                action="Their clients get errors. Mend them, then run the failover again: it leads what is left",
                poolers_left={**self._skipped, **left},
                **self._facts(seen),
                **self.run.result,
            )

    @property
    def _skipped(self) -> dict[str, str]:
        """Poolers that could not be asked, and why."""
        return {pooler.name: pooler.view.problem for pooler in (self._first.poolers if self._first else ()) if pooler.view.problem}

    def report(self, seen: Seen) -> dict[str, t.Any]:
        first = t.cast(Seen, self._first)
        for name, problem in self._skipped.items():
            self.run.warn("pooler %s was left as it is, its clients are led nowhere: %s" % (name, problem))
        for text in self.run.warnings:
            self.context.warn(text)
        cluster = seen.cluster
        return {
            "primary": cluster.primary.name if cluster.primary else None,
            "timeline": cluster.primary.timeline if cluster.primary else None,
            "old_primary": first.lost.name if first.lost else None,
            "poolers": {pooler.name: pooler.describe() for pooler in seen.poolers},
            "poolers_left": {**self._skipped, **(self._steps.redirection.left if self._steps else {})},
            "to_rejoin": [
                node.name for node in cluster.nodes if cluster.primary and (node.name in seen.diverged or not (node.role == "primary" or node.streaming))
            ],
            "warnings_found": self.run.warnings,
            **self._facts(first),
            "cluster": self.run.describe(cluster),
            **self.run.result,
        }
