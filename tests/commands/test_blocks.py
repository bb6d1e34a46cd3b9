"""Generated blocks: filled from records, checked, and never reaching outside the repository."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.commands.blocks import check, fill, render_keys, require_in_step, update
from bench.errors import UsageError
from bench.records.records import encode_record
from bench.report.figures import Figure
from records_factory import make_ledger, make_measurement, make_record
from sittings_factory import MIB, make_runs, write_sitting

ROOT = Path(__file__).parents[2]
PAGE = (
    "# Title\n\n<!-- bench:begin comparison results/reference/tiny -->\nold\n<!-- bench:end -->\n\nAfter.\n"
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a folder with one page, one block and one record."""
    folder = tmp_path / "results" / "reference" / "tiny"
    folder.mkdir(parents=True)
    (folder / "one.json").write_bytes(encode_record(make_record()))
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def test_a_block_is_filled_once_and_then_stays(repository: Path) -> None:
    """The first update changes the page, the second nothing; the text around stays."""
    assert [repository / "README.md"] == update(repository)
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert text.startswith(
        "# Title\n\n<!-- bench:begin comparison results/reference/tiny -->\n\n1 cell of example: 1 ok."
    )
    assert text.endswith("<!-- bench:end -->\n\nAfter.\n")
    assert "old" not in text.splitlines()
    assert ([], []) == (update(repository), check(repository))


def test_a_page_out_of_step_is_found(repository: Path) -> None:
    """A hand-made change inside a block is a problem that says what to do."""
    expected = ["README.md: not in step with its records; run `bench report --update`"]
    assert expected == check(repository)
    with pytest.raises(UsageError, match="not in step"):
        require_in_step(repository)


def test_code_is_shown_as_it_is_and_a_change_of_it_puts_the_page_out_of_step(repository: Path) -> None:
    """A file of Python stands between fences; another file is refused."""
    block = "<!-- bench:begin source bench/part.py -->\n<!-- bench:end -->\n"
    (repository / "README.md").write_text(block, encoding="utf-8")
    (repository / "bench").mkdir()
    code = repository / "bench" / "part.py"
    code.write_text("x = 1  # <!-- here -->\n", encoding="utf-8")
    update(repository)
    page = (repository / "README.md").read_text(encoding="utf-8")
    assert "\n```python\nx = 1  # <!-- here -->\n```\n" in page
    assert check(repository) == []
    code.write_text("x = 2\n", encoding="utf-8")
    assert check(repository) == ["README.md: not in step with its records; run `bench report --update`"]
    code.rename(code.with_suffix(".txt"))
    assert ["README.md:1: "] == [problem[:13] for problem in check(repository)]


def test_pages_in_the_report_folder_count(repository: Path) -> None:
    """Both kinds of block work, in any page."""
    (repository / "report").mkdir()
    page = repository / "report" / "tiny.md"
    page.write_text(PAGE.replace("comparison", "details"), encoding="utf-8")
    update(repository)
    assert "## Test environment" in page.read_text(encoding="utf-8")


def test_a_figure_is_drawn_beside_the_page_and_checked_without_drawing(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page links to it; a picture changed by hand, or of other records, is out of step; so is none."""
    block = "<!-- bench:begin figure:memory results/reference/tiny -->\n<!-- bench:end -->\n"
    (repository / "README.md").write_text(block, encoding="utf-8")
    picture = repository / "report" / "figures" / "tiny-memory.svg"
    assert [picture, repository / "README.md"] == update(repository)
    page = (repository / "README.md").read_text(encoding="utf-8")
    assert "\n![Memory at the peak, by category](report/figures/tiny-memory.svg)\n" in page
    drawn = picture.read_text(encoding="utf-8")
    root = ET.fromstring(drawn)  # noqa: S314 - our own
    assert root[0].tag.endswith("rect")  # a background of its own: read as well on a dark page
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "svg", None)
        assert [] == check(repository)
        stale = ["report/figures/tiny-memory.svg: not in step with its records; run `bench report --update`"]
        picture.write_text(drawn.replace(">weights<", ">feathers<"), encoding="utf-8")
        assert stale == check(repository)
        picture.unlink()
        assert stale == check(repository)
    update(repository)
    ledger = make_ledger(peak_bytes=601 * MIB)
    record = make_record(measurement=make_measurement(ledger=ledger))
    (repository / "results/reference/tiny/one.json").write_bytes(encode_record(record))
    assert stale == check(repository)


def test_a_figure_without_data_says_so_on_the_page(repository: Path) -> None:
    """The block is filled by itself once the records have what it needs."""
    block = "<!-- bench:begin figure:predicted results/reference/tiny -->\n<!-- bench:end -->\n"
    (repository / "README.md").write_text(block, encoding="utf-8")
    update(repository)
    page = (repository / "README.md").read_text(encoding="utf-8")
    assert "No figure of predicted against measured memory: no record holds both" in page
    assert ([], False) == (check(repository), (repository / "report" / "figures").exists())


def test_a_sitting_is_judged_anew_for_its_block(tmp_path: Path) -> None:
    """From its records: what is gated, with the verdict first."""
    write_sitting(tmp_path / "results" / "gate", make_runs(), make_runs(ledger_bytes=601 * MIB))
    page = tmp_path / "README.md"
    page.write_text("<!-- bench:begin gate results/gate -->\n<!-- bench:end -->\n", encoding="utf-8")
    assert [page] == update(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "**regression: of 7 gated metrics 1 regression, 6 pass**" in text
    assert "| tiny/a | ledger_peak_bytes | REGRESSION |" in text
    assert "load_time" not in text
    assert [] == check(tmp_path)
    for record in (tmp_path / "results" / "gate" / "candidate").glob("*.json"):
        record.unlink()
    assert 1 == len(check(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- bench:begin comparison results/none -->\n<!-- bench:end -->",
            "README.md:1: .*neither a results folder",
        ),
        (
            "<!-- bench:begin poem results/reference/tiny -->\n<!-- bench:end -->",
            "README.md:1: unknown block poem",
        ),
        (
            "<!-- bench:begin figure:poem results/reference/tiny -->\n<!-- bench:end -->",
            "README.md:1: unknown figure poem; choose one of memory, ",
        ),
        ("<!-- bench:begin comparison ../outside -->\n<!-- bench:end -->", "leads out of the repository"),
        ("<!-- bench:begin comparison /etc -->\n<!-- bench:end -->", "leads out of the repository"),
        ("x\n<!-- bench:end -->", "README.md:2: a block ends that has not begun"),
        ("x\n<!-- bench:begin comparison results/reference/tiny -->", "README.md:2: the block has no end"),
        (
            "<!-- bench:begin comparison results/reference/tiny -->\n" * 2,
            "README.md:2: a block begins inside",
        ),
    ],
)
def test_a_bad_block_is_refused_with_its_line(repository: Path, text: str, message: str) -> None:
    """Page, line, what is wrong and what to do."""
    with pytest.raises(UsageError, match=message):
        fill(text, repository / "README.md", repository)


def test_an_unreadable_record_is_not_left_out_silently(repository: Path) -> None:
    """A committed page never shows only part of its records."""
    (repository / "results" / "reference" / "tiny" / "two.json").write_text("{", encoding="utf-8")
    (problem,) = check(repository)
    assert "two.json" in problem


def test_an_empty_folder_is_an_error(repository: Path) -> None:
    """A block without records is not in step with anything."""
    (repository / "results" / "reference" / "tiny" / "one.json").unlink()
    (problem,) = check(repository)
    assert "no record found" in problem


def test_the_pages_of_this_repository_are_in_step() -> None:
    """README.md and report/*.md show what the committed records say."""
    assert check(ROOT) == []


def test_keys_of_a_gate_and_of_its_metrics_stand_in_the_reference() -> None:
    """The page says "every key": tables within a table have their own, with units and defaults."""
    page = render_keys()
    assert "## `[gate]`" in page
    assert "| `alpha` | number > 0, ≤ 0.2 | `0.01` |" in page
    assert "| `relative_tolerance` |" in page.partition("## `[gate.metrics.NAME]`")[2]
