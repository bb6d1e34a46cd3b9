"""Verdicts as they are shown, and those on the committed results against arithmetic done here."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from bench.claims.judge import (
    ClaimVerdict,
    committed_paths,
    judge_claim,
    judge_claims,
    read_cases,
    shipped_claims,
)
from bench.claims.page import MOST_SHOWN, render_json, render_markdown, render_terminal, sentence, telling
from bench.commands.site import _folding
from bench.errors import UsageError
from claims_factory import GIB, make_case, make_claim, on_card

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>|[x](javascript:1)"


@pytest.fixture(scope="module")
def committed() -> dict[str, ClaimVerdict]:
    """Return the verdicts on what is committed, by the id of the claim."""
    cases, problems = read_cases(committed_paths(ROOT / "results"))
    assert () == problems
    return {one.claim.id: one for one in judge_claims(shipped_claims(), cases)}


def planned(plan: str, cell: str) -> dict[str, Any]:
    """Return what a committed plan predicts of a cell, as it stands in the file."""
    content = json.loads((ROOT / "results/predicted" / f"{plan}.json").read_text(encoding="utf-8"))
    answer: dict[str, Any] = next(one["answer"] for one in content["cells"] if one["cell"]["id"] == cell)
    return answer


def figures(judged: ClaimVerdict, cell: str) -> set[float]:
    """Return the figures of a claim's rows about a cell."""
    return {row.figure.value for part in judged.findings for row in part.deciding if row.cells[0] == cell}


def test_every_verdict_names_cells_or_says_what_it_needs(committed: dict[str, ClaimVerdict]) -> None:
    """All 33 are judged, each part by cells with their instrument, or with a reason why not."""
    assert 33 == len(committed)
    for one in committed.values():
        for finding in one.findings:
            assert finding.deciding or finding.needs
            assert all(row.cells and row.instrument for row in finding.deciding)
            assert (finding.verdict == "holds conditionally") == (finding.boundary is not None)


def test_the_smallest_adapter_of_a_7b_model_is_far_from_a_few_thousand(
    committed: dict[str, ClaimVerdict],
) -> None:
    """Rank 1 on one projection of 32 layers is 32 x (4,096 + 4,096) parameters."""
    judged = committed["lora-params-thousands"]
    cell = "llama-2-7b/lora-smallest-r1-on-q_proj/b1-s512-autocast-bf16-pack"
    ends = planned("claims_7b", cell)["phase_ends_bytes"]
    assert "contradicted" == judged.verdict
    assert {262_144} == figures(judged, cell) == {(ends["adapt"] - ends["load"]) / 4}
    assert 262_144 == min(row.figure.value for row in judged.findings[0].deciding)


def test_double_quantisation_saves_what_the_paper_says(committed: dict[str, ClaimVerdict]) -> None:
    """32/64 bits of scales become 8/64 + 32/(64 x 256): 0.373 less for each of 6,476,005,376 parameters."""
    cells = [f"llama-2-7b/qlora-nf4{double}-r16/b1-s512-autocast-bf16-ckpt-pack" for double in ("-dq", "")]
    states = [
        planned("7b_single_gpu", cell)["categories_at_peak_bytes"]["quantisation_state"] for cell in cells
    ]
    by_hand = 8 * (states[1] - states[0]) / 6_476_005_376
    (shown,) = figures(committed["double-quant-saves"], cells[0])
    assert "holds" == committed["double-quant-saves"].verdict
    assert pytest.approx(by_hand, rel=1e-4) == shown
    assert pytest.approx(32 / 64 - 8 / 64 - 32 / (64 * 256), rel=1e-2) == shown


def test_96_per_cent_is_reached_by_65b_against_mixed_precision(committed: dict[str, ClaimVerdict]) -> None:
    """QLoRA of 65B peaks at 37.7 GiB, full fine-tuning with fp32 weights at 972.9 GiB."""
    window = "llama-65b/{}/b1-s512-{}autocast-bf16-ckpt-pack"
    ours, theirs = (
        planned("claims_large", window.format(*parts))["allocated_peak_bytes"]
        for parts in (("qlora-nf4-dq-r16", ""), ("full-mixed", "fp32-"))
    )
    judged = committed["qlora-mem-96pct"]
    assert "holds conditionally" == judged.verdict
    assert 1 - ours / theirs in figures(judged, window.format("qlora-nf4-dq-r16", ""))
    assert pytest.approx(0.9613, abs=1e-4) == 1 - ours / theirs


def test_the_contradicting_pair_has_contradicting_verdicts_in_each_setting(
    committed: dict[str, ClaimVerdict],
) -> None:
    """Where one says yes the other says no, for the same cells."""
    fast, slow = (
        {row.cells: row.agrees for row in committed[name].findings[0].deciding}
        for name in ("qlora-very-fast", "qlora-slower")
    )
    assert {cells: None if told is None else not told for cells, told in fast.items()} == slow
    assert fast


def hostile(name: str = HOSTILE) -> ClaimVerdict:
    """Return a divided verdict about a model with a hostile name."""
    rule = {"kind": "value", "quantity": "parameters trained", "where": {}, "at_most": 10}
    cases = [make_case(model=model, name=model, trainable=count) for model, count in ((name, 5), ("b", 50))]
    return judge_claim(make_claim(rule), cases)


def test_a_hostile_name_is_inert() -> None:
    """No tag, cell border or link comes of a model's name, in the boundary as in the cells."""
    page = render_markdown([hostile()])
    assert "model is" in page
    assert "<script" not in page
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert "<script" not in rendered
    assert "<a " not in rendered


def test_the_terminal_shows_names_as_they_are() -> None:
    """Nothing in a name is taken for the console's markup, and no control character gets through."""
    (judged,) = [hostile("[red]x[/red]\x1b[2J")]
    console = Console(width=300, file=StringIO())
    console.print(render_terminal([judged], details=True))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown


def test_a_divided_verdict_says_how_many_and_when() -> None:
    """The sentence has counts, the span of the figure, its instrument and the boundary."""
    (finding,) = hostile().findings
    expected = "1 of 2 cells agrees: parameters trained 5 to 50, predicted. Holds only when model is "
    assert f"{expected}{HOSTILE}." == sentence(finding)


def test_json_holds_all_evidence() -> None:
    """Every row is there, with its figures and settings."""
    (one,) = json.loads(render_json([hostile()]))
    assert "holds conditionally" == one["verdict"]
    assert [5, 50] == [row["figure"]["value"] for row in one["findings"][0]["deciding"]]


def test_of_many_rows_the_ends_of_each_answer_are_shown() -> None:
    """The lowest two and the highest two of those that agree, and of those that do not."""
    rule = {"kind": "value", "quantity": "parameters trained", "where": {}, "at_most": 10}
    cases = [make_case(trainable=count) for count in range(1, 21)]
    rows = judge_claim(make_claim(rule), cases).findings[0].deciding
    assert [1, 2, 9, 10, 11, 12, 19, 20] == [row.figure.value for row in telling(rows)]
    assert MOST_SHOWN == len(telling(rows))


def test_each_source_of_measurements_is_shown() -> None:
    """Among many predictions in the middle of which two sources measured, both are there."""
    rule = {"kind": "value", "quantity": "parameters trained", "where": {}, "at_most": 100}
    measured = [make_case(trainable=10, instrument="published", source=source) for source in ("a", "b")]
    cases = [*measured, *(make_case(trainable=count) for count in range(1, 21))]
    shown = telling(judge_claim(make_claim(rule), cases).findings[0].deciding)
    assert ["a", "b"] == [row.source for row in shown if row.instrument == "published"]


def test_on_the_site_details_fold_and_nothing_else_is_html() -> None:
    """The lines that fold are let through; other tags stay text."""
    text = "<details><summary>it: holds</summary>\n\n- one\n\n</details>\n\n<details><summary><b></summary>\n"
    markdown = MarkdownIt("commonmark", {"html": False})
    rendered = markdown.renderer.render(_folding(markdown.parse(text)), markdown.options, {})
    assert rendered.startswith("<details><summary>it: holds</summary>\n<ul>")
    assert rendered.count("<details>") == rendered.count("</details>") == 1
    assert "&lt;b&gt;" in rendered


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    """Where nothing is kept the message says where it looked."""
    with pytest.raises(UsageError, match="holds no reference, studies or predicted results"):
        committed_paths(tmp_path)


def test_the_command_judges_without_torch() -> None:
    """Both kinds of source are read, and torch is never imported."""
    code = (
        "import sys; from bench.cli import app; "
        "app(['claims', 'results/predicted/33b_24gb.json', 'results/reference/smollm2_learns', '--json'], "
        "standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (0, "") == (done.returncode, done.stderr)
    verdicts = {one["claim"]["id"]: one["verdict"] for one in json.loads(done.stdout)}
    assert ("holds conditionally", "untestable") == (
        verdicts["qlora-33b-24gb"],
        verdicts["qlora-65b-48gb"],
    )


def test_sizes_are_told_in_one_unit() -> None:
    """A span names its unit once."""
    rule = {"kind": "fits", "where": {}, "card_gib": [24]}
    cases = [make_case(cards=(on_card("fits", needed_gib=need),)) for need in (10, 20)]
    told = sentence(judge_claim(make_claim(rule), cases).findings[0])
    assert "2 of 2 cells agree: memory needed on a card 10.00 to 20.00 GiB, predicted." == told
    assert 24 * GIB == cases[0].cards[0][0]
