"""Reading a log: ``scan`` gives a polars LazyFrame over one run, or several."""

import contextlib
import functools
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import polars as pl

from tracer.log import schema
from tracer.log.parts import Part, good_parts, rows_by_number, with_listing
from tracer.log.place import Place
from tracer.log.ranks import closed_summaries
from tracer.log.run import LogError, open_run, runs_or_itself, without_inner_calls
from tracer.log.store import at

Paths = str | os.PathLike[str]
Used = TypeVar("Used")

# No table has so many: such a number is not believed.
_MANY_ROWS = 10**15
_NO_STEPS = pl.DataFrame(schema={"rank": pl.Int32, "attempt": pl.Int32, "step": pl.Int64})


@without_inner_calls
def scan(
    run: Paths | Iterable[Paths], table: str = "extremes", *, attempts: Literal["latest", "all"] = "latest"
) -> pl.LazyFrame:
    """The rows of a run as a polars LazyFrame, at any moment of the run and afterwards.

    Each process checks the checksum of each part once, which reads all of its bytes. A damaged part is named in a
    ``BadPartWarning`` and left out. The frame reads the parts that exist now: scan again to see later ones.
    A run at a URI is read from copies: new parts are downloaded, and kept until the process ends.

    Args:
        run: A run's folder or URI, or a folder of runs, or several of either. Several runs add a first column ``run``:
            the folder's name, or the path as given if two folders have the same name.
        table: ``"extremes"``, ``"metrics"``, ``"events"``, ``"histograms"`` or ``"activations"``; the docstring of
            ``tracer.log.schema`` describes their columns.
        attempts: If a run was resumed or restored at a step, ``"latest"`` leaves out the rows that earlier attempts
            recorded from that step on, and ``"all"`` keeps them; the column ``attempt`` tells them apart.

    Raises:
        LogError: a folder holds no run, or one of a newer format; or the table or the choice of attempts is unknown.
    """
    if table not in schema.TABLES:
        raise LogError(f"there is no table {table!r}: choose one of {', '.join(schema.TABLES)}")
    if attempts not in ("latest", "all"):
        raise LogError(
            f"attempts={attempts!r} is neither 'latest' nor 'all': filter the column attempt for one of them"
        )
    given = [each for path in ([run] if isinstance(run, str | bytes | os.PathLike) else run) for each in _inside(path)]
    paths = [at(path) for path in given]
    if not paths:
        raise LogError("no run was given to scan: give a run's folder, or several")
    if given[0] is run:
        return with_rows(paths[0], table, lambda rows: rows, attempts)
    names = [path.resolve().name for path in paths]
    # A URI may hold a password, which ``str`` leaves out.
    shown = [os.fspath(path) if place.on_disk else str(place) for path, place in zip(given, paths, strict=True)]
    labels = [name if names.count(name) == 1 else whole for name, whole in zip(names, shown, strict=True)]
    return pl.concat(
        [
            with_rows(path, table, lambda rows: rows, attempts).select(pl.lit(label).alias("run"), pl.all())
            for path, label in zip(paths, labels, strict=True)
        ],
        how="diagonal",
    )


def _inside(path: Paths) -> list[Paths]:
    """The runs in a folder of runs; else the path itself, also if the folder cannot be looked into."""
    place = at(path)
    with contextlib.suppress(OSError):
        found = runs_or_itself(place)
        return [path] if found == [place] else [*found]
    return [path]


class Attempts:
    """The rows of a run that count: an attempt abandons what earlier ones recorded from its first step on.

    It does so as soon as it begins, however far it comes. Each rank has its own attempts. Events tell the first step of
    an attempt; if they are lost, its first row does.

    Args:
        begins: The first steps that another instance knew.
        last: The last attempt that counts; later ones count as if they had not begun.

    Attributes:
        begins: The first step of each attempt but the first: ``rank``, ``attempt``, ``step``.
    """

    def __init__(self, begins: pl.DataFrame = _NO_STEPS, last: int | None = None) -> None:
        self.begins = begins
        self.last = last
        # The last step of each attempt that was given out. Most runs have one attempt, of which it is not looked up.
        self._given = _NO_STEPS
        self._unmeasured = False

    def note(self, events: pl.LazyFrame) -> None:
        """Learn from rows of the table ``events`` where attempts begin."""
        self._note(self.counting(events).filter(pl.col("kind").is_in(schema.BEGINNINGS)))

    def counting(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Leave out the rows of attempts that do not count; they are of any table."""
        return rows if self.last is None else rows.filter(pl.col("attempt") <= self.last)

    def _note(self, rows: pl.LazyFrame) -> None:
        later = rows.filter(pl.col("attempt") > 0).select(self.begins.columns)
        self.begins = _by_attempt(pl.concat([self.begins.lazy(), later]), pl.col("step").min())

    def latest(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Leave out those of these rows that a later attempt has abandoned; they are of any table but ``events``."""
        rows = self.counting(rows)
        if self.begins.is_empty() and rows.select(pl.col("attempt").max()).collect().item() in (None, 0):
            self._unmeasured = True
            return rows
        spans = _by_attempt(rows, pl.col("step").min(), pl.col("step").max().alias("last"))
        cuts = self.cuts(spans)
        spans = spans.select("rank", "attempt", step="last")
        kept = spans.join(cuts, on=("rank", "attempt"), how="left")
        kept = kept.select("rank", "attempt", pl.min_horizontal("step", pl.col("cut") - 1))
        self._given = _by_attempt(pl.concat([self._given, kept]).lazy(), pl.col("step").max())
        if cuts.is_empty():
            return rows
        abandoned = [
            (pl.col("attempt") == attempt) & (pl.col("step") >= cut) & pl.col("rank").is_in(ranks)
            for attempt, cut, ranks in cuts.group_by("attempt", "cut").agg("rank").iter_rows()
        ]
        return rows.filter(~pl.any_horizontal(abandoned))

    @property
    def overtaken(self) -> bool:
        """Whether a later attempt may have abandoned rows that ``latest`` gave out before."""
        if self.begins.is_empty():
            return False
        return self._unmeasured or not self._cuts(self._given).is_empty()

    def cuts(self, spans: pl.DataFrame) -> pl.DataFrame:
        """The steps from which on attempts are abandoned, for those that reach so far: ``rank, attempt, cut``.

        Args:
            spans: The first and the last step of each attempt of a table: ``rank, attempt, step, last``.
        """
        self._note(spans.lazy())
        return self._cuts(spans.select("rank", "attempt", step="last"))

    def _cuts(self, lasts: pl.DataFrame) -> pl.DataFrame:
        """The steps from which on attempts are abandoned, for those that reach so far: ``rank, attempt, cut``.

        Args:
            lasts: The last step of each attempt: ``rank, attempt, step``.
        """
        later = lasts.join(self.begins, on="rank", suffix="_later").filter(pl.col("attempt_later") > pl.col("attempt"))
        cuts = later.group_by("rank", "attempt").agg(pl.col("step").first(), pl.col("step_later").min().alias("cut"))
        return cuts.filter(pl.col("cut") <= pl.col("step")).drop("step")


def _by_attempt(rows: pl.LazyFrame, *numbers: pl.Expr) -> pl.DataFrame:
    return rows.group_by("rank", "attempt").agg(*numbers).collect()


def with_rows(
    path: Place, table: str, use: Callable[[pl.LazyFrame], Used], attempts: Literal["latest", "all"] = "latest"
) -> Used:
    """Call ``use`` with the rows of a run, as ``scan`` gives them, and return its result.

    It is called again if parts are merged meanwhile.

    Raises:
        LogError: there is no run, or it cannot be read.
    """
    open_run(path)
    return with_listing(path, table, lambda parts: use(_scan_listed(path, parts, table, attempts)))


def _scan_listed(path: Place, parts: Sequence[Part], table: str, attempts: Literal["latest", "all"]) -> pl.LazyFrame:
    frame = scan_parts(good_parts(path / table, parts), table)
    if attempts == "all" or table == "events":
        return frame
    known = Attempts()
    # Listed after the rows: the event of an attempt is published before its rows.
    with_listing(path, "events", lambda parts: known.note(scan_parts(good_parts(path / "events", parts), "events")))
    return known.latest(frame)


def scan_parts(parts: Sequence[Part], table: str) -> pl.LazyFrame:
    """The rows of these parts of a table, in their order and without repeats; a column that a part lacks is null."""
    repeated = {part: part.repeats(before) for before, part in zip((None, *parts), parts, strict=False)}

    def alike_as(part: Part) -> tuple[tuple[tuple[str, pl.DataType], ...], Part | None]:
        return _columns(part), part if repeated[part] else None

    empty = pl.DataFrame(pl.from_arrow(schema.SCHEMAS[table].empty_table()))
    frames = []
    for (columns, overlapping), group in itertools.groupby(parts, alike_as):
        frame = pl.scan_parquet([part.file() for part in group], glob=False)
        if overlapping is not None:
            frame = frame.slice(sum(rows_by_number(overlapping)[: repeated[overlapping]]))
        frames.append(_as_known(frame, dict(columns), empty.schema, table))
        complete = empty.schema.keys() <= dict(columns).keys()
    if len(frames) == 1 and complete:
        return frames[0]
    return pl.concat([empty.lazy(), *frames], how="diagonal")


def _as_known(
    frame: pl.LazyFrame, columns: Mapping[str, pl.DataType], known: Mapping[str, pl.DataType], table: str
) -> pl.LazyFrame:
    """The columns of a part that are known here, in the types of the specification."""
    float64 = pl.Float64()
    wanted = {
        name: known.get(name, float64)
        for name, dtype in columns.items()
        if name in known or (table == "extremes" and dtype.is_float())
    }
    if wanted == columns:
        return frame
    return frame.select(pl.col(name).cast(dtype) for name, dtype in wanted.items())


# A run has some thousand parts while it goes on.
@functools.lru_cache(maxsize=1 << 12)
def _columns(part: Part) -> tuple[tuple[str, pl.DataType], ...]:
    return tuple(pl.scan_parquet(part.file(), glob=False).collect_schema().items())


def rows_dropped(path: Place) -> int:
    """Count the rows of a run that could not be written, as far as its ranks could tell.

    Raises:
        LogError: a closed mark cannot be read.
    """
    return all_dropped(with_rows(path, "events", dropped_as_told, "all"), closed_summaries(path))


def dropped_as_told(events: pl.LazyFrame) -> Counter[tuple[int, int, str]]:
    """Count the rows that were lost according to these events, by rank, attempt and kind of event."""
    wanted = events.filter(pl.col("kind").is_in(("dropped", "resumed")))
    told: Counter[tuple[int, int, str]] = Counter()
    for rank, attempt, kind, detail in wanted.select("rank", "attempt", "kind", "detail").collect().iter_rows():
        told[rank, attempt, kind] += sum(rows_lost(detail).values()) if kind == "dropped" else 0
    return told


def rows_lost(detail: str | None) -> dict[str, int]:
    """Read the detail of an event ``dropped``: the rows lost, by table; empty if it is damaged."""
    try:
        told = json.loads(detail or "")
    except (ValueError, RecursionError):
        # The first logs hold a sentence.
        return {table: int(rows) for rows, table in re.findall(r"(\d{1,15}) rows of (\w+)", detail or "")}
    if not isinstance(told, dict):
        return {}
    return {table: rows for table, rows in told.items() if type(rows) is int and 0 <= rows < _MANY_ROWS}


def all_dropped(told: Mapping[tuple[int, int, str], int], summaries: Iterable[Mapping[str, Any]]) -> int:
    """Count the lost rows of a run.

    A rank's closed mark tells of those since it was last resumed; events tell of the others.

    Args:
        told: The result of ``dropped_as_told`` for all events.
        summaries: The closed marks.
    """
    marked = {summary["rank"]: int(sum(summary.get("rows_dropped", {}).values())) for summary in summaries}
    # Restoring a checkpoint begins an attempt, too, but the same process goes on counting.
    since = dict.fromkeys(marked, 0)
    for rank, attempt, kind in told:
        if kind == "resumed" and rank in marked:
            since[rank] = max(since[rank], attempt)
    earlier = (lost for (rank, attempt, _), lost in told.items() if rank not in marked or attempt < since[rank])
    return sum(marked.values()) + sum(earlier)
