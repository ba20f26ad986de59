"""Which batch it was: numbers that a user logged, looked up in the log at the very step that a finding is about."""

from collections.abc import Sequence

import polars as pl

from viewer.read.follow import Rows
from viewer.reduce.metrics import is_batch
from viewer.rules.evidence import Evidence, Moment, Record
from viewer.snapshot import Batch

# Up to here each whole number is a float64 of its own.
_LARGEST = 2**53
# No disk, and no part of the log, costs a run its findings.
_FAILURES = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


class Batches:
    """Looks up batches of one run, each moment once: a part of the log may be on another machine."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[Batch, ...]] = {}

    def at(self, rows: Rows[Record], evidence: Evidence, moment: Moment) -> tuple[Batch, ...]:
        """The batches of a moment, of the ranks on which it was, in the order in which each logged them.

        Args:
            rows: The run's rows.
            evidence: What is known of it without its batches.
            moment: The moment.
        """
        names = [curve.name for curve in evidence.curves if is_batch(curve.name)]
        # A restart may have replaced the step's rows.
        key = moment, *rows.begins.iter_rows()
        if not names or key in self._known:
            return self._known.get(key, ())
        try:
            found = _found(rows, names, moment)
        except _FAILURES:
            return ()
        if _passed(evidence, names, moment.last):
            self._known[key] = found
        return found


def _found(rows: Rows[Record], names: Sequence[str], moment: Moment) -> tuple[Batch, ...]:
    """The batches of a moment, of what has been published."""
    where = pl.col("step").is_between(moment.first, moment.last)
    if moment.metric is not None:
        seen = rows.look("metrics", where & (pl.col("name") == moment.metric) & pl.col("value").is_finite().not_())
    else:
        seen = rows.look("extremes", where & (pl.col("param") == moment.param) & _seen(moment.beyond))
    if seen.is_empty():
        return ()
    step = seen["step"].min()
    ranks = seen.filter(pl.col("step") == step)["rank"].unique()
    whole = (pl.col("value") == pl.col("value").round()) & (pl.col("value").abs() <= _LARGEST)
    logged = rows.look("metrics", pl.col("name").is_in(names) & (pl.col("step") == step) & whole)
    # Where one rank logs for all of them, it is known of that alone.
    own = logged.filter(pl.col("rank").is_in(ranks.implode()))
    listed = (own if own.height else logged).with_columns(pl.col("name").cast(pl.String))
    listed = listed.sort("name", "rank", maintain_order=True).select(
        "name", "step", "rank", pl.col("value").cast(pl.Int64)
    )
    return tuple(Batch(*row) for row in listed.iter_rows())


def _seen(beyond: float | None) -> pl.Expr:
    """Whether a row of a parameter has what a moment is about."""
    if beyond is None:
        ends = "value_min", "value_max", "grad_min", "grad_max"
        return pl.any_horizontal(pl.col(end).is_finite().not_() for end in ends)
    return pl.max_horizontal(pl.col("grad_min").abs(), pl.col("grad_max").abs()) > beyond


def _passed(evidence: Evidence, names: Sequence[str], step: int) -> bool:
    """Whether every rank that logs batches has gone on, so that no row of this step is still to come."""
    for curve in evidence.curves:
        spread = None if evidence.ranks is None else evidence.ranks.metrics.get(curve.name)
        if curve.name not in names:
            continue
        if spread is None and curve.step[-1] <= step:
            return False
        if spread is not None and any(
            spread.ends[count > 0].max(initial=-1) <= step for count in spread.count.T if count.any()
        ):
            return False
    return True
