"""Runs far away, written without a training."""

from collections.abc import Sequence
from typing import Any

import polars as pl

import tracer
from tests.logs import extremes, publish_next
from tracer.log import store
from tracer.log.place import Place
from tracer.log.ranks import beat
from tracer.log.run import create_run, prepare_folders


def begin(uri: str) -> Place:
    """A run without a row, which nobody writes."""
    run = store.at(uri)
    params = [{"name": "weight", "aliases": [], "shape": [2, 2], "dtype": "float32", "trainable": True}]
    create_run(run, {"model": "Model", "params": params, "settings": {"every": 1}, "versions": {}})
    prepare_folders(run)
    return run


def new_run(uri: str, steps: int = 0) -> Place:
    """A run being written by rank 0, each step in a part of its own."""
    run = begin(uri)
    beat(run, 0)
    for step in range(steps):
        publish_next(run, "extremes", extremes([step]))
    return run


def steps_of(run: str | Place, table: str = "extremes") -> list[int]:
    """The steps in a table, as they stand there."""
    return tracer.scan(run, table).collect()["step"].to_list()


def metric_of(run: str, name: str) -> Sequence[Any]:
    """What was logged under a name, by step."""
    frame = tracer.scan(run, "metrics").filter(pl.col("name") == name).sort("step").collect()
    return frame.select("step", "value").rows()
