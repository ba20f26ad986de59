"""A finding says which batch it was, in a real training."""

from pathlib import Path as OnDisk

import torch

import tracer
import viewer
from tests.commands import viewer_says
from tests.digits import digits, mlp
from tracer.log.store import Local as Path
from viewer.snapshot import Batch

NAN = float("nan")


def test_a_nan_names_the_batch_of_its_step_in_a_real_training(tmp_path: Path) -> None:
    """Everywhere: in the report, as JSON, as a table of a notebook and for a command; batches are in no order."""
    inputs, labels = digits()
    model = mlp(64, 16, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = torch.randperm(28, generator=torch.Generator().manual_seed(1)).tolist()
    ill = order[20]
    with tracer.attach(model, tmp_path / "run") as trace:
        for index in order:
            at = slice(64 * index, 64 * index + 64)
            optimizer.zero_grad()
            pictures = inputs[at] * (NAN if index == ill else 1)
            loss = torch.nn.functional.cross_entropy(model(pictures), labels[at])
            loss.backward()
            optimizer.step()
            trace.log(loss=loss, batch=index)
    (finding,) = viewer.check(tmp_path / "run").runs[0].findings
    assert finding.batches == (Batch("batch", 20, 0, ill),)
    assert f"became NaN or infinite at step 20 (batch {ill}), while" in finding.sentence
    done = viewer_says(tmp_path, "check", "run", "--json", "--on-finding", 'echo "$GRADWATCH_BATCH" > said')
    assert f'"batches": [{{"name": "batch", "step": 20, "rank": 0, "value": {ill}}}]' in " ".join(
        done.stdout.replace("[\n", "[").replace("{\n", "{").split()
    ).replace("[ ", "[").replace("{ ", "{").replace(" }", "}").replace(" ]", "]")
    assert OnDisk(tmp_path / "said").read_text() == f"{ill}\n"
    frame = viewer.check(tmp_path / "run").frame
    assert frame["batches"].to_list() == [[{"name": "batch", "step": 20, "rank": 0, "value": ill}]]
