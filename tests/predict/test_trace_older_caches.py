"""GPTBigCode's cache before transformers 4.54: the views it was, and what they keep alive."""

import pytest
import torch
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

from bench.predict.trace.older_caches import staged_caches
from bench.scenario.platforms import Platform

WIDTH, HEADS, LAYERS = 16, 4, 2


def _model() -> GPTBigCodeForCausalLM:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": 11, "n_positions": 8}
    return GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes, bos_token_id=0, eos_token_id=0))


def test_each_layer_returns_a_view_that_keeps_its_whole_projection() -> None:
    """One key and one value head for each token, in a storage that holds all query heads as well."""
    ids = torch.randint(11, (2, 5))
    with staged_caches(Platform(transformers="4.53.3")):
        cache = _model()(input_ids=ids, use_cache=True).past_key_values
    head = WIDTH // HEADS
    assert [(2, 5, 2 * head)] * LAYERS == [tuple(kept.shape) for kept in cache]
    assert [2 * 5 * (WIDTH + 2 * head) * 4] * LAYERS == [kept.untyped_storage().nbytes() for kept in cache]


def test_a_loop_that_asks_for_no_cache_gets_none() -> None:
    """The cache is the loop's choice in every version."""
    with staged_caches(Platform(transformers="4.53.3")):
        outputs = _model()(input_ids=torch.randint(11, (2, 5)), use_cache=False)
    assert outputs.past_key_values is None


@pytest.mark.parametrize("platform", [Platform(transformers="4.54.0"), Platform(device="cpu")])
def test_later_versions_and_the_cpu_keep_the_installed_cache(platform: Platform) -> None:
    """Nothing stands in for it there, and nothing is left behind by a platform where something does."""
    with staged_caches(Platform(transformers="4.53.3")):
        pass
    with staged_caches(platform):
        cache = _model()(input_ids=torch.randint(11, (2, 5)), use_cache=True).past_key_values
    assert "DynamicCache" == type(cache).__name__
