"""`bench gate` and `bench calibrate`: did a change make it worse, and how far runs differ without one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import (
    BASELINES,
    Baselines,
    GateFile,
    Only,
    ScenarioFile,
    TrustRemoteCode,
    gate_of,
    gc_disabled,
    grouped,
)
from bench.commands.outputs import GateOutputs, conclude
from bench.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What is run against what, with --base."""

    base: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="What to compare with: a git revision, a folder with a project, a virtual environment, "
            "or versions such as peft==0.21.2.",
        ),
    ] = None
    candidate: Annotated[
        str | None,
        typer.Option(metavar="REF", help="What is judged.", show_default="the environment as it is"),
    ] = None
    only: Only = None
    repeats: Annotated[
        int | None, typer.Option(help="Runs of each side at most.", show_default="gate.max_repeats")
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Time budget (90s, 30m, 1.5h); no run starts that would exceed it."
        ),
    ] = None
    calibration: Annotated[
        Path | None, typer.Option(metavar="PATH", help="What bench calibrate wrote, for this machine.")
    ] = None
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="results/sittings/<scenario>")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Resume the latest interrupted session.")] = False
    trust_remote_code: TrustRemoteCode = False


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What stored results are held against, and what counts."""

    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The accepted baseline to hold stored results against.")
    ] = None
    baselines: Baselines = BASELINES
    scenario: GateFile = None
    exact_only: Annotated[
        bool, typer.Option("--exact-only", help="Gate only metrics that do not vary between runs.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What is asked instead of a verdict."""

    self_check: Annotated[
        bool, typer.Option("--self-check", help="Simulate the gates' error rates instead; nothing is run.")
    ] = False
    replications: Annotated[int, typer.Option(min=1, help="How often, with --self-check.")] = 1000


@grouped
def gate(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="SCENARIO|RESULTS",
            help="Scenario file to run with --base; results folder to hold against --baseline; or the folder "
            "of a session to judge again.",
            show_default=False,
        ),
    ] = None,
    *,
    session: SessionOptions,
    rules: Rules,
    outputs: GateOutputs,
    simulation: Simulation,
) -> None:
    """Judge a candidate against a base, run in turn, or stored results against an accepted baseline.

    Exit codes: 0 pass, 1 regression, 2 usage, 3 inconclusive, 4 infrastructure: a run failed.
    """
    if simulation.self_check:
        raise typer.Exit(_self_check(simulation.replications, outputs.output))
    outputs.check()
    if target is None or (session.base is not None and rules.baseline is not None):
        raise UsageError(
            "name a scenario and --base REF, or a results folder and --baseline NAME, or give --self-check; "
            "see bench gate --help"
        )
    if session.base is not None:
        _run_session(target, session.base, session, rules, outputs)
    elif rules.baseline is not None:
        with gc_disabled():
            from bench.gate.stored import BaselineChoice, gate_results

            chosen = BaselineChoice(root=rules.baselines, name=rules.baseline)
            spec = gate_of(rules.scenario, exact_only=rules.exact_only)
            verdicts = gate_results(str(target), chosen, spec)
            conclude(verdicts, outputs, f"{target} against the baseline {rules.baseline}")
    else:
        _judge_again(target, outputs)


def _run_session(
    scenario: Path, base: str, session: SessionOptions, rules: Rules, outputs: GateOutputs
) -> None:
    from bench.gate import gate as gating
    from bench.gate import session as gate_session
    from bench.records.sessions import read_calibration
    from bench.runner.schedule import require_data
    from bench.scenario.load import choose_cells, load_scenario

    loaded = load_scenario(scenario)
    spec = gate_of(scenario, exact_only=rules.exact_only)
    calibration = None if session.calibration is None else read_calibration(session.calibration)
    options = gate_session.SessionOptions(
        folder=session.results or Path("results") / "sittings" / loaded.name,
        gate=gating.with_repeats(spec, session.repeats),
        budget_s=None if session.budget is None else gating.seconds(session.budget),
        resume=session.resume,
        trust_remote_code=session.trust_remote_code,
    )
    cells = choose_cells(loaded.cells, session.only)
    require_data(cells)
    references = base, session.candidate
    folder, verdicts = gating.gate_references(cells, references, options, _tell, calibration=calibration)
    typer.echo(f"Session: {folder}", err=True)
    conclude(verdicts, outputs, f"{loaded.title}: {session.candidate or 'this environment'} against {base}")


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _judge_again(folder: Path, outputs: GateOutputs) -> None:
    """Judge a stored session. Raises ``UsageError`` where the folder is none."""
    from bench.compare.gate_report import judge_folder
    from bench.records.sessions import SITTING_FILE

    if not (folder / SITTING_FILE).exists():
        raise UsageError(
            f"say what {folder} is to be held against: a scenario file takes --base REF, a results folder "
            "--baseline NAME"
        )
    conclude(judge_folder(folder), outputs, f"Session {folder}")


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


def calibrate(  # noqa: PLR0913 - one parameter for each option
    scenario: ScenarioFile,
    *,
    only: Only = None,
    sittings: Annotated[int, typer.Option(min=1, help="Times that both sides are started anew.")] = 2,
    repeats: Annotated[int, typer.Option(min=2, help="Runs of each side in a session.")] = 3,
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="results/calibration/<scenario>")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run this environment against itself: how far runs spread here, and what a gate can find."""
    from bench.gate import gate as gating
    from bench.gate import session as gate_session
    from bench.runner.schedule import require_data
    from bench.scenario.load import choose_cells, load_scenario

    loaded = load_scenario(scenario)
    options = gate_session.SessionOptions(
        folder=results or Path("results") / "calibration" / loaded.name,
        looks=(repeats,),
        gate=loaded.gate,
        trust_remote_code=trust_remote_code,
    )
    cells = choose_cells(loaded.cells, only)
    require_data(cells)
    made = gating.calibrate(cells, options, _tell, sittings=sittings)

    # Not before: it needs scipy, and nothing shall weigh on the machine while it is measured.
    from bench.stats.power import noise_rows

    noise = gating.noise_lines(noise_rows(made, loaded.gate))
    for line in (*noise, *(caveat.message for caveat in made.caveats)):
        typer.echo(line)
    typer.echo(f"Calibration: {options.folder}")
