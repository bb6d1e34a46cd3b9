"""Where verdicts go: the terminal, files, and what continuous integration reads."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from bench.commands.options import require_endings, require_one_format
from bench.errors import InfrastructureError

if TYPE_CHECKING:
    from bench.records.verdicts import Verdicts

_ANY_SIZE = 2**40


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What was asked for on the command line."""

    files: tuple[Path, ...] = ()
    json: bool = False
    markdown: bool = False
    comment: Path | None = None
    junit: Path | None = None
    inconclusive: Literal["pass", "fail"] | None = None

    def check(self) -> None:
        """Raise ``UsageError`` for what cannot be meant, before anything long is begun."""
        require_one_format(json=self.json, markdown=self.markdown)
        require_endings(list(self.files))


def show(verdicts: "Verdicts", outputs: Outputs, title: str) -> None:
    """Print verdicts and write every file asked for. Raises ``InfrastructureError`` if one cannot be."""
    from rich.console import Console

    from bench.io import write_text
    from bench.report.gate import render_markdown, render_terminal

    wants_text = outputs.json or any(file.suffix == ".json" for file in outputs.files)
    text = verdicts.model_dump_json(indent=1) + "\n" if wants_text else ""
    page = render_markdown(verdicts, most_bytes=_ANY_SIZE, title=title) if _wants_page(outputs) else ""
    for file in outputs.files:
        write_text(file, text if file.suffix == ".json" else page)
    if outputs.json:
        typer.echo(text, nl=False)
    elif outputs.markdown:
        typer.echo(page, nl=False)
    else:
        Console().print(render_terminal(verdicts, title))


def _wants_page(outputs: Outputs) -> bool:
    return outputs.markdown or any(file.suffix == ".md" for file in outputs.files)


def conclude(verdicts: "Verdicts", outputs: Outputs, title: str) -> None:
    """Show the verdicts of a gate, tell GitHub where it runs us, and end with the gate's exit code."""
    from bench.io import write_text
    from bench.report import gate_ci

    show(verdicts, outputs, title)
    if outputs.comment is not None:
        write_text(outputs.comment, gate_ci.comment(verdicts, title))
    if outputs.junit is not None:
        write_text(outputs.junit, gate_ci.junit(verdicts, title, outputs.inconclusive))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _append(Path(summary), verdicts, title)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for command in gate_ci.annotations(verdicts):
            typer.echo(command, err=True)
    if code := verdicts.exit_code(outputs.inconclusive):
        raise typer.Exit(code)


def _append(summary: Path, verdicts: "Verdicts", title: str) -> None:
    from bench.report.gate_ci import step_summary

    try:
        there = summary.stat().st_size if summary.exists() else 0
        with summary.open("a", encoding="utf-8") as file:
            file.write(step_summary(verdicts, title, there))
    except OSError as error:
        raise InfrastructureError(
            f"{summary}: cannot add to the step summary ({error.strerror}); see GITHUB_STEP_SUMMARY"
        ) from None
