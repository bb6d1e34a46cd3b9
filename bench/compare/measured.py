"""One cell over its runs in one environment, and one such cell set against another.

Everything is read from the records when it is asked for, once. Bytes, nanoseconds and shares (0 to 1)
throughout; None is *not measured*, and never stands for 0.
"""

import re
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from bench.compare import readings
from bench.compare.accuracy import (
    Accuracy,
    AccuracyDifference,
    Readings,
    accuracies_of,
    pair,
    readings_by_seed,
)
from bench.compare.caveats import caveats_of_runs
from bench.compare.environments import EnvironmentGroup
from bench.compare.plausibility import Doubted, Finding, lint
from bench.compare.readings import Peak, Predicted
from bench.errors import counted
from bench.metrics import Instrument
from bench.records.derived_metrics import speed_disturbed
from bench.records.readings import Caveat, TorchSettings
from bench.records.records import Failure, ModelFacts, Outcome, Record
from bench.scenario.cell import EXTRA_READINGS, HOW_IT_LEARNS, Cell
from bench.scenario.types import Device

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


def _over_good_runs(read: Callable[[Sequence[Record]], T]) -> cached_property[T]:
    """Return what ``read`` makes of the good runs, as a property that is worked out once."""
    return cached_property(lambda measured: read(measured.ok))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One cell over all its runs in one environment; other seeds are repeats.

    ``records`` are its runs, at least one, in order; ``reference`` is full fine-tuning alike in all else, and
    ``no_reference`` says why there is none.
    """

    records: tuple[Record, ...]
    where: EnvironmentGroup
    reference: "Measured | None" = None
    no_reference: str | None = None

    @cached_property
    def cell(self) -> Cell:
        """The cell, as its latest run had it."""
        return self.records[-1].cell

    @cached_property
    def setting(self) -> tuple[Hashable, ...]:
        """What cells share that may be set against one another: all but the method and how it learns.

        The number of steps counts: with padding to the longest it decides which batches are seen.
        """
        return self.alike_but_for(_BESIDE_THE_METHOD)

    def alike_but_for(self, ignore: Collection[str]) -> tuple[Hashable, ...]:
        """Return what cells must share to be alike but for ``ignore``: the place and the inputs too."""
        return (*self.cell.comparison_key(ignore), self.where.place, self.records[-1].inputs_digest)

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

    @cached_property
    def key(self) -> str:
        """The key of its latest run, which no other Measured has."""
        return self.records[-1].key

    @cached_property
    def id(self) -> str:
        """The cell's id; without the seed where it was run with several."""
        return without_seed(self.cell.id) if len(self.seeds) > 1 else self.cell.id

    @cached_property
    def model(self) -> str:
        """The model's part of the id."""
        return self.cell.labels.model

    @cached_property
    def method(self) -> str:
        """The method's part of the id."""
        return self.cell.labels.method

    @cached_property
    def window(self) -> str:
        """The training window's part of the id; without the seed where it was run with several."""
        window = self.cell.labels.window
        return without_seed(window) if len(self.seeds) > 1 else window

    @property
    def device(self) -> Device:
        """Where the cell runs."""
        return self.cell.device

    @property
    def kind(self) -> Literal["full", "lora", "qlora", "peft"]:
        """The method's kind."""
        return self.cell.method.kind

    @property
    def environment(self) -> str:
        """The letter of its environment."""
        return self.where.label

    @cached_property
    def ok(self) -> tuple[Record, ...]:
        """The runs that ended ok."""
        return tuple(record for record in self.records if record.outcome == "ok")

    @property
    def outcome(self) -> Outcome:
        """Ok where at least one run ended so, else how the latest ended."""
        return "ok" if self.ok else self.records[-1].outcome

    @property
    def runs(self) -> int:
        """How many runs there are, of all seeds."""
        return len(self.records)

    @property
    def runs_ok(self) -> int:
        """How many of them ended ok."""
        return len(self.ok)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds that it was run with."""
        return tuple(sorted({record.cell.training.seed for record in self.records}))

    @property
    def failed_seeds(self) -> tuple[int, ...]:
        """The seeds without a good run."""
        good = {record.cell.training.seed for record in self.ok}
        return tuple(seed for seed in self.seeds if seed not in good)

    @property
    def endings(self) -> tuple[tuple[Record, Failure], ...]:
        """The runs that are not ok, each with the sentence that says why."""
        return tuple((run, run.failure or _NO_REASON) for run in self.records if run.outcome != "ok")

    @cached_property
    def facts(self) -> ModelFacts | None:
        """What a worker found the model to be."""
        return next((record.measurement.model for record in self.ok if record.measurement.model), None)

    @property
    def weights_note(self) -> str | None:
        """What must be said of the weights, if anything."""
        return self.facts.weights_note if self.facts else None

    @property
    def parameters_trainable(self) -> int | None:
        """How many parameters receive a gradient."""
        return self.facts.parameters_trainable if self.facts else None

    @property
    def trainable_share(self) -> float | None:
        """Trainable parameters over all."""
        return self.facts.parameters_trainable / self.facts.parameters_total if self.facts else None

    @property
    def paged_bytes(self) -> int | None:
        """Optimizer state in CUDA's managed memory."""
        paged = self.ok[-1].measurement.paged if self.ok else None
        return paged.paged_bytes if paged else None

    @property
    def torch_settings(self) -> TorchSettings | None:
        """How torch was set in the latest good run."""
        return self.ok[-1].measurement.torch_settings if self.ok else None

    @property
    def flops_per_token(self) -> float | None:
        """Operations of one step as executed, for each token that is not padding."""
        flops = next((record.measurement.flops for record in self.ok if record.measurement.flops), None)
        return flops.step_flops / flops.tokens.non_padding if flops else None

    metrics = _over_good_runs(readings.metrics)
    peaks = _over_good_runs(readings.peaks)
    throughput = _over_good_runs(readings.throughput)
    accuracies = _over_good_runs(accuracies_of)
    cause = _over_good_runs(readings.cause)
    gpu = _over_good_runs(readings.gpu_seen)
    losses = _over_good_runs(readings.losses)
    merge = _over_good_runs(readings.merge)
    times = _over_good_runs(readings.times)

    @property
    def load_time_ns(self) -> int | None:
        """The median time of the load phase."""
        found = self.metrics.get("load_time_ns")
        return None if found is None else round(found)

    @property
    def predictions(self) -> tuple[Predicted, ...]:
        """What was predicted of these peaks before the run."""
        return readings.predictions(self.ok[-1].prediction, self.peaks) if self.ok else ()

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
        """Return the peak by one instrument, if it was there."""
        return next((peak for peak in self.peaks if peak.instrument == instrument), None)

    def accuracy(self, task: str | None) -> Accuracy | None:
        """Return the accuracy on one task, if it was evaluated."""
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
    def flops_share(self) -> float | None:
        """Operations for each token over the other's, less 1."""
        return _share(self.measured.flops_per_token, self.base.flops_per_token)

    @property
    def speed_ratio(self) -> float | None:
        """Tokens per second over the other's."""
        mine, theirs = self.measured.throughput, self.base.throughput
        return mine.tokens_per_second / theirs.tokens_per_second if mine and theirs else None

    @property
    def speeds_overlap(self) -> bool:
        """Whether the ranges of both speeds meet, so that which is faster is not known."""
        mine, theirs = self.measured.throughput, self.base.throughput
        return bool(mine and theirs and mine.overlaps(theirs))

    @property
    def disturbed(self) -> bool:
        """Whether a speed of either is not its own."""
        return any(speed_disturbed(one.caveats) for one in (self.measured, self.base))

    @property
    def doubted(self) -> frozenset[Doubted]:
        """The kinds of numbers that cannot be right in either."""
        return self.measured.doubts | self.base.doubts

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
        return (*self._unpaired(), *self._other_instrument())

    def _unpaired(self) -> Iterator[Caveat]:
        for task, (_, reason) in self._accuracies.items():
            if reason:
                message = f"{task} is not compared with full fine-tuning: {reason}."
                yield Caveat(code="not-paired", message=message)

    def _other_instrument(self) -> Iterator[Caveat]:
        """Yield that NVML's peak of the process and its peak of the device are not compared."""
        ours, theirs = (
            {peak.instrument for peak in one.peaks} & set(_NVML_NAMES) for one in (self.measured, self.base)
        )
        if ours and theirs and not ours & theirs:
            names = [" and ".join(_NVML_NAMES[name] for name in sorted(found)) for found in (ours, theirs)]
            message = (
                f"NVML's peak is of {names[0]} here and of {names[1]} for full fine-tuning: not compared."
            )
            yield Caveat(code="nvml-instruments-differ", message=message)


def _share(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base - 1
