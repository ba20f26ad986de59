"""A run with every table, of a training that is the same each time: ``python -m tests.golden FOLDER`` writes one.

tests/golden/format-1 was written so, once, by the version that froze the format. It is never written again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import nn

import tracer
from tracer.log.schema import TABLES

GOLDEN = Path(__file__).parent / "golden" / "format-1"
NUMBERS = GOLDEN.with_suffix(".json")


def train(path: Path) -> None:
    """Six steps of a network with a stacked weight; before the fourth, a NaN that the loop throws away."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    experts = nn.Parameter(torch.randn(2, 3))
    model.register_parameter("experts", experts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(
        model,
        path,
        stats=("mean", "std", "norm", "absmax", "zeros", "nonfinite", "smallest", "histogram"),
        applied=True,
        update=True,
        update_every=2,
        slices="experts",
        activations=True,
        histogram_every=3,
        bins=4,
        total_steps=6,
        config={"lr": 0.1, "optimizer": {"name": "SGD"}},
    ) as trace:
        for step in range(6):
            inputs = torch.randn(5, 4)
            if step == 3:
                optimizer.zero_grad()
                (model(inputs).sum() * float("nan")).backward()
            optimizer.zero_grad()
            loss = model(inputs).square().mean() + experts.square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss, accuracy=step / 6)


def rows(path: Path) -> dict[str, list[list[Any]]]:
    """Every table of a run, its columns first, as JSON has it: numbers by their repr, times in microseconds."""
    found = {}
    for table in TABLES:
        frame = tracer.scan(path, table).with_columns(pl.col("time").dt.epoch("us")).collect()
        texts = [[repr(value) if isinstance(value, float) else value for value in row] for row in frame.iter_rows()]
        found[table] = [list(frame.columns), *sorted(texts, key=repr)]
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train(folder)
    folder.with_suffix(".json").write_text(json.dumps(rows(folder), indent=0, ensure_ascii=False), encoding="utf-8")
