"""Samples put to phases by their time, whenever the marks arrive."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.probes.nvml import GpuSample
from bench.runner.gpu_samples import MOST_WAITING, Timeline
from gpu_factory import make_sample

Marks = list[tuple[str, int, int | None]]
Taken = tuple[GpuSample, int]
PHASES: Marks = [("idle", 10, 20), ("load", 30, None), ("warmup", 50, None), ("load", 70, None)]


def taken(at_ns: int, *, lasts_ns: int = 1, **readings: int) -> Taken:
    """Return a sample taken at a time; its device bytes are that time unless told."""
    readings = {"device_used_bytes": at_ns} | readings
    return make_sample({}, at_ns=at_ns, **readings), at_ns + lasts_ns


def device_bytes(sample: GpuSample) -> int | None:
    """Take the device's bytes for the worker's."""
    return sample.device_used_bytes


def played(events: list[Taken | tuple[str, int, int | None]]) -> Timeline:
    """Return a timeline that was told these, in this order of arrival."""
    timeline = Timeline(device_bytes)
    for event in events:
        match event:
            case (GpuSample(), _):
                timeline.take(*event)
            case _:
                timeline.mark(*event)
    timeline.close()
    return timeline


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), unique=True, max_size=40), st.data())
def test_a_sample_belongs_to_the_phase_of_its_time_however_late_the_mark(
    times: list[int], data: st.DataObject
) -> None:
    """Any arrival that keeps each side's own order gives the same peaks and counts."""
    samples: list[Taken | tuple[str, int, int | None]] = [taken(at) for at in sorted(times)]
    late: list[Taken | tuple[str, int, int | None]] = list(samples)
    place = 0
    for mark in PHASES:
        first = next((i for i in range(place, len(late)) if _at(late[i]) >= mark[1]), len(late))
        place = data.draw(st.integers(first, len(late)))
        late.insert(place, mark)
        place += 1
    found = played(late)
    inside = {
        "idle": [at for at in times if 10 <= at and at + 1 <= 20],
        "load": [at for at in times if (30 <= at and at + 1 <= 50) or at >= 70],
        "warmup": [at for at in times if 50 <= at and at + 1 <= 70],
    }
    for name, ats in inside.items():
        assert (len(ats), max(ats, default=None)) == (
            found[name].samples,
            found[name].extremes.get("process_peak_bytes"),
        )
    assert ("idle", "load", "warmup") == tuple(found.stretches)


def _at(event: Taken | tuple[str, int, int | None]) -> int:
    return event[0].at_ns if isinstance(event[0], GpuSample) else event[1]


def test_a_sample_that_straddles_a_mark_belongs_to_neither_side() -> None:
    """Which of the two it saw cannot be told."""
    found = played([("load", 0, None), taken(8, lasts_ns=5), ("warmup", 10, None), taken(20)])
    assert [0, 1] == [found["load"].samples, found["warmup"].samples]


def test_memory_is_bounded_and_a_long_phase_is_summed_as_it_goes() -> None:
    """Of ten thousand samples a few hundred wait."""
    timeline = Timeline(device_bytes)
    timeline.mark("steady", 0)
    for at in range(10_000):
        timeline.take(*taken(at))
    assert MOST_WAITING == len(timeline._waiting)
    timeline.close()
    assert (10_000, 9_999) == (timeline["steady"].samples, timeline["steady"].extremes["device_peak_bytes"])


def test_energy_is_the_counters_difference_and_pauses_are_left_out() -> None:
    """A phase that comes twice has the sum of both; a counter that fell back adds nothing."""
    found = played(
        [
            ("load", 0, None),
            taken(1, energy_mj=100),
            taken(11, energy_mj=130),
            ("warmup", 20, None),
            taken(21, energy_mj=500),
            taken(25, energy_mj=400),
            ("load", 30, None),
            taken(31, energy_mj=1000),
            taken(36, energy_mj=1007),
        ]
    )
    load = found["load"].as_phase(with_own_bytes=True)
    warmup = found["warmup"].as_phase(with_own_bytes=True)
    assert [(37, 15), (None, None)] == [(one.energy_mj, one.energy_time_ns) for one in (load, warmup)]


def test_energy_counts_between_the_samples_that_have_it() -> None:
    """Samples of memory only come in between, before and after."""
    found = played(
        [
            ("steady", 0, None),
            taken(1),
            taken(10, energy_mj=100),
            taken(15),
            taken(20, energy_mj=160),
            taken(25),
        ]
    )
    phase = found["steady"].as_phase(with_own_bytes=True)
    assert (5, 60, 10) == (phase.samples, phase.energy_mj, phase.energy_time_ns)


def test_what_the_samples_amount_to() -> None:
    """Means, extremes, and reasons or-ed; own bytes only where they are worth something."""
    found = played(
        [
            ("steady", 0, None),
            taken(1, utilisation_percent=50, power_mw=100, sm_clock_mhz=1400, event_reasons=1),
            taken(2, utilisation_percent=100, temperature_c=70, sm_clock_mhz=1800, event_reasons=4),
            taken(3, temperature_c=60),
        ]
    )
    phase = found["steady"].as_phase(with_own_bytes=False)
    assert (3, None, 3, 75.0, 100.0) == (
        phase.samples,
        phase.process_peak_bytes,
        phase.device_peak_bytes,
        phase.utilisation_mean_percent,
        phase.power_mean_mw,
    )
    assert (1400, 1800, 70, 5) == (
        phase.sm_clock_min_mhz,
        phase.sm_clock_max_mhz,
        phase.temperature_max_c,
        phase.event_reasons,
    )
