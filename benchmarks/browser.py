"""A headless Chromium for checks of pages; it uses no network of its own accord and leaves no files."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars"),
)
ALL_DRAWN = "document.querySelectorAll('.plot').length == document.body.dataset.drawn"
"""A script that is true on a page of compare.py once every figure is drawn."""


def installed() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver; None if either is missing."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


@contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Start a browser with an empty profile, whose console and requests are recorded.

    Raises:
        RuntimeError: Chromium or its driver is missing.
    """
    found = installed()
    if found is None:
        raise RuntimeError("needs chromium and chromedriver, such as Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = found[0]
        for flag in (*_FLAGS, f"window-size={width},{height}", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=found[1]))
        try:
            yield driver
        finally:
            driver.quit()


def until(driver: Any, script: str, seconds: float = 60) -> Any:
    """Wait until a script returns a true value, and return it; the page may reload meanwhile.

    Raises:
        TimeoutError: it has not after ``seconds``.
    """
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := driver.execute_script(f"return {script}"):
                return found
        except WebDriverException:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"never true: {script}")
