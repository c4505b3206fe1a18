"""The server's page in a real browser: what is drawn, saved and refused, as a person sees and hears it."""

from __future__ import annotations

import contextlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.browser import chromium, pixels, wait_for, words
from tests.bundles import make_threshold_bundle, scan_array, scan_without_air
from tests.conftest import skip_or_fail
from tests.polling import wait_until
from tests.server.harness import RunningServer, running_server

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

KEY = "ward-0123456789-abcdefghij"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b", window=(32, 32, 32), work=2).folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(bundle, folder, "--state", str(folder / "state"), "--parallel", "1") as server:
        yield server


@pytest.fixture(scope="module")
def browser(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with chromium(require_program, tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture
def needs_viewer(server: RunningServer) -> None:
    if server.get("/page/niivue.js").status_code != 200:
        skip_or_fail("the viewer is not here; `make page` brings it")


@contextlib.contextmanager
def without_viewer(browser) -> Iterator[None]:
    """As if nobody had brought the viewer: the browser does not get it."""
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*niivue.js*"]})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})


def upload(browser, server: RunningServer, *files: Path) -> None:
    """Open the page anew and give it files."""
    browser.get("about:blank")  # the page would write its cases down again
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "local_storage"})
    browser.get(server.url)
    wait_for(browser, "#form")  # shown once the page knows what the server can do
    browser.find_element("id", "scan").send_keys("\n".join(str(file) for file in files))


def drawn(browser) -> str:
    """Wait until the scan is on the page; how it is shown."""
    wait_for(browser, "#viewer[data-shown]")
    time.sleep(1.0)  # until the next frame is drawn
    return browser.find_element("id", "viewer").get_attribute("data-shown")


def viewer_pixels(browser) -> np.ndarray:
    return pixels(browser.find_element("id", "viewer"))


def share_of(colour: tuple[int, int, int], picture: np.ndarray) -> float:
    """Share of pixels that lean towards a colour."""
    wanted = np.asarray(colour) - np.mean(colour)
    lean = picture - picture.mean(axis=2, keepdims=True)
    return float(np.mean((lean @ wanted) / np.linalg.norm(wanted) > 25))


def saved(browser, kind: str, name: str) -> bytes:
    file = browser.downloads / name
    file.unlink(missing_ok=True)
    browser.find_element("css selector", f"#downloads button[data-kind={kind}]").click()
    unfinished = browser.downloads / f"{name}.crdownload"
    wait_until(lambda: file.is_file() and not unfinished.exists(), describe=lambda: words(browser))
    return file.read_bytes()


def requests_of(browser) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def a_scan(folder: Path, spacing: float = 1.0, shape: tuple[int, int, int] = (40, 36, 32)) -> Path:
    file = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(scan_array(shape), np.diag([1.0, 1.0, spacing, 1.0])), file)
    return file


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    volume = Volume(scan_array((40, 36, 16), 5), np.diag([-1.0, -1.0, 2.0, 1.0]))
    return write_dicom_series(tmp_path_factory.mktemp("series"), volume, patient_id="phantom", description="a phantom")


def test_scan_and_mask_are_drawn_by_the_viewer_and_segments_can_be_switched_off(browser, server, series, needs_viewer):
    upload(browser, server, *series)
    assert drawn(browser) == "volumes"
    colours = {s["name"]: s["colour"] for s in server.get("/models").json()[0]["segments"]}
    before: dict[str, float] = {}

    def both() -> bool:
        picture = viewer_pixels(browser)
        before.update({name: share_of(colour, picture) for name, colour in colours.items()})
        return picture.max() > 60 and min(before.values()) > 0.005

    wait_until(both, describe=lambda: before)
    for name in colours:
        browser.find_element("css selector", f"#segments input[data-segment={name}]").click()

    def no_colour() -> bool:
        picture = viewer_pixels(browser)
        return all(share_of(colour, picture) < before[name] / 5 for name, colour in colours.items())

    wait_until(no_colour)
    for name in colours:
        browser.find_element("css selector", f"#segments input[data-segment={name}]").click()
    wait_until(both, describe=lambda: before)
    browser.execute_script(
        "const o = document.getElementById('opacity'); o.value = 0; o.dispatchEvent(new Event('input'));"
    )
    wait_until(no_colour)
    for view in ("axial", "render", "all"):
        browser.find_element("css selector", f"#views button[data-view={view}]").click()
        wait_for(browser, f"#views button[data-view={view}][aria-pressed=true]")
        wait_until(lambda: viewer_pixels(browser).max() > 30)


def test_where_no_viewer_was_brought_the_page_shows_the_servers_pictures(browser, server, series):
    with without_viewer(browser):
        upload(browser, server, *series)
        assert drawn(browser) == "pictures"
        figures = browser.find_elements("css selector", "#viewer figure img")
        assert len(figures) == 3
        assert all(browser.execute_script("return arguments[0].naturalWidth", one) > 100 for one in figures)
        colours = [s["colour"] for s in server.get("/models").json()[0]["segments"]]
        assert all(share_of(colour, viewer_pixels(browser)) > 0.001 for colour in colours)
        browser.find_element("css selector", "#views button[data-view=axial]").click()
        assert len(wait_for(browser, "#viewer figure")) == 1


def test_downloads_are_the_answers_of_the_interface(browser, server, series):
    upload(browser, server, *series)
    drawn(browser)
    rows = [row.text.split() for row in browser.find_elements("css selector", "#segments tbody tr")]
    answer = server.segment(*series, fields={"output_format": "json"}).json()
    assert rows == [[s["name"], f"{s['ml']:.2f}"] for s in answer["segments"]]
    mask = saved(browser, "nifti", "segmentation.nii.gz")
    assert mask == server.segment(*series, fields={"output_format": "nifti"}).content
    for kind, name, modality in (("seg", "segmentation.dcm", "SEG"), ("rtstruct", "structures.dcm", "RTSTRUCT")):
        ours = pydicom.dcmread(io.BytesIO(saved(browser, kind, name)))
        theirs = pydicom.dcmread(io.BytesIO(server.segment(*series, fields={"output_format": kind}).content))
        assert ours.Modality == modality and ours.SOPInstanceUID == theirs.SOPInstanceUID
        assert ours.get("PixelData") == theirs.get("PixelData")
    fractional = pydicom.dcmread(io.BytesIO(saved(browser, "seg-fractional", "segmentation.dcm")))
    assert fractional.SegmentationType == "FRACTIONAL"  # no case keeps it: the page sent the scan once more
    with zipfile.ZipFile(io.BytesIO(saved(browser, "viewer-bundle", "viewer-bundle.zip"))) as archive:
        assert {"scan.nii.gz", "mask.nii.gz", "report.json", "axial-01.png"} <= set(archive.namelist())
    assert not browser.find_elements("css selector", "#remarks:not([hidden]) li")


def test_forms_that_a_nifti_file_cannot_have_are_not_offered(browser, server, tmp_path):
    upload(browser, server, a_scan(tmp_path))
    drawn(browser)
    kinds = {b.get_attribute("data-kind") for b in browser.find_elements("css selector", "#downloads button")}
    assert kinds == {"nifti", "nifti-labelmap", "json", "viewer-bundle", "seg-nrrd", "nrrd"}


def test_progress_is_shown_and_a_scan_can_be_stopped(browser, server, tmp_path):
    file = tmp_path / "big.nii"
    nib.save(nib.Nifti1Image(scan_without_air((160, 160, 160)), np.eye(4)), file)
    upload(browser, server, file)
    bar = wait_for(browser, "#progress progress[value]")[0]
    seen = set()

    def three_of_the_windows():
        value = float(bar.get_attribute("value"))
        if float(bar.get_attribute("max")) == 9**3:  # before, the bar counts the bytes of the upload
            seen.add(value)
        return len(seen) >= 4  # the first value may have been one of these

    wait_until(three_of_the_windows)
    assert "Segmenting" in browser.find_element("id", "status").text
    browser.find_element("id", "cancel").click()
    assert "stopped" in wait_for(browser, "#error")[0].text
    assert 'semiseg_jobs{state="running"} 0.0' in server.get("/metrics").text


def test_what_sets_a_scan_apart_is_said_first(browser, server, tmp_path):
    """SRV-11."""
    upload(browser, server, a_scan(tmp_path, spacing=40.0))
    (remark, *_) = wait_for(browser, "#remarks li")
    assert remark.get_attribute("data-code") == "unfamiliar_spacing"
    assert remark.text.startswith("The voxels measure 40 mm head-foot")


def test_file_that_is_no_scan_is_refused_with_the_servers_sentence(browser, server, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"\xff\xd8\xff not a scan")
    upload(browser, server, tmp_path / "holiday.jpg")
    (alert,) = wait_for(browser, "#error[role=alert]")
    assert alert.text.startswith("The upload is a JPEG picture, neither a NIfTI file (.nii, .nii.gz, .hdr) nor another")
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(a_scan(tmp_path).read_bytes()[:-20])
    upload(browser, server, damaged)
    (alert,) = wait_for(browser, "#error[role=alert]")
    assert alert.text == server.segment(damaged).json()["error"]


def test_cases_are_stepped_through_by_keys_and_found_again_after_a_reload(browser, server, tmp_path):
    file = a_scan(tmp_path)
    upload(browser, server, file)
    drawn(browser)
    browser.find_element("id", "scan").send_keys(str(file))
    wait_for(browser, "#cases li:nth-child(2) button[aria-current=true]")
    drawn(browser)
    body = browser.find_element("css selector", "body")
    body.send_keys("p")
    wait_for(browser, "#cases li:nth-child(1) button[aria-current=true]")
    body.send_keys("n")
    wait_for(browser, "#cases li:nth-child(2) button[aria-current=true]")
    browser.get(server.url)
    wait_for(browser, "#cases li:nth-child(2) button")
    assert "scan" not in browser.execute_script("return JSON.stringify(localStorage)")
    wait_for(browser, "#cases li:nth-child(1) button")[0].click()
    drawn(browser)
    browser.find_element("id", "forget").click()
    wait_for(browser, "#no-cases")


def test_every_control_has_a_name_and_can_be_reached_by_the_keyboard(browser, server, series, needs_viewer):
    """SRV-11."""
    upload(browser, server, *series)
    assert drawn(browser) == "volumes"
    assert any("ml" in name for name in names_of_images(browser))
    assert_controls_are_named_and_reached(browser, {"scan", "folder", "opacity", "seg", "nifti"})


def test_every_control_of_the_pictures_has_a_name_and_can_be_reached_by_the_keyboard(browser, server, series):
    """SRV-11."""
    with without_viewer(browser):
        upload(browser, server, *series)
        assert drawn(browser) == "pictures"
        assert sum("slice" in name for name in names_of_images(browser)) == 3
        slices = {"axial slice", "coronal slice", "sagittal slice"}
        assert_controls_are_named_and_reached(browser, {"scan", "folder", "seg", "nifti"} | slices)


def names_of_images(browser) -> list[str]:
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [n["name"]["value"] for n in tree if n.get("role", {}).get("value") in ("image", "img")]


def assert_controls_are_named_and_reached(browser, wanted: set[str]) -> None:
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "checkbox", "slider", "combobox", "link")
    controls = [n for n in tree if n.get("role", {}).get("value") in roles]
    assert len(controls) > 15
    assert [n for n in controls if not n.get("name", {}).get("value")] == []
    focused = set()
    script = "const e = document.activeElement; return e.id || e.dataset.kind || e.ariaLabel || e.tagName"
    for _ in range(60):
        webdriver.ActionChains(browser).send_keys("\ue004").perform()  # tab
        focused.add(browser.execute_script(script))
    assert wanted <= focused


def test_page_asks_for_a_key_where_the_server_does(browser, bundle, tmp_path):
    with running_server(bundle, tmp_path / "p", environ={"SEMISEG_API_KEYS": f"ward {KEY}"}) as guarded:
        browser.get(guarded.url)
        (field,) = wait_for(browser, "#key")
        field.send_keys("not-the-key-at-all-0000")
        browser.find_element("css selector", "#key-form button").click()
        assert "key" in wait_for(browser, "#error")[0].text
        field.send_keys(KEY)
        browser.find_element("css selector", "#key-form button").click()
        wait_for(browser, "#form")
        browser.find_element("id", "scan").send_keys(str(a_scan(tmp_path)))
        drawn(browser)  # without --state: the answer of POST /segment
        assert saved(browser, "nifti", "segmentation.nii.gz")[:2] == b"\x1f\x8b"
        browser.execute_script("sessionStorage.clear()")


def test_no_request_leaves_the_server_and_nothing_fails_in_the_page(browser, server, series):
    """SRV-07."""
    requests_of(browser), browser.get_log("browser")
    upload(browser, server, *series)
    drawn(browser)
    sent = requests_of(browser)
    assert any(url.startswith(server.url) for url in sent)
    assert [url for url in sent if not url.startswith((server.url, "data:", "blob:", "chrome:"))] == []
    severe = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert [one for one in severe if "niivue.js" not in one] == []
