"""Items that go to the daemon: rows, metrics and events. Only here data crosses from a device to the host."""

import contextlib
import ctypes
import json
import numbers
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tracer.extremes import local, partial
from tracer.log.run import slice_names
from tracer.statistics import Measures

VALUE, GRADIENT, EMPTY, APPLIED = 1, 2, 4, 8
# Nothing that is known of the value is that of the step's first gradient any more.
LOST = 16
UPDATED = 32
QUANTITIES = {"value": VALUE, "grad": GRADIENT, "applied": APPLIED, "update": UPDATED}

# CU_STREAM_CAPTURE_MODE_RELAXED of CUDA's driver.
_RELAXED = 2

_Key = TypeVar("_Key")


@cache
def _exchange() -> Callable[..., Any] | None:
    """The call of CUDA's driver that exchanges this thread's capture mode, which torch has not; None without a driver.

    On AMD's devices there is none, and nothing is exchanged.
    """
    for library in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError, AttributeError):
            exchange: Callable[..., Any] = ctypes.CDLL(library).cuThreadExchangeStreamCaptureMode
            return exchange
    return None


@contextlib.contextmanager
def beside_captures() -> Iterator[None]:
    """Let this thread wait for a device, or load a kernel, while another thread captures a graph.

    Otherwise CUDA may end that capture with an error. The thread has its own mode again afterwards.
    """
    exchange = _exchange()
    if exchange is None:
        yield
        return
    mode = ctypes.c_int(_RELAXED)
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


def capturing() -> bool:
    """Whether this thread captures a CUDA graph. Whatever it asks of the device then becomes a part of that graph."""
    # A device that has failed may not even be asked.
    with contextlib.suppress(Exception):
        return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    return False


class HostCopy:
    """A tensor on its way to the host. The training thread starts the copy, and the daemon waits for it.

    On CUDA the copy goes into pinned memory. Torch's caching host allocator gives that memory to a later copy once the
    daemon drops this one, with its next look into the queue. If the copy fails, only ``wait`` raises: the daemon counts
    what is lost.

    Args:
        tensor: A tensor, or several that are stacked.
    """

    def __init__(self, tensor: torch.Tensor | list[torch.Tensor]) -> None:
        self._done: torch.cuda.Event | None = None
        self._error: Exception | None = None
        try:
            self._start(torch.stack(tensor) if isinstance(tensor, list) else tensor.detach())
        except Exception as error:
            # Without its frames, which hold the tensor.
            self._error = error.with_traceback(None)

    def _start(self, tensor: torch.Tensor) -> None:
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            # Whoever waits for it sleeps: CUDA would otherwise keep a core busy.
            self._done = torch.cuda.Event(blocking=True)
            self._done.record(torch.cuda.current_stream(tensor.device))
        else:
            # Blocks until the copy is there: pinned memory and events are CUDA's.
            self._host = tensor.cpu()

    @property
    def nbytes(self) -> int:
        """Its size on the host."""
        return 0 if self._error else self._host.nbytes

    @property
    def arrived(self) -> bool:
        """Whether ``wait`` would return at once."""
        if self._done is None:
            return True
        with beside_captures():
            arrived: bool = self._done.query()
        return arrived

    def wait(self) -> torch.Tensor:
        """The tensor on the host, once it has arrived. For the daemon: it may block, and raises the copy's error."""
        if self._error is not None:
            raise self._error
        if self._done is not None:
            with beside_captures():
                self._done.synchronize()
        return self._host


Number = float | HostCopy
Scale = Number | Mapping[str, Number]
"""The loss scale of all gradients, or of each parameter's; one that a mapping lacks is not known."""
Rows = npt.NDArray[np.float64] | HostCopy
"""One number, or rows of several, on the host or on its way there."""


def host_blocks(tensors: Mapping[_Key, torch.Tensor]) -> list[tuple[list[_Key], HostCopy]]:
    """Start to copy tensors of one shape, stacked, to the host: for each device the keys and their rows."""
    by_device: dict[torch.device, list[_Key]] = {}
    for key, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(key)
    return [(keys, HostCopy([tensors[key] for key in keys])) for keys in by_device.values()]


def number(tensor: torch.Tensor) -> Number:
    """A one-element tensor's number as it is now, without a sync."""
    # Reading a tensor that is on the host already is no sync.
    return float(tensor.item()) if tensor.is_cpu else HostCopy(tensor)


def metric_value(name: str, metric: object) -> Number | None:
    """The number of a metric; a tensor on a device costs no host sync.

    Returns:
        None of a ``DTensor`` whose number this rank does not hold: to ask the others could wait for them for ever.

    Raises:
        TypeError: the metric is neither a number nor a one-element tensor.
    """
    if isinstance(metric, torch.Tensor):
        if type(metric) is not torch.Tensor and hasattr(metric, "placements") and metric.numel() == 1:
            shard = local(metric.detach())
            if shard.numel() != 1 or partial(metric):
                return None
            metric = shard
        try:
            if metric.is_cpu or (metric.numel() == 1 and not metric.is_complex() and not metric.is_meta):
                return number(metric)
        except Exception:
            # A tensor of one real number that cannot be read is counted as lost by the daemon.
            if metric.numel() == 1 and not metric.is_complex() and not metric.is_meta:
                return HostCopy(metric)
    elif isinstance(metric, HostCopy):
        return metric
    elif isinstance(metric, numbers.Real | np.bool_):
        with contextlib.suppress(OverflowError):
            return float(metric)
    elif isinstance(metric, np.ndarray) and metric.size == 1 and metric.dtype.kind in "biuf":
        return float(metric.item())
    shown = f"a tensor of shape {tuple(metric.shape)}" if isinstance(metric, torch.Tensor) else repr(metric)
    raise TypeError(f"metric {name}={shown} ({type(metric).__name__}) is not a number or a one-element tensor")


@dataclass(frozen=True)
class Group:
    """The numbers of one dtype in a device's buffer: a row for each of these parameters, with these columns."""

    dtype: torch.dtype
    offset_bytes: int
    indices: npt.NDArray[np.int64]
    columns: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Its size in the buffer."""
        return len(self.columns) * len(self.indices) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Where each parameter's numbers lie: for each device, the groups in its buffer.

    The columns of one quantity follow those of another: the extremes first, then the rest. Where updates are recorded,
    two more come last: the spread of each value before its update, and that of what the update changed.

    Attributes:
        names: The parameters.
        slices: How many slices of each have rows of their own, which hold extremes alone.
        elements: How many numbers each parameter has.
        quantities: What is recorded of each.
        measures: The measurements of each quantity.
        groups: Where these lie. Rows are numbered: first those of parameters, then those of slices.
    """

    names: tuple[str, ...]
    slices: tuple[int, ...]
    elements: npt.NDArray[np.float64]
    quantities: tuple[str, ...]
    measures: Measures
    groups: tuple[tuple[Group, ...], ...]

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """The name of each row."""
        of_slices = map(slice_names, self.names, self.slices)
        return (*self.names, *chain.from_iterable(of_slices))

    @cached_property
    def params(self) -> npt.NDArray[np.int64]:
        """The number of the parameter of each row."""
        numbers = np.arange(len(self.names))
        return np.concatenate([numbers, np.repeat(numbers, self.slices)])

    @cached_property
    def rows_and_bytes(self) -> tuple[int, int]:
        """How many rows a step has, and about how many bytes they take in memory until they are written."""
        size_bytes = sum(group.size_bytes for groups in self.groups for group in groups)
        return len(self.rows), 500 + len(self.names) + size_bytes


class Update(NamedTuple):
    """An optimizer's update that unscales gradients itself: by which divisor, and whether it is skipped."""

    indices: list[int]
    divisor: Number
    skipped: Number


class StepRows(NamedTuple):
    """One step's rows on their way to the log. A tuple, since one is made in every step."""

    step: int
    time_ns: int
    layout: Layout
    present: bytes
    copies: list[bytes | HostCopy]
    loss_scale: Scale = 1.0
    updates: tuple[Update, ...] = ()
    attempt: int = 0


class DiscardedRows(StepRows):
    """What was recorded of a backward whose gradients no update used."""

    __slots__ = ()


class HistogramRows(NamedTuple):
    """Histograms on their way to the log: for each device the parameters and quantities, and a row for each."""

    step: int
    time_ns: int
    blocks: Sequence[tuple[list[tuple[str, str]], Rows]]
    loss_scale: Scale = 1.0
    attempt: int = 0


class ActivationRows(NamedTuple):
    """One step's activations on their way to the log.

    For each device the modules, their modes, how many numbers each gave out and of how many units, and a row for each:
    its moments, how many numbers are not 0, how many are saturated, and how many units were active lately.
    """

    step: int
    time_ns: int
    blocks: Sequence[tuple[list[tuple[str, bool, int, int]], Rows]]
    attempt: int = 0


class Metric(NamedTuple):
    """One metric on its way to the log."""

    step: int
    time_ns: int
    name: str
    value: Number
    attempt: int = 0


class Event(NamedTuple):
    """Something that happened to the trace itself, on its way to the log."""

    step: int
    time_ns: int
    kind: str
    param: str | None
    detail: str
    attempt: int = 0


def event(step: int, kind: str, detail: str, param: str | None = None) -> Event:
    """An event that happens now."""
    return Event(step, time.time_ns(), kind, param, detail)


Item = StepRows | HistogramRows | ActivationRows | Metric | Event
"""An item knows its attempt, since the daemon may write it when another has begun."""


def rows_and_bytes(item: Item) -> tuple[int, int]:
    """How many rows of the log an item stands for, and about how many bytes it takes until they are written."""
    match item:
        case StepRows():
            return item.layout.rows_and_bytes
        case HistogramRows() | ActivationRows():
            rows = sum(len(keys) for keys, _ in item.blocks)
            return rows, 500 + 150 * rows + sum(copy.nbytes for _, copy in item.blocks)
        case _:
            return 1, 300


def lost(rows: Mapping[str, int], newest: Item) -> Event:
    """The event that rows of these tables could not be written, at the step of the newest item."""
    return Event(newest.step, time.time_ns(), "dropped", None, json.dumps(rows), newest.attempt)
