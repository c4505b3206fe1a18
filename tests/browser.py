"""Headless Chromium for tests of the servers' pages, and what a person sees there."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.polling import wait_until


@contextlib.contextmanager
def chromium(require_program: Callable[[str], str], downloads: Path) -> Iterator[Any]:
    """A browser that writes down every request, with a software renderer for WebGL 2; files are saved in a folder."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = require_program("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--no-proxy-server",
        "--window-size=1500,950",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=require_program("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.downloads = downloads
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(downloads, ignore_errors=True)


def wait_for(browser: Any, selector: str) -> list[Any]:
    """Wait until elements are shown; the elements."""
    stale = pytest.importorskip("selenium.common.exceptions").StaleElementReferenceException
    found: list[Any] = []

    def shown() -> bool:
        with contextlib.suppress(stale):  # the page was loaded anew in between
            found[:] = [e for e in browser.find_elements("css selector", selector) if e.is_displayed()]
        return bool(found)

    wait_until(shown, describe=lambda: words(browser))
    return found


def words(browser: Any) -> str:
    """The text of the page."""
    return str(browser.find_element("css selector", "body").text)


def pixels(element: Any) -> NDArray[np.int_]:
    """What an element shows: RGB (rows, columns, 3)."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)
