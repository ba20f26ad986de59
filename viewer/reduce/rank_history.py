"""Each rank over the run: how large its gradients are, what it logs, and when it first was not finite."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from viewer.reduce.cells import Cells, Floats, Integers

_BINS = 256
# Of so many metrics each rank's numbers are kept.
_METRICS = 16


@dataclass(frozen=True)
class Spread:
    """A number of each rank over the run, as known at one moment. Immutable.

    Attributes:
        begins: The first step of each bin that has rows: the first axis of the tables.
        ends: The last step with a row in each.
        mean: Each rank's mean in a bin, NaN without any: of shape (bins, ranks).
        count: How many numbers these are.
    """

    begins: Integers
    ends: Integers
    mean: Floats
    count: Floats


@dataclass(frozen=True)
class RankTables:
    """The ranks over the run.

    Attributes:
        ranks: Their numbers: the second axis of all tables.
        first_bad: The first step in which a value or gradient of each was not finite; -1 for none.
        gradients: The logarithm of the largest magnitude of any gradient in a step.
        metrics: Metrics that more than one rank logs, by name.
    """

    ranks: tuple[int, ...]
    first_bad: Integers
    gradients: Spread
    metrics: Mapping[str, Spread]


class RankHistory:
    """Takes in rows of ``extremes`` and ``metrics``, of all ranks."""

    def __init__(self) -> None:
        self._gradients = _Means()
        self._metrics: dict[str, _Means] = {}
        self._first_bad: dict[int, int] = {}

    def absorb_extremes(self, rows: pl.DataFrame) -> None:
        """Take in rows of ``extremes``; a step of which two calls each give a half counts as two."""
        ends = [pl.col(name) for name in ("value_min", "value_max", "grad_min", "grad_max")]
        magnitude = pl.max_horizontal(ends[2].abs(), ends[3].abs())
        frame = (
            rows.lazy()
            .select(
                "step",
                "rank",
                number=pl.when(magnitude.is_finite() & (magnitude > 0)).then(magnitude.log()),
                bad=pl.any_horizontal(end.is_finite().not_() for end in ends),
            )
            .group_by("step", "rank")
            .agg(pl.col("number").max(), pl.col("bad").any())
            .collect()
        )
        for rank, step in frame.filter("bad").group_by("rank").agg(pl.col("step").min()).iter_rows():
            self._first_bad[rank] = min(step, self._first_bad.get(rank, step))
        self._gradients.absorb(frame)

    def absorb_metrics(self, rows: pl.LazyFrame) -> None:
        """Take in rows of ``metrics``."""
        frame = rows.select("step", "rank", pl.col("name").cast(pl.String), number="value").collect()
        for (name,), of_name in frame.group_by("name", maintain_order=True):
            if name in self._metrics or len(self._metrics) < _METRICS:
                self._metrics.setdefault(str(name), _Means()).absorb(of_name)

    def tables(self) -> RankTables | None:
        """The ranks as known now; None while there is one, or none."""
        ranks = self._gradients.ranks
        if len(ranks) < 2:
            return None
        first_bad = np.array([self._first_bad.get(rank, -1) for rank in ranks], np.int64)
        metrics = {name: means.spread(ranks) for name, means in self._metrics.items() if len(means.ranks) > 1}
        return RankTables(ranks, first_bad, self._gradients.spread(ranks), metrics)


class _Means:
    """The mean of each rank's finite numbers in bins of steps."""

    def __init__(self) -> None:
        self._cells = Cells({"total": np.add, "count": np.add}, (), _BINS)

    def absorb(self, frame: pl.DataFrame) -> None:
        """Take in the columns ``step``, ``rank`` and ``number``; what is not finite is left out."""
        known = frame.filter(pl.col("number").is_finite()).sort("rank", "step")
        if known.is_empty():
            return
        number = self._cells.numbers_of(known["rank"].cast(pl.String).cast(pl.Categorical))
        numbers = known["number"].to_numpy()
        self._cells.absorb(known["step"].to_numpy(), number, {"total": numbers, "count": np.ones(len(numbers))})

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that have numbers, in order."""
        return tuple(sorted(map(int, self._cells.params)))

    def spread(self, ranks: tuple[int, ...]) -> Spread:
        """The means of these ranks."""
        begins, ends, cells = self._cells.filled()
        places = [self._cells.params.index(str(rank)) if str(rank) in self._cells.params else -1 for rank in ranks]
        total, count = (np.where(np.array(places) >= 0, cells[name][:, places], 0.0) for name in ("total", "count"))
        mean = np.divide(total, count, where=count > 0, out=np.full(total.shape, np.nan))
        return Spread(begins, ends, mean, count)
