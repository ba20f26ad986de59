"""Colours and sizes of figures, light and dark, and matplotlib's settings under which they are drawn."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from viewer.options import ViewOptions
from viewer.reduce.metrics import is_validation
from viewer.snapshot import Finding, Severity

SIZE_INCHES = (10.0, 8.0)
Style = Literal["-", "--", "-.", ":"]
# A name, or red, green, blue and opacity.
Colour = str | tuple[float, float, float, float]


@dataclass(frozen=True)
class Theme:
    """Colours, as matplotlib takes them; every kind of colour vision can tell those of a palette apart.

    ``blank`` is for cells without a number, beside the black of zeros. ``rainbow`` is the part of matplotlib's turbo
    that can be seen on the ground.
    """

    ground: str
    blank: str
    ink: str
    pale: str
    faint: str
    alarm: str
    caution: str
    palette: tuple[str, ...]
    rainbow: tuple[float, float]


# Okabe and Ito's palette, and the same hues for a dark ground.
LIGHT = Theme(
    "#ffffff", "#ffffff", "#333333", "#dddddd", "#707070", "#c00000", "#8a5a00",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), (0.0, 1.0),
)  # fmt: skip
DARK = Theme(
    "#14171c", "#3a3f47", "#dddddd", "#3a3f47", "#9a9a9a", "#ff6060", "#e0a030",
    ("#56B4E9", "#FF9248", "#2BC99B", "#E39AC4", "#F0E442", "#B0B0FF"), (0.1, 0.9),
)  # fmt: skip

# Line styles, for more curves than there are colours.
STYLES: tuple[Style, ...] = ("-", ":", "-.")
# The largest and the smallest of a thing.
ENDS: dict[str, Style] = {"max": "-", "min": "--"}
_NARROW_INCHES = 6.0
# Settings that say where a figure is shown, and not how it looks.
_OF_SURFACES = frozenset({"backend", "backend_fallback", "interactive", "toolbar"})
# Newer matplotlib's types list every name.
_settings: Any = matplotlib.rcParams
_defaults: Any = matplotlib.rcParamsDefault
_settings_lock = threading.RLock()


def use_own_settings() -> dict[str, Any]:
    """Give matplotlib its defaults, whatever the user's matplotlibrc and style sheets say; what was set otherwise."""
    names = [name for name in _defaults if name not in _OF_SURFACES]
    theirs = {name: _settings[name] for name in names if _settings[name] != _defaults[name]}
    _settings.update({name: _defaults[name] for name in theirs})
    return theirs


@contextmanager
def own_settings() -> Iterator[None]:
    """The time in which a figure is made or drawn in the user's own process; matplotlib reads settings in both."""
    with _settings_lock:
        theirs = use_own_settings()
        try:
            yield
        finally:
            # What the user's cell has set meanwhile stays: a notebook's picture is drawn by a thread beside it.
            _settings.update({name: value for name, value in theirs.items() if _settings[name] == _defaults[name]})


def theme(options: ViewOptions) -> Theme:
    """The colours that are asked for."""
    return DARK if options.dark else LIGHT


def narrow(figure: Figure) -> bool:
    """Whether it is shown on a phone."""
    return bool(figure.get_figwidth() < _NARROW_INCHES)


def style_of(name: str, index: int) -> Style:
    """A metric's line style: dashed for validation, so that not only colours differ."""
    return "--" if is_validation(name) else STYLES[index % len(STYLES)]


def run_colour(options: ViewOptions, run: int, runs: int) -> Colour:
    """The colour of one of several runs, however many these are."""
    palette = theme(options).palette
    if runs <= len(palette):
        return palette[run]
    low, high = theme(options).rainbow
    return _turbo()(low + (high - low) * run / (runs - 1))


@functools.cache
def _turbo() -> Colormap:
    # matplotlib makes another one each time.
    return matplotlib.colormaps["turbo"]


def colour_of(options: ViewOptions, finding: Finding) -> str:
    """A finding's colour."""
    colours = theme(options)
    return {Severity.ERROR: colours.alarm, Severity.WARNING: colours.caution, Severity.NOTE: colours.faint}[
        finding.severity
    ]
