"""What tracing costs on the machine at hand: networks that are trained in turns, plainly and traced.

Each contestant trains its own copy of a network. *Plain again* does what *plain* does, and so shows what is noise. The
*floor* reads every value and every gradient once, with ``torch.sum``: reading them can hardly cost less. In a round,
each contestant takes a turn of some steps, in a random order, so that other work of the machine slows all of them
alike. Only turns of one round are compared.
"""

import contextlib
import copy
import io
import math
import platform
import random
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer

from tracer import updates
from tracer.log.run import LogError
from tracer.trace import attach
from tracer.trainings import After, Build, Step, gpt2, mlp, resnet18, resnet50, small_transformer, training_step

Row = dict[str, Any]

ON_CPU = {"MLP": mlp, "ResNet-18": resnet18, "transformer": small_transformer}
ELSEWHERE = {"MLP": mlp, "ResNet-50": resnet50, "GPT-2's size": gpt2}

_CPU = torch.device("cpu")
_LEAST_ROUNDS = 5


def device_of(name: str | None) -> torch.device:
    """The device of this name; without a name a GPU, if there is one.

    Raises:
        LogError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise LogError(f"there is no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def described(device: torch.device) -> str:
    """The device, and what trains on it, in words."""
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    dtype = str(_autocast(device) or torch.float32).removeprefix("torch.")
    on = f"{device}: {gpu}{_cpu_name()}, {torch.get_num_threads()} threads, {dtype}"
    return f"gradwatch {version('torch-gradwatch')}, torch {torch.__version__}, {on}"


def _autocast(device: torch.device) -> torch.dtype | None:
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def networks(device: torch.device, only: str) -> dict[str, Build]:
    """The networks for this device whose names contain ``only``.

    Raises:
        LogError: there is none.
    """
    known = ON_CPU if device.type == "cpu" else ELSEWHERE
    if chosen := {name: build for name, build in known.items() if only in name}:
        return chosen
    raise LogError(f"there is no network {only!r}: choose of {', '.join(known)}")


def bench(chosen: Mapping[str, Build], device: torch.device, seconds: float) -> Iterator[Row]:
    """Hold a contest with each network, of about so many seconds, and give its rows.

    Raises:
        LogError: the device has too little memory for a network.
    """
    for network, build in chosen.items():
        try:
            found = contest(build, device, seconds)
        except torch.cuda.OutOfMemoryError as error:
            raise LogError(f"{device} has too little memory for {network}: {str(error).splitlines()[0]}") from error
        for name, times in found.items():
            ratios = [turn / plain for turn, plain in zip(times, found["plain"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            yield {
                "network": network,
                "trained": name,
                "ms_a_step": 1e3 * statistics.median(times),
                "times_plain": middle,
                "quartiles": (low, high),
            }


def contest(build: Build, device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Train a network in all four ways: the seconds a step of each turn."""
    model, inputs = build()
    inputs, own_hooks = inputs.to(device), OwnHooks()
    twins = {name: copy.deepcopy(model).to(device) for name in ("plain", "plain again", "floor", "traced")}
    with tempfile.TemporaryDirectory() as folder:
        # Nobody is to watch this run.
        with contextlib.redirect_stderr(io.StringIO()):
            trace = attach(twins["traced"], Path(folder) / "run")
        with trace:
            own_hooks.belong_to("traced")
            after: dict[str, After] = {
                "floor": lambda loss: read_once(twins["floor"]),
                "traced": lambda loss: trace.log(loss=loss),
            }
            steps = {
                name: training_step(twin, inputs, after.get(name, lambda loss: None), _autocast(device))
                for name, twin in twins.items()
            }
            tried = measure(steps, 2, warm_up=1, own_hooks=own_hooks, device=device)
            round_seconds = sum(map(statistics.median, tried.values()))
            # A GPU idles when a turn begins, which is to be a small part of it.
            turns_seconds = (0.05 if device.type == "cpu" else 0.2) * len(steps)
            in_a_row = math.ceil(min(turns_seconds, seconds / _LEAST_ROUNDS) / round_seconds)
            rounds = max(_LEAST_ROUNDS, int(seconds / round_seconds / in_a_row))
            return measure(steps, rounds, own_hooks=own_hooks, in_a_row=in_a_row, device=device)


@torch.no_grad()
def read_once(model: nn.Module) -> None:
    """The floor: one pass over every value and every gradient."""
    for parameter in model.parameters():
        torch.sum(parameter)
        if parameter.grad is not None:
            torch.sum(parameter.grad)


class OwnHooks:
    """Makes each contestant's steps call only its own hooks.

    A tracer's hooks on optimizers belong to the process. The other contestants' updates would call them, too, and seem
    slower.
    """

    def __init__(self) -> None:
        self._owned: dict[str, tuple[Any, ...]] = {}

    def belong_to(self, name: str) -> None:
        """Give the trace that was attached last to this contestant."""
        self._owned[name] = tuple(updates.reports.values())[-1:]
        self.only("")

    def only(self, name: str) -> None:
        """Register the hooks of one contestant, and no others."""
        updates.reporting = self._owned.get(name, ())
        for kind, hook in updates.UPDATE_HOOKS.items():
            setattr(optimizer, kind, OrderedDict({-1: hook} if name in self._owned else {}))


def measure(
    steps: Mapping[str, Step],
    rounds: int,
    warm_up: int = 0,
    own_hooks: OwnHooks | None = None,
    in_a_row: int = 1,
    device: torch.device = _CPU,
) -> dict[str, list[float]]:
    """Seconds a step, for each contestant and round, over a turn of ``in_a_row`` steps."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warm_up + rounds):
        for name in random.sample(list(steps), len(steps)):
            if own_hooks is not None:
                own_hooks.only(name)
            synchronize(device)
            begun = time.perf_counter()
            for _ in range(in_a_row):
                steps[name]()
            synchronize(device)
            if number >= warm_up:
                seconds[name].append((time.perf_counter() - begun) / in_a_row)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all its work."""
    if device.type == "mps":
        torch.mps.synchronize()
    else:
        getattr(torch, device.type).synchronize(device)
