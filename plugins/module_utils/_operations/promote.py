# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""pg_promote: a standby becomes the primary of a cluster that is proved to have none."""

from __future__ import annotations

import typing as t

from .._cluster.model import Node
from .._errors import InvalidInput, NotConfirmed, OperationError, Refused
from .._module import LOGIN, ArgumentSpec, Context, Operation
from .._plan import Plan
from .cluster_info import CLUSTER_INFO
from .members import MEMBER_OPTIONS, Run, check_members
from .promotion import Looked, Promotion, describe_proof, prove_writable

PROMOTE = LOGIN.merge(
    ArgumentSpec(
        {
            "candidate": {"type": "str", "required": True},
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": MEMBER_OPTIONS},
            "fenced": {"type": "list", "elements": "str", "default": []},
            "max_data_loss_bytes": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 60},
            "if_primary": {"type": "str", "choices": ["unchanged", "fail"], "default": "unchanged"},
        }
    )
)


class PromoteOperation(Operation):
    """The operation of pg_promote."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self._run = Run({**params, "lag_limit_bytes": CLUSTER_INFO.argument_spec["lag_limit_bytes"]["default"]})
        self._promotion = Promotion(self._run, params["candidate"], params["fenced"], params["max_data_loss_bytes"])
        self._before: Looked | None = None
        self._fenced_now: list[str] = []

    def close(self) -> None:
        self._run.close()

    def observe(self) -> Looked:
        params = self.params
        check_members(params)
        unknown = sorted(set(params["fenced"]) - {entry["name"] for entry in params["nodes"]})
        if unknown:
            raise InvalidInput("the option fenced names nodes that are not in the option nodes: %s" % ", ".join(unknown))
        if params["candidate"] in params["fenced"]:
            raise InvalidInput("the option fenced names the candidate %s" % params["candidate"])
        if params["max_data_loss_bytes"] < 0 or params["timeout"] <= 0:
            raise InvalidInput("max_data_loss_bytes is %d and timeout %g" % (params["max_data_loss_bytes"], params["timeout"]), expected="no negative numbers")
        looked = self._promotion.look()
        if self._before is None:
            self._before = looked
        return looked

    def plan(self, seen: Looked) -> Plan:
        candidate, cluster = t.cast(Node, seen.cluster.node(self.params["candidate"])), seen.cluster
        plan = Plan()
        if cluster.primaries == [candidate]:
            if self.params["if_primary"] == "fail" and self._promotion.proved is None:
                raise Refused("the candidate %s is the primary already, nothing was changed" % candidate.name, expected="a standby as the candidate")
            return plan
        self._promotion.refuse(seen)
        for name in seen.judgement.to_fence:
            self._add(
                plan, "fence %s: no server works there, whatever starts it later starts a standby" % name, lambda name=name: self._fence(seen, name),
                subject="%s of %s" % ("standby.signal", name), before="absent\n", after="present\n",
            )  # fmt: skip
        roles = {node.name: node.role or "no answer" for node in cluster.nodes}
        self._add(
            plan, "promote %s: every other member is a standby or fenced" % candidate.name, lambda: self._promote(seen),
            subject="roles", before=roles, after={**roles, candidate.name: "primary"},
        )  # fmt: skip
        return plan

    def _add(self, plan: Plan, what: str, do: t.Callable[[], None], **diff: t.Any) -> None:
        def guarded() -> None:
            try:
                do()
            except OperationError as error:
                # Where the candidate may have been promoted, a fence is the last thing to take away.
                if not isinstance(error, NotConfirmed):
                    self._unfence(error)
                raise

        plan.add(what, guarded, **diff)

    def _fence(self, seen: Looked, name: str) -> None:
        if not self._fenced_now:
            self._promotion.hold(seen)
        self._fenced_now.append(name)
        self._promotion.fence(name)

    def _unfence(self, error: OperationError) -> None:
        left = []
        for name in self._fenced_now:
            try:
                self._promotion.unfence(name)
            except OperationError:
                left.append(name)
        self._fenced_now.clear()
        error.facts["changed"] = bool(left)
        if left:
            error.facts["still_fenced"] = left

    def _promote(self, seen: Looked) -> None:
        if not self._fenced_now:
            self._promotion.hold(seen)
        self._promotion.promote(self.params["timeout"])

    def confirm(self, seen: Looked) -> None:
        name = self.params["candidate"]
        candidate = t.cast(Node, seen.cluster.node(name))
        before = t.cast(Looked, self._before).cluster.node(name)
        if seen.cluster.primaries != [candidate]:
            raise NotConfirmed(
                "%s was promoted, and the primaries are now: %s" % (name, ", ".join(node.name for node in seen.cluster.primaries) or "none"),
                cluster=self._run.describe(seen.cluster),
            )
        if before is None or (candidate.timeline or 0) <= (before.timeline or 0):
            raise NotConfirmed("%s is a primary and on timeline %s, as before" % (name, candidate.timeline), expected="a newer timeline")
        prove_writable(self._run, candidate)

    def report(self, seen: Looked) -> dict[str, t.Any]:
        cluster, before = seen.cluster, self._before or seen
        if not cluster.primaries:  # check mode
            for text in before.judgement.warnings:
                self._run.warn(text)
        for text in self._run.warnings:
            self.context.warn(text)
        base = self._promotion.proved or before
        old = before.cluster.node(self.params["candidate"])
        return {
            "primary": cluster.primary.name if cluster.primary else None,
            "timeline": cluster.primary.timeline if cluster.primary else None,
            "timeline_before": old.timeline if old else None,
            "proof": describe_proof(base),
            "missing_bytes": base.judgement.missing_bytes,
            "to_follow": [node.name for node in cluster.standbys if cluster.primary and not (cluster.upstream(node) is cluster.primary and node.streaming)],
            "cluster": self._run.describe(cluster),
            "warnings_found": self._run.warnings,
        }
