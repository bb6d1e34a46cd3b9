"""What memory takes, without a GPU: ``bench plan``, ``bench fit`` and ``bench validate``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.options import (
    Allocator,
    Cards,
    Json,
    Markdown,
    Memories,
    Only,
    ScenarioFile,
    TorchVersion,
    grouped,
    require_ending,
    require_one_format,
)
from bench.errors import InfrastructureError

if TYPE_CHECKING:
    from bench.predict.fit import FitRequest
    from bench.scenario.types import TrainingSpec


def plan(  # noqa: PLR0913 - one parameter for each option
    scenario: ScenarioFile,
    *,
    only: Only = None,
    gpu: Cards = [],  # noqa: B006 - typer copies it
    memory: Memories = [],  # noqa: B006 - the same
    allocator: Allocator = "",
    torch: TorchVersion = None,
    details: Annotated[
        bool, typer.Option("--details", help="Show what sets each peak, phases, categories, changes.")
    ] = False,
    advice: Annotated[
        bool | None,
        typer.Option(
            "--advice/--no-advice",
            help="Predict what changes would free.",
            show_default="with details, for up to 12 cells",
        ),
    ] = None,
    json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Predict the memory of a scenario's cells, without a GPU; nothing is run."""
    from bench.predict.plan import PlanRequest, chosen_cards, plan_scenario
    from bench.records.predictions import plan_json
    from bench.report.plan import render_markdown, render_terminal
    from bench.runner.live import open_console, watch_predicting

    require_one_format(json=json, markdown=markdown)
    request = PlanRequest(
        cards=chosen_cards(gpu, memory),
        allocator=allocator,
        torch_version=torch,
        # Where nobody would see it, it would only take time.
        advice=advice if details or json or markdown or advice else False,
    )
    with watch_predicting(open_console(stderr=True)) as progress:
        found = plan_scenario(scenario, only, request, progress)
    if json or markdown:
        typer.echo(plan_json(found) if json else render_markdown(found), nl=False)
    else:
        open_console().print(render_terminal(found, details=details or bool(advice)))
    if not found.any_predicted:
        raise InfrastructureError("no cell could be predicted; the reasons are given above")


ModelName = Annotated[
    str,
    typer.Argument(help="A catalogued name, a hub's id, or a folder with config.json.", show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class FitTraining:
    """Options of ``bench fit`` on how is trained, as a scenario's ``[training]`` has them."""

    dtype: Annotated[str, typer.Option(help="Of the weights: bf16, fp16 or fp32.")] = "bf16"
    checkpointing: Annotated[str, typer.Option(help="off, non-reentrant or reentrant.")] = "non-reentrant"
    optimizer: Annotated[str, typer.Option(help="As in a scenario's training.optimizer.")] = "adamw-fused"
    attention: Annotated[str, typer.Option(help="As in a scenario's training.attention.")] = "sdpa"
    autocast: Annotated[str, typer.Option(help="off, bf16 or fp16.")] = "off"
    loss: Annotated[str, typer.Option(help="full, chunked or liger.")] = "full"
    data: Annotated[
        str, typer.Option(help="padded (rows of different lengths), packed, or full (no row is padded).")
    ] = "padded"
    kbit_preparation: Annotated[
        bool, typer.Option(help="Whether QLoRA calls peft's prepare_model_for_kbit_training.")
    ] = True

    def spec(self) -> "TrainingSpec":
        """Return the training; raise ``UsageError`` naming the choices of a wrong value."""
        from bench.predict.fit import training_of

        names = ("dtype", "optimizer", "attention", "autocast", "loss")
        fields = {name: getattr(self, name) for name in names}
        return training_of(self.data, gradient_checkpointing=self.checkpointing, **fields)


@grouped
def fit(  # noqa: PLR0913 - one parameter for each option
    model: ModelName,
    *,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="The card, such as rtx4090.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Or its memory, such as 24GiB.")
    ] = None,
    method: Annotated[
        list[str], typer.Option("--method", help="full, lora or qlora; may be repeated.", show_default="all")
    ] = [],  # noqa: B006 - typer copies it
    sequence: Annotated[
        list[int], typer.Option("--sequence", min=2, help="Lengths to find the largest batch at; repeatable.")
    ] = [512, 1024, 2048, 4096],  # noqa: B006 - the same
    batch: Annotated[int, typer.Option(min=1, help="Micro-batch to find the longest sequence at.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="Rank of LoRA and QLoRA.")] = 16,
    training: FitTraining,
    allocator: Allocator = "",
    torch: TorchVersion = None,
    json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Find the largest batch, sequence and rank of each method that fit on a card; nothing is run."""
    from bench.predict.fit import FitRequest, one_card

    require_one_format(json=json, markdown=markdown)
    request = FitRequest(
        model=model,
        card=one_card(gpu, memory),
        methods=tuple(method) or ("full", "lora", "qlora"),
        rank=rank,
        micro_batch=batch,
        lengths=tuple(sequence),
        training=training.spec(),
        data=training.data,
        kbit_preparation=training.kbit_preparation,
        allocator=allocator,
        torch_version=torch,
    )
    _fit(request, json=json, markdown=markdown)


def _fit(request: "FitRequest", *, json: bool, markdown: bool) -> None:
    from bench.predict.fit import find_bounds
    from bench.report.fit import render_markdown, render_terminal
    from bench.runner.live import open_console, watch_predicting

    with watch_predicting(open_console(stderr=True)) as progress:
        found = find_bounds(request, progress)
    if json:
        typer.echo(found.model_dump_json(indent=1))
    elif markdown:
        typer.echo(render_markdown(found), nl=False)
    else:
        open_console().print(render_terminal(found))
    if all(bound.refusal for bound in found.bounds):
        raise InfrastructureError("nothing could be predicted; the reasons are given above")


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Measurements (TOML).", show_default="those that come with bench"
        ),
    ] = [],  # noqa: B006 - typer copies it
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="FILE.json for a page's block, or FILE.md.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
) -> None:
    """Predict published measurements anew and say how far off each prediction is."""
    from bench.io import write_text
    from bench.predict import validate
    from bench.records.published import read_rows, shipped_rows, write_validation
    from bench.report.self_check import render_validation

    if output is not None:
        require_ending(output)
    done = validate.validate([read_rows(path) for path in files] or shipped_rows())
    if output is not None and output.suffix == ".json":
        write_validation(done, output)
    elif output is not None:
        write_text(output, f"# Predicted and measured memory\n\n{render_validation(done)}\n")
    else:
        typer.echo(done.model_dump_json(indent=1) if json else render_validation(done))
    if output is not None:
        typer.echo(f"wrote {output}", err=True)
