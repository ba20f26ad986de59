"""A model sharded over several nodes, traced into the folder given: some steps, or until the nodes are lost."""

import itertools
import sys
from pathlib import Path

import torch.distributed as dist
import torch.distributed.fsdp as fsdp
from torch.distributed.device_mesh import init_device_mesh

import tracer
from tests.distributed.exact import STEPS, Network, batch, sgd
from tests.distributed.worker import RANK, process_group


def main(path: Path, steps: int | None) -> None:
    """Train for so many steps, or without end."""
    model = Network(with_side=False)
    fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(steps) if steps else itertools.count():
            optimizer.zero_grad()
            model(batch(step, 0, RANK)).sum().backward()
            optimizer.step()


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]), None if "endless" in sys.argv else STEPS)
