"""The hooks on a model's parameters: set, re-armed when the model changes, and removed."""

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from itertools import chain
from operator import attrgetter, is_
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from tracer import updates
from tracer.batch import Direct
from tracer.changes import Change, changes, toggles
from tracer.engines import drives
from tracer.parameters import (
    LastingFilter,
    NamedParameter,
    Rename,
    Renaming,
    Select,
    class_name,
    name_filter,
    named_parameters,
    reshard,
)
from tracer.remains import Remains, remains_of
from tracer.unregistered import unregistered
from tracer.updates import ids_of, not_compiled

Hook = Callable[[torch.Tensor], None]

_requires_grad = attrgetter("requires_grad")
_parameters, _submodules = attrgetter("_parameters"), attrgetter("_modules")


# The id of the backward that runs in this thread, or -1. Each hook asks, so it is no function of ours around torch's.
running_backward: Callable[[], int] = torch._C._current_graph_task_id


class ParamHook:
    """The hook of one traced tensor.

    Attributes:
        tensor: The tensor.
        index: Its index among the traced parameters.
        handle: Removes the hook, once it is set.
        place: Where the tensor's numbers are kept. ``torch.utils.swap_tensors`` gives them, and the hooks, to another.
        failed: Whether the tensor is no longer recorded.
        fails: In how many steps in a row it could not be recorded, and the last of them, as counted by who records.
        direct: Where the hook may write the extremes itself.
        siblings: All hooks that are called as this one is, this one included.
    """

    __slots__ = ("_report", "direct", "failed", "fails", "handle", "index", "place", "siblings", "tensor")

    def __init__(self, tensor: nn.Parameter, listener: "Listener") -> None:
        self._report = listener.on_gradient
        self.tensor = tensor
        self.index = -1
        self.handle: RemovableHandle | None = None
        self.place = tensor._cdata
        self.failed = False
        self.fails = 0, -1
        self.direct: Direct | None = None
        self.siblings: Sized = ()

    @not_compiled
    def __call__(self, tensor: torch.Tensor) -> None:
        """Report a gradient that was accumulated into ``tensor.grad``, or record or note it at once."""
        direct = self.direct
        try:
            if direct is None or direct.batch.open_for != running_backward():
                self._report(self, tensor)
                return
            try:
                # Another hook may be about to change the gradient, or to update with it.
                if direct.batch.noting and len(self.siblings) == 1:
                    direct.note()
                else:
                    direct.reduce()
            except Exception:
                # The gradient is missing, sparse, of another dtype, or part of another graph: the listener handles it.
                self._report(self, tensor)
        except Exception:
            # The listener raises nothing, but a recursion may leave no frame for it.
            return


class Listener(Protocol):
    """Receives the hooks' reports. None of these may raise."""

    def on_gradient(self, hook: ParamHook, tensor: torch.Tensor) -> None:
        """A gradient has been accumulated into ``tensor.grad``."""

    def before_update(self, optimizer: Optimizer, closure: bool) -> None:
        """An optimizer of this process, whatever it holds, is about to update, or to call a closure for gradients."""

    def after_update(self, optimizer: Optimizer, closure: bool) -> None:
        """An optimizer of this process has updated."""


_armed: "weakref.WeakSet[Hooks]" = weakref.WeakSet()


class Hooks:
    """The hooks on one model.

    Args:
        model: The model.
        select: Which of its parameters, as in ``attach``.
        rename: Likewise, their names.
        slices: Likewise, of which of these slices are recorded, too.

    Attributes:
        chosen: The traced parameters, in model order.
        parameters: Those of them that have a shape already.
        param_hooks: Their hooks, likewise.
        reporting: Whether each gradient is reported to the listener.
        noted: Holds a tensor once a gradient has arrived that was only noted; see ``report``.
        on_gone: Called once nobody else has the model any more, nor a module of it.

    Raises:
        ValueError: the model has no trainable parameter, ``select`` or ``slices`` selects none, or ``rename`` gives two
            of them one name.
        TypeError: ``rename`` gives something else than a text.
    """

    def __init__(
        self, model: nn.Module, select: Select | None, rename: Rename | None = None, slices: Select | None = None
    ) -> None:
        # Weakly, so that a trace which nobody closes does not keep its model. What the model itself holds is kept.
        self._listener: Listener | None = None
        self._root = weakref.ref(model, self._outlive)
        self._remains: Remains | None = None
        self._stand_in: nn.Module | None = None
        self.on_gone: Callable[[], None] = lambda: None
        self._wanted = LastingFilter(name_filter(select), "params")
        self._sliced = LastingFilter(name_filter(slices or (lambda name: False), "slices"), "slices")
        self._renamed = Renaming(rename)
        self._wrap: Callable[[Hook], Hook] | None = None
        self.param_hooks: list[ParamHook] = []
        self.noted: deque[torch.Tensor] = deque(maxlen=1)
        self._note = self.noted.append
        self.reporting = True
        self.chosen: list[NamedParameter] = []
        self._lazy: list[nn.Parameter] = []
        reshard(model)
        self._survey(self._look())
        self._wanted.inside_training = self._sliced.inside_training = self._renamed.inside_training = True
        everything = self._renamed(named_parameters(model))
        if not any(_gets_gradients(parameter.tensor) for parameter in everything):
            raise ValueError(
                f"{class_name(model)} has no trainable parameter, so there is no gradient to trace: "
                "attach a model with at least one parameter that requires a gradient"
            )
        if not any(_gets_gradients(parameter.tensor) for parameter in self.chosen):
            names = ", ".join(parameter.name for parameter in everything[:5])
            raise ValueError(
                f"params={select!r} selects {'only frozen ones' if self.chosen else 'none'} of the model's "
                f"{len(everything)} parameters; their names begin {names}"
            )
        if slices is not None and not any(parameter.sliced for parameter in self.chosen):
            names = ", ".join(parameter.name for parameter in self.chosen[:5])
            raise ValueError(
                f"slices={slices!r} selects none of the {len(self.chosen)} traced parameters; their names begin {names}"
            )

    def arm(self, listener: Listener, wrap: Callable[[Hook], Hook] | None = None) -> None:
        """Set all hooks, each gradient hook wrapped in ``wrap``; from now on they report to ``listener``."""
        self._listener = listener
        self._wrap = wrap
        _armed.add(self)
        updates.listen(self, listener.before_update, listener.after_update)
        self.rearm()

    def stale(self) -> bool:
        """Whether the model's parameters have changed since they were armed."""
        if not self._trainable_as_before() or self._replaced() is not None or self._swapped():
            return True
        return bool(self._lazy) and not all(map(is_lazy, self._lazy))

    def holds(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer holds a traced parameter."""
        return not self._ids.isdisjoint(ids_of(optimizer)) or self.driven(optimizer)

    def driven(self, optimizer: Optimizer) -> bool:
        """Whether an engine updates traced parameters through an optimizer that does not hold them."""
        return drives(optimizer, self._tensors)

    def misses(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer holds a parameter that has come into the model since it was armed."""
        now = self._replaced()
        return now is not None and not {id(parameter.tensor) for parameter in now}.isdisjoint(ids_of(optimizer))

    def unregistered(self, optimizer: Optimizer) -> str:
        """What an optimizer trains beside this model's parameters and those of other traced models, in words."""
        model = self._model()
        if model is None or self._ids.issuperset(ids_of(optimizer)):
            return ""
        others = set().union(*(hooks._ids for hooks in list(_armed)))
        names = [name for name, tensor in unregistered(model, optimizer).items() if id(tensor) not in others]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"{class_name(model)} does not register {', '.join(names[:3])}{more}" if names else ""

    def report(self, reporting: bool) -> None:
        """Report each gradient to the listener, or only note in ``noted`` that some have arrived.

        A note calls no Python function, and so costs a tenth of a report.
        """
        if reporting is self.reporting:
            return
        self.reporting = reporting
        self.noted.clear()
        param_hooks = self.param_hooks
        for hook in param_hooks:
            hooks = hook.tensor._post_accumulate_grad_hooks
            # Another library may have removed all hooks.
            if hook.handle is not None and hooks and hook.handle.id in hooks:
                hooks[hook.handle.id] = self._hook(hook)
        if self._listener is None:
            _unset(param_hooks)

    def rearm(self) -> tuple[list[ParamHook], list[Change]]:
        """Look at the model again: set the hooks that are missing, and remove those of tensors that are gone.

        Returns:
            The hooks of new tensors, and the changes.
        """
        listener = self._listener
        if listener is None:
            return [], []
        were_trainable, swapped = self._were_trainable, self._swapped()
        as_before = not swapped and self._replaced() is None and len(self.param_hooks) == len(self._tensors)
        if as_before and all(map(is_lazy, self._lazy)):
            return [], self._toggle(were_trainable)
        known = {id(hook.tensor): hook for hook in self.param_hooks if hook not in swapped}
        for hook in swapped:
            # Those that are left here are called no more, nor would be those that are added to them.
            hook.tensor._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        before = self._by_name()
        self._survey(self._look())
        self.param_hooks = [
            known.pop(id(tensor)) if id(tensor) in known else ParamHook(tensor, listener) for tensor in self._tensors
        ]
        new = [hook for hook in self.param_hooks if hook.index < 0]
        for index, hook in enumerate(self.param_hooks):
            hook.index = index
            self._set(hook)
        for hook in (*known.values(), *swapped):
            # This may be the hook that runs now.
            hook.failed, hook.direct = True, None
            if hook.handle is not None:
                hook.handle.remove()
        if self._listener is None:
            self.remove()
        return new, changes(before, self._by_name())

    def _toggle(self, were_trainable: list[bool]) -> list[Change]:
        """Follow what was frozen or unfrozen in a model that is otherwise as it was; GANs do that at each step."""
        self._were_trainable = list(map(_requires_grad, self._tensors))
        for hook in self.param_hooks:
            self._set(hook)
        names = tuple(parameter.name for parameter in self.parameters)
        return toggles(zip(names, were_trainable, self._were_trainable, strict=True), names)

    def _set(self, hook: ParamHook) -> None:
        if hook.handle is None and hook.tensor.requires_grad:
            hook.handle = _first_hook(hook.tensor, self._hook(hook))
            hook.siblings = hook.tensor._post_accumulate_grad_hooks

    def remove(self) -> None:
        """Remove every hook; harmless if they are removed already. What a signal handler interrupts so, sets none."""
        self._listener = None
        _armed.discard(self)
        updates.forget(self)
        _unset(self.param_hooks)
        self.param_hooks = []

    def traces(self, tensors: set[int]) -> bool:
        """Whether any of the tensors with these ids is traced here."""
        return not self._ids.isdisjoint(tensors)

    def are_of(self, tensors: set[int]) -> bool:
        """Whether the model is alive, and all of its parameters, traced or not, are the tensors with these ids."""
        model = self._model()
        return model is not None and {id(parameter.tensor) for parameter in named_parameters(model)} == tensors

    def held(self, optimizer: Optimizer) -> list[ParamHook]:
        """The hooks of the tensors that an optimizer holds."""
        ids = set(ids_of(optimizer))
        return [hook for hook in self.param_hooks if id(hook.tensor) in ids]

    def names(self, optimizer: Optimizer) -> list[str]:
        """The names of the traced parameters that an optimizer holds."""
        return [self.parameters[hook.index].name for hook in self.held(optimizer)]

    def _hook(self, hook: ParamHook) -> Hook:
        if not self.reporting:
            return self._note
        return hook if self._wrap is None else self._wrap(hook)

    def _replaced(self) -> list[NamedParameter] | None:
        """The model's parameters as they are now, if they are not those that were armed."""
        if self._held_as_before():
            return None
        now, then = self._look(), self.chosen
        if [(new.name, id(new.tensor)) for new in now] != [(old.name, id(old.tensor)) for old in then]:
            return now
        # Another change, such as a module without parameters, which need not be looked at again.
        self._survey(now)
        return None

    def _look(self) -> list[NamedParameter]:
        """The parameters to trace, as the model holds them now."""
        armed = {(id(parameter.owner), parameter.key): parameter.tensor for parameter in self.chosen}
        wanted = []
        model = self._model()
        if model is None:
            return self.chosen
        parameters = self._renamed(named_parameters(model))
        # A parameter may be called as a slice of another one would be.
        taken = {parameter.name.rpartition("[")[0] for parameter in parameters}
        for parameter in parameters:
            if self._wanted(parameter.name):
                before = armed.get((id(parameter.owner), parameter.key))
                gathered = before is not None and _gathered(parameter.tensor, before)
                tensor = before if before is not None and gathered else parameter.tensor
                sliced = parameter.name not in taken and self._sliced(parameter.name)
                wanted.append(replace(parameter, tensor=tensor, sliced=sliced))
        return wanted

    def _survey(self, chosen: list[NamedParameter]) -> None:
        self.chosen = chosen
        self.parameters = [parameter for parameter in chosen if not parameter.lazy]
        self._tensors = [parameter.tensor for parameter in self.parameters]
        self._lazy = [parameter.tensor for parameter in chosen if parameter.lazy]
        self._ids = {id(parameter.tensor) for parameter in chosen}
        # Everything that the model's modules hold. It is kept alive, or something new could get its id.
        model = self._model()
        modules = [] if model is None else list(model.modules())
        if model is not None:
            self._wrapper = type(model), model._parameters, model._modules
        self._modules, self._owners = modules[1:], _owners(modules)
        self._empty = [held for held in self._owners if not held]
        self._keys = [_keys_of(held) for held in self._owners if held]
        self._values = [_values_of(held) for held in self._owners if held]
        self._kept_keys, self._kept = list(map(list, self._keys)), list(chain.from_iterable(self._values))
        swaps_all = torch.__future__.get_swap_module_params_on_conversion()
        self._swappable = swaps_all or any(map(is_traceable_wrapper_subclass, self._tensors))
        self._were_trainable = [tensor.requires_grad for tensor in self._tensors]

    def _model(self) -> nn.Module | None:
        """The model, or, if it was made for ``attach`` alone, another one around the modules that have outlived it."""
        model = self._stand_in or self._root()
        if model is None and self._remains is not None and self._remains.alive:
            self._stand_in = model = self._remains.module()
        return model

    def _outlive(self, _: object) -> None:
        """The model is being deleted: let go of its modules, and see whether somebody else has one."""
        if self._listener is None:
            return
        kind, parameters, modules = self._wrapper
        self._remains = Remains(None, kind, parameters, remains_of(modules, self._end_if_gone))
        del self._wrapper
        self._modules, self._owners, self._empty, self._keys, self._values, self._kept = [], [], [], [], [], []
        self._end_if_gone(None)

    def _end_if_gone(self, _: object) -> None:
        if self._remains is not None and not self._remains.alive:
            self.on_gone()
            self._remains = None
            self._survey([])

    # These two are asked in each measured step, so they loop in the interpreter's own functions.

    def _held_as_before(self) -> bool:
        model = self._model()
        if model is None:
            return False
        if any(self._empty) or not all(map(is_, _owners((model, *self._modules)), self._owners)):
            return False
        # The same tensor, or module, may have got another name.
        return list(map(list, self._keys)) == self._kept_keys and all(
            map(is_, chain.from_iterable(self._values), self._kept)
        )

    def _swapped(self) -> list[ParamHook]:
        """The hooks that were taken from their tensors, as a module's ``to`` does with tensors of some subclasses."""
        if not self._swappable:
            return []
        return [hook for hook in self.param_hooks if hook.place != hook.tensor._cdata]

    def _trainable_as_before(self) -> bool:
        return list(map(_requires_grad, self._tensors)) == self._were_trainable

    def _by_name(self) -> dict[str, tuple[nn.Parameter, bool]]:
        return {
            parameter.name: (parameter.tensor, trainable)
            for parameter, trainable in zip(self.parameters, self._were_trainable, strict=True)
        }


def _gets_gradients(tensor: torch.Tensor) -> bool:
    # torch.jit makes copies of a module whose parameters are no leaves.
    return tensor.requires_grad and tensor.is_leaf


class _LookedUp(Iterable[object]):
    """The keys or values of a TorchScript module, looked up anew: it gives lists, and no views."""

    def __init__(self, look_up: Callable[[], Iterable[object]]) -> None:
        self._look_up = look_up

    def __iter__(self) -> Iterator[object]:
        return iter(self._look_up())


def _owners(modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """The dictionaries in which these modules hold their parameters and submodules."""
    return [*map(_parameters, modules), *map(_submodules, modules)]


def _keys_of(held: dict[Any, Any]) -> Iterable[object]:
    """The keys of what a module holds, anew each time they are iterated over."""
    return dict.keys(held) if isinstance(held, dict) else _LookedUp(held.keys)


def _values_of(held: dict[Any, Any]) -> Iterable[object]:
    """The values of what a module holds, anew each time they are iterated over."""
    return dict.values(held) if isinstance(held, dict) else _LookedUp(held.values)


def _unset(param_hooks: Iterable[ParamHook]) -> None:
    """Remove hooks for good."""
    for hook in param_hooks:
        hook.failed = True
        if hook.handle is not None:
            hook.handle.remove()


def _gathered(now: torch.Tensor, armed: torch.Tensor) -> bool:
    """Whether a tensor stands in for a sharded one, which FSDP puts back before the optimizer's update.

    A stand-in lies on no device mesh, on a smaller one, or on the same mesh in another way. A parameter that replaces a
    sharded one for good lies as that one did.
    """
    layout = _layout(armed)
    return layout is not None and _layout(now) != layout


def _layout(tensor: torch.Tensor) -> tuple[object, object] | None:
    """How a ``DTensor`` lies on the ranks; None of any other tensor."""
    mesh = getattr(tensor, "device_mesh", None)
    return None if mesh is None else (mesh, getattr(tensor, "placements", None))


def _first_hook(tensor: torch.Tensor, hook: Callable[[torch.Tensor], None]) -> RemovableHandle:
    """Register a hook before all others: a user's hook may update the parameter and free its gradient."""
    handle: RemovableHandle = tensor.register_post_accumulate_grad_hook(hook)
    hooks = tensor._post_accumulate_grad_hooks
    for key in [key for key in hooks if key != handle.id]:
        hooks[key] = hooks.pop(key)
    return handle
