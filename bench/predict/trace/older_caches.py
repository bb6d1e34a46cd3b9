"""The cache that GPTBigCode returned before transformers 4.54: views, each of which keeps a whole projection.

Nothing is changed for later versions, nor for a loop that asks for no cache.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from bench.scenario.platforms import Platform, version_of

RETURNS_A_CACHE_OBJECT = (4, 54)
"""Version from which GPTBigCode fills a DynamicCache, and none while its layers are checkpointed."""


@contextmanager
def staged_caches(platform: Platform) -> Iterator[None]:
    """Let GPTBigCode return the cache of the platform's version while a ``with`` block runs."""
    version = version_of(platform.transformers)
    with ExitStack() as stack:
        if platform.device == "cuda" and version < RETURNS_A_CACHE_OBJECT:
            from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeModel

            stack.enter_context(patch.object(GPTBigCodeModel, "forward", _returning(GPTBigCodeModel.forward)))
        yield


def _returning(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Give back, for each layer, the key and value as the view of the projection they are split from.

    Source: ``present`` in modeling_gpt_bigcode.py of 4.53. The model does not turn its cache off where layers
    are checkpointed, as Llama does, so that every layer's projection lives as long as the outputs.
    """

    def forward_and_keep(self: Any, *args: Any, use_cache: bool | None = None, **kwargs: Any) -> Any:
        if not use_cache:
            return forward(self, *args, use_cache=use_cache, **kwargs)
        projected: list[Any] = []
        hooks = [
            block.attn.c_attn.register_forward_hook(lambda _module, _inputs, result: projected.append(result))
            for block in self.h
        ]
        try:
            outputs = forward(self, *args, use_cache=False, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        outputs.past_key_values = tuple(
            result[..., block.attn.embed_dim :] if self.multi_query else result
            for block, result in zip(self.h, projected, strict=True)
        )
        return outputs

    return forward_and_keep
