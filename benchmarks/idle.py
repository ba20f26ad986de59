"""The time that commands take to start, and the share of a core that a viewer takes while there is nothing to show.

- *Starting*: fresh processes in turns, each beside an empty Python of the same round.
- *Idle*: all viewers at once, each on a run that publishes nothing. After they have started and drawn, their time of a
  core is taken between two moments. A live run has its heartbeat renewed, as by a training, and the age of its last row
  grows. A closed run ends all surfaces but the page. The aim is less than 1 % for one run.

Run: ``python -m benchmarks.idle``.
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

from benchmarks.viewer import MANY_PARTS, build, connected, received, served, spread
from tracer.log.ranks import beat, close_rank
from tracer.log.store import Local as Path

NOTHING = "python -c pass"
STARTS = {
    NOTHING: ("-c", "pass"),
    "import tracer": ("-c", "import tracer"),
    "import viewer": ("-c", "import viewer"),
    "tracer --help": ("-m", "tracer", "--help"),
    "viewer --help": ("-m", "viewer", "--help"),
}
SURFACES = {
    "--save --follow": ("--save", "idle.png", "--follow"),
    "--text": ("--text",),
    "--web": ("--web", "--port", "0"),
    "--web, a page open": ("--web", "--port", "0"),
}
CLOSED_RUNS = 100
BEAT_SECONDS = 0.5


@dataclass(frozen=True)
class Watched:
    """A run, or a folder of runs, and the folders of the runs that should seem alive."""

    name: str
    path: Path
    live: tuple[Path, ...] = ()
    surfaces: tuple[str, ...] = tuple(SURFACES)


@dataclass(frozen=True)
class Idle:
    """A viewer that is running."""

    run: Watched
    surface: str
    process: "subprocess.Popen[str]"


def started(repeats: int) -> dict[str, list[float]]:
    """Seconds from start to end of each process, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    # The first round writes what Python compiles.
    for number in range(repeats + 1):
        for name, arguments in STARTS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def starting(seconds: dict[str, list[float]]) -> Table:
    """The time of each start, and its difference to an empty Python of the same round."""
    table = Table("started", "from start to end", "from, to", "beyond Python", "from, to", title="Starting")
    for name, found in seconds.items():
        beyond = [a - b for a, b in zip(found, seconds[NOTHING], strict=True)]
        table.add_row(name, *spread(found, "ms", 1e3), *(spread(beyond, "ms", 1e3) if name != NOTHING else ("", "")))
    return table


def runs(folder: Path) -> Iterator[Watched]:
    """The runs to watch: small, large and several, live, closed and yet to come."""
    # So that the age of the last row changes as it does.
    many = build(folder / "many", 310 * MANY_PARTS, MANY_PARTS, began=time.time() - 0.25 * MANY_PARTS)
    live = build(folder / "live", 6_200, 1, began=time.time())
    yield Watched("live", live, (live,))
    yield Watched(f"live, {MANY_PARTS:,} parts", many, (many,))
    closed = folder / "closed"
    for number in range(CLOSED_RUNS):
        run = build(closed / f"{number:03}", 6_200, 1)
        close_rank(run, 0, {"last_step": 99, "rows_dropped": {}, "published": {"extremes": 1}})
    pages = tuple(name for name in SURFACES if name.startswith("--web"))
    yield Watched("closed", closed / "000", surfaces=pages)
    yield Watched(f"{CLOSED_RUNS} closed runs", closed, surfaces=pages)
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
    process = subprocess.Popen(
        [sys.executable, "-m", "viewer", str(run.path), *SURFACES[surface]],
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
    page = await connected(await asyncio.to_thread(served, process))
    while True:
        await received(page)


async def live(folders: tuple[Path, ...]) -> None:
    """Renew the heartbeats of runs, as their trainings do."""
    while True:
        for folder in folders:
            beat(folder, 0)
        await asyncio.sleep(BEAT_SECONDS)


async def shares(watched: list[Watched], folder: Path, settle: float, seconds: float) -> dict[tuple[str, str], float]:
    """The share of a core that each viewer takes, by run and surface."""
    with ExitStack() as stack:
        tasks = [asyncio.create_task(live(tuple(path for run in watched for path in run.live)))]
        viewers: list[Idle] = []
        for run in watched:
            for surface in run.surfaces:
                own = folder / f"viewer-{len(viewers)}"
                own.mkdir()
                viewers.append(stack.enter_context(watching(run, surface, own)))
                if surface == "--web, a page open":
                    tasks.append(asyncio.create_task(look(viewers[-1].process)))
        await asyncio.sleep(settle)
        before = [core_seconds(viewer.process) for viewer in viewers]
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        wall = time.monotonic() - begun
        assert not any(task.done() for task in tasks), "a page or a heartbeat has ended"
        assert all(viewer.process.poll() is None for viewer in viewers), "a viewer has ended"
        found = {
            (viewer.run.name, viewer.surface): (core_seconds(viewer.process) - earlier) / wall
            for viewer, earlier in zip(viewers, before, strict=True)
        }
        for task in tasks:
            task.cancel()
        return found


def idling(watched: list[Watched], found: dict[tuple[str, str], float]) -> Table:
    """The shares, with a row for each run and a column for each surface."""
    table = Table("run", *SURFACES, title="Idle: share of a core")
    for run in watched:
        table.add_row(run.name, *(f"{found[run.name, s]:.2%}" if s in run.surfaces else "ends" for s in SURFACES))
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="of each start")
    parser.add_argument("--settle", type=float, default=45.0, help="seconds in which all viewers start and draw")
    parser.add_argument("--seconds", type=float, default=60.0, help="in which they are idle")
    given = parser.parse_args()
    console = Console(width=110)
    console.print(f"Python {sys.version.partition(' ')[0]}, {os.cpu_count()} cores")
    console.print(starting(started(given.repeats)))
    with tempfile.TemporaryDirectory() as folder:
        watched = list(runs(Path(folder)))
        console.print(idling(watched, asyncio.run(shares(watched, Path(folder), given.settle, given.seconds))))


if __name__ == "__main__":
    main()
