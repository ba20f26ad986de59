"""How long the viewer takes to open runs of up to ten million rows, to take in what is new, and to draw.

The runs have 62 parameters, as ResNet-18, and numbers as float32 gives them. Each is opened by a fresh process, from
``python -m viewer RUN --save FILE`` to its end; files are in the page cache. Run: ``python -m benchmarks.viewer``;
as a file it would hide the package of its name.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from tracer.log import schema
from tracer.log.parts import all_parts, merge, publish
from tracer.log.run import create_run
from viewer.files import FigureFile
from viewer.live import Runs
from viewer.look import Look, View

PARAMS = 62
MANY_PARTS = 3000

_READ = """
import sys, time
from pathlib import Path
from viewer.live import Runs
from viewer.look import Look, View
runs = Runs([Path(sys.argv[1])], Look(View(sys.argv[2])))
begun = time.perf_counter()
runs.refresh()
print(time.perf_counter() - begun)
runs.close()
"""


def rows(first: int, steps: int) -> pa.Table:
    """The extremes of so many steps."""
    generator = np.random.default_rng(first)
    step = np.repeat(np.arange(first, first + steps), PARAMS)
    count = len(step)
    indices = np.tile(np.arange(PARAMS, dtype=np.int32), steps)
    names = pa.array([f"layer{index // 4}.{index % 4}.conv1.weight" for index in range(PARAMS)])
    sizes = np.abs(generator.normal(size=(4, count))).astype(np.float32).astype(np.float64)
    columns = {
        "step": step,
        "time": pa.array(step * 50_000).cast(pa.timestamp("us", tz="UTC")),
        "rank": np.zeros(count, np.int32),
        "attempt": np.zeros(count, np.int32),
        "param": pa.DictionaryArray.from_arrays(indices, names),
        "span": np.ones(count, np.int32),
        **dict(zip(schema.STATISTICS, (-sizes[0], sizes[1], -sizes[2] * 1e-3, sizes[3] * 1e-3), strict=True)),
    }
    return pa.table(columns, schema=schema.SCHEMAS["extremes"])


def build(run: Path, count: int, parts: int) -> Path:
    """A run of about so many rows in so many parts."""
    create_run(run, {"model": "ResNet", "params": [], "settings": {}, "versions": {}})
    steps = round(count / PARAMS / parts)
    for number in range(parts):
        publish(run, "extremes", 0, number, rows(number * steps, steps))
    return run


def runs(folder: Path) -> Iterator[tuple[str, Path, View]]:
    """The runs to open: small, medium, large, and large as it is while the training goes on; in the end all layers."""
    yield "1 k rows", build(folder / "1k", 1_000, 1), View.OVERVIEW
    yield "100 k rows", build(folder / "100k", 100_000, 1), View.OVERVIEW
    many = build(folder / "many", 10_000_000, MANY_PARTS)
    merged = folder / "merged"
    shutil.copytree(many, merged)
    merge(merged, "extremes", 0)
    yield "10 M rows, 1 part", merged, View.OVERVIEW
    yield f"10 M, {MANY_PARTS:,} parts", many, View.OVERVIEW
    yield "10 M rows, layers", merged, View.LAYERS


def opened(run: Path, view: View) -> tuple[float, float]:
    """Seconds and peak megabytes of a viewer that opens a run and saves its figure."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "viewer", str(run), "--view", view, "--save", str(run / "figure.png")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, "the viewer failed"
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def read(run: Path, view: View) -> float:
    """Seconds of the first refresh of a fresh process."""
    return float(json.loads(subprocess.check_output([sys.executable, "-c", _READ, str(run), view])))


def followed(run: Path, view: View, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds to take in one new part of 310 rows each, and seconds to redraw the figure's file."""
    look = Look(view)
    watched, file = Runs([run], look), FigureFile(run / "figure.png", look)
    watched.refresh()
    refreshing, drawing = [], []
    first = max(part.last for part in all_parts(run, "extremes")) + 1
    for number in range(first, first + repeats):
        publish(run, "extremes", 0, number, rows(200_000 + 5 * number, 5))
        begun = time.perf_counter()
        snapshots = watched.refresh()
        read = time.perf_counter()
        assert snapshots is not None, "a part was published"
        file.write(snapshots)
        refreshing.append(read - begun)
        drawing.append(time.perf_counter() - read)
    watched.close()
    return refreshing, drawing


def spread(numbers: list[float], unit: str = "s", factor: float = 1.0) -> tuple[str, str]:
    """The median, and from the smallest to the largest."""
    low, middle, high = (factor * number for number in (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{middle:.3g} {unit}", f"{low:.3g} to {high:.3g}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    console = Console(width=110)
    console.print(f"polars {pl.__version__}, pyarrow {pa.__version__}, {os.cpu_count()} cores")
    opening = Table("run", "MB", "opened to PNG", "from, to", "the reading alone", "from, to", "peak", title="Opening")
    living = Table("run", "refresh after 310 new rows", "from, to", "redraw into a PNG", "from, to", title="Following")
    with tempfile.TemporaryDirectory() as folder:
        for name, run, view in runs(Path(folder)):
            size = sum(part.path.stat().st_size for part in all_parts(run, "extremes")) / 1e6
            seconds, megabytes = zip(*(opened(run, view) for _ in range(repeats)), strict=True)
            reading = [read(run, view) for _ in range(repeats)]
            peak = spread(list(megabytes), "MB")[0]
            opening.add_row(name, f"{size:.3g}", *spread(list(seconds)), *spread(reading), peak)
            refreshing, drawing = followed(run, view, repeats)
            living.add_row(name, *spread(refreshing, "ms", 1e3), *spread(drawing, "ms", 1e3))
    console.print(opening)
    console.print(living)


if __name__ == "__main__":
    main()
