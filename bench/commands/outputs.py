"""Where verdicts go: the terminal, files, and what continuous integration reads."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.commands.options import Json, Markdown, require_ending, require_one_format
from bench.errors import InfrastructureError

if TYPE_CHECKING:
    from bench.records.verdicts import Verdicts

_ANY_SIZE = 2**40
Inconclusive = Annotated[
    Literal["pass", "fail"] | None,
    typer.Option(help="What an inconclusive verdict counts as.", show_default="exit code 3"),
]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """How a command's verdicts are to be written."""

    output: Annotated[
        list[Path],
        typer.Option("-o", "--output", metavar="FILE", help="FILE.json or FILE.md; may be repeated."),
    ] = field(default_factory=list)
    json: Json = False
    markdown: Markdown = False

    def check(self) -> None:
        """Raise ``UsageError`` for what cannot be meant, before anything long is begun."""
        require_one_format(json=self.json, markdown=self.markdown)
        for file in self.output:
            require_ending(file)

    def wants(self, ending: str, *, printed: bool) -> bool:
        """Report whether this form goes to the terminal (``printed``) or to a file."""
        return printed or any(file.suffix == ending for file in self.output)


@dataclass(frozen=True, kw_only=True)
class GateOutputs(Outputs):
    """And what continuous integration reads."""

    inconclusive: Inconclusive = None
    comment: Annotated[
        Path | None,
        typer.Option("--comment", metavar="FILE", help="Write a pull request's comment, under 64 kB."),
    ] = None
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None


def show(verdicts: "Verdicts", outputs: Outputs, title: str) -> None:
    """Print verdicts and write every file asked for. Raises ``InfrastructureError`` if one cannot be."""
    from rich.console import Console

    from bench.io import write_text
    from bench.report.gate import render_markdown, render_terminal

    text = page = ""
    if outputs.wants(".json", printed=outputs.json):
        text = verdicts.model_dump_json(indent=1) + "\n"
    if outputs.wants(".md", printed=outputs.markdown):
        page = render_markdown(verdicts, most_bytes=_ANY_SIZE, title=title)
    for file in outputs.output:
        write_text(file, text if file.suffix == ".json" else page)
    if outputs.json:
        typer.echo(text, nl=False)
    elif outputs.markdown:
        typer.echo(page, nl=False)
    else:
        Console().print(render_terminal(verdicts, title))


def conclude(verdicts: "Verdicts", outputs: GateOutputs, title: str) -> None:
    """Show the verdicts of a gate, tell GitHub where it runs us, and end with the gate's exit code."""
    from bench.io import write_text
    from bench.report.gate import annotations, comment, junit

    show(verdicts, outputs, title)
    if outputs.comment is not None:
        write_text(outputs.comment, comment(verdicts, title))
    if outputs.junit is not None:
        write_text(outputs.junit, junit(verdicts, title, outputs.inconclusive))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _append(Path(summary), verdicts, title)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for command in annotations(verdicts):
            typer.echo(command, err=True)
    if code := verdicts.exit_code(outputs.inconclusive):
        raise typer.Exit(code)


def _append(summary: Path, verdicts: "Verdicts", title: str) -> None:
    from bench.report.gate import step_summary

    try:
        there = summary.stat().st_size if summary.exists() else 0
        with summary.open("a", encoding="utf-8") as file:
            file.write(step_summary(verdicts, title, there))
    except OSError as error:
        raise InfrastructureError(
            f"{summary}: cannot add to the step summary ({error.strerror}); see GITHUB_STEP_SUMMARY"
        ) from None
