"""The plain typed rows of a comparison: what the analysis computes and the reports only show.

Bytes, nanoseconds and shares (0 to 1) throughout; None is *not measured*, and never stands for 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.compare.environments import EnvironmentGroup
from bench.compare.plausibility import Doubted
from bench.compare.seeds import OverSeeds
from bench.records.cuda import TorchSettings
from bench.records.gpu import Isolation
from bench.records.records import Category, Caveat, Outcome
from bench.scenario.types import Cell, Device
from bench.stats.paired import Paired
from bench.stats.trend import Trend

Instrument = Literal[
    "ledger",
    "host_net",
    "host",
    "cuda_allocated",
    "cuda_reserved",
    "nvml_process",
    "nvml_device_delta",
]

ROUGH_DRIFT_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The peak memory of training by one instrument: the median over runs, and its range.

    ``saving_share`` is 1 minus this over full fine-tuning by the same instrument.
    """

    instrument: Instrument
    peak_bytes: int
    low_bytes: int
    high_bytes: int
    phase: str
    saving_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Non-padding tokens per second: the median over steps, then over runs.

    The spread is the range over runs when there are several, else the middle half of the steps. *Throttled*
    says that in one run at least the card was too hot, or its supply too weak, for its own speed.
    ``against_full_overlaps``: the two ranges meet, so which is faster is not told.
    """

    tokens_per_second: float
    low: float
    high: float
    spread: Literal["range over runs", "middle half of the steps"]
    runs: int
    steps: int
    trend: Trend
    against_full: float | None = None
    against_full_overlaps: bool | None = None
    throttled: bool = False

    @property
    def rough(self) -> bool:
        """Whether there were too few steps to see a drift, or the drift was a tenth or more."""
        drift = self.trend.drift_share
        return drift is None or abs(drift) >= ROUGH_DRIFT_SHARE

    def overlaps(self, other: "Throughput") -> bool:
        """Return whether the two ranges meet."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One task before and after training, of one run; the errors are standard errors over its items.

    ``not_paired`` is the reason why ``change`` is missing although both readings are there.
    """

    task: str
    metric: str
    instrument: str
    num_fewshot: int
    items: int
    before: float | None
    before_error: float | None
    after: float | None
    after_error: float | None
    change: Paired | None
    not_paired: str | None = None
    against_full: Paired | None = None


@dataclass(frozen=True, kw_only=True)
class GpuSeen:
    """What NVML showed besides peaks: the median over runs, or both ends over runs.

    ``isolations`` are the readings that could be told to be the worker's, each with the reason. Power, clock
    and events are those of the measured steps; the temperature is the highest of the training.
    """

    isolations: tuple[tuple[Isolation, str], ...]
    interval_ns: int
    longest_gap_ns: int
    non_torch_bytes: int | None
    energy_per_token_mj: float | None
    power_mean_mw: float | None
    sm_clock_min_mhz: int | None
    sm_clock_max_mhz: int | None
    temperature_max_c: int | None
    events: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PeakCause:
    """What the ledger saw as the most tensor bytes were alive."""

    phase: str
    op: str
    module: str
    categories_bytes: Mapping[Category, int]
    largest_category: Category
    largest_share: float


@dataclass(frozen=True, kw_only=True)
class TimeBreakdown:
    """Where a cell's wall time went, the median over runs of each part. The parts add up within a run.

    ``overhead_ns`` is all that is not loading, stepping, instrumented steps and checks, or evaluation:
    starting the worker (``starting_ns``), making and tokenising the data (``preparing_ns``), handing over
    results and ending it.
    """

    total_ns: int
    loading_ns: int
    stepping_ns: int
    instruments_ns: int
    evaluation_ns: int
    overhead_ns: int
    starting_ns: int
    preparing_ns: int


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A peak as predicted before the run, beside the one that an instrument then read.

    ``difference_share`` is the prediction less the reading, over the reading; with a band, of its top.
    """

    instrument: Instrument
    low_bytes: int
    high_bytes: int
    measured_bytes: int
    difference_share: float


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss at the first step and the last ones; the mean over up to three steps at each end."""

    first: float
    last: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The largest difference that merging the adapter made to a logit, as shares of the largest logit."""

    worst_share: float
    tolerated_share: float
    within_tolerance: bool


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A run that did not end ok: its outcome and the sentence that says why."""

    run: int
    outcome: Outcome
    phase: str | None
    message: str
    requested_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One cell under one key, over all its runs; ``doubts`` names what kind of numbers lints found wrong.

    ``metrics`` are medians over good runs, by the names and in the units of ``bench.metrics``.
    """

    id: str
    cell: Cell
    key: str
    device_name: str
    environment: str
    outcome: Outcome
    runs: int
    runs_ok: int
    endings: tuple[Ending, ...]
    recipe: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    weights_note: str | None = None
    parameters_total: int | None = None
    parameters_trainable: int | None = None
    trainable_share: float | None = None
    adapter_file_bytes: int | None = None
    paged_bytes: int | None = None
    torch_settings: TorchSettings | None = None
    flops_per_token: float | None = None
    load_time_ns: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    peaks: tuple[Peak, ...] = ()
    throughput: Throughput | None = None
    accuracies: tuple[Accuracy, ...] = ()
    cause: PeakCause | None = None
    gpu: GpuSeen | None = None
    losses: Losses | None = None
    merge: Merge | None = None
    times: TimeBreakdown | None = None
    predictions: tuple[Predicted, ...] = ()
    reference: str | None = None
    no_reference: str | None = None
    caveats: tuple[Caveat, ...] = ()
    doubts: frozenset[Doubted] = frozenset()

    @property
    def model(self) -> str:
        """The model's part of the id."""
        return self.cell.labels.model

    @property
    def method(self) -> str:
        """The method's part of the id."""
        return self.cell.labels.method

    @property
    def window(self) -> str:
        """The training window's part of the id."""
        return self.cell.labels.window

    @property
    def device(self) -> Device:
        """Where the cell runs."""
        return self.cell.device

    @property
    def kind(self) -> Literal["full", "lora", "qlora", "peft"]:
        """The method's kind."""
        return self.cell.method.kind

    def peak(self, instrument: Instrument) -> Peak | None:
        """Return the peak by one instrument, if it was there."""
        return next((peak for peak in self.peaks if peak.instrument == instrument), None)

    def accuracy(self, task: str) -> Accuracy | None:
        """Return the accuracy on one task, if it was evaluated."""
        return next((accuracy for accuracy in self.accuracies if accuracy.task == task), None)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything a report shows."""

    scenarios: tuple[str, ...]
    records: int
    first_started_at: str
    outcomes: Mapping[Outcome, int]
    rows: tuple[Measured, ...]
    environments: tuple[EnvironmentGroup, ...]
    differences: tuple[str, ...]
    over_seeds: tuple[OverSeeds, ...] = ()
