"""Tensors without data take the code paths of the platform they stand for, only while it is patched in."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import UntraceableError
from bench.predict.trace.autocast import _GIVEN_FP32_AS_DTYPE, _LOWERED, _PROMOTED
from bench.predict.trace.kernels import Kernels
from bench.predict.trace.meta_kernels import four_bit_product
from bench.predict.trace.meta_ledger import MetaLedger
from bench.predict.trace.patches import patched
from bench.predict.trace.variants.liger import empty_liger_loss
from bench.scenario.platform import Platform

AMPERE = Platform(capability=(8, 0))
ADA = Platform(capability=(8, 9))
TURING = Platform(capability=(7, 5))
CPU = Platform(device="cpu")
FLASH = "aten::_scaled_dot_product_flash_attention"
FLASH_ON_CPU = "aten::_scaled_dot_product_flash_attention_for_cpu"
EFFICIENT = "aten::_scaled_dot_product_efficient_attention"
MATH = "math"


class _Operators(TorchDispatchMode):
    """Collects the names of operators and the sizes of what they return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its modes untyped
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, list | tuple) else result
        size = first.untyped_storage().nbytes() if isinstance(first, torch.Tensor) else 0
        self.calls.append((func._schema.name, size))
        return result


def _attention(
    platform: Platform,
    *,
    shape: tuple[int, ...] = (2, 4, 32, 64),
    key_heads: int = 4,
    dtype: torch.dtype = torch.bfloat16,
    **options: Any,
) -> tuple[str, list[str]]:
    """Run attention forward and backward; return its kernel and all operators."""
    query = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
    key = torch.empty(shape[0], key_heads, *shape[2:], dtype=dtype, device="meta", requires_grad=True)
    with patched(platform), _Operators() as seen:
        out = functional.scaled_dot_product_attention(query, key, key, **options)
        out.sum().backward()
    assert out.shape == query.shape
    assert query.grad is not None
    names = [name for name, _ in seen.calls]
    return next((name for name in names if "attention" in name and "backward" not in name), MATH), names


BOOLEAN: dict[str, Any] = {"attn_mask": torch.ones(2, 1, 32, 32, dtype=torch.bool, device="meta")}


@pytest.mark.parametrize(
    ("platform", "options", "expected"),
    [
        (AMPERE, {"is_causal": True}, FLASH),
        (AMPERE, {"is_causal": True, "dropout_p": 0.1}, FLASH),
        (AMPERE, {"key_heads": 2, "enable_gqa": True}, FLASH),
        (AMPERE, {"dtype": torch.float32}, EFFICIENT),
        (AMPERE, {"dtype": torch.float32, "key_heads": 2, "enable_gqa": True}, MATH),
        (AMPERE, BOOLEAN, EFFICIENT),
        (AMPERE, {"shape": (1, 4, 32, 320)}, EFFICIENT),
        (AMPERE, {"shape": (1, 4, 32, 20)}, FLASH),
        (AMPERE, {**BOOLEAN, "shape": (2, 4, 32, 20)}, MATH),
        (AMPERE, {"shape": (1, 4, 32, 208)}, FLASH),
        (ADA, {"shape": (1, 4, 32, 208)}, EFFICIENT),
        (ADA, {"shape": (1, 4, 32, 256)}, FLASH),
        (TURING, {"dtype": torch.float16}, EFFICIENT),
        (TURING, {}, MATH),
        (CPU, {"is_causal": True}, FLASH_ON_CPU),
        (CPU, {"dtype": torch.float32, **BOOLEAN}, FLASH_ON_CPU),
        (CPU, {"dropout_p": 0.1}, MATH),
    ],
    ids=str,
)
def test_attention_takes_the_kernel_of_the_platform(
    platform: Platform, options: dict[str, Any], expected: str
) -> None:
    """By capability, dtype, mask, grouping, dropout and width of heads, as torch's own selection reads."""
    kernel, _ = _attention(platform, **options)
    assert expected == kernel


def test_a_mask_out_of_line_is_padded_to_eight() -> None:
    """A mask of 20 columns is copied into one of 24, once, for the memory-efficient kernel."""
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool, device="meta")
    _, unaligned = _attention(AMPERE, shape=(2, 4, 20, 64), attn_mask=mask)
    _, aligned = _attention(AMPERE, **BOOLEAN)
    assert [1, 0] == [names.count("aten::constant_pad_nd") for names in (unaligned, aligned)]


def test_patches_leave_no_trace() -> None:
    """After the block attention and lists are torch's, autocast refuses the meta device."""
    optimizer = import_module("torch.optim.optimizer")  # torch.optim hides it behind a class
    before = optimizer._get_foreach_kernels_supported_devices()
    with patched(AMPERE):
        assert "meta" in optimizer._get_foreach_kernels_supported_devices()
    assert before == optimizer._get_foreach_kernels_supported_devices()
    query = torch.empty(1, 1, 8, 8, device="meta", requires_grad=True)
    with _Operators() as seen:
        functional.scaled_dot_product_attention(query, query, query)
    assert FLASH not in dict(seen.calls)
    with pytest.raises(RuntimeError, match="meta"):
        torch.autocast("meta", torch.bfloat16)


@pytest.mark.parametrize(("device", "key"), [("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")])
def test_the_lists_of_autocast_name_operators_that_torch_registers(device: str, key: str) -> None:
    """Every name in them has a kernel for that device's autocast in the torch at hand, and one policy."""
    registered = {
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key(key)
        if name.startswith("aten::")
    }
    listed = [name for table in (_LOWERED, _GIVEN_FP32_AS_DTYPE, _PROMOTED) for name in table[device].split()]
    assert set() == set(listed) - registered
    assert len(listed) == len(set(listed))


@pytest.fixture
def weight() -> torch.Tensor:
    """Return a trained fp32 weight of the meta device."""
    return torch.empty(8, 8, device="meta", requires_grad=True)


@pytest.mark.parametrize(("platform", "softmax"), [(AMPERE, torch.float32), (CPU, torch.bfloat16)])
def test_autocast_casts_as_the_platform_does(
    weight: torch.Tensor, platform: Platform, softmax: torch.dtype
) -> None:
    """Products are made in bf16 everywhere; CUDA makes softmax fp32, the CPU leaves it alone."""
    with patched(platform), torch.autocast("meta", torch.bfloat16):
        product = functional.linear(torch.empty(2, 8, device="meta"), weight)
        assert torch.bfloat16 == product.dtype
        assert softmax == product.softmax(-1).dtype
        with torch.autocast("meta", enabled=False):
            assert torch.float32 == functional.linear(torch.empty(2, 8, device="meta"), weight).dtype


def test_autocast_keeps_the_cast_of_a_trained_weight_for_one_region(weight: torch.Tensor) -> None:
    """Two products share one copy, a second region makes its own, and a frozen weight is cast each time."""
    frozen = weight.detach()
    copies = []
    with patched(AMPERE):
        for used in (weight, frozen):
            with _Operators() as seen, torch.autocast("meta", torch.bfloat16):
                for _ in range(2):
                    functional.linear(torch.empty(2, 8, dtype=torch.bfloat16, device="meta"), used)
            copies.append([name for name, _ in seen.calls].count("aten::_to_copy"))
    assert [1, 2] == copies


def test_what_depends_on_data_is_refused_by_name() -> None:
    """The operator and the module that calls it are named; a question about data names the line."""

    class Gate(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values.nonzero()

    model = torch.nn.Sequential(Gate())
    values = torch.empty(4, device="meta")
    with patched(AMPERE):
        ledger = MetaLedger(model, 10, Kernels(AMPERE, padded=False), phase="forward")
        with ledger, pytest.raises(UntraceableError, match="aten::nonzero in 0 "):
            model(values)
        with ledger, pytest.raises(UntraceableError, match=r"predict/test_trace_patches\.py, line"):
            bool(values.sum() > 0)


def test_a_list_made_of_missing_data_is_refused() -> None:
    """What never reaches torch's dispatcher is refused with the line that asks for it."""
    with pytest.raises(UntraceableError, match=r"test_trace_patches\.py, line \d+ needs"), patched(AMPERE):
        torch.empty(3, device="meta").tolist()


def test_int8_products_have_no_outliers() -> None:
    """The operators of LLM.int8 run without data: an int8 copy, fp32 row scales and no outlier columns."""
    import bitsandbytes  # noqa: F401 - registers the operators

    values = torch.empty(6, 8, dtype=torch.float16, device="meta")
    with patched(AMPERE):
        packed, scales, outliers = torch.ops.bitsandbytes.int8_vectorwise_quant(values, threshold=6.0)
        product, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            values, packed, torch.empty(5, 8, dtype=torch.int8, device="meta"), scales, scales
        )
    assert [(6, 8), (6,), (0,), (6, 5)] == [tuple(t.shape) for t in (packed, scales, outliers, product)]


@pytest.mark.parametrize("trained", [True, False])
def test_ligers_loss_works_in_chunks(*, trained: bool) -> None:
    """64 tokens, width 16, vocabulary 100: chunks of 16 rows, at most one of their logits at a time."""
    hidden = torch.empty(2, 32, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    head = torch.empty(100, 16, dtype=torch.bfloat16, device="meta", requires_grad=trained)
    with patched(AMPERE), _Operators() as seen:
        loss = empty_liger_loss(hidden, head, torch.zeros(2, 32, dtype=torch.int64, device="meta"))
        loss.backward()
    chunk = 2 ** math.ceil(math.log2(64 / math.ceil(100 / 16)))
    products = [size for name, size in seen.calls if name == "aten::mm"]
    one_chunk = [2 * chunk * 100, 2 * chunk * 16, *([2 * 100 * 16] if trained else [])]
    assert one_chunk * (64 // chunk) == products
    assert trained == (head.grad is not None)
    assert hidden.grad is not None


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
