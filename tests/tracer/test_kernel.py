"""Extremes of many tensors at once, in Triton's interpreter on the host, and what Triton compiles for devices.

What only a device shows is in tests/gpu/test_kernel.py.
"""

import importlib.util
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.halves import first_of
from tests.interpreter import Run, interpreter
from tracer.kernel import Reducer, available, cut

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
HOST = torch.device("cpu")
# Where the kernels cut: how many numbers a program reads at once, and how many it reads at least.
BLOCK, PIECE = 2048, 8 * 2048
UNTOUCHED = 777.0


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Calls functions where Triton interprets."""
    with interpreter() as run:
        yield run


def special_numbers(dtype: torch.dtype) -> torch.Tensor:
    """NaN of either sign, quiet and signalling, infinities, zeros, and the ends of the normal and subnormal numbers."""
    bits = BITS[dtype.itemsize]
    infinity = torch.tensor(math.inf, dtype=dtype).view(bits).item()
    tiny = torch.tensor(torch.finfo(dtype).tiny, dtype=dtype).view(bits).item()
    quiet = torch.tensor(math.nan, dtype=dtype).view(bits).item()
    positive = torch.tensor([quiet, infinity + 1, infinity, infinity - 1, tiny, tiny - 1, 1, 0], dtype=bits)
    return torch.cat([positive, positive + torch.iinfo(bits).min]).view(dtype)


def by_torch(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """What ``torch.aminmax`` says of each tensor, a row each."""
    return torch.stack([torch.stack(torch.aminmax(tensor)) for tensor in tensors])


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal as numbers, where a NaN equals a NaN; numbers of one dtype that are equal have the same bits, but for 0."""
    assert found.dtype is expected.dtype
    same = (found == expected) | (found.isnan() & expected.isnan())
    wrong = (~same).any(1).nonzero().flatten().tolist()
    assert not wrong, [(index, found[index].tolist(), expected[index].tolist()) for index in wrong]


# What is run where Triton interprets.
def reduce_each(dtype: torch.dtype, calls: Sequence[Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, int]]:
    """The rows that one reducer writes in one call after the other, and how often it has sent something by then."""
    reducer, said = Reducer(dtype, HOST), []
    for tensors in calls:
        rows = torch.full((len(tensors), 2), UNTOUCHED, dtype=dtype)
        with torch.no_grad():
            reducer.reduce([(tensor, (row[0], row[1])) for tensor, row in zip(tensors, rows, strict=True)])
        said.append((rows, reducer.sent))
    return said


def reduced(run: Run, dtype: torch.dtype, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows that one call of a reducer writes."""
    ((rows, _),) = run(reduce_each, dtype, [tensors])
    assert isinstance(rows, torch.Tensor)
    return rows


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype, size, alignment, memory order and range, with special numbers anywhere, or with none."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9), st.integers(1, 200)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    ahead = draw(st.integers(0, 9))
    numbers = torch.randn(ahead + math.prod(shape), generator=generator, dtype=torch.float64)
    numbers = numbers * draw(st.sampled_from([1.0, 1e-44, 1e-6, 1e3])) + draw(st.sampled_from([0.0, 50.0, -50.0]))
    flat = numbers.to(dtype)[ahead:]
    special = special_numbers(dtype)
    for _ in range(draw(st.integers(0, 3))):
        flat[draw(st.integers(0, len(flat) - 1))] = special[draw(st.integers(0, len(special) - 1))]
    return flat.view(shape).permute(draw(st.permutations(range(4))))


@needs_triton
@settings(max_examples=20)
@given(st.lists(tensors(), min_size=1, max_size=8))
def test_extremes_are_those_of_aminmax(run: Run, many: list[torch.Tensor]) -> None:
    """Whatever the dtype, size, alignment, memory order and numbers, each row is that of ``torch.aminmax``."""
    for dtype in {tensor.dtype for tensor in many}:
        alike = [tensor for tensor in many if tensor.dtype is dtype]
        ((rows, sent),) = run(reduce_each, dtype, [alike])
        assert sent == 1
        assert_same(rows, by_torch(alike))


@needs_triton
@pytest.mark.parametrize("dtype", first_of(DTYPES))
def test_special_numbers_beside_each_other(run: Run, dtype: torch.dtype) -> None:
    """Each special number alone, each pair of them, and each with ordinary numbers beside it: hundreds of tensors."""
    special = special_numbers(dtype)
    ordinary = torch.tensor([1.0, -3.0], dtype=dtype)
    many = [*special.unbind(), *torch.combinations(special).unbind()]
    many += [
        torch.cat(each)
        for number in special.split(1)
        for each in ((number, ordinary), (ordinary, -number), (ordinary, number, ordinary))
    ]
    assert len(many) > 180
    assert_same(reduced(run, dtype, many), by_torch(many))


@needs_triton
@pytest.mark.parametrize("dtype", first_of(DTYPES))
def test_no_number_is_missed_where_tensors_are_cut(run: Run, dtype: torch.dtype) -> None:
    """A NaN, a least and a largest number count at every end of a block, a piece and a tensor, aligned or not."""
    many = []
    for ahead, size in itertools.product((0, 3), (1, 7, 9, BLOCK - 1, BLOCK, BLOCK + 1, PIECE, PIECE + BLOCK + 9)):
        edges = {edge + near for edge in (0, 8, BLOCK, PIECE, PIECE + BLOCK, size) for near in (-3, -1, 0)}
        for number, place in enumerate(sorted(edge for edge in edges if 0 <= edge < size)):
            tensor = torch.rand(ahead + size).to(dtype)[ahead:]
            tensor[place] = (-99.0, 99.0, math.nan)[number % 3]
            many.append(tensor)
    assert_same(reduced(run, dtype, many), by_torch(many))


@needs_triton
def test_nothing_beside_a_tensor_is_read(run: Run) -> None:
    """Numbers right before and after a tensor in memory, larger and smaller than all of it, do not count."""
    many = []
    for size in (1, 3, BLOCK - 1, BLOCK, PIECE + 5):
        for ahead in (4, 5, 7):
            around = torch.full((ahead + size + 9,), math.nan)
            around[:ahead:2] = math.inf
            around[ahead : ahead + size] = torch.rand(size)
            many.append(around[ahead : ahead + size])
    assert_same(reduced(run, torch.float32, many), by_torch(many))


@needs_triton
def test_places_of_what_is_left_out_or_empty_stay(run: Run) -> None:
    """Among tensors of all sizes, one without an element leaves its places, and so does one that is not named."""
    rows = run(reduce_every_other, [torch.randn(size) for size in (5, 5, 0, 5, 70_000, 0, 1, 3)])
    assert rows[1::2].eq(UNTOUCHED).all()
    assert rows[2].eq(UNTOUCHED).all()
    assert not rows[[0, 4, 6]].eq(UNTOUCHED).any()


def reduce_every_other(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows for all tensors, of which the reducer is given every other one."""
    rows = torch.full((len(tensors), 2), UNTOUCHED)
    pairs = [(tensor, (row[0], row[1])) for tensor, row in zip(tensors, rows, strict=True)]
    Reducer(torch.float32, HOST).reduce(pairs[::2])
    return rows


@needs_triton
def test_what_cannot_be_read_as_it_lies_is_reduced_by_itself(run: Run) -> None:
    """Gaps, repeats, overlaps, another dtype, a sparse tensor and a lazy negation cost exactness nowhere."""
    wide = torch.randn(40, 6)
    single = torch.randn(1, dtype=torch.complex64).conj()
    sparse = [torch.tensor(each).to_sparse() for each in ([[0.0, 2.0], [0.0, 5.0]], [5.0])]
    odd = [
        wide[:, 1:5],
        wide[::2],
        torch.randn(3, 1).expand(3, 4),
        torch.randn(9).as_strided((3, 3), (1, 1)),
        torch.randn(7).bfloat16(),
        *sparse,
        single.imag,
    ]
    assert single.imag.is_neg()
    ((rows, sent),) = run(reduce_each, torch.float32, [odd])
    assert sent == 0
    assert_same(rows, by_torch([tensor.to_dense().float() for tensor in odd]))
    mixed = [torch.randn(3), *odd, torch.randn(4, 5).t()]
    ((rows, sent),) = run(reduce_each, torch.float32, [mixed])
    assert sent == 1
    assert_same(rows, by_torch([tensor.to_dense().float() for tensor in mixed]))


@needs_triton
def test_a_table_is_sent_when_something_has_changed(run: Run) -> None:
    """The same tensors and places send nothing, though numbers differ; others, fewer, or in another order do."""
    assert run(reduce_while_things_change) == [1, 1, 2, 3, 4, 5]


def reduce_while_things_change() -> list[int]:
    """How much was sent after each of several calls, each of which is checked."""
    reducer, sent = Reducer(torch.float32, HOST), []
    one, two, shorter = (storage := torch.randn(100)), torch.randn(100), storage[:60]
    rows = torch.zeros(3, 2)
    outs = [(row[0], row[1]) for row in rows]
    for tensors, places in [
        ((one, two), (0, 1)),
        ((one, two), (0, 1)),
        ((one, two), (1, 2)),
        ((two, one), (1, 2)),
        ((two, shorter), (1, 2)),
        ((two,), (1,)),
    ]:
        storage.mul_(-2.0)
        reducer.reduce([(tensor, outs[place]) for tensor, place in zip(tensors, places, strict=True)])
        assert_same(rows[list(places)], by_torch(tensors))
        sent.append(reducer.sent)
    return sent


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thousands_of_pieces_become_one_tensor(run: Run, dtype: torch.dtype) -> None:
    """Extremes of pieces are gathered beyond one block of them, a NaN in one of them included."""
    counts = [1, 5000, 3, BLOCK, BLOCK + 1, 9000]
    partials = torch.randn(sum(counts), 2, dtype=dtype).sort(1).values
    partials[sum(counts[:2])] = math.nan
    expected = [(part[:, 0].amin(), part[:, 1].amax()) for part in partials.split(counts)]
    assert_same(run(gather, counts, partials), torch.tensor(expected, dtype=dtype))


def gather(counts: Sequence[int], partials: torch.Tensor) -> torch.Tensor:
    """What the second kernel makes of so many pieces of each tensor."""
    from tracer import device

    rows = torch.zeros(len(counts), 2, dtype=partials.dtype)
    ends = np.cumsum(counts)
    places = [[place.data_ptr() for place in column.unbind()] for column in rows.t().unbind()]
    table = np.column_stack([ends, ends, ends - counts, ends, *places])
    device.gather_pieces[(len(counts),)](
        torch.from_numpy(table).flatten(), partials, **device.constants(partials.dtype)[1]
    )
    return rows


@needs_triton
@pytest.mark.parametrize("ahead", [0, 3])
def test_numbers_beyond_two_to_the_31_are_read(run: Run, ahead: int) -> None:
    """Pieces of a tensor of more than 2^31 elements, the last included, are those that lie there in memory.

    Only these pieces are run, and only their memory is touched: nobody has the time or the memory for all of them.
    """
    found, expected = run(reduce_far_pieces, ahead)
    assert_same(found, expected)


def reduce_far_pieces(ahead: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first kernel makes of the last three pieces of a huge tensor, and what torch says of them."""
    from tracer import device

    dtype = torch.float16
    elements = (1 << 31) + 2 * PIECE + 77
    numbers = torch.empty(ahead + elements, dtype=dtype)[ahead:]
    aligned = -numbers.data_ptr() % 16 // 2
    count = -(-elements // PIECE)
    far = [numbers[aligned + piece * PIECE :][:PIECE] for piece in range(count - 3, count)]
    for number, part in enumerate(far, 1):
        part.copy_(number * torch.randn(len(part)))
    assert far[1].data_ptr() - numbers.data_ptr() > 2 * (1 << 31)
    # The first program has a number far below 0 for its tensor's first piece, and is the third last piece of it.
    table = torch.tensor([numbers.data_ptr(), elements, 3 - count, 3, 0, 0])
    partials = torch.zeros(3, 2)
    owners = torch.zeros(3, dtype=torch.int64)
    device.reduce_pieces[(3,)](table, owners, partials, PIECE, **device.constants(dtype)[0])
    return partials.to(dtype), by_torch(far)


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=500), st.sampled_from([BLOCK // 2, BLOCK]))
def test_pieces_cover_tensors_and_are_not_too_many(elements: list[int], block: int) -> None:
    """Whatever the sizes, pieces reach to the end of each tensor, none lies beyond it, and one fits an int32."""
    piece, counts = cut(elements, block)
    assert piece % block == 0
    assert 8 * block <= piece < 2**31
    assert counts.sum() <= 8192 + len(elements)
    for count, size in zip(counts.tolist(), elements, strict=True):
        assert (count - 1) * piece < size <= count * piece


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
def test_prepare_makes_ready(run: Run, dtype: torch.dtype) -> None:
    """A reducer whose numbers are right is ready, and has kept nothing of the trial."""
    assert run(prepared, dtype) == (False, True, [(1.0, 2.0)])


def prepared(dtype: torch.dtype) -> tuple[bool, bool, list[tuple[float, float]]]:
    """Whether a reducer is ready before and after it is prepared, and what it then gives for 1 and 2."""
    reducer = Reducer(dtype, HOST)
    before = reducer.ready
    reducer.prepare()
    row = torch.zeros(2, dtype=dtype)
    reducer.reduce([(torch.tensor([2.0, 1.0], dtype=dtype), (row[0], row[1]))])
    return before, reducer.ready, [tuple(row.tolist())]


@needs_triton
def test_wrong_numbers_make_nothing_ready(run: Run) -> None:
    """On a device where the kernels do not do what they should, ``prepare`` raises."""
    assert run(prepared_where_kernels_do_nothing) == ("the kernels' extremes are [[0.0, 0.0],", False)


def prepared_where_kernels_do_nothing() -> tuple[str, bool]:
    """How the error of ``prepare`` begins, and whether the reducer is ready then."""
    from tracer import device

    reducer, said = Reducer(torch.float32, HOST), ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "launch", lambda *_: None)
        try:
            reducer.prepare()
        except RuntimeError as error:
            said = str(error)
    return said[:38], reducer.ready


@needs_triton
def test_places_of_another_dtype_are_refused(run: Run) -> None:
    """Nothing is written into places of other sizes, which raises; what was ready is not any more."""
    assert run(reduce_into_other_places) == [
        "a place of torch.float16 on cpu for torch.float32 on cpu",
        [0.0, 0.0],
        False,
    ]


def reduce_into_other_places() -> list[Any]:
    """What a reducer says of places of another dtype, what is in them, and whether it is still ready."""
    reducer, row = Reducer(torch.float32, HOST), torch.zeros(2, dtype=torch.float16)
    reducer.prepare()
    try:
        reducer.reduce([(torch.randn(5), (row[0], row[1]))])
    except ValueError as error:
        return [str(error), row.tolist(), reducer.ready]
    return []


@needs_triton
def test_a_launch_that_fails_raises_and_is_not_tried_again() -> None:
    """Where Triton finds no device for a tensor, ``prepare`` and ``reduce`` raise, and no reducer is ready."""
    reducer, row = Reducer(torch.float32, HOST), torch.zeros(2)
    with pytest.raises((RuntimeError, ValueError), match=r"driver|cpu tensor"):
        reducer.prepare()
    assert not reducer.ready
    reducer.ready = True
    with pytest.raises((RuntimeError, ValueError), match=r"driver|cpu tensor"):
        reducer.reduce([(torch.randn(5), (row[0], row[1]))])
    assert not reducer.ready


def test_without_triton_prepare_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton is asked for by ``prepare``, and not before."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "tracer.device", raising=False)
    monkeypatch.delattr("tracer.device", raising=False)
    reducer = Reducer(torch.float32, HOST)
    with pytest.raises(ImportError):
        reducer.prepare()
    assert not reducer.ready


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu", "meta"])
def test_other_devices_have_no_kernel(device: str) -> None:
    """Only CUDA's devices are worth a try."""
    assert not available(torch.device(device))


def test_a_missing_tool_makes_it_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Triton, a C compiler or Python's headers, or on ROCm, nothing is tried; a compiler by name is one."""
    device = torch.device("cuda", 0)
    compiler = tmp_path / "cc"
    compiler.write_text("")
    compiler.chmod(0o755)
    headers = tmp_path / "Python.h"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", str(compiler))
    assert not available(device)
    headers.write_text("")
    assert available(device)
    with monkeypatch.context() as patch:
        patch.delenv("CC")
        assert not available(device)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        assert not available(device)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.0")
        assert not available(device)


def test_importing_the_kernel_imports_no_triton() -> None:
    """The module of the reducer leaves it to ``prepare``."""
    code = "import sys, tracer.kernel; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_triton
@pytest.mark.parametrize(
    ("architecture", "dtype"), first_of([(architecture, dtype) for architecture in (90, 80) for dtype in DTYPES])
)
def test_compiled_code_reads_16_bytes_at_once_and_spills_nothing(
    architecture: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an H100 and an A100 threads load 128 bits at once, keep all in registers, and flush no subnormal to 0."""
    from tracer import device

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    partials = "*fp64" if dtype is torch.float64 else "*fp32"
    first, second = device.constants(dtype)
    pieces = compiled(device.reduce_pieces, ["*i64", "*i64", partials, "i32"], first, architecture, tmp_path)
    gathered = compiled(device.gather_pieces, ["*i64", partials], second, architecture, tmp_path)
    assert len(re.findall(r"\bLDG\.E\.128\b", pieces)) >= (1 if dtype.itemsize == 2 else 2)
    for said in (pieces, gathered):
        assert "STACK:0 " in said
        assert not re.search(r"\b(STL|LDL)\b", said)
        assert ".ftz" not in said
        assert dtype is torch.float64 or re.search(r"\bFMNMX\.NAN\b", said)


def compiled(kernel: Any, arguments: Sequence[str], constants: dict[str, Any], architecture: int, folder: Path) -> str:
    """PTX, machine code and use of registers of a kernel as it is launched, for a device that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {"num_warps": constants.pop("num_warps")}
    signature = dict(zip(kernel.arg_names, [*arguments, *["constexpr"] * len(constants)], strict=True))
    # No length and no address is said to be a multiple of anything, as the kernels ask for.
    source = ASTSource(kernel, signature, constants)
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    file = folder / "binary"
    file.write_bytes(binary.asm["cubin"])
    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.check_output([disassembler, "-res-usage", "-sass", str(file)], text=True)
    return f"{said}\n{binary.asm['ptx']}"
