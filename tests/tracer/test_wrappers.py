"""What torch puts around a model, or into its backward: replicas, averages, optimizers."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward  # type: ignore[attr-defined]
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import tracer
from tests.training import assert_rows, by_hand, mlp

STEPS = 4


def test_replicas_of_data_parallel_give_one_row_with_their_summed_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas hold no parameters, but what was calculated from the model's, which get the sum.

    Only GPUs get replicas. Here their copies stay on the CPU; all else is torch's own.
    """
    # The module's name in its package is that of its function.
    torch_replicate: Any = import_module("torch.nn.parallel.replicate")
    copies = "_broadcast_coalesced_reshape"
    monkeypatch.setattr(torch_replicate, copies, lambda tensors, *_, **__: [[*map(torch.clone, tensors)]] * 2)
    torch.manual_seed(0)
    network = mlp()
    model = nn.DataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(STEPS):
            replicas = torch_replicate.replicate(network, [0, 1])
            optimizer.zero_grad()
            sum(replica(torch.randn(4, 6)).square().mean() for replica in replicas).backward()
            expected.append(by_hand(network))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_an_average_that_holds_what_it_averages_is_told_from_it(tmp_path: Path) -> None:
    """Where one module holds both, the trained weights have gradients, and the average has values that move."""
    torch.manual_seed(0)
    trained = mlp()
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    both = nn.ModuleDict({"trained": trained, "average": average})
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    expected = []
    with tracer.attach(both, tmp_path / "run"):
        for _ in range(STEPS):
            optimizer.zero_grad()
            trained(torch.randn(4, 6)).square().mean().backward()
            expected.append({name.replace(".module", ""): row for name, row in by_hand(both).items()})
            optimizer.step()
            average.update_parameters(trained)
    assert_rows(tmp_path / "run", expected)
    assert expected[-1]["average.0.weight"] != expected[-2]["average.0.weight"]


@pytest.mark.parametrize("late", [False, True])
def test_optimizers_that_torch_runs_inside_the_backward_are_one_step_a_backward(late: bool, tmp_path: Path) -> None:
    """With the gradients before they are freed, whether the optimizers came before the trace or after."""
    torch.manual_seed(0)
    model, twin = mlp(), mlp()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    if not late:
        _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        if late:
            _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
        for _ in range(STEPS):
            data = torch.randn(4, 6)
            model(data).square().mean().backward()
            optimizer.zero_grad()
            twin(data).square().mean().backward()
            expected.append(by_hand(twin))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
