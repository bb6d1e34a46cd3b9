"""The command line, put together from ``bench/commands/``. Nothing heavy is imported at start."""

import errno
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import TextIOWrapper
from textwrap import wrap
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bench.commands import compare, gate, predict, report, run
from bench.errors import (
    UNEXPECTED_EXIT_CODE,
    BenchError,
    InfrastructureError,
    InterruptedByUserError,
    ScenarioError,
    UsageError,
    first_line,
)

_NARROWEST = 60  # columns of a terminal
_PIPE_CLOSED_EXIT_CODE = 141  # 128 + SIGPIPE, as a shell shows a program whose reader has gone


class _Front(TyperGroup):
    """Shows the first page in typer's own layout, without rich: that takes longer to import than the rest."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print usage, options, and the commands in their panels; typer does for those without UTF-8."""
        if not (sys.stdout.encoding or "").lower().startswith("utf"):
            super().format_help(ctx, formatter)
            return
        width = max(shutil.get_terminal_size().columns, _NARROWEST)
        about = [" " + line for line in wrap(self.help or "", width - 2)]
        panels = {"Options": list(self._options(ctx))}
        longest = max(map(len, self.commands))
        for name, command in self.commands.items():
            row = f"{name:{longest}}  ", (command.help or "").partition("\n\n")[0]
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(row)
        lines = ["", " " + self.get_usage(ctx), "", *about, ""]
        for title, rows in panels.items():
            lines += _boxed(title, rows, width)
        typer.echo("\n".join(lines))

    def _options(self, ctx: Any) -> Iterator[tuple[str, str]]:
        options: Any = self.get_params(ctx)
        longest = max(len(name) for option in options for name in option.opts)
        for option in options:
            long, *short = sorted(option.opts, key=len, reverse=True)
            yield f"{long:{longest}}  {''.join(short):8}{option.display_type_rich(ctx=ctx)}  ", option.help


def _boxed(title: str, rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield the lines of a box with a title, in which each row is a name and what it means."""
    dim = partial(typer.style, dim=True)
    yield dim(f"╭─ {title} {'─' * (width - len(title) - 5)}╮")
    for name, meaning in rows:
        room = width - 4 - len(name)
        for start, line in zip([name, *len(meaning) * [" " * len(name)]], wrap(meaning, room), strict=False):
            yield f"{dim('│')} {typer.style(start, fg='cyan', bold=True)}{line:{room}} {dim('│')}"
    yield dim(f"╰{'─' * (width - 2)}╯")


app = typer.Typer(
    name="bench",
    cls=_Front,
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
        run.init,
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
    """Run a command; a user's mistake and a failure of ours end in one sentence, each with its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM ends workers as Ctrl-C does
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that knows ASCII only still gets its table
            stream.reconfigure(errors="replace")
    try:
        app()
    except SystemExit as leaving:
        raise SystemExit(_left_with(leaving)) from None
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sentence, code = _told(error)
        typer.echo(sentence, err=True)
        raise SystemExit(code) from None


def _told(error: Exception) -> tuple[str, int]:
    if isinstance(error, ScenarioError):  # each of its lines begins with a file and a line
        return str(error), error.exit_code
    if isinstance(error, BenchError):
        return f"bench: {error}", error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"bench: {str(error.filename)[:40]}… is too long for a path; check it", UsageError.exit_code
    if isinstance(error, OSError):  # the disk below the output is full, say
        sentence = f"bench: {first_line(error)}; repeat the command with `bench --debug` to see where"
        return sentence, InfrastructureError.exit_code
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} at {last.filename}:{last.lineno}: {first_line(error)}"
    advice = "repeat the command with `bench --debug` for the traceback, and report it"
    return f"bench: a defect of bench, {where}; {advice}", UNEXPECTED_EXIT_CODE


def _left_with(leaving: SystemExit) -> int | str | None:
    """Return the exit code of a command that typer ended; 1 is kept for a regression.

    Click leaves with 1 where the reader of a pipe has gone and where a question was broken off; a command
    that found a regression leaves through ``typer.Exit``.
    """
    if leaving.code == InterruptedByUserError.exit_code:  # typer's, for Ctrl-C that no command caught
        typer.echo("bench: interrupted before the end; run the same command again", err=True)
    if leaving.code != 1 or isinstance(leaving.__context__, typer.Exit):
        return leaving.code
    return _PIPE_CLOSED_EXIT_CODE if isinstance(leaving.__context__, OSError) else UsageError.exit_code
