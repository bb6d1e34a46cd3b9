"""For trainings under way in a program of yours: a callback of transformers' Trainer that leaves a record."""

import sys
import time
import warnings
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from bench.errors import UsageError
from bench.probes.machine import read_facts
from bench.records.environment import read_environment
from bench.records.messages import CellSeen, Message, ScriptJob
from bench.records.readings import Caveat
from bench.records.store import load_records, open_folder
from bench.runner.scripts import scheduled
from bench.scenario.cell import Cell
from bench.training.scripts.watch import ScriptRun
from bench.training.watcher import StopLoop, Watcher
from bench.workers.supervise import JobEnd, Transcript

if TYPE_CHECKING:
    from bench.records.records import Record

_WITHIN = Caveat(
    code="measured-within",
    message="Read by a callback inside the training: peaks of host memory include what the program held "
    "before, and NVML was not asked.",
)


class BenchCallback(TrainerCallback):  # type: ignore[misc]  # transformers leaves it untyped
    """Measures the first steps of a training of transformers' Trainer, or of trl's, and leaves a record.

    The training goes on afterwards as if nothing had been there. ``record`` is what was written, None until
    then.
    """

    def __init__(
        self,
        results: str | Path = "results/trainer",
        *,
        steps: int = 6,
        warmup: int = 2,
        ledger: bool = True,
        flops: bool = False,
    ) -> None:
        """Write into ``results`` after first step, warm-up, so many timed steps, and the instruments'.

        Raises ``UsageError`` for a number of steps that is none.
        """
        if steps < 1 or warmup < 0:
            raise UsageError("BenchCallback needs steps of at least 1 and warmup of at least 0; give more")
        self.record: Record | None = None
        self._results = Path(results)
        self._job = ScriptJob(
            command=(sys.argv[0] or "notebook",),
            warmup_steps=warmup,
            steps=steps,
            ledger=ledger,
            flops=flops,
        )
        self._stack = ExitStack()
        self._seen: list[Cell] = []
        self._started_at, self._started_ns = "", 0

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        """Begin to watch the first training. Raises ``UsageError`` where several devices train."""
        if self.record is not None:
            return
        self._stack.close()  # of a training that broke off
        self._seen.clear()
        if args.world_size > 1 or torch.cuda.device_count() > 1:
            raise UsageError("BenchCallback measures one device; leave one in CUDA_VISIBLE_DEVICES")
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._started_ns = time.monotonic_ns()
        self._transcript = Transcript(self._started_ns)
        run = _GoesOn(self._job, self._take, self._stack)
        self._script = run.script()
        self._run = run
        self._stack.enter_context(Watcher(run).watching())

    def _take(self, message: Message) -> None:
        if isinstance(message, CellSeen):
            self._seen.append(Cell.model_validate_json(message.cell_json))
        elif not self._transcript.feed(message.model_dump_json().encode() + b"\n"):
            raise AssertionError(self._transcript.malformed)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._run.done and self.record is None:
            self._stack.close()
            self._run.describe()
            self._write()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop watching; warn where the training was too short to be measured, and let it end."""
        if self.record is None:
            self._script.close()
            self._stack.close()
            warnings.warn(
                f"BenchCallback had to see {self._run.all_steps} optimizer steps, and the training ended "
                f"after {self._run.steps_taken}; give it fewer steps, or train for longer",
                stacklevel=2,
            )

    def _write(self) -> None:
        environment, facts = read_environment(), read_facts()
        made = self._transcript.measurement()
        earlier = load_records(self._results).records if self._results.exists() else ()
        one = scheduled(self._seen[-1], environment, facts, earlier)
        end = JobEnd(
            outcome="ok",
            failure=None,
            measurements=(made.replace(caveats=(*made.caveats, _WITHIN)),),
            total_ns=time.monotonic_ns() - self._started_ns,
        )
        self.record = one.ended(end, facts, started_at=self._started_at, environment=environment)
        with open_folder(self._results) as folder:
            folder.write(self.record)


class _GoesOn(ScriptRun):
    """Watches a training that is not stopped."""

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self.done:
            return
        try:
            super().stepped(optimizer)
        except StopLoop:
            self.done = True
