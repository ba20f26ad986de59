"""The cost of tracing on a GPU: time, throughput, kernel launches, and whether anything waits for the GPU.

There are two models. ResNet-50 has batches of 64 images of 224 by 224, in float32 and under bfloat16 autocast. Torch's
own encoder has the size of GPT-2 (12 layers, d_model 768, 89 million numbers), and 8 sequences of 512 tokens, under
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
import statistics
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import tracer
from benchmarks.overhead import EVERY, TRACED
from tracer.bench import OwnHooks, measure, synchronize
from tracer.trainings import After, Build, Step, gpt2, resnet50, training_step

# A multiple of EVERY, so that each of these takes as many measured steps as the others.
IN_A_ROW = 2 * EVERY

MODELS: Mapping[str, tuple[Build, torch.dtype | None]] = {
    "ResNet-50, float32": (resnet50, None),
    "ResNet-50, bfloat16 autocast": (resnet50, torch.bfloat16),
    "GPT-2's size, bfloat16 autocast": (gpt2, torch.bfloat16),
}
"""By title: a model's builder, and the dtype to compute in if it is not that of the parameters."""


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


def contest(title: str, build: Build, autocast: torch.dtype | None, device: torch.device, rounds: int) -> Table:
    """Plain, traced at every step, and traced at every tenth."""
    model, inputs = build()
    inputs, own_hooks = inputs.to(device), OwnHooks()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        twins = {name: copy.deepcopy(model).to(device) for name in ("plain", *TRACED)}
        steps = {"plain": training_step(twins["plain"], inputs, lambda loss: None, autocast)}
        for name, every in TRACED.items():
            trace = stack.enter_context(tracer.attach(twins[name], Path(folder) / name, every=every))
            own_hooks.belong_to(name)
            steps[name] = training_step(twins[name], inputs, logging(trace), autocast)
        take_turns = partial(measure, steps, own_hooks=own_hooks, device=device)
        # From here on each contestant takes a multiple of EVERY steps at a time, so that each first one is measured.
        take_turns(1, in_a_row=IN_A_ROW)
        single = take_turns(rounds * EVERY)
        row = take_turns(rounds, in_a_row=IN_A_ROW)
        launched, waited = {}, {}
        for name, step in steps.items():
            own_hooks.only(name)
            launched[name], waited[name] = launches(step, device), waiting(step)
    return report(title, len(inputs), single, row, launched, waited)


def logging(trace: tracer.Trace) -> After:
    """Log the loss."""
    return lambda loss: trace.log(loss=loss)


def report(
    title: str,
    samples: int,
    single: Mapping[str, list[float]],
    row: Mapping[str, list[float]],
    launched: Mapping[str, float],
    waited: Mapping[str, str],
) -> Table:
    """The table, with a row for each contestant."""
    table = Table("contestant", "ms a step", "extra ms", "quartiles", title=title)
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
            f"{samples / statistics.median(row[name]):,.1f}",
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
    for title, (build, autocast) in MODELS.items():
        console.print(contest(title, build, autocast, device, rounds))


if __name__ == "__main__":
    main()
