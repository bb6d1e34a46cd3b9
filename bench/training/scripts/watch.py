"""A script of the user's, run unchanged until it has made the steps that are asked for."""

import gc
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from bench.errors import UsageError
from bench.probes.flops import FlopCounter
from bench.probes.ledger import Ledger
from bench.probes.machine import allocator_of, noted_out_of_memory, read_facts, read_torch_settings
from bench.probes.phases import PhaseReader, mark_block, mark_quiescent
from bench.records.messages import CellSeen, ScriptJob, Send
from bench.records.readings import Caveat
from bench.records.records import ModelFacts, TokenCounts
from bench.scenario.cell import Cell
from bench.training.loops import without_modes
from bench.training.methods import count_parameters, trainable_parameters
from bench.training.rows.data import IGNORED_LABEL
from bench.training.scripts.seen import SEEN_FROM_OUTSIDE, SeenCell
from bench.training.step import ignore_phase, paged_memory
from bench.training.watcher import Script, StopLoop, WatchedLoop, Watcher, token_ids
from bench.training.window import first_step_phases, flops_readings

_VARYING = ("window", "training.sequence_length")
_EVALUATES = Caveat(
    code="evaluates-between-steps",
    message="The script runs its model without gradients between steps, as an evaluation does: step times "
    "include that.",
)


def run_script(command: Sequence[str]) -> str:
    """Run ``SCRIPT ARGS`` or ``-m MODULE ARGS`` in this process as python would; say how it ended.

    Raises what the script raises; an exit is an end, and so is a ``StopLoop``.
    """
    as_module = command[0] == "-m"
    name = command[as_module]
    sys.argv = [name, *command[as_module + 1 :]]
    sys.path.insert(0, "" if as_module else str(Path(name).resolve().parent))
    try:
        if as_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except StopLoop:
        return "was stopped"
    except SystemExit as ended:
        return f"exited with {ended.code!r}" if ended.code else "ended by itself"
    return "ended by itself"


def _run_here(command: Sequence[str]) -> str:
    """Run a script; a fork of this process that comes out of it goes no further."""
    process = os.getpid()
    try:
        return run_script(command)
    finally:
        if os.getpid() != process:
            os._exit(0)


def watch_script(job: ScriptJob, send: Send, described_as: Cell | None = None) -> None:
    """Run a script until it has made the steps that are asked for, and send what is read of them.

    Where it is not what it was ``described_as``, that is told too, but for lengths, which vary with the data.

    Raises what the script raises, and ``UsageError`` where it ends before.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # by which a training thread ends the main one
    with ExitStack() as stack:
        run = ScriptRun(job, send, stack)
        script = run.script()
        try:
            with Watcher(run).watching():
                how = _run_here(job.command)
        except KeyboardInterrupt:
            if not run.done:
                raise
        except BaseException as error:  # noqa: BLE001 - raised again by the script, so that its phase is read
            if not run.done:
                script.throw(error)
        else:
            if not run.done:
                script.close()
                raise UsageError(_ended_early(how, run))
    run.describe()
    seen = run.seen.cell()
    if described_as is not None and seen.comparison_key(_VARYING) != described_as.comparison_key(_VARYING):
        changed = ", ".join(_differences(described_as, seen)) or "its model or method"
        message = f"The script trains something else than it did when it was described: {changed}."
        run.phases.report(Caveat(code="script-changed", message=message))


def _differences(before: Cell, after: Cell) -> Iterator[str]:
    one, other = (cell.training.model_dump() for cell in (before, after))
    for name in one:
        if one[name] != other[name] and name != "sequence_length":
            yield f"{name} {other[name]}, not {one[name]}"


def _ended_early(how: str, run: "ScriptRun") -> str:
    told = f"the script {how} after {run.steps_taken} of {run.all_steps} optimizer steps"
    if run.steps_taken:
        return f"{told}; let it train for longer, or watch less (--steps, --warmup, --no-ledger, --no-flops)"
    return (
        f"{told}: none that follows a backward pass was made in this process; if the script starts another "
        "one that trains, watch that one's command"
    )


class ScriptRun(WatchedLoop):
    """Turns what a watcher tells of a script into the readings of a record."""

    def __init__(self, job: ScriptJob, send: Send, stack: ExitStack) -> None:
        """Watch for ``job``; what has to be undone in the end is put on ``stack``."""
        super().__init__(PhaseReader(send, allocator_of(torch.device("cpu"))))
        self.seen = SeenCell(job)
        self.done = False
        self.all_steps = 1 + job.warmup_steps + job.steps + 2 * job.ledger + job.flops
        self._job, self._stack = job, stack
        self._tokens: list[TokensGiven] = []
        self._alive = ModulesAlive()

    def steps(self) -> Script:
        """First step, warm-up and measured steps, then what slows a step."""
        job, phases = self._job, self.phases
        with first_step_phases(phases, until_then="load") as self.mark:
            yield from self.timed("first")
        self.mark = ignore_phase
        self.seen.stepped(self.optimizer)
        self.describe()
        self._report_facts()
        with phases.phase("warmup", total_steps=job.warmup_steps):
            for _ in range(job.warmup_steps):
                yield from self.timed("warmup")
        self.evaluates = False
        with phases.phase("steady", total_steps=job.steps, keep_heap=True):
            for _ in range(job.steps):
                yield from self.timed("measured")
        if self.evaluates:
            phases.report(_EVALUATES)
        mark_quiescent(phases.send, phases.allocator)
        if job.ledger:
            with phases.phase("ledger"):
                self.beside = self._alive.beside(self.model)
                books = Ledger(self.model, self.seen.device, vocabulary_size_of(self.model))
                yield from self.under_ledger(books)
                phases.report(books.reading())
        if job.flops:
            with phases.phase("flops"):
                self._tokens = []
                with FlopCounter() as counter:
                    yield
                phases.report(*flops_readings(counter, self.counts()))

    def describe(self) -> None:
        """Send the cell as it is seen so far; the last one counts."""
        if self.steps_taken:
            self.phases.send(CellSeen(cell_json=self.seen.cell().model_dump_json()))

    def found(self, model: nn.Module) -> None:
        """Learn which device to ask; only now, since a script may choose among the cards first."""
        self.model = model
        self.seen.found(model)
        device = next(parameter.device for parameter in trainable_parameters(model))
        self.phases.allocator = allocator_of(device)
        self._stack.enter_context(noted_out_of_memory(device))
        self.phases.report(read_facts(), read_torch_settings())
        mark_block(self.phases.send, self.phases.allocator)

    def given(self, inputs: Mapping[str, Any]) -> None:
        """Keep how many tokens the model is given, for the end of the step."""
        super().given(inputs)
        self.seen.given(inputs)
        with without_modes():  # or the ledger would count what is counted here
            self._tokens.append(TokensGiven(inputs))

    def counts(self) -> TokenCounts:
        given, self._tokens = self._tokens, []
        self.seen.micro_batches = max(self.seen.micro_batches, len(given))
        non_padding = sum(one.non_padding() for one in given)
        computed = sum(one.computed for one in given)
        return TokenCounts(
            raw=non_padding,
            non_padding=non_padding,
            loss_bearing=sum(one.loss_bearing() for one in given),
            computed=computed,
        )

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on; once all is read the script is stopped, from whichever thread it trains in."""
        try:
            super().stepped(optimizer)
        except StopLoop:
            self.done = True
            main = threading.main_thread()
            if threading.current_thread() is not main and main.ident is not None:
                signal.pthread_kill(main.ident, signal.SIGINT)
            raise

    def _report_facts(self) -> None:
        model, cell = self.model, self.seen.cell()
        trained = sum(parameter.numel() for parameter in trainable_parameters(model))
        self.phases.report(
            ModelFacts(
                source=cell.model.hub or cell.model.seen or "",
                parameters_total=count_parameters(model),
                parameters_trainable=trained,
                weights_dtype=cell.training.dtype,
                attention=cell.training.attention,
                optimizer_class=f"{type(self.optimizer).__module__}.{type(self.optimizer).__name__}",
            ),
            SEEN_FROM_OUTSIDE,
        )
        if self.seen.device == "cuda":
            self.phases.report(paged_memory(self.optimizer))


class ModulesAlive:
    """Finds the modules that a script has made: a teacher or an average of weights is never trained."""

    def __init__(self) -> None:
        self._before = WeakSet(_modules())

    def beside(self, model: nn.Module) -> list[nn.Module]:
        """Return the outermost modules with parameters that are no part of a model."""
        gc.collect()
        own = {id(module) for module in model.modules()}
        made = [module for module in _modules() if id(module) not in own and module not in self._before]
        inner = {id(child) for module in made for child in module.modules() if child is not module}
        return [one for one in made if id(one) not in inner and next(one.parameters(), None) is not None]


def _modules() -> list[nn.Module]:
    # By type: asking an object for its class runs the code of those that stand for others.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]


class TokensGiven:
    """What a forward pass was given to count: sums are left on their device until the step is over."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        """Count positions now, and what needs values later."""
        ids, mask, labels = token_ids(inputs), inputs.get("attention_mask"), inputs.get("labels")
        self.computed = 1
        if ids is not None:
            self.computed = ids.shape[:1].numel() if ids.is_floating_point() else ids.numel()
        self._mask = self._labels = None
        if isinstance(mask, torch.Tensor) and mask.shape == getattr(ids, "shape", None):
            self._mask = mask.sum()
        if isinstance(labels, torch.Tensor):
            self._labels = (labels[..., 1:] != IGNORED_LABEL).sum()

    def non_padding(self) -> int:
        """Return the positions that a mask leaves; all of them without one."""
        return self.computed if self._mask is None else max(1, int(self._mask))

    def loss_bearing(self) -> int:
        """Return the positions with a label, after the shift by one; all of them where none are given."""
        return self.computed if self._labels is None else int(self._labels)


def vocabulary_size_of(model: Any) -> int:
    """Return how many ids a model's configuration tells of; -1 where it has none."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(config, "vocab_size", -1))
