from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tracer.encode import Encoder
from tracer.items import Metric, event
from tracer.parameters import NamedParameter, named_parameters
from tracer.rows import MisfitError, RowBuffer


class Mixed(nn.Module):
    """A parameter of every dtype that training uses, an empty one and a 0-dim one, not in the order of dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.single_ = nn.Parameter(torch.randn(5))
        self.half_ = nn.Parameter(torch.randn(5).half())
        self.double_ = nn.Parameter(torch.randn(5).double())
        self.brain_ = nn.Parameter(torch.randn(5).bfloat16())
        self.nothing = nn.Parameter(torch.empty(0))
        self.scalar_ = nn.Parameter(torch.tensor(3.0))
        self.complex_ = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.more_ = nn.Parameter(torch.randn(3, 3))


def mixed() -> list[NamedParameter]:
    """The parameters of a model of mixed dtypes."""
    return named_parameters(Mixed())


def test_every_dtype_crosses_exactly_in_one_copy() -> None:
    """Numbers of all dtypes come out of one block of bytes as the float64 that equals them."""
    parameters = mixed()
    buffer = RowBuffer(parameters)
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            buffer.record(index, parameter.tensor, parameter.tensor * 2)
    rows = buffer.take(7, 1_000)._replace(attempt=2)
    assert len(rows.copies) == 1
    table = Encoder(rank=3).extremes([rows])
    assert table["param"].to_pylist() == [parameter.name for parameter in parameters]
    assert set(table["step"].to_pylist()) == {7}
    assert set(table["rank"].to_pylist()) == {3}
    assert set(table["attempt"].to_pylist()) == {2}
    for parameter, row in zip(parameters, table.to_pylist(), strict=True):
        tensor = parameter.tensor.detach()
        flat = torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()
        expected = [None] * 4 if tensor.numel() == 0 else [flat.min(), flat.max(), flat.min() * 2, flat.max() * 2]
        assert [row[name] for name in ("value_min", "value_max", "grad_min", "grad_max")] == expected


def test_clearing_begins_anew_and_leaves_what_was_taken() -> None:
    """Rows that were taken, twice if need be, do not change with the next step, which begins without any."""
    parameters = named_parameters(nn.Linear(2, 2))
    buffer = RowBuffer(parameters)
    with torch.no_grad():
        buffer.record(0, torch.full((2, 2), 1.0), None)
        first = buffer.take(0, 0)
        assert buffer.take(0, 0) == first
        buffer.clear()
        assert buffer.incomplete
        buffer.record(0, torch.full((2, 2), 5.0), torch.full((2, 2), 6.0))
        second = buffer.take(1, 0)
    table = Encoder(0).extremes([first, second])
    assert table["value_max"].to_pylist() == [1.0, 5.0]
    assert table["grad_max"].to_pylist() == [None, 6.0]


def test_steps_of_different_layouts_stand_in_one_table() -> None:
    """Rows from before and after a parameter joined go into one part, each with its own parameters."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    few, all_of_them = named_parameters(model[0]), named_parameters(model)
    taken = []
    for step, parameters in enumerate((few, all_of_them, few)):
        buffer = RowBuffer(parameters)
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                buffer.record(index, parameter.tensor, None)
        taken.append(buffer.take(step, 0))
    table = Encoder(0).extremes(taken)
    names = [parameter.name for parameters in (few, all_of_them, few) for parameter in parameters]
    assert table["param"].to_pylist() == names
    assert np.bincount(table["step"].to_numpy()).tolist() == [2, 4, 2]


def test_a_new_buffer_carries_what_the_old_one_recorded() -> None:
    """When the parameters change in mid-step, what was recorded in the step so far is kept."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    old, new = RowBuffer(named_parameters(model)[:1]), RowBuffer(named_parameters(model))
    with torch.no_grad():
        old.record(0, torch.full((2, 2), 4.0), torch.full((2, 2), 9.0))
        new.carry(old)
    table = Encoder(0).extremes([new.take(0, 0)])
    assert table.select(["param", "value_min", "grad_max"]).to_pylist() == [
        {"param": "0.weight", "value_min": 4.0, "grad_max": 9.0}
    ]


@pytest.mark.parametrize("moved", [lambda tensor: tensor.double(), lambda tensor: tensor.to("meta")])
def test_a_parameter_that_moved_does_not_fit_its_slot(moved: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A parameter with another dtype or device than its slot is noticed, not converted or lost."""
    buffer = RowBuffer(named_parameters(nn.Linear(2, 2)))
    with pytest.raises(MisfitError), torch.no_grad():
        buffer.record(0, moved(torch.ones(2, 2)), None)


def test_a_sparse_gradient_of_a_dense_parameter_is_recorded() -> None:
    """An embedding's sparse gradient counts its implicit zeros and the sum of its repeated entries."""
    model = nn.Embedding(5, 1, sparse=True)
    model(torch.tensor([1, 3, 3])).sum().backward()
    buffer = RowBuffer(named_parameters(model))
    with torch.no_grad():
        buffer.record(0, model.weight, model.weight.grad)
    (row,) = Encoder(0).extremes([buffer.take(0, 0)]).to_pylist()
    assert (row["grad_min"], row["grad_max"]) == (0.0, 2.0)
    assert row["value_max"] == model.weight.max().item()


def test_metrics_and_events_become_rows() -> None:
    """Metrics and events keep their order, their numbers and their texts."""
    encoder = Encoder(1)
    metrics = encoder.metrics([Metric(0, 5_000, "loss", 0.5), Metric(1, 6_000, "loss", float("nan"))])
    assert metrics["name"].to_pylist() == ["loss", "loss"]
    assert np.array_equal(metrics["value"].to_numpy(), [0.5, np.nan], equal_nan=True)
    assert [time.microsecond for time in metrics["time"].to_pylist()] == [5, 6]
    events = encoder.events([event(4, "failed", "why", "weight"), event(5, "closed", "")])
    assert events.select(["step", "kind", "param", "detail"]).to_pylist() == [
        {"step": 4, "kind": "failed", "param": "weight", "detail": "why"},
        {"step": 5, "kind": "closed", "param": None, "detail": ""},
    ]
