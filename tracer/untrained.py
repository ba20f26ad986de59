"""Parameters that are meant to train and do not, said once, early in a training."""

from collections.abc import Collection, Mapping

from torch.optim.optimizer import Optimizer

from tracer.hooks import Hooks, ParamHook
from tracer.items import EMPTY, GRADIENT
from tracer.rows import RowBuffer
from tracer.updates import is_zero

# After so many measured steps: a learning rate that is warmed up from 0, and a generator's rarer update, have come by.
STEPS = 20
# Each kind of event, and what it says of several parameters.
KINDS = {
    "unheld": "have a gradient, and no optimizer holds them",
    "rate_zero": "have a learning rate of 0",
    "ungraded": "are held by an optimizer, and never had a gradient",
}
_ADVICE = "Give them to the optimizer, use them in the loss, or freeze them with requires_grad_(False)"


class Untrained:
    """Watches the first measured steps for parameters that require a gradient and do not train."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        # A byte for each parameter, in one number: what of it has been recorded.
        self._recorded = 0
        # How often each had been written to. What a loop updates by hand is trained, whatever else it looks like.
        self._writes: list[int] = []

    def note(self, hooks: Hooks, buffer: RowBuffer) -> None:
        """A step has been recorded."""
        if buffer.layout.names is not self._names:
            self._names, self._recorded = buffer.layout.names, 0
            self._writes = [_writes(hook) for hook in hooks.param_hooks]
        self._recorded |= int.from_bytes(buffer.present, "little")

    def found(self, hooks: Hooks, optimizers: Collection[Optimizer]) -> dict[str, list[str]]:
        """What keeps parameters from training, by now: the kinds of ``KINDS``, each with the parameters' names.

        Args:
            hooks: The hooks of all parameters.
            optimizers: Those that have updated: none, where the loop updates by itself.
        """
        # An engine keeps its parameters elsewhere.
        if not optimizers or any(map(hooks.driven, optimizers)) or len(self._names) != len(hooks.param_hooks):
            return {}
        recorded = self._recorded.to_bytes(len(self._names), "little")
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        held = {id(tensor) for group in groups for tensor in group["params"]}
        learning = {id(tensor) for group in groups for tensor in group["params"] if not is_zero(group.get("lr"))}
        kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for hook, name, had, writes in zip(hooks.param_hooks, self._names, recorded, self._writes, strict=True):
            if not hook.tensor.requires_grad or had & EMPTY:
                continue
            untouched = writes == _writes(hook)
            if id(hook.tensor) not in held:
                kinds["unheld"] += [name] * bool(had & GRADIENT and untouched)
            elif not had & GRADIENT:
                kinds["ungraded"] += [name] * untouched
            elif id(hook.tensor) not in learning:
                kinds["rate_zero"].append(name)
        return {kind: names for kind, names in kinds.items() if names}


def _writes(hook: ParamHook) -> int:
    # A tensor that was made under inference mode does not count.
    return -1 if hook.tensor.is_inference() else hook.tensor._version


def in_words(found: Mapping[str, list[str]]) -> str:
    """One warning for all that was found."""
    said = [f"{len(names)} (first {names[0]}) {KINDS[kind]}" for kind, names in found.items()]
    return f"after {STEPS} steps some parameters do not train: {'; '.join(said)}. {_ADVICE}"
