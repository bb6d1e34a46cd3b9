"""What a script would take on a device: run as it is for a few steps, on tensors without data."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from math import prod
from pathlib import PurePath
from traceback import extract_tb
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.data import RandomSampler

from bench.errors import UnavailableError, first_line, library_at_fault
from bench.predict.allocator.replay import DEFAULT_SETTINGS
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.script.card import pretended
from bench.predict.script.ledger import ScriptLedger, ScriptState
from bench.predict.script.loading import MOST_ROWS, STEPS, LongestBatch, without_weights
from bench.predict.summary import predicted_for_cpu, summed_up
from bench.predict.trace.kernels import Kernels
from bench.predict.trace.loops import forget_state, trl_on_cuda
from bench.predict.trace.meta_kernels import is_paged
from bench.predict.trace.patches import implementations_of, patched
from bench.predict.trace.stream import stream_of
from bench.predict.trace.trace import paged_bytes
from bench.probes.machine import Allocator
from bench.probes.phases import PhaseReader
from bench.records.messages import ScriptJob
from bench.records.predictions import Prediction, Refusal, RefusedBy
from bench.records.readings import Caveat
from bench.records.records import TokenCounts
from bench.scenario.catalogue import Card
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.scripts.seen import SeenCell
from bench.training.scripts.watch import ModulesAlive, run_script, vocabulary_size_of
from bench.training.step import optimizer_state
from bench.training.watcher import Script, WatchedLoop, Watcher, token_ids
from bench.training.window import LEDGER_STEPS

_WITHOUT_NETWORK = {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}


def predict_script(
    command: Sequence[str],
    platform: Platform,
    card: Card | None,
    *,
    steps: int = 3,
    through: bool = False,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
) -> tuple[Cell | None, Prediction | Refusal]:
    """Predict the memory of a script's first steps on a card, or without one on the CPU, where it runs on.

    ``command`` is SCRIPT ARGS or -m MODULE ARGS; ``through`` runs it to its own end. On the CPU a ledger is
    read of the two steps that follow. Returns what was seen of the script, None if it never ran a model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    state = ScriptState(on_cpu=card is None, most_bytes=card.torch_bytes if card else None)
    loop = _PredictedLoop(command, state, Kernels(platform), steps, through=through)
    move_adapter = BaseTunerLayer._move_adapter_to_device_of_base_layer
    how, failure = "", None
    with ExitStack() as stack:
        forget_state()
        stack.callback(forget_state)
        stack.enter_context(patch.object(sys, "argv", sys.argv))
        stack.enter_context(patch.object(sys, "path", [*sys.path]))
        stack.enter_context(patched(platform))
        stack.enter_context(patch.object(BaseTunerLayer, move_adapter.__name__, move_adapter))
        try:
            stack.enter_context(pretended(state, card))
            stack.enter_context(without_weights(state))
        except UnavailableError as error:
            return None, Refusal(message=str(error))
        stack.enter_context(Watcher(loop).watching())
        script = loop.script()
        try:
            how = run_script(command)
        except Exception as error:  # noqa: BLE001 - the script's, whatever it is
            failure = error
        loop.finish()
        script.close()
        cell = loop.seen.cell() if loop.given_once else None
    return cell, loop.answer(platform, settings, how, failure)


class _PredictedLoop(WatchedLoop):
    """What a watcher tells of a script without data, and the ledgers that are kept of it."""

    def __init__(
        self, command: Sequence[str], state: ScriptState, kernels: Kernels, steps: int, *, through: bool
    ) -> None:
        super().__init__(PhaseReader(lambda _message: None, Allocator()))
        self.seen = SeenCell(ScriptJob(command=tuple(command), warmup_steps=0, steps=steps, flops=False))
        self.state, self._kernels, self._steps, self._through = state, kernels, steps, through
        self._script_name = PurePath(command[command[0] == "-m"]).name
        self._losses = None
        self._widest: tuple[int, ...] = ()
        self._longest: LongestBatch | None = None
        self._made: Callable[[AllocatorSettings, Platform], Prediction] | None = None
        self.given_once = False
        self._stack = ExitStack()
        self._alive = ModulesAlive()
        self._passes = 0  # of the step at hand
        self._shuffles = False
        state.ledger = ScriptLedger(state, nn.Module(), -1, kernels, phase="adapt")

    def steps(self) -> Script:
        """Watch the steps that were asked for, and on the CPU two more under a ledger of their own."""
        state = self.state
        with self._stack:
            if state.on_cpu:
                self._stack.enter_context(patch.object(RandomSampler, "__iter__", self._shuffled()))
                with state.ledger:
                    for _ in range(self._steps):
                        yield
                vocabulary_size = vocabulary_size_of(self.model)
                books = ScriptLedger(state, self.model, vocabulary_size, self._kernels, phase="inputs")
                state.ledger = books
                self.beside = self._alive.beside(self.model)
                yield from self.under_ledger(books)
                reading = books.reading()
                self._made = lambda _, platform: predicted_for_cpu(reading, platform, self._asked())
                return
            self._longest, last = LongestBatch(state, self._stack), self._steps
            with state.ledger as books:
                self._ledger = books
                for books.step in count():
                    if books.step:
                        books.mark("inputs")
                    if books.step == last and not self._through:
                        if self._longest.wanted or not self._longest.is_to_come():
                            for model in self._alive.beside(self.model):
                                books.register_model(model)
                            return
                        last += STEPS
                    yield

    def _shuffled(self) -> Callable[[RandomSampler], Iterator[int]]:
        """Note a shuffle by torch's own random numbers, of which a real run has drawn some for weights."""
        shuffle = RandomSampler.__iter__

        def shuffled(sampler: RandomSampler) -> Iterator[int]:
            self._shuffles |= sampler.generator is None
            return shuffle(sampler)

        return shuffled

    def found(self, model: nn.Module) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise self.state.refuse("runs the model in a thread, where operators are not seen.")
        self.model = model
        self.seen.found(model)
        if not self.state.on_cpu:
            if self.seen.device == "cpu":
                raise self.state.refuse("trains a model on the CPU; move it to the card, as by .to('cuda').")
            if any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
                self.state.notes["the workspace that cuDNN takes for convolutions"] = None
            self.state.ledger.meet(model, vocabulary_size_of(model))
            for one in trl_on_cuda() if "trl" in sys.modules else ():
                self._stack.enter_context(one)

    def given(self, inputs: Mapping[str, Any]) -> None:
        ids = token_ids(inputs)
        if ids is not None and (not self._widest or ids.numel() > prod(self._widest)):
            self._widest = tuple(ids.shape)
        self.seen.given(inputs)
        self.given_once = True
        self._passes += 1
        super().given(inputs)

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen.stepped(optimizer)
        self.seen.micro_batches, self._passes = max(self.seen.micro_batches, self._passes), 0
        super().stepped(optimizer)

    def counts(self) -> TokenCounts:
        """Return nothing: no step is timed."""
        raise NotImplementedError

    def finish(self) -> None:
        """Take the stream of a card's ledger while its tensors still live."""
        optimizer, books = getattr(self, "optimizer", None), self.state.ledger
        if self.state.on_cpu or not (optimizer or self.state.lost):
            return
        if optimizer is not None:
            tensors = (one for one in optimizer_state(optimizer) if one.is_meta and not is_paged(one))
            books.register(tensors, "optimizer_state", "optimizer")
        paged = 0 if optimizer is None else paged_bytes(optimizer, books)
        asked = self._asked()
        self._made = lambda settings, platform: summed_up(
            stream_of(books, paged_bytes=paged, asked=asked), platform, settings, "full trace"
        )

    def _asked(self) -> list[str]:
        return [f"{line} ({times} times)" for line, times in self.state.asked.items()]

    def answer(
        self, platform: Platform, settings: AllocatorSettings, how: str, failure: Exception | None
    ) -> Prediction | Refusal:
        """Say what the script took, or why that cannot be told."""
        lost, refused = self.state.lost, "this script cannot be predicted: "
        if self.state.refusal is not None:
            return Refusal(message=self.state.refusal)
        out_of_memory = bool(lost) and isinstance(failure, torch.OutOfMemoryError)
        if failure is not None and not out_of_memory:
            frames = [
                frame for frame in extract_tb(failure.__traceback__) if self._script_name in frame.filename
            ]
            line = f"{self._script_name}:{frames[-1].lineno}" if frames else self._script_name
            error = f"{type(failure).__name__}: {first_line(failure)}"
            by: RefusedBy = "library" if not self.state.asked and library_at_fault(failure) else "tracer"
            return Refusal(message=f"{refused}{line} ends it with {error}; {self._doubt(failure)}", by=by)
        if self._made is None:
            needed = self._steps + LEDGER_STEPS if self.steps_taken else 1
            return Refusal(
                message=f"{refused}{self._script_name} {how} after {self.steps_taken} optimizer steps, and "
                f"{needed} are needed; {self._doubt()}"
            )
        for block in lost[:-1] if out_of_memory else lost:
            block.nbytes = 0  # there was no room for it, and the script went on without
        prediction = self._made(settings, platform)
        caveats = (
            *prediction.caveats,
            *(() if self.state.on_cpu else implementations_of()),
            *self._caveats(how, out_of_memory=out_of_memory),
        )
        return prediction.model_copy(update={"caveats": caveats})

    def _doubt(self, failure: BaseException | None = None) -> str:
        """Say what may be to blame for an early end: a value that was invented, if one was asked for."""
        if self.state.asked:
            *_, last = self.state.asked
            return (
                f"it was told values that no prediction has, lastly at {last}; measure it with bench watch."
            )
        if failure is None and self.steps_taken:
            return "let it train for longer, or give fewer --steps."
        if self.state.on_cpu and "CUDA" in str(failure):
            return "it was predicted for the CPU; name a card, as by --gpu rtx4090."
        while failure is not None:
            if type(failure).__name__ in _WITHOUT_NETWORK:
                return "it has no network; download first what it asks for, or allow it with --online."
            failure = failure.__cause__ or failure.__context__
        return "does it run as it is, with these arguments?"

    def _caveats(self, how: str, *, out_of_memory: bool) -> Iterator[Caveat]:
        state, where = self.state, f"optimizer step {self.steps_taken}"
        if state.notes:
            yield Caveat(code="script-left-out", message=f"Left out: {'; '.join(state.notes)}.")
        if out_of_memory:
            message = (
                f"The script runs out of memory after {where}; what it would take from there on is more."
            )
            yield Caveat(code="script-out-of-memory", message=message)
        elif state.lost:
            message = f"The script ran out of memory {len(state.lost)} times, and went on with less."
            yield Caveat(code="script-retried", message=message)
        if self._longest is not None and self._longest.wanted:
            message = (
                f"After step {self._steps} the loader was given the longest rows of its data: the first "
                f"{MOST_ROWS:,} rows were looked at."
            )
            yield Caveat(code="script-longest-batch", message=message)
        if self._shuffles:
            message = (
                "Rows are shuffled by random numbers of which a real run has drawn others before, for "
                "weights, so that it may step through other rows."
            )
            yield Caveat(code="script-shuffled", message=message)
        widest = " by ".join(map(str, self._widest)) or "of unknown size"
        yield Caveat(
            code="script-stopped",
            message=f"The script {how or 'failed'} after {where}; the largest input until then was {widest}. "
            "Larger ones later, and what comes after it, are not in the prediction.",
        )
