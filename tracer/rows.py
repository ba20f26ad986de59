"""One step's rows: a buffer on the device, its crossing to the host, and their form in the log.

This is the only place where data crosses from a device to the host.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from tracer.extremes import NATIVE, reduce_into, reduced_dtype
from tracer.log import schema
from tracer.parameters import NamedParameter

VALUE, GRADIENT, EMPTY = 1, 2, 4

_NUMPY = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
# Every dtype's numbers begin at a multiple of it, so that each can be viewed in place.
_ALIGN_BYTES = 16


class HostCopy:
    """A tensor on its way to the host; the training thread starts it, the daemon waits for it.

    On CUDA the copy goes into pinned memory and nothing waits for it here. Torch's caching host allocator gives that
    memory to a later copy once this one is dropped, which the daemon does with its next look into the queue.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensor.device))
        else:
            # Blocks until the copy is there: pinned memory and events are CUDA's.
            self._host = tensor.cpu()

    def wait(self) -> torch.Tensor:
        """The tensor on the host, once it has arrived. For the daemon: it may block."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


@dataclass(frozen=True)
class Group:
    """The numbers of one dtype in a device's buffer: a row of four for each of these parameters."""

    dtype: torch.dtype
    offset_bytes: int
    indices: npt.NDArray[np.int64]

    @property
    def size_bytes(self) -> int:
        """How many bytes of the buffer it takes."""
        return 4 * len(self.indices) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Where each parameter's four numbers lie: for each device, the groups in its buffer."""

    names: tuple[str, ...]
    groups: tuple[tuple[Group, ...], ...]


class StepRows(NamedTuple):
    """One step's rows on their way to the log. A tuple, since one is made in every step."""

    step: int
    time_ns: int
    layout: Layout
    present: bytes
    copies: list[bytes | HostCopy]

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 500 + 17 * len(self.present)


@dataclass(frozen=True)
class Slot:
    """Where one parameter's extremes go: two views of one number each, for the value and for the gradient."""

    dtype: torch.dtype
    reduce: Callable[..., object]
    value: tuple[torch.Tensor, torch.Tensor]
    gradient: tuple[torch.Tensor, torch.Tensor]


class MisfitError(Exception):
    """A parameter has another dtype or device than its slot."""


class RowBuffer:
    """The preallocated row of a step: four numbers a parameter, in its own dtype and on its own device.

    All numbers of a device share one block of bytes, so that a step crosses to the host in one copy a device.
    """

    def __init__(self, parameters: Sequence[NamedParameter]) -> None:
        slots: dict[int, Slot] = {}
        self._blocks: list[torch.Tensor] = []
        # The same bytes where they are on the host already, where no torch operation need be called to copy them.
        self._views: list[memoryview | None] = []
        groups = []
        for device in dict.fromkeys(parameter.tensor.device for parameter in parameters):
            block, device_groups = _allocate(device, parameters, slots)
            self._blocks.append(block)
            self._views.append(block.numpy().data if device.type == "cpu" else None)
            groups.append(device_groups)
        self.slots = [slots[index] for index in range(len(parameters))]
        self.layout = Layout(tuple(parameter.name for parameter in parameters), tuple(groups))
        self._nothing = bytes(0 if parameter.tensor.numel() else EMPTY for parameter in parameters)
        self.present = bytearray(self._nothing)

    @property
    def incomplete(self) -> bool:
        """Whether some parameter's value has not been recorded in this step."""
        return 0 in self.present

    @property
    def recorded(self) -> bool:
        """Whether any gradient has been recorded in this step."""
        return any(flags & GRADIENT for flags in self.present)

    def record(self, index: int, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Record a parameter's value and its gradient, if it has one; under ``torch.no_grad``, without a host sync.

        Raises:
            MisfitError: the parameter has moved to another dtype or device since this buffer was made.
        """
        if self.present[index] == EMPTY:
            return
        slot = self.slots[index]
        if value.dtype is not slot.dtype:
            raise MisfitError
        try:
            slot.reduce(value, out=slot.value)
            if gradient is not None:
                slot.reduce(gradient, out=slot.gradient)
        except RuntimeError:
            if value.device != slot.value[0].device:
                raise MisfitError from None
            # A gradient that is sparse, or of another dtype than its parameter's.
            reduce_into(value, slot.value)
            if gradient is not None:
                reduce_into(gradient, slot.gradient)
        self.present[index] = VALUE if gradient is None else VALUE | GRADIENT

    def carry(self, old: "RowBuffer") -> None:
        """Take over what an older buffer has recorded in this step."""
        index_of = {name: index for index, name in enumerate(old.layout.names)}
        for index, name in enumerate(self.layout.names):
            before = index_of.get(name)
            if before is not None and old.present[before] not in (0, EMPTY) and self.present[index] != EMPTY:
                mine, theirs = self.slots[index], old.slots[before]
                for to, source in zip(mine.value + mine.gradient, theirs.value + theirs.gradient, strict=True):
                    to.copy_(source)
                self.present[index] = old.present[before]

    def take(self, step: int, time_ns: int) -> StepRows:
        """Send the step's rows to the host and begin anew."""
        copies = [
            HostCopy(block) if view is None else bytes(view)
            for block, view in zip(self._blocks, self._views, strict=True)
        ]
        rows = StepRows(step, time_ns, self.layout, bytes(self.present), copies)
        self.present[:] = self._nothing
        return rows


def _allocate(
    device: torch.device, parameters: Sequence[NamedParameter], slots: dict[int, Slot]
) -> tuple[torch.Tensor, tuple[Group, ...]]:
    """One device's block and its groups; fills in the slots of the parameters on it."""
    by_dtype: dict[torch.dtype, list[int]] = {}
    for index, parameter in enumerate(parameters):
        if parameter.tensor.device == device:
            by_dtype.setdefault(reduced_dtype(parameter.tensor.dtype), []).append(index)
    groups: list[Group] = []
    end = 0
    for dtype, indices in by_dtype.items():
        groups.append(Group(dtype, end, np.array(indices)))
        end += -(-groups[-1].size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
    block = torch.zeros(end, dtype=torch.uint8, device=device)
    for group in groups:
        numbers = block[group.offset_bytes : group.offset_bytes + group.size_bytes].view(group.dtype)
        for index, row in zip(group.indices.tolist(), numbers.view(-1, 4), strict=True):
            value_min, value_max, grad_min, grad_max = row.unbind()
            tensor = parameters[index].tensor
            reduce = torch.aminmax if tensor.dtype in NATIVE else reduce_into
            slots[index] = Slot(tensor.dtype, reduce, (value_min, value_max), (grad_min, grad_max))
    return block, tuple(groups)


class Metric(NamedTuple):
    """One metric on its way to the log."""

    step: int
    time_ns: int
    name: str
    value: float | HostCopy


@dataclass(frozen=True)
class Event:
    """Something that happened to the trace itself, on its way to the log."""

    step: int
    time_ns: int
    kind: str
    param: str | None
    detail: str


def landed(item: StepRows | Metric | Event) -> StepRows | Metric | Event:
    """The same item with its copies on the host, so that pinned memory is not held until it is published."""
    if isinstance(item, StepRows):
        return item._replace(copies=[_bytes(copy) for copy in item.copies])
    if isinstance(item, Metric):
        return item._replace(value=_number(item.value))
    return item


def _bytes(copy: bytes | HostCopy) -> bytes:
    return copy if isinstance(copy, bytes) else copy.wait().numpy().tobytes()


def _number(value: float | HostCopy) -> float:
    return value if isinstance(value, float) else float(value.wait().item())


def event(step: int, kind: str, detail: str, param: str | None = None) -> Event:
    """An event that happens now."""
    return Event(step, time.time_ns(), kind, param, detail)


class Encoder:
    """Turns rows into tables of the log, for one rank and attempt. Runs in the daemon."""

    def __init__(self, rank: int, attempt: int) -> None:
        self._rank = rank
        self._attempt = attempt

    def extremes(self, steps: Sequence[StepRows]) -> pa.Table:
        """The rows of these steps: one a parameter and step."""
        runs: list[list[StepRows]] = []
        for rows in steps:
            if not runs or runs[-1][0].layout is not rows.layout:
                runs.append([])
            runs[-1].append(rows)
        return pa.concat_tables([self._of_one_layout(run) for run in runs]).unify_dictionaries()

    def _of_one_layout(self, steps: list[StepRows]) -> pa.Table:
        layout = steps[0].layout
        count = len(layout.names)
        present = np.frombuffer(b"".join(rows.present for rows in steps), dtype=np.uint8).reshape(len(steps), count)
        keep = (present & (VALUE | GRADIENT) != 0) | (present == EMPTY)
        numbers = _numbers(steps, count)
        recorded = {"value": present & VALUE != 0, "grad": present & GRADIENT != 0}
        columns = [
            pa.array(numbers[keep, column], mask=~recorded[statistic.partition("_")[0]][keep])
            for column, statistic in enumerate(schema.STATISTICS)
        ]
        params = pa.array(np.tile(np.arange(count, dtype=np.int32), len(steps))[keep.ravel()])
        spans = np.ones(len(params), dtype=np.int32)
        key = self._key([rows.step for rows in steps], [rows.time_ns for rows in steps], keep.sum(axis=1))
        names = pa.DictionaryArray.from_arrays(params, pa.array(layout.names, type=pa.string()))
        return pa.table([*key, names, spans, *columns], schema=schema.SCHEMAS["extremes"])

    def metrics(self, metrics: Sequence[Metric]) -> pa.Table:
        """The rows of these metrics."""
        values = [_number(metric.value) for metric in metrics]
        names = pa.array([metric.name for metric in metrics], type=pa.string()).dictionary_encode()
        key = self._key([metric.step for metric in metrics], [metric.time_ns for metric in metrics])
        return pa.table([*key, names, pa.array(values, type=pa.float64())], schema=schema.SCHEMAS["metrics"])

    def events(self, events: Sequence[Event]) -> pa.Table:
        """The rows of these events."""
        key = self._key([event.step for event in events], [event.time_ns for event in events])
        texts = [
            pa.array([getattr(event, name) for event in events], type=pa.string())
            for name in ("kind", "param", "detail")
        ]
        return pa.table([*key, *texts], schema=schema.SCHEMAS["events"])

    def _key(
        self, steps: list[int], times_ns: list[int], repeats: npt.NDArray[np.int64] | int = 1
    ) -> tuple[npt.NDArray[np.int64], pa.Array, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The columns that every table begins with."""
        step = np.repeat(np.array(steps, dtype=np.int64), repeats)
        microseconds = np.repeat(np.array(times_ns, dtype=np.int64) // 1000, repeats)
        constant = np.ones(len(step), dtype=np.int32)
        times = pa.array(microseconds).cast(pa.timestamp("us", tz="UTC"))
        return step, times, constant * np.int32(self._rank), constant * np.int32(self._attempt)


def _numbers(steps: list[StepRows], count: int) -> npt.NDArray[np.float64]:
    """The four numbers of every parameter and step, as float64 of shape (steps, parameters, 4)."""
    numbers = np.zeros((len(steps), count, 4))
    for device, groups in enumerate(steps[0].layout.groups):
        flat = b"".join(_bytes(rows.copies[device]) for rows in steps)
        blocks = np.frombuffer(flat, dtype=np.uint8).reshape(len(steps), -1)
        for group in groups:
            raw = np.ascontiguousarray(blocks[:, group.offset_bytes : group.offset_bytes + group.size_bytes])
            values = raw.view(_NUMPY[group.dtype])
            if group.dtype is torch.bfloat16:
                # numpy has no bfloat16, which is the upper half of a float32.
                values = (values.astype(np.uint32) << 16).view(np.float32)
            numbers[:, group.indices] = values.reshape(len(steps), len(group.indices), 4)
    return numbers
