"""The table of runs."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tracer
from tests.logs import close_run, events, extremes, metrics, new_run, publish_next
from tracer.log.parts import BadPartWarning, all_parts, merge
from tracer.log.ranks import beat
from tracer.log.run import LogError
from tracer.log.runs import better
from tracer.log.store import Local as Path


def row(path: Path) -> dict[str, object]:
    """The only row of a run's table."""
    (found,) = tracer.runs(path).to_dicts()
    return found


def expected(path: Path) -> dict[str, object]:
    """The same of its numbers, by all of the run's rows."""
    rows = tracer.scan(path, "metrics").sort("step", "time").collect()
    steps = [
        tracer.scan(path, table).select(pl.col("step").max()).collect().item() for table in ("extremes", "metrics")
    ]
    truth: dict[str, object] = {"steps": max(step for step in steps if step is not None) + 1}
    for (name,), of in rows.group_by("name"):
        finite = of["value"].filter(of["value"].is_finite())
        truth[f"last.{name}"] = of["value"][-1]
        if "loss" in str(name):
            truth[f"best.{name}"] = finite.min()
        elif "acc" in str(name):
            truth[f"best.{name}"] = finite.max()
    return truth


def log_some(path: Path, steps: Sequence[int], seed: int, rank: int = 0, attempt: int = 0) -> None:
    """Publish a part of extremes and one of metrics, NaN and infinities among them."""
    numbers = np.random.default_rng(seed).normal(size=len(steps))
    bad = np.where(np.arange(len(steps)) % 7 == 3, math.inf, numbers)
    publish_next(path, "extremes", extremes(steps, rank=rank, attempt=attempt), rank)
    rows = [("loss", bad), ("val_acc", numbers / 2), ("lr", numbers * 0)]
    named = [metrics(steps, list(values), name, rank, attempt) for name, values in rows]
    publish_next(path, "metrics", pa.concat_tables(named), rank)


@pytest.mark.parametrize("merged", [False, True])
def test_the_numbers_are_those_of_all_rows(tmp_path: Path, merged: bool) -> None:
    """Steps, last and best metrics are those that all rows give, of several ranks, merged or not."""
    run = new_run(tmp_path / "a")
    beat(run, 1)
    for rank in (0, 1):
        for part in range(3):
            log_some(run, range(10 * part, 10 * part + 10 + rank), seed=part, rank=rank)
    if merged:
        for table, rank in (("extremes", 0), ("extremes", 1), ("metrics", 0), ("metrics", 1)):
            merge(run, table, rank)
    found = row(run)
    assert {name: found[name] for name in expected(run)} == expected(run)
    assert {name for name in found if "." in name} == {name for name in expected(run) if "." in name}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("back_to", [20, 12])
def test_what_a_later_attempt_abandoned_does_not_count(tmp_path: Path, merged: bool, back_to: int) -> None:
    """After a run was resumed, whether at its end or before it, the numbers are those of the rows that count."""
    run = new_run(tmp_path / "a")
    log_some(run, range(20), seed=0)
    publish_next(run, "events", events([back_to], "resumed", attempt=1))
    log_some(run, range(back_to, back_to + 3), seed=1, attempt=1)
    for table in ("extremes", "metrics") if merged else ():
        merge(run, table, 0)
    found = row(run)
    assert found["steps"] == back_to + 3
    assert {name: found[name] for name in expected(run)} == expected(run)


def test_no_row_of_a_merged_run_is_read(tmp_path: Path) -> None:
    """The table of a merged run comes from footers: it is the same when every byte before them is lost."""
    run = new_run(tmp_path / "a")
    for part in range(3):
        log_some(run, range(10 * part, 10 * part + 10), seed=part)
    for table in ("extremes", "metrics"):
        merge(run, table, 0)
    truth = expected(run)
    for file in (*(run / "extremes").iterdir(), *(run / "metrics").iterdir()):
        content = bytearray(file.read_bytes())
        footer = 8 + int.from_bytes(content[-8:-4], "little")
        content[4:-footer] = bytes(len(content) - 4 - footer)
        file.write_bytes(content)
    assert {name: row(run)[name] for name in truth} == truth


@pytest.mark.parametrize("summary", [b"[", b'[["loss", 0, -1, 0, "1", "1", "1"]]', b'[["loss"]]'])
def test_a_summary_that_makes_no_sense_is_not_believed(tmp_path: Path, summary: bytes) -> None:
    """Where a footer's summary is damaged, rows are read instead."""
    run = new_run(tmp_path / "a")
    rows = metrics(range(3), [3.0, 1.0, 2.0]).replace_schema_metadata({b"gradwatch.metrics": summary})
    part = publish_next(run, "metrics", rows)
    assert (pq.read_metadata(part.path).metadata or {})[b"gradwatch.metrics"] == summary
    assert (row(run)["last.loss"], row(run)["best.loss"]) == (2.0, 1.0)


def test_runs_stand_in_order_with_states_and_configs(tmp_path: Path) -> None:
    """Each run is a row, in the order of their beginning; a column of the config has one type, else it is JSON."""
    configs = [
        {"lr": 1, "opt": {"name": "sgd", "betas": [0.9]}, "mixed": 1, "amp": True},
        {"lr": 0.1, "mixed": "auto"},
        {},
    ]
    for name, config in zip("cab", configs, strict=True):
        new_run(tmp_path / name, config=config)
    close_run(tmp_path / "a")
    found = tracer.runs(tmp_path)
    assert found["name"].to_list() == ["c", "a", "b"]
    assert found["state"].to_list() == ["running", "closed", "running"]
    assert found["steps"].to_list() == [0, 0, 0]
    assert found.schema["started"] == pl.Datetime("us", "UTC")
    assert found["config.lr"].to_list() == [1.0, 0.1, None]
    assert found["config.opt.name"].to_list() == ["sgd", None, None]
    assert found["config.opt.betas"].to_list() == ["[0.9]", None, None]
    assert found["config.mixed"].to_list() == ["1", "auto", None]
    assert found["config.amp"].to_list() == [True, None, None]
    assert tracer.runs([tmp_path / "b", tmp_path / "a"])["name"].to_list() == ["b", "a"]


def test_a_damaged_run_or_part_is_named_and_costs_no_other(tmp_path: Path) -> None:
    """A run that cannot be read is left out with a warning, and so are the rows of a part."""
    for name in "ab":
        log_some(new_run(tmp_path / name), range(5), seed=1)
    (tmp_path / "a" / "run.json").write_text("{")
    (part,) = all_parts(tmp_path / "b", "metrics")
    part.path.local_file().write_bytes(b"PAR1")
    with pytest.warns(BadPartWarning) as warned:
        found = tracer.runs(tmp_path)
    said = [str(each.message) for each in warned]
    assert found["name"].to_list() == ["b"]
    assert found["steps"].to_list() == [5]
    assert any("a is left out: " in words and "/a/run.json" in words for words in said)
    assert any(part.path.name in words and "cannot be read" in words for words in said)


def test_steps_that_cannot_be_read_are_not_told_as_none(tmp_path: Path) -> None:
    """The number of steps is null where no part can be read, and 0 where there is none."""
    publish_next(new_run(tmp_path / "a"), "extremes", extremes(range(5))).path.local_file().write_bytes(b"PAR1")
    new_run(tmp_path / "b")
    with pytest.warns(BadPartWarning):
        assert tracer.runs(tmp_path)["steps"].to_list() == [None, 0]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """The sentence names the runs beside it, those first that are spelled alike."""
    for name in ("resnet", "mlp", "vit"):
        new_run(tmp_path / name)
    with pytest.raises(LogError, match=r"resnt holds no run: .*; beside it are the runs resnet, vit, mlp$"):
        tracer.runs(tmp_path / "resnt")


@pytest.mark.parametrize(
    ("names", "good"),
    [
        ("loss val_loss Loss/train valLoss error_rate perplexity eval/WER MSE", "low"),
        ("accuracy acc@5 val_acc top1 top5 Accuracy/val f1 mean_iou ROC_AUC", "high"),
        ("lr loss_scale accum_steps account glossy grad_norm loss_weight", None),
    ],
)
def test_words_in_a_name_tell_which_numbers_are_better(names: str, good: str | None) -> None:
    """Losses and errors are better where they are low, accuracies and scores where they are high; else nobody knows."""
    assert {name: better(name) for name in names.split()} == dict.fromkeys(names.split(), good)


def test_a_table_is_read_without_a_warning(tmp_path: Path) -> None:
    """A folder of whole runs gives no warning."""
    log_some(new_run(tmp_path / "a"), range(5), seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracer.runs(tmp_path)
