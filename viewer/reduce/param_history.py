"""Every parameter over the run, for the rules: a table of bins of steps × parameters, bounded in memory."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import polars as pl

from tracer.log.schema import RATIO, STATISTICS, slices_among
from viewer.reduce.cells import Cells, Floats, Integers

_CELLS, _COLUMNS = 600_000, 512
_NEVER = np.iinfo(np.int64).max
_TINY, _HUGE = np.finfo(np.float64).tiny, np.finfo(np.float64).max


# A table of the cells' numbers, and how rows, and later bins, are merged in it.
Sum = Annotated[Floats, np.add]
Smallest = Annotated[Floats, np.minimum]
Largest = Annotated[Floats, np.maximum]


@dataclass(frozen=True)
class ParamTables:
    """Every parameter over the run, as known at one moment. Immutable.

    A row's magnitude is that of its gradient's largest element. Its update is how far the value's extremes have moved
    since the row before, as a share of their size, for each step between.

    Attributes:
        params: The parameters, and slices of them, in model order: the second axis of all tables.
        begins: The first step of each bin that has rows: the first axis of all tables.
        ends: The last step with a row in each.
        first_bad_value: Of each parameter the first step whose value was not finite; -1 for none.
        first_bad_grad: Likewise, of its gradient.
        first_step: The step of each parameter's first row; -1 before.
        first_low: The smallest value in that step; NaN where it was not finite.
        first_high: Likewise, the largest.
        ranks: How many ranks have written rows.
        applied: The parameters of which an optimizer applied a gradient, as far as that was recorded.
        smallest_grads: The smallest magnitude of each gradient that was not 0, where it was recorded.
        rows: How many rows each cell has: of several ranks, each has its own.
        grads: In how many of them there was a gradient.
        zeros: In how many of them it was zero throughout.
        bad_values: In how many rows the value was not finite.
        bad_grads: Likewise, the gradient.
        low: The smallest finite value.
        high: The largest one.
        grad_low: The smallest finite magnitude, 0 where a gradient had only zeros.
        grad_high: The largest finite magnitude.
        grad_logs: The sum of the logarithms of magnitudes that are finite and not 0.
        grad_logged: How many these were.
        followed: How many rows could be compared with the one before, of the same rank.
        moved: In how many of these the value's extremes had changed.
        turned: In how many of these both extremes went back, against the row before.
        update_logs: The sum of the logarithms of the updates of rows that moved.
        update_logged: How many these were.
        ratio_logs: The sum of the logarithms of the measured ratios of updates to values that are finite and not 0.
        ratio_logged: How many these were.

    The tables are float64, NaN where there is nothing to say.
    """

    params: tuple[str, ...]
    begins: Integers
    ends: Integers
    first_bad_value: Integers
    first_bad_grad: Integers
    first_step: Integers
    first_low: Floats
    first_high: Floats
    ranks: int
    applied: frozenset[str]
    smallest_grads: Mapping[str, float]
    rows: Sum
    grads: Sum
    zeros: Sum
    bad_values: Sum
    bad_grads: Sum
    low: Smallest
    high: Largest
    grad_low: Smallest
    grad_high: Largest
    grad_logs: Sum
    grad_logged: Sum
    followed: Sum
    moved: Sum
    turned: Sum
    update_logs: Sum
    update_logged: Sum
    ratio_logs: Sum
    ratio_logged: Sum

    @cached_property
    def wholes(self) -> Integers:
        """The number of each slice's parameter; of a parameter its own."""
        numbers = {name: number for number, name in enumerate(self.params)}
        slices = slices_among(self.params)
        return np.array([numbers[slices.get(name, name)] for name in self.params], np.int64)

    @cached_property
    def whole(self) -> npt.NDArray[np.bool_]:
        """Mask of what is no slice."""
        whole: npt.NDArray[np.bool_] = self.wholes == np.arange(len(self.params))
        return whole

    def only(self, mask: npt.NDArray[np.bool_]) -> "ParamTables":
        """The tables of those parameters alone that a mask selects."""
        names = tuple(np.array(self.params, object)[mask].tolist())
        columns = (*_MERGES, "first_bad_value", "first_bad_grad", "first_step", "first_low", "first_high")
        return replace(self, params=names, **{name: getattr(self, name)[..., mask] for name in columns})

    @cached_property
    def size(self) -> Floats:
        """The value's largest finite magnitude."""
        size: Floats = np.maximum(-self.low, self.high)
        return size

    @cached_property
    def grad_mean(self) -> Floats:
        """The geometric mean of the magnitudes that are not 0."""
        return _geometric_mean(self.grad_logs, self.grad_logged)

    @cached_property
    def update(self) -> Floats:
        """The geometric mean of the updates of rows that moved."""
        return _geometric_mean(self.update_logs, self.update_logged)

    @cached_property
    def ratio(self) -> Floats:
        """The geometric mean of the measured ratios of updates that changed something."""
        return _geometric_mean(self.ratio_logs, self.ratio_logged)


_MERGES: Mapping[str, np.ufunc] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(ParamTables, include_extras=True).items()
    if get_origin(hint) is Annotated
}


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
        ratio: Of the update to the value: NaN where none was measured; None where the log has none.
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
    ratio: Floats | None
    groups: Integers


class ParamHistory:
    """Takes in rows of ``extremes``: those of each rank in the order of steps.

    A row that arrives after a later step of its rank is not compared with the row before it; all else counts.

    Args:
        params: The parameters in model order; others that come later stand behind them.
        columns: How many bins there may be.
        width: How many steps a bin covers at first.

    Attributes:
        read_rows: How many rows are read into memory at once.
        piece_rows: How many of them are reduced at once: they fit into a processor's cache.
    """

    read_rows, piece_rows = 500_000, 20_000

    def __init__(self, params: Sequence[str], columns: int | None = None, width: int = 1) -> None:
        capacity = columns or max(16, min(_COLUMNS, _CELLS // max(1, len(params))))
        self._cells = Cells(_MERGES, params, capacity, width)
        # Of each parameter; the first axis is the value and the gradient, and the smallest and the largest element.
        self._first_bad = np.full((2, 0), _NEVER)
        self._first_step = np.full(0, _NEVER)
        self._first = np.full((2, 0), np.nan)
        self._applied: frozenset[str] = frozenset()
        self._smallest_grads: dict[str, float] = {}
        # Of each rank and parameter the newest row, and the change that led to it: NaN before the first.
        self._place_of_rank: dict[int, int] = {}
        self._newest_step = np.full((0, 0), -1)
        self._newest_value = np.full((2, 0, 0), np.nan)
        self._newest_change = np.full((2, 0, 0), np.nan)

    def absorb(self, rows: pl.LazyFrame, also: Callable[[pl.DataFrame], None] | None = None) -> None:
        """Take in rows.

        Args:
            rows: The rows.
            also: Takes each piece of them that was read: to read a large part twice costs more than to judge it.
        """
        names = rows.collect_schema().names()
        ratio = [RATIO] if RATIO in names else []
        wanted = rows.select("step", "rank", pl.col("param").cast(pl.Categorical), *STATISTICS, *ratio)
        if "applied_min" in names:
            applied = rows.filter(pl.col("applied_min").is_not_null()).select(pl.col("param").unique().cast(pl.String))
            self._applied |= set(applied.collect()["param"])
        if "grad_smallest" in rows.collect_schema():
            smallest = rows.filter(pl.col("grad_smallest") > 0).group_by("param").agg(pl.col("grad_smallest").min())
            for param, number in smallest.with_columns(pl.col("param").cast(pl.String)).collect().iter_rows():
                self._smallest_grads[param] = min(number, self._smallest_grads.get(param, number))
        for offset in itertools.count(0, self.read_rows):
            frame = wanted.slice(offset, self.read_rows).collect()
            if also is not None:
                also(frame)
            columns = self._columns(frame)
            with np.errstate(over="ignore", invalid="ignore"):
                for begin in range(0, frame.height, self.piece_rows):
                    self._absorb([column[begin : begin + self.piece_rows] for column in columns])
            if frame.height < self.read_rows:
                break

    def _columns(self, frame: pl.DataFrame) -> list[npt.NDArray[Any]]:
        """Give rows as columns: the parameter's number, rank, step, has a value, has a gradient, the statistics."""
        numbers = self._cells.numbers_of(frame["param"])
        has = [_present(frame[name]) for name in ("value_min", "grad_min")]
        statistics = [_numbers(column) for column in frame.get_columns()[3:]]
        return [numbers, frame["rank"].to_numpy(), frame["step"].to_numpy(), *has, *statistics]

    def _absorb(self, columns: Sequence[npt.NDArray[Any]]) -> None:
        rows = _sorted(*columns)
        for rank in np.unique(rows.rank).tolist():
            self._place_of_rank.setdefault(rank, len(self._place_of_rank))
        self._make_room(len(self._place_of_rank), len(self._cells.params))
        self._cells.absorb(rows.step, rows.param, self._counted(rows) | self._compared(rows) | _measured(rows))
        self._note_firsts(rows)

    def _make_room(self, ranks: int, params: int) -> None:
        """Widen the arrays where there are more parameters, or more ranks, than they have room for."""
        if self._newest_step.shape == (ranks, params):
            return
        self._first_bad = _widened(self._first_bad, (2, params), _NEVER)
        self._first_step = _widened(self._first_step, (params,), _NEVER)
        self._first = _widened(self._first, (2, params), np.nan)
        self._newest_step = _widened(self._newest_step, (ranks, params), -1)
        self._newest_value = _widened(self._newest_value, (2, ranks, params), np.nan)
        self._newest_change = _widened(self._newest_change, (2, ranks, params), np.nan)

    def _counted(self, rows: _Rows) -> dict[str, npt.NDArray[Any]]:
        """Give the columns that need each row alone."""
        magnitude = rows.magnitude
        some = magnitude > 0
        return {
            "rows": np.ones(len(rows.step)),
            "grads": rows.has_grad,
            "zeros": magnitude == 0,
            "bad_values": rows.bad_value,
            "bad_grads": rows.bad_grad,
            "low": np.where(np.isnan(rows.value[0]), np.inf, rows.value[0]),
            "high": np.where(np.isnan(rows.value[1]), -np.inf, rows.value[1]),
            "grad_low": np.where(np.isnan(magnitude), np.inf, magnitude),
            "grad_high": np.where(np.isnan(magnitude), -np.inf, magnitude),
            "grad_logs": np.log(magnitude, where=some, out=np.zeros(len(some))),
            "grad_logged": some,
        }

    def _compared(self, rows: _Rows) -> dict[str, npt.NDArray[Any]]:
        """Give the columns that compare each row with the one before of its parameter and rank."""
        ranks = [self._place_of_rank[rank] for rank in rows.rank[rows.groups].tolist()]
        places = np.array(ranks), rows.param[rows.groups]
        step, value = np.roll(rows.step, 1), np.roll(rows.value, 1, axis=1)
        step[rows.groups], value[:, rows.groups] = self._newest_step[places], self._newest_value[:, *places]
        apart = rows.step - step
        change = rows.value - value
        change[:, apart <= 0] = np.nan
        earlier = np.roll(change, 1, axis=1)
        earlier[:, rows.groups] = self._newest_change[:, *places]
        lasts = np.append(rows.groups[1:], len(rows.step)) - 1
        later = rows.step[lasts] > self._newest_step[places]
        lasts, newer = lasts[later], tuple(axis[later] for axis in places)
        self._newest_step[newer] = rows.step[lasts]
        self._newest_value[:, *newer], self._newest_change[:, *newer] = rows.value[:, lasts], change[:, lasts]
        size = np.maximum(np.abs(value[0]), np.abs(value[1]))
        distance = np.maximum(np.abs(change[0]), np.abs(change[1]))
        moved = (distance > 0) & (size > 0)
        share = np.divide(distance, size, where=moved, out=np.ones(len(moved)))
        # A change between subnormal and huge numbers overflows even as a share.
        share = share.clip(_TINY, _HUGE) / np.where(moved, apart, 1)
        return {
            "followed": ~np.isnan(distance),
            "moved": distance > 0,
            "turned": (change[0] * earlier[0] < 0) & (change[1] * earlier[1] < 0),
            "update_logs": np.log(share),
            "update_logged": moved,
        }

    def _note_firsts(self, rows: _Rows) -> None:
        """Keep each parameter's first step, the extremes of all ranks there, and its first bad steps."""
        for bad, first in zip((rows.bad_value, rows.bad_grad), self._first_bad, strict=True):
            np.minimum.at(first, rows.param[bad], rows.step[bad])
        params, steps = rows.param[rows.groups], rows.step[rows.groups]
        before = self._first_step.copy()
        np.minimum.at(self._first_step, params, steps)
        self._first[:, self._first_step < before] = np.nan
        first_rows = steps == self._first_step[params]
        value = rows.value[:, rows.groups[first_rows]]
        np.fmin.at(self._first[0], params[first_rows], value[0])
        np.fmax.at(self._first[1], params[first_rows], value[1])

    def tables(self) -> ParamTables:
        """Give every parameter as known now."""
        begins, ends, cells = self._cells.filled()
        first_low, first_high = self._first.copy()
        return ParamTables(
            params=self._cells.params,
            begins=begins,
            ends=ends,
            first_bad_value=_known(self._first_bad[0]),
            first_bad_grad=_known(self._first_bad[1]),
            first_step=_known(self._first_step),
            first_low=first_low,
            first_high=first_high,
            ranks=len(self._place_of_rank),
            applied=self._applied,
            smallest_grads=dict(self._smallest_grads),
            **dict[str, Any](cells),
        )


def _measured(rows: _Rows) -> dict[str, npt.NDArray[Any]]:
    """Give the columns of measured ratios, if there are any."""
    if rows.ratio is None:
        return {}
    some = (rows.ratio > 0) & np.isfinite(rows.ratio)
    return {"ratio_logs": np.log(rows.ratio, where=some, out=np.zeros(len(some))), "ratio_logged": some}


def _known(steps: Integers) -> Integers:
    return np.where(steps == _NEVER, -1, steps)


def _widened(old: npt.NDArray[Any], shape: tuple[int, ...], nothing: float) -> npt.NDArray[Any]:
    """Give the same array with more room at the end of each axis."""
    more = [(0, size - known) for size, known in zip(shape, old.shape, strict=True)]
    return np.pad(old, more, constant_values=nothing)


def _sorted(
    params: Integers,
    rank: Integers,
    step: Integers,
    has_value: npt.NDArray[np.bool_],
    has_grad: npt.NDArray[np.bool_],
    *statistics: Floats,
) -> _Rows:
    ranks = np.unique(rank)
    key = params if len(ranks) == 1 else params * len(ranks) + np.searchsorted(ranks, rank)
    # numpy sorts integers of two bytes by their digits, which is fastest.
    order = np.argsort(key.astype(np.min_scalar_type(int(key.max()))), kind="stable")
    groups = np.flatnonzero(np.diff(key[order], prepend=-1))
    back = np.diff(step[order]) < 0
    back[groups[1:] - 1] = False
    if back.any():
        order = np.lexsort((step, key))
    has_value, has_grad = has_value[order], has_grad[order]
    low, high, grad_low, grad_high, *ratio = (numbers[order] for numbers in statistics)
    value = np.stack([low, high])
    no_value = ~np.isfinite(low + high)
    # The sum of two large finite numbers may overflow: look at these again.
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
        ratio[0] if ratio else None,
        groups,
    )


def _numbers(column: pl.Series) -> Floats:
    numbers: Floats = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return numbers


def _present(column: pl.Series) -> npt.NDArray[np.bool_]:
    return column.is_not_null().to_numpy() if column.null_count() else np.ones(len(column), np.bool_)


def _geometric_mean(logs: Floats, count: Floats) -> Floats:
    mean: Floats = np.exp(np.divide(logs, count, where=count > 0, out=np.full(logs.shape, np.nan)))
    return mean
