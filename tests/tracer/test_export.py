"""Runs in the form of other tools: what is read back, by their own readers, are the numbers of the log."""

import csv
import math
import random
from typing import Any

import numpy as np
import pytest

from tests.commands import tracer_says
from tests.logs import close_run, extremes, histograms, metrics, new_run, publish_next
from tracer import export, scan
from tracer.log.schema import STATISTICS
from tracer.log.store import Local as Path

PARAMS = ["block.0.weight", "block.0.bias", "scale"]
RANKS, STEPS = 2, 30
Numbers = dict[tuple[int, str, str], list[float | None]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Numbers]:
    """A run of two ranks with random numbers, NaN, infinity and nulls; and its extremes by step, parameter, column."""
    # Windows that end within the run.
    monkeypatch.setattr(export, "_STEPS", 7)
    drawn = random.Random(0)
    run = new_run(tmp_path / "runs" / "a", PARAMS)
    numbers: Numbers = {}
    for rank in range(RANKS):
        columns: dict[str, list[float | None]] = {}
        for name in STATISTICS:
            some = [drawn.choice([drawn.gauss(0, 1e-30), drawn.gauss(0, 1)]) for _ in range(STEPS * len(PARAMS))]
            columns[name] = [None if name.startswith("grad") and number < -2 else number for number in some]
        columns["grad_max"][4], columns["grad_min"][5], columns["value_max"][40] = math.nan, -math.inf, math.inf
        columns["value_min"][7] = math.nan
        publish_next(run, "extremes", extremes(range(STEPS), PARAMS, columns, rank), rank)
        for name, column in columns.items():
            for place, number in enumerate(column):
                step, param = divmod(place, len(PARAMS))
                numbers.setdefault((step, PARAMS[param], name), []).append(number)
    publish_next(run, "metrics", metrics(range(STEPS), [1 / (3 + step) for step in range(STEPS)]))
    # What another rank logged of a metric, or this one earlier in the step, stands in the log alone.
    publish_next(run, "metrics", metrics(range(STEPS), [9.0] * STEPS, rank=1), 1)
    publish_next(run, "metrics", metrics([2, 5], [0.25, math.nan], name="step"))
    publish_next(run, "histograms", histograms([0, 10]))
    close_run(run, STEPS - 1)
    return run, numbers


def extreme(numbers: Numbers, step: int, column: str, params: list[str]) -> float | None:
    """The extreme of a column over parameters and ranks, by hand: NaN wins, null is left out."""
    found = [number for param in params for number in numbers[step, param, column] if number is not None]
    if any(map(math.isnan, found)):
        return math.nan
    return (min if column.endswith("min") else max)(found) if found else None


def same(one: float | None, other: float | None) -> bool:
    """Alike to the last bit, or both NaN, or both missing."""
    return one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other))


def test_a_csv_holds_every_number_of_the_log_exactly(made: tuple[Path, Numbers], tmp_path: Path) -> None:
    """A row a step, with the extremes over parameters and ranks, and a column for each metric, to the last bit."""
    run, numbers = made
    said = tracer_says("export", run, "--to", "csv", folder=tmp_path)
    assert (said.returncode, said.stderr) == (0, ""), said
    with (tmp_path / "exported" / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    for step, row in enumerate(rows):
        for column in STATISTICS:
            written = float(row[column]) if row[column] else None
            assert same(written, extreme(numbers, step, column, PARAMS)), (step, column)
        assert float(row["loss"]) == 1 / (3 + step)
    assert [(row["step"], row["step_logged"]) for row in rows if row["step_logged"]] == [("2", "0.25"), ("5", "NaN")]


def test_tensorboard_reads_what_the_log_holds(made: tuple[Path, Numbers], tmp_path: Path) -> None:
    """Its own reader finds metrics, extremes over all and by module as float32, histograms, and findings as text."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, numbers = made
    said = tracer_says("export", run, "--to", "tensorboard", folder=tmp_path)
    assert (said.returncode, said.stderr) == (0, ""), said
    everything = dict.fromkeys(("scalars", "tensors", "histograms"), 0)
    read = reader.EventAccumulator(str(tmp_path / "exported" / "a"), everything).Reload()

    def scalars(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in read.Scalars(tag)}

    assert scalars("loss") == {step: float(np.float32(1 / (3 + step))) for step in range(STEPS)}
    for name, params in {"overall": PARAMS, "block.0": PARAMS[:2], "scale": PARAMS[2:]}.items():
        for column in STATISTICS:
            expected = {step: extreme(numbers, step, column, params) for step in range(STEPS)}
            there = {step: float(np.float32(number)) for step, number in expected.items() if number is not None}
            found = scalars(f"{column}/{name}")
            assert found.keys() == there.keys()
            assert all(same(found[step], there[step]) for step in there), (name, column)
    times = scan(run).filter(step=10).collect()["time"].max()
    assert {event.step: event.wall_time for event in read.Scalars("loss")}[10] == times.timestamp()  # type: ignore[union-attr]
    (one, _) = read.Histograms("grad/weight")
    histogram: Any = one.histogram_value
    assert (histogram.min, histogram.max, histogram.num) == (-2.0, 2.0, 4)
    assert list(histogram.bucket) == [1, 0, 3]
    assert histogram.bucket_limit == pytest.approx([-2 / 3, 2 / 3, 2])
    (text,) = read.Tensors("findings/nonfinite")
    assert b"NaN or infinite" in text.tensor_proto.string_val[0]


def test_what_is_there_already_is_not_overwritten(made: tuple[Path, Numbers], tmp_path: Path) -> None:
    """A second export into the same place is one line and exit code 1, and changes nothing."""
    run, _ = made
    assert tracer_says("export", run, "--to", "csv", folder=tmp_path).returncode == 0
    (tmp_path / "exported" / "a.csv").write_text("mine")
    said = tracer_says("export", run, "--to", "csv", folder=tmp_path)
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (1, "", 1)
    assert "a.csv" in said.stderr
    assert (tmp_path / "exported" / "a.csv").read_text() == "mine"


def test_a_run_without_a_row_is_an_empty_table(tmp_path: Path) -> None:
    """A run that has only begun gives a header and no row."""
    new_run(tmp_path / "a")
    assert tracer_says("export", tmp_path / "a", "--to", "csv", folder=tmp_path).returncode == 0
    assert (tmp_path / "exported" / "a.csv").read_text() == "step,time,value_min,value_max,grad_min,grad_max\n"
