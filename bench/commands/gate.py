"""`bench gate`: two references run in turn, stored results against a baseline, or a sitting judged again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.garbage import garbage_kept
from bench.commands.options import (
    Baselines,
    Comment,
    ExactOnly,
    GateFile,
    Inconclusive,
    Json,
    Junit,
    Markdown,
    Output,
    gate_of,
)
from bench.commands.verdicts import Outputs, conclude
from bench.errors import UsageError

_BASELINES = Path("results/baselines")


def gate(  # noqa: PLR0913 - one parameter for each option
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="SCENARIO|RESULTS",
            help="Scenario file to run with --base; results folder to hold against --baseline; or the folder "
            "of a sitting to judge again.",
            show_default=False,
        ),
    ] = None,
    *,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="What to compare with: a git revision, a folder with a project, a virtual environment, "
            "or versions such as peft==0.21.2.",
        ),
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(metavar="REF", help="What is judged.", show_default="the environment as it is"),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only the cells whose id matches.")] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Runs of each side at most.", show_default="gate.max_repeats")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin nothing that would end later: 90s, 30m, 1.5h.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="PATH", help="What bench calibrate wrote, for this machine.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="results/sittings/<scenario>")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest sitting, which was broken off.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let models from a hub run code of their own.")
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The accepted baseline to hold stored results against.")
    ] = None,
    baselines: Baselines = _BASELINES,
    scenario: GateFile = None,
    exact_only: ExactOnly = False,
    inconclusive: Inconclusive = None,
    output: Output = [],  # noqa: B006 - typer copies it
    json: Json = False,
    markdown: Markdown = False,
    comment: Comment = None,
    junit: Junit = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Simulate the gates' error rates instead; nothing is run.")
    ] = False,
    replications: Annotated[int, typer.Option(min=1, help="How often, with --self-check.")] = 1000,
) -> None:
    """Judge a candidate against a base, run in turn, or stored results against an accepted baseline.

    Exit codes: 0 pass, 1 regression, 2 usage, 3 inconclusive, 4 infrastructure: a run failed.
    """
    if self_check:
        raise typer.Exit(_self_check(replications, output))
    outputs = Outputs(
        files=tuple(output),
        json=json,
        markdown=markdown,
        comment=comment,
        junit=junit,
        inconclusive=inconclusive,
    )
    outputs.check()
    if target is None or (base is not None and baseline is not None):
        raise UsageError(
            "name a scenario and --base REF, or a results folder and --baseline NAME, or give --self-check; "
            "see bench gate --help"
        )
    if base is not None:
        sitting = _Sitting(
            base=base,
            candidate=candidate,
            only=only,
            repeats=repeats,
            budget=budget,
            calibration=calibration,
            results=results,
            resume=resume,
            trust_remote_code=trust_remote_code,
            exact_only=exact_only,
        )
        sitting.run(target, outputs)
    elif baseline is not None:
        with garbage_kept():
            from bench.gate.stored import BaselineChoice, gate_results

            chosen = BaselineChoice(root=baselines, name=baseline)
            verdicts = gate_results(str(target), chosen, gate_of(scenario, exact_only=exact_only))
            conclude(verdicts, outputs, f"{target} against the baseline {baseline}")
    else:
        _again(target, outputs)


@dataclass(frozen=True, kw_only=True)
class _Sitting:
    """What the command line says of a sitting to run."""

    base: str
    candidate: str | None
    only: str | None
    repeats: int | None
    budget: str | None
    calibration: Path | None
    results: Path | None
    resume: bool
    trust_remote_code: bool
    exact_only: bool

    def run(self, scenario: Path, outputs: Outputs) -> None:
        """Run it and judge it."""
        from bench.gate import gate as gating
        from bench.gate.text import GateLines
        from bench.records.calibrations import read_calibration
        from bench.scenario.load import choose_cells, load_scenario

        loaded = load_scenario(scenario)
        options = gating.GateOptions(
            folder=self.results or Path("results") / "sittings" / loaded.name,
            gate=gating.with_repeats(gate_of(scenario, exact_only=self.exact_only), self.repeats),
            calibration=read_calibration(self.calibration) if self.calibration is not None else None,
            budget_s=gating.seconds(self.budget) if self.budget is not None else None,
            resume=self.resume,
            trust_remote_code=self.trust_remote_code,
        )
        observer = GateLines(lambda line: typer.echo(line, err=True))
        cells = choose_cells(loaded.cells, self.only)
        folder, verdicts = gating.gate_references(cells, (self.base, self.candidate), options, observer)
        typer.echo(f"Sitting: {folder}", err=True)
        conclude(
            verdicts, outputs, f"{loaded.title}: {self.candidate or 'this environment'} against {self.base}"
        )


def _again(folder: Path, outputs: Outputs) -> None:
    """Judge a stored sitting. Raises ``UsageError`` where the folder is none."""
    from bench.compare.gate_report import judge_folder
    from bench.records.sittings import SITTING_FILE

    if not (folder / SITTING_FILE).exists():
        raise UsageError(
            f"say what {folder} is to be held against: a scenario file takes --base REF, a results folder "
            "--baseline NAME"
        )
    conclude(judge_folder(folder), outputs, f"Sitting {folder}")


def _self_check(replications: int, output: list[Path]) -> int:
    """Show the simulated error rates; return 0 where every promise is kept, else 1."""
    from bench.io import write_json
    from bench.report.self_check import render_terminal
    from bench.runner.live import open_console
    from bench.stats.simulation import SelfCheck, self_check

    if any(file.suffix != ".json" for file in output):
        raise UsageError("with --self-check, -o FILE must end in .json; name the file so")
    check = SelfCheck(replications=replications, rows=tuple(self_check(replications)))
    open_console().print(render_terminal(check))
    for file in output:
        write_json(file, check)
    return 0 if check.holds else 1
