"""How long the collectives of a step take between the GPUs of one machine, as NCCL's rings move them."""

from collections.abc import Iterable
from typing import NamedTuple

from bench.predict.speed.kernels import Work, constants
from bench.scenario.catalogue import Card

MOST_ON_A_MACHINE = 8


class LinkTimes(NamedTuple):
    """Seconds that all collectives of a step take, one after the other, at three rates; and what to say."""

    best: float = 0.0
    usual: float = 0.0
    worst: float = 0.0
    told: tuple[str, ...] = ()


ALONE = LinkTimes()


def why_unlinked(card: Card, gpus: int) -> str:
    """Return why nothing is told of so many GPUs; empty where it is."""
    if gpus > MOST_ON_A_MACHINE:
        return f"how machines are linked is not known, so speed is told of at most {MOST_ON_A_MACHINE} GPUs"
    return "" if gpus == 1 or card.link else "no source of how such cards are linked was read"


def link_times(works: Iterable[tuple[Work, float]], card: Card, gpus: int) -> LinkTimes:
    """Return what collectives take, each of which stands with how often it comes; nothing of one GPU.

    In a ring of n GPUs each sends (n-1)/n of what is gathered, or reduced, in n-1 steps.
    """
    link = card.link
    if gpus == 1 or link is None:
        return ALONE
    count = rounds = nbytes = 0.0
    for work, times in works:
        count += times * bool(work.rounds)
        rounds += times * work.rounds
        nbytes += times * work.rounds * work.gathered
    table = constants()["links"]
    own = table[link.name.lower()]
    waiting = (count * table["base_us"] + rounds * (gpus - 1) * own["step_us"]) * 1e-6
    sent = nbytes * (gpus - 1) / gpus / (link.gb_per_s * 1e9)
    worst, usual, best = own["shares"]
    told = (
        "over several GPUs the range is a bound: at the high end all collectives run beside the rest and "
        f"{link.name} carries {best * 100:.0f} % of {link.gb_per_s:g} GB/s, at the low end none does and it "
        f"carries {worst * 100:.0f} %"
    )
    return LinkTimes(waiting + sent / best, waiting + sent / usual, waiting + sent / worst, (told,))
