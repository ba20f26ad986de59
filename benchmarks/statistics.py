"""The cost of each further statistic, and of slices, in a traced step, beside the plain step of the same round.

Each contestant trains its own copy of the model. A round takes one step of each, in a random order. What is measured
in one step of ten is not in its median, which is that of the others. Run: ``python -m benchmarks.statistics``.
"""

import argparse
import copy
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import tracer
from tracer.bench import OwnHooks, measure
from tracer.trainings import Build, mlp, resnet18, training_step

CONTESTANTS: dict[str, dict[str, Any]] = {
    "extremes": {},
    "absmax": {"stats": "absmax"},
    "norm": {"stats": "norm"},
    "mean, std, norm": {"stats": ("mean", "std", "norm")},
    "zeros": {"stats": "zeros"},
    "nonfinite": {"stats": "nonfinite"},
    "smallest": {"stats": "smallest"},
    "all of these": {"stats": ("mean", "std", "norm", "absmax", "zeros", "nonfinite", "smallest")},
    "histogram, every step": {"stats": "histogram", "histogram_every": 1},
    "applied": {"applied": True},
    "update, every step": {"update": True, "update_every": 1},
    "update, every tenth": {"update": True, "update_every": 10},
    "activations": {"activations": True},
}
OF_EXPERTS: dict[str, dict[str, Any]] = {
    "extremes": {},
    "slices": {"slices": r"w\d"},
    "smallest": {"stats": "smallest"},
}


class Experts(nn.Module):
    """A layer of 16 stacked experts, each of two matrices, of which each example takes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.randn(16, *shape) / 16) for shape in ((128, 256), (256, 128)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What went past the experts, and the mean of what they say."""
        said: torch.Tensor = (inputs + ((inputs @ self.w1).relu() @ self.w2).mean(dim=0)).relu()
        return said


def experts() -> tuple[nn.Module, torch.Tensor]:
    """Four layers of experts, and a batch."""
    return nn.Sequential(*(Experts() for _ in range(4)), nn.Linear(128, 10)), torch.randn(64, 128)


def contest(build: Build, rounds: int, contestants: dict[str, dict[str, Any]] = CONTESTANTS) -> dict[str, list[float]]:
    """Plain, and traced with each choice of statistics."""
    model, inputs = build()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plain, own_hooks = copy.deepcopy(model), OwnHooks()
        steps = {"plain": training_step(plain, inputs, lambda loss: None)}
        for number, (name, settings) in enumerate(contestants.items()):
            twin = copy.deepcopy(model)
            stack.enter_context(tracer.attach(twin, Path(folder) / str(number), **settings))
            own_hooks.belong_to(name)
            steps[name] = training_step(twin, inputs, lambda loss: None)
        return measure(steps, rounds, warm_up=max(3, rounds // 20), own_hooks=own_hooks)


def report(title: str, seconds: dict[str, list[float]]) -> Table:
    """Median differences to the plain step of the same round, with quartiles."""
    table = Table("recorded", "extra ms a step", "quartiles", "× plain", title=title)
    plain = statistics.median(seconds["plain"])
    for name in [name for name in seconds if name != "plain"]:
        differences = [a - b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        low, median, high = (each * 1e3 for each in statistics.quantiles(differences, n=4))
        table.add_row(name, f"{median:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{1 + median / 1e3 / plain:.3f}")
    return table


def main() -> None:
    """Hold both contests, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="of the ResNet-18; the MLP takes ten times as many")
    rounds = parser.parse_args().rounds
    console = Console(width=110)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    console.print(report("MLP, 14 parameters", contest(mlp, rounds * 10)))
    console.print(report("4 layers of 16 stacked experts", contest(experts, rounds * 5, OF_EXPERTS)))
    console.print(report("ResNet-18 on 16 × 3 × 64 × 64", contest(resnet18, rounds)))


if __name__ == "__main__":
    main()
