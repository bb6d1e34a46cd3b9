"""`bench claims`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import Json, Markdown, require_one_format, require_results


def claims(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Results folders, record files and plans (bench plan --json).",
            show_default="what this repository keeps in results/",
        ),
    ] = [],  # noqa: B006 - typer copies it
    *,
    details: Annotated[
        bool, typer.Option("--details", help="Show every cell and figure behind each verdict.")
    ] = False,
    json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Test common claims about LoRA and QLoRA against records, plans and published measurements."""
    from bench.claims.judge import committed_paths, judge_claims, read_cases, shipped_claims
    from bench.claims.page import render_json, render_markdown, render_terminal

    require_one_format(json=json, markdown=markdown)
    require_results(results)
    cases, problems = read_cases(results or committed_paths(Path("results")))
    for problem in problems:
        typer.echo(f"bench: not read: {problem}", err=True)
    verdicts = judge_claims(shipped_claims(), cases)
    if json:
        typer.echo(render_json(verdicts), nl=False)
    elif markdown:
        typer.echo(render_markdown(verdicts), nl=False)
    else:
        from rich.console import Console

        Console().print(render_terminal(verdicts, details=details))
