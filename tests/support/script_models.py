"""For tests of scripts: a tiny model's folder with or without weights, and a script's real run."""

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from bench.predict.trace.loops import forget_state
from bench.probes.ledger import Ledger
from bench.probes.machine import Allocator
from bench.probes.phases import PhaseReader
from bench.records.records import LedgerReading, TokenCounts
from bench.training.watcher import Script, StopLoop, WatchedLoop, Watcher

EXAMPLES = Path(__file__).parents[2] / "examples" / "scripts"


def save_tiny_llama(folder: Path, *, weights: bool) -> str:
    """Save a two-layer Llama with a tokenizer of whole words; return the folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    with imports_from(EXAMPLES):
        from sentences import WORDS  # type: ignore[import-not-found]  # beside the example scripts
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    words = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]  # its stub knows no setter
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


class _RealLoop(WatchedLoop):
    """A real run under the ledger: two steps that nothing watches, then two that it does."""

    reading: LedgerReading

    def found(self, model: nn.Module) -> None:
        """Keep the model."""
        self.model = model

    def steps(self) -> Script:
        """Read a ledger of the third and the fourth step."""
        self._losses = None
        yield
        yield
        config = getattr(self.model, "config", None)
        books = Ledger(self.model, "cpu", int(getattr(config, "vocab_size", -1)))
        yield from self.under_ledger(books)
        self.reading = books.reading()

    def counts(self) -> TokenCounts:
        """Return nothing: no step is timed."""
        raise NotImplementedError


def real_ledger(command: Sequence[str]) -> LedgerReading:
    """Run a script on the CPU, without the compiler, until its ledger is read."""
    import bitsandbytes

    loop = _RealLoop(PhaseReader(lambda _message: None, Allocator()))
    loop.script()
    unpacked: Any = property(lambda _self: False, lambda _self, _value: None)  # as bench's own window has it
    forget_state()
    with (
        patch.object(torch, "compile", lambda model: model),
        patch.object(bitsandbytes.nn.Linear4bit, "support_avx512bf16_for_cpu", unpacked, create=True),
        patch.object(sys, "argv", [*command]),
        imports_from(Path(command[0]).parent),
        Watcher(loop).watching(),
        suppress(StopLoop),
    ):
        runpy.run_path(command[0], run_name="__main__")
    forget_state()
    return loop.reading
