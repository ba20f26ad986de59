"""Trainings with tensor parallel layers, each traced into a run of its own in the folder given."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import tracer
from tests.distributed.exact import STEPS, Block, sgd, tokens
from tests.distributed.worker import RANK, process_group
from tests.versions import HAS_FULLY_SHARD


def train(path: Path, model: nn.Module, data: Callable[[int], torch.Tensor]) -> None:
    """Train on each step's data."""
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(STEPS):
            model(data(step)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def main(folder: Path) -> None:
    """All of them, on both ranks."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    layers = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    train(folder / "tensor", parallelize_module(Block(), mesh["tensor"], layers), tokens)

    if HAS_FULLY_SHARD:
        both = Block()
        parallelize_module(both, mesh["tensor"], layers)
        fully_shard(both.up, mesh=mesh["data"])
        fully_shard(both, mesh=mesh["data"])
        train(folder / "both", both, tokens)

    # Each rank normalises its half of every sequence, and is told the other's result where it needs it.
    layers = {"norm": SequenceParallel(), "up": ColwiseParallel(input_layouts=Shard(1)), "down": RowwiseParallel()}
    sequence = parallelize_module(Block(), mesh["tensor"], layers)
    train(folder / "sequence", sequence, lambda step: tokens(step).chunk(2, dim=1)[RANK])


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
