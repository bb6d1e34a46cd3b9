"""The summary of a comparison in plain sentences; every number in it is also in a table."""

from collections.abc import Sequence

from bench.compare.environments import COMMIT
from bench.compare.measured import ROUGH_DRIFT_SHARE, Comparison, Instrument, Measured, Throughput
from bench.report.comparison_columns import INSTRUMENT_NAMES, group_title, groups
from bench.report.text import MemoryUnit, p_value, share, significant
from bench.stats.paired import SIGNIFICANT_P

# More than this is read in the table, not in a sentence.
_MOST_METHODS = 6
_MOST_GROUPS = 4
_HEADLINES: dict[str, tuple[Instrument, ...]] = {
    "cpu": ("ledger", "host_net"),
    "cuda": ("cuda_allocated", "ledger"),
}


def sentences(comparison: Comparison, unit: MemoryUnit) -> list[str]:
    """Return the summary, one paragraph for the whole and one for each model and window."""
    paragraphs = [_opening(comparison)]
    found = groups(comparison)
    if len(found) > _MOST_GROUPS:
        paragraphs.append(f"The {len(found)} combinations of model and window have a table each.")
        return paragraphs
    for rows in found.values():
        measured = [row for row in rows if row.outcome == "ok"]
        if measured and len(rows) <= _MOST_METHODS:
            told = [_memory_and_speed(measured, unit)]
            told += [f"{line}." for line in speed_reservations(measured)]
            told += _accuracy(measured)
            changed = [row for row in measured if row.merge and not row.merge.within_tolerance]
            if changed:
                told.append(f"Do not merge {' and '.join(row.method for row in changed)} {merging(changed)}")
            paragraphs.append(f"{group_title(rows)}: " + " ".join(told))
    return paragraphs


def _opening(comparison: Comparison) -> str:
    """Say how many cells there are and how they ended."""
    total = len(comparison.rows)
    cells = "1 cell" if total == 1 else f"{total} cells"
    endings = ", ".join(f"{count} {outcome}" for outcome, count in comparison.outcomes.items())
    scenarios = ", ".join(comparison.scenarios)
    text = f"{cells} of {scenarios}: {endings}."
    if told := environments_told(comparison):
        text += f" {told}"
    elif len(comparison.environments) > 1:
        text += (
            f" The records come from {len(comparison.environments)} different environments; "
            "what differs between them is listed below, and nothing is compared across machines or versions."
        )
    return text


def environments_told(comparison: Comparison) -> str | None:
    """Return one line where environments differ in the project's own commit only."""
    if len(comparison.differences) != 1 or not comparison.differences[0].startswith(f"{COMMIT}: "):
        return None
    commits = comparison.differences[0].removeprefix(f"{COMMIT}: ")
    return f"The records were made by different commits of bench, and are alike in all else: {commits}."


def _memory_and_speed(rows: Sequence[Measured], unit: MemoryUnit) -> str:
    """Say what full fine-tuning takes, and what each other method saves against it."""
    full = next((row for row in rows if row.kind == "full"), None)
    others = [row for row in rows if row.kind != "full"]
    parts = []
    if full:
        parts.append(f"{full.method} {_takes(full, unit)}.")
    parts.extend(f"{row.method} {_takes(row, unit)}{_against(row)}." for row in others)
    return " ".join(parts)


def _takes(row: Measured, unit: MemoryUnit) -> str:
    """Say the peak by the headline instrument and the speed."""
    said = []
    peak = next((row.peak(name) for name in _HEADLINES[row.device] if row.peak(name)), None)
    if peak:
        said.append(f"peaks at {unit.show(peak.peak_bytes)} ({INSTRUMENT_NAMES[peak.instrument]})")
    if row.throughput:
        speed = f"trains {significant(row.throughput.tokens_per_second)} tokens/s"
        said.append(f"{speed} while throttled" if row.throughput.throttled else speed)
    return " and ".join(said) or "was measured in neither memory nor speed"


def _against(row: Measured) -> str:
    """Say the saving and the relative speed, or why there is none."""
    if row.no_reference:
        return f" (no saving stated: {row.no_reference})"
    said = []
    savings = [
        f"{share(abs(peak.saving_share), 0)} {'more' if peak.saving_share < 0 else 'less'}"
        f" by {INSTRUMENT_NAMES[peak.instrument]}"
        for name in _HEADLINES[row.device]
        if (peak := row.peak(name)) and peak.saving_share is not None
    ]
    if savings:
        said.append(f"memory against full {' and '.join(savings)}")
    if row.throughput and row.throughput.against_full is not None:
        said.append(times_full(row.throughput, "its"))
    return f" ({'; '.join(said)})" if said else ""


def merging(changed: Sequence[Measured]) -> str:
    """Return into what not to merge these rows' adapters, and what it does to the logits."""
    shares = sorted(row.merge.worst_share for row in changed if row.merge)
    low, high = share(shares[0], 0), share(shares[-1], 0)
    span = high if low == high else f"{low.removesuffix(' %')} to {high}"
    base = "the quantised base" if any(row.kind == "qlora" for row in changed) else "the base"
    return f"into {base} here: a logit changes by {span} of the largest."


def times_full(speed: Throughput, whose: str) -> str:
    """Return the speed as a multiple of full fine-tuning's, and say where the two are not told apart."""
    overlaps = ", not told apart since the ranges overlap" if speed.against_full_overlaps else ""
    return f"{speed.against_full:.2f} times {whose} speed{overlaps}"


def speed_reservations(rows: Sequence[Measured]) -> list[str]:
    """Return why speeds of these rows are to be taken with care, if they are."""
    speeds = [row.throughput for row in rows if row.throughput]
    told = []
    if any(speed.trend.drift_share is None for speed in speeds):
        told.append("Treat speeds as rough: too few steps were measured to see whether they drifted")
    elif any(speed.rough for speed in speeds):
        drift = share(ROUGH_DRIFT_SHARE, 0)
        told.append(f"Treat speeds as rough: not all kept within {drift} over the measured steps")
    if speeds and rows[0].device == "cpu":
        told.append("Measured on a CPU, which says nothing of a GPU")
    return told


def _accuracy(rows: Sequence[Measured]) -> list[str]:
    """Say where each task's accuracy went."""
    told = []
    for task in dict.fromkeys(result.task for row in rows for result in row.accuracies):
        changes = [
            f"{share(result.before)} to {share(result.after)} ({row.method})"
            for row in rows
            if (result := row.accuracy(task)) and result.before is not None and result.after is not None
        ]
        if changes:
            told.append(f"Accuracy on {task} goes from {', '.join(changes)}.")
        told.extend(_against_full(rows, task))
    return told


def _against_full(rows: Sequence[Measured], task: str) -> list[str]:
    """Say which methods' accuracy differs from full fine-tuning's beyond the chance of the items."""
    compared = [
        (row.method, result.against_full)
        for row in rows
        if row.kind != "full" and (result := row.accuracy(task)) and result.against_full is not None
    ]
    if not compared:
        return []
    differing = [
        f"{method} ({p_value(paired.p_value)})"
        for method, paired in compared
        if paired.p_value < SIGNIFICANT_P
    ]
    told = ", ".join(differing) if differing else "no method"
    verb = "differ" if len(differing) > 1 else "differs"
    return [f"After this one training run {told} {verb} significantly from full there."]
