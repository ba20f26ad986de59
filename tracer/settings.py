"""The settings of a trace: the arguments of ``attach`` on what is recorded and how often, checked."""

import numbers
from dataclasses import InitVar, dataclass, field
from typing import Any

from tracer.statistics import Measures, Stats, check_count


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of ``attach`` on what to record, described there.

    Attributes:
        scaler: Whether a ``GradScaler`` was given, and scales.
        measures: The measurements that ``stats`` needs.

    Raises:
        ValueError: a number is not a positive integer, ``budget`` is not between 0 and 1, ``fold`` is given with
            ``every`` or ``budget``, or there is no such statistic.
    """

    every: int = 1
    budget: float | None = None
    fold: int = 1
    stats: InitVar[Stats] = "extremes"
    applied: bool = False
    update: bool = False
    update_every: int = 10
    histogram_every: int = 100
    bins: int = 64
    total_steps: int | None = None
    scaler: bool = False
    measures: Measures = field(init=False)

    def __post_init__(self, stats: Stats) -> None:
        for name in ("every", "fold", "histogram_every", "update_every", "bins"):
            check_count(name, getattr(self, name))
        if self.total_steps is not None:
            check_count("total_steps", self.total_steps)
        if self.budget is not None:
            if not (isinstance(self.budget, numbers.Real) and 0 < self.budget < 1):
                raise ValueError(f"budget={self.budget!r} must be a share of the time between 0 and 1, such as 0.01")
            object.__setattr__(self, "budget", float(self.budget))
        if self.fold > 1 and (self.every > 1 or self.budget is not None):
            other = f"every={self.every}" if self.budget is None else f"budget={self.budget}"
            raise ValueError(f"{other} leaves steps out, and fold={self.fold} measures each step: give one of the two")
        object.__setattr__(self, "measures", Measures.of(stats))

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities of each parameter that are recorded."""
        return ("value", "grad", *["applied"] * self.applied, *["update"] * self.update)

    def described(self) -> dict[str, Any]:
        """The settings as run.json holds them."""
        histograms = self.measures.histogram
        return {
            "every": self.every,
            "budget": self.budget,
            "fold": self.fold,
            "stats": list(self.measures.columns),
            "applied": self.applied,
            "update": self.update,
            "update_every": self.update_every if self.update else None,
            "histogram_every": self.histogram_every if histograms else None,
            "bins": self.bins if histograms else None,
            "total_steps": self.total_steps,
            "scaler": self.scaler,
        }
