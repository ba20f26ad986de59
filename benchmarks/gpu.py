"""The cost of tracing on a GPU: time, throughput, kernel launches, and whether anything waits for the GPU.

There are two models. ResNet-50 has batches of 64 images of 224 by 224, in float32 and under bfloat16 autocast. Torch's
own encoder has the size of GPT-2 (12 layers, d_model 768, 85 million numbers), and 8 sequences of 512 tokens, under
bfloat16 autocast. Each is trained plain, traced, and traced with ``every=10``. Each contestant trains its own copy. The
plain one does not look at its loss, the traced ones log it. Contestants take turns in a random order. The cost of one
is its difference to the plain one of the same round.

- *ms a step*: of single steps, with ``torch.cuda.synchronize()`` before and after each. The first launches of such a
  step find an idle GPU, so the work of the CPU there shows in full.
- *samples a second*: of 20 steps in a row, with a synchronization before the first and after the last. Trainings run
  like this: work of the CPU beside a busy GPU costs nothing here.
- *launches a step*: kernels launched, counted by ``torch.profiler`` over ten steps and divided by ten.
- *without waiting*: whether ten steps pass under ``torch.cuda.set_sync_debug_mode("error")``. In this mode, calls that
  make the CPU wait for the GPU raise. The tracer would turn such an error into a warning, which counts as a failure.

Without a CUDA device it says so, and measures nothing. Run: ``python -m benchmarks.gpu``.
"""

import argparse
import copy
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models import resnet50

import tracer
from benchmarks.overhead import EVERY, TRACED, OwnHooks, Step

# A multiple of EVERY, so that each of these takes as many measured steps as the others.
IN_A_ROW = 2 * EVERY


@dataclass(frozen=True)
class Workload:
    """A model to train.

    Attributes:
        title: Its name in the table.
        model: The model, on the device.
        inputs: A batch, on the device.
        autocast: The dtype to compute in; None for that of the parameters.
    """

    title: str
    model: nn.Module
    inputs: torch.Tensor
    autocast: torch.dtype | None


def resnet(device: torch.device, autocast: torch.dtype | None) -> Workload:
    """ResNet-50, and 64 images of 224 by 224 pixels."""
    model = resnet50(weights=None).to(device)
    return Workload(f"ResNet-50, {_dtype(autocast)}", model, torch.randn(64, 3, 224, 224, device=device), autocast)


def transformer(device: torch.device, autocast: torch.dtype | None) -> Workload:
    """Torch's encoder in the size of GPT-2, and 8 sequences of 512 embedded tokens."""
    layer = nn.TransformerEncoderLayer(d_model=768, nhead=12, dim_feedforward=3072, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, num_layers=12, enable_nested_tensor=False).to(device)
    return Workload(f"GPT-2's size, {_dtype(autocast)}", model, torch.randn(8, 512, 768, device=device), autocast)


def _dtype(autocast: torch.dtype | None) -> str:
    return "float32" if autocast is None else f"{str(autocast).removeprefix('torch.')} autocast"


def training_step(workload: Workload, model: nn.Module, after: Callable[[torch.Tensor], None]) -> Step:
    """One step of training a copy of the workload's model; ``after`` gets the loss, before the update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    device, autocast = workload.inputs.device, workload.autocast

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = model(workload.inputs).square().mean()
        loss.backward()
        after(loss)
        optimizer.step()

    return step


def measure(
    steps: Mapping[str, Step], own_hooks: OwnHooks, device: torch.device, rounds: int, in_a_row: int
) -> dict[str, list[float]]:
    """Seconds a step, for each contestant and round, over ``in_a_row`` steps."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            own_hooks.only(name)
            synchronize(device)
            begun = time.perf_counter()
            for _ in range(in_a_row):
                steps[name]()
            synchronize(device)
            seconds[name].append((time.perf_counter() - begun) / in_a_row)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def launches(step: Step, device: torch.device) -> float:
    """The kernels that a step launches, on average."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(EVERY):
            step()
        synchronize(device)
    return float(sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key)) / EVERY


def waiting(step: Step) -> str:
    """The first call in a few steps that makes the CPU wait for the GPU; "" if there is none."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tracer.TracerWarning)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(EVERY):
                step()
        except RuntimeError as error:
            return str(error)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return next((str(each.message) for each in caught if each.category is tracer.TracerWarning), "")


def contest(workload: Workload, rounds: int) -> Table:
    """Plain, traced at every step, and traced at every tenth."""
    device = workload.inputs.device
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        steps = {"plain": training_step(workload, copy.deepcopy(workload.model), lambda loss: None)}
        own_hooks = OwnHooks()
        for name, every in TRACED.items():
            twin = copy.deepcopy(workload.model)
            trace = stack.enter_context(tracer.attach(twin, Path(folder) / name, every=every))
            own_hooks.belong_to(name)
            steps[name] = training_step(workload, twin, logging(trace))
        # From here on each contestant takes a multiple of EVERY steps at a time, so that each first one is measured.
        measure(steps, own_hooks, device, 1, IN_A_ROW)
        single = measure(steps, own_hooks, device, rounds * EVERY, 1)
        row = measure(steps, own_hooks, device, rounds, IN_A_ROW)
        launched, waited = {}, {}
        for name, step in steps.items():
            own_hooks.only(name)
            launched[name], waited[name] = launches(step, device), waiting(step)
    return report(workload, single, row, launched, waited)


def logging(trace: tracer.Trace) -> Callable[[torch.Tensor], None]:
    """Log the loss."""
    return lambda loss: trace.log(loss=loss)


def report(
    workload: Workload,
    single: Mapping[str, list[float]],
    row: Mapping[str, list[float]],
    launched: Mapping[str, float],
    waited: Mapping[str, str],
) -> Table:
    """The table, with a row for each contestant."""
    table = Table("contestant", "ms a step", "extra ms", "quartiles", title=workload.title)
    for column in ("samples a second", "× plain's", "quartiles", "launches a step", "without waiting"):
        table.add_column(column)
    for name in single:
        extra = [1e3 * (a - b) for a, b in zip(single[name], single["plain"], strict=True)]
        speed = [b / a for a, b in zip(row[name], row["plain"], strict=True)]
        table.add_row(
            name,
            f"{1e3 * statistics.median(single[name]):.3f}",
            # Of each of the ten steps after which every=10 begins again; it sends what it measured one step late.
            f"{statistics.fmean(statistics.median(extra[at::EVERY]) for at in range(EVERY)):+.3f}",
            quartiles(extra, "+.3f"),
            f"{len(workload.inputs) / statistics.median(row[name]):,.1f}",
            f"{statistics.median(speed):.4f}",
            quartiles(speed, ".4f"),
            f"{launched[name]:,.1f}",
            waited[name] or "yes",
        )
    return table


def quartiles(numbers: list[float], form: str) -> str:
    """The first and the third quartile."""
    low, _, high = statistics.quantiles(numbers, n=4)
    return f"{low:{form}} to {high:{form}}"


def main() -> None:
    """Hold all contests, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=20, help=f"of {IN_A_ROW} steps in a row, and of {EVERY} single ones"
    )
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so what tracing costs on one was not measured.")
        return
    device = torch.device("cuda")
    console = Console(width=150)
    console.print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}")
    for build, autocast in ((resnet, None), (resnet, torch.bfloat16), (transformer, torch.bfloat16)):
        console.print(contest(build(device, autocast), rounds))


if __name__ == "__main__":
    main()
