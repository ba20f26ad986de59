"""Which batch it was: a finding quotes the number that was logged at its very step."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path as OnDisk

import polars as pl
import pytest

from tests.logs import close_run, events, extremes, flip_bit, metrics, new_run, publish_next
from tracer.log.parts import all_parts
from tracer.log.store import Local as Path
from viewer.options import ViewOptions
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor
from viewer.reduce.metrics import panels
from viewer.snapshot import Batch, Finding

NAN = math.nan


def publish_steps(
    run: Path,
    steps: Sequence[int],
    gradients: Sequence[float],
    losses: Sequence[float],
    batches: Sequence[float],
    rank: int = 0,
    attempt: int = 0,
    name: str = "batch",
) -> None:
    """Publish what a rank wrote in these steps: the gradient of one parameter, a loss, and which batch it was."""
    moving = [0.1 + 1e-5 * step for step in steps]
    values = {"value_max": moving, "grad_min": [-size for size in gradients], "grad_max": list(gradients)}
    publish_next(run, "extremes", extremes(steps, values=values, rank=rank, attempt=attempt), rank)
    publish_next(run, "metrics", metrics(steps, losses, rank=rank, attempt=attempt), rank)
    publish_next(run, "metrics", metrics(steps, batches, name, rank, attempt), rank)


def falling(steps: Sequence[int], bad: Sequence[int] = ()) -> list[float]:
    """A loss that falls, and is NaN in some steps."""
    return [NAN if step in bad else 1 / (1 + step / 100) for step in steps]


def found(run: Path, kind: str) -> Finding:
    """The one finding of a kind."""
    monitor = FindingsMonitor(run)
    monitor.refresh()
    (finding,) = [finding for finding in monitor.findings if finding.kind == kind]
    return finding


def test_it_is_exact_where_many_steps_share_a_bin(tmp_path: Path) -> None:
    """In a long run a NaN, a spike and an explosion have the batch of their step, not of their bin's first or last."""
    run, steps = new_run(tmp_path / "run"), range(6000)
    gradients = [50.0 if step == 2021 else 0.1 if step < 4003 else 1e7 if step < 5555 else NAN for step in steps]
    publish_steps(
        run, steps, gradients, falling(steps, range(5555, 6000)), [7 * step for step in steps], name="train/batch"
    )
    close_run(run, 5999)
    nan = found(run, "nonfinite")
    assert "since step 4,0" in nan.sentence
    assert f"at step 5,555 (train/batch {7 * 5555:,}); 1 parameter with it" in nan.sentence
    spike = found(run, "spike")
    assert spike.sentence.endswith(f" Step 2,021 was train/batch {7 * 2021:,}.")
    run = new_run(tmp_path / "explodes")
    publish_steps(run, range(5000), gradients[:5000], falling(range(5000)), range(5000))
    assert found(run, "exploding").batches == (Batch("batch", 4003, 0, 4003),)


@pytest.mark.parametrize(
    ("losses", "gradients", "said"),
    [
        ([2], [0, 1, 2], "batch 32"),
        ([], [1, 2], "batch 31 of rank 1, 32 of rank 2"),
        ([0, 1, 2], [0, 1, 2], "batch 30 of"),
    ],
)
def test_of_several_ranks_it_is_that_of_the_one_that_had_it(
    losses: list[int], gradients: list[int], said: str, tmp_path: Path
) -> None:
    """Where gradients are shared all have the NaN, but one has it in its loss; else those whose gradients have it."""
    run, steps = new_run(tmp_path / "run"), range(30)
    for rank in range(3):
        sizes = [NAN if step == 20 and rank in gradients else 0.1 for step in steps]
        own = falling(steps, [20] if rank in losses else [])
        publish_steps(run, steps, sizes, own, [rank + 10 if step != 20 else 30 + rank for step in steps], rank)
    assert f"at step 20 ({said}" in found(run, "nonfinite").sentence


def test_a_batch_that_all_ranks_share_or_one_logs_is_said_once(tmp_path: Path) -> None:
    """Without the ranks; where the rank that had it logged none, it is known of the one that did."""
    run, steps = new_run(tmp_path / "run"), range(30)
    for rank in range(2):
        publish_steps(run, steps, [NAN if step == 20 else 0.1 for step in steps], falling(steps), steps, rank)
    assert "(batch 20)" in found(run, "nonfinite").sentence
    run = new_run(tmp_path / "one")
    publish_steps(run, steps, [0.1] * 30, falling(steps), steps)
    sizes = [NAN if step == 20 else 0.1 for step in steps]
    publish_next(run, "extremes", extremes(steps, values={"grad_max": sizes}, rank=1), 1)
    assert "(batch 20)" in found(run, "nonfinite").sentence


def test_all_batches_of_a_step_are_kept_and_the_first_are_said(tmp_path: Path) -> None:
    """Of gradients that are accumulated, a step has several; what is no whole number tells of no batch."""
    run, steps = new_run(tmp_path / "run"), range(30)
    publish_steps(run, steps, [NAN if step == 20 else 0.1 for step in steps], falling(steps), [0.5] * 30)
    assert found(run, "nonfinite").batches == ()
    publish_next(run, "metrics", metrics([20] * 6, [9, 8, 7, 6, 5, NAN], "batch_idx"))
    publish_next(run, "metrics", metrics([19, 20, 21], [1, 2**53, 3], "sample_hash"))
    finding = found(run, "nonfinite")
    assert [batch.value for batch in finding.batches] == [9, 8, 7, 6, 5, 2**53]
    assert "at step 20 (batch_idx 9, 8, 7, 6 and 1 more; sample_hash 9,007,199,254,740,992)" in finding.sentence


def test_a_step_that_was_repeated_has_its_latest_batch(tmp_path: Path) -> None:
    """After a restart from a checkpoint, what the first attempt logged is said of that alone."""
    run = new_run(tmp_path / "run")
    sizes = [NAN if step >= 20 else 0.1 for step in range(30)]
    publish_steps(run, range(30), sizes, falling(range(30)), range(30))
    monitor = FindingsMonitor(run)
    monitor.refresh()
    assert "(batch 20)" in monitor.findings[0].sentence
    publish_next(run, "events", events([10], "restored", attempt=1))
    steps = range(10, 30)
    publish_steps(run, steps, sizes[10:], falling(steps), [100 + step for step in steps], attempt=1)
    monitor.refresh()
    now, before = (finding for finding in monitor.findings if finding.kind == "nonfinite")
    assert ("(batch 120)" in now.sentence, "(batch 20)" in before.sentence) == (True, True)


def test_live_it_is_said_once_its_row_has_come(tmp_path: Path) -> None:
    """Gradients may arrive before metrics, and one rank before another."""
    run, steps = new_run(tmp_path / "run"), range(30)
    values = {"grad_max": [NAN if step == 20 else 0.1 for step in steps]}
    monitor = FindingsMonitor(run)

    def batches() -> list[int]:
        monitor.refresh()
        return [batch.value for finding in monitor.findings if finding.kind == "nonfinite" for batch in finding.batches]

    for rank in range(2):
        publish_next(run, "extremes", extremes(steps, values=values, rank=rank), rank)
        publish_next(run, "metrics", metrics(range(15), range(15), "batch", rank), rank)
    assert batches() == []
    publish_next(run, "metrics", metrics(range(15, 30), range(15, 30), "batch"))
    assert batches() == [20]
    publish_next(run, "metrics", metrics(range(15, 30), range(115, 130), "batch", 1), 1)
    assert batches() == [20, 120]


def test_a_damaged_part_costs_its_own_rows_alone(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """The finding stays, without its batch where that is lost, and nothing warns."""
    run, steps = new_run(tmp_path / "run"), range(30)
    publish_steps(run, steps, [NAN if step == 20 else 0.1 for step in steps], falling(steps), steps)
    lost = [part for part in all_parts(run, "metrics") if part.first == 1]
    monitor = FindingsMonitor(run)
    flip_bit(lost[0].path)
    publish_next(run, "metrics", metrics([29], [29], "batch"))
    monitor.refresh()
    (finding,) = [finding for finding in monitor.findings if finding.kind == "nonfinite"]
    assert finding.batches == ()
    assert not recwarn.list


def test_numbers_of_batches_are_no_curve_that_is_judged_and_stand_alone(tmp_path: Path) -> None:
    """Whatever they do, nothing is found of them, and they are in no panel of a loss."""
    run, steps = new_run(tmp_path / "run"), range(300)
    wild = [(step * 2654435761) % 2**32 if step % 50 else NAN for step in steps]
    publish_steps(run, steps, [0.1 * (1 + step % 3) for step in steps], falling(steps), wild)
    close_run(run, 299)
    monitor = FindingsMonitor(run)
    monitor.refresh()
    assert monitor.findings == ()
    snapshot = Live(run).refresh()
    assert snapshot is not None
    main, further = panels([snapshot], ViewOptions())
    assert [panel.title for panel in main if not panel.empty] == ["loss"]
    assert [[curve.name for curve in panel.curves[0]] for panel in further] == [["batch"]]


def test_the_page_for_programs_names_each_field() -> None:
    """What ``viewer check --json`` says of a finding and of its batches stands in a table there."""
    told = (OnDisk(__file__).parents[3] / "docs" / "agents.md").read_text()
    finding = Finding("kind", "", "note", None, 0, 0, "", "", batches=(Batch("batch", 0, 0, 0),))  # type: ignore[arg-type]
    rows = "\n".join(line for line in told.splitlines() if line.startswith("| `"))
    assert [name for name in asdict(finding) if f"`{name}`" not in rows] == []
    assert [each.name for each in fields(Batch) if f"`{each.name}`" not in rows] == []
    assert pl.DataFrame(map(asdict, finding.batches)).columns == [each.name for each in fields(Batch)]
