"""The scales of ``GradScaler``s, and the updates that they skip.

Scalers are read and never changed: torch offers no hook for them, and wrapped methods would break their pickling.
"""

import gc
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim.optimizer import Optimizer

from tracer.items import Number, Scale, number

_STEP = GradScaler.step.__code__
_State = dict[str, Any]
# The scalers that have been found, and how many references to their classes there were beside theirs.
_known: list[weakref.ref[GradScaler]] = []
_other_references = 0


class _Followed:
    """A scaler, as it was when the gradients of the step, or some of them, began to arrive.

    Args:
        scaler: The scaler, which may drive optimizers of other models as well.
        sure: Whether it drives an optimizer of ours.
        given: Whether the user has said so.
        updating: Whether it drives an update at this moment.

    Attributes:
        used: Whether it has scaled anything yet.
        scale: The factor of the gradients: 1.0 before it has scaled anything.
        skip_seen: Whether it skipped an update in the step, before that of another model made it forget this.
    """

    def __init__(self, scaler: GradScaler, *, sure: bool = False, given: bool = False, updating: bool = False) -> None:
        # One that was given is kept; the others live as long as their users have them.
        self._scaler: Callable[[], GradScaler | None] = (lambda: scaler) if given else weakref.ref(scaler)
        self.sure = sure
        self.given = given
        self.begin(skip_seen=False)
        if updating:
            # It is not updated itself yet, so all its entries are of this step.
            self._earlier.clear()

    def begin(self, skip_seen: bool) -> None:
        """Note how it is now."""
        self.skip_seen = skip_seen
        scaler = self._scaler()
        if scaler is None:
            return
        # One entry an optimizer. ``GradScaler.update`` replaces the whole dictionary; the old one, kept here, still
        # holds the entries of the step. Those of earlier steps are in it already.
        self._states: dict[int, _State] = scaler._per_optimizer_states
        self._earlier = set(self._states)
        scale = scaler._scale
        self.used = scale is not None
        # Read now, since ``GradScaler.update`` changes it in place.
        self.scale: Number = 1.0 if scale is None else number(scale)

    def follows(self, scaler: GradScaler) -> bool:
        """Whether this is the scaler."""
        return self._scaler() is scaler

    @property
    def gone(self) -> bool:
        """Whether nobody has it any more."""
        return self._scaler() is None

    @property
    def updated(self) -> bool:
        """Whether it has been updated since, or has scaled for the first time."""
        scaler = self._scaler()
        if scaler is None:
            return False
        return scaler._per_optimizer_states is not self._states or self.used is not (scaler._scale is not None)

    @property
    def entries(self) -> dict[int, _State]:
        """What it knows of the optimizers whose gradients it has looked at since then, by their ids."""
        return {
            key: state
            for key, state in self._states.items()
            if key not in self._earlier and (state["found_inf_per_device"] or state["stage"] is not OptState.READY)
        }


class LossScales:
    """The scales of the scalers that drive optimizers of ours, followed from step to step.

    A scaler need not be given. All that there are when a step begins are followed to its end: by then it is known which
    of them have looked at our gradients. One that drives an update, and was not known, is followed from there on.
    It is true if it follows any.

    Args:
        scaler: The loop's scaler, if the user has given it.
        names: The names of the traced parameters that an optimizer holds.

    Attributes:
        by_hand: Whether the loop ends its steps itself, so that no update tells of a scaler that was not given.
    """

    def __init__(self, scaler: GradScaler | None, names: Callable[[Optimizer], list[str]]) -> None:
        self._names = names
        self.by_hand = False
        # Those that scaled something else before: perhaps a training that is over.
        self._earlier = weakref.WeakSet(each for each in _scalers() if getattr(each, "_scale", None) is not None)
        self._followed = [] if scaler is None else [_Followed(scaler, sure=True, given=True)]
        # Those that have been followed for a step at least.
        self._tried: weakref.WeakSet[GradScaler] = weakref.WeakSet()
        # A scaler knows only the ids of optimizers.
        self._optimizers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        # The ids of what could not be found: to look at all objects once more would take as long.
        self._missing: set[int] = set()
        # In this step: by such an id, the names of the traced parameters that it holds, None of one that is gone; the
        # optimizers that have updated; and whether those that unscale gradients themselves found an infinity.
        self._held: dict[int, list[str] | None] = {}
        self._updated: set[int] = set()
        self._found_inf: list[torch.Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._followed)

    @property
    def updated(self) -> bool:
        """Whether a scaler has been updated since the step began, or since ``begin`` was called in it."""
        return any(each.updated for each in self._followed)

    def begin(self, new_step: bool) -> None:
        """Note the scales of the gradients that begin to arrive: in a new step, or after another model updated one."""
        if new_step:
            for each in self._followed:
                each.sure = each.sure or self._drove(each)
            self._followed = [each for each in self._followed if each.given or (each.sure and not each.gone)]
            self._find()
            self._held.clear()
            self._updated.clear()
            self._found_inf.clear()
        for each in self._followed:
            if new_step or each.updated:
                each.begin(skip_seen=not new_step and self._skips(each))

    def before_update(self, optimizer: Optimizer) -> None:
        """Remember an optimizer, and, if it is ours and unscales gradients itself, whether it has found an infinity."""
        self._optimizers[id(optimizer)] = optimizer
        self._missing.discard(id(optimizer))
        # It may be gone when the step ends.
        names = self._held[id(optimizer)] = self._names(optimizer)
        left_to_it = deferred(optimizer)
        if left_to_it is not None and names:
            self._found_inf.append(left_to_it[1])

    def adopt(self, optimizer: Optimizer) -> bool:
        """Follow the scaler that drives the running update of an optimizer of ours; return whether it is a new one."""
        if any(id(optimizer) in each.entries for each in self._followed):
            return False
        scaler = _driver()
        if scaler is None or self._follows(scaler):
            return False
        self._followed.append(_Followed(scaler, sure=True, updating=True))
        self.before_update(optimizer)
        return True

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer of ours has updated."""
        self._updated.add(id(optimizer))

    @property
    def scale(self) -> Scale:
        """The factor of the step's gradients; of each parameter, where different scalers, or none, drove optimizers."""
        drivers, undriven = self._drivers(), self._undriven()
        if not drivers:
            # A scaler that scaled something, perhaps these gradients, while no update tells.
            others = (each for each in self._followed if each.used and not any(map(each.follows, self._earlier)))
            return {} if not (self._updated or self.by_hand) and any(others) else 1.0
        if len(drivers) == 1 and not undriven:
            return drivers[0].scale
        driven = [(key, each.scale) for each in drivers for key in self._looked(each)]
        parts = driven + [(key, 1.0) for key in undriven]
        return {name: scale for key, scale in parts for name in self._names_of(key) or ()}

    @property
    def skipped(self) -> bool:
        """Whether a scaler has skipped an update of ours in this step."""
        return any(map(self._skips, self._followed))

    @property
    def unscaled(self) -> bool:
        """Whether our gradients have been divided by the scale in this step."""
        return any(map(self._looked, self._followed))

    def metrics(self) -> dict[str, Number]:
        """The metrics of the step that ends: the scale, and, if there was an update, whether it was skipped."""
        drivers = self._drivers()
        if not drivers:
            return {}
        scale = drivers[0].scale
        if self.skipped:
            return {"amp_scale": scale, "skipped": 1.0}
        if not self._updated:
            return {"amp_scale": scale}
        infinities = [inf.reshape(()).to(self._found_inf[0].device) for inf in self._found_inf]
        skipped = number(torch.stack(infinities).amax() > 0) if infinities else 0.0
        return {"amp_scale": scale, "skipped": skipped}

    def _find(self) -> None:
        """Follow, for this step at least, the scalers of this process that have not been followed yet."""
        for scaler in _scalers():
            if scaler not in self._tried:
                self._tried.add(scaler)
                # One that is disabled lacks this.
                if hasattr(scaler, "_per_optimizer_states") and not self._follows(scaler):
                    self._followed.append(_Followed(scaler))

    def _follows(self, scaler: GradScaler) -> bool:
        return any(each.follows(scaler) for each in self._followed)

    def _drivers(self) -> list[_Followed]:
        """The scalers of the step's gradients: those that looked at ours in it, else those that do so as a rule."""
        drove = [each for each in self._followed if self._drove(each)]
        return drove or [each for each in self._followed if each.given or (each.sure and not self._updated)]

    def _undriven(self) -> set[int]:
        """The optimizers that have updated without a scaler; who gives one may unscale gradients on his own."""
        if any(each.given for each in self._followed):
            return set()
        return self._updated.difference(*(each.entries for each in self._followed))

    def _drove(self, each: _Followed) -> bool:
        return each.skip_seen or bool(self._looked(each))

    def _skips(self, each: _Followed) -> bool:
        # Skipped are optimizers that were to update and have not: the scaler's own count mixes all optimizers.
        looked = self._looked(each).items()
        done = {key for key, state in looked if each.updated or state["stage"] is OptState.STEPPED}
        # One that is none of torch's never tells that it has updated.
        told = {key for key in done if isinstance(self._optimizers.get(key), Optimizer | None)}
        return each.skip_seen or not told <= self._updated

    def _looked(self, each: _Followed) -> dict[int, _State]:
        """A scaler's entries, by id, of our optimizers whose gradients it has looked at in this step."""
        return {key: state for key, state in each.entries.items() if self._is_ours(key, each.sure)}

    def _is_ours(self, key: int, default: bool) -> bool:
        names = self._names_of(key)
        # One that is gone by now, at the end of a training, is taken for ours where its scaler drives ours.
        return default if names is None else bool(names)

    def _names_of(self, key: int) -> list[str] | None:
        if key not in self._held:
            optimizer = self._optimizers.get(key)
            if optimizer is None:
                optimizer = self._search(key)
            self._held[key] = None if optimizer is None else self._names(optimizer)
        return self._held[key]

    def _search(self, key: int) -> Any:
        """The optimizer with this id: one that has always been skipped, or is none of torch's, calls no hook."""
        if key in self._missing:
            return None
        for candidate in gc.get_objects():
            if id(candidate) == key and hasattr(candidate, "param_groups"):
                self._optimizers[key] = candidate
                return candidate
        self._missing.add(key)
        return None


def deferred(optimizer: Optimizer) -> tuple[torch.Tensor | None, torch.Tensor] | None:
    """The work that a scaler leaves to an optimizer that unscales itself: the divisor, if any, and whether to skip."""
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else (getattr(optimizer, "grad_scale", None), found_inf)


def _scalers() -> list[GradScaler]:
    """The scalers of this process, but for what ``gc.freeze`` hides.

    Each object refers to its class. So only where there are more references than before, there may be one that is not
    known, and all objects are looked at: that takes tens of milliseconds.
    """
    global _other_references
    known = [scaler for reference in _known if (scaler := reference()) is not None]
    kinds = [GradScaler]
    for kind in kinds:
        # What is added is looked at as well.
        kinds += kind.__subclasses__()
    others = sum(map(sys.getrefcount, kinds)) - len(known)
    if others > _other_references:
        found = [each for each in gc.get_objects() if type(each) in kinds and not any(each is one for one in known)]
        known += found
        others -= len(found)
        _known[:] = map(weakref.ref, known)
    _other_references = others
    return known


def _driver() -> GradScaler | None:
    """The scaler that has called the running update, if there is one that scales: an optimizer knows no caller."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _STEP:
            scaler: GradScaler = frame.f_locals["self"]
            return scaler if scaler.is_enabled() else None
        frame = frame.f_back
    return None
