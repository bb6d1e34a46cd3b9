"""The ledger, against arithmetic by hand, against torch's profiler, and against itself."""

from collections.abc import Callable

import msgspec
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from bench.metrics import MIB
from bench.probes.ledger import OUTSIDE, Ledger, StepPhase
from bench.probes.tensors import Block, by_module
from bench.records.messages import CellJob
from bench.records.readings import summed
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.workers.launch import Launcher
from bench.workers.supervise import RunningJob
from tiny_cells import of_type, readings_of, tiny_cell

HIDDEN, WIDE, ROWS = 64, 256, 48
FLOAT_BYTES = 4


class TwoLayers(nn.Module):
    """Linear, ReLU, linear, without biases: every byte of a step can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, WIDE, bias=False)
        self.down = nn.Linear(WIDE, HIDDEN, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of the same width."""
        result: torch.Tensor = self.down(torch.relu(self.up(rows)))
        return result


def _step(model: nn.Module, rows: torch.Tensor, mark: Callable[[StepPhase], None]) -> None:
    mark("forward")
    loss = model(rows).sum()
    mark("backward")
    loss.backward()
    mark("optimizer_step")
    for parameter in model.parameters():
        parameter.grad = None


def _ignore(_phase: StepPhase) -> None:
    pass


def _reading(model: nn.Module, rows: torch.Tensor, extra_bytes: int = 0) -> LedgerReading:
    ledger = Ledger(model, "cpu", vocabulary_size=-1)
    ledger.register_model(model)

    def mark(phase: StepPhase) -> None:
        ledger.mark(phase)
        if phase == "optimizer_step":
            ledger.register_gradients(model.parameters())

    with ledger:
        ledger.register([rows], "inputs")
        kept = torch.empty(extra_bytes, dtype=torch.uint8)
        _step(model, rows, mark)
        del kept
    return ledger.reading()


def test_what_forward_keeps_is_what_backward_needs() -> None:
    """Saved for the backward pass: ReLU's output [48, 256] and the scalar loss; nothing else survives."""
    reading = _reading(TwoLayers(), torch.randn(ROWS, HIDDEN))
    relu_output = ROWS * WIDE * FLOAT_BYTES
    loss = FLOAT_BYTES
    assert reading.saved_for_backward_bytes == relu_output + loss


def test_the_peak_and_its_categories_by_hand() -> None:
    """At the peak the backward pass holds both weight gradients' factors, and all categories add up."""
    reading = _reading(TwoLayers(), torch.randn(ROWS, HIDDEN))
    weights = 2 * HIDDEN * WIDE * FLOAT_BYTES
    inputs = ROWS * HIDDEN * FLOAT_BYTES
    relu_output = ROWS * WIDE * FLOAT_BYTES
    gradient = HIDDEN * WIDE * FLOAT_BYTES
    scalars = 2 * FLOAT_BYTES  # the loss, and the one that backward starts from
    # The most is live when ReLU's backward has just made the gradient of its input, from the gradient of
    # its output and its output; the second layer's weight gradient is there already.
    assert reading.peak_bytes == weights + inputs + gradient + 3 * relu_output + scalars
    assert reading.categories_at_peak_bytes == {
        "weights": weights,
        "inputs": inputs,
        "gradients": gradient,
        "activations": relu_output + scalars,
        "temporary": 2 * relu_output,
    }
    assert (reading.peak_phase, reading.peak_op) == ("backward", "aten::threshold_backward")
    # Before ReLU's input is freed its output is there; later in both phases less is live.
    before = {"inputs": weights + inputs, "forward": weights + inputs + 2 * relu_output}
    assert before | {"backward": reading.peak_bytes} == {
        phase: peak for phase, peak in reading.phase_peaks_bytes.items() if phase != "optimizer_step"
    }


def test_the_peak_by_module_by_hand() -> None:
    """Each layer holds its weight, ReLU's output belongs to the model; all modules add up to the peak."""
    reading = _reading(TwoLayers(), torch.randn(ROWS, HIDDEN))
    modules = reading.modules_at_peak_bytes
    assert isinstance(modules, dict)
    weight = HIDDEN * WIDE * FLOAT_BYTES
    assert (weight, weight) == (modules["up"]["weights"], modules["down"]["weights"])
    assert {"down": weight} == {name: own["gradients"] for name, own in modules.items() if "gradients" in own}
    assert reading.categories_at_peak_bytes == summed(modules)
    assert reading.peak_bytes == sum(summed(modules).values())


def test_layers_are_one_module_and_gradients_belong_to_their_owner() -> None:
    """A number in a name is told as *; a weight belongs to its module, whichever loaded it."""
    blocks = [
        Block(8, "load", "op", OUTSIDE, category="weights", owner=f"layers.{at}.mlp") for at in range(3)
    ]
    blocks.append(Block(5, "backward", "op", "layers.2.mlp (gradients only)", category="gradients"))
    found = by_module((block, block.nbytes) for block in blocks)
    assert {"layers.*.mlp": {"gradients": 5, "weights": 24}} == found


def test_the_timeline_runs_from_the_weights_to_the_peak_and_back() -> None:
    """It begins with what was there, names the phases, holds the exact peak and ends without gradients."""
    reading = _reading(TwoLayers(), torch.randn(ROWS, HIDDEN))
    timeline = reading.timeline
    assert timeline is not None
    weights, inputs = 2 * HIDDEN * WIDE * FLOAT_BYTES, ROWS * HIDDEN * FLOAT_BYTES
    assert weights + inputs == timeline.live_bytes[0]
    assert reading.peak_bytes == max(timeline.live_bytes)
    assert ["inputs", "forward", "backward", "optimizer_step"] == [start.phase for start in timeline.phases]
    assert 0 == timeline.phases[0].entry <= timeline.phases[1].entry <= timeline.last_entry
    assert weights + inputs == timeline.live_bytes[-1]


def test_one_mebibyte_more_moves_the_peak_by_exactly_that() -> None:
    """An extra tensor of 1 MiB held through the step raises the peak by 1,048,576 bytes."""
    model, rows = TwoLayers(), torch.randn(ROWS, HIDDEN)
    assert _reading(model, rows, extra_bytes=MIB).peak_bytes - _reading(model, rows).peak_bytes == 1_048_576


def test_torchs_profiler_sees_the_same_peak() -> None:
    """Second instrument: torch's CPU allocator, as its profiler logs it, peaks at the same byte count."""
    model, rows = TwoLayers(), torch.randn(ROWS, HIDDEN)
    _step(model, rows, _ignore)
    ledger = _reading(model, rows)
    before = sum(p.numel() for p in model.parameters()) * FLOAT_BYTES + rows.numel() * FLOAT_BYTES
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _step(model, rows, _ignore)
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert before + peak == ledger.peak_bytes


def test_a_storage_is_counted_once_however_many_views_it_has() -> None:
    """Views and in-place operators allocate nothing."""
    with (ledger := Ledger(nn.Identity(), "cpu", vocabulary_size=-1)):
        kept = torch.zeros(1000, dtype=torch.uint8)
        views = [kept.view(10, 100), kept[5:], kept.add_(1)]
        del views
    assert ledger.reading().peak_bytes == 1000
    assert ledger.reading().allocation_count == 1


def test_an_empty_ledger_says_so() -> None:
    """No tensor, no peak."""
    with (ledger := Ledger(nn.Identity(), "cpu", vocabulary_size=-1)):
        pass
    assert ledger.reading().peak_bytes == 0


def test_hooks_and_garbage_collection_are_put_back() -> None:
    """The ledger leaves no hook behind, also after an error inside."""
    model = TwoLayers()
    with pytest.raises(RuntimeError), Ledger(model, "cpu", vocabulary_size=-1):
        model(torch.randn(1, HIDDEN + 1))
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_recomputation_broken_off_leaves_no_module_open() -> None:
    """Non-reentrant checkpointing ends its recomputation by an exception; no later operator is misnamed."""
    model, rows = TwoLayers(), torch.randn(ROWS, HIDDEN, requires_grad=True)
    ledger = Ledger(model, "cpu", vocabulary_size=-1)
    with ledger:
        ledger.mark("forward")
        loss = checkpoint(model, rows, use_reentrant=False).sum()
        ledger.mark("backward")
        loss.backward()
    assert ledger._module_stack == ["outside the model"]


def _ledger_of_a_process(cell: Cell) -> LedgerReading:
    end = RunningJob(CellJob(cell_json=cell.model_dump_json()), Launcher()).to_end()
    assert end.measurement.ledger, end.failure
    return end.measurement.ledger


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_weights")
def test_two_processes_agree_to_the_byte() -> None:
    """The whole reading of each method, not only the peak, is identical here and in a process of its own.

    But for what is retained outside the model: this process holds tensors of other tests.
    """
    cells = [tiny_cell({"kind": kind}) for kind in ("full", "lora", "qlora")]
    here = [reading for cell in cells for reading in of_type(readings_of(cell), LedgerReading)]
    assert len({reading.peak_bytes for reading in here}) == 3
    there = [_ledger_of_a_process(cell) for cell in cells]
    outside = {"retained": msgspec.UNSET}
    mine, its = ([msgspec.structs.replace(one, **outside) for one in each] for each in (here, there))
    assert mine == its
