"""gradwatch's watching side: it follows a run's log and draws it as rows arrive. Imports no torch.

``figure`` makes a figure of runs for a paper, ``show`` shows them in a notebook while a training runs, and ``check``
says what is wrong with them; none needs another process. The command ``viewer`` is the way for everything else. Nothing
heavy is imported before one is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viewer.surfaces.checked import check
    from viewer.surfaces.notebook import figure, show

_HOMES = {
    "check": "viewer.surfaces.checked",
    "figure": "viewer.surfaces.notebook",
    "show": "viewer.surfaces.notebook",
}

__all__ = ["check", "figure", "show"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'viewer' has no attribute {name!r}")
    refuse_a_stranger()
    return getattr(importlib.import_module(_HOMES[name]), name)


def refuse_a_stranger() -> None:
    """Say which file is imported as ``tracer`` in place of ours, as a ``tracer.py`` in the current folder is.

    Raises:
        ImportError: there is one.
    """
    tracer = importlib.import_module("tracer")
    if not hasattr(tracer, "__path__"):
        raise ImportError(f"{tracer.__file__} is imported in place of gradwatch's tracer: give it another name")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
