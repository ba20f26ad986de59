"""A table of bins of steps × parameters, with any columns: heat maps and rules keep millions of rows in it.

Its memory is bounded: the resolution of steps is halved whenever there would be too many bins. Counts, sums, smallest
and largest numbers lose nothing when cells are merged. It is an array and not a frame, since a model may have ten
thousand parameters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# The content of a cell before its first row.
_EMPTY: Mapping[np.ufunc, float] = {np.add: 0.0, np.minimum: np.inf, np.maximum: -np.inf}


class Cells:
    """Takes in rows, and reduces those of one bin and parameter by the column's ufunc.

    Args:
        columns: The ufunc of each column: ``np.add``, ``np.minimum`` or ``np.maximum``.
        params: The parameters in model order; others that come later stand behind them.
        capacity: How many bins there may be.
        width: How many steps a bin covers at first.

    Attributes:
        width: How many steps a bin covers now.
    """

    def __init__(self, columns: Mapping[str, np.ufunc], params: Sequence[str], capacity: int, width: int = 1) -> None:
        self.width = width
        self._merges = columns
        self._capacity = capacity
        self._number_of = {name: number for number, name in enumerate(params)}
        self._first_bin = 0
        # Of each bin the last step; -1 where it has no row.
        self._ends: Integers = np.zeros(0, np.int64)
        self._columns = {name: np.zeros((0, len(params))) for name in columns}

    @property
    def params(self) -> tuple[str, ...]:
        """The parameters: the second axis of the table."""
        return tuple(self._number_of)

    def know(self, params: Iterable[str]) -> None:
        """Give further parameters their places, in this order."""
        for name in params:
            self._number_of.setdefault(name, len(self._number_of))

    def numbers_of(self, params: pl.Series) -> Integers:
        """Number each row's parameter.

        Args:
            params: The rows' parameters, as categories.
        """
        names = params.unique()
        self.know(names.cast(pl.String))
        codes = names.to_physical().to_numpy()
        number_of_code = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
        number_of_code[codes] = [self._number_of[name] for name in names.cast(pl.String)]
        numbers: Integers = number_of_code[params.to_physical().to_numpy()]
        return numbers

    def absorb(self, step: Integers, param: Integers, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take in rows; it is many times faster where rows of one cell stand together.

        Args:
            step: Of each row.
            param: Each row's parameter, as ``numbers_of`` numbers it.
            columns: Each row's numbers.
        """
        self.make_room(int(step.min()), int(step.max()))
        bins = step // self.width - self._first_bin
        np.maximum.at(self._ends, bins, step)
        cell = bins * len(self._number_of) + param
        begins = np.flatnonzero(np.diff(cell, prepend=-1))
        for name, numbers in columns.items():
            merge = self._merges[name]
            reduced = merge.reduceat(numbers, begins, dtype=np.float64)
            merge.at(self._columns[name].reshape(-1), cell[begins], reduced)

    def make_room(self, first: int, last: int) -> None:
        """Make a larger table, or wider bins, where these steps or a parameter have no place in this table."""
        if len(self._ends):
            first, last = min(first, self._first_bin * self.width), max(last, int(self._ends.max()))
        width = self.width
        while last // width - first // width >= self._capacity:
            width *= 2
        first_bin, bins = first // width, last // width - first // width + 1
        shape = len(self._ends), next(iter(self._columns.values())).shape[1]
        count = len(self._number_of)
        if (width, first_bin, shape[1]) == (self.width, self._first_bin, count) and bins <= shape[0]:
            return
        # With room for what comes next: a run that is followed needs no new table at every step.
        bins = min(self._capacity, bins + bins // 4 + 1)
        used = np.flatnonzero(self._ends >= 0)
        places = (self._first_bin + used) * self.width // width - first_bin
        for name, merge in self._merges.items():
            column = np.full((bins, count), _EMPTY[merge])
            merge.at(column[:, : shape[1]], places, self._columns[name][used])
            self._columns[name] = column
        ends = np.full(bins, -1)
        np.maximum.at(ends, places, self._ends[used])
        self.width, self._first_bin, self._ends = width, first_bin, ends

    def filled(self) -> tuple[Integers, Integers, dict[str, Floats]]:
        """Give of each bin that has rows its first step, its last step with a row, and copies of its cells by column.

        Cells are of shape (bins, parameters). The smallest and the largest of nothing are NaN.
        """
        used = np.flatnonzero(self._ends >= 0)
        columns = {name: column[used] for name, column in self._columns.items()}
        for name, merge in self._merges.items():
            if merge is not np.add:
                columns[name][np.isinf(columns[name])] = np.nan
        return (self._first_bin + used) * self.width, self._ends[used], columns
