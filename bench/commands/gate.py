"""`bench gate` and `bench calibrate`: did a change make it worse, and how far runs differ without one."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bench.commands.options import BASELINES, Inconclusive, Outputs, command, conclude, gate_of, gc_disabled
from bench.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from bench.records.verdicts import Verdicts
    from bench.scenario.cell import Cell
    from bench.scenario.gate import GateSpec
    from bench.scenario.load import Scenario


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What is run against what, with --base."""

    base: str | None = None
    candidate: str | None = None
    command: str | None = None
    only: str | None = None
    repeats: int | None = None
    budget: str | None = None
    calibration: Path | None = None
    results: Path | None = None
    resume: bool = False
    trust_remote_code: bool = False
    allow_code: Sequence[str] = ()
    predict: bool = False
    bisect: bool = False
    gpu: Sequence[str] = ()
    memory: Sequence[str] = ()
    allocator: str = ""

    def check(self) -> None:
        """Raise ``UsageError`` for options of what is run beside ``--predict``, or the reverse."""
        runs = self.repeats, self.budget, self.calibration, self.resume, self.trust_remote_code
        if self.predict and any(each is not None and each is not False for each in runs):
            raise UsageError(
                "--repeats, --budget, --calibration, --resume and --trust-remote-code are for runs; a "
                "prediction is made once, so leave them out with --predict"
            )
        if not self.predict and (self.gpu or self.memory or self.bisect):
            raise UsageError(
                "--gpu, --memory and --bisect are for --predict; runs take machine and sides as they are"
            )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What stored results are held against, and what counts."""

    baseline: str | None = None
    baselines: Path = BASELINES
    scenario: Path | None = None
    exact_only: bool = False


@dataclass(frozen=True, kw_only=True)
class GateOutputs(Outputs):
    """And what continuous integration reads."""

    inconclusive: Inconclusive | None = None
    comment: Path | None = None
    junit: Path | None = None

    def show(self, verdicts: "Verdicts", title: str) -> None:
        """Show the verdicts of a gate, and tell GitHub where it runs us."""
        from bench.io import append_text, write_text
        from bench.report.ci import annotations, comment, junit, step_summary

        super().show(verdicts, title)
        if self.comment is not None:
            write_text(self.comment, comment(verdicts, title))
        if self.junit is not None:
            write_text(self.junit, junit(verdicts, title, self.inconclusive))
        if given := os.environ.get("GITHUB_STEP_SUMMARY"):
            summary = Path(given)
            try:
                there = summary.stat().st_size if summary.exists() else 0
                append_text(summary, step_summary(verdicts, title, there))
            except OSError as error:
                raise InfrastructureError(
                    f"{summary}: cannot add to the step summary ({error.strerror}); see GITHUB_STEP_SUMMARY"
                ) from None
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for command in annotations(verdicts):
                typer.echo(command, err=True)


@command
def gate(
    target: Path | None = None,
    *,
    session: SessionOptions,
    rules: Rules,
    outputs: GateOutputs,
    self_check: bool = False,
    replications: int = 1000,
) -> None:
    """Judge a candidate against a base, run in turn, or stored results against an accepted baseline.

    Exit codes: 0 pass, 1 regression, 2 usage, 3 inconclusive, 4 infrastructure: a run failed.
    """
    if self_check:
        raise typer.Exit(_self_check(replications, outputs.output))
    outputs.check()
    session.check()
    if session.command is not None:
        others = rules.baseline, session.only, *session.allow_code
        if target is not None or session.base is None or any(others):
            raise UsageError(
                "--command is what both sides run, against --base REF; give that, and no scenario to run, "
                "--only, --allow-code or --baseline"
            )
        verdicts, title = _run_script(session.command, session.base, session, rules)
        conclude(verdicts, outputs, title, outputs.inconclusive)
        return
    if target is None or (session.base is not None and rules.baseline is not None):
        raise UsageError(
            "name a scenario and --base REF, or a results folder and --baseline NAME, or give --self-check; "
            "see bench gate --help"
        )
    if session.base is not None:
        verdicts, title = _run_session(target, session.base, session, rules)
    elif rules.baseline is not None:
        with gc_disabled():
            from bench.gate.stored import gate_results
            from bench.records.result_sets import BaselineFolder

            chosen = BaselineFolder(root=rules.baselines, name=rules.baseline)
            verdicts = gate_results(str(target), chosen, gate_of(rules.scenario, exact_only=rules.exact_only))
        title = f"{target} against the baseline {rules.baseline}"
    else:
        verdicts, title = _judge_again(target), f"Session {target}"
    conclude(verdicts, outputs, title, outputs.inconclusive)


def _run_session(scenario: Path, base: str, session: SessionOptions, rules: Rules) -> tuple["Verdicts", str]:
    title = f"{session.candidate or 'this environment'} against {base}"
    if session.predict:
        loaded, cells = _described(scenario, session.only)
        spec = gate_of(scenario)
        cells_json = tuple(cell.model_dump_json() for cell in cells)
        verdicts = _predicted(
            {"cells_json": cells_json, "title": loaded.title}, base, session, spec, loaded.name
        )
        return verdicts, f"{loaded.title}, predicted: {title}"
    loaded, cells = _cells(scenario, session.only, session.allow_code)
    spec = gate_of(scenario, exact_only=rules.exact_only)
    verdicts = _in_turn(cells, base, session, spec, loaded.name)
    return verdicts, f"{loaded.title}: {title}"


def _run_script(words: str, base: str, session: SessionOptions, rules: Rules) -> tuple["Verdicts", str]:
    import shlex

    from bench.records.messages import ScriptJob
    from bench.runner import schedule
    from bench.runner.scripts import look_at, script_of

    def show(event: schedule.Event) -> None:
        if isinstance(event, schedule.Preparing):
            _tell(f"{event.what} …")

    try:
        script = script_of(shlex.split(words))
    except ValueError as error:
        raise UsageError(f"--command {words!r} is no command ({error}); quote it as for a shell") from None
    if session.predict:
        name = Path(script[script[0] == "-m"]).stem
        asked = {"command": script, "title": words}
        verdicts = _predicted(asked, base, session, gate_of(rules.scenario), name)
        return verdicts, f"{words}, predicted: {session.candidate or 'this folder'} against {base}"
    cell = look_at(ScriptJob(command=script, steps=6), show)
    spec = gate_of(rules.scenario, exact_only=rules.exact_only)
    if spec.interleave != "runs":
        raise UsageError("two scripts cannot take turns step by step; set gate.interleave to runs")
    verdicts = _in_turn([cell], base, replace(session, allow_code=["script"]), spec, cell.scenario)
    return verdicts, f"{words}: {session.candidate or 'this folder'} against {base}"


def _predicted(
    asked: Mapping[str, Any], base: str, session: SessionOptions, spec: "GateSpec", name: str
) -> "Verdicts":
    from bench.gate.predicted import bisect_predictions, gate_predictions
    from bench.gate.protocol import PlanAssignment
    from bench.gate.session import SessionOptions
    from bench.predict.allocator.settings import AllocatorSettings
    from bench.predict.plan import chosen_cards

    AllocatorSettings.parse(session.allocator)
    cards = chosen_cards(session.gpu, session.memory)
    assignment = PlanAssignment(scenario=name, cards=cards, allocator=session.allocator, **asked)
    options = SessionOptions(folder=session.results or Path("results") / "sittings" / name, gate=spec)
    judged = bisect_predictions if session.bisect else gate_predictions
    folder, verdicts = judged(assignment, (base, session.candidate), options, _tell)
    _tell(f"Session: {folder}")
    return verdicts


def _described(scenario: Path, only: str | None) -> tuple["Scenario", list["Cell"]]:
    from bench.scenario.load import choose_cells, load_scenario

    loaded = load_scenario(scenario)
    return loaded, choose_cells(loaded.cells, only)


def _in_turn(
    cells: Sequence["Cell"], base: str, session: SessionOptions, spec: "GateSpec", name: str
) -> "Verdicts":
    from bench.gate.session import SessionOptions, gate_references
    from bench.records.sessions import read_calibration

    calibration = None if session.calibration is None else read_calibration(session.calibration)
    options = SessionOptions(
        folder=session.results or Path("results") / "sittings" / name,
        gate=spec if session.repeats is None else _with_repeats(spec, session.repeats),
        budget_s=None if session.budget is None else _seconds(session.budget),
        resume=session.resume,
        trust_remote_code=session.trust_remote_code,
        allow_code=tuple(session.allow_code),
    )
    references = base, session.candidate
    folder, verdicts = gate_references(cells, references, options, _tell, calibration=calibration)
    _tell(f"Session: {folder}")
    return verdicts


def _cells(scenario: Path, only: str | None, allow_code: Sequence[str]) -> tuple["Scenario", list["Cell"]]:
    """Return a scenario with those of its cells that are to run, whose code and data can be had."""
    from bench.runner.schedule import require_allowed_code, require_data, require_one_gpu

    loaded, cells = _described(scenario, only)
    require_allowed_code(cells, allow_code)
    require_one_gpu(cells)
    require_data(cells)
    return loaded, cells


def _with_repeats(gate: "GateSpec", most: int) -> "GateSpec":
    """Return the gate with at most so many runs of each side. Raises ``UsageError`` for fewer than two."""
    from pydantic import ValidationError

    try:
        repeats = {"repeats": min(gate.repeats, most), "max_repeats": most}
        return gate.model_validate(gate.model_dump() | repeats)
    except ValidationError:
        raise UsageError(f"--repeats {most} is out of range; give from 2 to 1000") from None


def _seconds(text: str) -> float:
    """Return a duration such as 90s, 30m or 1.5h in seconds. Raises ``UsageError`` for anything else."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh])", text.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"invalid duration {text!r} for --budget; write for example 90s, 30m or 1.5h")
    return float(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _judge_again(folder: Path) -> "Verdicts":
    """Judge a stored session. Raises ``UsageError`` where the folder is none."""
    from bench.compare.gate_report import judge_folder
    from bench.records.sessions import SITTING_FILE

    if not (folder / SITTING_FILE).exists():
        raise UsageError(
            f"say what {folder} is to be held against: a scenario file takes --base REF, a results folder "
            "--baseline NAME"
        )
    return judge_folder(folder)


def _self_check(replications: int, output: Sequence[Path]) -> int:
    """Show the simulated error rates; return 0 where every promise is kept, else 4."""
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
    return 0 if check.holds else InfrastructureError.exit_code


@command
def calibrate(
    scenario: Path | None = None,
    *,
    machine: bool = False,
    only: str | None = None,
    sittings: int = 2,
    repeats: int = 3,
    results: Path | None = None,
    trust_remote_code: bool = False,
    allow_code: Sequence[str] = (),
) -> None:
    """Run this environment against itself: how far runs spread here, and what a gate can find."""
    from bench.gate import session

    if machine == (scenario is not None):
        raise UsageError("name a scenario, or give --machine to measure this CPU instead")
    if scenario is None:
        from bench.commands.predict import measure_machine

        measure_machine()
        return
    loaded, cells = _cells(scenario, only, allow_code)
    options = session.SessionOptions(
        folder=results or Path("results") / "calibration" / loaded.name,
        looks=(repeats,),
        gate=loaded.gate,
        trust_remote_code=trust_remote_code,
        allow_code=tuple(allow_code),
    )
    made = session.calibrate(cells, options, _tell, sittings=sittings)

    # Not before: it needs scipy, and nothing shall weigh on the machine while it is measured.
    from bench.stats.power import noise_rows

    noise = session.noise_lines(noise_rows(made, loaded.gate))
    for line in (*noise, *(caveat.message for caveat in made.caveats)):
        typer.echo(line)
    typer.echo(f"Calibration: {options.folder}")
