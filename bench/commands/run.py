"""`bench run`, and what runs nothing: `bench doctor`, `bench cells` and `bench schema`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from bench.commands.options import Form, command, show_data, split
from bench.commands.predict import drafted, load_draft
from bench.errors import InfrastructureError, UsageError
from bench.scenario.draft import Draft

if TYPE_CHECKING:
    from bench.runner.executors import Executor
    from bench.runner.schedule import Observe, SweepOptions
    from bench.scenario.cell import Cell

Where = Literal["local", "ray", "slurm"]


@command
def run(
    scenario: str,
    *,
    draft: Draft,
    only: str | None = None,
    repeats: int = 1,
    retry: str = "",
    force: bool = False,
    results: Path | None = None,
    trust_remote_code: bool = False,
    allow_code: Sequence[str] = (),
    skip_unfit: bool = False,
    snapshot: bool = False,
    executor: Where = "local",
    address: str | None = None,
    slurm: Sequence[str] = (),
) -> None:
    """Predict and run the cells of a scenario, or of a model, that are not on disk yet; compare them."""
    from bench.runner.schedule import SweepOptions, parse_outcomes
    from bench.scenario.load import choose_cells

    loaded = drafted(scenario, draft)
    show_data(choose_cells(loaded.cells, only), strict=True)
    options = SweepOptions(
        results=results or Path("results") / loaded.name,
        repeats=repeats,
        retry=parse_outcomes(retry),
        force=force,
        only=only,
        trust_remote_code=trust_remote_code,
        allow_code=allow_code,
        predict=True,
        skip_unfit=skip_unfit,
        snapshot=snapshot,
    )
    if (address and executor != "ray") or (slurm and executor != "slurm"):
        raise UsageError("--address is for --executor ray, and --slurm for --executor slurm")
    _run(loaded.cells, options, lambda observe: _executor(executor, options, observe, address, slurm))


def _executor(
    where: Where, options: "SweepOptions", observe: "Observe", address: str | None, slurm: Sequence[str]
) -> "Executor | None":
    """Return who executes a sweep; None for this process. Raises ``UsageError`` for what has no ``=``."""
    if where == "ray":
        from bench.runner.executors.on_ray import RayExecutor

        return RayExecutor(options=options, observe=observe, address=address or "auto")
    if where == "slurm":
        from bench.runner.executors.on_slurm import SlurmExecutor

        if wrong := next((one for one in slurm if "=" not in one), None):
            raise UsageError(f"--slurm {wrong}: write it as KEY=VALUE, such as timeout_min=60")
        pairs = dict(one.split("=", 1) for one in slurm)
        return SlurmExecutor(options=options, observe=observe, parameters=pairs)
    return None


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """Options of ``bench watch`` on predicting a script instead of running it."""

    predict: bool = False
    gpu: Sequence[str] = ()
    memory: Sequence[str] = ()
    through: bool = False
    online: bool = False
    allocator: str = ""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Options of ``bench watch`` on measuring a script."""

    warmup: int = 2
    ledger: bool = True
    flops: bool = True
    timeout_s: float = 3600


@command
def watch(
    script: Sequence[str],
    *,
    steps: int | None = None,
    measuring: Measuring,
    results: Path | None = None,
    foretold: Foretold,
    form: Form,
) -> None:
    """Measure, or predict, some steps of a training script of yours, unchanged."""
    from bench.records.messages import ScriptJob
    from bench.runner import live
    from bench.runner.scripts import script_of, watch_script

    words = script_of(script)
    folder = results or Path("results") / f"watch-{Path(words[words[0] == '-m']).stem}"
    if foretold.predict:
        if measuring != Measuring():
            raise UsageError(
                "--warmup, --no-ledger, --no-flops and --timeout are for measuring; leave them out"
            )
        _foretell(words, steps or 3, folder, foretold, form)
        return
    if foretold.gpu or foretold.memory or foretold.through or foretold.online:
        raise UsageError("--gpu, --memory, --through and --online are for --predict; add it")
    if form.json or form.markdown:
        raise UsageError("--json and --markdown are for --predict; bench report and bench table show records")
    job = ScriptJob(
        command=words,
        warmup_steps=measuring.warmup,
        steps=steps or 6,
        ledger=measuring.ledger,
        flops=measuring.flops,
        timeout_s=measuring.timeout_s,
    )
    console = live.open_console()
    with live.watch(console) as observe:
        record = watch_script(job, folder, observe)

    from bench.compare.comparison import compare
    from bench.report.pages import render_terminal

    console.print(live.outcome_table([record]))
    console.print(render_terminal(compare([record])))
    typer.echo(f"Record: {folder}; bench report, compare and table read it")
    if record.outcome not in ("ok", "oom"):
        why = record.failure.message if record.failure else record.outcome
        raise InfrastructureError(f"the script was not measured to the end: {why}")


def _foretell(words: tuple[str, ...], steps: int, folder: Path, asked: Foretold, form: Form) -> None:
    from bench.predict.plan import chosen_cards
    from bench.records.messages import ScriptPlanJob
    from bench.records.predictions import plan_json
    from bench.report.predicted.plan import render_markdown, render_terminal
    from bench.runner.live import open_console, watch
    from bench.runner.scripts import plan_script
    from bench.scenario.platform import Platform

    job = ScriptPlanJob(
        command=words,
        platform=Platform(),
        steps=steps,
        through=asked.through,
        allocator=asked.allocator,
        online=asked.online,
    )
    with watch(open_console(stderr=True)) as observe:
        plan = plan_script(job, chosen_cards(asked.gpu, asked.memory), folder, observe)
    form.show(
        lambda: plan_json(plan),
        lambda: render_markdown(plan),
        lambda: render_terminal(plan, details=True),
        open_console(),
    )
    if not plan.any_predicted:
        raise InfrastructureError("the script could not be predicted; the reason is given above")


def _run(
    cells: "Sequence[Cell]", options: "SweepOptions", executor: "Callable[[Observe], Executor | None]"
) -> None:
    from bench.report.predicted.plan import render_short
    from bench.runner.live import open_console, outcome_table, watch
    from bench.runner.sweep import run_sweep

    console = open_console()
    with watch(console, render_short) as observe:
        result = run_sweep(cells, options, observe, executor=executor(observe))

    # Not before: it needs pandas, and nothing shall weigh on the machine while it is measured.
    from bench.compare.comparison import compare
    from bench.io import write_text
    from bench.report.pages import render_markdown, render_terminal

    console.print(outcome_table(result.records))
    comparison = compare(result.records)
    console.print(render_terminal(comparison))
    page = options.results / "report.md"
    write_text(page, render_markdown(comparison))
    typer.echo(f"Records: {options.results}\nReport: {page}")
    if result.complaint:
        raise InfrastructureError(result.complaint)


@command
def doctor(*, json: bool = False) -> None:
    """Say what this machine can run, and why not."""
    from dataclasses import asdict
    from json import dumps

    from bench.runner.doctor import examine
    from bench.runner.live import PlainLines, finding_lines, open_console
    from bench.runner.schedule import Note

    lines = PlainLines(open_console(stderr=True))
    findings = examine(lambda text: lines(Note(text)))
    if json:
        typer.echo(dumps([asdict(finding) for finding in findings], indent=1))
    else:
        open_console().print(finding_lines(findings), soft_wrap=True)
    if any(finding.blocking for finding in findings):
        raise InfrastructureError("nothing can be run here; see the lines above for what to install")


@command
def cells(scenario: Path, *, only: str | None = None, check: bool = False) -> None:
    """List the cells a scenario expands into; nothing is run."""
    from bench.scenario.load import choose_cells, load_scenario

    loaded = load_scenario(scenario)
    chosen = choose_cells(loaded.cells, only)
    for cell in chosen:
        typer.echo(cell.id)
    if loaded.excluded:
        typer.echo(f"Cells: {len(loaded.cells)}; excluded: {loaded.excluded}.", err=True)
    show_data(chosen, strict=check)


@command
def init(
    model: str | None = None, *, origin: Path | None = None, draft: Draft, output: Path | None = None
) -> None:
    """Write a scenario of a model, or from axolotl's or LLaMA-Factory's YAML, or saved TrainingArguments."""
    from bench.io import write_text
    from bench.scenario.translate import translate

    if origin is None and model is None:
        model, draft = _asked(draft)
    if (origin is None) == (model is None):
        raise UsageError("give a model, such as qwen3-8b, or another trainer's file by --from; not both")
    remarks: list[str] = []
    if origin is None:
        text, scenario = load_draft(model or "", draft)
        name = scenario.name
    elif draft != Draft():
        raise UsageError("--from takes what is trained from its file; change it in the scenario it writes")
    else:
        name, (text, remarks) = origin.stem, translate(origin)
    target = output or Path(f"{name}.toml")
    if target.suffix != ".toml":
        raise UsageError(f"-o {target} does not end in .toml; name a scenario file")
    if target.exists():
        raise UsageError(f"{target} is there already; name another file with -o")
    write_text(target, text)
    for remark in remarks:
        typer.echo(remark)
    takers = "bench cells, plan and run take it"
    if origin is None and ":" in draft.driver:
        takers = f"bench cells takes it, bench run and bench gate with --allow-code {draft.driver}"
    typer.echo(f"Scenario: {target}; {takers}")


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _asked(draft: Draft) -> tuple[str | None, Draft]:
    """Ask for what was not given, where somebody is there to answer."""
    if not _somebody_is_there():
        return None, draft
    model = typer.prompt("Model (a catalogued name such as qwen3-8b, a hub's id, or a folder)")
    method = typer.prompt("Methods, of full, lora, qlora, dora and qdora", default=",".join(draft.method))
    data = typer.prompt(
        "Rows to train on (a .jsonl file or a hub's data set; none: random)", default=draft.data
    )
    sequence = typer.prompt("Tokens of a sequence, at most", default=",".join(draft.sequence))
    return model, replace(draft, method=split([method]), data=data, sequence=split([sequence]))


def schema() -> None:
    """Print the JSON Schema of scenario files."""
    import json

    from bench.scenario.layout import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
