"""The server's page in a real browser: volumes, remarks and refusals as a person sees them."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles import expected, make_threshold_bundle, scan_array
from tests.server.running import RunningServer, running

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    bundle = make_threshold_bundle(folder / "bundle")
    with running(bundle.folder, folder / "process") as server:
        yield server


@pytest.fixture(scope="module")
def browser(needs_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Headless Chromium that writes down every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = needs_program("chromium")
    downloads = tmp_path_factory.mktemp("downloads")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=needs_program("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.downloads = downloads
    yield driver
    driver.quit()
    shutil.rmtree(downloads, ignore_errors=True)


def upload(browser, server: RunningServer, file: Path) -> None:
    browser.get(server.url)
    browser.find_element("id", "scan").send_keys(str(file))
    browser.find_element("css selector", "#form button").click()


def wait_for(browser, selector: str) -> list:
    until = time.monotonic() + 60
    while not (found := browser.find_elements("css selector", selector)):
        assert time.monotonic() < until, browser.page_source
        time.sleep(0.1)
    return found


def a_scan(folder: Path, spacing: float = 1.0) -> tuple[Path, np.ndarray]:
    array = scan_array((20, 18, 16))
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, spacing, 1.0])), folder / "scan.nii.gz")
    return folder / "scan.nii.gz", array


def test_volumes_are_shown_and_the_mask_that_is_saved_is_the_answer(browser, server, tmp_path):
    file, array = a_scan(tmp_path)
    upload(browser, server, file)
    wait_for(browser, "#answer table")
    rows = [row.text for row in browser.find_elements("css selector", "#answer tr")]
    labels = expected(array)
    assert rows == [f"{name} {np.sum(labels == k) / 1000:.2f}" for k, name in ((1, "low"), (2, "high"))]
    assert not browser.find_elements("css selector", ".remarks")
    browser.find_element("id", "save").click()
    saved = browser.downloads / "segmentation.nii.gz"
    until = time.monotonic() + 30
    while not saved.is_file():
        assert time.monotonic() < until
        time.sleep(0.1)
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(saved.read_bytes()))
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), labels)


def test_what_sets_a_scan_apart_is_shown_by_name(browser, server, tmp_path):
    file, _ = a_scan(tmp_path, spacing=40.0)
    upload(browser, server, file)
    (remark,) = wait_for(browser, ".remarks li")
    assert remark.get_attribute("data-code") == "unfamiliar_spacing"
    assert remark.text.startswith("The voxels measure 40 mm head-foot")


def test_a_file_that_is_no_scan_is_refused_with_the_servers_sentence(browser, server, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"\xff\xd8\xff not a scan")
    upload(browser, server, tmp_path / "holiday.jpg")
    (alert,) = wait_for(browser, "#answer [role=alert]")
    assert alert.text == "The upload is neither a NIfTI file (.nii, .nii.gz) nor DICOM nor a zip of those."


def test_no_request_leaves_the_server_and_nothing_fails_in_the_page(browser, server):
    browser.get(server.url)
    wait_for(browser, "#swagger-ui .info")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(server.url) for url in sent)
    assert [url for url in sent if not url.startswith((server.url, "data:", "blob:", "chrome:"))] == []
    severe = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE" and "415" not in e["message"]]
    assert severe == []
