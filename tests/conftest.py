"""What holds around every test: nothing is left behind, and no warning of the tracer goes unnoticed."""

import gc
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import durations, torture
from tests.disk import Disk
from tests.warned import make_errors
from tracer.log import store
from tracer.log.store import Local
from tracer.warn import TracerWarning

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests that run side by side would wait for each other's threads; torch and polars read these when imported.
    os.environ["OMP_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = "1"
# The compiler starts no processes of its own, which would outlive the test.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

# How fast an example is says more of the machine than of the code.
settings.register_profile("gradwatch", deadline=None)
settings.load_profile("gradwatch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first: one that begins last would leave the other core without work."""
    taken = durations.seconds()
    items.sort(key=lambda item: taken.get(item.path, 0), reverse=True)


def _loaded(module: str) -> Any:
    """A module, where something has imported it: the log and the viewer are tested without torch, too."""
    return sys.modules.get(module)


def _optimizer_hooks() -> list[Any]:
    """The hooks on all optimizers that a test has left: all but the tracer's two, which stay and report to nobody."""
    optimizer, updates = _loaded("torch.optim.optimizer"), _loaded("tracer.updates")
    if optimizer is None:
        return []
    left = list(updates.reports.values()) + list(updates.reporting) if updates else []
    # No public call of torch 2.4 to 2.15 tells of them.
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"):
        hooks = list(getattr(optimizer, name).values())
        if updates and updates.UPDATE_HOOKS[name] in hooks:
            hooks.remove(updates.UPDATE_HOOKS[name])
        left += hooks
    return left


def _open_traces() -> list[Any]:
    trace = _loaded("tracer.trace")
    return trace._open_traces() if trace else []


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaks a thread, a hook or a trace, or that the tracer warned in unexpectedly."""
    threads = set(threading.enumerate())
    if torch := _loaded("torch"):
        torch.manual_seed(0)
    if (amp := _loaded("tracer.amp")) and amp._scalers():
        # A scaler that an earlier test has left in a cycle would be taken for this test's.
        gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        make_errors()
        warnings.simplefilter("always", TracerWarning)
        yield
    unexpected = [str(warning.message) for warning in caught]
    left = [trace.path for trace in _open_traces()]
    for trace in _open_traces():
        trace.close()
    leaked = [thread.name for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
    assert not unexpected, f"unexpected warnings: {unexpected}"
    assert not left, f"traces left open: {left}"
    assert not leaked, f"threads left running: {leaked}"
    assert not (hooks := _optimizer_hooks()), f"optimizer hooks left: {hooks}"


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a viewer keeps for its user is not kept in the home of who runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Local:
    """A folder for runs, as the log takes it; tests import ``Local`` under the name ``Path``."""
    return Local(tmp_path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk under every log of the test: it works until the test breaks it."""
    disk = Disk()
    monkeypatch.setattr(store, "os", disk)
    return disk


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Counts what the test of a promise did, and what it saw: ``figures(bytes_flipped=1, unnoticed=0)``."""
    return torture.seen(request.path).update


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """After `make torture`, say what was done and seen."""
    if torture.FACTOR:
        terminalreporter.section("promises")
        for line in torture.table():
            terminalreporter.write_line(line)
