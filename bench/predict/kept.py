"""Predictions are kept in the cache, one file each, and read back where the very same is asked again.

What is asked is named by a digest of all that can change the answer: the cell, the platform, the cards and
settings, every source file of the libraries that are traced and of this program, what is installed beside
them, and the files of a model or of rows that a prediction reads. Nothing is kept where that is not known.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from bench.errors import UsageError
from bench.io import cache_folder, kernel_text, make_folder, read_json, whole_file
from bench.predict.pool import (
    PRELOAD,
    RANGES_REPLAYED,
    PredictionRequest,
    Progress,
    cores,
    ignored,
    predict_cells,
)
from bench.records.environment import cpu_model
from bench.records.predictions import Prediction, Refusal
from bench.records.readings import Stored
from bench.records.records import DeviceFacts
from bench.scenario.catalogue import architecture_of, architecture_within
from bench.scenario.cell import Cell
from bench.scenario.types import JsonlData
from bench.workers.launch import Launcher
from bench.workers.supervise import probe

MOST_ANSWERS = 20_000
MOST_KEPT_BYTES = 64 * 1024**2
_LEFT = 0.9
"""Of these, when the oldest are dropped."""
_TRACED = ("bench", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")
_SOURCES = (".py", ".toml")
_VARIABLES = re.compile(
    "(ACCELERATE|ATEN|BITSANDBYTES|BNB|CUDA|DNNL|FSDP|GOMP|HF|HIP|KMP|LD|LOCAL|MASTER|MKL|NUMBA|NVIDIA|OMP|ONEDNN"
    "|PEFT|PYTORCH|RANK|ROCR|TORCH|TRANSFORMERS|TRL|USE|WORLD)(_|$)"
)
"""That libraries go by."""
_DEVICES = ("nvidia", "dxg", "kfd")
"""How files under /dev of what runs CUDA or HIP begin."""
_SLICES = Path("/proc/driver/nvidia/capabilities")
"""Where the driver lists what each card is divided into (NVIDIA, MIG User Guide, Device Nodes)."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


_File = tuple[str, int, int, int]
"""Path, bytes and when it was last written, then when it was last changed, which nobody can set back."""
_NONE: _File = ("none", 0, 0, 0)


class _Kept(Stored):
    """What stands in a file: what was asked, and the answer."""

    asked: str
    answer: Prediction | Refusal | None = None
    facts: DeviceFacts | None = None


@dataclass
class Kept:
    """Predicts what was not predicted before, and all of it if ``fresh``; counts what was asked and found."""

    fresh: bool = False
    asked: int = 0
    found: int = 0
    at_first: ClassVar[str] = ""

    @property
    def told(self) -> str:
        """How many answers are from earlier, in a line; empty if none is."""
        what = f"answers kept from earlier: {self.found:,} of {self.asked:,}; --fresh predicts anew"
        return what if self.found else ""

    def launcher(self) -> Launcher:
        """Return what starts predicting workers; their server starts at once where no answer is kept."""
        launcher = Launcher(preload=PRELOAD)
        if self._around and (self.fresh or not _folder().is_dir()):
            with suppress(OSError):  # told when a worker is to start
                launcher.prepare()
        return launcher

    def predict(
        self,
        requests: Sequence[PredictionRequest],
        launcher: Launcher,
        *,
        allocator: str = "",
        workers: int | None = None,
        progress: Progress = ignored,
        **options: Any,
    ) -> list[Prediction | Refusal]:
        """Do as ``predict_cells``, which raises the same.

        A figure that a prediction has only where its cell was traced itself, as the FLOPs, is there or not as
        it was then.
        """
        lent = len(requests) > RANGES_REPLAYED
        around = self._around
        shared: list[object] = [allocator, launcher.name, around]
        if lent:  # ranges are reused, of whichever cell a worker has first
            shared += [*(one.cell.model_dump_json() for one in requests), workers or cores()]
        shared_digest = _digest(shared)
        names = [around and _name(request, shared_digest) for request in requests]
        known = {index: one for index, name in enumerate(names) if (one := self._read(name).answer)}
        if lent and len(known) < len(requests):
            known = {}
        self.asked, self.found = self.asked + len(requests), self.found + len(known)
        left = [index for index in range(len(requests)) if index not in known]
        progress(len(known), len(requests))
        if left:
            predicted = predict_cells(
                [requests[index] for index in left],
                launcher,
                allocator=allocator,
                workers=workers,
                reuse_ranges=lent,
                progress=lambda done, _: progress(len(known) + done, len(requests)),
                keep=lambda index, answer: _write(names[left[index]], answer=answer),
                **options,
            )
            known |= dict(zip(left, predicted, strict=True))
            _drop_oldest(_folder())
        return [known[index] for index in range(len(requests))]

    def device(self, launcher: Launcher) -> DeviceFacts:
        """Return what a worker finds on this machine, asked once for as long as that runs."""
        devices = sorted(file.name for file in Path("/dev").iterdir() if file.name.startswith(_DEVICES))
        boot = kernel_text(Path("/proc/sys/kernel/random/boot_id"))
        slices = [file[0] for file in _files(str(_SLICES)) if file]
        around = self._around
        name = around and _digest(["device", launcher.name, around, devices, slices, boot])
        facts = self._read(name).facts
        if facts is None:
            facts = probe(launcher)
            _write(name, facts=facts)
        return facts

    def _read(self, name: str | None) -> _Kept:
        """Return what is kept under a name; nothing if that is no answer to what it names."""
        nothing = _Kept(asked=name or "")
        if self.fresh or name is None:
            return nothing
        try:
            kept = read_json(_folder() / f"{name}.json", _Kept, "a kept answer", "")
        except UsageError:
            return nothing
        return kept if kept.asked == name else nothing

    @cached_property
    def _around(self) -> str | None:
        """What every answer depends on: sources, what is installed, variables, processor and cores.

        None where that is not known, or is not what it was when this process first asked: its workers are
        forked from a server that has what was there then.
        """
        found = [spec for name in _TRACED if (spec := find_spec(name)) is not None]
        folders = [place for spec in found for place in spec.submodule_search_locations or ()]
        sources = [file for folder in folders for file in _files(str(folder), _SOURCES)]
        places = [Path(place) for place in dict.fromkeys(sys.path) if Path(place).is_dir()]
        installed = sorted(entry.name for place in places for entry in place.glob("*-info"))
        variables = sorted(one for one in os.environ.items() if _VARIABLES.match(one[0]))
        found_now = _digest([sys.version, sources, installed, variables, cpu_model(), cores()])
        Kept.at_first = Kept.at_first or found_now
        return found_now if found_now == Kept.at_first and None not in sources else None


def _name(request: PredictionRequest, around: str) -> str | None:
    """Return the name of an answer; None where what a prediction reads is not known beforehand."""
    cell = request.cell
    read = [*_files_of_model(cell), *_files_of_rows(cell)]
    if request.platform.device == "cpu":
        read += _files(str(cache_folder() / "machines"))
    if None in read:
        return None
    parts = (cell.model_dump_json(exclude={"id"}), request.platform.model_dump_json())
    return _digest([*parts, [card.model_dump_json() for card in request.cards], read, around])


def _files_of_model(cell: Cell) -> Iterator[_File | None]:
    """Yield the files that say what a model is; None for one that would be fetched."""
    model = cell.model
    if model.path is not None:
        yield from _files(str(Path(model.path).resolve()))
    elif architecture_of(model) is None:
        from huggingface_hub import constants

        config = _in_hub_cache(cell, "config.json")
        if architecture_within(model.hub or "") is not None:  # the hub is not asked
            yield _file(config) if config else _NONE
        elif config and (constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(model.revision)):
            yield _file(config)
        else:  # a branch moves
            yield None


def _files_of_rows(cell: Cell) -> Iterator[_File | None]:
    """Yield the file of rows, whose tokens are looked at, and those of the tokenizer."""
    if isinstance(cell.data, JsonlData):
        yield _file(Path(cell.data.path).resolve())
        if cell.model.hub and (tokenizer := _in_hub_cache(cell, "tokenizer.json")):
            yield from _files(str(tokenizer.parent))


def _in_hub_cache(cell: Cell, file: str) -> Path | None:
    """Return a file of a hub's model, whose path names the revision; None where it was not fetched."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no name that the hub could have
        found = try_to_load_from_cache(cell.model.hub or "", file, revision=cell.model.revision)
        return Path(found) if isinstance(found, str) else None
    return None


def _files(folder: str, endings: tuple[str, ...] = ("",)) -> Iterator[_File | None]:
    """Yield the files of a folder and of those below it; None for a link to a folder, of unknown content."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name != "__pycache__":
                yield from _files(entry.path, endings)
        elif entry.is_dir():
            yield None
        elif entry.name.endswith(endings):
            yield _file(entry)


def _file(path: "Path | os.DirEntry[str]") -> _File:
    """Return what changes where a file is written: cheaper than what it holds, of thousands."""
    try:
        facts = path.stat()
    except OSError:
        return os.fspath(path), -1, -1, -1
    return os.fspath(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _folder() -> Path:
    return cache_folder() / "predictions"


def _write(name: str | None, **what: Any) -> None:
    """Keep an answer, unless it may be another the next time; where that is not possible nothing is lost."""
    answer = what.get("answer")
    if name is None or (isinstance(answer, Refusal) and answer.by != "tracer"):
        return
    with suppress(OSError):
        make_folder(_folder())
        with whole_file(_folder() / f"{name}.json", synced=False) as file:
            file.write(_Kept(asked=name, **what).model_dump_json().encode())


def _drop_oldest(folder: Path) -> None:
    with suppress(OSError):
        files = sorted(filter(None, _files(str(folder))), key=lambda file: file[2])
        count, size = len(files), sum(file[1] for file in files)
        if count <= MOST_ANSWERS and size <= MOST_KEPT_BYTES:
            return
        for path, its, *_ in files:
            if count <= MOST_ANSWERS * _LEFT and size <= MOST_KEPT_BYTES * _LEFT:
                return
            Path(path).unlink(missing_ok=True)
            count, size = count - 1, size - its
