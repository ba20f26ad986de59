"""The share of a core that a viewer takes while there is little to show, or nothing.

All viewers run at once, each on its run. After they have started and drawn, their time of a core is taken between two
moments. A run that is live has its heartbeat renewed, as by a training, and the age of its last row grows; one of them
grows, too, by a part of five steps a second. A closed run ends all surfaces but the page. The aims are less than 1 %
for one run that does not grow, and at most 3 % for ``viewer.show``, which runs in the kernel that trains.

Run: ``python -m benchmarks.idle``. ``--settle 10 --seconds 10 --rows 10000`` makes a short try.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.watched import (
    MANY_PARTS,
    PARAMS,
    STEPS_A_SECOND,
    build,
    closed_runs,
    connected,
    next_number,
    publish_steps,
    received,
)
from tracer.log.ranks import beat
from tracer.log.store import Local as Path

# What it takes of the kernel's process, in which nothing else happens here.
_SHOW = """
import sys, threading
from types import SimpleNamespace
from tracer.log.store import Local as Path
from viewer.read.runs import Runs
from viewer.surfaces.notebook import Showing
handle, events = SimpleNamespace(update=lambda *_, **__: None), SimpleNamespace(register=lambda *_: None)
Showing(Runs([Path(sys.argv[1])]), handle, events)
threading.Event().wait()
"""
PAGE = "--web, a page open"
# What stands before the run, and after it.
SURFACES = {
    "--save --follow": (("-m", "viewer"), ("--save", "idle.png", "--follow")),
    "--text": (("-m", "viewer"), ("--text",)),
    "--web": (("-m", "viewer"), ("--web", "--port", "0")),
    PAGE: (("-m", "viewer"), ("--web", "--port", "0")),
    "viewer.show": (("-c", _SHOW), ()),
}
PAGES = ("--web", PAGE)
CLOSED_RUNS = 100
BEAT_SECONDS, PART_SECONDS = 0.5, 1.0


@dataclass(frozen=True)
class Watched:
    """A run, or a folder of runs, and what happens to it."""

    name: str
    path: Path
    live: bool = False
    grows: bool = False
    surfaces: tuple[str, ...] = tuple(SURFACES)


@dataclass(frozen=True)
class Idle:
    """A viewer that is running."""

    run: Watched
    surface: str
    process: "subprocess.Popen[str]"


def runs(folder: Path, rows: int) -> Iterator[Watched]:
    """The runs to watch: small, large and several, live, closed and yet to come."""

    def live(name: str, count: int, parts: int) -> Path:
        # So that the age of the last row changes as it does.
        return build(folder / name, count, parts, began=time.time() - count / PARAMS / STEPS_A_SECOND)

    yield Watched("live", live("live", 6_200, 1), live=True)
    yield Watched(f"live, {MANY_PARTS:,} parts", live("many", 310 * MANY_PARTS, MANY_PARTS), live=True)
    yield Watched(f"live, a part a second after {rows / 1e6:g} M rows", live("grows", rows, 1), live=True, grows=True)
    closed = closed_runs(folder / "closed", CLOSED_RUNS)
    yield Watched("closed", closed / "run-000", surfaces=PAGES)
    yield Watched(f"{CLOSED_RUNS} closed runs", closed, surfaces=PAGES)
    yield Watched("not there yet", folder / "missing")


@contextlib.contextmanager
def watching(run: Watched, surface: str, folder: Path) -> Iterator[Idle]:
    """A viewer as a process of its own, on a terminal of its own."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.set_blocking(ours, False)
    loop = asyncio.get_running_loop()
    if surface == "--text":
        # What nobody reads would stop the viewer.
        loop.add_reader(ours, os.read, ours, 1 << 16)
    program, options = SURFACES[surface]
    process = subprocess.Popen(
        [sys.executable, *program, str(run.path), *options],
        cwd=folder,
        stdin=theirs,
        stdout=theirs if surface == "--text" else subprocess.PIPE,
        env=os.environ | {"TERM": "xterm-256color"},
        text=True,
    )
    try:
        yield Idle(run, surface, process)
    finally:
        process.kill()
        process.wait()
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)


def core_seconds(process: "subprocess.Popen[str]") -> float:
    """The time of a core that a process and its ended children have taken."""
    # The name before it may hold anything, a parenthesis as well.
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


async def look(process: "subprocess.Popen[str]") -> None:
    """Open a viewer's page, and take its pictures."""
    page = await connected(process)
    while True:
        await received(page)


async def live(run: Watched) -> None:
    """Renew the heartbeat of a run, as its training does."""
    while True:
        beat(run.path, 0)
        await asyncio.sleep(BEAT_SECONDS)


async def grow(run: Watched) -> None:
    """Publish more and more of a run."""
    number = next_number(run.path)
    while True:
        await asyncio.to_thread(publish_steps, run.path, number)
        number += 1
        await asyncio.sleep(PART_SECONDS)


async def shares(watched: list[Watched], folder: Path, settle: float, seconds: float) -> dict[tuple[str, str], float]:
    """The share of a core that each viewer takes, by run and surface."""
    with ExitStack() as stack:
        tasks = [asyncio.create_task(live(run)) for run in watched if run.live]
        tasks += [asyncio.create_task(grow(run)) for run in watched if run.grows]
        viewers: list[Idle] = []
        for run in watched:
            for surface in run.surfaces:
                own = folder / f"viewer-{len(viewers)}"
                own.mkdir()
                viewers.append(stack.enter_context(watching(run, surface, own)))
                if surface == PAGE:
                    tasks.append(asyncio.create_task(look(viewers[-1].process)))
        await asyncio.sleep(settle)
        before = [core_seconds(viewer.process) for viewer in viewers]
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        wall = time.monotonic() - begun
        assert not any(task.done() for task in tasks), "a page, a heartbeat or a run has ended"
        assert all(viewer.process.poll() is None for viewer in viewers), "a viewer has ended"
        found = {
            (viewer.run.name, viewer.surface): (core_seconds(viewer.process) - earlier) / wall
            for viewer, earlier in zip(viewers, before, strict=True)
        }
        for task in tasks:
            task.cancel()
        return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the run that grows, at first")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds in which all viewers start and draw")
    parser.add_argument("--seconds", type=float, default=120.0, help="in which their time is taken")
    given = parser.parse_args()
    console = Console(width=120)
    console.print(f"Python {sys.version.partition(' ')[0]}, {os.cpu_count()} cores")
    table = Table("run", *SURFACES, title="Share of a core")
    with tempfile.TemporaryDirectory() as folder:
        watched = list(runs(Path(folder), given.rows))
        found = asyncio.run(shares(watched, Path(folder), given.settle, given.seconds))
    for run in watched:
        table.add_row(run.name, *(f"{found[run.name, s]:.2%}" if s in run.surfaces else "ends" for s in SURFACES))
    console.print(table)


if __name__ == "__main__":
    main()
