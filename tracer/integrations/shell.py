"""What the frameworks' shells share: a trace that somebody else's loop begins, feeds and ends."""

import contextlib
import inspect
import itertools
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tracer.begin import rank_and_world
from tracer.items import Metric, metric_value
from tracer.log import run as run_folder
from tracer.log import store
from tracer.log.place import Place
from tracer.log.remote import is_uri
from tracer.trace import Trace, attach
from tracer.warn import warn

# These are places on the x axis, and no curves.
_AXES = {"epoch", "step", "global_step"}
# Those whose traces are open. After a training they stay so for what is logged then, such as an evaluation.
_open: "weakref.WeakSet[Shell]" = weakref.WeakSet()


@contextlib.contextmanager
def needs(module: str, install: str) -> Iterator[None]:
    """Say in one sentence that the framework is missing, where the block imports it.

    Args:
        module: The module that the block imports.
        install: What to give to ``pip install``.

    Raises:
        ImportError: there is no such module.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module:
            raise
        raise ImportError(f"this integration needs {module}: pip install {install}") from error


class Shell:
    """The base of every framework's ``Gradwatch``.

    A training that begins anew, with a path that holds a run, gets a numbered sibling: ``runs/a-2``. One that goes on
    from a checkpoint goes on in the run that the checkpoint names. Every rank is traced, and rank 0 logs metrics. After
    a training the trace stays open, so that an evaluation is recorded, until ``close`` is called, another training
    begins, or the process ends. A copy of a shell, or one that was pickled, traces nothing until a training begins.

    Attributes:
        path: The path that was given.
        options: The arguments of ``attach`` that were given.
        trace: The trace under way, or the last one. ``trace.path`` is its run's folder. None before the first training.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Take what ``tracer.attach`` takes after the model.

        Raises:
            TypeError: ``attach`` has no such argument.
        """
        inspect.signature(attach).bind(None, path, **options)
        super().__init__()
        self.path = path
        self.options = options
        # As it is now: the training may go to another folder, and begin or go on from there.
        self._path = None if path is None else os.fspath(store.at(path))
        self.trace: Trace | None = None
        self._number = 1
        self._restored: int | None = None
        self._left_out: set[str] = set()
        self._ended = False

    def _begin(self, model: nn.Module, *, step: int | None = None, **known: Any) -> None:
        """Begin a trace, or go on where the framework's checkpoint was saved. Every rank calls this.

        Args:
            model: The model.
            step: The framework's count of updates; None where it has none, so that only ``_restore`` tells it.
            known: What the framework knows of the arguments of ``attach``; those that the user gave win.
        """
        parameters = {id(parameter) for parameter in model.parameters()}
        for other in tuple(_open):
            # Not every framework says that a training has failed.
            if other is self or other._ended or (other.trace is not None and other.trace.traces(parameters)):
                other.close(RuntimeError("another training began before this one had ended"))
        if step != 0 and self._restored is not None:
            # Some frameworks count each optimizer's updates; we count as the trace did when it was saved.
            step = self._restored
        self._restored = None
        goes_on = bool(step) or self.options.get("resume", False)
        options = {**known, **self.options, "resume": goes_on and self.path is not None}
        options["overwrite"] = options.get("overwrite", False) and not goes_on
        self.trace = attach(model, self._place(goes_on), **options)
        self._ended = False
        _open.add(self)
        if step and self.trace.state_dict()["step"] != step:
            self.trace.load_state_dict({"step": step})

    def _place(self, goes_on: bool) -> Place | None:
        """Where the run goes on, or the first of the path and its siblings that holds no run: the same on all ranks.

        What is to be overwritten are the runs of earlier processes: each training of this one has a number of its own.
        """
        if self._path is None:
            return None
        rank, world = rank_and_world()
        met = world > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()
        # Ranks that cannot agree take the path as it is.
        if not goes_on and rank == 0 and (met or world == 1):
            if self.options.get("overwrite"):
                self._number += self.trace is not None
            else:
                self._number = next(each for each in itertools.count(1) if not _holds_run(_sibling(self._path, each)))
        if met:
            numbers = [self._number]
            torch.distributed.broadcast_object_list(numbers, src=0)
            self._number = numbers[0]
        return _sibling(self._path, self._number)

    def _log(self, metrics: Mapping[str, object]) -> None:
        """Record those of a framework's metrics that are numbers. The others are left out, and said once."""
        if self.trace is not None:
            self.trace.log(**self._numbers(metrics))

    def _step(self, metrics: Mapping[str, object]) -> None:
        """As ``_log``, and end the step: for a framework whose optimizers are none of torch's."""
        if self.trace is not None:
            self.trace.step(**self._numbers(metrics))

    def _log_own(self, name: str, number: float) -> None:
        """Record a metric that is the tracer's own, since the tracer cannot see it here."""
        live = None if self.trace is None else self.trace._live
        if live is not None:
            live.outbox.put(Metric(live.recorder.step, time.time_ns(), name, number))

    def _numbers(self, metrics: Mapping[str, object]) -> dict[str, Any]:
        numbers, others = {}, []
        for name, metric in metrics.items() if rank_and_world()[0] == 0 else ():
            if name in _AXES:
                continue
            try:
                number = metric_value(str(name), metric)
            except Exception:
                number = None
            if number is None:
                others.append(str(name))
            else:
                # A loss that still has its graph tells of which step it is.
                numbers[str(name)] = metric if getattr(metric, "requires_grad", False) else number
        if new := [name for name in others if name not in self._left_out]:
            self._left_out.update(new)
            warn(f"metrics that are no numbers are not recorded: {', '.join(new)}")
        return numbers

    def _end(self) -> None:
        """Say that the training has ended. What is logged later belongs to its last step."""
        self._ended = True

    def close(self, error: BaseException | None = None) -> None:
        """End the trace. Harmless if it has ended, or never began.

        Args:
            error: What ended the training, if it did not end well.
        """
        # What fails after a training, such as a test, did not end it.
        reason = None if self._ended else error
        _open.discard(self)
        if self.trace is not None:
            self.trace.__exit__(None if reason is None else type(reason), reason, None)

    def _state(self) -> dict[str, int]:
        """What the framework's checkpoint has to keep; empty before a training."""
        return {} if self.trace is None else {**self.trace.state_dict(), "number": self._number}

    def _restore(self, state: Mapping[str, int]) -> None:
        """Take what the framework's checkpoint has kept, before the training begins or in the middle of it."""
        self._number = state.get("number", self._number)
        self._restored = state.get("step")


def _sibling(text: str, number: int) -> Place:
    """The path, or its sibling of this number from 2 on; what a URI asks for stays at its end."""
    base, mark, asks = text.partition("?") if is_uri(text) else (text, "", "")
    return store.at(text if number == 1 else f"{base.rstrip('/')}-{number}{mark}{asks}")


def _holds_run(place: Place) -> bool:
    """Whether a run is there; False where nobody can tell, as ``attach`` then says what is wrong."""
    try:
        return run_folder.holds_run(place)
    except OSError:
        return False
