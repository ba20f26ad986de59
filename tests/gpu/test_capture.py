"""CUDA graphs on a device: neither the tracer's work nor its waits come into a capture."""

from pathlib import Path

import pytest
import torch

import tracer
from tests.training import metric, mlp

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_graph_is_captured_while_the_daemon_waits_for_copies(tmp_path: Path) -> None:
    """The capture ends well while copies are on their way, and what is logged after a replay arrives."""
    model = mlp().cuda()
    inputs = torch.randn(4, 6).cuda()
    with tracer.attach(model, tmp_path / "run", activations=True) as trace:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side), torch.no_grad():
            model(inputs)
        side.synchronize()
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(100):
            busy = (busy @ busy).tanh()
        trace.log(busy=busy[0, 0])
        graph = torch.cuda.CUDAGraph()
        with pytest.warns(tracer.TracerWarning) as caught, torch.cuda.graph(graph), torch.no_grad():
            outputs = model(inputs).sum()
            trace.log(outputs=outputs)
        graph.replay()
        trace.log(outputs=outputs)
    assert len(caught) == 2
    assert metric(tmp_path / "run", "outputs") == [(0, outputs.item())]
    assert len(metric(tmp_path / "run", "busy")) == 1
