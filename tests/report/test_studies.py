"""Blocks of studies and of levers: sentences and tables from records whose numbers are round."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.commands.blocks import check, update
from bench.compare.comparison import compare
from bench.compare.series import accuracy_by_rank
from bench.errors import UsageError
from bench.records.readings import Caveat
from bench.records.records import FlopsReading, Record, TokenCounts, encode_record
from bench.report.figures import comparison_figures
from bench.report.pages import render_markdown
from bench.report.studies import render_levers, render_study
from bench.scenario.platform import Platform
from records_factory import (
    MIB,
    make_cell,
    make_evaluation,
    make_ledger,
    make_measurement,
    make_phases,
    make_prediction,
    make_record,
    make_steps,
)

BUSY = Caveat(code="busy-machine", message="Other processes used 80 % of this machine's 2 CPUs.")


def make_study(counts: dict[str, tuple[int, ...]], *, caveats: tuple[Caveat, ...] = ()) -> Iterator[Record]:
    """Yield a run for each method and seed with so many of 20 questions right after training, 5 before."""
    for rank, (method, rights) in enumerate(counts.items(), start=1):
        for seed, right in enumerate(rights):
            evaluations = (
                make_evaluation("before", [index < 5 for index in range(20)]),
                make_evaluation("after", [index < right for index in range(20)]),
            )
            yield make_record(
                cell=make_cell(
                    id=f"tiny/{method}/b4-s256-seed={seed}",
                    method={"kind": "lora", "name": "lora", "rank": rank},
                    training={"sequence_length": 256, "micro_batch": 4, "seed": seed},
                ),
                measurement=make_measurement(evaluations=evaluations, caveats=caveats),
            )


def make_lever(
    method: dict[str, Any],
    training: dict[str, Any] | None = None,
    *,
    ledger: int,
    predicted: int | None = None,
    flops: int = 1000,
    speed: float = 1000.0,
    caveats: tuple[Caveat, ...] = (),
) -> Record:
    """Return a run of one lever; bytes in MiB, and operations for its 100 tokens."""
    tokens = TokenCounts(raw=100, non_padding=100, loss_bearing=10, computed=128)
    return make_record(
        cell=make_cell(
            id=f"tiny/{method['name']}/b4-s256",
            method=method,
            training={"sequence_length": 256, "micro_batch": 4} | (training or {}),
            data={"source": "synthetic"},
            evaluation={},
        ),
        measurement=make_measurement(
            ledger=make_ledger(ledger * MIB),
            flops=FlopsReading(step_flops=flops * 100_000_000, tokens=tokens),
            steps=make_steps((speed,) * 8),
            evaluations=(),
            caveats=caveats,
        ),
        prediction=make_prediction((predicted or ledger) * MIB, platform=Platform(device="cpu")),
    )


def test_a_difference_beyond_its_interval_is_a_sentence() -> None:
    """Lost by 8, 9 and 10 of 20: residuals of two methods without and one with a step of 5 points a seed.

    The latter leaves ±10/3, the others ∓5/3 points: squares of 100/3 over 4 degrees of freedom, an error of
    √(2 · 25/3 / 3) = 2.357 points, times Dunnett's 3.31 for two comparisons.
    """
    text = render_study(
        [*make_study({"lora-r1": (8, 8, 8), "lora-r16": (16, 17, 18), "lora-r64": (17, 17, 17)})], "lora-r16"
    )
    expected = (
        "lora-r16 answers 85.0 % (72.6 to 97.4 %) of the questions after training. "
        "lora-r1 loses 45.0 points against it (−52.8 to −37.2, 3 seeds; ± 10.9 over items). "  # noqa: RUF001 - a minus sign
        "Not shown to differ: lora-r64. "
        "The intervals of the differences reach 7.8 points to each side (3 methods with 3 seeds, 4 degrees "
        "of freedom): smaller ones would not show."
    )
    assert expected in text
    assert "**tiny, b4-s256: accuracy on held-out**" in text
    line = next(line for line in text.splitlines() if line.startswith("| lora-r1 |"))
    assert line.startswith("| lora-r1 | 40.0 % | −45.0 points (−52.8 to −37.2, 3 seeds) | ")  # noqa: RUF001 - minus signs
    assert " | 25.0 % | 3 | 40.0, 40.0, 40.0 | ± 11.2 (n = 20) | ± 10.9 (n = 20) | " in line
    assert "is assumed to vary alike in all methods" in text
    assert "| tokens/s |" in text


def test_nothing_found_says_how_small_a_difference_would_show() -> None:
    """A study that finds no difference says how far its intervals reach, and never that there is none."""
    text = render_study([*make_study({"lora-r1": (16, 15, 18), "lora-r16": (16, 17, 18)})], "lora-r16")
    assert "No other method is shown to differ from it (1 comparison, 95 % over seeds" in text
    assert "reach 14.3 points to each side" in text  # 4.303 · s / √3, s of 0, -10 and 0 points


def test_one_seed_has_no_interval() -> None:
    """One run of each method is shown without an interval or a finding."""
    text = render_study([*make_study({"lora-r1": (8,), "lora-r16": (16,)})], "lora-r16")
    assert "−40.0 points (one seed, no interval)" in text  # noqa: RUF001 - a minus sign
    assert "No other method is shown to differ from it" in text
    assert "assumed" not in text


def test_speed_taken_beside_others_is_left_out() -> None:
    """The column goes, and a line says in how many runs."""
    text = render_study([*make_study({"lora-r16": (16, 17)}, caveats=(BUSY,))], "lora-r16")
    assert "tokens/s" not in text
    assert "as in 2 of 2 runs" in text


def test_an_unknown_reference_names_those_there_are() -> None:
    """The error lists the methods to choose from."""
    with pytest.raises(UsageError, match="no method lora-r2 there; choose one of lora-r1, lora-r16"):
        render_study([*make_study({"lora-r1": (8,), "lora-r16": (16,)})], "lora-r2")


FULL = {"kind": "full", "name": "full"}
LORA = {"kind": "lora", "name": "lora", "rank": 8}


def test_levers_are_set_against_the_plain_method() -> None:
    """Checkpointing halves the peak for a third more operations; 8-bit states cost nothing and save less."""
    checkpointing = {"gradient_checkpointing": "non-reentrant"}
    text = render_levers(
        [
            make_lever(FULL, ledger=1000),
            make_lever(FULL | {"name": "full-ckpt"}, checkpointing, ledger=500, predicted=510, flops=1333),
            make_lever(FULL | {"name": "full-8bit"}, {"optimizer": "adamw-8bit"}, ledger=700, speed=900),
            make_lever(FULL | {"name": "full-fp32"}, {"dtype": "fp32"}, ledger=2000),
            make_lever(FULL | {"name": "full-loop"}, {"optimizer": "adamw-loop"}, ledger=1001),
        ]
    )
    expected = (
        "full peaks at 1,000 MiB (live tensors). "
        "Less with full-ckpt (−50.0 %), full-8bit (−30.0 %). More with full-fp32 (+100.0 %). "  # noqa: RUF001
        "Within 1 %: full-loop. "
        "Of 4 changes predicted before the runs, the farthest from its reading is 1.0 points of the "
        "baseline's peak off."
    )
    assert expected in text
    line = next(line for line in text.splitlines() if line.startswith("| full-ckpt |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert "gradient checkpointing off → non-reentrant" == cells[1]
    assert ["500 MiB", "−50.0 %", "−49.0 %", "600 MiB", "0.0 %"] == cells[2:7]  # noqa: RUF001
    assert ["1.33 GFLOP", "+33.3 %", "1,000", "0.0 %"] == cells[7:]
    assert "| full-8bit | optimizer adamw-fused → adamw-8bit | 700 MiB |" in text
    assert "| −10.0 % |" in text  # noqa: RUF001 - the speed's change, a minus sign


def test_adapters_over_any_base_are_set_against_lora() -> None:
    """QLoRA's lever is its base; a busy machine takes the speed from its row, and a line counts the rows."""
    nf4 = {"kind": "qlora", "name": "qlora", "rank": 8, "double_quantisation": False}
    text = render_levers(
        [
            make_lever(FULL, ledger=1000),
            make_lever(LORA, ledger=600),
            make_lever(nf4, ledger=450, caveats=(BUSY,)),
        ]
    )
    assert "**Against tiny/full/b4-s256, cpu, 2 threads**" in text
    assert "| qlora | kind lora → qlora; quantisation nf4; double quantisation false | 450 MiB |" in text
    assert "1 of 3 rows" in text
    line = next(line for line in text.splitlines() if line.startswith("| qlora |"))
    assert line.endswith("| n/a | n/a |")


def test_on_a_gpu_what_has_to_fit_is_what_torch_reserved() -> None:
    """Beside the tensors' peak, 800 MiB allocated, stands the allocator's, 1,000 MiB reserved."""
    phases = tuple(
        phase.replace(cuda_reserved_peak_bytes=(phase.cuda_allocated_peak_bytes or 0) + 200 * MIB)
        for phase in make_phases(host_peak_bytes=None, cuda_allocated_peak_bytes=800 * MIB)
    )
    text = render_levers(
        [
            record.replace(
                cell=record.cell.model_copy(update={"device": "cuda"}),
                measurement=record.measurement.replace(phases=phases),
                prediction=None,
            )
            for record in (make_lever(FULL, ledger=700), make_lever(LORA, ledger=600))
        ]
    )
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    header, row = ([cell.strip() for cell in lines[index]] for index in (0, 2))
    shown = dict(zip(header, row, strict=False))
    assert ("0.78 GiB", "0.98 GiB") == (shown["Peak: allocated"], shown["Peak: reserved"])


def test_a_lever_that_did_not_end_well_says_how() -> None:
    """Its outcome stands where its peak would; without a plain method there is nothing to say."""
    failed = make_lever(FULL | {"name": "full-fp32"}, {"dtype": "fp32"}, ledger=1).replace(
        outcome="oom", measurement=make_measurement(ledger=None, steps=(), phases=())
    )
    text = render_levers([make_lever(FULL, ledger=1000), failed])
    assert "| full-fp32 | dtype bf16 → fp32 | oom | n/a |" in text
    with pytest.raises(UsageError, match="no good run of a method named full or lora"):
        render_levers([failed])


def test_hostile_names_are_inert() -> None:
    """What a stranger's record calls a method is text in every sentence and table."""
    hostile = "<script>alert(1)</script>|[x](http://x)"
    records = [*make_study({hostile: (8, 9, 10), "lora-r16": (16, 17, 19)})]
    changed = [
        record.replace(cell=record.cell.model_copy(update={"id": record.cell.id.replace("/b4", "/<b>4")}))
        for record in records
    ]
    lever = make_lever(FULL, ledger=1000)
    named = lever.cell.model_copy(update={"id": f"<i>tiny/{hostile}/b4"})
    text = render_study(changed, "lora-r16") + render_levers([lever.replace(cell=named)])
    assert "<" not in text
    assert "http://" not in text
    assert r"\|\[x\](http:\//x)" in text


def test_a_comparison_gathers_seeds() -> None:
    """Cells that differ in the seed alone are one row of every table, with its interval over seeds."""
    records = [*make_study({"lora-r1": (16, 17, 18), "lora-r16": (17, 17, 17)})]
    text = render_markdown(compare(records))
    assert "2 cells of example: 2 ok." in text
    assert "| 25.0 % → 85.0 % (72.6 to 97.4 % over 3 seeds, n = 20) |" in text
    after = "85.0 % (72.6 to 97.4 % over 3 seeds, ± 7.4 over items)"
    assert f"| 20 | 25.0 % ± 9.9 | {after} | 60.0 points (47.6 to 72.4) |" in text
    assert "| 3 (3 seeds) |" in text
    assert " seeds" not in render_markdown(compare(records[:1])).replace("training seeds", "")


def test_a_figure_shows_seeds_as_one_point() -> None:
    """Three seeds are one point with their interval, in a series without the seed; the caption says so."""
    records = [*make_study({"lora-r1": (16, 17, 18), "lora-r2": (17, 17, 17)})]
    comparison = compare(records)
    figures = {figure.name: figure for figure in comparison_figures(comparison)}
    first, second = accuracy_by_rank(comparison)
    assert (1, 3) == (first.value, first.seeds)
    assert pytest.approx(0.85) == first.accuracy
    assert pytest.approx((0.7258, 0.9742), abs=1e-4) == (first.low, first.high)
    assert (2, 0.85, 0.85, 0.85) == (second.value, second.accuracy, second.low, second.high)
    assert "tiny, lora, b4-s256" == first.series == second.series
    assert "with the 95 % interval over 3 training seeds" in figures["accuracy-by-rank"].caption


def test_pages_hold_studies_and_levers(tmp_path: Path) -> None:
    """Both kinds of block are filled from a folder of records, and are then in step."""
    for name, records in (
        ("rank", [*make_study({"lora-r1": (8, 9), "lora-r16": (16, 17)})]),
        ("levers", [make_lever(FULL, ledger=1000)]),
    ):
        (tmp_path / name).mkdir()
        for index, record in enumerate(records):
            (tmp_path / name / f"{index}.json").write_bytes(encode_record(record))
    page = tmp_path / "README.md"
    blocks = [
        f"<!-- bench:begin {kind} -->\n<!-- bench:end -->\n"
        for kind in ("study:lora-r16 rank", "levers levers")
    ]
    page.write_text("\n".join(blocks), encoding="utf-8")
    assert [page] == update(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "lora-r1 loses" in text or "No other method is shown to differ" in text
    assert "full peaks at 1,000 MiB" in text
    assert [] == check(tmp_path)
    page.write_text(blocks[0].replace("lora-r16", "lora-r2"), encoding="utf-8")
    assert ["README.md:1"] == [problem.partition(": ")[0] for problem in check(tmp_path)]
