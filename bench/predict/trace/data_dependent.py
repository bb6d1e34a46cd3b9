"""What code that asks for a tensor's value is told, where there is no data: by who asks."""

import sys
from collections.abc import Iterator
from pathlib import PurePath
from types import FrameType

from bench.errors import UntraceableError

_DEPTH = 24  # frames; the dispatcher's own lie between the question and who asks it
_MACHINERY = ("/torch/", "/bench/predict/", "/bench/probes/")
_HIDES_NOTHING = {"_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa", "flash_attention_mask"}
"""transformers' masking_utils.py: does the mask hide nothing, so that no mask need be made?"""
_SEVERAL_PER_ROW = {"_flash_attention_forward"}
"""Its modeling_flash_attention_utils.py: do positions begin anew within a row?"""
_ONE_SEQUENCE_PER_ROW = {"find_packed_sequence_indices"}
"""masking_utils.py: do positions just count up, as they do but in packed rows?"""
_FOUND_INFINITIES = {"_maybe_opt_step"}
"""torch's grad_scaler.py: how many gradients overflowed? If any had, there would be no step to predict."""
_SCALE = {"get_scale"}
"""The same: the scale itself, which is only compared with that of the step before."""


def resolve_item(*, padded: bool, packed: bool) -> bool | float | int:
    """Return what ``.item()`` of a tensor without data would, as a dense, padded or packed batch gives it.

    Only questions that were met and thought about are resolved; who asks tells which. ``padded`` says
    that the batch's attention mask hides something, ``packed`` that its rows hold several sequences. Raises
    ``UntraceableError`` naming the line that asks something else.
    """
    names = {frame.f_code.co_name for frame in _callers()}
    if names & _HIDES_NOTHING:
        return not padded
    if names & _ONE_SEQUENCE_PER_ROW:
        return not packed
    if names & _SEVERAL_PER_ROW:
        return packed
    if names & _FOUND_INFINITIES:
        return 0.0
    if names & _SCALE:
        return 1.0
    raise UntraceableError(
        "the memory of this model depends on data that a prediction does not have: it asks for the value of "
        f"a tensor ({asking_line()}); measure it with bench run."
    )


def asking_line() -> str:
    """Name the line that asks for a value: the nearest that is not torch's or ours."""
    asker = next((frame for frame in _callers() if not _is_machinery(frame)), None)
    return "somewhere in torch" if asker is None else _place(asker)


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _is_machinery(frame: FrameType) -> bool:
    return any(part in frame.f_code.co_filename for part in _MACHINERY)


def _place(frame: FrameType) -> str:
    """Name a line by its file, without the folders above the package."""
    path = PurePath(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}, line {frame.f_lineno}, in {frame.f_code.co_name}"
