"""The outputs of modules over the run, for the rules: a table of bins of steps × modules, bounded in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from viewer.reduce.cells import Cells, Floats, Integers

_CELLS, _COLUMNS = 300_000, 512
_NEVER = np.iinfo(np.int64).max


def trained(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The rows of ``activations`` that are of a step's training forward: those of validations beside them are left out.

    A part that is frozen in evaluation mode has no others, and keeps its own.
    """
    beside = pl.col("training").any().over("step", "rank", "module")
    return rows.filter(pl.col("training") | ~beside)


@dataclass(frozen=True)
class ModuleTables:
    """The outputs of every module over the run, as known at one moment. Immutable.

    Attributes:
        modules: The modules in the order in which they first gave something out, "" the model: the second axis of all
            tables.
        begins: The first step of each bin that has rows: the first axis of all tables.
        ends: The last step with a row in each.
        ranks: How many ranks have written rows.
        first_bad: Of each module the first step in which an output was not finite; -1 for none.
        rows: How many rows each cell has: of several ranks, each has its own.
        judged: In how many of them the module was in training mode; only these count in what follows.
        low: The smallest finite output; NaN without any.
        high: The largest one.
        dead: The smallest share of dead units in any row; NaN where none says.
        saturated: The sum of the saturated shares.
        bounded: In how many rows there was one.
    """

    modules: tuple[str, ...]
    begins: Integers
    ends: Integers
    ranks: int
    first_bad: Integers
    rows: Floats
    judged: Floats
    low: Floats
    high: Floats
    dead: Floats
    saturated: Floats
    bounded: Floats

    def measured(self, step: int) -> bool:
        """Whether it is certain that there are rows of a step: of few bins, or of one without a gap."""
        place = int(np.searchsorted(self.ends, step))
        if place == len(self.ends) or self.begins[place] > step:
            return False
        steps = self.ends[place] - self.begins[place] + 1
        return bool(self.rows[place].max() >= steps * self.ranks)


class ModuleHistory:
    """Takes in rows of ``activations``.

    Args:
        width: How many steps a bin covers at first.
    """

    def __init__(self, width: int = 1) -> None:
        merges = {"low": np.minimum, "high": np.maximum, "dead": np.minimum}
        sums = dict.fromkeys(("rows", "judged", "saturated", "bounded"), np.add)
        self._merges = {**merges, **sums}
        self._width = width
        self._cells: Cells | None = None
        self._first_bad = np.full(0, _NEVER)
        self._ranks: frozenset[int] = frozenset()

    def absorb(self, rows: pl.LazyFrame) -> None:
        """Take in rows."""
        frame = trained(rows).with_columns(pl.col("module").cast(pl.Categorical)).collect()
        if frame.is_empty():
            return
        names = frame["module"].unique(maintain_order=True).cast(pl.String).to_list()
        cells = self._cells = self._cells or Cells(self._merges, names, _capacity(names), self._width)
        cells.know(names)
        number, step = cells.numbers_of(frame["module"]), frame["step"].to_numpy()
        order = np.lexsort((step, number))
        training = frame["training"].to_numpy()
        low, high = _known(frame["min"], np.inf), _known(frame["max"], -np.inf)
        saturated = frame["saturated"].to_numpy()
        bounded = training & ~np.isnan(saturated)
        columns = {
            "rows": np.ones(len(step)),
            "judged": training,
            "low": np.where(training, low, np.inf),
            "high": np.where(training, high, -np.inf),
            "dead": np.where(training, _known(frame["dead"], np.inf), np.inf),
            "saturated": np.where(bounded, saturated, 0.0),
            "bounded": bounded,
        }
        cells.absorb(step[order], number[order], {name: column[order] for name, column in columns.items()})
        bad = ~(frame["min"].is_finite() & frame["max"].is_finite()).to_numpy()
        self._first_bad = np.pad(self._first_bad, (0, len(cells.params) - len(self._first_bad)), constant_values=_NEVER)
        np.minimum.at(self._first_bad, number[bad], step[bad])
        self._ranks |= set(frame["rank"].to_list())

    def tables(self) -> ModuleTables | None:
        """Give every module as known now; None before the first row."""
        if self._cells is None:
            return None
        begins, ends, columns = self._cells.filled()
        first_bad = np.where(self._first_bad == _NEVER, -1, self._first_bad)
        return ModuleTables(self._cells.params, begins, ends, len(self._ranks), first_bad, **columns)


def _capacity(names: Sequence[str]) -> int:
    return max(16, min(_COLUMNS, _CELLS // len(names)))


def _known(column: pl.Series, otherwise: float) -> Floats:
    """Numbers; what is null or not finite is otherwise."""
    numbers: Floats = column.to_numpy()
    return np.where(np.isfinite(numbers), numbers, otherwise)
