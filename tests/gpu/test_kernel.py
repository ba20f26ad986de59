"""Extremes of many tensors at once, on a GPU: exact, in two launches, and without a wait."""

import math
import threading
from collections.abc import Sequence

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu.test_cuda import nothing_waits
from tests.tracer.test_kernel import DTYPES, PIECE, assert_same, by_torch, needs_triton, special_numbers
from tracer.kernel import Reducer, available

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"), needs_triton]


def ready(dtype: torch.dtype) -> Reducer:
    """A reducer that another thread has prepared."""
    device = torch.device("cuda", torch.cuda.current_device())
    assert available(device)
    reducer = Reducer(dtype, device)
    thread = threading.Thread(target=reducer.prepare)
    thread.start()
    thread.join()
    assert reducer.ready
    return reducer


def reduced(reducer: Reducer, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows that one call writes, which nothing waits for."""
    rows = torch.zeros(len(tensors), 2, dtype=tensors[0].dtype, device="cuda")
    pairs = [(tensor, (row[0], row[1])) for tensor, row in zip(tensors, rows, strict=True)]
    with nothing_waits(), torch.no_grad():
        reducer.reduce(pairs)
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_are_those_of_aminmax_on_the_host(dtype: torch.dtype) -> None:
    """Special numbers, every alignment, permuted orders, gaps and thousands of pieces, in one call."""
    special = special_numbers(dtype)
    many = [*special.unbind(), *torch.combinations(special).unbind()]
    many += [torch.randn(ahead + size).to(dtype)[ahead:] for ahead in range(9) for size in (1, 9, PIECE - 1, PIECE + 3)]
    many += [torch.randn(30, 40, 50).to(dtype).permute(2, 0, 1), torch.randn(40, 6).to(dtype)[:, 1:5]]
    many += [torch.randn(30_000_000).to(dtype)]
    for place in (0, 1, PIECE, 50_000, 99_999):
        tensor = torch.randn(100_000).to(dtype)
        tensor[place] = math.nan
        many.append(tensor)
    here = [torch.empty_strided(each.shape, each.stride(), dtype=dtype, device="cuda").copy_(each) for each in many]
    assert_same(reduced(ready(dtype), here).cpu(), by_torch(many))


def test_numbers_beyond_two_to_the_31_are_read() -> None:
    """The extremes of a tensor of more than 2^31 elements lie beyond that place."""
    numbers = torch.zeros((1 << 31) + 100_003, dtype=torch.bfloat16, device="cuda")
    numbers[-1], numbers[-70_000] = -3.0, 5.0
    assert reduced(ready(torch.bfloat16), [numbers]).tolist() == [[-3.0, 5.0]]


def test_hundreds_of_tensors_take_two_launches() -> None:
    """A call whose tensors the device knows already launches two kernels, copies nothing, and sets no memory."""
    reducer = ready(torch.float32)
    pairs = [(torch.randn(100, 77, device="cuda"), torch.zeros(2, device="cuda").unbind()) for _ in range(300)]
    again = [(tensor, (places[0], places[1])) for tensor, places in pairs]
    reducer.reduce(again)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        reducer.reduce(again)
        torch.cuda.synchronize()
    calls = {event.key: event.count for event in profiled.key_averages()}
    assert sum(count for key, count in calls.items() if "LaunchKernel" in key) == 2, calls
    assert not [key for key in calls if "Memcpy" in key or "Memset" in key], calls
    assert reducer.sent == 2


def test_another_stream_is_sent_its_own_table() -> None:
    """Calls in two streams by turns are right, though neither waits for the other."""
    reducer, other = ready(torch.float32), torch.cuda.Stream()
    tensors = [torch.randn(1000, device="cuda") for _ in range(50)]
    expected = by_torch([tensor.cpu() for tensor in tensors])
    for stream in (torch.cuda.current_stream(), other) * 2:
        with torch.cuda.stream(stream):
            rows = reduced(reducer, tensors)
        stream.synchronize()
        assert_same(rows.cpu(), expected)


def test_preparing_ends_no_capture_of_another_thread() -> None:
    """A graph that this thread captures while another thread prepares can be replayed."""
    reducer = Reducer(torch.float64, torch.device("cuda", torch.cuda.current_device()))
    numbers, graph = torch.ones(10, device="cuda"), torch.cuda.CUDAGraph()
    thread = threading.Thread(target=reducer.prepare)
    with torch.cuda.graph(graph):
        thread.start()
        thread.join()
        numbers.add_(1.0)
    graph.replay()
    assert reducer.ready
    assert numbers.tolist() == [2.0] * 10
