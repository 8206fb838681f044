# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The planned switchover as a module does it: look at everything, refuse or plan; the steps are in switchover_window.py."""

from __future__ import annotations

import contextlib
import typing as t

from .._cluster.aliases import is_read_only
from .._cluster.model import Cluster, Node
from .._cluster.switchover import Surroundings, commits_wait, conditions, follower_problems, refusals, sessions_without_a_name, too_old
from .._errors import NotConfirmed, OperationError, Refused
from .._module import LOGIN, ArgumentSpec, Context, Operation
from .._pgbouncer.console import Console
from .._plan import Plan
from .._sql.connection import Session
from .._sql.standby import ENDS_RECOVERY
from .._sql.values import parse_conninfo
from .._wait import Deadline
from .members import MEMBER_OPTIONS, Run, check_members, check_methods
from .poolers import POOLERS, Pooler, add_resume_steps, check_poolers, leads_to, look_at_poolers
from .switchover_checks import Conditions, archive, sessions, transactions
from .switchover_window import Finish, Seen, Window, bind

SWITCHOVER = LOGIN.merge(POOLERS).merge(
    ArgumentSpec(
        {
            "candidate": {"type": "str", "required": True},
            "nodes": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": MEMBER_OPTIONS,
            },
            "lag_limit_bytes": {"type": "int", "default": 16777216},
            "transaction_limit": {"type": "float", "default": 5},
            "long_transactions": {"type": "str", "choices": ["refuse", "wait", "terminate", "ignore"], "default": "refuse"},
            "session_pools": {"type": "str", "choices": ["refuse", "terminate"], "default": "refuse"},
            "synchronous": {"type": "str", "choices": ["refuse", "ignore"], "default": "refuse"},
            "archive_behind": {"type": "str", "choices": ["refuse", "wait", "ignore"], "default": "refuse"},
            "archive_lag_limit": {"type": "int", "default": 16},
            "foreign_slots": {"type": "str", "choices": ["refuse", "ignore"], "default": "refuse"},
            "wait_timeout": {"type": "float", "default": 60},
            "prepare_timeout": {"type": "float", "default": 300},
            "if_primary": {"type": "str", "choices": ["unchanged", "fail"], "default": "unchanged"},
        }
    )
)


class Switchover(Operation):
    """Makes ``candidate`` the primary and everything else follow it; finishes one that was interrupted."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self.run = Run(params)

    # -- what is there ---------------------------------------------------------------------------------------------

    def observe(self) -> Seen:
        params = self.params
        check_members(params)
        check_poolers(params)
        check_methods(params)
        cluster = self.run.observe()
        candidate = t.cast(Node, cluster.node(params["candidate"]))
        problems: list[str] = []
        around, session, clients = Surroundings(), None, {}
        if cluster.primary and cluster.primary is not candidate:
            session = self._superuser_on(cluster.primary, problems)
            clients = sessions(session)
            around = Surroundings(transactions(session), archive(session), **self._followers(cluster, candidate))
            self._look_at_node(cluster.primary, problems)
            if candidate.role == "standby":
                self._look_at_node(candidate, problems)
        elif candidate.role == "standby" and not cluster.primaries:
            # Whoever promotes without a primary holds every member.
            for node in cluster.nodes:
                if node.reachable:
                    self._look_at_node(node, problems)
        fenced_down = []
        if candidate.reachable and (candidate.role == "primary" or not cluster.primaries):
            fenced_down = [node.name for node in cluster.nodes if not node.reachable and self._is_fenced_down(node, candidate)]
        poolers = look_at_poolers(self.run, cluster, candidate)
        if params["session_pools"] == "terminate":
            for pooler in poolers:
                pooler.ends = pooler.view.session_pools
        if session and not any(pooler.view.problem for pooler in poolers):
            self._warn_of_direct_sessions(cluster, session, clients, poolers)
        if session:
            # The primary's stop would wait for its backend to end.
            session.close()
        return Seen(cluster, candidate, poolers, around, problems, fenced_down)

    def _followers(self, cluster: Cluster, candidate: Node) -> dict[str, t.Any]:
        """Who will stream from the candidate and under which name, and whose slots are whose; for Surroundings."""
        run, finish = self.run, Finish(self.run, candidate, 0)
        followers, new_slots = {}, set()
        slotted = run.uses_slots(cluster)
        model = (candidate.state or {}).get("primary_conninfo") or ""
        for node in cluster.nodes:
            own = (node.state or {}).get("primary_conninfo") or ""
            if node is not candidate and (node is cluster.primary or self._follows_the_primary(node)):
                followers[node.name] = node.name
                # What cannot be read is refused elsewhere.
                with contextlib.suppress(Refused):
                    followers[node.name] = parse_conninfo(finish.conninfo(node, own, model))["application_name"]
                if slotted if node is cluster.primary else (node.state or {}).get("primary_slot_name"):
                    new_slots.add(run.slot_of(node))
        # Who streams from it already goes on doing so.
        cascade = [sender["application_name"] for sender in (candidate.state or {}).get("senders", ())]
        followers.update({name: name for name in cascade if name not in followers.values()})
        return {"followers": followers, "new_slots": new_slots, "member_slots": {run.slot_of(node) for node in cluster.nodes}}

    def _warn_of_direct_sessions(self, cluster: Cluster, session: Session, before: t.Mapping[t.Any, str], poolers: t.Sequence[Pooler]) -> None:
        """Sessions on the primary that none of the poolers holds end with an error. Those that come and go meanwhile are not counted."""
        held = {row["remote_pid"] for pooler in poolers for row in t.cast(Console, pooler.console).show("SERVERS")}
        direct = [name for (pid, since), name in sessions(session).items() if (pid, since) in before and pid not in held]
        if direct:
            names = ("%s (%d)" % (name or "without a name", direct.count(name)) for name in sorted(set(direct)))
            self.run.warn(
                "sessions on %s that do not come through the poolers get an error when it stops, by application: %s"
                % (t.cast(Node, cluster.primary).name, ", ".join(names))
            )

    def _superuser_on(self, primary: Node, problems: list[str]) -> Session:
        """A session on the primary that cannot write. Raises Refused where this login may not do what is needed."""
        session = self.run.session(primary, read_only=True)
        if not session.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
            # Such a login also sees too little of the other nodes for anything else to be judged.
            raise Refused(
                'the login "%s" is no superuser on %s, nothing was changed' % (session.target.user, primary.name),
                expected="a superuser: a switchover needs CHECKPOINT, ALTER SYSTEM and pg_promote",
                action="Set the option login_user",
            )
        targets = session.rows(ENDS_RECOVERY)
        if targets:
            problems.append(
                "the primary %s has settings of a point-in-time recovery, with which it would promote itself as a standby: reset %s"
                % (primary.name, ", ".join(row["name"] for row in targets))
            )
        return session

    def _look_at_node(self, node: Node, problems: list[str]) -> None:
        """Can the node be held, and stopped and started, from here? Is it the one that answered the queries?"""
        entry = self.run.entry(node)
        state = t.cast(t.Mapping[str, t.Any], node.state)
        data_directory = entry["data_directory"] or state["data_directory"]
        config_file = entry["config_file"] or state["config_file"]
        try:
            seen = self.run.guardian_of_node(node, data_directory, config_file).call("look", Deadline(10))
        except OperationError as error:
            problems.append("the host of %s: %s" % (node.name, error))
            return
        if seen["system_identifier"] != node.system_identifier:
            problems.append(
                "%s on the host of %s belongs to another cluster: its system identifier is %s, the server answers %s"
                % (data_directory, node.name, seen["system_identifier"], node.system_identifier)
            )
        if seen["standby_signal"] and node.role == "primary":
            self.run.warn("%s is the primary and its data directory holds a standby.signal, which an interrupted switchover has left" % node.name)
        if seen["pid"] is None:
            problems.append(
                "no server runs in %s, but %s:%d answers: the option data_directory or shell names another host or directory"
                % (data_directory, node.host, node.port)
            )

    def _is_fenced_down(self, node: Node, primary: Node) -> bool:
        entry = self.run.entry(node)
        if not entry["data_directory"] or entry["upstream"]:
            return False
        seen = self.run.guardian_of_node(node, entry["data_directory"], entry["config_file"]).call("look", Deadline(10))
        return seen["pid"] is None and seen["standby_signal"] and seen["system_identifier"] == primary.system_identifier

    # -- what is to be done ----------------------------------------------------------------------------------------

    def plan(self, seen: Seen) -> Plan:
        candidate, cluster = seen.candidate, seen.cluster
        if candidate.role == "primary" or self._was_left_without_primary(seen):
            return self._plan_to_finish(seen)
        params, views = self.params, [pooler.view for pooler in seen.poolers]
        found = refusals(cluster, candidate, params["lag_limit_bytes"], views)
        found += list(seen.problems) + self._slots_in_conflict(cluster) + follower_problems(cluster, candidate, seen.around)
        waits: dict[str, list[str]] = {}
        for option, texts in conditions(cluster, candidate, views, seen.around, params["transaction_limit"], params["archive_lag_limit"]).items():
            mode = params[option]
            if mode == "refuse":
                found += ["%s (see the option %s)" % (text, option) for text in texts]
            elif mode == "ignore":
                for text in texts:
                    self.run.warn(text)
            elif mode == "wait" and texts:
                waits[option] = texts
            elif option == "session_pools":
                found += sessions_without_a_name(views)
        if found:
            raise Refused(
                "the switchover to %s was not begun, nothing was changed: %s" % (candidate.name, "; ".join(found)),
                findings=found,
                cluster=self.run.describe(cluster),
            )
        for pooler in seen.poolers:
            if pooler.view.ahead:
                self.run.warn(
                    "pooler %s: %s leads to %s already, as a pooler does whose host was lost in a switchover that was rolled back"
                    % (pooler.name, ", ".join(pooler.view.ahead), candidate.name)
                )
        primary = t.cast(Node, cluster.primary)
        self._warn_of_what_is_lost(cluster, candidate)
        checks = Conditions(self.run, primary, candidate)
        followers = [node for node in cluster.standbys if node is not candidate and self._follows_the_primary(node)]
        window = Window(self.run, seen, primary, checks, followers if commits_wait(candidate) else ())
        names = ", ".join(pooler.name for pooler in seen.poolers)
        old = too_old(seen.around.transactions, params["transaction_limit"])
        plan = Plan()
        if waits:
            wanted = {
                "long_transactions": "no transaction is open longer than %g s (now pid %s)"
                % (params["transaction_limit"], ", ".join(str(one.pid) for one in old)),
                "archive_behind": "at most %d files of WAL wait to be archived" % params["archive_lag_limit"],
            }
            text = "wait at most %g s until on %s %s" % (params["wait_timeout"], primary.name, " and ".join(wanted[option] for option in waits))
            plan.add(text, bind(checks.wait, *waits))
        plan.add("prepare %s and %s (checkpoints, sessions)" % (primary.name, candidate.name), window.prepare)
        if params["long_transactions"] == "terminate":
            plan.add(
                "end the sessions on %s whose transaction is open longer than %g s then (now %s)"
                % (primary.name, params["transaction_limit"], ", ".join("pid %d, application %s" % (one.pid, one.application_name) for one in old) or "none"),
                checks.terminate,
            )
        if seen.poolers:
            plan.add("pause %s" % names, window.pause)
        if any(pooler.ends for pooler in seen.poolers):
            ended = ("%s on %s" % (", ".join(pooler.ends), pooler.name) for pooler in seen.poolers if pooler.ends)
            plan.add("end the sessions of %s, whose clients pool by session" % " and ".join(ended), window.end_sessions)
        plan.add(
            "stop %s, fenced by standby.signal" % primary.name,
            window.stop,
            subject="roles",
            before={primary.name: "primary", candidate.name: "standby"},
            after={primary.name: "standby", candidate.name: "primary"},
        )
        plan.add("promote %s once it has replayed the shutdown checkpoint of %s" % (candidate.name, primary.name), window.promote)
        add_resume_steps(plan, window.redirection, window.resume)
        plan.add("start %s as a standby of %s" % (primary.name, candidate.name), window.rejoin)
        for node in followers:
            plan.add("point %s at %s" % (node.name, candidate.name), bind(window.follow, node))
        plan.add("settle: slots, settings, one verified primary", window.settle)
        for step in plan.steps:
            step.do = window.guarded(step.do)
        return plan

    def _warn_of_what_is_lost(self, cluster: Cluster, candidate: Node) -> None:
        """What the new primary does not do that the old one did, and what the stop cuts off; none of it hurts clients of the switchover."""
        primary = t.cast(Node, cluster.primary)
        old, new = t.cast("dict[str, t.Any]", primary.state), t.cast("dict[str, t.Any]", candidate.state)
        if old["archiver"]["mode"] != "off" and new["archiver"]["mode"] == "off":
            self.run.warn("%s archives its WAL and %s will not: its archive_mode is off" % (primary.name, candidate.name))
        if old["synchronous_standby_names"] and not new["synchronous_standby_names"]:
            self.run.warn("commits on %s wait for standbys, on %s they will not: its synchronous_standby_names is empty" % (primary.name, candidate.name))
        for backup in old["base_backups"]:
            self.run.warn("a base backup of %s is under way and will be aborted: pid %d, application %s" % (
                primary.name, backup["pid"], backup["application_name"] or "without a name"))  # fmt: skip

    def _slots_in_conflict(self, cluster: Cluster) -> list[str]:
        """Names that differ in what a slot's name cannot hold lead to one slot for two nodes."""
        owners: dict[str, list[str]] = {}
        for node in cluster.nodes:
            owners.setdefault(self.run.slot_of(node), []).append(node.name)
        return [
            "%s would share the replication slot %s: name one for each in the option slot" % (" and ".join(names), slot)
            for slot, names in owners.items()
            if len(names) > 1
        ]

    def _plan_to_finish(self, seen: Seen) -> Plan:
        """The candidate is the primary already: only what an interrupted switchover left undone."""
        cluster, candidate = seen.cluster, seen.candidate
        if len(cluster.primaries) > 1:
            raise Refused("more than one node is a primary: %s" % ", ".join(node.name for node in cluster.primaries), cluster=self.run.describe(cluster))
        strangers = [node.name for node in cluster.nodes if node.reachable and node.system_identifier != candidate.system_identifier]
        if strangers:
            raise Refused("these nodes belong to another cluster than %s: %s" % (candidate.name, ", ".join(strangers)), cluster=self.run.describe(cluster))
        finish = Finish(self.run, candidate, self.params["prepare_timeout"])
        plan = Plan()
        if candidate.role != "primary":
            plan.add("promote %s: every other node is a standby or fenced" % candidate.name, finish.promote)
            for pooler in seen.poolers:
                if pooler.changes:
                    plan.add(
                        "lead %s to %s" % (pooler.name, candidate.name),
                        bind(finish.lead, pooler),
                        **pooler.diff(),
                    )
        for name in seen.fenced_down:
            plan.add("start %s as a standby of %s" % (name, candidate.name), bind(finish.start, name, self.run.uses_slots(cluster)))
        for node in cluster.standbys:
            if node is not candidate and self._follows_the_primary(node) and not (cluster.upstream(node) is candidate and node.streaming):
                plan.add("point %s at %s" % (node.name, candidate.name), bind(finish.follow, node))
        # What moves leaves slots behind, and an earlier run may have.
        if plan.changed or any(self.run.stale_slots(cluster, node) for node in cluster.standbys):
            plan.add("drop slots on standbys that no node uses any more", finish.drop_stale_slots)
        if candidate.state and candidate.state["short_retry_left_over"]:
            plan.add("reset wal_retrieve_retry_interval on %s" % candidate.name, finish.reset_retry)
        for pooler in seen.poolers:
            if pooler.view.problem:
                self.run.warn("pooler %s: %s" % (pooler.name, pooler.view.problem))
                continue
            for name, entry in pooler.entries.items():
                led = next((n for n in cluster.standbys if leads_to(n, entry)), None)
                if led and not is_read_only(name, self.params["readonly_suffix"], self.params["readonly_databases"]):
                    self.run.warn("pooler %s: the entry %s leads to %s, which is a standby (see the option readonly_databases)" % (pooler.name, name, led.name))
        if not plan.changed and self.params["if_primary"] == "fail":
            raise Refused(
                "the candidate %s is the primary already, nothing was changed" % candidate.name,
                expected="a standby as the candidate",
                action="Name one of %s" % (", ".join(node.name for node in cluster.standbys) or "no node: there is no standby"),
                cluster=self.run.describe(cluster),
            )
        return plan

    def _was_left_without_primary(self, seen: Seen) -> bool:
        """An interrupted switchover that had given up the old primary and not promoted yet.

        All members are proved to be standbys, or down and fenced, and the candidate has all that any of them has received.
        """
        cluster, candidate = seen.cluster, seen.candidate
        if cluster.primaries or candidate.role != "standby" or seen.problems:
            return False
        known = all(node.reachable or node.name in seen.fenced_down for node in cluster.nodes)
        living = [node for node in cluster.nodes if node.reachable]
        same = len({(node.system_identifier, node.timeline) for node in living}) == 1
        ahead = all((candidate.received or 0) >= (node.received or 0) for node in living)
        # The old primary carries the mark of a switchover to this candidate: it is told to stream from it.
        led = any(cluster.upstream(node) is candidate for node in living if node is not candidate) or bool(seen.fenced_down)
        poolers_known = not any(pooler.view.problem for pooler in seen.poolers)
        return known and same and ahead and led and poolers_known

    def _follows_the_primary(self, node: Node) -> bool:
        """A cascade is left as it is, but only where it is declared: an interrupted switchover looks like one."""
        return not self.run.entry(node)["upstream"]

    def confirm(self, seen: Seen) -> None:
        if seen.candidate.role != "primary":
            raise NotConfirmed("%s is not the primary after all steps" % seen.candidate.name, cluster=self.run.describe(seen.cluster))
        if len(seen.cluster.primaries) != 1:
            raise NotConfirmed("more than one node is a primary: %s" % ", ".join(n.name for n in seen.cluster.primaries))
        idle = [
            node.name
            for node in seen.cluster.nodes
            if node is not seen.candidate and not (node.streaming and (not self._follows_the_primary(node) or seen.cluster.upstream(node) is seen.candidate))
        ]
        if idle:
            raise NotConfirmed("these nodes do not stream from the new primary: %s" % ", ".join(idle), cluster=self.run.describe(seen.cluster))

    def report(self, seen: Seen) -> dict[str, t.Any]:
        for text in self.run.warnings:
            self.context.warn(text)
        return {
            "primary": seen.cluster.primary.name if seen.cluster.primary else None,
            "timeline": seen.cluster.primary.timeline if seen.cluster.primary else None,
            "cluster": self.run.describe(seen.cluster),
            "poolers": {pooler.name: pooler.describe() for pooler in seen.poolers},
            "warnings_found": self.run.warnings,
            **self.run.result,
        }

    def close(self) -> None:
        self.run.close()
