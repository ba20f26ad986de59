"""Metrics and activations that are DTensors: a rank's part of a number is no number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import tracer
from tests.training import events, metric, mlp
from tests.versions import needs_dtensor

pytestmark = needs_dtensor


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """A process group of two ranks, of which the other one never answers."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def sharded(placement: Any, ranks: int, part: torch.Tensor) -> torch.Tensor:
    """This rank's part of a number that so many ranks hold."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (2 // ranks, ranks), mesh_dim_names=("outer", "inner"))["inner"]
    shape, stride = ((1,), (1,)) if part.ndim else ((), ())
    whole: torch.Tensor = DTensor.from_local(part, mesh, [placement], shape=torch.Size(shape), stride=stride)
    return whole


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("ends_steps", [False, True])
def test_a_ranks_part_of_a_number_is_not_logged(ends_steps: bool, tmp_path: Path) -> None:
    """Neither a summand nor a shard without the element; a word says so once, and what is whole here is logged."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    parts = {
        "summand": sharded(Partial(), 2, torch.tensor(2.0)),
        "mean": sharded(Partial("avg"), 2, torch.tensor(2.0)),
        "elsewhere": sharded(Shard(0), 2, torch.ones(0)),
    }
    whole = {
        "copied": sharded(Replicate(), 2, torch.tensor(2.0, requires_grad=True)),
        "here": sharded(Shard(0), 2, torch.full((1,), 2.0)),
        "alone": sharded(Partial(), 1, torch.tensor(2.0)),
        "plain": torch.tensor(2.0),
    }
    said_once = pytest.warns(tracer.TracerWarning, match=r"summand is not logged: .* log summand.full_tensor\(\)")
    with said_once as said, tracer.attach(mlp(), tmp_path / "run") as trace:
        for _ in range(2):
            (trace.step if ends_steps else trace.log)(**parts, **whole)
    assert len(said) == 1
    assert [metric(tmp_path / "run", name) for name in parts] == [[]] * 3
    steps = [0, 1] if ends_steps else [0, 0]
    assert [metric(tmp_path / "run", name) for name in whole] == [[(step, 2.0) for step in steps]] * 4


@pytest.mark.usefixtures("two_ranks")
def test_an_output_that_the_ranks_have_yet_to_add_up_is_not_recorded(tmp_path: Path) -> None:
    """As a layer that is split along its inputs has: one warning names the module, and the others are recorded."""
    from torch.distributed.tensor import Partial, Shard

    model = mlp()
    model[1].forward = lambda _: sharded(Partial(), 2, torch.full((), 100.0))
    model[2].forward = lambda _: sharded(Shard(0), 2, torch.full((1,), 2.0))
    said_once = pytest.warns(tracer.TracerWarning, match="activations of 1 are no longer recorded .* summand")
    with said_once as said, tracer.attach(model, tmp_path / "run", activations=True):
        for _ in range(2):
            model[1](None)
            model[2](None)
    assert len(said) == 1
    rows = tracer.scan(tmp_path / "run", "activations").collect()
    assert set(rows["module"].to_list()) == {"2"}
    assert set(rows["max"].to_list()) == {2.0}
    assert len(events(tmp_path / "run", "failed")) == 1
