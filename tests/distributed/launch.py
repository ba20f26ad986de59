"""Real processes: a module of this folder under torchrun, on two ranks of one node, or of two."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.warm import warm

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
        module: The worker's name here, ``worker_ddp`` for example, or its full name.
        folder: The processes' working folder.
        arguments: The worker's arguments.
    """
    agent = _start(warm(), ["--standalone", "--nproc-per-node", str(RANKS)], module, folder, *arguments)
    try:
        return finish(agent)
    finally:
        _end(agent)


@contextlib.contextmanager
def nodes(module: str, folder: Path, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The agents of as many nodes, each with one rank, which find each other at a port of this machine.

    Args:
        module: As ``torchrun`` takes it.
        folder: What the nodes share.
        arguments: The worker's arguments.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ["--rdzv-backend", "c10d", "--rdzv-id", "nodes", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    options = ["--nnodes", str(RANKS), "--nproc-per-node", "1", *meet]
    # Cold, since ``lose`` kills ranks by their ids.
    agents = [_start((sys.executable,), options, module, folder, *arguments) for _ in range(RANKS)]
    try:
        yield agents
    finally:
        for agent in agents:
            _end(agent)


def lose(node: subprocess.Popen[str]) -> list[int]:
    """Let a node lose power: kill its agent, then its ranks, which are not in the agent's group; their process ids."""
    ranks = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    killed = [node.pid, *map(int, ranks)]
    for process in killed:
        os.kill(process, signal.SIGKILL)
    return killed


def _start(
    python: tuple[str, ...], options: list[str], module: str, folder: Path, *arguments: str
) -> subprocess.Popen[str]:
    agent, rank = ("-m", "torch.distributed.run", *options, "--no-python"), ("-m", _full_name(module), *arguments)
    return subprocess.Popen(
        [*python, *agent, *python, *rank],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _full_name(module: str) -> str:
    return module if module.startswith("tests.") else f"tests.distributed.{module}"


def finish(agent: subprocess.Popen[str]) -> Finished:
    """What an agent leaves when it ends."""
    stdout, stderr = agent.communicate(timeout=_SECONDS)
    return Finished(agent.returncode, stdout, stderr)


def _end(agent: subprocess.Popen[str]) -> None:
    """End an agent that is still there."""
    if agent.poll() is None:
        # Its workers have sessions of their own: torchrun ends them before it ends itself.
        agent.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.communicate(timeout=10)
        agent.kill()
    agent.communicate()


def succeeded(module: str, folder: Path, *arguments: str) -> Finished:
    """As ``torchrun``, and fail with all output where a rank failed."""
    finished = torchrun(module, folder, *arguments)
    assert finished.code == 0, f"{module} failed:\n{finished.stdout}\n{finished.stderr}"
    return finished
