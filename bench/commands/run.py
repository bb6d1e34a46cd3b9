"""`bench run`: predict and run the cells of a scenario, then compare them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.options import Only, ScenarioFile, TrustRemoteCode
from bench.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.runner.schedule import SweepOptions
    from bench.scenario.cell import Cell


def run(  # noqa: PLR0913 - one parameter for each option
    scenario: ScenarioFile,
    *,
    only: Only = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each cell, finished ones included.")] = 1,
    retry: Annotated[
        str,
        typer.Option(metavar="OUTCOMES", help="Run cells with these outcomes again: failed,crashed,oom …"),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Run every cell again, finished or not.")] = False,
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Results folder.", show_default="results/<scenario>")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
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
    from bench.runner.schedule import SweepOptions, parse_outcomes, require_data
    from bench.scenario.load import choose_cells, load_scenario

    loaded = load_scenario(scenario)
    require_data(choose_cells(loaded.cells, only))
    options = SweepOptions(
        results=results or Path("results") / loaded.name,
        repeats=repeats,
        retry=parse_outcomes(retry),
        force=force,
        only=only,
        trust_remote_code=trust_remote_code,
        predict=True,
        skip_unfit=skip_unfit,
        snapshot=snapshot,
    )
    _run(loaded.cells, options)


def _run(cells: "Sequence[Cell]", options: "SweepOptions") -> None:
    from bench.report.plan import render_short
    from bench.runner.live import open_console, outcome_table, watch
    from bench.runner.sweep import run_sweep

    console = open_console()
    with watch(console, render_short) as observe:
        result = run_sweep(cells, options, observe)

    # Not before: it needs pandas, and nothing shall weigh on the machine while it is measured.
    from bench.compare.comparison import compare
    from bench.io import write_text
    from bench.report.pages import render_markdown, render_terminal

    console.print(outcome_table(result.records))
    comparison = compare(result.records)
    console.print(render_terminal(comparison))
    page = options.results / "report.md"
    write_text(page, render_markdown(comparison))
    typer.echo(f"Records: {options.results}\nReport: {page}")
    if result.complaint:
        raise InfrastructureError(result.complaint)
