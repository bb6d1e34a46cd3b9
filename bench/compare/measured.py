"""One cell over its runs in one environment, and one such cell set against another.

Everything is read from the records when it is asked for, once. Bytes, nanoseconds and shares (0 to 1)
throughout; None is *not measured*, and never stands for 0.
"""

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from msgspec import UNSET

from bench.compare import Reason, readings, reason_of
from bench.compare.accuracy import (
    Accuracy,
    AccuracyDifference,
    Readings,
    accuracies_of,
    mean_over_seeds,
    pair,
    readings_by_seed,
    text_losses,
)
from bench.compare.caveats import EnvironmentGroup, caveats_of_runs
from bench.compare.plausibility import Doubted, Finding, lint
from bench.compare.readings import Peak, Predicted, PredictedSpeed
from bench.errors import counted
from bench.metrics import Instrument
from bench.records.derived_metrics import speed_disturbed
from bench.records.readings import Caveat
from bench.records.records import Failure, Outcome, RankReading, Record
from bench.scenario.cell import EXTRA_READINGS, HOW_IT_LEARNS

_NVML_NAMES: dict[Instrument, str] = {
    "nvml_process": "the process",
    "nvml_device_delta": "the device less what was on it before",
}
_BESIDE_THE_METHOD = {"method", "evaluation", "training.seed", *HOW_IT_LEARNS, *EXTRA_READINGS}
_NO_REASON = Failure(message="No reason was recorded; run the cell again.")
T = TypeVar("T")
_SEED_TOKEN = re.compile(r"-seed=\d+(?=[-/]|$)")


def without_seed(name: str) -> str:
    """Return an id, or its last part, without the seed that a list of seeds puts into it."""
    return _SEED_TOKEN.sub("", name)


def _view(read: Callable[["Measured"], T]) -> cached_property[T]:
    """Return what ``read`` makes of a measured cell, as a property that is worked out once."""
    return cached_property(read)


def _over_good_runs(read: Callable[[Sequence[Record]], T]) -> cached_property[T]:
    return _view(lambda measured: read(measured.ok))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One cell over all its runs in one environment; other seeds are repeats.

    ``records`` are its runs, at least one, in order; ``reference`` is full fine-tuning alike in all else, and
    ``no_reference`` says why there is none; ``fewer`` is the same on the fewest GPUs, of a cell over several.
    The cell is as its latest run had it, the key the latest run's, which no other has. ``id`` and ``window``
    are without the seed where it was run with several.
    """

    records: tuple[Record, ...]
    where: EnvironmentGroup
    reference: "Measured | None" = None
    no_reference: str | None = None
    fewer: "Measured | None" = None

    seeds = _view(lambda one: tuple(sorted({run.cell.training.seed for run in one.records})))
    cell = _view(lambda one: one.records[-1].cell)
    key = _view(lambda one: one.records[-1].key)
    id = _view(lambda one: without_seed(one.cell.id) if len(one.seeds) > 1 else one.cell.id)
    model = _view(lambda one: one.cell.labels.model)
    method = _view(lambda one: one.cell.labels.method)
    window = _view(
        lambda one: without_seed(one.cell.labels.window) if one.seeds[1:] else one.cell.labels.window
    )
    device = _view(lambda one: one.cell.device)
    kind = _view(lambda one: one.cell.method.kind)
    environment = _view(lambda one: one.where.label)
    gpus = _view(lambda one: one.cell.parallel.gpus)

    def alike_but_for(self, ignore: Collection[str]) -> tuple[Hashable, ...]:
        """Return what cells must share to be alike but for ``ignore``: the place and the inputs too."""
        last = self.records[-1]
        inputs = last.data_digest if "loop.driver" in ignore else last.inputs_digest
        return (*self.cell.comparison_key(ignore), self.where.place, inputs)

    @cached_property
    def setting(self) -> tuple[Hashable, ...]:
        """What cells share that may be set against one another: all but the method and how it learns.

        The number of steps counts: with padding to the longest it decides which batches are seen.
        """
        return self.alike_but_for(_BESIDE_THE_METHOD)

    @cached_property
    def known_device(self) -> str | None:
        """The card's name or the CPU threads, as the latest worker found them; None where none looked."""
        found = (record.measurement.device for record in reversed(self.records))
        facts = next((facts for facts in found if facts), None)
        if facts is None:
            return None
        if self.device == "cuda":
            return facts.cuda_name or "cuda"
        return f"cpu, {counted(facts.cpu_threads, 'thread')}"

    @property
    def device_name(self) -> str:
        """The same, or as the cell asks for it."""
        return self.known_device or self.device

    ok = _view(lambda one: tuple(run for run in one.records if run.outcome == "ok"))
    runs = _view(lambda one: len(one.records))
    runs_ok = _over_good_runs(len)

    @property
    def outcome(self) -> Outcome:
        """Ok where at least one run ended so, else how the latest ended."""
        return "ok" if self.ok else self.records[-1].outcome

    @property
    def failed_seeds(self) -> tuple[int, ...]:
        good = {record.cell.training.seed for record in self.ok}
        return tuple(seed for seed in self.seeds if seed not in good)

    @property
    def endings(self) -> tuple[tuple[Record, Failure], ...]:
        return tuple((run, run.failure or _NO_REASON) for run in self.records if run.outcome != "ok")

    # What the good runs give together, each None or empty where it was not measured.
    metrics = _over_good_runs(readings.metrics)
    metric_spans = _over_good_runs(readings.metric_spans)
    peaks = _over_good_runs(readings.peaks)
    cause = _over_good_runs(readings.cause)
    throughput = _over_good_runs(readings.throughput)
    flops_per_token = _over_good_runs(readings.flops_per_token)
    accuracies = _over_good_runs(accuracies_of)
    text_losses = _over_good_runs(text_losses)
    text_loss = _view(lambda one: mean_over_seeds([*one.text_losses.values()]) if one.text_losses else None)
    losses = _over_good_runs(readings.losses)
    merge = _over_good_runs(readings.merge)
    gpu = _over_good_runs(readings.gpu_seen)
    times = _over_good_runs(readings.times)
    load_time_ns = _view(lambda one: one.metrics.get("load_time_ns"))
    facts = _over_good_runs(readings.model_facts)
    weights_note = _view(lambda one: one.facts.weights_note if one.facts else None)
    parameters_trainable = _view(lambda one: one.facts.parameters_trainable if one.facts else None)
    trainable_share = _view(
        lambda one: one.facts.parameters_trainable / one.facts.parameters_total if one.facts else None
    )
    torch_settings = _over_good_runs(lambda runs: runs[-1].measurement.torch_settings if runs else None)

    @property
    def paged_bytes(self) -> int | None:
        """Optimizer state in CUDA's managed memory."""
        paged = self.ok[-1].measurement.paged if self.ok else None
        return paged.paged_bytes if paged else None

    @property
    def ranks(self) -> tuple[RankReading, ...]:
        """What each process of several had, in the latest good run."""
        ranks = self.ok[-1].measurement.ranks if self.ok else UNSET
        return () if ranks is UNSET else ranks

    @property
    def tokens_per_second_per_gpu(self) -> float | None:
        return self.throughput.tokens_per_second / self.gpus if self.throughput else None

    @property
    def scaling_efficiency(self) -> float | None:
        """Tokens/s of each GPU over the same with fewer; None where that or a quiet machine is wanting."""
        one = Contrast(self, self.fewer) if self.fewer else None
        if one is None or one.disturbed or (ratio := one.speed_ratio) is None:
            return None
        return ratio * one.base.gpus / self.gpus

    @property
    def predictions(self) -> tuple[Predicted, ...]:
        return readings.predictions(self.ok[-1].prediction, self.peaks) if self.ok else ()

    @property
    def predicted_speeds(self) -> tuple[PredictedSpeed, ...]:
        return readings.predicted_speeds(self.ok[-1], self.throughput) if self.ok else ()

    @property
    def phase_predictions(self) -> tuple[Predicted, ...]:
        """What was predicted of the phases of the first step, on a GPU."""
        return readings.phase_predictions(self.ok[-1]) if self.ok else ()

    @cached_property
    def findings(self) -> tuple[tuple[Record, Finding], ...]:
        """What cannot be right in any of its runs."""
        return tuple((record, finding) for record in self.records for finding in lint(record))

    @cached_property
    def doubts(self) -> frozenset[Doubted]:
        """The kinds of numbers that cannot be right in a good run."""
        return frozenset(finding.doubts for record, finding in self.findings if record.outcome == "ok")

    @cached_property
    def caveats(self) -> tuple[Caveat, ...]:
        """What a reader must know beyond the numbers, each once."""
        found = caveats_of_runs(self.records, self.findings, self.throughput, self.accuracies, self.merge)
        return tuple(dict.fromkeys([*found, *(self.against_full.caveats if self.against_full else ())]))

    @property
    def disturbed_runs(self) -> int:
        """How many good runs had a speed that is not their own."""
        return sum(speed_disturbed(record.measurement.caveats) for record in self.ok)

    @cached_property
    def against_full(self) -> "Contrast | None":
        """This cell against full fine-tuning; None for full fine-tuning itself and where there is none."""
        return Contrast(self, self.reference) if self.ok and self.reference else None

    def peak(self, instrument: Instrument | None) -> Peak | None:
        return next((peak for peak in self.peaks if peak.instrument == instrument), None)

    def accuracy(self, task: str | None) -> Accuracy | None:
        return next((one for one in self.accuracies if one.task == task), None)

    def answers(self, task: str) -> Readings:
        """Return the readings of a task after training, by seed."""
        return readings_by_seed(self.ok, task, "after")


@dataclass(frozen=True, eq=False)
class Contrast:
    """One measured cell against another: shares of the other's value, 0 being no change; None: not measured.

    Numbers are only ever of one instrument. Where a number of both cannot be compared, ``caveats`` say why.
    """

    measured: Measured
    base: Measured

    def memory_share(self, instrument: Instrument | None) -> float | None:
        """Return the peak over the other's by the same instrument, less 1."""
        mine, theirs = self.measured.peak(instrument), self.base.peak(instrument)
        return _share(mine.peak_bytes if mine else None, theirs.peak_bytes if theirs else None)

    def predicted_share(self, instrument: Instrument) -> float | None:
        """Return the same of what was predicted before the runs."""
        found = [
            next((each.high_bytes for each in one.predictions if each.instrument == instrument), None)
            for one in (self.measured, self.base)
        ]
        return _share(*found)

    @property
    def reason(self) -> Reason | None:
        """What makes most of the difference between the peaks of live tensors."""
        mine, theirs = self.measured.cause, self.base.cause
        if mine is None or theirs is None:
            return None
        return reason_of(mine.categories_at_peak_bytes, theirs.categories_at_peak_bytes)

    @property
    def flops_share(self) -> float | None:
        """Operations for each token over the other's, less 1."""
        return _share(self.measured.flops_per_token, self.base.flops_per_token)

    @property
    def speed_ratio(self) -> float | None:
        mine, theirs = self.measured.throughput, self.base.throughput
        return mine.tokens_per_second / theirs.tokens_per_second if mine and theirs else None

    @property
    def speeds_overlap(self) -> bool:
        """Whether the ranges of both speeds meet, so that which is faster is not known."""
        mine, theirs = self.measured.throughput, self.base.throughput
        return bool(mine and theirs and mine.low <= theirs.high and theirs.low <= mine.high)

    @property
    def disturbed(self) -> bool:
        return any(speed_disturbed(one.caveats) for one in (self.measured, self.base))

    def accuracy(self, task: str | None) -> AccuracyDifference | None:
        """Return the difference on a task after training; None where it was not asked alike."""
        return self._accuracies[task][0] if task in self._accuracies else None

    @cached_property
    def _accuracies(self) -> dict[str | None, tuple[AccuracyDifference | None, str | None]]:
        tasks = [one.task for one in self.measured.accuracies]
        return {task: pair(self.measured.answers(task), self.base.answers(task), task) for task in tasks}

    @cached_property
    def caveats(self) -> tuple[Caveat, ...]:
        """What of full fine-tuning's numbers these are not compared with, and why."""
        found = [
            ("not-paired", f"{task} is not compared with full fine-tuning: {reason}.")
            for task, (_, reason) in self._accuracies.items()
            if reason
        ]
        ours, theirs = (
            {peak.instrument for peak in one.peaks} & set(_NVML_NAMES) for one in (self.measured, self.base)
        )
        if ours and theirs and not ours & theirs:
            here, full = (" and ".join(_NVML_NAMES[name] for name in sorted(each)) for each in (ours, theirs))
            told = f"NVML's peak is of {here} here and of {full} for full fine-tuning: not compared."
            found.append(("nvml-instruments-differ", told))
        return tuple(Caveat(code=code, message=message) for code, message in found)


def _share(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base - 1
