"""Every view as it looks: pictures of runs whose numbers are fixed, compared with those in ``tests/images``.

Where a view was changed on purpose, ``python -m tests.viewer.draw.test_images`` draws them anew: look at each before
you commit it.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pytest
from matplotlib.testing.compare import compare_images
from PIL import Image

import viewer
from tests.halves import first_of
from tests.logs import activations, close_run, histograms_of, metrics, new_run, publish_next, statistics
from tracer.log.store import Local as Path

IMAGES = Path(__file__).parents[2] / "images"
STEPS = range(80)
PARAMS = ("conv.weight", "conv.bias", "fc.weight")
# The root of the mean squared difference of all pixels, of 255: a machine may round a few otherwise, while a missing
# curve, or a letter of the title, makes more than 1.6.
TOLERANCE = 1.0

LOOKS: Mapping[str, tuple[Sequence[str], dict[str, Any]]] = {
    "overview": (["first"], {}),
    "metrics": (["many"], {}),
    "overview-dark": (["first"], {"dark": True, "hide": "lr"}),
    "overview-nan": (["broken"], {}),
    "compare": (["first", "second"], {}),
    "layers": (["broken"], {"view": "layers"}),
    "activations": (["active"], {"view": "activations"}),
    "param": (["first"], {"param": "fc.weight"}),
    "param-nan": (["broken"], {"param": "conv.bias"}),
    "param-updates": (["measured"], {"param": "fc.weight"}),
    "param-ridge": (["first"], {"param": "fc.weight", "histograms": "ridge"}),
}


def write_run(path: Path, pace: float, breaks: int | None = None, updates: bool = False) -> None:
    """A closed run whose loss falls at a pace; from the step on at which it breaks, numbers are not finite.

    Each parameter has gradients twice as large as the one before. In some steps the first has none, the second zeros.
    Updates, if they are measured, begin as nothing, and are broken in the middle.
    """

    def or_nan(step: int, number: float) -> float:
        return number if breaks is None or step < breaks else math.nan

    run = new_run(path, PARAMS)
    rows = [(step, place) for step in STEPS for place in range(len(PARAMS))]
    size = {(step, place): 2.0**place * (1.2 + math.sin(step / 5)) * math.exp(-pace * step) for step, place in rows}
    size |= {(step, 1): 0.0 for step in STEPS[40:45]}
    grown = {(step, place): (1 + place) * (1 + pace * step) for step, place in rows}
    columns: dict[str, list[float | None]] = {
        "value_min": [-grown[row] for row in rows],
        "value_max": [grown[row] / 2 for row in rows],
        "grad_min": [None if row[1] == 0 and row[0] % 8 == 0 else or_nan(row[0], -size[row]) for row in rows],
        "grad_max": [None if row[1] == 0 and row[0] % 8 == 0 else or_nan(row[0], size[row] / 2) for row in rows],
        "applied_min": [or_nan(row[0], -min(size[row], 1.0)) for row in rows],
        "applied_max": [or_nan(row[0], min(size[row], 1.0) / 2) for row in rows],
        "value_norm": [4 * grown[row] for row in rows],
        "grad_norm": [or_nan(row[0], 3 * size[row]) for row in rows],
        "applied_norm": [or_nan(row[0], min(3 * size[row], 3.0)) for row in rows],
    }
    if updates:
        ratios = [0.0, 0.0, 1e-5, 1e-4, math.nan, 3e-4, 2e-3, 1e-3, 4e-4, 1e-4]
        columns["update_ratio"] = [ratios[row[0] // 8] if row[0] % 8 == 0 else None for row in rows]
    publish_next(run, "extremes", statistics(STEPS, PARAMS, columns))
    loss = [or_nan(step, math.exp(-pace * step) + 0.1 * math.sin(step)) for step in STEPS]
    publish_next(run, "metrics", metrics(STEPS, loss))
    publish_next(run, "metrics", metrics(STEPS, [1 - math.exp(-pace * step) for step in STEPS], "accuracy"))
    publish_next(run, "metrics", metrics(STEPS, [0.5 - step / 200 for step in STEPS], "lr"))
    seldom = STEPS[9::10]
    publish_next(run, "metrics", metrics(seldom, [math.exp(-pace * step) + 0.2 for step in seldom], "val_loss"))
    for of, width in (("value", 3.0), ("grad", 1.0)):
        ends = [(-width - step / 40, width + step / 20) for step in seldom]
        counts = [[1, 4 + step, 20, 60 - step // 2, 10, 2] for step in seldom]
        publish_next(run, "histograms", histograms_of(seldom, "fc.weight", of, ends, counts))
    close_run(run, STEPS[-1])


def write_metrics(run: Path) -> None:
    """Many metrics beside what a run has: of training and validation, of groups, and one that breaks."""
    names = [f"{part}/{name}" for part in ("train", "val") for name in ("box_loss", "f1", "recall", "top1", "top5")]
    names += [f"sys/{name}" for name in ("cpu", "ram", "gpu0", "gpu1", "disk")] + ["loss_scale", "accum_steps", "epoch"]
    for place, name in enumerate(names):
        steps = STEPS[9::10] if name.startswith("val") else STEPS
        numbers = [1 - math.exp(-(step + place) / 30) for step in steps]
        if name == "sys/disk":
            numbers = [math.nan if step > 60 else number for step, number in zip(steps, numbers, strict=True)]
        publish_next(run, "metrics", metrics(steps, numbers, name))


def write_activations(run: Path) -> None:
    """Outputs of modules: each spreads less than the one before; for a while one not at all, and the last is NaN."""
    modules = ("conv", "relu", "pool", "fc", "")
    spread = {(step, place): 2.0**-place * math.exp(-step / 40) for step in STEPS for place in range(len(modules))}
    spread |= {(step, 2): 0.0 for step in range(30, 40)} | {(step, 4): math.nan for step in range(30, 40)}
    publish_next(run, "activations", activations(STEPS, modules, {"std": [*spread.values()]}))


def draw(folder: Path, runs: Path, names: Sequence[str]) -> None:
    """Draw pictures into a folder."""
    write_run(runs / "first", pace=0.03)
    write_run(runs / "second", pace=0.1)
    write_run(runs / "broken", pace=0.05, breaks=60)
    if "metrics" in names:
        write_run(runs / "many", pace=0.03)
        write_metrics(runs / "many")
    if "param-updates" in names:
        write_run(runs / "measured", pace=0.03, updates=True)
    if "activations" in names:
        write_run(runs / "active", pace=0.03)
        write_activations(runs / "active")
    for name in names:
        watched, look = LOOKS[name]
        viewer.figure([runs / run for run in watched], **look).savefig(folder / f"{name}.png", dpi=70)


@pytest.mark.parametrize("name", first_of(LOOKS))
def test_a_view_looks_as_it_did(tmp_path: Path, name: str) -> None:
    """Nothing has been added to a view, or is missing, or is elsewhere."""
    expected = IMAGES / f"{name}.png"
    with Image.open(expected) as image:
        drawn_by = image.info["Software"].partition(",")[0].removeprefix("Matplotlib version")
    # Each version of matplotlib sets text in its own way.
    if drawn_by.split(".")[:2] != matplotlib.__version__.split(".")[:2]:
        pytest.skip(f"needs matplotlib {drawn_by}, which drew tests/images")
    draw(tmp_path, tmp_path, [name])
    assert compare_images(str(expected), str(tmp_path / f"{name}.png"), TOLERANCE) is None


def test_there_is_a_picture_of_each_look_and_no_other() -> None:
    """A picture that nothing is compared with would tell nobody anything."""
    assert sorted(path.stem for path in IMAGES.iterdir()) == sorted(LOOKS)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        draw(IMAGES, Path(runs), list(LOOKS))
