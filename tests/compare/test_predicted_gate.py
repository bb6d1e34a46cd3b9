"""Two plans judged: what is exact, what the allocator's order moves, what is refused and by whom, and why."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.compare.predicted_gate import judge_plans, stored_plan
from bench.errors import UsageError
from bench.gate.stored import compare_results
from bench.records.predictions import CardFit, Plan, PlannedCell, Prediction, Refusal, plan_json
from bench.records.verdicts import MetricVerdict, Verdicts
from bench.report.gate import render_markdown, render_terminal
from bench.scenario.cell import Cell
from bench.scenario.gate import GateSpec, MetricGate
from bench.scenario.platform import Platform
from records_factory import MIB, make_cell, make_prediction

GIB = 1024 * MIB
A100 = Platform()
NOT_TRACED = Refusal(message="No.", platform=A100)


def told(requested: int = 500 * MIB, **changes: Any) -> Prediction:
    """Return a prediction with everything that is compared."""
    known: dict[str, Any] = {
        "requested_peak_bytes": requested,
        "phase_requested_bytes": {"load": 300 * MIB, "backward": requested},
        "phase_ends_reserved_bytes": {"load": 320 * MIB, "adapt": 320 * MIB},
        "op_count": 100,
        "step_flops": 1_000_000,
        "saved_for_backward_bytes": 40 * MIB,
        "trainable_parameters": {"model.layers.*.self_attn.q_proj": 1000},
        "traced_with": {"peft": "0.20.0"},
    }
    return make_prediction(600 * MIB, **known | changes)


def plan(*answers: Prediction | Refusal, cell: Cell | None = None, **changes: Any) -> Plan:
    """Return a plan of cells a, b and c."""
    cells = [
        PlannedCell(cell=cell or make_cell(id=f"{letter}/full/b1"), answer=answer)
        for letter, answer in zip("abc", answers, strict=False)
    ]
    return Plan(scenario="s", title="S", cards=(), cells=tuple(cells), **changes)


def judge(before: Plan, after: Plan, **metrics: MetricGate) -> Verdicts:
    """Judge the second against the first."""
    sides = stored_plan(Path("old.json")), stored_plan(Path("new.json"))
    return judge_plans(before, after, GateSpec(metrics=metrics), sides=sides)


def the(verdicts: Verdicts, metric: str, task: str | None = None) -> MetricVerdict:
    """Return the one verdict on a metric."""
    (one,) = (each for each in verdicts.judgements if (each.metric, each.task) == (metric, task))
    return one


def test_the_same_plan_passes_with_nothing_to_show() -> None:
    """Every figure is compared, none differs, and a page has no table."""
    verdicts = judge(plan(told()), plan(told()))
    assert ("two plans", "pass", 0) == (verdicts.design, verdicts.verdict, verdicts.exit_code())
    gated = {(one.metric, one.task) for one in verdicts.gated}
    assert {("cuda_requested_peak_bytes", None), ("cuda_requested_peak_bytes", "load")} < gated
    assert {("step_flops", None), ("parameters_trainable", None), ("cuda_reserved_peak_bytes", None)} < gated
    page = render_markdown(verdicts, most_bytes=10_000, title="t")
    assert "| Cell |" not in page
    assert "old.json (1 prediction) against new.json (1 prediction): both sides predicted" in page
    assert "calls a regression" not in page


@pytest.mark.parametrize(
    ("more", "verdict"), [(MIB - 1, "pass"), (MIB, "regression"), (-MIB, "pass"), (40 * MIB, "regression")]
)
def test_requested_memory_turns_at_a_mebibyte(more: int, verdict: str) -> None:
    """Overall and in its phase; what shrinks by as much is better."""
    verdicts = judge(plan(told()), plan(told(500 * MIB + more)))
    assert verdict == the(verdicts, "cuda_requested_peak_bytes").verdict == verdicts.verdict
    assert verdict == the(verdicts, "cuda_requested_peak_bytes", "backward").verdict
    assert (more == -MIB) is the(verdicts, "cuda_requested_peak_bytes").improved


def test_a_phase_can_grow_beneath_the_peak() -> None:
    """2 MiB more while loading, the peak as it was."""
    grown = told(phase_requested_bytes={"load": 302 * MIB, "backward": 500 * MIB})
    verdicts = judge(plan(told()), plan(grown))
    assert [("cuda_requested_peak_bytes", "load")] == [
        (one.metric, one.task) for one in verdicts.judgements if one.verdict == "regression"
    ]


def test_allocated_memory_has_room_for_the_allocator() -> None:
    """4 MiB, or a thousandth where that is more; a scenario's own tolerance comes before."""

    def verdict(before: int, after: int, **metrics: MetricGate) -> str:
        sides = [plan(told(allocated_peak_bytes=size, reserved_peak_bytes=None)) for size in (before, after)]
        return the(judge(sides[0], sides[1], **metrics), "cuda_allocated_peak_bytes").verdict

    assert "pass" == verdict(600 * MIB, 604 * MIB - 1)
    assert "regression" == verdict(600 * MIB, 604 * MIB)
    assert "pass" == verdict(60 * GIB, 60 * GIB + 60 * MIB)
    assert "regression" == verdict(60 * GIB, 60 * GIB + 62 * MIB)
    assert "regression" == verdict(600 * MIB, 601 * MIB, cuda_allocated_peak_bytes=MetricGate(tolerance=1))


@pytest.mark.parametrize(
    ("peak", "low", "high", "verdict", "said"),
    [
        (680, 660, 700, "pass", "allocator order: +30.00 MiB"),
        (690, 671, 700, "regression", "the bands do not meet"),
        (610, 600, 629, "better", "the bands do not meet"),
    ],
)
def test_reserved_memory_is_judged_where_the_bands_do_not_meet(
    peak: int, low: int, high: int, verdict: str, said: str
) -> None:
    """The base reserves from 630 to 670 MiB."""

    def reserving(peak: int, low: int, high: int) -> Plan:
        names = ("reserved_peak_bytes", "reserved_low_bytes", "reserved_high_bytes")
        return plan(told(**{name: size * MIB for name, size in zip(names, (peak, low, high), strict=True)}))

    found = the(judge(reserving(650, 630, 670), reserving(peak, low, high)), "cuda_reserved_peak_bytes")
    assert verdict == ("better" if found.improved else found.verdict)
    assert said in found.reason


def test_what_stays_reserved_after_a_phase_is_shown_and_not_gated() -> None:
    """The cache is not emptied any more after adapting: it passes, and a page says so."""
    kept = told(phase_ends_reserved_bytes={"load": 320 * MIB, "adapt": 1140 * MIB})
    verdicts = judge(plan(told()), plan(kept))
    assert "pass" == verdicts.verdict
    shown = the(verdicts, "cuda_reserved_peak_bytes", "as adapt ends")
    assert (False, 320.0 * MIB, 1140.0 * MIB) == (shown.gated, shown.baseline, shown.candidate)
    page = render_markdown(verdicts, most_bytes=10_000, title="t")
    assert "reserved as phases of the first step end: adapt +820.00 MiB" in page


def test_a_change_is_explained() -> None:
    """What is trained now, what grew at the peak, where it moved, and on which card it no longer fits."""
    cell = make_cell(id="a/full/b1")
    more = told(
        100 * GIB,
        trainable_parameters={"model.layers.*.self_attn.q_proj": 1000, "model.layers.*.mlp.experts": 9000},
        categories_at_peak_bytes={"weights": 300 * MIB, "activations": 90 * GIB, "optimizer_state": 3 * GIB},
        peak_op="aten::bmm",
    )
    fits = [
        CardFit(card="a100", answer=answer, needed_bytes=1, usable_bytes=2)
        for answer in ("fits", "does not fit")
    ]
    before, after = (
        plan(answer).model_copy(update={"cells": (PlannedCell(cell=cell, answer=answer, verdicts=(fit,)),)})
        for answer, fit in zip((told(), more), fits, strict=True)
    )
    verdicts = judge(before, after)
    reason = the(verdicts, "cuda_requested_peak_bytes").reason
    assert "layers.*.mlp.experts are trained now (+9,000 parameters)" in reason
    assert "at the peak activations +90.00 GiB, optimizer state +3.00 GiB, logits -300.00 MiB" in reason
    assert "the peak moved from aten::mm in lm_head (backward) to aten::bmm in lm_head (backward)" in reason
    assert reason.startswith("+99.51 GiB; ")
    assert "; by phase backward +99.51 GiB; a100: fits, now does not fit" in reason
    assert "regression" == the(verdicts, "parameters_trainable").verdict
    assert the(verdicts, "cuda_requested_peak_bytes") == verdicts.judgements[0]


def test_a_page_and_a_terminal_name_each_cell_once_above_what_changed_in_it() -> None:
    """The peak comes first, with its phases; a phase has a line of its own where only it became worse."""
    grown = told(560 * MIB, trainable_parameters={"model.layers.*.self_attn.q_proj": 2000})
    loads = told(phase_requested_bytes={"load": 302 * MIB, "backward": 500 * MIB})
    verdicts = judge(plan(told(), told(), told()), plan(grown, told(), loads))
    page = render_markdown(verdicts, most_bytes=10_000, title="t")
    assert "| Cell |" not in page
    assert ["a/full/b1", "c/full/b1"] == re.findall(r"^- \*\*(.+)\*\*$", page, re.MULTILINE)
    peak, trained, load = re.findall(r"^  - (.+)$", page, re.MULTILINE)
    assert peak.startswith("REGRESSION cuda_requested_peak_bytes 500.00 MiB → 560.00 MiB (")
    assert "): +60.00 MiB; " in peak
    assert "by phase backward +60.00 MiB" in peak
    assert trained.startswith("REGRESSION parameters_trainable 1,000 → 2,000 (")
    assert load.startswith("REGRESSION cuda_requested_peak_bytes (load) 300.00 MiB → 302.00 MiB (")
    short = render_markdown(verdicts, most_bytes=len(page.encode()) - 1, title="t")
    assert ("**a/full/b1**" in short, "(load)" in short) == (True, False)
    assert "Not shown: " in short
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_terminal(verdicts, "t"))
    shown = console.export_text().splitlines()
    assert [80, 1] == [max(80, *map(len, shown)), [line.strip() for line in shown].count("a/full/b1")]
    assert any("REGRESSION" in line and "parameters_trainable 1,000 → 2,000 (" in line for line in shown)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (told(), Refusal(message="No.", by="library", platform=A100), ("regression", True, False)),
        (told(), NOT_TRACED, ("inconclusive", True, False)),
        (Refusal(message="No.", by="library", platform=A100), told(), ("pass", True, True)),
        (NOT_TRACED, told(), ("pass", False, False)),
        (
            NOT_TRACED,
            NOT_TRACED,
            ("not comparable", False, False),
        ),
    ],
)
def test_a_refusal_counts_by_whose_it_is(
    before: Prediction | Refusal, after: Prediction | Refusal, expected: tuple[str, bool, bool]
) -> None:
    """What a library refuses is its own; what cannot be traced says nothing of it."""
    found = the(judge(plan(told(), before), plan(told(), after)), "outcome")
    assert expected == (found.verdict, found.gated, found.improved)
    assert found.reason.endswith("No.")


def test_cells_are_paired_by_what_they_were_predicted_for() -> None:
    """One cell on two cards is two; one that only a side has, or that is described otherwise, is no pass."""
    cell = make_cell(id="a/full/b1")
    hopper = told(platform=Platform(capability=(9, 0)))
    both = plan(told(), hopper, cell=cell)
    verdicts = judge(both, both)
    assert {"a/full/b1 on sm_80", "a/full/b1 on sm_90"} == {one.cell for one in verdicts.judgements}
    assert "inconclusive" == judge(both, plan(told(), cell=cell)).verdict
    assert "pass" == judge(plan(told(), cell=cell), both).verdict
    changed = cell.model_copy(update={"training": cell.training.model_copy(update={"seed": 7})})
    other = judge(plan(told(), cell=cell), plan(told(), cell=changed))
    assert ("inconclusive", "not comparable") == (other.verdict, the(other, "outcome").verdict)


def test_settings_of_the_allocator_have_to_be_the_same() -> None:
    """What is reserved depends on them."""
    with pytest.raises(UsageError, match="different allocator settings"):
        judge(plan(told()), plan(told(), allocator="expandable_segments:True"))


def test_versions_and_blind_spots_are_told() -> None:
    """What differs, and what a prediction of these cells cannot see."""
    newer = told(traced_with={"peft": "0.21.2"})
    verdicts = judge(plan(told()), plan(newer))
    assert verdicts.differences == ("versions.peft: 0.20.0 before, 0.21.2 now",)
    spots = [caveat.message for caveat in verdicts.caveats if caveat.code == "blind-spot"]
    assert 2 == len(spots)
    quantised = make_cell(id="a/qlora/b1", method={"kind": "qlora"})
    more = judge(plan(told(), cell=quantised), plan(told(), cell=quantised)).caveats
    assert any("4-bit weights is bench's own" in caveat.message for caveat in more)


def test_compare_takes_two_plans_and_not_a_plan_and_results(tmp_path: Path) -> None:
    """As bench compare is given them."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(plan_json(plan(told())))
    new.write_text(plan_json(plan(told(502 * MIB))))
    assert 1 == compare_results(str(old), str(new), GateSpec()).exit_code()
    assert 0 == compare_results(str(new), str(old), GateSpec()).exit_code()
    with pytest.raises(UsageError, match=r"old.json is a plan, and .* is none"):
        compare_results(str(tmp_path), str(old), GateSpec())
