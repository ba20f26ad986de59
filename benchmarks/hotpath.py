"""The cost of other ways to find extremes, beside the tracer's own.

All of them take minimum and maximum of every parameter and gradient at every step. They do nothing else: they count no
steps and keep nothing. They differ in two things:

- *The function*: ``torch.aminmax``, or ``amin`` and ``amax``, or a loop compiled by numba. The loop reads the numbers'
  bits as integers: their order is that of the numbers, and NaN lies beyond both ends.
- *The moment*: in the gradients' hooks, in one sweep after the backward, or in a callback at the backward's end.

The floor is one ``torch.sum`` of each tensor, in a sweep. numba comes with ``pip install -e '.[bench]'``. Without it,
its row is left out. Run: ``python -m benchmarks.hotpath``.
"""

import copy
import ctypes
import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tracer
from benchmarks.overhead import hold, read_with_items
from tracer.bench import OwnHooks, measure, read_once
from tracer.trainings import Build, training_step

Pair = tuple[torch.Tensor, torch.Tensor]
Reduce = Callable[[torch.Tensor, Pair], object]

WARM_UP = 20


def aminmax(tensor: torch.Tensor, out: Pair) -> None:
    """Minimum and maximum in one pass over memory."""
    torch.aminmax(tensor, out=out)


def amin_and_amax(tensor: torch.Tensor, out: Pair) -> None:
    """Minimum and maximum in two passes, each of which is faster."""
    torch.amin(tensor, (), out=out[0])
    torch.amax(tensor, (), out=out[1])


def compiled_loop() -> Reduce:
    """A loop over the bits of float32 numbers, in one thread."""
    numba = importlib.import_module("numba")
    mask, infinity = np.int32(0x7FFFFFFF), np.int32(0x7F800000)

    def loop(pointer: Any, count: int, out: Any) -> None:
        numbers, extremes = numba.carray(pointer, count), numba.carray(out, 2)
        low, high = mask, np.int32(~mask)
        for at in range(count):
            bits = numbers[at]
            # The order of negative numbers is turned around.
            key = bits ^ ((bits >> np.int32(31)) & mask)
            low, high = min(low, key), max(high, key)
        if high > infinity or low < ~infinity:
            extremes[0] = extremes[1] = mask
        else:
            extremes[0], extremes[1] = low ^ ((low >> np.int32(31)) & mask), high ^ ((high >> np.int32(31)) & mask)

    integers = numba.types.CPointer(numba.types.int32)
    function = numba.cfunc(numba.types.void(integers, numba.types.int64, integers))(loop).ctypes
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]

    def reduce(tensor: torch.Tensor, out: Pair) -> None:
        if tensor.dtype is not torch.float32 or not tensor.is_contiguous():
            aminmax(tensor, out)
            return
        # The maximum lies behind the minimum.
        function(tensor.data_ptr(), tensor.numel(), out[0].data_ptr())

    return reduce


def places(model: nn.Module) -> dict[nn.Parameter, tuple[Pair, Pair]]:
    """The places for the extremes of each parameter and of its gradient."""
    block = torch.zeros(len(list(model.parameters())), 2, 2)
    return {
        parameter: ((row[0, 0], row[0, 1]), (row[1, 0], row[1, 1]))
        for parameter, row in zip(model.parameters(), block, strict=True)
    }


def record(to: dict[nn.Parameter, tuple[Pair, Pair]], reduce: Reduce, parameter: Any) -> None:
    """Find the extremes of one parameter and its gradient."""
    value, gradient = to[parameter]
    reduce(parameter, value)
    reduce(parameter.grad, gradient)


def in_hooks(model: nn.Module, reduce: Reduce) -> Callable[[], None]:
    """Find extremes as soon as each gradient is there."""
    to = places(model)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(partial(record, to, reduce))
    return lambda: None


def in_a_sweep(model: nn.Module, reduce: Reduce) -> Callable[[], None]:
    """Find all extremes at once, after the backward."""
    to = places(model)

    @torch.no_grad()
    def sweep() -> None:
        for parameter in to:
            record(to, reduce, parameter)

    return sweep


def at_the_end(model: nn.Module, reduce: Reduce) -> Callable[[], None]:
    """Find all extremes at once, in the backward's last moment; hooks only note which gradients have come."""
    to = places(model)
    noted: list[Any] = []

    @torch.no_grad()
    def sweep() -> None:
        for parameter in noted:
            record(to, reduce, parameter)
        noted.clear()

    def note(parameter: torch.Tensor) -> None:
        if not noted:
            torch.autograd.Variable._execution_engine.queue_callback(sweep)
        noted.append(parameter)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(note)
    return lambda: None


def hooks_alone(model: nn.Module) -> Callable[[], None]:
    """Hooks that are a function of the interpreter itself, and read nothing: the least that hooks can cost."""
    noted: list[torch.Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(noted.append)
    return noted.clear


def contest(build: Build, rounds: int) -> dict[str, list[float]]:
    """All of them, the floor, and the tracer."""
    ways: dict[str, Callable[[nn.Module], Callable[[], None]]] = {
        "plain": lambda model: lambda: None,
        "floor": lambda model: partial(read_once, model),
        "item loop": lambda model: partial(read_with_items, model),
        "hooks alone": hooks_alone,
        "aminmax in hooks": partial(in_hooks, reduce=aminmax),
        "aminmax in a sweep": partial(in_a_sweep, reduce=aminmax),
        "aminmax at the end": partial(at_the_end, reduce=aminmax),
        "amin, amax in hooks": partial(in_hooks, reduce=amin_and_amax),
    }
    if importlib.util.find_spec("numba"):
        ways["numba in hooks"] = partial(in_hooks, reduce=compiled_loop())
    model, inputs = build()
    losses: list[float] = []

    def after(look: Callable[[], None], loss: torch.Tensor) -> None:
        look()
        losses.append(loss.item())

    steps = {}
    for name, way in ways.items():
        twin = copy.deepcopy(model)
        steps[name] = training_step(twin, inputs, partial(after, way(twin)))
    with tempfile.TemporaryDirectory() as folder:
        twin, own_hooks = copy.deepcopy(model), OwnHooks()
        with tracer.attach(twin, Path(folder) / "run") as trace:
            own_hooks.belong_to("traced")
            steps["traced"] = training_step(twin, inputs, lambda loss: trace.log(loss=loss))
            return measure(steps, rounds, WARM_UP, own_hooks)


if __name__ == "__main__":
    hold(__doc__, contest, rounds=100)
