import threading

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.training import loss_of, mlp
from tracer.hooks import Hooks, ParamHook
from tracer.parameters import named_parameters


class Notes:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_gradient(self, hook: ParamHook, tensor: torch.Tensor) -> None:
        self.heard.append(f"gradient {hook.index}")

    def before_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        self.heard.append("before")

    def after_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        self.heard.append("after")

    def follow_model(self) -> None:
        self.heard.append("follow")


def hooks_on(model: nn.Module) -> int:
    """How many gradient hooks a model's parameters carry."""
    return sum(len(parameter.tensor._post_accumulate_grad_hooks or {}) for parameter in named_parameters(model))


def test_gradients_and_updates_are_reported_in_their_order() -> None:
    """One report a parameter and backward, and two around the update of an optimizer, whatever it holds."""
    model, notes = mlp(), Notes()
    hooks = Hooks(model, None)
    hooks.arm(notes)
    loss_of(model).backward()
    torch.optim.SGD(model[0].parameters(), lr=0.1).step()
    torch.optim.SGD(mlp().parameters(), lr=0.1).step()
    hooks.remove()
    assert sorted(notes.heard[:4]) == [f"gradient {index}" for index in range(4)]
    assert notes.heard[4:] == ["before", "after"] * 2


def test_a_training_goes_on_while_another_thread_attaches_and_closes() -> None:
    """Hooks that are set and removed while an optimizer calls the process's hooks do not disturb its update."""
    own, others = Notes(), Notes()
    model, other = mlp(), Hooks(mlp(), None)
    hooks = Hooks(model, None)
    hooks.arm(own)

    def meanwhile(*_: object) -> None:
        for action in (lambda: other.arm(others), other.remove):
            thread = threading.Thread(target=action)
            thread.start()
            thread.join()

    # Torch goes from the first of these to the second one, and would notice.
    handles = [register_optimizer_step_pre_hook(hook) for hook in (meanwhile, lambda *_: None)]
    handles += [register_optimizer_step_post_hook(hook) for hook in (meanwhile, lambda *_: None)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.step()
    for handle in handles:
        handle.remove()
    hooks.remove()
    assert own.heard == ["before", "after"] * 3


def test_each_of_several_listeners_hears_an_update_once() -> None:
    """However often hooks are set and removed, an update is reported once to each that is armed, and to no other."""
    listeners = [Notes() for _ in range(3)]
    armed = [Hooks(mlp(), None) for _ in listeners]
    for hooks, notes in zip(armed, listeners, strict=True):
        hooks.arm(notes)
    armed[1].remove()
    torch.optim.SGD(mlp().parameters(), lr=0.1).step()
    for hooks in armed:
        hooks.remove()
    torch.optim.SGD(mlp().parameters(), lr=0.1).step()
    assert [notes.heard for notes in listeners] == [["before", "after"], [], ["before", "after"]]


def test_remove_leaves_no_hook_and_is_idempotent() -> None:
    """After remove, however often, the model carries no hook and nothing is reported."""
    model, notes = mlp(), Notes()
    hooks = Hooks(model, None)
    hooks.arm(notes)
    assert hooks_on(model) == 4
    hooks.remove()
    hooks.remove()
    assert hooks_on(model) == 0
    loss_of(model).backward()
    assert notes.heard == []


def test_a_replaced_parameter_is_armed_again_and_the_old_one_freed() -> None:
    """After a replacement rearm hooks the new tensor, unhooks the old one, and names what is new."""
    model, notes = mlp(), Notes()
    hooks = Hooks(model, None)
    hooks.arm(notes)
    old = model[0].weight
    assert not hooks.stale()
    model[0].weight = nn.Parameter(torch.zeros(8, 6))
    assert hooks.stale()
    assert [hooks.parameters[hook.index].name for hook in hooks.rearm()[0]] == ["0.weight"]
    assert not hooks.stale()
    assert not old._post_accumulate_grad_hooks
    loss_of(model).backward()
    hooks.remove()
    assert sorted(notes.heard) == [f"gradient {index}" for index in range(4)]


def test_an_unfrozen_parameter_is_armed_by_rearm() -> None:
    """A parameter that was frozen at first gets its hook once it is not."""
    model, notes = mlp(), Notes()
    model[0].requires_grad_(False)
    hooks = Hooks(model, None)
    hooks.arm(notes)
    assert hooks_on(model) == 2
    model[0].requires_grad_(True)
    assert hooks.stale()
    new, changes = hooks.rearm()
    assert new == []
    assert [(change.kind, change.name) for change in changes] == [("unfrozen", "0")]
    assert hooks_on(model) == 4
    hooks.remove()


def test_a_model_without_a_trainable_parameter_is_refused() -> None:
    """The error says what the model lacks."""
    with pytest.raises(ValueError, match="ReLU has no trainable parameter"):
        Hooks(nn.ReLU(), None)
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        Hooks(nn.Linear(2, 2).requires_grad_(False), None)


def test_a_selection_without_a_trainable_parameter_is_refused() -> None:
    """The error names the selection and shows what names there are."""
    with pytest.raises(ValueError, match=r"params='conv' selects none of the model's 4 parameters.*0\.weight, 0\.bias"):
        Hooks(mlp(), "conv")
    model = mlp()
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="selects only frozen ones"):
        Hooks(model, r"^0\.")
    with pytest.raises(ValueError, match="is not a regular expression"):
        Hooks(model, "(")
