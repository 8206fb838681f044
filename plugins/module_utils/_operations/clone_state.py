# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What a clone finds: the source, the directory, and what the copy needs on this host."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import typing as t

from .._host.instance import Postmaster
from .rejoin import Relation


@dataclasses.dataclass(frozen=True)
class Source:
    """The server to copy, as it answers."""

    system_identifier: str
    version: str
    major_version: str
    in_recovery: bool
    timeline: int
    data_directory: str | None
    pid_file: str | None
    port: int
    started: float
    wal_level: str
    spaces: dict[str, int]
    """Bytes by tablespace location; "" is the data directory itself."""
    slot: dict[str, t.Any] | None
    senders: list[dict[str, t.Any]]
    local: bool
    """Whether its address is one of this host."""
    reads_files: bool = False
    rewindable: bool = False
    tablespaces: tuple[int, ...] = ()
    standing: tuple[str, ...] = ()
    """Why a source that is a standby may be behind its own upstream."""


@dataclasses.dataclass(frozen=True)
class Standby:
    """What there is at the data directory.

    ``kind`` is missing, empty, foreign, standby, primary, or unfinished: what stands in for a directory while that is rewound.
    """

    kind: str
    real_path: str
    postmaster: Postmaster | None = None
    orphans: tuple[int, ...] = ()
    system_identifier: str | None = None
    control_state: str | None = None
    upstream: str | None = None
    """``host:port`` that the running standby receives from, or is configured to."""
    streaming: bool = False
    from_source: bool = False
    is_source: str | None = None
    """Why this must be the source's own directory."""
    marker: dict[str, t.Any] | None = None
    in_use: str | None = None
    """A copy that another run is making now."""
    held: bool = False
    """Whether another operation is at work on the directory."""
    leftovers: tuple[str, ...] = ()
    interrupted: str | None = None
    """Identifier of a run that was killed between the two renames of its swap."""

    @property
    def running(self) -> bool:
        return self.postmaster is not None


@dataclasses.dataclass(frozen=True)
class CloneState:
    source: Source
    target: Standby
    spaces: tuple[Space, ...] = ()
    space_problems: tuple[str, ...] = ()
    relation: Relation | None = None
    """Of a directory with data that is down."""


@dataclasses.dataclass(frozen=True)
class Space:
    """A directory outside the data directory that the copy fills: a tablespace or the WAL."""

    kind: str
    origin: str
    path: str
    needed: int
    problem: str | None = None


def same_address(one: str, other: str) -> bool:
    """Whether two names lead to the same address, as far as this host can tell."""
    if one == other:
        return True
    return bool(_addresses(one) & _addresses(other))


def _addresses(host: str) -> set[str]:
    if not host or host.startswith("/"):
        return {"local"}
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def is_local(host: str) -> bool:
    """Whether a host is this one: a socket directory, or an address that this host can bind."""
    for address in _addresses(host):
        if address == "local":
            return True
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            return True
    return False


def not_enough_space(needed: t.Mapping[str, int], free: t.Callable[[str], tuple[int, int]]) -> list[str]:
    """What does not fit. ``needed`` is bytes by directory, ``free`` gives a directory's device and its free bytes."""
    by_device: dict[int, tuple[int, int, list[str]]] = {}
    for directory, size in needed.items():
        device, available = free(directory)
        _available, total, names = by_device.get(device, (available, 0, []))
        by_device[device] = (available, total + size, [*names, directory])
    return [
        "%s has %d MB free and the copy needs about %d MB" % (" with ".join(sorted(names)), available // 1048576, -(-total // 1048576))
        for available, total, names in by_device.values()
        if total > available
    ]
