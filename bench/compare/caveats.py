"""What a reader must know beyond the numbers: the worker's caveats, those of the numbers, bad endings."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.compare.accuracy import Accuracy
from bench.compare.plausibility import Finding
from bench.compare.readings import Merge, Throughput
from bench.records.derived_metrics import accuracy, evaluation
from bench.records.readings import Caveat
from bench.records.records import Outcome, Record
from bench.stats.trend import FEWEST_VALUES


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A run that did not end ok: its outcome and the sentence that says why."""

    cell: str
    run: int
    outcome: Outcome
    phase: str | None
    message: str
    requested_bytes: int | None


def endings_of(records: Iterable[Record]) -> tuple[Ending, ...]:
    """Return how the runs ended that are not ok."""
    return tuple(
        Ending(
            cell=record.cell.id,
            run=record.run,
            outcome=record.outcome,
            phase=failure.phase if failure else None,
            message=failure.message if failure else "No reason was recorded; run the cell again.",
            requested_bytes=failure.requested_bytes if failure else None,
        )
        for record in records
        if record.outcome != "ok"
        for failure in (record.failure,)
    )


def caveats_of_runs(
    records: Sequence[Record],
    findings: Iterable[tuple[Record, Finding]],
    throughput: Throughput | None,
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
    notes = (record.measurement.model for record in ok)
    for note in dict.fromkeys(facts.weights_note for facts in notes if facts and facts.weights_note):
        yield Caveat(code="weights", message=f"Weights: {note}.")
    if len(ok) == 1:
        message = "One run only: the spread shown is within that run, and says nothing about the next run."
        yield Caveat(code="one-run", message=message)
    if ok and len(ok) < len(records):
        message = f"{len(records) - len(ok)} of {len(records)} runs did not end ok."
        yield Caveat(code="other-outcomes", message=message)
    yield from _training(ok)
    yield from _speed(throughput)
    yield from _evaluation(accuracies, ok)
    yield from _ledger(ok)
    if merge is not None and not merge.within_tolerance:
        message = "The merged adapter's logits differ from the adapter's by more than the tolerance."
        yield Caveat(code="merge-differs", message=message)


def _training(ok: Sequence[Record]) -> Iterator[Caveat]:
    """Yield what makes the training itself doubtful: losses that are not finite, steps left out."""
    steps = [step for record in ok for step in record.measurement.steps]
    bad = sum(not math.isfinite(step.loss) for step in steps)
    if bad:
        message = f"The loss was not finite in {bad} of {len(steps)} steps: this training diverged."
        yield Caveat(code="loss-not-finite", message=message)
    skipped = sum(step.skipped for step in steps)
    if skipped:
        message = (
            f"The gradient scaler skipped the optimizer in {skipped} of {len(steps)} steps; "
            "their time is in tokens/s."
        )
        yield Caveat(code="steps-skipped", message=message)


def _speed(speed: Throughput | None) -> Iterator[Caveat]:
    """Yield what the trend over the measured steps says."""
    if speed is None:
        return
    trend = speed.trend
    if trend.verdict == "not steady" and trend.drift_share is not None:
        message = (
            f"Not steady: tokens/s drifted by {trend.drift_share * 100:+.0f} % over the measured steps "
            f"(Mann-Kendall p = {trend.p_value:.2g}); raise window.warmup_steps."
        )
        yield Caveat(code="not-steady", message=message)
    elif trend.verdict == "too few steps to tell":
        message = (
            f"Too few measured steps ({speed.steps}) to tell whether the speed had settled; "
            f"set window.measured_steps to {FEWEST_VALUES} or more."
        )
        yield Caveat(code="few-steps", message=message)


def _evaluation(accuracies: Iterable[Accuracy], ok: Sequence[Record]) -> Iterator[Caveat]:
    """Yield what makes an accuracy less than it seems; runs of one seed should answer alike."""
    for result in accuracies:
        if result.not_paired:
            yield Caveat(code="not-paired", message=f"{result.task}: {result.not_paired}.")
        for runs in _by_seed(ok):
            found = (accuracy(evaluation(record, result.task, "after")) for record in runs)
            shares = sorted({share for share in found if share is not None})
            if len(shares) > 1:
                listed = ", ".join(f"{share * 100:.1f} %" for share in shares)
                message = (
                    f"The runs differ on {result.task} after training ({listed}); the first run is shown."
                )
                yield Caveat(code="accuracy-differs", message=message)


def _ledger(ok: Sequence[Record]) -> Iterator[Caveat]:
    """Yield that runs of one seed differ in what is deterministic."""
    for runs in _by_seed(ok):
        sizes = sorted({record.measurement.ledger.peak_bytes for record in runs if record.measurement.ledger})
        if len(sizes) > 1:
            listed = ", ".join(f"{size:,}" for size in sizes)
            message = f"The ledger's peak should be the same in every run, and is not ({listed} bytes)."
            yield Caveat(code="ledger-differs", message=message)


def _by_seed(runs: Iterable[Record]) -> Iterable[list[Record]]:
    found: dict[int, list[Record]] = {}
    for record in runs:
        found.setdefault(record.cell.training.seed, []).append(record)
    return found.values()
