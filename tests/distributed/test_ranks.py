"""All ranks write into one run, without a word between them."""

import json
from dataclasses import dataclass

import polars as pl
import pytest

import tracer
from tests.distributed.exact import STEPS
from tests.distributed.launch import Finished, succeeded, torchrun
from tracer.log import ranks
from tracer.log import run as run_folder
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Shared:
    """A run of two ranks, and what they said."""

    path: Path
    finished: Finished


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """The run that worker_ranks writes."""
    folder = Path(tmp_path_factory.mktemp("ranks"))
    return Shared(folder / "run", succeeded("worker_ranks", folder, str(folder / "run")))


def test_a_run_is_described_once_and_closed_by_every_rank(shared: Shared) -> None:
    """There is one run.json, a closed mark of each rank, and the run is closed."""
    assert json.loads((shared.path / "run.json").read_text())["model"] == "Linear"
    assert [summary["rank"] for summary in ranks.closed_summaries(shared.path)] == [0, 1]
    assert ranks.state(shared.path) == "closed"
    assert not list((shared.path / "staging").iterdir())


@pytest.mark.parametrize("table", ["extremes", "metrics", "events"])
def test_every_table_holds_parts_of_every_rank(shared: Shared, table: str) -> None:
    """Each rank publishes its own parts, and no other rank's rows stand in them."""
    parts = list((shared.path / table).iterdir())
    assert {part.name.split("-")[0] for part in parts} == {"r00000", "r00001"}
    for part in parts:
        assert set(pl.read_parquet(part)["rank"]) == {int(part.name[1:6])}


def test_scan_tells_the_ranks_apart(shared: Shared) -> None:
    """The column rank says whose gradients and metrics a row holds."""
    weight = tracer.scan(shared.path).filter(pl.col("param") == "weight").sort("rank", "step").collect()
    steps = list(range(STEPS + 1))
    assert weight.select("rank", "step").rows() == [(rank, step) for rank in (0, 1) for step in steps]
    assert weight["grad_max"].to_list() == [1.0] * len(steps) + [2.0] * len(steps)
    losses = tracer.scan(shared.path, "metrics").filter(pl.col("name") == "loss").sort("rank", "step").collect()
    assert losses.select("rank", "step", "value").rows() == [(rank, step, rank) for rank in (0, 1) for step in steps]


def test_one_rank_speaks_for_all(shared: Shared) -> None:
    """Only rank 0 says where the run is, once an attachment."""
    lines = [line for line in shared.finished.stderr.splitlines() if "gradwatch" in line]
    assert [line.split(":")[0] for line in lines] == [
        "gradwatch traces 2 parameters",
        f"gradwatch goes on at step {STEPS}",
    ]


def test_no_rank_writes_into_a_run_that_is_there(shared: Shared) -> None:
    """A second attach to the same path is refused on every rank, with what to do instead."""
    refused = sorted(shared.finished.stdout.splitlines())
    assert refused == [f"rank {rank} is refused: {run_folder.HOLDS_A_RUN.format(path=shared.path)}" for rank in (0, 1)]


def test_every_rank_goes_on_with_the_run(shared: Shared) -> None:
    """With resume, each rank goes on after its last step, in the same attempt."""
    last = tracer.scan(shared.path).filter(pl.col("step") == STEPS).select("rank", "attempt").unique().collect()
    assert sorted(last.rows()) == [(0, 1), (1, 1)]


def test_ranks_that_were_killed_go_on_together(tmp_path: Path) -> None:
    """Where one rank had published more than the other, both resume after its last step; restored, nothing is mixed."""
    run = tmp_path / "run"
    succeeded("worker_crash", tmp_path, str(run))
    assert ranks.state(run) == "running"
    finished = succeeded("worker_crash", tmp_path, str(run), "going on")
    # Metrics are there of the step that was under way, too.
    assert sorted(finished.stdout.splitlines()) == [f"rank {rank} resumes at {STEPS + 6}" for rank in (0, 1)]
    for table in ("extremes", "metrics"):
        found = tracer.scan(run, table).select("rank", "attempt", "step").unique().collect()
        kept = [(rank, 0, step) for rank in (0, 1) for step in range(STEPS - 1)]
        assert sorted(found.rows()) == sorted(kept + [(rank, 1, STEPS - 1 + n) for rank in (0, 1) for n in (0, 1)])


def test_ranks_without_a_path_are_told_to_give_one(tmp_path: Path) -> None:
    """Where several ranks would each choose a folder, attach names what is missing, and nothing is written."""
    finished = torchrun("worker_ranks", tmp_path)
    assert finished.code != 0
    assert "2 ranks write into one run, so attach needs its path: attach(model, path)" in finished.stderr
    assert not list(tmp_path.iterdir())
