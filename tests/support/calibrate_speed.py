"""Finds the factors of bench/predict/speed/constants.toml anew, from the runs that it names and no others.

    .venv/bin/python tests/support/calibrate_speed.py

Prints them for each card, how far off the runs are that had no part, and how far all are with another card's.
Traces each run once: some minutes. Factors are pulled towards 1, where a class that no run tells of stays.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from bench.predict.speed.kernels import constants, rates_of, time_of, work_of
from bench.predict.speed.predict import class_of, host_seconds
from bench.predict.trace.repeat import depth_of
from bench.predict.trace.trace import Tracer, at_length
from bench.records.published import MeasuredSpeed, Row, shipped_rows
from bench.scenario.catalogue import card
from bench.training.jobs import quiet_libraries
from bench.training.loading.models import configuration_of

CLASSES = ("product", "fp32_product", "attention", "memory")
Floats = NDArray[np.float64]


class Run:
    """A measured run: seconds of a step by part (before the optimizer; the optimizer) and class."""

    def __init__(self, row: Row, measured: MeasuredSpeed) -> None:
        """Trace a row."""
        assert row.cell is not None
        cell = at_length(row.cell, measured.length or row.cell.training.sequence_length)
        config = configuration_of(cell.model)
        stream = Tracer(row.platform, config).trace(cell, depth_of(cell, config))
        rates = rates_of(card(row.gpu))
        assert rates is not None
        self.card, self.seconds = card(row.gpu).name, measured.value
        self.on_gpu, self.on_host = np.zeros((2, len(CLASSES))), np.zeros(2)
        for call in stream.calls[-1].distinct():
            work, part = work_of(call), int(call.form.phase == "optimizer_step")
            index = CLASSES.index(class_of(work.kind))
            self.on_gpu[part, index] += time_of(work, rates).seconds * call.times
            self.on_host[part] += host_seconds(call) * call.times

    def ratio(self, factors: Floats) -> float:
        """Return the predicted over the measured seconds of a step."""
        host = constants()["calibration"]["host"] * self.on_host
        step = np.maximum(self.on_gpu @ factors, host).sum() + constants()["host"]["step_us"] * 1e-6
        return float(step / self.seconds)


def factors_of(runs: Sequence[Run]) -> Floats:
    """Return the factors that bring runs nearest, outliers counting less."""

    def residuals(logs: Floats) -> list[float]:
        return [float(np.log(run.ratio(np.exp(logs)))) for run in runs] + list(0.3 * logs)

    return np.exp(least_squares(residuals, np.zeros(len(CLASSES)), loss="soft_l1", f_scale=0.05).x)


def errors(runs: Mapping[str, Run], factors: Floats) -> str:
    """Say how far off runs are: the median and the 90th percentile of the errors' sizes."""
    sizes = [abs(run.ratio(factors) - 1) for run in runs.values()]
    return f"{len(sizes)} runs, {np.median(sizes):.1%}, {np.quantile(sizes, 0.9):.1%}" if sizes else "none"


def say(*parts: object) -> None:
    """Write a line."""
    sys.stdout.write(f"{' '.join(map(str, parts))}\n")


def main() -> None:
    """Print the factors of each card and what they are worth."""
    quiet_libraries()
    warnings.simplefilter("ignore")
    runs = {
        f"{row.source}/{row.name}": Run(row, measured)
        for file in shipped_rows()
        for row in file.rows
        for measured in row.speeds
        if row.cell is not None and getattr(row.cell.method, "type", "") != "boft"
    }
    found = {}
    for name, had in constants()["calibration"]["cards"].items():
        own = {key: run for key, run in runs.items() if run.card == name}
        train = {key for key in own if any(fnmatch(key, pattern) for pattern in had["rows"])}
        found[name] = factors_of([own[key] for key in train])
        say(name, dict(zip(CLASSES, found[name].round(3).tolist(), strict=True)))
        say("  with a part:", errors({key: own[key] for key in train}, found[name]))
        say("  without one:", errors({key: own[key] for key in own.keys() - train}, found[name]))
    for name, factors in found.items():
        others = {key: run for key, run in runs.items() if run.card in found.keys() - {name}}
        say(f"others with the factors of {name}:", errors(others, factors))


if __name__ == "__main__":
    main()
