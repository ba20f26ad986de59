"""The outputs of modules by bins of steps: no row is lost, validations are left out, and modules stand as they ran."""

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.logs import activations
from viewer.reduce.modules import ModuleHistory, ModuleTables, trained

NAN, INF = math.nan, math.inf
NAMES = ("conv", "relu", "block.fc", "block", "")


def lazy(*tables: pa.Table) -> pl.LazyFrame:
    """Rows as a reader gives them."""
    return pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables]).lazy()


def tables_of(*pieces: pl.LazyFrame, width: int = 1) -> ModuleTables:
    """What is known after these pieces."""
    history = ModuleHistory(width)
    for piece in pieces:
        history.absorb(piece)
    tables = history.tables()
    assert tables is not None
    return tables


def test_without_a_row_nothing_is_known() -> None:
    """Before the first row there are no tables, and an empty part changes nothing."""
    history = ModuleHistory()
    history.absorb(lazy(activations([])))
    assert history.tables() is None


@pytest.mark.parametrize("steps", [1, 40, 3000])
@pytest.mark.parametrize("pieces", [1, 3])
def test_bins_are_those_of_a_loop_by_hand(steps: int, pieces: int) -> None:
    """Counts, sums, smallest and largest of every module and bin, however many steps share it, in whatever pieces."""
    generator = np.random.default_rng(0)
    columns = {
        "min": generator.normal(size=(steps, 5)),
        "max": generator.normal(size=(steps, 5)) + 9,
        "dead": generator.random((steps, 5)),
        "saturated": generator.random((steps, 5)),
    }
    columns["dead"][:, 0], columns["saturated"][::2, 1:] = NAN, NAN
    parts = []
    for piece in np.array_split(np.arange(steps), pieces):
        values = {name: [None if np.isnan(n) else n for n in of[piece].ravel()] for name, of in columns.items()}
        parts.append(lazy(activations(piece.tolist(), NAMES, values)))
    found = tables_of(*parts)
    assert found.modules == NAMES
    assert (found.begins[0], found.ends[-1]) == (0, steps - 1)
    assert len(found.ends) <= 512
    for place, (begin, end) in enumerate(zip(found.begins, found.ends, strict=True)):
        within = {name: of[begin : end + 1] for name, of in columns.items()}
        assert found.rows[place].tolist() == found.judged[place].tolist() == [end - begin + 1] * 5
        assert found.low[place].tolist() == within["min"].min(axis=0).tolist()
        assert found.high[place].tolist() == within["max"].max(axis=0).tolist()
        assert np.array_equal(found.dead[place], within["dead"].min(axis=0), equal_nan=True)
        assert found.saturated[place] == pytest.approx(np.nansum(within["saturated"], axis=0))
        assert found.bounded[place].tolist() == (~np.isnan(within["saturated"])).sum(axis=0).tolist()


def test_a_validation_beside_the_training_is_left_out() -> None:
    """Of a module that trained in the step, only that counts; one that is frozen in evaluation mode keeps its rows."""
    training = activations([0, 1], ["head"], {"max": [1.0, 2.0]})
    evaluation = activations([0, 1], ["frozen", "head"], {"max": [7.0, INF, 8.0, INF]}, training=False)
    rows = trained(lazy(training, evaluation)).sort("step", "max").collect()
    assert rows["max"].to_list() == [1.0, 7.0, 2.0, 8.0]
    found = tables_of(lazy(training, evaluation))
    assert found.first_bad.tolist() == [-1, -1]
    assert [found.modules[number] for number in np.flatnonzero(found.judged.any(axis=0))] == ["head"]


def test_the_first_step_that_is_not_finite_is_known_of_each_module() -> None:
    """Exactly, however many steps a bin covers; NaN and infinity alike, of any rank, and in any order of rows."""
    low = np.zeros((2000, 2))
    low[1234:, 0], low[77, 1] = NAN, -INF
    first = activations(range(2000), ["a", "b"], {"min": low.ravel().tolist()})
    found = tables_of(lazy(first.slice(2000)), lazy(first.slice(0, 2000)))
    assert found.first_bad.tolist() == [1234, 77]
    other = activations([50], ["b"], {"max": [NAN]}, rank=1)
    found = tables_of(lazy(first), lazy(other))
    assert (found.first_bad.tolist(), found.ranks) == ([1234, 50], 2)


def test_it_is_known_whether_a_step_was_measured() -> None:
    """Where every step was, each is, also in wide bins; in wide bins with gaps, none is for certain."""
    each = tables_of(lazy(activations(range(3000), NAMES)))
    assert all(each.measured(step) for step in range(3000))
    every = tables_of(lazy(activations(range(0, 400, 10), NAMES)), width=10)
    assert [step for step in range(500) if every.measured(step)] == list(range(0, 400, 10))
    wide = tables_of(lazy(activations(range(0, 30_000, 10), NAMES)), width=10)
    assert not any(wide.measured(step) for step in range(30_000))
    apart = [lazy(activations(steps, rank=rank)) for rank, steps in enumerate((range(0, 3000, 2), range(0, 3000, 2)))]
    assert not tables_of(*apart).measured(1)


def test_modules_stand_in_the_order_in_which_they_ran() -> None:
    """Those that join later stand behind them."""
    found = tables_of(lazy(activations([0], ["z", "a", "m"])), lazy(activations([1], ["k", "m", "b", "z"])))
    assert found.modules == ("z", "a", "m", "k", "b")
