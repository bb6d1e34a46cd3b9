"""`bench report`, `bench table` and `bench export`: stored results as pages, rows and other tools' files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import typer

from bench.commands.options import command, gc_disabled, require_results

To = Literal["pytest-benchmark", "mlflow", "tensorboard", "wandb"]


@command
@gc_disabled()
def report(
    results: Sequence[Path] = (),
    *,
    output: Path | None = None,
    figures: Path | None = None,
    gpu: Sequence[str] = (),
    memory: Sequence[str] = (),
    site: Path | None = None,
    update: bool = False,
    check: bool = False,
) -> None:
    """Compare methods in a page of records, or show plans; Markdown on stdout without -o.

    Cards that are named are drawn as limits in the figures of records.
    """
    if check or update or site is not None:
        _of_repository(check=check, update=update, site=site)
        return
    from bench.commands.material import read_material, render_material, write_all_figures, write_material
    from bench.scenario.catalogue import card, card_of_memory

    require_results(results)
    limits = [*map(card, gpu), *map(card_of_memory, memory)]
    material = read_material(results)
    if output is not None:
        write_material(material, output, limits)
        typer.echo(f"wrote {output}")
    if figures is not None:
        for line in write_all_figures(material, figures, limits):
            typer.echo(line)
    elif output is None:
        typer.echo(render_material(material), nl=False)


def _of_repository(*, check: bool, update: bool, site: Path | None) -> None:
    from bench.commands import blocks
    from bench.commands.site import write_site

    if check:
        blocks.require_in_step(Path())
    elif update:
        for page in blocks.update(Path()):
            typer.echo(f"updated {page}")
    elif site is not None:
        for line in write_site(Path(), site):
            typer.echo(line)


@command
@gc_disabled()
def table(
    results: Sequence[Path],
    *,
    output: Path | None = None,
    group_by: Sequence[str] = (),
    stat: str = "median",
) -> None:
    """Show the tidy table of records, one row for each run or group; CSV when not on a terminal."""
    from rich.console import Console

    from bench.compare.plausibility import with_findings
    from bench.records.store import gather
    from bench.records.table import grouped, inert, tidy, write_table
    from bench.report.pages import render_frame

    require_results(results)
    loaded = gather(results)
    for problem in loaded.problems:
        typer.echo(f"bench: not read: {problem}", err=True)
    frame = with_findings(tidy(loaded.records), loaded.records)
    if group_by:
        frame = grouped(frame, group_by, stat)
    if output is not None:
        write_table(frame, output)
    elif sys.stdout.isatty():
        Console().print(render_frame(inert(frame)))
    else:
        typer.echo(inert(frame).to_csv(index=False), nl=False)


@command
def export(results: str, *, output: Path, to: To = "pytest-benchmark") -> None:
    """Write step times as pytest-benchmark's JSON, or runs for Weights & Biases, TensorBoard or MLflow."""
    from bench.io import write_text
    from bench.records.result_sets import load_result_set
    from bench.records.run_summary import step_times_json

    if to == "pytest-benchmark":
        write_text(output, step_times_json(load_result_set(results).runs))
    else:
        from bench import load
        from bench.commands.trackers import export_runs

        loaded = load(results)
        typer.echo(f"runs: {export_runs(loaded.runs, loaded.steps, to, output)}", err=True)
    typer.echo(f"wrote {output}", err=True)
