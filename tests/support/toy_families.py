"""Real toy models on the CPU straight from a configuration: no file, no tokenizer, nothing downloaded."""

from typing import Any

import torch

from bench.predict.trace.trace import worst_batch
from bench.probes.ledger import Ledger
from bench.records.records import LedgerReading
from bench.scenario.cell import Cell
from bench.training.loading.models import DTYPES, keep_quantised_weights, quantisation_of
from bench.training.methods import adapt
from bench.training.step import build_trainer, run_step
from bench.training.window import LEDGER_STEPS, read_ledger

_COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_EXPERTS = {"num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_GROUPED},
    "mistral": {"model_type": "mistral", "sliding_window": 8, **_GROUPED},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, **_GROUPED},
    "qwen2": {"model_type": "qwen2", **_GROUPED},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, **_GROUPED},
    "gemma2": {"model_type": "gemma2", "head_dim": 32, "sliding_window": 8, **_GROUPED},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 8, **_GROUPED},
    "phi3": {"model_type": "phi3", "pad_token_id": 0, **_GROUPED},
    "falcon": {"model_type": "falcon", "alibi": False, **_COMMON},
    "gpt2": {"model_type": "gpt2", **_GPT2},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **_GPT2},
    "starcoder2": {"model_type": "starcoder2", **_GROUPED},
    "gpt_neox": {"model_type": "gpt_neox", **_COMMON},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 32, **_EXPERTS, **_GROUPED},
    "olmoe": {"model_type": "olmoe", **_EXPERTS, **_GROUPED},
    "granitemoe": {"model_type": "granitemoe", "num_local_experts": 4, **_GROUPED},
    "deepseek_v3": {"model_type": "deepseek_v3", **_LATENT, **_EXPERTS, **_COMMON},
    "gemma": {"model_type": "gemma", "head_dim": 32, **_GROUPED},
    "phi": {"model_type": "phi", **_GROUPED},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64, **_COMMON},
    "bloom": {"model_type": "bloom", "vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "stablelm": {"model_type": "stablelm", **_GROUPED},
    "olmo2": {"model_type": "olmo2", **_GROUPED},
    "granite": {"model_type": "granite", **_GROUPED},
    "glm4": {"model_type": "glm4", "head_dim": 16, "pad_token_id": 0, **_GROUPED},
    "cohere": {"model_type": "cohere", **_GROUPED},
    "smollm3": {"model_type": "smollm3", "pad_token_id": 0, **_GROUPED},
    "gptj": {"model_type": "gptj", "rotary_dim": 8, **_GPT2},
    "mpt": {"model_type": "mpt", "vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4},
    "nemotron": {"model_type": "nemotron", **_GROUPED},
    "helium": {"model_type": "helium", "head_dim": 16, **_GROUPED},
    "gpt_oss": {"model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 4, **_GROUPED},
    "mamba": {"model_type": "mamba", "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2},
    "falcon_h1": {
        "model_type": "falcon_h1",
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        **_GROUPED,
    },
}
"""Configurations two layers deep: fields of each family's ``transformers`` configuration."""


def configuration(family: str) -> Any:
    """Return a family's toy configuration."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**FAMILIES[family])


def true_reading(cell: Cell, config: Any) -> LedgerReading:
    """Train the real model for a step, then two more under the ledger, as ``run_window`` does."""
    return reading_over(loaded(cell, config), cell)


def reading_over(model: Any, cell: Cell) -> LedgerReading:
    """Do so over a model that was loaded."""
    vocabulary_size = int(model.config.get_text_config().vocab_size)
    model = adapt(model, cell)
    trainer = build_trainer(model, cell, 1 + LEDGER_STEPS)
    step = [worst_batch(cell, vocabulary_size)] * cell.training.gradient_accumulation
    run_step(trainer, step)
    return read_ledger(trainer, [step] * LEDGER_STEPS, Ledger(model, "cpu", vocabulary_size))


def loaded(cell: Cell, config: Any) -> Any:
    """Return what ``load_model`` would have made of a file of random weights."""
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    dtype = DTYPES[cell.training.dtype]
    torch.manual_seed(cell.training.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=cell.training.attention)
    quantisation = quantisation_of(cell)
    if quantisation is not None:
        weights = dict(model.named_parameters())
        quantiser = AutoHfQuantizer.from_config(quantisation, pre_quantized=False)
        quantiser.preprocess_model(model=model, device_map={"": "cpu"}, dtype=dtype)
        for name, module in model.named_modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                if parameter.device.type == "meta":
                    module._parameters[key] = _packed(parameter, weights[f"{name}.{key}"])
        model.tie_weights()
        quantiser.postprocess_model(model)
        keep_quantised_weights(model)
    return model


def _packed(empty: Any, weight: torch.nn.Parameter) -> torch.nn.Parameter:
    """Quantise a weight as the parameter that waits for it says, by moving it to the CPU."""
    if type(empty) is torch.nn.Parameter:
        return weight
    settings = {key: value for key, value in vars(empty).items() if key not in {"CB", "SCB", "quant_state"}}
    moved: torch.nn.Parameter = type(empty)(weight.data, requires_grad=False, **settings).to("cpu")
    return moved
