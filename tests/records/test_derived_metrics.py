"""Metrics of one record that NVML read: of what, of which phases, and from how long on."""

from typing import Any

import pytest

from bench.records.derived_metrics import read_metrics, throttle_reasons
from gpu_factory import make_gpu, make_gpu_record, make_phase
from records_factory import MIB, SECOND_NS, make_measurement, make_phases, make_record


@pytest.mark.parametrize(
    ("isolation", "process", "device"),
    [
        ("process", 2000 * MIB, None),
        ("device_delta", None, 2000 * MIB),
        ("unavailable", None, None),
    ],
)
def test_a_peak_belongs_to_the_one_reading_that_could_be_told_apart(
    isolation: str, process: int | None, device: int | None
) -> None:
    """The idle device's bytes are taken off, evaluation is left out, and the other metric stays empty."""
    metrics = read_metrics(make_gpu_record(make_gpu(isolation=isolation)))
    assert (process, device) == (
        metrics["nvml_process_peak_bytes"],
        metrics["nvml_device_delta_peak_bytes"],
    )


def test_a_phase_that_was_sampled_and_told_nothing_leaves_no_peak() -> None:
    """The peak could have been there."""
    gpu = make_gpu(phases=(make_phase("load", 5), make_phase("steady", None)))
    assert read_metrics(make_gpu_record(gpu))["nvml_process_peak_bytes"] is None


@pytest.mark.parametrize(
    ("steady", "expected"),
    [
        ({}, 5.0),
        ({"energy_mj": 5000, "energy_time_ns": 5 * SECOND_NS // 2}, 5.0),
        ({"energy_time_ns": 2 * SECOND_NS - 1}, None),
        ({"samples": 19}, None),
        ({"energy_mj": None}, None),
    ],
)
def test_energy_needs_two_seconds_of_the_counter(steady: dict[str, Any], expected: float | None) -> None:
    """Millijoules a token over what the phase took, or none."""
    assert expected == read_metrics(make_gpu_record(make_gpu(steady=steady)))["energy_per_token_mj"]


def test_only_what_invalidates_counts_as_throttled_and_only_in_the_measured_steps() -> None:
    """The power limit does not, nor does heat while loading."""
    seen = make_gpu(steady={"event_reasons": 0x44})
    hot_before = make_gpu(phases=(make_phase("load", 5, event_reasons=0x40), make_phase("steady", 5)))
    assert [0x40, 0] == [throttle_reasons(make_gpu_record(gpu)) for gpu in (seen, hot_before)]


def test_a_peak_is_the_highest_of_the_training_phases() -> None:
    """Of each instrument; the evaluation, which takes twice as much, is no part of a training."""
    phases = make_phases(host_peak_bytes=1000 * MIB, cuda_allocated_peak_bytes=800 * MIB)
    metrics = read_metrics(make_record(measurement=make_measurement(phases=phases)))
    names = ("host_peak_bytes", "cuda_allocated_peak_bytes")
    assert [1000 * MIB, 800 * MIB] == [metrics[name] for name in names]


def test_without_nvml_nothing_is_stated() -> None:
    """None, never nought."""
    metrics = read_metrics(make_record())
    names = (
        "nvml_process_peak_bytes",
        "nvml_device_delta_peak_bytes",
        "non_torch_bytes",
        "energy_per_token_mj",
    )
    assert {None} == {metrics[name] for name in names}
