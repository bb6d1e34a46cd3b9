"""The ``[gate]`` table of a scenario: what counts as a regression, and how sure a gate must be.

It says nothing of what a cell is, so it changes no id or digest.
"""

import operator
from typing import Literal, Self

from pydantic import Field, model_validator

from bench.metrics import METRICS
from bench.scenario.types import Frozen


class MetricGate(Frozen):
    """What a scenario says of one metric; what it leaves out is as in ``bench.metrics``."""

    gated: bool | None = Field(None, description="Whether the metric can fail the gate.")
    direction: Literal["lower", "higher", "same"] | None = Field(
        None, description="Which way is better; with same, any change is a regression (exact metrics only)."
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        description="The smallest change for the worse that matters: in the metric's unit where it is exact "
        "(0: any), else a share of the value that a pass must rule out (0.05 is 5 %), for accuracy of the "
        "questions.",
    )
    relative_tolerance: float | None = Field(
        None, ge=0, description="Exact metrics: the tolerance as a share of the baseline, where that is more."
    )


class GateSpec(Frozen):
    """How a gate measures and decides. Each side is run ``repeats`` times, and more while undecided."""

    alpha: float = Field(
        0.01, gt=0, le=0.2, description="Probability of a false alarm, over all cells and metrics together."
    )
    minimum_effect: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Slowdown, as a share, that is never a regression, however sure it is.",
    )
    minimum_drop: float = Field(
        0.01, ge=0, lt=1, description="Drop in accuracy, as a share of the questions, that is none either."
    )
    repeats: int = Field(
        3,
        ge=2,
        le=1000,
        description="Runs of each side before the first verdict; on speed 5 or more.",
    )
    max_repeats: int = Field(8, ge=2, le=1000, description="Runs of each side at most.")
    interleave: Literal["runs", "steps"] = Field(
        "runs",
        description="What base and candidate take turns at: whole runs, or single steps of two runs on the "
        "same cores, which tells speeds apart on a machine that others slow down for seconds at a time. Both "
        "models are then in memory at once, so not on a GPU.",
    )
    ignore: tuple[str, ...] = Field(
        (),
        exclude_if=operator.not_,
        description="Files that may change though no worker loads them, as tests/*: where nothing else did, "
        "the gate says so and ends with its verdict, in the place of exit code 4. By the names that it gives "
        "then: from the package's name on, or within the loop's folder.",
    )
    metrics: dict[str, MetricGate] = Field(
        default_factory=dict, description="Tolerance, direction and gating of single metrics."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := contradictions(self):
            raise ValueError("; ".join(f"{'.'.join(path)} {message}" for path, message in problems))
        return self


def contradictions(gate: GateSpec) -> list[tuple[tuple[str, ...], str]]:
    """Return every key that is at odds with another, and what to do about it."""
    found: list[tuple[tuple[str, ...], str]] = []
    if gate.repeats > gate.max_repeats:
        found.append((("max_repeats",), f"must be at least repeats ({gate.repeats}); raise it"))
    for name, own in gate.metrics.items():
        path = ("metrics", name)
        if name not in METRICS:
            found.append((path, "is no metric; name one of the columns of bench table"))
        elif METRICS[name].kind == "bounded" and own.tolerance is not None and 0 < own.tolerance < 1:
            found.append(((*path, "tolerance"), "is in bytes; for a share use relative_tolerance"))
        elif not METRICS[name].exact:
            smallest = "minimum_drop" if METRICS[name].kind == "paired" else "minimum_effect"
            least = getattr(gate, smallest)
            if own.relative_tolerance is not None:
                found.append(((*path, "relative_tolerance"), "is for exact metrics; use tolerance"))
            if own.direction == "same":
                message = 'must be "lower" or "higher" for what varies between runs'
                found.append(((*path, "direction"), message))
            if own.tolerance is not None and own.tolerance <= least:
                found.append(((*path, "tolerance"), f"must be above {smallest} ({least:g}); raise it"))
    return found
