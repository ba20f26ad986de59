"""Rows reduced to bins of steps: the minimum of minima, the maximum of maxima, the first step that is not finite."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

# About two bins for each pixel of a wide figure.
CAPACITY = 2048


def _finite(column: str) -> pl.Expr:
    # The min and max of polars skip NaN but not infinity: one infinity would hide the finite numbers of its bin.
    return pl.when(pl.col(column).is_finite()).then(pl.col(column))


def _extreme(column: str) -> pl.Expr:
    return pl.col(column).min() if column.endswith("_min") else pl.col(column).max()


def _first_nonfinite(*columns: str) -> pl.Expr:
    return pl.when(pl.any_horizontal(pl.col(column).is_finite().not_() for column in columns)).then(pl.col("step"))


@dataclass(frozen=True)
class Reduction:
    """How rows become bins: each row is prepared, then the rows of a bin are reduced, later whole bins."""

    keys: tuple[str, ...]
    prepare: tuple[pl.Expr, ...]
    reduce: tuple[pl.Expr, ...]


# Each bin keeps its last step and the time of that.
_LAST = (pl.col("step").max(), pl.col("time").max())


def of_extremes(statistics: Iterable[str], keys: tuple[str, ...] = ()) -> Reduction:
    """Reduce ``*_min`` by min and ``*_max`` by max; other statistics get both, as ``_low`` and ``_high``."""
    ends = [name for name in statistics if name.endswith(("_min", "_max"))]
    others = [name for name in statistics if name not in ends]
    kinds = sorted({name.partition("_")[0] for name in ends})
    return Reduction(
        keys,
        prepare=(
            *map(pl.col, ("step", "time", *keys)),
            *(_finite(name).alias(name) for name in ends),
            *(_finite(name).alias(f"{name}_{end}") for name in others for end in ("low", "high")),
            *(_first_nonfinite(*(n for n in ends if n.startswith(of))).alias(f"{of}_nonfinite") for of in kinds),
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
        pl.col("value").alias("newest"),
        (pl.col("value") * _SMALL).alias("small_newest"),
        pl.lit(1).alias("writers"),
        _first_nonfinite("value").alias("nonfinite"),
    ),
    reduce=(
        *_LAST,
        pl.col("low").min(),
        pl.col("high").max(),
        pl.col("total", "small_total").sum(),
        pl.col("count").sum(),
        # Several ranks may log at the last step: their mean counts.
        pl.col("newest", "small_newest", "writers").filter(pl.col("step") == pl.col("step").max()).sum(),
        pl.col("nonfinite").min(),
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

    Attributes:
        width: How many steps a bin covers.
        frame: One row for each bin and key: ``bin``, the keys, ``step`` (the last one in the bin), the reduced columns.
    """

    reduction: Reduction
    capacity: int = CAPACITY
    width: int = 1
    frame: pl.DataFrame | None = None
    _steps: tuple[int, int] | None = field(default=None, repr=False)

    def absorb(self, rows: pl.LazyFrame) -> None:
        """Reduce rows into the bins, in any order of steps; where this raises, nothing has changed."""
        first, last = (
            rows.select(pl.col("step").min().alias("first"), pl.col("step").max().alias("last")).collect().row(0)
        )
        if first is None:
            return
        known = self._steps or (first, last)
        steps = min(first, known[0]), max(last, known[1])
        width = self.width
        while steps[1] // width - steps[0] // width >= self.capacity:
            width *= 2
        by = ("bin", *self.reduction.keys)
        new = (
            rows.select(*self.reduction.prepare)
            .with_columns(pl.col("step").floordiv(width).alias("bin"))
            .group_by(by)
            .agg(*self.reduction.reduce)
            .collect(engine="streaming")
            # Dictionaries of different parts need not agree.
            .with_columns(pl.col(pl.Categorical).cast(pl.String))
        )
        if self.frame is not None:
            old = self.frame.with_columns(pl.col("bin").floordiv(width // self.width))
            new = pl.concat([old, new], how="diagonal").group_by(by).agg(*self.reduction.reduce)
        self.frame, self.width, self._steps = new.sort(by), width, steps

    def ends(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Give the last step of each bin, and its time in seconds since 1970."""
        if self.frame is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        frame = self.frame.group_by("bin").agg(*_LAST).sort("bin")
        return frame["step"].to_numpy(), np.array(seconds_of(frame))


def seconds_of(frame: pl.DataFrame) -> list[float]:
    """Give the times of a frame's rows, in seconds since 1970."""
    return (frame["time"].dt.epoch("us") / 1e6).to_list()
