"""How a rank's part of a run begins: in a new folder, or after the last step of an existing run."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn

from tracer.config import Config
from tracer.hooks import Hooks
from tracer.log import ranks, schema
from tracer.log import run as run_folder
from tracer.log.parts import Part, good_parts, with_listing
from tracer.log.place import Place
from tracer.log.run import LogError
from tracer.log.store import Local
from tracer.parameters import NamedParameter, class_name
from tracer.settings import Settings
from tracer.warn import in_short, warn

_KEYS = ["rank", "attempt", "step"]


def enter(
    path: Place,
    rank: int,
    resume: bool,
    overwrite: bool,
    model: nn.Module,
    hooks: Hooks,
    settings: Settings,
    config: Config,
) -> tuple[bool, int, int]:
    """Begin a rank's part of a run; go on with one that exists, or replace it, if ``resume`` or ``overwrite`` says so.

    Returns:
        Whether the run goes on, and the first step and the attempt.

    Raises:
        LogError: there is a run already, it cannot be read, or another process writes it.
    """
    if resume and _has_begun(path, rank):
        first_step, attempt = _continue_run(path, rank)
        if rank == 0:
            _compare(path, hooks, config)
        return True, first_step, attempt
    replaces = overwrite and (_has_begun(path, 0) or _has_begun(path, rank))
    if replaces and rank > 0:
        ranks.await_replacement(path, rank)
    if rank == 0:
        info = _describe(model, hooks, settings, config)
        if replaces:
            _replace(path, info)
        else:
            run_folder.create_run(path, info)
        config.say_by_repr()
    elif _has_begun(path, rank):
        raise LogError(run_folder.HOLDS_A_RUN.format(path=path))
    else:
        run_folder.prepare_folders(path)
        ranks.claim_rank(path, rank)
    return False, 0, 0


def _replace(path: Place, info: Mapping[str, Any]) -> None:
    """Put a new run into the folder of one that no process writes; files that are not that run's stay.

    Raises:
        LogError: it is being written, or it is no run that this version could read.
    """
    run_folder.open_run(path)
    ranks.see_that_none_writes(path)
    # Other ranks begin their part of the new run as soon as this one is alive: only what was there before is deleted.
    parts = {
        folder: [name for name in path.names(folder.name) if Part.parse(folder / name)]
        for folder in map(path.__truediv__, schema.TABLES)
    }
    marks = ranks.files_of_others(path, 0)
    run_folder.prepare_folders(path)
    ranks.reopen_rank(path, 0)
    for folder, names in parts.items():
        folder.remove_files(names)
    path.remove_files(marks)
    # Last, and in one move on a disk: a process that is killed has left a run, which can be replaced like any other.
    run_folder.replace_run(path, info)


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and the number of ranks: of the process group, or as torchrun says, or the only one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    # What a launcher left behind says half of it, or RANK=-1: no reader would find the run of rank 2 alone.
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, world) if 0 <= rank < min(world, schema.BEYOND["rank"]) else (0, 1)


def default_path(model: nn.Module) -> Local:
    """A new folder under ``runs/``, named after the time and the model."""
    base = Local("runs").resolve() / f"{datetime.now():%Y%m%d-%H%M%S}-{class_name(model)}"
    path, number = base, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = base.with_name(f"{base.name}-{number}")


def _describe(model: nn.Module, hooks: Hooks, settings: Settings, config: Config) -> Mapping[str, Any]:
    """The content of run.json on the model, the settings, the hyper-parameters and the libraries."""

    def describe(parameter: NamedParameter) -> dict[str, Any]:
        tensor = parameter.tensor
        slices = {"slices": parameter.slices} if parameter.slices else {}
        return {
            "name": parameter.name,
            "aliases": list(parameter.aliases),
            "shape": None if parameter.lazy else list(parameter.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "trainable": tensor.requires_grad,
            **slices,
        }

    return {
        "model": class_name(model),
        "params": [describe(parameter) for parameter in hooks.chosen],
        "settings": settings.described(),
        "config": config.values,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "pyarrow": pa.__version__,
            "polars": importlib.metadata.version("polars"),
        },
    }


def _has_begun(path: Place, rank: int) -> bool:
    """Whether a rank has begun its part of a run; rank 0, which writes run.json, may be ahead of the others."""
    try:
        return run_folder.holds_run(path) if rank == 0 else rank in ranks.ranks_in(path)
    except OSError as error:
        raise LogError(f"{path} cannot be read: {in_short(error)}") from None


def _continue_run(path: Place, rank: int) -> tuple[int, int]:
    """Open a run for more rows. Returns the step and the attempt with which this rank goes on."""
    run_folder.open_run(path)
    run_folder.prepare_folders(path)
    ranks.reopen_rank(path, rank)
    with path.brief_copies():
        events, *measured = (
            with_listing(path, table, partial(_keys, path / table)) for table in ("events", "extremes", "metrics")
        )
    attempt = max(_largest(keys.filter(pc.field("rank") == rank), "attempt", 0) for keys in (events, *measured))
    # A killed rank may have published fewer steps than others, which may be writing their next attempt by now.
    known = pc.field("attempt") <= attempt
    rows = pa.concat_tables(measured).filter(known)
    begun = pa.concat_tables(
        [events.filter(pc.field("kind").isin(schema.BEGINNINGS)).filter(known).select(_KEYS), rows]
    )
    begins = (
        begun.filter(pc.field("attempt") > 0).group_by(["rank", "attempt"]).aggregate([("step", "min")]).to_pylist()
    )
    step = -1
    for branch in rows.group_by(["rank", "attempt"]).aggregate([]).to_pylist():
        kept = (pc.field("rank") == branch["rank"]) & (pc.field("attempt") == branch["attempt"])
        for later in begins:
            if later["rank"] == branch["rank"] and later["attempt"] > branch["attempt"]:
                kept &= pc.field("step") < later["step_min"]
        step = max(step, _largest(rows.filter(kept), "step", -1))
    return step + 1, attempt + 1


def _keys(folder: Place, parts: list[Part]) -> pa.Table:
    """Each step of each rank and attempt in these parts of a table, and of ``events`` with their kinds.

    Without polars: once its threads have begun, it hangs in the processes that the training forks.
    """
    names = [*_KEYS, "kind"] if folder.name == "events" else _KEYS
    none = schema.SCHEMAS[folder.name].empty_table().select(names)
    tables = [none]
    for part in good_parts(folder, parts):
        batches = pq.ParquetFile(part.file()).iter_batches(columns=names)
        rows = (pa.Table.from_batches([batch]).select(names).cast(none.schema) for batch in batches)
        tables += [table.group_by(names).aggregate([]).cast(none.schema) for table in rows]
    return pa.concat_tables(tables)


def _largest(rows: pa.Table, column: str, default: int) -> int:
    """The largest number of a column, or ``default`` where there is no row."""
    return int(pc.max(rows[column]).as_py()) if len(rows) else default


def _compare(path: Place, hooks: Hooks, config: Config) -> None:
    """Warn if the run knows less than half of a model's parameters, a common mistake in the path, or another config."""
    run = run_folder.open_run(path)
    config.say_other(run)
    known = {param["name"] for param in run.info["params"]}
    names = {parameter.name for parameter in hooks.chosen}
    if 2 * len(known & names) < len(names):
        warn(
            f"{path} was begun with another model: it knows {len(known & names)} of these {len(names)} parameters; "
            "is the path right?"
        )
