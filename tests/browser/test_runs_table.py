"""The page's table of runs, in a real browser: sorted, filtered, and with boxes that choose which runs are drawn."""

import math
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.browser.test_page import Page, address_of
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.viewing import Viewing, viewing
from tests.waiting import wait_until
from tracer.log.store import Local as Path
from viewer.draw.theme import LIGHT

pytestmark = pytest.mark.slow

RUNS = 40


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewing]:
    """A viewer of forty closed runs; each third one has a loss that ends in NaN."""
    folder = Path(tmp_path_factory.mktemp("forty"))
    for place in range(RUNS):
        run = new_run(
            folder / "runs" / f"run-{place:02d}", config={"lr": 0.1 / (1 + place), "opt": ("sgd", "adam")[place % 2]}
        )
        losses = [2 - step / 10 + place for step in range(10)]
        publish_next(run, "extremes", extremes(range(10)))
        publish_next(run, "metrics", metrics(range(10), [*losses[:-1], math.nan if place % 3 == 0 else losses[-1]]))
        close_run(run, 9)
    with viewing(folder, folder / "runs", "--web", "--port", 0) as viewer:
        yield viewer


class Table:
    """The table as its user sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        wait_until(lambda: len(self.rows()) == RUNS and "findings" in self.page.text("#runs thead"))

    def rows(self) -> list[list[str]]:
        """The cells of each row, without that of the box."""
        rows = "[...document.querySelectorAll('#runs tbody tr')]"
        script = f"return {rows}.map(row => [...row.cells].slice(1).map(cell => cell.textContent))"
        found: list[list[str]] = self.page.browser.execute_script(script)
        return found

    def column(self, name: str) -> list[str]:
        """The cells of a column, in the order of its rows."""
        names = [each.text.strip() for each in self.page.browser.find_elements(By.CSS_SELECTOR, "#runs th button")]
        return [row[names.index(name)] for row in self.rows()]

    def sort(self, name: str) -> None:
        self.page.find(f"#runs button[data-sort='{name}']").click()

    def box(self, run: str) -> WebElement:
        return self.page.find(f"#runs [data-run='{run}']")

    def chip(self, run: str) -> str:
        """The colour before a run's name."""
        box = self.box(run)
        return str(
            self.page.browser.execute_script(
                "return arguments[0].closest('tr').querySelector('i').style.background", box
            )
        )

    def drawn(self) -> str:
        return self.page.text("#runs summary")


def rgb(colour: str) -> str:
    """A colour as a browser writes it."""
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


def test_the_table_is_sorted_and_filtered(browser: Chrome, forty: Viewing) -> None:
    """A click on a heading sorts by its numbers, a second one turns the order around; words filter, all of them."""
    table = Table(Page(browser, address_of(forty), until=""))
    assert table.column("run") == [f"run-{place:02d}" for place in range(RUNS)]
    assert set(table.column("steps")) == {"10"}
    assert {"best loss", "lr", "opt"} <= set(
        table.page.text("#runs thead").split("\n")
    ) or "best loss" in table.page.text("#runs thead")
    table.sort("best loss")
    assert [float(number) for number in table.column("best loss")] == sorted(
        (1.2 + place if place % 3 == 0 else 1.1 + place for place in range(RUNS)), reverse=True
    )
    table.sort("best loss")
    assert table.column("run")[0] == "run-00"
    table.sort("loss")
    table.sort("loss")
    assert (table.column("run")[0], table.column("loss")[-1]) == ("run-01", "nan")
    filtering = table.page.find("#runs input[type=search]")
    filtering.send_keys("adam run-1")
    assert sorted(table.column("run")) == [f"run-{place}" for place in (11, 13, 15, 17, 19)]
    assert set(table.column("opt")) == {"adam"}
    filtering.clear()
    filtering.send_keys(" ")
    assert len(table.rows()) == RUNS


def test_the_address_keeps_the_order_and_the_filter(browser: Chrome, forty: Viewing) -> None:
    """A reload, another page of the same address, and the way back from another view show the same rows."""
    page = Page(browser, address_of(forty), until="")
    table = Table(page)
    table.sort("best loss")
    page.wait_for_address(sort="best loss", descending="true")
    table.sort("best loss")
    page.wait_for_address(sort="best loss")
    page.find("#runs input[type=search]").send_keys("adam run-1")
    page.wait_for_address(sort="best loss", filter="adam run-1")
    expected = [f"run-{place}" for place in (11, 13, 15, 17, 19)]
    assert table.column("run") == expected

    def same() -> bool:
        filtered = page.find("#runs input[type=search]").get_attribute("value") == "adam run-1"
        return filtered and len(table.rows()) == len(expected) and table.column("run") == expected

    page.choose("x", "wall")
    page.wait_for_address(x="wall", sort="best loss", filter="adam run-1")
    shared = browser.current_url
    browser.refresh()
    wait_until(same)
    browser.switch_to.new_window("tab")
    browser.get(shared)
    wait_until(same)
    assert page.find("#runs th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.open_view("layers")
    page.wait_for_address(x="wall", view="layers", sort="best loss", filter="adam run-1")
    browser.back()
    page.wait_for_address(x="wall", sort="best loss", filter="adam run-1")
    wait_until(same)
    links = "return [...document.querySelectorAll('#findings a[href]')].map(link => link.search)"
    assert all("sort=best+loss&filter=adam+run-1" in link for link in browser.execute_script(links))


def test_boxes_choose_which_runs_are_drawn(browser: Chrome, forty: Viewing) -> None:
    """The figure draws the chosen runs, at first those begun last, in the table's colours; the address keeps them."""
    page = Page(browser, address_of(forty), until="")
    table = Table(page)
    assert table.drawn() == "Runs: 40, drawn 20"
    assert (table.chip("run-19"), table.chip("run-20") == "transparent") == ("transparent", False)
    before = page.picture()
    page.find("#runs thead [type=checkbox]").click()
    wait_until(lambda: table.drawn() == "Runs: 40, drawn 40", 20)
    page.wait_for_another_picture(before)
    filtering = page.find("#runs input[type=search]")
    filtering.send_keys("run-1")
    page.find("#runs thead [type=checkbox]").click()
    wait_until(lambda: table.drawn() == "Runs: 40, drawn 30", 20)
    browser.get(f"{address_of(forty)}?runs=run-03&runs=run-07")
    table = Table(page)
    assert table.drawn() == "Runs: 40, drawn 2"
    assert [table.chip(run) for run in ("run-03", "run-07")] == [rgb(colour) for colour in LIGHT.palette[:2]]
    table.box("run-05").click()
    wait_until(lambda: sorted(page.asked().get("runs", [])) == ["run-03", "run-05", "run-07"], 20)
    wait_until(lambda: table.chip("run-05") == rgb(LIGHT.palette[1]), 20)
    page.choose("x", "wall")
    wait_until(lambda: "x" in page.asked(), 20)
    assert sorted(page.asked()["runs"]) == ["run-03", "run-05", "run-07"]
    browser.refresh()
    assert Table(page).drawn() == "Runs: 40, drawn 3"
