"""The history against plain Python: reducing in pieces equals reducing at once, and no extreme is ever lost."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs import extremes, metrics
from tracer.log.schema import STATISTICS
from viewer.history import CAPACITY, Curve, History, smoothed

Columns = Mapping[str, Sequence[float | None]]

NUMBERS = st.integers(-99, 99).map(float) | st.sampled_from([math.nan, math.inf, -math.inf])
STEPS = st.integers(0, 60) | st.integers(0, 10**11)
STEPS_AND_VALUES = st.lists(st.tuples(STEPS, st.sampled_from(["loss", "acc"]), NUMBERS), min_size=1, max_size=40)
STEPS_AND_EXTREMES = st.lists(st.tuples(STEPS, *[NUMBERS | st.none()] * 4), min_size=1, max_size=40)


def lazy(table: object) -> pl.LazyFrame:
    """Rows of the log as a follower gives them."""
    return pl.DataFrame(pl.from_arrow(table)).lazy()


def finite(numbers: Iterable[float | None]) -> list[float]:
    """Those that are there and finite."""
    return [number for number in numbers if number is not None and math.isfinite(number)]


def first_nonfinite(steps: Iterable[int], numbers: Iterable[float | None]) -> int | None:
    """The first step with a NaN or an infinity."""
    found = [step for step, number in zip(steps, numbers, strict=True) if number is not None and not finite([number])]
    return min(found, default=None)


def width(steps: list[int], capacity: int) -> int:
    """The steps a bin has to cover: the smallest power of two with which the capacity is enough."""
    found = 1
    while max(steps) // found - min(steps) // found >= capacity:
        found *= 2
    return found


def absorb(take: Any, table: Any, order: list[int], cuts: list[int]) -> None:
    """Rows in this order, cut into pieces at these places."""
    frame = pl.DataFrame(pl.from_arrow(table))[order]
    places = [0, *sorted(min(cut, len(order)) for cut in cuts), len(order)]
    for begin, end in itertools.pairwise(places):
        take(frame[begin:end].lazy())


@settings(max_examples=60, deadline=None)
@given(st.data(), STEPS_AND_EXTREMES, st.integers(1, 20))
def test_extremes_in_any_pieces_and_order_equal_the_oracle(
    data: st.DataObject, rows: list[tuple[Any, ...]], capacity: int
) -> None:
    """Whatever the pieces and their order: minima of minima, maxima of maxima, the first NaN or inf, within bounds."""
    steps = [row[0] for row in rows]
    columns = {name: [row[index] for row in rows] for index, name in enumerate(STATISTICS, start=1)}
    history = History(capacity)
    order = data.draw(st.permutations(range(len(rows))))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=5))
    absorb(history.absorb_extremes, extremes(steps, values=columns), order, cuts)
    found = history.extremes()
    assert found is not None
    assert history.last_step == max(steps)

    bins: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        bins.setdefault(step // width(steps, capacity), []).append(index)
    assert len(bins) <= capacity
    assert list(found.step) == [max(steps[index] for index in bins[key]) for key in sorted(bins)]
    for name, numbers in columns.items():
        best: Any = min if name.endswith("min") else max
        expected = [best(finite(numbers[index] for index in bins[key]), default=None) for key in sorted(bins)]
        assert list(found.statistics[name]) == expected
    for of in ("value", "grad"):
        both = [columns[f"{of}_min"], columns[f"{of}_max"]]
        firsts = [first_nonfinite(steps, numbers) for numbers in both]
        assert min(found.nonfinite[of], default=None) == min(finite(firsts), default=None)


@settings(max_examples=60, deadline=None)
@given(st.data(), STEPS_AND_VALUES, st.integers(1, 20))
def test_metrics_in_any_pieces_and_order_equal_the_oracle(
    data: st.DataObject, rows: list[tuple[int, str, float]], capacity: int
) -> None:
    """Whatever the pieces and their order: a metric's mean, lowest and highest value, and its first NaN or inf."""
    steps = [step for step, _, _ in rows]
    table = pl.concat([pl.DataFrame(pl.from_arrow(metrics([step], [value], name))) for step, name, value in rows])
    history = History(capacity)
    order = data.draw(st.permutations(range(len(rows))))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=5))
    absorb(history.absorb_metrics, table.to_arrow(), order, cuts)
    assert [curve.name for curve in history.curves()] == sorted({name for _, name, _ in rows})
    for curve in history.curves():
        own = [(step, value) for step, name, value in rows if name == curve.name]
        bins: dict[int, list[tuple[int, float]]] = {}
        for step, value in own:
            bins.setdefault(step // width(steps, capacity), []).append((step, value))
        assert len(bins) <= capacity
        points = [bins[key] for key in sorted(bins)]
        values = [finite(value for _, value in point) for point in points]
        assert list(curve.step) == [max(step for step, _ in point) for point in points]
        assert same(curve.low, [min(numbers, default=math.nan) for numbers in values])
        assert same(curve.high, [max(numbers, default=math.nan) for numbers in values])
        assert same(curve.mean, [sum(numbers) / len(numbers) if numbers else math.nan for numbers in values])
        assert min(curve.nonfinite, default=None) == first_nonfinite(*zip(*own, strict=True))


def same(found: Iterable[float], expected: Iterable[float]) -> bool:
    """Whether two lists of numbers are equal, NaN counting as equal to itself."""
    return np.array_equal(list(found), list(expected), equal_nan=True)


def test_the_extremes_are_over_all_parameters_and_ranks() -> None:
    """The overall extremes of a step come from whichever parameter and rank has them."""
    history = History()
    first: Columns = {
        "value_min": [-3.0, -1.0],
        "value_max": [1.0, 2.0],
        "grad_min": [None, -7.0],
        "grad_max": [None, 5.0],
    }
    second: Columns = {
        "value_min": [-2.0, -2.0],
        "value_max": [9.0, 0.0],
        "grad_min": [-1.0, None],
        "grad_max": [6.0, None],
    }
    history.absorb_extremes(lazy(extremes([4], ["a", "b"], first)))
    history.absorb_extremes(lazy(extremes([4], ["a", "b"], second, rank=1)))
    found = history.extremes()
    assert found is not None
    assert {name: list(numbers) for name, numbers in found.statistics.items()} == {
        "value_min": [-3.0],
        "value_max": [9.0],
        "grad_min": [-7.0],
        "grad_max": [6.0],
    }


@pytest.mark.parametrize("step", [0, 31_337, 99_999])
def test_a_spike_and_a_nan_of_a_single_step_survive_any_number_of_halvings(step: int) -> None:
    """Of 100,000 steps, published piece by piece, one step's extreme and another's NaN are still there at the end."""
    steps = np.arange(100_000)
    noise = np.random.default_rng(0).normal(size=steps.size)
    maxima, minima = np.abs(noise), -np.abs(noise)
    maxima[step] = 1e9
    minima[step - 1] = math.nan
    history = History()
    for piece in np.array_split(steps, 40):
        columns = {
            "value_min": minima[piece],
            "value_max": maxima[piece],
            "grad_min": -maxima[piece],
            "grad_max": maxima[piece],
        }
        history.absorb_extremes(pl.DataFrame({"step": piece, **columns}).lazy())
    found = history.extremes()
    assert found is not None
    assert len(found.step) <= CAPACITY
    assert list(found.statistics["grad_max"]).count(1e9) == 1
    assert list(found.statistics["grad_min"]).count(-1e9) == 1
    assert found.nonfinite == {"value": [steps[step - 1]], "grad": []}


def curve(history: History, name: str) -> Curve:
    """A metric of a history."""
    return next(curve for curve in history.curves() if curve.name == name)


def test_a_rare_metric_beside_a_frequent_one_keeps_its_points() -> None:
    """Validation every thousand steps keeps each of its points, at its step, beside a loss at every step."""
    steps, rare = list(range(50_000)), list(range(999, 50_000, 1000))
    history = History()
    history.absorb_metrics(lazy(metrics(rare, [float(step) for step in rare], "val_loss")))
    history.absorb_metrics(lazy(metrics(steps, [1.0] * len(steps))))
    assert list(curve(history, "val_loss").step) == rare
    assert list(curve(history, "val_loss").mean) == rare
    assert len(curve(history, "loss").step) <= CAPACITY


def test_a_jump_to_huge_steps_keeps_the_bound_and_the_extremes() -> None:
    """Where a resumed run goes on at an enormous step, memory stays bounded and what was seen before is kept."""
    history = History()
    for first in (0, 10**11):
        steps = list(range(first, first + 5000))
        values = [float(first % 7 + step % 5000) for step in steps]
        history.absorb_metrics(lazy(metrics(steps, values)))
    found = curve(history, "loss")
    assert (min(found.low), max(found.high)) == (0.0, 10**11 % 7 + 4999.0)
    assert history.last_step == 10**11 + 4999
    assert len(found.step) <= CAPACITY


def test_a_failed_reading_leaves_the_history_as_it_was() -> None:
    """Where rows cannot be read to the end, none of them is in the history, so that they may be given again."""
    history = History()
    history.absorb_metrics(lazy(metrics([0, 1], [1.0, 2.0])))
    before = history.curves()

    def fail(frame: pl.DataFrame) -> pl.DataFrame:
        raise FileNotFoundError("merged away")

    with pytest.raises((FileNotFoundError, pl.exceptions.ComputeError)):
        history.absorb_metrics(lazy(metrics([2], [9.0])).map_batches(fail))
    assert history.curves() == before


def test_an_empty_history_has_nothing_to_show() -> None:
    """Without a row there is no step, no curve and no extreme; nor with a frame that has no row."""
    history = History()
    history.absorb_extremes(lazy(extremes([])))
    history.absorb_metrics(lazy(metrics([], [])))
    assert (history.last_step, history.curves(), history.extremes()) == (None, [], None)


def test_smoothing_is_tensorboards() -> None:
    """The moving average has no bias at its beginning: its first number is the first value, and 0.6 keeps 60 %."""
    assert smoothed([2.0, 4.0, 8.0], 0.6) == pytest.approx(
        [2.0, (0.4 * 4 + 0.24 * 2) / (1 - 0.36), (0.4 * 8 + 0.24 * 4 + 0.144 * 2) / (1 - 0.216)]
    )


def test_smoothing_passes_over_what_is_not_finite() -> None:
    """A NaN or an infinity stands where it is, and the average goes on as if it were not there."""
    found = smoothed([1.0, math.nan, 3.0, math.inf, 5.0], 0.9)
    assert math.isnan(found[1])
    assert found[3] == math.inf
    assert [found[0], found[2], found[4]] == pytest.approx(smoothed([1.0, 3.0, 5.0], 0.9))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 0.999))
def test_smoothing_stays_within_what_was_logged(values: list[float], weight: float) -> None:
    """An average lies between the smallest and the largest number; without a weight it is the number itself."""
    found = smoothed(values, weight)
    slack = 1e-6 * max(map(abs, values))
    assert all(min(values) - slack <= each <= max(values) + slack for each in found)
    assert smoothed(values, 0.0) == values
    assert smoothed([values[0]] * 5, weight) == [values[0]] * 5
