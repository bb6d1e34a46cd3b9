"""Finds the factors of bench/predict/speed/constants.toml anew, from the runs that it names and no others.

    .venv/bin/python tests/support/calibrate_speed.py

Prints those of each card and of the host, the same with each source left out, and how far off the runs are
that had no part. Traces each run once: some minutes. Factors are pulled towards 1, where a class stays that
no run tells of.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from bench.predict.speed.kernels import constants, rates_of, time_of, work_of
from bench.predict.speed.predict import class_of, host_seconds, speeds_of
from bench.predict.trace.depth import depth_of
from bench.predict.trace.stream import Stream
from bench.predict.trace.trace import Tracer, at_length
from bench.records.published import MeasuredSpeed, Row, shipped_rows
from bench.scenario.catalogue import card
from bench.training.jobs import quiet_libraries
from bench.training.loading.models import configuration_of

CLASSES = ("product", "fp32_product", "attention", "memory")
PULL = 0.3
"""How much a factor's logarithm counts against it."""
Floats = NDArray[np.float64]
Factors = dict[str, Floats]
"""By card those of the classes; under "host" that of the host."""


class Run:
    """A measured run: seconds of a step by part (before the optimizer; the optimizer) and class."""

    def __init__(self, row: Row, measured: MeasuredSpeed, stream: Stream) -> None:
        """Sum a row's trace up."""
        rates = rates_of(card(row.gpu))
        assert rates is not None
        self.name, self.source, self.card = f"{row.source}/{row.name}", row.source, card(row.gpu).name
        self.seconds, self.cold = measured.value, measured.cold
        self.on_gpu, self.on_host = np.zeros((2, len(CLASSES))), np.zeros(2)
        for call in stream.calls[-1].distinct():
            work, part = work_of(call), int(call.form.phase == "optimizer_step")
            index = CLASSES.index(class_of(work.kind))
            self.on_gpu[part, index] += time_of(work, rates).seconds * call.times
            self.on_host[part] += host_seconds(call) * call.times

    @property
    def trains(self) -> bool:
        """Whether the run has a part in the factors."""
        patterns = constants()["calibration"]["cards"].get(self.card, {"rows": ()})["rows"]
        return any(fnmatch(self.name, pattern) for pattern in patterns)

    def ratio(self, factors: Factors) -> float:
        """Return the predicted over the measured seconds of a step."""
        of_card = factors.get(self.card, other(factors))
        step = np.maximum(self.on_gpu @ of_card, self.on_host * factors["host"]).sum()
        return float((step + constants()["host"]["step_us"] * 1e-6) / self.seconds)


def other(factors: Factors) -> Floats:
    """Return the geometric mean of the cards', for a card of which no run is known."""
    logs = [np.log(one) for name, one in factors.items() if name != "host"]
    return np.asarray(np.exp(np.mean(logs, axis=0)))


def fit(runs: Sequence[Run]) -> Factors:
    """Return the factors that bring runs nearest, outliers counting less."""
    cards = list(dict.fromkeys(run.card for run in runs))

    def named(logs: Floats) -> Factors:
        parts = np.exp(logs)
        size = len(CLASSES)
        own = {name: parts[1 + size * at : 1 + size * (at + 1)] for at, name in enumerate(cards)}
        return {"host": parts[:1], **own}

    def residuals(logs: Floats) -> list[float]:
        factors = named(logs)
        return [float(np.log(run.ratio(factors))) for run in runs] + list(PULL * logs)

    start = np.zeros(1 + len(CLASSES) * len(cards))
    return named(least_squares(residuals, start, loss="soft_l1", f_scale=0.05).x)


def errors(runs: Iterable[Run], factors: Factors) -> str:
    """Say how far off runs are: the median and the 90th percentile of the errors' sizes."""
    sizes = [abs(run.ratio(factors) - 1) for run in runs]
    return f"{len(sizes)} runs, {np.median(sizes):.1%}, {np.quantile(sizes, 0.9):.1%}" if sizes else "none"


def say(title: str, of_card: Floats, host: Floats) -> None:
    """Write factors as the table of constants has them."""
    lines = [f"{name} = {value:.3f}" for name, value in zip(CLASSES, of_card, strict=True)]
    sys.stdout.write("\n".join([f"[calibration.{title}]", *lines, f"host = {host[0]:.2f}", ""]))


def report(runs: Sequence[Run]) -> None:
    """Print the factors of each card and what they are worth."""
    train = [run for run in runs if run.trains]
    factors = fit(train)
    for name, of_card in factors.items():
        if name != "host":
            say(f"cards.{name}", of_card, factors["host"])
    say("other", other(factors), factors["host"])
    sys.stdout.write(f"# with a part: {errors(train, factors)}\n")
    sys.stdout.write(f"# without one: {errors((run for run in runs if not run.trains), factors)}\n")
    for source in dict.fromkeys(run.source for run in runs):
        left = fit([run for run in train if run.source != source])
        own = [run for run in runs if run.source == source]
        say(f"without.{source}", left.get(own[0].card, other(left)), left["host"])
        sys.stdout.write(f"# {source}: {errors(own, left)}\n")


def traced() -> Iterator[Run]:
    """Yield every run of one GPU of which a speed is told."""
    for row in (row for file in shipped_rows() for row in file.rows if row.cell is not None):
        for measured in row.speeds:
            assert row.cell is not None
            if row.cell.parallel.several:
                continue
            cell = at_length(row.cell, measured.length or row.cell.training.sequence_length)
            config = configuration_of(cell.model)
            stream = Tracer(row.platform, config, timed=True).trace(cell, depth_of(cell, config))
            if not speeds_of(stream, cell, config, (card(row.gpu),))[0].refused:
                yield Run(row, measured, stream)


if __name__ == "__main__":
    quiet_libraries()
    warnings.simplefilter("ignore")
    report([*traced()])
