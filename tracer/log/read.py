"""Reading a log: ``scan`` gives a polars LazyFrame over one run, or several."""

import functools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow.parquet as pq

from tracer.log import schema
from tracer.log.parts import Part, list_parts, problem
from tracer.log.run import LogError, open_run

Paths = str | os.PathLike[str]


class BadPartWarning(UserWarning):
    """A part of a log is damaged and was left out."""


def scan(
    run: Paths | Iterable[Paths], table: str = "extremes", *, attempts: Literal["latest", "all"] = "latest"
) -> pl.LazyFrame:
    """The rows of a run as a polars LazyFrame, at any moment of the run and afterwards.

    Each part's checksum is checked once a process (about a second a gigabyte). A damaged part is named in a
    ``BadPartWarning`` and left out. The frame reads the parts that exist now: scan again to see later ones.

    Args:
        run: A run's folder, or several; several add a first column ``run``, the folder's name (the path as given where
            two folders have the same name).
        table: ``"extremes"``, ``"metrics"`` or ``"events"``; ``tracer.log.schema`` describes their columns.
        attempts: Where a resumed run repeats steps, ``"latest"`` keeps each step's latest attempt.

    Raises:
        LogError: a folder holds no run, or one of a newer format; or no such table exists.
    """
    if table not in schema.TABLES:
        raise LogError(f"there is no table {table!r}: choose one of {', '.join(schema.TABLES)}")
    if isinstance(run, str | os.PathLike):
        return _scan_one(Path(run), table, attempts)
    paths = [Path(path) for path in run]
    if not paths:
        raise LogError("no run was given to scan: give a run's folder, or several")
    names = Counter(path.resolve().name for path in paths)
    return pl.concat(
        [
            _scan_one(path, table, attempts).select(
                pl.lit(path.resolve().name if names[path.resolve().name] == 1 else str(path)).alias("run"), pl.all()
            )
            for path in paths
        ],
        how="diagonal",
    )


def _scan_one(path: Path, table: str, attempts: Literal["latest", "all"]) -> pl.LazyFrame:
    open_run(path)
    frame = scan_parts(good_parts(list_parts(path, table)), table)
    if attempts == "all" or table == "events" or frame.select(pl.col("attempt").max()).collect().item() in (None, 0):
        return frame
    return frame.filter(pl.col("attempt") == pl.col("attempt").max().over("rank", "step"))


def scan_parts(parts: Sequence[Part], table: str) -> pl.LazyFrame:
    """The rows of these parts of a table, in their order; columns that a part lacks are null."""
    by_columns: dict[tuple[str, ...], list[Path]] = {}
    for part in parts:
        by_columns.setdefault(tuple(pq.read_schema(part.path).names), []).append(part.path)
    empty = pl.DataFrame(pl.from_arrow(schema.SCHEMAS[table].empty_table())).lazy()
    frames = [pl.scan_parquet(paths, glob=False) for paths in by_columns.values()]
    return frames[0] if len(frames) == 1 else pl.concat([empty, *frames], how="diagonal")


def good_parts(parts: Iterable[Part]) -> list[Part]:
    """The undamaged ones among these parts; each of the others is named in a ``BadPartWarning``."""
    good = []
    for part in parts:
        try:
            found = part_problem(part)
        except FileNotFoundError:
            continue
        if found is None:
            good.append(part)
        else:
            warnings.warn(
                f"{part.path} {found}; its rows are left out (`tracer verify` lists every bad part)",
                BadPartWarning,
                stacklevel=2,
            )
    return good


def part_problem(part: Part) -> str | None:
    """As ``parts.problem``, but a file that has not changed is read once a process."""
    stat = part.path.stat()
    return _problem_of_file(part, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _problem_of_file(part: Part, size: int, mtime_ns: int) -> str | None:
    return problem(part)
