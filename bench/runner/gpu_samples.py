"""Samples of a GPU put to the phase of the worker they were taken in, by time, and summed up at once."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.probes.nvml import GpuSample
from bench.records.readings import GpuPhase, checked

MOST_WAITING = 256  # samples kept, however long a run is
_EXTREMES: dict[str, tuple[Callable[[int, int], int], str]] = {
    "process_peak_bytes": (max, "own_bytes"),
    "device_peak_bytes": (max, "device_used_bytes"),
    "sm_clock_min_mhz": (min, "sm_clock_mhz"),
    "sm_clock_max_mhz": (max, "sm_clock_mhz"),
    "temperature_max_c": (max, "temperature_c"),
}
_MEANS = {"utilisation_mean_percent": "utilisation_percent", "power_mean_mw": "power_mw"}
"""The fields of a phase that are the extreme, or the mean, of one of a sample's readings."""


@dataclass(kw_only=True)
class Stretch:
    """What the samples of one phase, or of an instant that the worker stood still, amount to."""

    name: str
    samples: int = 0
    without_own: int = 0
    without_device: int = 0
    last: GpuSample | None = None
    extremes: dict[str, int] = field(default_factory=dict)
    event_reasons: int = 0
    energy_mj: int | None = None
    sampled_ns: int = 0
    _totals: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _energy_first: GpuSample | None = None
    _energy_last: GpuSample | None = None

    def add(self, sample: GpuSample, own_bytes: int | None) -> None:
        """Take one more sample; ``own_bytes`` is what the worker and its children have in it."""
        self.samples += 1
        self.without_own += own_bytes is None
        self.without_device += sample.device_used_bytes is None
        self.event_reasons |= sample.event_reasons or 0
        self.last = sample
        readings: dict[str, int | None] = {**vars(sample), "own_bytes": own_bytes}
        for name, (choose, reading) in _EXTREMES.items():
            if (value := readings[reading]) is not None:
                self.extremes[name] = choose(value, self.extremes.get(name, value))
        for name, reading in _MEANS.items():
            if (value := readings[reading]) is not None:
                self._totals[name] += value
                self._counts[name] += 1
        if sample.energy_mj is not None:
            self._energy_first, self._energy_last = self._energy_first or sample, sample

    def pause(self) -> None:
        """Close what was sampled without a break; the same phase can begin again later."""
        first, last = self._energy_first, self._energy_last
        self._energy_first = self._energy_last = None
        if first is None or last is None or first.energy_mj is None or last.energy_mj is None:
            return
        if last.energy_mj >= first.energy_mj:  # a reloaded driver starts from zero
            self.energy_mj = (self.energy_mj or 0) + last.energy_mj - first.energy_mj
            self.sampled_ns += last.at_ns - first.at_ns

    def as_phase(self, *, with_own_bytes: bool) -> GpuPhase:
        """Return it as stored; the worker's own bytes only where they were found to follow it."""
        fields: dict[str, object] = {
            "name": self.name,
            "samples": self.samples,
            **self.extremes,
            **{name: self._totals[name] / count for name, count in self._counts.items()},
            "energy_mj": self.energy_mj,
            "energy_time_ns": None if self.energy_mj is None else self.sampled_ns,
            "event_reasons": self.event_reasons,
        }
        return checked(GpuPhase, fields if with_own_bytes else fields | {"process_peak_bytes": None})


class Timeline:
    """Puts samples to the stretch between two marks that they lie in wholly; one that straddles has none.

    A mark can arrive after samples that were taken past it, so the latest samples wait until their phase is
    certain. Times are on the clock of ``time.monotonic_ns``.
    """

    def __init__(self, own_bytes: Callable[[GpuSample], int | None]) -> None:
        """Ask ``own_bytes`` for the worker's share of a sample once its phase is certain."""
        self._own_bytes = own_bytes
        self.stretches: dict[str, Stretch] = {}
        self._waiting: deque[tuple[GpuSample, int]] = deque()
        self._current: Stretch | None = None
        self._starts_ns = 0
        self._ends_ns: int | None = None

    def take(self, sample: GpuSample, ended_ns: int) -> None:
        """Take a sample and when NVML had answered; they come in the order of time."""
        self._waiting.append((sample, ended_ns))
        if len(self._waiting) > MOST_WAITING:
            self._put(self._ends_ns)

    def mark(self, name: str, at_ns: int, ends_ns: int | None = None) -> None:
        """Begin a stretch; it lasts until ``ends_ns`` or the next mark. Marks come in the order of time."""
        self._put_all_until(at_ns)
        self._current = self.stretches.setdefault(name, Stretch(name=name))
        self._starts_ns, self._ends_ns = at_ns, ends_ns

    def close(self) -> None:
        """Take nothing more; what waits belongs to the last stretch."""
        self._put_all_until(None)
        self._current = None

    def __getitem__(self, name: str) -> Stretch:
        """Return one stretch, empty if it was never marked."""
        return self.stretches.get(name) or Stretch(name=name)

    def _put_all_until(self, at_ns: int | None) -> None:
        while self._waiting and (at_ns is None or self._waiting[0][0].at_ns < at_ns):
            self._put(at_ns if self._ends_ns is None else self._ends_ns)
        if self._current is not None:
            self._current.pause()

    def _put(self, ends_ns: int | None) -> None:
        sample, ended_ns = self._waiting.popleft()
        inside = sample.at_ns >= self._starts_ns and (ends_ns is None or ended_ns <= ends_ns)
        if self._current is not None and inside:
            self._current.add(sample, self._own_bytes(sample))
