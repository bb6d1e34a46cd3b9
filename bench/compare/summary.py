"""From records to the rows of a comparison: grouped by cell and key, each set against full fine-tuning.

Nothing is shown here. A number that cannot be had is None, and a caveat or ``no_reference`` says why.
"""

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.compare import runs as over_runs
from bench.compare.caveats import row_caveats
from bench.compare.environments import EnvironmentGroup, differences, environment_groups, label_of, place
from bench.compare.gpu_seen import gpu_seen
from bench.compare.measured import (
    Accuracy,
    Comparison,
    Ending,
    Instrument,
    Measured,
    Peak,
    Throughput,
)
from bench.compare.plausibility import lint
from bench.compare.predicted import against_readings
from bench.compare.recipe import recipe_of
from bench.compare.seeds import over_seeds
from bench.errors import UsageError
from bench.records.derived_metrics import evaluation
from bench.records.records import Caveat, EvaluationReading, Record
from bench.stats.paired import try_pair

_NVML_NAMES: dict[Instrument, str] = {
    "nvml_process": "the process",
    "nvml_device_delta": "the device less what was on it before",
}
# What a method may have its own value of and still be compared with full fine-tuning: it changes what is
# learned, not the memory or the arithmetic of a step.
_MAY_DIFFER = {"learning_rate", "weight_decay", "schedule", "schedule_warmup_steps"}


def compare(records: Sequence[Record]) -> Comparison:
    """Return one row per key (an id may change), in the order of the records but full fine-tuning first.

    Raises UsageError when there is no record at all.
    """
    if not records:
        raise UsageError(
            "there is no record to report on; run `bench run SCENARIO` first, or name its folder"
        )
    places = environment_groups(records)
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.run):
        groups.setdefault(record.key, []).append(record)
    order = dict.fromkeys(record.key for record in _full_first(records))
    rows = [_row(groups[group], places) for group in order]
    fulls = _full_by_window(rows, groups)
    starts = [record.started_at for record in records]
    return Comparison(
        scenarios=tuple(dict.fromkeys(record.cell.scenario for record in records)),
        records=len(records),
        first_started_at=min(starts),
        outcomes=Counter(row.outcome for row in rows),
        rows=tuple(_against_full(row, groups, fulls) for row in rows),
        environments=places,
        differences=differences(places),
        over_seeds=over_seeds(records, places),
    )


def _full_first(records: Sequence[Record]) -> list[Record]:
    """Order records by the first appearance of their model and window, and full fine-tuning first within."""
    appearance: dict[tuple[str, str], int] = {}
    for record in records:
        model, _, window = record.cell.labels
        appearance.setdefault((model, window), len(appearance))

    def place(record: Record) -> tuple[int, bool]:
        model, _, window = record.cell.labels
        return appearance[model, window], record.cell.method.kind != "full"

    return sorted(records, key=place)


def _row(group: Sequence[Record], places: Sequence[EnvironmentGroup]) -> Measured:
    """Return the row of one cell under one key, not yet compared with another."""
    latest, ok = group[-1], [record for record in group if record.outcome == "ok"]
    numbers: dict[str, Any] = _numbers(ok) if ok else {}
    row = Measured(
        id=latest.cell.id,
        cell=latest.cell,
        key=latest.key,
        device_name=_device_name(latest),
        environment=label_of(latest, places),
        outcome="ok" if ok else latest.outcome,
        runs=len(group),
        runs_ok=len(ok),
        endings=tuple(_ending(record) for record in group if record.outcome != "ok"),
        recipe=recipe_of(ok[-1] if ok else latest),
        **numbers,
    )
    findings = [(record, finding) for record in group for finding in lint(record)]
    return replace(
        row,
        caveats=row_caveats(row, ok, [(record.run, finding) for record, finding in findings]),
        doubts=frozenset(finding.doubts for record, finding in findings if record.outcome == "ok"),
    )


def _numbers(ok: Sequence[Record]) -> dict[str, Any]:
    """Return the fields of a row that come from good runs."""
    model = next((record.measurement.model for record in ok if record.measurement.model), None)
    flops = next((record.measurement.flops for record in ok if record.measurement.flops), None)
    times = over_runs.times(ok)
    peaks = over_runs.peaks(ok)
    return {
        "source": model.source if model else None,
        "weights_note": model.weights_note if model else None,
        "parameters_total": model.parameters_total if model else None,
        "parameters_trainable": model.parameters_trainable if model else None,
        "trainable_share": model.parameters_trainable / model.parameters_total if model else None,
        "adapter_file_bytes": model.adapter_file_bytes if model else None,
        "paged_bytes": ok[-1].measurement.paged.paged_bytes if ok[-1].measurement.paged else None,
        "torch_settings": ok[-1].measurement.torch_settings,
        "flops_per_token": flops.step_flops / flops.tokens.non_padding if flops else None,
        "load_time_ns": over_runs.load_time_ns(ok),
        "metrics": over_runs.metrics(ok),
        "peaks": peaks,
        "predictions": against_readings(ok[-1].prediction, peaks),
        "throughput": over_runs.throughput(ok),
        "accuracies": over_runs.accuracies(ok),
        "cause": over_runs.cause(ok),
        "gpu": gpu_seen(ok),
        "losses": over_runs.losses(ok),
        "merge": over_runs.merge(ok),
        "times": times,
    }


def _device_name(record: Record) -> str:
    """Return the card's name or the CPU threads, as the worker found them; else the device's kind."""
    facts = record.measurement.device
    if facts is None:
        return record.cell.device
    if record.cell.device == "cuda":
        return facts.cuda_name or "cuda"
    return "cpu, 1 thread" if facts.cpu_threads == 1 else f"cpu, {facts.cpu_threads} threads"


def _ending(record: Record) -> Ending:
    """Return how a run that is not ok ended."""
    failure = record.failure
    return Ending(
        run=record.run,
        outcome=record.outcome,
        phase=failure.phase if failure else None,
        message=failure.message if failure else "No reason was recorded; run the cell again.",
        requested_bytes=failure.requested_bytes if failure else None,
    )


def _full_by_window(
    rows: Sequence[Measured], groups: Mapping[str, Sequence[Record]]
) -> dict[tuple[Hashable, ...], list[Measured]]:
    """Return the rows of full fine-tuning by what a row must share with one to be set against it."""
    found: dict[tuple[Hashable, ...], list[Measured]] = {}
    for row in rows:
        if row.kind == "full":
            found.setdefault(_same_but_method(groups[row.key][-1]), []).append(row)
    return found


def _against_full(
    row: Measured,
    groups: Mapping[str, Sequence[Record]],
    full_by_window: Mapping[tuple[Hashable, ...], list[Measured]],
) -> Measured:
    """Set a row against full fine-tuning of the same model, data and training, in the same environment."""
    if row.kind == "full":
        return row
    fulls = full_by_window.get(_same_but_method(groups[row.key][-1]), [])
    full = next((other for other in fulls if other.outcome == "ok"), None)
    if full is None:
        ended = (
            f"full fine-tuning ended as {fulls[0].outcome}" if fulls else "full fine-tuning was not run alike"
        )
        return replace(row, no_reference=ended)
    if row.outcome != "ok":
        return replace(row, reference=full.id)
    accuracies, caveats = _paired_with(row, groups[row.key], groups[full.key])
    caveats += _other_instrument(row, full)
    return replace(
        row,
        reference=full.id,
        peaks=tuple(_with_saving(peak, full.peak(peak.instrument)) for peak in row.peaks),
        throughput=_speed_against(row.throughput, full.throughput),
        accuracies=accuracies,
        caveats=(*row.caveats, *caveats),
    )


def _same_but_method(record: Record) -> tuple[Hashable, ...]:
    """Return what two cells must share for their memory and speed to be compared across methods."""
    cell = record.cell
    # With padding to the longest, the number of steps decides which batches are seen.
    steps = (cell.window.warmup_steps, cell.window.measured_steps)
    return (
        cell.device,
        cell.model.model_dump_json(),
        cell.data.model_dump_json(),
        cell.training.model_dump_json(exclude=_MAY_DIFFER),
        steps,
        json.dumps(place(record.environment)),
        record.inputs_digest,
    )


def _with_saving(peak: Peak, full: Peak | None) -> Peak:
    """Add the saving against full fine-tuning, by the same instrument only."""
    if full is None or full.peak_bytes <= 0:
        return peak
    return replace(peak, saving_share=1 - peak.peak_bytes / full.peak_bytes)


def _other_instrument(row: Measured, full: Measured) -> list[Caveat]:
    """Say that NVML's peaks cannot be set against full fine-tuning's where they are not the same reading."""
    ours, theirs = ({peak.instrument for peak in one.peaks} & set(_NVML_NAMES) for one in (row, full))
    if not ours or not theirs or ours & theirs:
        return []
    names = [" and ".join(_NVML_NAMES[name] for name in sorted(found)) for found in (ours, theirs)]
    message = f"NVML's peak is of {names[0]} here and of {names[1]} for full fine-tuning: not compared."
    return [Caveat(code="nvml-instruments-differ", message=message)]


def _speed_against(speed: Throughput | None, full: Throughput | None) -> Throughput | None:
    """Add the speed as a multiple of full fine-tuning's, and whether the ranges meet."""
    if speed is None or full is None:
        return speed
    ratio = speed.tokens_per_second / full.tokens_per_second
    return replace(speed, against_full=ratio, against_full_overlaps=speed.overlaps(full))


def _paired_with(
    row: Measured, group: Sequence[Record], full: Sequence[Record]
) -> tuple[tuple[Accuracy, ...], list[Caveat]]:
    """Pair each task's answers after training with those of full fine-tuning."""
    paired, caveats = [], []
    for accuracy in row.accuracies:
        theirs, ours = _after(full, accuracy.task), _after(group, accuracy.task)
        against_full, reason = try_pair(theirs, ours)
        paired.append(replace(accuracy, against_full=against_full))
        if reason:
            message = f"{accuracy.task} is not compared with full fine-tuning: {reason}."
            caveats.append(Caveat(code="not-paired", message=message))
    return tuple(paired), caveats


def _after(group: Sequence[Record], task: str) -> EvaluationReading | None:
    """Return a task's reading after training, of the first good run that has one."""
    readings = (evaluation(record, task, "after") for record in group if record.outcome == "ok")
    return next((reading for reading in readings if reading), None)
