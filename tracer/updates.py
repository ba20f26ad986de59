"""Hooks around the updates of all optimizers of the process: set once, they report to every trace that listens."""

import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

_Function = TypeVar("_Function", bound=Callable[..., object])


def not_compiled(hook: _Function) -> _Function:
    """Keep the compiler from a function and all that it calls; else it compiles them for each tensor anew."""
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:
        # An older torch. Its wrapper costs more than a microsecond a call.
        return torch._compile._disable_dynamo(hook)  # type: ignore[return-value]
    function = cast("FunctionType", hook)
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
    function.__dict__["_torchdynamo_disable"] = True
    return hook


# Torch iterates its hooks on all optimizers in each update, so they must not change while any thread trains. Ours are
# set once and stay. They report to those that are armed: before an update, and after it.
Report = Callable[[Optimizer, bool], None]
reports: dict[int, tuple[Report, Report]] = {}
# The same as a tuple, which is replaced, and never changed while a hook iterates it.
reporting: tuple[tuple[Report, Report], ...] = ()
_setting = threading.RLock()


def _update_hook(when: int) -> Callable[[Optimizer, Any, Any], None]:
    @not_compiled
    def hook(optimizer: Optimizer, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        try:
            for pair in reporting:
                # The first argument is the optimizer itself.
                pair[when](optimizer, any(map(callable, args[1:])) or callable(kwargs.get("closure")))
        except Exception:
            # As in hooks on parameters.
            return

    return hook


UPDATE_HOOKS = {"_global_optimizer_pre_hooks": _update_hook(0), "_global_optimizer_post_hooks": _update_hook(1)}
_REGISTER = register_optimizer_step_pre_hook, register_optimizer_step_post_hook


def listen(owner: object, before: Report, after: Report) -> None:
    """Have the updates of all optimizers reported, until ``forget``.

    Args:
        owner: Who listens.
        before: Called with the optimizer, and whether it has a closure, before each update.
        after: Likewise, after it.
    """
    with _setting:
        for (name, hook), register in zip(UPDATE_HOOKS.items(), _REGISTER, strict=True):
            if hook not in getattr(torch_optimizer, name).values():
                register(hook)
    reports[id(owner)] = before, after
    _renew()


def forget(owner: object) -> None:
    """Report no more updates to it; harmless if it does not listen."""
    reports.pop(id(owner), None)
    _renew()


def _renew() -> None:
    global reporting
    # Another thread, or a signal handler in this one, may have come in between: whoever writes looks once more.
    while reporting != (now := tuple(reports.copy().values())):
        reporting = now


def ids_of(optimizer: Optimizer) -> Iterable[int]:
    """The ids of the tensors that an optimizer holds."""
    return map(id, chain.from_iterable(group["params"] for group in optimizer.param_groups))


def has_effect(optimizer: Optimizer) -> bool:
    """Whether an update can change anything: there is a gradient, and it does more than make the optimizer's state.

    To have its state made, as before a checkpoint is loaded, an optimizer updates once with a learning rate of 0.
    """
    if not has_gradient(optimizer):
        return False
    return bool(optimizer.state) or not all(is_zero(group.get("lr")) for group in optimizer.param_groups)


def has_gradient(optimizer: Optimizer) -> bool:
    """Whether any tensor that an optimizer holds has a gradient."""
    return any(tensor.grad is not None for group in optimizer.param_groups for tensor in group["params"])


def writes_to(optimizer: Optimizer) -> int:
    """How often the tensors that an optimizer holds have been written to; not through ``.data``, which does not count.

    Raises:
        RuntimeError: one was made under inference mode.
    """
    return sum(tensor._version for group in optimizer.param_groups for tensor in group["params"])


def is_zero(rate: object) -> bool:
    """Whether a learning rate is 0; False for one on a device, since to read it would be a sync."""
    return bool(rate == 0) if not isinstance(rate, torch.Tensor) or rate.is_cpu else False
