"""A real browser, and what holds after every page that it showed."""

import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_PROGRAMS = ("chromium", "chromedriver")


@pytest.fixture(scope="package")
def chromium() -> Iterator[Chrome]:
    """The browser, without a screen."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    binary, driver = (str(shutil.which(program)) for program in _PROGRAMS)
    options = ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,960"):
        options.add_argument(argument)
    browser = Chrome(options, Service(executable_path=driver))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Chrome]:
    """The browser for one test, which fails if the console has anything to say, as of an error or a violated policy.

    That nobody answers is said there by the browser itself, once a test has ended its viewer and the page tries again.
    """
    yield chromium
    log = chromium.get_log("browser")  # type: ignore[no-untyped-call]
    said = [line for line in log if "/socket" not in line["message"] or "net::ERR_CONNECTION" not in line["message"]]
    for extra in chromium.window_handles[1:]:
        chromium.switch_to.window(extra)
        chromium.close()
    chromium.switch_to.window(chromium.window_handles[0])
    chromium.get("about:blank")
    assert said == []
