"""What has to be known beside the numbers: where they were measured, and what they themselves warn of."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

from msgspec import UnsetType
from msgspec.structs import asdict

from bench.compare import grouped
from bench.compare.accuracy import Accuracy
from bench.compare.plausibility import Finding
from bench.compare.readings import Merge, Throughput
from bench.errors import listed
from bench.metrics import METRICS, size_text
from bench.records.derived_metrics import BUSY_MACHINE, accuracy, evaluation
from bench.records.readings import Caveat
from bench.records.records import Environment, Record, StepSample
from bench.stats.trend import FEWEST_VALUES

# What changes the code under measurement only; two records that differ in nothing else are comparable.
_NOT_THE_MACHINE = "git"
COMMIT = "git.commit"
_NAMED = 3
_NUMBERS = {
    BUSY_MACHINE: re.compile(r"(Other processes used )(\d+)( % .* measured steps)(: .*)"),
    "longest-example-not-seen": re.compile(r"(The longest example .* of this window )(\d+)()(: .*)"),
}
"""By code, caveats whose number differs from run to run."""
_COMMIT_DIGITS = 12  # enough to find it; the whole hash is among the facts of each place


@dataclass(frozen=True, kw_only=True, eq=False)
class EnvironmentGroup:
    """The environment that some of the records were made in, under a letter that rows refer to."""

    label: str
    records: int
    facts: Mapping[str, str]

    @cached_property
    def place(self) -> tuple[tuple[str, str], ...]:
        """What two comparable records share: machine, versions and threads, but not the commit."""
        return tuple(item for item in self.facts.items() if not item[0].startswith(_NOT_THE_MACHINE))


def environments_of(records: Sequence[Record]) -> tuple[EnvironmentGroup, ...]:
    """Return the environment of each record, lettered from A to Z, then A2 to Z2, as they appear."""
    found = [tuple(facts(record.environment).items()) for record in records]
    groups = {}
    for index, (own, count) in enumerate(Counter(found).items()):
        turn, place = divmod(index, len(ascii_uppercase))
        label = f"{ascii_uppercase[place]}{turn + 1 if turn else ''}"
        groups[own] = EnvironmentGroup(label=label, records=count, facts=dict(own))
    return tuple(groups[own] for own in found)


def differences(places: Sequence[EnvironmentGroup]) -> tuple[str, ...]:
    lines = []
    for name in dict.fromkeys(name for where in places for name in where.facts):
        values = {where.label: where.facts.get(name, "not recorded") for where in places}
        if len(set(values.values())) > 1:
            digits = _COMMIT_DIGITS if name == COMMIT else None
            listed = ", ".join(f"{value[:digits]} in {label}" for label, value in values.items())
            lines.append(f"{name}: {listed}")
    return tuple(lines)


def shared(known: Mapping[str, set[str]]) -> dict[str, str]:
    """Return facts of one side as text, *several* where it has more than one."""
    return {name: "several" if len(values) > 1 else min(values) for name, values in known.items()}


def changed(before: Mapping[str, set[str]], after: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield a line for each fact that is not the same on both sides."""
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            old, new = (" or ".join(sorted(side.get(name, {"not set"}))) for side in (before, after))
            yield f"{name}: {old} before, {new} now"


def facts(environment: Environment) -> dict[str, str]:
    """Return an environment as ``group.name`` and text; what was not found is left out."""
    return {
        f"{group}.{name}": str(value)
        for group, values in asdict(environment).items()
        for name, value in sorted(values.items())
        if value is not None
    }


def told_together(runs: Sequence[Record]) -> dict[Caveat, str]:
    """Return what is told in the place of caveats that differ in a run's number alone."""
    caveats = (caveat for record in runs for caveat in record.measurement.caveats)
    found = [
        (one, match)
        for one in caveats
        if one.code in _NUMBERS and (match := _NUMBERS[one.code].fullmatch(one.message))
    ]
    told: dict[Caveat, str] = {}
    for same in grouped(found, lambda one: one[1].group(1, 3, 4)).values():
        numbers = sorted({int(match[2]) for _, match in same})
        if numbers[1:]:
            begins, where, ends = same[0][1].group(1, 3, 4)
            of_runs = f" of {len(same)} runs" if where else ""
            text = f"{begins}{numbers[0]} to {numbers[-1]}{where}{of_runs}{ends}"
            told |= dict.fromkeys((one for one, _ in same), text)
    return told


def caveats_of_runs(
    records: Sequence[Record],
    findings: Iterable[tuple[Record, Finding]],
    speed: Throughput | None,
    accuracies: Iterable[Accuracy],
    merge: Merge | None,
) -> Iterator[Caveat]:
    """Yield what cannot be right in any run of a cell, the worker's own caveats, and those of the numbers."""
    ok = [record for record in records if record.outcome == "ok"]
    for record, finding in findings:
        if finding.doubts != "loss":  # a loss that is not finite has its own caveat below
            message = f"Run {record.run} is implausible: {finding.sentence}"
            yield Caveat(code=f"implausible-{finding.code}", message=message)
    for record in ok:
        yield from record.measurement.caveats
    for code, message in _of_numbers(ok, len(records) - len(ok), speed, accuracies, merge):
        yield Caveat(code=code, message=message)


def _of_numbers(
    ok: Sequence[Record],
    others: int,
    speed: Throughput | None,
    accuracies: Iterable[Accuracy],
    merge: Merge | None,
) -> Iterator[tuple[str, str]]:
    """Yield code and message of what the numbers of good runs warn of; ``others`` did not end ok."""
    notes = (record.measurement.model for record in ok)
    for note in dict.fromkeys(facts.weights_note for facts in notes if facts and facts.weights_note):
        yield "weights", f"Weights: {note}."
    if len(ok) == 1:
        yield (
            "one-run",
            "One run only: the spread shown is within that run, and says nothing about the next run.",
        )
    if ok and others:
        yield "other-outcomes", f"{others} of {len(ok) + others} runs did not end ok."
    yield from kept_memory(ok[-1]) if ok else ()
    yield from _training([step for record in ok for step in record.measurement.steps])
    if speed:
        yield from _speed(speed)
    yield from _between_runs(ok, accuracies)
    if merge is not None and not merge.within_tolerance:
        yield (
            "merge-differs",
            "The merged adapter's logits differ from the adapter's by more than the tolerance.",
        )


def kept_memory(record: Record) -> Iterator[tuple[str, str]]:
    """Yield what retains tensors outside the model, and where leaked ones were made, if it is much."""
    ledger = record.measurement.ledger
    if ledger is None or isinstance(ledger.retained, UnsetType):
        return
    kept = ledger.retained
    if kept.total_bytes >= METRICS["retained_bytes"].tolerance:
        told = f"{size_text(kept.total_bytes)} of tensors live on outside the model"
        yield "retained", f"{told}, beside the peak: {_largest(kept.by_holder_bytes)}."
    if kept.leaked_bytes_per_step >= METRICS["leaked_bytes_per_step"].tolerance:
        told = f"Each step leaves {kept.leaked_bytes_per_step:,} bytes of tensors behind"
        held = f"; held by {kept.leaked_holder}" if kept.leaked_holder else ""
        yield "leak", f"{told}: {_largest(kept.leaked_by_op_bytes)}{held}."


def _largest(sizes: Mapping[str, int]) -> str:
    """Return the largest with their names."""
    names = sorted(sizes, key=lambda name: -sizes[name])
    return listed([f"{size_text(sizes[name])} {name}" for name in names], _NAMED)


def _between_runs(ok: Sequence[Record], accuracies: Iterable[Accuracy]) -> Iterator[tuple[str, str]]:
    by_seed = grouped(ok, lambda record: record.cell.training.seed).values()
    for result in accuracies:
        if result.not_paired:
            yield "not-paired", f"{result.task}: {result.not_paired}."
        for runs in by_seed:
            found = (accuracy(evaluation(record, result.task, "after")) for record in runs)
            shares = sorted({share for share in found if share is not None})
            if len(shares) > 1:
                listed = ", ".join(f"{share * 100:.1f} %" for share in shares)
                told = f"The runs differ on {result.task} after training ({listed}); the first run is shown."
                yield "accuracy-differs", told
    for runs in by_seed:
        sizes = sorted({record.measurement.ledger.peak_bytes for record in runs if record.measurement.ledger})
        if len(sizes) > 1:
            listed = ", ".join(f"{size:,}" for size in sizes)
            told = f"The ledger's peak should be the same in every run, and is not ({listed} bytes)."
            yield "ledger-differs", told


def _training(steps: Sequence[StepSample]) -> Iterator[tuple[str, str]]:
    bad, skipped = sum(not math.isfinite(step.loss) for step in steps), sum(step.skipped for step in steps)
    if bad:
        told = f"The loss was not finite in {bad} of {len(steps)} steps: this training diverged."
        yield "loss-not-finite", told
    if skipped:
        told = f"The gradient scaler skipped the optimizer in {skipped} of {len(steps)} steps"
        yield "steps-skipped", f"{told}; their time is in tokens/s."


def _speed(speed: Throughput) -> Iterator[tuple[str, str]]:
    trend = speed.trend
    if trend.verdict == "not steady" and trend.drift_share is not None:
        told = f"Not steady: tokens/s drifted by {trend.drift_share * 100:+.0f} % over the measured steps"
        yield "not-steady", f"{told} (Mann-Kendall p = {trend.p_value:.2g}); raise window.warmup_steps."
    elif trend.verdict == "too few steps to tell":
        told = f"Too few measured steps ({speed.steps}) to tell whether the speed had settled"
        yield "few-steps", f"{told}; set window.measured_steps to {FEWEST_VALUES} or more."
