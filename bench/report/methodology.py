"""The methodology of a report: how each number was measured; only for what the report shows."""

from collections.abc import Sequence

from bench.compare.measured import Measured
from bench.metrics import INSTRUMENT_NAMES, Instrument
from bench.records.derived_metrics import LEAST_ENERGY_TIME_NS
from bench.records.records import NS_PER_SECOND
from bench.report.fit import WHAT_SET_IT
from bench.report.text import share
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


# What is said where a row holds it, by the name of what it holds.
_LINES: dict[str, str] = {
    "cause": (f"**Peak set by**: {WHAT_SET_IT}"),
    "predictions": (
        "**Predicted**: before the run, by tracing the window on tensors without data, every sequence at "
        "its full length. The difference is the prediction (of a band its top) less the reading, over "
        "the reading."
    ),
    "gpu": (
        "**NVML**: asked by the parent process, never by the worker. Which of its readings is the "
        "worker's was tested before loading, by a block of known size. *Not torch's*: NVML less torch's "
        "reserved bytes as the worker stood still after the measured steps. Energy per token: the card's "
        f"counter over the measured steps, if these took {LEAST_ENERGY_TIME_NS / NS_PER_SECOND:g} s or "
        "more, since it is brought up to date every 20 to 100 ms."
    ),
    "throughput": (
        "**tokens/s**: non-padding tokens over the time of an optimizer step; the median over measured "
        "steps, then over runs. In brackets the range over runs or, with one run, the middle half of its "
        f"steps. *Not steady*: Mann-Kendall p < {SIGNIFICANCE} and a Theil-Sen drift above "
        f"{share(SMALLEST_DRIFT_SHARE, 0)} over the measured steps; *no clear trend*: such a drift "
        "without that significance."
    ),
    "accuracies": (
        "**Accuracy**: lm-eval on the same items before and after training, ± one standard error over "
        "items. Changes are paired by question and tested by the exact two-sided McNemar test; the "
        "p-values are not corrected for the number of comparisons, and cover items, not training seeds."
    ),
    "seeds": (
        "**Seeds**: runs that differ in the training seed alone are one row. Its loss is their mean, its "
        "accuracy their mean with Student's 95 % interval over seeds, cut off at 0 and 100 %; differences "
        "are taken seed by seed, and their p-values cover seeds."
    ),
    "losses": ("**Training loss**: the mean over the first and the last steps, up to three each."),
    "merge": (
        "**Merging**: the adapter is merged into the base, for good, and the logits of one batch are "
        "compared; both numbers are shares of the largest logit. The tolerance is about twice what "
        "rounding the merged weights once, to 16 or 32 bit, did to trained adapters of rank 8 to 64. A "
        "4-bit or 8-bit base has to be quantised again after a merge, which rounds far more coarsely: "
        "merge such an adapter into the unquantised base instead."
    ),
    "times": (
        "**All else**: wall time that is not loading, stepping, instrumented steps or evaluation, and of "
        "it the start of the worker and the making of the data. The libraries are imported once, before "
        "the first cell. Medians over runs, so that the parts of several runs need not add up."
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
    lines += [line for name, line in _LINES.items() if any(_holds(row, name) for row in rows)]
    lines.append("**n/a**: not measured.")
    return lines


def _holds(row: Measured, name: str) -> bool:
    return len(row.seeds) > 1 if name == "seeds" else bool(getattr(row, name))
