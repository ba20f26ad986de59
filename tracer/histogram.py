"""Histograms of tensors, with the counts of ``numpy.histogram``, and without a host sync."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tracer.extremes import dense
from tracer.statistics import plain

# On the host so many numbers are counted at once: what is calculated of them stays in a core's cache.
_PIECE = 1 << 16
# Numbers are counted in pairs if there are so many of them for each pair of bins.
_WORTH_PAIRING = 16

Array = npt.NDArray[Any]


def histogram(tensor: torch.Tensor, bins: int) -> torch.Tensor:
    """A tensor's histogram, with the counts of ``numpy.histogram``, made on its device without a host sync.

    The edges are calculated as ``numpy.linspace`` does, in the tensor's own dtype, rounding included.

    Args:
        tensor: Any shape with at least one element; call this under ``torch.no_grad``.
        bins: How many bins.

    Returns:
        float64 of shape ``(bins + 2,)``: minimum, maximum, and the counts. The counts are NaN if the distance between
        minimum and maximum is not finite in the tensor's dtype, so that there are no edges.
    """
    numbers = _in_a_row(dense(tensor.detach()))
    if numbers.dtype is torch.bfloat16:
        # NumPy has no bfloat16, and gets such numbers as float32.
        numbers = numbers.float()
    on_host = numbers.is_cpu and type(numbers) is torch.Tensor
    return _on_host(numbers, bins) if on_host else _on_device(numbers, bins)


def _in_a_row(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers in any order: in that of memory, which needs no copy unless there are gaps between them."""
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    return tensor.flatten().contiguous()


def _edges(low: Any, high: Any, ticks: Any, bins: Any, where: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """The first edge, the last, and those between them, for arrays or tensors of one dtype.

    Args:
        low: The minimum, as one element.
        high: The maximum.
        ticks: The whole numbers from 1 to ``bins - 1``.
        bins: How many bins.
        where: The function of this name for such arrays.
    """
    flat = low == high
    first, last = where(flat, low - 0.5, low), where(flat, high + 0.5, high)
    extent = last - first
    step = extent / bins
    # As NumPy does where the step is too small for any number but 0.
    return first, last, where(step == 0, ticks / bins * extent, ticks * step) + first


def _on_device(numbers: torch.Tensor, bins: int) -> torch.Tensor:
    low, high = torch.aminmax(numbers)
    ticks = torch.arange(1, bins, device=numbers.device).to(numbers.dtype)
    first, last, inner = _edges(low, high, ticks, bins, torch.where)
    index = torch.bucketize(numbers, inner, right=True)
    counts = torch.zeros(bins, dtype=torch.int64, device=numbers.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    known = torch.where((last - first).isfinite(), counts.double(), torch.nan)
    return torch.cat([plain(numbers) for numbers in (low.double().view(1), high.double().view(1), known)])


def _on_host(numbers: torch.Tensor, bins: int) -> torch.Tensor:
    # Arrays of one element, and bins of the same dtype, since NumPy 1 would calculate in another one.
    low, high = (extreme.view(1).numpy() for extreme in torch.aminmax(numbers))
    # What is not finite, or too small, needs no warning.
    with np.errstate(all="ignore"):
        first, last, inner = _edges(low, high, np.arange(1, bins).astype(low.dtype), low.dtype.type(bins), np.where)
        known = np.isfinite(last - first)
        counts = _count(numbers.numpy(force=True), first, last, inner) if known else np.full(bins, np.nan)
    return torch.from_numpy(np.concatenate([low, high, counts], dtype=np.float64))


def _count(numbers: Array, first: Array, last: Array, inner: Array) -> Array:
    """How many numbers lie between one edge and the next.

    A number is placed among the bins by two operations that never place a larger number before a smaller one, whatever
    the rounding. Bin 3 is about the place 3, and its edges are near 2.5 and 3.5. So a number is in the bin whose place
    is next, if it is further from the middle between two bins than any edge is. The few other numbers are compared
    with the edges themselves.

    Args:
        numbers: Of shape (n,), from the first edge to the last.
        first: The first edge, of shape (1,).
        last: The last edge, likewise.
        inner: The edges between them, of shape (bins - 1,).
    """
    bins = len(inner) + 1
    dtype = np.result_type(inner, np.float32)
    scale = (bins / (last - first)).astype(dtype)
    shift = first * scale + dtype.type(0.5)
    off = np.abs(inner * scale - shift - np.arange(0.5, bins - 1, dtype=dtype)).max(initial=0)
    # Twice, so that no number is too near but for a rounding in this line.
    clear = 0.5 - 2 * off
    counts = np.zeros(bins, np.int64)
    places, indices = np.empty((2, min(_PIECE, len(numbers))), dtype)
    for begin in range(0, len(numbers), _PIECE):
        piece = numbers[begin : begin + _PIECE]
        place, index = places[: len(piece)], indices[: len(piece)]
        np.subtract(np.multiply(piece, scale, out=place), shift, out=place)
        # Also where another process has changed the numbers meanwhile, as in a Hogwild training, there is no other bin.
        np.clip(place, 0, bins - 1, out=place)
        np.rint(place, out=index)
        is_clear = np.abs(np.subtract(place, index, out=place), out=place) < clear
        if not is_clear.all():
            near = np.flatnonzero(~is_clear)
            index[near] = np.searchsorted(inner, piece[near], side="right")
        counts += _tally(index, bins)
    return counts


def _tally(indices: Array, bins: int) -> Array:
    """How often each index occurs, of floats that are whole numbers from 0 to ``bins - 1``."""
    if len(indices) < _WORTH_PAIRING * bins * bins:
        return np.bincount(indices.astype(np.intp), minlength=bins)
    # To count takes as long as several operations of arithmetic, so two numbers are counted at once.
    half = len(indices) // 2
    pairs = indices[:half] * bins + indices[half : 2 * half]
    table = np.bincount(pairs.astype(np.intp), minlength=bins * bins).reshape(bins, bins)
    rest = np.bincount(indices[2 * half :].astype(np.intp), minlength=bins)
    counts: Array = table.sum(axis=0) + table.sum(axis=1) + rest
    return counts
