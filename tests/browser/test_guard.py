"""Who is served the page, and where: everything needs the token, and a name of this machine."""

import asyncio
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from tornado.websocket import websocket_connect

from tests.logs import extremes, new_run, publish_next
from tests.viewing import view, viewing
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
FILES = ("", "page.js", "page.css", "mpl.js", "_images/home.png")
NEED = (*FILES, "figure.svg?session=me", "socket")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Host and port of a viewer, and its token."""
    folder = tmp_path_factory.mktemp("served")
    publish_next(new_run(folder / "run"), "extremes", extremes(range(3)))
    with viewing(folder, "run", "--web", "--port", 0) as viewer:
        viewer.wait_for("http://")
        address = urlsplit(viewer.said().split()[-1])
        yield address.netloc, address.path.strip("/")
        assert viewer.complained() == ""


def get(netloc: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    connection = HTTPConnection(netloc, timeout=20)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        # What follows a switch of protocols is not for this client.
        return response.status, dict(response.headers), b"" if response.status == 101 else response.read()
    finally:
        connection.close()


@pytest.mark.smoke
@pytest.mark.parametrize("name", NEED)
@pytest.mark.parametrize("token", ["", "wrong", "%00", "%C3%A4"])
def test_everything_needs_the_token(served: tuple[str, str], name: str, token: str) -> None:
    """Without the token, or with another, there is nothing but one sentence that says where to find it."""
    netloc, _ = served
    status, _, said = get(netloc, f"/{token}/{name}", **UPGRADE)
    assert (status, said.count(b".")) == (403, 1)
    assert b"address that it printed" in said


@pytest.mark.parametrize("name", NEED)
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", ""])
def test_a_foreign_name_of_this_machine_is_refused(served: tuple[str, str], name: str, host: str) -> None:
    """A name that somebody else has pointed at this machine serves nothing, even with the token."""
    netloc, token = served
    status, _, said = get(netloc, f"/{token}/{name}", **UPGRADE, Host=host)
    assert status in (400, 403)
    assert status == 400 or b"--host" in said


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "[::1]:8088", "LOCALHOST", socket.gethostname()])
def test_own_names_of_this_machine_are_served(served: tuple[str, str], host: str) -> None:
    """This machine's addresses and names are those under which the page may be reached, as through a tunnel."""
    netloc, token = served
    assert get(netloc, f"/{token}/", Host=host)[0] == 200


def test_only_the_page_itself_opens_a_socket(served: tuple[str, str]) -> None:
    """A socket is opened for a page of the same host and port, and for no other."""
    netloc, token = served
    port = netloc.rpartition(":")[2]
    for origin in (
        "http://evil.example",
        f"http://127.0.0.1:{int(port) % 65535 + 1}",
        "null",
        f"http://localhost:{port}",
    ):
        assert get(netloc, f"/{token}/socket", **UPGRADE, Origin=origin)[0] == 403, origin
    assert get(netloc, f"/{token}/socket", **UPGRADE, Origin=f"http://{netloc}")[0] == 101


def test_every_answer_is_kept_from_other_pages_and_caches(served: tuple[str, str]) -> None:
    """Nothing from another host may be loaded, and the page is neither framed, cached nor named to others."""
    netloc, token = served
    for path in (*(f"/{token}/{name}" for name in FILES), f"/{token}/nothing", "/", "/wrong/", "/%ff/"):
        _, headers, _ = get(netloc, path)
        policy = headers["Content-Security-Policy"]
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "name", ["../web.py", "..%2fweb.py", "%2fetc/passwd", "_images/../page.js", "figure.exe", "figure.png"]
)
def test_no_address_leads_into_the_file_system(served: tuple[str, str], name: str) -> None:
    """What is none of the page's files, or nobody's figure, is not there."""
    netloc, token = served
    assert get(netloc, f"/{token}/{name}")[0] == 404


def test_a_port_that_is_taken_is_one_error(served: tuple[str, str], tmp_path: Path) -> None:
    """A port that was asked for, but is taken, ends it with code 1 and one line that says what to do."""
    run = new_run(tmp_path / "run")
    code, _, complained = view(tmp_path, run, "--port", served[0].rpartition(":")[2])
    assert (code, len(complained.splitlines())) == (1, 1)
    assert "give another --port" in complained


def test_the_usual_port_gives_way(tmp_path: Path) -> None:
    """Where the usual port is taken, and none was asked for, the page has a free one; each has a token of its own."""
    run = new_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    with viewing(tmp_path, run, "--web") as viewer, viewing(tmp_path / "other", run, "--web") as other:
        addresses = set()
        for each in (viewer, other):
            each.wait_for("http://127.0.0.1:")
            addresses.add(urlsplit(each.said().split()[-1]))
        assert len({address.port for address in addresses}) == 2
        assert len({address.path for address in addresses}) == 2


@pytest.mark.parametrize(
    "message",
    [
        *("nonsense", "[]", "{}", '{"type": "look"}', '{"type": "resize", "width": "x"}', "[" * 60_000),
        '{"type": "button_press", "x": 1, "y": Infinity, "button": 0, "buttons": 1, "modifiers": []}',
    ],
    ids=lambda message: message[:40],
)
def test_a_message_that_no_page_sends_ends_its_connection_alone(tmp_path: Path, message: str) -> None:
    """Who speaks nonsense is hung up on, without a word on the terminal, and others are served as before."""
    with viewing(tmp_path, new_run(tmp_path / "run"), "--web", "--port", "0") as viewer:
        viewer.wait_for("http://127.0.0.1:")
        address = viewer.said().split()[-1]

        async def talk() -> None:
            connection = await websocket_connect(f"{address.replace('http', 'ws')}socket")
            await connection.write_message(message)
            while await connection.read_message() is not None:
                pass
            connection.close()

        asyncio.run(asyncio.wait_for(talk(), 30))
        parts = urlsplit(address)
        assert get(parts.netloc, parts.path)[0] == 200
        assert viewer.complained() == ""
