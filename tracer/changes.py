"""What has changed in a model's parameters, as the table ``events`` tells it."""

import json
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from torch import nn

from tracer.parameters import in_modules


class Change(NamedTuple):
    """A change of a parameter in the model, or of several that were frozen or unfrozen together.

    Of these, ``name`` is the one module or parameter that changed, if it was one, and ``detail`` a JSON list of all.
    """

    kind: Literal["joined", "replaced", "frozen", "unfrozen", "removed"]
    name: str | None
    detail: str


def changes(
    before: Mapping[str, tuple[nn.Parameter, bool]], after: Mapping[str, tuple[nn.Parameter, bool]]
) -> list[Change]:
    """What has changed between these parameters, by name, with whether each is trainable."""
    names_before = {id(tensor): name for name, (tensor, _) in before.items()}
    names_after = {id(tensor): name for name, (tensor, _) in after.items()}
    found: list[Change] = []
    for name, (tensor, _) in before.items():
        if name not in after:
            now = names_after.get(id(tensor))
            found.append(Change("removed", name, "" if now is None else f"is {now} now"))
    for name, (tensor, _) in after.items():
        was = names_before.get(id(tensor), name)
        detail = f"{tuple(tensor.shape)} {tensor.dtype}" + ("" if was == name else f", was {was}")
        if name not in before:
            found.append(Change("joined", name, detail))
        elif tensor is not before[name][0]:
            found.append(Change("replaced", name, detail))
    same = [
        (name, before[name][1], now) for name, (tensor, now) in after.items() if tensor is before.get(name, [None])[0]
    ]
    return found + toggles(same, tuple(after))


def toggles(parameters: Iterable[tuple[str, bool, bool]], names: tuple[str, ...]) -> list[Change]:
    """What was frozen, and what was unfrozen, each as one change.

    Args:
        parameters: Parameters, and whether they were and are trainable.
        names: The names of all parameters.
    """
    toggled = [(name, now) for name, was, now in parameters if now is not was]
    found: list[Change] = []
    kinds: tuple[tuple[Literal["frozen", "unfrozen"], bool], ...] = (("frozen", False), ("unfrozen", True))
    for kind, trainable in kinds:
        modules = in_modules(tuple(name for name, now in toggled if now is trainable), names)
        if modules:
            found.append(Change(kind, modules[0] if len(modules) == 1 else None, json.dumps(modules)))
    return found
