"""Everything that is registered with torch: gradient hooks on parameters, and hooks around an optimizer's update.

Registers, re-arms and removes them; knows neither rows nor files.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tracer.parameters import Select, name_filter, named_parameters


class Tap:
    """What is known of one traced tensor: its index among the traced parameters, and whether its hook is set."""

    __slots__ = ("failed", "handle", "index", "tensor")

    def __init__(self, tensor: nn.Parameter) -> None:
        self.tensor = tensor
        self.index = -1
        self.handle: RemovableHandle | None = None
        self.failed = False


class Listener(Protocol):
    """What the hooks report to. None of these may raise."""

    def on_gradient(self, tap: Tap, tensor: torch.Tensor) -> None:
        """A gradient has been accumulated into ``tensor.grad``."""

    def before_update(self, optimizer: Optimizer) -> None:
        """An optimizer that holds a traced parameter is about to update."""

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer that holds a traced parameter has updated."""

    def follow_model(self) -> None:
        """The model's parameters are no longer those that were armed: ``rearm`` is due."""


class Hooks:
    """The hooks on one model.

    Args:
        model: The model.
        select: Which of its parameters, as in ``attach``.

    Attributes:
        chosen: The traced parameters, in model order.
        parameters: Those of them that have a shape already.
        taps: Their taps, likewise.

    Raises:
        ValueError: the model has no trainable parameter, or none is selected.
    """

    def __init__(self, model: nn.Module, select: Select | None) -> None:
        self._model = model
        self._wanted = name_filter(select)
        self._listener: Listener | None = None
        self._handles: list[RemovableHandle] = []
        self.taps: list[Tap] = []
        # What `stale` compares: where the model keeps modules and tensors, frozen ones without a hook, and lazy ones.
        self._places: list[tuple[Mapping[str, object], str, object]] = []
        self._unarmed: list[nn.Parameter] = []
        self._lazy: list[nn.Parameter] = []
        self._survey()
        everything = named_parameters(model)
        if not any(parameter.tensor.requires_grad for parameter in everything):
            raise ValueError(
                f"{type(model).__name__} has no trainable parameter, so there is no gradient to trace: "
                "attach a model with at least one parameter that requires a gradient"
            )
        if not any(parameter.tensor.requires_grad for parameter in self.chosen):
            names = ", ".join(parameter.name for parameter in everything[:5])
            raise ValueError(
                f"params={select!r} selects {'only frozen ones' if self.chosen else 'none'} of the model's "
                f"{len(everything)} parameters; their names begin {names}"
            )

    def arm(self, listener: Listener) -> None:
        """Set all hooks; from now on they report to ``listener``."""
        self._listener = listener
        self._handles = [
            register_optimizer_step_pre_hook(self._around_update(listener, listener.before_update)),
            register_optimizer_step_post_hook(self._around_update(listener, listener.after_update)),
        ]
        self.rearm()

    @property
    def waiting(self) -> bool:
        """Whether some parameter may yet get a hook: a lazy or a frozen one."""
        return bool(self._lazy or self._unarmed)

    def stale(self) -> bool:
        """Whether the model's parameters are no longer those that were armed."""
        for owner, key, thing in self._places:
            if owner.get(key) is not thing:
                return True
        return any(tensor.requires_grad for tensor in self._unarmed) or any(
            not is_lazy(tensor) for tensor in self._lazy
        )

    def rearm(self) -> list[Tap]:
        """Look at the model again: set the hooks that are missing, and remove those of tensors that are gone.

        Returns:
            The taps of tensors that were not known before.
        """
        listener = self._listener
        assert listener is not None
        known = {id(tap.tensor): tap for tap in self.taps}
        self._survey()
        tensors = [parameter.tensor for parameter in self.parameters]
        self.taps = [known.pop(id(tensor)) if id(tensor) in known else Tap(tensor) for tensor in tensors]
        new = [tap for tap in self.taps if tap.index < 0]
        for index, tap in enumerate(self.taps):
            tap.index = index
            if tap.handle is None and tap.tensor.requires_grad:
                tap.handle = _first_hook(tap.tensor, _gradient_hook(listener, tap))
        for tap in known.values():
            if tap.handle is not None:
                tap.handle.remove()
        self._places = [(parameter.owner, parameter.key, parameter.tensor) for parameter in self.parameters]
        for module in self._model.modules():
            self._places.extend((module._modules, name, child) for name, child in module._modules.items())
        self._unarmed = [tap.tensor for tap in self.taps if tap.handle is None]
        self._lazy = [parameter.tensor for parameter in self.chosen if parameter.lazy]
        return new

    def remove(self) -> None:
        """Remove every hook; harmless where they are removed already."""
        for handle in self._handles:
            handle.remove()
        for tap in self.taps:
            if tap.handle is not None:
                tap.handle.remove()
        self._handles, self.taps = [], []

    def traces(self, tensors: set[int]) -> bool:
        """Whether any of the tensors with these ids is traced here."""
        return not self._ids.isdisjoint(tensors)

    def _survey(self) -> None:
        self.chosen = [parameter for parameter in named_parameters(self._model) if self._wanted(parameter.name)]
        self.parameters = [parameter for parameter in self.chosen if not parameter.lazy]
        self._ids = {id(parameter.tensor) for parameter in self.chosen}

    def _around_update(
        self, listener: Listener, report: Callable[[Optimizer], None]
    ) -> Callable[[Optimizer, Any, Any], None]:
        def hook(optimizer: Optimizer, args: object, kwargs: object) -> None:
            # The hook is called for every optimizer of the process: only those of this model count.
            if not self._held_by(optimizer):
                if not self.stale():
                    return
                listener.follow_model()
                if not self._held_by(optimizer):
                    return
            report(optimizer)

        return hook

    def _held_by(self, optimizer: Optimizer) -> bool:
        return any(id(tensor) in self._ids for group in optimizer.param_groups for tensor in group["params"])


def _gradient_hook(listener: Listener, tap: Tap) -> Callable[[torch.Tensor], None]:
    on_gradient = listener.on_gradient

    def hook(tensor: torch.Tensor) -> None:
        on_gradient(tap, tensor)

    return hook


def _first_hook(tensor: torch.Tensor, hook: Callable[[torch.Tensor], None]) -> RemovableHandle:
    """Register a hook before those that are there: a user's may update the parameter and free its gradient."""
    handle: RemovableHandle = tensor.register_post_accumulate_grad_hook(hook)
    hooks = tensor._post_accumulate_grad_hooks
    for key in [key for key in hooks if key != handle.id]:
        hooks[key] = hooks.pop(key)
    return handle
