"""What tracing costs a training step, beside reading the same four numbers a parameter with ``.item()``.

Each contestant trains its own copy of the model, and keeps its loss: the traced one with ``trace.log``, the others with
``loss.item()``. A round takes one step of each, in a random order, so that what else the machine does falls on all of
them alike. Run: ``python -m benchmarks.overhead``.
"""

import argparse
import copy
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models import resnet18

import tracer

Step = Callable[[], None]
Build = Callable[[], tuple[nn.Module, torch.Tensor]]
Contest = Callable[[Build, int], dict[str, list[float]]]
Report = Callable[[str, dict[str, list[float]]], Table]


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """A small network of 14 parameters, and a batch for it."""
    sizes = [64, 256, 256, 256, 256, 256, 256, 10]
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(256, 64)


def resnet() -> tuple[nn.Module, torch.Tensor]:
    """ResNet-18, and 16 images of 64 by 64 pixels."""
    return resnet18(weights=None, num_classes=10), torch.randn(16, 3, 64, 64)


def read_with_items(model: nn.Module) -> None:
    """The loop that people write by hand."""
    for parameter in model.parameters():
        parameter.max().item()
        parameter.min().item()
        if parameter.grad is not None:
            parameter.grad.max().item()
            parameter.grad.min().item()


def training_step(model: nn.Module, inputs: torch.Tensor, after: Callable[[torch.Tensor], None]) -> Step:
    """One step of plain training; ``after`` is called between backward and update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.randint(10, (len(inputs),))

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        after(loss)
        optimizer.step()

    return step


def measure(steps: dict[str, Step], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds a step, for each contestant and round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warm_up + rounds):
        for name in random.sample(list(steps), len(steps)):
            begun = time.perf_counter()
            steps[name]()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def contest(build: Build, rounds: int) -> dict[str, list[float]]:
    """Plain, with the loop, and traced."""
    model, inputs = build()
    models = {name: copy.deepcopy(model) for name in ("plain", "item loop", "traced")}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trace = stack.enter_context(tracer.attach(models["traced"], Path(folder) / "run"))
        losses: list[float] = []

        def loop(loss: torch.Tensor) -> None:
            read_with_items(models["item loop"])
            losses.append(loss.item())

        after: dict[str, Callable[[torch.Tensor], None]] = {
            "plain": lambda loss: losses.append(loss.item()),
            "item loop": loop,
            "traced": lambda loss: trace.log(loss=loss),
        }
        steps = {name: training_step(models[name], inputs, after[name]) for name in models}
        return measure(steps, rounds, warm_up=max(5, rounds // 20))


def report(title: str, seconds: dict[str, list[float]]) -> Table:
    """Medians with their quartiles, as times and as ratios within this run."""
    table = Table("contestant", "median ms a step", "quartiles", "extra ms", "× plain", "extra × loop's", title=title)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    # Pairs of one round: what slows the machine for a while slows both.
    extra = {
        name: statistics.median(a - b for a, b in zip(times, seconds["plain"], strict=True))
        for name, times in seconds.items()
    }
    for name, times in seconds.items():
        low, _, high = statistics.quantiles(times, n=4)
        table.add_row(
            name,
            f"{medians[name] * 1e3:.3f}",
            f"{low * 1e3:.3f} to {high * 1e3:.3f}",
            f"{extra[name] * 1e3:+.3f}",
            f"{medians[name] / medians['plain']:.3f}",
            f"{extra[name] / extra['item loop']:.2f}",
        )
    return table


def print_both(description: str | None, contest: Contest, report: Report, rounds: int) -> None:
    """Hold a contest on both models, and print both tables."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="rounds of the ResNet-18; the MLP takes ten times as many"
    )
    rounds = parser.parse_args().rounds
    console = Console(width=110)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    console.print(report("MLP, 14 parameters", contest(mlp, rounds * 10)))
    console.print(report("ResNet-18 on 16 × 3 × 64 × 64", contest(resnet, rounds)))


if __name__ == "__main__":
    print_both(__doc__, contest, report, rounds=200)
