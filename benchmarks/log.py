"""The cost of the log: bytes a row, rows a second, the daemon's share of a core, and the cost of a merge.

- *Bytes* are those of a real training: a ResNet-18 that learns handwritten digits, as in ``tracer demo``.
- *The daemon* is fed with steps as the recorder makes them. They have 62 parameters in float32 that wander, and
  gradients of noise. No number is repeated within a page of the log.
- *The runs to merge* are those of ``benchmarks.viewer``. A fresh process merges each, from ``tracer merge`` to its end,
  with its files in the page cache.
- *A peak* is the memory of the process itself (``VmHWM``, so on Linux). ``wait4`` could give the peak of the process
  that started it.

Run: ``python -m benchmarks.log``. Run as a file, it would hide the package of its name.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models import resnet18

import tracer
from benchmarks.watched import PARAMS, build, spread
from tracer import demo
from tracer.daemon import SETTINGS, Daemon
from tracer.encode import Encoder, on_host
from tracer.items import StepRows, rows_and_bytes
from tracer.log import schema
from tracer.log.parts import Part, all_parts
from tracer.log.run import create_run
from tracer.log.store import Local as Path
from tracer.parameters import named_parameters
from tracer.rows import RowBuffer

# More numbers of a column than a page of the log holds, so that none is compressed as the repetition of another.
POOL_STEPS = 4_000
RATES = (1_000, 100_000)
WINDOWS = 4

_MERGE = """
import atexit
from pathlib import Path
from tracer.cli import main
atexit.register(lambda: print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
main()
"""


def size_bytes(parts: list[Part]) -> int:
    """The size of these parts on the disk."""
    return sum(part.file().stat().st_size for part in parts)


def published(run: Path) -> tuple[list[int], float]:
    """The rows of each part of the extremes, and their bytes a row."""
    parts = all_parts(run, "extremes")
    rows = [pq.read_metadata(part.path).num_rows for part in parts]
    return rows, size_bytes(parts) / sum(rows)


def bytes_a_row(folder: Path, epochs: int) -> Table:
    """Train, and measure the bytes of its extremes: in the parts of the daemon, merged, and as CSV."""
    run, console = folder / "digits", Console(quiet=True)
    training, validation = demo.load("digits", folder).split(0.2)
    torch.manual_seed(0)
    model = resnet18(weights=None, num_classes=10)
    with tracer.attach(model, run) as trace:
        demo.train(model, training, validation, epochs, trace, console)
        # Before the trace is closed, which merges them.
        rows, size = published(run)
    frame = tracer.scan(run).collect()
    table = Table("as", "rows", "bytes a row", title="Bytes a row, ResNet-18 on digits")
    what = f"{len(rows)} parts of the daemon, median {statistics.median(rows):,.0f} rows"
    table.add_row(what, f"{sum(rows):,}", f"{size:.1f}")
    rows, size = published(run)
    table.add_row(f"merged, {len(rows)} part", f"{sum(rows):,}", f"{size:.1f}")
    # The shortest text that gives the same number back: as float64 these would have eight more digits.
    text = frame.with_columns(pl.col(schema.STATISTICS).cast(pl.Float32))
    for name, columns in (
        ("CSV, all columns", text),
        ("CSV, step, time, param and the four numbers", text.select("step", "time", "param", *schema.STATISTICS)),
    ):
        table.add_row(name, f"{len(frame):,}", f"{len(columns.write_csv()) / len(frame):.1f}")
    return table


@torch.no_grad()
def recorded_steps() -> list[StepRows]:
    """Steps as the recorder sends them to the daemon."""
    parameters = named_parameters(nn.Sequential(*(nn.Linear(4, 4) for _ in range(PARAMS // 2))))
    buffer = RowBuffer(parameters)
    steps = []
    for step in range(POOL_STEPS):
        for index, parameter in enumerate(parameters):
            value = parameter.tensor
            buffer.record(index, value.add_(torch.randn_like(value), alpha=1e-3), torch.randn_like(value))
        steps.append(buffer.take(step, time.time_ns()))
    return steps


class Feed:
    """A daemon with a run of its own, and the steps that it was fed with.

    Args:
        run: The run's folder.
        pool: The steps to feed it with, again and again, under new numbers.
    """

    def __init__(self, run: Path, pool: list[StepRows]) -> None:
        create_run(run, {"model": "ResNet", "params": [], "settings": {}, "versions": {}})
        encoder = Encoder(0)
        self.daemon = Daemon(run, 0, encoder.by_table(["extremes"]), on_host, encoder.complete_prefix)
        thread = next(thread for thread in threading.enumerate() if thread.name == "gradwatch-daemon")
        assert thread.ident is not None, "it is running"
        self._clock = time.pthread_getcpuclockid(thread.ident)
        self._pool = pool
        self.steps = 0

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that the daemon's thread has used."""
        return time.clock_gettime(self._clock)

    @property
    def published(self) -> int:
        """The number of rows in the log."""
        return self.daemon.rows["extremes"]

    def put(self) -> None:
        """Feed one more step."""
        step = self._pool[self.steps % len(self._pool)]._replace(step=self.steps, time_ns=time.time_ns())
        self.daemon.put("extremes", step, *rows_and_bytes(step))
        self.steps += 1


@contextmanager
def feed(run: Path, pool: list[StepRows]) -> Iterator[Feed]:
    """A daemon to feed; at the end it has published everything."""
    feeding = Feed(run, pool)
    yield feeding
    feeding.daemon.close({"last_step": feeding.steps - 1, "reason": ""})
    assert feeding.daemon.dropped["extremes"] == 0, "nothing is dropped"
    assert feeding.published == feeding.steps * PARAMS, "everything is published"


def flood(run: Path, pool: list[StepRows], rows: int) -> tuple[float, float]:
    """Rows a second, and rows a CPU second of the daemon, when fed with as much as it takes without dropping any."""
    count, size = rows_and_bytes(pool[0])
    most = SETTINGS.limit_bytes * 3 // 4 // size * count
    with feed(run, pool) as feeding:
        marks = [(time.perf_counter(), feeding.cpu_seconds, 0)]
        while feeding.published < rows:
            if feeding.steps * PARAMS - feeding.published < most:
                feeding.put()
            else:
                time.sleep(0.001)
            if feeding.published != marks[-1][2]:
                marks.append((time.perf_counter(), feeding.cpu_seconds, feeding.published))
    wall, cpu, taken = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
    return taken / wall, taken / cpu


def shares(run: Path, pool: list[StepRows], rate: int, seconds: float) -> tuple[list[float], float]:
    """The daemon's share of one core in each window of time, and its parts' bytes a row, at ``rate`` rows a second.

    The shares leave out the first second.
    """
    bounds = [1 + seconds / WINDOWS * number for number in range(WINDOWS + 1)]
    marks: list[tuple[float, float]] = []
    with feed(run, pool) as feeding:
        begun = time.perf_counter()
        while len(marks) < len(bounds):
            elapsed = time.perf_counter() - begun
            while feeding.steps * PARAMS < elapsed * rate:
                feeding.put()
            if elapsed >= bounds[len(marks)]:
                marks.append((time.perf_counter(), feeding.cpu_seconds))
            time.sleep(0.005)
        # Before the daemon is closed, which merges them.
        _, size = published(run)
    return [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(marks)], size


def merged(run: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of a process that merges a run."""
    begun = time.perf_counter()
    output = subprocess.check_output([sys.executable, "-c", _MERGE, "merge", str(run)], text=True)
    seconds = time.perf_counter() - begun
    return seconds, int(output.split()[-1]) / 1024


def merging(folder: Path, rows: int, repeats: int) -> Table:
    """The cost of merging runs of so many rows; a tiny run shows the cost of the process itself."""
    table = Table("run", "MB before", "MB after", "merged in", "from, to", "peak", "from, to", title="Merging")
    for count, parts in ((PARAMS * 100, 10), (rows, 300), (rows, 3000)):
        run = build(folder / f"{count}-{parts}", count, parts)
        before, measured = size_bytes(all_parts(run, "extremes")), []
        for number in range(repeats):
            # Parts never change, so a link is as good as a copy.
            twin = shutil.copytree(run, folder / f"{count}-{parts}-{number}", copy_function=os.link)
            measured.append(merged(twin))
            after = size_bytes(all_parts(twin, "extremes"))
            shutil.rmtree(twin)
        shutil.rmtree(run)
        seconds, megabytes = (list(each) for each in zip(*measured, strict=True))
        name = f"{count:,} rows, {parts:,} parts"
        sizes = f"{before / 1e6:.3g}", f"{after / 1e6:.3g}"
        table.add_row(name, *sizes, *spread(seconds), *spread(megabytes, "MB"))
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6, help="of the training whose bytes are counted")
    parser.add_argument("--seconds", type=float, default=20, help="at each rate of rows")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the runs to merge, and to publish at once")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print(f"pyarrow {pa.__version__}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder, pool = Path(name), recorded_steps()
        console.print(bytes_a_row(folder, arguments.epochs))
        floods = [flood(folder / f"flood-{number}", pool, arguments.rows) for number in range(arguments.repeats)]
        taking = Table("rows a second", "median", "from, to", title="What the daemon takes, parts and fsync included")
        taking.add_row("of wall-clock time", *spread([wall for wall, _ in floods], "M", 1e-6))
        taking.add_row("of its thread's CPU time", *spread([cpu for _, cpu in floods], "M", 1e-6))
        console.print(taking)
        working = Table(
            "rows a second",
            "share of one core, median",
            "from, to",
            "bytes a row as published",
            title="The daemon's thread",
        )
        for rate in RATES:
            found, size = shares(folder / f"rate-{rate}", pool, rate, arguments.seconds)
            working.add_row(f"{rate:,}", *spread(found, "%", 100), f"{size:.1f}")
        console.print(working)
        console.print(merging(folder, arguments.rows, arguments.repeats))


if __name__ == "__main__":
    main()
