"""What memory takes, without a GPU: ``bench plan``, ``bench fit`` and ``bench validate``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from bench.commands.options import Form, command, require_ending, show_data
from bench.errors import InfrastructureError, ScenarioError, UsageError, counted
from bench.scenario.draft import Draft, numbers

if TYPE_CHECKING:
    from bench.predict.kept import Kept
    from bench.scenario.load import Scenario
    from bench.scenario.types import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of ``bench plan`` on how much is trained, and at what price."""

    tokens: str | None = None
    examples: int | None = None
    epochs: int | None = None
    price: float | None = None
    prices: Path | None = None

    @property
    def passes(self) -> int | None:
        """How often data is gone over: once, where only the number of examples is given."""
        return self.epochs if self.epochs or self.examples is None else 1

    def read(self) -> dict[str, Any]:
        """Return the plan's fields that follow; raise ``UsageError`` for options that exclude each other."""
        from bench.scenario.load import MOST_AN_HOUR, read_prices

        for one, other in (("tokens", "epochs"), ("tokens", "examples"), ("price", "prices")):
            if None not in (getattr(self, one), getattr(self, other)):
                raise UsageError(f"--{one} and --{other} exclude each other; give one of them")
        priced = next((name for name in ("price", "prices") if getattr(self, name) is not None), None)
        if priced and self.tokens is None and self.passes is None:
            raise UsageError(
                f"--{priced} is for --tokens, --epochs or --examples; say how much is trained on, such as "
                "--tokens 50M"
            )
        if self.price is not None and self.price > MOST_AN_HOUR:
            raise UsageError(
                f"--price {self.price:g} is no price of an hour; give one up to {MOST_AN_HOUR:,.0f}"
            )
        if self.epochs is not None and self.epochs > MOST_EPOCHS:
            raise UsageError(
                f"--epochs {self.epochs} are more than any training takes; give up to {MOST_EPOCHS:,}"
            )
        return {
            "tokens": _tokens(self.tokens),
            "price_an_hour": self.price,
            "prices_an_hour": {} if self.prices is None else read_prices(self.prices),
        }


def _tokens(text: str | None) -> int | None:
    """Return how many tokens are meant, such as 50M; raise ``UsageError`` where none are."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kMB]?)", text)
    count = round(float(found[1]) * _SCALES[found[2]]) if found else 0
    if not 1 <= count <= MOST_TOKENS:
        raise UsageError(
            f"--tokens {text[:40]} is no number of tokens from 1 to {MOST_TOKENS // _SCALES['B']:,}B; write "
            "one such as 200000, 50M or 1.5B"
        )
    return count


MOST_TOKENS = 10**15
MOST_EPOCHS = 10_000
_SCALES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


@command
def plan(
    scenario: str,
    *,
    draft: Draft,
    only: str | None = None,
    gpu: Sequence[str] = (),
    memory: Sequence[str] = (),
    allocator: str = "",
    torch: str | None = None,
    details: bool = False,
    advice: bool | None = None,
    gpus: Sequence[str] = (),
    job: Job,
    fresh: bool = False,
    form: Form,
) -> None:
    """Predict memory, speed and cost of a scenario's cells or of a model, without a GPU; nothing is run."""
    from bench.predict.kept import Kept

    kept, work, source = Kept(fresh=fresh), job.read(), drafted(scenario, draft)
    launcher = kept.launcher()

    from bench.predict.plan import PlanRequest, chosen_cards, plan_scenario
    from bench.records.predictions import plan_json
    from bench.report.predicted.plan import render_markdown, render_terminal
    from bench.runner.live import open_console, watch_predicting

    request = PlanRequest(
        cards=chosen_cards(gpu if gpu or memory else tuple(work["prices_an_hour"]), memory),
        allocator=allocator,
        torch_version=torch,
        gpus=numbers("gpus", gpus),
        # Where nobody would see it, it would only take time.
        advice=advice if details or form.json or form.markdown or advice else False,
        epochs=job.passes,
        examples=job.examples,
        kept=kept,
    )
    with watch_predicting(open_console(stderr=True)) as progress:
        found = plan_scenario(source, only, request, progress, launcher).model_copy(update=work)
    _tell(kept)
    show_data([planned.cell for planned in found.cells], strict=False)
    form.show(
        lambda: plan_json(found),
        lambda: render_markdown(found),
        lambda: render_terminal(found, details=details or bool(advice)),
        open_console(),
    )
    if not found.any_predicted:
        raise InfrastructureError("no cell could be predicted; the reasons are given above")


def drafted(text: str, draft: Draft) -> "Scenario":
    """Return the scenario of the file that is named, or of the model that is; a file says all itself."""
    from bench.scenario.load import load_scenario

    file = Path(text)
    if file.suffix == ".toml" or file.is_file():
        if given := next(
            (name for name, value in vars(draft).items() if value != getattr(Draft(), name)), None
        ):
            raise UsageError(
                f"--{given} is for a model's name, and {text} is a scenario file; change it there"
            )
        return load_scenario(file)
    return load_draft(text, draft)[1]


def load_draft(named: str, draft: Draft) -> "tuple[str, Scenario]":
    """Return the scenario of a model, and its text; raise ``UsageError`` with what is wrong with it."""
    from bench.scenario.load import limits_of, load_scenario, named_model

    model, assumed = named_model(named)
    if draft.sequence == Draft().sequence:
        draft = replace(
            draft, sequence=(str(min(*numbers("sequence", draft.sequence), limits_of(model)[0])),)
        )
    text = draft.scenario(model, assumed)
    try:
        return text, load_scenario(Path(f"{model.name}.toml"), text)
    except ScenarioError as error:
        told = re.sub(r"(?m)^\S+\.toml:\d+: ", "", str(error))
        for key, option in _OPTIONS.items():
            told = told.replace(f"{key}: ", f"{option}: ")
        raise UsageError(told) from None


_OPTIONS = {
    "training.sequence_length": "--sequence",
    "training.micro_batch": "--batch",
    "training.seed": "--seed",
    "loop.driver": "--driver",
    "data.path": "--data",
    "data.held_out": "--held-out",
}
"""What a draft's keys are called on the command line."""


def _tell(kept: "Kept") -> None:
    if kept.told:
        typer.echo(kept.told, err=True)


@dataclass(frozen=True, kw_only=True)
class FitTraining:
    """Options of ``bench fit`` on how is trained, as a scenario's ``[training]`` has them."""

    dtype: str = "bf16"
    checkpointing: str = "non-reentrant"
    optimizer: str = "adamw-fused"
    attention: str = "sdpa"
    autocast: str | None = None
    loss: str = "full"
    kernels: str = "torch"
    data: str = "padded"
    kbit_preparation: bool = True

    def spec(self) -> "TrainingSpec":
        """Return the training; raise ``UsageError`` naming the choices of a wrong value."""
        from bench.predict.fit import training_of

        names = ("dtype", "optimizer", "attention", "loss", "kernels")
        fields = {name: getattr(self, name) for name in names}
        fields["autocast"] = self.autocast or ("bf16" if self.dtype == "bf16" else "off")
        return training_of(self.data, gradient_checkpointing=self.checkpointing, **fields)


@command
def fit(
    model: str,
    *,
    gpu: str | None = None,
    memory: str | None = None,
    method: Sequence[str] = (),
    sequence: Sequence[str] = ("512", "1024", "2048", "4096"),
    batch: int = 1,
    rank: int = 16,
    gpus: Sequence[str] = (),
    aim: Literal["size", "speed"] = "size",
    training: FitTraining,
    allocator: str = "",
    torch: str | None = None,
    fresh: bool = False,
    form: Form,
) -> None:
    """Find the largest batch, sequence and rank of each method that fit on a card; nothing is run."""
    from bench.predict.fastest import find_fastest
    from bench.predict.fit import FitRequest, find_bounds, one_card
    from bench.predict.kept import Kept

    kept, counts = Kept(fresh=fresh), numbers("gpus", gpus) or (1,)
    request = FitRequest(
        model=model,
        card=one_card(gpu, memory),
        methods=tuple(method) or ("full", "lora", "qlora"),
        rank=rank,
        micro_batch=batch,
        lengths=numbers("sequence", sequence, least=2),
        gpus=counts,
        training=training.spec(),
        data=training.data,
        kbit_preparation=training.kbit_preparation,
        allocator=allocator,
        torch_version=torch,
        kept=kept,
    )
    launcher = kept.launcher()

    from bench.report.predicted.fit import render_markdown, render_terminal
    from bench.runner.live import open_console, watch_predicting

    with watch_predicting(open_console(stderr=True)) as progress:
        found = (find_fastest if aim == "speed" else find_bounds)(request, progress, launcher)
    _tell(kept)
    form.show(
        lambda: f"{found.model_dump_json(indent=1)}\n",
        lambda: render_markdown(found),
        lambda: render_terminal(found),
        open_console(),
    )
    if all(bound.refusal for bound in found.bounds):
        raise InfrastructureError("nothing could be predicted; the reasons are given above")


@command
def validate(files: Sequence[Path] = (), *, output: Path | None = None, json: bool = False) -> None:
    """Predict published measurements anew and say how far off each prediction is."""
    from bench.io import write_text
    from bench.predict import validate
    from bench.records.published import read_rows, shipped_rows
    from bench.records.published.score import write_validation
    from bench.report.self_check import render_validation
    from bench.runner.live import open_console, watch_predicting

    if output is not None:
        require_ending(output)
    rows = [read_rows(path) for path in files] or shipped_rows()
    with watch_predicting(open_console(stderr=True)) as progress:
        done = validate.validate(rows, progress)
    if output is not None and output.suffix == ".json":
        write_validation(done, output)
    elif output is not None:
        write_text(output, f"# Predicted and measured memory\n\n{render_validation(done)}\n")
    else:
        typer.echo(done.model_dump_json(indent=1) if json else render_validation(done))
    if output is not None:
        typer.echo(f"wrote {output}", err=True)
    if not done.any_predicted:
        raise InfrastructureError("no row could be predicted; the reasons are given with each")


_RESTLESS = 0.05
"""A share by which repeats do not differ where nothing else runs."""


def measure_machine() -> None:
    """Write the card of this machine's CPU, from which speeds are predicted, and say what it holds for."""
    from bench.io import write_json
    from bench.predict.speed.calibrate import measure
    from bench.runner.cpu_watch import CpuLoadWatch

    watch = CpuLoadWatch(cpu_quota=False)
    watch.start()
    card = measure()
    watch.stop()
    busy = [caveat.message for caveat in watch.finish().caveats]
    if card.spread > _RESTLESS:
        busy.append(f"Repeats of what was measured differ by {card.spread * 100:.0f} %.")
    card = card.model_copy(update={"busy": " ".join(busy)})
    write_json(card.key.path, card)
    typer.echo(f"Machine card: {card.key.path}")
    key, threads = card.key, counted(card.key.threads, "thread")
    typer.echo(f"{key.cpu}, {threads}, torch {key.torch}: {card.peak_flops / 1e9:,.0f} GFLOP/s at best.")
    if card.busy:
        typer.echo(f"{card.busy} Run bench calibrate --machine again when nothing else runs.")
