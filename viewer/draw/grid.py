"""Where the panels of many metrics stand: large ones beside each other, and lines of small ones between them.

Every place is known in inches: matplotlib's own layout of so many panels costs several times as much as drawing them.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec

from viewer.draw.theme import narrow

# A small panel is at least so wide and so high; and higher, where that leaves it wide enough.
_WIDE, _LOW, _HIGH = 1.1, 0.3, 0.75
# Room for the labels of axes, between panels and at the edges, and for a line of the title.
_LEFT, _RIGHT, _BOTTOM, _ABOVE, _LINE = 0.8, 0.15, 0.5, 0.2, 0.22
_BESIDE, _BETWEEN, _ROWS = 0.42, 0.2, 0.35
# The heights of a row of large panels, and of a line of small ones, which together have at most the last one.
_LARGE, _SMALL, _TOGETHER = 3.0, 1.5, 7.5


class Grid:
    """The axes of panels, which share their x axis.

    Args:
        figure: An empty figure.
        above: How many large panels stand above the small ones.
        groups: How many small panels each group has; it begins a line.
        below: How many large panels stand below the small ones.

    Attributes:
        large: The axes of large panels.
        small: Those of small panels, of all groups.
        firsts: The small panels with which groups begin.
    """

    def __init__(self, figure: Figure, above: int, groups: Sequence[int], below: int) -> None:
        figure.set_layout_engine("none")
        wide, high = figure.get_size_inches()
        columns, lines = _shape(groups, wide, high)
        stacked = narrow(figure)
        counts = [above if stacked else min(above, 1), lines, below if stacked else min(below, 1)]
        heights = [_LARGE * counts[0], min(_SMALL * lines, _TOGETHER), _LARGE * counts[2]]
        self._figure = figure
        self._grid = GridSpec(3, 1, figure, height_ratios=[max(height, 1e-3) for height in heights])
        self._made_for: object = None
        self.large: list[Axes] = []
        self.small: list[Axes] = []
        self.firsts: list[Axes] = []
        self.fit(0)
        for row, count in ((0, above), (2, below)):
            shape = (count, 1) if stacked else (1, count)
            for number in range(count):
                self.large.append(self._add(self._inner(row, shape, 1.5 * _BESIDE, _ROWS)[number]))
        line = 0
        inner = self._inner(1, (lines, columns), _BESIDE, _BETWEEN)
        for count in groups:
            self.firsts.append(self._add(inner[line * columns]))
            self.small.append(self.firsts[-1])
            for number in range(line * columns + 1, line * columns + count):
                self.small.append(self._add(inner[number]))
            line += -(-count // columns)

    def _inner(self, row: int, shape: tuple[int, int], beside: float, between: float) -> list[SubplotSpec]:
        """The places in a row, so many inches apart."""
        place = self._grid[row, 0].get_position(self._figure)
        lines, columns = shape
        wide, high = self._figure.get_size_inches()
        wide, high = (
            (place.width * wide - (columns - 1) * beside) / columns,
            (place.height * high - (lines - 1) * between) / lines,
        )
        grid = self._grid[row, 0].subgridspec(*shape, wspace=max(0, beside / wide), hspace=max(0, between / high))
        return [grid[number] for number in range(lines * columns)]

    def _add(self, place: SubplotSpec) -> Axes:
        return self._figure.add_subplot(place, sharex=next(iter(self.large), None))

    def fit(self, lines: int) -> None:
        """Leave room for so many lines of a title."""
        wide, high = self._figure.get_size_inches()
        if self._made_for == (wide, high, lines):
            return
        self._made_for = wide, high, lines
        grid = self._grid
        grid.left, grid.right, grid.bottom = _LEFT / wide, 1 - _RIGHT / wide, _BOTTOM / high
        grid.top = max(1 - (_ABOVE + _LINE * lines) / high, grid.bottom + 0.1)
        grid.hspace = 3 * _ROWS / (high * (grid.top - grid.bottom) - 2 * _ROWS)
        for axes in (*self.large, *self.small):
            place = axes.get_subplotspec()
            assert place is not None, "it is in the grid"
            axes.set_position(place.get_position(self._figure))


def room(figure: Figure) -> int:
    """How many small panels a figure has room for."""
    wide, high = figure.get_size_inches()
    return max(2, int((wide - _LEFT) / _WIDE)) * max(1, int(high / (3 if narrow(figure) else 2) / (_LOW + _BETWEEN)))


def _shape(groups: Sequence[int], wide: float, high: float) -> tuple[int, int]:
    """As few columns as leave the small panels high enough, or the fewest lines; and how many lines that makes."""
    most = max(2, int((wide - _LEFT) / _WIDE))
    lines_of = {columns: sum(-(-count // columns) for count in groups) for columns in range(min(4, most), most + 1)}
    enough = (columns for columns, lines in lines_of.items() if lines * (_HIGH + _BETWEEN) <= high / 2)
    columns = next(enough, min(lines_of, key=lambda columns: lines_of[columns]))
    return columns, lines_of[columns]
