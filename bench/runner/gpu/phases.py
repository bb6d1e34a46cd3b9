"""Samples of a GPU put to the phase of the worker they were taken in, by time, and summed up at once.

A mark can arrive after samples that were taken past it, so the latest samples wait until their phase is
certain. However long a run is, no more than ``MOST_WAITING`` samples are kept.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.probes.nvml.device import GpuSample
from bench.records.readings import GpuPhase

MOST_WAITING = 256


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A sample with the times between which NVML was asked, on the clock of ``time.monotonic_ns``."""

    began_ns: int
    ended_ns: int
    sample: GpuSample


@dataclass(kw_only=True)
class Stretch:
    """What the samples of one phase, or of an instant that the worker stood still, amount to."""

    name: str
    samples: int = 0
    without_own: int = 0
    without_device: int = 0
    last: GpuSample | None = None
    own_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    sm_clock_min_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    temperature_max_c: int | None = None
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
        self.own_peak_bytes = max(_known(self.own_peak_bytes, own_bytes), default=None)
        self.device_peak_bytes = max(_known(self.device_peak_bytes, sample.device_used_bytes), default=None)
        self.sm_clock_max_mhz = max(_known(self.sm_clock_max_mhz, sample.sm_clock_mhz), default=None)
        self.sm_clock_min_mhz = min(_known(self.sm_clock_min_mhz, sample.sm_clock_mhz), default=None)
        self.temperature_max_c = max(_known(self.temperature_max_c, sample.temperature_c), default=None)
        self.event_reasons |= sample.event_reasons or 0
        for name in ("utilisation_percent", "power_mw"):
            for value in _known(getattr(sample, name)):
                self._totals[name] += value
                self._counts[name] += 1
        if sample.energy_mj is not None:
            self._energy_first, self._energy_last = self._energy_first or sample, sample
        self.last = sample

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
        means = {name: self._totals[name] / count for name, count in self._counts.items()}
        return GpuPhase(
            name=self.name,
            samples=self.samples,
            process_peak_bytes=self.own_peak_bytes if with_own_bytes else None,
            device_peak_bytes=self.device_peak_bytes,
            utilisation_mean_percent=means.get("utilisation_percent"),
            power_mean_mw=means.get("power_mw"),
            energy_mj=self.energy_mj,
            energy_time_ns=None if self.energy_mj is None else self.sampled_ns,
            sm_clock_min_mhz=self.sm_clock_min_mhz,
            sm_clock_max_mhz=self.sm_clock_max_mhz,
            temperature_max_c=self.temperature_max_c,
            event_reasons=self.event_reasons,
        )


class Timeline:
    """Puts samples to the stretch between two marks that they lie in wholly; one that straddles has none."""

    def __init__(self, own_bytes: Callable[[GpuSample], int | None]) -> None:
        """Ask ``own_bytes`` for the worker's share of a sample once its phase is certain."""
        self._own_bytes = own_bytes
        self._stretches: dict[str, Stretch] = {}
        self._waiting: deque[Taken] = deque()
        self._current: Stretch | None = None
        self._starts_ns = 0
        self._ends_ns: int | None = None

    def take(self, taken: Taken) -> None:
        """Take a sample; they come in the order of time."""
        self._waiting.append(taken)
        if len(self._waiting) > MOST_WAITING:
            self._put(self._waiting.popleft(), self._ends_ns)

    def mark(self, name: str, at_ns: int, ends_ns: int | None = None) -> None:
        """Begin a stretch; it lasts until ``ends_ns`` or the next mark. Marks come in the order of time."""
        self._put_all_until(at_ns)
        self._current = self._stretches.setdefault(name, Stretch(name=name))
        self._starts_ns, self._ends_ns = at_ns, ends_ns

    def close(self) -> None:
        """Take nothing more; what waits belongs to the last stretch."""
        self._put_all_until(None)
        self._current = None

    def __getitem__(self, name: str) -> Stretch:
        """Return one stretch, empty if it was never marked."""
        return self._stretches.get(name) or Stretch(name=name)

    def names(self) -> tuple[str, ...]:
        """Return the names of the stretches in the order they first began."""
        return tuple(self._stretches)

    def _put_all_until(self, at_ns: int | None) -> None:
        ends_ns = at_ns if self._ends_ns is None else self._ends_ns
        while self._waiting and (at_ns is None or self._waiting[0].began_ns < at_ns):
            self._put(self._waiting.popleft(), ends_ns)
        if self._current is not None:
            self._current.pause()

    def _put(self, taken: Taken, ends_ns: int | None) -> None:
        inside = taken.began_ns >= self._starts_ns and (ends_ns is None or taken.ended_ns <= ends_ns)
        if self._current is not None and inside:
            self._current.add(taken.sample, self._own_bytes(taken.sample))


def _known(*values: int | None) -> list[int]:
    return [value for value in values if value is not None]
