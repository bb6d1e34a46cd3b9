"""A calibration as stored: runs of unchanged code on one machine, from which analysis learns its noise.

It holds samples, no variances, and is small enough to be committed.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from bench.errors import UsageError
from bench.io import read_json
from bench.records.derived_metrics import measured_steps, peak_bytes, phase_time_ns, step_tokens_per_second
from bench.records.readings import Caveat, Positive, Stored
from bench.records.records import Environment, Record
from bench.records.sittings import SIDES, SideName

CALIBRATION_VERSION: Final = 1
CALIBRATION_FILE = "calibration.json"
SAME_MACHINE = ("architecture", "cpu_model", "cpu_cores")

Samples = dict[str, tuple[float, ...]]
SampledRuns = tuple[tuple[float, ...], ...]


class CalibratedGroup(Stored):
    """Runs of one process of one side in one sitting, in the order run; each as samples by metric.

    Speed and step time have a sample for each measured step, other metrics one.
    """

    sitting: Positive
    side: SideName
    runs: tuple[Samples, ...]


class CalibratedCell(Stored):
    """The groups of one cell. ``digest`` is that of the cell: another one's noise is another."""

    cell: str
    digest: str
    groups: tuple[CalibratedGroup, ...]


class Calibration(Stored):
    """What one machine's runs of one scenario spread, its environment against itself."""

    calibration_version: Literal[1] = CALIBRATION_VERSION
    scenario: str
    made_at: str = Field(description="UTC, ISO 8601.")
    environment: Environment
    cuda_name: str | None = None
    interleave: Literal["runs", "steps"] = Field("runs", description="What the sides took turns at.")
    cells: tuple[CalibratedCell, ...]
    caveats: tuple[Caveat, ...] = ()

    def runs(self, digest: str, metric: str) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """Return the samples of a metric by sitting and run, both sides together: their code is the same.

        Empty where the cell was not calibrated.
        """
        groups = next((cell.groups for cell in self.cells if cell.digest == digest), ())
        by_sitting: dict[int, list[tuple[float, ...]]] = {}
        for group in groups:
            by_sitting.setdefault(group.sitting, []).extend(
                run[metric] for run in group.runs if metric in run
            )
        return tuple(tuple(runs) for runs in by_sitting.values() if runs)

    def pairs(self, digest: str, metric: str) -> tuple[tuple[SampledRuns, SampledRuns], ...]:
        """Return the samples of a metric by sitting: the base's by run, and the candidate's, made in turn."""
        groups = next((cell.groups for cell in self.cells if cell.digest == digest), ())
        by_sitting: dict[int, dict[SideName, SampledRuns]] = {}
        for group in groups:
            sampled = tuple(run[metric] for run in group.runs if metric in run)
            by_sitting.setdefault(group.sitting, {})[group.side] = sampled
        return tuple(
            (sides["base"], sides["candidate"]) for sides in by_sitting.values() if len(sides) == len(SIDES)
        )


def samples(record: Record) -> Samples:
    """Return what a run says of each metric that varies between runs, in the units of ``bench.metrics``."""
    found: dict[str, tuple[float | None, ...]] = {
        "tokens_per_second": step_tokens_per_second(record),
        "step_time_ns": tuple(step.step_time_ns for step in measured_steps(record)),
        "load_time_ns": (phase_time_ns(record, ("load",)),),
        "host_peak_bytes": (peak_bytes(record, "host_peak_bytes"),),
        "cuda_reserved_peak_bytes": (peak_bytes(record, "cuda_reserved_peak_bytes"),),
    }
    known = {name: tuple(value for value in values if value is not None) for name, values in found.items()}
    return {name: values for name, values in known.items() if values}


def read_calibration(path: Path) -> Calibration:
    """Read a calibration from its file or its folder. Raises ``UsageError`` where there is none."""
    file = path / CALIBRATION_FILE if path.is_dir() else path
    return read_json(file, Calibration, "a calibration", "make one with bench calibrate")


def require_this_machine(
    calibration: Calibration, environment: Environment, cuda_name: str | None = None
) -> None:
    """Raise ``UsageError`` where the calibration is of another machine, card or number of threads."""
    pairs: list[tuple[str, object, object]] = [
        (name, calibration.environment.machine.get(name), environment.machine.get(name))
        for name in SAME_MACHINE
    ]
    pairs.append(("CUDA device", calibration.cuda_name, cuda_name))
    names = sorted({*calibration.environment.threads, *environment.threads})
    pairs += [
        (name, calibration.environment.threads.get(name), environment.threads.get(name)) for name in names
    ]
    different = [f"{name} {then} then, {now} now" for name, then, now in pairs if then != now]
    if different:
        raise UsageError(
            f"the calibration of {calibration.scenario} was made on another machine or with other settings "
            f"({'; '.join(different)}), whose noise says nothing here; run bench calibrate on this one"
        )
