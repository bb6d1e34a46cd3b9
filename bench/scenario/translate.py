"""A scenario from the settings of another trainer: axolotl's, LLaMA-Factory's, or saved arguments.

Every key is either written, with the line that it comes from, or listed with the reason why not; what a file
leaves to its trainer is written as its default, and what has to be invented is said to be.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from bench.errors import UsageError
from bench.io import parse_json, read_data
from bench.scenario.diagnostics import Location, Path, Problems
from bench.scenario.layout import METHODS, SECTIONS
from bench.scenario.matrix import expand
from bench.scenario.names import (
    MAX_BYTES,
    Setting,
    Source,
    key_toml,
    name_of,
    read_settings,
    safe,
    sources,
    toml,
)
from bench.scenario.shape import Shape

_MODEL = "llama-3-8b"
_MOST_LISTED = 12
_HEARD_OF_NO = "no setting of that name is known here"


@dataclass(kw_only=True)
class Translation:
    """A scenario under way: what is written, by path, with the setting it comes from, and what is not."""

    file: str
    source: Source
    written: dict[Path, tuple[Any, Setting | None]] = field(default_factory=dict)
    lost: list[tuple[str, Setting]] = field(default_factory=list)
    plain: list[Setting] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)

    def put(self, path: str, value: Any, setting: Setting | None = None, *, over: bool = False) -> None:
        """Write a field, unless another key of the file has; a default gives way to any key."""
        key = as_path(path)
        there = self.written.get(key)
        by_file = there is not None and there[1] is not None and there[1].line > 0
        if there is None or over or not by_file:
            self.written[key] = value, setting
        if there is not None and setting is not None and by_file:
            loser = there[1] if over else setting
            if there[0] != value and loser is not None:
                self.lost.append(("another key of the file decides it", loser))

    def lose(self, why: str, setting: Setting) -> None:
        """Note that a key is not taken over; a default is nobody's loss."""
        if setting.line:
            self.lost.append((why, setting))

    def value(self, path: str) -> Any:
        """Return what is written in a field; None if nothing is."""
        return self.written.get(as_path(path), (None, None))[0]

    def remarks(self, *, short: bool = False) -> Iterator[str]:
        """Yield a line for each thing that is not as the file has it; ``short`` counts what is off."""
        reasons: dict[str, list[str]] = {}
        for why, setting in sorted(self.lost, key=lambda one: one[1].line):
            reasons.setdefault(why, []).append(setting.text(self.file))
        yield from (f"{', '.join(some)}: {why}" for why, some in reasons.items())
        if short and len(self.plain) > _MOST_LISTED:
            yield f"off there, or as it is here: {len(self.plain)} keys, which the scenario lists"
        elif self.plain:
            listed = ", ".join(one.place(self.file) for one in self.plain)
            yield f"off there, or as it is here: {listed}"
        yield from self.invented


def translate(path: FilePath) -> tuple[str, list[str]]:
    """Return a file's settings as a scenario that loads, and in a line each what it does not take over.

    Raises ``UsageError`` for a file that is none of those known.
    """
    settings = read_settings(path)
    found = Translation(file=safe(path.name), source=_source_of(settings, path))
    found.put("loop.driver", found.source.driver)
    _model_and_data(found, settings)
    for setting in [*(Setting(key=key, value=one) for key, one in found.source.defaults.items()), *settings]:
        _take(found, setting)
    _complete(found)
    _drop_what_does_not_fit(found)
    return _written(found), list(found.remarks(short=True))


def _source_of(settings: Iterable[Setting], path: FilePath) -> Source:
    keys = {setting.key for setting in settings}
    for source in sources():
        if keys & set(source.marks):
            return source
    known = ", ".join(source.name for source in sources())
    raise UsageError(f"{path} has no key that is known of {known}; check the file")


def _take(found: Translation, setting: Setting) -> None:
    name = name_of(setting.key)
    fields = {} if setting.value is None else name.fields(setting.key, setting.value) if name else None
    if fields is None:
        found.lose(name.say if name else _HEARD_OF_NO, setting)
    elif not fields and setting.line:
        found.plain.append(setting)
    if name and setting.value is False:
        for one in map(as_path, name.write):  # it is no more as the trainer has it by default
            default = found.written.get(one, (None, None))[1]
            if default is not None and not default.line and name_of(default.key) is name:
                del found.written[one]
    for path, value in (fields or {}).items():
        if path == "method.kind" and value not in METHODS:
            found.lose("kind is full, lora or qlora", setting)
        elif path == "method.kind" and found.value(path) == "qlora":
            found.plain.append(setting)
        else:
            found.put(path, _fitting(path, value), setting, over=bool(name and name.over))


def as_path(field_name: str) -> Path:
    return tuple(field_name.split("."))


def _fitting(path: str, value: Any) -> Any:
    """Return a value as the field wants it: LLaMA-Factory writes a list of modules as text."""
    if isinstance(value, str) and "," in value and path.startswith("method."):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


_MODEL_KEYS = ("base_model", "model_name_or_path", "model_name", "base_model_name_or_path")
_DATA_KEYS = ("datasets", "pretraining_dataset", "dataset", "dataset_name", "train_file")


def _model_and_data(found: Translation, settings: list[Setting]) -> None:
    """Write the model and the data that the file names; those keys are taken from the list."""
    for setting in [one for one in settings if one.key in _MODEL_KEYS and isinstance(one.value, str)]:
        local = FilePath(setting.value).is_dir() or setting.value.startswith(("/", ".", "~"))
        found.put("model.path" if local else "model.hub", setting.value, setting)
        settings.remove(setting)
    said = next((one.value for one in settings if one.key == "dataset_dir"), None)
    folder = FilePath(str(said or "data"))
    for setting in [one for one in settings if one.key in _DATA_KEYS and one.value]:
        settings.remove(setting)
        if isinstance(setting.value, list) and isinstance(setting.value[0], dict):
            _axolotl_data(found, setting)
        elif isinstance(setting.value, str) and setting.key != "dataset":
            _data_at(found, setting.value, setting)
        else:
            _registered_data(found, setting, str(folder))


def _axolotl_data(found: Translation, setting: Setting) -> None:
    first, *others = setting.value
    for number, other in enumerate(others, start=2):
        found.lose(
            "one data set is read: join them",
            Setting(key=f"datasets, {number}", value=other, line=setting.line),
        )
    files = first.get("data_files")
    place = files[0] if isinstance(files, list) and files else files or first.get("path", "")
    _data_at(found, str(place), setting)
    kind = str(first.get("type", ""))
    if kind.startswith("alpaca"):
        found.put("data.format", "alpaca", setting)
        found.put("data.template", "alpaca", setting)
    elif kind in ("completion", "pretrain"):
        found.put("data.format", "text", setting)
    for key, path in {"name": "data.config", "split": "data.split"}.items():
        if isinstance(first.get(key), str) and found.value("data.source") == "hub":
            found.put(path, first[key], setting)
    known = ("path", "data_files", "type", "ds_type", "name", "split")
    more = {key: value for key, value in first.items() if key not in known}
    if kind and not kind.startswith(("alpaca", "chat_template", "sharegpt", "completion", "pretrain")):
        more["type"] = kind
    for key, value in more.items():
        found.lose(
            "rows are read by their keys", Setting(key=f"datasets: {key}", value=value, line=setting.line)
        )


def _registered_data(found: Translation, setting: Setting, folder: str) -> None:
    """Write the first data set that LLaMA-Factory's dataset_info.json names, if it can be read from here."""
    first, *others = str(setting.value).split(",")
    try:
        known = parse_json(read_data(FilePath(folder) / "dataset_info.json", MAX_BYTES))
        entry = known.get(first.strip(), {})
        place, hub = entry.get("file_name"), entry.get("hf_hub_url")
    except (OSError, ValueError, AttributeError):
        place = hub = None
    if not isinstance(place, str) and not isinstance(hub, str):
        found.lose(f'no {folder}/dataset_info.json here has it; set source = "jsonl" and its path', setting)
        return
    _data_at(found, f"{folder}/{place}" if isinstance(place, str) else str(hub), setting)
    if others:
        rest = Setting(key="dataset, others", value=",".join(others), line=setting.line)
        found.lose("one data set is read: join them", rest)


def _data_at(found: Translation, place: str, setting: Setting) -> None:
    local = place.endswith((".json", ".jsonl")) or FilePath(place).is_file()
    found.put("data.source", "jsonl" if local else "hub", setting)
    found.put("data.path" if local else "data.dataset", place, setting)


def _complete(found: Translation) -> None:
    if found.value("model.hub") is None and found.value("model.path") is None:
        found.put("model.random", _MODEL)
        found.invented.append(
            f'the file names no model: "{_MODEL}" with random weights stands in until you name yours'
        )
    if found.value("data.source") is None:
        found.put("data.source", "synthetic")
        found.invented.append("the file leads to no data: random tokens stand in, which fill every sequence")
    if found.value("method.kind") is None:
        adapter = any(path[0] == "method" for path in found.written)
        found.put("method.kind", "lora" if adapter else "full")
        if not adapter:
            found.invented.append("the file names no adapter: every weight is trained")
    if found.value("training.dtype") is None:
        found.invented.append("the file says no dtype of the weights: bf16 stands in; set training.dtype")
    if found.value("training.sequence_length") is None:
        found.invented.append("the file says no sequence length: 512 stands in; set training.sequence_length")
    casts = found.source.name == "LLaMA-Factory"  # model/adapter.py: cast_trainable_params_to_fp32
    if found.source.name == "LLaMA-Factory" and found.value("method.alpha") is None:  # finetuning_args.py
        default = Setting(key="lora_alpha", value=None)
        found.put("method.alpha", 2 * (found.value("method.rank") or 8), default)
    autocast = found.value("training.autocast")
    if found.value("method.kind") == "full" and (autocast == "fp16" or (casts and autocast == "bf16")):
        found.put("training.dtype", "fp32", over=True)
        found.invented.append("weights that are trained under autocast are in fp32")


class _Complaints(Problems):
    """Also keeps where each mistake is."""

    def __init__(self, places: Iterable[Path]) -> None:
        nowhere = Location(rank=1, line=1, file="")
        super().__init__(dict.fromkeys(places, nowhere), nowhere)
        self.places: dict[Path, str] = {}

    def add(self, path: Path, message: str, wrong: object = "", known: Iterable[str] = ()) -> None:
        super().add(path, message, wrong, known)
        self.places.setdefault(path, message)


def _drop_what_does_not_fit(found: Translation) -> None:
    """Take out one after another what a scenario refuses; raise ``UsageError`` if that is no help."""
    while True:
        real = {_path_of(found, path): path for path in found.written}
        problems = _Complaints(real)
        expand(Shape(problems).scenario(_document(found)), "translated", problems)
        if not problems.places:
            return
        place, message = next(iter(problems.places.items()))
        near = [ours for one, ours in real.items() if one[: len(place)] == place or place[: len(one)] == one]
        kept = {("method", "kind"), ("data", "source"), ("loop", "driver")}
        for path in sorted(near, key=lambda ours: str(ours[-1]) not in message):
            if path[0] != "model" and path not in kept:
                _, setting = found.written.pop(path)
                if setting is not None:
                    found.lose(message, setting)
                break
        else:
            raise UsageError(f"{found.file} does not make a scenario: {message}")


def _path_of(found: Translation, path: Path) -> Path:
    names = {"model": ("models", _name(found)), "method": ("methods", found.value("method.kind"))}
    return (*names.get(str(path[0]), (path[0],)), *path[1:])


def _name(found: Translation) -> str:
    said = found.value("model.hub") or found.value("model.path") or found.value("model.random")
    return re.sub(r"[^a-z0-9._-]+", "-", FilePath(str(said)).name.lower()).strip("-._")[:80] or "model"


def _document(found: Translation) -> dict[str, Any]:
    document: dict[str, Any] = {"device": "cuda"}
    for path, (value, _) in found.written.items():
        table = document
        *around, last = map(str, _path_of(found, path))
        for part in around:
            table = table.setdefault(part, {})
        table[last] = value
    return document


def _written(found: Translation) -> str:
    """Return the scenario as TOML, each line with the key it comes from, and the remarks above."""
    lines = [
        f"# From {found.file}, read as {found.source.name}.",
        *(f"# {one}." for one in found.remarks()),
        "",
    ]
    tables: dict[str, list[str]] = {"": [f"title = {toml(f'From {found.file}')}"]}
    found.put("device", "cuda")
    order = ("device", "model", "method", *SECTIONS)
    for path, (value, setting) in sorted(found.written.items(), key=lambda one: order.index(str(one[0][0]))):
        *around, last = map(key_toml, _path_of(found, path))
        came = ""
        if setting is not None:
            came = setting.place(found.file) if setting.line else f"default of {found.source.name}"
        text = f"{last} = {toml(value)}"
        tables.setdefault(".".join(around), []).append(f"{text}  # {came}" if came else text)
    for name, some in tables.items():
        lines += ["", f"[{name}]", *some] if name else some
    return "\n".join(lines) + "\n"
