"""One line of ``bench doctor``."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing this machine has or lacks; ``blocking`` when without it nothing can be run."""

    subject: str
    good: bool
    text: str
    blocking: bool = False
