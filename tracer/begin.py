"""How a rank's part of a run begins: in a new folder, or after the last step of an existing run."""

import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa
import torch
from torch import nn

from tracer.hooks import Hooks
from tracer.log import ranks, schema
from tracer.log import run as run_folder
from tracer.log.place import Place
from tracer.log.read import Attempts, with_rows
from tracer.log.run import LogError
from tracer.log.store import Local
from tracer.parameters import NamedParameter
from tracer.settings import Settings
from tracer.warn import in_short, warn


def enter(
    path: Place, rank: int, resume: bool, model: nn.Module, hooks: Hooks, settings: Settings
) -> tuple[bool, int, int]:
    """Begin a rank's part of a run, or go on with it, if it exists and ``resume`` asks for that.

    Returns:
        Whether the run goes on, and the first step and the attempt.

    Raises:
        LogError: there is a run already, it cannot be read, or another process writes it.
    """
    if resume and _has_begun(path, rank):
        first_step, attempt = _continue_run(path, rank)
        if rank == 0:
            _compare(path, hooks)
        return True, first_step, attempt
    if rank == 0:
        run_folder.create_run(path, _describe(model, hooks, settings))
    elif _has_begun(path, rank):
        raise LogError(run_folder.HOLDS_A_RUN.format(path=path))
    else:
        run_folder.prepare_folders(path)
        ranks.claim_rank(path, rank)
    return False, 0, 0


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and the number of ranks: of the process group, or as torchrun says."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def default_path(model: nn.Module) -> Local:
    """A new folder under ``runs/``, named after the time and the model."""
    base = Local("runs").absolute() / f"{datetime.now():%Y%m%d-%H%M%S}-{type(model).__name__}"
    path, number = base, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = base.with_name(f"{base.name}-{number}")


def _describe(model: nn.Module, hooks: Hooks, settings: Settings) -> Mapping[str, Any]:
    """The content of run.json on the model, the settings and the libraries."""

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
        return run_folder.holds_run(path) if rank == 0 else rank in ranks.ranks_in(path)
    except OSError as error:
        raise LogError(f"{path} cannot be read: {in_short(error)}") from error


def _continue_run(path: Place, rank: int) -> tuple[int, int]:
    """Open a run for more rows. Returns the step and the attempt with which this rank goes on."""
    run_folder.open_run(path)
    run_folder.prepare_folders(path)
    ranks.reopen_rank(path, rank)
    with path.brief_copies():
        own = pl.col("rank") == rank
        attempt = max(_largest(path, table, "attempt", lambda rows: rows.filter(own), 0) for table in schema.ALWAYS)
        # A killed rank may have published fewer steps than others, which may be writing their next attempt by now.
        known = pl.col("attempt") <= attempt
        attempts = Attempts()
        with_rows(path, "events", lambda events: attempts.note(events.filter(known)))

        def latest(rows: pl.LazyFrame) -> pl.LazyFrame:
            return attempts.latest(rows.filter(known))

        step = max(_largest(path, table, "step", latest, -1) for table in ("extremes", "metrics"))
    return step + 1, attempt + 1


def _compare(path: Place, hooks: Hooks) -> None:
    """Warn if the run knows less than half of a model's parameters: a wrong path is a common mistake."""
    known = {param["name"] for param in run_folder.open_run(path).info["params"]}
    names = {parameter.name for parameter in hooks.chosen}
    if 2 * len(known & names) < len(names):
        warn(
            f"{path} was begun with another model: it knows {len(known & names)} of these {len(names)} parameters; "
            "is the path right?"
        )


def _largest(path: Place, table: str, column: str, chosen: Callable[[pl.LazyFrame], pl.LazyFrame], default: int) -> int:
    """The largest number of a column in the chosen rows of all attempts."""

    def ask(rows: pl.LazyFrame) -> int:
        largest = chosen(rows).select(pl.col(column).max()).collect().item()
        return default if largest is None else int(largest)

    return with_rows(path, table, ask, "all")
