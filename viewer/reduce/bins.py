"""Rows reduced to bins of steps: the minimum of minima, the maximum of maxima, the first step that is not finite."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from tracer.log.schema import RATIO

# About two bins for each pixel of a wide figure.
CAPACITY = 2048
# The bins of all keys together are at most so many, of about 100 bytes each, as long as each key has the fewest.
_ALL_BINS, _FEWEST = 400_000, 64


def _finite(column: str) -> pl.Expr:
    # The min and max of polars skip NaN but not infinity: one infinity would hide the finite numbers of its bin.
    return pl.when(pl.col(column).is_finite()).then(pl.col(column))


def _extreme(column: str) -> pl.Expr:
    return pl.col(column).min() if column.endswith("_min") else pl.col(column).max()


def _first_nonfinite(*columns: str) -> pl.Expr:
    return pl.when(pl.any_horizontal(pl.col(column).is_finite().not_() for column in columns)).then(pl.col("step"))


@dataclass(frozen=True)
class Reduction:
    """How rows become bins: each row is prepared, then the rows of a bin are reduced, later whole bins.

    Attributes:
        keys: The columns by which bins are kept apart.
        prepare: The columns of each row.
        reduce: The columns of a bin.
        newest: Columns whose sum over the last step of each key is kept, and of no other step.
    """

    keys: tuple[str, ...]
    prepare: tuple[pl.Expr, ...]
    reduce: tuple[pl.Expr, ...]
    newest: tuple[pl.Expr, ...] = ()


# Each bin keeps its last step and the time of that.
_LAST = (pl.col("step").max(), pl.col("time").max())


def of_extremes(statistics: Iterable[str], keys: tuple[str, ...] = ()) -> Reduction:
    """Reduce ``*_min`` by min and ``*_max`` by max; other statistics get both, as ``_low`` and ``_high``.

    Steps that are not finite are noted of extremes, and of the ratio of updates, which has none beside it.
    """
    ends = [name for name in statistics if name.endswith(("_min", "_max"))]
    others = [name for name in statistics if name not in ends]
    noted = [name for name in statistics if name in ends or name == RATIO]
    kinds = sorted({name.partition("_")[0] for name in noted})
    return Reduction(
        keys,
        prepare=(
            *map(pl.col, ("step", "time", *keys)),
            *(_finite(name).alias(name) for name in ends),
            *(_finite(name).alias(f"{name}_{end}") for name in others for end in ("low", "high")),
            *(_first_nonfinite(*(n for n in noted if n.startswith(of))).alias(f"{of}_nonfinite") for of in kinds),
        ),
        reduce=(
            *_LAST,
            *(_extreme(name) for name in ends),
            *(pl.col(f"{name}_low").min() for name in others),
            *(pl.col(f"{name}_high").max() for name in others),
            *(pl.col(f"{of}_nonfinite").min() for of in kinds),
        ),
    )


# Sums of numbers that are so much smaller cannot overflow, however many there are.
_SMALL = 2.0**-64
_LARGEST = np.finfo(np.float64).max


def mean(total: pl.Expr, small_total: pl.Expr, count: pl.Expr) -> pl.Expr:
    """Divide a sum by its count; where finite numbers add up beyond float64, take the sum of the smaller ones."""
    small_mean = (small_total / count / _SMALL).clip(-_LARGEST, _LARGEST)
    overflowed = total.is_finite().not_() & small_total.is_finite()
    return pl.when(overflowed).then(small_mean).otherwise(total / count)


METRICS = Reduction(
    keys=("name",),
    prepare=(
        *map(pl.col, ("name", "step", "time")),
        _finite("value").alias("low"),
        _finite("value").alias("high"),
        _finite("value").alias("total"),
        (_finite("value") * _SMALL).alias("small_total"),
        pl.col("value").is_finite().cast(pl.Int64).alias("count"),
        _first_nonfinite("value").alias("nonfinite"),
    ),
    reduce=(
        *_LAST,
        pl.col("low").min(),
        pl.col("high").max(),
        pl.col("total", "small_total").sum(),
        pl.col("count").sum(),
        pl.col("nonfinite").min(),
    ),
    # Several ranks may log at the last step: their mean counts.
    newest=(
        pl.col("value").alias("newest"),
        (pl.col("value") * _SMALL).alias("small_newest"),
        pl.lit(1).alias("writers"),
    ),
)

# Each bin keeps its newest histogram whole: the extremes show what lies between.
HISTOGRAMS = Reduction(
    keys=("of", "rank"),
    prepare=tuple(map(pl.col, ("of", "rank", "step", "time", "low", "high", "counts"))),
    reduce=(
        *_LAST,
        *(pl.col(column).sort_by("step").last() for column in ("low", "high", "counts")),
    ),
)


@dataclass
class Bins:
    """Rows reduced to at most ``capacity`` bins of consecutive steps, for each value of the keys.

    Where there are thousands of values, each with many rows, there are fewer bins, so that memory is bounded.

    Attributes:
        width: How many steps a bin covers.
        frame: One row for each bin and key: ``bin``, the keys, ``step`` (the last one in the bin), the reduced columns.
        newest: One row for each key: the keys, ``step`` (its last one), and the sums over that.
        largest: How many rows the frame may have, as long as there are some dozens of bins.
    """

    reduction: Reduction
    capacity: int = CAPACITY
    width: int = 1
    frame: pl.DataFrame | None = None
    newest: pl.DataFrame | None = None
    largest: int = _ALL_BINS
    _steps: tuple[int, int] | None = field(default=None, repr=False)

    def absorb(self, rows: pl.LazyFrame) -> None:
        """Reduce rows into the bins, in any order of steps; where this raises, nothing has changed."""
        step = pl.col("step")
        first, last, count = rows.select(first=step.min(), last=step.max(), count=pl.len()).collect().row(0)
        if first is None:
            return
        known = self._steps or (first, last)
        steps = min(first, known[0]), max(last, known[1])
        width = self.width
        while steps[1] // width - steps[0] // width >= self.capacity:
            width *= 2
        if count > self.largest and self.reduction.keys:
            # Counted beforehand, since each bin takes memory while it is reduced.
            while self._many(steps, width) and self._count(rows, width) > self.largest:
                width *= 2
        new = _in_memory(self._reduced(rows.select(*self.reduction.prepare), width))
        if self.frame is not None:
            new = self._reduced(pl.concat([self.frame, new], how="diagonal").lazy(), width).collect()
        while new.height > self.largest and self._many(steps, width):
            width *= 2
            new = self._reduced(new.lazy(), width).collect()
        newest = self._newest_with(rows) if self.reduction.newest else None
        self.frame, self.newest, self.width, self._steps = new.sort("bin", *self.reduction.keys), newest, width, steps

    @staticmethod
    def _many(steps: tuple[int, int], width: int) -> bool:
        return steps[1] // width - steps[0] // width >= 2 * _FEWEST

    def _count(self, rows: pl.LazyFrame, width: int) -> int:
        """The number of bins of all keys, together."""
        bins = rows.select(pl.col("step").floordiv(width), *self.reduction.keys).unique()
        return int(bins.select(pl.len()).collect(engine="streaming").item())

    def _newest_with(self, rows: pl.LazyFrame) -> pl.DataFrame:
        names = [column.meta.output_name() for column in self.reduction.newest]
        at_last = pl.col(names).filter(pl.col("step") == pl.col("step").max()).sum()

        def reduced(rows: pl.LazyFrame) -> pl.LazyFrame:
            return rows.group_by(self.reduction.keys).agg(pl.col("step").max(), at_last)

        new = _in_memory(reduced(rows.select(*self.reduction.keys, "step", *self.reduction.newest)))
        return new if self.newest is None else reduced(pl.concat([self.newest, new]).lazy()).collect()

    def _reduced(self, rows: pl.LazyFrame, width: int) -> pl.LazyFrame:
        """Reduce prepared rows, or bins, to bins of this width."""
        bins = rows.with_columns(pl.col("step").floordiv(width).alias("bin"))
        return bins.group_by("bin", *self.reduction.keys).agg(*self.reduction.reduce)

    def ends(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Give the last step of each bin, and its time in seconds since 1970."""
        if self.frame is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        frame = self.frame.group_by("bin").agg(*_LAST).sort("bin")
        return frame["step"].to_numpy(), np.array(seconds_of(frame))


def _in_memory(rows: pl.LazyFrame) -> pl.DataFrame:
    # Dictionaries of different parts need not agree.
    return rows.collect(engine="streaming").with_columns(pl.col(pl.Categorical).cast(pl.String))


def seconds_of(frame: pl.DataFrame) -> list[float]:
    """Give the times of a frame's rows, in seconds since 1970."""
    return (frame["time"].dt.epoch("us") / 1e6).to_list()
