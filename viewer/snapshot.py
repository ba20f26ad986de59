"""A run at one moment, as plain data: what is read on one thread and drawn on another. It never changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from tracer.log.ranks import State

Number = float | int | str | bool


@dataclass(frozen=True)
class Curve:
    """A metric over the run: for each bin its last step, the mean, lowest and highest finite value.

    ``nonfinite`` holds, of each bin that has a NaN or an infinity, the first such step; ``time`` each bin's last time,
    in seconds since 1970. ``newest`` is the last number as it was logged, which a bin's mean hides; None stands for the
    last mean. ``smooth`` is the mean smoothed for a panel; None where it is drawn as it is.
    """

    name: str
    step: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    nonfinite: Sequence[int]
    time: Sequence[float] = ()
    newest: float | None = None
    smooth: Sequence[float] | None = None

    @property
    def last(self) -> float:
        """The newest number."""
        return self.mean[-1] if self.newest is None else self.newest


@dataclass(frozen=True)
class Extremes:
    """Extremes over the run: for each bin its last step and the four numbers, null where there is none.

    Attributes:
        step: Each bin's last step.
        statistics: The numbers, by column; of one parameter also what else was recorded, as ``<column>_low`` and
            ``<column>_high`` unless it is an extreme itself.
        nonfinite: For ``"value"``, ``"grad"`` and, where recorded, ``"applied"``: of each bin that has a NaN or an
            infinity, the first such step.
        time: Each bin's last time, in seconds since 1970.
        inner: Where the spread over ranks is asked for: the least extreme rank's numbers, as ``statistics``.
        depth: The largest gradient magnitudes of the first and of the last layer, as ``depth.DEPTH`` names them.
        ratio: Of one parameter the size of updates against that of the value, of the bins in which any was measured;
            None where the run measures none.
    """

    step: Sequence[int]
    statistics: Mapping[str, Sequence[float | None]]
    nonfinite: Mapping[str, Sequence[int]]
    time: Sequence[float] = ()
    inner: Mapping[str, Sequence[float | None]] | None = None
    depth: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    ratio: Curve | None = None


@dataclass(frozen=True)
class Histogram:
    """One histogram: of a parameter's values or gradient at one step, in bins of equal width."""

    step: int
    time: float
    low: float
    high: float
    counts: Sequence[int]


@dataclass(frozen=True)
class Heatmap:
    """The largest magnitude of a statistic of every parameter over the run.

    Attributes:
        params: The parameters, in model order: the rows.
        first_step: The step with which the first column begins.
        width: How many steps a column covers.
        magnitudes: float64 of shape (parameters, columns): NaN where there is none.
        nonfinite: Likewise, bool: whether there was a NaN or an infinity.
        time: Each column's last time, in seconds since 1970; that of the column before, where it is empty.
    """

    params: Sequence[str]
    first_step: int
    width: int
    magnitudes: npt.NDArray[np.float64]
    nonfinite: npt.NDArray[np.bool_]
    time: Sequence[float] = ()


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Batch:
    """Which batch a step was, as the user logged it.

    Attributes:
        name: The metric's name, as ``batch``.
        step: The step.
        rank: The rank that logged it.
        value: The number.
    """

    name: str
    step: int
    rank: int
    value: int


@dataclass(frozen=True)
class Finding:
    """Something wrong that the viewer noticed.

    Attributes:
        kind: Which illness, in one word.
        title: What it is in a few words that stay while it goes on, for where a sentence has no room.
        severity: How bad it is.
        param: The parameter, or the first of several; None where it is none's.
        first_step: Where it began.
        last_step: Where it was seen last.
        sentence: What it is.
        advice: What people usually try.
        numbers: Those that decided.
        params: All parameters that have it.
        resolved: Whether it held once, and no longer does.
        steps: Each step where it happened, of what happens at single steps; none of what lasts.
        restart: Where it was seen in an attempt that was given up: the step at which the run went on.
        batches: Which batches its step was, of the ranks on which it was; none where nobody logged them.
    """

    kind: str
    title: str
    severity: Severity
    param: str | None
    first_step: int
    last_step: int
    sentence: str
    advice: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    resolved: bool = False
    steps: tuple[int, ...] = ()
    restart: int | None = None
    batches: tuple[Batch, ...] = ()

    @property
    def order(self) -> tuple[bool, int, int]:
        """The place among others: the worst first, then the earliest; resolved ones last, but for restarts."""
        return self.resolved and self.restart is None, list(Severity).index(self.severity), self.first_step


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, as a figure shows it. Immutable, so that one thread may draw it while another reads on.

    Attributes:
        name: The run's name.
        state: Whether it goes on.
        last_step: Its last step; None before the first.
        problems: What could not be read.
        gone: Whether its folder was there, and is no longer.
        complete: False while a closed run's last rows are still to arrive, as on a network disk with an old listing.
        started: When it began, in seconds since 1970.
        last_time: When its newest row was made, likewise; None before the first.
        steps_per_second: Its speed lately; None where that is unknown.
        total_steps: How many steps it will take, where ``attach`` was told.
        dropped: How many rows could not be written, as far as is known.
        ranks: The ranks that write.
        stopped_ranks: Those that stopped without closing.
        params: The parameters in model order that are to be shown, of ``all_params``.
        statistics: What the layers can show.
        findings: What is wrong with the run, the worst first, as far as it is known yet.
        dtype: Of the view of one parameter its dtype; "" where that is unknown.
        config: Its hyper-parameters, those of inner dicts with names as ``optimizer.lr``.
    """

    name: str
    state: State
    last_step: int | None
    curves: tuple[Curve, ...] = ()
    extremes: Extremes | None = None
    layers: Heatmap | None = None
    histograms: Mapping[str, Sequence[Histogram]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    gone: bool = False
    complete: bool = True
    started: float = 0.0
    last_time: float | None = None
    steps_per_second: float | None = None
    total_steps: int | None = None
    dropped: int = 0
    ranks: tuple[int, ...] = ()
    stopped_ranks: tuple[int, ...] = ()
    params: tuple[str, ...] = ()
    all_params: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    dtype: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it has closed, or each of its ranks has stopped."""
        return self.state == "closed" or (self.state == "stopped" and bool(self.stopped_ranks))
