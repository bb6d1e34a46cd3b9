"""The loop that trains a cell: its frozen type, and which loops there are."""

from typing import Any

from pydantic import Field

from bench.scenario.types import Frozen

LIBRARY_LOOPS = ("hf-trainer", "trl-sft", "trl-dpo")
_FUNCTION = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
NO_LOOP = "cannot be imported"
"""Said of a function that is not there."""
_DRIVERS = "|".join(("window", *LIBRARY_LOOPS, _FUNCTION))


class LoopSpec(Frozen):
    """The loop that trains: the window's own, a library's trainer, or a function of the user's."""

    driver: str = Field(
        "window",
        max_length=200,
        pattern=rf"^(script|{_DRIVERS})$",
        json_schema_extra={"pattern": rf"^({_DRIVERS})$"},
        description="window; hf-trainer (transformers' Trainer); trl-sft and trl-dpo (trl's SFTTrainer and "
        "DPOTrainer); or a function of yours, package.module:function, which --allow-code has to name.",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Handed on to TrainingArguments, SFTConfig or DPOConfig, or to the function as keyword "
        "arguments.",
    )

    @property
    def is_function(self) -> bool:
        return ":" in self.driver

    @property
    def is_library(self) -> bool:
        return self.driver in LIBRARY_LOOPS

    @property
    def code(self) -> str | None:
        """What has code of the user's: a module, or a script's path without its ending; None if nothing."""
        if self.is_function:
            return self.driver.partition(":")[0]
        if self.driver != "script":
            return None
        first, *rest = self.args["command"]
        return str(rest[0]) if first == "-m" else str(first).removesuffix(".py")

    @property
    def takes_pairs(self) -> bool:
        """Whether it trains on the better and the worse of two answers to a prompt."""
        return self.driver == "trl-dpo"
