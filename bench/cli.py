"""The command line: each command parses, calls and prints. No logic, and nothing heavy imported at start."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.commands import baseline, compare, gate
from bench.errors import (
    BenchError,
    InfrastructureError,
    InterruptedByUserError,
    ScenarioError,
    UsageError,
)

app = typer.Typer(
    name="bench",
    help="Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file (TOML).", show_default=False)]
ResultPaths = Annotated[
    list[Path],
    typer.Argument(metavar="RESULTS", help="Results folders or record files.", show_default=False),
]
Cards = Annotated[
    list[str], typer.Option("--gpu", metavar="NAME", help="A card, such as rtx4090; may be repeated.")
]
Memories = Annotated[
    list[str], typer.Option("--memory", metavar="SIZE", help="Any card with so much memory, such as 24GiB.")
]
Allocator = Annotated[
    str,
    typer.Option(
        envvar=["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"], help="torch's allocator settings."
    ),
]
TorchVersion = Annotated[
    str | None, typer.Option(metavar="VERSION", help="torch that will run it.", show_default="as installed")
]


@app.callback()
def _options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy."""


@app.command()
def cells(scenario: ScenarioFile) -> None:
    """List the cells a scenario expands into; nothing is run."""
    from bench.spec.load import load_scenario

    loaded = load_scenario(scenario)
    for cell in loaded.cells:
        typer.echo(cell.id)
    if loaded.excluded:
        typer.echo(f"Cells: {len(loaded.cells)}; excluded: {loaded.excluded}.", err=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files."""
    import json

    from bench.spec.load import scenario_json_schema

    typer.echo(json.dumps(scenario_json_schema(), indent=2))


@app.command()
def table(
    results: ResultPaths,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="FILE.csv or FILE.parquet.")] = None,
) -> None:
    """Show the tidy table of records, one row for each run; CSV when not on a terminal."""
    from rich.console import Console

    from bench.analysis.lints import with_findings
    from bench.report.frame import render_frame
    from bench.report.sources import gather
    from bench.results.table import tidy, write_table

    loaded = gather(results)
    for problem in loaded.problems:
        typer.echo(f"bench: not read: {problem}", err=True)
    frame = with_findings(tidy(loaded.records), loaded.records)
    if output is not None:
        write_table(frame, output)
    elif sys.stdout.isatty():
        Console().print(render_frame(frame))
    else:
        typer.echo(frame.to_csv(index=False), nl=False)


@app.command()
def report(  # noqa: PLR0913 - one parameter for each option
    results: ResultPaths = [],  # noqa: B006 - typer copies it; --update, --check and --site need no path
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="FILE.md, or FILE.html to sort, filter and look at.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each figure there, as SVG and PNG.")
    ] = None,
    gpu: Cards = [],  # noqa: B006 - typer copies it
    memory: Memories = [],  # noqa: B006 - the same
    site: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report/*.md and all committed results as a web site."),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Fill the generated blocks of README.md and report/*.md.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail when a generated block is not in step.")
    ] = False,
) -> None:
    """Compare methods in a page of records, or show plans; Markdown on stdout without -o.

    Cards that are named are drawn as limits in the figures of records.
    """
    from bench.report import blocks
    from bench.report import output as pages
    from bench.spec.cards import card, card_of_memory

    if check:
        blocks.require_in_step(Path())
    elif update:
        for page in blocks.update(Path()):
            typer.echo(f"updated {page}")
    elif site is not None:
        from bench.report.site import write_site

        for line in write_site(Path(), site):
            typer.echo(line)
    else:
        limits = [*map(card, gpu), *map(card_of_memory, memory)]
        material = pages.read_material(results)
        if output is not None:
            pages.write_page(material, output, limits)
            typer.echo(f"wrote {output}")
        if figures is not None:
            for line in pages.write_all_figures(material, figures, limits):
                typer.echo(line)
        elif output is None:
            typer.echo(pages.render_markdown(material), nl=False)


@app.command()
def run(  # noqa: PLR0913 - one parameter for each option
    scenario: ScenarioFile,
    *,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only the cells whose id matches.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each cell, finished ones included.")] = 1,
    retry: Annotated[
        str,
        typer.Option(metavar="OUTCOMES", help="Run cells with these outcomes again: failed,crashed,oom …"),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Run every cell again, finished or not.")] = False,
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Results folder.", show_default="results/<scenario>")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let models from a hub run code of their own.")
    ] = False,
    skip_unfit: Annotated[
        bool, typer.Option("--skip-unfit", help="Skip cells predicted not to fit on this machine's GPU.")
    ] = False,
    snapshot: Annotated[
        bool,
        typer.Option(
            "--snapshot",
            help="Keep the GPU allocator's history up to the measured steps, for torch's viewer.",
        ),
    ] = False,
) -> None:
    """Predict and run the cells of a scenario that are not on disk yet, then compare them."""
    from bench.report.plan import render_short
    from bench.run.live import open_console, outcome_table, watch
    from bench.run.plan import PlanOptions, parse_outcomes
    from bench.run.sweep import SweepOptions, run_sweep
    from bench.spec.load import load_scenario

    loaded = load_scenario(scenario)
    options = SweepOptions(
        results=results or Path("results") / loaded.name,
        plan=PlanOptions(repeats=repeats, retry=parse_outcomes(retry), force=force, keep_skipped=skip_unfit),
        only=only,
        trust_remote_code=trust_remote_code,
        predict=True,
        skip_unfit=skip_unfit,
        snapshot=snapshot,
    )
    console = open_console()
    with watch(console, render_short) as observer:
        result = run_sweep(loaded.cells, options, observer)

    # Not before: it needs pandas, and nothing shall weigh on the machine while it is measured.
    from bench.report.comparison import render_terminal, write_page

    console.print(outcome_table(result.records))
    console.print(render_terminal(result.records))
    page = options.results / "report.md"
    write_page(result.records, page)
    typer.echo(f"Records: {options.results}\nReport: {page}")
    if result.complaint:
        raise InfrastructureError(result.complaint)


@app.command()
def plan(  # noqa: PLR0913 - one parameter for each option
    scenario: ScenarioFile,
    *,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only the cells whose id matches.")] = None,
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
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown page.")] = False,
) -> None:
    """Predict the memory of a scenario's cells, without a GPU; nothing is run."""
    from bench.report.plan import render_markdown, render_terminal
    from bench.results.plans import plan_json
    from bench.run.live import open_console, watch_predicting
    from bench.run.outlook import Outlook, chosen_cards, plan_scenario

    _one_format(json=json, markdown=markdown)
    outlook = Outlook(
        cards=chosen_cards(gpu, memory),
        allocator=allocator,
        torch_version=torch,
        # Where nobody would see it, it would only take time.
        advice=advice if details or json or markdown or advice else False,
    )
    with watch_predicting(open_console(stderr=True)) as progress:
        found = plan_scenario(scenario, only, outlook, progress)
    if json:
        typer.echo(plan_json(found), nl=False)
    elif markdown:
        typer.echo(render_markdown(found), nl=False)
    else:
        open_console().print(render_terminal(found, details=details or bool(advice)))
    if not found.any_predicted:
        raise InfrastructureError("no cell could be predicted; the reasons are given above")


@app.command()
def fit(  # noqa: PLR0913 - one parameter for each option
    model: Annotated[
        str,
        typer.Argument(
            help="A catalogued name, a hub's id, or a folder with config.json.", show_default=False
        ),
    ],
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
    dtype: Annotated[str, typer.Option(help="Of the weights: bf16, fp16 or fp32.")] = "bf16",
    checkpointing: Annotated[str, typer.Option(help="off, non-reentrant or reentrant.")] = "non-reentrant",
    optimizer: Annotated[str, typer.Option(help="As in a scenario's training.optimizer.")] = "adamw-fused",
    allocator: Allocator = "",
    torch: TorchVersion = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown page.")] = False,
) -> None:
    """Find the largest batch, sequence and rank of each method that fit on a card; nothing is run."""
    from bench.report.fit import render_markdown, render_terminal
    from bench.run.fitting import FitRequest, find_bounds, one_card, training_of
    from bench.run.live import open_console, watch_predicting

    _one_format(json=json, markdown=markdown)
    request = FitRequest(
        model=model,
        card=one_card(gpu, memory),
        methods=tuple(method) or ("full", "lora", "qlora"),
        rank=rank,
        micro_batch=batch,
        lengths=tuple(sequence),
        training=training_of(dtype=dtype, gradient_checkpointing=checkpointing, optimizer=optimizer),
        allocator=allocator,
        torch_version=torch,
    )
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


@app.command()
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
    from bench.report.comparison import write_text
    from bench.report.validation import render_validation
    from bench.validation import predictions
    from bench.validation.rows import read_rows, shipped_rows
    from bench.validation.stored import write_validation

    if output is not None and output.suffix not in {".json", ".md"}:
        raise UsageError(f"-o {output} ends in neither .json nor .md; name the file by what it shall hold")
    done = predictions.validate([read_rows(path) for path in files] or shipped_rows())
    if output is not None and output.suffix == ".json":
        write_validation(done, output)
    elif output is not None:
        write_text(output, f"# Predicted and measured memory\n\n{render_validation(done)}\n")
    else:
        typer.echo(done.model_dump_json(indent=1) if json else render_validation(done))
    if output is not None:
        typer.echo(f"wrote {output}", err=True)


def _one_format(*, json: bool, markdown: bool) -> None:
    """Raise ``UsageError`` where both are asked for."""
    if json and markdown:
        raise UsageError("--json and --markdown exclude each other; give one of them")


@app.command()
def calibrate(  # noqa: PLR0913 - one parameter for each option
    scenario: ScenarioFile,
    *,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only the cells whose id matches.")] = None,
    sittings: Annotated[int, typer.Option(min=1, help="Times that both sides are started anew.")] = 2,
    repeats: Annotated[int, typer.Option(min=2, help="Runs of each side in a sitting.")] = 3,
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="results/calibration/<scenario>")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let models from a hub run code of their own.")
    ] = False,
) -> None:
    """Run this environment against itself: how far runs spread here, and what a gate can find."""
    from bench.gate import calibrate as calibration
    from bench.gate.text import GateLines
    from bench.run.plan import choose_cells
    from bench.spec.load import load_scenario

    loaded = load_scenario(scenario)
    options = calibration.CalibrateOptions(
        folder=results or Path("results") / "calibration" / loaded.name,
        sittings=sittings,
        repeats=repeats,
        trust_remote_code=trust_remote_code,
    )
    observer = GateLines(lambda line: typer.echo(line, err=True))
    made = calibration.calibrate(choose_cells(loaded.cells, only), options, observer)

    # Not before: it needs scipy, and nothing shall weigh on the machine while it is measured.
    from bench.gate.noise import noise_rows
    from bench.gate.text import noise_lines

    for line in (*noise_lines(noise_rows(made, loaded.gate)), *(caveat.message for caveat in made.caveats)):
        typer.echo(line)
    typer.echo(f"Calibration: {options.folder}")


app.command()(compare.compare)
app.command()(gate.gate)
app.add_typer(baseline.app, name="baseline")
app.command()(compare.export)


@app.command()
def doctor() -> None:
    """Say what this machine can run, and why not."""
    from bench.run.doctor import examine
    from bench.run.live import PlainLines, finding_lines, open_console

    findings = examine(PlainLines(open_console(stderr=True)))
    open_console().print(finding_lines(findings), soft_wrap=True)
    if any(finding.blocking for finding in findings):
        raise InfrastructureError("nothing can be run here; see the lines above for what to install")


def main() -> None:
    """Run a command; a mistake of the user's ends in one sentence and its exit code, not a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM ends workers as Ctrl-C does
    try:
        app()
    except SystemExit as leaving:
        if leaving.code == InterruptedByUserError.exit_code:  # typer's, for Ctrl-C that no command caught
            typer.echo("bench: interrupted before the end; run the same command again", err=True)
        raise
    except BenchError as error:
        if "--debug" in sys.argv:
            raise
        located = isinstance(error, ScenarioError)  # each of its lines begins with a file and a line
        typer.echo(str(error) if located else f"bench: {error}", err=True)
        raise SystemExit(error.exit_code) from None
