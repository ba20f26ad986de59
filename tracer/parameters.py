"""A model's parameters under the names that the log uses."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from tracer.engines import in_flat
from tracer.log.schema import MOST_SLICES, WRAPPERS
from tracer.warn import encodable, in_short, warn

Select = str | re.Pattern[str] | Callable[[str], bool]
Rename = Callable[[str], str]

# Users give these names, too: to a part of a model, or in a container.
_ALSO_GIVEN = {"module", "_module"}
_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)


@dataclass(frozen=True, eq=False)
class NamedParameter:
    """One parameter: its name in the log, its other names if it is tied, and where the model keeps it.

    Attributes:
        sliced: Whether the extremes of its slices are wanted.
    """

    name: str
    aliases: tuple[str, ...]
    tensor: nn.Parameter
    owner: dict[str, nn.Parameter | None]
    key: str
    sliced: bool = False

    @property
    def lazy(self) -> bool:
        """Whether it waits for its module's first forward to get a shape."""
        return bool(is_lazy(self.tensor))

    @property
    def sharded(self) -> bool:
        """Whether it is a ``DTensor``, or a parameter of ZeRO-3: each process holds a part."""
        return hasattr(self.tensor, "to_local") or hasattr(self.tensor, "ds_tensor")

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as a whole: ZeRO-3 leaves an empty tensor in its place."""
        return tuple(getattr(self.tensor, "ds_shape", self.tensor.shape))

    @property
    def slices(self) -> int:
        """The number of slices of its first dimension of which extremes are recorded; 0 until it has a shape."""
        return self.shape[0] if self.sliced and not (self.lazy or self.unsliced) else 0

    @property
    def unsliced(self) -> str:
        """The reason why nothing can be recorded of its slices; "" where it can."""
        if self.lazy:
            return ""
        if self.sharded or in_flat(self.tensor):
            return "each rank holds a part of it"
        if self.tensor.dim() == 0 or self.tensor.numel() == 0:
            return "it has none"
        return f"{self.shape[0]:,} are more than {MOST_SLICES:,}" if self.shape[0] > MOST_SLICES else ""


def named_parameters(model: nn.Module) -> list[NamedParameter]:
    """Every parameter of a model once, in model order, frozen and lazy ones included."""
    places: dict[int, tuple[nn.Parameter, dict[str, nn.Parameter | None], str, list[str]]] = {}
    for prefix, module in _named_modules(model):
        for key, tensor in module._parameters.items():
            if tensor is not None:
                place = places.setdefault(id(tensor), (tensor, module._parameters, key, []))
                place[3].append(f"{prefix}.{key}" if prefix else key)
    return [
        NamedParameter(encodable(names[0]), tuple(map(encodable, names[1:])), tensor, owner, key)
        for tensor, owner, key, names in places.values()
    ]


def reshard(model: nn.Module) -> None:
    """Have FSDP put back a model's sharded parameters, if a forward has left gathered ones in their places."""
    # A loop that shards a model has imported FSDP. An import here would cost everyone half a second.
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if hasattr(fsdp, "FSDPModule") else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def flattened(model: nn.Module) -> str | None:
    """The reason why a model's parameters cannot be told apart, if there is one."""
    # Known by its name, which needs no import.
    wrapped = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if wrapped and not any(in_flat(parameter) for parameter in model.parameters()):
        return (
            "FullyShardedDataParallel flattens parameters and hides their gradients: shard with fully_shard instead, "
            "or give it use_orig_params=True"
        )
    return None


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a model once, under its first name, "" for the model itself; of a wrapper, what it wraps."""
    by_id: dict[int, tuple[str, nn.Module]] = {}
    for name, module in _named_modules(model):
        by_id.setdefault(id(module), (encodable(name), module))
    return dict(by_id.values())


def _named_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """As ``module.named_modules(remove_duplicate=False)``, without the names that wrappers add."""
    yield prefix, module
    wrapped = _wrapped(module)
    for name, child in module._modules.items():
        if child is not None:
            inner = prefix if child is wrapped else f"{prefix}.{name}" if prefix else name
            yield from _named_modules(child, inner)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper wraps; None if it is no wrapper."""
    for name, child in module._modules.items():
        if name in WRAPPERS and (name not in _ALSO_GIVEN or _only_wraps(module)):
            return child
    return None


def _only_wraps(module: nn.Module) -> bool:
    """Whether a module has nothing but a child, which it calls."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        # Nobody else calls it module there, whatever users add.
        return True
    owns = any(tensor is not None for tensor in module._parameters.values())
    return len(module._modules) == 1 and not owns and not isinstance(module, _CONTAINERS)


def class_name(model: nn.Module) -> str:
    """The name of a model's class; of a wrapper, that of the innermost module."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    return type(model).__name__


@lru_cache(maxsize=64)
def in_modules(names: tuple[str, ...], everything: tuple[str, ...]) -> tuple[str, ...]:
    """The modules of which all parameters are among these, and the other ones of these parameters.

    Args:
        names: Names of parameters.
        everything: Those of all parameters.
    """
    within, of_all = (Counter(chain.from_iterable(map(_path, group))) for group in (names, everything))
    return tuple(dict.fromkeys(next(part for part in _path(name) if within[part] == of_all[part]) for name in names))


def _path(name: str) -> list[str]:
    """The modules that hold a parameter, from the outermost on, and itself."""
    return list(accumulate(name.split("."), lambda path, key: f"{path}.{key}"))


def name_filter(select: Select | None, argument: str = "params") -> Callable[[str], bool]:
    """The function that says whether a name is selected: a regular expression may match anywhere in it.

    Args:
        select: The user's selection; None means every name.
        argument: The name of that argument.

    Raises:
        ValueError: the pattern is not a regular expression.
        TypeError: it is neither a pattern nor a callable.
    """
    if select is None:
        return lambda name: True
    if callable(select):
        return select
    if not isinstance(select, str | re.Pattern):
        raise TypeError(f"{argument}={select!r} must be a regular expression, or a callable on the name")
    try:
        pattern = re.compile(select)
    except re.error as error:
        raise ValueError(f"{argument}={select!r} is not a regular expression: {error}") from None
    return lambda name: pattern.search(name) is not None


class LastingFilter:
    """A filter of names that answers once a name, so that a user's callable may fail later without harm.

    Args:
        wanted: The filter. It may raise until ``inside_training`` is set.
        argument: The name of the user's argument.

    Attributes:
        inside_training: Whether a name for which it raises is left out, with one warning.
    """

    def __init__(self, wanted: Callable[[str], bool], argument: str) -> None:
        self._wanted = wanted
        self._argument = argument
        self._known: dict[str, bool] = {}
        self._warned = False
        self.inside_training = False

    def __call__(self, name: str) -> bool:
        """Whether a name is selected."""
        if name not in self._known:
            try:
                self._known[name] = bool(self._wanted(name))
            except Exception as error:
                if not self.inside_training:
                    raise
                self._known[name] = False
                if not self._warned:
                    self._warned = True
                    warn(f"{self._argument} raises for {name}, which is therefore not recorded ({in_short(error)})")
        return self._known[name]


class Renaming:
    """Gives a model's parameters the names that a user's callable says; a name that was given stays.

    Args:
        rename: The callable; None keeps all names.

    Attributes:
        inside_training: Whether a parameter for which it fails keeps its name, if that is free, with one warning.
    """

    def __init__(self, rename: Rename | None) -> None:
        self._rename = rename
        self._given: dict[str, str] = {}
        self._warned = False
        self.inside_training = False

    def __call__(self, parameters: list[NamedParameter]) -> list[NamedParameter]:
        """The same parameters under their new names; the aliases of tied ones are as they were.

        Raises:
            TypeError: the callable returns something else than a text.
            ValueError: it gives two parameters one name.
        """
        if self._rename is None:
            return parameters
        taken: dict[str, str] = {}
        # Whoever comes later must not take the name of a parameter that has it already.
        for parameter in sorted(parameters, key=lambda parameter: parameter.name not in self._given):
            taken[self._name(parameter.name, taken, self._rename)] = parameter.name
        return [replace(parameter, name=self._given[parameter.name]) for parameter in parameters]

    def _name(self, name: str, taken: Mapping[str, str], rename: Rename) -> str:
        try:
            new = self._given.get(name) or rename(name)
            if not isinstance(new, str):
                raise TypeError(f"rename gives {new!r} for {name}: it must return a text")
            if new in taken:
                raise ValueError(f"rename gives {taken[new]} and {name} one name, {new!r}: each needs its own")
        except Exception as error:
            if not self.inside_training:
                raise
            new = name
            while new in taken:
                new += "'"
            if not self._warned:
                self._warned = True
                warn(f"{name} is recorded as {new}, since rename fails ({in_short(error)})")
        self._given[name] = encodable(new)
        return self._given[name]
