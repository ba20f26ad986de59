"""What the rows of all ranks must be, from one process; and what they are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import nn

import tracer
from tests.distributed.exact import sgd
from tests.distributed.launch import RANKS

Tensors = dict[str, torch.Tensor | None]
# By step, rank and parameter: value_min, value_max, grad_min, grad_max, applied_min, applied_max. NaN is "nan".
Numbers = tuple[float | str | None, ...]
Rows = dict[tuple[int, int, str], Numbers]
# By step and parameter, over all ranks.
Merged = dict[tuple[int, str], Numbers]
STATISTICS = ("value_min", "value_max", "grad_min", "grad_max", "applied_min", "applied_max")


@dataclass(frozen=True)
class Step:
    """One step in one process.

    Attributes:
        values: The parameters before the update.
        gradients: Each rank's own gradients.
        reduced: Their mean.
        applied: What the optimizer used.
    """

    values: Tensors
    gradients: Sequence[Tensors]
    reduced: Tensors
    applied: Tensors


def gradients(model: nn.Module, batches: Sequence[torch.Tensor]) -> Tensors:
    """The gradients of the summed outputs, accumulated over these batches."""
    model.zero_grad()
    for data in batches:
        model(data).sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def train(
    model: nn.Module, steps: int, of_ranks: Callable[[int], Sequence[Tensors]], factor: float = 1.0
) -> list[Step]:
    """Train with the mean of all ranks' gradients, times ``factor``.

    Args:
        model: The model, as every rank has it at first.
        steps: How many updates.
        of_ranks: The gradients of each rank at a step, with the model as it is then.
        factor: What the mean is multiplied with before the update.
    """
    optimizer = sgd(model)
    done = []
    for step in range(steps):
        values: Tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        own = of_ranks(step)
        reduced = {name: mean([tensors[name] for tensors in own]) for name in values}
        applied = {name: None if tensor is None else tensor * factor for name, tensor in reduced.items()}
        for name, parameter in model.named_parameters():
            parameter.grad = applied[name]
        optimizer.step()
        done.append(Step(values, own, reduced, applied))
    return done


def mean(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The mean over ranks, where a rank without a gradient counts as zeros; None where no rank has one."""
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(known).sum(dim=0) / len(tensors) if known else None


def numbers(*tensors: torch.Tensor | None) -> Numbers:
    """Minimum and maximum of each, None for one that is not there or empty."""
    found: list[float | str | None] = []
    for tensor in tensors:
        if tensor is None or tensor.numel() == 0:
            found += [None, None]
        else:
            found += [_comparable(tensor.min().item()), _comparable(tensor.max().item())]
    return tuple(found)


def shard(tensor: torch.Tensor | None, rank: int, dim: int = 0) -> torch.Tensor | None:
    """A rank's part of a tensor that is cut along a dimension: the last ranks may get less, or nothing."""
    if tensor is None:
        return None
    parts = tensor.chunk(RANKS, dim)
    return parts[rank] if rank < len(parts) else tensor.new_empty(0)


def recorded(path: Path) -> Rows:
    """The rows of a run; each must be there once, of parameters that nothing has happened to."""
    events = tracer.scan(path, "events").filter(pl.col("kind").is_in(["replaced", "failed"])).collect()
    assert events.is_empty(), f"{path.name}: {events}"
    frame = tracer.scan(path).select("step", "rank", pl.col("param").cast(pl.String), *STATISTICS).collect()
    rows = {(step, rank, param): tuple(map(_comparable, row)) for step, rank, param, *row in frame.iter_rows()}
    assert len(rows) == frame.height, "a step, rank and parameter stands twice"
    return rows


def merged(path: Path) -> Merged:
    """The extremes over all ranks, as a reader takes them."""
    columns = [
        pl.col(statistic).nan_min() if statistic.endswith("_min") else pl.col(statistic).nan_max()
        for statistic in STATISTICS
    ]
    frame = tracer.scan(path).group_by("step", pl.col("param").cast(pl.String)).agg(columns).collect()
    return {(step, param): tuple(map(_comparable, row)) for step, param, *row in frame.iter_rows()}


def _comparable(number: float | None) -> float | str | None:
    return "nan" if number is not None and math.isnan(number) else number
