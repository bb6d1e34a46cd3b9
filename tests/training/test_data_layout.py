"""The layout of batches: padding, packing, positions, labels and the four counts."""

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from bench.records.records import TokenCounts
from bench.training.rows.data import IGNORED_LABEL, Piece, fill_rows, pack_rows, pad_rows

NONE = IGNORED_LABEL


def piece(*ids: int, prompt: int = 0, raw_tokens: int | None = None) -> Piece:
    """Make a piece whose first ``prompt`` tokens bear no label."""
    return Piece(ids=ids, labels=(NONE,) * prompt + ids[prompt:], raw_tokens=raw_tokens or len(ids))


def tiny_model(attention: str) -> Any:
    """Build a two-layer Llama with random fp32 weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).eval()


def test_padding_goes_to_the_right_and_bears_no_loss() -> None:
    """Ids, mask, labels and counts of a small batch, in full."""
    batch = pad_rows([piece(5, 6, 7, prompt=2), piece(8, 9, prompt=1, raw_tokens=4)], width=4, pad_id=1)

    assert batch.input_ids.tolist() == [[5, 6, 7, 1], [8, 9, 1, 1]]
    assert batch.labels.tolist() == [[NONE, NONE, 7, NONE], [NONE, 9, NONE, NONE]]
    assert batch.inputs_on("cpu")["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.position_ids is None
    assert batch.counts == TokenCounts(raw=7, non_padding=5, loss_bearing=2, computed=8)


def test_no_mask_where_nothing_is_padded() -> None:
    """Full rows need no mask, so the model may take its fastest attention."""
    batch = pad_rows([piece(5, 6), piece(7, 8)], width=2, pad_id=0)

    assert {"input_ids", "labels"} == set(batch.inputs_on("cpu"))


def test_the_first_token_bears_no_loss() -> None:
    """Nothing precedes it, so the shifted loss has one position less than there are labels."""
    assert pad_rows([piece(5, 6, 7)], width=3, pad_id=0).counts.loss_bearing == 2


def test_packed_rows_start_positions_again_and_never_predict_across_pieces() -> None:
    """Positions, labels and counts of two packed rows, in full."""
    batch = pack_rows([[piece(1, 2, 3), piece(4)], [piece(5, 6), piece(7, 8, prompt=1)]], flatten=False)

    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
    assert batch.labels.tolist() == [[NONE, 2, 3, NONE], [NONE, 6, NONE, 8]]
    assert batch.attention_mask is None
    assert batch.counts == TokenCounts(raw=8, non_padding=8, loss_bearing=4, computed=8)


def test_flattened_packing_is_the_same_tokens_in_one_row() -> None:
    """FlashAttention 2 reads boundaries from positions only if the batch is one row."""
    rows = [[piece(1, 2, 3), piece(4)], [piece(5, 6), piece(7, 8)]]
    flat, square = pack_rows(rows, flatten=True), pack_rows(rows, flatten=False)

    assert flat.input_ids.shape == (1, 8)
    for name, tensor in square.inputs_on("cpu").items():
        assert flat.inputs_on("cpu")[name].flatten().tolist() == tensor.flatten().tolist()
    assert flat.counts == square.counts


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    length=st.integers(1, 7),
    count=st.integers(1, 12),
)
def test_rows_are_exactly_full_and_lose_nothing(lengths: list[int], length: int, count: int) -> None:
    """Rows have the length asked for and hold the stream in order, with raw tokens counted once."""

    def pieces() -> Iterator[Piece]:
        start = 0
        for size in cycle(lengths):
            yield piece(*range(start, start + size))
            start += size

    rows = list(islice(fill_rows(pieces(), length), count))

    assert [token for row in rows for part in row for token in part.ids] == list(range(length * count))
    assert {length} == {sum(len(part.ids) for part in row) for row in rows}
    assert {length} == {sum(part.raw_tokens for part in row) for row in rows}


def test_what_is_cut_says_that_it_continues() -> None:
    """Only the parts after a cut are marked."""
    rows = list(islice(fill_rows(iter([piece(1, 2), piece(3, 4, 5)]), 3), 1))
    rest = list(islice(fill_rows(iter([piece(1, 2), piece(3, 4, 5), piece(6)]), 3), 2))

    assert [[False, False]] == [[part.continued for part in row] for row in rows]
    assert [[False, False], [True, False]] == [[part.continued for part in row] for row in rest]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_attend_to_each_other(attention: str) -> None:
    """In transformers, each packed example has the logits it has alone."""
    model = tiny_model(attention)
    rows = [[piece(1, 2, 3), piece(4, 5, 6, 7)], [piece(8, 9), piece(10, 11, 12, 13, 14)]]
    packed = pack_rows(rows, flatten=False).inputs_on("cpu")
    with torch.no_grad():
        together = model(**packed, use_cache=False).logits
        alone = [
            torch.cat([model(torch.tensor([part.ids]), use_cache=False).logits[0] for part in row])
            for row in rows
        ]

    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_the_loss_of_a_batch_is_over_its_loss_bearing_tokens() -> None:
    """The model's mean loss over a padded batch equals the sum over rows divided by ``loss_bearing``."""
    model = tiny_model("sdpa")
    pieces = [piece(1, 2, 3, 4, prompt=2), piece(5, 6, prompt=1)]
    batch = pad_rows(pieces, width=4, pad_id=0)
    with torch.no_grad():
        loss = model(**batch.inputs_on("cpu"), use_cache=False).loss
        singles = [pad_rows([part], width=len(part.ids), pad_id=0) for part in pieces]
        total = sum(
            float(model(**single.inputs_on("cpu")).loss) * single.counts.loss_bearing for single in singles
        )

    assert float(loss) == pytest.approx(total / batch.counts.loss_bearing, rel=1e-5)
