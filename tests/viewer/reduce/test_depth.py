"""The largest gradients of the first and of the last trained layer, which say whether depth is fine."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from tests.logs import events, extremes, new_run, publish_next
from tests.viewing import shown
from tracer.log.store import Local
from viewer.options import ViewOptions
from viewer.read.live import Live
from viewer.reduce.depth import DEPTH

SIZES = [1.0, 2.0, 4.0, 8.0]
PARAMS = ("stem.weight", "stem.bias", "body", "head.weight")


def sizes_of(run: Path, **look: str) -> list[list[float | None]]:
    """The numbers of the first and of the last layer, as a figure gets them."""
    with closing(Live(Local(run), ViewOptions(**look))) as live:  # type: ignore[arg-type]
        return depth_of(live)


def depth_of(live: Live) -> list[list[float | None]]:
    """Likewise, of what is followed."""
    recorded = shown(live).extremes
    assert recorded is not None
    return [list(recorded.depth[name]) for name in DEPTH]


def write(run: Path, order: list[str] | None, steps: range = range(1)) -> Local:
    """A run whose parameters have gradients from -1, -2, -4 and -8 on, and perhaps an order of these."""
    written = new_run(run, PARAMS)
    columns = {"grad_min": [-size for size in SIZES] * len(steps), "grad_max": [0.5] * 4 * len(steps)}
    publish_next(written, "extremes", extremes(steps, PARAMS, columns))
    if order is not None:
        publish_next(written, "events", events([0], "order", None, json.dumps(order)))
    return written


@pytest.mark.parametrize(
    ("order", "first", "last"),
    [
        (None, 2.0, 8.0),
        (["head.weight", "body", "stem.bias", "stem.weight"], 2.0, 8.0),
        (["stem.weight", "head.weight", "body"], 4.0, 2.0),
        (["body"], None, None),
        ([], 2.0, 8.0),
    ],
)
def test_the_layers_at_the_ends_are_those_whose_gradients_arrive_last_and_first(
    tmp_path: Path, order: list[str] | None, first: float | None, last: float | None
) -> None:
    """A layer has all parameters of its module; without an order, it is that of the model turned round."""
    write(tmp_path / "run", order)
    assert sizes_of(tmp_path / "run") == [[first], [last]]


def test_an_order_that_comes_later_than_rows_counts_from_then_on(tmp_path: Path) -> None:
    """What was taken for the first layer until then is none of its numbers."""
    run = write(tmp_path / "run", None)
    columns = {"grad_min": [-size for size in SIZES], "grad_max": [0.0] * 4}
    with closing(Live(run)) as live:
        assert depth_of(live) == [[2.0], [8.0]]
        publish_next(run, "events", events([0], "order", None, json.dumps(["stem.weight", "body"])))
        publish_next(run, "extremes", extremes([1], PARAMS, columns))
        assert depth_of(live) == [[None, 4.0], [None, 2.0]]


def test_of_some_parameters_the_first_and_the_last_layer_are_theirs(tmp_path: Path) -> None:
    """As the filter of parameters chooses."""
    write(tmp_path / "run", ["head.weight", "body", "stem.weight"])
    assert sizes_of(tmp_path / "run", params="body|head") == [[4.0], [8.0]]
