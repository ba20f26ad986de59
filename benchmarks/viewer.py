"""The time that a user of the viewer waits: for it to start, to open runs, to judge them, to draw new rows, to answer.

The runs have 62 parameters, as ResNet-18, or 10,000. A fresh process opens each, from ``viewer RUN --save FILE`` to its
end. Files are in the page cache. A redraw should cost the same whatever the length of the run, so the lines of
``Following`` should be alike within one view. Run: ``python -m benchmarks.viewer``. Run as a file, it would hide the
package of its name. ``--rows 200000 --repeats 1 --delays 5`` makes a short try.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.watched import (
    MANY_PARTS,
    PARAMS,
    build,
    closed_runs,
    connected,
    next_number,
    publish_steps,
    received,
    rows,
    spread,
    viewer,
)
from tracer.log.parts import merge, publish
from tracer.log.store import Local as Path
from viewer.options import View, ViewOptions
from viewer.read.runs import Runs
from viewer.surfaces.files import FigureFile

MANY_PARAMS = 10_000
MANY_RUNS = 200

NOTHING = "python -c pass"
STARTS = {
    NOTHING: ("-c", "pass"),
    "import tracer": ("-c", "import tracer"),
    "import viewer": ("-c", "import viewer"),
    "tracer --help": ("-m", "tracer", "--help"),
    "viewer --help": ("-m", "viewer", "--help"),
}

# For a child, wait4 can give the peak of the process that started it.
_OPEN = """
import atexit
from tracer.log.store import Local as Path
from viewer.cli import main
atexit.register(lambda: print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
main()
"""

_READ = """
import sys, time
from tracer.log.store import Local as Path
from viewer.read.runs import Runs
from viewer.options import View, ViewOptions
runs = Runs([Path(sys.argv[1])], ViewOptions(View(sys.argv[2])))
begun = time.perf_counter()
runs.refresh()
read = time.perf_counter()
runs.examine()
print([read - begun, time.perf_counter() - read])
runs.close()
"""


def starting(repeats: int) -> Table:
    """The time of fresh processes in turns, and its difference to an empty Python of the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    # The first round writes what Python compiles.
    for number in range(repeats + 1):
        for name, arguments in STARTS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    table = Table("started", "from start to end", "from, to", "beyond Python", "from, to", title="Starting")
    for name, found in seconds.items():
        beyond = [a - b for a, b in zip(found, seconds[NOTHING], strict=True)]
        table.add_row(name, *spread(found, "ms", 1e3), *(spread(beyond, "ms", 1e3) if name != NOTHING else ("", "")))
    return table


@dataclass(frozen=True)
class Case:
    """A run, or a folder of runs with one that grows, and a view of it."""

    name: str
    watched: Path
    grows: Path
    view: View = View.OVERVIEW
    params: int = PARAMS


def cases(folder: Path, count: int) -> Iterator[Case]:
    """Small, medium and large runs, a large one in parts as during a training, all layers, many parameters and runs."""

    def case(name: str, run: Path, view: View = View.OVERVIEW, params: int = PARAMS) -> Case:
        return Case(name, run, run, view, params)

    yield case("1 k rows", build(folder / "1k", 1_000, 1))
    yield case("100 k rows", build(folder / "100k", 100_000, 1))
    parts = min(MANY_PARTS, max(2, count // 1000))
    many = build(folder / "many", count, parts)
    merged = folder / "merged"
    shutil.copytree(many, merged)
    merge(merged, "extremes", 0)
    large = f"{count / 1e6:g} M rows"
    yield case(f"{large}, 1 part", merged)
    yield case(f"{large}, {parts:,} parts", many)
    yield case(f"{large}, layers", merged, View.LAYERS)
    wide = build(folder / "wide", count // 10, 1, MANY_PARAMS)
    named = f"{count / 1e7:g} M, {MANY_PARAMS:,} params"
    yield case(named, wide, params=MANY_PARAMS)
    yield case(f"{named}, layers", wide, View.LAYERS, MANY_PARAMS)
    runs = closed_runs(folder / "runs", MANY_RUNS - 1)
    yield Case(f"{MANY_RUNS} runs", runs, build(runs / "run-999", 1_000, 1))


def ended(*arguments: str) -> tuple[float, float]:
    """Seconds and peak megabytes of a viewer that ends by itself."""
    begun = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", _OPEN, *arguments], stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - begun, int(output.split()[-1]) / 1024


def judgements(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The commands that read whole runs."""
    merged, many, wide = (str(folder / name) for name in ("merged", "many", "wide"))
    yield "viewer check, the largest run in 1 part", ("check", merged)
    yield "viewer check, the same in many parts", ("check", many)
    yield f"viewer check, {MANY_PARAMS:,} params", ("check", wide)
    yield "viewer diff of the two largest, which are alike", ("diff", merged, many)


def read(case: Case) -> list[float]:
    """Seconds of the first refresh of a fresh process, and seconds until the findings are known."""
    command = [sys.executable, "-c", _READ, str(case.watched), case.view]
    found: list[float] = json.loads(subprocess.check_output(command))
    return found


def followed(case: Case, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds to take in a new part of five steps, to judge the run again, and to redraw the figure's file."""
    look = ViewOptions(case.view)
    watched, file = Runs([case.watched], look), FigureFile(case.grows / "figure.png", look)
    watched.refresh()
    watched.examine()
    refreshing, judging, drawing = [], [], []
    first = next_number(case.grows)
    for number in range(first, first + repeats):
        publish(case.grows, "extremes", 0, number, rows(200_000 + 5 * number, 5, case.params))
        begun = time.perf_counter()
        snapshots = watched.refresh()
        read = time.perf_counter()
        assert snapshots is not None, "a part was published"
        snapshots = watched.examine() or snapshots
        judged = time.perf_counter()
        file.write(look.drawn(snapshots))
        refreshing.append(read - begun)
        judging.append(judged - read)
        drawing.append(time.perf_counter() - judged)
    watched.close()
    return refreshing, judging, drawing


def later(run: Path, repeats: int) -> Iterator[int]:
    """The next publish numbers of a run, each after a pause of another length."""
    first = next_number(run)
    for number in range(first, first + repeats):
        time.sleep(random.uniform(0.3, 0.6))
        yield number


def delays_of_file(run: Path, repeats: int) -> list[float]:
    """Seconds from a published part until ``viewer --save --follow`` has replaced its picture."""
    picture, found = run / "followed.png", []
    with viewer(run, "--save", str(picture), "--follow"):
        while not picture.exists():
            time.sleep(0.01)
        for number in later(run, repeats):
            before = picture.stat().st_ino
            begun = publish_steps(run, number)
            while picture.stat().st_ino == before:
                time.sleep(0.001)
            found.append(time.perf_counter() - begun)
    return found


async def delays_of_page(run: Path, repeats: int) -> list[float]:
    """Seconds from a published part until a page's client has received the new picture."""
    with viewer(run, "--web", "--port", "0") as process:
        page = await connected(process)
        found = []
        for number in later(run, repeats):
            # Pictures of the step before may still come, and are no answer to this one.
            with contextlib.suppress(TimeoutError):
                while True:
                    await asyncio.wait_for(received(page), 0.5)
            begun = publish_steps(run, number)
            await received(page)
            found.append(time.perf_counter() - begun)
        page.close()
    return found


async def delays_of_pointer(run: Path, repeats: int, live: bool) -> list[float]:
    """Seconds from where the pointer is until a page's client knows the numbers there.

    Args:
        run: The run.
        repeats: How many places there are.
        live: Whether rows are published and drawn meanwhile, twice a second; a place that is asked for waits for both.
    """
    with viewer(run, "--web", "--port", "0") as process:
        page = await connected(process)
        await received(page)
        readings: asyncio.Queue[float] = asyncio.Queue()

        async def listen() -> None:
            while (message := await page.read_message()) is not None:
                kind = "" if isinstance(message, bytes) else json.loads(message)["type"]
                if kind == "draw":
                    await page.write_message('{"type": "draw"}')
                elif kind == "reading":
                    readings.put_nowait(time.perf_counter())

        listening = asyncio.create_task(listen())
        publishing = asyncio.create_task(
            asyncio.to_thread(lambda: [publish_steps(run, n) for n in later(run, repeats // 4)])
        )
        if not live:
            await publishing
            await asyncio.sleep(3)
        found = []
        for _ in range(repeats):
            await asyncio.sleep(random.uniform(0.05, 0.15))
            while not readings.empty():
                readings.get_nowait()
            begun = time.perf_counter()
            place = {"type": "point", "x": random.uniform(0.2, 0.6), "y": random.uniform(0.05, 0.9), "click": False}
            await page.write_message(json.dumps(place))
            found.append(await readings.get() - begun)
        listening.cancel()
        await publishing
        page.close()
    return found


def delays(run: Path, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """What a user waits for on each surface."""
    yield "file", delays_of_file(run, repeats)
    yield "page", asyncio.run(delays_of_page(run, repeats))
    yield "pointer, at rest", asyncio.run(delays_of_pointer(run, repeats, live=False))
    yield "pointer, while rows come", asyncio.run(delays_of_pointer(run, repeats, live=True))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the largest runs")
    parser.add_argument("--delays", type=int, default=20, help="that are measured of each surface and run")
    given = parser.parse_args()
    console = Console(width=120)
    console.print(
        f"Python {sys.version.partition(' ')[0]}, polars {pl.__version__}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} cores"
    )
    opening = Table(
        "run", "MB", "opened to PNG", "from, to", "the curves alone", "from, to", "findings", "peak", title="Opening"
    )
    living = Table(
        *("run", "refresh after 5 new steps", "from, to", "findings", "redraw into a PNG", "from, to"),
        title="Following: a redraw is to cost the same after any number of rows",
    )
    commands = Table("command", "from start to end", "from, to", "peak", title="Judging")
    late = Table(
        *("run", "surface", "published to redrawn, or pointed to told", "from, to", "95th percentile"), title="Delay"
    )
    console.print(starting(5 * given.repeats))
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), given.rows):
            size = sum(file.stat().st_size for file in case.watched.rglob("extremes/*.parquet")) / 1e6
            saving = str(case.watched), "--view", case.view, "--save", str(case.grows / "figure.png")
            # Many runs take half a minute each time.
            tries = given.repeats if case.watched == case.grows else 1
            seconds, megabytes = zip(*(ended(*saving) for _ in range(tries)), strict=True)
            reading = zip(*(read(case) for _ in range(tries)), strict=True)
            curves, found = (spread(list(each)) for each in reading)
            peak = spread(list(megabytes), "MB")[0]
            opening.add_row(case.name, f"{size:.3g}", *spread(list(seconds)), *curves, found[0], peak)
            refreshing, judging, drawing = (spread(each, "ms", 1e3) for each in followed(case, given.repeats))
            living.add_row(case.name, *refreshing, judging[0], *drawing)
        for name, command in judgements(Path(folder)):
            seconds, megabytes = zip(*(ended(*command) for _ in range(given.repeats)), strict=True)
            commands.add_row(name, *spread(list(seconds)), spread(list(megabytes), "MB")[0])
        for name, run in (("1 k rows", Path(folder, "1k")), ("the largest, 1 part", Path(folder, "merged"))):
            for surface, waited in delays(run, given.delays):
                slow = f"{1e3 * float(np.quantile(waited, 0.95)):.3g} ms"
                late.add_row(name, surface, *spread(waited, "ms", 1e3), slow)
    for table in (opening, living, commands, late):
        console.print(table)


if __name__ == "__main__":
    main()
