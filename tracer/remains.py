"""What is left of a model that is gone: modules of it that somebody still has."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn


@dataclass
class Remains:
    """A module that may be gone: a reference to it, its class, its parameters, and the same of its submodules."""

    reference: weakref.ref[nn.Module] | None
    kind: type[nn.Module]
    parameters: dict[str, nn.Parameter | None]
    submodules: "dict[str, Remains]"

    @property
    def alive(self) -> bool:
        """Whether somebody has it, or one of its submodules."""
        here = self.reference is not None and self.reference() is not None
        return here or any(submodule.alive for submodule in self.submodules.values())

    def module(self) -> nn.Module:
        """The module itself, or, if it is gone, another one with the same content under the same names."""
        module = None if self.reference is None else self.reference()
        if module is None:
            module = self.kind.__new__(self.kind)
            submodules = {name: submodule.module() for name, submodule in self.submodules.items()}
            module.__dict__.update(training=True, _parameters=self.parameters, _modules=submodules)
        return module


def remains_of(modules: Mapping[str, nn.Module | None], on_deletion: Callable[[object], None]) -> dict[str, Remains]:
    """The remains of these modules, which call back once one of them is deleted."""
    return {
        name: Remains(
            weakref.ref(module, on_deletion),
            type(module),
            module._parameters,
            remains_of(module._modules, on_deletion),
        )
        for name, module in modules.items()
        if module is not None
    }
