"""The static site: pages, reports and files that link to each other, and nothing from outside."""

import base64
import re
from pathlib import Path

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
    links = re.findall(r'href="([^"#][^"]*)"', (site / "index.html").read_text(encoding="utf-8"))
    assert {
        "report/page.html#part",
        "README.html",
        "results/tiny.html",
        "scenarios/a.toml",
        "https://example.org",
        "../../secret.txt",
    } <= set(links)
    assert (site / "scenarios" / "a.toml").read_text(encoding="utf-8") == "title = 'a'"
    picture = base64.b64encode(b"<svg/>").decode()
    home = (site / "README.html").read_text(encoding="utf-8")
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
    assert "<table>" in page
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


def test_the_index_leads_to_all_pages() -> None:
    """Every page of report/ has its line."""
    index = (ROOT / "report" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "report").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([^)/]+\.md)\)", index))
