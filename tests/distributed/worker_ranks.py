"""Two ranks that know of each other by torchrun's environment alone, and write into one run."""

import os
import sys

import torch
from torch import nn

import tracer
from tests.distributed.exact import STEPS
from tests.distributed.worker import RANK, strictly
from tests.waiting import wait_until
from tracer.log.ranks import closed_summaries
from tracer.log.store import Local as Path

WORLD = int(os.environ["WORLD_SIZE"])


def train(trace: tracer.Trace, model: nn.Linear, updates: int) -> None:
    """Some updates, and a metric at each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(updates):
        optimizer.zero_grad()
        model(torch.full((1, 2), float(RANK + 1))).sum().backward()
        optimizer.step()
        trace.log(loss=RANK)


def main(path: Path) -> None:
    """One run, an attempt to write into it again, and its continuation."""
    model = nn.Linear(2, 1)
    # Ranks that train together wait for each other; nothing here does, and one may be far ahead of the other.
    with tracer.attach(model, path) as trace:
        wait_until((path / "run.json").exists)
        train(trace, model, STEPS)
    wait_until(lambda: len(closed_summaries(path)) == WORLD)
    try:
        tracer.attach(model, path)
    except tracer.LogError as error:
        # In one call, so that the other rank's line does not come between a line and its end.
        sys.stdout.write(f"rank {RANK} is refused: {error}\n")
    with tracer.attach(model, path, resume=True) as trace:
        train(trace, model, 1)


if __name__ == "__main__":
    with strictly():
        if len(sys.argv) > 1:
            main(Path(sys.argv[1]))
        else:
            tracer.attach(nn.Linear(2, 1))
