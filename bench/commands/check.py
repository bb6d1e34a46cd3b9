"""`bench doctor`, `bench cells` and `bench schema`: this machine and scenario files; nothing is run."""

from typing import Annotated

import typer

from bench.commands.options import ScenarioFile
from bench.errors import InfrastructureError


def doctor() -> None:
    """Say what this machine can run, and why not."""
    from bench.runner.doctor import examine
    from bench.runner.live import PlainLines, finding_lines, open_console
    from bench.runner.schedule import Note

    lines = PlainLines(open_console(stderr=True))
    findings = examine(lambda text: lines(Note(text)))
    open_console().print(finding_lines(findings), soft_wrap=True)
    if any(finding.blocking for finding in findings):
        raise InfrastructureError("nothing can be run here; see the lines above for what to install")


def cells(
    scenario: ScenarioFile,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Also check the data: that it is there, and its first rows.")
    ] = False,
) -> None:
    """List the cells a scenario expands into; nothing is run."""
    from bench.scenario.load import load_scenario

    loaded = load_scenario(scenario)
    for cell in loaded.cells:
        typer.echo(cell.id)
    if loaded.excluded:
        typer.echo(f"Cells: {len(loaded.cells)}; excluded: {loaded.excluded}.", err=True)
    if check:
        from bench.runner.schedule import require_data

        require_data(loaded.cells)


def schema() -> None:
    """Print the JSON Schema of scenario files."""
    import json

    from bench.scenario.layout import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
