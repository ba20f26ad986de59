"""One step's numbers on their device: the buffer that hooks write into, and the histograms of a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tracer.extremes import NATIVE, dense_numel, extremes_dtype, local, reduce_into
from tracer.items import (
    APPLIED,
    EMPTY,
    GRADIENT,
    VALUE,
    Group,
    HistogramRows,
    HostCopy,
    Layout,
    Number,
    StepRows,
    Update,
)
from tracer.parameters import NamedParameter
from tracer.statistics import EXTREMES, Measures, histogram

# Every dtype's numbers begin at a multiple of it, so that each can be viewed in place.
_ALIGN_BYTES = 16


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
