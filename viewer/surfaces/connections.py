"""The page's connections: where it listens, whom it takes on, and how little strangers may cost.

A stranger is a connection that has not shown the page's token.
"""

import asyncio
import socket

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from tracer.log.run import LogError
from tracer.log.text import reason

HOST, PORT = "127.0.0.1", 8088
# Bytes that have arrived and are not yet read.
_LARGEST_BUFFER = 1 << 18
# A browser opens six connections.
_PLACES, _FEWEST_PLACES = 64, 8
_FULL_SECONDS = 0.2


def listen(host: str, port: int | None) -> socket.socket:
    """Listen at an address; where no port is given, at the usual one, or a free one where that is taken.

    Raises:
        LogError: nothing can be served at this address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, PORT if port is None else port), family=family)
    except OSError as error:
        if port is None:
            return listen(host, 0)
        raise LogError(
            f"no page at {host}:{port} ({reason(error)}): give another --port (0: any free one) or --host"
        ) from error
    listening.setblocking(False)
    return listening


class Strangers:
    """The connections that have not shown the token. Each takes a descriptor, so the oldest gives way to the newest."""

    def __init__(self) -> None:
        self._streams: list[IOStream] = []
        self._places = _PLACES

    def add(self, stream: IOStream) -> None:
        """A connection begins."""
        self._streams = [*(known for known in self._streams if not known.closed()), stream]
        self._keep()

    def know(self, stream: IOStream) -> None:
        """A connection has shown the token."""
        if stream in self._streams:
            self._streams.remove(stream)

    def make_room(self) -> None:
        """All descriptors of this process are taken: from now on there are half as many places as were taken."""
        self._places = max(_FEWEST_PLACES, min(self._places, len(self._streams)) // 2)
        self._keep()

    def _keep(self) -> None:
        for stream in self._streams[: -self._places]:
            stream.close()
        del self._streams[: -self._places]


async def accept(server: HTTPServer, strangers: Strangers, listening: socket.socket) -> None:
    """Take on connections. tornado's own way spins, and prints tracebacks, where no descriptor is left for another."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, address = await loop.sock_accept(listening)
        except ConnectionAbortedError:
            continue
        except OSError:
            strangers.make_room()
            await asyncio.sleep(_FULL_SECONDS)
            continue
        stream = IOStream(connection, max_buffer_size=_LARGEST_BUFFER)
        strangers.add(stream)
        server.handle_stream(stream, address)
        # The next connection may have come already; those that are served have their turn.
        await asyncio.sleep(0)
