"""The extremes of many tensors on a CUDA device in two launches, where one by one each tensor takes a launch or two.

For who reduces everything at the end of a backward::

    if available(device):                           # at attach: imports nothing, and asks the device for nothing
        reducer = Reducer(torch.float32, device)    # one for each dtype and device, as long as the trace lives
        reducer.prepare()                           # in a background thread: seconds, if nothing is compiled yet
    if reducer.ready:                               # in the training thread, once a backward, under torch.no_grad
        reducer.reduce([(tensor, (low, high)), ...])

- While ``available`` or ``ready`` is False, reduce each tensor by itself, and say nothing.
- ``prepare`` and ``reduce`` raise what fails. After a launch that fails, ``ready`` is False for good, so that there is
  one error to tell of. What ``reduce`` was given can be reduced again, one by one.
- ``reduce`` does not wait for the device. Memory is read in the order of the current stream, as by any operation of
  torch, so that tensors need not be kept. Do not call it while that stream captures a graph.
- A tensor that is left out keeps what is in its places. Name no place twice in one call.
- A list with the same addresses, sizes and places (the same tuples) as in the call before sends nothing to the device.

The numbers are those of ``torch.aminmax``. Which zero of 0.0 and -0.0 they are, and which NaN, is not defined.

Further statistics are not made here: the last bits of a sum depend on its order, so that they would not be those of
``tracer.statistics``, and a spread needs the mean first, in a pass of its own.
"""

import importlib.util
import itertools
import os
import shutil
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tracer.extremes import is_dense, reduce_into
from tracer.items import HostCopy, beside_captures

Places = tuple[torch.Tensor, torch.Tensor]
Kind = tuple[torch.dtype, torch.device]
Addresses = npt.NDArray[np.int64]

# More programs would make a longer table; with fewer, much of a large device would idle while the last ones end.
_PROGRAMS = 8192
# What a program reads at least, in blocks: its start takes about as long as to read one.
_LEAST_BLOCKS = 8
# Tensors of other classes may have their numbers elsewhere.
_PLAIN = {torch.Tensor, torch.nn.Parameter}


def available(device: torch.device) -> bool:
    """Whether ``prepare`` is worth a try: an NVIDIA device, Triton, and what Triton compiles its own C code with."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and importlib.util.find_spec("triton") is not None
        and any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang")))
        and Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists()
    )


class Reducer:
    """Writes the extremes of many tensors of one dtype on one device into their places.

    Args:
        dtype: float64, float32, bfloat16 or float16: that of the tensors and of their places.
        device: A CUDA device with its index; the host, if Triton interprets its kernels.

    Attributes:
        ready: Whether ``prepare`` has succeeded, and no launch has failed since then.
        sent: How often something was sent to the device.
        error: What failed, in ``prepare`` or in a launch.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.ready = False
        self.sent = 0
        self.error: Exception | None = None
        self._dtype = dtype
        self._device = device
        # Torch's number of the host is -1, which torch.cuda takes for no device.
        self._index = device.index if device.type == "cuda" else -1
        # The places of the last call, and their addresses: two rows.
        self._places: tuple[Sequence[Places], Addresses] = ((), np.empty((2, 0), np.int64))
        # What was sent last, and for what.
        self._sent: tuple[object, tuple[Any, ...]] = (None, ())

    def prepare(self) -> None:
        """Compile and load the kernels, and compare what they give with ``torch.aminmax``; for a background thread.

        It works in a stream of its own, waits for that one alone, and ends no other thread's capture of a graph.

        Raises:
            Exception: Triton cannot be imported, compile or launch here, or the numbers differ.
        """
        with _own_stream(self._device), torch.no_grad():
            numbers = torch.arange(-5000, 50_000, device=self._device).to(self._dtype)
            numbers[40_000], numbers[50_000] = torch.inf, torch.nan
            tensors = [numbers, numbers[1:20_000], numbers[3:4], numbers[:45_001]]
            places = torch.zeros(len(tensors), 2, dtype=self._dtype, device=self._device)
            self.reduce([(tensor, (row[0], row[1])) for tensor, row in zip(tensors, places, strict=True)])
            expected = torch.stack([torch.stack(torch.aminmax(tensor)) for tensor in tensors])
            found, expected = HostCopy([places, expected]).wait()
        self._sent = (None, ())
        if not torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True):
            raise RuntimeError(f"the kernels' extremes are {found.tolist()} instead of {expected.tolist()}")
        self.ready = True

    def reduce(self, pairs: Sequence[tuple[torch.Tensor, Places]]) -> None:
        """Write each tensor's minimum and maximum into its two places; under ``torch.no_grad``, without a host sync.

        What cannot be read as it lies in memory (numbers with gaps, another dtype, a sparse tensor, a subclass) is
        reduced by itself, as by ``reduce_into``. A tensor without an element leaves its places as they are.

        Args:
            pairs: Tensors of any shape, each with two 0-dim tensors of this dtype on this device.

        Raises:
            Exception: a launch fails, or the reduction of a tensor by itself.
        """
        addresses, elements, outs = [], [], []
        for tensor, out in pairs:
            if not (count := tensor.numel()):
                continue
            if self._lies_flat(tensor):
                addresses.append(tensor.data_ptr())
                elements.append(count)
                outs.append(out)
            else:
                reduce_into(tensor, out)
        if addresses:
            try:
                with torch.cuda.device(self._index):
                    self._launch(addresses, elements, outs)
            except Exception as error:
                self.ready, self._sent, self.error = False, (None, ()), error
                raise

    def _lies_flat(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's numbers fill a part of the device's memory, in whatever order."""
        return (
            type(tensor) in _PLAIN
            and tensor.dtype is self._dtype
            and tensor.get_device() == self._index
            and tensor.layout is torch.strided
            and not tensor.is_neg()
            and (tensor.is_contiguous() or is_dense(tensor.shape, tensor.stride()))
        )

    def _launch(self, addresses: list[int], elements: list[int], outs: list[Places]) -> None:
        # Not before it is needed: it imports Triton.
        from tracer import device

        if self._index >= 0 and device.interpreted():
            raise RuntimeError("TRITON_INTERPRET is set: kernels would run on the host, which cannot read the device")
        if len(outs) != len(self._places[0]) or not all(map(is_, outs, self._places[0])):
            self._sent = (None, ())
            self._places = (outs, self._addresses(outs))
        # What was sent in one stream is used in no other: streams do not wait for each other.
        key = (addresses, elements, torch.cuda.current_stream() if self._index >= 0 else None)
        if key != self._sent[0]:
            self._sent = (key, self._send(addresses, elements))
        device.launch(self._dtype, *self._sent[1])

    def _addresses(self, outs: list[Places]) -> Addresses:
        for place in itertools.chain(*outs):
            if place.dtype is not self._dtype or place.get_device() != self._index:
                raise ValueError(f"a place of {place.dtype} on {place.device} for {self._dtype} on {self._device}")
        return np.array([[place.data_ptr() for place in column] for column in zip(*outs, strict=True)])

    def _send(self, addresses: list[int], elements: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Send what the kernels have to know of all tensors in one copy; what ``device.launch`` takes."""
        from tracer import device

        piece, pieces = cut(elements, device.block_of(self._dtype))
        ends = pieces.cumsum()
        table = np.column_stack([addresses, elements, ends - pieces, ends, *self._places[1]]).ravel()
        numbers = np.concatenate([table, np.repeat(np.arange(len(pieces)), pieces)])
        # Torch keeps the pinned memory until the copy has been made, and then uses it again.
        host = torch.empty(len(numbers), dtype=torch.int64, device="cpu", pin_memory=self._index >= 0)
        host.numpy()[:] = numbers
        sent = host.to(self._device, non_blocking=True)
        self.sent += 1
        partials = torch.empty(2 * int(ends[-1]), dtype=device.wide(self._dtype), device=self._device)
        return sent[: len(table)], sent[len(table) :], partials, piece


class Reducers:
    """The reducers of a trace, which a thread of their own prepares.

    Args:
        wanted: Whether there are any.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._reducers: dict[Kind, Reducer] = {}

    def prepare(self, kinds: Iterable[Kind]) -> None:
        """Prepare reducers for these dtypes and devices, but for those that have been prepared, or cannot be."""
        new = [kind for kind in set(kinds) - self._reducers.keys() if self._wanted and available(kind[1])]
        if new:
            self._reducers |= {kind: Reducer(*kind) for kind in new}
            threading.Thread(target=self._prepare, args=(new,), name="gradwatch-kernels", daemon=True).start()

    def of(self, kind: Kind) -> Reducer | None:
        """The reducer for a dtype and device, if there is one."""
        return self._reducers.get(kind)

    def ready(self, kinds: Iterable[Kind]) -> bool:
        """Whether there is one for each of these that can be used."""
        return self._wanted and all((reducer := self.of(kind)) is not None and reducer.ready for kind in kinds)

    def error(self) -> Exception | None:
        """What has failed, once."""
        for reducer in self._reducers.values():
            if reducer.error is not None:
                error, reducer.error = reducer.error, None
                return error
        return None

    def _prepare(self, kinds: Iterable[Kind]) -> None:
        for kind in kinds:
            try:
                self._reducers[kind].prepare()
            except Exception as error:
                self._reducers[kind].error = error


def cut(elements: Sequence[int], block: int) -> tuple[int, npt.NDArray[np.int64]]:
    """How to cut tensors into pieces: not too many, and none too small.

    Args:
        elements: How many elements each tensor has; one or more.
        block: How many elements a program reads at once.

    Returns:
        The elements of a piece, a multiple of ``block``, and the number of pieces of each tensor.
    """
    piece = block * max(_LEAST_BLOCKS, -(-sum(elements) // (block * _PROGRAMS)))
    return piece, -(-np.array(elements, dtype=np.int64) // piece)


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Let this thread work on the device beside training, even while another thread captures a graph."""
    if device.type != "cuda":
        yield
        return
    with beside_captures(), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
