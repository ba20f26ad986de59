"""Tensor parallel layers: each rank's part of a weight, and gradients that the ranks have yet to add up."""

from pathlib import Path

import pytest

from tests.distributed.exact import STEPS, Block, tokens
from tests.distributed.launch import RANKS, succeeded
from tests.distributed.oracle import Step, gradients, merged, numbers, recorded, shard, train
from tests.versions import needs_dtensor, needs_fully_shard

pytestmark = [needs_dtensor, pytest.mark.slow]

RUNS = ["tensor", pytest.param("both", marks=needs_fully_shard)]

# Along which dimension a weight is cut; the others are whole on every rank.
CUT = {"up.weight": 0, "up.bias": 0, "down.weight": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that worker_tensor_parallel writes."""
    folder = tmp_path_factory.mktemp("tensor-parallel")
    succeeded("worker_tensor_parallel", folder, str(folder))
    return folder


def oracle() -> list[Step]:
    """The training in one process."""
    model = Block()
    return train(model, STEPS, lambda step: [gradients(model, [tokens(step)])])


@pytest.mark.parametrize("run", RUNS)
def test_each_rank_records_its_part_of_a_weight(runs: Path, run: str) -> None:
    """Of a weight that is cut, a rank records its part, of any other the whole; also where FSDP shards the model."""
    assert recorded(runs / run) == {
        (step, rank, name): numbers(
            *(
                shard(tensor, rank, CUT[name]) if name in CUT else tensor
                for tensor in (value, at.reduced[name], at.applied[name])
            )
        )
        for step, at in enumerate(oracle())
        for rank in range(RANKS)
        for name, value in at.values.items()
    }


@pytest.mark.parametrize("run", RUNS)
def test_merged_over_ranks_the_extremes_are_those_of_the_whole_model(runs: Path, run: str) -> None:
    """The minimum of the ranks' minima and the maximum of their maxima are exactly those of one process."""
    assert merged(runs / run) == {
        (step, name): numbers(value, at.reduced[name], at.applied[name])
        for step, at in enumerate(oracle())
        for name, value in at.values.items()
    }


def test_a_gradient_that_is_yet_to_be_added_up_is_the_ranks_own(runs: Path) -> None:
    """Where a rank holds a summand of a gradient, grad_* are the summand's; applied_* are null, no rank has the sum."""
    rows = recorded(runs / "sequence")
    model = Block()
    halves = [gradients(model, [half]) for half in tokens(0).chunk(RANKS, dim=1)]
    assert halves[0]["norm.weight"] is not None
    for rank, own in enumerate(halves):
        for name in ("norm.weight", "norm.bias"):
            value = model.get_parameter(name)
            assert rows[0, rank, name] == numbers(value, own[name], None)


def test_merged_gradients_beside_summands_are_exact(runs: Path) -> None:
    """Of everything but the summands the merged extremes are those of one process, as are all later values."""
    rows = merged(runs / "sequence")
    for step, at in enumerate(oracle()):
        for name, value in at.values.items():
            expected = numbers(value, at.reduced[name], at.applied[name])
            summand = name.startswith("norm.")
            assert rows[step, name][: 2 if summand else 6] == expected[: 2 if summand else 6]
