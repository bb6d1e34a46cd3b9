"""NVML over the runs of a cell, and two methods set side by side: the same instrument or none."""

from bench.compare.comparison import compare
from bench.compare.measured import Measured
from bench.compare.readings import gpu_seen
from gpu_factory import make_gpu, make_gpu_record
from records_factory import MIB, make_record


def compared(full_by: str, lora_by: str) -> Measured:
    """Return LoRA's row beside full fine-tuning's."""
    full = make_gpu_record(make_gpu(4000 * MIB, isolation=full_by), method="full")
    return compare([full, make_gpu_record(make_gpu(3000 * MIB, isolation=lora_by))]).rows[1]


def test_a_saving_is_stated_by_the_same_instrument() -> None:
    """Both of the process."""
    row = compared("process", "process")
    peak = row.peak("nvml_process")
    assert peak is not None
    assert row.against_full is not None
    assert (3000 * MIB, "first_backward") == (peak.peak_bytes, peak.phase)
    assert -0.25 == row.against_full.memory_share("nvml_process")


def test_process_and_device_are_never_set_against_each_other() -> None:
    """No saving, and a caveat that says why."""
    row = compared("process", "device_delta")
    assert row.peak("nvml_device_delta") is not None
    assert row.against_full is not None
    assert (None, None) == (row.against_full.memory_share("nvml_device_delta"), row.peak("nvml_process"))
    assert (
        "NVML's peak is of the device less what was on it before here and of the process for full "
        "fine-tuning: not compared."
    ) in {caveat.message for caveat in row.caveats if caveat.code == "nvml-instruments-differ"}
    assert "nvml-instruments-differ" not in {caveat.code for caveat in compared("process", "process").caveats}


def test_runs_together_have_their_median_and_both_ends() -> None:
    """The overhead's median, the widest clock, the hottest of training, and every event."""
    runs = [
        make_gpu_record(make_gpu(non_torch_bytes=size, steady={"event_reasons": reasons}), run=run)
        for run, (size, reasons) in enumerate([(100, 0x04), (300, 0x40), (200, 1)], start=1)
    ]
    seen = gpu_seen(runs)
    assert seen is not None
    assert (200, 5.0, (("process", "It was process."),)) == (
        seen.non_torch_bytes,
        seen.energy_per_token_mj,
        seen.isolations,
    )
    assert (1500, 1800, 70) == (seen.sm_clock_min_mhz, seen.sm_clock_max_mhz, seen.temperature_max_c)
    assert ("power limit", "thermal slowdown by the hardware") == seen.events
    (row,) = compare(runs).rows
    assert row.throughput is not None
    assert row.throughput.throttled


def test_unwatched_runs_have_nothing() -> None:
    """None, and speeds that are not throttled."""
    assert gpu_seen([make_record()]) is None
