"""A comparison as LaTeX: tables that are whole, escaped and no wider than a page, compiled where LaTeX is."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.commands.material import read_material
from bench.compare.comparison import compare
from bench.records.records import Record, TextLoss
from bench.report.pages import render_latex
from hostile_records import make_hostile_records
from records_factory import MIB, make_cell, make_evaluation, make_ledger, make_measurement, make_record

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
PAGE = r"""\documentclass{article}\usepackage[margin=1in]{geometry}\usepackage{booktabs}
\begin{document}\begin{table}\centering"""
CELL = re.compile(r"\\begin\{tabular\}\[b\]\{@\{\}[lr]@\{\}\}(.*?)\\end\{tabular\}")


def make_paper() -> Iterator[Record]:
    """Yield LoRA of two ranks and DoRA, each over three seeds: what a paper would compare."""
    for name, rank, dora in (("lora", 8, False), ("lora", 16, False), ("dora", 8, True)):
        for seed in range(3):
            method = {"kind": "lora", "name": name, "rank": rank, "peft": {"use_dora": dora}}
            evaluations = (
                make_evaluation("before", [index < 5 for index in range(20)]),
                make_evaluation("after", [index < 10 + seed + rank // 8 for index in range(20)]),
            )
            yield make_record(
                cell=make_cell(
                    id=f"tiny/{name}-r{rank}/b4-s256-seed={seed}",
                    method=method,
                    training={"sequence_length": 256, "micro_batch": 4, "seed": seed},
                ),
                measurement=make_measurement(
                    ledger=make_ledger((528 + 4 * rank) * MIB),
                    evaluations=evaluations,
                    text_loss=TextLoss(
                        "rows.jsonl", 90, 2.34, 0.15 + 0.03 * seed + rank / 1000 - 0.02 * dora
                    ),
                ),
            )


@pytest.fixture(params=("paper", "measured", "hostile"))
def text(request: pytest.FixtureRequest) -> str:
    """Return the tables of a comparison."""
    match request.param:
        case "paper":
            return render_latex(compare([*make_paper()]))
        case "measured":
            measured = read_material([REFERENCE / "smollm2_cpu"]).comparison
            assert measured
            return render_latex(measured)
        case _:
            return render_latex(compare(make_hostile_records()))


def test_each_line_has_as_many_cells_as_the_table_has_columns(text: str) -> None:
    """Braces and environments are closed, and nothing but markup of our own is markup."""
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert shown.count("\\begin{tabular}") == shown.count("\\end{tabular}") > 0
    assert len(re.findall(r"(?<!\\)\{", shown)) == len(re.findall(r"(?<!\\)\}", shown))
    for place, body in re.findall(
        r"^\\begin\{tabular\}\{@\{\}(l+r+)@\{\}\}\n(.*?)^\\end\{tabular\}\}$", shown, re.DOTALL | re.MULTILINE
    ):
        lines = [CELL.sub("title", line) for line in body.splitlines() if line.endswith(r" \\")]
        assert len(lines) > 1
        for line in lines:
            cells = re.split(r" (?<!\\)& ", line.removesuffix(r" \\"))
            assert len(place) == len(cells), line
            told = " ".join(cells).replace(r"$\to$", "").replace(r"$\pm$", "").replace("$-$", "")
            assert not re.search(r"(?<!\\)[#$&^_%]|[^\x00-\xff]", told), line


def test_units_stand_in_titles_and_what_is_alike_in_a_comment() -> None:
    """A paper's table has bare numbers, and means over seeds with their interval."""
    text = render_latex(compare([*make_paper()]))
    assert "% Runs: 3 (3 seeds)\n" in text
    assert "tensors, MiB" in text
    (line,) = (line for line in text.splitlines() if line.startswith("dora-r8 & "))
    assert re.search(r"& 560 & .* \(\d\d\.\d to \d\d\.\d \\%\) & 0\.168 \(0\.0935 to 0\.243\) \\\\", line)
    assert r"after, over 3 seeds, n = 20\end{tabular}" in text.replace(r" \\ ", " ")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, as of texlive-latex-base")
def test_it_compiles_and_fits_between_margins_of_an_inch(text: str, tmp_path: Path) -> None:
    """Without an error whatever cells are called, and without an overfull box where all went well."""
    (tmp_path / "page.tex").write_text(f"{PAGE}\n{text}\n\\end{{table}}\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    assert "Outcome" in text or "Overfull" not in said
