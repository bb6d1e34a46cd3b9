"""`bench baseline`: what is accepted as normal, and how that changed."""

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import BASELINES, Baselines, grouped
from bench.commands.outputs import Inconclusive, Outputs, show
from bench.errors import UsageError, counted

app = typer.Typer(
    help="Accept results as a baseline, list baselines, show and compare their history.", no_args_is_help=True
)

BaselineName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the baseline.", show_default=False)
]


@app.command()
def accept(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Results folder of one session.", show_default=False)
    ],
    *,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The baseline.", show_default=False)],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why this is as it should be.")
    ] = "",
    new_level: Annotated[
        bool, typer.Option("--new-level", help="Judge only against this and later sessions from now on.")
    ] = False,
    baselines: Baselines = BASELINES,
) -> None:
    """Add a session to a baseline, for a reason that is kept; nothing is ever removed from it."""
    from bench.gate.stored import BaselineChoice, accept_results

    chosen = BaselineChoice(root=baselines, name=name)
    accepted = accept_results(results, chosen, reason=reason, new_level=new_level)
    folder = baselines / name / accepted.folder
    runs = counted(len(accepted.files), "run")
    typer.echo(f"accepted {runs} as session {accepted.number}, level {accepted.level}: {folder}")
    typer.echo(f"Commit {baselines / name} to keep it.", err=True)


@app.command("list")
def list_(*, baselines: Baselines = BASELINES) -> None:
    """List the baselines."""
    from bench.records.result_sets import names_of_baselines, read_baseline
    from bench.report.gate import list_lines

    for line in list_lines([read_baseline(baselines, name) for name in names_of_baselines(baselines)]):
        typer.echo(line)


@app.command("show")
def show_(name: BaselineName, *, baselines: Baselines = BASELINES) -> None:
    """Show what was accepted, when and why."""
    from rich.console import Console

    from bench.records.result_sets import read_baseline
    from bench.report.gate import history_table
    from bench.report.text import terminal_table

    baseline = read_baseline(baselines, name)
    Console().print(terminal_table(history_table(baseline), f"Baseline {name}"))


@app.command()
@grouped
def diff(
    name: BaselineName,
    numbers: Annotated[
        list[int],
        typer.Argument(metavar="[FROM TO]", help="Numbers of two sessions.", show_default="the last two"),
    ] = [],  # noqa: B006 - typer copies it
    *,
    inconclusive: Inconclusive = None,
    outputs: Outputs,
    baselines: Baselines = BASELINES,
) -> None:
    """Compare two accepted sessions.

    Exit codes: 0 no regression in what is gated, 1 regression, 2 usage, 3 inconclusive, 4 a run failed.
    """
    from bench.gate.stored import BaselineChoice, diff_baseline

    outputs.check()
    if len(numbers) not in {0, 2}:
        raise UsageError(
            "give the numbers of two sessions, or none for the last two; see bench baseline show"
        )
    between = (numbers[0], numbers[1]) if numbers else None
    verdicts = diff_baseline(BaselineChoice(root=baselines, name=name), between)
    show(verdicts, outputs, f"Baseline {name}")
    if code := verdicts.exit_code(inconclusive):
        raise typer.Exit(code)


@app.command()
def history(name: BaselineName, *, baselines: Baselines = BASELINES) -> None:
    """Show where in a baseline's history a metric changed its level (needs the extra "changepoint")."""
    from rich.console import Console

    from bench.gate.stored import BaselineChoice, changes_in_history
    from bench.report.gate import changes_table
    from bench.report.text import terminal_table

    found = changes_in_history(BaselineChoice(root=baselines, name=name))
    if not found.changes:
        typer.echo(f"no metric of {found.series} changed its level over {counted(found.sittings, 'sitting')}")
        return
    Console().print(terminal_table(changes_table(found.changes), f"Where baseline {name} changed"))
