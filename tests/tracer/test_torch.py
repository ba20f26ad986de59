"""What the tracer takes from torch that torch does not promise, as releases 2.4 to 2.15 have it.

The matrix runs these on every release. One that goes red names what has changed, before a user's training does.
"""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.autograd import Variable

import tracer
from tests.training import recorded
from tests.versions import TORCH
from tracer.extremes import extremes_dtype
from tracer.hooks import running_backward
from tracer.pending import sequence_nr
from tracer.updates import not_compiled

PRIVATE = {
    "_C",
    "_cdata",
    "_checkpoint_wrapped_module",
    "_compile",
    "_compiled_call_impl",
    "_current_graph_task_id",
    "_disable_dynamo",
    "_execution_engine",
    "_fsdp_flattened",
    "_fsdp_wrapped_module",
    "_functorch",
    "_get_sequence_nr",
    "_get_tracing_state",
    "_is_flat_param",
    "_modules",
    "_orig_mod",
    "_parameters",
    "_per_optimizer_states",
    "_post_accumulate_grad_hooks",
    "_scale",
    "_sequence_nr",
    "_torchdynamo_disable",
    "_version",
    "torch._C._dynamo.eval_frame",
    "torch._subclasses.fake_tensor",
    "torch.utils._python_dispatch",
    "torch.utils._pytree",
}
"""Every private name of torch in tracer/. A new one needs a test here, or in the file of what it serves."""

# Of Python, of the tracer, or of Ignite.
_OTHERS = {"_event_handlers", "_getframe", "_live", "_replace"}


def _private_names(file: Path) -> set[str]:
    """The names beginning with an underscore that a file takes from elsewhere, or reads by their text."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) in ("self", "cls")}
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    found |= {
        str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and "torch" in ast.unparse(node)
        and "._" in str(node.module)
    }  # fmt: skip
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found |= {text for text in texts if text in PRIVATE}
    return {name for name in found if not name.startswith("__")} - own - _OTHERS


def test_every_private_name_of_torch_is_known() -> None:
    """The tracer uses the private names that are listed here, and no other."""
    files = Path(tracer.__file__).parent.rglob("*.py")
    assert set().union(*map(_private_names, files)) == PRIVATE


def test_a_backward_has_an_id_of_its_own() -> None:
    """``torch._C._current_graph_task_id`` is -1 outside of a backward, one number within it, another in the next."""
    weight = torch.ones(2, requires_grad=True)
    seen: list[int] = []
    weight.register_hook(lambda gradient: seen.append(running_backward()))
    for _ in range(2):
        (weight * weight).sum().backward()
    assert running_backward() == -1
    assert -1 not in seen
    assert len(set(seen)) == 2


def test_the_engine_calls_back_at_the_end_of_the_backward_that_asked() -> None:
    """``_execution_engine.queue_callback`` has a call made after the last hook, but not where the backward raises."""
    weight = torch.ones(2, requires_grad=True)
    other = torch.ones(2, requires_grad=True)
    heard: list[str] = []

    def queue(_: torch.Tensor) -> None:
        Variable._execution_engine.queue_callback(lambda: heard.append("end"))

    weight.register_post_accumulate_grad_hook(queue)
    other.register_post_accumulate_grad_hook(lambda _: heard.append("hook"))
    # The node that was made last runs first.
    (weight * (other * 2)).sum().backward()
    heard.append("after")
    assert heard == ["hook", "end", "after"]
    heard.clear()
    other.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (weight * (other * 2)).sum().backward()
    assert heard == []


def test_a_node_knows_how_many_were_made_before() -> None:
    """``Node._sequence_nr`` is what ``torch.autograd._get_sequence_nr`` gave when it was made."""
    weight = torch.ones(2, requires_grad=True)
    before = sequence_nr()
    total = (weight * weight).sum()
    assert total.grad_fn is not None
    assert before <= total.grad_fn._sequence_nr() < sequence_nr()


def test_the_version_of_a_tensor_counts_writes_but_those_through_data() -> None:
    """``Tensor._version`` grows with each write in place, and stays where ``.data`` is written to."""
    weight = nn.Parameter(torch.ones(2))
    before = weight._version
    weight.data.mul_(2.0)
    assert weight._version == before
    with torch.no_grad():
        weight.mul_(2.0)
    assert weight._version > before


def test_hooks_after_accumulation_stand_in_a_dictionary() -> None:
    """``Tensor._post_accumulate_grad_hooks`` is None, then a dictionary with the hook, which its handle takes out."""
    weight = nn.Parameter(torch.ones(2))
    assert weight._post_accumulate_grad_hooks is None

    def hook(parameter: torch.Tensor) -> None:
        """Do nothing."""

    handle = weight.register_post_accumulate_grad_hook(hook)
    assert list(weight._post_accumulate_grad_hooks.values()) == [hook]
    handle.remove()
    assert not weight._post_accumulate_grad_hooks


def test_tensors_that_are_swapped_take_each_others_hooks() -> None:
    """``_cdata`` says where a tensor's numbers are kept; hooks stay with these until the tensor gets none anew."""
    first, second, called = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)), list[int]()
    first.register_post_accumulate_grad_hook(lambda tensor: called.append(id(tensor)))
    place = first._cdata
    torch.utils.swap_tensors(first, second)
    assert (second._cdata, first._cdata != place) == (place, True)
    (first * 2 + second).sum().backward()
    assert called == [id(second)]
    first._post_accumulate_grad_hooks = None  # type: ignore[assignment]
    first.register_post_accumulate_grad_hook(lambda tensor: called.append(0))
    first.sum().backward()
    assert called == [id(second), 0]


@pytest.mark.parametrize("foreach", [False, True])
def test_a_tensor_counts_what_is_written_to_it(foreach: bool) -> None:
    """``_version`` rises with each update; not with that of fused kernels."""
    tensor = nn.Parameter(torch.ones(1))
    tensor.grad = torch.ones(1)
    version = tensor._version
    torch.optim.SGD([tensor], lr=0.0, foreach=foreach).step()
    assert tensor._version > version


def test_a_module_keeps_its_parameters_and_children_in_dictionaries() -> None:
    """``Module._parameters`` and ``_modules`` are what the names of a model come from; an absent one is None."""
    layer = nn.Linear(2, 2, bias=False)
    assert list(layer._parameters) == ["weight", "bias"]
    assert layer._parameters["weight"] is layer.weight
    assert layer._parameters["bias"] is None
    assert list(nn.Sequential(layer)._modules.values()) == [layer]


def test_wrappers_keep_what_they_wrap_under_a_private_name() -> None:
    """A compiled module keeps the plain one as ``_orig_mod``, and one that was compiled in place says so."""
    layer = nn.Linear(2, 2)
    compiled: object = torch.compile(layer, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert compiled._modules["_orig_mod"] is layer
    assert layer._compiled_call_impl is None
    layer.compile(backend="eager")
    assert layer._compiled_call_impl is not None


def test_a_scaler_keeps_what_it_found_by_optimizer() -> None:
    """``GradScaler._per_optimizer_states`` has, by the optimizer's id, its stage and what was found on each device."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters())
    scaler = GradScaler("cpu", init_scale=8.0)
    scale: object = scaler._scale
    assert scale is None
    scaler.scale(layer(torch.ones(1, 2)).sum()).backward()
    scaler.unscale_(optimizer)
    scale = scaler._scale
    assert isinstance(scale, torch.Tensor)
    assert scale.item() == 8.0
    (state,) = scaler._per_optimizer_states.values()
    assert list(scaler._per_optimizer_states) == [id(optimizer)]
    assert state["stage"] is torch.amp.grad_scaler.OptState.UNSCALED
    assert [found.item() for found in state["found_inf_per_device"].values()] == [0.0]


def test_tensors_without_numbers_are_told_apart() -> None:
    """Functorch's wrappers are known as such, and ``_get_tracing_state`` is None where nothing is traced."""
    wrapped: list[bool] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        wrapped.append(torch._C._functorch.is_functorch_wrapped_tensor(tensor))
        return tensor.sum()

    torch.func.grad(look)(torch.ones(2))
    assert wrapped == [True]
    assert not torch._C._functorch.is_functorch_wrapped_tensor(torch.ones(2))
    assert torch._C._get_tracing_state() is None


def test_a_hook_is_kept_from_the_compiler() -> None:
    """Torch 2.9 and later are told by the function's code, so that the hook stays itself; 2.4 and 2.6 wrap it."""

    def hook(tensor: torch.Tensor) -> None:
        """Do nothing."""

    kept = not_compiled(hook)
    assert (kept is hook) == (TORCH >= (2, 9))
    assert kept(torch.ones(1)) is None


GRAD_DTYPE = pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no Tensor.grad_dtype")


@GRAD_DTYPE
def test_only_a_leaf_may_be_asked_for_the_dtype_of_its_gradient() -> None:
    """Torch 2.11 to 2.14 raise where a tensor is no leaf, 2.15 answers; the tracer asks none of them."""
    leaf = nn.Parameter(torch.ones(2))
    leaf.grad_dtype = torch.float64
    other = leaf * 2
    if TORCH < (2, 15):
        with pytest.raises(RuntimeError, match="leaf"):
            other.grad_dtype  # noqa: B018
    assert extremes_dtype(leaf) is torch.float64
    assert extremes_dtype(other) is torch.float32


class Shard(nn.Parameter):
    """A parameter that holds more than this process does, as a ``DTensor`` does."""

    def to_local(self) -> torch.Tensor:
        """The part of this process, which is no leaf while gradients are recorded."""
        return torch.Tensor.as_subclass(self, torch.Tensor)[:2]


@GRAD_DTYPE
def test_a_shard_has_the_gradient_dtype_of_its_parameter(tmp_path: Path) -> None:
    """What a sharded parameter declares of its gradient holds for its part, too: no extreme is rounded."""
    model = nn.Module()
    model.weight = Shard(torch.ones(4, dtype=torch.bfloat16))
    model.weight.grad_dtype = torch.float32
    with tracer.attach(model, tmp_path / "run"):
        for scale in (1.0, 2**-12):
            (model.weight * scale).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert recorded(tmp_path / "run")[0, "weight"]["grad_max"] == 1 + 2**-12
