"""FLOPs against arithmetic, and the operators nobody can count."""

import torch
from torch import nn

from bench.probes.flops import CountedFlops, FlopCounter


def test_a_linear_layer_by_hand() -> None:
    """Forward, weight gradient and input gradient: three products of 2·rows·in·out each."""
    layer = nn.Linear(64, 256, bias=False)
    rows = torch.randn(32, 64, requires_grad=True)
    with FlopCounter() as counter:
        layer(rows).sum().backward()
    assert counter.counted() == CountedFlops(3 * 2 * 32 * 64 * 256, [])


def test_attention_on_a_cpu_by_hand() -> None:
    """Two products forward and five backward, of 2 times batch, heads, positions squared and width each."""
    query, key, value = (torch.randn(2, 4, 32, 16, requires_grad=True) for _ in range(3))
    with FlopCounter() as counter:
        nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
    assert counter.counted() == CountedFlops(7 * 2 * 2 * 4 * 32 * 32 * 16, [])


def test_an_unknown_operator_is_named() -> None:
    """A custom operator without a formula is reported, not taken for free."""

    @torch.library.custom_op("bench_tests::mystery", mutates_args=())
    def mystery(rows: torch.Tensor) -> torch.Tensor:
        return rows @ rows.T

    with FlopCounter() as counter:
        mystery(torch.randn(4, 4))
    assert counter.counted().uncounted_operators == ["bench_tests::mystery"]
