"""The table of runs as text: its columns, and as many of them as fit beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from tracer.log.runs import RunRow, better, differing, in_words
from tracer.log.text import plain, shortened

NOTHING = "–"
# Columns are left out in this order, the last first.
NAMED, COUNTED, MEASURED, FURTHER, OTHERS = range(5)
_LONGEST_VALUE, _SHORTEST_NAME = 20, 12


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: Its heading.
        cells: The text of each run.
        sorts: What each run is sorted by, a number or a text; None where it has nothing.
        place: Which columns are left out before it.
        style: How its cells look, as rich takes it.
    """

    name: str
    cells: Sequence[str]
    sorts: Sequence[Any] = field(default=(), repr=False)
    place: int = OTHERS
    style: str = ""

    @property
    def width(self) -> int:
        """How wide it is, in characters."""
        return max(map(cell_len, (self.name, *self.cells)))

    @property
    def right(self) -> bool:
        """Whether it holds numbers, which stand at the right."""
        return any(isinstance(key, int | float) and not isinstance(key, bool) for key in self.sorts)


def columns_of(rows: Sequence[RunRow]) -> list[Column]:
    """The columns of a table of runs: name, state, beginning and steps, metrics, and the config where it differs."""
    columns = [
        Column("run", [shortened(row.name) for row in rows], [row.name for row in rows], NAMED),
        Column("state", [row.state for row in rows], [row.state for row in rows], COUNTED),
        Column(
            "started",
            [f"{row.started.astimezone():%Y-%m-%d %H:%M}" for row in rows],
            [row.started.timestamp() for row in rows],
            OTHERS,
        ),
        Column(
            "steps",
            [NOTHING if row.steps is None else f"{row.steps:,}" for row in rows],
            [row.steps for row in rows],
            COUNTED,
        ),
    ]
    last, best = [row.last for row in rows], [row.best for row in rows]
    names, first = _ordered({name for of_run in last for name in of_run})
    for name in names:
        place = MEASURED if name in first else OTHERS
        columns.append(_numbers(name, [of.get(name) for of in last], place))
        if better(name) is not None:
            columns.append(_numbers(f"best {name}", [of.get(name) for of in best], place))
    configs = [row.config for row in rows]
    taken = {column.name for column in columns}
    further = [_values(name, configs) for name in differing(configs)]
    return columns + [replace(each, name=f"config {each.name}") if each.name in taken else each for each in further]


def _ordered(names: set[str]) -> tuple[list[str], set[str]]:
    """Metrics in order, those first of which low or high numbers are better; and the first of either kind."""
    kinds = {"low": 0, "high": 1, None: 2}
    ordered = sorted(names, key=lambda name: (kinds[better(name)], len(name), name))
    first = {next((name for name in ordered if better(name) == kind), "") for kind in ("low", "high")}
    return ordered, first


def _numbers(name: str, numbers: Sequence[float | None], place: int) -> Column:
    cells = [NOTHING if number is None else f"{number:.4g}" for number in numbers]
    return Column(shortened(name), cells, numbers, place)


def _values(name: str, configs: Sequence[Mapping[str, Any]]) -> Column:
    values = [config.get(name) for config in configs]
    texts = [_shown(config[name]) if name in config else NOTHING for config in configs]
    numbers = all(isinstance(value, int | float | None) for value in values)
    return Column(shortened(name), texts, values if numbers else texts, FURTHER)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else shortened(in_words(value), _LONGEST_VALUE)


def table_of(columns: Sequence[Column], width: int, styles: Sequence[str] = ()) -> tuple[Table, int]:
    """As many columns as fit into a width, and how many were left out.

    Args:
        columns: The first of them holds names, which are shortened where there is no room.
        width: In characters.
        styles: A style for the name of each run.
    """
    kept = list(range(len(columns)))
    while len(kept) > 1 and _least_width(columns, kept) > width:
        kept.remove(max(kept, key=lambda index: (columns[index].place, index)))
    room = width - sum(columns[index].width + 1 for index in kept[1:])
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    texts = []
    for index in kept:
        column = columns[index]
        table.add_column(Text(column.name), no_wrap=True, justify="right" if column.right else "left")
        texts.append(list(column.cells))
    texts[0] = [shortened(name, max(room, 4)) for name in texts[0]]
    for run, cells in enumerate(zip(*texts, strict=True)):
        style = styles[run] if styles else ""
        others = zip(kept[1:], cells[1:], strict=True)
        table.add_row(Text(cells[0], style), *(Text(plain(cell), columns[index].style) for index, cell in others))
    return table, len(columns) - len(kept)


def _least_width(columns: Sequence[Column], kept: Sequence[int]) -> int:
    names, *others = (columns[index].width for index in kept)
    return min(names, _SHORTEST_NAME) + sum(width + 1 for width in others)
