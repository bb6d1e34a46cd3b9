"""A library's loop predicted for the CPU against its real run under the ledger: equal to the byte."""

import os
from collections.abc import Iterator
from functools import wraps
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import Trainer

from bench.errors import UntraceableError
from bench.predict.predict import predict
from bench.predict.trace.trace import read_cpu_ledger
from bench.predict.trace.values import KnownValues
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training.loading.models import DTYPES
from tiny_cells import of_type, readings_of, tiny_cell

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

CPU, CUDA = Platform(device="cpu"), Platform(device="cuda", capability=(8, 9))
METHODS: list[dict[str, Any]] = [{"kind": "full"}, {"kind": "lora"}, {"kind": "qlora"}]
NEFTUNE = {"loop": {"args": {"neftune_noise_alpha": 5.0}}}
SMOOTHING = {"loop": {"args": {"label_smoothing_factor": 0.1}}}
EXTRAS: list[dict[str, Any]] = [
    {"training": {"autocast": "bf16", "dtype": "fp32"}},
    {"training": {"gradient_accumulation": 2}},
    {"training": {"optimizer": "adamw-8bit"}},
    {"training": {"optimizer": "paged-adamw-8bit"}},
    {"training": {"max_grad_norm": 0.0, "gradient_checkpointing": "reentrant"}},
    NEFTUNE,
]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Forget accelerate's state: a worker trains one cell, here several share a process."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def loop_cell(driver: str, method: dict[str, Any], changes: dict[str, Any]) -> Cell:
    """Return a small cell in the given loop, with one warm-up step and one measured one."""
    settings = {name: dict(table) for name, table in changes.items()}
    settings.setdefault("loop", {})["driver"] = driver
    window = {"warmup_steps": 0, "measured_steps": 1, "flops": False}
    return tiny_cell(method, window=window, **settings)


def assert_equal_to_the_byte(cell: Cell) -> None:
    """Run the cell for real, in the loop and precision it names, and on meta tensors; compare all memory."""
    trained: list[str] = []
    train = Trainer.train

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights = {parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point()}
        trained.append(f"{type(self).__name__} {self.accelerator.mixed_precision}")
        assert cell.method.kind == "qlora" or DTYPES[cell.training.dtype] in weights
        return train(self, *args, **kwargs)

    with patch.object(Trainer, "train", noted):
        (real,) = of_type(readings_of(cell), LedgerReading)
    name = {"hf-trainer": "Trainer", "trl-sft": "SFTTrainer", "trl-dpo": "DPOTrainer"}[cell.loop.driver]
    assert trained == [f"{name} {'bf16' if cell.training.autocast == 'bf16' else 'no'}"]
    predicted = read_cpu_ledger(cell, CPU)
    assert predicted.peak_bytes == real.peak_bytes
    assert predicted.phase_peaks_bytes == real.phase_peaks_bytes
    assert predicted.categories_at_peak_bytes == real.categories_at_peak_bytes
    assert (predicted.peak_phase, predicted.peak_op) == (real.peak_phase, real.peak_op)


@pytest.mark.parametrize(
    ("driver", "method", "changes"),
    [
        ("hf-trainer", METHODS[0], EXTRAS[0]),
        ("hf-trainer", METHODS[1], EXTRAS[1]),
        ("hf-trainer", METHODS[2], EXTRAS[3]),
        ("hf-trainer", METHODS[1], SMOOTHING),
        ("trl-sft", METHODS[0], EXTRAS[1]),
        ("trl-sft", METHODS[1], EXTRAS[0]),
        ("trl-sft", METHODS[2], EXTRAS[2]),
        ("trl-sft", METHODS[1], NEFTUNE),
        ("trl-dpo", METHODS[0], EXTRAS[0]),
        ("trl-dpo", METHODS[1], EXTRAS[1]),
        ("trl-dpo", METHODS[2], EXTRAS[3]),
    ],
)
def test_a_few_loops_are_predicted_to_the_byte(
    driver: str, method: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Autocast, accumulation, 8-bit and paged optimizers, noise and smoothing, by the libraries' own code."""
    assert_equal_to_the_byte(loop_cell(driver, method, changes))


@pytest.mark.skipif("LOOPS" not in os.environ, reason="takes minutes; LOOPS=full runs it")
@pytest.mark.parametrize("driver", ["hf-trainer", "trl-sft", "trl-dpo"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["kind"])
@pytest.mark.parametrize("index", range(4 + len(EXTRAS)))
def test_all_loops_are_predicted_to_the_byte(driver: str, method: dict[str, Any], index: int) -> None:
    """Ninety cells: dtypes with and without checkpointing, then one extra at a time."""
    plain = [
        {"training": {"dtype": dtype, "gradient_checkpointing": checkpointing}}
        for dtype, checkpointing in product(("fp32", "bf16"), ("off", "non-reentrant"))
    ]
    assert_equal_to_the_byte(loop_cell(driver, method, [*plain, *EXTRAS][index]))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["kind"])
@pytest.mark.parametrize(
    ("rows", "length", "mask"),
    [(2, 32, "none"), pytest.param(8, 128, "none", marks=pytest.mark.slow), (4, 64, "ones")],
)
def test_the_trainer_takes_what_the_window_takes_and_on_the_host_a_batch_ahead(
    method: dict[str, Any], rows: int, length: int, mask: str
) -> None:
    """The two differ by a constant; the batch that accelerate's loader fetches ahead stays on the host."""
    training = {"micro_batch": rows, "sequence_length": length}
    peaks_bytes: dict[str, int] = {}
    for device, driver in product(("cpu", "cuda"), ("window", "hf-trainer")):
        data = {"attention_mask": mask}
        cell = tiny_cell(method, device=device, loop={"driver": driver}, training=training, data=data)
        platform = CPU if device == "cpu" else CUDA
        peaks_bytes[f"{device} {driver}"] = predict(cell, platform).allocated_peak_bytes
    ahead_bytes = rows * length * 8 * (2 if mask == "none" else 3)
    on_cpu, on_card = (
        peaks_bytes[f"{device} hf-trainer"] - peaks_bytes[f"{device} window"] for device in ("cpu", "cuda")
    )
    assert on_cpu == ahead_bytes + (18 if method["kind"] == "full" else 20)
    assert on_card == 2560


def test_a_trainer_that_leaves_the_cache_on_keeps_what_the_window_keeps() -> None:
    """As transformers' Trainer did before version 5: GPTBigCode's own decision, which no loop passes on."""
    changes: dict[str, Any] = {
        "model": {"random": "santacoder-1.1b", "overrides": {"n_layer": 2}},
        "data": {"attention_mask": "ones"},
        "device": "cuda",
    }
    training = {"micro_batch": 8, "sequence_length": 512, "gradient_checkpointing": "reentrant"}
    window = tiny_cell(training={**training, "use_cache": True}, **changes)
    loop = {"driver": "hf-trainer", "args": {"use_cache": True}}
    trainer = tiny_cell(training=training, loop=loop, **changes)
    without = tiny_cell(training=training, loop={"driver": "hf-trainer"}, **changes)
    old = CUDA.model_copy(update={"transformers": "4.48.1"})
    own, theirs, less = (
        predict(cell, old).phase_peaks_bytes["forward"] for cell in (window, trainer, without)
    )
    assert 0 <= theirs - own <= 2560
    assert less < theirs


def test_the_window_s_own_loop_is_told_nothing_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that asks for an unknown value is refused in the window, and a caveat in a trainer's loop."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    @wraps(forward)
    def asking(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(self, *args, **kwargs)
        assert outputs.logits.sum().item() is not None
        return outputs

    monkeypatch.setattr(LlamaForCausalLM, "forward", asking)
    for platform in (CPU, CUDA):
        with pytest.raises(UntraceableError, match="asks for the value of a tensor"):
            predict(tiny_cell(device=platform.device), platform)
        told = predict(tiny_cell(device=platform.device, loop={"driver": "hf-trainer"}), platform)
        assert any("in asking" in caveat.message for caveat in told.caveats)


def test_on_a_card_trl_never_has_all_logits() -> None:
    """With a large vocabulary its loss in tiles takes less than the Trainer's."""
    large = {"random": "tiny-llama-test", "overrides": {"vocab_size": 150_000}}
    peaks = {}
    for driver in ("hf-trainer", "trl-sft"):
        changes: dict[str, Any] = {"model": large, "training": {"micro_batch": 8, "sequence_length": 512}}
        cell = tiny_cell({"kind": "lora"}, device="cuda", loop={"driver": driver}, **changes)
        prediction = predict(cell, CUDA)
        peaks[driver] = prediction.allocated_peak_bytes
        assert prediction.reserved_peak_bytes is not None
    assert peaks["trl-sft"] < 0.8 * peaks["hf-trainer"]


def test_what_a_loop_asks_of_values_is_told() -> None:
    """The caveat names the lines; what the batch tells is not among them."""
    (caveat,) = predict(loop_cell("hf-trainer", METHODS[1], {}), CPU).caveats
    assert caveat.code == "values-assumed"
    assert "trainer.py, line " in caveat.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": {"driver": "mine:train"}}, r"code of yours.*--allow-code"),
        (
            {"loop": {"driver": "hf-trainer"}, "training": {"autocast": "fp16", "dtype": "fp32"}},
            "fp16 autocast",
        ),
    ],
)
def test_loops_that_cannot_be_traced_are_refused(changes: dict[str, Any], message: str) -> None:
    """A prediction never imports code that a scenario names."""
    with pytest.raises(UntraceableError, match=message):
        predict(tiny_cell({"kind": "lora"}, device="cuda", **changes), CUDA)


def test_known_values_follow_views_writes_and_selections() -> None:
    """Views read the storage they share, a write from unknown values is forgotten."""
    known = KnownValues()
    real = torch.tensor([[1, -100, 3], [-100, 5, 6]])
    labels = real.to("meta")
    known.know(labels, real)
    shifted = labels[:, 1:]
    value = known.value_of(shifted)
    assert value is not None
    assert value.tolist() == [[-100, 3], [5, 6]]
    made = shifted != -100
    known.follow(torch.ops.aten.ne.Scalar, (shifted, -100), {}, made)
    value = known.value_of(made)
    assert value is not None
    assert int(value.sum()) == 3
    unknown = torch.empty(2, 3, dtype=torch.int64, device="meta")
    known.follow(torch.ops.aten.add_.Tensor, (labels, unknown), {}, labels)
    assert known.value_of(labels) is None
