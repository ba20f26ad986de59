"""gradwatch's training side: trace a PyTorch model's extremes into a Parquet log.

``attach`` traces a model, ``close`` ends every trace, ``scan`` reads a run's log as a polars LazyFrame, ``runs`` is a
table of all runs. ``doctor``, ``model_extremes``, ``model_stats`` and ``overall_extremes`` are plain functions for a
notebook. Nothing heavy is imported before one of them is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracer.log.parts import BadPartWarning
    from tracer.log.read import scan
    from tracer.log.run import LogError
    from tracer.log.runs import runs
    from tracer.notebook import doctor, model_extremes, model_stats, overall_extremes
    from tracer.trace import Trace, attach, close
    from tracer.warn import TracerWarning

_HOMES = {
    "BadPartWarning": "tracer.log.parts",
    "LogError": "tracer.log.run",
    "Trace": "tracer.trace",
    "TracerWarning": "tracer.warn",
    "attach": "tracer.trace",
    "close": "tracer.trace",
    "doctor": "tracer.notebook",
    "model_extremes": "tracer.notebook",
    "model_stats": "tracer.notebook",
    "overall_extremes": "tracer.notebook",
    "runs": "tracer.log.runs",
    "scan": "tracer.log.read",
}

__all__ = [
    "BadPartWarning",
    "LogError",
    "Trace",
    "TracerWarning",
    "attach",
    "close",
    "doctor",
    "model_extremes",
    "model_stats",
    "overall_extremes",
    "runs",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tracer' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        needs = f"tracer.{name} needs PyTorch, which is not installed here: pip install torch"
        raise ModuleNotFoundError(needs, name="torch") from None
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
