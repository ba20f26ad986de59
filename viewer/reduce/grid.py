"""The largest magnitudes of all parameters over the run: a table of parameters × bins of steps, bounded in memory.

Rows arrive by the million for models of ten thousand parameters, so the table is an array, and not a frame.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from viewer.snapshot import Heatmap


class Grid:
    """Takes in rows; the resolution of steps is halved whenever the columns would be too many.

    Args:
        columns: Those columns of the rows whose magnitude is meant: of several, the largest.
        params: The parameters in model order; others that come later stand behind them.
        capacity: How many columns there may be.
        width: How many steps a column covers at first: where rows are so far apart, none between them stays empty.
        holds: Whether a column without any row shows the one before it: where nobody knows how far rows are apart.
    """

    def __init__(
        self, columns: Sequence[str], params: Sequence[str], capacity: int, width: int = 1, holds: bool = False
    ) -> None:
        self._columns = columns
        self._capacity = capacity
        self._row_of = {name: row for row, name in enumerate(params)}
        self._width = width
        self._holds = holds
        self._first_bin = 0
        # The first axis is the bins: whole ones are merged.
        self._magnitudes = np.full((0, len(params)), np.nan)
        self._nonfinite = np.zeros((0, len(params)), dtype=np.bool_)
        self._steps = np.zeros(0, dtype=np.int64)
        self._seconds = np.zeros(0)

    def absorb(self, rows: pl.LazyFrame) -> None:
        """Take in rows, in any order of steps; where this raises, nothing has changed."""
        largest = pl.max_horizontal(pl.col(column).abs() for column in self._columns)
        finite = pl.all_horizontal(pl.col(column).is_finite() for column in self._columns)
        first, last = rows.select(first=pl.col("step").min(), last=pl.col("step").max()).collect().row(0)
        if first is None:
            return
        if len(self._steps):
            first, last = min(first, self._first_bin * self._width), max(last, int(self._steps.max()))
        width = self._width
        while last // width - first // width >= self._capacity:
            width *= 2
        found = (
            rows.select(
                pl.col("step").floordiv(width).alias("bin"),
                pl.col("param").cast(pl.Categorical),
                pl.col("step"),
                pl.col("time"),
                pl.when(finite).then(largest).alias("magnitude"),
                finite.not_().alias("nonfinite"),
            )
            .group_by("bin", "param")
            .agg(pl.col("step", "time", "magnitude").max(), pl.col("nonfinite").any())
            .collect(engine="streaming")
        )
        names = found["param"].unique()
        for name in names.cast(pl.String):
            self._row_of.setdefault(name, len(self._row_of))
        self._make_room(width, first // width, last // width - first // width + 1)
        row_of_code = np.zeros(int(names.to_physical().max()) + 1, dtype=np.int64)  # type: ignore[arg-type]
        row_of_code[names.to_physical().to_numpy()] = [self._row_of[name] for name in names.cast(pl.String)]
        cells = (found["bin"].to_numpy() - self._first_bin, row_of_code[found["param"].to_physical().to_numpy()])
        np.fmax.at(self._magnitudes, cells, found["magnitude"].cast(pl.Float64).fill_null(np.nan).to_numpy())
        np.logical_or.at(self._nonfinite, cells, found["nonfinite"].fill_null(value=False).to_numpy())
        np.maximum.at(self._steps, cells[0], found["step"].to_numpy())
        np.maximum.at(self._seconds, cells[0], found["time"].dt.epoch("us").to_numpy() / 1e6)

    def _make_room(self, width: int, first_bin: int, bins: int) -> None:
        """Lay the table out anew, with these bins and all the parameters."""
        shape = bins, len(self._row_of)
        known = slice(self._magnitudes.shape[1])
        places = (self._first_bin + np.arange(len(self._steps))) * self._width // width - first_bin
        old = self._magnitudes, self._nonfinite, self._steps, self._seconds
        self._magnitudes, self._nonfinite = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
        self._steps, self._seconds = np.full(bins, -1), np.full(bins, -np.inf)
        np.fmax.at(self._magnitudes[:, known], places, old[0])
        np.logical_or.at(self._nonfinite[:, known], places, old[1])
        np.maximum.at(self._steps, places, old[2])
        np.maximum.at(self._seconds, places, old[3])
        self._width, self._first_bin = width, first_bin

    def ends(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Of each bin that has rows, the last step and its time in seconds since 1970."""
        there = self._steps >= 0
        return self._steps[there], self._seconds[there]

    def layers(self) -> Heatmap | None:
        """The table; None before the first row. It never changes: rows that come later go into arrays of their own."""
        if not len(self._steps):
            return None
        first, magnitudes, nonfinite = self._first_bin * self._width, self._magnitudes, self._nonfinite
        if self._holds:
            bins = np.arange(len(self._steps))
            shown = np.maximum.accumulate(np.where(self._steps >= 0, bins, 0))
            magnitudes, nonfinite = magnitudes[shown], nonfinite[shown]
        return Heatmap(list(self._row_of), first, self._width, magnitudes.T, nonfinite.T)
