"""What meta kernels return is remembered, and nothing that shares memory is taken for new."""

import torch

from bench.predict.trace.meta_kernels import ShapeMemory

ATEN = torch.ops.aten


def meta(*size: int) -> torch.Tensor:
    """Return a tensor without data."""
    return torch.empty(size, device="meta")


def test_a_remembered_result_has_the_layout_of_a_computed_one() -> None:
    """Size, stride and dtype of a transposed product are those that the kernel gave the first time."""
    memory = ShapeMemory()
    args = (meta(3, 5).t(), meta(3, 7))
    first, flops, kept = memory.run(ATEN.mm.default, args, {})
    again, flops_again, kept_again = memory.run(ATEN.mm.default, args, {})
    assert (first.size(), first.stride(), first.dtype) == (again.size(), again.stride(), again.dtype)
    assert flops == flops_again == 2 * 5 * 3 * 7
    assert kept is not None
    assert kept is kept_again
    assert first.untyped_storage()._cdata != again.untyped_storage()._cdata


def test_a_view_that_does_not_say_so_stays_a_view() -> None:
    """_unsafe_view's schema names no alias, yet its result shares its argument's storage: each time."""
    memory = ShapeMemory()
    source = meta(4, 6)
    for _ in range(2):
        view, _, kept = memory.run(ATEN._unsafe_view.default, (source, [24]), {})
        assert kept is None
        assert source.untyped_storage()._cdata == view.untyped_storage()._cdata


def test_other_sizes_are_computed_anew() -> None:
    """What was learnt of one size is not given for another."""
    memory = ShapeMemory()
    assert memory.run(ATEN.add.Tensor, (meta(2, 3), meta(2, 3)), {})[0].shape == (2, 3)
    assert memory.run(ATEN.add.Tensor, (meta(4, 3), meta(4, 3)), {})[0].shape == (4, 3)


def test_an_operator_in_place_returns_its_argument() -> None:
    """The tensor itself comes back, the first time and when it is remembered."""
    memory = ShapeMemory()
    target = meta(2, 2)
    for _ in range(2):
        result, _, _ = memory.run(ATEN.add_.Tensor, (target, meta(2, 2)), {})
        assert result is target
