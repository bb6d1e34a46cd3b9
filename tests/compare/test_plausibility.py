"""Lints: a record for each that trips it and nothing else, and what was really measured trips none."""

import math
from pathlib import Path
from typing import Any

import pytest

from bench.compare.comparison import compare
from bench.compare.plausibility import lint, with_findings
from bench.records.readings import GpuReading, checked
from bench.records.records import (
    DeviceFacts,
    FlopsReading,
    Measurement,
    ModelFacts,
    RankReading,
    Record,
    TokenCounts,
)
from bench.records.store import load_records
from bench.records.table import tidy
from bench.report.pages import render_markdown
from records_factory import (
    MIB,
    make_cell,
    make_ledger,
    make_measurement,
    make_phases,
    make_record,
    make_steps,
)

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
TOKENS = TokenCounts(raw=100, non_padding=100, loss_bearing=10, computed=128)


def cuda_facts(name: str = "NVIDIA GeForce RTX 4090") -> DeviceFacts:
    """Return a machine with one card."""
    return DeviceFacts(cpu_threads=2, cuda_available=True, cuda_name=name)


def on_cuda(method: dict[str, Any] | None = None, **measurement: object) -> Record:
    """Return a good record of a card: 1000 MiB allocated and reserved at most, 600 MiB in the ledger."""
    fields = {
        "device": cuda_facts(),
        "phases": make_phases(cuda_allocated_peak_bytes=1000 * MIB),
    } | measurement
    cell = make_cell(device="cuda", method=method or {"kind": "lora", "rank": 8})
    return make_record(cell=cell, measurement=make_measurement(**fields))


def model_of(parameters: int) -> ModelFacts:
    """Return a model of so many parameters, none of them trained."""
    return ModelFacts(
        source="random",
        parameters_total=parameters,
        parameters_trainable=0,
        weights_dtype="bf16",
        attention="sdpa",
        optimizer_class="AdamW",
    )


def changed_phase(name: str, **fields: object) -> Measurement:
    """Return the good measurement of a card with one phase replaced."""
    phases = make_phases(cuda_allocated_peak_bytes=1000 * MIB)
    return make_measurement(
        device=cuda_facts(),
        phases=tuple(phase.replace(**fields) if phase.name == name else phase for phase in phases),
    )


def watched(isolation: str = "process", power_limit_mw: int | None = None, **phase: object) -> GpuReading:
    """Return what NVML saw of the steady steps."""
    return checked(
        GpuReading,
        {
            "facts": {"uuid": "GPU-0", "power_limit_mw": power_limit_mw},
            "isolation": isolation,
            "isolation_reason": "Made up.",
            "interval_ns": 50_000_000,
            "phases": ({"name": "steady", "samples": 9} | phase,),
        },
    )


def codes(record: Record) -> list[str]:
    """Return the code of each finding."""
    return [finding.code for finding in lint(record)]


def sentence(record: Record, code: str) -> str:
    """Return the sentence of the one finding, which has this code."""
    (finding,) = lint(record)
    assert finding.code == code
    return finding.sentence


def test_what_was_really_measured_is_plausible() -> None:
    """None of the records that the pages are made from is flagged, nor are the made-up ones."""
    records = [
        record for name in ("cpu", "learns") for record in load_records(REFERENCE / f"smollm2_{name}").records
    ]
    assert len(records) == 15
    assert [] == [codes(record) for record in records if codes(record)]
    assert [[], []] == [codes(make_record()), codes(on_cuda())]


def test_less_reserved_than_allocated() -> None:
    """Two counters of torch contradict each other."""
    record = on_cuda(phases=changed_phase("warmup", cuda_reserved_peak_bytes=499 * MIB).phases)
    assert sentence(record, "reserved-below-allocated") == (
        "In warmup torch reserved 499.0 MiB at most, yet had 500.0 MiB allocated."
    )


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (watched(process_peak_bytes=499 * MIB, device_peak_bytes=900 * MIB), ["nvml-below-torch"]),
        (watched(process_peak_bytes=501 * MIB, device_peak_bytes=900 * MIB), []),
        (watched("device_delta", process_peak_bytes=0, device_peak_bytes=501 * MIB), []),
        (watched("unavailable", device_peak_bytes=499 * MIB), ["nvml-below-torch"]),
        (watched(samples=0, process_peak_bytes=1), []),
    ],
)
def test_less_seen_by_nvml_than_torch_held(gpu: GpuReading, expected: list[str]) -> None:
    """Held is what was reserved before the steady steps and in them, 500 MiB; a spike may be missed."""
    assert codes(on_cuda(gpu=gpu)) == expected


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ({"kind": "full"}, 500 * MIB),
        ({"kind": "lora", "rank": 8, "base": "int8"}, 1000 * MIB),
        ({"kind": "qlora", "rank": 8}, 2000 * MIB),
    ],
)
def test_less_than_the_weights(method: dict[str, Any], parameters: int) -> None:
    """Two bytes a weight, one, or half of one: 1000 MiB can just be true, more cannot."""
    ledger = make_ledger(peak_bytes=1000 * MIB)
    phases = changed_phase(
        "warmup", cuda_allocated_peak_bytes=1000 * MIB, cuda_reserved_peak_bytes=1000 * MIB
    ).phases
    fits, too_many = (
        on_cuda(method, ledger=ledger, phases=phases, model=model_of(count))
        for count in (parameters, parameters + 8)
    )
    assert codes(fits) == []
    assert codes(too_many) == ["peak-below-weights"] * 2


def test_a_run_that_ended_before_its_first_step_is_not_held_to_its_weights() -> None:
    """What ran out of memory while loading never held them."""
    phases = tuple(
        phase for phase in make_phases(host_peak_bytes=100 * MIB) if phase.name in {"start", "load"}
    )
    measurement = make_measurement(
        phases=phases, steps=(), ledger=None, evaluations=(), model=model_of(10**9)
    )
    assert codes(make_record(outcome="oom", measurement=measurement)) == []


def test_more_in_the_ledger_than_in_the_process() -> None:
    """On a CPU a twentieth may be pages that nobody has written; on a card nothing may."""
    assert codes(make_record(measurement=make_measurement(ledger=make_ledger(1050 * MIB)))) == []
    record = make_record(measurement=make_measurement(ledger=make_ledger(1100 * MIB)))
    assert sentence(record, "ledger-above-process") == (
        "The ledger counted 1.07 GiB of live tensors, and the process never held more than 1000.0 MiB."
    )
    assert codes(on_cuda(ledger=make_ledger(1000 * MIB + 1))) == ["ledger-above-process"]


@pytest.mark.parametrize(
    ("data", "batching", "tokens"),
    [
        ("task", "pad-to-longest", {"computed": 1025}),
        ("task", "pad-to-longest", {"non_padding": 129}),
        ("task", "pad-to-longest", {"loss_bearing": 101}),
        ("task", "pack", {"computed": 1023}),
        ("synthetic", "pad-to-longest", {"computed": 512}),
    ],
)
def test_tokens_that_are_not_the_batchs(data: str, batching: str, tokens: dict[str, int]) -> None:
    """Rows of one length fill their batch of 4 times 256; padded ones at most do."""
    source = {"source": "synthetic"} if data == "synthetic" else {"source": "task", "task": "longest-word"}
    cell = make_cell(
        data=source,
        evaluation={},
        training={"sequence_length": 256, "micro_batch": 4, "batching": batching},
    )
    steps = tuple(
        step.replace(tokens=TOKENS.replace(**tokens)) if step.index == 0 else step for step in make_steps()
    )
    found = lint(make_record(cell=cell, measurement=make_measurement(steps=steps)))
    assert [finding.code for finding in found] == ["tokens-not-the-batch"]
    assert "the batch has 1,024." in found[0].sentence


def test_steps_that_are_not_the_windows() -> None:
    """A step too few, or one out of order, in a run that ended well; one that did not may lack some."""
    few = make_measurement(steps=make_steps()[:-1])
    cell = make_cell()
    assert sentence(make_record(cell=cell, measurement=few), "steps-not-the-window") == (
        "The window is of 11 steps, and the record has 10."
    )
    assert codes(make_record(cell=cell, measurement=few, outcome="timeout")) == []
    turned = make_measurement(steps=tuple(reversed(make_steps())))
    assert codes(make_record(measurement=turned)) == ["steps-not-the-window"]


def test_parts_longer_than_the_whole() -> None:
    """Steps beyond their phase, phases beyond the run; of two ranks each step has the slower one's time."""
    slow = make_measurement(steps=make_steps([300.0] * 8))
    assert sentence(make_record(measurement=slow), "parts-longer-than-the-whole") == (
        "The steps of phase steady add up to 2.667 s, and the phase took 2.000 s."
    )
    assert sentence(make_record(total_ns=10_000_000_000), "parts-longer-than-the-whole") == (
        "The phases add up to 10.500 s, and the whole run took 10.000 s."
    )
    ranks = tuple(
        RankReading(
            rank=rank,
            ledger_peak_bytes=None,
            host_peak_bytes=None,
            cuda_allocated_peak_bytes=None,
            cuda_reserved_peak_bytes=None,
            step_time_ns=None,
        )
        for rank in range(2)
    )
    assert codes(make_record(measurement=slow.replace(ranks=ranks))) == []


def flops_of(per_second: float) -> FlopsReading:
    """Return a step's operations; the measured steps, of a tenth of a second, do so many a second."""
    return FlopsReading(step_flops=round(per_second / 10), tokens=TOKENS)


def test_faster_than_the_hardware() -> None:
    """An RTX 4090 does 165.2 TFLOP/s by its data sheet, a quarter more is let pass; int8 is twice as fast."""
    record = on_cuda(flops=flops_of(210e12))
    assert sentence(record, "above-roofline") == (
        "Step 3 would have computed 210.0 TFLOP/s, and NVIDIA GeForce RTX 4090 reaches 206.5 at most."
    )
    assert codes(on_cuda(flops=flops_of(200e12))) == []
    assert codes(on_cuda({"kind": "lora", "rank": 8, "base": "int8"}, flops=flops_of(210e12))) == []
    assert codes(on_cuda(flops=flops_of(9e15), device=cuda_facts("NVIDIA Unheard-of 1"))) == []
    cpu = make_record(measurement=make_measurement(flops=flops_of(17e12)))
    assert "a CPU with 2 threads reaches 16.4 at most." in sentence(cpu, "above-roofline")


def test_weights_read_faster_than_memory_delivers_them() -> None:
    """70 GiB every 0.1 s are 751 GB/s: an L4 has 300, an RTX 4090 has 1008; experts are let off."""
    size = dict.fromkeys(("cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes"), 80 * 1024 * MIB)
    parameters = 35 * 1024 * MIB
    held: dict[str, Any] = {
        "phases": changed_phase("warmup", **size).phases,
        "ledger": make_ledger(75 * 1024 * MIB),
        "model": model_of(parameters),
    }
    dense, sparse = (FlopsReading(step_flops=times * parameters * 128, tokens=TOKENS) for times in (2, 1))
    slow = on_cuda(**held, flops=dense, device=cuda_facts("NVIDIA L4"))
    assert codes(slow) == ["above-bandwidth"]
    assert codes(on_cuda(**held, flops=sparse, device=cuda_facts("NVIDIA L4"))) == []
    assert codes(on_cuda(**held, flops=dense)) == []


def test_more_energy_than_the_power_limit() -> None:
    """1000 J in the 2 s of the steady steps is 500 W; a tenth above the limit passes."""
    assert sentence(
        on_cuda(gpu=watched(power_limit_mw=450_000, energy_mj=1_000_000)), "energy-above-power-limit"
    ) == ("In steady the card would have drawn 500 W on average, and its limit is 450 W.")
    assert codes(on_cuda(gpu=watched(power_limit_mw=460_000, energy_mj=1_000_000))) == []


def test_a_loss_that_is_no_number() -> None:
    """Not a number and infinite are found; a rising loss is none of a lint's business."""
    steps = tuple(step.replace(loss=math.nan if step.index == 4 else math.inf) for step in make_steps())
    record = make_record(measurement=make_measurement(steps=(*make_steps()[:4], *steps[4:])))
    assert sentence(record, "loss-not-finite") == "The loss was not finite in 7 of 11 steps, first in step 4."
    rising = tuple(step.replace(loss=float(step.index)) for step in make_steps())
    assert codes(make_record(measurement=make_measurement(steps=rising))) == []


def test_a_flagged_record_is_shown_and_marked() -> None:
    """The number stays, the mark stands at it, the caveat below it, the code in the tidy table."""
    good, bad = (
        make_record(),
        make_record(run=2, measurement=make_measurement(ledger=make_ledger(1100 * MIB))),
    )
    page = render_markdown(compare([bad]))
    assert "1,100 MiB, implausible" in page
    assert "Run 2 is implausible: The ledger counted 1.07 GiB of live tensors" in page
    assert "implausible" not in render_markdown(compare([good]))
    column = with_findings(tidy([good, bad]), [good, bad])["implausible"]
    assert [True, False] == column.isna().tolist()
    assert column[1] == "ledger-above-process"
