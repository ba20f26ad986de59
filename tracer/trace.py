"""The life of one attachment: ``attach`` wires hooks, recorder, daemon and log; ``Trace`` is the user's handle."""

import atexit
import contextlib
import multiprocessing
import multiprocessing.util
import os
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from tracer.activations import Activations
from tracer.amp import LossScales
from tracer.begin import default_path, enter, rank_and_world
from tracer.budget import Budget
from tracer.config import Config
from tracer.daemon import Daemon, end_all
from tracer.encode import Encoder, on_host
from tracer.engines import remark
from tracer.hooks import Hooks
from tracer.items import capturing, event, lost, metric_value
from tracer.log import run as run_folder
from tracer.log import schema, store, system
from tracer.log.place import Place
from tracer.log.run import LogError, without_inner_calls
from tracer.log.schema import BEYOND
from tracer.log.text import say
from tracer.outbox import Outbox
from tracer.parameters import NamedParameter, Rename, Select, class_name, flattened, in_modules, named_parameters
from tracer.recorder import Recorder
from tracer.settings import Settings
from tracer.statistics import WITHOUT_FLOAT64, Stats
from tracer.warn import in_full, in_short, warn

_open: "set[Trace]" = set()
# Those that are open, too, and whose models are gone: they end when nobody has them any more.
_without_model: "set[weakref.ref[Trace]]" = set()


def _open_traces() -> "list[Trace]":
    return [*_open, *(trace for reference in tuple(_without_model) if (trace := reference()) is not None)]


@without_inner_calls
def attach(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    every: int = 1,
    budget: float | None = None,
    fold: int = 1,
    params: Select | None = None,
    rename: Rename | None = None,
    stats: Stats = "extremes",
    applied: bool = False,
    update: bool = False,
    update_every: int = 10,
    slices: Select | None = None,
    scaler: GradScaler | None = None,
    activations: bool | Select | None = False,
    histogram_every: int = 100,
    bins: int = 64,
    total_steps: int | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> "Trace":
    """Trace a model: from now on, each step's extremes go into a log, until the trace is closed.

    Use the trace as a context manager, or call its ``close``; the interpreter's exit closes it in any case. One line
    with the run's folder is printed: on standard error, and in a notebook below the cell. A model that is being traced
    may be attached again, without a path or into its own: that closes the older trace. Nothing is traced in a child
    process of multiprocessing that runs the script once more, as under spawn and forkserver.

    Args:
        model: The model, on any device. Move it before or after; wrap it in ``torch.compile`` before or after.
        path: The run's folder, or a URI such as ``s3://bucket/runs/a``. Without it, ``runs/<time>-<model class>``.
        every: Measure one of so many steps: those whose number it divides. Metrics are recorded at every step.
        budget: The share of the training's time that tracing may take, 0.01 for 1 %. The tracer watches its own cost,
            and measures every 1, 2, 4, 8, … times ``every`` steps as the budget allows. The metric ``tracer_cost`` is
            its share, and each change is an event. Time on a GPU, and of the thread that writes, is not counted.
        fold: Make one row of so many steps. Each step is measured, and the row holds the smallest minimum, the largest
            maximum, the mean of means, the smallest of ``smallest``, and the largest of every other statistic. ``span``
            is the number of steps that the row covers. Metrics are recorded at every step.
        params: Which parameters: a regular expression that is searched for in their names, or a callable on the name.
        rename: A callable that gets the name of each parameter and returns another one, for models whose names are no
            names. The log, ``params`` and ``viewer`` know the new names. No two may be the same.
        stats: Statistics beside the extremes: one or several of ``"mean"``, ``"std"`` (of the population), ``"norm"``
            (L2), ``"absmax"``, ``"zeros"`` (the fraction that is exactly zero), ``"nonfinite"`` (the number of elements
            that are NaN or infinite), ``"smallest"`` (the smallest magnitude that is not 0; 0 if there is none that is
            finite) and ``"histogram"``. Each but the last is a column of values and of gradients.
        applied: Whether to record the gradients that optimizers apply, too: after unscaling, clipping, and reduction
            over ranks, in columns ``applied_min``, ``applied_max`` and so on.
        update: Whether to record by how much updates change parameters, after minus before, in columns ``update_min``,
            ``update_max`` and so on; and in ``update_ratio`` the standard deviation of that change over the value's. It
            copies each parameter once, in the steps that ``update_every`` measures.
        update_every: Record updates, if ``update`` asks for them, in one of so many steps.
        slices: Of which of these parameters to record each slice of the first dimension, too, as of stacked experts: a
            selection as in ``params``. The slice ``w[3]`` of ``w`` has rows of its own under that name, with extremes
            and ``absmax`` of all that is recorded of ``w``. Left out, with a warning, are parameters with more than
            1,024 slices, and those of which each rank holds a part.
        scaler: The loop's ``GradScaler``. Gradients are recorded divided by its scale, and the metrics ``amp_scale``
            and ``skipped`` are written for each step. A scaler whose ``step`` calls the optimizer is found without
            this: give it to a loop that divides gradients by its scale without that.
        activations: Whether to record the outputs of modules: True for all, or a selection as in ``params``. The name
            of the model itself is "".
        histogram_every: Record histograms, if ``stats`` asks for them, in one of so many steps.
        bins: The number of bins of a histogram.
        total_steps: The number of steps that the run will have, for the viewer to estimate the remaining time.
        config: The training's hyper-parameters, such as ``{"lr": 0.1}``, for tables of runs to show. They stand in
            run.json; what JSON has not stands there by its repr.
        resume: Go on with the run in ``path``, after its last step, or begin it if there is none yet. To go on from a
            checkpoint, give its state to ``Trace.load_state_dict``.
        overwrite: Replace the run in ``path``, if there is one that no process writes. Files that are none of the run's
            stay. Several ranks all give it: rank 0 replaces the run, and the others wait for that, at most a minute.

    Raises:
        ValueError: the model has no trainable parameter, ``params``, ``slices`` or ``activations`` selects none, there
            is no such statistic, a number is not a positive integer, ``budget`` is not between 0 and 1, ``fold`` is
            given with ``every`` or ``budget``, ``rename`` gives two parameters one name, ``resume`` or ``overwrite``
            has no ``path``, or both are given, ``config`` is larger than 1 MiB, or a device has no float64, as Apple's
            have not, and more than extremes is asked for.
        TypeError: an argument has the wrong type, or ``rename`` returns something else than a text.
        RuntimeError: the model, or a part of it, is being traced into another path, or another model into this one.
        tracer.LogError: ``path`` holds a run already, which with ``overwrite`` another process writes; or it is a file,
            or cannot be written.
    """
    settings = Settings(
        every=every,
        budget=budget,
        fold=fold,
        stats=stats,
        applied=applied,
        update=update,
        update_every=update_every,
        histogram_every=histogram_every,
        bins=bins,
        total_steps=total_steps,
        scaler=isinstance(scaler, GradScaler) and scaler.is_enabled(),
    )
    hyperparameters = Config.of(config)
    if resume and path is None:
        raise ValueError("resume=True needs the path of the run to go on with")
    if overwrite and path is None:
        raise ValueError("overwrite=True needs the path of the run to replace")
    if resume and overwrite:
        raise ValueError("resume=True goes on with the run in the path, and overwrite=True replaces it: give one")
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach needs a torch.nn.Module, and got {type(model).__name__}")
    if rename is not None and not callable(rename):
        raise TypeError(f"rename={rename!r} must be a callable on the name")
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise TypeError(f"scaler={scaler!r} must be a torch.amp.GradScaler")
    try:
        place = None if path is None else store.at(path).resolve()
    except OSError as error:
        raise LogError(f"{path} cannot be used: {in_short(error)}; give an absolute path") from None
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker of a DataLoader that was not forked, say, is importing the script. multiprocessing itself uses this
        # mark for that.
        warn("a child process runs the script that started it once more: nothing is traced there")
        return Trace(place or store.at("runs"), settings, None)
    hooks = Hooks(model, params, rename, slices)
    older = _older_trace(model, place, resume, overwrite)
    if (reason := flattened(model)) is not None:
        warn(reason)
    if unsliced := {each.name: each.unsliced for each in hooks.chosen if each.sliced and each.unsliced}:
        name, why = next(iter(unsliced.items()))
        others = f", nor are those of {len(unsliced) - 1} other parameters" if len(unsliced) > 1 else ""
        warn(f"the slices of {name} are not recorded ({why}){others}")
    outputs = None if activations is False or activations is None else Activations(model, activations)
    if settings.measures.with_float64 or outputs is not None:
        _see_that_there_is_float64(hooks)
    try:
        if older is not None:
            older._finish("")
            if rank_and_world()[0] == 0:
                say(f"gradwatch closed the trace into {older.path}: its model is attached again")
        return _begin(model, hooks, place, settings, scaler, outputs, resume, overwrite, hyperparameters)
    except OSError as error:
        raise LogError(f"{place or 'runs'} cannot be used: {in_short(error)}; check the disk") from None


def _see_that_there_is_float64(hooks: Hooks) -> None:
    """Raise if a traced parameter's device has no float64, in which all but extremes are measured."""
    devices = {parameter.tensor.device.type for parameter in hooks.chosen} & WITHOUT_FLOAT64
    if devices:
        raise ValueError(
            f"the model is on {devices.pop()!r}, which has no float64: there only extremes and absmax can be recorded, "
            "without histograms, other statistics and activations"
        )


def _older_trace(model: nn.Module, place: Place | None, resume: bool, overwrite: bool) -> "Trace | None":
    """The open trace that another one of this model takes the place of, if there is one.

    Raises:
        LogError: the place holds a run, and nobody has said what is to become of it.
        RuntimeError: a parameter of the model is traced into another place, or another model into this one.
    """
    parameters = named_parameters(model)
    for other in _open_traces():
        if place in (None, other.path) and other.is_of({id(parameter.tensor) for parameter in parameters}):
            if place is not None and not (resume or overwrite) and run_folder.holds_run(place):
                raise LogError(run_folder.HOLDS_A_RUN.format(path=place))
            return other
        if overwrite and other.path == place and weakref.ref(other) in _without_model:
            return other
        shared = [parameter.name for parameter in parameters if other.traces({id(parameter.tensor)})]
        if len(shared) == len(parameters):
            raise RuntimeError(
                f"{class_name(model)} is already traced, into {other.path}: close that trace first, "
                "or all with tracer.close()"
            )
        if shared:
            raise RuntimeError(
                f"{class_name(model)} shares {_in_one_name(shared, parameters)} with a model that is already "
                f"traced, into {other.path}: close that trace first, or trace a module that holds both models"
            )
        if place is not None and other.path == place:
            raise RuntimeError(
                f"another model is being traced into {other.path}: give another path, or close that trace first, "
                "or all with tracer.close()"
            )
    return None


def _in_one_name(names: list[str], parameters: list[NamedParameter]) -> str:
    """The module that holds these parameters of a model and no other; else the first of them."""
    modules = in_modules(tuple(names), tuple(parameter.name for parameter in parameters))
    if len(modules) == 1:
        return modules[0]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more parameters" if len(names) > 3 else "")


def _begin(
    model: nn.Module,
    hooks: Hooks,
    place: Place | None,
    settings: Settings,
    scaler: GradScaler | None,
    activations: Activations | None,
    resume: bool,
    overwrite: bool,
    config: Config,
) -> "Trace":
    """Begin or resume a run, wire its parts, and set the hooks."""
    rank, world = rank_and_world()
    if world > 1 and place is None:
        raise ValueError(f"{world} ranks write into one run, so attach needs its path: attach(model, path)")
    path = place or default_path(model)
    resumed, first_step, attempt = enter(path, rank, resume, overwrite, model, hooks, settings, config)
    given = [name for name in run_folder.OWN_METRICS if settings.described()[name]]
    own = run_folder.own_metrics_of(given) | (run_folder.open_run(path).own_metrics if resumed else frozenset())
    scales = LossScales(scaler if settings.scaler else None, hooks.names)
    budget = None if settings.budget is None else Budget(settings.budget, settings.every)
    recorder = Recorder(hooks, settings, first_step, scales, budget)
    optional = {"histograms": settings.measures.histogram, "activations": activations is not None}
    encoder = Encoder(rank, settings.fold)
    encoders = encoder.by_table(table for table in schema.TABLES if optional.get(table, True))
    run_folder.prepare_folders(path, encoders)
    daemon = Daemon(path, rank, encoders, on_host, encoder.complete_prefix, lost)
    outbox = Outbox(daemon, attempt, first_step, own)
    trace = Trace(path, settings, _Parts(hooks, recorder, activations, outbox, daemon))
    hooks.on_gone = trace._outlive_model
    every = f"every {settings.every if budget is None else budget.stride}"
    detail = ", ".join([f"{len(hooks.chosen)} parameters", every, *given])
    outbox.put(event(first_step, "resumed" if resumed else "attached", detail))
    try:
        recorder.arm(outbox)
        if activations is not None:
            activations.arm(recorder, outbox, budget)
    except BaseException as error:
        trace._finish(in_short(error))
        raise
    _close_at_exit(trace)
    if rank == 0:
        does = f"goes on at step {first_step}" if resumed else f"traces {len(hooks.chosen)} parameters"
        count = sum(each.slices for each in hooks.parameters)
        does += f", and {count:,} slices" if count else ""
        does += "".join(f" ({said})" for said in sorted({remark(each.tensor) or "" for each in hooks.chosen} - {""}))
        say(f"gradwatch {does}: {path} - watch it with: viewer {system.quoted(str(path))}")
    return trace


def _close_at_exit(trace: "Trace") -> None:
    _open.add(trace)
    # Registered anew, since a child of multiprocessing forgets inherited handlers.
    atexit.unregister(_close_all)
    atexit.register(_close_all)
    if multiprocessing.parent_process() is not None:
        # Before Python 3.13 a forked child of multiprocessing ends without the interpreter's exit handlers.
        multiprocessing.util.Finalize(None, _close_all, exitpriority=0)


@dataclass(frozen=True)
class _Parts:
    """The parts of a trace until it is closed."""

    hooks: Hooks
    recorder: Recorder
    activations: Activations | None
    outbox: Outbox
    daemon: Daemon


class Trace:
    """A model being traced. ``attach`` makes it.

    Attributes:
        path: The run's folder, or its URI.
    """

    def __init__(self, path: Place, settings: Settings, parts: _Parts | None) -> None:
        self.path = path
        self._settings = settings
        # None if the trace does nothing, and once it has ended: whoever keeps the trace does not keep the model.
        self._parts = parts
        self._inert = self._closed = parts is None
        self._next_step = 0
        self._said_captured = False

    def __reduce__(self) -> tuple[object, ...]:
        """Copy, or pickle with a model that holds it, as a trace that does nothing; its path has no password."""
        return Trace, (store.at(str(self.path)), self._settings, None), {"_next_step": self.state_dict()["step"]}

    @property
    def _live(self) -> _Parts | None:
        parts = self._parts
        return None if self._closed else parts

    def log(self, /, *, step: Any = None, **metrics: object) -> None:
        """Record metrics of the iteration in which this is called.

        They belong to the step whose gradients came last and were not thrown away. A loss that is logged before its
        backward, with its graph, belongs to the step of that backward, and so does what is logged with it.

        Args:
            step: Their step, for those who know better.
            metrics: Numbers or one-element tensors, by name. A tensor on a GPU costs no host sync, and is left out
                while a CUDA graph is captured, which has not calculated it yet. Of a ``DTensor`` that the ranks have
                yet to add up, nothing is recorded. One that is called as a metric of the tracer's
                own, such as ``skipped`` with ``scaler=``, gets the name ``skipped_logged``.

        Raises:
            TypeError: a metric is neither; then no metric of this call is recorded.
            ValueError: ``step`` is not an integer from 0 on.
        """
        now = time.time_ns()
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < BEYOND["step"]):
            raise ValueError(f"step={step!r} must be the number of a step, an integer from 0 on")
        metrics = self._with_numbers(metrics)
        values = {name: metric_value(name, metric) for name, metric in metrics.items()}
        live = self._live
        if live is None:
            return
        live.recorder.rates.note_logged(values)
        if step is None:
            live.recorder.log(now, values, metrics)
        else:
            live.outbox.log(step, now, values)

    def step(self, /, **metrics: object) -> None:
        """End the step, in a loop without a torch optimizer; from the first call on, only these calls end steps.

        Args:
            metrics: As for ``log``; they belong to the step that ends.

        Raises:
            TypeError: a metric is neither a number nor a one-element tensor; then the step does not end.
        """
        values = {name: metric_value(name, metric) for name, metric in self._with_numbers(metrics).items()}
        live = self._live
        if live is not None:
            live.recorder.end_step()
            live.recorder.rates.note_logged(values)
            live.outbox.log(live.recorder.step, time.time_ns(), values)

    def _with_numbers(self, metrics: dict[str, object]) -> dict[str, object]:
        """These metrics, but for tensors on a GPU while this thread captures a CUDA graph: no number is in them yet."""
        if not capturing():
            return metrics
        left_out = [name for name, metric in metrics.items() if isinstance(metric, torch.Tensor) and metric.is_cuda]
        if left_out and not self._said_captured:
            self._said_captured = True
            warn(f"{left_out[0]} is not logged while a CUDA graph is captured: log it after each replay of the graph")
        return {name: metric for name, metric in metrics.items() if name not in left_out}

    def snapshot(self) -> None:
        """Record histograms of the parameters and their gradients as they are now: once an epoch, say.

        Raises:
            ValueError: ``attach`` was not asked for histograms.
        """
        if not self._settings.measures.histogram:
            raise ValueError('snapshot() records histograms, so attach(model, stats="histogram") must ask for them')
        live = self._live
        if live is not None:
            live.recorder.snapshot()

    def state_dict(self) -> dict[str, int]:
        """The number of steps that have ended, for the training's checkpoint.

        A loop that ends its steps with ``step`` saves its checkpoint after that call.
        """
        live = self._live
        return {"step": self._next_step if live is None else live.recorder.next_step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where the training was when ``state_dict`` returned this state: its checkpoint has been restored.

        Earlier rows of this step and later ones stay in the log, under the number of an earlier attempt. Readers leave
        them out unless they ask for all attempts.

        Args:
            state: The state that ``state_dict`` returned.

        Raises:
            ValueError: it is something else.
            RuntimeError: the trace is closed.
        """
        # First, since a signal handler may close the trace meanwhile.
        closed = self._closed
        step = state.get("step") if isinstance(state, Mapping) else None
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < schema.BEYOND["step"]:
            # If it is a whole checkpoint, its tensors must not be printed.
            got = f"a dict of {list(state)[:5]}" if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f'load_state_dict needs what state_dict() gave, such as {{"step": 1000}}, and got {got}')
        if self._inert:
            self._next_step = step
            return
        if closed:
            raise RuntimeError(
                f"the trace into {self.path} is closed: attach again, with resume=True, to go on with it"
            )
        live = self._live
        if live is None:
            return
        left = live.recorder.next_step
        if live.activations is not None:
            live.activations.flush()
        live.recorder.restore(step)
        if not live.outbox.begins(step):
            live.outbox.restore(step, left)
            live.outbox.put(event(step, "restored", f"step {left} -> step {step}"))

    def close(self) -> None:
        """End the trace: record the last step, remove every hook, write everything. Harmless if it has ended."""
        self._finish("")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finish(_reason(error))

    def traces(self, tensors: set[int]) -> bool:
        """Whether a tensor with one of these ids is traced here."""
        return self._parts is not None and self._parts.hooks.traces(tensors)

    def is_of(self, tensors: set[int]) -> bool:
        """Whether the traced model is alive, and its parameters are the tensors with these ids."""
        return self._parts is not None and self._parts.hooks.are_of(tensors)

    def _finish(self, reason: str) -> None:
        """End the trace and wait until all is written, also where it is being closed already."""
        parts = self._parts
        self._end(reason)
        if parts is not None:
            parts.daemon.wait()
        self._parts = None

    def _outlive_model(self) -> None:
        """Let go of a model that is gone; what is still logged is recorded, until nobody has the trace."""
        parts = self._parts
        if parts is None:
            return
        parts.hooks.on_gone = lambda: None
        parts.recorder.finish()
        if parts.activations is not None:
            parts.activations.finish()
        parts.hooks.remove()
        _without_model.add(weakref.ref(self, _without_model.discard))
        _open.discard(self)

    def __del__(self) -> None:
        """End a trace that nobody has closed or can close."""
        if not self._closed:
            self._end("")

    def _end(self, reason: str) -> None:
        """Record the last step, remove the hooks, and tell the daemon to end, even if Ctrl-C comes meanwhile."""
        parts = self._parts
        if parts is None:
            return
        try:
            if not self._closed:
                self._next_step = parts.recorder.next_step
                self._closed = True
            # Again, if another thread is closing the trace: its last rows come before the end.
            parts.recorder.finish()
            if parts.activations is not None:
                parts.activations.finish()
        finally:
            parts.hooks.remove()
            parts.outbox.end(parts.recorder.step, reason)
            _open.discard(self)
            _without_model.discard(weakref.ref(self))

    def _abandon(self) -> None:
        """Let go of the parent's trace in a forked child."""
        parts = self._parts
        if parts is None:
            return
        if not self._closed:
            self._next_step = parts.recorder.next_step
            self._closed = True
        parts.hooks.remove()
        if parts.activations is not None:
            parts.activations.remove()
        parts.daemon.abandon()
        self._parts = None


def _reason(error: BaseException | None) -> str:
    return "" if error is None else in_full(error)


def close() -> None:
    """Close every trace that is open in this process, as ``Trace.close`` does. Harmless where there is none."""
    traces = _open_traces()
    # First tell all of them to end: each may need seconds to write its last rows.
    for trace in traces:
        trace._end("")
    for trace in traces:
        trace._finish("")


def _close_all() -> None:
    """At the interpreter's exit: end every trace, and wait for all of them at once."""
    # The interpreter keeps an uncaught exception; a prompt also keeps those that ended nothing.
    error: BaseException | None = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    for trace in _open_traces():
        trace._end(_reason(error))
    end_all()
    if type(error) is KeyboardInterrupt:
        _end_by_ctrl_c()


def _end_by_ctrl_c() -> None:
    """Let Python remember an uncaught KeyboardInterrupt, of which its process then ends as of the signal.

    It forgets that wherever a text is executed, as modules do that are imported to write the last rows. The exit code
    would be 1, and a shell's loop would go on with its next training.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")  # noqa: S102


def _abandon_all() -> None:
    for trace in _open_traces():
        trace._abandon()
    _open.clear()
    _without_model.clear()


system.in_forked_children(_abandon_all)
