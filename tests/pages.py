"""Picture the page, and TensorBoard's of the same two trainings: ``python -m tests.pages FOLDER``.

docs/compare.md shows the pictures.
"""

import contextlib
import io
import math
import sys
import tempfile
import time
from typing import Any

import torch
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from torch import nn

import tracer
from tests.browser.chromium import chromium, missing
from tests.browser.test_page import Page, address_of, sized
from tests.digits import batches, digits, mlp
from tests.gallery import accuracy, save
from tests.viewing import viewing
from tests.waiting import wait_until
from tracer.log.store import Local as Path

try:
    from tensorboard.program import TensorBoard
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    TensorBoard = None

SIZE = 1440, 900
STEPS, BAD_STEP, HISTOGRAM_EVERY, RATE = 600, 300, 20, 0.02


def train(name: str, folder: Path, bad: int | None = None) -> None:
    """Learn digits, as one loop would for both logs; a pixel of one batch may be NaN."""
    torch.manual_seed(0)
    model = mlp(64, 64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    writer = SummaryWriter(folder / "events" / name) if TensorBoard else None
    recorded: dict[str, Any] = {"stats": "histogram", "histogram_every": HISTOGRAM_EVERY, "config": {"lr": RATE}}
    with tracer.attach(model, folder / "runs" / name, **recorded) as trace:
        for step, (inputs, labels) in enumerate(batches(*digits(), STEPS)):
            if step == bad:
                inputs[0, 20] = math.nan
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            metrics = {"train/loss": loss, "train/accuracy": accuracy(outputs, labels)}
            trace.log(**metrics)
            if writer:
                write(writer, step, metrics, model)
    if writer:
        writer.close()


def write(writer: Any, step: int, metrics: dict[str, torch.Tensor], model: nn.Module) -> None:
    """What TensorBoard is told of a step."""
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)
    if step % HISTOGRAM_EVERY == 0:
        for name, parameter in model.named_parameters():
            # It refuses a tensor that is all NaN.
            with contextlib.suppress(ValueError):
                writer.add_histogram(name, parameter, step)
                writer.add_histogram(f"{name}.grad", parameter.grad, step)


def take(browser: Chrome, path: Path) -> None:
    """Picture the browser's window, once it stays as it is for a second."""
    before, seen = b"", browser.get_screenshot_as_png()
    while seen != before:
        time.sleep(1)
        before, seen = seen, browser.get_screenshot_as_png()
    with io.BytesIO(seen) as drawn:
        save(drawn, path)


def take_all(browser: Chrome, folder: Path, work: Path) -> None:
    """The page as it opens, the page with the pointer over a curve, and TensorBoard's page as it opens."""
    with viewing(work, work / "runs", "--web", "--port", 0) as viewer:
        page = Page(browser, address_of(viewer), until="")
        wait_until(lambda: "error" in page.text("#found-words") and page.colour()[-1] > 0)
        take(browser, folder / "page-runs.png")
        page.mouse(0.6, 0.3).perform()
        wait_until(lambda: "step" in page.text("#tip"))
        take(browser, folder / "page-hover.png")
    if TensorBoard:
        board = TensorBoard()
        board.configure(logdir=str(work / "events"), port=0)
        browser.get(board.launch())
        wait_until(lambda: "0.bias" in browser.find_element(By.TAG_NAME, "body").text)
        take(browser, folder / "page-tensorboard.png")


def main() -> None:
    """Picture all that can be pictured here, and say what cannot."""
    if missing():
        print(f"The pictures of pages stay as they are: they need {missing()}.")
        return
    if not TensorBoard:
        print("page-tensorboard.png stays as it is: it needs `pip install tensorboard`.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work, chromium() as browser, sized(browser, *SIZE):
        train("healthy", Path(work))
        train("nan-pixel", Path(work), bad=BAD_STEP)
        take_all(browser, Path(sys.argv[1]), Path(work))
        for log in Path(work).iterdir():
            if log.is_dir():
                print(log.name, sum(file.stat().st_size for file in log.rglob("*") if file.is_file()), "bytes")


if __name__ == "__main__":
    main()
