"""The command line: each command parses, calls and prints. No logic, and nothing heavy imported at start."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError

app = typer.Typer(
    name="bench",
    help="Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file (TOML).", show_default=False)]


@app.callback()
def _options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,  # noqa: ARG001 - read in main()
) -> None:
    """Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy."""


@app.command()
def cells(scenario: ScenarioFile) -> None:
    """List the cells a scenario expands into."""
    from bench.spec.load import load_scenario

    for cell in load_scenario(scenario).cells:
        typer.echo(cell.id)


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files."""
    import json

    from bench.spec.load import scenario_json_schema

    typer.echo(json.dumps(scenario_json_schema(), indent=2))


def main() -> None:
    """Run a command; a mistake of the user's ends in one sentence and its exit code, not a traceback."""
    try:
        app()
    except BenchError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"bench: {error}", err=True)
        raise SystemExit(error.exit_code) from None
