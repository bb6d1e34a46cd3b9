"""The product with a 4-bit weight as the platform's version of bitsandbytes computes it on CUDA.

The library at hand may be newer than the one predicted for; its product on the meta device shows neither
the de-quantised weight nor what older versions kept.
"""

from typing import Any

import torch

from bench.scenario.platforms import Platform, version_of

FREES_ITS_INPUT = (0, 43, 2)
"""Version from which the input is not kept (bitsandbytes pull request 1270, commit 9e753741)."""


def four_bit_product(platform: Platform) -> Any:
    """Return what takes the place of ``bitsandbytes.autograd._functions.MatMul4Bit`` on CUDA.

    Every version up to 0.49 makes the whole weight 16-bit for each product; 0.50 has kernels of its own
    for at most 1,536 rows on some cards (its backends/cuda/ops.py, _gemm_4bit_use_custom_cuda) and does the
    same otherwise, so for these few the prediction is the copy of one weight too high. Versions before
    0.43.2 hang the input on the context as an attribute, not by ``save_for_backward``: it lives as long as
    the graph, beyond backward() if a name for the loss or the outputs does.
    """
    from bitsandbytes.autograd._functions import MatMul4Bit
    from bitsandbytes.functional import dequantize_4bit

    keeps_input = version_of(platform.bitsandbytes) < FREES_ITS_INPUT

    class Product(MatMul4Bit):  # type: ignore[misc]  # bitsandbytes ships no types
        @staticmethod
        def forward(
            ctx: Any,
            values: torch.Tensor,
            packed: torch.Tensor,
            _out: None = None,
            bias: torch.Tensor | None = None,
            state: Any = None,
        ) -> torch.Tensor:
            ctx.is_empty = False
            ctx.state = state
            ctx.dtype_A, ctx.dtype_B, ctx.dtype_bias = (
                values.dtype,
                packed.dtype,
                getattr(bias, "dtype", None),
            )
            ctx.tensors = (None, packed)
            if keeps_input and any(ctx.needs_input_grad[:2]):
                ctx.kept_input = values
            return torch.nn.functional.linear(values, dequantize_4bit(packed, state).to(values.dtype), bias)

    return Product
