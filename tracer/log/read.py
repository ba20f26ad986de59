"""Reading a log: ``scan`` gives a polars LazyFrame over one run, or several."""

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import polars as pl
import pyarrow.parquet as pq

from tracer.log import schema, store
from tracer.log.parts import Part, known_problem, rows_by_number, with_listing
from tracer.log.run import LogError, closed_summaries, open_run
from tracer.log.store import Place

# What polars raises where it cannot decode a file; the second where it did not expect what it found.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_ROWS_AT_ONCE = 1 << 20

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
    """The rows of these parts of a table, in their order, each once; columns that a part lacks are null."""
    repeated = {part: part.repeats(before) for before, part in zip((None, *parts), parts, strict=False)}

    def alike_as(part: Part) -> tuple[tuple[str, ...], Part | None]:
        return tuple(pq.read_schema(part.file()).names), part if repeated[part] else None

    alike = []
    for (columns, overlapping), group in itertools.groupby(parts, alike_as):
        frame = pl.scan_parquet([part.file() for part in group], glob=False)
        if overlapping is not None:
            frame = frame.slice(sum(rows_by_number(overlapping)[: repeated[overlapping]]))
        alike.append((columns, frame))
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
        found = known_problem(part)
        if found is None:
            good.append(part)
        else:
            warnings.warn(
                f"{part.path} {found}; its rows are left out (`tracer verify` lists every bad part)",
                BadPartWarning,
                stacklevel=2,
            )
    return good


def undecodable(part: Part) -> str | None:
    """What keeps an undamaged part's rows from being read, as it can be where a stranger wrote it.

    Raises:
        FileNotFoundError: the part is gone; it may have been merged since it was listed.
    """
    frame = pl.scan_parquet(part.file(), glob=False)
    try:
        for offset in range(0, sum(rows_by_number(part)), _ROWS_AT_ONCE):
            frame.slice(offset, _ROWS_AT_ONCE).collect()
    except UNREADABLE as error:
        return f"cannot be decoded: {error}"
    return None


def rows_dropped(path: Place) -> int:
    """How many rows of a run could not be written, as far as its ranks could tell.

    A rank tells of each loss in ``events``, and in its closed mark how many there were since it was resumed last.

    Raises:
        LogError: a closed mark cannot be read.
    """
    told = (
        _scan_one(path, "events", "all")
        .select(
            "rank",
            "attempt",
            pl.when(pl.col("kind") == "dropped").then("detail").str.extract_all(r"\d{1,15} rows").alias("losses"),
        )
        .collect()
    )
    events: dict[int, dict[int, int]] = {}
    for rank, attempt, losses in told.iter_rows():
        counts = events.setdefault(rank, {})
        counts[attempt] = counts.get(attempt, 0) + sum(int(loss.split()[0]) for loss in losses or ())
    for summary in closed_summaries(path):
        counts = events.setdefault(summary["rank"], {})
        counts[max(counts, default=0)] = sum(summary.get("rows_dropped", {}).values())
    return sum(sum(counts.values()) for counts in events.values())
