"""What every worker does: it ends in time, and takes no warning lightly."""

import contextlib
import faulthandler
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from tests.warned import make_errors
from tracer.warn import TracerWarning

RANK = int(os.environ["RANK"])
_SECONDS = 120


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """Fail where anything warns; show every thread's stack and exit where this does not end in time."""
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    with warnings.catch_warnings(record=True) as caught:
        make_errors()
        warnings.simplefilter("always", TracerWarning)
        # Of torch 2.6, wherever a DTensor is on a CPU.
        warnings.filterwarnings("ignore", "DTensor random operators may not have complete support on cpu")
        # Of tensor parallel layers under FSDP, whose outputs nobody writes into here.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        yield
    faulthandler.cancel_dump_traceback_later()
    unexpected = [str(warning.message) for warning in caught]
    assert not unexpected, f"unexpected warnings: {unexpected}"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """All ranks, connected with gloo."""
    with strictly():
        dist.init_process_group("gloo", timeout=timedelta(seconds=_SECONDS))
        try:
            yield
        finally:
            dist.destroy_process_group()
