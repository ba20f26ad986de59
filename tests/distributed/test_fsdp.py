"""Fully sharded training: each rank's shards, and what they are together."""

from pathlib import Path

import pytest

from tests.distributed.exact import STEPS, Network, batch
from tests.distributed.launch import RANKS, succeeded
from tests.distributed.oracle import Merged, Rows, Step, Tensors, gradients, merged, numbers, recorded, shard, train
from tests.training import metric
from tests.versions import needs_fully_shard

pytestmark = [needs_fully_shard, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that worker_fsdp writes."""
    folder = tmp_path_factory.mktemp("fsdp")
    succeeded("worker_fsdp", folder, str(folder))
    return folder


def oracle(*, micros: int = 1, factor: float = 1.0, unfrozen_at: int = STEPS) -> list[Step]:
    """The training in one process, with the mean of the ranks' gradients."""
    model = Network(with_side=False)

    def of_rank(step: int, rank: int) -> Tensors:
        model.scale.requires_grad_(step >= unfrozen_at)
        return gradients(model, [batch(step, micro, rank) for micro in range(micros)])

    return train(model, STEPS, lambda step: [of_rank(step, rank) for rank in range(RANKS)], factor)


def parts(steps: list[Step]) -> Rows:
    """The rows of all ranks: each has its shards of everything, and the reduced gradient is what it sees first."""
    return {
        (step, rank, name): numbers(*(shard(tensor, rank) for tensor in (value, at.reduced[name], at.applied[name])))
        for step, at in enumerate(steps)
        for rank in range(RANKS)
        for name, value in at.values.items()
    }


def whole(steps: list[Step]) -> Merged:
    """The extremes of the whole parameters and gradients."""
    return {
        (step, name): numbers(value, at.reduced[name], at.applied[name])
        for step, at in enumerate(steps)
        for name, value in at.values.items()
    }


@pytest.mark.smoke
@pytest.mark.parametrize("run", ["whole", "nested", "kept", "freed"])
def test_each_rank_records_the_extremes_of_its_shards(runs: Path, run: str) -> None:
    """Values and gradients are those of the rank's shard, reduced over ranks; null where the shard is empty."""
    rows = recorded(runs / run)
    assert rows == parts(oracle())
    assert rows[0, 1, "last.weight"] == (None,) * 6
    assert None not in rows[0, 1, "second.weight"]


@pytest.mark.parametrize(
    ("run", "micros", "factor"),
    [
        ("whole", 1, 1.0),
        ("nested", 1, 1.0),
        ("kept", 1, 1.0),
        ("freed", 1, 1.0),
        ("halved", 1, 0.5),
        ("accumulated", 3, 1.0),
    ],
)
def test_merged_over_ranks_the_extremes_are_those_of_the_whole_model(
    runs: Path, run: str, micros: int, factor: float
) -> None:
    """The minimum of the ranks' minima and the maximum of their maxima are exactly those of one process."""
    assert merged(runs / run) == whole(oracle(micros=micros, factor=factor))


def test_what_is_done_to_the_reduced_gradient_shows_in_the_applied_one(runs: Path) -> None:
    """Where gradients are halved after the backward, applied_* are half of grad_*, shard by shard."""
    assert recorded(runs / "halved") == parts(oracle(factor=0.5))


@pytest.mark.parametrize("run", ["accumulated", "accumulated-reduced"])
def test_accumulation_is_one_step(runs: Path, run: str) -> None:
    """Whether every micro-batch is reduced or only the last, grad_* hold the sum over all of them, once an update."""
    assert recorded(runs / run) == parts(oracle(micros=3))
    assert metric(runs / run, "discarded") == []


@pytest.mark.parametrize("run", ["late", "disturbed"])
def test_gathered_parameters_are_not_taken_for_others(runs: Path, run: str) -> None:
    """Shards are recorded, even where whole tensors stand in their place at attach, at another's update or at close."""
    assert recorded(runs / run) == parts(oracle())


def test_a_parameter_that_is_unfrozen_is_followed_among_gathered_ones(runs: Path) -> None:
    """A shard that becomes trainable has gradients from then on, and the others keep theirs."""
    assert recorded(runs / "unfrozen") == parts(oracle(unfrozen_at=1))


def test_a_parameter_gathered_on_its_own_mesh_is_not_taken_for_another(runs: Path) -> None:
    """Shards are recorded where a whole parameter lies on the same device mesh, and only its placement differs."""
    if not (runs / "same-mesh").exists():
        pytest.skip("this PyTorch's fully_shard takes no dp_mesh_dims")
    model = Network(with_side=False)
    steps = train(model, STEPS, lambda step: [gradients(model, [batch(step, 0, 0)])])
    assert recorded(runs / "same-mesh") == parts(steps)
