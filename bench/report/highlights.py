"""The highlights of a comparison as sentences that link to their rows, for Markdown, terminal and HTML alike.

Every number is in a table too.
"""

from collections.abc import Collection, Iterator, Sequence

from bench.compare.accuracy import CONFIDENCE, AccuracyDifference, SeedMean
from bench.compare.caveats import COMMIT
from bench.compare.comparison import Comparison
from bench.compare.highlights import Highlights
from bench.compare.measured import Measured
from bench.compare.readings import ROUGH_DRIFT_SHARE
from bench.errors import counted
from bench.metrics import HEADLINES, INSTRUMENT_NAMES
from bench.records.readings import Category
from bench.report.predicted.fit import change, reason_in_words
from bench.report.text import (
    MemoryUnit,
    RowLink,
    Sentence,
    grouped,
    p_value,
    points,
    said,
    share,
    significant,
)

_MOST_CELLS = 6  # of one sentence; more are read in the table
_SMALLER = "a smaller batch or shorter sequences"


def opening(comparison: Comparison) -> str:
    """Return how many cells there are, how they ended, and whether they come from one environment."""
    cells = counted(len(comparison.rows), "cell")
    endings = ", ".join(f"{count} {outcome}" for outcome, count in comparison.outcomes.items())
    text = f"{cells} of {', '.join(comparison.scenarios)}: {endings}."
    if same := one_environment(comparison):
        text += f" {same}"
    elif len(comparison.environments) > 1:
        text += (
            f" The records come from {len(comparison.environments)} different environments; "
            "what differs between them is listed below, and nothing is compared across machines or versions."
        )
    return text


def one_environment(comparison: Comparison) -> str | None:
    """Return one line where environments differ in the project's own commit only."""
    if len(comparison.differences) != 1 or not comparison.differences[0].startswith(f"{COMMIT}: "):
        return None
    commits = comparison.differences[0].removeprefix(f"{COMMIT}: ")
    return f"The records were made by different commits of bench, and are alike in all else: {commits}."


def sentences(found: Highlights, unit: MemoryUnit) -> tuple[Sentence, ...]:
    """Return what is known of one group, the question first that readers ask first."""
    causes = [(row, row.cause) for row in found.ok if row.cause]
    told = said(
        "highlights.j2",
        lambda row: RowLink(row.method, row.key),
        found=found,
        unit=unit,
        most=_MOST_CELLS,
        headlines=HEADLINES,
        names=INSTRUMENT_NAMES,
        reservations=list(_reservations(found.ok)),
        no_reference=grouped((row.no_reference, row) for row in found.ok if row.no_reference),
        loops=grouped(
            ((one.measured.cell.loop.driver, one.base.cell.loop.driver), one) for one in found.loops
        ),
        causes=grouped(((one.peak_phase, one.peak_op), (row, one)) for row, one in causes),
        remedies=grouped(
            ((one.largest_category, _remedy(one.largest_category, row)), (row, one.largest_share))
            for row, one in causes
        ),
        change=change,
        difference=difference,
        alpha=f"{1 - CONFIDENCE:g}",
        loss_difference=loss_difference,
        interval=interval,
        over_seeds=over_seeds,
        reason_in_words=reason_in_words,
        span=_span,
    )
    return (*told, trained_with(found))


def _span(shares: Collection[float], *, unit: bool = True) -> str:
    """Write the least and the largest share, or one where both look the same; the unit once or twice."""
    low, high = share(min(shares), 0), share(max(shares), 0)
    return high if low == high else f"{low if unit else low.removesuffix(' %')} to {high}"


def _reservations(rows: Sequence[Measured]) -> Iterator[str]:
    speeds = [row.throughput for row in rows if row.throughput]
    if any(speed.trend.drift_share is None for speed in speeds):
        yield "Throughput is approximate: too few steps were measured to see whether it drifted"
    elif any(speed.rough for speed in speeds):
        yield f"Throughput is approximate: some runs drifted by more than {share(ROUGH_DRIFT_SHARE, 0)}"
    if rows[1:] and any(row.disturbed_runs for row in rows):
        yield "Speeds that other processes disturbed are not compared"
    if speeds and rows[0].device == "cpu":
        yield "Measured on a CPU; do not extrapolate to GPUs"


def difference(one: AccuracyDifference) -> str:
    """Write a difference of accuracies in points with its p-value."""
    p = p_value(one.p_value) if one.p_value is not None else "the same in all seeds"
    return f"{points(one.share)}, {p}"


def loss_difference(one: SeedMean) -> str:
    """Write how far a loss lies above another with its p-value."""
    p = p_value(one.p_value) if one.p_value is not None else "the same in all seeds"
    return f"+{significant(one.mean)}, {p}"


def interval(low: float | None, high: float | None) -> str:
    return f"{share(low).removesuffix(' %')} to {share(high)}"


def over_seeds(loss: SeedMean) -> str:
    """Write the interval of a loss over seeds, which is not below zero, and how many these are."""
    several = f"{len(loss.values)} seeds"
    if loss.p_value is None or loss.low is None or loss.high is None:
        return several
    return f"{significant(max(0.0, loss.low))} to {significant(loss.high)} over {several}"


def _remedy(part: Category, row: Measured) -> str:
    """Return what can be tried: nothing that the cell does already."""
    full, no_checkpointing = row.kind == "full", row.cell.training.gradient_checkpointing == "off"
    fewer = "an adapter (lora), which trains fewer parameters" if full else "fewer trained parameters"
    of_weights = {
        "full": "adapters on a frozen base (lora), which can be quantised as well (qlora)",
        "qlora": "a smaller model, since the base is quantised already",
    }
    remedies: dict[Category, str] = {
        "weights": of_weights.get(row.kind, "a quantised base (qlora)"),
        "quantisation_state": "quantised block scales (double_quantisation)",
        "gradients": fewer,
        "optimizer_state": f"an optimizer with 8-bit or paged state, or {fewer}",
        "activations": f"gradient checkpointing, {_SMALLER}" if no_checkpointing else _SMALLER,
        "logits": f"a loss in chunks, {_SMALLER}",
    }
    return remedies.get(part, _SMALLER)


def trained_with(found: Highlights) -> Sentence:
    """Return what all rows share, then what differs between them and where."""
    devices = dict.fromkeys(row.device_name for row in found.ok) or {found.rows[0].device: None}
    shared, differing = [f"{found.rows[0].model} on {' and '.join(devices)}"], []
    for name, values in found.settings.items():
        if len(values) == 1:
            shared.append(f"{name} {next(iter(values))}")
        else:
            by_value = (f"{value} ({' and '.join(methods)})" for value, methods in values.items())
            differing.append(f"{name} {', '.join(by_value)}")
    differs = f" Differs: {'; '.join(differing)}." if differing else ""
    return Sentence("Trained with", (f"{'; '.join(shared)}.{differs}",))
