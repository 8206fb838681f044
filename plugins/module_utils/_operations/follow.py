# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Leading one running standby to another upstream, by reload.

Everything that would keep it from streaming there is found before anything is changed, as far as the two servers can
tell. Where it does not stream in time all the same, its settings are put back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._cluster.model import Node
from .._cluster.timeline import history_file, parse_history, segment_key, why_diverged
from .._errors import InvalidInput, OperationError, Refused, RolledBack, Unhealthy, WaitTimeout
from .._host.controldata import read_head
from .._module import CONNECTION, ArgumentSpec, Context, Operation
from .._plan import Plan
from .._sql.connection import Session, Target, connect
from .._sql.node_state import fetch_node_state
from .._sql.settings import Setting, put_back_settings, read_setting
from .._sql.standby import SECRET_KEYWORDS, drop_slot_when_idle, ensure_slot, identify_by_replication, led_conninfo, point_at, receiver
from .._sql.values import int_to_lsn, parse_conninfo
from .._wait import Deadline, wait_for
from .clone import is_local

FOLLOW = CONNECTION.merge(
    ArgumentSpec(
        {
            "upstream_host": {"type": "str", "required": True},
            "upstream_port": {"type": "int", "default": 5432},
            "upstream_address": {"type": "str"},
            "slot_name": {"type": "str"},
            "create_slot": {"type": "bool", "default": True},
            "drop_old_slot": {"type": "bool", "default": True},
            "application_name": {"type": "str"},
            "replication_user": {"type": "str"},
            "replication_passfile": {"type": "path", "no_log": False},
            "replication_connect_params": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 60},
        }
    )
)

# How long one server may take to answer, in seconds.
ANSWER_SECONDS = 10
# A walreceiver that lost its connection tries again after wal_retrieve_retry_interval, 5 s by default.
RECONNECT_SECONDS = 8
# Bytes of WAL that must be the same on both sides.
COMPARED_BYTES = 1 << 20
# A chain of upstreams that is longer is not walked to its end.
CHAIN_LENGTH = 32

_FACTS = """
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
  (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment_size,
  current_setting('restore_command') <> '' AS has_archive,
  coalesce(current_setting('allow_alter_system', true), 'on') = 'on' AS may_alter,
  current_setting('wal_level') AS wal_level,
  current_setting('max_wal_senders')::int AS max_senders,
  (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'walsender') AS senders
"""


@dataclasses.dataclass(frozen=True)
class OldSlot:
    """The slot that the standby uses on the upstream that it leaves."""

    name: str
    target: Target
    problem: str | None = None
    """Why it cannot be dropped there."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """The standby, the upstream, and what lies between them. Positions are bytes."""

    standby: Node
    upstream: Node
    facts: t.Mapping[str, t.Any]
    upstream_facts: t.Mapping[str, t.Any]
    conninfo: str = ""
    """What primary_conninfo is to be."""
    slot_name: str | None = None
    slot: t.Optional[t.Mapping[str, t.Any]] = None
    """The slot of that name on the upstream."""
    served: bool = False
    """The upstream itself says that it sends to the standby."""
    loop: t.Sequence[str] = ()
    """The upstreams from this one back to the standby."""
    history: t.Optional[t.Mapping[int, int]] = None
    own_history: t.Optional[t.Mapping[int, int]] = None
    oldest_segment: str | None = None
    different_wal: str | None = None
    role: t.Optional[t.Mapping[str, t.Any]] = None
    """The replication user, as the upstream knows it."""
    login_problem: OperationError | None = None
    old_slot: OldSlot | None = None
    was_here: bool = False
    """It streams from this very upstream already, perhaps by another name for it."""

    @property
    def settled(self) -> bool:
        """Both settings are what they are to be."""
        state = self.standby.state or {}
        return (
            not self.slot_missing and same_conninfo(state["primary_conninfo"] or "", self.conninfo) and (state["primary_slot_name"] or None) == self.slot_name
        )

    @property
    def slot_missing(self) -> bool:
        return self.slot_name is not None and (self.slot is None or self.slot["wal_status"] == "lost")

    @property
    def streams(self) -> bool:
        """It streams from the upstream, on the upstream's timeline."""
        return self.settled and self.standby.streaming and self.served and (self.standby.timeline or 0) >= (self.upstream.timeline or 0)


def same_conninfo(one: str, other: str) -> bool:
    """Whether two connection strings hold the same keywords, in whatever order."""
    with contextlib.suppress(ValueError):
        return parse_conninfo(one) == parse_conninfo(other)
    return one == other


def same_server(one: Node, other: Node) -> bool:
    """Whether two answers came from one server, whatever the addresses: no two start in the same microsecond at the same path."""
    first, second = one.state or {}, other.state or {}
    return all(first[key] == second[key] for key in ("system_identifier", "started_at", "data_directory"))


def address_of(standby: Node) -> str | None:
    """Where a standby streams from, or is told to."""
    address = standby.upstream_address
    return "%s:%d" % address if address else None


def as_seen_here(host: str, asked_at: str) -> str:
    """Where an address that a server names is reached from here: its own host by the name by which the server itself is."""
    return asked_at if host in ("localhost", "127.0.0.1", "::1") or host.startswith("/") else host


def read_history(session: Session, timeline: int) -> dict[int, int] | None:
    """A timeline's history as the server has it, None where its file is not there."""
    if timeline == 1:
        return {}
    text = session.value("SELECT pg_read_file(%s, 0, 1048576, true)", ["pg_wal/" + history_file(timeline)])
    try:
        return None if text is None else parse_history(text)
    except ValueError as error:
        raise OperationError("%s: %s" % (session.target, error)) from error


class FollowOperation(Operation):
    """The operation of pg_follow."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        self._sessions: dict[str, Session] = {}
        self._warnings: list[str] = []
        self._first: Node | None = None
        """The standby as it was before anything was changed."""
        self._created_slot = False
        self._dropped: str | None = None
        self._here = Target.from_params(params)
        self._there = Target.from_params(params, host=params["upstream_host"], port=params["upstream_port"])
        secret = sorted(set(params["replication_connect_params"]) & set(SECRET_KEYWORDS))
        if secret:
            raise InvalidInput(
                "the option replication_connect_params holds %s, which would end up in postgresql.auto.conf" % " and ".join(secret), expected="a passfile"
            )
        # libpq would prefer it to the passfile of the replication user. The login has read it already.
        os.environ.pop("PGPASSWORD", None)

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    # Observing

    def _session(self, target: Target) -> Session:
        if str(target) not in self._sessions:
            self._sessions[str(target)] = connect(target, timeout=ANSWER_SECONDS, read_only=self.context.check_mode)
        return self._sessions[str(target)]

    def _ask(self, name: str, target: Target) -> Node:
        return Node(name, target.host, target.port, state=fetch_node_state(self._session(target), Deadline(ANSWER_SECONDS)))

    def observe(self) -> Seen:
        # The standby first: what it has received is then no more than what its upstream has sent.
        standby = self._ask("the standby", self._here)
        if self._first is None:
            self._first = standby
        upstream = self._ask("the upstream", self._there)
        facts, upstream_facts = (self._session(target).row(_FACTS) or {} for target in (self._here, self._there))
        seen = Seen(standby, upstream, facts, upstream_facts)
        self._refuse_pair(seen)
        name = self.params["slot_name"] or standby.state["primary_slot_name"] or None  # type: ignore[index]
        seen = dataclasses.replace(
            seen,
            conninfo=self._conninfo(standby),
            slot_name=name,
            slot=self._slot(self._session(self._there), name) if name else None,
            loop=self._walk(standby, upstream),
        )
        seen = dataclasses.replace(seen, served=self._is_served(seen))
        if seen.settled and not seen.streams and not seen.loop:
            # It may be between two connections.
            with contextlib.suppress(WaitTimeout):
                self._wait_until_streaming(seen, RECONNECT_SECONDS)
                return dataclasses.replace(seen, standby=self._ask("the standby", self._here), served=True)
        if seen.streams or seen.loop:
            return seen
        return self._look_closer(seen)

    def _look_closer(self, seen: Seen) -> Seen:
        """All that could keep the standby from streaming from there."""
        there = self._session(self._there)
        conninfo = parse_conninfo(seen.conninfo)
        return dataclasses.replace(
            self._look_at_old_upstream(seen),
            history=read_history(there, seen.upstream.timeline or 1),
            own_history=read_history(self._session(self._here), seen.standby.timeline or 1),
            oldest_segment=there.value("SELECT min(substr(name, 9, 16)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'"),
            different_wal=self._different_wal(seen),
            role=there.row("SELECT rolcanlogin AND (rolreplication OR rolsuper) AS may FROM pg_roles WHERE rolname = %s", [conninfo.get("user")]),
            login_problem=self._try_login(seen, conninfo),
        )

    @staticmethod
    def _slot(session: Session, name: str) -> dict[str, t.Any] | None:
        return session.row(
            "SELECT slot_type, temporary, active, wal_status, application_name, client_addr::text AS client"
            " FROM pg_replication_slots LEFT JOIN pg_stat_activity ON pid = active_pid WHERE slot_name = %s",
            [name],
        )

    def _conninfo(self, standby: Node) -> str:
        params = self.params
        state = standby.state or {}
        changes = {
            **params["replication_connect_params"],
            "user": params["replication_user"],
            "passfile": params["replication_passfile"],
            "application_name": params["application_name"],
            "host": params["upstream_address"] or params["upstream_host"],
            "port": params["upstream_port"],
        }
        # For a standby that never streamed, what pg_clone would write.
        fresh = {} if state["primary_conninfo"] else {"user": "replication", "sslmode": params["ssl_mode"], "sslrootcert": params["ca_cert"]}
        given = {key: value for key, value in changes.items() if value not in (None, "")}
        return led_conninfo(str(self._here), state["primary_conninfo"] or "", fresh, given)

    def _is_served(self, seen: Seen) -> bool:
        """Does the upstream that was asked send to the standby? An address in primary_conninfo may lead elsewhere."""
        if seen.slot_name:
            return bool(seen.slot and seen.slot["active"])
        name = parse_conninfo(seen.conninfo).get("application_name") or (seen.standby.state or {})["cluster_name"] or "walreceiver"
        return any(sender["application_name"] == name for sender in (seen.upstream.state or {})["senders"])

    def _walk(self, standby: Node, upstream: Node) -> tuple[str, ...]:
        """The upstreams of the upstream that lead back to the standby; empty where they end at a primary or cannot be asked."""
        chain, node = [upstream], upstream
        while node.role == "standby" and len(chain) < CHAIN_LENGTH:
            address = node.upstream_address
            if address is None:
                return ()
            target = self._there.to(host=as_seen_here(address[0], node.host), port=address[1])
            try:
                session = connect(target, timeout=ANSWER_SECONDS, read_only=True)
                try:
                    node = Node(str(target), target.host, target.port, state=fetch_node_state(session, Deadline(ANSWER_SECONDS)))
                finally:
                    session.close()
            except OperationError as error:
                self._warn("whether the upstreams of %s lead back to %s could not be seen: %s" % (self._there, self._here, error.message))
                return ()
            if node.system_identifier != standby.system_identifier:
                # An address that means another server from here than from there.
                return ()
            if same_server(node, standby) or any(same_server(node, other) for other in chain):
                return (str(self._there), *(other.name for other in chain[1:]), node.name)
            chain.append(node)
        return ()

    def _different_wal(self, seen: Seen) -> str | None:
        """Two promotions at the same position have the same history file. The WAL itself tells them apart.

        Returns the range that differs, None where it is the same or is not there any more.
        """
        size = seen.facts["segment_size"]
        ends = [node.position("current_lsn") or node.received for node in (seen.standby, seen.upstream)]
        if size != seen.upstream_facts["segment_size"] or None in ends:
            return None
        end = min(t.cast("list[int]", ends))
        if not end:
            return None
        begin = max((end - 1) // size * size, end - COMPARED_BYTES)
        key, offset = segment_key(begin, size), begin % size
        sums = [
            self._checksum(self._session(target), key, offset, end - begin, node) for target, node in ((self._here, seen.standby), (self._there, seen.upstream))
        ]
        return "%s to %s" % (int_to_lsn(begin), int_to_lsn(end)) if None not in sums and sums[0] != sums[1] else None

    @staticmethod
    def _checksum(session: Session, key: str, offset: int, size: int, node: Node) -> str | None:
        files = session.rows(
            "SELECT name FROM pg_ls_waldir() WHERE length(name) = 24 AND substr(name, 9) = %s AND substr(name, 1, 8) <= %s ORDER BY name DESC LIMIT 1",
            [key, "%08X" % (node.timeline or 1)],
        )
        if not files:
            return None
        return session.value("SELECT encode(sha256(pg_read_binary_file(%s, %s, %s, true)), 'hex')", ["pg_wal/" + files[0]["name"], offset, size])

    def _try_login(self, seen: Seen, conninfo: t.Mapping[str, str]) -> OperationError | None:
        """Log in as the standby will, where this process stands in its place: on its host, as its user."""
        directory = (seen.standby.state or {})["data_directory"]
        try:
            mine = (
                is_local(self._here.host)
                and os.stat(directory).st_uid == os.geteuid()
                and read_head(directory).system_identifier == seen.standby.system_identifier
            )
        except (OSError, OperationError):
            return None
        if not mine:
            return None
        try:
            identifier = identify_by_replication(conninfo, None)
        except OperationError as error:
            return error
        if identifier != seen.upstream.system_identifier:
            return Refused("%s:%s leads a standby to a server of system identifier %s" % (conninfo["host"], conninfo["port"], identifier))
        return None

    def _look_at_old_upstream(self, seen: Seen) -> Seen:
        """Which server the standby leaves, and the slot that would be left behind there and hold WAL for ever."""
        state, address = seen.standby.state or {}, seen.standby.upstream_address
        if address is None or seen.settled:
            return seen
        name, used = state["primary_slot_name"] or None, (state["receiver"] or {}).get("slot") or None
        target = self._here.to(host=as_seen_here(address[0], self._here.host), port=address[1])
        try:
            session = connect(target, timeout=ANSWER_SECONDS, read_only=True)
            try:
                node = Node("the old upstream", target.host, target.port, state=fetch_node_state(session, Deadline(ANSWER_SECONDS)))
                slot = self._slot(session, name) if name else None
            finally:
                session.close()
        except OperationError as error:
            return dataclasses.replace(seen, old_slot=OldSlot(name, target, "it could not be asked: %s" % error.message)) if name else seen
        was_here = same_server(node, seen.upstream)
        seen = dataclasses.replace(seen, was_here=was_here and seen.standby.streaming and used == seen.slot_name)
        if node.system_identifier != seen.standby.system_identifier or slot is None or name is None or (was_here and name == seen.slot_name):
            return seen
        if slot["slot_type"] != "physical" or (slot["active"] and not (seen.standby.streaming and used == name)):
            return dataclasses.replace(seen, old_slot=OldSlot(name, target, "another one uses it (%s)" % (slot["application_name"] or "without a name")))
        return dataclasses.replace(seen, old_slot=OldSlot(name, target))

    # Planning

    @staticmethod
    def _refuse_pair(seen: Seen) -> None:
        """What can be said of any two servers, before anything is asked that only one of this cluster would understand."""
        standby, upstream = seen.standby, seen.upstream
        here, there = "%s:%d" % (standby.host or "local socket", standby.port), "%s:%d" % (upstream.host or "local socket", upstream.port)
        if same_server(standby, upstream):
            raise Refused("%s and %s are one and the same server" % (here, there), expected="another server as the upstream", action="Correct upstream_host")
        if standby.role == "primary":
            raise Refused(
                "%s is a primary, nothing was changed" % here,
                expected="a running standby",
                action="Make an outdated primary a standby with pgfleet.ops.pg_clone; move a primary with pgfleet.ops.pg_switchover",
            )
        if standby.system_identifier != upstream.system_identifier:
            raise Refused(
                "%s belongs to another cluster: its system identifier is %s, that of %s is %s"
                % (there, upstream.system_identifier, here, standby.system_identifier),
                action="Correct upstream_host or login_host",
            )
        for facts, where in ((seen.facts, here), (seen.upstream_facts, there)):
            if not facts["superuser"]:
                raise Refused("the login is no superuser on %s, nothing was changed" % where, expected="a superuser", action="Set the option login_user")

    def plan(self, seen: Seen) -> Plan:
        plan = Plan()
        if seen.loop:
            raise Refused(
                "the upstreams of %s would be a loop: it streams from %s" % (self._here, ", that from ".join(seen.loop)),
                expected="an upstream that leads to the primary",
                action="Name the primary, or a standby that does not follow this one",
            )
        if seen.streams:
            return plan
        self._refuse(seen)
        if seen.upstream.role == "standby" and not seen.upstream.streaming:
            self._warn("the upstream %s is a standby that does not stream itself" % self._there)
        if seen.slot_missing:
            again = " anew, as it has lost WAL" if seen.slot else ""
            plan.add(
                "create the slot %s on %s%s" % (seen.slot_name, self._there, again), lambda: self._create_slot(t.cast(str, seen.slot_name)),
                subject="slot %s on %s" % (seen.slot_name, self._there), before="", after="physical\n",
            )  # fmt: skip
        state = seen.standby.state or {}
        before = {"primary_conninfo": state["primary_conninfo"] or "", "primary_slot_name": state["primary_slot_name"] or ""}
        after = {"primary_conninfo": seen.conninfo, "primary_slot_name": seen.slot_name or ""}
        if same_conninfo(before["primary_conninfo"], seen.conninfo):
            after["primary_conninfo"] = before["primary_conninfo"]
        if before != after:
            plan.add("point %s at %s" % (self._here, self._there), lambda: self._point(seen), subject="standby %s" % self._here, before=before, after=after)
        elif seen.slot_missing:
            plan.add("wait until %s streams from %s" % (self._here, self._there), lambda: self._wait_until_streaming(seen, self.params["timeout"]))
        else:
            raise Unhealthy(
                "%s is told to stream from %s already, and does not: %s" % (self._here, self._there, self._why_not(seen)),
                action="See the logs of both servers",
            )
        old = seen.old_slot
        if old and self.params["drop_old_slot"]:
            if old.problem:
                self._warn("the slot %s on %s stays and holds WAL there: %s" % (old.name, old.target, old.problem))
            else:
                plan.add(
                    "drop the slot %s on %s" % (old.name, old.target), lambda: self._drop_old(old),
                    subject="slot %s on %s" % (old.name, old.target), before="physical\n", after="",
                )  # fmt: skip
        return plan

    def _refuse(self, seen: Seen) -> None:
        """Everything that would keep the standby from streaming there, the worst first."""
        standby, upstream = seen.standby, seen.upstream
        state = standby.state or {}
        timeline, newer, position = standby.timeline or 0, upstream.timeline or 0, standby.received or 0
        rewind = "Its own WAL must be given up first: pgfleet.ops.pg_clone, which rewinds or copies it"
        if newer < timeline:
            raise Refused(
                "the upstream %s is on timeline %d, older than timeline %d of %s" % (self._there, newer, timeline, self._here),
                expected="an upstream on the same timeline or a newer one",
                action="Name the primary of timeline %d, or make %s anew with pgfleet.ops.pg_clone" % (timeline, self._here),
            )
        if seen.history is None:
            raise Refused(
                "%s has no history file of its timeline %d, so that nothing proves that %s can follow it" % (self._there, newer, self._here),
                action="Make the standby anew with pgfleet.ops.pg_clone",
            )
        reason = why_diverged(timeline, position, newer, seen.history)
        own = seen.own_history or {}
        if reason is None and any(own[one] != seen.history[one] for one in own if one in seen.history):
            reason = "its timeline %d began elsewhere than that of the upstream" % timeline
        if reason is None and newer == timeline and upstream.role == "primary" and position > (upstream.position("current_lsn") or 0):
            reason = "it has WAL up to %s, and its upstream only up to %s" % (int_to_lsn(position), (upstream.state or {})["current_lsn"])
        if reason is None and seen.different_wal:
            reason = "its WAL from %s is not the upstream's" % seen.different_wal
        if reason:
            raise Refused("%s cannot follow %s: %s" % (self._here, self._there, reason), action=rewind)
        if newer > timeline and state["recovery_target_timeline"] != "latest":
            raise Refused(
                "%s would have to go from timeline %d to %d, and its recovery_target_timeline is %s"
                % (self._here, timeline, newer, state["recovery_target_timeline"]),
                expected="latest",
            )
        if state["replay_paused"]:
            raise Refused(
                "replay is paused on %s, and a paused standby takes no new upstream" % self._here, action="SELECT pg_wal_replay_resume() and run this again"
            )
        if not seen.facts["may_alter"]:
            raise Refused("%s does not allow ALTER SYSTEM" % self._here, expected="allow_alter_system = on")
        self._refuse_upstream(seen, position)

    def _refuse_upstream(self, seen: Seen, position: int) -> None:
        facts = seen.upstream_facts
        user = parse_conninfo(seen.conninfo).get("user")
        if facts["wal_level"] == "minimal":
            raise Refused("the upstream %s has wal_level minimal" % self._there, expected="replica or logical", action="Set wal_level and restart it")
        if user and not (seen.role and seen.role["may"]):
            raise Refused(
                'the role "%s" may not stream from %s: %s'
                % (user, self._there, "it has no attribute REPLICATION, or no LOGIN" if seen.role else "there is no such role"),
                action="Set replication_user, or ALTER ROLE on the primary",
            )
        if seen.login_problem:
            raise seen.login_problem
        slot, name = seen.slot, seen.slot_name
        if slot is None and name and not self.params["create_slot"]:
            raise Refused('there is no slot "%s" on %s' % (name, self._there), action="Create it, or set create_slot")
        if slot and slot["slot_type"] != "physical":
            raise Refused('the slot "%s" on %s is a logical one' % (name, self._there), action="Choose another slot_name")
        if slot and slot["active"] and not seen.settled and not seen.was_here:
            raise Refused(
                'the slot "%s" on %s is in use by %s (%s)' % (name, self._there, slot["application_name"] or "another server", slot["client"] or "local"),
                action="Choose another slot_name",
            )
        if slot and slot["wal_status"] == "lost" and not self.params["create_slot"]:
            raise Refused('the slot "%s" on %s has lost WAL' % (name, self._there), action="Drop it, or set create_slot")
        if facts["senders"] >= facts["max_senders"] and not seen.was_here:
            raise Refused(
                "%s has no walsender left, it allows %d and they are in use" % (self._there, facts["max_senders"]), action="Raise max_wal_senders there"
            )
        # The walreceiver asks from the beginning of the segment.
        needed = segment_key(position, seen.facts["segment_size"])
        if seen.oldest_segment and needed < seen.oldest_segment and not seen.facts["has_archive"]:
            raise Refused(
                "%s needs WAL from %s on, and %s has removed it (its oldest segment is %s)"
                % (self._here, int_to_lsn(position), self._there, seen.oldest_segment),
                action="Make the standby anew with pgfleet.ops.pg_clone, or give it a restore_command that has this WAL",
            )

    # Doing

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    def _create_slot(self, name: str) -> None:
        self._created_slot = ensure_slot(self._session(self._there), name, Deadline(ANSWER_SECONDS))

    def _point(self, seen: Seen) -> None:
        session = self._session(self._here)
        kept = [read_setting(session, name) for name in ("primary_conninfo", "primary_slot_name")]
        try:
            point_at(session, seen.conninfo, seen.slot_name)
            self._wait_until_streaming(seen, self.params["timeout"])
        except OperationError as error:
            reason = self._why_not(seen)
            undone = self._undo(seen, kept)
            raise RolledBack(
                "%s did not stream from %s within %g s and was led back: %s" % (self._here, self._there, self.params["timeout"], reason),
                action="%sSee the logs of both servers" % ("Not put back: %s. " % "; ".join(undone["failed"]) if undone["failed"] else ""),
                cause=type(error).__name__,
                changed=bool(undone["failed"]),
                undone=undone["done"],
            ) from error

    def _undo(self, seen: Seen, kept: t.Sequence[Setting]) -> dict[str, list[str]]:
        """Put the settings back, and drop the slot that this run made. A connection of its own, as the other one may be lost."""
        done: list[str] = []
        failed: list[str] = []
        try:
            fresh = connect(self._here, timeout=ANSWER_SECONDS)
            try:
                put_back_settings(fresh, kept)
                done += ["%s put back" % setting.name for setting in kept]
            finally:
                fresh.close()
        except OperationError as problem:
            failed.append(problem.message)
        if self._created_slot:
            try:
                self._drop(self._there, t.cast(str, seen.slot_name))
                done.append("slot %s removed" % seen.slot_name)
            except OperationError as problem:
                failed.append("the slot %s on %s: %s" % (seen.slot_name, self._there, problem.message))
        return {"done": done, "failed": failed}

    @staticmethod
    def _drop(target: Target, name: str) -> None:
        """Once its walsender has noticed that the standby is gone."""
        session = connect(target, timeout=ANSWER_SECONDS)
        try:
            drop_slot_when_idle(session, name, Deadline(30))
        finally:
            session.close()

    def _drop_old(self, old: OldSlot) -> None:
        try:
            self._drop(old.target, old.name)
            self._dropped = "%s on %s" % (old.name, old.target)
        except OperationError as error:
            # The standby follows; what is left is one slot too many.
            self._warn("the slot %s on %s stays and holds WAL there: %s" % (old.name, old.target, error.message))

    def _wait_until_streaming(self, seen: Seen, seconds: float) -> None:
        here, there = self._session(self._here), self._session(self._there)
        wanted = parse_conninfo(seen.conninfo)
        name = wanted.get("application_name") or (seen.standby.state or {})["cluster_name"] or "walreceiver"
        # The slot on the upstream that was asked is the proof that the address leads there.
        served = (
            ("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [seen.slot_name])
            if seen.slot_name
            else ("SELECT count(*) > 0 FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'", [name])
        )
        wait_for(
            "streaming of %s from %s" % (self._here, self._there),
            lambda: {**receiver(here), "served": bool(there.value(*served))},
            lambda now: (
                now.get("status") == "streaming"
                and (now["sender_host"], now["sender_port"]) == (wanted["host"], int(wanted["port"]))
                and now["timeline"] >= (seen.upstream.timeline or 0)
                and now["served"]
            ),
            Deadline(seconds),
        )

    def _why_not(self, seen: Seen) -> str:
        """What the two servers know of it; the reason itself is in their logs only."""
        try:
            now = receiver(self._session(self._here))
            found = (
                "its walreceiver is %s at %s:%s on timeline %s" % (now["status"], now["sender_host"], now["sender_port"], now["timeline"])
                if now.get("status")
                else "it has no walreceiver, so it cannot connect, or is not let in, or the upstream refused what it asked for"
            )
            if seen.slot_name:
                slot = self._slot(self._session(self._there), seen.slot_name)
                found += "; its slot there is %s" % ("missing" if slot is None else "in use" if slot["active"] else "not in use, WAL %s" % slot["wal_status"])
            delay = (seen.standby.state or {})["apply_delay_seconds"]
            if delay:
                found += "; it replays with a delay of %g s (recovery_min_apply_delay), and takes a new upstream only after what it has received" % delay
            return found
        except OperationError as error:
            return error.message

    # Afterwards

    def report(self, seen: Seen) -> dict[str, t.Any]:
        for text in self._warnings:
            self.context.warn(text)
        standby, upstream = seen.standby, seen.upstream
        state = standby.state or {}
        return {
            "upstream_before": address_of(self._first or standby),
            "upstream": address_of(standby),
            "upstream_role": upstream.role,
            "upstream_timeline": upstream.timeline,
            "slot_name": state["primary_slot_name"] or None,
            "dropped_slot": self._dropped,
            "streaming": seen.streams,
            "timeline": standby.timeline,
            "received_lsn": int_to_lsn(standby.received) if standby.received is not None else None,
            "replayed_lsn": state["replayed_lsn"],
            "system_identifier": standby.system_identifier,
            "warnings_found": self._warnings,
        }
