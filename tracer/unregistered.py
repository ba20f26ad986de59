"""Parameters that an optimizer trains and the model does not register, as those of layers in a plain list."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from tracer.engines import drives
from tracer.parameters import named_modules

# A module may hold a data set, too.
_ITEMS = 1000
_DEPTH = 4


def unregistered(model: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The trainable tensors of an optimizer that are no parameters of a model, by where the model or it keeps them.

    Shards are left out: a model may hold whole parameters in their places at the moment. So are the flat partitions
    that ZeRO makes of the model's parameters.
    """
    registered = {id(tensor) for module in model.modules() for tensor in module._parameters.values()}
    missing = {
        id(tensor): (f"optimizer.param_groups[{group}]['params'][{index}]", tensor)
        for group, settings in enumerate(optimizer.param_groups)
        for index, tensor in enumerate(settings["params"])
        if id(tensor) not in registered and tensor.requires_grad and not hasattr(tensor, "to_local")
    }
    if missing and drives(optimizer, model.parameters()):
        return {}
    for place, tensor in _elsewhere(model) if missing else ():
        if id(tensor) in missing:
            missing[id(tensor)] = place, tensor
    return dict(missing.values())


def _elsewhere(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a model's modules keep in plain attributes."""
    for name, module in named_modules(model).items():
        for key, kept in vars(module).items():
            if key not in ("_parameters", "_modules"):
                yield from _within(kept, f"{name}.{key}" if name else key, _DEPTH)


def _within(kept: object, place: str, depth: int) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(kept, nn.Parameter):
        yield place, kept
    elif isinstance(kept, nn.Module):
        for name, tensor in kept.named_parameters():
            yield f"{place}.{name}", tensor
    elif depth:
        for key, item in islice(_items(kept), _ITEMS):
            yield from _within(item, f"{place}[{key!r}]", depth - 1)


def _items(kept: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(kept, dict):
        return [(key, item) for key, item in kept.items() if isinstance(key, str | int)]
    return enumerate(kept) if isinstance(kept, list | tuple) else ()
