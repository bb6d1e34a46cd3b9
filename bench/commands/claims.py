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
    """Judge what is often said of LoRA and QLoRA by records, plans and published measurements."""
    from bench.claims.catalogue import shipped_claims
    from bench.claims.material import committed_paths, read_material
    from bench.claims.page import render_json, render_markdown, render_terminal
    from bench.claims.rules import judge_claims

    require_one_format(json=json, markdown=markdown)
    require_results(results)
    material = read_material(results or committed_paths(Path("results")))
    for problem in material.problems:
        typer.echo(f"bench: not read: {problem}", err=True)
    judged = judge_claims(shipped_claims(), material.cases)
    if json:
        typer.echo(render_json(judged), nl=False)
    elif markdown:
        typer.echo(render_markdown(judged), nl=False)
    else:
        from rich.console import Console

        Console().print(render_terminal(judged, details=details))
