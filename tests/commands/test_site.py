"""The static site: pages, reports and files that link to each other, and nothing from outside."""

import base64
import html
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from bench.commands.site import write_site
from bench.errors import UsageError
from bench.records.records import encode_record
from records_factory import make_record

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a small repository beside a secret."""
    root = tmp_path / "repository"
    records = root / "results" / "reference" / "tiny"
    for folder in (root / "report", root / "scenarios", records):
        folder.mkdir(parents=True)
    (records / "one.json").write_bytes(encode_record(make_record()))
    (root / "scenarios" / "a.toml").write_text("title = 'a'", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (root / "README.md").write_text(
        "# Home\n\n[Reports](report/)\n\n![A figure](report/a.svg) ![Another](../secret.svg)\n",
        encoding="utf-8",
    )
    (tmp_path / "secret.svg").write_text("<svg>secret</svg>", encoding="utf-8")
    (root / "report" / "a.svg").write_text("<svg/>", encoding="utf-8")
    (root / "report" / "page.md").write_text(
        "# A page\n\n<!-- bench:begin -->\n\n| a | b |\n| :- | -: |\n| 1 | <script>alert(1)</script> |\n",
        encoding="utf-8",
    )
    (root / "report" / "README.md").write_text(
        "# Index\n\n[page](page.md#part), [home](../README.md), [records](../results/reference/tiny), "
        "[scenario](../scenarios/a.toml), [web](https://example.org), [secret](../../secret.txt)\n",
        encoding="utf-8",
    )
    return root


def test_pages_link_to_pages_reports_and_files(repository: Path, tmp_path: Path) -> None:
    """Links to Markdown lead to HTML, to records to their report, to files to copies; others stay."""
    site = tmp_path / "site"
    list(write_site(repository, site))
    links = re.findall(r'href="([^"#][^"]*)"', (site / "report" / "README.html").read_text(encoding="utf-8"))
    assert {
        "../report/page.html#part",
        "../index.html",
        "../results/tiny.html",
        "../scenarios/a.toml",
        "https://example.org",
        "../../secret.txt",
    } <= set(links)
    assert (site / "scenarios" / "a.toml").read_text(encoding="utf-8") == "title = 'a'"
    picture = base64.b64encode(b"<svg/>").decode()
    home = (site / "index.html").read_text(encoding="utf-8")
    assert f'<img src="data:image/svg+xml;base64,{picture}" alt="A figure"' in home
    assert '<img src="../secret.svg" alt="Another"' in home
    assert "1 runs of 1 cells" in (site / "results" / "tiny.html").read_text(encoding="utf-8")
    assert (site / ".nojekyll").is_file()
    assert not list(site.rglob("secret.txt"))


def test_markdown_becomes_a_table_and_raw_html_stays_text(repository: Path, tmp_path: Path) -> None:
    """Comments of generated blocks are gone, tables are tables, a script is shown."""
    site = tmp_path / "site"
    list(write_site(repository, site))
    page = (site / "report" / "page.html").read_text(encoding="utf-8")
    assert '<table tabindex="0">' in page
    assert '<th class="number">b</th>' in page
    assert "style=" not in page.replace("style-src", "")
    assert "bench:begin" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;" in page


def test_a_site_is_written_anew_but_never_over_something_else(repository: Path, tmp_path: Path) -> None:
    """The second time it replaces its own pages; a folder with other files is refused."""
    site = tmp_path / "site"
    first, second = list(write_site(repository, site)), list(write_site(repository, site))
    assert first == second
    with pytest.raises(UsageError, match="is not empty and not a site made here"):
        list(write_site(repository, repository))
    with pytest.raises(UsageError, match="run bench report --site in the repository"):
        list(write_site(tmp_path, site))


def test_a_link_to_nothing_is_a_warning(repository: Path, tmp_path: Path) -> None:
    """It is told with the page; a word is found in the section that has it."""
    (repository / "report" / "page.md").write_text(
        "# A page\n\n## Part\n\n[gone](gone.md) word\n", encoding="utf-8"
    )
    told = list(write_site(repository, tmp_path / "site"))
    assert "warning: report/page.md links to gone.md, which is not there" in told
    search = (tmp_path / "site" / "search.html").read_text(encoding="utf-8")
    assert re.search(r'<li data-text="[^"]* word"><a href="report/page.html#part">A page: Part</a>', search)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site of this repository, which is built without a warning."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    with pytest.MonkeyPatch.context() as patched:  # reports are looked at elsewhere, and take a minute
        patched.setattr("bench.commands.site.render_html", lambda *_, **__: "<p>A report.</p>")
        told = list(write_site(ROOT, folder))
    assert [] == [line for line in told if not line.startswith("wrote ")]
    return folder


def test_every_link_of_the_site_resolves(site: Path) -> None:
    """To a file that is there, and to an anchor of it."""
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]*)"', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        for link in {html.unescape(one) for one in re.findall(r'href="([^"]*)"', text)}:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, fragment = link.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            if not target.exists() or (fragment and fragment not in anchors.get(target, {fragment})):
                broken.append((page.relative_to(site).as_posix(), link))
    assert [] == broken


def test_the_index_leads_to_all_pages() -> None:
    """Every page of report/ has its line."""
    index = (ROOT / "report" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "report").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([^)/]+\.md)\)", index))
