# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network between the parts of a site: TCP connections that can be cut or held up.

Usage: proxy.py LINKS, a JSON list of [name, listening host, its port, host led to, its port]. Commands on standard input, each answered by a line:
``cut NAME`` closes the link's connections, ``partition NAME`` keeps them open and lets nothing through either way, nor through new ones,
``heal NAME`` ends that. Connections on which a standby asks for replication belong to the link NAME-replication.
"""

import asyncio
import contextlib
import json
import sys


class Link:
    def __init__(self):
        self.open = asyncio.Event()
        self.open.set()
        self.connections = set()


class Connection:
    def __init__(self, links, name):
        self.links = links
        self.name = name
        self.link = links[name]
        self.link.connections.add(self)
        self.writers = []
        self.packets = 0

    def look(self, data):
        """The startup packet is the client's first or, after a question for TLS, its second."""
        self.packets += 1
        if self.packets <= 2 and b"\0replication\0" in data:
            self.link.connections.discard(self)
            self.link = self.links[self.name + "-replication"]
            self.link.connections.add(self)

    async def pump(self, reader, writer, from_client):
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(65536)
                if from_client and self.packets < 2:
                    self.look(data)
                await self.link.open.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader, writer, host, port):
        self.writers.append(writer)
        try:
            away_reader, away_writer = await asyncio.open_connection(host, port)
            self.writers.append(away_writer)
            pumps = [asyncio.ensure_future(self.pump(reader, away_writer, True)), asyncio.ensure_future(self.pump(away_reader, writer, False))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for writer in self.writers:
                with contextlib.suppress(OSError):
                    await writer.drain()
                writer.close()
            for pump in pumps:
                pump.cancel()
        except OSError:
            self.cut()
        finally:
            self.link.connections.discard(self)


async def main():
    links = {}
    for name, *_address in json.loads(sys.argv[1]):
        links[name] = Link()
        links[name + "-replication"] = Link()
    servers = []
    for name, listen_host, listen_port, host, port in json.loads(sys.argv[1]):

        async def serve(reader, writer, name=name, host=host, port=port):
            await Connection(links, name).serve(reader, writer, host, port)

        servers.append(await asyncio.start_server(serve, listen_host, listen_port))
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        command, name = line.split()
        if command == "cut":
            for connection in list(links[name].connections):
                connection.cut()
        elif command == "partition":
            links[name].open.clear()
        else:
            links[name].open.set()
        print("done", flush=True)


asyncio.run(main())
