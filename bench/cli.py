"""The command line: each command parses, calls and prints. No logic, and nothing heavy imported at start."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.commands import baseline, calibrate, claims, compare, gate, predict
from bench.commands.garbage import garbage_kept
from bench.commands.options import Cards, Memories, ScenarioFile
from bench.errors import BenchError, InfrastructureError, InterruptedByUserError, ScenarioError

app = typer.Typer(
    name="bench",
    help="Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The panels of `bench --help`, in the order of their first commands below.
_MEASURE, _READ, _JUDGE = "Measure and predict", "Read results", "Did a change make it worse?"
_CHECK = "This machine, scenario files, the predictor"

ResultPaths = Annotated[
    list[Path],
    typer.Argument(metavar="RESULTS", help="Results folders or record files.", show_default=False),
]


@app.callback()
def _options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy."""


@app.command(rich_help_panel=_MEASURE)
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
    from bench.runner.live import open_console, outcome_table, watch
    from bench.runner.schedule import ScheduleOptions, parse_outcomes
    from bench.runner.sweep import SweepOptions, run_sweep
    from bench.scenario.load import load_scenario

    loaded = load_scenario(scenario)
    options = SweepOptions(
        results=results or Path("results") / loaded.name,
        schedule=ScheduleOptions(
            repeats=repeats, retry=parse_outcomes(retry), force=force, keep_skipped=skip_unfit
        ),
        only=only,
        trust_remote_code=trust_remote_code,
        predict=True,
        skip_unfit=skip_unfit,
        snapshot=snapshot,
    )
    console = open_console()
    with watch(console, render_short) as observe:
        result = run_sweep(loaded.cells, options, observe)

    # Not before: it needs pandas, and nothing shall weigh on the machine while it is measured.
    from bench.report.pages import render_terminal, write_page

    console.print(outcome_table(result.records))
    console.print(render_terminal(result.records))
    page = options.results / "report.md"
    write_page(result.records, page)
    typer.echo(f"Records: {options.results}\nReport: {page}")
    if result.complaint:
        raise InfrastructureError(result.complaint)


app.command(rich_help_panel=_MEASURE)(predict.plan)
app.command(rich_help_panel=_MEASURE)(predict.fit)


@app.command(rich_help_panel=_READ)
@garbage_kept()
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
    if check:
        from bench.commands.blocks import require_in_step

        require_in_step(Path())
    elif update:
        from bench.commands.blocks import update as update_blocks

        for page in update_blocks(Path()):
            typer.echo(f"updated {page}")
    elif site is not None:
        from bench.report.site import write_site

        for line in write_site(Path(), site):
            typer.echo(line)
    else:
        from bench.report.pages import read_material, render_material, write_all_figures, write_material
        from bench.scenario.catalogue import card, card_of_memory

        limits = [*map(card, gpu), *map(card_of_memory, memory)]
        material = read_material(results)
        if output is not None:
            write_material(material, output, limits)
            typer.echo(f"wrote {output}")
        if figures is not None:
            for line in write_all_figures(material, figures, limits):
                typer.echo(line)
        elif output is None:
            typer.echo(render_material(material), nl=False)


@app.command(rich_help_panel=_READ)
@garbage_kept()
def table(
    results: ResultPaths,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="FILE.csv or FILE.parquet.")] = None,
) -> None:
    """Show the tidy table of records, one row for each run; CSV when not on a terminal."""
    from rich.console import Console

    from bench.compare.plausibility import with_findings
    from bench.records.table import tidy, write_table
    from bench.report.pages import gather, render_frame

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


app.command(rich_help_panel=_READ)(compare.export)
app.command(rich_help_panel=_JUDGE)(compare.compare)
app.command(rich_help_panel=_JUDGE)(gate.gate)
app.command(rich_help_panel=_JUDGE)(claims.claims)
app.add_typer(baseline.app, name="baseline", rich_help_panel=_JUDGE)
app.command(rich_help_panel=_JUDGE)(calibrate.calibrate)


@app.command(rich_help_panel=_CHECK)
def doctor() -> None:
    """Say what this machine can run, and why not."""
    from bench.runner.doctor import examine
    from bench.runner.events import Note
    from bench.runner.live import PlainLines, finding_lines, open_console

    lines = PlainLines(open_console(stderr=True))
    findings = examine(lambda text: lines(Note(text)))
    open_console().print(finding_lines(findings), soft_wrap=True)
    if any(finding.blocking for finding in findings):
        raise InfrastructureError("nothing can be run here; see the lines above for what to install")


@app.command(rich_help_panel=_CHECK)
def cells(scenario: ScenarioFile) -> None:
    """List the cells a scenario expands into; nothing is run."""
    from bench.scenario.load import load_scenario

    loaded = load_scenario(scenario)
    for cell in loaded.cells:
        typer.echo(cell.id)
    if loaded.excluded:
        typer.echo(f"Cells: {len(loaded.cells)}; excluded: {loaded.excluded}.", err=True)


@app.command(rich_help_panel=_CHECK)
def schema() -> None:
    """Print the JSON Schema of scenario files."""
    import json

    from bench.scenario.layout import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


app.command(rich_help_panel=_CHECK)(predict.validate)


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
