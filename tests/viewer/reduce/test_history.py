"""The history against plain Python: reducing in pieces equals reducing at once, and no extreme is ever lost."""

import itertools
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs import activations, events, extremes, histograms, metrics
from tracer.log.schema import STATISTICS
from viewer.options import View, ViewOptions
from viewer.reduce.bins import CAPACITY
from viewer.reduce.history import History
from viewer.reduce.metrics import smoothed
from viewer.snapshot import Curve, Extremes, Heatmap

Columns = Mapping[str, Sequence[float | None]]

NUMBERS = st.integers(-99, 99).map(float) | st.sampled_from([math.nan, math.inf, -math.inf])
STEPS = st.integers(0, 60) | st.integers(0, 10**11)
STEPS_AND_VALUES = st.lists(st.tuples(STEPS, st.sampled_from(["loss", "acc"]), NUMBERS), min_size=1, max_size=40)
BEGUN = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
STEPS_AND_EXTREMES = st.lists(st.tuples(STEPS, *[NUMBERS | st.none()] * 4), min_size=1, max_size=40)


def lazy(table: object) -> pl.LazyFrame:
    """Rows of the log as a follower gives them."""
    return pl.DataFrame(pl.from_arrow(table)).lazy()


def times(steps: npt.ArrayLike) -> pl.Series:
    """When each step was made, as the log has it: a second each."""
    return (pl.Series(np.asarray(steps)) * 1_000_000).cast(pl.Datetime("us", "UTC"))


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
    history = History(capacity=capacity)
    order = data.draw(st.permutations(range(len(rows))))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=5))
    absorb(partial(history.absorb, "extremes"), extremes(steps, values=columns), order, cuts)
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
    history = History(capacity=capacity)
    order = data.draw(st.permutations(range(len(rows))))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=5))
    absorb(partial(history.absorb, "metrics"), table.to_arrow(), order, cuts)
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
    history.absorb("extremes", lazy(extremes([4], ["a", "b"], first)))
    history.absorb("extremes", lazy(extremes([4], ["a", "b"], second, rank=1)))
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
        history.absorb("extremes", pl.DataFrame({"step": piece, "time": times(piece), **columns}).lazy())
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
    history.absorb("metrics", lazy(metrics(rare, [float(step) for step in rare], "val_loss")))
    history.absorb("metrics", lazy(metrics(steps, [1.0] * len(steps))))
    assert list(curve(history, "val_loss").step) == rare
    assert list(curve(history, "val_loss").mean) == rare
    assert len(curve(history, "loss").step) <= CAPACITY


def test_a_jump_to_huge_steps_keeps_the_bound_and_the_extremes() -> None:
    """Where a resumed run goes on at an enormous step, memory stays bounded and what was seen before is kept."""
    history = History()
    for first in (0, 10**11):
        steps = list(range(first, first + 5000))
        values = [float(first % 7 + step % 5000) for step in steps]
        history.absorb("metrics", lazy(metrics(steps, values)))
    found = curve(history, "loss")
    assert (min(found.low), max(found.high)) == (0.0, 10**11 % 7 + 4999.0)
    assert history.last_step == 10**11 + 4999
    assert len(found.step) <= CAPACITY


@pytest.mark.parametrize("newest", [7.0, math.nan, math.inf])
def test_the_newest_number_of_a_metric_is_as_it_was_logged(newest: float) -> None:
    """However many steps a bin covers, its mean does not stand for the last number; several ranks have their mean."""
    history = History(capacity=4)
    history.absorb("metrics", lazy(metrics(range(100), [1.0] * 100)))
    history.absorb("metrics", lazy(metrics([101], [newest])))
    history.absorb("metrics", lazy(metrics([100], [1.0])))
    assert same([curve(history, "loss").newest or 0.0], [newest])
    for rank, number in enumerate((2.0, 4.0, 9.0)):
        history.absorb("metrics", lazy(metrics([102], [number], rank=rank)))
    assert curve(history, "loss").newest == 5.0


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20)
    | st.lists(st.sampled_from([1.7e308, -1.7e308, sys.float_info.max, 1e-320]), min_size=1, max_size=20)
)
def test_no_mean_of_finite_numbers_overflows(values: list[float]) -> None:
    """The mean of a bin, and of ranks at the last step, is the exact one; a sum that fits is divided as ever."""
    history = History(capacity=1)
    for rank, value in enumerate(values):
        history.absorb("metrics", lazy(metrics([7], [value], rank=rank)))
    (curve,) = history.curves()
    exact = sum(map(Fraction, values), Fraction()) / len(values)
    rounding = Fraction(max(map(abs, values))) / 10**14 + Fraction(5e-324)
    # Newer Pythons' sum rounds once only.
    *_, total = itertools.accumulate(values)
    for mean in (*curve.mean, curve.last):
        assert math.isfinite(mean)
        assert abs(Fraction(mean) - exact) <= rounding
        assert mean == total / len(values) or not math.isfinite(total)


def test_infinite_numbers_of_ranks_stay_infinite() -> None:
    """Only a sum of finite numbers is taken otherwise: the newest number of a metric that is infinite is infinite."""
    history = History(capacity=1)
    for rank, value in enumerate([math.inf, 1.7e308, -1.7e308]):
        history.absorb("metrics", lazy(metrics([7], [value], rank=rank)))
    assert history.curves()[0].last == math.inf


def test_a_failed_reading_leaves_the_history_as_it_was() -> None:
    """Where rows cannot be read to the end, none of them is in the history, so that they may be given again."""
    history = History()
    history.absorb("metrics", lazy(metrics([0, 1], [1.0, 2.0])))
    before = history.curves()

    def fail(frame: pl.DataFrame) -> pl.DataFrame:
        raise FileNotFoundError("merged away")

    with pytest.raises((FileNotFoundError, pl.exceptions.ComputeError)):
        history.absorb("metrics", lazy(metrics([2], [9.0])).map_batches(fail))
    assert history.curves() == before


def test_an_empty_history_has_nothing_to_show() -> None:
    """Without a row there is no step, no curve and no extreme; nor with a frame that has no row."""
    history = History()
    history.absorb("extremes", lazy(extremes([])))
    history.absorb("metrics", lazy(metrics([], [])))
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


def absorbed(
    look: ViewOptions, *tables: Any, of: str = "extremes", params: Sequence[str] = (), **given: Any
) -> History:
    """A history that took in tables of rows, one after the other."""
    history = History(look, params, **given)
    for table in tables:
        history.absorb(of, table if isinstance(table, pl.LazyFrame) else lazy(table))
    return history


def found_in(history: History) -> Extremes:
    """The extremes of a history that has some."""
    found = history.extremes()
    assert found is not None
    return found


def layers_in(history: History) -> Heatmap:
    """The layers of a history that has some."""
    found = history.layers()
    assert found is not None
    return found


NAMES = ("conv1.weight", "conv1.bias", "fc.weight")
# A minimum and a maximum are there, or neither is.
PAIRS = st.tuples(NUMBERS, NUMBERS) | st.just((None, None))
# Rows of several ranks: step, parameter, rank and the four statistics.
RANKED = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(NAMES), st.integers(0, 2), PAIRS, PAIRS).map(
        lambda row: (*row[:3], *row[3], *row[4])
    ),
    min_size=1,
    max_size=40,
)


def tables_of(rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """A table for each row: step, parameter, rank and the four statistics."""
    return [
        extremes([step], [param], {name: [number] for name, number in zip(STATISTICS, numbers, strict=True)}, rank)
        for step, param, rank, *numbers in rows
    ]


def by_bin(rows: Sequence[tuple[Any, ...]], capacity: int) -> list[list[tuple[Any, ...]]]:
    """The rows of each bin, in the order of the steps; the bins' width is that of all rows."""
    steps = [row[0] for row in rows]
    bins: dict[int, list[tuple[Any, ...]]] = {}
    for row in rows:
        bins.setdefault(row[0] // width(steps, capacity), []).append(row)
    return [bins[key] for key in sorted(bins)]


def reduced(rows: Iterable[tuple[Any, ...]], name: str) -> float | None:
    """The minimum of minima, or the maximum of maxima, of a statistic in rows."""
    numbers = finite(row[3 + STATISTICS.index(name)] for row in rows)
    best: Any = min if name.endswith("_min") else max
    return best(numbers, default=None)  # type: ignore[no-any-return]


@settings(max_examples=40, deadline=None)
@given(RANKED, st.integers(1, 20), st.sampled_from(["bias", "^conv1", "weight$", "fc|bias", ".", ""]))
def test_only_parameters_in_whose_name_the_expression_is_found_count(
    rows: list[tuple[Any, ...]], capacity: int, pattern: str
) -> None:
    """With ``params``, the extremes are as if the log had those parameters alone."""
    kept = [row for row in rows if re.search(pattern, row[1])]
    history = absorbed(ViewOptions(params=pattern), pl.concat(map(lazy, tables_of(rows))), capacity=capacity)
    if not kept:
        assert history.extremes() is None
        return
    found = found_in(history)
    for name in STATISTICS:
        assert list(found.statistics[name]) == [reduced(bin_, name) for bin_ in by_bin(kept, capacity)]


@settings(max_examples=40, deadline=None)
@given(RANKED, st.integers(1, 20), st.integers(0, 2), st.sampled_from([1, 40]))
def test_one_rank_is_shown_as_if_there_were_no_other(
    rows: list[tuple[Any, ...]], capacity: int, rank: int, piece: int
) -> None:
    """With one rank's number, the extremes are those of its rows, whatever comes with them."""
    kept = [row for row in rows if row[2] == rank]
    tables = tables_of(rows)
    frames = [pl.concat(map(lazy, tables[at : at + piece])) for at in range(0, len(tables), piece)]
    history = absorbed(ViewOptions(rank=str(rank)), *frames, capacity=capacity)
    if not kept:
        assert (history.extremes(), history.last_step) == (None, None)
        return
    found = found_in(history)
    assert list(found.step) == [max(row[0] for row in bin_) for bin_ in by_bin(kept, capacity)]
    for name in STATISTICS:
        assert list(found.statistics[name]) == [reduced(bin_, name) for bin_ in by_bin(kept, capacity)]


def test_one_rank_has_its_own_metrics_histograms_and_layers() -> None:
    """A rank's number picks rows of every table."""
    look = ViewOptions(rank="1")
    both = [metrics([0], [3.0]), metrics([1], [5.0], rank=1)]
    assert [list(each.mean) for each in absorbed(look, *both, of="metrics").curves()] == [[5.0]]
    layers = ViewOptions(View.LAYERS, rank="1")
    ranked = [extremes([0]), extremes([1], rank=1)]
    assert layers_in(absorbed(layers, *ranked)).first_step == 1
    param = ViewOptions(View.PARAM, param="weight", rank="1")
    other = lazy(histograms([4])).with_columns(pl.lit(1, pl.Int32).alias("rank"))
    of_rank = absorbed(param, histograms([3]), other, of="histograms").histograms()
    assert [each.step for each in of_rank["grad"]] == [4]


@settings(max_examples=40, deadline=None)
@given(st.data(), RANKED, st.integers(1, 20))
def test_the_spread_is_between_the_most_and_the_least_extreme_rank(
    data: st.DataObject, rows: list[tuple[Any, ...]], capacity: int
) -> None:
    """Of each bin: the extremes over all ranks, and the largest of the ranks' minima and smallest of their maxima."""
    tables = data.draw(st.permutations(tables_of(rows)))
    found = found_in(absorbed(ViewOptions(rank="spread"), *tables, capacity=capacity))
    merged = found_in(absorbed(ViewOptions(), *tables, capacity=capacity))
    assert (found.step, found.statistics, found.time) == (merged.step, merged.statistics, merged.time)
    assert {of: min(steps, default=None) for of, steps in found.nonfinite.items()} == {
        of: min(steps, default=None) for of, steps in merged.nonfinite.items()
    }
    assert merged.inner is None
    assert found.inner is not None
    for name in STATISTICS:
        least: Any = max if name.endswith("_min") else min
        expected = [
            least(finite(reduced([row for row in bin_ if row[2] == rank], name) for rank in range(3)), default=None)
            for bin_ in by_bin(rows, capacity)
        ]
        assert list(found.inner[name]) == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 10**6)), min_size=1, max_size=30), st.integers(1, 20))
def test_the_time_of_a_bin_is_that_of_its_newest_row(rows: list[tuple[int, int]], capacity: int) -> None:
    """Curves and extremes know when each bin's last row was made, in seconds since 1970, however clocks jump."""
    steps = [step for step, _ in rows]
    seconds = pl.Series([second for _, second in rows])
    at = pl.lit((seconds * 1_000_000).cast(pl.Datetime("us", "UTC"))).alias("time")
    history = History(capacity=capacity)
    history.absorb("extremes", lazy(extremes(steps)).with_columns(at))
    history.absorb("metrics", lazy(metrics(steps, [1.0] * len(rows))).with_columns(at))
    bins: dict[int, list[int]] = {}
    for step, second in rows:
        bins.setdefault(step // width(steps, capacity), []).append(second)
    expected = [float(max(bins[key])) for key in sorted(bins)]
    assert list(found_in(history).time) == expected
    assert list(curve(history, "loss").time) == expected
    assert history.last_time == max(seconds)
    assert history.last_step == max(steps)


def test_the_newest_row_may_be_of_any_table() -> None:
    """The last step and the last time are those of extremes and metrics together."""
    history = History()
    history.absorb("metrics", lazy(metrics([7], [1.0])))
    assert (history.last_step, history.last_time) == (7, BEGUN + 7)
    history.absorb("extremes", lazy(extremes([3])))
    assert (history.last_step, history.last_time) == (7, BEGUN + 7)
    history.absorb("extremes", lazy(extremes([9])))
    assert (history.last_step, history.last_time) == (9, BEGUN + 9)


@pytest.mark.parametrize(
    "look",
    [ViewOptions(View.PARAM, param="frozen"), ViewOptions(params="frozen"), ViewOptions(View.LAYERS, params="frozen")],
    ids=repr,
)
def test_how_far_a_run_is_does_not_depend_on_what_is_shown(look: ViewOptions) -> None:
    """The last step and time are those of all rows, also where the parameter that is shown stopped long ago."""
    history = History(look, ["frozen", "other"])
    history.absorb("extremes", lazy(extremes([3], ["frozen"])))
    history.absorb("extremes", lazy(extremes([4, 50], ["other"])))
    assert (history.last_step, history.last_time) == (50, BEGUN + 50)


def at_seconds(seconds: Sequence[float], steps: Sequence[int] | None = None, view: View = View.OVERVIEW) -> History:
    """A history of steps that were made at these seconds."""
    given = [datetime.fromtimestamp(1e9, UTC) + timedelta(seconds=each) for each in seconds]
    rows = lazy(extremes(steps or range(len(given))))
    return absorbed(ViewOptions(view), rows.with_columns(pl.Series("time", given, pl.Datetime("us", "UTC"))))


@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize(
    ("seconds", "speed"),
    [
        ([0.0], None),
        ([5.0, 5.0], None),
        ([0.0, 0.5], 2.0),
        ([float(each) for each in range(600)], 1.0),
        # The last minute alone counts, or the last two steps where these are further apart.
        ([*range(0, 300, 10), *(300 + each / 4 for each in range(400))], 4.0),
        ([0.0, 1.0, 2.0, 502.0], 1 / 500),
        # The clock was set back, and forward.
        ([1000.0, 1001.0, 1002.0, 2.0, 2.5, 3.0], 2.0),
        ([1000.0, 1001.0, 2.0], None),
        ([0.0, 1.0, 2.0, 9000.0, 9000.5, 9001.0], 2.0),
    ],
)
def test_the_speed_is_that_of_the_last_minute(seconds: list[float], speed: float | None, view: View) -> None:
    """Steps per second over what is at most a minute old; unknown with one bin, or where no time went by."""
    if view is View.PARAM:
        return
    assert at_seconds(seconds, view=view).steps_per_second() == pytest.approx(speed)


def test_the_speed_counts_steps_and_not_rows() -> None:
    """Of every tenth step recorded, at one row a second, the speed is ten steps a second; of metrics alone, unknown."""
    assert at_seconds(range(50), range(0, 500, 10)).steps_per_second() == pytest.approx(10.0)
    only_metrics = absorbed(ViewOptions(), metrics([0, 1], [1.0, 2.0]), of="metrics")
    assert only_metrics.steps_per_second() is None


@pytest.mark.parametrize("view", View)
def test_a_clock_set_back_and_repeated_steps_end_nothing(view: View) -> None:
    """Rows of a later attempt for steps that are known, made at earlier times, are taken in beside the others."""
    history = History(ViewOptions(view, param="weight"), ["weight"])
    for table in history.tables:
        for attempt in range(3):
            rows = {
                "extremes": lazy(extremes([0, 1, 2])),
                "metrics": lazy(metrics([0, 1, 2], [1.0, 2.0, 3.0])),
                "histograms": lazy(histograms([0, 1, 2])),
                "activations": lazy(activations([0, 1, 2])),
                "events": lazy(events([0, 1, 2])),
            }[table]
            earlier = pl.col("time") - pl.duration(hours=attempt)
            history.absorb(table, rows.with_columns(pl.lit(attempt, pl.Int32).alias("attempt"), earlier))
    assert history.last_step == 2
    assert history.last_time == BEGUN + 2
    assert history.steps_per_second() == pytest.approx(1.0)


def with_columns(table: Any, **columns: Sequence[float | None]) -> pl.LazyFrame:
    """Rows of extremes with further statistics."""
    return lazy(table).with_columns(pl.Series(name, numbers, pl.Float64) for name, numbers in columns.items())


def test_a_parameter_is_shown_with_all_that_was_recorded_of_it_alone() -> None:
    """The view of a parameter has its extremes, those applied, and the range of each further statistic in a bin."""
    rows = with_columns(
        extremes([0, 1, 2, 3], ["a", "b"]),
        grad_norm=[1, 99, 2, 99, math.nan, 99, None, 99],
        applied_min=[-1, -99, -2, -99, -3, -99, -4, -99],
        applied_max=[1, 99, 2, 99, math.inf, 99, 4, 99],
    )
    found = found_in(absorbed(ViewOptions(View.PARAM, param="a"), rows, capacity=2))
    assert found.step == [1, 3]
    assert found.statistics == {
        "value_min": [-1.0, -1.0], "value_max": [1.0, 1.0], "grad_min": [-2.0, -2.0], "grad_max": [2.0, 2.0],
        "applied_min": [-2.0, -4.0], "applied_max": [2.0, 4.0],
        "grad_norm_low": [1.0, None], "grad_norm_high": [2.0, None],
    }  # fmt: skip
    assert found.nonfinite == {"value": [], "grad": [], "applied": [2]}
    assert found.time == [BEGUN + 1, BEGUN + 3]


def test_the_parameter_is_meant_by_its_whole_name() -> None:
    """A parameter's name is no expression: neither a longer name counts, nor what a dot could stand for."""
    found = found_in(
        absorbed(ViewOptions(View.PARAM, param="a.b"), extremes([0], ["a.b"]), extremes([1], ["axb", "a.b.c"]))
    )
    assert found.step == [0]


def test_statistics_that_come_later_and_go_are_null_where_they_were_not_recorded() -> None:
    """A run resumed with other statistics shows each where it was recorded, in whatever order parts arrive."""
    look = ViewOptions(View.PARAM, param="weight")
    tables = [
        extremes([0]),
        with_columns(extremes([1]), value_std=[0.5]),
        with_columns(extremes([2]), applied_min=[-7.0], applied_max=[7.0], grad_norm=[3.0]),
        extremes([3]),
    ]
    expected = {
        "value_std_low": [None, 0.5, None, None], "value_std_high": [None, 0.5, None, None],
        "grad_norm_low": [None, None, 3.0, None], "grad_norm_high": [None, None, 3.0, None],
        "applied_min": [None, None, -7.0, None], "applied_max": [None, None, 7.0, None],
    }  # fmt: skip
    for order in itertools.permutations(tables):
        found = found_in(absorbed(look, *order))
        assert {name: list(numbers) for name, numbers in found.statistics.items() if name in expected} == expected
        assert found.nonfinite == {"value": [], "grad": [], "applied": []}


def test_statistics_of_another_parameter_alone_show_nothing_wrong() -> None:
    """Rows without one of the shown parameter change nothing, although they bring new statistics."""
    history = absorbed(ViewOptions(View.PARAM, param="a"), extremes([0], ["a"]))
    before = history.extremes()
    history.absorb("extremes", with_columns(extremes([1], ["b"]), grad_norm=[1.0]))
    assert history.extremes() == before
    history.absorb("extremes", lazy(extremes([2], ["a"])))
    assert found_in(history).step == [0, 2]


def test_of_each_bin_the_newest_histogram_is_kept_whole() -> None:
    """However many histograms a run has, a bounded number is kept: of each bin the last one, for each rank and kind."""
    steps = list(range(5000))
    look = ViewOptions(View.PARAM, param="weight")
    rows = lazy(histograms(steps)).with_columns(
        high=pl.col("step").cast(pl.Float64), counts=pl.concat_list(pl.col("step"), pl.lit(1, pl.Int64))
    )
    values = rows.with_columns(pl.lit("value").cast(pl.Categorical).alias("of"))
    other = rows.with_columns(pl.lit(1, pl.Int32).alias("rank"))
    # In pieces, the last one first.
    pieces = [
        frame.filter(pl.col("step") // 1000 == piece) for frame in (rows, values, other) for piece in (4, 0, 2, 1, 3)
    ]
    history = absorbed(look, *pieces, of="histograms")
    ends = [min(start + 31, 4999) for start in range(0, 5000, 32)]
    found = history.histograms()
    assert sorted(found) == ["grad", "value"]
    assert [each.step for each in found["value"]] == ends
    assert sorted(each.step for each in found["grad"]) == sorted(2 * ends)
    assert all(each.high == each.step for each in found["value"])
    assert all(list(each.counts) == [each.step, 1] for each in found["value"])
    assert [each.time for each in found["value"]] == [BEGUN + end for end in ends]


def test_a_histogram_without_counts_is_left_out() -> None:
    """Where nothing finite lay between the extremes, there is nothing to draw."""
    rows = lazy(histograms([0, 1])).with_columns(
        counts=pl.when(pl.col("step") == 0).then(pl.lit(None, pl.List(pl.Int64))).otherwise(pl.col("counts"))
    )
    found = absorbed(ViewOptions(View.PARAM, param="weight"), rows, of="histograms").histograms()
    assert [each.step for each in found["grad"]] == [1]


@settings(max_examples=40, deadline=None)
@given(st.data(), RANKED, st.sampled_from(["grad_absmax", "value_absmax", "grad_max", "value_min"]))
def test_layers_hold_the_largest_magnitude_of_each_parameter_and_step(
    data: st.DataObject, rows: list[tuple[Any, ...]], statistic: str
) -> None:
    """A cell is the largest finite magnitude of a row that is finite, and marked where there is one that is not."""
    tables = data.draw(st.permutations(tables_of(rows)))
    found = layers_in(absorbed(ViewOptions(View.LAYERS, statistic=statistic), *tables, params=NAMES[:2]))
    of, _, end = statistic.partition("_")
    columns = [3 + STATISTICS.index(f"{of}_{each}") for each in (("min", "max") if end == "absmax" else (end,))]
    first, last = min(row[0] for row in rows), max(row[0] for row in rows)
    late = list(dict.fromkeys(row[1] for row in rows if row[1] not in NAMES[:2]))
    assert (list(found.params), found.first_step, found.width) == ([*NAMES[:2], *late], first, 1)
    assert found.magnitudes.shape == found.nonfinite.shape == (len(found.params), last - first + 1)
    for place, param in enumerate(found.params):
        for step in range(first, last + 1):
            cell = [[row[column] for column in columns] for row in rows if row[:2] == (step, param)]
            bad = [pair for pair in cell if any(number is not None and not math.isfinite(number) for number in pair)]
            whole = [abs(number) for pair in cell if pair not in bad for number in pair if number is not None]
            assert found.nonfinite[place, step - first] == bool(bad)
            assert same([found.magnitudes[place, step - first]], [max(whole, default=math.nan)])


def test_layers_are_bounded_and_lose_no_spike() -> None:
    """However many steps there are, the columns stay few, and each parameter's largest magnitude is in its row."""
    names = [f"p{index}" for index in range(5)]
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(20_000, 5))
    history = History(ViewOptions(View.LAYERS), names)
    for piece in np.array_split(np.arange(20_000), 13):
        flat = numbers[piece].ravel()
        given = {name: flat.tolist() for name in STATISTICS}
        history.absorb("extremes", lazy(extremes(piece.tolist(), names, given)))
    found = layers_in(history)
    assert found.magnitudes.shape[1] <= 512
    assert found.width * found.magnitudes.shape[1] >= 20_000
    for place in range(5):
        own = [np.abs(numbers[at : at + found.width, place]).max() for at in range(0, 20_000, found.width)]
        assert found.magnitudes[place].tolist() == own


def test_layers_of_thousands_of_parameters_have_fewer_columns() -> None:
    """Memory is bounded by the number of cells: the more parameters, the coarser the steps."""
    names = [f"p{index}" for index in range(20_000)]
    history = History(ViewOptions(View.LAYERS), names)
    for steps in (range(60), range(60, 120)):
        one = lazy(extremes(steps, names[:1]))
        history.absorb("extremes", one)
    found = layers_in(history)
    assert found.magnitudes.shape[0] == 20_000
    assert found.magnitudes.size <= 1_000_000
    assert found.width == 4


def test_layers_of_a_statistic_that_some_parts_have_show_it_there() -> None:
    """A statistic is shown where it was recorded, and one that never was has a table without a number."""
    tables = [extremes([0]), with_columns(extremes([1]), grad_norm=[-3.0]), extremes([2])]
    for order in itertools.permutations(tables):
        found = layers_in(absorbed(ViewOptions(View.LAYERS, statistic="grad_norm"), *order))
        assert same(found.magnitudes[0], [math.nan, 3.0, math.nan])
    never = absorbed(ViewOptions(View.LAYERS, statistic="applied_absmax"), *tables)
    assert same(layers_in(never).magnitudes[0], [math.nan] * 3)
    assert not layers_in(never).nonfinite.any()
    assert (never.last_step, never.last_time) == (2, BEGUN + 2)


def test_layers_of_some_parameters_alone() -> None:
    """With ``params``, the table knows of no others; those without a row have an empty one."""
    look = ViewOptions(View.LAYERS, params="bias")
    history = absorbed(
        look, extremes([0], ["a.bias", "a.weight"]), extremes([1], ["c.weight"]), params=["b.bias", "c.weight"]
    )
    found = layers_in(history)
    assert (found.params, history.last_step) == (["b.bias", "a.bias"], 1)
    assert same(found.magnitudes[:, 0], [math.nan, 2.0])


@pytest.mark.parametrize(
    "look",
    [ViewOptions(), ViewOptions(View.LAYERS), ViewOptions(View.PARAM, param="weight"), ViewOptions(rank="spread")],
    ids=str,
)
def test_a_view_has_what_it_shows_and_nothing_else(look: ViewOptions) -> None:
    """Only the tables that a view shows are read, and of what it does not show there is nothing."""
    history = History(look, ["weight"])
    wanted = {
        View.OVERVIEW: ("extremes", "metrics", "events"),
        View.LAYERS: ("extremes",),
        View.PARAM: ("extremes", "histograms"),
    }
    assert history.tables == wanted[look.view]
    assert (history.layers(), history.extremes(), history.curves(), history.histograms()) == (None, None, [], {})
    history.absorb("extremes", lazy(extremes([0])))
    assert (history.layers() is None) == (look.view is not View.LAYERS)
    assert (history.extremes() is None) == (look.view is View.LAYERS)


def test_the_spread_over_many_ranks_is_bounded() -> None:
    """Each rank has at most as many bins as a curve has."""
    history = History(ViewOptions(rank="spread"), capacity=16)
    for rank in range(8):
        history.absorb("extremes", lazy(extremes(range(1000), rank=rank)))
    found = found_in(history)
    assert len(found.step) <= 16
    bins = history._bins["extremes"]
    assert bins.frame is not None  # type: ignore[union-attr]
    assert len(bins.frame) <= 8 * 16  # type: ignore[union-attr]


def named_rows(names: int, steps: range, values: npt.NDArray[np.float64]) -> pl.LazyFrame:
    """Rows of so many metrics, each logged at each step: values of shape (steps, names)."""
    step = np.repeat(np.array(steps), names)
    numbers = pl.Series([f"m{number:04}" for number in range(names)])
    name = numbers[np.tile(np.arange(names), len(steps))].cast(pl.Categorical)
    return pl.LazyFrame({"step": step, "name": name, "time": times(step), "value": values.reshape(-1)})


@pytest.mark.parametrize("pieces", [1, 4])
def test_thousands_of_metrics_together_are_bounded(pieces: int) -> None:
    """Their bins are wider then; of each the extremes, the first NaN or infinity and the newest number stay."""
    names, steps = 2000, 400
    values = np.random.default_rng(0).normal(size=(steps, names))
    values[range(7, 7 + names // 10), range(0, names, 10)] = math.nan
    values[:, 1] = math.inf
    history = History()
    for begin in range(0, steps, steps // pieces):
        rows = range(begin, begin + steps // pieces)
        history.absorb("metrics", named_rows(names, rows, values[rows.start : rows.stop]))
    curves = history.curves()
    assert sum(len(curve.step) for curve in curves) <= 400_000
    assert len(curves[0].step) == 200
    known = np.where(np.isfinite(values), values, math.nan)
    for number, curve in enumerate(curves):
        assert curve.newest == values[-1, number]
        assert curve.nonfinite[:1] == np.flatnonzero(~np.isfinite(values[:, number]))[:1].tolist()
        if number != 1:
            assert (np.nanmin(curve.low), np.nanmax(curve.high)) == (
                np.nanmin(known[:, number]),
                np.nanmax(known[:, number]),
            )


def test_metrics_that_are_logged_once_cost_others_nothing() -> None:
    """A name costs no more than its rows: however many there are, a loss keeps its steps."""
    history = History()
    history.absorb("metrics", named_rows(1, range(2000), np.zeros((2000, 1))))
    for step in range(0, 2000, 500):
        history.absorb("metrics", named_rows(9000, range(step, step + 1), np.ones((1, 9000))))
    assert len(history.curves()[0].step) == 2000
