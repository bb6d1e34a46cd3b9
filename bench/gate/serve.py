"""One side of a gate: a process that runs the cells it is given, one at a time, and hands back their records.

Started by ``process.py`` with the side's interpreter and path. Jobs come on standard input, answers go to a
pipe of their own; what is printed is quoted only when this process ends before it is told to.
"""

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import IO

from packaging.utils import canonicalize_name

from bench.errors import BenchError
from bench.gate import run_from_own_sources
from bench.gate.installed import installed, location
from bench.gate.protocol import (
    PROTOCOL_VERSION,
    Answer,
    Assignment,
    Broken,
    Greeting,
    Made,
    Note,
    Opening,
    PlanAssignment,
    Planned,
    Ready,
)
from bench.predict import pool
from bench.predict.plan import PlanRequest, plan_cells
from bench.predict.pool import Hear
from bench.records.environment import KEY_PACKAGES, OTHER_PACKAGES, read_environment
from bench.records.messages import Message, ProjectLoaded, ScriptPlanJob
from bench.records.predictions import Plan
from bench.records.records import SCHEMA_VERSION, Environment
from bench.runner import schedule, scripts
from bench.runner.executors import Machine
from bench.runner.executors.local import LocalExecutor
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.workers import interrupts
from bench.workers.child import die_with_parent
from bench.workers.launch import EVALUATES, PRELOAD, Launcher
from bench.workers.supervise import probe

LIBRARIES = ("transformers", "peft", "bitsandbytes")
"""What a side has to be able to import: else every one of its cells would fail by itself."""


def serve(answers: int, lifeline: int, launcher: Launcher | None = None) -> None:
    """Greet, get ready, and work until standard input ends.

    ``answers`` and ``lifeline`` are inherited descriptors: one is written to, and when the other's far end
    is closed, the kernel ends this process and its group.
    """
    die_with_parent(lifeline)
    jobs = _take_over_input()
    os.set_inheritable(answers, False)  # noqa: FBT003 - the parameter has no name
    pipe = os.fdopen(answers, "wb", closefd=False)

    def tell(answer: Answer) -> None:
        pipe.write(answer.model_dump_json().encode() + b"\n")
        pipe.flush()

    tell(Greeting(protocol=PROTOCOL_VERSION, record_schema=SCHEMA_VERSION, python=platform.python_version()))
    with interrupts.caught():
        try:
            opening = Opening.model_validate_json(jobs.readline())
            training = (*PRELOAD, *EVALUATES) if opening.evaluates else PRELOAD
            preload = ("bench.gate", *(pool.PRELOAD if opening.predicts else training))
            launcher = launcher or Launcher(work=run_from_own_sources, preload=preload)
            if opening.predicts:
                predict = ready_to_predict(stamped(read_environment(), opening), opening, tell, launcher)
                for line in jobs:
                    tell(predict(PlanAssignment.model_validate_json(line)))
                return
            run = _ready(opening, tell, launcher)
            for line in jobs:
                tell(run(Assignment.model_validate_json(line)))
        except BenchError as error:
            tell(Broken(message=str(error)))
        except KeyboardInterrupt:
            return


def _take_over_input() -> IO[bytes]:
    """Return standard input, kept from the processes that are started here."""
    jobs = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return jobs


def _ready(
    opening: Opening, tell: Callable[[Answer], None], launcher: Launcher
) -> Callable[[Assignment], Made]:
    """Look at this machine and return what does an assignment."""
    told: list[ProjectLoaded] = []

    def observe(event: schedule.Event) -> None:
        if isinstance(event, schedule.Note):
            note(event.text)
        elif isinstance(event, ProjectLoaded):
            told.append(event)

    def note(text: str) -> None:
        tell(Note(text=text))

    environment = stamped(read_environment(), opening)
    facts = probe(launcher, note, imports=LIBRARIES)
    locations = {name: location(name) for name in opening.located}
    everything = installed() if opening.installed else {}
    tell(
        Ready(
            environment=environment,
            cuda_name=facts.cuda_name,
            locations=locations,
            installed=everything,
        )
    )
    usual, machine = launcher.start_method, Machine(environment, facts, ())
    options = schedule.SweepOptions(
        results=Path(),
        trust_remote_code=opening.trust_remote_code,
        allow_code=opening.allow_code,
        code_folder=opening.code_folder,
    )
    runner = LocalExecutor(options=options, observe=observe, launcher=launcher)

    def run(assignment: Assignment) -> Made:
        told.clear()
        cell = Cell.model_validate_json(assignment.cell_json)
        prepared = schedule.prepare(cell, environment, facts, opening.code_folder)
        planned = replace(prepared, run=assignment.run)
        # Processes differ in speed by a per cent or two, by where their memory happens to lie, and forks of
        # one server lie alike: in pairs of forks that would pass for a difference of the sides.
        launcher.start_method = usual if assignment.turns is None else "spawn"
        on_gpu = cell.device == "cuda" and facts.cuda_available
        # Held for this run only: the other side's run is next.
        with runner.serving(machine, None, on_gpu=on_gpu):
            record = runner.run(planned, assignment.turns)
        if not told:  # a worker that was killed has told nothing
            return Made(record=record)
        last = told[-1]
        return Made(record=record, project=last.files, imported=last.imported, altered=last.altered)

    return run


def ready_to_predict(
    environment: Environment, opening: Opening, tell: Callable[[Answer], None], launcher: Launcher
) -> Callable[[PlanAssignment], Planned]:
    """Return what predicts on this side, for which no machine has to be looked at."""
    locations = {name: location(name) for name in opening.located}
    tell(Ready(environment=environment, locations=locations))

    def predict(assignment: PlanAssignment) -> Planned:
        told: set[str] = set()

        def hear(message: Message) -> None:
            if isinstance(message, ProjectLoaded):
                told.update(message.files)

        plan = planned_for(assignment, launcher, opening.code_folder, hear)
        return Planned(plan=plan, project=tuple(sorted(told)))

    return predict


def planned_for(asked: PlanAssignment, launcher: Launcher, code_folder: str, hear: Hear) -> Plan:
    """Return the plan of an assignment's cells, or of its script."""
    if asked.command:
        job = ScriptPlanJob(
            command=asked.command,
            platform=Platform(),
            steps=asked.steps,
            allocator=asked.allocator,
            code_folder=code_folder,
        )
        return scripts.planned_script(job, asked.cards, launcher, lambda _: None, hear)
    cells = [Cell.model_validate_json(text) for text in asked.cells_json]
    half = max(1, pool.cores() // 2)  # the other side predicts at the same time
    request = PlanRequest(cards=asked.cards, allocator=asked.allocator, speed=False, workers=half)
    return plan_cells(cells, request, launcher, title=asked.title, observe=hear)


def stamped(environment: Environment, opening: Opening) -> Environment:
    """Return the environment with versions marked of what is imported from sources, as in 0.21.2+git.1a2b3c.

    Metadata is that of the installed package, which the sources hide.
    """
    by_package = metadata.packages_distributions() if opening.stamped else {}
    versions = dict(environment.versions)
    if opening.judge:
        versions["finetune-bench"] = opening.judge  # not what the environment has of it
    names = {
        canonicalize_name(distribution)
        for package in opening.stamped
        for distribution in by_package.get(package, [package])
    }
    for name in names.intersection((*KEY_PACKAGES, *OTHER_PACKAGES)):
        version = versions.get(name, "0")
        versions[name] = f"{version}{'.' if '+' in version else '+'}{opening.label}"
    return environment.replace(versions=versions)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
