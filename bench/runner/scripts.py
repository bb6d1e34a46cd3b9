"""A user's script, unchanged: run in a worker until it has made some steps, and recorded like a cell."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.errors import InfrastructureError, InterruptedByUserError, UntraceableError, UsageError
from bench.io import make_folder, write_text, writing
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.pool import LONGEST_PLAN, PRELOAD, Hear, platform_of
from bench.records.environment import KEY_PACKAGES, read_environment
from bench.records.messages import CellSeen, Message, PredictionMade, ScriptJob, ScriptPlanJob
from bench.records.predictions import (
    Plan,
    PlannedCell,
    Prediction,
    Refusal,
    check_fit,
    plan_json,
    read_plan,
)
from bench.records.records import DeviceFacts, Environment, Record
from bench.records.store import load_records, open_folder
from bench.runner import schedule
from bench.runner.cpu_watch import CpuLoadWatch
from bench.runner.gpu_watch import GpuWatch, sweep_gpu
from bench.runner.schedule import Observe, ScheduledRun
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.types import LimitsSpec, WindowSpec
from bench.workers import interrupts
from bench.workers.launch import FOR_ONE, Launcher
from bench.workers.supervise import JobEnd, RunningJob, Watch, probe

_PYTHON = re.compile(r"python[0-9.]*$")
_SHOWN_LINES = 15


def script_of(words: Sequence[str]) -> tuple[str, ...]:
    """Return ``SCRIPT ARGS`` or ``-m MODULE ARGS`` of a command as a shell would be given it.

    Raises ``UsageError`` for what is no Python script, or is meant for another Python than this one.
    """
    rest = list(words)
    if rest and _PYTHON.match(Path(rest[0]).name):
        named = shutil.which(rest.pop(0))
        if named is not None and Path(named).parent.resolve() != Path(sys.executable).parent.resolve():
            raise UsageError(
                f"{named} is another Python than bench's own, {sys.executable}, which runs the script; "
                "install finetune-bench there, or name this one"
            )
    if rest[:1] == ["-u"]:
        del rest[0]
    if len(rest) > 1 and rest[0] == "-m":
        return tuple(rest)
    if not rest or not rest[0].endswith(".py"):
        given = rest[0] if rest else "nothing"
        raise UsageError(
            f"what is run is a Python script, in one process, and {given} is none; write python "
            "train.py …, and see bench plan MODEL --gpus for what each of several GPUs takes"
        )
    if not Path(rest[0]).is_file():
        raise UsageError(f"{rest[0]} does not exist; check the path")
    return tuple(rest)


def watch_script(job: ScriptJob, results: Path, observe: Observe, launcher: Launcher | None = None) -> Record:
    """Run a script, write its record, and return it; what it trains is known from its first step on.

    Raises ``InfrastructureError`` where it ends before that step, ``InterruptedByUserError`` on Ctrl-C.
    """
    with open_folder(results) as folder, interrupts.caught():
        try:
            record = _record(job, results, observe, launcher or Launcher())
            folder.write(record)
        except KeyboardInterrupt:
            raise InterruptedByUserError("interrupted before the script had made its steps") from None
    observe(schedule.RunEnded(record))
    return record


def _record(job: ScriptJob, results: Path, observe: Observe, launcher: Launcher) -> Record:
    observe(schedule.Preparing("importing the libraries"))
    environment = read_environment()
    facts = probe(launcher, lambda text: observe(schedule.Note(text)))
    earlier = load_records(results).records
    seen: list[Cell] = []

    def hear(message: Message) -> None:
        if not isinstance(message, CellSeen):
            observe(message)
            return
        seen.append(Cell.model_validate_json(message.cell_json))
        if len(seen) == 1:
            one = scheduled(seen[0], environment, facts, earlier)
            observe(schedule.SweepStarted(runs_to_do=1, runs_on_disk=one.run - 1))
            observe(schedule.RunStarted(one.cell, one.run))

    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    observe(schedule.Preparing(f"running {' '.join(job.command)} up to its first optimizer step"))
    with _watches(facts, environment, observe) as watches:
        end = RunningJob(job, launcher, _limits(job), hear=hear, watches=watches).to_end()
    if not seen:
        raise InfrastructureError(_why(end))
    one = scheduled(seen[-1], environment, facts, earlier)
    prediction = _predicted_before(one, results, environment, facts, observe)
    return one.ended(end, facts, started_at=started_at, environment=environment, prediction=prediction)


def look_at(job: ScriptJob, observe: Observe) -> Cell:
    """Describe what a script trains, from its first two steps, as a cell that measures what ``job`` says.

    Raises ``InfrastructureError`` where it does not come so far.
    """
    observe(schedule.Preparing(f"running {' '.join(job.command)} to see what it trains"))
    seen: list[Cell] = []

    def hear(message: Message) -> None:
        if isinstance(message, CellSeen):
            seen.append(Cell.model_validate_json(message.cell_json))

    short = job.model_copy(update={"warmup_steps": 0, "steps": 1, "ledger": False, "flops": False})
    end = RunningJob(short, Launcher(preload=FOR_ONE), _limits(job), hear=hear).to_end()
    if end.outcome != "ok":
        raise InfrastructureError(_why(end))
    window = WindowSpec(
        warmup_steps=job.warmup_steps, measured_steps=job.steps, ledger=job.ledger, flops=job.flops
    )
    return seen[-1].model_copy(update={"window": window})


def _limits(job: ScriptJob) -> LimitsSpec:
    return LimitsSpec(timeout_s=job.timeout_s, heartbeat_timeout_s=job.timeout_s, host_memory_gib=None)


def _why(end: JobEnd) -> str:
    tail = end.failure.output_tail.strip().splitlines()[-_SHOWN_LINES:] if end.failure else []
    why = end.failure.message if end.failure else "it made no optimizer step"
    return "\n".join([*tail, f"nothing was measured: {why.rstrip('.')}"])


def plan_script(request: ScriptPlanJob, cards: Sequence[Card], results: Path, observe: Observe) -> Plan:
    """Predict a script on each card, or on the CPU where none is given; keep the plan for ``bench watch``.

    Raises ``UntraceableError`` where it cannot be told even what the script trains.
    """
    plan = planned_script(request, cards, Launcher(preload=PRELOAD), observe)
    file = _plan_file(results, plan.cells[0].cell, read_environment())
    with writing(str(file.parent), "choose another with --results"):
        make_folder(file.parent)
    write_text(file, plan_json(plan))
    return plan


def planned_script(
    request: ScriptPlanJob,
    cards: Sequence[Card],
    launcher: Launcher,
    observe: Observe,
    hear: Hear = lambda _message: None,
) -> Plan:
    """Predict a script on each card, or on the CPU; ``hear`` is told what workers say besides.

    Raises ``UntraceableError`` where it cannot be told even what the script trains.
    """
    AllocatorSettings.parse(request.allocator)
    if not request.online:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read on import, so by the server that workers are forked from
    shown = " ".join(request.command)
    planned = []
    for card in cards or (None,):
        observe(schedule.Preparing(f"running {shown} without data on {card.title if card else 'the CPU'}"))
        platform = platform_of("cuda", card.capability) if card else platform_of("cpu")
        job = request.model_copy(update={"card": card, "platform": platform})
        planned.append(_planned(job, launcher, hear, many=len(cards) > 1))
    return Plan(
        scenario=planned[0].cell.scenario,
        title=f"{shown}, predicted",
        allocator=request.allocator,
        cards=tuple(cards),
        cells=tuple(planned),
    )


def _planned(job: ScriptPlanJob, launcher: Launcher, hear: Hear, *, many: bool) -> PlannedCell:
    said: list[Message] = []
    end = RunningJob(job, launcher, LONGEST_PLAN, hear=said.append).to_end()
    for message in said:
        hear(message)
    cells = [Cell.model_validate_json(one.cell_json) for one in said if isinstance(one, CellSeen)]
    answers = [one.answer for one in said if isinstance(one, PredictionMade)]
    failed = end.failure.message if end.failure else "the script made no optimizer step."
    answer = answers[-1] if answers else Refusal(message=failed)
    if isinstance(answer, Refusal):
        answer = answer.model_copy(update={"platform": job.platform})
    if not cells:
        raise UntraceableError(answer.message if isinstance(answer, Refusal) else failed)
    cell, card = cells[-1], job.card
    if card is not None and many:
        cell = cell.model_copy(update={"id": f"{cell.id}-{card.name}"})
    fits = (check_fit(answer, card),) if card and isinstance(answer, Prediction) else ()
    return PlannedCell(cell=cell, answer=answer, verdicts=fits)


def _plan_file(results: Path, cell: Cell, environment: Environment) -> Path:
    """Return where the plan of a script lies: by device, command, sources and versions."""
    versions = [environment.versions.get(name) for name in KEY_PACKAGES]
    known = json.dumps([cell.device, cell.loop.args, schedule.inputs_digest(cell), versions])
    return results / "predicted" / f"{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"


def _predicted_before(
    one: ScheduledRun, results: Path, environment: Environment, facts: DeviceFacts, observe: Observe
) -> Prediction | Refusal | None:
    """Return what ``bench watch --predict`` said of this script, for a card like this machine's."""
    file = _plan_file(results, one.cell, environment)
    try:
        cells = read_plan(file).cells if file.is_file() else ()
    except UsageError as error:  # a damaged plan must not cost the measurement that was just made
        observe(schedule.Note(f"no prediction is shown beside the measurement: {error}"))
        return None
    for planned in cells:
        answer = planned.answer
        alike = planned.cell.comparison_key(["window"]) == one.cell.comparison_key(["window"])
        if not isinstance(answer, Prediction) or not alike:
            continue
        if answer.platform.device == "cpu" or answer.platform.capability == facts.cuda_capability:
            return answer
    return None


def scheduled(
    cell: Cell, environment: Environment, facts: DeviceFacts, earlier: Sequence[Record]
) -> ScheduledRun:
    """Return the next run of what was seen, after those on disk."""
    one = schedule.prepare(cell, environment, facts)
    runs = [record.run for record in earlier if record.key == one.key]
    return ScheduledRun(cell=cell, key=one.key, run=1 + max(runs, default=0), inputs_digest=one.inputs_digest)


@contextlib.contextmanager
def _watches(facts: DeviceFacts, environment: Environment, observe: Observe) -> Iterator[list[Watch]]:
    """Watch CPUs, and the GPU where there is one, since it is not known which the script will take."""
    quota = environment.threads.get("cpu_quota_percent") is not None
    if not facts.cuda_available:
        yield [CpuLoadWatch(cpu_quota=quota)]
        return
    with sweep_gpu(facts) as gpu:
        if not gpu.gpus:
            observe(schedule.Note(f"no peak by NVML: {gpu.unwatched}"))
            yield []
            return
        # What optimizer it takes is not known: one that keeps its state in managed memory has to be allowed.
        watch = GpuWatch(gpu.gpus[0], pages_state=True)
        if (not_idle := watch.wait_until_idle()) is not None:
            raise InfrastructureError(not_idle)
        yield [watch]
