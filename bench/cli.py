"""The command line, put together from ``bench/commands/``. Nothing heavy is imported at start."""

import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from bench.commands import compare, gate, predict, report, run
from bench.errors import BenchError, InterruptedByUserError, ScenarioError

app = typer.Typer(
    name="bench",
    help="Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Measure and predict": (run.run, run.watch, predict.plan, predict.fit),
    "Read results": (report.report, report.table, report.export),
    "Did a change make it worse?": (compare.compare, gate.gate, compare.claims, gate.calibrate),
    "This machine, scenario files, the predictor": (
        run.doctor,
        run.cells,
        run.schema,
        predict.validate,
    ),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(compare.baseline_app, name="baseline", rich_help_panel="Did a change make it worse?")


def _show_version(asked: bool) -> None:  # noqa: FBT001 - typer passes it so
    if asked:
        from importlib.metadata import version

        typer.echo(f"finetune-bench {version('finetune-bench')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Measure and compare full fine-tuning, LoRA and QLoRA: memory, speed and accuracy."""


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
