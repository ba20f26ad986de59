"""The page, in a real browser: it shows rows as they arrive, answers, and keeps its state in its address."""

import base64
import contextlib
import io
import math
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import polars as pl
import pytest
from PIL import Image, ImageChops, ImageStat
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from tests.logs import activations, close_run, events, extremes, flip_bit, metrics, new_run, publish_next
from tests.viewing import Viewing, viewing
from tests.waiting import wait_until
from tracer.log.store import Local as Path
from viewer.reduce.metrics import smoothed

pytestmark = pytest.mark.slow

PARAMS = ("a.weight", "a.bias", "b.weight")
GRADIENTS = ("grad_min", "grad_max")
# A viewer whose page lists two findings.
BRIEF = (
    "-c",
    (
        "import runpy; from viewer.surfaces import web; web._FINDINGS = 2; "
        "runpy.run_module('viewer', run_name='__main__', alter_sys=True)"
    ),
)
# A viewer that is not done with a drawing while there is a file of this name.
HELD = (
    "-c",
    (
        "import os, runpy, time; from matplotlib.figure import Figure; draw = Figure.draw\n"
        "def held(*given):\n"
        "    while os.path.exists('hold'): time.sleep(0.01)\n"
        "    draw(*given)\n"
        "Figure.draw = held; runpy.run_module('viewer', run_name='__main__', alter_sys=True)"
    ),
)
SIZES = ((1440, 900), (1280, 720))


def some_run(path: Path) -> Path:
    """A run of ten steps, with a metric that has no panel of its own."""
    run = new_run(path, PARAMS)
    publish_next(run, "extremes", extremes(range(10), PARAMS))
    publish_next(run, "metrics", metrics(range(10), range(10)))
    publish_next(run, "metrics", metrics(range(10), range(10), "rate"))
    return run


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewing]:
    """A viewer of such a run that has closed, for tests that change neither: it takes seconds to start."""
    folder = Path(tmp_path_factory.mktemp("closed"))
    run = some_run(folder / "run")
    close_run(run, 9)
    with viewing(folder, run, "--web", "--port", 0) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewing]:
    """A viewer of a closed run of 200 steps, whose loss is steps, and whose gradients are NaN from step 150 on."""
    folder = Path(tmp_path_factory.mktemp("ill"))
    run = new_run(folder / "ill", PARAMS)
    bad = {name: [2.0 if step < 150 else math.nan for step in range(200) for _ in PARAMS] for name in GRADIENTS}
    publish_next(run, "extremes", extremes(range(200), PARAMS, bad))
    publish_next(run, "metrics", metrics(range(200), range(200)))
    close_run(run, 199)
    with viewing(folder, run, "--web", "--port", 0) as viewer:
        yield viewer


def address_of(viewer: Viewing) -> str:
    """The page's address, as the user is told it."""
    viewer.wait_for("http://")
    return viewer.said().split()[-1]


def alike(one: str, other: str) -> bool:
    """Whether two pictures are the same but for a pixel by which matplotlib has moved something."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))).convert("L") for each in (one, other)]
    sizes = {picture.size for picture in pictures}
    return len(sizes) == 1 and ImageStat.Stat(ImageChops.difference(*pictures)).mean[0] < 3


class Page:
    """A page as its user sees and handles it."""

    def __init__(self, browser: Chrome, address: str, until: str = "step 9") -> None:
        self.browser = browser
        browser.get(address)
        self.wait_for(until)

    def find(self, css: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.find(css).text

    def wait_for(self, words: str, css: str = "#status") -> None:
        """Wait until an element says these words."""
        wait_until(lambda: words in self.text(css), 20)

    def asked(self) -> dict[str, list[str]]:
        """What the address asks for."""
        return parse_qs(urlsplit(self.browser.current_url).query, keep_blank_values=True)

    def wait_for_address(self, **asked: str) -> None:
        """Wait until the address asks for this, and nothing else; ``zoom_of_…`` stands for a further ``zoom``."""
        expected: dict[str, list[str]] = {}
        for name, value in asked.items():
            expected.setdefault("zoom" if name.startswith("zoom_of_") else name, []).append(value)
        try:
            wait_until(lambda: self.asked() == expected, 20)
        except AssertionError:
            raise AssertionError(f"{self.asked()} is not {expected}") from None

    def choose(self, name: str, value: str) -> None:
        Select(self.find(f"[name={name}]")).select_by_value(value)

    def open_view(self, view: str) -> None:
        self.find(f"label:has([value={view}])").click()

    def fill(self, name: str, text: str) -> None:
        field = self.find(f"[name={name}]")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)

    def parameters(self) -> list[str]:
        """The parameters in the list."""
        return [button.text for button in self.browser.find_elements(By.CSS_SELECTOR, "#params button")]

    def picture(self) -> str:
        """The figure's pixels, once those that were asked for have arrived, in the size of the page."""
        arrived = """
            const image = figure.imageObj, size = [image.naturalWidth, image.naturalHeight].join();
            return !figure.waiting && image.complete && size === [figure.canvas.width, figure.canvas.height].join();
        """
        wait_until(lambda: self.browser.execute_script(arrived), 20)
        return str(self.browser.execute_script("return figure.canvas.toDataURL()"))

    def colour(self) -> tuple[int, ...]:
        """Of the figure's first pixel."""
        script = """
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(figure.canvas, 0, 0);
            return [...context.getImageData(0, 0, 1, 1).data];
        """
        return tuple(self.browser.execute_script(script))

    def wait_for_another_picture(self, than: str) -> None:
        wait_until(lambda: self.picture() != than, 20)

    def mouse(self, x: float, y: float) -> ActionChains:
        """The mouse moved over the figure, to shares of its width and height from the left and the top."""
        figure = self.find("#figure [role=application]")
        width, height = figure.size["width"], figure.size["height"]
        return ActionChains(self.browser, duration=50).move_to_element_with_offset(
            figure, int((x - 0.5) * width), int((y - 0.5) * height)
        )

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the figure, and wait until matplotlib's toolbar has said where that is."""
        self.mouse(x - 0.05, y).perform()
        self.browser.execute_script("figure.message.textContent = ''")
        self.mouse(x, y).perform()
        wait_until(lambda: "(x, y)" in self.text(".mpl-message"), 20)

    def step_at(self, x: float, y: float) -> float:
        """The number on the x axis at a place of the figure, as matplotlib's toolbar says it."""
        self.point(x, y)
        found = re.search(r"\(x, y\) = \((.*?),", self.text(".mpl-message"))
        assert found is not None
        return float(found[1].replace("−", "-"))

    def text_of(self, css: str) -> str:
        """What an element says, if only to who hears it."""
        return str(self.find(css).get_attribute("textContent"))

    def height_of(self, number: float, x: float) -> float:
        """The share of the figure's height at which a number stands on the first panel's linear y axis."""
        heights = 0.1, 0.3
        said = []
        for height in heights:
            self.point(x, height)
            said.append(float(re.findall(r", (\S+)\)$", self.text(".mpl-message"))[0].replace("−", "-")))
        share = (number - said[0]) / (said[1] - said[0])
        return heights[0] + share * (heights[1] - heights[0])

    def save(self, kind: str, folder: Path) -> None:
        """Download what is shown of the overview."""
        there = {"behavior": "allow", "downloadPath": str(folder)}
        self.browser.execute_cdp_cmd("Browser.setDownloadBehavior", there)
        Select(self.find("select.mpl-widget")).select_by_visible_text(kind)
        self.find(".mpl-widget:has([alt^=Download])").click()
        wait_until((folder / f"overview.{kind}").exists, 20)

    def steps_across(self) -> float:
        """How many steps a part of the loss panel covers."""
        return self.step_at(0.5, 0.1) - self.step_at(0.2, 0.1)


LOSS = 0.3, 0.1


@contextlib.contextmanager
def sized(browser: Chrome, width: int, height: int, mobile: bool = False) -> Iterator[None]:
    """The time in which the browser's window is so large inside."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_first_screen_shows_everything(ill: Viewing, browser: Chrome) -> None:
    """Status, each finding in a line, and the whole figure are in the window; the tab's title counts the findings."""
    for width, height in SIZES:
        with sized(browser, width, height):
            for view in ("overview", "layers", "param", "activations"):
                page = Page(browser, f"{address_of(ill)}?view={view}&param=a.bias", "step 199")
                page.wait_for("error", "#found-words")
                assert re.match(r"\d+ errors?\b.* · ill ■ closed · step 199", browser.title)
                bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
                page.picture()
                assert 0 < browser.execute_script(bottom, "#figure canvas") <= height
                assert browser.execute_script("return document.documentElement.scrollHeight") <= height
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                beside = "const look = document.getElementById('look'); return look.scrollWidth - look.clientWidth"
                assert browser.execute_script(beside) == 0
                for finding in browser.find_elements(By.CSS_SELECTOR, "#findings li"):
                    assert finding.is_displayed()
                    assert finding.size["height"] < 30


def test_findings_lead_to_their_step_and_to_their_parameter(ill: Viewing, browser: Chrome) -> None:
    """A click zooms to where it began, or opens the parameter; back leads to where the user came from."""
    page = Page(browser, address_of(ill), "step 199")
    page.wait_for("steps 150 to 199", "#findings")
    page.find("#findings [data-name*='NaN'] a.step").click()
    wait_until(lambda: "zoom" in page.asked(), 20)
    low, high = map(float, page.asked()["zoom"][0].split(","))
    assert 100 < low < 150 < high < 200
    link = page.find("#findings [data-name*='NaN'] .params a")
    param = link.text
    assert param in PARAMS
    link.click()
    wait_until(lambda: page.asked().get("param") == [param], 20)
    assert (page.asked()["view"], page.asked()["zoom"]) == (["param"], [f"{low:g},{high:g}"])
    browser.back()
    wait_until(lambda: "param" not in page.asked(), 20)
    browser.back()
    page.wait_for_address()


def test_the_pointer_tells_the_numbers_of_every_curve(ill: Viewing, browser: Chrome) -> None:
    """Step, time, the number as it was logged and smoothed, and what is NaN, in all views; none beside the panels."""
    page = Page(browser, f"{address_of(ill)}?zoom=0,199", "step 199")
    page.mouse(0.3, 0.15).perform()
    page.wait_for("step", "#tip")
    found = re.search(r"step (\d+) · (\S+ \S+)\s+loss (\d+), smoothed (\S+)", page.text("#tip"))
    assert found is not None, page.text("#tip")
    step = int(found[1])
    there = datetime(2026, 1, 1, tzinfo=UTC).astimezone() + timedelta(seconds=step)
    assert (found[2], int(found[3])) == (f"{there:%Y-%m-%d %H:%M:%S}", step)
    assert float(found[4]) == pytest.approx(smoothed(list(range(200)), 0.6)[step], rel=1e-4)
    assert "value max 1\nvalue min -1\ngradient max 2" in page.text("#tip")
    line = browser.execute_script("return document.querySelector('.line').getBoundingClientRect().left")
    box = page.find("#figure [role=application]").rect
    assert line == pytest.approx(box["x"] + 0.3 * box["width"], abs=3)
    page.mouse(0.01, 0.01).perform()
    wait_until(lambda: not page.find("#tip").is_displayed(), 20)
    page.open_view("layers")
    page.wait_for_address(view="layers", zoom="0,199")
    page.mouse(0.6, 0.3).perform()
    page.wait_for("a.weight", "#tip")
    page.open_view("param")
    page.wait_for_address(view="param", param="a.weight", zoom="0,199")
    page.mouse(0.9, 0.3).perform()
    page.wait_for("gradient max NaN or inf at step", "#tip")


def test_arrow_keys_move_a_cursor_that_is_read_aloud(ill: Viewing, browser: Chrome) -> None:
    """To the last point, from there to others, and from panel to panel; they leave matplotlib's views alone."""
    page = Page(browser, f"{address_of(ill)}?smoothing=0", "step 199")
    figure = page.find("#figure [role=application]")
    heard = []
    keys = (Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.SHIFT + Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    for key in keys:
        before = page.text_of("#said")
        figure.send_keys(key)
        wait_until(lambda before=before: page.text_of("#said") != before, 20)  # type: ignore[misc]
        heard.append(page.text_of("#said"))
    assert [words.partition(" · ")[0] for words in heard[:4]] == [f"loss, step {step}" for step in (198, 197, 187, 188)]
    assert heard[0].endswith(": loss 198")
    assert heard[4].startswith("extremes, step 188 · ")
    assert "value max 1; value min -1; gradient max NaN or inf at step 188" in heard[4]
    assert page.find("#tip").is_displayed()
    page.open_view("layers")
    page.wait_for_address(view="layers", smoothing="0.0")
    wait_until(lambda: bool(page.picture()), 20)
    page.find("#figure [role=application]").send_keys(Keys.ARROW_LEFT)
    wait_until(lambda: "a.weight" in page.text_of("#said"), 20)
    page.find("#figure [role=application]").send_keys(Keys.ARROW_DOWN)
    wait_until(lambda: "a.bias" in page.text_of("#said"), 20)
    page.find("#figure [role=application]").send_keys(Keys.ESCAPE)
    wait_until(lambda: not page.find("#tip").is_displayed(), 20)


def test_the_pointer_is_answered_while_the_figure_is_drawn(tmp_path: Path, browser: Chrome) -> None:
    """From the numbers that were drawn last: a drawing may take long."""
    run = some_run(tmp_path / "run")
    with viewing(tmp_path, run, "--web", "--port", 0, program=HELD) as viewer:
        page = Page(browser, address_of(viewer))
        before = page.picture()
        (tmp_path / "hold").touch()
        publish_next(run, "extremes", extremes([10], PARAMS))
        wait_until(lambda: bool(browser.execute_script("return figure.waiting")), 20)
        for across, step in ((0.2, r"step [0-4] "), (0.6, r"step ([5-9]|10) ")):
            page.mouse(across, 0.15).perform()
            wait_until(lambda step=step: re.search(step, page.text("#tip")) is not None, 20)  # type: ignore[misc]
        assert browser.execute_script("return figure.waiting")
        (tmp_path / "hold").unlink()
        page.wait_for_another_picture(before)


def test_a_click_names_a_curve(ill: Viewing, browser: Chrome) -> None:
    """The nearest one stands out from the others, and is said; a click beside all curves lets it go."""
    page = Page(browser, f"{address_of(ill)}?view=param&param=a.bias&zoom=0,140&zoom=value:-1.01,1.01", "step 199")

    def click(number: float) -> str:
        """Click at a number on the y axis; what is said then. The panels may still move while findings come."""
        page.mouse(0.4, page.height_of(number, 0.4)).click().perform()
        return page.text_of("#said")

    for end, number in (("min", -1), ("max", 1)):
        said = f"value {end} {number}"
        wait_until(lambda number=number, said=said: click(number) == said, 30)  # type: ignore[misc]
        assert page.text("#tip .named") == said
    page.mouse(0.4, page.height_of(0.5, 0.4)).click().perform()
    wait_until(lambda: not browser.find_elements(By.CSS_SELECTOR, "#tip .named"), 20)


def test_the_curve_grows_and_a_zoom_stays(tmp_path: Path, browser: Chrome) -> None:
    """Rows appear as they are written, and the axes follow them, until the user has zoomed: then they stay."""
    run = tmp_path / "run"
    with viewing(tmp_path, run, "--web", "--port", 0) as viewer:
        page = Page(browser, address_of(viewer), "no run yet: waiting for it")
        some_run(run)
        page.wait_for("● running · step 9")
        wait_until(lambda: 0 < page.step_at(*LOSS) < 9, 20)
        publish_next(run, "metrics", metrics(range(10, 100), range(10, 100)))
        page.wait_for("step 99")
        wait_until(lambda: 10 < page.step_at(*LOSS) < 99, 20)
        whole = page.steps_across()
        page.find(".mpl-widget:has([alt^=Zoom])").click()
        page.mouse(0.2, 0.05).click_and_hold().perform()
        page.mouse(0.35, 0.2).release().perform()
        page.find(".mpl-widget:has([alt^=Zoom])").click()
        wait_until(lambda: page.steps_across() < 0.5 * whole, 20)
        before, picture = page.step_at(*LOSS), page.picture()
        publish_next(run, "metrics", metrics(range(100, 200), range(100, 200)))
        page.wait_for("step 199")
        page.wait_for_another_picture(picture)
        assert page.step_at(*LOSS) == before
        assert {part.partition(":")[0] for part in page.asked()["zoom"]} > {"loss"}
        close_run(run, 199)
        page.wait_for("■ closed")
        assert viewer.complained() == ""


def test_a_zoom_stays_while_the_view_and_its_controls_change(closed: Viewing, browser: Chrome) -> None:
    """Over a reload and in every view with the same x axis; the home button leads back to all that there is."""
    page = Page(browser, address_of(closed))
    whole = page.steps_across()
    page = Page(browser, f"{address_of(closed)}?zoom=2,6&zoom=loss:1,8")
    # How wide the panel itself is changes once, as findings are known.
    wait_until(lambda: page.steps_across() < 0.6 * whole, 20)
    page.choose("dark", "true")
    page.wait_for_address(dark="true", zoom="2,6", zoom_of_loss="loss:1,8")
    wait_until(lambda: page.steps_across() < 0.6 * whole, 20)
    page.open_view("param")
    page.wait_for_address(dark="true", view="param", param="a.weight", zoom="2,6", zoom_of_loss="loss:1,8")
    assert 2 <= page.step_at(0.5, 0.2) <= 6
    page.open_view("overview")
    page.choose("x", "relative")
    page.wait_for_address(dark="true", x="relative", param="a.weight", zoom_of_loss="loss:1,8")
    page.choose("x", "step")
    page.find(".mpl-widget:has([alt^=Reset])").click()
    page.wait_for_address(dark="true", param="a.weight")
    wait_until(lambda: page.steps_across() > 0.8 * whole, 20)


def test_parameters_are_filtered(closed: Viewing, browser: Chrome) -> None:
    """A regular expression leaves what it matches; a bad one is answered beside it, and changes nothing."""
    page = Page(browser, address_of(closed))
    assert page.parameters() == list(PARAMS)
    page.fill("params", r"^a\.")
    page.wait_for("2 of 3 parameters match", "#matching")
    assert page.parameters() == ["a.weight", "a.bias"]
    page.wait_for_address(params=r"^a\.")
    before = page.picture()
    page.fill("params", "^(a")
    page.wait_for("unclosed group", "#refused-params")
    assert page.find("[name=params]").get_attribute("aria-invalid") == "true"
    assert (page.parameters(), page.picture()) == (["a.weight", "a.bias"], before)
    page.fill("params", "")
    page.wait_for_address()
    wait_until(lambda: page.parameters() == list(PARAMS), 20)
    assert page.text("#refused-params") == ""


def test_the_address_is_the_state(closed: Viewing, browser: Chrome) -> None:
    """What is chosen stands in the address; a reload, or the same address elsewhere, shows the same picture."""
    page = Page(browser, address_of(closed))
    plain = page.picture()
    page.open_view("param")
    page.wait_for_address(view="param", param=PARAMS[0])
    page.choose("histograms", "ridge")
    page.wait_for_address(view="param", param=PARAMS[0], histograms="ridge")
    page.choose("histograms", "map")
    page.open_view("layers")
    page.wait_for_address(view="layers", param=PARAMS[0])
    page.choose("statistic", "value_absmax")
    page.choose("dark", "true")
    page.wait_for_address(view="layers", param=PARAMS[0], statistic="value_absmax", dark="true")
    wait_until(lambda: page.colour() == (0x14, 0x17, 0x1C, 255), 20)
    layers, here = page.picture(), browser.current_url
    browser.refresh()
    page.wait_for("step 9")
    assert page.find("html").get_attribute("data-theme") == "dark"
    assert Select(page.find("[name=statistic]")).first_selected_option.text == "value_absmax"
    wait_until(lambda: alike(page.picture(), layers), 20)
    assert "layers: run  ■ closed" in str(page.find("#figure [role=application]").get_attribute("aria-label"))
    browser.switch_to.new_window("tab")
    other = Page(browser, here.partition("?")[0])
    wait_until(lambda: alike(other.picture(), plain), 20)
    browser.switch_to.window(browser.window_handles[0])
    assert alike(page.picture(), layers)
    assert not alike(layers, plain)


def test_the_page_shows_activations(tmp_path: Path, browser: Chrome) -> None:
    """A button chooses the view, the list offers what is recorded of outputs, and back with the layers its own."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", extremes(range(10), PARAMS))
    publish_next(run, "activations", activations(range(10), ["fc", "relu", ""]))
    close_run(run, 9)
    with viewing(tmp_path, run, "--web", "--port", 0) as viewer:
        page = Page(browser, address_of(viewer))
        page.open_view("activations")
        page.wait_for_address(view="activations", statistic="std")
        choice = Select(page.find("[name=statistic]"))
        wait_until(lambda: "dead" in [option.text for option in choice.options], 20)
        assert "grad_absmax" not in [option.text for option in choice.options]
        page.choose("statistic", "zeros")
        page.wait_for_address(view="activations", statistic="zeros")
        page.open_view("layers")
        page.wait_for_address(view="layers")
        wait_until(lambda: Select(page.find("[name=statistic]")).first_selected_option.text == "grad_absmax", 20)
        page.find("#figure [role=application]").send_keys("4")
        page.wait_for_address(view="activations", statistic="std", param=PARAMS[0])
        assert viewer.complained() == ""


@pytest.mark.smoke
def test_a_click_opens_a_parameter(closed: Viewing, browser: Chrome) -> None:
    """A click on a row of the layers, or on a name in the list, shows that parameter; controls and address follow."""
    page = Page(browser, f"{address_of(closed)}?view=layers")
    page.wait_for_address(view="layers")
    page.mouse(0.5, 0.4).click().perform()
    page.wait_for_address(view="param", param="a.bias")
    assert page.find("[value=param]").is_selected()
    assert page.find("[name=param]").get_attribute("value") == "a.bias"
    page.find("#params [value='b.weight']").click()
    page.wait_for_address(view="param", param="b.weight")
    assert page.text("#params [aria-current=true]") == "b.weight"
    browser.get(f"{address_of(closed)}?view=param")
    page.wait_for_address(view="param", param="a.weight")


def test_the_browsers_back_button_leads_back_to_the_view(closed: Viewing, browser: Chrome) -> None:
    """From a parameter, and another, back leads to where the user came from, with its controls; forward leads on."""
    page = Page(browser, f"{address_of(closed)}?view=layers&dark=true")
    page.wait_for_address(view="layers", dark="true")
    page.mouse(0.5, 0.4).click().perform()
    page.wait_for_address(view="param", param="a.bias", dark="true")
    page.find("#params [value='b.weight']").click()
    page.wait_for_address(view="param", param="b.weight", dark="true")
    browser.back()
    page.wait_for_address(view="param", param="a.bias", dark="true")
    browser.back()
    page.wait_for_address(view="layers", dark="true")
    wait_until(lambda: page.find("[value=layers]").is_selected())
    browser.forward()
    page.wait_for_address(view="param", param="a.bias", dark="true")
    wait_until(lambda: page.find("[value=param]").is_selected())


def test_an_answer_to_where_the_browser_no_longer_is_leaves_the_way_forward(closed: Viewing, browser: Chrome) -> None:
    """On a slow network, an answer may come when the browser has gone back once more: it makes no new place."""
    page = Page(browser, f"{address_of(closed)}?view=layers")
    page.wait_for_address(view="layers")
    page.mouse(0.5, 0.4).click().perform()
    page.wait_for_address(view="param", param="a.bias")
    page.find("#params [value='b.weight']").click()
    page.wait_for_address(view="param", param="b.weight")
    browser.execute_script(
        "window.late = []; window.take = figure.ws.onmessage; figure.ws.onmessage = (message) => late.push(message)"
    )
    browser.back()
    late = "return late.some(({ data }) => typeof data === 'string' && data.includes('param=a.bias'))"
    wait_until(lambda: bool(browser.execute_script(late)), 20)
    browser.back()
    page.wait_for_address(view="layers")
    browser.execute_script("figure.ws.onmessage = take; late.forEach((message) => figure.ws.onmessage(message))")
    wait_until(lambda: page.find("[value=layers]").is_selected(), 20)
    for param in ("a.bias", "b.weight"):
        browser.forward()
        page.wait_for_address(view="param", param=param)
        wait_until(lambda param=param: page.find("[name=param]").get_attribute("value") == param, 20)  # type: ignore[misc]


def test_runs_and_metrics_are_chosen(tmp_path: Path, browser: Chrome) -> None:
    """Of several runs one can be chosen by its name alone, and curves can be switched off and on."""
    for name in ("one", "two"):
        some_run(tmp_path / "runs" / name)
    with viewing(tmp_path, "runs", "--web", "--port", 0) as viewer:
        page = Page(browser, address_of(viewer), "2 runs")
        page.choose("run", "two")
        page.wait_for_address(run="two")
        page.wait_for("two ● running")
        picture = page.picture()
        rate = page.find("#curves [value='^rate$']")
        assert rate.is_selected()
        rate.click()
        page.wait_for_address(run="two", hide="^rate$")
        page.wait_for_another_picture(picture)
        rate.click()
        page.wait_for_address(run="two")
        page.fill("loss", "rate")
        page.wait_for_address(run="two", loss="rate")
        browser.get(f"{address_of(viewer)}?run=../one")
        page.wait_for("there is no run '../one'", "#refused-run")


def test_what_an_address_cannot_ask_for_is_answered(closed: Viewing, browser: Chrome) -> None:
    """Of an address, what cannot be is passed over, and said where the page has a control for it."""
    asked = (
        "view=all&x=y&scale=&rank=-1&smoothing=nan&params=(&dark=1&metrics=&other=1&param=&run=&prefers=x&zoom=1,nan"
    )
    page = Page(browser, f"{address_of(closed)}?{asked}")
    page.wait_for_address()
    for name in ("view", "x", "scale", "rank", "smoothing", "params", "dark"):
        assert page.text(f"#refused-{name}"), name
    assert page.find("[name=params]").get_attribute("value") == "("
    assert page.find("[value=overview]").is_selected()
    assert closed.complained() == ""


def test_findings_are_listed_as_they_arise(tmp_path: Path, browser: Chrome) -> None:
    """Each with its steps and what people try, in the order of the marks' numbers; none where nobody wants them."""
    run = some_run(tmp_path / "run")
    with viewing(tmp_path, "run", "--web", "--port", 0) as viewer:
        page = Page(browser, address_of(viewer))
        assert not page.find("#found").is_displayed()
        values = {name: [-1.0, -1.0, -1.0, math.nan, 1.0, 1.0] for name in ("grad_min", "grad_max")}
        publish_next(run, "extremes", extremes([10, 11], PARAMS, values))
        page.wait_for("Findings: 1 error", "#found summary")
        assert browser.title.startswith("1 error · run ● running · step 11")
        (item,) = browser.find_elements(By.CSS_SELECTOR, "#findings li")
        assert item.text.startswith("1 error step 11 NaN or infinity in the gradient of a.weight")
        assert "Log the loss" not in item.text
        item.find_element(By.TAG_NAME, "b").click()
        wait_until(lambda: "a.weight became NaN" in item.text and "Log the loss" in item.text, 20)
        marked = page.picture()
        page.choose("findings", "false")
        page.wait_for_address(findings="false")
        wait_until(lambda: not page.find("#found").is_displayed() and browser.title.startswith("run "), 20)
        page.wait_for_another_picture(marked)
        assert viewer.complained() == ""


def test_a_list_of_findings_stays_under_the_users_hands(tmp_path: Path, browser: Chrome) -> None:
    """While findings grow, what is selected and how far the list is scrolled stay; what has no room is counted."""
    run = some_run(tmp_path / "run")
    publish_next(run, "metrics", metrics([9], [math.nan], "loss_0\u202e"))
    for kind in ("stride", "paused"):
        publish_next(run, "events", events([9], kind))
    with viewing(tmp_path, "run", "--web", "--port", 0, program=BRIEF) as viewer:
        page = Page(browser, address_of(viewer))
        page.wait_for("2 notes", "#found summary")
        assert "\u202e" not in page.text("#findings")
        items = browser.find_elements(By.CSS_SELECTOR, "#findings li")
        assert (len(items), items[-1].get_attribute("textContent")) == (3, "… and 1 more: see `viewer check`")
        browser.execute_script("findings.style.maxHeight = '20px'; findings.scrollTop = 11")
        publish_next(run, "metrics", metrics([10], [math.nan], "loss_0\u202e"))
        page.wait_for("step 10")
        wait_until(lambda: "steps 9 to 10" in page.text_of("#findings"), 20)
        assert browser.execute_script("return findings.scrollTop") == 11
        assert browser.find_elements(By.CSS_SELECTOR, "#findings li") == items
        select = "getSelection().selectAllChildren(document.querySelector('#findings li')); return `${getSelection()}`"
        selected = browser.execute_script(select)
        publish_next(run, "events", events([9], "failed"))
        publish_next(run, "metrics", metrics([11], [math.nan], "loss_0\u202e"))
        page.wait_for("3 notes", "#found summary")
        assert browser.execute_script("return `${getSelection()}`") == selected
        assert "2 more" not in page.text_of("#findings")
        browser.execute_script("getSelection().removeAllRanges()")
        wait_until(lambda: "2 more" in page.text_of("#findings"), 20)
        assert viewer.complained() == ""


def test_names_of_a_log_are_text(tmp_path: Path, browser: Chrome) -> None:
    """Markup in the names of runs, parameters and metrics is shown as it is, and nothing of it runs."""
    name, script = "<img src=x onerror=alert(1)>", "</option><script>alert(1)</script>"
    run = new_run(tmp_path / name, (script,))
    publish_next(run, "extremes", extremes(range(10), (script,)))
    publish_next(run, "metrics", metrics(range(10), range(10), script))
    damaged = publish_next(run, "extremes", extremes([10], (script,))).path
    flip_bit(damaged)
    some_run(tmp_path / "other")
    with viewing(tmp_path, name, "other", "--web", "--port", 0) as viewer:
        page = Page(browser, f"{address_of(viewer)}?view=param&run=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E", name)
        assert page.parameters() == [script]
        assert name in page.text("[name=run]")
        assert damaged.name in page.text("#notices")
        page.wait_for_address(view="param", run=name, param=script)
        page.open_view("overview")
        page.wait_for(script, "#curves")
        assert not browser.find_elements(By.CSS_SELECTOR, "main script, img[src=x]")
        with pytest.raises(NoAlertPresentException):
            browser.switch_to.alert.accept()


def test_a_phone_shows_it_without_scrolling_sideways(tmp_path: Path, browser: Chrome) -> None:
    """At 360 pixels the figure takes the width, and no view, open control or long name makes the page wider."""
    name = "encoder.layers.0.self_attention.query_projection.weight" * 3
    run = new_run(tmp_path / "run", (name,))
    publish_next(run, "extremes", extremes(range(10), (name,)))
    with viewing(tmp_path, run, "--web", "--port", 0) as viewer:
        with sized(browser, 360, 740, mobile=True):
            page = Page(browser, address_of(viewer))
            assert page.find("#controls").get_attribute("open") is None
            page.find("#controls summary").click()
            for view in ("overview", "layers", "param", "activations"):
                page.open_view(view)
                wait_until(lambda view=view: view in page.asked().get("view", ["overview"]), 20)  # type: ignore[misc]
                assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
            wait_until(lambda: 300 < browser.execute_script("return figure.canvas.width") <= 360, 20)
        assert viewer.complained() == ""


def test_every_control_has_a_name_and_can_be_reached_by_keys(closed: Viewing, browser: Chrome) -> None:
    """Each control and the figure has an accessible name, and Tab reaches it; keys in the figure choose the view."""
    page = Page(browser, address_of(closed))
    there = [
        element
        for element in browser.find_elements(
            By.CSS_SELECTOR, "input, select, button, summary, #figure [role=application]"
        )
        if element.is_displayed() and element.is_enabled() and element.get_attribute("type") != "radio"
    ]
    assert [element.get_attribute("outerHTML") for element in there if not element.accessible_name] == []
    reached = set()
    for _ in range(len(there) + 5):
        ActionChains(browser, duration=0).send_keys(Keys.TAB).perform()
        reached.add(browser.switch_to.active_element)
    assert set(there) <= reached
    page.find("#figure [role=application]").send_keys("2")
    page.wait_for_address(view="layers", param="a.weight")


def test_the_figure_can_be_downloaded(closed: Viewing, tmp_path: Path, browser: Chrome) -> None:
    """The toolbar saves the figure as it is shown, in the format that was chosen."""
    page = Page(browser, address_of(closed))
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF-")):
        page.save(kind, tmp_path)
        assert (tmp_path / f"overview.{kind}").read_bytes().startswith(magic)


def test_what_is_shown_can_be_downloaded_as_numbers(closed: Viewing, tmp_path: Path, browser: Chrome) -> None:
    """As CSV: the points of each curve in the part that is zoomed to."""
    Page(browser, f"{address_of(closed)}?zoom=2.5,4.5").save("csv", tmp_path)
    rows = pl.read_csv((tmp_path / "overview.csv").read_bytes())
    loss = rows.filter(pl.col("curve") == "loss")
    assert loss.select("run", "step", "value").rows() == [("run", 3, 3.0), ("run", 4, 4.0)]
    assert loss["time"].to_list() == ["2026-01-01T00:00:03.000000Z", "2026-01-01T00:00:04.000000Z"]
    extremes = {"value max", "value min", "gradient max", "gradient min"}
    assert set(rows["curve"]) == {"loss", "rate", *extremes, "gradient, first layer", "gradient, last layer"}


def test_a_run_of_a_newer_format_is_said_in_the_page(tmp_path: Path, browser: Chrome) -> None:
    """Where the folder turns out to hold a newer format, the page says so, and the viewer goes on."""
    run = tmp_path / "run"
    with viewing(tmp_path, run, "--web", "--port", 0) as viewer:
        page = Page(browser, address_of(viewer), "no run yet: waiting for it")
        run.mkdir()
        (run / "new.json").write_text('{"format": 99}')
        (run / "new.json").rename(run / "run.json")
        page.wait_for("upgrade")
        assert viewer.process.poll() is None
        assert viewer.complained() == ""


def test_ctrl_c_ends_it_quietly_and_the_page_goes_on_with_the_next_viewer(tmp_path: Path, browser: Chrome) -> None:
    """It ends with code 130; the page says what to do, and who does it finds the view in the page as it was."""
    run = some_run(tmp_path / "run")
    with viewing(tmp_path, run, "--web", "--port", 0) as viewer:
        address = address_of(viewer)
        page = Page(browser, f"{address}?view=layers&zoom=2,7")
        page.wait_for_address(view="layers", zoom="2,7")
        viewer.process.send_signal(signal.SIGINT)
        assert viewer.wait() == 130
        assert viewer.complained().strip() == ""
        pauses: list[int] = []

        def grow() -> bool:
            pauses.extend(map(int, re.findall(r"trying again in (\d+) s", page.text("#status"))))
            return len(set(pauses)) > 1

        wait_until(grow, 30)
        assert pauses == sorted(pauses)
        port = urlsplit(address).port
        assert f"start it again with --port {port}" in page.text("#status")
        browser.execute_script("window.before = true")
    publish_next(run, "extremes", extremes([10], PARAMS))
    with viewing(tmp_path, run, "--port", port) as viewer:
        assert address_of(viewer) == address
        page.wait_for("step 10")
        wait_until(lambda: bool(page.picture()), 20)
        page.wait_for_address(view="layers", zoom="2,7")
        assert browser.execute_script("return window.before")
        assert viewer.complained() == ""


def test_a_closed_page_leaves_nothing_behind(tmp_path: Path, browser: Chrome) -> None:
    """Each page watches the run for as long as it is open, and not longer."""
    with viewing(tmp_path, some_run(tmp_path / "run"), "--web", "--port", 0) as viewer:

        def watching() -> int:
            count = 0
            for link in Path(f"/proc/{viewer.process.pid}/fd").iterdir():
                # It may have been closed since it was listed.
                with contextlib.suppress(FileNotFoundError):
                    count += "inotify" in str(link.readlink())
            return count

        Page(browser, address_of(viewer))
        one = watching()
        browser.switch_to.new_window("tab")
        Page(browser, address_of(viewer))
        wait_until(lambda: watching() == 2 * one > 0, 20)
        browser.close()
        browser.switch_to.window(browser.window_handles[0])
        wait_until(lambda: watching() == one, 20)
        browser.get("about:blank")
        wait_until(lambda: watching() == 0, 20)
        assert viewer.complained() == ""
