"""FullyShardedDataParallel, FSDP2's predecessor: parts of parameters, or flat ones, and what can be known of them."""

from pathlib import Path

import polars as pl
import pytest
import torch

import tracer
from tests.distributed.exact import STEPS, Network, batch
from tests.distributed.launch import RANKS, succeeded
from tests.distributed.oracle import Step, Tensors, gradients, merged, numbers, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that worker_fsdp1 writes, and what it said."""
    folder = tmp_path_factory.mktemp("fsdp1")
    (folder / "said").write_text(succeeded("worker_fsdp1", folder, str(folder)).stderr)
    return folder


def oracle() -> list[Step]:
    """The training in one process, with the mean of the ranks' gradients."""
    model = Network(with_side=False)
    model.scale.requires_grad_(True)
    return train(model, STEPS, lambda step: [gradients(model, [batch(step, 0, rank)]) for rank in range(RANKS)])


def flat(tensors: Tensors) -> torch.Tensor:
    """Those of a unit's parameters in one."""
    known = [tensors[f"second.{name}"] for name in ("weight", "bias")]
    return torch.cat([tensor.flatten() for tensor in known if tensor is not None])


def test_parameters_that_keep_their_names_are_recorded_in_parts(runs: Path) -> None:
    """Values and applied gradients of all ranks are those of the whole model; no hook sees a gradient."""
    # A parameter without a gradient is applied as 0 where another of its flat one has some.
    expected = {
        (step, name): numbers(value, None, torch.zeros(1) if at.applied[name] is None else at.applied[name])
        for step, at in enumerate(oracle())
        for name, value in at.values.items()
    }
    assert merged(runs / "kept") == expected
    assert "FullyShardedDataParallel: each rank records its part; no gradient but" in (runs / "said").read_text()


def test_flat_parameters_are_recorded_as_such(runs: Path) -> None:
    """With its values and its rank's own gradient as a whole, and said to be flat."""
    rows = tracer.scan(runs / "flat").filter(pl.col("param").cast(pl.String) == "second._flat_param").sort("step")
    for rank in range(RANKS):
        found = rows.filter(pl.col("rank") == rank).collect()
        assert found.height == STEPS
        for row, at in zip(found.iter_rows(named=True), oracle(), strict=True):
            whole, own = flat(at.values), flat(at.gradients[rank])
            assert (row["value_min"], row["value_max"]) == (whole.min().item(), whole.max().item())
            assert (row["grad_min"], row["grad_max"]) == (own.min().item(), own.max().item())
            assert (row["value_mean"], row["grad_mean"]) == (whole.mean().item(), pytest.approx(own.mean().item()))
    assert "shard with fully_shard instead, or give it use_orig_params=True" in (runs / "said").read_text()
