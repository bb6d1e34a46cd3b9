"""Other people's loops under the window's instruments: what a record of them holds, and how they end."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UnavailableError, UsageError
from bench.records.readings import Caveat
from bench.records.records import FlopsReading, LedgerReading, ModelFacts, PhaseReading, StepSample
from bench.training.rows.data import PreparedData
from bench.training.trainers import Hooks, hf_trainer, rows_of
from tiny_cells import of_type, readings_of, tiny_cell

MINE = '''
import torch

def train(cell, model, tokenizer, data, hooks, rate=1e-3):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in data.steps:
        for batch in step:
            model(**batch.inputs_on("cpu")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

def stop():
    """Takes no step, and nothing that it is given."""

def elsewhere(model, loader, *, rows=1):
    """Takes what no loop is given."""

def two(cell, model, tokenizer, data, hooks):
    """Has an optimizer for each half of the parameters, and batches of its own."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = [torch.optim.SGD(parameters[index::2], lr=0.01) for index in range(2)]
    for step in data.steps:
        ids = step[0].input_ids[:1]
        model(ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

def another(cell, model, tokenizer, data, hooks):
    """Trains a model that it was not given."""
    own = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01)
    for _ in data.steps:
        own(torch.ones(2, 4)).sum().backward()
        optimizer.step()

def fail(model, **others):
    raise ZeroDivisionError("in the user's loop")
'''


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Forget accelerate's state: a worker trains one cell, here several share a process."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a module of the user's into the working folder."""
    (tmp_path / "my_loops.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_loops", None)


@pytest.mark.parametrize("driver", ["hf-trainer", "trl-sft"])
@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora"}])
def test_a_library_s_loop_gives_the_readings_of_the_window(driver: str, method: dict[str, Any]) -> None:
    """Phases in order, a sample for each timed step with its tokens and loss, ledger, FLOPs, optimizer."""
    cell = tiny_cell(method, loop={"driver": driver}, training={"gradient_accumulation": 2, "dtype": "fp32"})
    own, theirs = (readings_of(one) for one in (tiny_cell(method, training={"dtype": "fp32"}), cell))
    names = [phase.name for phase in of_type(theirs, PhaseReading)]
    once = list(dict.fromkeys(names))
    assert sorted(once) == sorted({phase.name for phase in of_type(own, PhaseReading)})
    assert (
        once.index("prepare_data") < once.index("first_forward") < once.index("warmup") < once.index("steady")
    )
    assert (names.count("first_forward"), names.count("first_backward")) == (2, 2)
    steps = of_type(theirs, StepSample)
    assert [step.stage for step in steps] == ["first", "warmup", "measured", "measured"]
    assert all(step.tokens.computed == 2 * 2 * 32 and 1 < step.loss < 20 for step in steps)
    (facts,) = of_type(theirs, ModelFacts)
    assert facts.optimizer_class == "torch.optim.adamw.AdamW"
    (ledger,), (flops,) = of_type(theirs, LedgerReading), of_type(theirs, FlopsReading)
    assert ledger.peak_bytes > 0
    (own_flops,) = of_type(own, FlopsReading)
    assert own_flops.step_flops * 1.7 < flops.step_flops < own_flops.step_flops * 2.6


def test_loops_learn_the_same() -> None:
    """From the same seed and data, the Trainer's losses are the window's."""
    same: dict[str, Any] = {"training": {"dtype": "fp32", "learning_rate": 0.01}}
    own, theirs = (
        [step.loss for step in of_type(readings_of(tiny_cell(loop={"driver": driver}, **same)), StepSample)]
        for driver in ("window", "hf-trainer")
    )
    assert own == pytest.approx(theirs, rel=1e-3)
    assert own[0] != own[-1]


def test_hf_trainer_takes_what_the_window_takes_and_the_batch_it_fetches_ahead() -> None:
    """Where settings agree the two differ by a constant: one batch of ids and labels."""
    peaks = [
        of_type(readings_of(tiny_cell(loop={"driver": driver}, training={"dtype": "fp32"})), LedgerReading)[0]
        for driver in ("window", "hf-trainer")
    ]
    batch_bytes = 2 * (2 * 32) * 8
    assert 0 <= peaks[1].peak_bytes - peaks[0].peak_bytes <= 2 * batch_bytes


@pytest.mark.usefixtures("mine")
def test_a_function_of_the_user_s_is_measured() -> None:
    """It gets cell, model, tokenizer, data and hooks, and its own arguments."""
    cell = tiny_cell(loop={"driver": "my_loops:train", "args": {"rate": 0.1}}, training={"dtype": "fp32"})
    readings = readings_of(cell)
    assert len(of_type(readings, StepSample)) == 4
    (facts,) = of_type(readings, ModelFacts)
    assert facts.optimizer_class.endswith("SGD")


@pytest.mark.usefixtures("mine")
def test_two_optimizers_make_one_step_and_other_batches_are_told() -> None:
    """A step follows a backward pass; tokens are those the model was given, and a caveat says so."""
    readings = readings_of(tiny_cell(loop={"driver": "my_loops:two"}))
    steps = of_type(readings, StepSample)
    assert [step.tokens.computed for step in steps] == [32] * 4
    assert "batches-not-the-data-s" in {caveat.code for caveat in of_type(readings, Caveat)}


@pytest.mark.parametrize("driver", ["hf-trainer", "trl-sft"])
@pytest.mark.parametrize("batching", ["pack", "pad-to-longest", "pad-to-length"])
def test_real_data_keeps_its_rows_labels_and_order(driver: str, batching: str) -> None:
    """Packed, padded, with a loss on completions alone: tokens and losses are the window's."""
    data = {"source": "task", "task": "largest-number", "train_on": "completion"}
    training = {"dtype": "fp32", "batching": batching, "micro_batch": 2, "sequence_length": 64}
    own, theirs = (
        readings_of(tiny_cell(data=data, training=training, loop={"driver": name}))
        for name in ("window", driver)
    )
    assert "batches-not-the-data-s" not in {caveat.code for caveat in of_type(theirs, Caveat)}
    steps = list(zip(of_type(own, StepSample), of_type(theirs, StepSample), strict=True))
    for window, loop in steps:
        assert loop.tokens == window.tokens
        assert loop.tokens.loss_bearing < loop.tokens.non_padding
        assert loop.loss == pytest.approx(window.loss, rel=1e-3)


def test_a_trainer_is_not_let_loose_on_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would wrap the model in DataParallel, and one card be read."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cell = tiny_cell(device="cuda", loop={"driver": "hf-trainer"})
    hooks = Hooks(steps=1, collate=lambda collate: collate, beside=lambda _model: None)
    with pytest.raises(UnavailableError, match="all 2 GPUs that it sees"):
        hf_trainer(cell, None, None, PreparedData(steps=(), caveats=()), hooks)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("driver", "error", "message"),
    [
        ("my_loops:another", UsageError, r"the model that it was given was not called"),
        ("my_loops:stop", UsageError, r"ended by itself after 0 of 7 optimizer steps"),
        ("my_loops:fail", ZeroDivisionError, r"in the user's loop"),
        ("my_loops:nothing", UsageError, r"cannot be imported"),
        ("my_loops:elsewhere", UsageError, r"takes loader, which no loop is given; .*write one that calls"),
        ("no_such_module:train", UsageError, r"cannot be imported"),
    ],
)
def test_a_loop_that_goes_wrong_says_so(driver: str, error: type[Exception], message: str) -> None:
    """One that ends early is an error, not a short record; what it raises leaves as it is."""
    with pytest.raises(error, match=message):
        readings_of(tiny_cell(loop={"driver": driver}))


def test_arguments_that_a_trainer_does_not_know_are_refused() -> None:
    """The library checks what is handed on to it."""
    cell = tiny_cell(loop={"driver": "hf-trainer", "args": {"no_such_field": 1}})
    with pytest.raises(UsageError, match=r"TrainingArguments refuses them: .*no_such_field"):
        readings_of(cell)


@pytest.mark.usefixtures("mine")
def test_arguments_that_a_function_does_not_take_are_refused() -> None:
    """They are named, and nothing is trained without them."""
    with pytest.raises(UsageError, match=r"my_loops:stop takes no rate; remove it from loop\.args"):
        readings_of(tiny_cell(loop={"driver": "my_loops:stop", "args": {"rate": 0.1}}))


def test_nothing_of_the_watcher_is_left_behind() -> None:
    """Hooks and patches are gone when the loop is over."""
    backward, scale = torch.autograd.backward, torch.amp.GradScaler.scale
    readings_of(tiny_cell(loop={"driver": "hf-trainer"}))
    assert (torch.autograd.backward, torch.amp.GradScaler.scale) == (backward, scale)
    assert not import_module("torch.optim.optimizer")._global_optimizer_post_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_rows_are_those_of_the_batch() -> None:
    """Stacked again, they are the batch."""
    from bench.scenario.types import SyntheticData, TrainingSpec
    from bench.training.rows.data import prepare_batches

    training = TrainingSpec(sequence_length=8, micro_batch=3)
    (step,) = prepare_batches(SyntheticData(attention_mask="padded"), training, None, 100, 1).steps
    rows = list(rows_of(step[0]))
    for name, tensor in step[0].inputs_on("cpu").items():
        assert torch.equal(torch.stack([row[name] for row in rows]), tensor)
