"""Metrics that another tool wrote into a file: a CSV, or the ``trainer_state.json`` of Hugging Face's Trainer."""

import io
import json

import polars as pl

from tracer.log import schema
from tracer.log.place import Place
from tracer.log.run import LogError
from tracer.log.text import reason
from viewer.options import ViewOptions
from viewer.reduce.history import History
from viewer.rules.evidence import Evidence
from viewer.rules.findings import OF_LOG, findings
from viewer.rules.rule import Limits
from viewer.snapshot import Snapshot

_SUFFIXES = (".csv", ".json")
# What a file that is no table of metrics raises.
_NO_TABLE = (pl.exceptions.PolarsError, AttributeError, LookupError, TypeError, ValueError)
# The first of these columns that there is counts steps.
_STEPS = ("step", "global_step", "_step", "iteration", "epoch")


def is_metrics_file(path: Place) -> bool:
    """Whether a place is a file whose name says that it holds metrics."""
    return path.on_disk is not None and path.name.endswith(_SUFFIXES) and path.file_exists()


def judge(path: Place, limits: Limits, options: ViewOptions) -> Snapshot:
    """What the rules of metrics find in such a file.

    Raises:
        LogError: it holds no metrics, or has no steps.
        OSError: it cannot be read.
    """
    history = History()
    history.absorb("metrics", _metrics(path).lazy())
    loss, accuracy = options.named
    evidence = Evidence(state="closed", curves=tuple(history.curves()), loss=loss, accuracy=accuracy)
    found = tuple(finding for finding in findings(evidence, limits) if finding.kind not in OF_LOG)
    return Snapshot(name=str(path), state="closed", last_step=evidence.last_step, findings=found)


def _metrics(path: Place) -> pl.DataFrame:
    """The rows of a table ``metrics``: one of each number in the file. Cells that hold none are left out."""
    try:
        columns = _columns(path)
    except _NO_TABLE as error:
        raise LogError(
            f"{path} is no table of metrics: {reason(error)}; there must be a CSV with a line of names first, or a "
            "trainer_state.json"
        ) from error
    named = {name.strip().lower(): name for name in reversed(columns.columns)}
    step = next((named[name] for name in _STEPS if name in named), None)
    if step is None:
        raise LogError(f"{path} has no column of steps: one must be called {', '.join(_STEPS[:-1])} or {_STEPS[-1]}")
    numbers = columns.select(pl.all().cast(pl.Float64, strict=False))
    rows = [
        numbers.select(
            pl.col(step).cast(pl.Int64, strict=False).alias("step"),
            pl.lit(0, pl.Int32).alias("rank"),
            pl.lit(0, pl.Datetime("us", "UTC")).alias("time"),
            pl.lit(name.strip()).alias("name"),
            pl.col(name).alias("value"),
        )
        for name in numbers.columns
        if name != step
    ]
    within = pl.col("step").is_between(0, schema.BEYOND["step"] - 1)
    if not rows or (known := pl.concat(rows).drop_nulls().filter(within)).is_empty():
        raise LogError(f"{path} has no number of any metric")
    return known.sort("step", maintain_order=True)


def _columns(path: Place) -> pl.DataFrame:
    """The file's columns as text or numbers, with null where a line has none."""
    content = path.content()
    if path.name.endswith(".csv"):
        # As text: whether a column holds numbers may only be seen in its last line.
        return pl.read_csv(io.BytesIO(content), infer_schema=False, truncate_ragged_lines=True)
    lines = json.loads(content)["log_history"]
    return pl.DataFrame(
        [{name: str(value) for name, value in line.items()} for line in lines], infer_schema_length=None
    )
