"""DeepSpeed's ZeRO: what its ranks keep in parts is recorded in parts, and what it hides is null."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import tracer
from tests.distributed.launch import RANKS, succeeded
from tests.distributed.oracle import numbers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"),
]
STATISTICS = ("value_min", "value_max", "grad_min", "grad_max")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that worker_deepspeed writes."""
    folder = tmp_path_factory.mktemp("deepspeed")
    finished = succeeded("worker_deepspeed", folder, str(folder))
    (folder / "said").write_text(finished.stderr)
    return folder


def told(run: Path, what: str) -> Any:
    """What the worker has written down of a run."""
    return json.loads(run.with_suffix(".json").read_text())[what]


def recorded(run: Path) -> dict[tuple[int, int, str], tuple[float | None, ...]]:
    """The rows of a run, of which nothing has failed."""
    failed = tracer.scan(run, "events").filter(pl.col("kind").is_in(["failed", "replaced", "unended"])).collect()
    assert failed.is_empty(), failed
    frame = tracer.scan(run).select("step", "rank", pl.col("param").cast(pl.String), *STATISTICS).collect()
    rows = {(step, rank, name): tuple(row) for step, rank, name, *row in frame.iter_rows()}
    assert len(rows) == frame.height
    return rows


def part(elements: list[float] | None, rank: int) -> torch.Tensor | None:
    """A rank's part of a tensor that ZeRO-3 has flattened and cut: all are of one size, but the last has less."""
    if elements is None:
        return None
    size = -(-len(elements) // RANKS)
    return torch.tensor(elements[rank * size : (rank + 1) * size])


@pytest.mark.parametrize("run", ["1", "2", "2-early", "2-bf16"])
def test_under_zero_1_and_2_values_are_whole_and_gradients_null(runs: Path, run: str) -> None:
    """A step is an update of the engine, however many micro-batches and groups of parameters it has."""
    assert recorded(runs / run) == {
        (step, rank, name): (*numbers(torch.tensor(value)), None, None)
        for step, named in enumerate(told(runs / run, "steps"))
        for rank in range(RANKS)
        for name, (value, _) in named.items()
    }


@pytest.mark.parametrize("run", ["3", "3-bf16", "3-alone", "3-alone-clipped", "3-offloaded"])
def test_under_zero_3_each_rank_records_its_part(runs: Path, run: str) -> None:
    """Of values, and of gradients as they are reduced over ranks and micro-batches, before they are clipped.

    Null are gradients that are offloaded, and that of a parameter which ZeRO updates first and by itself: it has been
    clipped in place by then.
    """

    def known(name: str) -> bool:
        return run != "3-offloaded" and (run, name) != ("3-alone-clipped", "first.weight")

    assert recorded(runs / run) == {
        (step, rank, name): numbers(part(value, rank), part(gradient, rank) if known(name) else None)
        for step, named in enumerate(told(runs / run, "steps"))
        for rank in range(RANKS)
        for name, (value, gradient) in named.items()
    }


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("2", "DeepSpeed ZeRO hides its gradient until the update: null"),
        ("3", "DeepSpeed ZeRO-3: each rank records its part, and that of the reduced gradient"),
        ("3-offloaded", "DeepSpeed ZeRO-3: each rank records its part, and no gradient, which is scaled or offloaded"),
    ],
)
def test_attach_and_doctor_say_what_zero_hides(runs: Path, run: str, said: str) -> None:
    """Nobody has to find that out from a log of nulls."""
    assert f"({said}): {runs / run} " in (runs / "said").read_text()
    assert {note.split(";")[0] for note in told(runs / run, "notes") if note} == {said}


def test_what_zero_gives_to_the_optimizer_is_no_warning(runs: Path) -> None:
    """The model does not register the flat partitions, but all of its parameters are in them."""
    assert "TracerWarning" not in (runs / "said").read_text()


def test_the_shape_of_a_parameter_in_parts_is_that_of_the_whole(runs: Path) -> None:
    """On each rank ZeRO-3 leaves an empty tensor in its place."""
    described = {param["name"]: param["shape"] for param in json.loads((runs / "3/run.json").read_text())["params"]}
    assert described["first.weight"] == [6, 4]
