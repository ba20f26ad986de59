"""Trainings under DistributedDataParallel, each traced into a run of its own in the folder given."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
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


def main(folder: Path) -> None:
    """All of them, on both ranks."""
    train(folder / "plain")
    train(folder / "views", gradient_as_bucket_view=True)
    train(folder / "shared", shared=True)
    train(folder / "accumulated", micros=3)
    train(folder / "accumulated-views", micros=3, gradient_as_bucket_view=True)
    train(folder / "unused", with_side=RANK == 1, find_unused_parameters=True)
    train(folder / "poisoned", steps=1, poisoned=RANK == 1)


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
