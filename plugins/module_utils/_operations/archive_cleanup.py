# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Removing from a WAL archive what no base backup, slot or member of the cluster needs any more."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
import time
import typing as t

from .._cluster import archive
from .._cluster.archive import ArchivedFile, Decision, JudgedBackup, Need
from .._cluster.model import Cluster, Node
from .._errors import InvalidInput, NotConfirmed, NotReachable, OperationError, Refused, SplitBrainRisk
from .._host.wal_archive import ArchiveDirectory, Entry
from .._module import LOGIN, ArgumentSpec, Context, Operation
from .._plan import Plan
from .._sql.values import lsn_to_int
from .cluster_info import NODE_OPTIONS, check_nodes, observe_cluster

PG_ARCHIVE_CLEANUP = LOGIN.merge(
    ArgumentSpec(
        {
            "archive_directory": {"type": "path", "required": True},
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": NODE_OPTIONS},
            "ignore_nodes": {"type": "list", "elements": "str", "default": []},
            "keep_backups": {"type": "int", "default": 1},
            "ignore_labels": {"type": "list", "elements": "str", "default": ["pgfleet.ops clone*"]},
            "oldest_backup": {"type": "list", "elements": "str", "default": []},
            "without_backups": {"type": "bool", "default": False},
            "keep_hours": {"type": "float", "default": 0},
            "verify_contents": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 10},
        }
    )
)

_SEGMENT = re.compile(r"[0-9A-F]{24}\Z")


@dataclasses.dataclass(frozen=True)
class Seen:
    """The archive, the cluster and what follows from both."""

    cluster: Cluster
    segment_size: int
    entries: t.Mapping[str, Entry]
    files: tuple[ArchivedFile, ...]
    backups: tuple[JudgedBackup, ...]
    needs: tuple[Need, ...]
    decision: Decision
    hole: str | None = None


def needs_of(node: Node, segment_size: int) -> t.Iterator[Need]:
    """Where a member that answered would begin to read WAL: after a crash, and for whom it keeps a slot or streams to."""
    state = node.state or {}
    timeline = state["timeline"]

    def need(lsn: str, what: str) -> Need:
        return Need(lsn_to_int(lsn) // segment_size, timeline, what)

    yield need(state["redo_lsn"], "%s would recover from %s" % (node.name, state["redo_lsn"]))
    if state["replayed_lsn"]:
        yield need(state["replayed_lsn"], "%s has replayed up to %s" % (node.name, state["replayed_lsn"]))
    for slot in state["slots"]:
        if slot["restart_lsn"]:
            yield need(slot["restart_lsn"], "the slot %s on %s begins at %s" % (slot["name"], node.name, slot["restart_lsn"]))
    for sender in state["senders"]:
        if sender["replay_lsn"]:
            yield need(sender["replay_lsn"], "%s, which streams from %s, has replayed up to %s" % (sender["application_name"], node.name, sender["replay_lsn"]))


class ArchiveCleanup(Operation):
    """The operation of pg_archive_cleanup."""

    def __init__(self, params: t.Mapping[str, t.Any], context: Context) -> None:
        super().__init__(params, context)
        check_nodes(params["nodes"])
        unknown = sorted(set(params["ignore_nodes"]) - {node["name"] for node in params["nodes"]})
        if unknown:
            raise InvalidInput("the option ignore_nodes names nodes that are not in the option nodes: %s" % ", ".join(unknown))
        if params["keep_backups"] < 1:
            raise InvalidInput("keep_backups is %d" % params["keep_backups"], expected="1 or more", action="For an archive without backups set without_backups")
        if params["keep_hours"] < 0:
            raise InvalidInput("keep_hours is %g" % params["keep_hours"], expected="0 or more")
        self.removed: list[str] = []
        self.removed_bytes = 0
        self.chosen: Decision | None = None
        self._directory: ArchiveDirectory | None = None

    def directory(self) -> ArchiveDirectory:
        if self._directory is None:
            self._directory = ArchiveDirectory(self.params["archive_directory"])
        return self._directory

    def close(self) -> None:
        if self._directory is not None:
            self._directory.close()

    # What is there

    def observe(self) -> Seen:
        directory = self.directory()
        # The archive is listed first: what is written to it meanwhile is newer than anything that can go.
        entries, _others = directory.entries()
        now = time.time()
        cluster = observe_cluster(self.params, self.params["timeout"], read_only=True)
        primary = self._judge_cluster(cluster)
        timeline = int((primary.state or {})["timeline"])
        segment_size = int((primary.state or {})["wal_segment_size"])
        names = {entry.name: entry for entry in entries}
        files = []
        for entry in entries:
            wal = archive.parse_wal_name(entry.name, segment_size)
            if wal is not None:
                files.append(ArchivedFile(wal, entry.size, now - entry.modified / 1e9))
        if entries and not files and not any(archive.timeline_of_history(entry.name) for entry in entries):
            raise Refused(
                "the archive directory %s has no WAL file of this cluster's segment size, but other files, %s for example"
                % (directory.path, min(entry.name for entry in entries)),
                expected="a directory that archive_command copies to",
            )
        backups = self._backups(files, self._history(names, timeline), timeline, segment_size)
        needs = [need for node in cluster.nodes if node.state is not None for need in needs_of(node, segment_size)]
        needs += self._backup_needs(backups, files, primary, segment_size)
        decision = archive.decide(files, needs, timeline, self.params["keep_hours"] * 3600)
        if self.params["verify_contents"]:
            for file in decision.removable:
                self._verify_content(file, primary, segment_size)
        start = min((need.number for need in needs), default=0)
        hole = archive.first_hole(files, max(start, min((file.wal.number for file in files), default=start)))
        return Seen(
            cluster, segment_size, names, tuple(files), tuple(backups), tuple(needs), decision,
            archive.segment_name(timeline, hole, segment_size) if hole is not None else None,
        )  # fmt: skip

    def _judge_cluster(self, cluster: Cluster) -> Node:
        """The primary. Raises an OperationError unless the needs of every member are known, or forgiven by name."""
        silent = [node for node in cluster.nodes if node.state is None]
        unknown = [node for node in silent if node.name not in self.params["ignore_nodes"]]
        if unknown:
            raise NotReachable(
                "what %s needs is unknown: %s" % (", ".join(node.name for node in unknown), "; ".join("%s: %s" % (n.name, n.problem) for n in unknown)),
                expected="an answer of every member",
                action="Bring it back, or, if it will be made anew and may lose its WAL, name it in ignore_nodes",
            )
        if len(cluster.system_identifiers) > 1:
            found = ", ".join("%s %s" % (node.name, node.system_identifier) for node in cluster.nodes if node.state)
            raise Refused("the nodes are of different clusters: %s" % found, expected="one system identifier")
        if len(cluster.primaries) > 1:
            raise SplitBrainRisk("more than one node accepts writes: %s" % ", ".join(node.name for node in cluster.primaries))
        # It may have begun before the newest of those that are done.
        running = [node.name for node in cluster.nodes if (node.state or {}).get("base_backups")]
        if running:
            raise Refused("a base backup is being taken from %s, and no server tells where it began" % ", ".join(running), action="Wait until it is done")
        if cluster.primary is None:
            raise Refused("no primary is among the nodes that answer", expected="exactly one", action="Clean the archive once the cluster has a primary again")
        return cluster.primary

    def _history(self, names: t.Iterable[str], timeline: int) -> list[tuple[int, int]]:
        """The past of the cluster's timeline, by the history file in the archive. Empty where that has none."""
        for name in sorted(name for name in names if archive.timeline_of_history(name) == timeline):
            text = self.directory().read_text(name, archive.compression_of(name))
            if text is not None:
                try:
                    return archive.parse_history(text)
                except (ValueError, IndexError) as error:
                    raise Refused("the timeline history file %s cannot be understood: %s" % (name, error)) from error
        return []

    def _backups(self, files: t.Sequence[ArchivedFile], history: t.Sequence[tuple[int, int]], timeline: int, segment_size: int) -> list[JudgedBackup]:
        found = []
        for file in files:
            if file.wal.kind != "backup":
                continue
            text = self.directory().read_text(file.wal.name, file.wal.compression)
            try:
                if text is not None:
                    found.append(archive.parse_backup(file.wal.name, file.wal.timeline, text))
            except ValueError:
                self.context.warn("%s is no history file of a finished backup and does not count as one" % file.wal.name)
        present = {(file.wal.timeline, file.wal.number) for file in files if file.wal.kind == "segment"}
        labels = self.params["ignore_labels"]
        return archive.judge_backups(found, present, timeline, history, segment_size, lambda label: any(fnmatch.fnmatchcase(label, one) for one in labels))

    def _backup_needs(self, backups: t.Sequence[JudgedBackup], files: t.Sequence[ArchivedFile], primary: Node, segment_size: int) -> list[Need]:
        counted = [one.backup for one in backups if one.problem is None]
        needs = [
            Need(one.start // segment_size, one.timeline, 'the backup "%s" of %s is kept' % (one.label, one.stopped_at))
            for one in counted[: self.params["keep_backups"]]
        ]
        named = [self._named_backup(text, backups, files, primary, segment_size) for text in self.params["oldest_backup"]]
        if not needs and not named and not self.params["without_backups"]:
            why = "; ".join("%s: %s" % (one.backup.file, one.problem) for one in backups)
            raise Refused(
                "no base backup is known that could be restored%s" % (" (%s)" % why if why else ", as the archive has no backup history file"),
                expected="one, whose WAL is then kept",
                action="Take a base backup, or name the oldest one of another tool in oldest_backup, or set without_backups if there are none to be kept",
            )
        return needs + named

    def _named_backup(self, text: str, backups: t.Sequence[JudgedBackup], files: t.Sequence[ArchivedFile], primary: Node, segment_size: int) -> Need:
        """An entry of oldest_backup: the segment that it starts with, the name of its history file, or its label."""
        what = "oldest_backup names %s" % text
        wal = archive.parse_wal_name(text, segment_size)
        if wal is not None and _SEGMENT.match(text):
            head = lsn_to_int((primary.state or {})["current_lsn"]) // segment_size
            if wal.number > head:
                raise InvalidInput("%s, and the primary has only come to %s" % (what, archive.segment_name(wal.timeline, head, segment_size)))
            if not any((file.wal.timeline, file.wal.number, file.wal.kind) == (wal.timeline, wal.number, "segment") for file in files):
                raise InvalidInput("%s, which is not in the archive" % what, expected="the first segment of a backup, without which it cannot be restored")
            return Need(wal.number, wal.timeline, what)
        found = [one.backup for one in backups if text in (one.backup.file, one.backup.label)]
        if not found:
            raise InvalidInput(
                "%s, which no history file in the archive knows" % what,
                expected="the name of a WAL segment (24 hexadecimal digits), of a .backup file in the archive, or the label of a backup in the archive",
                action="Ask the backup's own tool for the first segment that it needs",
            )
        oldest = min(found, key=lambda one: one.start)
        return Need(oldest.start // segment_size, oldest.timeline, what)

    def _verify_content(self, file: ArchivedFile, primary: Node, segment_size: int) -> None:
        """Raises Refused for a segment that is not this cluster's, by its own first page."""
        if file.wal.kind == "backup":
            return
        header = self.directory().header(file.wal.name, file.wal.compression)
        if header is None and file.wal.compression in ("zst", "lz4"):
            return
        name = "%s in %s" % (file.wal.name, self.directory().path)
        if header is None:
            raise Refused(
                "%s does not begin as a WAL segment" % name,
                expected="segments as PostgreSQL wrote them, or compressed",
                action="Look at the file; set verify_contents to false if the archive holds them in another form",
            )
        if header.system_identifier != primary.system_identifier:
            raise Refused(
                "%s is of the cluster with the system identifier %s, and %s has %s" % (name, header.system_identifier, primary.name, primary.system_identifier),
                expected="an archive of this cluster alone",
            )
        # The first segment of a timeline begins with what was copied from the one before.
        if header.timeline > file.wal.timeline or (header.segment_size, header.position) != (segment_size, file.wal.number * segment_size):
            raise Refused("%s holds another segment than its name says" % name, action="Look at the file and remove it by hand")

    # What to do

    def plan(self, seen: Seen) -> Plan:
        plan = Plan()
        doomed = seen.decision.removable
        if doomed:
            size = sum(file.bytes for file in doomed)
            plan.add(
                "remove %d files (%d bytes) that are older than %s" % (len(doomed), size, self._needed(seen)),
                functools.partial(self._remove, [seen.entries[file.wal.name] for file in doomed], seen.decision),
                subject=self.directory().path,
                before="".join(file.wal.name + "\n" for file in doomed),
                after="",
            )
        return plan

    def _remove(self, entries: t.Sequence[Entry], decision: Decision) -> None:
        """Oldest first, so that what is left is without a hole whenever this ends."""
        self.chosen = decision
        try:
            for entry in entries:
                if self.directory().remove(entry):
                    self.removed.append(entry.name)
                    self.removed_bytes += entry.size
        except OperationError as error:
            error.facts.update(removed=self.removed, removed_bytes=self.removed_bytes, changed=bool(self.removed))
            raise
        finally:
            self.directory().sync()

    def confirm(self, seen: Seen) -> None:
        # More may have become old enough meanwhile, which is for the next run.
        left = sorted(set(self.removed) & set(seen.entries))
        if left:
            raise NotConfirmed("these files are there again: %s" % ", ".join(left), action="See who writes to the archive")

    # What is said

    @staticmethod
    def _needed(seen: Seen) -> str:
        need = seen.decision.oldest[0]
        return archive.segment_name(need.timeline, need.number, seen.segment_size)

    def report(self, seen: Seen) -> dict[str, t.Any]:
        decision = seen.decision
        doomed = [] if self.chosen else [file.wal.name for file in decision.removable]
        kept = [file.wal for file in seen.files if file.wal.kind != "backup" and file.wal.name not in doomed]
        self._warn(seen)
        return {
            "archive_directory": self.directory().path,
            "removed": self.removed if self.chosen else doomed,
            "removed_bytes": self.removed_bytes if self.chosen else sum(file.bytes for file in decision.removable),
            "kept": len(kept),
            "oldest_kept": min(kept, key=lambda wal: (wal.number, wal.timeline)).name if kept else None,
            "oldest_needed": self._needed(seen),
            "needed_by": [need.what for need in decision.oldest],
            "too_young": decision.too_young,
            "backups": [
                {"file": one.backup.file, "label": one.backup.label, "stopped_at": one.backup.stopped_at, "counts": one.problem is None, "problem": one.problem}
                for one in seen.backups
            ],
            "hole": seen.hole,
        }

    def _warn(self, seen: Seen) -> None:
        forgiven = [node.name for node in seen.cluster.nodes if node.state is None]
        if forgiven:
            self.context.warn("%s did not answer, and WAL that it needs may be gone now" % ", ".join(forgiven))
        if seen.decision.unknown_timeline:
            self.context.warn(
                "%d files of a later timeline than the primary's stay: a server that is not among the nodes wrote them" % seen.decision.unknown_timeline
            )
        if seen.hole:
            self.context.warn("the archive has a hole: %s is missing, and later segments are there. No recovery gets past it" % seen.hole)
        lost = [
            "%s on %s" % (slot["name"], node.name)
            for node in seen.cluster.nodes
            for slot in (node.state or {}).get("slots", ())
            if slot["wal_status"] == "lost"
        ]
        if lost:
            self.context.warn("the slot %s has lost its WAL; who uses it and is not among the nodes may need the archive" % ", ".join(lost))
