"""For tests of scripts: a tiny model's folder with or without weights, and a script's real run."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import torch

from bench.predict.trace.loops import forget_state
from bench.records.messages import Message, ReadingMade, ScriptJob
from bench.records.records import LedgerReading
from bench.training.scripts.watch import watch_script

EXAMPLES = Path(__file__).parents[2] / "examples" / "scripts"


def save_tiny_llama(folder: Path, *, weights: bool) -> str:
    """Save a two-layer Llama with a tokenizer of whole words; return the folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    with imports_from(EXAMPLES):
        words_used = import_module("sentences").WORDS
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    words = {word: number for number, word in enumerate([*special.values(), *words_used])}
    tokenizer = Tokenizer(WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = AutoConfig.for_model(
        "llama",
        architectures=["LlamaForCausalLM"],
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=512,
        dtype="float32",
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=1,
    )
    config.save_pretrained(folder)
    if weights:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Let a block import what lies in a folder."""
    with patch.object(sys, "path", [str(folder), *sys.path]):
        yield


def real_ledger(command: Sequence[str]) -> LedgerReading:
    """Watch a script on the CPU, without the compiler: its ledger of the third and the fourth step."""
    readings: list[object] = []

    def send(message: Message) -> None:
        if isinstance(message, ReadingMade):
            readings.append(message.reading)

    forget_state()
    with (
        patch.object(torch, "compile", lambda model: model),
        patch.object(sys, "argv", sys.argv),
        patch.object(sys, "path", [*sys.path]),
    ):
        watch_script(ScriptJob(command=tuple(command), warmup_steps=0, steps=1, flops=False), send)
    forget_state()
    (ledger,) = (reading for reading in readings if isinstance(reading, LedgerReading))
    return ledger
