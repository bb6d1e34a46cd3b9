"""Scratch memory of CUDA kernels, each entry against arithmetic written out by hand."""

from typing import Any

import pytest
import torch

from bench.predict.trace.kernels import SCRATCH, Kernels, cublas_workspace_bytes
from bench.scenario.platform import Platform

aten = torch.ops.aten
MIB = 1024 * 1024


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _blocks(func: Any, *args: Any, **platform: Any) -> list[int]:
    return list(Kernels(Platform(**platform), padded=False).scratch_blocks(func, args))


@pytest.mark.parametrize(
    ("capability", "torch_version", "expected"),
    [
        ((8, 0), "2.13", 2 * 4096 * 1024 + 8 * 16 * 1024),
        ((9, 0), "2.4.1", 32 * MIB),
        ((12, 0), "2.7", 2 * 4096 * 1024 + 8 * 16 * 1024),
        ((12, 0), "2.13", 32 * MIB),
    ],
)
def test_a_cublas_workspace_has_the_default_size(
    capability: tuple[int, int], torch_version: str, expected: int
) -> None:
    """8.125 MiB, and 32 MiB on Hopper and, in later versions, on Blackwell."""
    assert expected == cublas_workspace_bytes(Platform(capability=capability, torch=torch_version))


def test_each_thread_takes_one_cublas_workspace_and_keeps_it() -> None:
    """The first product of the forward pass and the first of the backward pass; the CPU has none."""
    kernels = Kernels(Platform(), padded=False)
    asked = [(aten.add.Tensor, False), (aten.mm.default, False), (aten.bmm.default, False)]
    asked += [(aten.mm.default, True), (aten.mm.default, True)]
    found = [len(list(kernels.kept_workspaces(func, in_backward=back))) for func, back in asked]
    assert [0, 1, 0, 1, 0] == found
    cpu = Kernels(Platform(device="cpu"), padded=False)
    assert [] == list(cpu.kept_workspaces(aten.mm.default, in_backward=False))


def test_a_fused_bias_had_a_workspace_of_its_own() -> None:
    """1 MiB of cuBLASLt in torch 2.6; in 2.7 it shares the handle's."""
    args = (_meta(16), _meta(8, 32), _meta(32, 16))
    assert [MIB] == _blocks(aten.addmm.default, *args, torch="2.6")
    assert [] == _blocks(aten.addmm.default, *args, torch="2.7")


def test_flash_attention_backward_accumulates_in_fp32() -> None:
    """2 x 8 heads x 200 positions x width 80: lengths round up to 128, widths to 32; grouped heads expand."""
    query, key = _meta(2, 8, 200, 80), _meta(2, 2, 200, 80)
    sums = 4 * 2 * 8 * 256
    accumulator = 4 * 2 * 256 * 8 * 96
    expanded = 2 * 2 * 200 * 8 * 80
    backward = aten._scaled_dot_product_flash_attention_backward.default
    assert [sums, accumulator] == _blocks(backward, query, query, query)
    assert [sums, accumulator, expanded, expanded] == _blocks(backward, query, query, key)
    wide = _meta(1, 1, 128, 224)
    assert [4 * 128, 4 * 128 * 256] == _blocks(backward, wide, wide, wide)


def test_efficient_attention_accumulates_wide_heads() -> None:
    """Half-precision outputs of heads wider than 128 are summed in fp32; fp32 ones where they are."""
    forward = aten._scaled_dot_product_efficient_attention.default
    assert [] == _blocks(forward, *3 * [_meta(2, 4, 100, 128)])
    assert [4 * 2 * 100 * 4 * 256] == _blocks(forward, *3 * [_meta(2, 4, 100, 256)])
    assert [] == _blocks(forward, *3 * [_meta(2, 4, 100, 256, dtype=torch.float32)])


def test_efficient_attention_backward_keeps_row_sums_and_accumulators() -> None:
    """2 x 4 heads x 100 positions: tiles of 128 queries by 64 columns, and for wide heads dk and dv too."""
    backward = aten._scaled_dot_product_efficient_attention_backward.default
    sums = 4 * 2 * 4 * 100

    def blocks(width: int, dtype: torch.dtype) -> list[int]:
        query = _meta(2, 4, 100, width, dtype=dtype)
        return _blocks(backward, query, query, query, query, None, query)

    assert [sums, 4 * 2 * 4 * 128 * 128] == blocks(96, torch.bfloat16)
    assert [sums, 4 * 2 * 4 * (128 * 256 + 128 * 256 * 2)] == blocks(256, torch.bfloat16)
    assert [4 * 2 * 4 * 100 * 64, sums, sums] == blocks(64, torch.float32)


def test_the_embedding_gradient_is_summed_in_segments() -> None:
    """4,000 tokens of a vocabulary of 1,000, width 64: sorting, then fp32 sums of 400 + 1,000 segments."""
    backward = aten.embedding_dense_backward.default

    def blocks(tokens: int) -> list[int]:
        return _blocks(backward, _meta(1, tokens, 64), _meta(1, tokens, dtype=torch.int64), 1000, -1, 0)

    assert 0 == sum(blocks(3072))
    expected = [8 * 4000] * 2 + [8 * 1000] * 3 + [8 * 1400, 4 * 1400 * 64]
    assert expected == blocks(4000)


def test_rows_that_are_added_up_are_sorted() -> None:
    """Accumulating into 500 indexed rows takes six lists of 64-bit indices; overwriting them takes none."""
    values, index = _meta(100, 64), _meta(500, dtype=torch.int64)
    assert [8 * 500] * 6 == _blocks(aten.index_put.default, values, [index], values, 1)
    assert [] == _blocks(aten.index_put.default, values, [index], values, 0)


def test_norms_are_summed_in_chunks() -> None:
    """Two tensors, the larger of three chunks of 65,536: two times three fp32 partial sums."""
    tensors = [_meta(10), _meta(2 * 65536 + 1)]
    assert [4 * 2 * 3] == _blocks(aten._foreach_norm.Scalar, tensors)


def test_each_entry_names_its_source_and_the_cpu_takes_nothing() -> None:
    """A stranger can look every entry up; none applies to a CPU."""
    assert all("pytorch" in entry.source for entry in SCRATCH)
    cpu = Kernels(Platform(device="cpu"), padded=False)
    query = _meta(1, 1, 128, 64)
    for entry in SCRATCH:
        assert [] == list(cpu.scratch_blocks(entry.operator, (query, query, query)))
