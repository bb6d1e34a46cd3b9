"""Stored results against each other, an accepted baseline or common claims; nothing is run."""

from collections.abc import Sequence
from pathlib import Path

import typer

from bench.commands.options import (
    BASELINES,
    Form,
    Inconclusive,
    Outputs,
    command,
    conclude,
    gate_of,
    gc_disabled,
    require_results,
)
from bench.errors import UsageError, counted


@command
@gc_disabled()
def compare(
    baseline: str,
    candidate: str,
    *,
    scenario: Path | None = None,
    inconclusive: Inconclusive | None = None,
    outputs: Outputs,
) -> None:
    """Compare two result sets cell by cell: ratios with intervals, verdicts, and what is not comparable.

    Exit codes: 0 no regression in what is gated, 1 regression, 2 usage, 3 inconclusive, 4 a run failed.
    """
    from bench.gate.stored import compare_results

    outputs.check()
    verdicts = compare_results(baseline, candidate, gate_of(scenario))
    conclude(verdicts, outputs, f"{candidate} against {baseline}", inconclusive)


@command
def claims(results: Sequence[Path] = (), *, details: bool = False, form: Form) -> None:
    """Test common claims about LoRA and QLoRA against records, plans and published measurements."""
    from bench.claims.judge import committed_paths, judge_claims, read_cases, shipped_claims
    from bench.claims.page import render_json, render_markdown, render_terminal

    require_results(results)
    cases, problems = read_cases(list(results) or committed_paths(Path("results")))
    for problem in problems:
        typer.echo(f"bench: not read: {problem}", err=True)
    verdicts = judge_claims(shipped_claims(), cases)
    form.show(
        lambda: render_json(verdicts),
        lambda: render_markdown(verdicts),
        lambda: render_terminal(verdicts, details=details),
    )


baseline_app = typer.Typer(
    help="Accept results as a baseline, list baselines, show and compare their history.", no_args_is_help=True
)


@baseline_app.command()
@command
def accept(
    results: Path, *, name: str, reason: str = "", new_level: bool = False, baselines: Path = BASELINES
) -> None:
    """Add a session to a baseline, for a reason that is kept; nothing is ever removed from it."""
    from bench.gate.stored import accept_results
    from bench.records.result_sets import BaselineFolder

    chosen = BaselineFolder(root=baselines, name=name)
    accepted = accept_results(results, chosen, reason=reason, new_level=new_level)
    folder = baselines / name / accepted.folder
    runs = counted(len(accepted.files), "run")
    typer.echo(f"accepted {runs} as session {accepted.number}, level {accepted.level}: {folder}")
    typer.echo(f"Commit {baselines / name} to keep it.", err=True)


@baseline_app.command("list")
@command
def list_(*, baselines: Path = BASELINES) -> None:
    """List the baselines."""
    from bench.records.result_sets import BaselineFolder, names_of_baselines
    from bench.report.gate import list_lines

    for line in list_lines(
        [BaselineFolder(root=baselines, name=name).read() for name in names_of_baselines(baselines)]
    ):
        typer.echo(line)


@baseline_app.command("show")
@command
def show_(name: str, *, baselines: Path = BASELINES) -> None:
    """Show what was accepted, when and why."""
    from rich.console import Console

    from bench.records.result_sets import BaselineFolder
    from bench.report.columns import TerminalTable
    from bench.report.gate import history_table

    baseline = BaselineFolder(root=baselines, name=name).read()
    Console().print(TerminalTable(history_table(baseline), f"Baseline {name}"))


@baseline_app.command()
@command
def diff(
    name: str,
    numbers: Sequence[int] = (),
    *,
    inconclusive: Inconclusive | None = None,
    outputs: Outputs,
    baselines: Path = BASELINES,
) -> None:
    """Compare two accepted sessions.

    Exit codes: 0 no regression in what is gated, 1 regression, 2 usage, 3 inconclusive, 4 a run failed.
    """
    from bench.gate.stored import diff_baseline
    from bench.records.result_sets import BaselineFolder

    outputs.check()
    if len(numbers) not in {0, 2}:
        raise UsageError(
            "give the numbers of two sessions, or none for the last two; see bench baseline show"
        )
    between = (numbers[0], numbers[1]) if numbers else None
    verdicts = diff_baseline(BaselineFolder(root=baselines, name=name), between)
    conclude(verdicts, outputs, f"Baseline {name}", inconclusive)


@baseline_app.command()
@command
def history(name: str, *, baselines: Path = BASELINES) -> None:
    """Show where in a baseline's history a metric changed its level (needs the extra "changepoint")."""
    from rich.console import Console

    from bench.gate.stored import changes_in_history
    from bench.records.result_sets import BaselineFolder
    from bench.report.columns import TerminalTable
    from bench.report.gate import changes_table

    changes, sessions, series = changes_in_history(BaselineFolder(root=baselines, name=name))
    if not changes:
        typer.echo(f"no metric of {series} changed its level over {counted(sessions, 'sitting')}")
        return
    Console().print(TerminalTable(changes_table(changes), f"Where baseline {name} changed"))
