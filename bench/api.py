"""What the functions of ``import bench`` return: results, plans and bounds, as pandas DataFrames.

Columns carry their unit in their name (``_bytes``, ``_ns``). Missing is NA, never 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.compare.comparison import Comparison, compare
from bench.compare.plausibility import with_findings
from bench.errors import UsageError
from bench.records.predictions import Fit, Plan, Prediction
from bench.records.records import Measurement, Record
from bench.records.store import gather
from bench.records.table import tidy
from bench.report.comparison_columns import comparison_frame

if TYPE_CHECKING:
    import altair as alt

_Row = Mapping[str, Any]


def _quiet(_done: int, _total: int) -> None:
    """Show no progress: a notebook has its own sign that a cell is busy."""


def _picked(thing: object, *names: str) -> _Row:
    return {name: getattr(thing, name) for name in names}


@dataclass(frozen=True)
class Results:
    """Records of one or several results folders; ``problems`` says what could not be read."""

    records: tuple[Record, ...]
    problems: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run: every setting, outcome, metric, caveat and the environment."""
        return with_findings(tidy(self.records), self.records)

    def _frame(self, rows: Callable[[Measurement], Iterable[_Row]]) -> pd.DataFrame:
        """Return one row per part of a record, each with the cell and the run it belongs to."""
        found = [
            {"cell": record.cell.id, "key": record.key, "run": record.run, **row}
            for record in self.records
            for row in rows(record.measurement)
        ]
        return pd.DataFrame(found).convert_dtypes()

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per optimizer step: stage, time, token counts, loss, gradient norm."""
        return self._frame(
            lambda measurement: [
                {
                    "step": step.index,
                    **_picked(step, "stage", "step_time_ns"),
                    "tokens_non_padding": step.tokens.non_padding,
                    "tokens_loss_bearing": step.tokens.loss_bearing,
                    "tokens_computed": step.tokens.computed,
                    **_picked(step, "loss", "gradient_norm", "skipped"),
                }
                for step in measurement.steps
            ]
        )

    @cached_property
    def phases(self) -> pd.DataFrame:
        """One row per phase of a run: duration, and the peak by each instrument."""
        on_host = "duration_ns", "host_start_bytes", "host_peak_bytes"
        on_gpu = "cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes"
        return self._frame(
            lambda measurement: [
                {"phase": phase.name, **_picked(phase, *on_host, *on_gpu)} for phase in measurement.phases
            ]
        )

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row per evaluated item: task, before or after training, and whether it was right."""
        return self._frame(
            lambda measurement: [
                {
                    **_picked(reading, "task", "when", "metric"),
                    **_picked(item, "doc_id", "doc_hash", "correct"),
                }
                for reading in measurement.evaluations
                for item in reading.items
            ]
        )

    @cached_property
    def comparison(self) -> Comparison:
        """Every cell over its runs, set against full fine-tuning: what reports show."""
        return compare(self.records)

    def compare(self, other: "Results | None" = None) -> pd.DataFrame:
        """Return one row per cell with savings and relative speed; or, given others, this set against them.

        Against ``other`` there is one row per cell and metric: both values, the ratio with its interval, the
        verdict by the default rules of ``bench compare``; this set is the base. Raises UsageError unless
        each set was loaded from one path.
        """
        if other is None:
            return comparison_frame(self.comparison)
        from bench.gate.stored import compare_results
        from bench.scenario.gate import GateSpec

        if len(self.paths) != 1 or len(other.paths) != 1:
            raise UsageError("load each of the two sets from one path, then compare them")
        verdicts = compare_results(str(self.paths[0]), str(other.paths[0]), GateSpec())
        return pd.DataFrame([asdict(one) for one in verdicts.judgements]).convert_dtypes()

    def figure(self, name: str) -> "alt.Chart":
        """Return a figure as an Altair chart. Raises UsageError where there is none of that name."""
        import altair as alt

        from bench.report.figures import comparison_figures

        figures = {figure.name: figure for figure in comparison_figures(self.comparison)}
        there = [known for known, figure in figures.items() if figure.missing is None]
        if name not in there:
            why = f" ({figures[name].missing})" if name in figures else ""
            raise UsageError(f"no figure {name!r}{why}; choose one of {', '.join(there)}")
        return alt.Chart.from_dict(figures[name].specification())

    def _repr_html_(self) -> str:
        return self.compare().to_html(index=False, na_rep="n/a")


@dataclass(frozen=True)
class Plans:
    """Predicted peak memory of a scenario's cells."""

    plan: Plan

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell and card: what is needed, what the card has, and the answer; NA where refused."""
        rows: list[_Row] = []
        for planned in self.plan.cells:
            found = planned.answer
            row: dict[str, Any] = {"cell": planned.cell.id, **planned.cell.labels._asdict()}
            if isinstance(found, Prediction):
                row["allocated_bytes"] = found.allocated_peak_bytes
                row |= _picked(found, "reserved_low_bytes", "reserved_high_bytes")
            else:
                row["refusal"] = found.message
            cards = [
                _picked(fit, "card", "answer", "needed_bytes", "usable_bytes") for fit in planned.verdicts
            ]
            rows += [{**row, **card} for card in cards or [{}]]
        return pd.DataFrame(rows).convert_dtypes()

    def _repr_html_(self) -> str:
        return self.cells.to_html(index=False, na_rep="n/a")


@dataclass(frozen=True)
class Bounds:
    """The largest batch, length and rank of each method on a card."""

    fit: Fit

    @cached_property
    def bounds(self) -> pd.DataFrame:
        """One row per method and axis: the largest value that fits, and what the others were held at."""
        rows = [
            {
                **_picked(bound, "method", "axis"),
                "fits": bound.fits.value if bound.fits else None,
                "needed_bytes": bound.fits.verdict.needed_bytes if bound.fits else None,
                **_picked(bound, "limit", "micro_batch", "sequence_length", "rank", "refusal"),
            }
            for bound in self.fit.bounds
        ]
        return pd.DataFrame(rows).convert_dtypes()

    def _repr_html_(self) -> str:
        return self.bounds.to_html(index=False, na_rep="n/a")


def load(*paths: str | Path) -> Results:
    """Return the records of results folders and record files, each run once.

    Raises ``bench.errors.UsageError`` where a path holds no record.
    """
    places = tuple(map(Path, paths))
    loaded = gather(places)
    return Results(loaded.records, loaded.problems, places)


def run(scenario: str | Path, *, only: str | None = None, repeats: int = 1) -> Results:
    """Run the cells of a scenario that are not under results/<scenario> yet; return the records of all.

    ``only`` is a glob on ids of cells. Raises ``bench.errors.UsageError`` for a mistake in the file.
    """
    from bench.runner.live import open_console, watch
    from bench.runner.schedule import SweepOptions
    from bench.runner.sweep import run_sweep
    from bench.scenario.load import load_scenario

    loaded = load_scenario(Path(scenario))
    folder = Path("results") / loaded.name
    options = SweepOptions(results=folder, repeats=repeats, only=only, predict=True)
    with watch(open_console()) as observer:
        records = run_sweep(loaded.cells, options, observer).records
    return Results(records, paths=(folder,))


def plan(
    scenario: str | Path, *, gpu: Sequence[str] = (), memory: Sequence[str] = (), only: str | None = None
) -> Plans:
    """Predict the peak memory of a scenario's cells on cards (``"rtx4090"``) or sizes (``"24GiB"``).

    Runs nothing. Raises ``bench.errors.UsageError`` for an unknown card or a mistake in the file.
    """
    from bench.predict.kept import Kept
    from bench.predict.plan import PlanRequest, chosen_cards, plan_scenario

    request = PlanRequest(cards=chosen_cards(gpu, memory), advice=False, kept=Kept())
    return Plans(plan_scenario(Path(scenario), only, request, _quiet))


def fit(
    model: str,
    *,
    gpu: str | None = None,
    memory: str | None = None,
    methods: Sequence[str] = ("full", "lora", "qlora"),
    lengths: Sequence[int] = (512, 1024, 2048, 4096),
    rank: int = 16,
    gpus: Sequence[int] = (1,),
) -> Bounds:
    """Find the largest batch, sequence length and rank of each method that fit on one card or size.

    With ``gpus`` such as ``(1, 2, 4, 8)`` the largest batch on each of so many, by FSDP2.
    Runs nothing. Raises ``bench.errors.UsageError`` unless exactly one of ``gpu`` and ``memory`` is given.
    """
    from bench.predict.fit import FitRequest, find_bounds, one_card, training_of
    from bench.predict.kept import Kept

    request = FitRequest(
        model=model,
        card=one_card(gpu, memory),
        methods=tuple(methods),
        rank=rank,
        micro_batch=1,
        lengths=tuple(lengths),
        gpus=tuple(gpus),
        training=training_of(dtype="bf16", gradient_checkpointing="non-reentrant", optimizer="adamw-fused"),
        kept=Kept(),
    )
    return Bounds(find_bounds(request, _quiet))
