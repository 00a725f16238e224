"""Reports in a real browser: nothing is asked of a network, pictures show, toggles work by keyboard, no name runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from report_runs import HOSTILE, write_run

from browser import Visit, browsing, visiting
from classyseg.report import page

WIDTHS = (400, 800, 1280)
MANY = [f"class {i}" for i in range(30)]
READY = "document.documentElement.dataset.ready === 'true'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of pages: of a run, of two, of a run with names that would do harm."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_run(folder / name, seed=seed, lr=0.1 / (1 + seed)) for seed, name in enumerate(("first", "second"))]
    harm = HOSTILE[0].replace("/", "|")
    hostile = write_run(
        folder / harm, classes=[*HOSTILE, *(f"{name} {i}" for name in HOSTILE for i in range(3))], name=harm
    )
    found = {}
    for name, shown in (("one", runs[:1]), ("two", runs), ("hostile", [hostile])):
        path = folder / f"{name}.html"
        path.write_text(page(shown), encoding="utf-8")
        found[name] = path.as_uri()
    return found


def shot(visit: Visit, selector: str | None = None) -> npt.NDArray[np.uint8]:
    """What is seen of the page, or of a part of it."""
    content = visit.page.screenshot() if selector is None else visit.page.locator(selector).first.screenshot()
    with Image.open(io.BytesIO(content)) as opened:
        return np.array(opened.convert("RGB"))


def tab_to(visit: Visit, selector: str, most: int = 200) -> None:
    """Presses the tabulator until the element has the focus."""
    for _ in range(most):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate(f"document.activeElement.matches({selector!r})"):
            return
    raise AssertionError(f"{selector} is not reached by the keyboard")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), [("one", "light"), ("two", "dark")])
def test_a_page_shows_itself_at_any_width_and_asks_nobody(
    browser: Any, pages: dict[str, str], name: str, scheme: str
) -> None:
    with visiting(browser, pages[name], color_scheme=scheme) as visit:
        visit.until(READY)
        papers = []
        for width in WIDTHS:
            visit.page.set_viewport_size({"width": width, "height": 900})
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            seen = shot(visit)
            papers.append(seen[0, 0].mean())
            assert seen.std() > 5, "an empty screen"
            for part in (".chart svg", ".classes", "#confusion table", ".stack"):
                visit.page.locator(part).first.scroll_into_view_if_needed()
                assert shot(visit, part).std() > 5, part
        assert all((paper < 60) == (scheme == "dark") for paper in papers)
        pictures = "[...document.images].map(image => image.decode().then(() => image.naturalWidth))"
        widths = visit.page.evaluate(f"Promise.all({pictures})")
        assert len(widths) == 8 * (1 if name == "one" else 2)
        assert min(widths) > 1
        assert visit.errors == []
        assert visit.away() == [pages[name]], "one request: that of the page itself"


def test_the_keyboard_reaches_toggles_and_a_toggle_changes_pixels(browser: Any, pages: dict[str, str]) -> None:
    with visiting(browser, pages["one"], viewport={"width": 800, "height": 900}) as visit:
        visit.until(READY)
        before = shot(visit, ".stack")
        tab_to(visit, ".toggle")
        outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus is visible"
        visit.page.keyboard.press("Space")
        assert visit.page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
        hidden = shot(visit, ".stack")
        assert (hidden != before).any()
        visit.page.keyboard.press("Space")
        assert (shot(visit, ".stack") == before).all()
        visit.page.get_by_role("button", name="hide all").press("Enter")
        nothing = shot(visit, ".stack")
        visit.page.get_by_role("radio", name="image alone").check()
        assert (shot(visit, ".stack") == nothing).all()


def test_the_colours_are_those_of_labels_and_predictions(browser: Any, pages: dict[str, str]) -> None:
    with visiting(browser, pages["one"], viewport={"width": 800, "height": 900}) as visit:
        visit.until(READY)
        visit.page.locator("#strength").fill("100")
        read = """() => { const canvas = document.querySelector('.stack canvas');
            return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]; }"""
        source = visit.page.locator(".stack .index").first.get_attribute("src")
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as opened:
            packed = np.array(opened).astype(int)
        predicted, label = packed[..., 0] + 256 * (packed[..., 2] >> 4), packed[..., 1] + 256 * (packed[..., 2] & 15)
        palette = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)])
        for view, labels in (("prediction", predicted), ("label", label)):
            visit.page.locator(f"[value={view}]").check()
            seen = np.array(visit.page.evaluate(read)).reshape(*labels.shape, 4)
            known = labels != 4095
            assert (seen[known] == np.concatenate([palette[labels[known]], np.full((known.sum(), 1), 255)], 1)).all()
            assert (seen[~known][:, :3] == 255).all()
        visit.page.locator("[value=errors]").check()
        seen = np.array(visit.page.evaluate(read)).reshape(*label.shape, 4)
        wrong = (predicted != label) & (label != 4095)
        assert ((seen[..., :3] == (230, 30, 30)).all(2) == wrong).all()


def test_on_paper_all_is_seen_on_white(browser: Any, pages: dict[str, str]) -> None:
    with visiting(browser, pages["one"], viewport={"width": 720, "height": 900}, color_scheme="dark") as visit:
        visit.until(READY)
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 720
        assert (shot(visit)[0, 0] == 255).all()
        assert not visit.page.locator("nav").is_visible()
        assert shot(visit, ".stack").std() > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(browser: Any, pages: dict[str, str], scheme: str) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        """As WCAG 2.2 defines it: 4.5 for text, 3 for what is drawn."""
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    texts = ("ink", "quiet", "link", "good", "bad", *(f"c{i}" for i in range(8)))
    with visiting(browser, pages["one"], color_scheme=scheme) as visit:
        names = [*texts, "paper", "panel", "focus", "heat", "heat-ink"]
        read = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
        found = {name: visit.page.evaluate(read, name) for name in names}
    for ground in ("paper", "panel"):
        assert {name: color for name in texts if contrast(color := found[name], found[ground]) < 4.5} == {}
        assert contrast(found["focus"], found[ground]) >= 3
    assert contrast(found["heat"], found["heat-ink"]) >= 4.5


def test_values_are_read_by_pointer_and_by_keyboard(browser: Any, pages: dict[str, str]) -> None:
    with visiting(browser, pages["two"], viewport={"width": 800, "height": 900}) as visit:
        visit.until(READY)
        chart = visit.page.locator(".chart", has_text="mean_iou").first
        output, drawing = chart.locator("output"), chart.locator("svg[data-first]")
        drawing.scroll_into_view_if_needed()
        box = drawing.bounding_box()
        visit.page.mouse.move(box["x"] + box["width"] - 15, box["y"] + box["height"] / 2)
        told = output.text_content()
        assert told.startswith("step 40: first, val 0.")
        assert "second, val 0." in told
        drawing.focus()
        visit.page.keyboard.press("ArrowLeft")
        assert output.text_content().startswith("step 30: ")
        visit.page.get_by_role("checkbox", name="second").uncheck()
        visit.page.keyboard.press("Tab")
        drawing.focus()
        visit.page.keyboard.press("End")
        assert "second" not in output.text_content()


def test_classes_are_put_in_order(browser: Any, pages: dict[str, str]) -> None:
    with visiting(browser, pages["one"]) as visit:
        visit.until(READY)
        table = visit.page.locator(".classes").first
        table.get_by_role("button", name="iou").press("Enter")
        values = table.locator("tbody td:nth-of-type(1)").all_text_contents()
        assert values[0] == "-"
        assert values[1:] == sorted(values[1:], key=float)
        table.get_by_role("button", name="iou").press("Enter")
        again = table.locator("tbody td:nth-of-type(1)").all_text_contents()
        assert again == values[::-1]


def test_names_run_nothing_and_the_matrix_is_read(browser: Any, pages: dict[str, str]) -> None:
    with visiting(browser, pages["hostile"], viewport={"width": 400, "height": 900}) as visit:
        visit.until(READY)
        assert visit.page.title().startswith("Report of <script>")
        matrix = visit.page.locator("canvas.heat")
        matrix.scroll_into_view_if_needed()
        assert shot(visit, "canvas.heat").std() > 5
        matrix.focus()
        visit.page.keyboard.press("ArrowDown")
        visit.page.keyboard.press("ArrowRight")
        assert "<script>document.title=" in visit.page.locator("output[id^=confusion]").text_content()
        before = shot(visit, "canvas.heat")
        visit.page.locator("[data-order]").select_option("wrong")
        assert (shot(visit, "canvas.heat") != before).any()
        for button in visit.page.locator(".toggle").all()[:3]:
            button.press("Space")
        assert visit.page.evaluate("document.querySelectorAll('script:not([type])').length") == 1
        assert visit.page.title().startswith("Report of <script>"), "no name has changed it"
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
        assert visit.errors == []
        assert len(visit.away()) == 1


def test_a_script_that_came_into_the_page_would_not_run(browser: Any, pages: dict[str, str], tmp_path: Path) -> None:
    text = page([write_run(tmp_path / "run")])
    broken = tmp_path / "broken.html"
    broken.write_text(
        text.replace(
            "<main", "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\"><main", 1
        )
    )
    with visiting(browser, broken.as_uri()) as visit:
        visit.until(READY)
        assert visit.page.title() == "Report of run"
        assert any("Content Security Policy" in error for error in visit.errors)
