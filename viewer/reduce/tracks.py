"""Every parameter's course over the run, for the rules: a table of bins of steps × parameters, bounded in memory.

Like the grid it takes in rows as they come, by the million, and halves its resolution as the run grows. A cell
holds counts, sums, smallest and largest numbers, so that merging cells loses nothing that it holds.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tracer.log.schema import STATISTICS

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_CELLS, _COLUMNS = 600_000, 512
# So many rows are held in memory at once, and so many are worked on, which fit into a processor's cache.
_READ_ROWS, _PIECE_ROWS = 500_000, 20_000
_NEVER = np.iinfo(np.int64).max
_TINY, _HUGE = np.finfo(np.float64).tiny, np.finfo(np.float64).max

# What a cell holds of its rows, how it is merged, and what it is before the first row. A row's magnitude is that of its
# gradient's largest element; its update is how far a value's extremes moved since the row before, as a share of their
# size, for each step between.
_FIELDS: Mapping[str, tuple[np.ufunc, float]] = {
    "rows": (np.add, 0.0),
    "grads": (np.add, 0.0),
    "zeros": (np.add, 0.0),
    "bad_values": (np.add, 0.0),
    "bad_grads": (np.add, 0.0),
    "value_low": (np.minimum, np.inf),
    "value_high": (np.maximum, -np.inf),
    "grad_low": (np.minimum, np.inf),
    "grad_high": (np.maximum, -np.inf),
    "grad_logs": (np.add, 0.0),
    "grad_logged": (np.add, 0.0),
    "followed": (np.add, 0.0),
    "moved": (np.add, 0.0),
    "turned": (np.add, 0.0),
    "update_logs": (np.add, 0.0),
    "update_logged": (np.add, 0.0),
}


@dataclass(frozen=True)
class Courses:
    """Every parameter's course over the run, at one moment of it: it never changes.

    Attributes:
        params: The parameters, in model order: the second axis of all tables.
        begins: The first step of each bin that has rows: the first axis of all tables.
        ends: The last step with a row in each.
        rows: How many rows each cell has: of several ranks, each has its own.
        grads: In how many of them there was a gradient.
        zeros: In how many of them it was zero throughout.
        bad_values: In how many rows the value was not finite.
        bad_grads: Likewise, the gradient.
        low: The smallest finite value.
        high: The largest one.
        size: The value's largest finite magnitude.
        grad_high: The gradient's largest finite magnitude.
        grad_low: The smallest of those magnitudes over the rows, 0 where one of them had only zeros.
        grad_mean: Their geometric mean, of those that are not 0.
        followed: How many rows could be compared with the one before, of the same rank.
        moved: In how many of these the value's extremes had changed.
        turned: In how many of these both extremes went back, against the row before.
        update: The geometric mean, over rows that moved, of the change of the extremes in a step against their size.
        first_bad_value: Of each parameter the first step whose value was not finite; -1 for none.
        first_bad_grad: Likewise, of its gradient.
        first_step: The step of each parameter's first row; -1 before.
        first_low: The smallest value in that step; NaN where it was not finite.
        first_high: Likewise, the largest.
        ranks: How many ranks have written rows.

    The tables are float64, NaN where there is nothing to say.
    """

    params: tuple[str, ...]
    begins: Integers
    ends: Integers
    rows: Floats
    grads: Floats
    zeros: Floats
    bad_values: Floats
    bad_grads: Floats
    low: Floats
    high: Floats
    size: Floats
    grad_high: Floats
    grad_low: Floats
    grad_mean: Floats
    followed: Floats
    moved: Floats
    turned: Floats
    update: Floats
    first_bad_value: Integers
    first_bad_grad: Integers
    first_step: Integers
    first_low: Floats
    first_high: Floats
    ranks: int


@dataclass
class _Newest:
    """A rank's newest row of each parameter, and the change that led to it: ``[low, high]``, NaN before the first."""

    step: Integers
    value: Floats
    change: Floats


@dataclass(frozen=True)
class _Rows:
    """Rows sorted by parameter, rank and step: whole columns.

    Attributes:
        param: The parameter's number.
        value: The smallest and the largest element: NaN where either is not finite, or there is none.
        bad_value: Whether either is not finite.
        has_grad: Whether there is a gradient.
        magnitude: Of the gradient: NaN where it is not finite, or there is none.
        bad_grad: Whether the gradient is not finite.
        groups: Where the rows of each parameter and rank begin.
    """

    param: Integers
    rank: Integers
    step: Integers
    value: Floats
    bad_value: npt.NDArray[np.bool_]
    has_grad: npt.NDArray[np.bool_]
    magnitude: Floats
    bad_grad: npt.NDArray[np.bool_]
    groups: Integers


class Tracks:
    """Takes in rows of ``extremes``; each rank's in the order of its steps.

    A row that comes behind a later step of its rank counts in everything but in what compares it with the row before.

    Args:
        params: The parameters in model order; others that come later stand behind them.
        columns: How many bins there may be.
        width: How many steps a bin covers at first.
    """

    def __init__(self, params: Sequence[str], columns: int | None = None, width: int = 1) -> None:
        self._capacity = columns or max(16, min(_COLUMNS, _CELLS // max(1, len(params))))
        self._number_of = {name: number for number, name in enumerate(params)}
        self._width = width
        self._first_bin = 0
        self._ends: Integers = np.zeros(0, np.int64)
        self._cells = {name: np.zeros((0, len(params))) for name in _FIELDS}
        self._first_bad = np.full((2, len(params)), _NEVER)
        self._first_step = np.full(len(params), _NEVER)
        self._first = np.full((2, len(params)), np.nan)
        self._newest: dict[int, _Newest] = {}

    def absorb(self, rows: pl.LazyFrame) -> None:
        """Take in rows."""
        wanted = rows.select("step", "rank", pl.col("param").cast(pl.Categorical), *STATISTICS)
        for offset in itertools.count(0, _READ_ROWS):
            frame = wanted.slice(offset, _READ_ROWS).collect()
            columns = self._columns(frame)
            with np.errstate(over="ignore", invalid="ignore"):
                for begin in range(0, frame.height, _PIECE_ROWS):
                    self._absorb([column[begin : begin + _PIECE_ROWS] for column in columns])
            if frame.height < _READ_ROWS:
                break

    def _columns(self, frame: pl.DataFrame) -> list[npt.NDArray[Any]]:
        """The columns of rows: parameter's number, rank, step, whether there is a value, a gradient, the extremes."""
        there = [_present(frame[name]) for name in ("value_min", "grad_min")]
        extremes = [_numbers(frame[name]) for name in STATISTICS]
        return [self._numbered(frame["param"]), frame["rank"].to_numpy(), frame["step"].to_numpy(), *there, *extremes]

    def _absorb(self, columns: Sequence[npt.NDArray[Any]]) -> None:
        rows = _sorted(*columns)
        self._make_room(int(rows.step.min()), int(rows.step.max()))
        bins = rows.step // self._width - self._first_bin
        np.maximum.at(self._ends, bins, rows.step)
        # Rows of one cell and rank stand together.
        cell = bins * len(self._number_of) + rows.param
        begins = np.flatnonzero(np.diff(cell, prepend=-1) | np.diff(rows.rank, prepend=-1))
        for name, numbers in (self._counted(rows) | self._compared(rows)).items():
            reduce, _ = _FIELDS[name]
            reduce.at(self._cells[name].reshape(-1), cell[begins], reduce.reduceat(numbers, begins, dtype=np.float64))
        for bad, first in zip((rows.bad_value, rows.bad_grad), self._first_bad, strict=True):
            np.minimum.at(first, rows.param[bad], rows.step[bad])
        self._note_first(rows)

    def _numbered(self, params: pl.Series) -> Integers:
        """The number of each row's parameter."""
        names = params.unique()
        for name in names.cast(pl.String):
            self._number_of.setdefault(name, len(self._number_of))
        codes = names.to_physical().to_numpy()
        number_of_code = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
        number_of_code[codes] = [self._number_of[name] for name in names.cast(pl.String)]
        numbers: Integers = number_of_code[params.to_physical().to_numpy()]
        return numbers

    def _counted(self, rows: _Rows) -> dict[str, npt.NDArray[Any]]:
        """What a cell holds of each row alone."""
        magnitude = rows.magnitude
        some = magnitude > 0
        return {
            "rows": np.ones(len(rows.step)),
            "grads": rows.has_grad,
            "zeros": magnitude == 0,
            "bad_values": rows.bad_value,
            "bad_grads": rows.bad_grad,
            "value_low": np.where(np.isnan(rows.value[0]), np.inf, rows.value[0]),
            "value_high": np.where(np.isnan(rows.value[1]), -np.inf, rows.value[1]),
            "grad_low": np.where(np.isnan(magnitude), np.inf, magnitude),
            "grad_high": np.where(np.isnan(magnitude), -np.inf, magnitude),
            "grad_logs": np.log(magnitude, where=some, out=np.zeros(len(some))),
            "grad_logged": some,
        }

    def _compared(self, rows: _Rows) -> dict[str, npt.NDArray[Any]]:
        """What a cell holds of each row and the one before of the same parameter and rank."""
        lasts = np.append(rows.groups[1:], len(rows.step)) - 1
        params, ranks = rows.param[rows.groups], rows.rank[rows.groups]
        before = [self._newest_of(rank) for rank in ranks.tolist()]
        step, value = np.roll(rows.step, 1), np.roll(rows.value, 1, axis=1)
        step[rows.groups] = [newest.step[param] for newest, param in zip(before, params, strict=True)]
        value[:, rows.groups] = np.array(
            [newest.value[:, param] for newest, param in zip(before, params, strict=True)]
        ).T
        apart = rows.step - step
        change = rows.value - value
        change[:, apart <= 0] = np.nan
        earlier = np.roll(change, 1, axis=1)
        earlier[:, rows.groups] = np.array(
            [newest.change[:, param] for newest, param in zip(before, params, strict=True)]
        ).T
        for newest, param, last in zip(before, params, lasts, strict=True):
            if rows.step[last] > newest.step[param]:
                newest.step[param] = rows.step[last]
                newest.value[:, param], newest.change[:, param] = rows.value[:, last], change[:, last]
        size = np.maximum(np.abs(value[0]), np.abs(value[1]))
        distance = np.maximum(np.abs(change[0]), np.abs(change[1]))
        moved = (distance > 0) & (size > 0)
        share = np.divide(distance, size, where=moved, out=np.ones(len(moved)))
        # Between subnormal and huge numbers even a share overflows.
        share = share.clip(_TINY, _HUGE) / np.where(moved, apart, 1)
        return {
            "followed": ~np.isnan(distance),
            "moved": distance > 0,
            "turned": (change[0] * earlier[0] < 0) & (change[1] * earlier[1] < 0),
            "update_logs": np.log(share),
            "update_logged": moved,
        }

    def _newest_of(self, rank: int) -> _Newest:
        found = self._newest.get(rank)
        count = len(self._number_of)
        if found is None:
            found = _Newest(np.full(count, -1), np.full((2, count), np.nan), np.full((2, count), np.nan))
        elif len(found.step) < count:
            more = count - len(found.step)
            found = _Newest(
                np.append(found.step, np.full(more, -1)),
                np.hstack([found.value, np.full((2, more), np.nan)]),
                np.hstack([found.change, np.full((2, more), np.nan)]),
            )
        self._newest[rank] = found
        return found

    def _note_first(self, rows: _Rows) -> None:
        """Keep each parameter's extremes in its first step, of all ranks together."""
        params, steps = rows.param[rows.groups], rows.step[rows.groups]
        before = self._first_step.copy()
        np.minimum.at(self._first_step, params, steps)
        self._first[:, self._first_step < before] = np.nan
        first = steps == self._first_step[params]
        value = rows.value[:, rows.groups[first]]
        np.fmin.at(self._first[0], params[first], value[0])
        np.fmax.at(self._first[1], params[first], value[1])

    def _make_room(self, first: int, last: int) -> None:
        """Lay the tables out anew where these steps, or a parameter, have no place in them."""
        known, params = self._cells["rows"].shape
        if known:
            first, last = min(first, self._first_bin * self._width), max(last, int(self._ends.max()))
        width = self._width
        while last // width - first // width >= self._capacity:
            width *= 2
        first_bin, bins = first // width, last // width - first // width + 1
        count = len(self._number_of)
        if (width, first_bin, params) == (self._width, self._first_bin, count) and bins <= known:
            return
        # Room for what comes next, so that a run that is followed is not laid out at every step.
        bins = min(self._capacity, bins + bins // 4 + 1)
        used = np.flatnonzero(self._ends >= 0)
        places = (self._first_bin + used) * self._width // width - first_bin
        for name, (reduce, nothing) in _FIELDS.items():
            cells = np.full((bins, count), nothing)
            reduce.at(cells[:, :params], places, self._cells[name][used])
            self._cells[name] = cells
        ends = np.full(bins, -1)
        np.maximum.at(ends, places, self._ends[used])
        self._width, self._first_bin, self._ends = width, first_bin, ends
        more = count - params
        self._first_bad = np.hstack([self._first_bad, np.full((2, more), _NEVER)])
        self._first_step = np.append(self._first_step, np.full(more, _NEVER))
        self._first = np.hstack([self._first, np.full((2, more), np.nan)])

    def courses(self) -> Courses:
        """How every parameter has been until now."""
        there = np.flatnonzero(self._ends >= 0)
        cells = {name: numbers[there] for name, numbers in self._cells.items()}
        begins = (self._first_bin + there) * self._width
        return Courses(
            params=tuple(self._number_of),
            begins=begins,
            ends=self._ends[there],
            rows=cells["rows"],
            grads=cells["grads"],
            zeros=cells["zeros"],
            bad_values=cells["bad_values"],
            bad_grads=cells["bad_grads"],
            low=_known(cells["value_low"]),
            high=_known(cells["value_high"]),
            size=_known(np.maximum(-cells["value_low"], cells["value_high"])),
            grad_low=_known(cells["grad_low"]),
            grad_high=_known(cells["grad_high"]),
            grad_mean=_geometric_mean(cells["grad_logs"], cells["grad_logged"]),
            followed=cells["followed"],
            moved=cells["moved"],
            turned=cells["turned"],
            update=_geometric_mean(cells["update_logs"], cells["update_logged"]),
            first_bad_value=_there(self._first_bad[0]),
            first_bad_grad=_there(self._first_bad[1]),
            first_step=_there(self._first_step),
            first_low=self._first[0].copy(),
            first_high=self._first[1].copy(),
            ranks=len(self._newest),
        )


def _sorted(
    params: Integers,
    rank: Integers,
    step: Integers,
    has_value: npt.NDArray[np.bool_],
    has_grad: npt.NDArray[np.bool_],
    *extremes: Floats,
) -> _Rows:
    ranks = np.unique(rank)
    key = params if len(ranks) == 1 else params * len(ranks) + np.searchsorted(ranks, rank)
    # Integers of two bytes are sorted by their digits, in no time.
    order = np.argsort(key.astype(np.min_scalar_type(int(key.max()))), kind="stable")
    groups = np.flatnonzero(np.diff(key[order], prepend=-1))
    back = np.diff(step[order]) < 0
    back[groups[1:] - 1] = False
    if back.any():
        order = np.lexsort((step, key))
    has_value, has_grad = has_value[order], has_grad[order]
    low, high, grad_low, grad_high = (numbers[order] for numbers in extremes)
    value = np.stack([low, high])
    no_value = ~np.isfinite(low + high)
    # The sum of two large numbers may overflow, and is no NaN for it.
    no_value[no_value] = ~np.isfinite(value[:, no_value]).all(axis=0)
    value[:, no_value] = np.nan
    magnitude = np.maximum(np.abs(grad_low), np.abs(grad_high))
    magnitude[np.isinf(magnitude)] = np.nan
    return _Rows(
        params[order],
        rank[order].astype(np.int64),
        step[order],
        value,
        has_value & no_value,
        has_grad,
        magnitude,
        has_grad & np.isnan(magnitude),
        groups,
    )


def _numbers(column: pl.Series) -> Floats:
    numbers: Floats = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return numbers


def _present(column: pl.Series) -> npt.NDArray[np.bool_]:
    return column.is_not_null().to_numpy() if column.null_count() else np.ones(len(column), np.bool_)


def _known(numbers: Floats) -> Floats:
    return np.where(np.isinf(numbers), np.nan, numbers)


def _geometric_mean(logs: Floats, count: Floats) -> Floats:
    mean: Floats = np.exp(np.divide(logs, count, where=count > 0, out=np.full(logs.shape, np.nan)))
    return mean


def _there(steps: Integers) -> Integers:
    return np.where(steps == _NEVER, -1, steps)
