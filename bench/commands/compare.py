"""`bench compare` and `bench export`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.garbage import garbage_kept
from bench.commands.options import GateFile, Json, Markdown, Output, gate_of
from bench.commands.verdicts import Outputs, show
from bench.errors import UsageError

ResultSetName = Annotated[
    str, typer.Argument(help="A results folder, a file, or REV:path in git.", show_default=False)
]


@garbage_kept()
def compare(  # noqa: PLR0913 - one parameter for each option
    baseline: ResultSetName,
    candidate: ResultSetName,
    *,
    scenario: GateFile = None,
    output: Output = [],  # noqa: B006 - typer copies it
    json: Json = False,
    markdown: Markdown = False,
) -> None:
    """Compare two result sets cell by cell: ratios with intervals, verdicts, and what is not comparable."""
    from bench.gate.stored import compare_results

    outputs = Outputs(files=tuple(output), json=json, markdown=markdown)
    outputs.check()
    verdicts = compare_results(baseline, candidate, gate_of(scenario))
    show(verdicts, outputs, f"{candidate} against {baseline}")


def export(
    results: Annotated[
        str, typer.Argument(metavar="RESULTS", help="A results folder, a record, or REV:path in git.")
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.json", help="File to write.")],
    format: Annotated[  # noqa: A002 - the name of the option
        str, typer.Option("--format", help="pytest-benchmark: step times for its compare and for dashboards.")
    ] = "pytest-benchmark",
) -> None:
    """Write step times in another tool's format."""
    from bench.io import write_text
    from bench.records.result_sets import load_result_set
    from bench.records.step_times import step_times_json

    if format != "pytest-benchmark":
        raise UsageError(f"--format {format} is not known; the only format is pytest-benchmark")
    write_text(output, step_times_json(load_result_set(results).runs))
    typer.echo(f"wrote {output}", err=True)
