"""Settings of another trainer as its file has them, YAML or JSON (which is YAML too): keys with their lines.

Nothing of a file is imported or run: tags are refused, and so are aliases, whose values could multiply.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UsageError, first_line
from bench.io import open_data
from bench.scenario.diagnostics import shown

MAX_BYTES = 256 * 1024
_SECRET = re.compile(r"(^|_)(token|api_key|secret|password)$")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_PICKLES = (".bin", ".pt", ".pkl", ".pth")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of the file with its value; line 0 is a default of the trainer."""

    key: str
    value: Any
    line: int = 0

    def text(self, file: str) -> str:
        """Return the key with its value, if that is no secret, and where it stands."""
        value = "…" if _SECRET.search(self.key) and self.value else shown(self.value)
        return f"{safe(self.key)} = {value} ({file}:{self.line})"

    def place(self, file: str) -> str:
        return f"{safe(self.key)} ({file}:{self.line})"


def safe(name: str) -> str:
    """Return a name that a stranger chose so that it can stand in a comment."""
    return name if re.fullmatch(r"[\w.,: -]{1,80}", name) and "\n" not in name else shown(name)


def read_settings(path: Path) -> list[Setting]:
    """Return the keys of a YAML or JSON file in its order. Raises ``UsageError``."""
    import yaml

    text = _text_of(path)
    wrong = "give axolotl's or LLaMA-Factory's YAML, or TrainingArguments.to_json_string()"
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UsageError(f"{path} uses aliases (*name), which are not followed; write their values out")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(f"{path} holds no settings by name; {wrong}")
        settings: dict[str, Setting] = {}
        for key_node, node in root.value:
            key, line = str(loader.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
            if key in settings:
                raise UsageError(f"{path}:{line}: {shown(key)} is given twice; remove one")
            settings[key] = Setting(
                key=key, value=_plain(loader.construct_object(node, deep=True)), line=line
            )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise UsageError(f"{path}{place} is not plain YAML or JSON ({reason}); {wrong}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply; {wrong}") from None
    return list(settings.values())


def _text_of(path: Path) -> str:
    if path.suffix in _PICKLES:
        raise UsageError(f"{path} would run code when read; save the arguments with to_json_string()")
    try:
        with open_data(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(
                f"{path} is larger than {MAX_BYTES:,} bytes, which no settings are; check the path"
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text in UTF-8; save it as YAML or JSON") from None


def _plain(value: Any) -> Any:
    """Return a value as JSON would have it; 1e-4 is a number, though YAML reads it as text."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value if isinstance(value, str | int | float | None) else str(value)
