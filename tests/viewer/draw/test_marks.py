"""What figures share: texts find room, the layout moves only where it must, and scales hold all numbers."""

import math
from collections.abc import Sequence
from statistics import median_low

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tests.figures import NAMES, PHONE, canvas, check_texts, contrast
from viewer.draw.axes import linear_threshold, set_scale, x_values
from viewer.draw.marks import drawable
from viewer.draw.panels import begin, heading, set_title
from viewer.draw.theme import DARK, LIGHT, SIZE_INCHES, Theme
from viewer.options import Scale, ViewOptions, XAxis
from viewer.snapshot import Snapshot


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_are_told_from_their_ground(theme: Theme) -> None:
    """What is read has a contrast of 4.5; curves are seen, and told from one another."""
    assert all(contrast(colour, theme.ground) >= 4.5 for colour in (theme.ink, theme.faint, theme.alarm))
    assert all(contrast(colour, theme.ground) >= 2 for colour in theme.palette)
    assert len(set(theme.palette)) == len(theme.palette)


@pytest.mark.parametrize("size", [SIZE_INCHES, PHONE])
@pytest.mark.parametrize("name", NAMES)
def test_the_title_fits_the_figure(name: str, size: tuple[float, float]) -> None:
    """However long the words and narrow the figure, they are wrapped, in few lines, and stay letters."""
    run = Snapshot(name, "stopped", 10**9, problems=(f"{name} damaged",) * 9, complete=False, dropped=10**6)
    figure = canvas(size)
    begin(figure, ViewOptions())
    figure.subplots()
    said = heading(ViewOptions(), [run], 1e9)
    assert len(said.splitlines()) == 3
    assert "… and 10 more" in said
    set_title(figure, ViewOptions(), said)
    check_texts(figure)
    assert figure.get_suptitle().replace("\n", " ").split() == said.split()


def test_a_renewed_title_stays_in_its_place() -> None:
    """Where new words need no other room, they stand where the old ones stood, and not in the first panel."""
    figure = canvas()
    begin(figure, ViewOptions())
    figure.subplots()
    places = []
    for words in ("last row 20 s ago", "last row 30 s ago"):
        set_title(figure, ViewOptions(), words)
        figure.canvas.draw()
        (title,) = figure.texts
        places.append(title.get_window_extent().y0)
        check_texts(figure)
    assert places[0] == places[1]


@pytest.mark.slow
def test_the_layout_moves_panels_only_where_texts_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """New numbers of the same width leave everything in its place; longer texts, zooms and other sizes find room."""
    made = 0
    execute = ConstrainedLayoutEngine.execute

    def counting(self: ConstrainedLayoutEngine, figure: object) -> None:
        nonlocal made
        made += 1
        execute(self, figure)  # type: ignore[arg-type]

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", counting)
    figure = canvas()
    begin(figure, ViewOptions())
    axes = figure.subplots()
    (line,) = axes.plot([0, 1], [1, 2], label="loss 0.123")

    def moves() -> bool:
        # A layout may change which ticks there are, and so ask for another.
        before = made
        figure.canvas.draw()
        moved = made > before
        figure.canvas.draw()
        check_texts(figure)
        return moved

    figure.canvas.draw()
    figure.canvas.draw()
    line.set_ydata([2, 1])
    assert not moves()
    for change in (
        lambda: figure.suptitle("a title"),
        lambda: axes.set_ylim(0, 1e7),
        lambda: axes.set_ylabel("loss"),
        lambda: axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0)),
        lambda: figure.set_size_inches(5, 4),
        lambda: figure.set_dpi(50),
        lambda: axes.set_xlim(0, 0.6),
    ):
        change()
        assert moves()
        assert not moves()


@given(st.lists(st.floats(min_value=5e-324, max_value=1e300), max_size=5))
def test_symlog_turns_linear_below_what_can_be_seen(numbers: list[float]) -> None:
    """At a power of ten not above the smallest number, or eight decades below the largest, or two below the usual."""
    found = linear_threshold(numbers)
    assert found > 0
    assert math.log10(found) == pytest.approx(round(math.log10(found)))
    if numbers:
        usual = median_low(numbers) * 1e-2 if max(numbers) < 1e200 else math.inf
        floor = max(min(max(numbers) * 1e-8, usual), 1e-40)
        assert found <= max(min(numbers), floor) * (1 + 1e-9)
        assert found >= max(min(numbers), floor) / 10 * (1 - 1e-9)


@pytest.mark.parametrize("smallest", [0.0, 1e-300, 1e306])
def test_symlog_is_drawn_up_to_the_end_of_float64(smallest: float) -> None:
    """Nothing overflows, though all numbers but zero are near that end."""
    axes = canvas().subplots()
    numbers = [smallest, 1.7e308, 0.0]
    set_scale(axes, ViewOptions(scale=Scale.LOG), numbers, Scale.LINEAR)
    axes.plot(drawable(numbers))
    axes.figure.canvas.draw()
    assert axes.get_yscale() == "symlog"


@pytest.mark.parametrize("numbers", [[1e300, 1.7e308], [1e106, 1e306], [1e-300, 1e306], [1.7e308]])
def test_a_log_scale_is_drawn_up_to_the_end_of_float64(numbers: Sequence[float]) -> None:
    """No tick is sought where there are no numbers, which would be an overflow; and the scale can be read."""
    axes = canvas().subplots()
    set_scale(axes, ViewOptions(scale=Scale.LOG), numbers, Scale.LINEAR)
    axes.plot(drawable(numbers))
    axes.figure.canvas.draw()
    assert axes.get_yscale() == "log"
    assert len(ticks(axes)) > 1


def ticks(axes: Axes) -> list[str]:
    """The labels that are to be seen at the y axis."""
    low, high = axes.get_ylim()
    every = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    return [tick.label1.get_text() for tick in every if low <= tick.get_loc() <= high and tick.label1.get_text()]


@pytest.mark.parametrize("numbers", [[0.21, 0.74], [2e-3, 3e-2], [5.0], [-0.3, -0.2], [1e300, 3e300], [0.9, 15.0]])
@pytest.mark.parametrize("scale", [Scale.LOG, Scale.SYMLOG])
def test_a_single_decade_has_its_ticks(numbers: Sequence[float], scale: Scale) -> None:
    """Where numbers span a decade or less, at least two places of a log scale are named, and each by another number."""
    axes = canvas().subplots()
    set_scale(axes, ViewOptions(scale=scale), numbers, Scale.LINEAR)
    axes.plot(drawable(numbers))
    axes.figure.canvas.draw()
    assert len(ticks(axes)) == len(set(ticks(axes))) >= 2


@pytest.mark.parametrize(("last", "scale"), [(1e5, "linear"), (1e7, "log"), (-1e7, "symlog")])
def test_what_exploded_does_not_flatten_what_was_before(last: float, scale: str) -> None:
    """A metric that ends a million times as high as it usually was is on a log scale, unless another is asked for."""
    axes = canvas().subplots()
    numbers = [1.0] * 30 + [last]
    set_scale(axes, ViewOptions(), numbers, Scale.LINEAR)
    assert axes.get_yscale() == scale
    set_scale(axes, ViewOptions(scale=Scale.LINEAR), numbers, Scale.LINEAR)
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize("numbers", [[], [1.0, math.nan], [1.7e308, -1.7e308, math.inf, -math.inf, 0.0]])
def test_numbers_near_the_end_of_float64_are_brought_nearer(numbers: Sequence[float]) -> None:
    """Only these; NaN and infinities stay what they are."""
    expected = [math.copysign(1e306, n) if math.isfinite(n) and abs(n) > 1e306 else n for n in numbers]
    assert np.array_equal(drawable(numbers), expected, equal_nan=True)


def test_times_are_exact_to_the_microsecond() -> None:
    """Days since 1970, as matplotlib counts, still tell steps apart that are a few microseconds from one another."""
    times = [1.8e9 + step * 1e-5 for step in range(100)]
    days = x_values(ViewOptions(x=XAxis.WALL), Snapshot("run", "running", 1), range(100), times)
    assert np.asarray(days) * 86_400 == pytest.approx(times, abs=2e-6)
    assert len(set(days)) == 100
