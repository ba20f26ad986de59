"""A log is plain Parquet: DuckDB and Spark read it without a line of ours, and answer as polars does."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import polars as pl
import polars.selectors as cs
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from tests.logs import close_run, extremes, histograms, metrics, new_run, publish_next, statistics
from tests.waiting import wait_until
from tracer import cli, scan
from tracer.log.parts import list_parts
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

NAN, INF = math.nan, math.inf
ROOT = Path(__file__).parents[3]
TABLES = ("extremes", "metrics", "histograms")
# Both engines take NaN as the largest number there is, so that max keeps it and min would skip it.
QUESTIONS = {
    "overall": """
        SELECT step, -max(-value_min) AS value_min, -max(-grad_min) AS grad_min, max(value_max) AS value_max,
        max(grad_max) AS grad_max FROM extremes GROUP BY step ORDER BY step""",
    "history": """
        SELECT rank, step, time, grad_min, grad_max, grad_norm FROM extremes WHERE param = 'fc.bias'
        ORDER BY rank, step""",
    "largest": """
        SELECT step, rank, param, greatest(abs(grad_min), abs(grad_max)) AS magnitude FROM extremes
        ORDER BY magnitude DESC NULLS LAST, step, rank, param LIMIT 10""",
    "nan": """
        SELECT step, rank, param FROM extremes WHERE isnan(grad_max)
        AND step = (SELECT min(step) FROM extremes WHERE isnan(grad_max)) ORDER BY rank, param""",
    "count": "SELECT count(*) AS rows FROM extremes",
    "extremes": "SELECT * FROM extremes ORDER BY rank, step, param",
    "metrics": "SELECT * FROM metrics ORDER BY rank, step",
    "histograms": "SELECT * FROM histograms ORDER BY step",
}


def answers_of_polars(run: Path) -> dict[str, pl.DataFrame]:
    """The same questions to ``tracer.scan``."""
    tables = {table: scan(run, table).with_columns(cs.categorical().cast(pl.String)) for table in TABLES}
    rows = tables["extremes"]
    low, high = pl.col("value_min", "grad_min").nan_min(), pl.col("value_max", "grad_max").nan_max()
    magnitude = pl.max_horizontal(pl.col("grad_min").abs(), pl.col("grad_max").abs())
    found = rows.filter(pl.col("grad_max").is_nan())
    by = ("magnitude", "step", "rank", "param")
    descending = (True, False, False, False)
    asked = {
        "overall": rows.group_by("step").agg(low, high).sort("step"),
        "history": rows.filter(pl.col("param") == "fc.bias")
        .select("rank", "step", "time", "grad_min", "grad_max", "grad_norm")
        .sort("rank", "step"),
        "largest": rows.select("step", "rank", "param", magnitude=magnitude)
        .sort(by, descending=descending, nulls_last=True)
        .head(10),
        "nan": found.filter(pl.col("step") == pl.col("step").min())
        .select("step", "rank", "param")
        .sort("rank", "param"),
        "count": rows.select(pl.len().cast(pl.Int64).alias("rows")),
        "extremes": rows.sort("rank", "step", "param"),
        "metrics": tables["metrics"].sort("rank", "step"),
        "histograms": tables["histograms"].sort("step"),
    }
    return {question: frame.collect() for question, frame in asked.items()}


def write(run: Path) -> None:
    """A run of two ranks in several parts: one has a further statistic, and some have no number or none that is one."""
    params = ["conv.weight", "fc.bias"]
    new_run(run, params)
    for rank in (0, 1):
        for first in (0, 2, 4):
            size = [10.0 * first + 100 * rank + at for at in range(4)]
            grads = {"grad_min": [-number for number in size], "grad_max": [number / 2 for number in size]}
            publish_next(run, "extremes", extremes([first, first + 1], params, grads, rank), rank)
            publish_next(run, "metrics", metrics([first, first + 1], [1 / (first + 1), NAN], rank=rank), rank)
        odd = {"grad_min": [-INF, None, NAN, -0.0], "grad_max": [INF, None, NAN, 5e-324]}
        publish_next(
            run, "extremes", statistics([6, 7], params, {**odd, "grad_norm": [INF, None, NAN, 0.1]}, rank), rank
        )
    for step in (0, 1):
        publish_next(run, "histograms", histograms([step]))
    close_run(run, 7)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run in three states: in parts, after a merge that was killed, and after the merge that followed that."""
    folder = Path(tmp_path_factory.mktemp("engines"))
    found = {name: folder / name for name in ("parts", "killed", "merged")}
    write(found["parts"])
    shutil.copytree(found["parts"], found["killed"])
    cli.merge_command(str(found["killed"]))
    # A merge publishes first and deletes then: killed between, it leaves what it has replaced.
    shutil.copytree(found["parts"], found["killed"], dirs_exist_ok=True)
    shutil.copytree(found["killed"], found["merged"])
    cli.merge_command(str(found["merged"]))
    return found


@pytest.fixture(scope="module")
def truth(runs: dict[str, Path]) -> dict[str, pl.DataFrame]:
    """What polars answers."""
    return answers_of_polars(runs["parts"])


def answers_of_duckdb(run: Path) -> dict[str, pl.DataFrame]:
    """The same questions to DuckDB."""
    duckdb = pytest.importorskip("duckdb", reason="needs DuckDB")
    with duckdb.connect() as connection:
        for table in TABLES:
            connection.read_parquet(f"{run}/{table}/*.parquet", union_by_name=True).create_view(table)
        return {question: connection.sql(sql).pl() for question, sql in QUESTIONS.items()}


def group_lives(group: int) -> bool:
    """Whether there is a process in a process group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class Spark:
    """What Spark answered by run and question, and what it printed for the documentation's lines."""

    answers: dict[str, dict[str, pl.DataFrame]]
    printed: str


@pytest.fixture(scope="module")
def spark(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Spark:
    """The same questions to Spark, which has a JVM of its own and must not leave it behind."""
    pytest.importorskip("pyspark", minversion="4.0", reason="needs PySpark 4")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    folder = tmp_path_factory.mktemp("answers")
    paths = {name: str(run) for name, run in runs.items()}
    asked = {
        "runs": paths,
        "tables": TABLES,
        "questions": QUESTIONS,
        "recipe": recipe("spark."),
        "answers": str(folder),
    }
    (folder / "runs").mkdir()
    (folder / "runs" / "demo").symlink_to(runs["parts"])
    # Into a file: of a pipe, which a process that is left behind would hold open, there would be no end.
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.tracer.log.worker_spark", json.dumps(asked)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=200)
            said.seek(0)
            printed = said.read()
            assert code == 0, printed
            wait_until(lambda: not group_lives(process.pid), seconds=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    answers = {
        name: {question: pl.read_parquet(folder / f"{name}-{question}.parquet") for question in QUESTIONS}
        for name in runs
    }
    return Spark(answers, printed)


def recipe(word: str) -> str:
    """The documentation's lines for an engine."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "queries.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (block,) = (block for block in blocks if word in block)
    return str(block)


def assert_same(found: dict[str, pl.DataFrame], expected: dict[str, pl.DataFrame]) -> None:
    """Every number, null and NaN is as expected, to the last bit, and every type but for the names of a time zone."""
    for question, answer in expected.items():
        in_utc = found[question].with_columns(cs.datetime(time_zone="*").dt.convert_time_zone("UTC"))
        assert_frame_equal(in_utc, answer, check_exact=True)


def test_the_run_holds_what_is_hard_to_read(runs: dict[str, Path], truth: dict[str, pl.DataFrame]) -> None:
    """The comparison is worth something: encodings, columns that differ, and numbers that are none are there."""
    parts = [pq.read_metadata(part.path) for part in list_parts(runs["parts"], "extremes")]
    columns = [part.row_group(0).column(at) for part in parts for at in range(part.num_columns)]
    assert {len(part.schema.names) for part in parts} == {10, 11}
    assert {"BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED", "RLE_DICTIONARY"} <= {
        encoding for column in columns for encoding in column.encodings
    }
    assert truth["nan"].rows() == [(7, 0, "conv.weight"), (7, 1, "conv.weight")]
    assert truth["largest"]["magnitude"].cast(pl.String).to_list()[:5] == ["NaN", "NaN", "inf", "inf", "143.0"]
    assert truth["overall"].row(6) == (6, -1.0, -INF, 1.0, INF)
    assert truth["history"]["grad_norm"].null_count() == 14
    assert truth["count"].item() == 32


@pytest.mark.smoke
@pytest.mark.parametrize("state", ["parts", "merged"])
def test_duckdb_answers_as_polars_does(runs: dict[str, Path], truth: dict[str, pl.DataFrame], state: str) -> None:
    """DuckDB reads each value of each table, before a merge and after one that was killed and repeated."""
    assert_same(answers_of_duckdb(runs[state]), truth)


@pytest.mark.parametrize("state", ["parts", "merged"])
def test_spark_answers_as_polars_does(spark: Spark, truth: dict[str, pl.DataFrame], state: str) -> None:
    """So does Spark."""
    assert_same(spark.answers[state], truth)


@pytest.mark.smoke
def test_duckdb_reads_replaced_rows_twice(runs: dict[str, Path], truth: dict[str, pl.DataFrame]) -> None:
    """After a killed merge only ``scan`` knows which parts were replaced: for DuckDB run ``tracer merge`` first."""
    assert answers_of_duckdb(runs["killed"])["count"].item() == 2 * truth["count"].item()
    assert_same(answers_of_polars(runs["killed"]), truth)


def test_spark_reads_replaced_rows_twice(spark: Spark, truth: dict[str, pl.DataFrame]) -> None:
    """So does Spark."""
    assert spark.answers["killed"]["count"].item() == 2 * truth["count"].item()


def test_the_readmes_lines_for_duckdb_run(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the documentation shows for DuckDB gives each step's extremes."""
    pytest.importorskip("duckdb", reason="needs DuckDB")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(runs["parts"])
    monkeypatch.chdir(tmp_path)
    exec(recipe("duckdb."), {})
    assert "-143.0" in capfd.readouterr().out


def test_the_readmes_lines_for_spark_run(spark: Spark) -> None:
    """What the documentation shows for Spark gives each step's extremes, too."""
    assert "-143.0" in spark.printed
