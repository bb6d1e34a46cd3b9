"""A study: methods of one setting over several seeds, each set against one of them. Nothing is shown here."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.compare import runs as over_runs
from bench.compare.environments import environment_groups, label_of
from bench.compare.measured import Instrument, Peak, Throughput
from bench.compare.seed_differences import SeedDifference, differences_over_seeds
from bench.compare.seeds import SeedAccuracy, SeedGroup, accuracy_over_seeds, group_by_seed
from bench.errors import UsageError
from bench.records.derived_metrics import speed_disturbed
from bench.records.records import Record

PROCESS: dict[str, Instrument] = {"cpu": "host_net", "cuda": "cuda_reserved"}
"""The instrument of what has to fit, by device."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One method over its seeds. ``against`` is None for the reference itself, and where nothing is paired.

    The peak is by the instrument that ``PROCESS`` names; it and the speed are medians over the seeds' runs.
    ``disturbed_runs`` counts those whose speed is not their own.
    """

    method: str
    group: SeedGroup
    accuracy: SeedAccuracy | None
    against: SeedDifference | None
    peak: Peak | None
    throughput: Throughput | None
    disturbed_runs: int
    parameters_trainable: int | None


@dataclass(frozen=True, kw_only=True)
class Study:
    """One evaluation task of one setting; ``environment`` is a letter where records come from several."""

    model: str
    window: str
    device: str
    environment: str | None
    task: str
    reference: str
    levels: tuple[Level, ...]

    @property
    def differences(self) -> tuple[tuple[Level, SeedDifference], ...]:
        """Return every level with its difference from the reference, where there is one."""
        return tuple((level, level.against) for level in self.levels if level.against)

    @property
    def resolution(self) -> float | None:
        """Return how far the intervals of the differences reach to each side; None without one.

        They share one variance, so that all reach as far.
        """
        widths = [one.difference.half_width for _, one in self.differences]
        return next((width for width in widths if width is not None), None)

    @property
    def design(self) -> SeedDifference | None:
        """Return a difference that has an interval, for what all of them share."""
        return next((one for _, one in self.differences if one.difference.half_width is not None), None)


def studies(records: Sequence[Record], reference: str) -> tuple[Study, ...]:
    """Return a study for each setting and task; ``reference`` is the method the others are set against.

    Raises UsageError where a setting lacks that method, or where its runs were asked different questions.
    """
    groups = group_by_seed(records)
    places = environment_groups(records)
    settings: dict[object, list[SeedGroup]] = {}
    for group in groups:
        settings.setdefault(group.setting, []).append(group)
    found: list[Study] = []
    for members in settings.values():
        base = next((group for group in members if group.method == reference), None)
        if base is None:
            methods = ", ".join(dict.fromkeys(group.method for group in members))
            raise UsageError(f"{members[0].name}: no method {reference} there; choose one of {methods}")
        first = next((run for group in members for run in group.runs.values()), None)
        environment = label_of(first, places) if first and len(places) > 1 else None
        tasks = dict.fromkeys(task for group in members for task in group.tasks)
        found.extend(_study(members, base, task, environment) for task in tasks)
    return tuple(found)


def _study(members: Sequence[SeedGroup], base: SeedGroup, task: str, environment: str | None) -> Study:
    against = differences_over_seeds(members, base, task)
    return Study(
        model=base.cell.model.name,
        window=base.name.rpartition("/")[2],
        device=base.cell.device,
        environment=environment,
        task=task,
        reference=base.method,
        levels=tuple(_level(group, task, against.get(group.name)) for group in members),
    )


def _level(group: SeedGroup, task: str, against: SeedDifference | None) -> Level:
    runs = list(group.runs.values())
    peaks = over_runs.peaks(runs)
    models = [run.measurement.model for run in runs if run.measurement.model]
    return Level(
        method=group.method,
        group=group,
        accuracy=accuracy_over_seeds(group, task),
        against=against,
        peak=next((peak for peak in peaks if peak.instrument == PROCESS[group.cell.device]), None),
        throughput=over_runs.throughput(runs),
        disturbed_runs=sum(speed_disturbed(run.measurement.caveats) for run in runs),
        parameters_trainable=models[0].parameters_trainable if models else None,
    )
