"""A real training that is too deep for its sigmoids, as the overview shows it."""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from torch import nn

import tracer
import viewer
from tests.figures import entries


def legend_of(figure: Figure) -> dict[str, float]:
    """The newest numbers of the lowest panel, by their names in its legend."""
    words = (entry.rsplit(maxsplit=1) for entry in entries(figure.axes[-1]))
    return {name: float(number) for name, number in words}


def test_ten_sigmoid_layers_are_seen_to_have_no_gradient_at_their_beginning(tmp_path: Path) -> None:
    """The overall gradient is calm, and the first layer's, in the same panel, is millions of times smaller."""
    torch.manual_seed(0)
    layers = [layer for _ in range(10) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.randn(16, 8)), torch.randint(4, (16,)))
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)
    gradients = tracer.scan(tmp_path / "run").filter(pl.col("step") == 2).collect()
    size = pl.max_horizontal(pl.col("grad_min", "grad_max").abs()).max()
    module = pl.col("param").cast(pl.String).str.extract(r"^(\d+)\.")
    sizes = dict(gradients.group_by(module).agg(size).iter_rows())
    found = legend_of(viewer.figure(tmp_path / "run"))
    assert np.isclose(found["gradient, first layer"], sizes["0"], rtol=1e-3)
    assert np.isclose(found["gradient, last layer"], sizes["20"], rtol=1e-3)
    assert found["gradient max"] > 1e5 * found["gradient, first layer"]
