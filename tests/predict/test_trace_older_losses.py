"""The loss of older versions of transformers: the same number, other copies, and gone afterwards."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.loss.loss_utils import LOSS_MAPPING

from bench.predict.trace.older_losses import staged_loss
from bench.scenario.platforms import Platform


@pytest.mark.parametrize("version", ["4.48.1", "4.49", "5.23"])
def test_loss_is_the_same_number_in_every_version(version: str) -> None:
    """Cutting logits or padding labels gives one loss; only before 4.49 is anything put in its place."""
    installed = LOSS_MAPPING["ForCausalLM"]
    logits = torch.randn(2, 5, 11, dtype=torch.bfloat16)
    labels = torch.randint(11, (2, 5))
    expected = installed(logits=logits, labels=labels, vocab_size=11)
    with staged_loss(Platform(transformers=version)):
        staged = LOSS_MAPPING["ForCausalLM"]
        torch.testing.assert_close(expected, staged(logits=logits, labels=labels, vocab_size=11))
    assert (version == "4.48.1") == (staged is not installed)
    assert installed is LOSS_MAPPING["ForCausalLM"]


def test_models_with_a_loss_of_their_own_had_none_in_fp32() -> None:
    """GPT-2's loss before 4.49 comes in the dtype of its logits."""
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=11, n_positions=8)
    model = GPT2LMHeadModel(config).to(torch.bfloat16)
    ids = torch.randint(11, (2, 5))
    with staged_loss(Platform(transformers="4.48.1")):
        assert torch.bfloat16 == model(input_ids=ids, labels=ids).loss.dtype
    assert torch.float32 == model(input_ids=ids, labels=ids).loss.dtype
