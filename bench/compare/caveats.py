"""What a reader must know beyond the numbers: the worker's caveats, and those seen across runs."""

import math
from collections.abc import Iterable, Iterator, Sequence

from bench.compare.measured import Measured
from bench.compare.plausibility import Finding
from bench.records.derived_metrics import accuracy, evaluation
from bench.records.records import Caveat, Record
from bench.stats.trend import FEWEST_VALUES


def row_caveats(
    row: Measured, ok: Sequence[Record], findings: Iterable[tuple[int, Finding]]
) -> tuple[Caveat, ...]:
    """Return every caveat once: what cannot be right in any run, the worker's own, those of the row.

    ``findings`` are what the lints found, with the number of the run.
    """
    own = [caveat for record in ok for caveat in record.measurement.caveats]
    return tuple(dict.fromkeys([*_implausible(findings), *own, *_found(row, ok)]))


def _implausible(findings: Iterable[tuple[int, Finding]]) -> Iterator[Caveat]:
    """Yield what the lints found; a loss that is no number has its own caveat among those of the row."""
    for run, finding in findings:
        if finding.doubts != "loss":
            message = f"Run {run} is implausible: {finding.sentence}"
            yield Caveat(code=f"implausible-{finding.code}", message=message)


def _found(row: Measured, ok: Sequence[Record]) -> Iterator[Caveat]:
    """Yield what the numbers themselves show."""
    if row.weights_note:
        yield Caveat(code="weights", message=f"Weights: {row.weights_note}.")
    if row.runs_ok == 1:
        message = "One run only: the spread shown is within that run, and says nothing about the next run."
        yield Caveat(code="one-run", message=message)
    if ok and row.runs_ok < row.runs:
        yield Caveat(
            code="other-outcomes", message=f"{row.runs - row.runs_ok} of {row.runs} runs did not end ok."
        )
    yield from _training(ok)
    yield from _speed(row)
    yield from _evaluation(row, ok)
    ledgers = {record.measurement.ledger.peak_bytes for record in ok if record.measurement.ledger}
    if len(ledgers) > 1:
        message = f"The ledger's peak should be the same in every run, and is not ({_listed(ledgers)} bytes)."
        yield Caveat(code="ledger-differs", message=message)
    if row.merge is not None and not row.merge.within_tolerance:
        message = "The merged adapter's logits differ from the adapter's by more than the tolerance."
        yield Caveat(code="merge-differs", message=message)


def _training(ok: Sequence[Record]) -> Iterator[Caveat]:
    """Yield what makes the training itself doubtful: losses that are no numbers, steps left out."""
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


def _speed(row: Measured) -> Iterator[Caveat]:
    """Yield what the trend over the measured steps says."""
    if row.throughput is None:
        return
    trend = row.throughput.trend
    if trend.verdict == "not steady" and trend.drift_share is not None:
        message = (
            f"Not steady: tokens/s drifted by {trend.drift_share * 100:+.0f} % over the measured steps "
            f"(Mann-Kendall p = {trend.p_value:.2g}); raise window.warmup_steps."
        )
        yield Caveat(code="not-steady", message=message)
    elif trend.verdict == "too few steps to tell":
        message = (
            f"Too few measured steps ({row.throughput.steps}) to tell whether the speed had settled; "
            f"set window.measured_steps to {FEWEST_VALUES} or more."
        )
        yield Caveat(code="few-steps", message=message)


def _evaluation(row: Measured, ok: Sequence[Record]) -> Iterator[Caveat]:
    """Yield what makes an accuracy less than it seems."""
    for result in row.accuracies:
        if result.not_paired:
            yield Caveat(code="not-paired", message=f"{result.task}: {result.not_paired}.")
        found = (accuracy(evaluation(record, result.task, "after")) for record in ok)
        shares = sorted({share for share in found if share is not None})
        if len(shares) > 1:
            listed = ", ".join(f"{share * 100:.1f} %" for share in shares)
            message = f"The runs differ on {result.task} after training ({listed}); the first run is shown."
            yield Caveat(code="accuracy-differs", message=message)


def _listed(values: set[int]) -> str:
    """Return numbers in order, with thousands separated."""
    return ", ".join(f"{value:,}" for value in sorted(values))
