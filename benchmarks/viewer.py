"""The time that the viewer takes to open runs of up to ten million rows, to take in new rows, to draw, and to judge.

The runs have 62 parameters, as ResNet-18, or 10,000, and numbers as float32 gives them. A fresh process opens each,
from ``viewer RUN --save FILE`` to its end. Files are in the page cache. A redraw should cost the same whatever the
length of the run, so the lines of ``Following`` should be alike within one view. Run: ``python -m benchmarks.viewer``.
Run as a file, it would hide the package of its name. ``--rows 200000 --delays 5`` makes a short try.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tracer.log import schema
from tracer.log.parts import all_parts, merge, publish
from tracer.log.ranks import beat, close_rank
from tracer.log.run import create_run
from tracer.log.store import Local as Path
from viewer.draw.views import fill
from viewer.options import View, ViewOptions
from viewer.read.runs import Runs
from viewer.surfaces.files import FigureFile

PARAMS = 62
MANY_PARAMS = 10_000
MANY_PARTS = 3000

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

# What `show` takes of the kernel's process, in which nothing else happens here.
_SHOW = """
import json, sys, time
from types import SimpleNamespace
from tracer.log.store import Local as Path
from viewer.read.runs import Runs
from viewer.surfaces.notebook import Showing
drawn = []
handle = SimpleNamespace(update=lambda *_, **__: drawn.append(time.perf_counter()))
showing = Showing(Runs([Path(sys.argv[1])]), handle, SimpleNamespace(register=lambda *_: None))
while not drawn:
    time.sleep(0.1)
begun, taken = time.perf_counter(), time.process_time()
print("shows", flush=True)
sys.stdin.read()
taken, begun = time.process_time() - taken, time.perf_counter() - begun
print(json.dumps([taken / begun, [after - before for before, after in zip(drawn, drawn[1:])]]))
showing.stop()
"""


def names(params: int) -> list[str]:
    """The names of so many parameters."""
    return [f"layer{index // 4}.{index % 4}.conv1.weight" for index in range(params)]


def rows(first: int, steps: int, params: int = PARAMS, began: float = 0.0) -> pa.Table:
    """The extremes of so many steps, 20 a second from a time in seconds since 1970 on."""
    generator = np.random.default_rng(first)
    step = np.repeat(np.arange(first, first + steps), params)
    count = len(step)
    indices = np.tile(np.arange(params, dtype=np.int32), steps)
    sizes = np.abs(generator.normal(size=(4, count))) * [[1], [1], [1e-3], [1e-3]]
    sizes = sizes.astype(np.float32).astype(np.float64)
    columns = {
        "step": step,
        "time": pa.array(step * 50_000 + round(began * 1e6)).cast(pa.timestamp("us", tz="UTC")),
        "rank": np.zeros(count, np.int32),
        "attempt": np.zeros(count, np.int32),
        "param": pa.DictionaryArray.from_arrays(indices, pa.array(names(params))),
        "span": np.ones(count, np.int32),
        **dict(zip(schema.STATISTICS, (-sizes[0], sizes[1], -sizes[2], sizes[3]), strict=True)),
    }
    return pa.table(columns, schema=schema.SCHEMAS["extremes"])


def build(run: Path, count: int, parts: int, params: int = PARAMS, began: float = 0.0) -> Path:
    """A run of about so many rows in so many parts."""
    described = [
        {"name": name, "aliases": [], "shape": [64, 64, 3, 3], "dtype": "float32", "trainable": True}
        for name in names(params)
    ]
    create_run(run, {"model": "ResNet", "params": described, "settings": {}, "versions": {}})
    steps = max(1, round(count / params / parts))
    for number in range(parts):
        publish(run, "extremes", 0, number, rows(number * steps, steps, params, began))
    return run


@dataclass(frozen=True)
class Case:
    """A run and a view of it."""

    name: str
    run: Path
    view: View = View.OVERVIEW
    params: int = PARAMS


def cases(folder: Path, count: int) -> Iterator[Case]:
    """Small, medium and large runs, a large one in parts as during a training, all layers, and many parameters."""
    yield Case("1 k rows", build(folder / "1k", 1_000, 1))
    yield Case("100 k rows", build(folder / "100k", 100_000, 1))
    parts = min(MANY_PARTS, max(2, count // 1000))
    many = build(folder / "many", count, parts)
    merged = folder / "merged"
    shutil.copytree(many, merged)
    merge(merged, "extremes", 0)
    large = f"{count / 1e6:g} M rows"
    yield Case(f"{large}, 1 part", merged)
    yield Case(f"{large}, {parts:,} parts", many)
    yield Case(f"{large}, layers", merged, View.LAYERS)
    wide = build(folder / "wide", count // 10, 1, MANY_PARAMS)
    named = f"{count / 1e7:g} M, {MANY_PARAMS:,} params"
    yield Case(named, wide, params=MANY_PARAMS)
    yield Case(f"{named}, layers", wide, View.LAYERS, MANY_PARAMS)


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


def read(run: Path, view: View) -> list[float]:
    """Seconds of the first refresh of a fresh process, and seconds until the run's findings are known."""
    found: list[float] = json.loads(subprocess.check_output([sys.executable, "-c", _READ, str(run), view]))
    return found


def followed(case: Case, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds to take in a new part of five steps, to judge the run again, and to redraw the figure's file."""
    run, look = case.run, ViewOptions(case.view)
    watched, file = Runs([run], look), FigureFile(run / "figure.png", look)
    watched.refresh()
    watched.examine()
    refreshing, judging, drawing = [], [], []
    first = max(part.last for part in all_parts(run, "extremes")) + 1
    for number in range(first, first + repeats):
        publish(run, "extremes", 0, number, rows(200_000 + 5 * number, 5, case.params))
        begun = time.perf_counter()
        snapshots = watched.refresh()
        read = time.perf_counter()
        assert snapshots is not None, "a part was published"
        snapshots = watched.examine() or snapshots
        judged = time.perf_counter()
        file.write(snapshots)
        refreshing.append(read - begun)
        judging.append(judged - read)
        drawing.append(time.perf_counter() - judged)
    watched.close()
    return refreshing, judging, drawing


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


def share_of_show(run: Path, seconds: float) -> tuple[float, list[float]]:
    """The share of a core that ``viewer.show`` takes of a live run, and the seconds from picture to picture."""
    command = [sys.executable, "-c", _SHOW, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "shows\n"
        end = time.perf_counter() + seconds
        numbers = later(run, round(10 * seconds))
        while time.perf_counter() < end:
            publish_steps(run, next(numbers))
            time.sleep(1)
        share, pauses = json.loads(process.communicate()[0])
        return share, pauses


async def delays_of_page(run: Path, repeats: int) -> list[float]:
    """Seconds from a published part until a page's client has received the new picture."""
    with viewer(run, "--web", "--port", "0") as process:
        page = await connected(served(process))
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
        page = await connected(served(process))
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


def served(process: "subprocess.Popen[str]") -> str:
    """The address that a viewer prints."""
    assert process.stdout is not None
    return next(line.split()[-1] for line in process.stdout if "http://" in line)


async def connected(address: str) -> WebSocketClientConnection:
    """A page's client."""
    page = await websocket_connect(f"{address.replace('http', 'ws')}socket")
    for message in (
        {"type": "supports_binary", "value": True},
        {"type": "resize", "width": 1000, "height": 800},
        {"type": "refresh"},
    ):
        await page.write_message(json.dumps(message))
    return page


async def received(page: WebSocketClientConnection) -> None:
    """Answer the viewer, as matplotlib's script in a page does, until a picture comes."""
    while not isinstance(message := await page.read_message(), bytes):
        assert message is not None, "the viewer has ended"
        if json.loads(message)["type"] == "draw":
            await page.write_message('{"type": "draw"}')
    await page.write_message('{"type": "ack"}')


@contextlib.contextmanager
def viewer(run: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A viewer as a process of its own."""
    command = [sys.executable, "-m", "viewer", str(run), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def later(run: Path, repeats: int) -> Iterator[int]:
    """The next publish numbers of a run, each after a pause of another length."""
    first = max(part.last for part in all_parts(run, "extremes")) + 1
    for number in range(first, first + repeats):
        time.sleep(random.uniform(0.3, 0.6))
        yield number


def publish_steps(run: Path, number: int) -> float:
    """Publish five more steps, as a living process does; the time when they were published."""
    beat(run, 0)
    publish(run, "extremes", 0, number, rows(200_000 + 5 * number, 5))
    return time.perf_counter()


def folder_of(folder: Path, count: int) -> Path:
    """A folder of so many closed runs of 300 steps, with a metric."""
    for number in range(count):
        run = build(folder / f"run-{number:03d}", 300 * PARAMS, 1)
        steps = np.arange(300)
        losses = {
            "step": steps,
            "time": pa.array(steps * 50_000).cast(pa.timestamp("us", tz="UTC")),
            "rank": np.zeros(300, np.int32),
            "attempt": np.zeros(300, np.int32),
            "name": pa.DictionaryArray.from_arrays(np.zeros(300, np.int32), pa.array(["loss"])),
            "value": np.exp(-steps / 100) + number / 1000,
        }
        publish(run, "metrics", 0, 0, pa.table(losses, schema=schema.SCHEMAS["metrics"]))
        close_rank(
            run, 0, {"last_step": 299, "reason": "", "rows_dropped": {}, "published": {"extremes": 1, "metrics": 1}}
        )
    return folder


def core_seconds(process: int) -> float:
    """How long a process has computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def share_of_page(runs: Path, seconds: float) -> float:
    """The share of a core that an open page takes while nothing happens."""
    with viewer(runs, "--web", "--port", "0") as process:
        page = await connected(served(process))

        async def spent(seconds: float) -> float:
            before = core_seconds(process.pid)
            await asyncio.sleep(seconds)
            return core_seconds(process.pid) - before

        async def look() -> None:
            while True:
                await received(page)

        looking = asyncio.create_task(look())
        # Findings of all runs are looked for after the first picture, which takes a while.
        while await spent(5) > 0.25:
            pass
        share = await spent(seconds) / seconds
        looking.cancel()
        page.close()
    return share


def share_of_text(run: Path, seconds: int) -> float:
    """The share of a core that ``--text`` takes on a terminal while a part is published each second."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "viewer", str(run), "--text"]
    beat(run, 0)
    first, settled = max(part.last for part in all_parts(run, "extremes")) + 1, 15
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        spent = [0.0]
        for number in range(first, first + settled + seconds):
            publish_steps(run, number)
            time.sleep(1)
            while select.select([ours], [], [], 0)[0]:
                os.read(ours, 1 << 16)
            spent.append(core_seconds(process.pid))
        process.kill()
    return (spent[-1] - spent[settled]) / seconds


def redraws(folder: Path, repeats: int) -> list[float]:
    """Seconds in which a page draws a folder of runs, those that it draws at first."""
    with contextlib.closing(Runs([folder])) as watched:
        snapshots = watched.refresh()
    assert snapshots is not None, "there are runs"
    figure, look, found = Figure(figsize=(12, 8)), ViewOptions(), []
    canvas, drawing = FigureCanvasAgg(figure), fill(figure, look, False)
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        drawing.update(look.drawn(snapshots), time.time())
        canvas.draw()
        found.append(time.perf_counter() - begun)
    return found[1:]


def spread(numbers: list[float], unit: str = "s", factor: float = 1.0) -> tuple[str, str]:
    """The median, and the range from the smallest to the largest."""
    low, middle, high = (factor * number for number in (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{middle:.3g} {unit}", f"{low:.3g} to {high:.3g}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the largest runs")
    parser.add_argument("--shown", type=float, default=120, help="seconds for which `viewer.show` is measured")
    parser.add_argument("--delays", type=int, default=40, help="that are measured of each surface and run")
    given = parser.parse_args()
    console = Console(width=120)
    console.print(f"polars {pl.__version__}, pyarrow {pa.__version__}, {os.cpu_count()} cores")
    opening = Table(
        "run", "MB", "opened to PNG", "from, to", "the curves alone", "from, to", "findings", "peak", title="Opening"
    )
    living = Table(
        *("run", "refresh after 5 new steps", "from, to", "findings", "redraw into a PNG", "from, to"),
        title="Following: a redraw is to cost the same after any number of rows",
    )
    commands = Table("command", "from start to end", "from, to", "peak", title="Judging")
    idle = Table("what", "costs", "from, to", title="Many runs, and little that is new")
    showing = Table("run", "of a core", "picture to picture", "from, to", title="viewer.show in a kernel that trains")
    delays = Table(
        *("run", "surface", "published to redrawn, or pointed to told", "from, to", "95th percentile"), title="Delay"
    )
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), given.rows):
            size = sum(part.file().stat().st_size for part in all_parts(case.run, "extremes")) / 1e6
            saving = str(case.run), "--view", case.view, "--save", str(case.run / "figure.png")
            seconds, megabytes = zip(*(ended(*saving) for _ in range(given.repeats)), strict=True)
            reading = zip(*(read(case.run, case.view) for _ in range(given.repeats)), strict=True)
            curves, found = (spread(list(each)) for each in reading)
            peak = spread(list(megabytes), "MB")[0]
            opening.add_row(case.name, f"{size:.3g}", *spread(list(seconds)), *curves, found[0], peak)
            refreshing, judging, drawing = (spread(each, "ms", 1e3) for each in followed(case, given.repeats))
            living.add_row(case.name, *refreshing, judging[0], *drawing)
        for name, command in judgements(Path(folder)):
            seconds, megabytes = zip(*(ended(*command) for _ in range(given.repeats)), strict=True)
            commands.add_row(name, *spread(list(seconds)), spread(list(megabytes), "MB")[0])
        for name, run in (("1 k rows", Path(folder, "1k")), ("the largest, 1 part", Path(folder, "merged"))):
            beat(run, 0)
            share, pauses = share_of_show(run, given.shown)
            showing.add_row(name, f"{share:.1%}", *spread(pauses))
            for surface, waited in (
                ("file", delays_of_file(run, given.delays)),
                ("page", asyncio.run(delays_of_page(run, given.delays))),
            ):
                slow = f"{1e3 * float(np.quantile(waited, 0.95)):.3g} ms"
                delays.add_row(name, surface, *spread(waited, "ms", 1e3), slow)
            for surface, live in (("pointer, at rest", False), ("pointer, while rows come", True)):
                waited = asyncio.run(delays_of_pointer(run, given.delays, live))
                slow = f"{1e3 * float(np.quantile(waited, 0.95)):.3g} ms"
                delays.add_row(name, surface, *spread(waited, "ms", 1e3), slow)
        redrawn = spread(redraws(folder_of(Path(folder, "200"), 200), given.repeats), "ms", 1e3)
        page = asyncio.run(share_of_page(folder_of(Path(folder, "100"), 100), 60))
        idle.add_row("200 runs redrawn on a page", *redrawn)
        idle.add_row("a page of 100 closed runs", f"{100 * page:.2g} % of a core", "")
        idle.add_row("--text, a part a second", f"{100 * share_of_text(Path(folder, '100k'), 100):.2g} % of a core", "")
    console.print(idle)
    console.print(opening)
    console.print(living)
    console.print(commands)
    console.print(showing)
    console.print(delays)


if __name__ == "__main__":
    main()
