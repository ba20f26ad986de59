"""The rank that is unlike the others, and the one that was not finite first."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.logs import extremes, metrics, new_run, publish_next
from tracer.log.store import Local as Path
from viewer.read.monitor import FindingsMonitor
from viewer.snapshot import Finding, Severity

STEPS = range(80)
NOISE = np.random.default_rng(0).lognormal(0.0, 0.3, (8, len(STEPS)))


def of_gradient(rank: int, step: int) -> float:
    """Local gradients are alike, but for the noise of batches."""
    return float(0.1 * NOISE[rank, step])


def found(
    run: Path,
    gradient: Callable[[int, int], float] = of_gradient,
    loss: Callable[[int, int], float] | None = None,
    ranks: int = 4,
    steps: Sequence[int] = STEPS,
) -> list[Finding]:
    """What is found in a run of ranks with these gradients and losses at each step."""
    run = new_run(run)
    for rank in range(ranks):
        sizes = [gradient(rank, step) for step in steps]
        values = {"grad_min": [-size for size in sizes], "grad_max": sizes}
        values |= {
            f"value_{end}": [sign * (1 + step / 100) for step in steps] for end, sign in (("min", -1), ("max", 1))
        }
        publish_next(run, "extremes", extremes(steps, values=values, rank=rank), rank)
        if loss is not None:
            publish_next(run, "metrics", metrics(steps, [loss(rank, step) for step in steps], rank=rank), rank)
    monitor = FindingsMonitor(run)
    monitor.refresh()
    return [finding for finding in monitor.findings if finding.kind in ("odd_rank", "nonfinite")]


def test_ranks_that_differ_by_noise_are_alike(tmp_path: Path) -> None:
    """Batches differ, and so do losses and gradients."""
    assert found(tmp_path / "run", loss=lambda rank, step: float(NOISE[rank, step])) == []


@pytest.mark.parametrize("ranks", [3, 4, 8])
def test_a_rank_whose_gradients_part_is_named(ranks: int, tmp_path: Path) -> None:
    """Five times as large as the others', from step 20 on."""
    gradients = lambda rank, step: of_gradient(rank, step) * (5.0 if rank == 1 and step >= 20 else 1.0)  # noqa: E731
    (odd,) = found(tmp_path / "run", gradients, ranks=ranks)
    assert (odd.severity, odd.numbers["rank"], odd.numbers["metric"]) == (Severity.WARNING, 1, "largest gradient")
    # Of single steps the noise is all, so that a change is seen over some.
    assert odd.first_step in range(14, 28)
    assert odd.numbers["own"] / odd.numbers["median"] == pytest.approx(5, rel=0.4)  # type: ignore[operator]


@pytest.mark.parametrize(("factor", "first", "ranks"), [(1.3, 0, 4), (5.0, 40, 4), (5.0, 0, 2)])
def test_little_short_or_of_two_is_nothing(factor: float, first: int, ranks: int, tmp_path: Path) -> None:
    """A third more, forty steps, and of two ranks nobody knows which is the odd one."""
    gradients = lambda rank, step: of_gradient(rank, step) * (factor if rank == 1 and step >= first else 1)  # noqa: E731
    assert found(tmp_path / "run", gradients, ranks=ranks) == []


def test_a_rank_whose_loss_parts_is_named(tmp_path: Path) -> None:
    """Its labels are broken, and its loss does not fall."""
    (odd,) = found(
        tmp_path / "run", loss=lambda rank, step: 2.3 if rank == 3 else 2.3 / (1 + step / 10) * NOISE[rank, step] ** 0.2
    )
    assert (odd.numbers["rank"], odd.numbers["metric"]) == (3, "loss")
    assert "Rank 3 is unlike the others" in odd.title


@pytest.mark.parametrize(
    ("bad", "words"), [([2], "rank 2 was the first"), ([1, 3], "2 ranks at first"), ([0, 1, 2, 3], "")]
)
def test_the_rank_that_was_not_finite_first_is_named(bad: list[int], words: str, tmp_path: Path) -> None:
    """Where all were so in the same step, none is."""
    gradients = lambda rank, step: math.nan if step > 30 or (step == 30 and rank in bad) else of_gradient(rank, step)  # noqa: E731
    (event,) = found(tmp_path / "run", gradients)
    assert event.first_step == 30
    assert words in event.sentence
    assert ("rank" in event.sentence.partition("; no other")[0]) == bool(words)
    assert event.numbers.get("rank") == (bad[0] if words else None)
