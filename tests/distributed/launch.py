"""Real processes: a module of this folder under torchrun, on two ranks."""

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RANKS = 2
# Every rank ends itself earlier than this, see worker.py.
_SECONDS = 150.0
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """What a launch left: its exit code, and what all its processes wrote."""

    code: int
    stdout: str
    stderr: str


def torchrun(module: str, folder: Path, *arguments: str) -> Finished:
    """Run a module of this package on two ranks, in ``folder``.

    Args:
        module: The worker's name here, ``worker_ddp`` for example.
        folder: The processes' working folder.
        arguments: The worker's arguments.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    process = subprocess.Popen(
        [*command, "-m", f"tests.distributed.{module}", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=_SECONDS)
    except BaseException:
        # Its workers have sessions of their own: torchrun ends them before it ends itself.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        process.kill()
        raise
    return Finished(process.returncode, stdout, stderr)


def succeeded(module: str, folder: Path, *arguments: str) -> Finished:
    """As ``torchrun``, and fail with all output where a rank failed."""
    finished = torchrun(module, folder, *arguments)
    assert finished.code == 0, f"{module} failed:\n{finished.stdout}\n{finished.stderr}"
    return finished
