"""An S3 server for these tests, whose network they can make fail; without moto they are skipped."""

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.waiting import wait_until

SECRET = "not-to-be-seen"


@dataclass
class Server:
    """The server, in a process of its own."""

    process: "subprocess.Popen[bytes]"
    url: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def uri(self, name: str = "run") -> str:
        """Where there is no run yet."""
        return f"s3://bucket/{next(self._numbers)}/{name}"

    def fails(self, kind: str, match: str = "", count: int | None = None, **how: Any) -> None:
        """From now on, some requests fail, as ``tests.remote.server`` says."""
        self._ask("/_faults", [{"kind": kind, "match": match, "count": count, **how}])

    def works(self) -> None:
        """From now on, every request is answered."""
        self._ask("/_faults", [])

    def asked(self) -> list[str]:
        """The requests since this was called last."""
        requests: list[str] = self._ask("/_requests", None)
        return requests

    def asked_for(self, words: str) -> None:
        """Wait for a request that holds these words."""
        self.asked()
        wait_until(lambda: any(words in request for request in self.asked()))

    @contextlib.contextmanager
    def hangs(self) -> Iterator[None]:
        """Within the block, connections are taken, and nothing is answered."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def _ask(self, path: str, content: object) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", json.dumps(content).encode(), 60) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """An S3 server with an empty bucket, which this process and those that it starts find in their environment."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("an S3 server is needed: pip install 'moto[server]'")
    command = [sys.executable, "-m", "tests.remote.server"]
    with (
        pytest.MonkeyPatch.context() as environment,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ENDPOINT_URL", url)
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
        yield Server(process, url)
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.fixture
def s3(server: Server) -> Iterator[Server]:
    """The server, in order."""
    yield server
    server.works()
