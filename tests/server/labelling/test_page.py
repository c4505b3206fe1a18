"""The labelling server's page in a real browser: what a person draws is saved where it was drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from semiseg.volumes.nifti import read_labels, write_nifti
from semiseg.volumes.volume import reorient
from tests.browser import chromium, pixels, wait_for, words
from tests.bundles import make_threshold_bundle
from tests.conftest import skip_or_fail
from tests.polling import wait_until
from tests.server.labelling.harness import RunningLabelServer, label_server

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

ORIENTATIONS = ("RAS", "LPS", "PIR", "SLA", "oblique")
BLOCK = (slice(26, 36), slice(8, 20), slice(9, 21))  # voxels of the bright part, on the RAS grid
SHAPE = (40, 48, 30)


@dataclass(frozen=True)
class Page:
    """A server, its scans and labels, and the browser."""

    server: RunningLabelServer
    browser: Any
    data: Path

    def open(self, image: str) -> None:
        self.browser.get(self.server.url)
        wait_for(self.browser, "#work")
        self.choose(image)

    def idle(self) -> None:
        """Wait until no action runs, during which nothing can be clicked."""
        script = "return !document.getElementById('case').inert"
        wait_until(lambda: self.browser.execute_script(script), describe=lambda: words(self.browser))

    def choose(self, image: str) -> None:
        self.idle()
        self.browser.find_element("css selector", f"#scans option[value={image}]").click()
        wait_for(self.browser, f"#case[data-image={image}]")
        self.idle()

    def click(self, name: str) -> None:
        self.idle()
        self.browser.find_element("id", name).click()

    def press(self, group: str, text: str) -> None:
        self.idle()
        found = self.browser.find_elements("css selector", f"#{group} button")
        next(one for one in found if text in one.text).click()

    def said(self, text: str) -> None:
        wait_until(lambda: text in self.browser.find_element("id", "said").text, describe=lambda: words(self.browser))
        self.idle()

    def set(self, name: str, value: int) -> None:
        element = self.browser.find_element("id", name)
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, element, value)

    def block_pixels(self) -> NDArray[np.bool_]:
        """The pixels of the viewer (rows, columns) that show the bright part."""
        wait_until(lambda: (pixels(self.viewer).min(axis=2) > 200).sum() > 500, describe=lambda: words(self.browser))
        return np.asarray(pixels(self.viewer).min(axis=2) > 200)

    @property
    def viewer(self) -> Any:
        return self.browser.find_element("id", "viewer")

    def drag(self, *points: tuple[float, float]) -> None:
        """Drag the pointer over points (row, column) of the viewer."""
        height, width = self.viewer.size["height"], self.viewer.size["width"]
        chain = webdriver.ActionChains(self.browser, duration=30)
        for number, (row, column) in enumerate(points):
            chain.move_to_element_with_offset(self.viewer, int(column - width / 2), int(row - height / 2))
            if number == 0:
                chain.click_and_hold()
        chain.release().perform()

    def saved(self, image: str, tag: str = "final") -> NDArray[np.uint8]:
        """The newest label, on the RAS grid."""
        record = self.server.datastore.store.newest(image, tag)
        assert record is not None
        return on_ras_grid(read_labels(self.server.datastore.store.file_of(record)))


def on_ras_grid(label: Any) -> NDArray[np.uint8]:
    array, _ = reorient(label.array, label.affine, "RAS")
    return np.asarray(array)


def affine_of(name: str) -> NDArray[np.float64]:
    affine = np.diag([1.0, 1.2, 1.5, 1.0])
    if name == "oblique":
        affine[:3, :3] = Rotation.from_euler("xyz", (12, -8, 15), degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (-20, 31, -9)
    return affine


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of a bright block with their axes along several directions."""
    folder = tmp_path_factory.mktemp("page") / "data"
    (folder / "imagesTr").mkdir(parents=True)
    values = np.full(SHAPE, 200, dtype=np.int16)
    values[BLOCK] = 1000
    values[0, 0, 0] = 0
    for name in ORIENTATIONS:
        array, affine = values, affine_of(name)
        if name != "oblique":
            array, affine = reorient(values, affine, name)
        write_nifti(folder / "imagesTr" / f"{name}.nii.gz", np.ascontiguousarray(array), affine)
    entries = [{"image": f"./imagesTr/{name}.nii.gz"} for name in ORIENTATIONS]
    labels = {"0": "background", "2": "low", "7": "high", "255": "ignore"}
    document = {"name": "Blocks", "modality": {"0": "image"}, "labels": labels, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(document))
    (folder / "split.json").write_text(json.dumps({"test": [], "train": list(ORIENTATIONS), "labelled": []}))
    return folder


@pytest.fixture(scope="module")
def browser(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(require_program, tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(data: Path, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    bundle = make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b", window=(32, 32, 32)).folder
    with label_server(data, bundle=bundle) as server:
        if server.get("/page/niivue.js").status_code != 200:
            skip_or_fail("the viewer is not here; `make page` brings it")
        yield Page(server, browser, data)


@pytest.mark.parametrize("image", ["RAS", "PIR", "oblique"])
def test_what_is_drawn_over_a_part_of_the_scan_is_saved_there(page: Page, image: str) -> None:
    page.open(image)
    page.press("views", "Axial")
    rows, columns = np.nonzero(page.block_pixels())
    page.press("segments", "low")
    page.set("size", 5)
    low, high = np.percentile(rows, (25, 75))
    left, right = np.percentile(columns, (25, 75))
    page.drag((low, left), (low, right), (high, right), (high, left), (low, left))
    page.click("save")
    page.said("Saved as version")
    found = page.saved(image)
    assert set(np.unique(found)) == {0, 2}, "the value that the dataset gives the segment"
    block = np.zeros(SHAPE, dtype=bool)
    block[BLOCK] = True
    drawn = found == 2
    assert len(np.unique(np.nonzero(drawn)[2])) == 1, "on the slice that was shown"
    assert (drawn & block).sum() / drawn.sum() > 0.95
    assert drawn.sum() > 30


def test_an_outline_is_filled_an_eraser_erases_and_a_stroke_is_undone(page: Page) -> None:
    page.open("LPS")
    page.press("views", "Axial")
    rows, columns = np.nonzero(page.block_pixels())
    (top, bottom), (left, right) = np.percentile(rows, (5, 95)), np.percentile(columns, (5, 95))
    page.press("segments", "high")
    page.click("fill")
    page.drag((top, left), (top, right), (bottom, right), (bottom, left), (top, left))
    page.click("save-draft")
    page.said("(draft)")
    filled = page.saved("LPS", "draft") == 7
    block = np.zeros(SHAPE, dtype=bool)
    block[BLOCK] = True
    middle = np.unique(np.nonzero(filled)[2])
    assert len(middle) == 1
    inside = block[:, :, middle[0]]
    assert (filled[:, :, middle[0]] & inside).sum() / inside.sum() > 0.7
    assert not (filled & ~binary_dilation(block)).any()
    page.click("erase")
    page.set("size", 9)
    page.drag(((top + bottom) / 2, left), ((top + bottom) / 2, right))
    page.click("save-draft")
    page.said("version 2")
    erased = page.saved("LPS", "draft") == 7
    assert 0 < erased.sum() < filled.sum()
    page.click("undo")
    page.click("save-draft")
    page.said("version 3")
    np.testing.assert_array_equal(page.saved("LPS", "draft") == 7, filled)


@pytest.mark.parametrize("image", ORIENTATIONS)
def test_a_label_that_is_opened_and_saved_is_the_same_voxel_by_voxel(page: Page, image: str) -> None:
    known = np.random.default_rng(3).choice(np.array([0, 0, 0, 2, 7, 255], np.uint8), SHAPE)
    affine = affine_of(image)
    array = known if image == "oblique" else reorient(known, affine, image)[0]
    stored = page.data / "imagesTr" / f"{image}.nii.gz"
    file = page.data.parent / f"known-{image}.nii.gz"
    write_nifti(file, np.ascontiguousarray(array), np.asarray(read_labels(stored).affine))
    assert page.server.save(image, 0, content=file.read_bytes()).status_code == 200
    page.open(image)
    page.said("The final label by anna is shown.")
    page.browser.execute_script("document.getElementById('name').value = 'ben'")
    page.click("save")
    page.said("Saved as version")
    record = page.server.datastore.store.newest(image, "final")
    assert record is not None and record.who == "ben"
    np.testing.assert_array_equal(page.saved(image), known)


def test_the_draft_of_the_model_is_shown_and_named_in_the_record(page: Page) -> None:
    page.open("SLA")
    page.click("draft")
    page.said("The draft by the model threshold is shown")
    page.press("segments", "low")
    page.click("save")
    page.said("Saved as version")
    record = page.server.datastore.store.newest("SLA", "final")
    assert record is not None and record.model == "threshold"


def test_the_next_scan_is_offered_and_changes_are_not_lost_unasked(page: Page) -> None:
    page.open("RAS")
    page.press("segments", "high")
    centre = (page.viewer.size["height"] / 4, page.viewer.size["width"] / 4)
    page.drag(centre, (centre[0] + 20, centre[1] + 20))
    page.click("next")
    alert = page.browser.switch_to.alert
    assert "not saved" in alert.text
    alert.dismiss()
    assert page.browser.find_element("id", "case").get_attribute("data-image") == "RAS"
    page.click("save-draft")
    page.said("(draft)")
    page.click("next")
    wait_until(
        lambda: (
            page.browser.find_element("id", "said").text in ("All training scans are labelled.",)
            or page.browser.find_element("id", "case").get_attribute("data-image") not in ("", "RAS")
        ),
        describe=lambda: words(page.browser),
    )


def test_keys_choose_what_is_drawn_and_every_control_has_a_name(page: Page) -> None:
    page.open("RAS")
    body = page.browser.find_element("css selector", "body")
    for key, selector in (("2", "#segments button:nth-child(2)"), ("e", "#erase"), ("x", "#move")):
        body.send_keys(key)
        wait_for(page.browser, f"{selector}[aria-pressed=true]")
        assert len(page.browser.find_elements("css selector", ".tools:first-of-type [aria-pressed=true]")) == 1
    body.send_keys("]")
    assert page.browser.find_element("id", "size").get_attribute("value") == "3"
    for control in page.browser.find_elements("css selector", "button, input, select"):
        assert control.accessible_name or not control.is_displayed()


def test_the_page_sends_nothing_to_other_servers(page: Page) -> None:
    page.browser.get_log("performance")
    page.open("RAS")
    messages = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith((page.server.url, "data:", "blob:")) for url in urls)


def test_with_keys_the_page_asks_for_one_and_the_owner_is_the_annotator(
    data: Path, browser: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("anna anna-0123456789-abcdefghij\n")
    keys.chmod(0o600)
    data = Path(shutil.copytree(data, tmp_path / "data"))
    with label_server(data, keys=keys) as server:
        page = Page(server, browser, data)
        browser.get(server.url)
        wait_for(browser, "#key-form")
        for typed, shown in (("wrong-0123456789-abcdefghij", "#error"), ("anna-0123456789-abcdefghij", "#work")):
            field = browser.find_element("id", "key")
            field.clear()
            field.send_keys(typed, "\n")
            wait_for(browser, shown)
        assert not browser.find_element("id", "name").is_displayed()
        page.choose("RAS")
        page.click("save-draft")
        page.said("(draft)")
        record = server.datastore.store.newest("RAS", "draft")
        assert record is not None and record.who == "anna"
        browser.execute_script("sessionStorage.clear()")


def test_a_stroke_that_ends_outside_the_view_is_a_change_that_can_be_undone(page: Page) -> None:
    page.open("RAS")
    page.press("views", "Axial")
    page.press("segments", "high")
    page.click("save-draft")
    page.said("(draft)")
    before = page.saved("RAS", "draft")
    height, width = page.viewer.size["height"], page.viewer.size["width"]
    page.drag((height / 2, width / 2), (height / 2, width / 2 + 30), (height + 40, width / 2 + 30))
    page.click("save-draft")
    page.said("(draft)")
    assert (page.saved("RAS", "draft") != before).any()
    for _ in range(3):
        page.click("undo")
    page.click("save-draft")
    page.said("(draft)")
    np.testing.assert_array_equal(page.saved("RAS", "draft"), before, "no more is undone than was drawn")


def test_an_action_keeps_others_from_beginning(page: Page) -> None:
    page.open("RAS")
    script = """
        document.getElementById('draft').click();
        const scans = document.getElementById('scans');
        scans.value = 'PIR';
        scans.dispatchEvent(new Event('change'));
        return document.getElementById('case').inert;
    """
    assert page.browser.execute_script(script)
    page.said("The draft by the model threshold is shown")
    assert page.browser.find_element("id", "case").get_attribute("data-image") == "RAS"


def test_a_label_that_cannot_be_read_is_not_taken_for_an_empty_one(page: Page) -> None:
    array, affine = reorient(np.zeros(SHAPE, np.uint8), affine_of("SLA"), "SLA")
    write_nifti(page.data.parent / "empty.nii.gz", np.ascontiguousarray(array), affine)
    assert page.server.save("SLA", 0, content=(page.data.parent / "empty.nii.gz").read_bytes()).status_code == 200
    record = page.server.datastore.store.newest("SLA", "final")
    assert record is not None
    file = page.server.datastore.store.file_of(record)
    content = file.read_bytes()
    file.write_bytes(b"damaged")
    try:
        page.browser.get(page.server.url)
        wait_for(page.browser, "#work")
        page.idle()
        page.browser.find_element("css selector", "#scans option[value=SLA]").click()
        (shown,) = wait_for(page.browser, "#error")
        assert "cannot be read by the viewer" in shown.text
        assert not page.browser.find_element("id", "save").is_displayed()
    finally:
        file.write_bytes(content)


def test_the_label_of_a_scan_with_channels_has_three_dimensions(browser: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "imagesTr").mkdir(parents=True)
    values = np.zeros((*SHAPE, 2), np.int16)
    values[BLOCK] = 1000
    write_nifti(data / "imagesTr" / "s.nii.gz", values, affine_of("RAS"))
    document = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "low"}}
    entries = [{"image": "./imagesTr/s.nii.gz"}]
    (data / "dataset.json").write_text(json.dumps({"name": "Channels", **document, "training": entries}))
    (data / "split.json").write_text(json.dumps({"test": [], "train": ["s"], "labelled": []}))
    with label_server(data) as server:
        page = Page(server, browser, data)
        page.open("s")
        page.press("views", "Axial")
        rows, columns = np.nonzero(page.block_pixels())
        page.press("segments", "low")
        page.drag((rows.mean(), columns.mean()), (rows.mean(), columns.mean() + 10))
        page.click("save")
        page.said("Saved as version 1")
        drawn = page.saved("s") == 1
        assert drawn.any() and not (drawn[: BLOCK[0].start]).any()


def test_labels_are_described_with_values_and_colours(page: Page) -> None:
    found = page.server.get("/labels/").json()
    assert [(one["name"], one["value"]) for one in found] == [("low", 2), ("high", 7), ("ignore", 255)]
    assert len({tuple(one["colour"]) for one in found}) == 3
