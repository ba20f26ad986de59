"""Faults on purpose: the N-th call to the outside fails, or each from the N-th on."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.training import set_daemons
from tracer.hooks import ParamHook

# Every call of ``os`` that tracer/log/store.py makes.
CALLS = frozenset(
    "close fdopen fstat fsync link lstat makedirs mkdir open replace scandir stat unlink utime write".split()  # noqa: SIM905
)
# Those whose result somebody has to give back.
_GIVES = {"fdopen", "open", "scandir"}
# What only asks a tensor what it is.
_NO_OPERATIONS = {"__get__", "__set__", "is_complex", "is_floating_point", "numel"}
_TRACER = str(Path(__file__).parents[2] / "tracer") + os.sep


class Faults:
    """Counts calls, and lets some of them fail.

    Args:
        first: The number of the first call that fails, from 1 on.
        lasting: Whether each later one fails as well.
        error: What a failing call raises.
        done: Whether a failing call has done its work before it says that it has not.
    """

    def __init__(self, first: int, lasting: bool, error: Callable[[], Exception], done: bool = False) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self.lasting = lasting
        self._first, self._error, self._done = first, error, done
        self._lock = threading.Lock()
        self.armed = True

    def call(self, name: str, function: Callable[..., Any], args: Iterable[Any], kwargs: dict[str, Any]) -> Any:
        """Call a function, or fail."""
        if not self.armed:
            return function(*args, **kwargs)
        with self._lock:
            self.calls += 1
            fails = self.calls == self._first or (self.lasting and self.calls > self._first)
            if fails:
                self.failed.append(name)
        if not fails:
            return function(*args, **kwargs)
        if name == "close" or (self._done and name not in _GIVES):
            function(*args, **kwargs)
        raise self._error()


class FaultyOs:
    """``os`` as tracer/log/store.py sees it, whose calls may fail.

    Args:
        faults: Says which.
        concerns: Which calls are counted, by their arguments.
    """

    def __init__(self, faults: Faults, concerns: Callable[[tuple[Any, ...]], bool] = lambda args: True) -> None:
        self._faults = faults
        self._concerns = concerns

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in CALLS:
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            counted = self._concerns(args)
            return self._faults.call(name, function, args, kwargs) if counted else function(*args, **kwargs)

        return call


class _FaultyTorch(TorchFunctionMode):
    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def __torch_function__(
        self, function: Callable[..., Any], types: object, args: Iterable[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", repr(function))
        caller = sys._getframe(1).f_code.co_filename
        if not caller.startswith(_TRACER) or name in _NO_OPERATIONS:
            return function(*args, **(kwargs or {}))
        return self._faults.call(f"{name} in {Path(caller).name}", function, args, kwargs or {})


@contextmanager
def faulty_torch(faults: Faults) -> Iterator[None]:
    """Let the operations of torch fail that the tracer calls in this thread, and not those of the training."""
    call = ParamHook.__call__

    def within(hook: ParamHook, tensor: torch.Tensor) -> None:
        # Torch leaves the mode while it runs a backward.
        with _FaultyTorch(faults):
            call(hook, tensor)

    with _FaultyTorch(faults), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParamHook, "__call__", within)
        yield


def impatient(monkeypatch: pytest.MonkeyPatch, last_tries_seconds: float = 0.05, **changes: Any) -> None:
    """Let daemons publish at once and give up soon, so that a fault costs a test no time."""
    set_daemons(
        monkeypatch,
        cadence=lambda age_seconds: 0.005,
        tick_seconds=0.005,
        beat_seconds=0.005,
        last_tries_seconds=last_tries_seconds,
        retry_seconds=0.005,
        **changes,
    )


def bits(tensor: torch.Tensor) -> bytes:
    """Every bit of a tensor."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def weights(model: torch.nn.Module) -> list[bytes]:
    """Every bit of a model's parameters and buffers."""
    return [bits(tensor) for tensor in model.state_dict().values()]
