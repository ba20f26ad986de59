"""Reductions of tensors to their extremes."""

from collections.abc import Callable
from functools import lru_cache

import torch

from tracer.engines import gradient_dtype, partition

# The dtypes that torch.aminmax reduces and that a buffer of the same dtype holds exactly; the others are converted.
NATIVE = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def reduced_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that holds the extremes of a tensor of ``dtype`` exactly."""
    if dtype in NATIVE:
        return dtype
    return dtype.to_real() if dtype.is_complex else torch.float32 if dtype.itemsize < 4 else torch.float64


def extremes_dtype(parameter: torch.Tensor) -> torch.dtype:
    """The dtype that holds the extremes of a parameter and of its gradient exactly.

    Args:
        parameter: The parameter itself, not its local shard: the shard knows nothing of a declared ``grad_dtype``.
    """
    dtype = reduced_dtype(parameter.dtype)
    # A leaf may declare another dtype for its gradient, or None for any. Other tensors may not be asked: torch 2.11 to
    # 2.14 raise.
    declared = getattr(parameter, "grad_dtype", dtype) if parameter.is_leaf else dtype
    gradient = gradient_dtype(parameter) or declared or torch.float32
    return torch.promote_types(dtype, gradient) if gradient in NATIVE else dtype


def reduce_into(tensor: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Write a tensor's minimum and maximum into two 0-dim tensors of its ``reduced_dtype``, without a host sync.

    A NaN anywhere makes both NaN, as in ``torch.aminmax``. The parts of complex numbers count as numbers of their own.

    Args:
        tensor: Any shape with at least one element; call this under ``torch.no_grad``.
        out: Where the minimum and the maximum go, on the tensor's device.
    """
    if tensor.dtype is not out[0].dtype or tensor.layout is not torch.strided:
        tensor = _plain(tensor).to(out[0].dtype)
    torch.aminmax(flat(tensor), out=out)


def reduce_slices(
    tensor: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor], slices: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Write the extremes of each slice of a tensor's first dimension, and of all of them, without a host sync.

    A NaN makes both extremes of its slice NaN, and those of the tensor.

    Args:
        tensor: Its first dimension has one element or more, and so has each slice; call this under ``torch.no_grad``.
        out: Where the tensor's minimum and maximum go: 0-dim, of its ``reduced_dtype``, on its device.
        slices: Where those of the slices go: of shape (slices,), likewise.

    Raises:
        ValueError: it has another number of slices.
    """
    lows, highs = slices
    if tensor.shape[:1] != lows.shape:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has not {len(lows)} slices")
    if tensor.dtype is not lows.dtype or tensor.layout is not torch.strided:
        tensor = dense(tensor).to(lows.dtype)
    # A slice may be a single number.
    tensor = tensor.unsqueeze(-1)
    inner = tuple(range(1, tensor.dim()))
    # On a CPU these two take a quarter of the time of aminmax, which reads one number at a time along a dimension. They
    # copy no tensor, in whatever order its numbers lie.
    torch.amin(tensor, inner, out=lows)
    torch.amax(tensor, inner, out=highs)
    torch.amin(lows, 0, out=out[0])
    torch.amax(highs, 0, out=out[1])


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A real, dense tensor with the same extremes."""
    if tensor.layout is not torch.strided:
        elements = tensor.numel()
        # Except on the CPU this is a sync: the number of distinct indices decides the result's shape.
        tensor = tensor.coalesce().values()
        if tensor.numel() < elements:
            tensor = torch.cat([tensor.flatten(), tensor.new_zeros(1)])
    return _real(tensor)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    # A gradient may be a view that has yet to be conjugated, of which there is no real view.
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds: a ``DTensor``'s shard, that of ZeRO-3, or the tensor itself.

    Readers merge the shards' extremes: a collective in a hook could wait for a rank for ever.
    """
    # Known by its method, since an import of DTensor takes half a second, and most runs have none.
    to_local: Callable[[], torch.Tensor] | None = getattr(tensor, "to_local", None)
    if to_local is not None:
        return to_local()
    part = partition(tensor)
    return tensor if part is None else part


def partial(tensor: torch.Tensor) -> bool:
    """Whether this process holds a summand of a tensor, and not a part of it: other ranks hold the other ones."""
    mesh = getattr(tensor, "device_mesh", None)
    placements = () if mesh is None else zip(getattr(tensor, "placements", ()), mesh.shape, strict=True)
    return any(placement.is_partial() and ranks > 1 for placement, ranks in placements)


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as plain real numbers, element by element, in a dtype that torch can calculate with."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = _real(tensor)
    return tensor if tensor.dtype in NATIVE else tensor.to(reduced_dtype(tensor.dtype))


def dense_numel(tensor: torch.Tensor) -> int:
    """How many numbers ``dense`` makes of a tensor."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


@lru_cache(4096)
def is_dense(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    """Whether numbers lie in memory without gaps or overlaps, in whatever order of the dimensions."""
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1):
        if step != expected:
            return False
        expected *= size
    return True


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers in the order of memory, where they fill it; channels_last, say. Else the tensor itself.

    ``torch.aminmax`` would make a contiguous copy of it.
    """
    if tensor.is_contiguous() or not is_dense(tensor.shape, tensor.stride()):
        return tensor
    return tensor.as_strided((tensor.numel(),), (1,))
