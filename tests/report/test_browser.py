"""The HTML report in a real browser: the chromium that is installed, driven by playwright."""

import csv
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from bench.commands.material import read_material
from bench.commands.site import write_site
from bench.compare.comparison import compare
from bench.records.predictions import read_plan
from bench.report.html import render_html
from hostile_records import make_hostile_plan, make_hostile_records
from many_cells import make_records
from records_factory import make_ledger, make_measurement, make_record

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium; install it, or name it in CHROMIUM")
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
SORT = """async (column) => {
  const button = [...document.querySelectorAll("table.grid")].at(-1).querySelectorAll("thead button")[column];
  const start = performance.now();
  button.click();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""


@dataclass
class Opened:
    """A page that is open, and what it has said or asked for; its last table is that of all cells."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def grid(self) -> Locator:
        """Return the table of all cells."""
        return self.page.locator("table.grid").last

    @property
    def form(self) -> Locator:
        """Return what filters it."""
        return self.page.locator("form.filters").last

    def column(self, title: str) -> int:
        """Return the place of a column."""
        heads = self.grid.locator("thead th").all_inner_texts()
        return [head.strip().splitlines()[0] for head in heads].index(title)

    def cells(self, title: str) -> list[str]:
        """Return what the rows that are shown have in a column, from the top."""
        place = self.column(title) + 1
        return self.grid.locator(f"tbody tr:visible > :nth-child({place})").all_inner_texts()

    def press(self, title: str) -> None:
        """Press the head of a column."""
        self.grid.locator("thead button").nth(self.column(title)).click()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start chromium once."""
    with sync_playwright() as playwright:
        # Containers run tests as root, which chromium's sandbox refuses.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the page of the committed records, of a plan, and of a stranger's files."""
    folder = tmp_path_factory.mktemp("pages")
    measured = read_material([RESULTS / "reference" / "smollm2_cpu"]).comparison
    plan = read_plan(RESULTS / "predicted" / "33b_24gb.json")
    small = plan.model_copy(update={"cells": plan.cells[-4:]})
    few = compare((*make_records(3), make_hostile_records()[1]), ("one.json",))
    hostile = compare(make_hostile_records())
    pages = {
        "measured": render_html(measured, ()),
        "mixed": render_html(few, [small]),
        "planned": render_html(None, [read_plan(RESULTS / "predicted" / "7b_single_gpu.json")]),
        "hostile": render_html(hostile, [make_hostile_plan()]),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


def open_page(browser: Browser, path: Path, scheme: Scheme = "light", width: int = 1280) -> Opened:
    """Open a file and listen to it."""
    opened = Opened(browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900}))
    opened.page.on("console", lambda message: opened.said.append(message.text))
    opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.page.on("dialog", lambda dialog: opened.said.append(dialog.message))
    opened.page.on("request", lambda request: opened.asked.append(request.url))
    opened.page.goto(path.as_uri())
    opened.page.evaluate(
        "document.querySelectorAll('.filters details').forEach((one) => { one.open = true; })"
    )
    return opened


@pytest.mark.parametrize("name", ["measured", "planned", "hostile"])
def test_it_opens_without_a_word_and_asks_for_nothing(
    browser: Browser, files: dict[str, Path], name: str
) -> None:
    """No message on the console, no error, no dialog, and no request but for the file itself."""
    opened = open_page(browser, files[name])
    opened.page.wait_for_timeout(100)
    assert ([], [files[name].as_uri()]) == (opened.said, opened.asked)


def test_a_script_for_a_name_is_text(browser: Browser, files: dict[str, Path]) -> None:
    """It can be read in the table, and nothing of it is an element."""
    opened = open_page(browser, files["hostile"])
    assert "<script>alert(1)</script>" in opened.page.inner_text("main")
    assert 0 == opened.page.locator("main script, main img").count()


def test_columns_sort_both_ways_and_say_so(browser: Browser, files: dict[str, Path]) -> None:
    """By numbers, not by how they are written; a screen reader is told the direction; keys do as well."""
    opened = open_page(browser, files["measured"])
    opened.press("Peak: tensors")
    ascending = ["1,118 MiB", "1,143 MiB", "1,361 MiB", "1,447 MiB"]
    assert ascending == [cell.split("\n")[0].strip() for cell in opened.cells("Peak: tensors")]
    head = opened.grid.locator("thead th").nth(opened.column("Peak: tensors"))
    assert "ascending" == head.get_attribute("aria-sort")
    head.locator("button").press("Enter")
    assert ("descending", "full") == (head.get_attribute("aria-sort"), opened.cells("Method")[0][:4])
    opened.press("tokens/s")
    assert None is head.get_attribute("aria-sort")
    speeds = [float(cell.split()[0]) for cell in opened.cells("tokens/s")]
    assert sorted(speeds) == speeds


def test_what_fits_24_gib_at_2048_tokens_is_three_choices_away(
    browser: Browser, files: dict[str, Path]
) -> None:
    """Card, length and model chosen, full fine-tuning is gone; the count is told; Clear brings all back."""
    opened = open_page(browser, files["planned"])
    form = opened.form
    form.get_by_label("Fits on").select_option("rtx4090 (24 GiB)")
    form.get_by_label("Sequence length").select_option("2,048")
    form.get_by_label("Model").select_option("llama-2-7b")
    shown = set(opened.cells("Method"))
    assert {"lora-r8", "lora-r64", "qlora-nf4-dq-r16"} <= shown
    assert not {"full", "lora-r256"} & shown
    assert {"2,048"} == set(opened.cells("Sequence length"))
    form.get_by_label("at most").fill("9")
    assert all(method.startswith("qlora") for method in opened.cells("Method"))
    form.get_by_role("searchbox").fill("nf4 dq")
    assert "1 of 144 cells" == form.locator("output").inner_text()
    form.get_by_role("button", name="Clear").click()
    form.get_by_text("144 of 144").wait_for()


def test_a_link_of_a_sentence_reveals_the_row_it_names(browser: Browser, files: dict[str, Path]) -> None:
    """Even when the row was filtered out."""
    opened = open_page(browser, files["measured"])
    opened.form.get_by_role("searchbox").fill("lora-r64")
    assert 1 == len(opened.cells("Method"))
    opened.page.locator("dd a", has_text="qlora-nf4-dq-r8").first.click()
    row = opened.page.locator("tr:target")
    row.wait_for(state="visible")
    assert row.inner_text().startswith("qlora-nf4-dq-r8")


def test_a_row_that_is_linked_is_clear_of_the_header_that_stays(
    browser: Browser, files: dict[str, Path]
) -> None:
    """Far down a long table, by a link of the plan's first sentences."""
    page = open_page(browser, files["planned"]).page
    page.locator("dd a", has_text="qlora-fp4-r16").first.click()
    expect(page.locator("tr:target")).to_be_in_viewport()
    row, head = (
        page.locator("tr:target").bounding_box(),
        page.locator(".tall").last.locator("th").first.bounding_box(),
    )
    assert row is not None
    assert head is not None
    assert row["y"] >= head["y"] + head["height"]


def test_sorting_and_filtering_begin_at_the_top_again(browser: Browser, files: dict[str, Path]) -> None:
    """Whoever scrolled down sees the first rows of the new order; a table too wide says that it goes on."""
    opened = open_page(browser, files["planned"], width=500)
    box = opened.page.locator(".tall").last
    down, place = "(one) => { one.scrollTop = 500; }", "(one) => one.scrollTop"
    box.evaluate(down)
    opened.press("Allocated")
    assert 0 == box.evaluate(place)
    box.evaluate(down)
    opened.form.get_by_role("searchbox").fill("lora")
    assert 0 == box.evaluate(place)
    marked = re.compile(r"\bbeyond\b")
    box.evaluate("(one) => { one.scrollLeft = 0; }")
    expect(box).to_have_class(marked)
    box.evaluate("(one) => { one.scrollLeft = one.scrollWidth; }")
    expect(box).not_to_have_class(marked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, files: dict[str, Path], scheme: Scheme) -> None:
    """With all details open, names, roles, order and contrast are as they should be; in dark the contrast."""
    opened = open_page(browser, files["mixed"], scheme)
    opened.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    options = {"runOnly": ["color-contrast"]} if scheme == "dark" else None
    found: list[dict[str, Any]] = Axe().run(opened.page, options=options).response["violations"]
    assert [] == [(one["id"], one["nodes"][0]["html"][:120]) for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(
    browser: Browser, files: dict[str, Path], scheme: Scheme
) -> None:
    """The button turns dark into light and back; figures go with it."""
    opened = open_page(browser, files["measured"], scheme)

    def background() -> str:
        return str(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = "rgb(254, 254, 254)", "rgb(20, 22, 26)"
    first, second = (light, dark) if scheme == "light" else (dark, light)
    shades = [background()]
    for _ in range(2):
        opened.page.get_by_role("button", name="Dark or light").click()
        shades.append(background())
    assert [first, second, first] == shades
    text = opened.page.locator("figure svg text").first
    limits = open_page(browser, files["planned"], scheme).page.locator('svg [fill="var(--limit)"]').first
    limit = "rgb(198, 40, 40)" if scheme == "light" else "rgb(255, 138, 128)"
    assert limit == limits.evaluate("(one) => getComputedStyle(one).fill")
    ink = "rgb(26, 28, 32)" if scheme == "light" else "rgb(231, 233, 238)"
    assert ink == text.evaluate("(one) => getComputedStyle(one).fill")


def test_on_a_telephone_only_tables_and_figures_scroll_sideways(
    browser: Browser, files: dict[str, Path]
) -> None:
    """The page itself is no wider than the screen."""
    for name in ("measured", "planned"):
        opened = open_page(browser, files[name], width=390)
        assert 390 == opened.page.evaluate("document.documentElement.scrollWidth")


def test_printed_it_is_whole(browser: Browser, files: dict[str, Path]) -> None:
    """All rows and details are there, the controls are not."""
    opened = open_page(browser, files["measured"], "dark")
    opened.form.get_by_role("searchbox").fill("lora-r64")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.page.emulate_media(media="print")
    assert not opened.page.locator(".filters").is_visible()
    assert opened.page.get_by_text("Where the wall time went").is_visible()
    assert 0 == opened.page.locator("details:not([open])").count()
    # Chromium leaves buttons out of a header that it repeats on each page.
    assert 0 == opened.grid.locator("thead button").count()
    assert "Method" == opened.grid.locator("thead th").first.inner_text()
    assert opened.page.pdf(format="A4")[:5] == b"%PDF-"
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert "Method" == opened.grid.locator("thead button").first.inner_text()


@pytest.mark.alone
def test_a_table_of_2000_cells_sorts_within_a_second(browser: Browser, tmp_path: Path) -> None:
    """Measured in the page, from the press to the next frame, by numbers and by words."""
    plan = read_plan(RESULTS / "predicted" / "7b_single_gpu.json")
    cells = tuple(
        one.model_copy(update={"cell": one.cell.model_copy(update={"id": f"{number}-{one.cell.id}"})})
        for number in range(14)
        for one in plan.cells
    )
    path = tmp_path / "large.html"
    path.write_text(render_html(None, [plan.model_copy(update={"cells": cells})]), encoding="utf-8")
    opened = open_page(browser, path)
    assert opened.form.locator("output").inner_text() == "2016 of 2016 cells, the first 200 shown"
    for title in ("Method", "Allocated", "Peak set by", "Sequence length"):
        assert 1000 > opened.page.evaluate(SORT, opened.column(title))
    assert 200 == len(opened.cells("Method"))
    opened.form.get_by_role("button", name="Show the other 1816").click()
    assert "2016 of 2016 cells" == opened.form.locator("output").inner_text()


def test_the_first_screen_holds_numbers_and_a_figure(browser: Browser, files: dict[str, Path]) -> None:
    """At 1,400 pixels table and figure stand side by side; at 390 the narrow figure is shown."""
    for name in ("measured", "planned"):
        page = open_page(browser, files[name], width=1400).page
        table, figure = (
            page.locator("table.grid").first.bounding_box(),
            page.locator("figure").first.bounding_box(),
        )
        assert table is not None
        assert figure is not None
        assert max(table["y"], figure["y"]) < 450
        assert table["x"] + table["width"] <= figure["x"]
    narrow = open_page(browser, files["measured"], width=390).page.locator("figure").first
    assert (False, True) == (narrow.locator(".wide").is_visible(), narrow.locator(".narrow").is_visible())


def test_what_is_shown_is_saved_as_csv_that_is_no_formula(browser: Browser, files: dict[str, Path]) -> None:
    """Rows that are asked for, all columns, numbers as numbers; a name that begins like a formula is text."""
    opened = open_page(browser, files["measured"])
    opened.grid.locator("tbody th").first.evaluate("(one) => { one.firstChild.textContent = '=cmd(\"x\")'; }")
    opened.form.get_by_role("searchbox").fill("full")
    with opened.page.expect_download() as saved:
        opened.form.get_by_role("button", name="Save as CSV").click()
    rows = list(csv.DictReader(saved.value.path().read_text(encoding="utf-8").splitlines()))
    assert ['\'=cmd("x")'] == [row["Method"] for row in rows]
    assert 1446.98 < float(rows[0]["Peak: tensors"]) < 1446.99
    assert "aten::_log_softmax_backward_data" in rows[0]["Peak set by"]


def test_a_mark_tells_what_it_stands_for(browser: Browser, files: dict[str, Path]) -> None:
    """A pointer over a point of the frontier is told its method, memory, speed and accuracy."""
    page = open_page(browser, files["measured"], width=1400).page
    page.locator("figure .wide [aria-roledescription='point']").first.hover()
    assert re.fullmatch(
        r"[\w-]+: [\d,]+ MiB, \d+ tokens/s \(.*\), accuracy .* %", page.locator("#tip").inner_text()
    )


def test_a_box_that_is_pressed_shows_what_it_holds(browser: Browser, tmp_path: Path) -> None:
    """A module becomes as wide as the peak, what is beside it goes, and the peak brings all back."""
    modules = {
        "layers.*.mlp": {"weights": 300 << 20, "activations": 100 << 20},
        "lm_head": {"logits": 200 << 20},
    }
    record = make_record(measurement=make_measurement(ledger=make_ledger(modules_at_peak_bytes=modules)))
    (tmp_path / "page.html").write_text(render_html(compare((record,)), ()), encoding="utf-8")
    page = open_page(browser, tmp_path / "page.html").page
    box = page.locator(".flame svg svg")
    widths = "(boxes) => boxes.map((one) => one.getAttribute('width'))"
    assert ["100.000%", "66.667%", "50.000%", "16.667%", "33.333%", "33.333%"] == box.evaluate_all(widths)
    box.filter(has_text="lm_head").click()
    assert ["100%", "0%", "0%", "0%", "100%", "100%"] == box.evaluate_all(widths)
    box.filter(has_text="peak").click()
    assert ["100%", "66.667%", "50%", "16.667%", "33.333%", "33.333%"] == box.evaluate_all(widths)
    words = ("layers", 1, "66.7 % of the peak"), ("L", 3, "100.0 % of the peak"), ("", 0, "")
    for word, found, told in words:
        page.get_by_label("Find modules").fill(word)
        assert found == page.locator(".found").count()
        assert told == page.locator(".finder output").inner_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the web site, its reports empty."""
    folder = tmp_path_factory.mktemp("site")
    with patch("bench.commands.site.render_html", lambda *_, **__: "<p>A report.</p>"):
        list(write_site(ROOT, folder))
    return folder


OTHERS = pytest.param(("docs/gate", "docs/keys", "report/predicted_33b_24gb"), marks=pytest.mark.slow)


@pytest.mark.parametrize("pages", [("index", "search", "report/claims"), OTHERS], ids=lambda pages: pages[0])
def test_pages_of_the_site_are_clean_at_both_widths_and_in_both_themes(
    browser: Browser, site: Path, pages: Sequence[str]
) -> None:
    """Nothing on the console or for axe, and no sideways scrolling."""
    found = []
    for name in pages:
        for scheme, width in zip(SCHEMES, (1400, 390), strict=True):
            opened = open_page(browser, site / f"{name}.html", scheme, width)
            found += [(name, one) for one in opened.said]
            if width != opened.page.evaluate("document.documentElement.scrollWidth"):
                found.append((name, f"wider than {width}"))
            violations = Axe().run(opened.page).response["violations"]
            found += [(name, one["id"]) for one in violations]
            opened.page.close()
    assert [] == found


def test_titles_of_the_site_are_short_and_its_search_finds_a_section(browser: Browser, site: Path) -> None:
    """Three lines on a telephone; what holds other words is hidden."""
    claims = open_page(browser, site / "report" / "claims.html", width=390).page
    lines = """all => all.map(one => { const range = document.createRange(); range.selectNodeContents(one);
        return new Set([...range.getClientRects()].map(each => Math.round(each.bottom))).size })"""
    titles = claims.locator("h2, summary, .prose > table td:first-child")
    assert 3 >= max(titles.evaluate_all(lines))
    page = open_page(browser, site / "search.html").page
    page.get_by_role("searchbox").fill("sequences per forward pass")
    assert 0 < page.locator("#found > li:visible").count() < page.locator("#found > li").count() / 4
