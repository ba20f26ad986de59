"""Strangers, who do not know the page's token: they take no memory and no descriptor from those who do."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path as Folder
from urllib.parse import urlsplit

import psutil
import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.browser.test_guard import get
from tests.logs import extremes, new_run, publish_next
from tests.viewing import Viewing, viewing
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

_DESCRIPTORS = 64
# A viewer that has room for so many descriptors.
_NARROW = (
    "-c",
    (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({_DESCRIPTORS}, {_DESCRIPTORS})); "
        "runpy.run_module('viewer', run_name='__main__', alter_sys=True)"
    ),
)

# A viewer that hangs up soon.
_HASTY = (
    "-c",
    (
        "import runpy; from viewer.surfaces import web; web._IDLE_SECONDS = 1; "
        "runpy.run_module('viewer', run_name='__main__', alter_sys=True)"
    ),
)


@contextlib.contextmanager
def served(folder: Path, program: tuple[str, ...] = ("-m", "viewer")) -> Iterator[tuple[Viewing, str]]:
    """A viewer of a run, and the page's address."""
    publish_next(new_run(folder / "run"), "extremes", extremes(range(3)))
    with viewing(Folder(folder), "run", "--web", "--port", 0, program=program) as viewer:
        viewer.wait_for("http://")
        yield viewer, viewer.said().split()[-1]
        assert viewer.complained() == ""


def connected(address: str) -> socket.socket:
    """A connection that has said nothing yet."""
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def answer(connection: socket.socket, sent: bytes) -> bytes:
    """What comes back until the connection is closed."""
    received = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(sent)
        while more := connection.recv(1 << 16):
            received += more
    return received


def memory(viewer: Viewing) -> int:
    """Bytes of memory that a viewer has now."""
    return int(psutil.Process(viewer.process.pid).memory_info().rss)


def processor_seconds(viewer: Viewing) -> float:
    """Seconds of processor time that a viewer has used."""
    fields = Folder(f"/proc/{viewer.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def told(session: WebSocketClientConnection, words: str) -> None:
    """Wait until a session is told these words."""
    while (message := await session.read_message()) is not None:
        if isinstance(message, str) and words in message:
            return
    pytest.fail("the session has ended")


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize(
    "head",
    [
        *(
            f"{method} {{path}} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90000000\r\n\r\n"
            for method in ("GET", "PUT")
        ),
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5000000\r\n",
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
    ],
    ids=["length", "put", "chunks", "header"],
)
def test_no_request_is_held_in_memory(tmp_path: Path, head: str, token: bool) -> None:
    """A body, or a header without an end, is hung up on, and not read, whoever sends it."""
    with served(tmp_path) as (viewer, address):
        before = memory(viewer)
        path = urlsplit(address).path if token else "/"
        sent = head.format(path=path).encode() + b"x" * 10_000_000
        with contextlib.ExitStack() as strangers:
            for connection in [strangers.enter_context(connected(address)) for _ in range(10)]:
                assert answer(connection, sent)[:12] in (b"", b"HTTP/1.1 400")
        assert memory(viewer) - before < 40_000_000
        assert get(urlsplit(address).netloc, urlsplit(address).path)[0] == 200


@pytest.mark.parametrize("sent", ["", "GET {path} HTT", "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_who_falls_silent_is_hung_up_on(tmp_path: Path, sent: str) -> None:
    """Before, within and after a request, whoever makes it, a connection does not wait for ever."""
    with served(tmp_path, _HASTY) as (_, address), connected(address) as connection:
        # It is an error where the other side does not close it in time.
        answer(connection, sent.format(path=urlsplit(address).path).encode())


def test_idle_strangers_leave_descriptors_for_who_knows_the_token(tmp_path: Path) -> None:
    """More connections than a process can have make it neither spin, nor complain, nor refuse who knows the token."""

    async def talk() -> None:
        session = await websocket_connect(f"{address.replace('http', 'ws')}socket")
        await told(session, "step 2")
        with contextlib.ExitStack() as strangers:
            for _ in range(3 * _DESCRIPTORS):
                strangers.enter_context(connected(address))
            before = processor_seconds(viewer)
            publish_next(tmp_path / "run", "extremes", extremes(range(3, 10)))
            await told(session, "step 9")
            parts = urlsplit(address)
            assert (await asyncio.to_thread(get, parts.netloc, parts.path))[0] == 200
            other = await websocket_connect(f"{address.replace('http', 'ws')}socket")
            await told(other, "step 9")
            await asyncio.sleep(2)
            assert processor_seconds(viewer) - before < 1.5
            other.close()
        session.close()

    with served(tmp_path, _NARROW) as (viewer, address):
        asyncio.run(asyncio.wait_for(talk(), 60))
