"""Trainings under DistributedDataParallel, each traced into a run of its own in the folder given."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import tracer
from tests.distributed.exact import LEARNING_RATE, STEPS, Network, batch, sgd
from tests.distributed.worker import RANK, process_group


def train(
    path: Path,
    *,
    steps: int = STEPS,
    micros: int = 1,
    with_side: bool = True,
    poisoned: bool = False,
    shared: bool = False,
    **settings: Any,
) -> None:
    """Train for some updates, with the gradients of all micro-batches but the last kept from being reduced."""
    model = DistributedDataParallel(Network(with_side=with_side), **settings)
    shards = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=LEARNING_RATE) if shared else None
    optimizer = shards or sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(steps):
            for micro in range(micros):
                with model.no_sync() if micro < micros - 1 else contextlib.nullcontext():
                    data = batch(step, micro, RANK)
                    if poisoned:
                        data[0, 0] = torch.nan
                    model(data).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def delay(path: Path) -> None:
    """Train with gradients of which some are reduced only once all of them are there."""
    network = Network(with_side=True)
    late = [(name, each) for name, each in network.named_parameters() if "first" not in name and each.requires_grad]
    # Torch does not wait for that reduction, which only a GPU's stream puts in order; and its buffer has this dtype.
    reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, group, async_op: reduce(tensor, group=group)  # type: ignore[assignment]
    torch.set_default_dtype(torch.float64)
    model = DistributedDataParallel(
        network, delay_all_reduce_named_params=late, param_to_hook_all_reduce=network.first.bias
    )
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(STEPS):
            model(batch(step, 0, RANK)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.set_default_dtype(torch.float32)
    dist.all_reduce = reduce


def main(folder: Path) -> None:
    """All of them, on both ranks."""
    train(folder / "plain")
    train(folder / "views", gradient_as_bucket_view=True)
    train(folder / "static", static_graph=True)
    delay(folder / "delayed")
    train(folder / "shared", shared=True)
    train(folder / "accumulated", micros=3)
    train(folder / "accumulated-views", micros=3, gradient_as_bucket_view=True)
    train(folder / "unused", with_side=RANK == 1, find_unused_parameters=True)
    train(folder / "poisoned", steps=1, poisoned=RANK == 1)


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
