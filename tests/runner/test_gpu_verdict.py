"""What others did on the GPU, told from what the worker explains; pure arithmetic on what was seen."""

from dataclasses import replace
from typing import Any

import pytest

from bench.probes.nvml import GpuSample
from bench.runner import gpu_verdict
from bench.runner.gpu_samples import Timeline
from bench.runner.gpu_verdict import Owners, Seen
from gpu_factory import FACTS, ScriptedGpu, make_sample
from records_factory import MIB

WORKER = 4_000_001
GIB = 1024 * MIB
Stretches = dict[str, GpuSample]


def seen(stretches: Stretches, **changes: Any) -> Seen:
    """Return what was seen with one sample in each stretch, of a worker alone on a device idle at 300 MiB."""
    owners = Owners(WORKER)
    timeline = Timeline(owners.own_bytes)
    for at_ns, (name, sample) in enumerate(stretches.items()):
        timeline.mark(name, at_ns * 10, at_ns * 10 + 5)
        timeline.take(replace(sample, at_ns=at_ns * 10), at_ns * 10 + 1)
        owners.look(sample)
    timeline.close()
    fields: dict[str, Any] = {
        "isolation": "device_delta",
        "isolation_reason": "So.",
        "timeline": timeline,
        "owners": owners,
        "idle_device_bytes": 300 * MIB,
        "background": (),
        "reserved_peaks": {},
        "reserved_at_rest": None,
        "excess_bytes": None,
        "pages_state": False,
    }
    return Seen(**(fields | changes))


def device(used_mib: int, **readings: Any) -> GpuSample:
    """Return a sample in which processes tell no bytes."""
    return make_sample({WORKER: None}, device_used_bytes=used_mib * MIB, **readings)


@pytest.mark.parametrize(
    ("steady_mib", "quiescent_mib", "pages_state", "unexplained_mib", "spoilt"),
    [
        (300 + 500 + 4000, 300 + 500 + 3000, False, 0, False),  # as reserved, and the context of the start
        (300 + 700 + 4000, 300 + 700 + 3000, False, 0, False),  # kernels loaded since the start
        (300 + 500 + 4400, 300 + 500 + 3000, False, 400, True),  # somebody came and went
        (300 + 500 + 4100, 300 + 500 + 3000, False, 100, False),  # too little to be sure
        (
            300 + 500 + 9000,
            300 + 500 + 8000,
            False,
            3976,
            True,
        ),  # somebody came and stayed: 1 GiB may be kernels
        (300 + 500 + 9000, 300 + 500 + 8000, True, None, False),  # paged state is outside torch's count
    ],
)
def test_growth_of_the_device_that_torch_and_its_start_do_not_explain(
    steady_mib: int,
    quiescent_mib: int,
    pages_state: bool,  # noqa: FBT001 - a table
    unexplained_mib: int | None,
    spoilt: bool,  # noqa: FBT001 - a table
) -> None:
    """Reserved bytes, the overhead at the start, and kernels loaded later are explained; more is others'."""
    found = seen(
        {"idle": device(800), "steady": device(steady_mib), "quiescent": device(quiescent_mib)},
        reserved_peaks={"steady": 4000 * MIB},
        reserved_at_rest=3000 * MIB,
        pages_state=pages_state,
    )
    unexplained = gpu_verdict.unexplained_bytes(found)
    assert unexplained_mib == (None if unexplained is None else unexplained // MIB)
    assert spoilt == (gpu_verdict.contamination(found) is not None)
    assert quiescent_mib - 3300 == (gpu_verdict.non_torch_bytes(found) or 0) // MIB


def test_in_process_mode_what_the_device_holds_besides_is_others() -> None:
    """The watch has found it in several samples on end; the sentence says how much."""
    found = seen({}, isolation="process", excess_bytes=3 * GIB)
    assert (
        "The GPU held 3.0 GiB more than this run and what was there before it explain, so this run does not "
        "count; keep the GPU to one job."
    ) == gpu_verdict.contamination(found)
    assert gpu_verdict.contamination(seen({}, isolation="process", excess_bytes=200 * MIB)) is None


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ({WORKER: 5}, None),
        ({WORKER: 5, 7: 2 * GIB}, "Process 7 came onto the GPU during the run with up to 2.0 GiB, so"),
        ({WORKER: 5, 7: None, 9: None}, "2 processes (7, 9) came onto the GPU during the run, so"),
        ({WORKER: 5} | dict.fromkeys(range(10, 17), 1), "7 processes (10, 11, 12, 13, 14, …) came"),
        ({7: None}, None),
        ({7: None, 9: None}, "Of 2 processes that came onto the GPU one is the worker, so"),
    ],
)
def test_who_came_is_named_and_the_worker_itself_is_not_accused(
    shares: dict[int, int | None], sentence: str | None
) -> None:
    """A worker that goes by an unknown number may be one of the strangers."""
    said = gpu_verdict.contamination(seen({"steady": make_sample(shares)}))
    assert (said is None) if sentence is None else (said or "").startswith(sentence)


def test_nobody_is_accused_where_not_even_the_worker_can_be_seen() -> None:
    """It may be another GPU altogether."""
    found = seen({"steady": make_sample({7: GIB, 9: GIB})}, isolation="unavailable")
    assert gpu_verdict.contamination(found) is None


@pytest.mark.parametrize(
    ("earlier", "later", "said"),
    [
        (device(300), device(300, utilisation_percent=3), None),
        (device(300), device(310), None),
        (None, None, None),
        (device(300), device(300, utilisation_percent=97), "it was 97 % busy"),
        (device(9000), device(9000), "8.8 GiB of its memory were in use"),
        (device(300), device(420), "its memory in use kept changing (by 120 MiB)"),
    ],
)
def test_what_makes_a_gpu_busy(earlier: GpuSample | None, later: GpuSample | None, said: str | None) -> None:
    """Use by a tenth of the time or of the memory, or memory that moves; a display's is none of these."""
    assert said == gpu_verdict.why_busy(earlier, later, FACTS)


def test_caveats_say_what_happened_in_the_measured_steps() -> None:
    """Heat by its name, the limit in watts, who was there before, and what NVML did not tell."""
    gpu = ScriptedGpu(lambda _: {})
    gpu.problems = ("device memory: N/A", "SM clock: N/A")
    stretches = {"load": make_sample(None, event_reasons=0x08), "steady": device(1, event_reasons=0x44)}
    found = seen(stretches, background={7, 8})
    assert {
        "throttled": "Throttled during the measured steps (thermal slowdown by the hardware): the speed is "
        "not the card's own.",
        "power-capped": "The card was held to its power limit of 350 W during the measured steps.",
        "gpu-shared": "2 other processes were on the GPU before the run, with 300 MiB in use.",
        "nvml-gaps": "NVML reported no memory in 1 sample (device memory: N/A): its peaks may be too low.",
    } == {caveat.code: caveat.message for caveat in gpu_verdict.caveats(found, gpu, silent=False)}
    lost = seen({}, isolation="unavailable")
    assert {
        "nvml-gaps": "NVML stopped answering (device memory: N/A): its peaks may be too low.",
        "nvml-unattributed": "No peak by NVML: So.",
    } == {caveat.code: caveat.message for caveat in gpu_verdict.caveats(lost, gpu, silent=True)}


def test_less_than_torch_holds_is_no_overhead() -> None:
    """A reading that cannot be right states nothing."""
    found = seen({"quiescent": device(3000)}, reserved_at_rest=3000 * MIB)
    assert gpu_verdict.non_torch_bytes(found) is None
