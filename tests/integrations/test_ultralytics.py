"""Ultralytics' own trainer, with the callbacks and without, on a few images of noise."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.integrations.training import Oracle, assert_rows, reason, runs
from tests.training import events, metric

pytestmark = pytest.mark.slow
pytest.importorskip("ultralytics", reason="Ultralytics is not installed: pip install ultralytics")

from ultralytics import YOLO  # noqa: E402

from tracer.integrations.ultralytics import Gradwatch  # noqa: E402

MODEL = """
nc: 1
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [[1, 2], 1, Detect, [nc]]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model's description and eight images of each split, with a box in each."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(1)
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    (folder / "model.yaml").write_text(MODEL)
    return folder


class Training:
    """A model and the oracle of its trainings; it fails at the batch of number ``fails_at``.

    Attributes:
        rows: What the oracle saw.
    """

    def __init__(self, data: Path, weights: Path | None = None, fails_at: int = -1) -> None:
        torch.manual_seed(0)
        self.data = data
        self.model = YOLO(weights or data / "model.yaml", verbose=False)
        self.rows: list[Any] = []
        self.model.add_callback("on_train_start", self._observe)
        self.model.add_callback("on_train_batch_start", self._fail)
        self._left = fails_at

    def _observe(self, trainer: Any) -> None:
        self.oracle = Oracle(trainer.model, trainer.optimizer)
        self.oracle.rows = self.rows

    def _fail(self, trainer: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise ArithmeticError("the batch is bad")

    def train(self, folder: Path, **options: Any) -> None:
        """Train on two batches of four an epoch, and show next to nothing."""
        wanted = {"epochs": 1, "amp": False, "nbs": 4, "optimizer": "AdamW", **options}
        self.model.train(
            data=str(self.data / "data.yaml"),
            imgsz=32,
            batch=4,
            workers=0,
            device="cpu",
            project=str(folder),
            name="out",
            exist_ok=True,
            plots=False,
            verbose=False,
            warmup_epochs=0,
            seed=1,
            **wanted,
        )


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param({}, 4, id="plain, which clips"),
        pytest.param({"nbs": 8}, 2, id="accumulation"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    options: dict[str, Any], steps: int, data: Path, tmp_path: Path
) -> None:
    """Every row is what the update used, in its step, and the weights are those of a training without a trace.

    Ultralytics has mixed precision on a GPU alone.
    """
    traced, plain = Training(data), Training(data)
    Gradwatch(tmp_path / "run", applied=True).attach(traced.model)
    traced.train(tmp_path, epochs=2, **options)
    plain.train(tmp_path / "plain", epochs=2, **options)
    assert len(traced.rows) == steps
    assert_rows(tmp_path / "run", traced.rows)
    weights = (
        torch.load(next(folder.rglob("last.pt")), weights_only=False)
        for folder in (tmp_path / "out", tmp_path / "plain")
    )
    one, other = (saved["model"].state_dict() for saved in weights)
    for name in one:
        assert one[name].numpy().tobytes() == other[name].numpy().tobytes(), name


def test_metrics_stand_at_their_step(data: Path, tmp_path: Path) -> None:
    """A batch's losses stand at its step, a validation's metrics at the epoch's last one; the best weights' do not."""
    training = Training(data)
    Gradwatch(tmp_path / "run").attach(training.model)
    training.train(tmp_path, epochs=2)
    for name in ("loss", "box_loss"):
        assert [step for step, _ in metric(tmp_path / "run", name)] == [0, 1, 2, 3]
    for name in ("metrics/recall(B)", "val/box_loss"):
        assert [step for step, _ in metric(tmp_path / "run", name)] == [1, 3]


def test_epochs_without_a_validation_have_no_metrics_of_one(data: Path, tmp_path: Path) -> None:
    """With ``val=False`` Ultralytics validates the last epoch alone; the others repeat nothing."""
    training = Training(data)
    Gradwatch(tmp_path / "run").attach(training.model)
    training.train(tmp_path, epochs=3, val=False)
    assert [step for step, _ in metric(tmp_path / "run", "val/box_loss")] == [5]


def test_an_exception_ends_the_run_with_its_reason_and_a_resumed_training_goes_on(data: Path, tmp_path: Path) -> None:
    """The run has closed when the exception arrives; from ``last.pt`` rows go on at the epoch that it holds."""
    first = Training(data, fails_at=6)
    Gradwatch(tmp_path / "run", applied=True).attach(first.model)
    with pytest.raises(ArithmeticError):
        first.train(tmp_path, epochs=4)
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"
    assert_rows(tmp_path / "run", first.rows)
    second = Training(data, weights=tmp_path / "out" / "weights" / "last.pt")
    Gradwatch(tmp_path / "run", applied=True).attach(second.model)
    second.model.train(resume=True)
    assert len(second.rows) == 4
    assert_rows(tmp_path / "run", first.rows[:4] + second.rows)
    assert [step for step, *_ in events(tmp_path / "run", "restored")] == [4]


def test_two_trainings_have_a_run_each(data: Path, tmp_path: Path) -> None:
    """A second training into the same path gets its sibling; one within the handler of an error has ended well, too."""
    training = Training(data)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        gradwatch.attach(training.model)
        training.train(tmp_path)
        first = training.rows[:]
        training.rows.clear()
        try:
            raise ArithmeticError("an error that was handled")
        except ArithmeticError:
            training.train(tmp_path)
    assert [name for name in runs(tmp_path) if name != "out"] == ["run", "run-2"]
    assert_rows(tmp_path / "run", first)
    assert_rows(tmp_path / "run-2", training.rows)
    assert reason(tmp_path / "run") == reason(tmp_path / "run-2") == ""
