import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tracer.extremes import reduce_into, reduced_dtype

KEYS = {"value_min", "value_max", "grad_min", "grad_max"}


def reduced(tensor: torch.Tensor) -> tuple[float, float]:
    """The minimum and maximum that the reduction writes, as float64."""
    out = torch.empty(2, dtype=reduced_dtype(tensor.dtype))
    with torch.no_grad():
        reduce_into(tensor, (out[0], out[1]))
    return tuple(out.double().tolist())


def same(found: tuple[float, float], expected: tuple[float, float]) -> bool:
    """Equal, where a NaN equals a NaN."""
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 2, 7, 31, 1000, 70_001])
def test_extremes_equal_a_float64_sort(dtype: torch.dtype, size: int) -> None:
    """Whatever the size, the extremes are to the last bit those of the tensor sorted in float64."""
    tensor = torch.randn(size, dtype=torch.float64).mul(1e3).to(dtype)
    ordered = tensor.double().sort().values
    assert reduced(tensor) == (ordered[0].item(), ordered[-1].item())


def test_float64_is_exact_to_the_last_bit() -> None:
    """A float64 that no float32 holds comes out as it went in."""
    tensor = torch.tensor([1e300, 1 + 2**-52, -1e-310], dtype=torch.float64)
    assert reduced(tensor) == (-1e-310, 1e300)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 1, 17, 4095, 40_000])
def test_a_nan_anywhere_makes_both_nan(dtype: torch.dtype, place: int) -> None:
    """A NaN at the start, in a vector's middle, in a later thread's share or at the end is never skipped."""
    tensor = torch.randn(40_001).to(dtype)
    tensor[place] = math.nan
    assert same(reduced(tensor), (math.nan, math.nan))


def test_infinities_are_extremes() -> None:
    """Infinities are recorded as what they are."""
    assert reduced(torch.tensor([1.0, math.inf, -math.inf])) == (-math.inf, math.inf)


@pytest.mark.parametrize("shape", [(), (1, 1, 3), (5, 7)])
def test_any_shape_and_memory_order(shape: tuple[int, ...]) -> None:
    """0-dim, transposed and strided tensors are reduced like any other."""
    tensor = torch.randn(shape)
    expected = (tensor.min().item(), tensor.max().item())
    assert reduced(tensor) == expected
    assert reduced(tensor.mT if tensor.ndim > 1 else tensor) == expected
    wide = torch.full((*shape, 2), 99.0)
    wide[..., 0] = tensor
    assert reduced(wide[..., 0]) == expected


def test_complex_counts_real_and_imaginary_parts() -> None:
    """The extremes of a complex tensor are those of its real and imaginary parts together."""
    assert reduced(torch.tensor([1 + 5j, -7 + 2j])) == (-7.0, 5.0)


def test_float8_is_reduced_through_float32() -> None:
    """A dtype that torch cannot reduce is converted to one that holds it exactly."""
    assert reduced(torch.tensor([1.5, -0.25, 3.0]).to(torch.float8_e4m3fn)) == (-0.25, 3.0)


@pytest.mark.parametrize(("values", "expected"), [([1.0, 2.0], (0.0, 2.0)), ([-1.0, -2.0], (-2.0, 0.0))])
def test_sparse_counts_the_implicit_zero(values: list[float], expected: tuple[float, float]) -> None:
    """A sparse tensor with fewer entries than places holds a zero."""
    assert (
        reduced(torch.sparse_coo_tensor(torch.tensor([[0, 3]]), torch.tensor(values), (5,), check_invariants=True))
        == expected
    )


def test_sparse_entries_at_one_place_are_summed() -> None:
    """Uncoalesced entries count as their sum, and a full sparse tensor has no implicit zero."""
    assert reduced(
        torch.sparse_coo_tensor(torch.tensor([[0, 1, 0]]), torch.tensor([1.0, 5.0, 1.0]), (2,), check_invariants=True)
    ) == (2.0, 5.0)


def blocks() -> nn.Module:
    """A model of nested blocks."""
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    return nn.Sequential(nn.ModuleDict({"block": inner}), nn.Linear(4, 2))


def test_gradients_are_none_before_a_backward() -> None:
    """Before any backward a model has value extremes, and None for its gradients."""
    model = nn.Linear(3, 2)
    stats = tracer.model_extremes(model)
    assert stats["weight"]["value_min"] == model.weight.min().item()
    assert stats["weight"]["value_max"] == model.weight.max().item()
    assert stats["weight"]["grad_min"] is None
    assert stats["weight"]["grad_max"] is None


def test_nested_blocks_keep_their_qualified_names() -> None:
    """Names are those of named_parameters, in its order, each with the four extremes."""
    model = blocks()
    stats = tracer.model_extremes(model)
    assert list(stats) == [name for name, _ in model.named_parameters()]
    assert all(set(extremes) == KEYS for extremes in stats.values())


def test_model_extremes_equal_an_oracle_after_a_backward() -> None:
    """After a backward every number equals the one taken by hand."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model(torch.randn(11, 5)).square().sum().backward()
    stats = tracer.model_extremes(model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert stats[name] == {
            "value_min": parameter.double().min().item(),
            "value_max": parameter.double().max().item(),
            "grad_min": parameter.grad.double().min().item(),
            "grad_max": parameter.grad.double().max().item(),
        }


def test_a_tied_parameter_appears_once() -> None:
    """A parameter that two modules share has one entry, under its first name."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert list(tracer.model_extremes(model)) == ["0.weight"]


def test_a_lazy_parameter_appears_once_it_has_a_shape() -> None:
    """A lazy parameter has nothing to measure before its first forward."""
    model = nn.LazyLinear(2)
    assert tracer.model_extremes(model) == {}
    model(torch.zeros(1, 3))
    assert list(tracer.model_extremes(model)) == ["weight", "bias"]


def test_an_empty_parameter_has_no_extremes() -> None:
    """An empty tensor's extremes are None."""
    module = nn.Module()
    module.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    assert tracer.model_extremes(module) == {
        "nothing": dict.fromkeys(("value_min", "value_max", "grad_min", "grad_max"))
    }


def test_overall_extremes_are_minima_of_minima_and_maxima_of_maxima() -> None:
    """Over all parameters the four numbers equal those of everything concatenated."""
    model = blocks()
    model.get_submodule("0.block")(torch.randn(5, 3)).sum().backward()
    values = torch.cat([parameter.flatten() for parameter in model.parameters()])
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert tracer.overall_extremes(tracer.model_extremes(model)) == {
        "value_min": values.min().item(),
        "value_max": values.max().item(),
        "grad_min": gradients.min().item(),
        "grad_max": gradients.max().item(),
    }


def test_overall_extremes_without_gradients_are_none() -> None:
    """Where no parameter has a gradient the overall one is None, not 0."""
    overall = tracer.overall_extremes(tracer.model_extremes(nn.Linear(2, 2)))
    assert overall["grad_min"] is None
    assert overall["grad_max"] is None
    assert tracer.overall_extremes({}) == dict.fromkeys(KEYS)


def test_overall_extremes_keep_a_nan() -> None:
    """One NaN among the parameters makes the overall extreme NaN, wherever it stands."""
    for order in itertools.permutations([1.0, math.nan, -3.0]):
        stats = {str(n): dict.fromkeys(KEYS, number) for n, number in enumerate(order)}
        assert all(math.isnan(number or 0) for number in tracer.overall_extremes(stats).values())


LAYOUTS = {
    "channels_last": torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last),
    "transposed": torch.randn(6, 7).T,
    "permuted, at an offset": torch.randn(2, 3, 4, 5)[1].permute(2, 0, 1),
    "with gaps": torch.randn(6, 7)[:, ::2],
    "expanded": torch.randn(3, 1).expand(3, 4),
    "empty axis": torch.randn(3, 4).T[:, :1],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_changes_no_number(name: str) -> None:
    """Extremes are those of the numbers, wherever these lie in memory; numbers between them do not count."""
    tensor = LAYOUTS[name]
    assert reduced(tensor) == (tensor.flatten().min().item(), tensor.flatten().max().item())


def test_dense_layouts_are_not_copied_on_the_cpu(tmp_path: Path) -> None:
    """A model in channels_last is traced without a copy of a parameter or gradient, in a hook and at the end."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 3, 4, 4)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            model.zero_grad()
            loss = model(inputs).sum()
            copies = Counter[str]()
            with torch.profiler.profile(record_shapes=True) as profile:
                loss.backward()
            for average in profile.key_averages(group_by_input_shape=True):
                if average.key in ("aten::contiguous", "aten::clone") and [4, 3, 3, 3] in average.input_shapes:
                    copies[average.key] += average.count
            assert not copies
            torch.optim.SGD(model.parameters(), lr=0.1).step()
