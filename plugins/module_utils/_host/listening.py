# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Who listens on a port or a socket of this host, asked before a server is started there. Linux only; elsewhere nobody is found."""

from __future__ import annotations

import contextlib
import glob
import ipaddress
import os
import re
import socket
import struct
import typing as t


class Listener(t.NamedTuple):
    """A listening socket. ``pid`` is None when its process belongs to a user that we may not look at."""

    address: str
    pid: int | None
    program: str

    def __str__(self) -> str:
        return "%s is taken by %s" % (self.address, "process %d (%s)" % (self.pid, self.program) if self.pid else "a process of another user")


def parse_tcp(text: str, port: int) -> list[tuple[str, str]]:
    """Address and inode of each socket that listens on ``port``, from the text of /proc/net/tcp or tcp6."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != "0A":
            continue
        address, _colon, number = words[1].rpartition(":")
        if int(number, 16) == port:
            found.append((_address(address), words[9]))
    return found


def parse_unix(text: str, path: str) -> list[str]:
    """Inodes of the sockets that listen at ``path``, from the text of /proc/net/unix."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split(None, 7)
        # Flag 0x10000: it accepts connections.
        if len(words) == 8 and words[7] == path and int(words[3], 16) & 0x10000:
            found.append(words[6])
    return found


def clashes(wanted: str, taken: str) -> bool:
    """Whether a server that listens on address ``wanted`` meets one on ``taken`` (same port)."""
    one, other = ipaddress.ip_address(wanted), ipaddress.ip_address(taken)
    if one == other:
        return True
    if one.version == other.version:
        return one.is_unspecified or other.is_unspecified
    # A socket on :: usually takes IPv4 too; PostgreSQL's own is for IPv6 only.
    return other.version == 6 and other.is_unspecified


def find_conflicts(port: int, listen_addresses: str, socket_directories: str, own: t.Collection[int] = ()) -> list[Listener]:
    """Who has taken what a server with these settings would listen on; ``own`` are the processes of that server itself."""
    found: list[tuple[str, str]] = []
    wanted = _resolve(listen_addresses)
    for name in ("tcp", "tcp6"):
        for address, inode in parse_tcp(_read("/proc/net/%s" % name), port):
            if any(clashes(one, address) for one in wanted):
                found.append(("port %d of %s" % (port, address), inode))
    for directory in (part.strip() for part in socket_directories.split(",")):
        if directory:
            path = "%s/.s.PGSQL.%d" % (directory.rstrip("/"), port)
            found += [(path, inode) for inode in parse_unix(_read("/proc/net/unix"), path)]
    owners = _owners({inode for _address, inode in found}) if found else {}
    listeners = []
    for address, inode in found:
        pid = owners.get(inode)
        if pid is None or pid not in own:
            listeners.append(Listener(address, pid, _program(pid) if pid else ""))
    return listeners


def _address(text: str) -> str:
    # Words of 32 bits in the machine's byte order.
    raw = bytes.fromhex(text)
    words = struct.unpack(">%dI" % (len(raw) // 4), raw)
    packed = struct.pack("=%dI" % len(words), *words)
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _resolve(listen_addresses: str) -> list[str]:
    found = []
    for part in (part.strip() for part in listen_addresses.split(",")):
        if part == "*":
            found += ["0.0.0.0", "::"]
        elif part:
            try:
                found += [str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(part, None, type=socket.SOCK_STREAM)]
            except OSError:
                # The server will say that itself, and better.
                continue
    return found


def _owners(inodes: set[str]) -> dict[str, int]:
    owners: dict[str, int] = {}
    for path in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            found = re.match(r"socket:\[(\d+)\]", os.readlink(path))
        except OSError:
            continue
        if found and found.group(1) in inodes:
            pid = int(path.split("/")[2])
            # The parent of those that inherited it has the lowest number, nearly always.
            owners[found.group(1)] = min(pid, owners.get(found.group(1), pid))
    return owners


def _program(pid: int) -> str:
    # Not the command line: that may hold a secret.
    name = _read("/proc/%d/comm" % pid).strip() or "unknown"
    try:
        return "%s in %s" % (name, os.readlink("/proc/%d/cwd" % pid))
    except OSError:
        return name


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def own_address(name: str) -> str | None:
    """Whether a name or address is this host's: ``own``, ``loopback``, ``unknown`` when it cannot be resolved here, or None."""
    try:
        found = {(family, address[0]) for family, _type, _protocol, _name, address in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return "unknown"
    if any(ipaddress.ip_address(str(address).split("%", 1)[0]).is_loopback for _family, address in found):
        return "loopback"
    for family, address in found:
        with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            # Only a host's own addresses can be bound. Nothing is sent.
            probe.bind((address, 0))
            return "own"
    return None
