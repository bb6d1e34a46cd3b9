"""A library that fine-tunes."""

from mylibrary.training import finetune

__all__ = ["finetune"]
