"""A validation as a JSON file: written once predicted, read to make a page. Predicts nothing."""

from pathlib import Path

from bench.io import read_json, write_text
from bench.records.published.score import Validation


def write_validation(validation: Validation, path: Path) -> None:
    """Write the file, folders included. Raises ``InfrastructureError`` where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, validation.model_dump_json(indent=1, exclude_defaults=True) + "\n")


def read_validation(path: Path) -> Validation:
    """Read the file. Raises ``UsageError`` where it is none."""
    return read_json(path, Validation, "a validation", f"make it with bench validate -o {path}")
