"""The viewer in tests: in a process of its own, where it goes on beside the test, and in this one."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.commands import DISPLAYS, viewer_says
from tests.waiting import wait_until
from viewer.read.live import Live
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot

VIEWER = ("-m", "viewer")
# Whatever libraries warn of would be seen by the user, but for deprecations, which Python hides from users.
SEEN_BY_USERS = "error,ignore::DeprecationWarning,ignore::PendingDeprecationWarning"


@dataclass
class Viewing:
    """A viewer that is running, or has ended."""

    process: "subprocess.Popen[bytes]"
    output: Path
    errors: Path

    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(encoding="utf-8")

    def complained(self) -> str:
        """What it has printed to stderr so far."""
        return self.errors.read_text(encoding="utf-8")

    def wait_for(self, words: str) -> None:
        """Wait until it has printed these words."""
        wait_until(lambda: words in self.said() or self.process.poll() is not None)
        assert words in self.said(), self.complained()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(60)


@contextlib.contextmanager
def viewing(
    folder: Path, *arguments: object, display: Mapping[str, str] | None = None, program: tuple[str, ...] = VIEWER
) -> Iterator[Viewing]:
    """A viewer started in a folder, without a display unless one is given; at the end of the block it is ended."""
    environment = {name: value for name, value in os.environ.items() if name not in DISPLAYS}
    environment |= {"PYTHONWARNINGS": SEEN_BY_USERS, "PYTHONUTF8": "1", "COLUMNS": "200"} | dict(display or {})
    output, errors = folder / "viewer.out", folder / "viewer.err"
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
        )
    with process:
        try:
            yield Viewing(process, output, errors)
        finally:
            process.kill()


def view(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """A viewer that ends by itself, in this process: exit code, stdout and stderr."""
    said = viewer_says(folder, *arguments)
    return said.returncode, said.stdout, said.stderr


def view_in_process(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """As ``view``, in a process of its own."""
    with viewing(folder, *arguments) as viewer:
        code = viewer.wait()
        return code, viewer.said(), viewer.complained()


def shown(live: Live) -> Snapshot:
    """The snapshot of a refresh that has something to show."""
    snapshot = live.refresh()
    assert snapshot is not None
    return snapshot


def all_shown(runs: Runs) -> tuple[Snapshot, ...]:
    """The snapshots of a refresh that has something to show."""
    snapshots = runs.refresh()
    assert snapshots is not None
    return snapshots
