"""Statistics beyond the extremes: what is measured of a tensor on its device, and what the host makes of that.

Mean, standard deviation and norm are measured of the tensor divided by its largest magnitude, and multiplied by it on
the host in float64: so that squares of tiny gradients do not vanish in a float32, nor those of huge ones overflow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tracer.extremes import dense, reduced_dtype

# What can be asked for beside the extremes, in the order of its columns; "histogram" has a table of its own.
STATISTICS = ("mean", "std", "norm", "absmax", "zeros", "nonfinite")

Stats = str | Iterable[str]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measures:
    """What a choice of statistics needs to have measured, in as few passes over memory as it allows.

    Attributes:
        columns: The statistics, in the order of their columns; the extremes come first.
        moments: What is measured in floating point, relative to the largest magnitude.
        counts: What is counted.
        histogram: Whether histograms were asked for.
    """

    columns: tuple[str, ...]
    moments: tuple[str, ...]
    counts: tuple[str, ...]
    histogram: bool

    @classmethod
    def of(cls, stats: Stats) -> "Measures":
        """The measures of what a user asks for: ``"extremes"``, and any of ``STATISTICS`` and ``"histogram"``.

        Raises:
            ValueError: there is no such statistic.
        """
        wanted = {stats} if isinstance(stats, str) else set(stats)
        known = ("extremes", *STATISTICS, "histogram")
        for name in wanted:
            if name not in known:
                raise ValueError(f"stats={stats!r}: there is no statistic {name!r}; choose of {', '.join(known)}")
        # With the mean, the spread about it gives the norm too, and needs no further pass.
        spread = "std" in wanted or {"mean", "norm"} <= wanted
        moments = ("mean", "spread") if spread else tuple(name for name in ("mean", "norm") if name in wanted)
        counts = tuple(count for count, name in (("nonzero", "zeros"), ("nonfinite", "nonfinite")) if name in wanted)
        columns = ("min", "max", *(name for name in STATISTICS if name in wanted))
        return cls(columns, moments, counts, "histogram" in wanted)

    @property
    def further(self) -> bool:
        """Whether anything beside the extremes is measured."""
        return bool(self.moments or self.counts)

    @property
    def measured(self) -> tuple[str, ...]:
        """All that is measured of a tensor, in the order of a buffer's columns."""
        return ("min", "max", *self.moments, *self.counts)

    def measure(
        self,
        tensor: torch.Tensor,
        extremes: tuple[torch.Tensor, torch.Tensor],
        moments: Sequence[torch.Tensor],
        counts: Sequence[torch.Tensor],
    ) -> None:
        """Measure a tensor whose extremes are known, without a host sync; under ``torch.no_grad``.

        Args:
            tensor: Any shape with at least one element; a sparse one is measured in its dense form.
            extremes: Its minimum and maximum, 0-dim.
            moments: Where each of ``self.moments`` goes: 0-dim, of ``wide_dtype``.
            counts: Where each of ``self.counts`` goes: 0-dim int64.
        """
        tensor = dense(tensor)
        if self.moments:
            wide = wide_dtype(tensor.dtype)
            magnitude = torch.maximum(extremes[0].abs(), extremes[1].abs()).to(wide)
            scaled = tensor / magnitude if tensor.dtype is wide else tensor.to(wide).div_(magnitude)
            for out, moment in zip(moments, _moments(scaled, self.moments), strict=True):
                out.copy_(moment)
        for name, out in zip(self.counts, counts, strict=True):
            # x - x is 0 where x is finite, and NaN, which is not zero, where it is not.
            out.copy_(torch.count_nonzero(tensor if name == "nonzero" else tensor - tensor))

    def derive(self, measured: Mapping[str, Array], elements: Array) -> dict[str, Array]:
        """The columns, by statistic, from what was measured; arrays that broadcast, float64.

        Args:
            measured: An array for each name in ``self.measured``.
            elements: How many numbers each tensor has, real and imaginary parts counted apart.
        """
        low, high = measured["min"], measured["max"]
        magnitude = np.maximum(np.abs(low), np.abs(high))
        columns = {"min": low, "max": high, "absmax": magnitude}
        infinite, zero = np.isinf(magnitude), magnitude == 0
        # Where all is zero or something infinite, what was measured relative to the magnitude is NaN, and so is what is
        # said of no element; neither stays.
        with np.errstate(all="ignore"):
            if "mean" in measured:
                # With both infinities among the elements, inf + -inf is NaN, as NumPy has it.
                infinities = np.where(np.isinf(low), low, 0.0) + np.where(np.isinf(high), high, 0.0)
                columns["mean"] = np.where(infinite, infinities, np.where(zero, 0.0, measured["mean"] * magnitude))
            if "spread" in measured:
                spread, relative_mean = measured["spread"], measured["mean"]
                columns["std"] = np.where(zero, 0.0, spread / np.sqrt(elements) * magnitude)
                measured = {**measured, "norm": np.sqrt(spread**2 + elements * relative_mean**2)}
            if "norm" in measured:
                columns["norm"] = np.where(zero | infinite, magnitude, measured["norm"] * magnitude)
            if "nonzero" in measured:
                columns["zeros"] = 1.0 - measured["nonzero"] / elements
        if "nonfinite" in measured:
            columns["nonfinite"] = measured["nonfinite"]
        return {name: columns[name] for name in self.columns}


def check_count(name: str, count: object) -> None:
    """See that an argument is a number of something.

    Raises:
        ValueError: it is no whole number, or less than 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}={count!r} must be a whole number, 1 or more")


EXTREMES = Measures.of("extremes")


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which moments of a tensor of ``dtype`` are measured."""
    return torch.float64 if reduced_dtype(dtype) is torch.float64 else torch.float32


def _moments(scaled: torch.Tensor, names: tuple[str, ...]) -> list[torch.Tensor]:
    # Not torch.linalg.vector_norm: on the CPU it adds up in float32 one by one, and is 4e-3 off for 6e7 numbers.
    if names == ("norm",):
        return [scaled.square_().sum().sqrt()]
    mean = scaled.mean()
    return [mean] if names == ("mean",) else [mean, scaled.sub_(mean).square_().sum().sqrt()]


def moments_of(tensor: torch.Tensor) -> torch.Tensor:
    """Minimum, maximum, mean, and L2 norm of the distances from the mean: float64 of shape (4,), without a host sync.

    Args:
        tensor: Dense and real, with at least one element; call this under ``torch.no_grad``.
    """
    low, high = torch.aminmax(tensor)
    wide = wide_dtype(tensor.dtype)
    magnitude = torch.maximum(low.abs(), high.abs()).to(wide)
    mean, spread = (moment.double() for moment in _moments(tensor.to(wide) / magnitude, ("mean", "spread")))
    low, high, magnitude = low.double(), high.double(), magnitude.double()
    # Where all is zero or something infinite, what was measured relative to the magnitude is NaN.
    mean = torch.where(magnitude.isinf(), low + high, mean * magnitude)
    numbers = torch.stack([low, high, mean, spread * magnitude])
    return torch.where(magnitude == 0, 0.0, numbers)


def histogram(tensor: torch.Tensor, bins: int) -> torch.Tensor:
    """A tensor's histogram, with the counts of ``numpy.histogram``, made on its device without a host sync.

    The edges are calculated as ``numpy.linspace`` does, in the tensor's own dtype, rounding included.

    Args:
        tensor: Any shape with at least one element; call this under ``torch.no_grad``.
        bins: How many bins.

    Returns:
        float64 of shape ``(bins + 2,)``: minimum, maximum, and the counts; these are NaN where the distance between
        those two is not finite in the tensor's dtype, so that there are no edges.
    """
    numbers = dense(tensor).flatten()
    if numbers.dtype is torch.bfloat16:
        # NumPy has no bfloat16, and gets such numbers as float32.
        numbers = numbers.float()
    low, high = torch.aminmax(numbers)
    flat = low == high
    first, last = torch.where(flat, low - 0.5, low), torch.where(flat, high + 0.5, high)
    extent, ticks = last - first, torch.arange(1, bins, device=numbers.device).to(numbers.dtype)
    step = extent / bins
    # As NumPy does where the step is less than the smallest number that there is.
    inner = torch.where(step == 0, ticks / bins * extent, ticks * step) + first
    index = torch.bucketize(numbers, inner, right=True)
    counts = torch.zeros(bins, dtype=torch.int64, device=numbers.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    known = torch.where(extent.isfinite(), counts.double(), torch.nan)
    return torch.cat([low.double().view(1), high.double().view(1), known])
