"""One cell, from nothing to its last reading, whichever loop trains it."""

from collections.abc import Callable

import torch

from bench.probes.machine import allocator_of, ignore, read_facts, read_torch_settings
from bench.probes.phases import PhaseReader, mark_block
from bench.records.messages import Send
from bench.scenario.cell import Cell
from bench.training.loops import run_loop
from bench.training.models import device_of, load_model
from bench.training.weights import fetch_weights
from bench.training.window import Setting, run_window


def run_cell(
    cell: Cell, send: Send, *, trust_remote_code: bool = False, after_warmup: Callable[[], None] = ignore
) -> None:
    """Run one cell; ``after_warmup`` is called before the measured steps.

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
        model, tokenizer = load_model(cell, weights, device, trust_remote_code=trust_remote_code)
    setting = Setting(
        cell=cell,
        model=model,
        tokenizer=tokenizer,
        weights=weights,
        phases=phases,
        after_warmup=after_warmup,
    )
    del model  # or what a method replaces would stay alive
    if cell.loop.driver == "window":
        run_window(setting)
    else:
        run_loop(setting)
