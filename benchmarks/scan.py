"""The time of typical questions to the log, and to the same rows in CSV, SQLite and TensorBoard's event files.

The rows are those of 62 parameters in float32, as ResNet-18 has. Values wander, and gradients are noise. Near the end
one gradient is NaN, and everything from the next step on. A fresh process asks each question, in turns. The time runs
from the opening of the files to the answer, without imports. Files are in the page cache. ``tracer.scan`` also checks
every byte against its checksum, and ``scan_parquet`` on the run's folder does not.

All contestants hold step, time, parameter and the four extremes, and must give the same answers. CSV has its numbers
in the shortest text that gives the same float32. SQLite stores NaN as null, so it cannot tell the two apart; here
nothing else is null. Event files hold one event for each number, as ``SummaryWriter.add_scalar`` writes them.
TensorBoard's ``EventAccumulator`` reads them whole, without TensorFlow. They take part only in a smaller contest, with
all others. A peak is that of the whole process, with its imports (``VmHWM``, so on Linux).

pandas and tensorboard come with ``pip install -e '.[bench]'``. A missing one is left out. Ten million rows take 3 GB of
temporary disk. Run: ``python -m benchmarks.scan``. Run as a file, it would hide the package of its name.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from rich.console import Console
from rich.table import Table

import tracer
from tracer.log import schema
from tracer.log.parts import merge, publish
from tracer.log.run import create_run
from tracer.log.store import Local as Path

NAMES = [f"layer{index // 4}.{index % 4}.conv1.weight" for index in range(62)]
ASKED = NAMES[40]
PART_STEPS = 1_000
FIRST_NAN = 0.98
DATABASE = "rows.db"
EVENT_READER = "tensorboard.backend.event_processing.event_accumulator"
COLUMNS = ("step", "time", "param", *schema.STATISTICS)

Answer = list[Any]
"""The columns of an answer: numbers, where null is NaN, or names."""
Question = Callable[[Path], Answer]


def tables(rows: int) -> Iterator[pa.Table]:
    """The extremes of a training, in parts."""
    generator = np.random.default_rng(0)
    steps = round(rows / len(NAMES))
    scales = generator.lognormal(size=len(NAMES))
    bounds = np.stack([-scales, scales])[:, None]
    first_nan = int(steps * FIRST_NAN)
    for first in range(0, steps, PART_STEPS):
        step = np.arange(first, min(steps, first + PART_STEPS))
        shape = len(step), len(NAMES)
        values = bounds + np.cumsum(generator.normal(scale=1e-4, size=(2, *shape)), axis=1)
        bounds = values[:, -1:]
        low, high = np.abs(generator.normal(size=(2, *shape))) * 1e-3 * scales
        numbers = np.stack([*values, -low, high]).astype(np.float32).astype(np.float64)
        numbers[2:, step == first_nan, NAMES.index(ASKED)] = np.nan
        numbers[:, step > first_nan] = np.nan
        count = numbers[0].size
        indices = np.tile(np.arange(len(NAMES), dtype=np.int32), len(step))
        yield pa.table(
            {
                "step": np.repeat(step, len(NAMES)),
                "time": pa.array(np.repeat(step, len(NAMES)) * 50_000).cast(pa.timestamp("us", tz="UTC")),
                "rank": np.zeros(count, np.int32),
                "attempt": np.zeros(count, np.int32),
                "param": pa.DictionaryArray.from_arrays(indices, pa.array(NAMES)),
                "span": np.ones(count, np.int32),
                **{name: numbers[at].ravel() for at, name in enumerate(schema.STATISTICS)},
            },
            schema=schema.SCHEMAS["extremes"],
        )


def build_log(path: Path, rows: int) -> None:
    """A run, merged as a closed one is."""
    create_run(path, {"model": "ResNet", "params": [], "settings": {}, "versions": {}})
    for number, table in enumerate(tables(rows)):
        publish(path, "extremes", 0, number, table)
    merge(path, "extremes", 0)


def plain(table: pa.Table) -> pl.DataFrame:
    """Rows in the columns that all contestants have, with the time in microseconds."""
    frame = pl.DataFrame(pl.from_arrow(table.select(COLUMNS)))
    return frame.with_columns(pl.col("time").dt.epoch("us"), pl.col("param").cast(pl.String))


def build_csv(path: Path, rows: int) -> None:
    """A CSV file."""
    with path.open("wb") as file:
        for number, table in enumerate(tables(rows)):
            text = plain(table).with_columns(pl.col(schema.STATISTICS).cast(pl.Float32))
            text.write_csv(file, include_header=number == 0)


def build_sqlite(path: Path, rows: int) -> None:
    """A database of one table."""
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE extremes (step INTEGER NOT NULL, time INTEGER NOT NULL, param TEXT NOT NULL, "
            "value_min REAL, value_max REAL, grad_min REAL, grad_max REAL)"
        )
        for table in tables(rows):
            connection.executemany("INSERT INTO extremes VALUES (?, ?, ?, ?, ?, ?, ?)", plain(table).iter_rows())
    connection.close()


def build_indexed(path: Path, _: int) -> None:
    """A copy of the database, with an index."""
    shutil.copyfile(path.with_name(DATABASE), path)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE INDEX by_param ON extremes (param, step)")
    connection.close()


def build_events(path: Path, rows: int) -> None:
    """A folder with an event file, in which each number is a scalar with the tag ``parameter/statistic``."""
    event: Any = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    writer = importlib.import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter(str(path))
    for table in tables(rows):
        for step, microseconds, param, *numbers in plain(table).iter_rows():
            for statistic, number in zip(schema.STATISTICS, numbers, strict=True):
                scalar = event(wall_time=microseconds / 1e6, step=step)
                scalar.summary.value.add(tag=f"{param}/{statistic}", simple_value=number)
                writer.add_event(scalar)
    writer.close()


def of_log(opened: Callable[[Path], pl.LazyFrame]) -> dict[str, Question]:
    """The questions to a log, in polars."""
    magnitude = pl.max_horizontal(pl.col("grad_min").abs(), pl.col("grad_max").abs())

    def overall(rows: pl.LazyFrame) -> pl.LazyFrame:
        low, high = pl.col("value_min", "grad_min").nan_min(), pl.col("value_max", "grad_max").nan_max()
        return rows.group_by("step").agg(low, high).sort("step").select("step", *schema.STATISTICS)

    def history(rows: pl.LazyFrame) -> pl.LazyFrame:
        return rows.filter(pl.col("param") == ASKED).select("step", *schema.STATISTICS).sort("step")

    def largest(rows: pl.LazyFrame) -> pl.LazyFrame:
        numbers = rows.select("step", "param", magnitude=magnitude).filter(pl.col("magnitude").is_not_nan())
        return numbers.top_k(10, by="magnitude").sort("magnitude", descending=True)

    def first_nan(rows: pl.LazyFrame) -> pl.LazyFrame:
        bad = rows.filter(pl.any_horizontal(pl.col("value_max", "grad_max").is_nan()))
        return bad.select("step", "param").bottom_k(1, by="step")

    def answering(ask: Callable[[pl.LazyFrame], pl.LazyFrame]) -> Question:
        return lambda path: ask(opened(path)).collect().get_columns()

    return dict(zip(QUESTIONS, map(answering, (overall, history, largest, first_nan)), strict=True))


def of_csv() -> dict[str, Question]:
    """The questions to a CSV file, in pandas."""

    def read(path: Path, *columns: str) -> Any:
        types = dict.fromkeys(schema.STATISTICS, "float32") | {"param": "category"}
        return importlib.import_module("pandas").read_csv(path, usecols=columns, dtype=types)

    def overall(path: Path) -> Answer:
        steps = read(path, "step", *schema.STATISTICS).groupby("step")
        low = steps[["value_min", "grad_min"]].min(skipna=False)
        high = steps[["value_max", "grad_max"]].max(skipna=False)
        return [low.index, low["value_min"], high["value_max"], low["grad_min"], high["grad_max"]]

    def history(path: Path) -> Answer:
        rows = read(path, "step", "param", *schema.STATISTICS)
        rows = rows[rows["param"] == ASKED].sort_values("step")
        return [rows[name] for name in ("step", *schema.STATISTICS)]

    def largest(path: Path) -> Answer:
        rows = read(path, "step", "param", "grad_min", "grad_max")
        magnitude = rows[["grad_min", "grad_max"]].abs().max(axis=1).nlargest(10)
        return [rows["step"][magnitude.index], rows["param"][magnitude.index], magnitude]

    def first_nan(path: Path) -> Answer:
        rows = read(path, "step", "param", "value_max", "grad_max")
        bad = rows[rows[["value_max", "grad_max"]].isna().any(axis=1)]
        first = bad.loc[bad["step"].idxmin()]
        return [[first["step"]], [first["param"]]]

    return dict(zip(QUESTIONS, (overall, history, largest, first_nan), strict=True))


def of_sqlite() -> dict[str, Question]:
    """The questions to a database, in SQL."""
    # MIN and MAX leave out null, which was NaN.
    overall = ", ".join(
        f"CASE WHEN COUNT({name}) = COUNT(*) THEN {name.split('_')[1].upper()}({name}) END"
        for name in schema.STATISTICS
    )
    queries = (
        f"SELECT step, {overall} FROM extremes GROUP BY step ORDER BY step",
        f"SELECT step, {', '.join(schema.STATISTICS)} FROM extremes WHERE param = '{ASKED}' ORDER BY step",
        "SELECT step, param, MAX(ABS(grad_min), ABS(grad_max)) AS size FROM extremes ORDER BY size DESC LIMIT 10",
        "SELECT step, param FROM extremes WHERE value_max IS NULL OR grad_max IS NULL ORDER BY step LIMIT 1",
    )

    def answering(query: str) -> Question:
        return lambda path: list(zip(*sqlite3.connect(path).execute(query), strict=True))

    return dict(zip(QUESTIONS, map(answering, queries), strict=True))


def of_events() -> dict[str, Question]:
    """The questions to event files."""

    def read(path: Path) -> Any:
        home = importlib.import_module(EVENT_READER)
        # Without this it keeps a sample of 10,000 of each tag.
        accumulator = home.EventAccumulator(str(path), size_guidance={home.SCALARS: 0})
        accumulator.Reload()
        return accumulator

    def column(accumulator: Any, param: str, statistic: str) -> Any:
        return np.array([scalar.value for scalar in accumulator.Scalars(f"{param}/{statistic}")])

    def steps(accumulator: Any) -> Any:
        return np.array([scalar.step for scalar in accumulator.Scalars(f"{ASKED}/value_min")])

    def grid(accumulator: Any, statistic: str) -> Any:
        return np.stack([column(accumulator, param, statistic) for param in NAMES], axis=1)

    def overall(path: Path) -> Answer:
        accumulator = read(path)
        lows = {name: grid(accumulator, name).min(axis=1) for name in ("value_min", "grad_min")}
        highs = {name: grid(accumulator, name).max(axis=1) for name in ("value_max", "grad_max")}
        return [steps(accumulator), *((lows | highs)[name] for name in schema.STATISTICS)]

    def history(path: Path) -> Answer:
        accumulator = read(path)
        return [steps(accumulator), *(column(accumulator, ASKED, name) for name in schema.STATISTICS)]

    def largest(path: Path) -> Answer:
        accumulator = read(path)
        magnitude = np.maximum(np.abs(grid(accumulator, "grad_min")), np.abs(grid(accumulator, "grad_max")))
        at = np.argsort(-magnitude, axis=None)[:10]
        rows, params = np.unravel_index(at, magnitude.shape)
        return [steps(accumulator)[rows], [NAMES[param] for param in params], magnitude.ravel()[at]]

    def first_nan(path: Path) -> Answer:
        accumulator = read(path)
        bad = np.isnan(grid(accumulator, "value_max")) | np.isnan(grid(accumulator, "grad_max"))
        row, param = np.argwhere(bad)[0]
        return [[steps(accumulator)[row]], [NAMES[param]]]

    return dict(zip(QUESTIONS, (overall, history, largest, first_nan), strict=True))


@dataclass(frozen=True)
class Contestant:
    """A way to keep the rows, in its own file or folder or another contestant's, and to answer from it."""

    file: str
    build: Callable[[Path, int], None]
    questions: Mapping[str, Question]
    module: str | None = None

    @property
    def library(self) -> str | None:
        """The package that it needs."""
        return None if self.module is None else self.module.partition(".")[0]


QUESTIONS = ("overall extremes", "one parameter", "top ten gradients", "first NaN")
CONTESTANTS: Mapping[str, Contestant] = {
    "tracer.scan": Contestant("run", build_log, of_log(tracer.scan)),
    "pl.scan_parquet": Contestant("run", build_log, of_log(lambda path: pl.scan_parquet(path / "extremes"))),
    "CSV, pandas": Contestant("rows.csv", build_csv, of_csv(), "pandas"),
    "SQLite": Contestant(DATABASE, build_sqlite, of_sqlite()),
    "SQLite, indexed": Contestant("indexed.db", build_indexed, of_sqlite()),
    "event files": Contestant("events", build_events, of_events(), EVENT_READER),
}


def digest(answer: Answer) -> str:
    """A digest of an answer; equal answers have equal digests, whichever contestant gave them."""
    found = hashlib.sha256()
    for column in map(list, answer):
        if isinstance(column[0], str):
            found.update("\n".join(column).encode())
            continue
        numbers = np.array(column, dtype=np.float64)
        # There are many kinds of NaN.
        numbers[np.isnan(numbers)] = np.nan
        found.update(numbers.tobytes())
    return found.hexdigest()


def answer_once(contestant: str, question: str, folder: Path) -> None:
    """Answer one question in this process, and print its time, its peak and the answer's digest."""
    asked = CONTESTANTS[contestant]
    if asked.module is not None:
        importlib.import_module(asked.module)
    begun = time.perf_counter()
    answer = asked.questions[question](folder / asked.file)
    seconds = time.perf_counter() - begun
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    print(json.dumps({"seconds": seconds, "megabytes": int(peak) / 1024, "answer": digest(answer)}))


def ask(contestant: str, question: str, folder: Path) -> Mapping[str, Any]:
    """The output of ``answer_once`` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scan", "--ask", contestant, question, str(folder)]
    found: Mapping[str, Any] = json.loads(subprocess.check_output(command))
    return found


def contest(folder: Path, rows: int, names: Sequence[str], repeats: int) -> Iterator[Table]:
    """Build these contestants' files, of about so many rows, and ask them every question in turns."""
    rows = round(rows / len(NAMES)) * len(NAMES)
    sizes = Table("kept in", "MB", "bytes a row", title=f"{rows:,} rows on the disk")
    for file, build in {CONTESTANTS[name].file: CONTESTANTS[name].build for name in names}.items():
        path = folder / file
        build(path, rows)
        size = sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())
        sizes.add_row(
            " / ".join(name for name in names if CONTESTANTS[name].file == file),
            f"{size / 1e6:.3g}",
            f"{size / rows:.1f}",
        )
    yield sizes
    asked = list(itertools.product(QUESTIONS, names))
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {pair: [] for pair in asked}
    for _ in range(repeats):
        for question, name in random.sample(asked, len(asked)):
            found[question, name].append(ask(name, question, folder))
    for question in QUESTIONS:
        truth, *_ = {said["answer"] for said in found[question, names[0]]}
        for name in names:
            assert {said["answer"] for said in found[question, name]} == {truth}, f"{name} differs on {question}"
    yield report(rows, names, found)


def report(rows: int, names: Sequence[str], found: Mapping[tuple[str, str], list[Mapping[str, Any]]]) -> Table:
    """Medians with their spread, and the time of each as a multiple of the first contestant's."""
    table = Table("question", "asked of", "median s", "from, to", "s a million rows", "× scan's", "peak MB")
    table.title = f"Questions to {rows:,} rows"
    for question in QUESTIONS:
        first = statistics.median(said["seconds"] for said in found[question, names[0]])
        for name in names:
            seconds = [said["seconds"] for said in found[question, name]]
            middle = statistics.median(seconds)
            table.add_row(
                question if name == names[0] else "",
                name,
                f"{middle:.3g}",
                f"{min(seconds):.3g} to {max(seconds):.3g}",
                f"{middle / rows * 1e6:.3g}",
                f"{middle / first:.2f}",
                f"{statistics.median(said['megabytes'] for said in found[question, name]):.0f}",
                end_section=name == names[-1],
            )
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the contest without event files")
    parser.add_argument("--events-rows", type=int, default=50_000, help="of the contest with event files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ask", nargs=3, metavar=("CONTESTANT", "QUESTION", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask is not None:
        contestant, question, folder = arguments.ask
        answer_once(contestant, question, Path(folder))
        return
    console = Console(width=120)
    names = [name for name, each in CONTESTANTS.items() if each.library is None or find_spec(each.library)]
    for name in CONTESTANTS.keys() - names:
        console.print(f"without {name}: {CONTESTANTS[name].library} is not installed, see [bench]", markup=False)
    libraries = dict.fromkeys(["polars", "pyarrow", *(CONTESTANTS[name].library for name in names)])
    versions = [f"{library} {version(library)}" for library in libraries if library is not None]
    console.print(f"{', '.join(versions)}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores")
    for rows, taking_part in (
        (arguments.events_rows, names),
        (arguments.rows, [name for name in names if CONTESTANTS[name].file != "events"]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            for table in contest(Path(folder), rows, taking_part, arguments.repeats):
                console.print(table)


if __name__ == "__main__":
    main()
