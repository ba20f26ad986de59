"""A pandas that cannot be used: pyarrow imports it with its first array, and we do not."""

import subprocess
import sys
from pathlib import Path

import pytest

UNUSABLE = {
    "was built for another NumPy": "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')",
    "is too old for pyarrow": "__version__ = '1.5.3'",
}
_TRAIN = """
import torch
import tracer
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with tracer.attach(model, "run") as trace:
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
"""
_READ = "import tracer; print([tracer.scan('run', table).collect().height for table in ('extremes', 'events')])"


@pytest.mark.parametrize("why", UNUSABLE)
def test_a_pandas_that_cannot_be_used_costs_no_row_and_no_reader(tmp_path: Path, why: str) -> None:
    """A training writes all of its rows, and another process reads them, without a warning."""
    (tmp_path / "pandas.py").write_text(UNUSABLE[why])
    for program, said in ((_TRAIN, ""), (_READ, "[6, 3]\n")):
        command = [sys.executable, "-W", "error::UserWarning", "-c", program]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, said), done.stderr
