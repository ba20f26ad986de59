"""The largest magnitudes of all parameters over the run."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from tracer.log.schema import slices_among
from viewer.reduce.cells import Cells, Floats, Integers
from viewer.snapshot import Heatmap


class Magnitudes:
    """Takes in rows, and makes the heat map of them.

    Args:
        columns: The columns of rows whose magnitude is meant: of several, the largest.
        params: The parameters in model order; others that come later stand behind them.
        capacity: How many bins of steps there may be.
        width: How many steps a bin covers at first: where rows are so far apart, none between them stays empty.
        holds: Whether a bin without rows shows the one before it: where nobody knows how far rows are apart.
    """

    def __init__(
        self, columns: Sequence[str], params: Sequence[str], capacity: int, width: int = 1, holds: bool = False
    ) -> None:
        self._columns = columns
        self._holds = holds
        self._cells = Cells({"magnitude": np.maximum, "nonfinite": np.maximum}, params, capacity, width)
        self._times = Cells({"seconds": np.maximum}, [""], capacity, width)

    def know(self, params: Iterable[str]) -> None:
        """Give further parameters their rows, in this order."""
        self._cells.know(params)

    def absorb(self, rows: pl.LazyFrame) -> None:
        """Take in rows, in any order of steps; if this raises, none has been taken in."""
        largest = pl.max_horizontal(pl.col(column).abs() for column in self._columns)
        finite = pl.all_horizontal(pl.col(column).is_finite() for column in self._columns)
        first, last = rows.select(first=pl.col("step").min(), last=pl.col("step").max()).collect().row(0)
        if first is None:
            return
        # Before rows are reduced to the last step of each bin: the bins depend on the first one, too.
        self._cells.make_room(first, last)
        self._times.make_room(first, last)
        reduced = (
            rows.select(
                pl.col("step").floordiv(self._cells.width).alias("bin"),
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
        step = reduced["step"].to_numpy()
        magnitude = reduced["magnitude"].cast(pl.Float64).fill_null(-np.inf).to_numpy()
        nonfinite = reduced["nonfinite"].fill_null(value=False).to_numpy()
        param = self._cells.numbers_of(reduced["param"])
        self._cells.absorb(step, param, {"magnitude": magnitude, "nonfinite": nonfinite})
        seconds = reduced["time"].dt.epoch("us").to_numpy() / 1e6
        self._times.absorb(step, np.zeros_like(step), {"seconds": seconds})

    def ends(self) -> tuple[Integers, Floats]:
        """Give the last step of each bin that has rows, and its time in seconds since 1970."""
        _, ends, columns = self._times.filled()
        return ends, columns["seconds"][:, 0]

    def heatmap(self) -> Heatmap | None:
        """Give the heat map; None before the first row."""
        begins, _, columns = self._cells.filled()
        if not len(begins):
            return None
        places = (begins - begins[0]) // self._cells.width
        bins = np.arange(places[-1] + 1)
        newest = np.searchsorted(places, bins, side="right") - 1
        magnitudes, nonfinite = columns["magnitude"][newest], columns["nonfinite"][newest] > 0
        if not self._holds:
            empty = places[newest] < bins
            magnitudes[empty], nonfinite[empty] = np.nan, False
        seconds = self.ends()[1][newest].tolist()
        # Slices have few statistics. Where they have none, they would be rows of nothing.
        params = np.array(self._cells.params, object)
        of_slices = np.isin(params, list(slices_among(self._cells.params)))
        nothing = ~((columns["magnitude"] >= 0) | (columns["nonfinite"] > 0)).any(axis=0)
        shown = ~(of_slices & nothing)
        return Heatmap(
            params[shown].tolist(),
            int(begins[0]),
            self._cells.width,
            magnitudes.T[shown],
            nonfinite.T[shown],
            seconds,
        )
