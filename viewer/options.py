"""The view of runs that a user asks for, the same on every surface; a page's address carries it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Protocol, TypeVar


class View(StrEnum):
    """The kinds of figures."""

    OVERVIEW = "overview"
    LAYERS = "layers"
    PARAM = "param"
    ACTIVATIONS = "activations"


class XAxis(StrEnum):
    """The x axis: steps, the time of day, or the time since the run began."""

    STEP = "step"
    WALL = "wall"
    RELATIVE = "relative"


class Scale(StrEnum):
    """The scale of the y axes; ``auto`` is linear, but symlog for extremes, which have both signs."""

    AUTO = "auto"
    LINEAR = "linear"
    LOG = "log"
    SYMLOG = "symlog"


class Histograms(StrEnum):
    """Histograms over the run: a heat map, or a ridge of mountains, the newest in front."""

    MAP = "map"
    RIDGE = "ridge"


MERGED, SPREAD = "merged", "spread"
# What the view of activations can show, in the order of their columns.
OF_OUTPUTS = ("absmax", "min", "max", "mean", "std", "zeros", "saturated", "dead")
# Colours of more runs can hardly be told apart, and a redraw of them takes a while.
MOST_DRAWN = 20


class _HasName(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_HasName)


@dataclass(frozen=True)
class ViewOptions:
    """How runs are shown. Choices may be given as words, a rank as a number; regular expressions are in Rust's syntax.

    Attributes:
        view: The kind of figure.
        run: The name of the only run to be shown, of several that are watched; "" for all of them.
        params: A regular expression: only parameters whose name matches; "" for all.
        param: The parameter that ``View.PARAM`` shows.
        statistic: The layers' statistic: the magnitude of ``<value|grad|applied|update>_absmax``, or of any recorded
            column; that of the activations: one of ``OF_OUTPUTS``. Where it is the other view's, it becomes the usual
            one: ``"grad_absmax"``, or ``"std"``, in which each layer that lets signals shrink or grow is seen.
        rank: ``"merged"`` for all ranks as one, ``"spread"`` for how far they are apart in the overview, or one rank's
            number.
        metrics: A regular expression: only metrics whose name matches; "" for all.
        hide: Likewise: no metric whose name matches; "" for none.
        loss: Likewise: the metrics that are losses; "" for those with a word for it in their name.
        accuracy: Likewise, accuracies; "" for those with a word for it that are a share or per cent, too.
        smoothing: How much a metric's curve is smoothed, as in ``metrics.smoothed``; extremes never are.
        x: The x axis of curves and layers.
        scale: The y axes of curves.
        dark: Light on dark.
        findings: Whether findings are listed and marked.
        attempt: The number of the attempt that is shown as if no later one had begun; "" for the latest.
        zoom: The parts of axes that a window or a page shows: ``"LOW,HIGH"`` for the x axis, in its own unit (steps,
            days since 1970, or seconds since the run began), ``"PANEL:LOW,HIGH"`` for the y axis of a panel.
        histograms: How ``View.PARAM`` shows histograms.
        runs: The names of the runs that a page draws, of those that it lists; none for those begun last.

    Raises:
        TypeError: an option has the wrong type; the message names it.
        ValueError: an option has an impossible value; the message names both.
    """

    view: View = View.OVERVIEW
    run: str = ""
    params: str = ""
    param: str = ""
    statistic: str = "grad_absmax"
    rank: str = MERGED
    metrics: str = ""
    hide: str = ""
    loss: str = ""
    accuracy: str = ""
    smoothing: float = 0.6
    x: XAxis = XAxis.STEP
    scale: Scale = Scale.AUTO
    dark: bool = False
    findings: bool = True
    attempt: str = ""
    zoom: tuple[str, ...] = ()
    histograms: Histograms = Histograms.MAP
    runs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name), field.default))
        if self.rank not in (MERGED, SPREAD) and not re.fullmatch("[0-9]{1,9}", self.rank):
            raise ValueError(f"there is no rank {self.rank!r}: give {MERGED}, {SPREAD}, or a rank's number")
        if not re.fullmatch("[0-9]{0,9}", self.attempt):
            raise ValueError(f"there is no attempt {self.attempt!r}: give its number, 0 for the first")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing {self.smoothing} is not at least 0 and less than 1")
        of_outputs = self.statistic in OF_OUTPUTS
        if not of_outputs and not re.fullmatch(r"(value|grad|applied|update)_\w+", self.statistic):
            known = f"give one as grad_absmax or value_norm, of activations {', '.join(OF_OUTPUTS)}"
            raise ValueError(f"there is no statistic {self.statistic!r}: {known}")
        if self.view in (View.LAYERS, View.ACTIVATIONS) and of_outputs != (self.view is View.ACTIVATIONS):
            object.__setattr__(self, "statistic", "grad_absmax" if of_outputs else "std")
        for pattern in (self.params, self.metrics, self.hide, self.loss, self.accuracy):
            matching([], pattern)
        for part in self.zoom:
            zoom_part(part)

    @property
    def only_rank(self) -> int | None:
        """The one rank that is shown; None for all."""
        return int(self.rank) if self.rank.isdigit() else None

    @property
    def last_attempt(self) -> int | None:
        """The attempt that is shown as the last one; None for the latest."""
        return int(self.attempt) if self.attempt else None

    def drawn(self, runs: Sequence[Named]) -> Sequence[Named]:
        """Those of some runs that a page draws: the last ones, where none of them is chosen."""
        chosen = set(self.runs)
        return [run for run in runs if run.name in chosen] or runs[-MOST_DRAWN:]

    @property
    def named(self) -> tuple[str, str]:
        """What says which metrics are losses, and which accuracies, for curves and findings."""
        return self.loss, self.accuracy

    @property
    def reads(self) -> tuple[str, ...]:
        """The options that decide which rows are read: those that agree in these share a history."""
        of_rows = self.statistic
        only = {View.OVERVIEW: "", View.LAYERS: of_rows, View.ACTIVATIONS: of_rows, View.PARAM: self.param}[self.view]
        # Only the overview shows how far ranks are apart.
        rank = MERGED if self.rank == SPREAD and self.view is not View.OVERVIEW else self.rank
        return self.view, rank, self.params, only, self.attempt


def see_that_it_fits(statistic: str, options: ViewOptions) -> None:
    """See that the statistic that was asked for is one of the view.

    Raises:
        ValueError: it is another view's.
    """
    if statistic and statistic != options.statistic:
        known = ", ".join(OF_OUTPUTS) if options.view is View.ACTIVATIONS else "grad_absmax, value_norm and the like"
        raise ValueError(f"the view {options.view} has no statistic {statistic!r}: it has {known}")


def _checked(name: str, value: Any, default: Any) -> Any:
    """A value, of the type of an attribute's default."""
    if isinstance(default, StrEnum):
        if value not in list(type(default)):
            raise ValueError(f"there is no {name} {value!r}: give {', '.join(type(default))}")
        return type(default)(value)
    if isinstance(default, tuple):
        names = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(item, str) for item in names):
            raise TypeError(f"{name}={value!r} is no list of names")
        return tuple(dict.fromkeys(names))
    if name in ("rank", "attempt") and isinstance(value, int):
        return str(value)
    if not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
        raise TypeError(f"{name}={value!r} is no {type(default).__name__}")
    return value


# Axes with larger numbers overflow where they are drawn.
_FARTHEST = 1e300


def zoom_part(word: str) -> tuple[str, tuple[float, float]]:
    """A part of a zoom: the panel whose y axis it is, "" for the x axis, and the axis' two ends.

    Raises:
        ValueError: it is none.
    """
    panel, _, ends = word.rpartition(":")
    try:
        low, high = map(float, ends.split(","))
    except ValueError:
        low = high = math.nan
    if not (abs(low) < _FARTHEST and abs(high) < _FARTHEST and low != high):
        raise ValueError(f"{word!r} is no zoom: give LOW,HIGH for the x axis, or PANEL:LOW,HIGH")
    return panel, (low, high)


def words_of(options: ViewOptions) -> dict[str, list[str]]:
    """Options in words, by the names of their attributes; no names are one empty word."""
    words = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, tuple):
            words[field.name] = list(value) or [""]
        else:
            words[field.name] = [str(value).lower() if isinstance(value, bool) else str(value)]
    return words


def options_of(words: Mapping[str, Sequence[str]], base: ViewOptions) -> tuple[ViewOptions, dict[str, str]]:
    """The options that words ask for, and the reasons why some were refused, by name.

    Args:
        words: As from ``words_of``; unknown names are ignored.
        base: The options where no word is given, or it is refused.
    """
    options, refused = base, {}
    for field in fields(ViewOptions):
        if field.name in words:
            try:
                options = replace(options, **{field.name: _value(field.name, words[field.name])})
            except ValueError as error:
                refused[field.name] = str(error)
    return options, refused


def _value(name: str, words: Sequence[str]) -> Any:
    default, word = getattr(ViewOptions, name), words[-1]
    if isinstance(default, tuple):
        return tuple(filter(None, words))
    if isinstance(default, bool):
        if word not in ("false", "true"):
            raise ValueError(f"there is no {name} {word!r}: give false or true")
        return word == "true"
    return float(word) if isinstance(default, float) else word


def matching(names: list[str], pattern: str) -> list[str]:
    """The names that a regular expression matches somewhere.

    Raises:
        ValueError: the pattern is no regular expression; the message says why.
    """
    if not pattern:
        return names
    # Too slow to import for a command that only lists its options.
    import polars as pl

    series = pl.Series(names, dtype=pl.String)
    try:
        return series.filter(series.str.contains(pattern)).to_list()
    except pl.exceptions.ComputeError as error:
        reason = str(error).partition("\n\n")[0].rpartition("error: ")[2]
        raise ValueError(f"{pattern!r} is no regular expression: {reason}") from None
