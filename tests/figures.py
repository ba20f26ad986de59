"""Figures in tests: what is to be seen in them, and what a user does to them."""

import itertools
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backend_bases import MouseButton, MouseEvent, NavigationToolbar2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from viewer.draw.theme import SIZE_INCHES

PHONE = (3.6, 6.4)
# Names that are no mathematics, no markup and no secret to matplotlib, but mere letters.
NAMES = [
    "_hidden_loss", r"$\frac{$ loss", "<script>loss</script>", "λ-loss é ✓", "$loss$", "a\nloss\tb", "", "\\", "%s {0}",
    "loss/" * 60,
]  # fmt: skip


def canvas(size: tuple[float, float] = SIZE_INCHES) -> Figure:
    """An empty figure, in memory."""
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def draw(figure: Figure) -> None:
    """Draw it, unless nothing has changed since; as a window does."""
    if figure.stale:
        figure.canvas.draw()


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """What is to be seen, from the upper row down, as RGB."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def artists(figure: Figure) -> int:
    """How many things are in a figure."""
    return sum(len(parent.get_children()) for parent in [figure, *figure.axes])


def entries(axes: Axes) -> list[str]:
    """What the legend says."""
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def press(
    figure: Figure, name: str, pixel: Sequence[float] | npt.NDArray[np.float64], button: MouseButton | None = None
) -> None:
    """Let the mouse do something at a pixel, counted from the lower left."""
    # Tools that act on the figure's last picture need one.
    draw(figure)
    event = MouseEvent(name, figure.canvas, int(pixel[0]), int(pixel[1]), button)
    if name == "motion_notify_event":
        event.buttons = frozenset({MouseButton.LEFT})  # type: ignore[attr-defined]
    event._process()  # type: ignore[attr-defined]


def click(axes: Axes, x: float, y: float, button: MouseButton = MouseButton.LEFT) -> None:
    """Click at a place in the numbers of the axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    draw(figure)
    press(figure, "button_press_event", axes.transData.transform((x, y)), button)


def zoom(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> NavigationToolbar2:
    """Draw a rectangle with the zoom tool of the toolbar, which stays chosen."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    toolbar = figure.canvas.toolbar or NavigationToolbar2(figure.canvas)
    if not toolbar.mode:
        toolbar.zoom()
    draw(figure)
    here, there = axes.transData.transform([(x[0], y[0]), (x[1], y[1])])
    press(figure, "button_press_event", here, MouseButton.LEFT)
    press(figure, "motion_notify_event", there)
    press(figure, "button_release_event", there, MouseButton.LEFT)
    return toolbar


def texts(figure: Figure) -> Iterator[Text]:
    """Every text that is to be seen."""
    if figure.stale:
        # Where texts stand is known without a picture.
        figure.draw_without_rendering()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if low <= tick.get_loc() <= high:
                    yield from (label for label in (tick.label1, tick.label2) if _seen(label))
            yield from (text for text in (axis.offsetText, axis.label) if _seen(text))
    ticks = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
    } | {
        id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in (axis.offsetText, axis.label)
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in ticks and _seen(text):
            yield text


def _seen(text: Text) -> bool:
    return text.get_visible() and bool(text.get_text().strip())


def check_texts(figure: Figure) -> None:
    """Every text lies inside the figure, and apart from each other."""
    found = list(texts(figure))
    assert found
    boxes = [text.get_window_extent() for text in found]
    frame = figure.bbox
    for text, box in zip(found, boxes, strict=True):
        inside = frame.padded(1)
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, f"cut off: {text}"
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1, f"cut off: {text}"
    for (one, first), (other, second) in itertools.combinations(zip(found, boxes, strict=True), 2):
        # Boxes of ticks above one another touch by a pixel, where no letter is.
        assert not first.padded(-1).overlaps(second.padded(-1)), f"on one another: {one} {other}"


def contrast(colour: object, ground: object) -> float:
    """How far apart two colours are, from 1 to 21, as the WCAG count."""

    def luminance(of: object) -> float:
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in mpl.colors.to_rgb(of)]  # type: ignore[arg-type]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted([luminance(colour), luminance(ground)])
    return (light + 0.05) / (dark + 0.05)


def check_contrast(figure: Figure) -> None:
    """Every text, tick and spine is told from the ground: 4.5 for what is read, 3 for what is seen."""
    ground = figure.get_facecolor()
    for text in texts(figure):
        box = text.get_bbox_patch()
        assert contrast(text.get_color(), ground if box is None else box.get_facecolor()) >= 4.5, text
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            assert mpl.colors.to_rgb(axes.get_facecolor()) == mpl.colors.to_rgb(ground)
        for spine in axes.spines.values():
            assert not spine.get_visible() or contrast(spine.get_edgecolor(), ground) >= 3, spine
        for axis in (axes.xaxis, axes.yaxis):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                assert contrast(tick.tick1line.get_markeredgecolor(), ground) >= 3, tick
                assert contrast(tick.tick2line.get_markeredgecolor(), ground) >= 3, tick
