"""Triton's interpreter, in a process of its own: whether Triton interprets is decided when it is imported."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import pytest
import torch

Run = Callable[..., Any]


@contextmanager
def interpreter() -> Iterator[Run]:
    """A function that calls another one with arguments where Triton interprets, and gives back what it returns.

    Tensors keep their strides, their offsets and what they share; what either side writes, the other does not see.
    """
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 2):
        pytest.skip("the interpreter of Triton 3.0 reads zeros, that of 3.2 does not")
    with ProcessPoolExecutor(1, get_context("spawn")) as process:

        def run(function: Callable[..., Any], *arguments: Any) -> Any:
            return _loaded(process.submit(_run, function, _saved(arguments)).result())

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            # Starts the process.
            run(tuple)
        yield run


def _run(function: Callable[..., Any], arguments: bytes) -> bytes:
    return _saved(function(*_loaded(arguments)))


def _saved(anything: Any) -> bytes:
    # As multiprocessing sends tensors, they would need threads and shared memory.
    buffer = io.BytesIO()
    torch.save(anything, buffer)
    return buffer.getvalue()


def _loaded(saved: bytes) -> Any:
    return torch.load(io.BytesIO(saved), weights_only=False)
