"""The cost of tracing a training step, beside its floor and beside reading the same four numbers with ``.item()``.

Each contestant trains its own copy of a model, and keeps its loss: the traced ones with ``trace.log``, the others with
``loss.item()``. The floor reads every value and every gradient once, with ``torch.sum``. A round takes one step of each
contestant, in a random order, so that other work of the machine slows all of them alike. The cost of a contestant is
its difference to the plain step of the same round. Run: ``python -m benchmarks.overhead``.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import tracer
from tracer.bench import OwnHooks, measure, read_once
from tracer.trainings import Build, Step, mlp, resnet18, small_transformer, training_step

Seconds = Mapping[str, list[float]]
Contest = Callable[[Build, int], Seconds]

EVERY = 10
TRACED = {"traced": 1, f"every={EVERY}": EVERY}
# Steps before those that count; a multiple of EVERY.
WARM_UP = 20
# A budget is a share of the time that passes, so steps of others may not come between: a turn has this many.
TURN_STEPS = 256
# The rounds are compared in this many parts, to see how much a ratio depends on when it was measured.
BLOCKS = 8


class Tiny(nn.Module):
    """500 layers side by side, whose 1,000 parameters have 4 or 16 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(500))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The sum of all layers' outputs."""
        return torch.stack([layer(inputs) for layer in self.layers]).sum(dim=0)


def tiny() -> tuple[nn.Module, torch.Tensor]:
    """A thousand parameters so small that only the work done once for each of them counts."""
    return Tiny(), torch.randn(8, 4)


MODELS: Mapping[str, tuple[Build, int]] = {
    "MLP, 14 parameters": (mlp, 10),
    "ResNet-18 on 16 × 3 × 64 × 64, 62 parameters": (resnet18, 1),
    "TransformerEncoder, 74 parameters": (small_transformer, 1),
    "1,000 parameters of 4 or 16 elements": (tiny, 2),
}
"""By title: a model's builder, and its number of rounds for each round of the largest models."""


def read_with_items(model: nn.Module) -> None:
    """The loop that people write by hand."""
    for parameter in model.parameters():
        parameter.max().item()
        parameter.min().item()
        if parameter.grad is not None:
            parameter.grad.max().item()
            parameter.grad.min().item()


def contest(build: Build, rounds: int) -> dict[str, list[float]]:
    """Plain, with the floor, with the loop, and traced at every step and at every tenth."""
    model, inputs = build()
    losses: list[float] = []

    def after(read: Callable[[nn.Module], None], twin: nn.Module) -> Callable[[torch.Tensor], None]:
        def look(loss: torch.Tensor) -> None:
            read(twin)
            losses.append(loss.item())

        return look

    def logging(trace: tracer.Trace) -> Callable[[torch.Tensor], None]:
        return lambda loss: trace.log(loss=loss)

    reading: Mapping[str, Callable[[nn.Module], None]] = {
        "plain": lambda model: None,
        "floor": read_once,
        "item loop": read_with_items,
    }
    steps: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, read in reading.items():
            twin = copy.deepcopy(model)
            steps[name] = training_step(twin, inputs, after(read, twin))
        own_hooks = OwnHooks()
        for name, every in TRACED.items():
            twin = copy.deepcopy(model)
            trace = stack.enter_context(tracer.attach(twin, Path(folder) / name, every=every))
            own_hooks.belong_to(name)
            steps[name] = training_step(twin, inputs, logging(trace))
        return measure(steps, rounds, warm_up=WARM_UP, own_hooks=own_hooks)


def extra_seconds(seconds: Seconds, name: str, part: slice = slice(None)) -> float:
    """The median difference to the plain step of the same round: other work of the machine slows both.

    If only every tenth step is measured, it is the mean of ten medians: one of all first steps of ten, one of all
    second steps, and so on.
    """
    differences = [a - b for a, b in zip(seconds[name][part], seconds["plain"][part], strict=True)]
    period = TRACED.get(name, 1)
    return statistics.fmean(statistics.median(differences[phase::period]) for phase in range(period))


def blocks(rounds: int) -> list[slice]:
    """The rounds in parts of equal length."""
    length = rounds // BLOCKS
    return [slice(begin, begin + length) for begin in range(0, rounds - length + 1, length)]


def report(title: str, seconds: Seconds) -> Table:
    """Medians, the cost of each contestant, and its ratios in this run with the quartiles of the blocks' ratios."""
    table = Table("contestant", "median ms a step", "extra ms", "× plain", "extra × floor's", "extra × loop's")
    table.title = title
    plain = statistics.median(seconds["plain"])
    parts = blocks(len(seconds["plain"]))

    def ratio(name: str, to: str) -> str:
        found = f"{extra_seconds(seconds, name) / extra_seconds(seconds, to):.2f}"
        ratios = [extra_seconds(seconds, name, part) / extra_seconds(seconds, to, part) for part in parts]
        low, _, high = statistics.quantiles(ratios, n=4)
        return f"{found} ({low:.2f} to {high:.2f})"

    for name, times in seconds.items():
        extra = extra_seconds(seconds, name)
        ratios = ["", ""] if name == "plain" else [ratio(name, "floor"), ratio(name, "item loop")]
        table.add_row(
            name, f"{statistics.median(times) * 1e3:.3f}", f"{extra * 1e3:+.3f}", f"{1 + extra / plain:.3f}", *ratios
        )
    return table


def budget(build: Build, share: float, turns: int) -> Table:
    """Train plainly, plainly again, and with a budget, in turns of many steps, and compare their times."""
    model, inputs = build()
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path, twin, own_hooks = Path(folder) / "run", copy.deepcopy(model), OwnHooks()
        with tracer.attach(twin, path, budget=share) as trace:
            own_hooks.belong_to("traced")
            steps = {
                name: training_step(copy.deepcopy(model), inputs, lambda loss: losses.append(loss.item()))
                for name in ("plain", "plain again")
            }
            steps["traced"] = training_step(twin, inputs, lambda loss: trace.log(loss=loss))
            # The first turn of each does not count: the budget settles in it.
            seconds = measure(steps, turns, warm_up=1, own_hooks=own_hooks, in_a_row=TURN_STEPS)
            own_hooks.only("traced")
        changes = tracer.scan(path, "events").filter(pl.col("kind") == "stride").collect()
        costs = tracer.scan(path, "metrics").filter(pl.col("name") == "tracer_cost", pl.col("step") >= TURN_STEPS)
        own = costs.collect()["value"].to_list()
    table = Table("", "median", "quartiles", title=f"MLP with budget={share}, {turns} turns of {TURN_STEPS} steps")
    beyond = {
        name: [a / b - 1 for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        for name in ("traced", "plain again")
    }
    for name, found in {
        "traced, beyond the plain turn": beyond["traced"],
        "plain again, beyond the plain turn": beyond["plain again"],
        "tracer_cost": own,
    }.items():
        low, middle, high = statistics.quantiles(found, n=4)
        table.add_row(name, f"{middle:.2%}", f"{low:.2%} to {high:.2%}")
    table.caption = "; ".join(f"step {step}: {detail}" for step, detail in changes.select("step", "detail").iter_rows())
    return table


def hold(description: str | None, contest: Contest, rounds: int) -> tuple[Console, argparse.Namespace]:
    """Hold a contest on each model that the command line asks for, and print their tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="of the largest models; smaller ones take more")
    parser.add_argument("--model", default="", help="only the models whose title contains this")
    arguments = parser.parse_args()
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for title, (build, factor) in MODELS.items():
        if arguments.model in title:
            console.print(report(title, contest(build, arguments.rounds * factor)))
    return console, arguments


def main() -> None:
    """Hold all contests, then the one with a budget."""
    console, arguments = hold(__doc__, contest, rounds=200)
    if arguments.model in "budget":
        console.print(budget(mlp, 0.01, turns=arguments.rounds // 10))


if __name__ == "__main__":
    main()
