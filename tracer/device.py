"""What runs on a CUDA device: two Triton kernels. Only this file imports Triton, and ``tracer.kernel`` imports it late.

Numbers are compared as float32, or as float64 if they are that: every float16 is a float32, too, and every bfloat16 the
upper half of one. A minimum is the same in whatever order it is taken: no result depends on how tensors are cut.

Nothing is read beyond a tensor. Where fewer numbers are left than a program reads at once, it reads the last of them
several times: that changes no minimum and no maximum, and needs no mask.
"""

from typing import Any

import torch
import triton
import triton.language as tl

# Of a table of tensors: address, elements, first piece, end of its pieces, addresses of its minimum and of its maximum.
COLUMNS = 6
_COLUMNS = tl.constexpr(COLUMNS)
_WARPS = 8
# Of numbers under comparison. With more of them, threads need so many registers that too few fit to keep memory busy.
_BYTES_A_THREAD = 32


def interpreted() -> bool:
    """Whether Triton runs kernels on the host, as its ``TRITON_INTERPRET`` asks for."""
    return not isinstance(reduce_pieces, triton.JITFunction)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of a dtype are compared."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def block_of(dtype: torch.dtype) -> int:
    """How many numbers of a dtype a program reads at once."""
    return 32 * _WARPS * _BYTES_A_THREAD // wide(dtype).itemsize


def constants(dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the first and the second kernel are compiled with for tensors of a dtype."""
    # Triton's dtypes have the names of torch's.
    number, compared = (getattr(tl, str(each).removeprefix("torch.")) for each in (dtype, wide(dtype)))
    kinds = {"pointer": tl.pointer_type(tl.int16 if dtype is torch.bfloat16 else number), "wide": compared}
    return {**kinds, "block": block_of(dtype), "num_warps": _WARPS}, {**kinds, "block": 1024, "num_warps": 4}


def launch(dtype: torch.dtype, table: torch.Tensor, owners: torch.Tensor, partials: torch.Tensor, piece: int) -> None:
    """Launch both kernels on the current stream of the current device, which is that of the tensors.

    Args:
        dtype: That of the tensors and of their places.
        table: A row of ``COLUMNS`` numbers for each tensor, flat: int64.
        owners: The row of each piece's tensor: int64.
        partials: Room for a minimum and a maximum of each piece, flat: ``wide(dtype)``.
        piece: How many numbers are in a piece: a multiple of ``block_of(dtype)``.
    """
    reducing, gathering = constants(dtype)
    reduce_pieces[(owners.numel(),)](table, owners, partials, piece, **reducing)
    gather_pieces[(table.numel() // COLUMNS,)](table, partials, **gathering)


# Compiled once for a dtype, and not anew for a length or an alignment: that would hold up the training thread.
@triton.jit(do_not_specialize=["table", "owners", "partials", "piece"])
def reduce_pieces(table, owners, partials, piece, pointer: tl.constexpr, wide: tl.constexpr, block: tl.constexpr):
    """Write the minimum and maximum of each piece of each tensor into ``partials``; one program a piece.

    Pieces begin at multiples of 16 bytes, so that a thread reads 16 bytes at once. The few numbers ahead of the first
    such place belong to the first piece, too.
    """
    program = tl.program_id(0)
    row = table + _COLUMNS * tl.load(owners + program)
    address = tl.load(row)
    elements = tl.load(row + 1)
    numbers = address.to(pointer)
    ahead = (-address & 15) * 8 // numbers.dtype.element_ty.primitive_bitwidth
    # The table's numbers are of int64, and so is whatever is calculated with them.
    begin = ahead + (program - tl.load(row + 2)) * piece
    end = tl.minimum(begin + piece, elements)
    whole = begin + tl.maximum(end - begin, 0) // block * block
    lanes = tl.arange(0, block)
    low = tl.full([block], float("inf"), wide)
    high = tl.full([block], float("-inf"), wide)
    for at in range(begin, whole, block):
        read = _load(tl.multiple_of(numbers + at + lanes, 16), wide)
        low, high = _widen(low, high, read, read)
    if whole < end:
        read = _load(numbers + tl.minimum(whole + lanes, elements - 1), wide)
        low, high = _widen(low, high, read, read)
    if (begin == ahead) & (ahead > 0):
        read = _load(numbers + tl.minimum(lanes, tl.minimum(ahead, elements) - 1), wide)
        low, high = _widen(low, high, read, read)
    _store(partials + 2 * program, partials + 2 * program + 1, low, high)


@triton.jit(do_not_specialize=["table", "partials"])
def gather_pieces(table, partials, pointer: tl.constexpr, wide: tl.constexpr, block: tl.constexpr):
    """Write the minimum and maximum of each tensor into its places, from those of its pieces; one program a tensor."""
    row = table + _COLUMNS * tl.program_id(0)
    end = tl.load(row + 3)
    lanes = tl.arange(0, block)
    low = tl.full([block], float("inf"), wide)
    high = tl.full([block], float("-inf"), wide)
    for at in range(tl.load(row + 2), end, block):
        pair = partials + 2 * tl.minimum(at + lanes, end - 1)
        low, high = _widen(low, high, tl.load(pair), tl.load(pair + 1))
    _store(tl.load(row + 4).to(pointer), tl.load(row + 5).to(pointer), low, high)


@triton.jit
def _load(places, wide: tl.constexpr):
    """Numbers as they are compared; those of bfloat16 come as their bits."""
    numbers = tl.load(places)
    if numbers.dtype == tl.int16:
        numbers = (numbers.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return numbers.to(wide)


@triton.jit
def _widen(low, high, lows, highs):
    """Take further numbers in, lane by lane; a NaN stays."""
    low = tl.minimum(low, lows, propagate_nan=tl.PropagateNan.ALL)
    return low, tl.maximum(high, highs, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _store(low_place, high_place, low, high):
    """Store the minimum and maximum of all lanes. A NaN is in the same lanes of both, and ``tl.min`` passes over it."""
    nan = tl.max((low != low).to(tl.int32), 0) > 0
    lowest = tl.where(nan, float("nan"), tl.min(low, 0))
    highest = tl.where(nan, float("nan"), tl.max(high, 0))
    if low_place.dtype.element_ty == tl.int16:
        tl.store(low_place, (lowest.to(tl.int32, bitcast=True) >> 16).to(tl.int16))
        tl.store(high_place, (highest.to(tl.int32, bitcast=True) >> 16).to(tl.int16))
    else:
        tl.store(low_place, lowest)
        tl.store(high_place, highest)
