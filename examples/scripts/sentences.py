"""Sentences to train on, in the place of a data set: words at random."""

import random

_TEXT = """the a one every cat dog bird fish child teacher farmer river mountain house road sees likes finds
    follows draws forgets remembers paints builds small large old new quiet bright near behind under and"""
WORDS = _TEXT.split()


def sentences(number, words, *, vary=False, seed=0):
    """Return so many sentences of so many words; with ``vary`` some are half as long."""
    draw = random.Random(seed)
    lengths = [draw.randint(words // 2, words) if vary else words for _ in range(number)]
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
