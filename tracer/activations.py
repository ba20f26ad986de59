"""The outputs of modules: extremes, moments, zeros and dead units in each step, seen by one global forward hook.

The hook is global, since a hook in a module would be pickled and copied with it. Compiled code calls no hook: one
warning says so, and its outputs are left out.
"""

import functools
import math
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.jit import ScriptModule
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from tracer.budget import Budget
from tracer.clock import NO_BACKWARD
from tracer.extremes import dense, local, partial
from tracer.hooks import running_backward
from tracer.items import ActivationRows, capturing, event, host_blocks
from tracer.outbox import Outbox
from tracer.parameters import LastingFilter, Select, name_filter, named_modules
from tracer.record import STEPS_TO_FAIL
from tracer.recorder import Recorder
from tracer.statistics import moments_of, nonzero_of, saturated_of
from tracer.units import Activity, bounds_of, unit_dimension, with_units_last
from tracer.warn import in_short, warn

_CAPTURED = "activations are recorded neither where a CUDA graph is captured, nor where it is replayed"
# torch warns that a compiled module calls a global hook twice; this hook does not mind.
_CALLED_TWICE = r"Using `torch\.compile\(module\)` when there are global hooks on modules"

Key = tuple[str, bool]


class _Seen(NamedTuple):
    """What a module gave out in a step.

    Attributes:
        numel: How many numbers it has.
        moments: Its moments, how many of these are not 0, and how many are saturated.
        nonzero: By how many units an output has: how many numbers of each are not 0.
    """

    numel: int
    moments: torch.Tensor
    nonzero: dict[int, torch.Tensor]


class Activations:
    """The forward hook on one model.

    Args:
        model: The model.
        select: Which of its modules: True for all, or as ``params`` in ``attach``.

    Raises:
        ValueError: no module is selected.
    """

    def __init__(self, model: nn.Module, select: Select | bool) -> None:
        # Weakly, as hooks on gradients do.
        self._model = weakref.ref(model)
        self._names: dict[int, str] = {}
        self._modules: dict[int, weakref.ref[nn.Module]] = {}
        self._wanted = LastingFilter(
            name_filter(None if isinstance(select, bool) else select, "activations"), "activations"
        )
        self._survey()
        self._wanted.inside_training = True
        if not self._names:
            raise ValueError(f"activations={select!r} selects none of the model's modules")
        # By step, since a training forward runs before its step begins.
        self._steps: dict[int, dict[Key, _Seen]] = {}
        self._activity: dict[Key, Activity] = {}
        # Likewise: the layers with a fast path that gave something out in evaluation.
        self._evaluated: dict[int, set[int]] = {}
        self._failed: set[str] = set()
        # In how many steps a module failed, and the last of them.
        self._fails: dict[str, tuple[int, int]] = {}
        self._handle: RemovableHandle | None = None
        self._compiled = any(
            "_orig_mod" in m._modules or m._compiled_call_impl is not None or isinstance(m, ScriptModule)
            for m in model.modules()
        )
        self._seen = False
        self._said: set[str] = set()

    def arm(self, recorder: Recorder, outbox: Outbox, budget: Budget | None) -> None:
        """Set the hook. The recorder knows to which step a forward belongs, and whether that step is measured."""
        self._recorder = recorder
        self._outbox = outbox
        warnings.filterwarnings("ignore", message=_CALLED_TWICE)
        if budget is not None:
            # Not the hook itself: the compiler would trace into it, and find a clock.
            self._record = budget.billed(self._record)  # type: ignore[method-assign]
        self._handle = register_module_forward_hook(self._on_output)

    def remove(self) -> None:
        """Remove the hook, if there is one."""
        # In one step: a signal's handler may close the trace here, too.
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()

    def finish(self) -> None:
        """Remove the hook, if there is one, and emit everything recorded so far."""
        if self._handle is None:
            return
        self.remove()
        self.flush()
        if self._recorder.measured and not self._seen:
            self._say("no module's forward was seen: code that torch.compile has made calls no hook")

    def flush(self) -> None:
        """Emit everything recorded so far, even of the next step."""
        try:
            self._emit_before(self._recorder.step + 2)
        except Exception as error:
            self._say(f"the last activations are lost ({in_short(error)})")

    def _survey(self) -> None:
        model = self._model()
        if model is None:
            return
        modules = named_modules(model)
        # The model without its wrappers, whose mode a loop may not set.
        self._root = weakref.ref(modules[""])
        names = {id(module): name for name, module in modules.items() if self._wanted(name)}
        if names != self._names:
            self._units_last = with_units_last(modules[""])
        self._names = names
        for name in self._names.values():
            module = modules[name]
            if id(module) not in self._modules:
                self._modules[id(module)] = weakref.ref(module, functools.partial(self._forget, id(module)))
        # Layers that in evaluation do all their work in one operation of torch, and what is wanted within them.
        self._layers = {
            id(module): within
            for name, module in modules.items()
            if isinstance(module, nn.TransformerEncoderLayer) and (within := self._within(name))
        }

    def _within(self, name: str) -> list[str]:
        prefix = f"{name}." if name else ""
        return [inner for inner in self._names.values() if inner.startswith(prefix) and inner != name]

    def _forget(self, key: int, _: object) -> None:
        """A module is gone; another one may get its id."""
        self._names.pop(key, None)
        self._modules.pop(key, None)

    def _on_output(self, module: nn.Module, args: object, output: object) -> None:
        name = self._names.get(id(module))
        if (name is None and id(module) not in self._layers) or name in self._failed:
            return
        if torch.compiler.is_compiling():
            self._compiled = True
            return
        # A checkpoint's forward, inside a backward, repeats one that was seen. A forward that is traced has no numbers.
        if running_backward() != NO_BACKWARD or torch._C._get_tracing_state() is not None:
            return
        step = -1
        try:
            self._seen = True
            # Not even what is over may be sent to the host: that, too, would be repeated with the graph.
            if capturing():
                self._say(_CAPTURED, about="captured")
                return
            # Parts of a training forward run without gradients: a frozen backbone, or a checkpointed module.
            root = self._root()
            training = root is None or root.training or torch.is_grad_enabled()
            step = self._recorder.next_step if training else self._recorder.step
            self._emit_before(self._recorder.step)
            if not self._recorder.measures(step):
                return
            if id(module) in self._layers and not module.training:
                self._steps.setdefault(step, {})
                self._evaluated.setdefault(step, set()).add(id(module))
            if name is not None and self._fails.get(name, (0, -1))[1] != step:
                with torch.no_grad():
                    self._record(step, name, module, output)
        except Exception as error:
            try:
                # A signal handler may have closed the trace meanwhile.
                if self._handle is not None and name is not None:
                    self._give_up(name, step, error)
            except Exception:
                # As in hooks on parameters.
                return

    def _give_up(self, name: str, step: int, error: Exception) -> None:
        """Go on without a module in this step, of which only a part is known, and for good after several."""
        for training in (True, False):
            self._steps.get(step, {}).pop((name, training), None)
        fails = self._fails.get(name, (0, -1))[0] + 1
        self._fails[name] = fails, step
        if fails == STEPS_TO_FAIL:
            self._failed.add(name)
        if fails > 1:
            return
        of = f"activations of {name or 'the model'}"
        message = (
            f"step {step} lacks {of}; after {STEPS_TO_FAIL} such steps {of} are no longer recorded ({in_short(error)})"
        )
        self._say(message)

    def _record(self, step: int, name: str, module: nn.Module, output: object) -> None:
        seen, key = self._steps.setdefault(step, {}), (name, module.training)
        bounds, units_last = bounds_of(module), id(module) in self._units_last
        for new in (_measured(leaf, bounds, units_last) for leaf in tree_leaves(output)):
            if new is not None:
                seen[key] = _together(seen[key], new) if key in seen else new

    def _emit_before(self, step: int) -> None:
        for done in [label for label in tuple(self._steps) if label < step]:
            seen = self._steps.pop(done, {})
            blocks = host_blocks(dict(self._row(key, each) for key, each in seen.items()))
            if blocks:
                self._outbox.put(ActivationRows(done, time.time_ns(), blocks))
            unseen = set(self._names.values()) - {name for name, _ in seen} - self._fails.keys()
            if self._compiled and unseen:
                some = ", ".join(sorted(unseen)[:3])
                self._say(
                    "code that torch.compile or TorchScript has made calls no hook: "
                    f"{len(unseen)} modules are not seen ({some})",
                    about="compiled",
                )
            if inside := self._in_fast_path(seen, self._evaluated.pop(done, ())):
                some = ", ".join(inside[:3])
                self._say(
                    f"in evaluation the fast path of TransformerEncoderLayer calls no hook: {len(inside)} modules are "
                    f"not seen there ({some}); torch.backends.mha.set_fastpath_enabled(False) turns it off",
                    about="fast path",
                )
            # Modules may have come or gone since.
            self._survey()

    def _row(self, key: Key, seen: _Seen) -> tuple[tuple[str, bool, int, int], torch.Tensor]:
        """A module's row on its way to the log: how many numbers and units it has, and what was measured of them."""
        units = sum(seen.nonzero)
        active = self._activity.setdefault(key, Activity()).active(seen.nonzero) if units else seen.moments[:1]
        return (*key, seen.numel, units), torch.cat([seen.moments, active.to(seen.moments)])

    def _in_fast_path(self, seen: Mapping[Key, object], layers: Iterable[int]) -> list[str]:
        """The modules whose work these layers, in evaluation, have done in one operation of torch."""
        within = [self._layers.get(layer, []) for layer in layers]
        return [name for names in within if not any((name, False) in seen for name in names) for name in names]

    def _say(self, message: str, about: str | None = None) -> None:
        """Log what is lost, of all that is about the same thing the first; the first of all is a warning as well."""
        if (about or message) in self._said:
            return
        if not self._said:
            warn(message)
        self._said.add(about or message)
        self._outbox.put(event(self._recorder.step, "failed", message))


def _measured(leaf: object, bounds: tuple[float, float] | None, units_last: bool) -> _Seen | None:
    """A part of an output in numbers; None if it has none, or stands for others, as in a transformation.

    Raises:
        ValueError: it is a ``DTensor`` that the ranks have yet to add up.
    """
    if isinstance(leaf, PackedSequence):
        leaf = leaf.data
    if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
        return None
    if isinstance(leaf, FakeTensor) or leaf.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(leaf):
        return None
    if partial(leaf):
        raise ValueError("each rank holds a summand of this DTensor, and no number of it")
    tensor = local(leaf)
    if not tensor.numel():
        return None
    unit = unit_dimension(tensor, units_last)
    if tensor.is_nested:
        tensor = torch.cat([part.flatten() for part in tensor.unbind()])
    tensor = dense(tensor)
    nonzero = nonzero_of(tensor, unit)
    further = nonzero.sum(dtype=torch.float64), saturated_of(tensor, bounds)
    by_units = {} if unit is None else {len(nonzero): nonzero}
    return _Seen(tensor.numel(), moments_of(tensor, further), by_units)


def _together(one: _Seen, other: _Seen) -> _Seen:
    """Two sets of numbers as one: moments (Chan, Golub & LeVeque 1983) in roots, which do not overflow; and counts."""
    total = one.numel + other.numel
    moments, others = one.moments, other.moments.to(one.moments.device)
    low, high = torch.minimum(moments[0], others[0]), torch.maximum(moments[1], others[1])
    delta = others[2] - moments[2]
    # With an infinity among the numbers, the mean follows from minimum and maximum.
    infinite = torch.maximum(low.abs(), high.abs()).isinf()
    mean = torch.where(infinite, low + high, moments[2] + delta * (other.numel / total))
    spread = torch.hypot(torch.hypot(moments[3], others[3]), delta * math.sqrt(one.numel * other.numel / total))
    spread = torch.where(infinite, math.nan, spread)
    nonzero = one.nonzero | {
        units: one.nonzero[units] + numbers.to(one.nonzero[units].device) if units in one.nonzero else numbers
        for units, numbers in other.nonzero.items()
    }
    return _Seen(total, torch.cat([torch.stack([low, high, mean, spread]), moments[4:] + others[4:]]), nonzero)
