"""One step's rows: a buffer on the device, and its crossing to the host.

This is the only place where data crosses from a device to the host.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tracer.extremes import NATIVE, dense_numel, extremes_dtype, local, reduce_into
from tracer.parameters import NamedParameter
from tracer.statistics import EXTREMES, Measures, histogram

VALUE, GRADIENT, EMPTY, APPLIED = 1, 2, 4, 8
QUANTITIES = {"value": VALUE, "grad": GRADIENT, "applied": APPLIED}
# Every dtype's numbers begin at a multiple of it, so that each can be viewed in place.
_ALIGN_BYTES = 16


class HostCopy:
    """A tensor on its way to the host; the training thread starts it, the daemon waits for it.

    On CUDA the copy goes into pinned memory and nothing waits for it here. Torch's caching host allocator gives that
    memory to a later copy once this one is dropped, which the daemon does with its next look into the queue.
    Where the copy cannot be made, nothing is raised here: the daemon is told, and counts what is lost.

    Args:
        tensor: A tensor, or several that are stacked.
    """

    def __init__(self, tensor: torch.Tensor | list[torch.Tensor]) -> None:
        self._done: torch.cuda.Event | None = None
        self._error: Exception | None = None
        try:
            self._start(torch.stack(tensor) if isinstance(tensor, list) else tensor.detach())
        except Exception as error:
            # Without the frames that it has passed, which hold what this was called with.
            self._error = error.with_traceback(None)

    def _start(self, tensor: torch.Tensor) -> None:
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensor.device))
        else:
            # Blocks until the copy is there: pinned memory and events are CUDA's.
            self._host = tensor.cpu()

    @property
    def nbytes(self) -> int:
        """What it takes on the host."""
        return 0 if self._error else self._host.nbytes

    def wait(self) -> torch.Tensor:
        """The tensor on the host, once it has arrived. For the daemon: it may block, and raises what went wrong."""
        if self._error is not None:
            raise self._error
        if self._done is not None:
            self._done.synchronize()
        return self._host


Number = float | HostCopy
Rows = npt.NDArray[np.float64] | HostCopy
"""What is on the host, or on its way there: one number, or rows of several."""


def number(tensor: torch.Tensor) -> Number:
    """A one-element tensor's number as it is now, without a sync."""
    # Reading a tensor that is on the host already is no sync.
    return float(tensor.item()) if tensor.is_cpu else HostCopy(tensor)


@dataclass(frozen=True)
class Group:
    """The numbers of one dtype in a device's buffer: a row of so many columns for each of these parameters."""

    dtype: torch.dtype
    offset_bytes: int
    indices: npt.NDArray[np.int64]
    columns: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """How many bytes of the buffer it takes."""
        return len(self.columns) * len(self.indices) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Where each parameter's numbers lie: for each device, the groups in its buffer.

    What is measured of a quantity (value, grad, applied) are its extremes, then what was asked for beside them; the
    columns of all quantities follow each other.
    """

    names: tuple[str, ...]
    elements: npt.NDArray[np.float64]
    quantities: tuple[str, ...]
    measures: Measures
    groups: tuple[tuple[Group, ...], ...]

    @cached_property
    def rows_and_bytes(self) -> tuple[int, int]:
        """How many rows a step has, and about what they take in memory until they are written."""
        return len(self.names), 500 + (1 + 4 * len(self.quantities) * len(self.measures.measured)) * len(self.names)


class Update(NamedTuple):
    """An update that a ``GradScaler`` leaves to the optimizer: what it divides gradients by, and whether it skips."""

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
    loss_scale: Number = 1.0
    updates: tuple[Update, ...] = ()
    attempt: int = 0


@dataclass(frozen=True)
class Numbers:
    """Where one tensor's numbers go: views of one number each."""

    extremes: tuple[torch.Tensor, torch.Tensor]
    further: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Slot:
    """Where one parameter's numbers go, by quantity."""

    dtype: torch.dtype
    reduce: Callable[..., object]
    quantities: tuple[Numbers, ...]


@dataclass(frozen=True, slots=True)
class Direct:
    """Where a hook may write extremes itself, while its buffer is ``open``.

    The most common parameter needs no more than two reductions. To go through all that the others need would take
    longer than these, since a hook finds cold caches.
    """

    value: tuple[torch.Tensor, torch.Tensor]
    gradient: tuple[torch.Tensor, torch.Tensor]
    buffer: "RowBuffer"
    index: int


class MisfitError(Exception):
    """A parameter has another dtype or device than its slot."""


class RowBuffer:
    """The preallocated row of a step: each parameter's numbers, on its own device, extremes in its own dtype.

    All numbers of a device share one block of bytes, so that a step crosses to the host in one copy a device.

    Attributes:
        present: What has been recorded of each parameter.
        open: Whether hooks may write into it without being asked.
    """

    def __init__(
        self,
        parameters: Sequence[NamedParameter],
        measures: Measures = EXTREMES,
        quantities: tuple[str, ...] = ("value", "grad"),
    ) -> None:
        slots: dict[int, Slot] = {}
        with torch.no_grad():
            tensors = [local(parameter.tensor) for parameter in parameters]
        extremes = [extremes_dtype(parameter.tensor) for parameter in parameters]
        self._blocks: list[torch.Tensor] = []
        # The same bytes where they are on the host already, where no torch operation need be called to copy them.
        self._views: list[memoryview | None] = []
        groups = []
        for device in dict.fromkeys(tensor.device for tensor in tensors):
            # What is made under inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                block, device_groups = _allocate(device, tensors, extremes, measures, len(quantities), slots)
            self._blocks.append(block)
            self._views.append(block.numpy().data if device.type == "cpu" else None)
            groups.append(device_groups)
        self.slots = [slots[index] for index in range(len(parameters))]
        self._sharded = {index for index, parameter in enumerate(parameters) if parameter.sharded}
        names = tuple(parameter.name for parameter in parameters)
        elements = np.array([dense_numel(tensor) for tensor in tensors], dtype=np.float64)
        self.layout = Layout(names, elements, quantities, measures, tuple(groups))
        self._measures = measures
        self._nothing = bytes(0 if tensor.numel() else EMPTY for tensor in tensors)
        self._updates: list[Update] = []
        self.present = bytearray(self._nothing)
        self.open = False

    def direct(self, index: int) -> Direct | None:
        """Where a parameter's hook may write itself; None if there is more to do for this one."""
        slot = self.slots[index]
        if slot.reduce is not torch.aminmax or self._measures.further or index in self._sharded or self._nothing[index]:
            return None
        return Direct(slot.quantities[0].extremes, slot.quantities[1].extremes, self, index)

    @property
    def incomplete(self) -> bool:
        """Whether some parameter's value has not been recorded in this step."""
        return 0 in self.present

    def record(self, index: int, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Record a parameter's value and its gradient, if it has one; under ``torch.no_grad``, without a host sync.

        Raises:
            MisfitError: the parameter has moved to another dtype or device since this buffer was made.
        """
        before = self.present[index]
        if before == EMPTY:
            return
        if index in self._sharded:
            value, gradient = local(value), None if gradient is None else local(gradient)
        slot = self.slots[index]
        if value.dtype is not slot.dtype:
            raise MisfitError
        numbers = slot.quantities
        try:
            slot.reduce(value, out=numbers[0].extremes)
            if gradient is not None:
                slot.reduce(gradient, out=numbers[1].extremes)
        except RuntimeError:
            if value.device != numbers[0].extremes[0].device:
                raise MisfitError from None
            # A gradient that is sparse, or of another dtype than its parameter's.
            reduce_into(value, numbers[0].extremes)
            if gradient is not None:
                reduce_into(gradient, numbers[1].extremes)
        if self._measures.further:
            self._measures.measure(value, numbers[0].further)
            if gradient is not None:
                self._measures.measure(gradient, numbers[1].further)
        self.present[index] = (VALUE if gradient is None else VALUE | GRADIENT) | (before & APPLIED)

    def record_applied(self, index: int, gradient: torch.Tensor | None) -> None:
        """Record the gradient that an optimizer applies, if any; under ``torch.no_grad``, without a host sync."""
        if gradient is None or self.present[index] == EMPTY or _partial(gradient):
            return
        numbers, gradient = self.slots[index].quantities[2], local(gradient)
        reduce_into(gradient, numbers.extremes)
        self._measures.measure(gradient, numbers.further)
        self.present[index] |= APPLIED

    def note_update(self, update: Update) -> None:
        """What was recorded as applied to some parameters is to be divided, or taken back if the update is skipped."""
        self._updates.append(update)

    def carry(self, old: "RowBuffer") -> None:
        """Take over what an older buffer has recorded in this step."""
        index_of = {name: index for index, name in enumerate(self.layout.names)}
        for before, name in enumerate(old.layout.names):
            index = index_of.get(name)
            if index is not None and old.present[before] not in (0, EMPTY) and self.present[index] != EMPTY:
                for to, source in zip(_views(self.slots[index]), _views(old.slots[before]), strict=True):
                    to.copy_(source)
                self.present[index] = old.present[before]
        for update in old._updates:
            kept = [index_of[name] for name in (old.layout.names[i] for i in update.indices) if name in index_of]
            self._updates.append(update._replace(indices=kept))

    def take(self, step: int, time_ns: int, loss_scale: Number = 1.0) -> StepRows:
        """Send the step's rows to the host and begin anew."""
        copies = [
            HostCopy(block) if view is None else bytes(view)
            for block, view in zip(self._blocks, self._views, strict=True)
        ]
        rows = StepRows(step, time_ns, self.layout, bytes(self.present), copies, loss_scale, tuple(self._updates))
        self.present[:] = self._nothing
        self._updates.clear()
        return rows


def _partial(gradient: torch.Tensor) -> bool:
    """Whether this rank holds a summand of the gradient, which only the optimizer will add up with the others'."""
    return any(placement.is_partial() for placement in getattr(gradient, "placements", ()))


def _views(slot: Slot) -> Iterator[torch.Tensor]:
    for numbers in slot.quantities:
        yield from (*numbers.extremes, *numbers.further)


def _allocate(
    device: torch.device,
    tensors: Sequence[torch.Tensor],
    extremes: Sequence[torch.dtype],
    measures: Measures,
    quantities: int,
    slots: dict[int, Slot],
) -> tuple[torch.Tensor, tuple[Group, ...]]:
    """One device's block and its groups; fills in the slots of the tensors on it."""
    kinds = [
        (range(2), extremes),
        (range(2, width := len(measures.measured)), [torch.float64] * len(tensors)),
    ]
    groups: list[Group] = []
    end = 0
    for numbers, dtypes in kinds:
        by_dtype: dict[torch.dtype, list[int]] = {}
        for index, tensor in enumerate(tensors):
            if numbers and tensor.device == device:
                by_dtype.setdefault(dtypes[index], []).append(index)
        columns = tuple(at * width + number for at in range(quantities) for number in numbers)
        for dtype, indices in by_dtype.items():
            groups.append(Group(dtype, end, np.array(indices), columns))
            end += -(-groups[-1].size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
    block = torch.zeros(end, dtype=torch.uint8, device=device)
    views: dict[int, dict[int, torch.Tensor]] = {}
    for group in groups:
        rows = block[group.offset_bytes : group.offset_bytes + group.size_bytes].view(group.dtype)
        for index, row in zip(group.indices.tolist(), rows.view(-1, len(group.columns)), strict=True):
            views.setdefault(index, {}).update(zip(group.columns, row.unbind(), strict=True))
    for index, view in views.items():
        places = []
        for first in range(0, quantities * width, width):
            low, high, *further = (view[first + number] for number in range(width))
            places.append(Numbers((low, high), tuple(further)))
        dtype = tensors[index].dtype
        native = dtype in NATIVE and places[0].extremes[0].dtype is dtype
        slots[index] = Slot(dtype, torch.aminmax if native else reduce_into, tuple(places))
    return block, tuple(groups)


class HistogramRows(NamedTuple):
    """Histograms on their way to the log: for each device the parameters and quantities, and a row a histogram."""

    step: int
    time_ns: int
    blocks: Sequence[tuple[list[tuple[str, str]], Rows]]
    loss_scale: Number = 1.0
    attempt: int = 0


class Histograms:
    """The histograms of one step, as they are collected.

    Args:
        bins: How many bins each has.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._made: dict[tuple[str, str], torch.Tensor] = {}

    def collect(self, param: str, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Make a parameter's histograms; under ``torch.no_grad``, without a host sync."""
        for of, tensor in (("value", value), ("grad", gradient)):
            if tensor is not None and local(tensor).numel():
                self._made[param, of] = histogram(local(tensor), self.bins)

    def take(self, step: int, time_ns: int, loss_scale: Number = 1.0) -> HistogramRows:
        """Send them to the host and begin anew."""
        by_device: dict[torch.device, list[tuple[str, str]]] = {}
        for key, made in self._made.items():
            by_device.setdefault(made.device, []).append(key)
        blocks = [(keys, HostCopy([self._made[key] for key in keys])) for keys in by_device.values()]
        self._made.clear()
        return HistogramRows(step, time_ns, blocks, loss_scale)


class ActivationRows(NamedTuple):
    """One step's activations on their way to the log.

    For each device the module, its mode and how many numbers it gave out, and a row of their moments for each of these.
    """

    step: int
    time_ns: int
    blocks: Sequence[tuple[list[tuple[str, bool, int]], Rows]]
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
"""What a trace sends to its daemon, which may write it when another attempt has begun: each knows its own."""


def rows_and_bytes(item: Item) -> tuple[int, int]:
    """How many rows of the log an item stands for, and about what it takes in memory until they are written."""
    match item:
        case StepRows():
            return item.layout.rows_and_bytes
        case HistogramRows() | ActivationRows():
            rows = sum(len(keys) for keys, _ in item.blocks)
            return rows, 500 + 150 * rows + sum(copy.nbytes for _, copy in item.blocks)
        case _:
            return 1, 300
