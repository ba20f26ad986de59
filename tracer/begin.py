"""How a rank's part of a run begins: in a new folder, or after the last step of a run that is there."""

import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import torch
from torch import nn

from tracer.hooks import Hooks
from tracer.log import run as run_folder
from tracer.log import schema, store
from tracer.log.read import Attempts, with_rows
from tracer.log.run import LogError
from tracer.log.store import Place
from tracer.parameters import NamedParameter
from tracer.settings import Settings
from tracer.warn import in_short, warn


class Entry(NamedTuple):
    """Where a rank's part of a run begins, or goes on."""

    resumed: bool
    first_step: int
    attempt: int


def enter(path: Place, rank: int, resume: bool, model: nn.Module, hooks: Hooks, settings: Settings) -> Entry:
    """Begin a rank's part of a run, or, where it is there and that is asked for, go on with it.

    Raises:
        LogError: there is a run already, it cannot be read, or another process writes it.
    """
    if resume and _has_begun(path, rank):
        entry = Entry(True, *_continue_run(path, rank))
        if rank == 0:
            _compare(path, hooks)
        return entry
    _begin_run(path, rank, _describe(model, hooks, settings))
    return Entry(False, 0, 0)


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and how many there are: of the process group, or as torchrun says."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def default_path(model: nn.Module) -> Path:
    """A new folder under ``runs/``, named after the time and the model."""
    base = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{type(model).__name__}"
    path, number = base, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = base.with_name(f"{base.name}-{number}")


def _describe(model: nn.Module, hooks: Hooks, settings: Settings) -> Mapping[str, Any]:
    """What run.json says of the model, the settings and the libraries."""

    def describe(parameter: NamedParameter) -> dict[str, Any]:
        tensor = parameter.tensor
        return {
            "name": parameter.name,
            "aliases": list(parameter.aliases),
            "shape": None if parameter.lazy else list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "trainable": tensor.requires_grad,
        }

    return {
        "model": type(model).__name__,
        "params": [describe(parameter) for parameter in hooks.chosen],
        "settings": settings.described(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "pyarrow": pa.__version__,
            "polars": pl.__version__,
        },
    }


def _has_begun(path: Place, rank: int) -> bool:
    """Whether a rank has begun its part of a run; rank 0, which writes run.json, may be ahead of the others."""
    try:
        return run_folder.holds_run(path) if rank == 0 else rank in run_folder.ranks(path)
    except OSError as error:
        raise LogError(f"{path} cannot be read: {in_short(error)}") from error


def _begin_run(path: Place, rank: int, info: Mapping[str, Any]) -> None:
    """Begin a run, or a rank's part of it."""
    if rank == 0:
        run_folder.create_run(path, info)
    elif _has_begun(path, rank):
        raise LogError(run_folder.HOLDS_A_RUN.format(path=path))
    else:
        run_folder.prepare_folders(path)
        run_folder.claim_rank(path, rank)


def _continue_run(path: Place, rank: int) -> tuple[int, int]:
    """Open a run for more rows; the step and the attempt with which this rank goes on."""
    run_folder.open_run(path)
    run_folder.prepare_folders(path)
    run_folder.reopen_rank(path, rank)
    with store.brief_copies(path):
        own = pl.col("rank") == rank
        attempt = max(_largest(path, table, "attempt", lambda rows: rows.filter(own), 0) for table in schema.ALWAYS)
        # A rank that was killed may have published less than others, which may be writing their next attempt by now.
        known = pl.col("attempt") <= attempt
        attempts = Attempts()
        with_rows(path, "events", lambda events: attempts.note(events.filter(known)))

        def latest(rows: pl.LazyFrame) -> pl.LazyFrame:
            return attempts.latest(rows.filter(known))

        step = max(_largest(path, table, "step", latest, -1) for table in ("extremes", "metrics"))
    return step + 1, attempt + 1


def _compare(path: Place, hooks: Hooks) -> None:
    """Warn where most of a model's parameters are none of the run's: a path that was copied is a common mistake."""
    known = {param["name"] for param in run_folder.open_run(path).info["params"]}
    there = {parameter.name for parameter in hooks.chosen}
    if 2 * len(known & there) < len(there):
        warn(
            f"{path} was begun with another model: it knows {len(known & there)} of these {len(there)} parameters; "
            "is the path right?"
        )


def _largest(path: Place, table: str, column: str, chosen: Callable[[pl.LazyFrame], pl.LazyFrame], default: int) -> int:
    """The largest number of a column in the chosen rows of all attempts."""

    def ask(rows: pl.LazyFrame) -> int:
        found = chosen(rows).select(pl.col(column).max()).collect().item()
        return default if found is None else int(found)

    return with_rows(path, table, ask, "all")
