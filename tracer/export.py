"""A run in the form of other tools: a CSV file, wide by step, or TensorBoard's event files.

A run is read some thousand steps at a time, so that its length costs no memory.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tracer.log.read import scan
from tracer.log.run import LogError
from tracer.log.schema import STATISTICS

# So many steps are in memory at once.
_STEPS = 5_000
_LOWEST = [pl.col(name).nan_min() for name in STATISTICS if name.endswith("min")]
_HIGHEST = [pl.col(name).nan_max() for name in STATISTICS if name.endswith("max")]
_TIME = pl.col("time").max()


def to_csv(run: str, file: Path) -> None:
    """Write a row for each step: its time, the overall extremes, and a column for each metric.

    Numbers are written so that reading them gives the same float64; what was not recorded is empty. Of a metric that
    was logged several times in a step, the last number of the lowest rank stands there. A metric that is called as
    another column gets ``_logged`` behind its name.

    Args:
        run: The run's folder or URI.
        file: The file, which is replaced if it is there.

    Raises:
        LogError: there is no run, or it cannot be read.
        OSError: the file cannot be written.
    """
    rows, metrics = scan(run), scan(run, "metrics")
    names = metrics.select(pl.col("name").cast(pl.String).unique().sort()).collect()["name"].to_list()
    taken = {"step", "time", *STATISTICS}
    columns = {name: f"{name}_logged" if name in taken else name for name in names}
    overall = rows.group_by("step").agg(_TIME, *_LOWEST, *_HIGHEST).select("step", "time", *STATISTICS)
    logged = metrics.group_by("step").agg(
        _TIME.alias("logged"), *(_last_of(name).alias(column) for name, column in columns.items())
    )
    wide = overall.join(logged, on="step", how="full", coalesce=True).sort("step")
    wide.with_columns(pl.coalesce("time", "logged")).drop("logged").sink_csv(file)


def _last_of(name: str) -> pl.Expr:
    """The last number of a metric in a step, of the lowest rank that has one."""
    one = pl.col("name").cast(pl.String) == name
    return pl.col("value").filter(one).sort_by(-pl.col("rank").filter(one), pl.col("time").filter(one)).last()


def to_tensorboard(run: str, folder: Path) -> None:
    """Write event files: metrics, overall extremes, the extremes of each module, histograms, and findings as text.

    TensorBoard shows numbers in float32. A histogram's sum is that of the middles of its bins.

    Args:
        run: The run's folder or URI.
        folder: Where the event file is put; TensorBoard is given this folder, or one above it.

    Raises:
        LogError: there is no run, it cannot be read, or TensorBoard is not installed.
        OSError: the file cannot be written.
    """
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        needs = "event files need TensorBoard, which is not installed here: pip install 'torch-gradwatch[tensorboard]'"
        raise LogError(needs) from error
    found = _findings(run)
    writer = EventFileWriter(str(folder))
    try:
        for table, scalars in (("metrics", _metrics), ("extremes", _extremes)):
            for rows in _windows(run, table):
                for row in scalars(rows).sort("step").iter_rows(named=True):
                    writer.add_event(_event(row["step"], row["time"], tag=row["tag"], simple_value=row["value"]))
        for rows in _windows(run, "histograms"):
            for row in rows.sort("step").iter_rows(named=True):
                if row["counts"] is not None:
                    rank = f"/rank{row['rank']}" if row["rank"] else ""
                    tag = f"{row['of']}/{row['param']}{rank}"
                    writer.add_event(_event(row["step"], row["time"], tag=tag, histo=_histogram(row)))
        for finding in found:
            writer.add_event(_event(finding["first_step"], datetime.now(), **_text(finding)))
    finally:
        writer.close()


def _windows(run: str, table: str) -> Iterator[pl.DataFrame]:
    """The rows of some thousand steps after the other; names are texts."""
    step, rows = pl.col("step"), scan(run, table)
    first, last = rows.select(step.min().alias("first"), step.max().alias("last")).collect().row(0)
    for begin in range(first or 0, -1 if last is None else last + 1, _STEPS):
        window = rows.filter((step >= begin) & (step < begin + _STEPS)).collect()
        if not window.is_empty():
            yield window.with_columns(pl.col(pl.Categorical).cast(pl.String))


def _metrics(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort("time").group_by("step", tag="name").agg(_TIME, pl.col("value").sort_by(-pl.col("rank")).last())


def _extremes(rows: pl.DataFrame) -> pl.DataFrame:
    """The overall extremes, and those of each module: of all parameters whose names are alike up to the last dot."""
    module = rows.with_columns(pl.col("param").str.extract(r"^(.*)\.", 1).fill_null(pl.col("param")))
    parts = [rows.with_columns(param=pl.lit("overall")), module]
    together = [part.group_by("step", "param").agg(_TIME, *_LOWEST, *_HIGHEST) for part in parts]
    long = pl.concat(together).unpivot(STATISTICS, index=["step", "time", "param"]).drop_nulls("value")
    return long.with_columns(tag=pl.col("variable") + "/" + pl.col("param"))


def _histogram(row: dict[str, Any]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    low, high, counts = row["low"], row["high"], row["counts"]
    edges = np.linspace(*((low, high) if low < high else (low - 0.5, high + 0.5)), len(counts) + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    return HistogramProto(
        min=low,
        max=high,
        num=sum(counts),
        sum=middles @ counts,
        sum_squares=middles**2 @ counts,
        bucket_limit=edges[1:],
        bucket=counts,
    )


def _findings(run: str) -> list[dict[str, Any]]:
    """What ``viewer check`` says of the run; the tracer's side does not import the viewer."""
    call = [sys.executable, "-m", "viewer", "check", run, "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    (told,) = json.loads(done.stdout)
    return list(told.get("findings", ()))


def _text(finding: dict[str, Any]) -> dict[str, Any]:
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    text = f"**{finding['severity']}**: {finding['sentence']}\n\n{finding['advice']}"
    return {
        "tag": f"findings/{finding['kind']}",
        "metadata": SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        "tensor": TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
    }


def _event(step: int, time: datetime, **value: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(wall_time=time.timestamp(), step=step, summary=Summary(value=[Summary.Value(**value)]))
