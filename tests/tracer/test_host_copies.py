"""Copies from a CUDA device. There is none here: a stand-in says what is asked of CUDA, in which order."""

import ctypes
import threading
from typing import Any

import pytest
import torch

import tracer
from tests.training import assert_rows, by_hand, loss_of, metric, mlp, set_daemons
from tests.waiting import wait_until
from tracer.items import HostCopy
from tracer.log.store import Local as Path
from tracer.rows import RowBuffer

RELAXED, GLOBAL = 2, 0


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a CUDA device."""

    is_cuda = True
    is_cpu = False


class Cuda:
    """Stands in for CUDA: its driver's capture modes of threads, and its events.

    Attributes:
        waits: Of each wait and query the thread, and its capture mode then.
        blocking: Whether waiting threads sleep, event by event.
    """

    def __init__(self) -> None:
        self.modes: dict[threading.Thread, int] = {}
        self.waits: list[tuple[threading.Thread, int]] = []
        self.blocking: list[bool] = []

    def exchange(self, mode: Any) -> None:
        """``cuThreadExchangeStreamCaptureMode``."""
        thread = threading.current_thread()
        mode._obj.value, self.modes[thread] = self.modes.get(thread, GLOBAL), mode._obj.value

    def event(self, blocking: bool = False) -> "Cuda":
        """``torch.cuda.Event``."""
        self.blocking.append(blocking)
        return self

    def record(self, stream: object) -> None:
        """The event of a copy that has begun."""

    def query(self) -> bool:
        """The copy has arrived."""
        self.synchronize()
        return True

    def synchronize(self) -> None:
        """Note who waits."""
        thread = threading.current_thread()
        self.waits.append((thread, self.modes.get(thread, GLOBAL)))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A stand-in for CUDA."""
    cuda, empty = Cuda(), torch.empty

    def library(name: str) -> Any:
        class Driver:
            cuThreadExchangeStreamCaptureMode = staticmethod(cuda.exchange)  # noqa: N815

        return Driver

    monkeypatch.setattr(ctypes, "CDLL", library)
    monkeypatch.setattr("tracer.items._exchange", tracer.items._exchange.__wrapped__)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **given: empty(*size, **given))
    monkeypatch.setattr(torch.cuda, "Event", cuda.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return cuda


def on_device(number: float) -> torch.Tensor:
    """A number on the device."""
    return torch.tensor(number).as_subclass(OnDevice)


def test_the_daemon_ends_no_capture_of_the_training(cuda: Cuda, tmp_path: Path) -> None:
    """Its thread waits for a copy in the relaxed mode, in which a wait ends no other thread's capture."""
    trace = tracer.attach(mlp(), tmp_path / "run")
    trace.log(loss=on_device(2.5))
    wait_until(lambda: bool(cuda.waits))
    trace.close()
    assert [(thread.name, mode) for thread, mode in cuda.waits] == [("gradwatch-daemon", RELAXED)]
    assert metric(tmp_path / "run", "loss") == [(0, 2.5)]


def test_a_thread_has_its_own_capture_mode_again_after_a_wait(cuda: Cuda) -> None:
    """A user's thread that asks for a copy, or waits for it, captures as before afterwards."""
    copy = HostCopy(on_device(2.5))
    assert copy.arrived
    assert copy.wait().item() == 2.5
    me = threading.current_thread()
    assert cuda.waits == [(me, RELAXED), (me, RELAXED)]
    assert cuda.modes[me] == GLOBAL


def test_who_waits_for_a_copy_sleeps(cuda: Cuda) -> None:
    """The event of a copy does not let the daemon keep a core busy."""
    HostCopy(on_device(2.5))
    assert cuda.blocking == [True]


def test_without_nvidias_driver_a_copy_arrives(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """On AMD's devices, whose driver has another name, no mode is exchanged."""

    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert HostCopy(on_device(2.5)).wait().item() == 2.5
    assert cuda.modes == {}


class LateCopies:
    """A device that makes a copy later than it is asked for: when somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asked: list[LateCopy] = []
        look, late = RowBuffer._look_into_blocks, self

        def look_nowhere(buffer: RowBuffer) -> None:
            look(buffer)
            buffer._views = [None] * len(buffer._views)

        def start(copy: HostCopy, tensor: torch.Tensor) -> None:
            copy._host = torch.zeros_like(tensor)
            copy._done = LateCopy(copy._host, tensor)  # type: ignore[assignment]
            late._asked.append(copy._done)  # type: ignore[arg-type]

        monkeypatch.setattr("tracer.rows.STREAMED", {"cpu"})
        monkeypatch.setattr(RowBuffer, "_look_into_blocks", look_nowhere)
        monkeypatch.setattr(HostCopy, "_start", start)

    def make(self) -> None:
        """Make the copies that were asked for."""
        while self._asked:
            self._asked.pop().synchronize()


class LateCopy:
    """One of them."""

    def __init__(self, host: torch.Tensor, source: torch.Tensor) -> None:
        self._host, self._source, self._made = host, source, False

    def query(self) -> bool:
        """Whether it has been made."""
        return self._made

    def synchronize(self) -> None:
        """Make it."""
        if not self._made:
            self._made = True
            self._host.copy_(self._source)


def test_hooks_do_not_overwrite_what_is_on_its_way_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's rows are its own, though the device copies them only after all hooks of the next backward."""
    # The daemon waits for no copy before the end.
    set_daemons(monkeypatch, tick_seconds=1000.0, cadence=lambda age_seconds: 1000.0)
    late = LateCopies(monkeypatch)
    model, expected = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(6):
            optimizer.zero_grad()
            loss_of(model).backward()
            late.make()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_numbers_on_the_host_are_a_steps_own_beside_those_of_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a part of a model is on a device, rows of the part on the host are taken from the block in use, too."""
    monkeypatch.setattr("tracer.rows.STREAMED", {"cpu"})
    model, expected = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(6):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
