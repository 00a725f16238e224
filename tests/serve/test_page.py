"""The page in a real browser: images are dropped, pixels of the overlay compared with what `predict` says."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predicted import noise

from browser import Visit, browsing, visiting
from classyseg.inference import Predictor
from classyseg.models import build_model
from classyseg.serve import Limits
from runs import tiny_config
from served import CLASSES, PALETTE, Served, png, serving, small_predictor, whole_image_predictor

pytestmark = pytest.mark.slow

DROP = """
async ([name, kind, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: kind}));
  for (const what of ["dragover", "drop"]) {
    document.getElementById("drop").dispatchEvent(
      new DragEvent(what, {dataTransfer: data, bubbles: true, cancelable: true}));
  }
}
"""
PASTE = DROP.replace('for (const what of ["dragover", "drop"]) {', "{").replace(
    "new DragEvent(what, {dataTransfer: data, bubbles: true, cancelable: true})",
    'new ClipboardEvent("paste", {clipboardData: data, bubbles: true})',
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


def give(visit: Visit, name: str, content: bytes, how: str = DROP) -> None:
    visit.page.evaluate(how, [name, "", base64.b64encode(content).decode()])


def images(visit: Visit) -> int:
    return int(visit.page.evaluate("items.filter((item) => item.state === 'done').length"))


def shown(visit: Visit) -> Any:
    """The pixels (H, W, 3) that the canvas has."""
    visit.page.evaluate("paint()")
    url = visit.page.evaluate("view.toDataURL('image/png')")
    return np.array(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def mixed(image: Any, labels: Any, alpha: float) -> Any:
    return np.round((1 - alpha) * image + alpha * np.array(PALETTE)[labels]).astype(np.uint8)


def differ(one: Any, other: Any) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def set_opacity(visit: Visit, percent: int) -> None:
    visit.page.locator("#opacity").fill(str(percent))


def test_a_dropped_image_is_shown_under_its_classes_which_can_be_faded_and_hidden(
    browser: Any, served: Served, predictor: Predictor, tmp_path: Path
) -> None:
    image = noise(60, 90)
    labels = predictor.predict(image)
    with visiting(browser, served.url, viewport={"width": 1200, "height": 900}, accept_downloads=True) as visit:
        visit.until("model !== null")
        give(visit, "street.png", png(image))
        visit.until("drawn !== null")
        assert differ(shown(visit), mixed(image, labels, 0.5)) <= 1
        assert differ(shown(visit), np.array(predictor.overlay(image))) <= 1
        set_opacity(visit, 100)
        assert differ(shown(visit), mixed(image, labels, 1.0)) == 0
        set_opacity(visit, 0)
        assert differ(shown(visit), image) == 0
        set_opacity(visit, 70)
        visit.page.get_by_role("checkbox", name="<b>car</b>").uncheck()
        expected = np.where((labels == 2)[..., None], image, mixed(image, labels, 0.7))
        assert differ(shown(visit), expected) <= 1
        visit.page.get_by_role("button", name="Show none").click()
        assert differ(shown(visit), image) == 0
        visit.page.get_by_role("button", name="Show all").click()
        assert differ(shown(visit), mixed(image, labels, 0.7)) <= 1

        shares = visit.page.locator("#present .share").all_inner_texts()
        counts = sorted(((labels == i).mean() for i in range(4)), reverse=True)
        assert shares == [f"{100 * share:.1f} %" for share in counts if share]

        with visit.page.expect_download() as download:
            visit.page.get_by_text("Label map (PNG)").click()
        assert download.value.suggested_filename == "street.png"
        written = Path(download.value.path()).read_bytes()
        assert written == served.predict(png(image), accept="image/png").content
        with visit.page.expect_download() as download:
            visit.page.get_by_text("Overlay (PNG)").click()
        assert download.value.suggested_filename == "street_overlay.png"
        assert differ(np.array(Image.open(download.value.path()).convert("RGB")), mixed(image, labels, 0.7)) <= 1
        assert visit.errors == []
        assert visit.away(served.url) == []


def test_pixels_of_several_classes_have_the_mean_of_the_colours_that_are_shown(browser: Any) -> None:
    model, image = small_predictor(multi_label=True), noise(60, 90)
    flags = model.predict(image)
    with (
        serving(model) as server,
        visiting(browser, server.url, viewport={"width": 1200, "height": 900}, accept_downloads=True) as visit,
    ):
        visit.until("model !== null")
        give(visit, "street.png", png(image))
        visit.until("drawn !== null")
        assert differ(shown(visit), np.array(model.overlay(image))) <= 1
        visit.page.get_by_role("checkbox", name="<b>car</b>").uncheck()
        kept = flags * np.array([1, 1, 0, 1], bool)[:, None, None]
        assert differ(shown(visit), np.array(model.overlay(image, labels=kept))) <= 1
        y, x = np.argwhere(flags.sum(0) > 1)[0].tolist()
        visit.page.evaluate(
            "([x, y]) => { const box = view.getBoundingClientRect(); view.onmousemove({"
            "clientX: box.left + (x + .5) * box.width / view.width,"
            " clientY: box.top + (y + .5) * box.height / view.height}); }",
            [x, y],
        )
        named = ", ".join(name for name, own in zip(CLASSES, flags, strict=True) if own[y, x])
        assert visit.page.locator("#under").inner_text() == f"{named} at column {x}, row {y}"
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Save the map of road").click()
        assert download.value.suggested_filename == "street_road.png"
        assert np.array_equal(np.array(Image.open(download.value.path())), flags[1])
        assert not visit.page.get_by_text("Label map (PNG)").is_visible()
        assert visit.errors == []


def test_several_images_of_other_formats_are_a_row_and_refusals_are_told(
    browser: Any, served: Served, predictor: Predictor, tmp_path: Path
) -> None:
    deep, wide = noise(40, 30, 1, kind=np.uint16), noise(30, 50)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    np.save(tmp_path / "array.npy", wide)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    (tmp_path / "<i>notes.txt").write_text("no image")
    names = ["deep.tif", "array.npy", "turned.jpg", "<i>notes.txt"]
    with visiting(browser, served.url) as visit:
        visit.until("model !== null")
        visit.page.set_input_files("#file", [str(tmp_path / name) for name in names])
        visit.until("items.length === 3 && items.every((item) => item.state === 'done')")
        assert "<i>notes.txt: cannot be read (no JPEG" in visit.page.locator("#messages").inner_text()
        assert len(visit.errors) == 1  # Chromium's own line for the status 415
        set_opacity(visit, 100)
        for name, shape in (("deep.tif", (40, 30)), ("array.npy", (30, 50)), ("turned.jpg", (50, 30))):
            visit.page.get_by_role("button", name=name).click()
            visit.until(f"drawn.item.name === '{name}' && current === drawn.item")
            labels = predictor.predict(tmp_path / name)
            assert labels.shape == shape
            assert differ(shown(visit), np.array(PALETTE)[labels]) == 0
        give(visit, "pasted.png", png(noise(10, 12)), PASTE)
        visit.until("items.length === 4 && items[3].state === 'done'")
        visit.page.get_by_role("button", name="Remove all").click()
        assert images(visit) == 0
        assert not visit.page.locator("#result").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1200, "light")])
def test_the_page_fits_narrow_and_dark_screens_and_works_by_keyboard(
    browser: Any, served: Served, tmp_path: Path, width: int, scheme: Any
) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(600, 900)))
    with visiting(browser, served.url, viewport={"width": width, "height": 800}, color_scheme=scheme) as visit:
        visit.until("model !== null")
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.id") == "file"
        visit.page.set_input_files("#file", str(tmp_path / "a.png"))
        visit.until("drawn !== null")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        page = Image.open(BytesIO(visit.page.screenshot(full_page=True))).convert("L")
        corner = page.getpixel((2, 2))
        assert corner < 60 if scheme == "dark" else corner > 200
        assert page.getextrema()[1] - page.getextrema()[0] > 150  # text can be read on it
        reached = set()
        for _ in range(20):
            visit.page.keyboard.press("Tab")
            reached.add(visit.page.evaluate("document.activeElement.id || document.activeElement.type"))
        assert {"opacity", "labels", "overlay", "all", "none", "checkbox", "clear"} <= reached
        visit.page.locator("#opacity").focus()
        visit.page.keyboard.press("ArrowRight")
        assert visit.page.locator("#strength").inner_text() == "51 %"
        box = visit.page.locator("#present input").first
        box.focus()
        visit.page.keyboard.press("Space")
        assert not box.is_checked()
        unnamed = "[...document.querySelectorAll('button, input, a, canvas[role]')].filter((each) => each.offsetParent"
        unnamed += " && !(each.innerText || each.ariaLabel || each.labels?.length)).map((each) => each.outerHTML)"
        assert visit.page.evaluate(unnamed) == []
        assert visit.errors == []


def test_a_model_of_whole_images_has_a_table_of_scores(browser: Any) -> None:
    model, image = whole_image_predictor(), noise(40, 50)
    scores = model.scores(image)
    with serving(model) as server, visiting(browser, server.url) as visit:
        visit.until("model !== null")
        give(visit, "a.png", png(image))
        visit.until("document.querySelectorAll('#rows tr').length === 4")
        cells = visit.page.locator("#rows tr td.number").all_inner_texts()
        assert cells == [f"{100 * score:.1f}" for score in sorted(scores, reverse=True)]
        assert visit.page.locator("#verdict").inner_text() == model.classes[scores.argmax()]
        assert not visit.page.locator("#controls").is_visible()
        assert differ(np.array(Image.open(BytesIO(visit.page.locator("#view").screenshot()))), np.zeros(1)) > 0
        assert visit.errors == []
        assert visit.away(server.url) == []


@pytest.mark.parametrize("num_classes", [2, 11, 200, 300])
def test_label_maps_of_1_to_16_bits_are_read_as_numbers(browser: Any, num_classes: int) -> None:
    """A palette with equal colours shows that numbers are read, and not colours."""
    config = tiny_config()["model"]
    torch.manual_seed(num_classes)
    names, palette = [f"class {i}" for i in range(num_classes)], [(i // 2 % 256, i % 3, 7) for i in range(num_classes)]
    model = Predictor(build_model(config, num_classes), classes=names, palette=palette, device="cpu")
    image = noise(37, 53)
    labels = model.predict(image)
    with serving(model) as server, visiting(browser, server.url) as visit:
        visit.until("model !== null")
        give(visit, "a.png", png(image))
        visit.until("drawn !== null")
        assert visit.page.evaluate("[...drawn.indices[0]]") == labels.ravel().tolist()
        assert visit.errors == []


def test_a_file_that_is_too_large_is_told_without_sending_it(browser: Any, predictor: Predictor) -> None:
    with serving(predictor, Limits(max_bytes=1000)) as server, visiting(browser, server.url) as visit:
        visit.until("model !== null")
        give(visit, "a.png", png(noise(40, 50)))
        visit.until("document.querySelectorAll('#messages li').length === 1")
        assert "accepted are up to" in visit.page.locator("#messages").inner_text()
        assert visit.requests == [f"{server.url}/", f"{server.url}/model"]
        assert visit.errors == []
