"""Statistics beyond the extremes: measured on a tensor's device, and derived from that on the host.

Mean, norm and standard deviation are accumulated in float64, where squares of tiny gradients do not vanish, and squares
of huge ones do not overflow. On large tensors torch's float32 norm is 4e-3 off.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tracer.extremes import dense
from tracer.log.run import BEYOND_COUNTS

# The statistics beside the extremes, in the order of their columns; "histogram" has a table of its own.
STATISTICS = ("mean", "std", "norm", "absmax", "zeros", "nonfinite", "smallest")

# Each measured number, and the statistics that need it.
_NEEDED_FOR = {
    "sum": {"mean", "std"},
    "norm": {"norm"},
    "spread": {"std"},
    "nonzero": {"zeros"},
    "nonfinite": {"nonfinite"},
    "smallest": {"smallest"},
}

# On the host so many numbers are converted at once: the float64 copy of a large tensor at once is ten times as slow.
_PIECE = 1 << 18

# The types of devices without float64, which all measurements but the extremes need.
WITHOUT_FLOAT64 = frozenset({"mps"})

Stats = str | Iterable[str]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measures:
    """The measurements that a choice of statistics needs, in as few passes over memory as it allows.

    Attributes:
        columns: The statistics, in the order of their columns; the extremes come first.
        further: The measurements beside the extremes. The spread is the L2 norm of the distances from the mean.
        histogram: Whether histograms were asked for.
    """

    columns: tuple[str, ...]
    further: tuple[str, ...]
    histogram: bool

    @classmethod
    def of(cls, stats: Stats) -> "Measures":
        """The measures for ``"extremes"``, and any of ``STATISTICS`` and ``"histogram"``.

        Raises:
            ValueError: there is no such statistic.
        """
        wanted = {stats} if isinstance(stats, str) else set(stats)
        known = ("extremes", *STATISTICS, "histogram")
        for name in wanted:
            if name not in known:
                raise ValueError(f"stats={stats!r}: there is no statistic {name!r}; choose of {', '.join(known)}")
        further = tuple(name for name, statistics in _NEEDED_FOR.items() if wanted & statistics)
        columns = ("min", "max", *(name for name in STATISTICS if name in wanted))
        return cls(columns, further, "histogram" in wanted)

    @property
    def measured(self) -> tuple[str, ...]:
        """All measurements of a tensor, in the order of a buffer's columns."""
        return ("min", "max", *self.further)

    @property
    def with_float64(self) -> bool:
        """Whether they need float64 on the tensor's device."""
        return self.histogram or bool(self.further)

    def measure(self, tensor: torch.Tensor, out: Sequence[torch.Tensor]) -> None:
        """Make the further measurements, without a host sync; under ``torch.no_grad``.

        Args:
            tensor: Any shape with at least one element; a sparse one is measured in its dense form.
            out: Where each of ``self.further`` goes: 0-dim float64.
        """
        for place, number in zip(out, _measure(dense(tensor), self.further), strict=True):
            place.copy_(number)

    def derive(self, measured: Mapping[str, Array], elements: Array) -> dict[str, Array]:
        """The columns, by statistic, from the measurements; arrays that broadcast, float64.

        Args:
            measured: An array for each name in ``self.measured``.
            elements: How many numbers each tensor has, real and imaginary parts counted apart.
        """
        columns = {**measured, "absmax": np.maximum(np.abs(measured["min"]), np.abs(measured["max"]))}
        # The rows of a tensor without an element are null, whatever is calculated here.
        with np.errstate(all="ignore"):
            if "sum" in measured:
                columns["mean"] = measured["sum"] / elements
            if "spread" in measured:
                columns["std"] = measured["spread"] / np.sqrt(elements)
            if "nonzero" in measured:
                columns["zeros"] = 1.0 - measured["nonzero"] / elements
            if "smallest" in measured:
                columns["smallest"] = np.where(np.isinf(measured["smallest"]), 0.0, measured["smallest"])
        return {name: columns[name] for name in self.columns}


def check_count(name: str, count: object) -> None:
    """Check an argument that counts something.

    Raises:
        ValueError: it is not a whole number, less than 1, or more than a log can hold.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < BEYOND_COUNTS:
        raise ValueError(f"{name}={count!r} must be a whole number, 1 or more, and below 2^63")


EXTREMES = Measures.of("extremes")


def _measure(tensor: torch.Tensor, names: Sequence[str]) -> Iterator[torch.Tensor]:
    pieces: Sequence[torch.Tensor] = (tensor,)
    if tensor.is_cpu and tensor.numel() > _PIECE:
        pieces = tensor.flatten().split(_PIECE)
    total = tensor
    for name in names:
        if name == "sum":
            total = _sum(piece.sum(dtype=torch.float64) for piece in pieces)
            yield total
        elif name == "norm":
            yield _norm(pieces)
        elif name == "spread":
            mean = total / tensor.numel()
            yield _norm(piece.to(torch.float64, copy=True).sub_(mean) for piece in pieces)
        elif name == "smallest":
            smallest = [_smallest(piece) for piece in pieces]
            yield smallest[0] if len(smallest) == 1 else torch.stack(smallest).amin()
        else:
            # x - x is 0 where x is finite, and NaN, which is not zero, where it is not.
            yield _sum(torch.count_nonzero(piece if name == "nonzero" else piece - piece) for piece in pieces)


def _smallest(piece: torch.Tensor) -> torch.Tensor:
    """The smallest magnitude that is neither 0 nor NaN; infinite if there is none."""
    magnitudes = piece.abs()
    return torch.where(magnitudes > 0, magnitudes, torch.inf).amin()


def _sum(numbers: Iterable[torch.Tensor]) -> torch.Tensor:
    sums = list(numbers)
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def _norm(pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    norms: list[torch.Tensor] = [torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dtype=torch.float64)


def spread_of(tensor: torch.Tensor) -> torch.Tensor:
    """The L2 norm of the distances from the mean: 0-dim float64, without a host sync; under ``torch.no_grad``.

    Args:
        tensor: As in ``Measures.measure``.
    """
    _, spread = _measure(dense(tensor), ("sum", "spread"))
    return spread


def moments_of(tensor: torch.Tensor, further: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """Minimum, maximum, mean, L2 norm of the distances from the mean, and further numbers, without a host sync.

    Args:
        tensor: Dense and real, with at least one element; call this under ``torch.no_grad``.
        further: 0-dim and float64.

    Returns:
        float64 of shape (4 + further numbers,).
    """
    extremes = [extreme.double() for extreme in torch.aminmax(tensor)]
    total, spread = _measure(tensor, ("sum", "spread"))
    return torch.stack([plain(number) for number in (*extremes, total / tensor.numel(), spread, *further)])


def nonzero_of(tensor: torch.Tensor, unit: int | None) -> torch.Tensor:
    """Count the numbers that are not 0, NaN among them, in one pass and without a host sync.

    Args:
        tensor: As in ``moments_of``.
        unit: The dimension that is kept; None for none.

    Returns:
        Whole numbers in floating point, of the shape of that dimension.
    """
    others = [dimension for dimension in range(tensor.dim()) if dimension != unit]
    each = tensor.numel() if unit is None else tensor.numel() // tensor.shape[unit]
    return plain(_sum_of_ones(_ones(torch.ne, tensor, 0.0), others, each))


def saturated_of(tensor: torch.Tensor, bounds: tuple[float, float] | None) -> torch.Tensor:
    """Count the numbers up to the lower bound and from the upper one on, as the tensor's dtype holds the bounds.

    Args:
        tensor: As in ``moments_of``.
        bounds: None where there are none.

    Returns:
        float64 of shape (), without a host sync; NaN without bounds.
    """
    if bounds is None:
        return torch.full((), torch.nan, dtype=torch.float64, device=tensor.device)
    ones = _ones(torch.le, tensor, bounds[0]).add_(_ones(torch.ge, tensor, bounds[1]))
    return _sum_of_ones(ones, [*range(tensor.dim())], tensor.numel()).double()


def _ones(compare: Callable[..., torch.Tensor], tensor: torch.Tensor, bound: float) -> torch.Tensor:
    """1 where a comparison holds, else 0: a sum of float32 takes a third of the time of one of bools."""
    # A number of the tensor's own dtype, since some devices would compare with more digits than that has.
    return compare(tensor, tensor.new_full((), bound), out=torch.empty_like(tensor, dtype=torch.float32))


def _sum_of_ones(ones: torch.Tensor, dimensions: list[int], each: int) -> torch.Tensor:
    """The sums of so many ones each, exact: float32 holds every whole number up to 2^24."""
    return ones.sum(dimensions, dtype=torch.float32 if each <= 1 << 24 else torch.float64) if dimensions else ones


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor of any subclass, which may not go together with those of other tensors."""
    if type(tensor) is torch.Tensor:
        return tensor
    plain = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    plain.copy_(tensor)
    return plain
