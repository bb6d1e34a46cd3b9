"""A validation as a JSON file: written once predicted, read to make a page. Predicts nothing."""

from pathlib import Path

from pydantic import ValidationError

from bench.errors import UsageError
from bench.validation.score import Validation

MAX_BYTES = 16 * 1024**2


def write_validation(validation: Validation, path: Path) -> None:
    """Write the file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(validation.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")


def read_validation(path: Path) -> Validation:
    """Read the file. Raises ``UsageError`` where it is none."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; run `bench validate -o {path}` first.")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(
            f"{path} is larger than {MAX_BYTES:,} bytes, which no validation is; check the path."
        )
    try:
        return Validation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{path} is no validation ({place}: {first['msg']}); make it again with `bench validate`."
        ) from None
