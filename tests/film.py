"""Film the page while a training falls ill: ``python -m tests.film FOLDER`` writes page.webp there.

The README shows it. The training is real, but held up so that people can follow.
"""

import io
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
from PIL import Image
from selenium.webdriver import Chrome
from torch import nn

import tracer
from tests.browser.chromium import chromium, missing
from tests.browser.test_page import Page, address_of, sized
from tests.digits import batches, digits, mlp
from tests.gallery import accuracy
from tests.viewing import viewing
from tests.waiting import wait_until
from tracer.log.store import Local as Path

SIZE = 1080, 700
STEPS, STEPS_A_PICTURE = 320, 6
# By then the page shows curves.
FIRST_STEP = 42
# What takes so long in the training is shown for so long: three times faster.
PICTURE_SECONDS, SHOWN_SECONDS = 0.6, 0.2
HELD_SECONDS = 3.0
# Of each colour. Fewer shades make a small file, in which text stays sharp, as a lossy one would not have it.
SHADES = 6


def steps(run: Path) -> Iterator[int]:
    """Learn digits with a learning rate that grows until it is too large, a step for each number that is asked for."""
    torch.manual_seed(0)
    model = mlp(64, 64, 64, 64, 10, activation=nn.LeakyReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.015)
    with tracer.attach(model, run) as trace:
        for step, (inputs, labels) in enumerate(batches(*digits(), STEPS)):
            yield step
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            trace.log(loss=loss, accuracy=accuracy(outputs, labels))


def film(browser: Chrome, work: Path) -> Iterator[tuple[Image.Image, float]]:
    """Pictures of the page with the seconds that each is shown: the training, its end, and the finding, opened."""
    with viewing(work, "runs/digits", "--web", "--port", 0) as viewer:
        page = Page(browser, address_of(viewer), until="")
        for step in steps(work / "runs" / "digits"):
            if step % STEPS_A_PICTURE == 0:
                due = time.monotonic() + PICTURE_SECONDS
                if step >= FIRST_STEP:
                    yield picture(page), SHOWN_SECONDS
            # A step waits for its share of the time.
            time.sleep(max(0.0, due - time.monotonic()) / STEPS_A_PICTURE)
        page.wait_for("closed")
        page.wait_for("error", "#found-words")
        yield picture(page), HELD_SECONDS / 2
        page.find("#findings .title").click()
        wait_until(lambda: page.find("#findings details p").is_displayed())
        yield picture(page), HELD_SECONDS


def picture(page: Page) -> Image.Image:
    """What the browser's window shows now, in few shades."""
    # The figure has the size of its place: it is drawn anew where a finding takes a part of that.
    page.picture()
    shown = Image.open(io.BytesIO(page.browser.get_screenshot_as_png())).convert("RGB")
    between = 255 / (SHADES - 1)
    return shown.point([round(round(value / between) * between) for value in range(256)] * 3)


def main() -> None:
    """Film the page, or say what is missing."""
    if missing():
        print(f"page.webp stays as it is: it needs {missing()}.")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work, chromium() as browser, sized(browser, *SIZE):
        (first, *others), shown = zip(*film(browser, Path(work)), strict=True)
    milliseconds = [round(1000 * seconds) for seconds in shown]
    path = Path(sys.argv[1]) / "page.webp"
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, lossless=True, method=6)


if __name__ == "__main__":
    main()
