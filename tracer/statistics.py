"""Statistics beyond the extremes: what is measured of a tensor on its device, and what the host makes of that.

Mean, norm and standard deviation are accumulated in float64: there squares of tiny gradients do not vanish, nor do
those of huge ones overflow, while torch's float32 norm is 4e-3 off on large tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tracer.extremes import dense

# What can be asked for beside the extremes, in the order of its columns; "histogram" has a table of its own.
STATISTICS = ("mean", "std", "norm", "absmax", "zeros", "nonfinite")

Stats = str | Iterable[str]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measures:
    """What a choice of statistics needs to have measured, in as few passes over memory as it allows.

    Attributes:
        columns: The statistics, in the order of their columns; the extremes come first.
        moments: What is measured in floating point; the spread is the norm of the distances from the mean.
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
        needed = {"mean": "mean" in wanted or "std" in wanted, "norm": "norm" in wanted, "spread": "std" in wanted}
        moments = tuple(name for name, is_needed in needed.items() if is_needed)
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

    def measure(self, tensor: torch.Tensor, moments: Sequence[torch.Tensor], counts: Sequence[torch.Tensor]) -> None:
        """Measure a tensor, without a host sync; under ``torch.no_grad``.

        Args:
            tensor: Any shape with at least one element; a sparse one is measured in its dense form.
            moments: Where each of ``self.moments`` goes: 0-dim float64.
            counts: Where each of ``self.counts`` goes: 0-dim int64.
        """
        tensor = dense(tensor)
        for out, moment in zip(moments, _moments(tensor, self.moments), strict=True):
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
        columns = {**measured, "absmax": np.maximum(np.abs(measured["min"]), np.abs(measured["max"]))}
        # Of a tensor without an element nothing is said, whatever comes out here.
        with np.errstate(all="ignore"):
            if "spread" in measured:
                columns["std"] = measured["spread"] / np.sqrt(elements)
            if "nonzero" in measured:
                columns["zeros"] = 1.0 - measured["nonzero"] / elements
        return {name: columns[name] for name in self.columns}


def check_count(name: str, count: object) -> None:
    """See that an argument is a number of something.

    Raises:
        ValueError: it is no whole number, or less than 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}={count!r} must be a whole number, 1 or more")


EXTREMES = Measures.of("extremes")


def _moments(tensor: torch.Tensor, names: Iterable[str]) -> list[torch.Tensor]:
    # The spread needs a copy, which the others can then use as well.
    wide = tensor.to(torch.float64, copy=True) if "spread" in names else tensor
    moments: list[torch.Tensor] = []
    for name in names:
        if name == "mean":
            moments.append(wide.mean(dtype=torch.float64))
        else:
            centred = wide.sub_(moments[0]) if name == "spread" else wide
            moments.append(torch.linalg.vector_norm(centred, dtype=torch.float64))
    return moments


def moments_of(tensor: torch.Tensor) -> torch.Tensor:
    """Minimum, maximum, mean, and L2 norm of the distances from the mean: float64 of shape (4,), without a host sync.

    Args:
        tensor: Dense and real, with at least one element; call this under ``torch.no_grad``.
    """
    extremes = [extreme.double() for extreme in torch.aminmax(tensor)]
    return torch.stack([*extremes, *_moments(tensor, ("mean", "spread"))])


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
