"""What holds around every test: nothing is left behind, and no warning of the tracer goes unnoticed."""

import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings
from torch.optim import optimizer as torch_optimizer

from tests import torture
from tracer.trace import _open
from tracer.warn import TracerWarning

# How fast an example is says more of the machine than of the code.
settings.register_profile("gradwatch", deadline=None)
settings.load_profile("gradwatch")


def _optimizer_hooks() -> int:
    return len(torch_optimizer._global_optimizer_pre_hooks) + len(torch_optimizer._global_optimizer_post_hooks)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaks a thread, a hook or a trace, or that the tracer warned in unexpectedly."""
    threads = set(threading.enumerate())
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", TracerWarning)
        yield
    unexpected = [str(warning.message) for warning in caught]
    left = [trace.path for trace in _open]
    for trace in list(_open):
        trace.close()
    leaked = [thread.name for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
    assert not unexpected, f"unexpected warnings: {unexpected}"
    assert not left, f"traces left open: {left}"
    assert not leaked, f"threads left running: {leaked}"
    assert _optimizer_hooks() == 0, "optimizer hooks left"


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
