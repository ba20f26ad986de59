"""One step's numbers on their device: the buffer that hooks write into, and the histograms of a step."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch

from tracer.batch import Batch, Direct
from tracer.extremes import NATIVE, dense_numel, extremes_dtype, flat, local, partial, reduce_into, reduce_slices
from tracer.histogram import histogram
from tracer.items import (
    APPLIED,
    EMPTY,
    GRADIENT,
    LOST,
    UPDATED,
    VALUE,
    DiscardedRows,
    Group,
    HistogramRows,
    HostCopy,
    Layout,
    Scale,
    StepRows,
    Update,
    host_blocks,
)
from tracer.kernel import Places, Reducers
from tracer.parameters import NamedParameter
from tracer.statistics import EXTREMES, WITHOUT_FLOAT64, Measures, spread_of

# On these devices a copy to the host is made later than it is asked for, and operations of several streams overlap.
STREAMED = frozenset({"cuda"})
# Every dtype's numbers begin at a multiple of it, so that each can be viewed in place.
_ALIGN_BYTES = 16


@dataclass(frozen=True)
class Slot:
    """Where one parameter's numbers go: for each quantity views of one number each.

    Attributes:
        dtype: The parameter's.
        native: Whether ``torch.aminmax`` is all that it needs.
        extremes: For minimum and maximum.
        further: For further measurements.
        spreads: For the spread of a value before its update, and of what the update changed; none where these are not
            measured.
        slices: Views of the minima and maxima of all slices; none where they are not recorded.
    """

    dtype: torch.dtype
    native: bool
    extremes: list[Places]
    further: list[tuple[torch.Tensor, ...]]
    spreads: tuple[torch.Tensor, ...]
    slices: list[Places]

    def views(self) -> Iterator[torch.Tensor]:
        """All of them."""
        return chain(*self.extremes, *self.further, *self.slices, self.spreads)

    def takes_over(self, other: "Slot") -> bool:
        """Whether the slices of another slot are as many as these."""
        return [view.shape for view in chain(*self.slices)] == [view.shape for view in chain(*other.slices)]

    def reduce(self, tensor: torch.Tensor, quantity: int) -> None:
        """Write the extremes of a tensor of any layout and dtype; under ``torch.no_grad``, without a host sync."""
        if self.slices:
            reduce_slices(tensor, self.extremes[quantity], self.slices[quantity])
        else:
            reduce_into(tensor, self.extremes[quantity])


@dataclass(frozen=True)
class Numbers:
    """Room for a step's numbers: a block of bytes for each device, and in them a slot for each parameter."""

    blocks: list[torch.Tensor]
    slots: list[Slot]
    groups: tuple[tuple[Group, ...], ...]


class MisfitError(Exception):
    """A parameter has another dtype, device or size than its slot."""


class RowBuffer:
    """The preallocated row of a step: each parameter's numbers, on its own device, extremes in its own dtype.

    All numbers of a device share one block of bytes, so that a step crosses to the host in one copy a device. A CUDA
    device has two: while one is copied, hooks write the next step's numbers into the other. Those hooks may run in
    streams that do not wait for the copy. The end of their backward does, after which the first block is free again.

    Attributes:
        present: A byte for each parameter: its quantities that have been recorded.
        kinds: The dtypes and devices of the parameters that two reductions do.
        batch: Where hooks may write into the buffer themselves, or note that they have been called.
    """

    def __init__(
        self,
        parameters: Sequence[NamedParameter],
        measures: Measures = EXTREMES,
        quantities: tuple[str, ...] = ("value", "grad"),
    ) -> None:
        with torch.no_grad():
            tensors = [local(parameter.tensor) for parameter in parameters]
        extremes = [extremes_dtype(parameter.tensor) for parameter in parameters]
        streamed = any(tensor.device.type in STREAMED for tensor in tensors)
        slices = tuple(parameter.slices for parameter in parameters)
        numbers, *spare = (
            _numbers(tensors, extremes, slices, measures, quantities) for _ in range(2 if streamed else 1)
        )
        self._numbers, self._spare = numbers, spare[0] if spare else None
        # Whether this step's numbers may still be on their way to the host.
        self._sent = False
        self.slots = numbers.slots
        # Weakly, as they hold the model's parameters.
        self._lent = weakref.WeakValueDictionary[int, Direct]()
        self._look_into_blocks()
        self._sharded = {index for index, parameter in enumerate(parameters) if parameter.sharded}
        self._tensors = [id(parameter.tensor) for parameter in parameters]
        names = tuple(parameter.name for parameter in parameters)
        self._elements = [dense_numel(tensor) for tensor in tensors]
        elements = np.array(self._elements, dtype=np.float64)
        self.layout = Layout(names, slices, elements, quantities, measures, numbers.groups)
        self._measures = measures
        self._nothing = bytes(0 if tensor.numel() else EMPTY for tensor in tensors)
        self._updates: list[Update] = []
        self.present = bytearray(self._nothing)
        self.batch = Batch(self.present)
        self.kinds = {(slot.dtype, slot.extremes[0][0].device) for slot in self.slots if slot.native}

    @property
    def on_host(self) -> bool:
        """Whether all of it lies in the host's memory."""
        return None not in self._views

    def direct(self, index: int, tensor: torch.Tensor, reducers: Reducers) -> Direct | None:
        """Where a parameter's hook may write itself; None if this parameter needs more than two reductions."""
        slot = self.slots[index]
        if not slot.native or self._measures.further or index in self._sharded or self._nothing[index]:
            return None
        reducer = reducers.of((slot.dtype, slot.extremes[0][0].device))
        if reducer is not None:
            # It keeps the addresses of the places, and writes at the end of a backward, after all of its streams.
            self._spare = None
        lent = self._lent[index] = Direct(tensor, slot.extremes[0], slot.extremes[1], self.batch, index, reducer)
        return lent

    @property
    def incomplete(self) -> bool:
        """Whether some parameter's value has not been recorded in this step."""
        return 0 in self.present

    def record(self, index: int, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Record a parameter's value and its gradient, if it has one; under ``torch.no_grad``, without a host sync.

        The value is recorded once a step: later backwards of the step may see weights that were moved for a trial.

        Raises:
            MisfitError: the parameter has moved to another dtype, device or size since this buffer was made.
        """
        before = self.present[index]
        if before == EMPTY:
            return
        parameter = value
        if index in self._sharded:
            value, gradient = local(value), None if gradient is None else local(gradient)
        slot = self.slots[index]
        # The count of elements makes a mean of a sum.
        if value.dtype is not slot.dtype or (self._measures.further and dense_numel(value) != self._elements[index]):
            raise MisfitError
        if slot.slices and value.shape[:1] != slot.slices[0][0].shape:
            raise MisfitError
        extremes = slot.extremes
        first = not before & VALUE
        try:
            if first:
                _reduce(slot, value, 0)
            if gradient is not None:
                _reduce(slot, gradient, 1)
        except RuntimeError:
            if value.device != extremes[0][0].device or extremes_dtype(parameter) is not extremes[0][0].dtype:
                raise MisfitError from None
            # The gradient is sparse, or has another dtype than its parameter.
            if first:
                slot.reduce(value, 0)
            if gradient is not None:
                slot.reduce(gradient, 1)
        if self._measures.further:
            if first:
                self._measures.measure(value, slot.further[0])
            if gradient is not None:
                self._measures.measure(gradient, slot.further[1])
        kept = before & (LOST | APPLIED | UPDATED)
        self.present[index] = kept | (0 if before & LOST else VALUE) | (0 if gradient is None else GRADIENT)

    def unchanged(self) -> bool:
        """Whether the gradients that were recorded as they came, and noted, are still the same. Forgets the notes."""
        views = [memoryview(self.present), *(view for view in self._views if view is not None)]
        recorded = list(map(bytes, views))
        self.batch.read()
        same = recorded == list(map(bytes, views))
        if not same:
            for view, numbers in zip(views, recorded, strict=True):
                view[:] = numbers
        return same

    def record_applied(self, index: int, gradient: torch.Tensor | None) -> None:
        """Record the gradient that an optimizer applies, if any; under ``torch.no_grad``, without a host sync."""
        if gradient is None or self.present[index] == EMPTY or partial(gradient):
            return
        slot, gradient = self.slots[index], local(gradient)
        slot.reduce(gradient, 2)
        self._measures.measure(gradient, slot.further[2])
        self.present[index] |= APPLIED

    def record_update(self, index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Record by how much an update has changed a parameter; under ``torch.no_grad``, without a host sync.

        Args:
            index: The parameter's place.
            before: A copy of what it was, which is overwritten.
            after: What it is.
        """
        slot, place = self.slots[index], self.layout.quantities.index("update")
        if slot.spreads:
            slot.spreads[0].copy_(spread_of(before))
        change = torch.sub(after, before, out=before)
        if slot.spreads:
            slot.spreads[1].copy_(spread_of(change))
        slot.reduce(change, place)
        self._measures.measure(change, slot.further[place])
        self.present[index] |= UPDATED

    def extremes(self, index: int, quantity: int) -> tuple[float, float]:
        """What is recorded of a quantity of a parameter on the host, by its place among the quantities."""
        low, high = self.slots[index].extremes[quantity]
        return low.item(), high.item()

    def discard(self, indices: Sequence[int], step: int, time_ns: int, loss_scale: Scale) -> DiscardedRows:
        """Send what is recorded of these parameters to the host, and forget their gradients."""
        present = bytearray(len(self.present))
        for index in indices:
            present[index] = self.present[index] & (VALUE | GRADIENT)
            self.present[index] &= ~GRADIENT
        return DiscardedRows(step, time_ns, self.layout, bytes(present), self._copies(), loss_scale)

    def note_update(self, update: Update) -> None:
        """Have the applied gradients of some parameters divided, or taken back if the update is skipped."""
        self._updates.append(update)

    def carry(self, old: "RowBuffer") -> None:
        """Take over the numbers that an older buffer has recorded in this step."""
        of_tensor = {tensor: index for index, tensor in enumerate(self._tensors)}
        of_name = {name: index for index, name in enumerate(self.layout.names)}
        # A tensor may have got another name, and a name another tensor.
        places = zip(old._tensors, old.layout.names, strict=True)
        index_of = [of_tensor.get(tensor, of_name.get(name)) for tensor, name in places]
        for before, index in enumerate(index_of):
            if (
                index is not None
                and old.present[before] not in (0, EMPTY)
                and self.present[index] != EMPTY
                and self.slots[index].takes_over(old.slots[before])
            ):
                # A device without float64 has no spreads, which come last.
                for to, source in zip(self.slots[index].views(), old.slots[before].views(), strict=False):
                    to.copy_(source)
                self.present[index] = old.present[before]
        for update in old._updates:
            kept = [index for index in map(index_of.__getitem__, update.indices) if index is not None]
            self._updates.append(update._replace(indices=kept))

    def take(self, step: int, time_ns: int, loss_scale: Scale = 1.0) -> StepRows:
        """Send the step's rows to the host."""
        self._sent = True
        present, updates = bytes(self.present), tuple(self._updates)
        return StepRows(step, time_ns, self.layout, present, self._copies(), loss_scale, updates)

    def clear(self) -> None:
        """Begin the next step."""
        self.present[:] = self._nothing
        self._updates.clear()
        if self._sent and self._spare is not None:
            self._numbers, self._spare = self._spare, self._numbers
            self.slots = self._numbers.slots
            for index, direct in self._lent.items():
                direct.value, direct.gradient = self.slots[index].extremes[:2]
            self._look_into_blocks()
        self._sent = False

    def _copies(self) -> list[bytes | HostCopy]:
        return [
            HostCopy(block) if view is None else bytes(view)
            for block, view in zip(self._numbers.blocks, self._views, strict=True)
        ]

    def _look_into_blocks(self) -> None:
        """The bytes of a block that is on the host are copied without a torch operation."""
        blocks = self._numbers.blocks
        self._views: list[memoryview | None] = [block.numpy().data if block.is_cpu else None for block in blocks]


def _reduce(slot: Slot, tensor: torch.Tensor, quantity: int) -> None:
    """Write a tensor's extremes in the shortest way."""
    if slot.native:
        torch.aminmax(flat(tensor), out=slot.extremes[quantity])
    else:
        slot.reduce(tensor, quantity)


def _numbers(
    tensors: Sequence[torch.Tensor],
    extremes: Sequence[torch.dtype],
    slices: Sequence[int],
    measures: Measures,
    quantities: tuple[str, ...],
) -> Numbers:
    """Room for the numbers of a step, on the devices of these tensors."""
    slots: dict[int, Slot] = {}
    blocks, groups = [], []
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        # A tensor made under inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            block, device_groups = _allocate(device, tensors, extremes, slices, measures, quantities, slots)
        blocks.append(block)
        groups.append(device_groups)
    return Numbers(blocks, [slots[index] for index in range(len(tensors))], tuple(groups))


def _allocate(
    device: torch.device,
    tensors: Sequence[torch.Tensor],
    extremes: Sequence[torch.dtype],
    slices: Sequence[int],
    measures: Measures,
    quantities: tuple[str, ...],
    slots: dict[int, Slot],
) -> tuple[torch.Tensor, tuple[Group, ...]]:
    """One device's block and its groups; fills in the slots of the tensors on it."""
    here = [index for index, tensor in enumerate(tensors) if tensor.device == device]
    width = len(measures.measured)
    firsts = range(0, len(quantities) * width, width)
    beyond = len(quantities) * width
    spreads = (beyond, beyond + 1) if "update" in quantities and device.type not in WITHOUT_FLOAT64 else ()
    kinds = [
        (tuple(first + number for first in firsts for number in range(2)), extremes),
        (
            (*(first + number for first in firsts for number in range(2, width)), *spreads),
            [torch.float64] * len(tensors),
        ),
    ]
    groups: list[Group] = []
    end = 0
    for columns, dtypes in kinds:
        by_dtype: dict[torch.dtype, list[int]] = {}
        for index in here if columns else ():
            by_dtype.setdefault(dtypes[index], []).append(index)
        for dtype, indices in by_dtype.items():
            groups.append(Group(dtype, end, np.array(indices), columns))
            end += -(-groups[-1].size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
    # Of the parameters that have slices, a group each: one operation writes a whole column of it.
    sliced = {index: len(groups) + at for at, index in enumerate(index for index in here if slices[index])}
    columns = tuple(first + number for first in firsts for number in range(2))
    first_rows = list(accumulate(slices, initial=len(tensors)))
    for index in sliced:
        groups.append(Group(extremes[index], end, np.arange(*first_rows[index : index + 2]), columns))
        end += -(-groups[-1].size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
    block = torch.zeros(end, dtype=torch.uint8, device=device)
    tables = [
        block[group.offset_bytes : group.offset_bytes + group.size_bytes].view(group.dtype).view(-1, len(group.columns))
        for group in groups
    ]
    views: dict[int, dict[int, torch.Tensor]] = {}
    for group, rows in zip(groups[: len(groups) - len(sliced)], tables, strict=False):
        for index, row in zip(group.indices.tolist(), rows, strict=True):
            views.setdefault(index, {}).update(zip(group.columns, row.unbind(), strict=True))
    for index, view in views.items():
        dtype = tensors[index].dtype
        of_slices = tables[sliced[index]].unbind(1) if index in sliced else ()
        native = dtype in NATIVE and view[0].dtype is dtype and not of_slices
        slots[index] = Slot(
            dtype,
            native,
            [(view[first], view[first + 1]) for first in firsts],
            [tuple(view[first + number] for number in range(2, width)) for first in firsts],
            tuple(view[place] for place in spreads),
            list(zip(of_slices[::2], of_slices[1::2], strict=True)),
        )
    return block, tuple(groups)


class Histograms:
    """Collects the histograms of one step, each with so many bins."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._histograms: dict[tuple[str, str], torch.Tensor] = {}

    def collect(self, param: str, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Make a parameter's histograms; under ``torch.no_grad``, without a host sync."""
        for of, tensor in (("value", value), ("grad", gradient)):
            if of == "value" and (param, of) in self._histograms:
                # As extremes: the value is that of the step's first gradient.
                continue
            if tensor is not None and local(tensor).numel():
                self._histograms[param, of] = histogram(local(tensor), self.bins)

    def forget_gradient(self, param: str) -> None:
        """Forget the histogram of a parameter's gradient."""
        self._histograms.pop((param, "grad"), None)

    def take(self, step: int, time_ns: int, loss_scale: Scale = 1.0) -> HistogramRows:
        """Send them to the host and begin anew."""
        blocks = host_blocks(self._histograms)
        self._histograms.clear()
        return HistogramRows(step, time_ns, blocks, loss_scale)
