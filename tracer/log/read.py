"""Reading a log: ``scan`` gives a polars LazyFrame over one run, or several."""

import functools
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import polars as pl
import pyarrow.parquet as pq

from tracer.log import schema, store
from tracer.log.parts import Part, damage, with_listing
from tracer.log.run import LogError, open_run
from tracer.log.store import Place

Paths = str | os.PathLike[str]


class BadPartWarning(UserWarning):
    """A part of a log is damaged and was left out."""


def scan(
    run: Paths | Iterable[Paths], table: str = "extremes", *, attempts: Literal["latest", "all"] = "latest"
) -> pl.LazyFrame:
    """The rows of a run as a polars LazyFrame, at any moment of the run and afterwards.

    Each part's checksum is checked once a process, which reads all of its bytes. A damaged part is named in a
    ``BadPartWarning`` and left out. The frame reads the parts that exist now: scan again to see later ones.

    Args:
        run: A run's folder, or several; several add a first column ``run``, the folder's name (the path as given where
            two folders have the same name).
        table: ``"extremes"``, ``"metrics"``, ``"events"``, ``"histograms"`` or ``"activations"``; the docstring of
            ``tracer.log.schema`` describes their columns.
        attempts: Where a resumed run repeats steps, ``"latest"`` keeps each step's latest attempt.

    Raises:
        LogError: a folder holds no run, or one of a newer format; or no such table exists.
    """
    if table not in schema.TABLES:
        raise LogError(f"there is no table {table!r}: choose one of {', '.join(schema.TABLES)}")
    if isinstance(run, str | os.PathLike):
        return _scan_one(store.at(run), table, attempts)
    paths = [store.at(path) for path in run]
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


def _scan_one(path: Place, table: str, attempts: Literal["latest", "all"]) -> pl.LazyFrame:
    open_run(path)
    return with_listing(path, table, lambda parts: _scan_listed(parts, table, attempts))


def _scan_listed(parts: Sequence[Part], table: str, attempts: Literal["latest", "all"]) -> pl.LazyFrame:
    frame = scan_parts(good_parts(parts), table)
    if attempts == "all" or table == "events" or frame.select(pl.col("attempt").max()).collect().item() in (None, 0):
        return frame
    return frame.filter(pl.col("attempt") == pl.col("attempt").max().over("rank", "step"))


def scan_parts(parts: Sequence[Part], table: str) -> pl.LazyFrame:
    """The rows of these parts of a table, in their order; columns that a part lacks are null."""
    alike = [
        (columns, pl.scan_parquet([part.file() for part in group], glob=False))
        for columns, group in itertools.groupby(parts, lambda part: tuple(pq.read_schema(part.file()).names))
    ]
    specified = schema.SCHEMAS[table]
    if len(alike) == 1 and set(alike[0][0]) >= set(specified.names):
        return alike[0][1]
    empty = pl.DataFrame(pl.from_arrow(specified.empty_table())).lazy()
    return pl.concat([empty, *(frame for _, frame in alike)], how="diagonal")


def good_parts(parts: Iterable[Part]) -> list[Part]:
    """The undamaged ones among these parts; each of the others is named in a ``BadPartWarning``.

    Raises:
        FileNotFoundError: a part is gone; it may have been merged since it was listed.
    """
    good = []
    for part in parts:
        found = part_problem(part)
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
    try:
        stat = part.file().stat()
        return _damage_of_file(part, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


@functools.lru_cache(maxsize=1 << 16)
def _damage_of_file(part: Part, size: int, mtime_ns: int) -> str | None:
    return damage(part)
