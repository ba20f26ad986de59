"""What a user wants to see of his runs, and how: the same for every surface, and what a page's address carries."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any


class View(StrEnum):
    """What is shown."""

    OVERVIEW = "overview"
    LAYERS = "layers"
    PARAM = "param"


class XAxis(StrEnum):
    """What the x axis is: steps, the time of day, or the time since the run began."""

    STEP = "step"
    WALL = "wall"
    RELATIVE = "relative"


class Scale(StrEnum):
    """The scale of the y axes; ``auto`` is linear for metrics, and symlog for extremes, which have both signs."""

    AUTO = "auto"
    LINEAR = "linear"
    LOG = "log"
    SYMLOG = "symlog"


MERGED, SPREAD = "merged", "spread"


@dataclass(frozen=True)
class ViewOptions:
    """How runs are shown. Choices may be given as words, a rank as a number, metrics as a list or as one name.

    Attributes:
        view: What of them.
        run: The name of the only run to be shown, of several that are watched; "" for all of them.
        params: A regular expression (Rust's syntax): only parameters in whose name it is found; "" for all.
        param: The parameter that ``View.PARAM`` shows.
        statistic: What the layers show: the magnitude of ``<value|grad|applied>_absmax``, or of any recorded column.
        rank: ``"merged"`` for all ranks as one, ``"spread"`` for how far they are apart in the overview, or one rank's
            number.
        metrics: Further metrics in the overview.
        smoothing: How much a metric's curve is smoothed there, as in ``history.smoothed``; extremes never are.
        x: The x axis of curves.
        scale: The y axes of curves.
        dark: Light on dark.
        findings: Whether it is said, and marked, what is wrong with the runs.

    Raises:
        TypeError: one of them has the wrong type.
        ValueError: one of them cannot be; the words say which.
    """

    view: View = View.OVERVIEW
    run: str = ""
    params: str = ""
    param: str = ""
    statistic: str = "grad_absmax"
    rank: str = MERGED
    metrics: tuple[str, ...] = ()
    smoothing: float = 0.6
    x: XAxis = XAxis.STEP
    scale: Scale = Scale.AUTO
    dark: bool = False
    findings: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name), field.default))
        if self.rank not in (MERGED, SPREAD) and not re.fullmatch("[0-9]{1,9}", self.rank):
            raise ValueError(f"there is no rank {self.rank!r}: give {MERGED}, {SPREAD}, or a rank's number")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing {self.smoothing} is not at least 0 and less than 1")
        if not re.fullmatch(r"(value|grad|applied)_\w+", self.statistic):
            raise ValueError(f"there is no statistic {self.statistic!r}: give one as grad_absmax or value_norm")
        matching([], self.params)

    @property
    def only_rank(self) -> int | None:
        """The one rank that is shown; None for all."""
        return int(self.rank) if self.rank.isdigit() else None

    @property
    def reads(self) -> tuple[str, ...]:
        """What of a run has to be read: where two options agree in this, both can be drawn from the same history."""
        only = {View.OVERVIEW: "", View.LAYERS: self.statistic, View.PARAM: self.param}[self.view]
        # Only the overview shows how far ranks are apart.
        rank = MERGED if self.rank == SPREAD and self.view is not View.OVERVIEW else self.rank
        return self.view, rank, self.params, only


def _checked(name: str, value: Any, default: Any) -> Any:
    """A value of the type that an attribute has."""
    if isinstance(default, StrEnum):
        if value not in list(type(default)):
            raise ValueError(f"there is no {name} {value!r}: give {', '.join(type(default))}")
        return type(default)(value)
    if isinstance(default, tuple):
        names = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(each, str) for each in names):
            raise TypeError(f"{name}={value!r} is no list of names")
        return tuple(dict.fromkeys(names))
    if name == "rank" and isinstance(value, int):
        return str(value)
    if not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
        raise TypeError(f"{name}={value!r} is no {type(default).__name__}")
    return value


def words_of(options: ViewOptions) -> dict[str, list[str]]:
    """Options in words, by the names of their attributes; what has none, as no metric, is one empty word."""
    return {field.name: _words(getattr(options, field.name)) for field in fields(options)}


def _words(value: object) -> list[str]:
    if isinstance(value, tuple):
        return list(value) or [""]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def options_of(words: Mapping[str, Sequence[str]], base: ViewOptions) -> tuple[ViewOptions, dict[str, str]]:
    """The options that words ask for, and, by name, why some were refused: there, and where no word is, the base holds.

    Args:
        words: As from ``words_of``; names of no option are passed over.
        base: What holds where nothing is asked for.
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
    """Those names in which a regular expression is found.

    Raises:
        ValueError: it is none; the words say why.
    """
    if not pattern:
        return names
    # Too slow to import for who only asks which options there are.
    import polars as pl

    series = pl.Series(names, dtype=pl.String)
    try:
        return series.filter(series.str.contains(pattern)).to_list()
    except pl.exceptions.ComputeError as error:
        reason = str(error).partition("\n\n")[0].rpartition("error: ")[2]
        raise ValueError(f"{pattern!r} is no regular expression: {reason}") from error
