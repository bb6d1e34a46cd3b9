"""How each number of a report was read; only for what the report shows."""

from collections.abc import Collection, Iterator, Sequence

from bench.compare.measured import Measured
from bench.compare.plans import PlanRow, card_counts
from bench.metrics import INSTRUMENT_NAMES, Instrument
from bench.records.derived_metrics import LEAST_ENERGY_TIME_NS, NS_PER_SECOND
from bench.records.predictions import Plan
from bench.report.text import GIBIBYTES, share
from bench.scenario.platforms import Platform
from bench.stats.trend import SIGNIFICANCE, SMALLEST_DRIFT_SHARE

_INSTRUMENTS: dict[Instrument, str] = {
    "ledger": (
        "exact bytes of all tensor storages alive at once over a steady pair of steps, "
        "outside the timed ones. Scratch memory inside a kernel is not seen"
    ),
    "host_net": (
        "the kernel's high-water mark of resident memory (VmHWM, reset as each phase begins) over loading "
        "and training, less what was resident as loading began. Mapped weight files count as resident"
    ),
    "host": "the same high-water mark with Python and the libraries in it",
    "cuda_allocated": (
        "torch.cuda.max_memory_allocated, reset as each phase begins, over loading and training"
    ),
    "cuda_reserved": (
        "torch.cuda.max_memory_reserved: what torch's caching allocator held, fragmentation included"
    ),
    "nvml_process": (
        "the most that NVML gave the worker's process over loading and training, context and libraries "
        "included: the largest of samples, so that shorter spikes are missed"
    ),
    "nvml_device_delta": (
        "where NVML tells no bytes of a process: the most used on the whole device, less what was used "
        "before the worker started; the largest of samples"
    ),
}


def how_read(rows: Sequence[Measured]) -> list[str]:
    """Return one line of Markdown for each kind of number that the rows hold."""
    lines = [
        f"**{INSTRUMENT_NAMES[instrument]}**: {meaning}."
        for instrument, meaning in _INSTRUMENTS.items()
        if any(row.peak(instrument) for row in rows)
    ]
    if lines:
        lines.append(
            "**Saving**: against full fine-tuning of the same model, data and training window on the same "
            "machine, by the same instrument. Different instruments are never set against each other. "
            "Evaluation is left out of every peak."
        )
    if any(row.cause for row in rows):
        lines.append(f"**Peak set by**: {WHAT_SET_IT}")
    if any(row.predictions for row in rows):
        lines.append(
            "**Predicted**: before the run, by tracing the window on tensors without data, every sequence at "
            "its full length. The difference is the prediction (of a band its top) less the reading, over "
            "the reading."
        )
    if any(row.gpu for row in rows):
        lines.append(
            "**NVML**: asked by the parent process, never by the worker. Which of its readings is the "
            "worker's was tested before loading, by a block of known size. *Not torch's*: NVML less torch's "
            "reserved bytes as the worker stood still after the measured steps. Energy per token: the card's "
            f"counter over the measured steps, if these took {LEAST_ENERGY_TIME_NS / NS_PER_SECOND:g} s or "
            "more, since it is brought up to date every 20 to 100 ms."
        )
    if any(row.throughput for row in rows):
        lines.append(
            "**tokens/s**: non-padding tokens over the time of an optimizer step; the median over measured "
            "steps, then over runs. In brackets the range over runs or, with one run, the middle half of its "
            f"steps. *Not steady*: Mann-Kendall p < {SIGNIFICANCE} and a Theil-Sen drift above "
            f"{share(SMALLEST_DRIFT_SHARE, 0)} over the measured steps; *no clear trend*: such a drift "
            "without that significance."
        )
    if any(row.accuracies for row in rows):
        lines.append(
            "**Accuracy**: lm-eval on the same items before and after training, ± one standard error over "
            "items. Changes are paired by question and tested by the exact two-sided McNemar test; the "
            "p-values are not corrected for the number of comparisons, and cover items, not training seeds."
        )
    lines += _on_seeds(rows)
    if any(row.losses for row in rows):
        lines.append("**Training loss**: the mean over the first and the last steps, up to three each.")
    if any(row.merge for row in rows):
        lines.append(
            "**Merging**: the adapter is merged into the base, for good, and the logits of one batch are "
            "compared; both numbers are shares of the largest logit. The tolerance is about twice what "
            "rounding the merged weights once, to 16 or 32 bit, did to trained adapters of rank 8 to 64. A "
            "4-bit or 8-bit base has to be quantised again after a merge, which rounds far more coarsely: "
            "merge such an adapter into the unquantised base instead."
        )
    if any(row.times for row in rows):
        lines.append(
            "**All else**: wall time that is not loading, stepping, instrumented steps or evaluation, and of "
            "it the start of the worker and the making of the data. The libraries are imported once, before "
            "the first cell. Medians over runs, so that the parts of several runs need not add up."
        )
    lines.append("**n/a**: not measured. It never stands for nought.")
    return lines


def _on_seeds(rows: Sequence[Measured]) -> list[str]:
    line = (
        "**Seeds**: runs that differ in the training seed alone are one row. Its accuracy is their mean with "
        "Student's 95 % interval over seeds, cut off at 0 and 100 %; differences are taken seed by seed."
    )
    return [line] if any(len(row.seeds) > 1 for row in rows) else []


WHAT_SET_IT = (
    "the operator that ran as most bytes were alive, and the nearest module that was known "
    "to be running or to own what it read; (gradients only) marks an operator that read gradients and no "
    "module's tensors, so that it came after that module. The part is the largest of all live bytes then."
)
_VALIDATED = "How near such predictions came to readings is in the project's report/prediction.md."
PREDICTED = f"Predicted, not measured: nothing of this was read on a GPU. {_VALIDATED}"


def sentences(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[str]:
    """Yield what the plan says as a whole."""
    refused = sum(row.forecast is None for row in rows)
    if refused:
        yield f"{refused} of {_cells(len(rows))} cannot be predicted; the reasons are given below the table."
    if refused == len(rows):
        return
    if plan.ladder:
        nowhere = sum(row.forecast is not None and bool(row.verdicts) and not row.fitting for row in rows)
        if nowhere:
            largest, verb = _named(plan.cards[-1].title), "fits" if nowhere == 1 else "fit"
            yield f"{_cells(nowhere)} of {len(rows)} {verb} on no card tried, not even {largest}."
        return
    for count in card_counts(plan):
        answers = [
            _counted(count.fit, "fits", "fit"),
            _counted(count.not_fit, "does not fit", "do not fit"),
            _counted(count.close, "is too close to call", "are too close to call"),
        ]
        yield f"On {_named(count.card.title)}, {', '.join(filter(None, answers)) or 'no cell is judged'}."


def _counted(count: int, one: str, many: str) -> str | None:
    return None if count == 0 else f"{_cells(count)} {one if count == 1 else many}"


def _named(title: str) -> str:
    return title if title.startswith("a ") else f"one {title}"


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def notes_on(plan: Plan, rows: Sequence[PlanRow]) -> Iterator[str]:
    """Yield how each number came about and what was assumed."""
    forecasts = [row.forecast for row in rows if row.forecast]
    if not forecasts:
        return
    platforms = {platform for forecast in forecasts for platform in forecast.platforms}
    yield (
        "Nothing was run. The training window was traced on tensors without data, every sequence at its full "
        f"length, for {_targets(platforms)}. {_VALIDATED}"
    )
    if any(platform.device == "cpu" for platform in platforms):
        yield (
            "Live tensors: the peak of tensor bytes alive at once, as the ledger of a run on the CPU counts "
            "it; the process takes more. Name a card with --gpu or --memory to ask about one."
        )
    if not plan.cards:
        return
    settings = f"PYTORCH_CUDA_ALLOC_CONF={plan.allocator}" if plan.allocator else "its default settings"
    yield f"Peak set by: {WHAT_SET_IT}"
    yield (
        "Allocated: torch.cuda.max_memory_allocated. Reserved: max_memory_reserved, from a replay through a "
        f"model of torch's caching allocator with {settings}; the band is from replays that vary the order "
        "in which weights load (unless they are quantised on the way), the loader's first block and the "
        "addresses of segments, but not the length of sequences. A cell fits if the top of the band and the "
        "CUDA context together do (the total, or the figure beside a card), and does not fit if even what is "
        "allocated and the context do not; between the two is too close to call."
    )
    if any(forecast.paged_bytes for forecast in forecasts):
        yield "Paged: optimizer state in managed memory, which moves to host memory when the card is full."
    if plan.ladder:
        yield (
            "No card was named, so these were tried, all with the kernels of the compute capability above: "
            f"{', '.join(card.name for card in plan.cards)}. Name yours with --gpu or --memory."
        )
    yield from card_notes(plan)
    yield from dict.fromkeys(caveat.message for forecast in forecasts for caveat in forecast.caveats)


def card_notes(plan: Plan) -> Iterator[str]:
    """Yield what each card is taken to have, and what of it is assumed."""
    for card in plan.cards:
        usable, context = GIBIBYTES.show(card.usable_bytes), GIBIBYTES.show(card.context_bytes)
        assumed = f"; {', '.join(card.assumptions)}" if card.assumptions else ""
        yield f"{card.name}: {card.title}, {usable} usable, CUDA context {context}{assumed}."


def _targets(platforms: Collection[Platform]) -> str:
    """Say what was predicted for: devices and versions."""
    versions = {f"torch {one.torch}, bitsandbytes {one.bitsandbytes}" for one in platforms}
    cuda = sorted({one.capability for one in platforms if one.device == "cuda"})
    names = (
        [f"CUDA compute capability {' and '.join(f'{major}.{minor}' for major, minor in cuda)}"]
        if cuda
        else []
    )
    names += ["the CPU"] if any(one.device == "cpu" for one in platforms) else []
    return f"{' and '.join(names)} ({'; '.join(sorted(versions))})"


def why_untried(plan: Plan) -> str | None:
    """Say why no changes are shown, where none were tried."""
    if any(planned.changes is not None for planned in plan.cells):
        return None
    return (
        "What changes would free was not predicted, since the plan has many cells; choose some with --only, "
        "or ask with --advice, which tries changes on the cells that do not fit."
    )
