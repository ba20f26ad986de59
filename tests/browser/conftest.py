"""A real browser, and what holds after every page that it showed."""

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium as real


@pytest.fixture(scope="package")
def chromium() -> Iterator[Chrome]:
    """The browser, without a screen."""
    if missing := real.missing():
        pytest.skip(f"needs {missing}")
    with real.chromium() as browser:
        yield browser


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
