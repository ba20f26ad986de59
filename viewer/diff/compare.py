"""Where two runs part, and how the gap between them spreads.

A row holds a parameter's values at its first gradient in a step, and its gradients in that step. So where values and
gradients part at the same step, values come first: an earlier update changed them, and gradients follow. Where
gradients part and no value does, the cause lies within the step, and parameters stand in the order of the backward.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from tracer.log.place import Place
from tracer.log.read import scan
from tracer.log.run import open_run, own_metrics_since
from tracer.log.schema import WRAPPERS, slices_among
from viewer.options import matching

# Sums in another order change a float32 by about 1e-6 of its size. A real difference soon grows beyond this.
RTOL = 1e-5
_QUANTITIES = ("value", "grad", "applied")
# The cost of tracing, as a trace with a budget logs it, differs from run to run, and says nothing of the training.
_COST = "tracer_cost"


@dataclass(frozen=True)
class Side:
    """A run that is compared.

    Attributes:
        extremes: Its rows, as ``tracer.scan`` gives them.
        metrics: Likewise.
        budget: Whether the trace logs its own cost as a metric.
        fold: The number of steps that a row of the extremes covers.
        order: Its parameters in the order of the backward.
    """

    extremes: pl.LazyFrame
    metrics: pl.LazyFrame
    budget: bool = True
    fold: int = 1
    order: Sequence[str] = ()


@dataclass(frozen=True)
class Tolerance:
    """Numbers are alike where they differ by at most ``absolute + relative * (the larger magnitude)``."""

    relative: float = RTOL
    absolute: float = 0.0


@dataclass(frozen=True)
class Parting:
    """Where a parameter, or a metric, is no longer alike.

    Attributes:
        name: Its name in the first run.
        step: The step; the last one, where a row covers several.
        span: How many steps the row covers.
        statistic: The first statistic of the row that differs.
        a: Its number in the first run.
        b: Its number in the second run.
    """

    name: str
    step: int
    span: int
    statistic: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class Compared:
    """One table of two runs, side by side.

    Attributes:
        names: The number of parameters, or metrics, that both runs have; slices count as their parameter.
        only: The names that only the first run has, and only the second.
        ends: The last step of each run that all of its ranks have reached; None without a row.
        steps: The number of steps that were compared; when everything has parted, no more are.
        alike_until: The last step compared before the first one that differs; None where there is none.
        partings: Where parameters or metrics part, in order; those that stay alike are not in it.
    """

    names: int
    only: tuple[Sequence[str], Sequence[str]]
    ends: tuple[int | None, int | None]
    steps: int
    alike_until: int | None
    partings: Sequence[Parting]


@dataclass(frozen=True)
class Difference:
    """The difference between two runs."""

    params: Compared
    metrics: Compared

    @property
    def alike(self) -> bool:
        """Whether both have the same parameters, and no number differs at a step that both have."""
        return not (self.params.partings or self.metrics.partings or any(self.params.only))


def difference(
    a: Side, b: Side, tolerance: Tolerance | None = None, without: str = "", rows_at_once: int = 500_000
) -> Difference:
    """Compare two runs, at the steps that both have.

    Args:
        a: The first run.
        b: The second run.
        tolerance: How far numbers may be apart.
        without: A regular expression (Rust's syntax): parameters and metrics whose name matches are left out.
        rows_at_once: The rows of each run that are in memory at a time, about.
    """
    allowed = tolerance or Tolerance()
    extremes = _table(a.extremes, "param", without), _table(b.extremes, "param", without)
    metrics = [
        # While one rank is behind, the metrics of its missing steps may be incomplete.
        _table(_as_rows(run, table.last if table.ranks > 1 else None), "name", without)
        for run, table in zip((a, b), extremes, strict=True)
    ]
    return Difference(
        _compared(*extremes, allowed, rows_at_once, max(a.fold, b.fold), a.order),
        _compared(metrics[0], metrics[1], allowed, rows_at_once),
    )


def _as_rows(run: Side, last: int | None) -> pl.LazyFrame:
    """Metrics up to the ``last`` step in the form of extremes: several numbers in a step have a minimum and a maximum.

    All count as one rank's, since not every rank logs at every step.
    """
    value = pl.col("value")
    rows = run.metrics.filter(pl.col("name").cast(pl.String) != _COST) if run.budget else run.metrics
    if last is not None:
        rows = rows.filter(pl.col("step") <= last)
    return rows.select("step", "name", rank=pl.lit(0), span=pl.lit(1), value_min=value, value_max=value)


@dataclass(frozen=True)
class _Table:
    """A run's rows of one table, named by its column ``key``; all ranks have the first and the last step."""

    rows: pl.LazyFrame
    key: str
    names: list[str]
    ranks: int
    count: int
    first: int | None
    last: int | None

    @property
    def density(self) -> float:
        """The number of rows for a step, about."""
        return self.count / max(1, (self.last or 0) - (self.first or 0) + 1)


def _table(rows: pl.LazyFrame, key: str, without: str) -> _Table:
    step = pl.col("step")
    ranks = rows.group_by("rank").agg(pl.len(), first=step.min(), last=step.max()).collect(engine="streaming")
    names = rows.select(pl.col(key).unique().cast(pl.String)).collect(engine="streaming")[key].to_list()
    left_out = set(matching(names, without)) if without else set()
    kept = sorted(set(names) - left_out)
    first, last, count = ranks.select(pl.col("first").max(), pl.col("last").min(), pl.col("len").sum()).row(0)
    return _Table(rows, key, kept, ranks.height, count, first, last)


def _matched(a: Sequence[str], b: Sequence[str]) -> dict[str, str]:
    """The first run's name for each name of the second run that both have.

    Wrappers' names are ignored where a name has no equal; elsewhere, "module" may be a module of the user's own.
    """
    left = {_unwrapped(name): name for name in sorted(set(a) - set(b))}
    right = {_unwrapped(name): name for name in sorted(set(b) - set(a))}
    alike = {name: name for name in set(a) & set(b)}
    return alike | {right[bare]: left[bare] for bare in left.keys() & right.keys()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _compared(
    a: _Table, b: _Table, tolerance: Tolerance, rows_at_once: int, fold: int = 1, order: Sequence[str] = ()
) -> Compared:
    matched = _matched(a.names, b.names)
    common = sorted(matched.values())
    renamed = {name: other for name, other in matched.items() if name != other}
    both_have = set(a.rows.collect_schema().names()) & set(b.rows.collect_schema().names())
    columns = [name for name in a.rows.collect_schema().names() if name in both_have]
    statistics = [name for quantity in _QUANTITIES for name in columns if name.startswith(f"{quantity}_")]
    partings: dict[str, Parting] = {}
    steps, alike_until = 0, None
    for first, last in _windows(a, b, rows_at_once, fold):
        if len(partings) == len(common):
            break
        both = _side_by_side(
            _reduced(a, {}, common, statistics, first, last, fold),
            _reduced(b, renamed, common, statistics, first, last, fold),
            a.key,
        )
        compared = both["step"].unique().sort()
        new = _parted(both.filter(~pl.col(a.key).is_in(list(partings))), a.key, statistics, tolerance)
        steps += len(compared)
        if not partings:
            alike = compared if new.is_empty() else compared.filter(compared < new["step"].min())
            alike_until = alike[-1] if len(alike) else alike_until
        for row in new.iter_rows(named=True):
            name, statistic = row[a.key], row["statistic"]
            partings[name] = Parting(name, row["step"], row["span"], statistic, row[statistic], row[f"{statistic}_b"])
    a_slices, b_slices = (slices_among(table.names) if table.key == "param" else {} for table in (a, b))
    only = sorted({*a.names} - {*common, *a_slices}), sorted({*b.names} - {*matched, *b_slices})
    # Of a parameter and its slices, the first that parts stands for all.
    parted: dict[str, Parting] = {}
    for parting in _in_order(partings.values(), order, a_slices):
        parted.setdefault(a_slices.get(parting.name, parting.name), parting)
    names = {a_slices.get(name, name) for name in common}
    return Compared(len(names), only, (a.last, b.last), steps, alike_until, list(parted.values()))


def _in_order(partings: Iterable[Parting], order: Sequence[str], slices: Mapping[str, str]) -> list[Parting]:
    """By step, then values before gradients, then in the order of the backward, a slice behind its parameter."""
    place = {name: index for index, name in enumerate(order)}

    def key(parting: Parting) -> tuple[int, int, int, str]:
        quantity = _QUANTITIES.index(parting.statistic.partition("_")[0])
        return parting.step, quantity, place.get(slices.get(parting.name, parting.name), len(place)), parting.name

    return sorted(partings, key=key)


def _windows(a: _Table, b: _Table, rows_at_once: int, fold: int) -> Iterator[tuple[int, int]]:
    """The first and the last step of each stretch that is compared at once, within the steps that both runs have."""
    if a.first is None or a.last is None or b.first is None or b.last is None:
        return
    width = max(1, int(rows_at_once / max(a.density, b.density)) // fold) * fold
    last = min(a.last, b.last)
    for first in range(max(a.first, b.first) // fold * fold, last + 1, width):
        yield first, min(first + width - 1, last)


def _reduced(
    table: _Table,
    renamed: Mapping[str, str],
    names: Sequence[str],
    statistics: Sequence[str],
    first: int,
    last: int,
    fold: int,
) -> pl.LazyFrame:
    """A run's rows of these steps and names, with all ranks, and ``fold`` steps, made one."""
    step, key = pl.col("step"), pl.col(table.key)
    name = key.cast(pl.String).replace(renamed) if renamed else key
    rows = (
        table.rows.filter(step.is_between(first, last))
        .with_columns(name.cast(pl.Enum(names), strict=False))
        .filter(key.is_not_null())
    )
    if fold == table.ranks == 1 and table.key == "param":
        return rows.select("step", key, "span", *statistics)
    covered = pl.col("span").max() if fold == 1 else pl.col("span").sum() // pl.col("rank").n_unique()
    end = pl.min_horizontal(step - step % fold + fold - 1, pl.lit(last))
    return rows.group_by(end, key).agg(covered, *map(_merged, statistics))


def _merged(statistic: str) -> pl.Expr:
    # polars' min and max skip a NaN.
    column = pl.col(statistic)
    if statistic.endswith("_min"):
        return column.nan_min()
    return column.mean() if statistic.endswith("_mean") else column.nan_max()


def _side_by_side(a: pl.LazyFrame, b: pl.LazyFrame, key: str) -> pl.DataFrame:
    """The rows of the steps that both runs have; a row of only one run stands beside nulls."""
    left, right = pl.collect_all([a, b], engine="streaming")
    # A metric that is logged now and then is compared where both runs have it.
    how: Literal["full", "inner"] = "full" if key == "param" else "inner"
    if left.select("step", key).equals(right.select("step", key)):
        # The usual case of two runs of one training, and several times as fast.
        both = left.hstack(right.drop("step", key).rename(lambda column: f"{column}_b"))
    else:
        both = left.join(right, on=["step", key], how=how, coalesce=True, suffix="_b")
    # A row of three steps cannot be compared with a row of ten.
    both = both.filter((pl.col("span") == pl.col("span_b")).fill_null(value=True))
    shared = both.filter(pl.col("span").is_not_null() & pl.col("span_b").is_not_null()).select("step").unique()
    return both.join(shared, on="step", how="semi").with_columns(pl.coalesce("span", "span_b"))


def _parted(both: pl.DataFrame, key: str, statistics: Sequence[str], tolerance: Tolerance) -> pl.DataFrame:
    """The first row of each name that differs, with the first statistic that does."""
    differs = {name: ~_alike(pl.col(name), pl.col(f"{name}_b"), tolerance) for name in statistics}
    first = [pl.when(differs[name]).then(pl.lit(name)) for name in statistics]
    return (
        both.filter(pl.any_horizontal(differs.values()))
        .sort("step")
        .unique(key, keep="first")
        .with_columns(pl.coalesce(first).alias("statistic"), pl.col(key).cast(pl.String))
    )


def _alike(a: pl.Expr, b: pl.Expr, tolerance: Tolerance) -> pl.Expr:
    allowed = tolerance.absolute + tolerance.relative * pl.max_horizontal(a.abs(), b.abs())
    near = a.is_finite() & b.is_finite() & ((a - b).abs() <= allowed)
    # In polars, NaN equals NaN.
    return a.eq_missing(b) | near.fill_null(value=False)


def side(path: Place) -> Side:
    """The run in a folder, to be compared.

    Raises:
        LogError: the run cannot be read, or has no row yet.
    """
    run = open_run(path)
    resumed = scan(path, "events").filter(pl.col("kind") == "resumed").select("detail").collect()["detail"]
    return Side(
        scan(path),
        scan(path, "metrics"),
        _COST in run.own_metrics.union(*map(own_metrics_since, resumed)),
        run.info["settings"].get("fold") or 1,
        _order(path, [param["name"] for param in run.info["params"]]),
    )


def _order(path: Place, params: Sequence[str]) -> list[str]:
    """The parameters in the order in which their gradients arrived; where that is unknown, from the last on."""
    events = scan(path, "events").filter(pl.col("kind") == "order").sort("rank", -pl.col("attempt")).head(1)
    try:
        arrived = list(map(str, json.loads(events.select("detail").collect().item())))
    except (ValueError, TypeError):
        # There is no such event, or another writer's.
        arrived = []
    return list(dict.fromkeys([*arrived, *reversed(params)]))
