"""A tokenizer of whole words and a tiny model that knows them, for evaluations."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.training.rows.tasks import WORDS

SYMBOLS = ["<pad>", "<unk>", "</s>", "Words", "Longest", ":", ",", *WORDS]


def word_tokenizer() -> Any:
    """Return a tokenizer for which each word of the tasks is one token."""
    words = Tokenizer(models.WordLevel({symbol: n for n, symbol in enumerate(SYMBOLS)}, unk_token=SYMBOLS[1]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": SYMBOLS[0], "unk_token": SYMBOLS[1], "eos_token": SYMBOLS[2]}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def tiny_model() -> Any:
    """Build a two-layer Llama in fp32 with tied embeddings, in training mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).train()
