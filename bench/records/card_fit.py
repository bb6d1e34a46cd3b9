"""Whether a predicted cell fits on a card. Pure arithmetic on a prediction; nothing is predicted here."""

from typing import Literal

from bench.records.predictions import Prediction
from bench.scenario.catalogue import Card
from bench.scenario.types import Frozen

Answer = Literal["fits", "too close to call", "does not fit"]


class Verdict(Frozen):
    """The answer for one card, and the bytes that it rests on."""

    answer: Answer
    needed_bytes: int
    least_bytes: int
    usable_bytes: int
    assumptions: tuple[str, ...] = ()

    @property
    def margin_bytes(self) -> int:
        """What is left of the card at the top of the band; negative where that is more than it has."""
        return self.usable_bytes - self.needed_bytes


def judge(prediction: Prediction, card: Card) -> Verdict:
    """Judge a prediction for CUDA.

    It fits if the top of the reserved band and the CUDA context do; it does not if even what is allocated
    at the peak and the context do not. Between the two the allocator may or may not find room, by luck
    and by releasing what it caches. Raises ``ValueError`` on a prediction for the CPU, where no such limit
    is known.
    """
    if prediction.platform.device != "cuda":
        raise ValueError("a prediction for the CPU is not judged for a card")
    high = prediction.reserved_high_bytes or prediction.reserved_peak_bytes or prediction.allocated_peak_bytes
    needed = high + card.context_bytes
    least = prediction.allocated_peak_bytes + card.context_bytes
    answer: Answer = "too close to call"
    if needed <= card.usable_bytes:
        answer = "fits"
    elif least > card.usable_bytes:
        answer = "does not fit"
    return Verdict(
        answer=answer,
        needed_bytes=needed,
        least_bytes=least,
        usable_bytes=card.usable_bytes,
        assumptions=card.assumptions,
    )
