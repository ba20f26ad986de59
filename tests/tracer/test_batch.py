"""Gradients that are noted by their hooks and read at the end of the backward: the same numbers, or none."""

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import tracer
from tests.interpreter import interpreter
from tests.training import assert_rows, by_hand, events, extremes_of, loss_of, mlp, recorded
from tracer.batch import Batch, Direct
from tracer.kernel import Reducer, Reducers

Row = dict[str, dict[str, float | None]]
# The step at which something begins to change gradients: later than the one in which both ways were compared.
LATER = 3


class Operations(TorchDispatchMode):
    """Writes down the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def reads_late(model: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Train one backward: whether all but its first gradient are read after all else that the backward does."""
    loss = loss_of(model)
    operations = Operations()
    with operations:
        loss.backward()
    # The first gradient of a backward is always read at once: two reductions.
    late = operations.names.count("aminmax") - 2
    return operations.names[-late:] == ["aminmax"] * late


def train(model: nn.Module, path: Path, before: Callable[[int], None] = lambda step: None, count: int = 6) -> list[Row]:
    """Train with a trace; the rows by hand, whose gradients are those when they came, and values those before."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows: list[Row] = []
    with tracer.attach(model, path):
        for step in range(count):
            before(step)
            optimizer.zero_grad()
            # A copy has none of the hooks.
            twin = copy.deepcopy(model)
            torch.manual_seed(step)
            loss_of(twin).backward()
            rows.append(by_hand(twin))
            torch.manual_seed(step)
            loss_of(model).backward()
            optimizer.step()
    return rows


def without_gradients(row: Row, names: set[str]) -> Row:
    """A row whose gradients of some parameters are not known."""
    lost: dict[str, float | None] = {"grad_min": None, "grad_max": None}
    return {name: numbers | lost if name in names else numbers for name, numbers in row.items()}


@contextmanager
def one_warning(match: str) -> Iterator[None]:
    """Expect exactly one warning of the tracer."""
    with pytest.warns(tracer.TracerWarning, match=match) as caught:
        yield
    assert len(caught) == 1


def test_gradients_are_read_at_the_end_of_their_backward(tmp_path: Path) -> None:
    """Once the two ways have proved the same, in the first step, hooks reduce nothing."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(4):
            optimizer.zero_grad()
            found.append(reads_late(model))
            optimizer.step()
    assert found == [False, True, True, True]


def test_now_and_then_both_ways_are_compared_again(tmp_path: Path) -> None:
    """That is so in one measured step of 64."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    with tracer.attach(model, tmp_path / "run", every=2):
        for _ in range(2 * 66):
            optimizer.zero_grad()
            found.append(reads_late(model))
            optimizer.step()
    assert [step for step in range(0, 132, 2) if not found[step]] == [0, 128]


def test_where_ranks_train_together_each_gradient_is_read_at_once(tmp_path: Path) -> None:
    """A wrapper may reduce gradients over the ranks before the backward ends, and leaves no sign of it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        with tracer.attach(model, tmp_path / "run"):
            for _ in range(3):
                optimizer.zero_grad()
                found.append(reads_late(model))
                optimizer.step()
    finally:
        dist.destroy_process_group()
    assert found == [False] * 3


def test_a_hook_that_clips_its_own_gradient_later_costs_nothing(tmp_path: Path) -> None:
    """A tensor with another hook is read at once, also if that hook came in mid-training."""
    model = mlp()

    def begin(step: int) -> None:
        if step == LATER:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(clip)

    def clip(tensor: torch.Tensor) -> None:
        assert tensor.grad is not None
        tensor.grad.clamp_(-1e-3, 1e-3)

    assert_rows(tmp_path / "run", train(model, tmp_path / "run", begin))


def in_place(gradient: torch.Tensor) -> torch.Tensor:
    """Halve a gradient as torch sees it."""
    return gradient.mul_(0.5)


def through_data(gradient: torch.Tensor) -> torch.Tensor:
    """Halve a gradient so that torch counts no write."""
    gradient.data.mul_(0.5)
    return gradient


def by_another(gradient: torch.Tensor) -> torch.Tensor:
    """Put half of a gradient in its place."""
    return gradient * 0.5


@pytest.mark.parametrize("change", [in_place, through_data, by_another])
def test_gradients_that_other_tensors_hooks_change_are_read_as_they_came(
    change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    """A hook that halves the gradients of all layers behind its own one leaves the rows as they are."""
    model = mlp()

    def halve(_: torch.Tensor) -> None:
        for parameter in model[2].parameters():
            assert parameter.grad is not None
            parameter.grad = change(parameter.grad)

    model.get_parameter("0.weight").register_hook(halve)
    assert_rows(tmp_path / "run", train(model, tmp_path / "run"))


@pytest.mark.parametrize("change", [in_place, by_another])
def test_what_changes_before_it_was_read_is_null_and_not_again(
    change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    """A hook that begins to halve other gradients in mid-training costs one step of them, with a warning and events."""
    model = mlp()

    def begin(step: int) -> None:
        if step == LATER:
            model.get_parameter("0.weight").register_hook(halve)

    def halve(_: torch.Tensor) -> None:
        for parameter in model[2].parameters():
            assert parameter.grad is not None
            parameter.grad = change(parameter.grad)

    with one_warning(r"step 3 lacks numbers of 2\..*changed"):
        expected = train(model, tmp_path / "run", begin)
    # The first gradient of a backward is read at once.
    lost = {name for step, name, _ in events(tmp_path / "run", "failed") if step == LATER and name is not None}
    assert lost
    assert lost <= {"2.weight", "2.bias"}
    expected[LATER] = without_gradients(expected[LATER], lost)
    assert_rows(tmp_path / "run", expected)


def test_after_the_first_loss_no_gradient_is_read_late_any_more(tmp_path: Path) -> None:
    """A hook that halves another parameter's gradient in each step costs the first of them alone."""
    model = mlp()
    names = ["2.weight", "0.bias"]

    def begin(step: int) -> None:
        if step == LATER:
            model.get_parameter("0.weight").register_hook(halve)

    def halve(_: torch.Tensor) -> None:
        for name in names[:1]:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            gradient.mul_(0.5)
        names.reverse()

    with one_warning("step 3 lacks numbers of 2.weight"):
        expected = train(model, tmp_path / "run", begin)
    expected[LATER] = without_gradients(expected[LATER], {"2.weight"})
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize("backwards", [1, 2])
def test_a_value_that_was_updated_before_it_was_read_is_null(backwards: int, tmp_path: Path) -> None:
    """A hook that begins to update other parameters inside the backward: no row holds an updated value."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: list[Row] = []

    def update(_: torch.Tensor) -> None:
        with torch.no_grad():
            for parameter in model[2].parameters():
                parameter.add_(100.0)

    with one_warning(r"step 3 lacks numbers of 2\."), tracer.attach(model, tmp_path / "run"):
        for step in range(6):
            if step == LATER:
                model.get_parameter("0.weight").register_hook(update)
            optimizer.zero_grad()
            expected.append(by_hand(model))
            for _ in range(backwards):
                loss_of(model).backward()
            optimizer.step()
    rows = recorded(tmp_path / "run")
    lost = {step: {name for name in row if rows[step, name]["value_min"] is None} for step, row in enumerate(expected)}
    assert [step for step, names in lost.items() if names] == [LATER]
    assert lost[LATER] <= {"2.weight", "2.bias"}
    for step, row in enumerate(expected):
        for name in row.keys() - lost[step]:
            found = rows[step, name]
            assert (found["value_min"], found["value_max"]) == (row[name]["value_min"], row[name]["value_max"])


def test_a_change_that_leaves_no_sign_is_seen_at_the_next_comparison(tmp_path: Path) -> None:
    """Writes through ``.data`` that begin in mid-training are in the rows for at most 64 measured steps."""
    model = mlp()

    def begin(step: int) -> None:
        if step == LATER:
            model.get_parameter("0.weight").register_hook(halve)

    def halve(_: torch.Tensor) -> None:
        for parameter in model[2].parameters():
            assert parameter.grad is not None
            through_data(parameter.grad)

    expected = train(model, tmp_path / "run", begin, count=70)
    rows = recorded(tmp_path / "run")
    wrong = {step for step, row in enumerate(expected) for name in row if extremes_of(rows[step, name]) != row[name]}
    assert wrong == set(range(LATER, 64))


class Break(torch.autograd.Function):
    """Passes its input on, and raises in the backward."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the second half")


def broken(model: nn.Sequential) -> None:
    """Run a backward that raises after the last layer."""
    with pytest.raises(RuntimeError, match="the second half"):
        model[2](Break.apply(model[1](model[0](torch.randn(4, 6))))).sum().backward()


@pytest.mark.parametrize("bad", [0, LATER])
def test_a_backward_that_raises_half_way_leaves_what_came(bad: int, tmp_path: Path) -> None:
    """A loop that updates with the gradients that did come has them in its row, or null, and null for the others."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: list[Row] = []
    with tracer.attach(model, tmp_path / "run"):
        for step in range(5):
            optimizer.zero_grad()
            if step == bad:
                broken(model)
            else:
                loss_of(model).backward()
            expected.append(by_hand(model))
            if bad == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize(("bad", "late"), [(0, "-0111"), (LATER, "011-0")])
def test_where_a_backward_did_not_end_both_ways_are_compared_again(bad: int, late: str, tmp_path: Path) -> None:
    """That is so in the step after one that raised."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = ""
    with tracer.attach(model, tmp_path / "run"):
        for step in range(5):
            optimizer.zero_grad()
            if step == bad:
                broken(model)
            found += "-" if step == bad else str(int(reads_late(model)))
            optimizer.step()
    assert found == late


def test_the_gradients_of_a_backward_that_raised_are_not_kept(tmp_path: Path) -> None:
    """Where memory ran out, the loop frees them; the tracer's notes do not hold them."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(LATER):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        optimizer.zero_grad()
        broken(model)
        gradients = [weakref.ref(parameter.grad) for parameter in model[2].parameters() if parameter.grad is not None]
        assert len(gradients) == 2
        optimizer.zero_grad()
        assert [gradient() for gradient in gradients] == [None, None]


def test_a_backward_within_a_backward_is_right(tmp_path: Path) -> None:
    """Checkpoints run a backward of their own for their part, and both parts' rows are as without them."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: list[Row] = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(5):
            optimizer.zero_grad()
            inputs = torch.randn(4, 6, requires_grad=True)
            model[2](
                checkpoint(model[1], checkpoint(model[0], inputs, use_reentrant=True), use_reentrant=True)
            ).sum().backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_a_gradient_with_a_graph_is_read_without_one(tmp_path: Path) -> None:
    """``backward(create_graph=True)`` ends in grad mode, and what is recorded has no graph."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: list[Row] = []
    with warnings.catch_warnings(), tracer.attach(model, tmp_path / "run"):
        warnings.filterwarnings("ignore", message="Using backward")
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model).backward(create_graph=True)
            expected.append(by_hand(model))
            optimizer.step()
        optimizer.zero_grad()
    assert_rows(tmp_path / "run", expected)


class Casting(nn.Module):
    """Two layers, the first of which may have another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The second layer's outputs."""
        found: torch.Tensor = self.second(self.first(inputs.to(self.first.weight.dtype)).float())
        return found


def test_a_parameter_that_gets_another_dtype_takes_no_note_with_it(tmp_path: Path) -> None:
    """The buffer is made anew in the middle of a backward; what was noted before stays in the row."""
    model = Casting()
    # A second hook has this one's gradient read at once.
    model.first.weight.register_post_accumulate_grad_hook(lambda _: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: list[Row] = []
    with tracer.attach(model, tmp_path / "run"):
        for step in range(6):
            if step == LATER:
                model.first.double()
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def noted(reducer: Reducer) -> list[Direct]:
    """Many tensors whose gradients have been noted, and are read at once."""
    batch = Batch(bytearray(50))
    directs = []
    for index, place in enumerate(torch.zeros(50, 4)):
        tensor = torch.randn(1 + 37 * index, requires_grad=True)
        tensor.grad = torch.randn_like(tensor)
        directs.append(Direct(tensor, (place[0], place[1]), (place[2], place[3]), batch, index, reducer))
        directs[-1].note()
    return directs


def extremes(tensor: torch.Tensor | None) -> list[float]:
    """The minimum and maximum of a tensor."""
    assert tensor is not None
    return [number.item() for number in torch.aminmax(tensor)]


def read_by_kernel() -> None:
    """Read at once; not what has been written to since it was noted, or is gone."""
    with torch.no_grad():
        directs = noted(Reducer(torch.float32, torch.device("cpu")))
        batch, written, gone = directs[0].batch, directs[3], directs[4]
        assert written.tensor.grad is not None
        written.tensor.grad.mul_(2.0)
        gone.tensor.grad = None
        assert batch.read() == ([written, gone], [])
        for direct in directs:
            assert [place.item() for place in direct.value] == extremes(direct.tensor)
            if direct not in (written, gone):
                assert [place.item() for place in direct.gradient] == extremes(direct.tensor.grad)
        assert batch.present == bytes(1 if index in (3, 4) else 3 for index in range(50))
        assert not batch.notes


def test_a_kernel_reads_what_was_noted_at_once() -> None:
    """With a reducer, many tensors take one call of it."""
    pytest.importorskip("triton")
    with interpreter() as run:
        run(read_by_kernel)


def test_what_a_kernel_cannot_read_is_left_for_the_usual_way() -> None:
    """A launch that fails, here since there is no device, costs nothing but its error, which is kept to be told."""
    reducer = Reducer(torch.float32, torch.device("cpu"))
    with torch.no_grad():
        directs = noted(reducer)
        assert directs[0].batch.read() == ([], directs)
    assert directs[0].batch.present == bytes(50)
    assert not reducer.ready
    assert reducer.error is not None


def test_no_kernel_is_made_where_none_is_asked_for_or_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``TRACER_BATCH=1`` on a CPU changes nothing, and says nothing."""
    monkeypatch.setenv("TRACER_BATCH", "1")
    model = mlp()
    assert_rows(tmp_path / "run", train(model, tmp_path / "run"))
    for wanted in (False, True):
        reducers = Reducers(wanted)
        reducers.prepare({(torch.float32, torch.device("cpu")), (torch.float32, torch.device("xpu"))})
        assert not reducers.ready({(torch.float32, torch.device("cpu"))})
        assert reducers.error() is None
