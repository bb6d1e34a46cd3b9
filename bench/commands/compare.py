"""`bench compare`: two result sets, cell by cell."""

from typing import Annotated

import typer

from bench.commands.options import GateFile, gate_of, gc_disabled, grouped
from bench.commands.outputs import Inconclusive, Outputs, show

ResultSetName = Annotated[
    str, typer.Argument(help="A results folder, a file, or REV:path in git.", show_default=False)
]


@grouped
@gc_disabled()
def compare(
    baseline: ResultSetName,
    candidate: ResultSetName,
    *,
    scenario: GateFile = None,
    inconclusive: Inconclusive = None,
    outputs: Outputs,
) -> None:
    """Compare two result sets cell by cell: ratios with intervals, verdicts, and what is not comparable.

    Exit codes: 0 no regression in what is gated, 1 regression, 2 usage, 3 inconclusive, 4 a run failed.
    """
    from bench.gate.stored import compare_results

    outputs.check()
    verdicts = compare_results(baseline, candidate, gate_of(scenario))
    show(verdicts, outputs, f"{candidate} against {baseline}")
    if code := verdicts.exit_code(inconclusive):
        raise typer.Exit(code)
