"""Results in experiment trackers: a run of theirs for each of ours, with settings, metrics and steps."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import InfrastructureError, UnavailableError, first_line
from bench.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

PROJECT = "finetune-bench"
_LONGEST = 250  # characters of a setting, as MLflow takes them
_PER_STEP = ("step_time_ns", "tokens_non_padding", "loss", "gradient_norm")


class _Run(NamedTuple):
    """A run as trackers have it; ``steps`` in their order."""

    name: str
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    steps: Sequence[Mapping[str, float]]


def export_runs(runs: "pd.DataFrame", steps: "pd.DataFrame", to: str, place: Path) -> int:
    """Send the runs that ``bench.load`` has to a tracker, below a folder, and return how many there were.

    Raises ``UnavailableError`` where its package is not installed, ``InfrastructureError`` where it fails.
    """
    for line in runs.to_dict("records"):
        known = _known(line)
        own = steps[(steps["key"] == line["key"]) & (steps["run"] == line["run"])] if len(steps) else steps
        run = _Run(
            name=f"{line['cell']} run {line['run']}",
            settings={key: str(value)[:_LONGEST] for key, value in known.items() if key not in METRICS},
            metrics={key: float(value) for key, value in known.items() if key in METRICS},
            steps=[
                {f"step/{key}": float(value) for key, value in _known(step).items() if key in _PER_STEP}
                for step in own.to_dict("records")
            ],
        )
        try:
            TRACKERS[to](run, place)
        except ModuleNotFoundError as error:
            advice = f"pip install 'finetune-bench[{to}]'"
            raise UnavailableError(f"--to {to} needs the package {error.name}; {advice}") from None
        except Exception as error:  # noqa: BLE001 - whatever a tracker's client raises: no login, no disk
            raise InfrastructureError(f"--to {to} took no run: {first_line(error)}") from None
    return len(runs)


def _known(line: Mapping[Any, Any]) -> dict[str, Any]:
    import pandas as pd

    return {key: value for key, value in line.items() if isinstance(value, list | tuple) or pd.notna(value)}


def _to_wandb(run: _Run, place: Path) -> None:
    """Log in as wandb does; with WANDB_MODE=offline all stays below the folder, for ``wandb sync``."""
    import wandb

    place.mkdir(parents=True, exist_ok=True)  # else wandb takes a temporary folder
    settings = dict(run.settings)
    with wandb.init(project=PROJECT, name=run.name, config=settings, dir=place) as there:
        for number, values in enumerate(run.steps):
            there.log(dict(values), step=number)
        there.summary.update(dict(run.metrics))


def _to_tensorboard(run: _Run, place: Path) -> None:
    """Write event files, in a folder for each run; it has no place for settings but the folder's name."""
    from tensorboard.summary import Writer

    writer = Writer(str(place / run.name.replace("/", ".").replace(" ", "-")))
    for number, values in [*enumerate(run.steps), (0, run.metrics)]:
        for key, value in values.items():
            writer.add_scalar(key, value, number)
    writer.close()


def _to_mlflow(run: _Run, place: Path) -> None:
    """Log to a folder as ``mlflow ui --backend-store-uri`` reads it."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it asks for a database
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(place.absolute().as_uri())
    known = client.get_experiment_by_name(PROJECT)
    experiment = known.experiment_id if known else client.create_experiment(PROJECT)
    there = client.create_run(experiment, run_name=run.name).info
    values = [Metric(key, value, there.start_time, 0) for key, value in run.metrics.items()]
    values += [
        Metric(key, value, there.start_time, number)
        for number, step in enumerate(run.steps)
        for key, value in step.items()
    ]
    client.log_batch(there.run_id, values, [Param(key, value) for key, value in run.settings.items()])
    client.set_terminated(there.run_id)


TRACKERS: dict[str, Callable[[_Run, Path], None]] = {
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
}
