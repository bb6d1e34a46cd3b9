"""What the operators that set most peaks do, in plain words; any other is named as torch names it."""

_WORDS = {
    "aten::_log_softmax_backward_data": "the loss's gradient over the vocabulary",
    "aten::_log_softmax": "the loss over the vocabulary",
    "aten::embedding_dense_backward": "the embedding's gradient",
    "aten::mm": "a matrix product",
    "aten::addmm": "a matrix product",
    "aten::bmm": "a batch of matrix products",
    "aten::mul": "a product of elements",
    "aten::add": "a sum of elements",
    "aten::_to_copy": "a copy in another dtype",
    "aten::_foreach_norm": "the norm of the gradients, for clipping",
    "bitsandbytes::dequantize_4bit": "4-bit weights de-quantised",
}


def operator(name: str) -> str:
    """Return an operator in words with its name in brackets, or its name."""
    told = _WORDS.get(name.removesuffix(" (workspace)"))
    return f"{told} ({name})" if told else name
