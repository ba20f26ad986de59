"""What holds around every test of a framework: its own warnings are none of ours, and nothing is downloaded."""

import contextlib
import os
import sys
import warnings

import pytest

from tracer.warn import TracerWarning

# Frameworks read these when they are imported.
os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", YOLO_OFFLINE="true")
with contextlib.suppress(ImportError):
    from tqdm import tqdm

    # Otherwise a progress bar leaves a thread that watches it.
    tqdm.monitor_interval = 0


@pytest.fixture(autouse=True)
def frameworks_may_warn(nothing_left_behind: None) -> None:
    """Only the tracer's warnings fail these tests."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", TracerWarning)
    if "accelerate.state" in sys.modules:
        # It is the process's, and keeps the precision of whatever came first.
        sys.modules["accelerate.state"].AcceleratorState._reset_state(True)
