"""DistributedDataParallel: a rank's own gradients beside those that the optimizer applies."""

from pathlib import Path

import pytest
import torch

from tests.distributed.exact import STEPS, Network, batch
from tests.distributed.launch import RANKS, succeeded
from tests.distributed.oracle import Rows, Tensors, gradients, numbers, recorded, train
from tests.training import metric

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that worker_ddp writes."""
    folder = tmp_path_factory.mktemp("ddp")
    succeeded("worker_ddp", folder, str(folder))
    return folder


def expected(*, steps: int = STEPS, micros: int = 1, side_on: tuple[int, ...] = (0, 1), poisoned: int = -1) -> Rows:
    """The rows of all ranks: each has its own gradients, and applies the mean."""
    model = Network(with_side=True)

    def of_rank(step: int, rank: int) -> Tensors:
        model.with_side = rank in side_on
        batches = [batch(step, micro, rank) for micro in range(micros)]
        if rank == poisoned:
            batches[0][0, 0] = torch.nan
        return gradients(model, batches)

    done = train(model, steps, lambda step: [of_rank(step, rank) for rank in range(RANKS)])
    return {
        (step, rank, name): numbers(value, at.gradients[rank][name], at.applied[name])
        for step, at in enumerate(done)
        for rank in range(RANKS)
        for name, value in at.values.items()
    }


@pytest.mark.parametrize("run", ["plain", "views", "static", "delayed", "shared"])
def test_each_rank_records_its_own_gradient_and_the_mean_that_is_applied(runs: Path, run: str) -> None:
    """grad_* are those of the rank's own data, applied_* those of the mean over all ranks."""
    assert recorded(runs / run) == expected()


@pytest.mark.parametrize("run", ["accumulated", "accumulated-views"])
def test_accumulation_without_sync_is_one_step(runs: Path, run: str) -> None:
    """With no_sync, grad_* are the rank's own sums over all micro-batches, and applied_* the mean of these."""
    assert recorded(runs / run) == expected(micros=3)
    assert metric(runs / run, "discarded") == []


def test_a_parameter_that_another_rank_used_has_an_applied_gradient_only(runs: Path) -> None:
    """Where a rank does not use a parameter, its grad_* are null, and its applied_* what the other rank contributed."""
    rows = recorded(runs / "unused")
    assert rows == expected(side_on=(1,))
    assert rows[0, 0, "side.bias"][2:] == (None, None, 1.0, 1.0)


def test_a_nan_stands_at_the_rank_where_it_arose(runs: Path) -> None:
    """A NaN in one rank's data is in that rank's grad_* alone, and in every rank's applied_*."""
    rows = recorded(runs / "poisoned")
    assert rows == expected(steps=1, poisoned=1)
    assert "nan" not in rows[0, 0, "first.weight"][:4]
    assert rows[0, 0, "first.weight"][4:] == rows[0, 1, "first.weight"][2:4] == ("nan", "nan")
