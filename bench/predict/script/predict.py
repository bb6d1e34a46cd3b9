"""What a script would take on a device: run as it is for a few steps, on tensors without data."""

import os
import runpy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from traceback import extract_tb
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from bench.errors import UnavailableError, UntraceableError, first_line
from bench.predict.allocator.replay import DEFAULT_SETTINGS
from bench.predict.allocator.settings import AllocatorSettings
from bench.predict.predict import predicted_for_cpu, summed_up
from bench.predict.script.card import pretended
from bench.predict.script.ledger import ScriptLedger, ScriptState
from bench.predict.script.loading import without_weights
from bench.predict.trace.kernels import Kernels
from bench.predict.trace.loops import forget_state, trl_on_cuda
from bench.predict.trace.meta_kernels import is_paged
from bench.predict.trace.patches import patched
from bench.predict.trace.stream import stream_of
from bench.predict.trace.trace import paged_bytes
from bench.probes.machine import Allocator
from bench.probes.phases import PhaseReader
from bench.records.predictions import Prediction, Refusal
from bench.records.readings import Caveat
from bench.records.records import TokenCounts
from bench.scenario.catalogue import Card
from bench.scenario.types import Platform
from bench.training.step import optimizer_state
from bench.training.watcher import Script, StopLoop, WatchedLoop, Watcher, token_ids


@dataclass(frozen=True, kw_only=True)
class ScriptAnswer:
    """What a script was seen to do, and what that takes."""

    answer: Prediction | Refusal
    seen: "_PredictedLoop"


def predict_script(
    command: Sequence[str],
    platform: Platform,
    card: Card | None,
    *,
    steps: int = 3,
    through: bool = False,
    settings: AllocatorSettings = DEFAULT_SETTINGS,
) -> ScriptAnswer:
    """Predict the memory of a script's first steps on a card, or without one on the CPU, where it runs on.

    ``through`` runs it to its own end. On the CPU a ledger is read of the two steps that follow.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    state = ScriptState(on_cpu=card is None, most_bytes=card.torch_bytes if card else None)
    loop = _PredictedLoop(state, Kernels(platform), steps, through=through)
    move_adapter = BaseTunerLayer._move_adapter_to_device_of_base_layer  # noqa: SLF001 - peft's own, again
    ended: BaseException | None = None
    with ExitStack() as stack:
        forget_state()
        stack.callback(forget_state)
        stack.enter_context(patched(platform))
        stack.enter_context(patch.object(BaseTunerLayer, move_adapter.__name__, move_adapter))
        stack.enter_context(pretended(state, card))
        stack.enter_context(without_weights(state))
        stack.enter_context(Watcher(loop).watching())
        steps_taken = loop.script()
        try:
            _run(command)
        except StopLoop:
            pass
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the script's, whatever it is
            ended = error
        loop.finish()
        steps_taken.close()
    return ScriptAnswer(answer=_answer(loop, platform, settings, command, ended), seen=loop)


def _run(command: Sequence[str]) -> None:
    arguments, path = sys.argv, list(sys.path)
    sys.argv = [*command]
    sys.path.insert(0, os.path.dirname(os.path.abspath(command[0])))
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.argv, sys.path[:] = arguments, path


class _PredictedLoop(WatchedLoop):
    """What a watcher tells of a script without data, and the ledgers that are kept of it."""

    def __init__(self, state: ScriptState, kernels: Kernels, steps: int, *, through: bool) -> None:
        super().__init__(PhaseReader(lambda _message: None, Allocator()))
        self.state, self._kernels, self._steps, self.through = state, kernels, steps, through
        self.planned_steps = steps + 2 * state.on_cpu
        self._losses = None
        self.widest: tuple[int, ...] = ()
        self.prediction: Any = None
        self._stack = ExitStack()
        state.ledger = ScriptLedger(state, nn.Module(), -1, kernels, phase="adapt")

    def steps(self) -> Script:
        """Watch the steps that were asked for, and on the CPU two more under a ledger of their own."""
        state = self.state
        with self._stack:
            if state.on_cpu:
                with state.ledger:
                    for _ in range(self._steps):
                        yield
                vocabulary_size = _vocabulary_size(self.model)
                books = ScriptLedger(state, self.model, vocabulary_size, self._kernels, phase="inputs")
                state.ledger = books
                yield from self.under_ledger(books)
                self.prediction = books.reading()
                return
            with state.ledger as books:
                self._ledger = books
                for books.step in count():
                    if books.step:
                        books.mark("inputs")
                    if books.step == self._steps and not self.through:
                        return
                    yield

    def found(self, model: nn.Module) -> None:
        """Learn the names of what is trained."""
        if threading.current_thread() is not threading.main_thread():
            raise self.state.refuse("runs the model in a thread, where operators are not seen.")
        self.model = model
        if not self.state.on_cpu:
            self.state.ledger.meet(model, _vocabulary_size(model))
            for one in trl_on_cuda() if "trl" in sys.modules else ():
                self._stack.enter_context(one)

    def given(self, inputs: Mapping[str, Any]) -> None:
        """Note how large the batches are."""
        ids = token_ids(inputs)
        if ids is not None and ids.numel() > torch.Size(self.widest).numel() * bool(self.widest):
            self.widest = tuple(ids.shape)
        super().given(inputs)

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
        self.prediction = partial(stream_of, books, paged_bytes=paged, asked=self.asked())

    def asked(self) -> list[str]:
        """Return the lines that asked for values, each with how often."""
        return [f"{line} ({times}×)" for line, times in self.state.asked.items()]


def _answer(
    loop: _PredictedLoop,
    platform: Platform,
    settings: AllocatorSettings,
    command: Sequence[str],
    ended: BaseException | None,
) -> Prediction | Refusal:
    state, script = loop.state, os.path.basename(command[0])
    if isinstance(ended, UnavailableError):
        return Refusal(message=str(ended))
    if state.refusal is not None:
        return Refusal(message=state.refusal)
    out_of_memory = isinstance(ended, torch.OutOfMemoryError) and bool(state.lost)
    if ended is not None and not out_of_memory and not (isinstance(ended, SystemExit) and loop.steps_taken):
        frames = [frame for frame in extract_tb(ended.__traceback__) if frame.filename == command[0]]
        line = f"{script}:{frames[-1].lineno}" if frames else script
        return Refusal(
            message=f"this script cannot be predicted: {line} ended it with {type(ended).__name__}: "
            f"{first_line(ended)}; run it as it is first."
        )
    if loop.prediction is None:
        needed = str(loop.planned_steps) if loop.steps_taken else "one"
        return Refusal(
            message=f"this script cannot be predicted: {script} came to its end after {loop.steps_taken} optimizer "
            f"steps, and {needed} are needed; let it train longer, or give fewer --steps."
        )
    if state.on_cpu:
        prediction = predicted_for_cpu(loop.prediction, platform, loop.asked())
    else:
        for block in state.lost if not out_of_memory else state.lost[:-1]:
            block.nbytes = 0  # there was no room for it, and the script went on without
        prediction = summed_up(loop.prediction(), platform, settings, "full trace")
    return prediction.model_copy(update={"caveats": (*prediction.caveats, *_caveats(loop, out_of_memory))})


def _caveats(loop: _PredictedLoop, out_of_memory: bool) -> Iterator[Caveat]:
    """Say what was left out, and up to where the script ran."""
    state = loop.state
    if state.notes:
        yield Caveat(code="script-left-out", message=f"Left out: {'; '.join(state.notes)}.")
    if out_of_memory:
        message = "The script ran out of memory; what it takes from there on is not known, and would be more."
        yield Caveat(code="script-out-of-memory", message=message)
    elif state.lost:
        message = f"The script ran out of memory {len(state.lost)} times and went on; this is the whole run."
        yield Caveat(code="script-retried", message=message)
    if not loop.through:
        widest = " × ".join(map(str, loop.widest)) or "of unknown size"
        yield Caveat(
            code="script-stopped",
            message=f"Stopped after optimizer step {loop.steps_taken}; the largest input until then was "
            f"{widest}. Larger ones later, and what the script does afterwards, are not in it.",
        )


def _vocabulary_size(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", -1))
