"""A real browser, without a screen."""

import contextlib
import shutil
from collections.abc import Iterator

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_PROGRAMS = ("chromium", "chromedriver")


def missing() -> str:
    """The programs that it needs and that are not here; "" if all are."""
    return " and ".join(program for program in _PROGRAMS if shutil.which(program) is None)


@contextlib.contextmanager
def chromium() -> Iterator[Chrome]:
    """The browser, until the end of the block."""
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
