"""The heat map of magnitudes: no bin without rows is empty, wherever the run ends."""

import numpy as np
import polars as pl
import pytest

from tests.logs import extremes
from viewer.reduce.heatmap import Magnitudes


@pytest.mark.parametrize("steps", [*range(63, 70), 128, 129, 131, 256])
@pytest.mark.parametrize("pieces", [1, 3])
def test_no_step_count_leaves_an_empty_column(steps: int, pieces: int) -> None:
    """A run of any length, opened at once or in pieces, begins at its first step, and has a number in each column."""
    magnitudes = Magnitudes(["grad_min", "grad_max"], ["weight"], capacity=64)
    for piece in np.array_split(np.arange(steps + 1), pieces):
        magnitudes.absorb(pl.DataFrame(pl.from_arrow(extremes(piece.tolist()))).lazy())
    heatmap = magnitudes.heatmap()
    assert heatmap is not None
    assert heatmap.first_step == 0
    assert heatmap.magnitudes.tolist() == [[2.0] * (steps // heatmap.width + 1)]
    assert 32 < heatmap.magnitudes.shape[1] <= 64
    ends, _ = magnitudes.ends()
    assert ends[-1] == steps
