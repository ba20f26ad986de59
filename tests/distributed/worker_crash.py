"""Two ranks that are killed when one has published more than the other, and that go on from a checkpoint."""

import os
import sys
from pathlib import Path

import polars as pl
import torch
from torch import nn

import tracer
from tests.distributed.exact import STEPS
from tests.distributed.worker import RANK, strictly
from tests.distributed.worker_ranks import train
from tests.waiting import wait_until


def published(path: Path, table: str) -> int:
    """How many steps of this rank are in a table of the log."""
    own = tracer.scan(path, table).filter(pl.col("rank") == RANK)
    return int(own.select(pl.col("step").n_unique()).collect().item())


def main(path: Path, going_on: bool) -> None:
    """Die without closing, at different steps; or say where it goes on, and go on from before."""
    model = nn.Linear(2, 1)
    trace = tracer.attach(model, path, resume=True)
    # Which rank 0 writes: without it, nobody can read what this rank publishes.
    wait_until((path / "run.json").exists)
    if going_on:
        # In one call, so that the other rank's line does not come between a line and its end.
        sys.stdout.write(f"rank {RANK} resumes at {trace.state_dict()['step']}\n")
        trace.load_state_dict({"step": STEPS - 1})
        train(trace, model, 2)
        trace.close()
        return
    # The last of these steps is not over, as far as the tracer knows, and has metrics alone. Tables are published one
    # after the other.
    count = STEPS + 1 + 5 * RANK
    train(trace, model, count)
    wait_until(lambda: (published(path, "extremes"), published(path, "metrics")) == (count - 1, count))
    os._exit(0)


if __name__ == "__main__":
    with strictly():
        torch.manual_seed(0)
        main(Path(sys.argv[1]), going_on=len(sys.argv) > 2)
