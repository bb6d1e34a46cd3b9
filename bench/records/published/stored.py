"""A validation as a JSON file: written once predicted, read to make a page. Predicts nothing."""

from pathlib import Path

from bench.records.json_files import read_stored
from bench.records.published.score import Validation


def write_validation(validation: Validation, path: Path) -> None:
    """Write the file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(validation.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")


def read_validation(path: Path) -> Validation:
    """Read the file. Raises ``UsageError`` where it is none."""
    return read_stored(path, Validation, "a validation", f"make it with bench validate -o {path}")
