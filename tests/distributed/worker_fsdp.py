"""Trainings under fully_shard, each traced into a run of its own in the folder given."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp as fsdp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import distribute_module, distribute_tensor

import tracer
from tests.distributed.exact import STEPS, Network, batch, sgd
from tests.distributed.worker import RANK, process_group


def shard(mesh: DeviceMesh, *, nested: bool = True, kept: bool | None = None) -> nn.Module:
    """A model sharded as a whole, and before that layer by layer where it is ``nested``."""
    model = Network(with_side=False)
    # That it is not given is None only in later releases than torch 2.6.
    options: dict[str, Any] = {} if kept is None else {"reshard_after_forward": not kept}
    for module in (model.first, model.second, model) if nested else (model,):
        fully_shard(module, mesh=mesh, **options)
    return model


def train(path: Path, model: nn.Module, *, factor: float = 1.0, late: bool = False, disturbed: bool = False) -> None:
    """Train.

    Args:
        path: The run's folder.
        model: What to train.
        factor: What the gradients are multiplied with before the update.
        late: Attach after a validation.
        disturbed: Update another model before each backward, and validate after each update and at the end.
    """
    optimizer = sgd(model)
    other = nn.Linear(1, 1)
    if late:
        validate(model)
    with tracer.attach(model, path, applied=True):
        for step in range(STEPS):
            loss = model(batch(step, 0, RANK)).sum()
            if disturbed:
                other(torch.ones(1)).sum().backward()
                torch.optim.SGD(other.parameters(), lr=0.5).step()
            loss.backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            optimizer.step()
            optimizer.zero_grad()
            if disturbed:
                validate(model)


def validate(model: nn.Module) -> None:
    """Run the model without a backward, which leaves whole tensors in the place of the root's shards."""
    with torch.no_grad():
        model(batch(0, 0, RANK))


def unfreeze(path: Path, model: nn.Module) -> None:
    """Train with the parameter that is frozen at first, from the second step on."""
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(STEPS):
            if step == 1:
                model.get_parameter("scale").requires_grad_()
            model(batch(step, 0, RANK)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def accumulate(path: Path, model: nn.Module, micros: int, *, reduced: bool) -> None:
    """Train on several micro-batches an update, each ``reduced`` or only the last."""
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(STEPS):
            for micro in range(micros):
                if not reduced:
                    assert isinstance(model, FSDPModule)
                    model.set_requires_gradient_sync(micro == micros - 1)
                model(batch(step, micro, RANK)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def gather_on_the_same_mesh(path: Path, mesh: DeviceMesh) -> None:
    """Train with the same data on all ranks, where a whole parameter is a DTensor on the mesh of its shards."""
    model = Network(with_side=False)
    distribute_module(model, mesh)
    for module in (model.first, model.second, model):
        fully_shard(module, mesh=mesh, dp_mesh_dims=fsdp.DataParallelMeshDims(shard="data"))
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(STEPS):
            model(distribute_tensor(batch(step, 0, 0), mesh)).sum().full_tensor().backward()
            optimizer.step()
            optimizer.zero_grad()


def main(folder: Path) -> None:
    """All of them, on both ranks."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data",))
    train(folder / "whole", shard(mesh, nested=False))
    train(folder / "nested", shard(mesh))
    train(folder / "kept", shard(mesh, kept=True))
    train(folder / "freed", shard(mesh, kept=False))
    train(folder / "halved", shard(mesh), factor=0.5)
    train(folder / "late", shard(mesh), late=True)
    train(folder / "disturbed", shard(mesh), disturbed=True)
    unfreeze(folder / "unfrozen", shard(mesh))
    accumulate(folder / "accumulated", shard(mesh), 3, reduced=False)
    accumulate(folder / "accumulated-reduced", shard(mesh), 3, reduced=True)
    if hasattr(fsdp, "DataParallelMeshDims"):
        gather_on_the_same_mesh(folder / "same-mesh", mesh)


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]))
