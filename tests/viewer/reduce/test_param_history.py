"""The history of parameters against plain Python: rows may come in any pieces, and nothing is lost."""

import itertools
import math
import sys
import tracemalloc
from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs import extremes
from viewer.reduce.param_history import ParamHistory, ParamTables

PARAMS = ("conv.weight", "fc.bias", "late")
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, 5e-324, 1.7e308, None]
NUMBERS = st.integers(-9, 9).map(float) | st.sampled_from(SPECIAL)
PAIRS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: (None, None) if None in pair else pair)
ROWS = st.lists(
    st.tuples(st.integers(0, 70), st.sampled_from(PARAMS), st.integers(0, 1), PAIRS, PAIRS),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[:3],
)
Row = tuple[int, str, int, tuple[Any, Any], tuple[Any, Any]]


def frame(rows: list[Row]) -> pl.DataFrame:
    """Rows as a follower gives them."""
    tables = []
    for step, param, rank, value, grad in rows:
        columns = dict(zip(("value_min", "value_max", "grad_min", "grad_max"), (*value, *grad), strict=True))
        tables.append(extremes([step], [param], {name: [number] for name, number in columns.items()}, rank))
    return pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables])


def finite(pair: tuple[Any, Any]) -> bool:
    """Whether there are two finite numbers."""
    return None not in pair and all(map(math.isfinite, pair))


def magnitude(pair: tuple[float, float]) -> float:
    """Of two numbers the larger one's size."""
    return max(abs(pair[0]), abs(pair[1]))


def expected(rows: list[Row], capacity: int) -> dict[str, dict[tuple[int, str], float]]:
    """What the cells have to hold, by the bin's first step and the parameter: the oracle."""
    steps = [row[0] for row in rows]
    width = 1
    while max(steps) // width - min(steps) // width >= capacity:
        width *= 2
    cells: dict[str, dict[tuple[int, str], Any]] = defaultdict(lambda: defaultdict(float))
    listed: dict[str, dict[tuple[int, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    before: dict[tuple[str, int], tuple[Row, tuple[float, float]]] = {}
    for row in rows:
        step, param, rank, value, grad = row
        key = step // width * width, param
        cells["rows"][key] += 1
        cells["grads"][key] += grad[0] is not None
        cells["zeros"][key] += grad == (0, 0)
        cells["bad_values"][key] += value[0] is not None and not finite(value)
        cells["bad_grads"][key] += grad[0] is not None and not finite(grad)
        if finite(value):
            listed["low"][key].append(value[0])
            listed["high"][key].append(value[1])
        if finite(grad):
            listed["grad"][key].append(magnitude(grad))
        last, turn = before.get((param, rank), (None, (math.nan, math.nan)))
        change = (math.nan, math.nan)
        if last is not None and finite(value) and finite(last[3]):
            change = value[0] - last[3][0], value[1] - last[3][1]
            cells["followed"][key] += 1
            cells["moved"][key] += change != (0, 0)
            cells["turned"][key] += all(a * b < 0 for a, b in zip(change, turn, strict=True))
            if change != (0, 0) and last[3] != (0, 0):
                share = math.log(min(magnitude(change), sys.float_info.max)) - math.log(magnitude(last[3]))
                share = min(max(share, math.log(sys.float_info.min)), math.log(sys.float_info.max))
                listed["update"][key].append(share - math.log(step - last[0]))
        before[param, rank] = row, change
    for key, numbers in listed["grad"].items():
        cells["grad_low"][key], cells["grad_high"][key] = min(numbers), max(numbers)
        logs = [math.log(number) for number in numbers if number]
        if logs:
            cells["grad_mean"][key] = math.exp(sum(logs) / len(logs))
    for key, numbers in listed["low"].items():
        cells["low"][key], cells["high"][key] = min(numbers), max(listed["high"][key])
    for key, numbers in listed["update"].items():
        cells["update"][key] = math.exp(sum(numbers) / len(numbers))
    return cells


def table(tables: ParamTables, name: str) -> dict[tuple[int, str], float]:
    """What is in a table, by the bin's first step and the parameter."""
    numbers = getattr(tables, name)
    return {
        (int(begin), param): float(numbers[place, number])
        for place, begin in enumerate(tables.begins)
        for number, param in enumerate(tables.params)
    }


COUNTS = ("rows", "grads", "zeros", "bad_values", "bad_grads", "followed", "moved", "turned")
OTHERS = ("low", "high", "grad_low", "grad_high", "grad_mean", "update")


@pytest.mark.slow
@settings(max_examples=100)
@given(st.data(), ROWS, st.integers(1, 30))
def test_in_any_pieces_the_tables_equal_the_oracle(data: st.DataObject, rows: list[Row], capacity: int) -> None:
    """However rows are cut into pieces, and the resolution is halved between them, nothing is miscounted."""
    rows = sorted(rows)
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4))
    # A rank publishes by itself, so that ranks may be behind each other.
    if data.draw(st.booleans()):
        rows = sorted(rows, key=lambda row: (row[2], row[0]))
    history = ParamHistory(PARAMS[:2], capacity)
    for begin, end in itertools.pairwise([0, *sorted(cuts), len(rows)]):
        history.absorb(frame(rows[begin:end]).lazy() if begin < end else frame(rows).clear().lazy())
    tables, oracle = history.tables(), expected(rows, capacity)
    for name in COUNTS:
        assert {key: n for key, n in table(tables, name).items() if n} == {k: n for k, n in oracle[name].items() if n}
    for name in OTHERS:
        found = {key: number for key, number in table(tables, name).items() if not math.isnan(number)}
        assert found == pytest.approx(dict(oracle[name]), rel=1e-9), name
    for pairs, of in (
        ([row[3] for row in rows], tables.first_bad_value),
        ([row[4] for row in rows], tables.first_bad_grad),
    ):
        both = zip(rows, pairs, strict=True)
        bad = [row[:2] for row, pair in both if pair[0] is not None and not finite(pair)]
        assert [min((s for s, p in bad if p == param), default=-1) for param in tables.params] == of.tolist()
    for number, param in enumerate(tables.params):
        own = [row for row in rows if row[1] == param]
        first = min((row[0] for row in own), default=-1)
        assert tables.first_step[number] == first
        sizes = [row[3] for row in own if row[0] == first and finite(row[3])]
        if sizes:
            ends = min(low for low, _ in sizes), max(high for _, high in sizes)
            assert (tables.first_low[number], tables.first_high[number]) == ends
        else:
            assert np.isnan(tables.first_low[number])
    assert tables.ranks == len({row[2] for row in rows})


def test_tables_do_not_change_with_what_comes_later() -> None:
    """What was given out stays as it was: another thread may be looking at it."""
    history = ParamHistory(["weight"])
    history.absorb(pl.DataFrame(pl.from_arrow(extremes(range(5)))).lazy())
    tables = history.tables()
    before = tables.rows.copy(), tables.first_step.copy()
    history.absorb(pl.DataFrame(pl.from_arrow(extremes(range(5, 900)))).lazy())
    assert (tables.rows == before[0]).all()
    assert (tables.first_step == before[1]).all()


def test_memory_is_bounded_whatever_the_length_and_the_number_of_parameters() -> None:
    """A million steps have no more bins than 512, and ten thousand parameters take no more than 100 MB."""
    history = ParamHistory(["weight"])
    for begin in range(0, 1_000_000, 100_000):
        history.absorb(pl.DataFrame(pl.from_arrow(extremes(range(begin, begin + 100_000, 97)))).lazy())
    assert 256 <= history.tables().rows.size <= 512
    names = [f"layer{number}" for number in range(10_000)]
    tracemalloc.start()
    history = ParamHistory(names)
    for step in (0, 10**9):
        history.absorb(pl.DataFrame(pl.from_arrow(extremes([step], names))).lazy())
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken_bytes < 100e6


def test_large_pieces_are_read_some_rows_at_a_time() -> None:
    """What does not fit into a piece is taken in piece by piece, with the same result."""
    rows = pl.DataFrame(pl.from_arrow(extremes(range(50), ["a", "b"]))).lazy()
    whole, pieces = ParamHistory(["a", "b"], 16), ParamHistory(["a", "b"], 16)
    whole.absorb(rows)
    pieces.read_rows, pieces.piece_rows = 33, 7
    pieces.absorb(rows)
    for name in (*COUNTS, *OTHERS):
        np.testing.assert_allclose(getattr(pieces.tables(), name), getattr(whole.tables(), name))


def test_a_row_that_comes_late_is_compared_with_none() -> None:
    """As from a network disk that lists parts in another order: it counts, and later rows follow the latest."""
    history = ParamHistory(["weight"], 64)
    for step, high in ((10, 8.0), (5, 7.0), (11, 10.0)):
        history.absorb(pl.DataFrame(pl.from_arrow(extremes([step], values={"value_max": [high]}))).lazy())
    tables = history.tables()
    assert tables.ends.tolist() == [5, 10, 11]
    assert tables.followed.ravel().tolist() == [0, 0, 1]
    assert tables.update[2, 0] == pytest.approx(0.25)
    assert tables.first_high.tolist() == [7.0]


def test_rows_of_one_part_may_stand_in_any_order() -> None:
    """They are compared in the order of their steps."""
    history = ParamHistory(["weight"], 64)
    rows = extremes([11, 5, 10], values={"value_max": [10.0, 4.0, 8.0]})
    history.absorb(pl.DataFrame(pl.from_arrow(rows)).lazy())
    tables = history.tables()
    assert tables.followed.ravel().tolist() == [0, 1, 1]
    assert tables.update.ravel().tolist() == pytest.approx([math.nan, 1 / 5, 1 / 4], nan_ok=True)


def test_a_rank_that_is_far_behind_finds_its_place() -> None:
    """Steps before all that were seen shift the table, also where it has room for later ones."""
    history = ParamHistory(["weight"], 9)
    for steps in ([10, 16, 23, 35, 44, 59], [0, 28]):
        history.absorb(pl.DataFrame(pl.from_arrow(extremes(steps))).lazy())
    tables = history.tables()
    assert tables.begins.tolist() == [0, 8, 16, 24, 32, 40, 56]
    assert tables.rows.ravel().tolist() == [1, 1, 2, 1, 1, 1, 1]
