"""Trainings under FullyShardedDataParallel, FSDP2's predecessor, each traced into a run of its own."""

import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel

import tracer
from tests.distributed.exact import STEPS, Network, batch, sgd
from tests.distributed.worker import RANK, process_group


def shard(*, kept: bool) -> nn.Module:
    """A model in two units, with its own parameters kept or not."""
    model = Network(with_side=False)
    model.scale.requires_grad_(True)
    mesh, cpu = init_device_mesh("cpu", (2,)), torch.device("cpu")
    model.second = FullyShardedDataParallel(  # type: ignore[assignment]
        model.second, use_orig_params=kept, device_mesh=mesh, device_id=cpu
    )
    return FullyShardedDataParallel(model, use_orig_params=kept, device_mesh=mesh, device_id=cpu)


def train(path: Path, model: nn.Module) -> None:
    """Train for some updates."""
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True, stats="mean"):
        for step in range(STEPS):
            model(batch(step, 0, RANK)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def main(folder: Path) -> None:
    """Both, on both ranks."""
    train(folder / "kept", shard(kept=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", tracer.TracerWarning)
        train(folder / "flat", shard(kept=False))
    print(*(warning.message for warning in caught), file=sys.stderr)


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
