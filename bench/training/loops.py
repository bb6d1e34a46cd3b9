"""One cell, in whichever loop: the window's own, a library's trainer, or a function of the user's.

Another loop than the window is run once, unchanged, and watched.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from bench.errors import UsageError
from bench.probes.flops import FlopCounter
from bench.probes.ledger import Ledger
from bench.probes.machine import allocator_of, ignore, read_facts, read_torch_settings
from bench.probes.phases import PhaseReader, mark_block, mark_quiescent
from bench.records.messages import Send
from bench.records.readings import Caveat
from bench.records.records import TokenCounts
from bench.scenario.cell import Cell
from bench.scenario.loop import NO_LOOP
from bench.training.loading.models import device_of, load_model
from bench.training.loading.reach import require_reach
from bench.training.loading.weights import fetch_weights
from bench.training.rows.data import PreparedData
from bench.training.step import ignore_phase, paged_memory
from bench.training.trainers import TRAINERS, Collate, Hooks
from bench.training.watcher import Script, StopLoop, WatchedLoop, Watcher
from bench.training.window import (
    LEDGER_STEPS,
    Setting,
    first_step_phases,
    flops_readings,
    run_window,
    tensors_of,
    token_counts,
    widest_of,
)


def run_cell(
    cell: Cell,
    send: Send,
    *,
    trust_remote_code: bool = False,
    after_warmup: Callable[[], None] = ignore,
    rank: int = 0,
) -> None:
    """Run one cell, or one rank of it; ``after_warmup`` is called before the measured steps.

    Raises what the libraries raise, and ``UnavailableError`` where this machine lacks something.
    """
    device = device_of(cell)
    allocator = allocator_of(device)
    phases = PhaseReader(send, allocator)
    phases.report(read_facts(), read_torch_settings())
    weights = fetch_weights(cell.model)
    torch.manual_seed(cell.training.seed)
    mark_block(send, allocator)
    with phases.phase("load"):
        at = torch.device("cpu") if cell.parallel.sharded else device  # comes there in shards
        model, tokenizer = load_model(cell, weights, at, trust_remote_code=trust_remote_code)
    setting = Setting(
        cell=cell,
        model=model,
        tokenizer=tokenizer,
        weights=weights,
        phases=phases,
        after_warmup=after_warmup,
        rank=rank,
    )
    del model  # or what a method replaces would stay alive
    if cell.loop.driver == "window":
        run_window(setting)
    else:
        run_loop(setting)


def run_loop(setting: Setting) -> None:
    cell, phases = setting.cell, setting.phases
    with phases.phase("adapt"):
        setting.adapt()
    adapter_bytes = setting.save_adapter()
    setting.evaluate("before")
    run = LoopRun(setting, adapter_bytes)
    script = run.script()
    try:
        with Watcher(run, run.model).watching():
            drive(setting, run.data, run.hooks)
    except StopLoop:
        return
    except BaseException as error:  # noqa: BLE001 - raised again by the script, an interrupt too
        script.throw(error)  # so that the phase it happened in is read
    script.close()
    raise UsageError(
        f"loop {cell.loop.driver} ended by itself after {run.steps_taken} of {run.hooks.steps} optimizer "
        "steps; let it run on (a larger max_steps, more epochs), or shorten the scenario's window."
    )


def drive(setting: Setting, data: PreparedData, hooks: Hooks) -> None:
    """Run the cell's loop. Code of the user's is imported here, and nowhere else."""
    loop = setting.cell.loop
    if not loop.is_function:
        from bench.training.parallel import launched

        on = setting.cell.device
        with launched(setting.cell, on=on, device=on):
            TRAINERS[loop.driver](setting.cell, setting.model, setting.tokenizer, data, hooks)
        return
    module, _, name = loop.driver.partition(":")
    try:
        train = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"loop.driver {loop.driver} {NO_LOOP}: {error}") from error
    given = {"cell": setting.cell, "model": setting.model, "tokenizer": setting.tokenizer, "data": data}
    train(**_asked_for(train, loop.driver, given | {"hooks": hooks}, loop.args))


def _asked_for(
    train: Callable[..., object], name: str, given: Mapping[str, Any], args: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a function takes of what a loop is given, by name, and all of the scenario's arguments.

    Raises ``UsageError`` where it takes something else, or not those arguments.
    """
    asked = signature(train).parameters.values()
    anything = any(one.kind is one.VAR_KEYWORD for one in asked)
    named = [one for one in asked if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}]
    needed = [one.name for one in asked if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if lacking := [one for one in needed if one not in {*given, *args}]:
        raise UsageError(
            f"loop.driver {name} takes {', '.join(lacking)}, which no loop is given; a loop takes what it "
            f"likes of {', '.join(given)} by name, and loop.args of the scenario: write one that calls yours"
        )
    names = {one.name for one in named}
    if unknown := [one for one in args if one not in names and not anything]:
        raise UsageError(f"loop.driver {name} takes no {', '.join(unknown)}; remove it from loop.args")
    return {one: value for one, value in given.items() if anything or one in names} | dict(args)


OTHER_BATCHES = Caveat(
    code="batches-not-the-data-s",
    message="The loop gave the model other batches than the data's in its order: tokens are all positions of "
    "what the model was given, padding included.",
)


class LoopRun(WatchedLoop):
    """Turns what a watcher tells of a scenario's loop into the readings of a record."""

    def __init__(self, setting: Setting, adapter_bytes: int | None) -> None:
        """Lay out the data: the timed steps', then the widest again under the ledger, then the last."""
        super().__init__(setting.phases)
        self._setting, self._adapter_bytes = setting, adapter_bytes
        self.model = setting.model
        cell = setting.cell
        data = setting.prepare_data()
        require_reach(cell, setting.model.config, chain.from_iterable(data.steps))
        widest, last = widest_of(data.steps), data.steps[-1]
        more = [widest] * LEDGER_STEPS * cell.window.ledger + [last] * cell.window.flops
        # One more than is trained on, since a loader fetches a batch ahead.
        self.data = PreparedData(steps=(*data.steps, *more, last), caveats=data.caveats)
        steps = len(data.steps) + len(more)
        self.hooks = Hooks(steps=steps, collate=self._collate, beside=self.beside.append)
        self._other_batches = False

    def steps(self) -> Script:
        """First step, warm-up and measured steps, evaluation, then what slows a step."""
        setting, window, phases = self._setting, self._setting.cell.window, self.phases
        phases.report(*self.data.caveats, *_caveats(setting.cell))
        with first_step_phases(phases, until_then="prepare_data") as self.mark:
            yield from self.timed("first")
        self.mark = ignore_phase
        setting.report_facts(self.optimizer, self._adapter_bytes)
        if setting.cell.device == "cuda":
            phases.report(paged_memory(self.optimizer))
        with phases.phase("warmup", total_steps=window.warmup_steps):
            for _ in range(window.warmup_steps):
                yield from self.timed("warmup")
        setting.after_warmup()
        with phases.phase("steady", total_steps=window.measured_steps, keep_heap=True):
            for _ in range(window.measured_steps):
                yield from self.timed("measured")
        if self._other_batches:
            phases.report(OTHER_BATCHES)
        mark_quiescent(phases.send, phases.allocator)
        setting.evaluate("after")
        if window.ledger:
            with phases.phase("ledger"):
                books = Ledger(setting.model, setting.cell.device, setting.vocabulary_size)
                yield from self.under_ledger(books, tensors_of(chain.from_iterable(self.data.steps)))
                phases.report(books.reading())
        if window.flops:
            with phases.phase("flops"):
                with FlopCounter() as counter:
                    yield
                phases.report(*flops_readings(counter, token_counts(self.data.steps[-1])))

    def counts(self) -> TokenCounts:
        """Return the tokens of the last step: the data's, if the model was given as many positions."""
        expected, seen = token_counts(self.data.steps[self.steps_taken - 1]), self.positions
        if not seen:
            raise UsageError(
                f"loop {self._setting.cell.loop.driver} made a step in which the model that it was given was "
                "not called with token ids; train that model."
            )
        if seen == expected.computed:
            return expected
        self._other_batches = True
        return TokenCounts(raw=seen, non_padding=seen, loss_bearing=seen, computed=seen)

    def _collate(self, collate: Collate) -> Collate:
        """Return a collator whose work no instrument sees; its batches are the ledger's inputs."""

        def collated(rows: Any) -> Any:
            with without_modes():
                batch = collate(rows)
            self.register_inputs(tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch))
            return batch

        return collated


def _caveats(cell: Cell) -> Iterator[Caveat]:
    if cell.training.autocast == "fp16":
        message = "A step that the gradient scaler leaves out is counted and timed with the next one."
        yield Caveat(code="scaler-skips-merged", message=message)


def without_modes() -> AbstractContextManager[Any]:
    """Hide what runs inside from ledger and counters."""
    return _disable_current_modes()
