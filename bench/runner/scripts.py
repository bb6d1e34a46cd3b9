"""A user's script, unchanged: run in a worker until it has made some steps, and recorded like a cell."""

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.errors import InfrastructureError, InterruptedByUserError, UsageError
from bench.records.environment import read_environment
from bench.records.messages import CellSeen, Message, ScriptJob
from bench.records.records import DeviceFacts, Environment, Record
from bench.records.store import load_records, open_folder
from bench.runner import schedule
from bench.runner.cpu_watch import CpuLoadWatch
from bench.runner.gpu_watch import GpuWatch, sweep_gpu
from bench.runner.schedule import Observe, ScheduledRun
from bench.scenario.cell import Cell
from bench.scenario.types import LimitsSpec
from bench.workers import interrupts
from bench.workers.launch import Launcher
from bench.workers.supervise import RunningJob, Watch, probe

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
            f"bench watch runs a Python script in one process, and {given} is none; write "
            "bench watch -- python train.py …"
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
    limits = LimitsSpec(timeout_s=job.timeout_s, heartbeat_timeout_s=job.timeout_s, host_memory_gib=None)
    with _watches(facts, environment, observe) as watches:
        end = RunningJob(job, launcher, limits, hear=hear, watches=watches).to_end()
    if not seen:
        tail = end.failure.output_tail.strip().splitlines()[-_SHOWN_LINES:] if end.failure else []
        why = end.failure.message if end.failure else "it made no optimizer step"
        raise InfrastructureError("\n".join([*tail, f"nothing was measured: {why.rstrip('.')}"]))
    one = scheduled(seen[-1], environment, facts, earlier)
    measurement = end.measurement
    return Record(
        cell=one.cell,
        key=one.key,
        inputs_digest=one.inputs_digest,
        run=one.run,
        outcome=end.outcome,
        failure=end.failure,
        started_at=started_at,
        total_ns=end.total_ns,
        environment=environment,
        measurement=measurement if measurement.device else measurement.replace(device=facts),
    )


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
    with sweep_gpu(facts, lambda text: observe(schedule.Note(text))) as gpu:
        if gpu.gpu is None:
            observe(schedule.Note(f"no peak by NVML: {gpu.unwatched}"))
            yield []
            return
        # What optimizer it takes is not known: one that keeps its state in managed memory has to be allowed.
        watch = GpuWatch(gpu.gpu, pages_state=True)
        if (not_idle := watch.wait_until_idle()) is not None:
            raise InfrastructureError(not_idle)
        yield [watch]
