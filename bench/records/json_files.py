"""JSON files of one known type: read with a limit on their size, written whole or not at all."""

import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bench.errors import InfrastructureError, UsageError

MAX_BYTES = 64 * 1024**2

_Stored = TypeVar("_Stored", bound=BaseModel)


def read_stored(path: Path, kind: type[_Stored], name: str, advice: str) -> _Stored:
    """Read one file. Raises ``UsageError`` where it is no ``name``; ``advice`` says what to do about it."""
    try:
        if path.is_symlink() or not path.is_file():
            raise UsageError(f"{path} is not a plain file; {advice}")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes, which {name} never is; {advice}")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {advice}") from None
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, mistake["loc"])) or "the file"
        raise UsageError(f"{path} is not {name} ({where}: {mistake['msg']}); {advice}") from None


def write_stored(path: Path, content: BaseModel) -> None:
    """Write one JSON file whole or not at all. Raises ``InfrastructureError`` when it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.model_dump_json(indent=1).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InfrastructureError(
            f"cannot write {path} ({error.strerror}); free some space or choose another folder"
        ) from error
