"""The product with a 4-bit weight, by version of bitsandbytes: what it computes and what it keeps."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from bench.predict.trace.four_bit import four_bit_product
from bench.scenario.platforms import Platform


@pytest.mark.parametrize(("version", "kept"), [("0.42.0", True), ("0.43.2", False), ("0.50", False)])
def test_input_is_kept_by_versions_that_kept_it(*, version: str, kept: bool) -> None:
    """The product and its gradient are right in each; before 0.43.2 the input hangs on the graph's node."""
    packed, state = quantize_4bit(torch.randn(32, 64), quant_type="nf4")
    values = torch.randn(3, 64, requires_grad=True)
    weight = dequantize_4bit(packed, state)
    result = four_bit_product(Platform(bitsandbytes=version)).apply(values, packed, None, None, state)
    torch.testing.assert_close(values @ weight.T, result)
    assert kept == (getattr(result.grad_fn, "kept_input", None) is not None)
    result.sum().backward()
    torch.testing.assert_close(weight.sum(0).expand(3, 64), values.grad)
