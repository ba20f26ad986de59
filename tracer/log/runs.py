"""All runs at a glance, each a row: its state, how far it came, its metrics and its hyper-parameters.

Hundreds of runs are read in seconds, since hardly any rows are: footers tell steps, and of merged parts also metrics.
"""

import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tracer.log import summary as summaries
from tracer.log.footer import misfit
from tracer.log.parts import BadPartWarning, Part, with_listing
from tracer.log.place import Place
from tracer.log.ranks import State, overall, rank_states, settle
from tracer.log.read import Attempts, with_rows
from tracer.log.run import LogError, open_run, runs_at
from tracer.log.store import at
from tracer.log.summary import Numbers, Summary
from tracer.log.text import failure, plain, reason

_SPANS = {"rank": pl.Int32, "attempt": pl.Int32, "step": pl.Int64, "last": pl.Int64}
_WORDS = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+(?![a-z])\d*")
# By words in a metric's name: whether a low or a high number is the better one.
_LOW = "loss losses error err perplexity ppl nll mse rmse mae mape wer cer fid"
_HIGH = "acc accuracy f1 auc auroc precision recall iou dice map bleu rouge psnr ssim reward return score r2"
_BETTER: Mapping[str, Literal["low", "high"]] = {
    **dict.fromkeys(_LOW.split(), "low"),
    **dict.fromkeys(_HIGH.split(), "high"),
}
_TOP = re.compile(r"top\d+")
# Beside such a word, a loss is none: loss_scale.
_OTHERS = {"scale", "scaler", "weight", "coef", "count", "steps"}


def better(name: str) -> Literal["low", "high"] | None:
    """Whether low or high numbers of a metric are the better ones, as the words in its name tell; None if unknown."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if _OTHERS & set(words):
        return None
    known = (_BETTER.get(word) or ("high" if _TOP.fullmatch(word) else None) for word in words)
    return next(filter(None, known), None)


@dataclass(frozen=True)
class RunRow:
    """A run in one row.

    Attributes:
        name: The name of its folder.
        state: Whether it goes on.
        started: When it began.
        steps: How many steps it made, those that it did not measure included; None where that cannot be read.
        last: The last number of each metric, by its name.
        best: The best number of each metric of which a name tells which that is; NaN and infinities are left out.
        config: The hyper-parameters; those in an inner dict have names as ``optimizer.lr``.
    """

    name: str
    state: State
    started: datetime
    steps: int | None
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def best_of(name: str, low: float, high: float) -> float | None:
    """Which end of a metric is its best number; None if its name does not tell, or no number is finite."""
    best = {"low": low, "high": high, None: math.nan}[better(name)]
    return best if math.isfinite(best) else None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config whose inner dicts are no more: each value has the names of those that it stands in before its own."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what is not the same in all of these configs."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if any(_differs(name, config, configs[0]) for config in configs[1:])]


def _differs(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (name in one) != (name in other) or one.get(name) != other.get(name)


def runs(folder: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = "runs") -> pl.DataFrame:
    """A table of runs: one row each, in the order of their beginning.

    Hardly any rows are read, so that hundreds of runs take seconds.

    Args:
        folder: A folder of runs or its URI, or a run, or several of either.

    Returns:
        The columns ``name``, ``state`` ("running", "closed" or "stopped"), ``started`` (UTC) and ``steps`` (how many
        were made, null where that cannot be read); ``last.<metric>``, its last number; ``best.<metric>``, the lowest
        finite one of a loss or an error, the highest of an accuracy or a score; and ``config.<name>``, the
        hyper-parameters that ``attach`` was given, as JSON where they are no numbers, texts or truth values of one
        kind. What a run does not have is null. A run that cannot be read is left out, with a ``BadPartWarning``.

    Raises:
        LogError: there is no run.
    """
    given = [folder] if isinstance(folder, str | bytes | os.PathLike) else list(folder)
    return frame(rows_of([at(path) for path in given]))


def rows_of(paths: Iterable[Place]) -> list[RunRow]:
    """A row for each run in these folders, which are runs or hold some.

    Raises:
        LogError: there is none in one of them.
    """
    found = [run for path in paths for run in runs_at(path)]
    settle(found)
    rows = []
    for path in found:
        try:
            rows.append(_row(path))
        except (LogError, OSError) as error:
            warnings.warn(plain(f"{path.name} is left out: {failure(error)}"), BadPartWarning, stacklevel=3)
    return rows


def _row(path: Place) -> RunRow:
    run = open_run(path)
    with path.brief_copies():
        measured = with_listing(path, "extremes", lambda parts: _last_step(path, _newest(parts)))
        logged, numbers = with_listing(path, "metrics", lambda parts: _metrics(path, _known(parts)))
    best = {name: best_of(name, each.low, each.high) for name, each in numbers.items()}
    return RunRow(
        name=run.name,
        state=overall(rank_states(path)),
        started=datetime.fromisoformat(run.info["started"]).astimezone(UTC),
        steps=None if measured is None and logged < 0 else 1 + max(-1 if measured is None else measured, logged),
        last={name: each.last for name, each in numbers.items()},
        best={name: number for name, number in best.items() if number is not None},
        config=flat(run.config),
    )


def _newest(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts in which the last step of each rank stands: the newest, but all of a rank that was resumed."""
    last = {part.rank: part for part in parts}
    resumed = {known.part.rank for known in _known([*last.values()]) if _resumed([known])}
    return [part for part in parts if part.rank in resumed or part is last[part.rank]]


@dataclass(frozen=True)
class _Known:
    """What is known of a part.

    Attributes:
        part: The part.
        spans: The first and the last step of each attempt: attempt, first, last.
        summary: Of one of ``metrics``, its numbers.
    """

    part: Part
    spans: Sequence[tuple[int, int, int]]
    summary: Summary


def _known(parts: Sequence[Part]) -> list[_Known]:
    """What is known of these parts; a damaged one is named in a ``BadPartWarning`` and left out.

    Raises:
        FileNotFoundError: a part is gone; it may have been merged since it was listed.
    """
    found = []
    for part in parts:
        try:
            found.append(_look(part))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            words = plain(f"{part.path} cannot be read, so its rows are left out: {reason(error)}")
            warnings.warn(words, BadPartWarning, stacklevel=2)
    return found


# Parts never change.
@functools.lru_cache(maxsize=1 << 14)
def _look(part: Part) -> _Known:
    with pq.ParquetFile(part.file()) as file:
        problem = misfit(file.metadata, part.table, range(part.first, part.last + 1))
        if problem is not None:
            raise ValueError(f"it {problem}")
        groups = [_spans_of_group(file, index) for index in range(file.metadata.num_row_groups)]
        summary = summaries.stored(file.metadata) if part.table == "metrics" else {}
        if summary is None:
            summary = summaries.of_rows(file.read(summaries.COLUMNS))
    return _Known(part, [span for spans in groups for span in spans], summary)


def _spans_of_group(file: pq.ParquetFile, index: int) -> list[tuple[int, int, int]]:
    """The first and the last step of each attempt in a row group, as its statistics tell if it is of one attempt."""
    group = file.metadata.row_group(index)
    columns = {group.column(column).path_in_schema: group.column(column) for column in range(group.num_columns)}
    step, attempt = columns["step"].statistics, columns["attempt"].statistics
    if not group.num_rows:
        return []
    if attempt.min == attempt.max:
        return [(attempt.min, step.min, step.max)]
    rows = file.read_row_group(index, ["attempt", "step"]).group_by("attempt")
    found = rows.aggregate([("step", "min"), ("step", "max")]).select(["attempt", "step_min", "step_max"])
    return list(zip(*found.to_pydict().values(), strict=True))


def _last_step(path: Place, parts: Sequence[Part]) -> int | None:
    """The last step of these parts that counts; -1 where there is none, and None where they cannot be read."""
    known = _known(parts)
    if parts and not known:
        return None
    if not _resumed(known):
        return max((last for each in known for _, _, last in each.spans), default=-1)
    spans = _spans(known)
    kept = spans.join(_cuts(path, spans), on=("rank", "attempt"), how="left")
    return max(kept.select(pl.min_horizontal("last", pl.col("cut") - 1)).to_series(), default=-1)


def _spans(known: Sequence[_Known]) -> pl.DataFrame:
    """The first and the last step of each rank and attempt in these parts: ``rank, attempt, step, last``."""
    rows = [(each.part.rank, *span) for each in known for span in each.spans]
    spans = pl.DataFrame(rows, schema=_SPANS, orient="row")
    return spans.group_by("rank", "attempt").agg(pl.col("step").min(), pl.col("last").max())


def _cuts(path: Place, spans: pl.DataFrame) -> pl.DataFrame:
    """Where attempts of a run have been abandoned by later ones: ``rank, attempt, cut``."""
    attempts = Attempts()
    with_rows(path, "events", attempts.note, "all")
    return attempts.cuts(spans)


def _resumed(known: Sequence[_Known]) -> bool:
    """Whether any of these parts is of a later attempt than the first."""
    return any(attempt for each in known for attempt, _, _ in each.spans)


def _metrics(path: Place, known: Sequence[_Known]) -> tuple[int, dict[str, Numbers]]:
    """The last step for which metrics were logged, -1 for none, and the numbers of each, by its name."""
    summary = summaries.joined(each.summary for each in known)
    if _resumed(known) and not _cuts(path, _spans(known)).is_empty():
        # Rows that an attempt has abandoned do not count, and only rows tell the numbers before them.
        summary = with_rows(path, "metrics", lambda rows: summaries.of_rows(rows.collect().to_arrow()))
    numbers: dict[str, Numbers] = {}
    for (name, _), each in sorted(summary.items()):
        numbers[name] = numbers[name].joined(each) if name in numbers else each
    return max((each.step for each in numbers.values()), default=-1), numbers


def frame(rows: Sequence[RunRow]) -> pl.DataFrame:
    """Rows as a table, as ``runs`` returns it."""
    columns = [
        pl.Series("name", [row.name for row in rows], pl.String),
        pl.Series("state", [row.state for row in rows], pl.String),
        pl.Series("started", [row.started for row in rows], pl.Datetime("us", "UTC")),
        pl.Series("steps", [row.steps for row in rows], pl.Int64),
    ]
    for word, metrics in (("last", [row.last for row in rows]), ("best", [row.best for row in rows])):
        names = sorted({name for of_run in metrics for name in of_run})
        columns += [pl.Series(f"{word}.{name}", [of.get(name) for of in metrics], pl.Float64) for name in names]
    configs = [row.config for row in rows]
    names = list(dict.fromkeys(name for config in configs for name in config))
    columns += [_config_column(f"config.{name}", [config.get(name) for config in configs]) for name in names]
    return pl.DataFrame(columns)


def _config_column(name: str, values: Sequence[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    for dtype, known in ((pl.Boolean, {bool}), (pl.Int64, {int}), (pl.Float64, {int, float}), (pl.String, {str})):
        if kinds <= known:
            return pl.Series(name, values, dtype, strict=False)
    return pl.Series(name, [None if value is None else in_words(value) for value in values], pl.String)


def in_words(value: Any) -> str:
    """A hyper-parameter as text: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
