"""Models of litgpt: what its fused projections, norms and quantisation keep, and what is refused."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from bench.errors import UntraceableError
from bench.predict.predict import predict
from bench.predict.trace.loading import load_weights
from bench.predict.trace.patches import patched
from bench.predict.trace.trace import read_cpu_ledger
from bench.predict.trace.variants import litgpt
from bench.predict.trace.variants.litgpt_model import GPT, HALF_PRECISION_FIXED, PADS_IN_PLACE
from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from tiny_cells import tiny_cell

WIDTH, INNER, HEADS, TOKENS = 32, 80, 4, 24
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": 64,
}
LORA: dict[str, Any] = {"kind": "lora", "rank": 2, "adapter_dtype": "weights"}
CHUNKS: dict[str, Any] = {"loss": "chunked-logits", "sequence_length": TOKENS, "loss_chunk_tokens": 8}
LATEST, OLDEST = "2024-08-01", "2023-10-16"


def _cell(targets: tuple[str, ...] | str, method: dict[str, Any] = LORA, **training: Any) -> Cell:
    return tiny_cell(method | {"target_modules": targets}, device="cuda", training=CHUNKS | training)


def _model(cell: Cell, day: str, layers: int = 2, family: str = "llama") -> GPT:
    config = AutoConfig.for_model(family, **SIZES | {"num_hidden_layers": layers})
    with torch.device("meta"):
        return litgpt.adapt(litgpt.build(cell, config, day), cell)


def _kept_bytes(model: GPT) -> int:
    """Return the bytes of all that the backward pass waits for, parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with patched(Platform()), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.zeros(1, TOKENS, dtype=torch.long, device="meta"))
        return sum(storage.nbytes() for storage in kept.values())


def _kept_per_token(targets: tuple[str, ...], day: str) -> float:
    """Return what one layer more keeps for each token."""
    cell = _cell(targets, LORA | {"dropout": 0.1})
    two, three = (_kept_bytes(_model(cell, day, layers)) for layers in (2, 3))
    return (three - two) / TOKENS


def test_a_layer_keeps_what_its_source_says() -> None:
    """By hand, in bytes of a token: one projection, one dropout, the padded update, and norms in fp32."""
    norms = 2 * 4 * WIDTH + 2 * 4
    fused, turned, attended = 2 * 3 * WIDTH, 2 * 2 * WIDTH, 2 * WIDTH
    statistics = 4 * HEADS
    dropout = 2 * WIDTH + WIDTH
    low, update = 2 * 2 * 2, 2 * 2 * WIDTH
    mlp = 3 * 2 * INNER
    expected = norms + fused + turned + attended + statistics + dropout + low + update + mlp
    places = 8 * 2 * WIDTH  # one index of the padding for each adapted output, not for each token
    found = _kept_per_token(("q_proj", "v_proj"), LATEST)
    assert expected == pytest.approx(found - places / TOKENS, abs=8)  # and a few small things


def test_norms_were_in_16_bit_before_they_were_copied() -> None:
    """Two norms of a layer kept the 16-bit residual, then an fp32 copy of it."""
    before, after = (_kept_per_token(("q_proj", "v_proj"), day) for day in (OLDEST, HALF_PRECISION_FIXED))
    assert 2 * (4 - 2) * WIDTH == pytest.approx(after - before, abs=2 * 4)


def test_nothing_is_padded_where_all_is_adapted() -> None:
    """With queries, keys and values adapted, the update of 2 of 3 outputs is not kept; ranks are small."""
    two = _kept_per_token(("query", "value"), LATEST)
    three = _kept_per_token(("query", "key", "value"), LATEST)
    assert 2 * 2 * WIDTH == pytest.approx(two - three, abs=2 * 2 * 2 + 8 * 2 * WIDTH / TOKENS)


def test_four_bit_weights_come_from_fp16_in_every_linear_layer() -> None:
    """Fabric replaces them all, the output layer too, and each de-quantised weight is copied to bf16."""
    import bitsandbytes

    from bench.predict.trace.kernels import Kernels
    from bench.predict.trace.meta_ledger import MetaLedger

    cell = _cell(("q_proj",), LORA | {"kind": "qlora"})
    with patched(Platform()):
        model = litgpt.build(cell, AutoConfig.for_model("phi", **SIZES), LATEST)
        load_weights(model, MetaLedger(model, 64, Kernels(Platform())))
    layers: list[Any] = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) == 2 * 4 + 1
    assert all(isinstance(layer, bitsandbytes.nn.Linear4bit) for layer in layers)
    assert {torch.float16} == {layer.weight.quant_state.dtype for layer in layers}


FAMILIES = ("llama", "mistral", "gemma", "stablelm", "phi", "falcon", "gpt_neox")


@pytest.mark.parametrize(
    ("family", "day"),
    [
        *((family, day) for family in FAMILIES for day in (OLDEST, LATEST)),
        ("gemma2", LATEST),
        ("phi3", LATEST),
    ],
)
def test_every_family_trains(family: str, day: str) -> None:
    """Each is traced forwards and backwards with all of its parts adapted; adapters alone get gradients."""
    config = AutoConfig.for_model(family, **SIZES)
    cell = _cell(("query", "key", "value", "projection", "mlp", "head"), max_grad_norm=0.0)
    reading = read_cpu_ledger(cell, Platform(device="cpu", litgpt=day), config)
    assert reading.categories_at_peak_bytes["weights"] > 0
    trained = [name for name, one in _model(cell, day, family=family).named_parameters() if one.requires_grad]
    assert {"lora_A", "lora_B"} == {name.rpartition(".")[2] for name in trained}


def test_a_prediction_names_the_model_and_what_it_took_for_granted() -> None:
    """A fused projection of transformers' names is adapted as litgpt does by default, and that is said."""
    cell = _cell(("q_proj", "v_proj"))
    own = predict(cell, Platform(litgpt=LATEST))
    theirs = predict(cell, Platform())
    assert own.allocated_peak_bytes > theirs.allocated_peak_bytes
    assert "model-of-litgpt" in {caveat.code for caveat in own.caveats}
    (caveat,) = litgpt.caveats(_cell(("query_key_value",)), LATEST)
    assert "taken for queries and values" in caveat.message
    assert frozenset({"query", "value"}) == litgpt.adapted_parts(("query_key_value",))
    assert {"query", "key", "value", "projection", "mlp"} == litgpt.adapted_parts("all-linear")


@pytest.mark.parametrize(
    ("cell", "family", "day", "message"),
    [
        (_cell("q_proj"), "mixtral", LATEST, "litgpt's own mixtral model is not known here"),
        (_cell("q_proj"), "phi3", OLDEST, "litgpt's phi3 of 2023-10-16 is not known here"),
        (_cell("q_proj"), "llama", litgpt.REARRANGED, "litgpt from 2024-12-26 on"),
        (_cell("q_proj", gradient_checkpointing="reentrant"), "llama", LATEST, "checkpointing in litgpt"),
        (_cell("q_proj", loss="full"), "llama", LATEST, "loss full in litgpt"),
        (_cell("q_proj", LORA | {"base": "int8"}), "llama", LATEST, "method lora in litgpt"),
        (_cell(("gate_proj",)), "llama", LATEST, "all of an MLP or nothing of it"),
        (_cell("c_attn"), "llama", LATEST, "litgpt has no part c_attn to adapt"),
    ],
)
def test_what_is_not_known_of_litgpt_is_refused(cell: Cell, family: str, day: str, message: str) -> None:
    """Each by name, and with what to do."""
    with pytest.raises(UntraceableError, match=message):
        _model(cell, day, family=family)


def test_attention_within_windows_keeps_a_mask_in_every_layer_that_slides() -> None:
    """Of 24 x 24 in 16 bits, though no window is shorter: every layer of Phi-3, every other of Gemma 2."""
    cell = _cell(("q_proj", "v_proj"))
    plain, phi3 = (_kept_bytes(_model(cell, LATEST, 4, family)) for family in ("llama", "phi3"))
    assert phi3 - plain >= 4 * TOKENS * TOKENS * 2
    slides = [block.attn.slides for block in _model(cell, LATEST, 4, "gemma2").transformer["h"]]
    assert [True, False, True, False] == slides


def test_padding_in_place_keeps_no_copy_of_more_rows() -> None:
    """Before, an update of several rows was copied to be laid flat; the copy was kept in its place."""
    cell = _cell(("q_proj", "v_proj"))
    assert _kept_bytes(_model(cell, PADS_IN_PLACE)) <= _kept_bytes(_model(cell, "2024-05-05"))
