"""gradwatch's watching side: it follows a run's log and draws it as rows arrive. Imports no torch.

``figure`` makes a figure of runs for a paper, ``show`` shows them in a notebook while a training runs; both need no
other process. The command ``viewer`` is the way for everything else. Nothing heavy is imported before one is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viewer.surfaces.notebook import figure, show

__all__ = ["figure", "show"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'viewer' has no attribute {name!r}")
    return getattr(importlib.import_module("viewer.surfaces.notebook"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
